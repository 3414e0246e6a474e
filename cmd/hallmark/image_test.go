// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	imageregistry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/rogpeppe/go-internal/testscript"
)

// cmdMakeImage is "makeimage NAME [-bare] [FILE=TEXT|FILE=@SOURCE…]": an image with a shell and a few
// programs of this machine, as another tool writes images: an OCI layout
// NAME.layout, an archive NAME.tar as docker save writes it, and in a registry.
// With -bare it holds nothing but the named files, each in a layer of its own.
// It sets $NAME_DIGEST, the digest of the layout's image, and $NAME_REF, the
// reference in the registry.
func cmdMakeImage(ts *testscript.TestScript, _ bool, args []string) {
	var layers []v1.Layer
	files := args[1:]
	if len(files) > 0 && files[0] == "-bare" {
		files = files[1:]
	} else {
		layers = append(layers, layerOf(ts, hostPrograms(ts)), layerOf(ts, map[string][]byte{
			"opt/image-marker": []byte("made of layers\n"), "etc/passwd": []byte("evil:x:0:0::/:/bin/sh\n"), "etc/marker": []byte("etc of the image\n")}))
	}
	for _, a := range files {
		file, text, _ := strings.Cut(a, "=")
		if source, ok := strings.CutPrefix(text, "@"); ok {
			text = ts.ReadFile(source)
		}
		layers = append(layers, layerOf(ts, map[string][]byte{file: []byte(text)}))
	}
	img, err := mutate.AppendLayers(empty.Image, layers...)
	ts.Check(err)
	cf, err := img.ConfigFile()
	ts.Check(err)
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = runtime.GOOS, runtime.GOARCH
	cf.Config.Env = []string{"PATH=/usr/bin", "FROM_IMAGE=yes", "HOME=/of/the/image", "LD_PRELOAD=/evil.so"}
	img, err = mutate.ConfigFile(img, cf)
	ts.Check(err)
	d, err := img.Digest()
	ts.Check(err)
	dir := ts.MkAbs(args[0] + ".layout")
	l, err := layout.Write(dir, empty.Index)
	ts.Check(err)
	ts.Check(l.AppendImage(img))
	tag, err := name.NewTag("example.org/" + args[0] + ":1")
	ts.Check(err)
	ts.Check(tarball.WriteToFile(ts.MkAbs(args[0]+".tar"), tag, img))
	server := httptest.NewServer(imageregistry.New(imageregistry.Logger(log.New(io.Discard, "", 0))))
	ts.Defer(server.Close)
	ref, err := name.NewDigest(strings.TrimPrefix(server.URL, "http://") + "/" + args[0] + "@" + d.String())
	ts.Check(err)
	ts.Check(remote.Write(ref, img))
	ts.Setenv(args[0]+"_DIGEST", d.String())
	ts.Setenv(args[0]+"_REF", ref.String())
}

// hostPrograms are a shell, some programs, and the libraries that they need.
func hostPrograms(ts *testscript.TestScript) map[string][]byte {
	out := map[string][]byte{}
	add := func(host, inside string) {
		b, err := os.ReadFile(host)
		ts.Check(err)
		out[inside] = b
	}
	for _, p := range []string{"sh", "cat", "ls", "mkdir", "env", "rm", "touch"} {
		host, err := exec.LookPath(p)
		ts.Check(err)
		add(host, "usr/bin/"+p)
		libs, err := exec.Command("ldd", host).Output()
		ts.Check(err)
		for _, m := range regexp.MustCompile(`(/[^ ]+) \(0x`).FindAllStringSubmatch(string(libs), -1) {
			add(m[1], "usr/lib/"+filepath.Base(m[1]))
		}
	}
	return out
}

// layerOf is a layer with files, and the links that the loader goes by.
func layerOf(ts *testscript.TestScript, files map[string][]byte) v1.Layer {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if files["usr/bin/sh"] != nil {
		for _, l := range [][2]string{{"bin", "usr/bin"}, {"lib", "usr/lib"}, {"lib64", "usr/lib"}} {
			ts.Check(w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: l[0], Linkname: l[1]}))
		}
	}
	for p, text := range files {
		ts.Check(w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: p, Size: int64(len(text)), Mode: 0o4755}))
		_, err := w.Write(text)
		ts.Check(err)
	}
	ts.Check(w.Close())
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	ts.Check(err)
	return l
}

// cmdSubst is "subst FILE FROM TO": replaces text in a file, for definitions that
// name a digest.
func cmdSubst(ts *testscript.TestScript, _ bool, args []string) {
	b, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	if !bytes.Contains(b, []byte(args[1])) {
		ts.Fatalf("%s does not hold %q", args[0], args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), bytes.ReplaceAll(b, []byte(args[1]), []byte(args[2])), 0o644))
}

// cmdTamperBlob is "tamperblob DIR DIGEST": flips one bit in the middle of the
// largest layer that an image of the layout or store in DIR names.
func cmdTamperBlob(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(filepath.WalkDir(ts.MkAbs(args[0]), func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		if st.Size() < 1<<18 || filepath.Base(filepath.Dir(p)) != "sha256" {
			return nil
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		b[len(b)/2] ^= 1
		if err := os.Chmod(p, 0o644); err != nil {
			return err
		}
		fmt.Fprintln(os.Stderr, "tampered with", filepath.Base(p))
		return os.WriteFile(p, b, 0o644)
	}))
}

// cmdStatement is "statement FILE NAME TEXT": the statement of that name among
// the evidence holds the text.
func cmdStatement(ts *testscript.TestScript, _ bool, args []string) {
	for _, line := range readLines(ts, ts.MkAbs(args[0])) {
		p := payloadOf(ts, line)
		if bytes.Contains(p, []byte(`"`+args[1]+`"`)) && bytes.Contains(p, []byte(args[2])) {
			return
		}
	}
	ts.Fatalf("no statement %s holds %q", args[1], args[2])
}

// cmdLayout is "layout DIR NAME": the directory is an OCI layout that another
// reader takes, of one image of that name, with evidence that refers to it.
func cmdLayout(ts *testscript.TestScript, _ bool, args []string) {
	p, err := layout.FromPath(ts.MkAbs(args[0]))
	ts.Check(err)
	idx, err := p.ImageIndex()
	ts.Check(err)
	m, err := idx.IndexManifest()
	ts.Check(err)
	if len(m.Manifests) != 2 || m.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != args[1] {
		ts.Fatalf("index.json names %+v", m.Manifests)
	}
	top := m.Manifests[0]
	if top.MediaType.IsIndex() {
		child, err := idx.ImageIndex(top.Digest)
		ts.Check(err)
		ts.Check(validate.Index(child))
	} else {
		img, err := idx.Image(top.Digest)
		ts.Check(err)
		ts.Check(validate.Image(img))
	}
	if want := "sha256-" + top.Digest.Hex; m.Manifests[1].Annotations["org.opencontainers.image.ref.name"] != want {
		ts.Fatalf("the list of evidence is not %s", want)
	}
	list, err := idx.ImageIndex(m.Manifests[1].Digest)
	ts.Check(err)
	refs, err := list.IndexManifest()
	ts.Check(err)
	types := map[string]bool{}
	for _, d := range refs.Manifests {
		img, err := list.Image(d.Digest)
		ts.Check(err)
		r, err := img.Manifest()
		ts.Check(err)
		if r.Subject == nil || r.Subject.Digest != top.Digest || d.ArtifactType != "application/vnd.dev.sigstore.bundle.v0.3+json" {
			ts.Fatalf("evidence %s is about %+v", d.Digest, r.Subject)
		}
		types[d.Annotations["dev.sigstore.bundle.predicateType"]] = true
	}
	for _, want := range []string{"https://slsa.dev/provenance/v1", "https://slsa.dev/verification_summary/v1", "https://spdx.dev/Document", "https://cyclonedx.org/bom"} {
		if !types[want] {
			ts.Fatalf("no evidence of type %s: %v", want, types)
		}
	}
}
