// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sbom

import (
	"testing"
	"testing/fstest"
)

// TestDeclaredIsNeverNone: dependencies that no reader resolves are missed.
func TestDeclaredIsNeverNone(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	for name, c := range map[string]struct {
		tree   fstest.MapFS
		path   string
		missed bool
	}{
		"package.json alone":       {fstest.MapFS{"package.json": file(`{"dependencies":{"x":"^1"}}`)}, "package.json", true},
		"dev dependencies":         {fstest.MapFS{"a/package.json": file(`{"devDependencies":{"x":"^1"}}`)}, "a/package.json", true},
		"workspaces":               {fstest.MapFS{"package.json": file(`{"workspaces":["a"]}`)}, "package.json", true},
		"unreadable":               {fstest.MapFS{"package.json": file(`{`)}, "package.json", true},
		"package.json with a lock": {fstest.MapFS{"package.json": file(`{"dependencies":{"x":"^1"}}`), "package-lock.json": file(`{}`)}, "package.json", false},
		"a lock elsewhere":         {fstest.MapFS{"a/package.json": file(`{"dependencies":{"x":"^1"}}`), "package-lock.json": file(`{}`)}, "a/package.json", true},
		"no dependency":            {fstest.MapFS{"package.json": file(`{"name":"x"}`)}, "package.json", false},
		"Cargo.toml":               {fstest.MapFS{"Cargo.toml": file("")}, "Cargo.toml", true},
		"pyproject.toml, nothing":  {fstest.MapFS{"pyproject.toml": file("[project]\nname = \"x\"\n[tool.ruff]\n")}, "pyproject.toml", false},
		"pyproject.toml, broken":   {fstest.MapFS{"pyproject.toml": file("[project\n")}, "pyproject.toml", true},
		"Python dependencies":      {fstest.MapFS{"pyproject.toml": file("[project]\ndependencies = [\"x\"]\n")}, "pyproject.toml", true},
		"Python extras":            {fstest.MapFS{"pyproject.toml": file("[project.optional-dependencies]\na = [\"x\"]\n")}, "pyproject.toml", true},
		"Python dynamic":           {fstest.MapFS{"pyproject.toml": file("[project]\ndynamic = [\"dependencies\"]\n")}, "pyproject.toml", true},
		"Python groups":            {fstest.MapFS{"pyproject.toml": file("[dependency-groups]\ntest = [\"x\"]\n")}, "pyproject.toml", true},
		"Python build system":      {fstest.MapFS{"pyproject.toml": file("[build-system]\nrequires = [\"x\"]\n")}, "pyproject.toml", true},
		"a tool of its own":        {fstest.MapFS{"pyproject.toml": file("[tool.poetry]\n")}, "pyproject.toml", true},
		"project file":             {fstest.MapFS{"a.csproj": file("")}, "a.csproj", true},
		"go.mod":                   {fstest.MapFS{"go.mod": file("")}, "go.mod", false},
	} {
		if why := unread(c.tree, c.path); (why != "") != c.missed {
			t.Errorf("%s: %q", name, why)
		}
	}
	readers, err := manifests()
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]bool{"requirements.txt": true, "requirements-dev.txt": true, "requirements/dev.txt": true, "notes.txt": false, "go.mod": true} {
		if _, ok := reader(readers, p); ok != want {
			t.Errorf("%s is read: %v", p, ok)
		}
	}
}

// TestBuiltWith: the standard library is that of the toolchain, not the oldest
// that go.mod would take; other components stay as they are.
func TestBuiltWith(t *testing.T) {
	all := []Component{{Name: "stdlib", Version: "1.21", Ecosystem: "Go", PURL: "pkg:golang/stdlib@1.21"}, {Name: "x", Version: "1.21", Ecosystem: "Go", PURL: "pkg:golang/x@1.21"}}
	if got := builtWith("1.26.8", all); got[0].PURL != "pkg:golang/stdlib@1.26.8" || got[0].Version != "1.26.8" || got[1].Version != "1.21" {
		t.Errorf("%+v", got)
	}
	if got := builtWith("", []Component{{Name: "stdlib", Version: "1.21", Ecosystem: "Go"}}); got[0].Version != "1.21" {
		t.Errorf("%+v", got)
	}
}
