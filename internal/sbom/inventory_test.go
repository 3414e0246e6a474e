// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sbom

import (
	"io/fs"
	"path"
	"slices"
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

// TestHidden: what a build would use without its manifest being read is missed.
func TestHidden(t *testing.T) {
	readers, err := manifests()
	if err != nil {
		t.Fatal(err)
	}
	file, link := &fstest.MapFile{}, &fstest.MapFile{Data: []byte("x"), Mode: fs.ModeSymlink}
	for name, c := range map[string]struct {
		tree   fstest.MapFS
		path   string
		missed bool
	}{
		"linked go.mod":        {fstest.MapFS{"go.mod": link, "x": file}, "go.mod", true},
		"linked lock":          {fstest.MapFS{"a/package-lock.json": link}, "a/package-lock.json", true},
		"linked package.json":  {fstest.MapFS{"package.json": link}, "package.json", true},
		"linked requirements":  {fstest.MapFS{"requirements-dev.txt": link}, "requirements-dev.txt", true},
		"linked unread":        {fstest.MapFS{"yarn.lock": link}, "yarn.lock", true},
		"other link":           {fstest.MapFS{"README.md": link}, "README.md", false},
		"go.mod":               {fstest.MapFS{"go.mod": file}, "go.mod", false},
		"committed packages":   {fstest.MapFS{"node_modules/a/index.js": file}, "node_modules", true},
		"linked packages":      {fstest.MapFS{"node_modules": link}, "node_modules", true},
		"packages beside lock": {fstest.MapFS{"web/node_modules/a/index.js": file, "web/package-lock.json": {Data: []byte(`{"packages": {"": {}, "node_modules/a": {}}}`)}}, "web/node_modules", false},
		"empty lock":           {fstest.MapFS{"node_modules/a/index.js": file, "package-lock.json": {Data: []byte(`{"packages": {"": {}, "node_modules/b": {"link": true}}}`)}}, "node_modules", true},
	} {
		var d fs.DirEntry
		dir := path.Dir(c.path)
		all, err := c.tree.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range all {
			if path.Join(dir, e.Name()) == c.path {
				d = e
			}
		}
		if why := hidden(c.tree, readers, c.path, d); (why != "") != c.missed {
			t.Errorf("%s: %q", name, why)
		}
	}
}

func TestAdd(t *testing.T) {
	i := Inventory{Components: []Component{{Name: "b", Version: "1.0.0", Ecosystem: "Go", PURL: "pkg:golang/b@1.0.0", Location: "go.mod"}}}
	a := Component{Name: "a", Version: "1.0.0", Ecosystem: "Go", PURL: "pkg:golang/a@1.0.0"}
	i.Add([]Component{{Name: "b", Version: "1.0.0", Ecosystem: "Go", PURL: "pkg:golang/b@1.0.0"}, a, a, {Name: "b", Version: "1.0.0", Ecosystem: "npm", PURL: "pkg:npm/b@1.0.0"}})
	var got []string
	for _, c := range i.Components {
		got = append(got, c.PURL+" "+c.Location)
	}
	if want := []string{"pkg:golang/a@1.0.0 ", "pkg:golang/b@1.0.0 go.mod", "pkg:npm/b@1.0.0 "}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
