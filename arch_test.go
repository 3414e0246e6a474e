// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package hallmark_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/hallmark-sc/hallmark"

// pkg is what the architecture says something about.
type pkg struct {
	ImportPath, Doc string
	Imports         []string
}

// TestArchitecture holds the code against ARCHITECTURE.txt: a line a package,
// allowed imports, capabilities, a package comment each.
func TestArchitecture(t *testing.T) {
	data, err := os.ReadFile("ARCHITECTURE.txt")
	if err != nil {
		t.Fatal(err)
	}
	allowed, only := map[string][]string{}, map[string][]string{}
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "" {
			continue
		}
		f := strings.Split(line, "|")
		if len(f) < 2 {
			t.Fatalf("ARCHITECTURE.txt: no columns in %q", line)
		}
		name := strings.TrimSpace(f[0])
		if outside, ok := strings.CutPrefix(name, "only "); ok {
			only[outside] = strings.Fields(f[1])
			continue
		}
		if _, ok := allowed[name]; ok {
			t.Errorf("ARCHITECTURE.txt: %s stands twice", name)
		}
		allowed[name] = strings.Fields(f[1])
	}
	found := map[string]bool{}
	for _, p := range listPackages(t) {
		name, _ := ours(p.ImportPath)
		found[name] = true
		may, ok := allowed[name]
		if !ok {
			t.Errorf("%s has no line in ARCHITECTURE.txt", name)
			continue
		}
		if p.Doc == "" {
			t.Errorf("%s has no package comment", name)
		}
		for _, imp := range p.Imports {
			if own, ok := ours(imp); ok && !slices.Contains(may, own) && !slices.Contains(may, "*") {
				t.Errorf("%s may not import %s", name, own)
			}
			if who, ok := only[imp]; ok && !slices.Contains(who, name) {
				t.Errorf("%s may not import %s: only %s may", name, imp, strings.Join(who, ", "))
			}
		}
	}
	for name := range allowed {
		if !found[name] {
			t.Errorf("ARCHITECTURE.txt: there is no package %s", name)
		}
	}
}

func ours(importPath string) (string, bool) {
	if importPath == module {
		return ".", true
	}
	return strings.CutPrefix(importPath, module+"/")
}

func listPackages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Doc,Imports", "./...")
	cmd.Stderr = t.Output()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// TestHygiene keeps what a reader relies on: licence headers, files that end
// before 700 lines, no init, no exit outside main.
func TestHygiene(t *testing.T) {
	initFunc := regexp.MustCompile(`(?m)^func init\(\)`)
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "demo-work" || d.Name() == "showcase-work" || d.Name() == "tools") {
			return fs.SkipDir
		}
		if filepath.Ext(p) != ".go" {
			return nil
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		text := string(b)
		if !strings.HasPrefix(text, "// SPDX-FileCopyrightText: The Hallmark Authors\n// SPDX-License-Identifier: Apache-2.0\n") {
			t.Errorf("%s: no licence header", p)
		}
		if n := strings.Count(text, "\n"); n > 700 {
			t.Errorf("%s: %d lines", p, n)
		}
		if initFunc.MatchString(text) {
			t.Errorf("%s: an init function", p)
		}
		test := strings.HasSuffix(p, "_test.go")
		if strings.Contains(text, "os.Exit(") && !test && p != "cmd/hallmark/main.go" && p != "internal/sandbox/inside.go" && p != "bench/trace/main.go" {
			t.Errorf("%s: os.Exit outside main and the sandbox's first process", p)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestRequirementsAreExplained asks each direct requirement what it is for.
func TestRequirementsAreExplained(t *testing.T) {
	b, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	inside := false
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "require (":
			inside = true
		case line == ")":
			inside = false
		case inside && !strings.Contains(line, "// "):
			t.Errorf("go.mod: no comment on %s", line)
		}
	}
}

// TestReasonsAreDocumented keeps docs/reasons.md and codes.go together.
func TestReasonsAreDocumented(t *testing.T) {
	code, err := os.ReadFile("codes.go")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("docs/reasons.md")
	if err != nil {
		t.Fatal(err)
	}
	quoted := regexp.MustCompile(`"([A-Z_]+)"`)
	known := map[string]bool{}
	for _, m := range quoted.FindAllStringSubmatch(string(code), -1) {
		known[m[1]] = true
		if !strings.Contains(string(doc), "| `"+m[1]+"` |") {
			t.Errorf("docs/reasons.md: no row for %s", m[1])
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Z_]+)`").FindAllStringSubmatch(string(doc), -1) {
		if !known[m[1]] {
			t.Errorf("docs/reasons.md: %s is not in codes.go", m[1])
		}
	}
}
