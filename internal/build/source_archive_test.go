// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hallmark-sc/hallmark"
)

// packed is a tar archive of the entries, in order.
func packed(t testing.TB, compress bool, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		data := h.Uname // stands for the content, for the test's sake
		h.Uname, h.Size = "", int64(len(data))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if !compress {
		return b.Bytes()
	}
	var z bytes.Buffer
	zw := gzip.NewWriter(&z)
	zw.Write(b.Bytes())
	zw.Close()
	return z.Bytes()
}

func regular(name, data string, mode int64) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode, Uname: data}
}

func TestSourceArchive(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"a": 0o644, "d/run": 0o755} {
		os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a", filepath.Join(dir, "l")); err != nil {
		t.Fatal(err)
	}
	link := tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "a"}
	whole := []tar.Header{regular("a", "a", 0o644), regular("d/run", "d/run", 0o755), link}
	with := func(more ...tar.Header) []tar.Header { return append(append([]tar.Header{}, whole...), more...) }
	in := func(top string, hs ...tar.Header) []tar.Header {
		out := []tar.Header{{Name: top, Typeflag: tar.TypeDir, Mode: 0o755}}
		for _, h := range hs {
			h.Name = top + h.Name
			out = append(out, h)
		}
		return out
	}
	for name, tc := range map[string]struct {
		entries []tar.Header
		says    string
	}{
		"the same":           {whole, ""},
		"in a directory":     {in("app-1.0/", whole...), ""},
		"with dots":          {in("./", whole...), ""},
		"of git":             {append([]tar.Header{{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "c"}}}, in("app/", whole...)...), ""},
		"one more":           {with(regular("build.m4", "x", 0o644)), "build.m4 is not in the commit"},
		"one more, below":    {in("app/", with(regular("build.m4", "x", 0o644))...), "build.m4 is not in the commit"},
		"beside the top":     {append(in("app/", whole...), regular("x", "x", 0o644)), "is not in the commit"},
		"other bytes":        {[]tar.Header{regular("a", "b", 0o644), whole[1], link}, "a has other bytes"},
		"one less":           {whole[:2], "l of the commit is missing"},
		"executable":         {[]tar.Header{regular("a", "a", 0o755), whole[1], link}, "a is a program, in the commit a file"},
		"other link":         {[]tar.Header{whole[0], whole[1], {Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/etc"}}, "l has other bytes"},
		"hard link":          {[]tar.Header{whole[0], whole[1], {Name: "l", Typeflag: tar.TypeLink, Linkname: "a"}}, "neither file nor link"},
		"twice":              {with(whole[0]), "stands twice"},
		"out of the archive": {with(regular("../x", "x", 0o644)), "leaves the archive"},
		"rooted":             {with(regular("/x", "x", 0o644)), "leaves the archive"},
		"device":             {with(tar.Header{Name: "n", Typeflag: tar.TypeChar}), "neither file nor link"},
		"empty":              {nil, "is missing"},
	} {
		for _, file := range []string{"x.tar", "x.tar.gz"} {
			r := SourceArchive(dir, file, packed(t, file != "x.tar", tc.entries...))
			if tc.says == "" && r != nil || tc.says != "" && (r == nil || r.Code != hallmark.CodeSourceArchive || !strings.Contains(r.Message, tc.says) || r.Fix == "") {
				t.Errorf("%s, %s: %+v", name, file, r)
			}
		}
	}
	good := packed(t, false, whole...)
	if r := SourceArchive(dir, "x.tar", append(bytes.Clone(good), good...)); r == nil || !strings.Contains(r.Message, "behind its end") {
		t.Errorf("two archives: %+v", r)
	}
	for _, bad := range []string{"", "\x1f\x8b", "text"} {
		if r := SourceArchive(dir, "x.tgz", []byte(bad)); r == nil {
			t.Errorf("%q is an archive", bad)
		}
	}
}

func TestSourceArtifact(t *testing.T) {
	text := "apiVersion: hallmark/v1\nkind: Pipeline\nbuild:\n  steps:\n    - run: make\n  artifacts:\n    - a\n    - ITEM\n"
	p, err := ParsePipeline("p.yaml", []byte(strings.Replace(text, "ITEM", "source: out/x.tar.gz", 1)))
	if err != nil || strings.Join(p.Artifacts, " ") != "a out/x.tar.gz" || strings.Join(p.Sources, " ") != "out/x.tar.gz" {
		t.Errorf("%+v %v", p, err)
	}
	for _, bad := range []string{"source: x.zip", "source: ../x.tar", "source: [x.tar]", "{source: x.tar, image: {}}", "source: out/B", "{source: x.tar, mode: x}"} {
		if _, err := ParsePipeline("p.yaml", []byte(strings.Replace(text, "ITEM", bad, 1))); hallmark.CodeOf(err) != hallmark.CodePipelineInvalid || !strings.Contains(err.Error(), "p.yaml:8:") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func FuzzSourceArchive(f *testing.F) {
	dir := f.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte("a"), 0o644); err != nil {
		f.Fatal(err)
	}
	f.Add(packed(f, false, regular("a", "a", 0o644)))
	f.Add(packed(f, false, regular("x/a", "a", 0o644), regular("x/b", "b", 0o644)))
	f.Fuzz(func(t *testing.T, data []byte) {
		if SourceArchive(dir, "x.tar", data) == nil && !bytes.Contains(data, []byte("a")) {
			t.Errorf("%q holds the file", data)
		}
	})
}
