// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package intake

import (
	"bytes"
	"errors"
	"fmt"
	"go/build/constraint"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/module"

	"github.com/hallmark-sc/hallmark"
)

// CheckVendor compares each vendor directory beside a go.mod or go.work of the
// exported tree with the modules in dest, which Fetch or Verify compared with
// go.sum; "" has none. Every file must be that of its module, byte for byte, and
// no file may be missing that go mod vendor would have copied. The error names
// the file and carries CodeDependencyVendor.
func CheckVendor(plan Plan, export, dest string) error {
	root, err := os.OpenRoot(export)
	if err != nil {
		return fmt.Errorf("opening the source: %w", err)
	}
	defer root.Close()
	dirs := map[string]bool{}
	for name := range plan.Files {
		if base := path.Base(name); (base == "go.mod" || base == "go.work") && !unbuilt(path.Dir(name)) {
			dirs[path.Dir(name)] = true
		}
	}
	for _, dir := range slices.Sorted(keysOf(dirs)) {
		at := path.Join(dir, "vendor")
		st, err := root.Lstat(filepath.FromSlash(at))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("looking for vendored modules: %w", err)
		}
		if !st.IsDir() {
			return vendorAltered("%s is not a directory", at)
		}
		v := vendored{root: root, at: at, dest: dest}
		if err := v.check(); err != nil {
			return err
		}
	}
	return nil
}

func keysOf(m map[string]bool) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func vendorAltered(format string, args ...any) error {
	return hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodeDependencyVendor, format, args...),
		"go mod vendor with an untouched module cache, compare, and commit what it writes; or remove the vendor directory: modules are fetched before a build")
}

// vendored is one vendor directory.
type vendored struct {
	root *os.Root // of the exported tree
	at   string   // slash-separated
	dest string
	mods []vendoredModule
}

type vendoredModule struct {
	path string // as it is imported
	from fs.FS  // the files of the module
	name string // of what they are compared with
	pkgs []string
}

func (v *vendored) check() error {
	list, err := v.root.ReadFile(filepath.FromSlash(v.at + "/modules.txt"))
	if err != nil {
		return vendorAltered("%s/modules.txt, which says what belongs there, can't be read", v.at)
	}
	if err := v.read(string(list)); err != nil {
		return err
	}
	tree, err := fs.Sub(v.root.FS(), v.at)
	if err != nil {
		return err
	}
	err = fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || name == "modules.txt" {
			return err
		}
		m, rest := v.owner(name)
		switch {
		case !d.Type().IsRegular():
			return vendorAltered("%s/%s is no regular file: no module has such", v.at, name)
		case m == nil:
			return vendorAltered("%s/%s belongs to no module of modules.txt", v.at, name)
		}
		want, err := fs.ReadFile(m.from, rest)
		if err != nil {
			return vendorAltered("%s/%s is not in %s", v.at, name, m.name)
		}
		got, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return vendorAltered("%s/%s is another file in %s", v.at, name, m.name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, m := range v.mods {
		if err := v.whole(m, tree); err != nil {
			return err
		}
	}
	return nil
}

// read takes the modules from modules.txt: "# PATH VERSION", with
// "=> PATH VERSION" or "=> ./DIRECTORY" where one stands for another, and the
// packages of each below it.
func (v *vendored) read(list string) error {
	n := 0
	for line := range strings.Lines(list) {
		n++
		f := strings.Fields(line)
		switch {
		case len(f) == 0 || f[0] == "##":
		case f[0] == "#":
			m, err := v.module(f[1:])
			if err != nil {
				return vendorAltered("%s/modules.txt:%d: %w", v.at, n, err)
			}
			if m.from != nil {
				v.mods = append(v.mods, m)
			}
		case len(f) == 1 && len(v.mods) > 0:
			m := &v.mods[len(v.mods)-1]
			m.pkgs = append(m.pkgs, f[0])
		default:
			return vendorAltered("%s/modules.txt:%d: want a module or a package", v.at, n)
		}
	}
	return nil
}

// module finds what a line of modules.txt stands for. A replacement that no
// version is given for is said again at the end of the file; it is no module.
func (v *vendored) module(f []string) (vendoredModule, error) {
	to := slices.Index(f, "=>")
	if len(f) == 0 || to == 0 || to < 0 && len(f) != 2 {
		return vendoredModule{}, errors.New("want # MODULE VERSION")
	}
	m := vendoredModule{path: f[0]}
	if err := module.CheckImportPath(m.path); err != nil {
		return m, err
	}
	if to == 1 {
		return m, nil
	}
	from := f
	if to > 0 {
		from = f[to+1:]
	}
	switch len(from) {
	case 1: // a directory of the tree
		at := path.Join(path.Dir(v.at), from[0])
		if path.IsAbs(from[0]) || !filepath.IsLocal(filepath.FromSlash(at)) {
			return m, fmt.Errorf("%s lies outside of the tree", from[0])
		}
		m.name = at
		sub, err := fs.Sub(v.root.FS(), at)
		m.from = sub
		return m, err
	case 2:
		name, err := module.EscapePath(from[0])
		if err != nil {
			return m, err
		}
		version, err := module.EscapeVersion(from[1])
		if err != nil {
			return m, err
		}
		m.name = from[0] + "@" + from[1] + ", which go.sum vouches for"
		host := filepath.Join(v.dest, "go", filepath.FromSlash(name)+"@"+version)
		if v.dest == "" {
			return m, fmt.Errorf("%s@%s was not fetched: no go.mod asks for it", from[0], from[1])
		}
		if _, err := os.Stat(host); err != nil {
			return m, fmt.Errorf("%s@%s was not fetched: no go.mod asks for it", from[0], from[1])
		}
		m.from = os.DirFS(host)
		return m, nil
	}
	return m, errors.New("want # MODULE VERSION => MODULE VERSION, or a directory")
}

// owner is the module with the longest path that a file can belong to.
func (v *vendored) owner(name string) (*vendoredModule, string) {
	var best *vendoredModule
	for i := range v.mods {
		m := &v.mods[i]
		if strings.HasPrefix(name, m.path+"/") && (best == nil || len(m.path) > len(best.path)) {
			best = m
		}
	}
	if best == nil {
		return nil, ""
	}
	return best, strings.TrimPrefix(name, best.path+"/")
}

// whole reports a file that was left out of a package.
func (v *vendored) whole(m vendoredModule, tree fs.FS) error {
	for _, pkg := range m.pkgs {
		rest, ok := strings.CutPrefix(pkg, m.path)
		rest = strings.TrimPrefix(rest, "/")
		if rest == "" {
			rest = "."
		}
		if !ok || !fs.ValidPath(rest) {
			return vendorAltered("%s/modules.txt: package %s is not of module %s", v.at, pkg, m.path)
		}
		entries, err := fs.ReadDir(m.from, rest)
		if err != nil {
			return vendorAltered("%s/modules.txt: there is no package %s in %s", v.at, pkg, m.name)
		}
		for _, e := range entries {
			if !e.Type().IsRegular() || strings.HasSuffix(e.Name(), "_test.go") || e.Name() == "go.mod" || e.Name() == "go.sum" {
				continue
			}
			name := path.Join(m.path, rest, e.Name())
			if _, err := fs.Stat(tree, name); err == nil {
				continue
			}
			b, err := fs.ReadFile(m.from, path.Join(rest, e.Name()))
			if err != nil {
				return fmt.Errorf("reading %s of %s: %w", e.Name(), m.name, err)
			}
			if !ignored(e.Name(), b) {
				return vendorAltered("%s/%s is missing: package %s of %s has it", v.at, name, pkg, m.name)
			}
		}
	}
	return nil
}

// ignored reports a Go file that go mod vendor leaves out: one whose constraint
// names the tag that nobody sets.
func ignored(name string, b []byte) bool {
	if !strings.HasSuffix(name, ".go") {
		return false
	}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "package ") {
			return false
		}
		x, err := constraint.Parse(line)
		if err != nil {
			continue
		}
		found := false
		x.Eval(func(tag string) bool { found = found || tag == "ignore"; return true })
		if found && !x.Eval(func(tag string) bool { return tag != "ignore" }) {
			return true
		}
	}
	return false
}
