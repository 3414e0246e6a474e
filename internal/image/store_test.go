// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/durable"
)

// source is an image of some files, as blobs and as its digest.
func source(t *testing.T, files ...SpecFile) (memory, hallmark.Digest) {
	t.Helper()
	s := spec(files...)
	s.Variants[0].Platform = HostPlatform()
	m := made(t, s)
	return memory(m.Blobs), hallmark.Digest(m.Subject.Digest.String())
}

func store(t *testing.T) *Store {
	t.Helper()
	s, err := NewStore(StoreConfig{Dir: filepath.Join(tempDir(t), "images")})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func platforms() []Platform { return []Platform{HostPlatform()} }

// TestStoreTakesWholeImagesOnly: whichever blob has other bytes, nothing can be
// opened afterwards; and the whole image can.
func TestStoreTakesWholeImagesOnly(t *testing.T) {
	blobs, d := source(t, SpecFile{Path: "/app", Mode: 0o755, Data: []byte("text")})
	for at := range blobs {
		for name, bad := range map[string][]byte{"bit": append([]byte{blobs[at][0] ^ 1}, blobs[at][1:]...), "longer": append(bytes.Clone(blobs[at]), ' '), "empty": {}} {
			other := maps.Clone(blobs)
			other[at] = bad
			s := store(t)
			if _, err := s.Import(t.Context(), other, d, platforms()); hallmark.CodeOf(err) != hallmark.CodeImageDigest {
				t.Errorf("%s of %s: %v", name, at, err)
			}
			if _, err := Open(s, d, HostPlatform()); hallmark.CodeOf(err) != hallmark.CodeImageNotImported || hallmark.HintOf(err) == "" {
				t.Errorf("%s of %s: opened: %v", name, at, err)
			}
		}
	}
	s := store(t)
	if _, err := s.Import(t.Context(), blobs, d, platforms()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s, d, HostPlatform()); err != nil {
		t.Error(err)
	}
}

// TestRootIsWhatTheLayersSay, also when many ask for it at once, and when
// somebody had their way with it.
func TestRootIsWhatTheLayersSay(t *testing.T) {
	blobs, d := source(t, SpecFile{Path: "/bin/app", Mode: 0o755, Data: []byte("text")}, SpecFile{Path: "/etc/conf", Mode: 0o644, Data: []byte("conf")})
	s := store(t)
	if _, err := s.Import(t.Context(), blobs, d, platforms()); err != nil {
		t.Fatal(err)
	}
	img, err := Open(s, d, HostPlatform())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := s.Root(t.Context(), img); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	r, err := s.Root(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(filepath.Dir(filepath.Dir(r.Dir)))
	if err != nil || len(left) != 1 {
		t.Errorf("left in the store: %v, %v", left, err)
	}
	for name, change := range map[string]func() error{
		"byte": func() error {
			p := r.Dir + "/bin/app"
			return errors.Join(os.Chmod(p, 0o755), os.WriteFile(p, []byte("evil"), 0), os.Chmod(p, 0o555))
		},
		"another file": func() error {
			return errors.Join(os.Chmod(r.Dir+"/bin", 0o755), os.WriteFile(r.Dir+"/bin/evil", nil, 0o555), os.Chmod(r.Dir+"/bin", 0o555))
		},
		"half a tree": func() error {
			return errors.Join(durable.RemoveTree(r.Dir), os.WriteFile(filepath.Join(filepath.Dir(r.Dir), "other"), nil, 0o644))
		},
		"link to a copy": func() error {
			evil := filepath.Join(tempDir(t), "copy")
			return errors.Join(os.CopyFS(evil, os.DirFS(r.Dir)), durable.RemoveTree(r.Dir), os.Symlink(evil, r.Dir))
		},
		"link for the tree": func() error {
			evil := tempDir(t)
			return errors.Join(durable.RemoveTree(filepath.Dir(r.Dir)), os.Mkdir(filepath.Dir(r.Dir), 0o755), os.Symlink(evil, r.Dir))
		},
	} {
		if err := change(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		again, err := s.Root(t.Context(), img)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := again.Tree.Verify(t.Context(), again.Dir); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if st, err := os.Lstat(again.Dir); err != nil || !st.IsDir() {
			t.Errorf("%s: the tree is %v, %v", name, st, err)
		}
		if b, err := os.ReadFile(again.Dir + "/bin/app"); err != nil || string(b) != "text" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	// A layer in the store that was altered is worse: nothing can be made from it.
	p := s.blob(img.Layers[0].Digest)
	if err := errors.Join(os.Chmod(p, 0o644), os.WriteFile(p, []byte("evil"), 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Root(t.Context(), img); hallmark.CodeOf(err) != hallmark.CodeImageDigest {
		t.Errorf("altered layer: %v", err)
	}
}

// saved writes an archive as docker save does.
func saved(t testing.TB, headers ...tar.Header) string {
	t.Helper()
	p := filepath.Join(tempDir(t), "image.tar")
	if err := os.WriteFile(p, archiveOf(t, headers...), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func dockerFiles(t testing.TB) (config, layer string) {
	t.Helper()
	layer = string(archiveOf(t, file("app", "text")))
	b, err := json.Marshal(map[string]any{"os": HostPlatform().OS, "architecture": HostPlatform().Architecture,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{string(hallmark.DigestOf([]byte(layer)))}}})
	if err != nil {
		t.Fatal(err)
	}
	return string(b), layer
}

const dockerManifest = `[{"Config":"config.json","RepoTags":["x:1"],"Layers":["a/layer.tar"]}]`

func TestDockerArchive(t *testing.T) {
	config, layer := dockerFiles(t)
	digests := map[hallmark.Digest]bool{}
	for name, headers := range map[string][]tar.Header{
		"as written":       {file("manifest.json", dockerManifest), file("config.json", config), file("a/layer.tar", layer)},
		"in another order": {file("a/layer.tar", layer), file("./config.json", config), file("manifest.json", dockerManifest)},
		"linked layer":     {file("b/layer.tar", layer), symlink("a/layer.tar", "../b/layer.tar"), file("config.json", config), file("manifest.json", dockerManifest)},
	} {
		src, err := OpenPath(saved(t, headers...))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all, err := store(t).Import(t.Context(), src, src.Images()[0], platforms())
		if err != nil || len(all) != 1 {
			t.Errorf("%s: %+v, %v", name, all, err)
		}
		digests[src.Images()[0]] = true
		src.Close()
	}
	if len(digests) != 1 {
		t.Errorf("the same image has the digests %v", digests)
	}
}

func TestDockerArchiveRefuses(t *testing.T) {
	config, layer := dockerFiles(t)
	m, c, l := file("manifest.json", dockerManifest), file("config.json", config), file("a/layer.tar", layer)
	for name, k := range map[string]struct {
		headers []tar.Header
		code    hallmark.Code
	}{
		"no manifest":           {[]tar.Header{c, l}, hallmark.CodeImageInvalid},
		"no layer":              {[]tar.Header{m, c}, hallmark.CodeImageInvalid},
		"two manifests":         {[]tar.Header{m, m, c, l}, hallmark.CodeImageHostile},
		"two images":            {[]tar.Header{file("manifest.json", "["+dockerManifest[1:len(dockerManifest)-1]+","+dockerManifest[1:]), c, l}, hallmark.CodeImageInvalid},
		"layer of the host":     {[]tar.Header{m, c, symlink("a/layer.tar", "/etc/passwd")}, hallmark.CodeImageInvalid},
		"layer climbs":          {[]tar.Header{file("manifest.json", strings.Replace(dockerManifest, "a/layer.tar", "../../etc/passwd", 1)), c, l}, hallmark.CodeImageInvalid},
		"hard link":             {[]tar.Header{m, c, hard("a/layer.tar", "/etc/passwd")}, hallmark.CodeImageHostile},
		"device":                {[]tar.Header{m, c, {Name: "a/layer.tar", Typeflag: tar.TypeChar}}, hallmark.CodeImageHostile},
		"another layer":         {[]tar.Header{m, c, file("a/layer.tar", string(archiveOf(t, file("app", "evil"))))}, hallmark.CodeImageDigest},
		"another configuration": {[]tar.Header{m, file("config.json", strings.Replace(config, "diff_ids\":[\"sha256:", "diff_ids\":[\"sha256:0", 1)), l}, hallmark.CodeImageInvalid},
		"nothing":               {nil, hallmark.CodeImageInvalid},
	} {
		src, err := OpenPath(saved(t, k.headers...))
		if err == nil {
			_, err = store(t).Import(t.Context(), src, src.Images()[0], platforms())
			src.Close()
		}
		if hallmark.CodeOf(err) != k.code {
			t.Errorf("%s: %v (%s), want %s", name, err, hallmark.CodeOf(err), k.code)
		}
	}
}

// TestLayoutDirectoryKeepsInside: a layout whose files are links reads nothing of
// the host.
func TestLayoutDirectoryKeepsInside(t *testing.T) {
	dir := tempDir(t)
	secret := filepath.Join(tempDir(t), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := hallmark.DigestOf([]byte("secret"))
	index := `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":6,"digest":"` + string(d) + `"}]}`
	if err := errors.Join(os.WriteFile(dir+"/index.json", []byte(index), 0o644), os.MkdirAll(dir+"/blobs/sha256", 0o755), os.Symlink(secret, dir+"/blobs/sha256/"+d.Hex())); err != nil {
		t.Fatal(err)
	}
	src, err := OpenPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if !slices.Equal(src.Images(), []hallmark.Digest{d}) {
		t.Errorf("images %v", src.Images())
	}
	if r, err := src.Open(d); err == nil {
		r.Close()
		t.Error("a link led out of the layout")
	}
}

// FuzzArchive: whatever an archive of an image holds, reading it ends, and what is
// imported is what its digest says.
func FuzzArchive(f *testing.F) {
	config, layer := dockerFiles(f)
	f.Add(archiveOf(f, file("manifest.json", dockerManifest), file("config.json", config), file("a/layer.tar", layer)))
	f.Add(archiveOf(f, file("oci-layout", "{}"), file("index.json", `{"manifests":[]}`)))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := filepath.Join(tempDir(t), "x.tar")
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
		src, err := OpenPath(p)
		if err != nil {
			return
		}
		defer src.Close()
		for _, d := range src.Images() {
			s := store(t)
			if _, err := s.Import(t.Context(), src, d, platforms()); err != nil {
				continue
			}
			if _, err := Open(s, d, HostPlatform()); err != nil {
				t.Errorf("imported, and can't be opened: %v", err)
			}
		}
	})
}
