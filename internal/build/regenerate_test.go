// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hallmark-sc/hallmark"
)

func TestRegenerated(t *testing.T) {
	const p = "gen/a.txt"
	for name, tc := range map[string]struct {
		change func(written string) error
		says   string // "": equal
	}{
		"equal":      {func(string) error { return nil }, ""},
		"other":      {func(w string) error { return os.WriteFile(filepath.Join(w, p), []byte("b\n"), 0o644) }, "gen/a.txt has other bytes"},
		"not done":   {func(w string) error { return os.Remove(filepath.Join(w, p)) }, "gen/a.txt was not written"},
		"nothing":    {func(w string) error { return os.RemoveAll(filepath.Join(w, "gen")) }, "was not written"},
		"more":       {func(w string) error { return os.WriteFile(filepath.Join(w, "gen/b.txt"), nil, 0o644) }, "gen/b.txt was written by the build and is not in the commit"},
		"executable": {func(w string) error { return os.Chmod(filepath.Join(w, p), 0o755) }, "gen/a.txt is -rw-r--r-- in the commit"},
		"a link to the same": {func(w string) error {
			os.Rename(filepath.Join(w, p), filepath.Join(w, "kept"))
			return os.Symlink("../kept", filepath.Join(w, p))
		}, "gen/a.txt is"},
		"a pipe": {func(w string) error {
			os.Remove(filepath.Join(w, p))
			return syscall.Mkfifo(filepath.Join(w, p), 0o644)
		}, "gen/a.txt is"},
		"other link": {func(w string) error {
			os.Remove(filepath.Join(w, "gen/link"))
			return os.Symlink("/etc", filepath.Join(w, "gen/link"))
		}, "gen/link has other bytes"},
	} {
		source, written := t.TempDir(), t.TempDir()
		for _, dir := range []string{source, written} {
			if err := os.Mkdir(filepath.Join(dir, "gen"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, p), []byte("a\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("a.txt", filepath.Join(dir, "gen/link")); err != nil {
				t.Fatal(err)
			}
		}
		if err := tc.change(written); err != nil {
			t.Fatal(err)
		}
		reasons := Regenerated(source, written, []string{"gen"})
		if tc.says == "" {
			if len(reasons) > 0 {
				t.Errorf("%s: %+v", name, reasons)
			}
			continue
		}
		if len(reasons) != 1 || reasons[0].Code != hallmark.CodeSourceGenerated || !strings.Contains(reasons[0].Message, tc.says) || reasons[0].Fix == "" {
			t.Errorf("%s: %+v", name, reasons)
		}
	}
	if r := Regenerated(t.TempDir(), t.TempDir(), []string{"gen"}); len(r) != 1 || !strings.Contains(r[0].Message, "not in the commit") {
		t.Errorf("nothing in the commit: %+v", r)
	}
	// A link of the build in the place of a directory leads nowhere.
	source, written := t.TempDir(), t.TempDir()
	os.MkdirAll(filepath.Join(source, "gen/sub"), 0o755)
	os.WriteFile(filepath.Join(source, "gen/sub/a"), []byte("a"), 0o644)
	os.MkdirAll(filepath.Join(written, "x/sub"), 0o755)
	os.WriteFile(filepath.Join(written, "x/sub/a"), []byte("a"), 0o644)
	os.Symlink("x", filepath.Join(written, "gen"))
	if r := Regenerated(source, written, []string{"gen/sub/a"}); len(r) != 1 || !strings.Contains(r[0].Message, "gen is not a directory") {
		t.Errorf("through a link: %+v", r)
	}
}

func TestRegeneratesIsStrict(t *testing.T) {
	text := "apiVersion: hallmark/v1\nkind: Pipeline\nbuild:\n  steps:\n    - run: make\n      regenerates: LIST\n  artifacts: [a]\n"
	p, err := ParsePipeline("p.yaml", []byte(strings.Replace(text, "LIST", "[gen, a/b.go]", 1)))
	if err != nil || strings.Join(p.Steps[0].Regenerates, " ") != "gen a/b.go" {
		t.Errorf("%+v %v", p, err)
	}
	for _, bad := range []string{"[]", "gen", "[.]", "[../x]", "[/x]", "[a/]", "[a, a]", "['']", "[1]"} {
		if _, err := ParsePipeline("p.yaml", []byte(strings.Replace(text, "LIST", bad, 1))); hallmark.CodeOf(err) != hallmark.CodePipelineInvalid || !strings.Contains(err.Error(), "p.yaml:6:") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
