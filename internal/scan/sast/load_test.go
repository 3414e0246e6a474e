// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sast

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestLoadSaysWhatItCouldNotRead: nothing that could not be understood is passed
// over, and what imports it says why it was not analysed.
func TestLoadSaysWhatItCouldNotRead(t *testing.T) {
	dir := write(t,
		"go.mod", "module m\n\ngo 1.21\n\nrequire example.org/dep v0.0.0\n\nreplace example.org/dep => ./dep\n",
		"dep/go.mod", "module example.org/dep\n\ngo 1.21\n", "dep/dep.go", "package dep\n\nfunc F() Absent { return 0 }\n",
		"good/a.go", "package good\n\nimport \"strconv\"\n\nfunc F(s string) int16 { n, _ := strconv.ParseInt(s, 10, 64); return int16(n) }\n",
		"types/a.go", "package types\n\nfunc F() int { return \"\" }\n",
		"syntax/a.go", "package syntax\n\nfunc F( {\n",
		"gone/a.go", "package gone\n\nimport _ \"m/absent\"\n",
		"uses/a.go", "package uses\n\nimport \"m/types\"\n\nvar _ = types.F()\n",
		"far/a.go", "package far\n\nimport _ \"m/uses\"\n",
		"usesdep/a.go", "package usesdep\n\nimport \"example.org/dep\"\n\nvar _ = dep.F\n",
		"generic/a.go", "package generic\n\nimport (\n\t\"slices\"\n\t\"unsafe\"\n)\n\nvar X = slices.Max([]int{int(unsafe.Sizeof(0))})\n",
	)
	findings, files, missed, err := golang(dir, ".")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"package m/far: no SSA form: it imports m/types: cannot use \"\" (untyped string constant) as int value in return statement",
		"package m/gone: could not import m/absent (package m/absent is not in std",
		"package m/syntax: expected ')', found '{'",
		"package m/types: cannot use \"\" (untyped string constant) as int value in return statement",
		"package m/uses: no SSA form: it imports m/types: cannot use \"\" (untyped string constant) as int value in return statement",
		"package m/usesdep: no SSA form: it imports example.org/dep: undefined: Absent",
	}
	if d := cmp.Diff(want, firstOfEach(missed)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"generic/a.go", "good/a.go"}, files); d != "" {
		t.Error(d)
	}
	if len(findings) == 0 || findings[0].Path != "good/a.go" {
		t.Errorf("findings %+v", findings)
	}
}

// TestLoadCompilesNothing: a worker has no compiled standard library, and its
// time is not there to make one.
func TestLoadCompilesNothing(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("GOCACHE", cache)
	dir := write(t, "go.mod", "module m\n\ngo 1.21\n", "m.go", "package m\n\nimport \"fmt\"\n\nfunc F() { fmt.Println() }\n")
	if _, files, missed, err := golang(dir, "."); err != nil || len(missed) > 0 || len(files) != 1 {
		t.Fatalf("%v %v %v", files, missed, err)
	}
	err := filepath.WalkDir(cache, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		if bytes.HasPrefix(b, []byte("!<arch>")) {
			t.Errorf("%s is a compiled package", p)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// firstOfEach is the first line about each package.
func firstOfEach(missed []string) []string {
	var out []string
	seen := map[string]bool{}
	for _, m := range missed {
		if name, _, _ := strings.Cut(m, ": "); !seen[name] {
			seen[name] = true
			m, _, _ = strings.Cut(m, " (/")
			out = append(out, m)
		}
	}
	slices.Sort(out)
	return out
}
