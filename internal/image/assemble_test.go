// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
)

func spec(files ...SpecFile) Spec {
	return Spec{
		Created: time.Unix(1700000000, 5), Variants: []Variant{{Platform: Platform{OS: "linux", Architecture: "amd64"}, Files: files}},
		Entrypoint: []string{"/bin/app"}, Env: map[string]string{"B": "2", "A": "1"}, User: "65534", Workdir: "/srv", Labels: map[string]string{"l": "v"},
	}
}

func made(t *testing.T, s Spec) *Made {
	t.Helper()
	m, err := Assemble(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestAssembleIsReproducible: neither the order of files nor the time of day
// changes a byte, and every byte depends on what was asked for.
func TestAssembleIsReproducible(t *testing.T) {
	a, b := SpecFile{Path: "/bin/app", Mode: 0o755, Data: []byte("app")}, SpecFile{Path: "/etc/app.conf", Mode: 0o644, Data: []byte("conf")}
	one, two := made(t, spec(a, b)), made(t, spec(b, a))
	if diff := cmp.Diff(one, two); diff != "" {
		t.Error(diff)
	}
	for name, change := range map[string]func(*Spec){
		"content": func(s *Spec) { s.Variants[0].Files[0].Data = []byte("apq") }, "mode": func(s *Spec) { s.Variants[0].Files[0].Mode = 0o555 },
		"name": func(s *Spec) { s.Variants[0].Files[0].Path = "/bin/apq" }, "commit": func(s *Spec) { s.Created = s.Created.Add(time.Second) },
		"user": func(s *Spec) { s.User = "0" }, "platform": func(s *Spec) { s.Variants[0].Platform.Architecture = "arm64" }, "env": func(s *Spec) { s.Env = nil },
	} {
		s := spec(a, b)
		change(&s)
		if made(t, s).Subject.Digest == one.Subject.Digest {
			t.Errorf("another %s has the same digest", name)
		}
	}
}

// TestAssembledLayer says nothing of the machine: no owner, no time but the
// commit's, names in order, and no right beyond permissions.
func TestAssembledLayer(t *testing.T) {
	m := made(t, spec(SpecFile{Path: "/usr/bin/app", Mode: 0o6755, Data: []byte("app")}, SpecFile{Path: "/a", Mode: 0o644}))
	blobs := memory(m.Blobs)
	img, err := Open(blobs, hallmark.Digest(m.Subject.Digest.String()), Platform{OS: "linux", Architecture: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(blobs[img.Layers[0].Digest]))
	if err != nil {
		t.Fatal(err)
	}
	if !z.ModTime.IsZero() || z.Name != "" || z.Comment != "" {
		t.Errorf("header %+v", z.Header)
	}
	r := tar.NewReader(z)
	var names []string
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" || !h.ModTime.Equal(time.Unix(1700000000, 0)) || h.Mode&^0o777 != 0 || !h.AccessTime.IsZero() {
			t.Errorf("header %+v", h)
		}
	}
	if diff := cmp.Diff([]string{"a", "usr/", "usr/bin/", "usr/bin/app"}, names); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"A=1", "B=2"}, img.Config.Env); diff != "" {
		t.Error(diff)
	}
}

// baseOf is a base with the given entries.
func baseOf(t *testing.T, headers ...tar.Header) (*Base, memory) {
	t.Helper()
	tree, m, ls, err := flatten(t, headers)
	if err != nil {
		t.Fatal(err)
	}
	for i := range ls {
		ls[i].MediaType = "application/vnd.docker.image.rootfs.diff.tar"
	}
	return &Base{Ref: Ref{Name: "example.org/base", Digest: hallmark.DigestOf([]byte("base"))}, Image: &Image{Layers: ls}, Tree: tree}, m
}

// TestAssembleOverBase puts files where the links of the base lead, leaves its
// directories as they are, and keeps its layers byte by byte.
func TestAssembleOverBase(t *testing.T) {
	tmp := dir("tmp")
	tmp.Mode = 0o1777
	base, blobs := baseOf(t, symlink("bin", "usr/bin"), dir("usr/bin"), tmp, file("usr/bin/app", "old"))
	s := spec(SpecFile{Path: "/bin/app", Mode: 0o755, Data: []byte("new one")}, SpecFile{Path: "/tmp/x", Mode: 0o644}, SpecFile{Path: "/opt/y", Mode: 0o644})
	s.Variants[0].Base = base
	base.Image.Config.Env = []string{"PATH=/usr/bin", "A=0"}
	base.Image.Config.Cmd = []string{"sh"}
	m := made(t, s)
	maps.Copy(blobs, m.Blobs)
	img, err := Open(blobs, hallmark.Digest(m.Subject.Digest.String()), Platform{OS: "linux", Architecture: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	if len(img.Layers) != 2 || img.Layers[0].Digest != base.Image.Layers[0].Digest || !slices.Equal(m.Base, []hallmark.Digest{base.Image.Layers[0].Digest}) {
		t.Errorf("layers %+v", img.Layers)
	}
	if diff := cmp.Diff([]string{"PATH=/usr/bin", "A=1", "B=2"}, img.Config.Env); diff != "" {
		t.Error(diff)
	}
	if len(img.Config.Cmd) > 0 {
		t.Errorf("the base's command is another program's argument: %v", img.Config.Cmd)
	}
	tree, err := Flatten(t.Context(), blobs, img.Layers, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if got := show(tree); got != "bin->usr/bin opt/ opt/y=0 tmp/ tmp/x=0 usr/ usr/bin/ usr/bin/app=7" {
		t.Error(got)
	}
	if e, ok := tree.Find("tmp"); !ok || e.Mode != 0o777 {
		t.Errorf("/tmp of the base is now %+v", e)
	}
}

func TestAssembleRefuses(t *testing.T) {
	base, _ := baseOf(t, file("etc/file", "x"), dir("usr/lib"))
	for name, files := range map[string][]SpecFile{
		"over a directory": {{Path: "/usr/lib"}}, "below a file": {{Path: "/etc/file/x"}}, "twice": {{Path: "/a"}, {Path: "/a"}},
		"climbs": {{Path: "/../a"}}, "root": {{Path: "/"}}, "file and directory": {{Path: "/a"}, {Path: "/a/b"}}, "directory and file": {{Path: "/a/b"}, {Path: "/a"}},
	} {
		s := spec(files...)
		s.Variants[0].Base = base
		if _, err := Assemble(s); hallmark.CodeOf(err) != hallmark.CodeImageInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestIndex makes an image for each platform, and chooses the one for a machine.
func TestIndex(t *testing.T) {
	s := spec(SpecFile{Path: "/app", Data: []byte("amd64")})
	s.Index = true
	s.Variants = append(s.Variants, Variant{Platform: Platform{OS: "linux", Architecture: "arm64"}, Files: []SpecFile{{Path: "/app", Data: []byte("arm")}}})
	m := made(t, s)
	d := hallmark.Digest(m.Subject.Digest.String())
	for arch, size := range map[string]string{"amd64": "app=5", "arm64": "app=3"} {
		img, err := Open(memory(m.Blobs), d, Platform{OS: "linux", Architecture: arch})
		if err != nil {
			t.Fatal(err)
		}
		tree, err := Flatten(t.Context(), memory(m.Blobs), img.Layers, Limits{})
		if err != nil || show(tree) != size {
			t.Errorf("%s: %v, %v", arch, err, tree)
		}
	}
	if _, err := Open(memory(m.Blobs), d, Platform{OS: "linux", Architecture: "s390x"}); hallmark.CodeOf(err) != hallmark.CodeImageInvalid {
		t.Errorf("a platform that is not there: %v", err)
	}
}

// TestAttachKeepsTheDigest: evidence is added beside an image, whose manifest
// stays the same bytes.
func TestAttachKeepsTheDigest(t *testing.T) {
	m := made(t, spec(SpecFile{Path: "/app", Data: []byte("x")}))
	subject := SubjectOf(m.Subject)
	files, err := Attach("app", subject, []Evidence{{PredicateType: "https://slsa.dev/provenance/v1", Bundle: []byte(`{"bundle":1}`)}})
	if err != nil {
		t.Fatal(err)
	}
	again, err := Attach("app", subject, []Evidence{{PredicateType: "https://slsa.dev/provenance/v1", Bundle: []byte(`{"bundle":1}`)}})
	if err != nil || !cmp.Equal(files, again) {
		t.Errorf("not reproducible: %v", err)
	}
	for name := range files {
		if name == "blobs/sha256/"+subject.Digest.Hex() {
			t.Errorf("the image's manifest was written anew")
		}
	}
	if _, err := readAll(memory(m.Blobs), subject.Digest, Limits{}.defaults(), 1); err != nil {
		t.Error(err)
	}
}

// TestDocumentsThatReadTwoWays are refused: a manifest that is an index to
// another reader (CVE-2021-41190), and what names nothing that is kept.
func TestDocumentsThatReadTwoWays(t *testing.T) {
	for name, text := range map[string]string{
		"both":          `{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}`,
		"neither":       `{"schemaVersion":2}`,
		"liar":          `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","config":{"digest":"sha256:` + hallmark.DigestOf(nil).Hex() + `"},"layers":[]}`,
		"another liar":  `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[]}`,
		"no JSON":       `{`,
		"empty":         ``,
		"weak digest":   `{"schemaVersion":2,"config":{"digest":"md5:00000000000000000000000000000000"},"layers":[]}`,
		"foreign layer": `{"schemaVersion":2,"config":{"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},"layers":[{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}]}`,
	} {
		m := memory{hallmark.DigestOf([]byte(text)): []byte(text), hallmark.DigestOf([]byte("{}")): []byte("{}")}
		if _, err := Open(m, hallmark.DigestOf([]byte(text)), HostPlatform()); hallmark.CodeOf(err) != hallmark.CodeImageInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseRef(t *testing.T) {
	digest := "@sha256:" + hallmark.DigestOf(nil).Hex()
	for _, good := range []string{"debian", "docker.io/library/debian", "localhost:5000/a/b-c_d", "127.0.0.1:5000/x"} {
		if r, err := ParseRef(good + digest); err != nil || r.Name != good {
			t.Errorf("%s: %+v, %v", good, r, err)
		}
	}
	for _, bad := range []string{"debian", "debian:12", "debian:12" + digest, "debian@sha256:00", "debian@sha512:" + hallmark.DigestOf(nil).Hex(), digest, "../x" + digest, "A" + digest, "a//b" + digest, "a/b:tag" + digest, "a b" + digest, "-a" + digest, "a" + digest + digest} {
		if r, err := ParseRef(bad); hallmark.CodeOf(err) != hallmark.CodeImageNotByDigest {
			t.Errorf("%s: %+v, %v", bad, r, err)
		}
	}
}
