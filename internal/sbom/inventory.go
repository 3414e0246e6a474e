// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package sbom is the inventory of a source tree: which components its lock
// files and manifests name, written as SPDX 2.3 and CycloneDX 1.6.
//
// It runs in a worker, since hostile manifests have crashed parsers before. A
// manifest that can't be read makes the inventory incomplete; an incomplete
// inventory is never taken for a small one.
package sbom

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	cpb "github.com/google/osv-scalibr/binary/proto/config_go_proto"
	"github.com/google/osv-scalibr/extractor/filesystem"
	"github.com/google/osv-scalibr/extractor/filesystem/language/golang/gomod"
	"github.com/google/osv-scalibr/extractor/filesystem/language/javascript/packagelockjson"
	"github.com/google/osv-scalibr/extractor/filesystem/language/python/requirements"
	scalibrfs "github.com/google/osv-scalibr/fs"
	"github.com/pelletier/go-toml/v2"

	"github.com/hallmark-sc/hallmark"
)

// JobName names the worker job.
const JobName = "sbom"

const sourceDir = "/source"

// Component is one third-party component.
type Component struct {
	Name      string `json:"name"`
	Version   string `json:"version"`
	Ecosystem string `json:"ecosystem"` // OSV's name of it
	PURL      string `json:"purl"`
	Location  string `json:"location"` // the manifest that names it
}

// Inventory is what a tree depends on.
type Inventory struct {
	Components []Component `json:"components"`
	Missed     []string    `json:"missed,omitempty"` // manifests whose components are not here
}

// Add puts in what the inventory does not name yet. Readers of manifests see less
// than the package managers fetch: no replacement of a workspace, and of a module
// without a go directive no indirect requirement.
func (i *Inventory) Add(more []Component) {
	type key struct{ ecosystem, name, version string }
	have := map[key]bool{}
	for _, c := range i.Components {
		have[key{c.Ecosystem, c.Name, c.Version}] = true
	}
	for _, c := range more {
		if k := (key{c.Ecosystem, c.Name, c.Version}); !have[k] {
			have[k] = true
			i.Components = append(i.Components, c)
		}
	}
	i.sort()
}

func (i *Inventory) sort() {
	slices.SortFunc(i.Components, func(a, b Component) int { return strings.Compare(a.PURL+"\x00"+a.Location, b.PURL+"\x00"+b.Location) })
	i.Components = slices.Compact(i.Components)
}

// Ecosystems counts components by ecosystem.
func (i Inventory) Ecosystems() map[string]int {
	out := map[string]int{}
	for _, c := range i.Components {
		out[c.Ecosystem]++
	}
	return out
}

// manifests maps base names to the extractor that reads them.
func manifests() (map[string]filesystem.Extractor, error) {
	out := map[string]filesystem.Extractor{}
	for name, make := range map[string]func(*cpb.PluginConfig) (filesystem.Extractor, error){
		"go.mod": gomod.New, "package-lock.json": packagelockjson.New, "npm-shrinkwrap.json": packagelockjson.New,
		"requirements.txt": requirements.New,
	} {
		e, err := make(&cpb.PluginConfig{})
		if err != nil {
			return nil, fmt.Errorf("making the reader of %s: %w", name, err)
		}
		out[name] = e
	}
	return out, nil
}

// unread says why a manifest's dependencies are not in the inventory: no reader
// here knows its kind, or it declares dependencies whose versions only a lock
// file beside it would fix. Declared but unresolved is missed, never none.
func unread(root fs.FS, p string) string {
	name, dir := path.Base(p), path.Dir(p)
	const unknown = "this kind of manifest can't be read yet"
	beside := func(names ...string) bool {
		return slices.ContainsFunc(names, func(n string) bool { _, err := fs.Stat(root, path.Join(dir, n)); return err == nil })
	}
	switch name {
	case "Cargo.lock", "yarn.lock", "pnpm-lock.yaml", "bun.lock", "bun.lockb", "poetry.lock", "uv.lock", "pdm.lock", "Pipfile", "Pipfile.lock",
		"Gemfile", "Gemfile.lock", "composer.json", "composer.lock", "pom.xml", "build.gradle", "build.gradle.kts", "gradle.lockfile",
		"mix.exs", "mix.lock", "pubspec.yaml", "pubspec.lock", "Package.swift", "Package.resolved", "Podfile", "Podfile.lock",
		"packages.config", "packages.lock.json", "conanfile.txt", "conanfile.py", "vcpkg.json", "environment.yml", "environment.yaml":
		return unknown
	case "package.json":
		if !beside("package-lock.json", "npm-shrinkwrap.json") && declares(root, p) {
			return "it declares dependencies and has no package-lock.json"
		}
	case "pyproject.toml":
		if declaresPython(root, p) {
			return "it declares dependencies, which can't be read yet"
		}
	case "Cargo.toml", "setup.py", "setup.cfg":
		return unknown
	}
	if strings.HasSuffix(name, ".csproj") || strings.HasSuffix(name, ".gemspec") || strings.HasSuffix(name, ".cabal") {
		return unknown
	}
	return ""
}

// hidden says why components lie where no reader looks: a manifest that is a link
// is followed by build tools, and packages that are committed without a lock file
// beside them are used and named nowhere.
func hidden(root fs.FS, readers map[string]filesystem.Extractor, p string, d fs.DirEntry) string {
	if d.Name() == "node_modules" && p != "." {
		if !locked(root, path.Join(path.Dir(p), "package-lock.json")) {
			return "packages lie in the repository and no package-lock.json names them"
		}
		return ""
	}
	if _, read := reader(readers, p); d.Type()&fs.ModeSymlink != 0 && (read || path.Base(p) == "package.json" || unread(root, p) != "") {
		return "it is a link, and manifests are read where they lie"
	}
	return ""
}

// locked reports whether a lock file names packages, which then lie over what is
// committed.
func locked(root fs.FS, p string) bool {
	b, err := fs.ReadFile(root, p)
	var l struct {
		Packages map[string]struct{ Link bool }
	}
	if err != nil || json.Unmarshal(b, &l) != nil {
		return false
	}
	for at, e := range l.Packages {
		if strings.HasPrefix(at, "node_modules/") && !e.Link {
			return true
		}
	}
	return false
}

// declares reports whether a package.json names dependencies; one that can't be
// read may.
func declares(root fs.FS, p string) bool {
	b, err := fs.ReadFile(root, p)
	var m struct {
		Dependencies, DevDependencies, OptionalDependencies, PeerDependencies map[string]json.RawMessage
		Workspaces                                                            json.RawMessage
	}
	if err != nil || json.Unmarshal(b, &m) != nil {
		return true
	}
	return len(m.Dependencies)+len(m.DevDependencies)+len(m.OptionalDependencies)+len(m.PeerDependencies) > 0 || len(m.Workspaces) > 0
}

// declaresPython reports whether a pyproject.toml names dependencies, or lets a
// tool name them that is not known to name none; one that can't be read may.
func declaresPython(root fs.FS, p string) bool {
	b, err := fs.ReadFile(root, p)
	var m struct {
		Build   struct{ Requires []any } `toml:"build-system"`
		Groups  map[string]any           `toml:"dependency-groups"`
		Project struct {
			Dependencies []any          `toml:"dependencies"`
			Optional     map[string]any `toml:"optional-dependencies"`
			Dynamic      []string       `toml:"dynamic"`
		} `toml:"project"`
		Tool map[string]any `toml:"tool"`
	}
	if err != nil || toml.Unmarshal(b, &m) != nil {
		return true
	}
	for tool := range m.Tool {
		if !slices.Contains([]string{"black", "coverage", "isort", "mypy", "pyright", "pytest", "ruff"}, tool) {
			return true
		}
	}
	return len(m.Build.Requires)+len(m.Groups)+len(m.Project.Dependencies)+len(m.Project.Optional) > 0 ||
		slices.Contains(m.Project.Dynamic, "dependencies") || slices.Contains(m.Project.Dynamic, "optional-dependencies")
}

// reader finds the extractor of a manifest; requirements files have many names.
func reader(readers map[string]filesystem.Extractor, p string) (filesystem.Extractor, bool) {
	name := path.Base(p)
	if strings.HasSuffix(name, ".txt") && (strings.HasPrefix(name, "requirements") || path.Base(path.Dir(p)) == "requirements") {
		name = "requirements.txt"
	}
	r, ok := readers[name]
	return r, ok
}

// WorkerMain is the worker: the source is at /source. The argument is the version
// of the Go toolchain that builds, if there is one.
func WorkerMain(args []string, stdout io.Writer) error {
	toolchain := ""
	if len(args) > 0 {
		toolchain = args[0]
	}
	readers, err := manifests()
	if err != nil {
		return err
	}
	inv := Inventory{Components: []Component{}}
	var cov hallmark.Coverage
	root := os.DirFS(sourceDir)
	err = fs.WalkDir(root, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if why := hidden(root, readers, p, d); why != "" {
			cov.Missed = append(cov.Missed, p+": "+why)
		}
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == "node_modules") {
			return fs.SkipDir // not what is built; installed copies are named by their lock file
		}
		if !d.Type().IsRegular() {
			return nil
		}
		if why := unread(root, p); why != "" {
			cov.Missed = append(cov.Missed, p+": "+why)
		}
		r, ok := reader(readers, p)
		if !ok {
			return nil
		}
		cov.Scanned++
		more, err := extract(root, r, p, maxFile)
		if err != nil {
			cov.Missed = append(cov.Missed, fmt.Sprintf("%s: %s", p, err))
		}
		inv.Components = append(inv.Components, builtWith(toolchain, more)...)
		return nil
	})
	if err != nil {
		return fmt.Errorf("sbom: reading the source: %w", err)
	}
	inv.sort()
	cov.Ecosystems = inv.Ecosystems()
	inv.Missed = cov.Missed
	extra, err := json.Marshal(inv)
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(map[string]any{"findings": []hallmark.Finding{}, "coverage": cov, "canary": canary(readers), "extra": json.RawMessage(extra)})
}

// builtWith gives the standard library of Go the version of the toolchain that
// builds: go.mod only says the oldest that would do.
func builtWith(toolchain string, all []Component) []Component {
	for i, c := range all {
		if c.Name != "stdlib" || c.Ecosystem != "Go" || toolchain == "" {
			continue
		}
		all[i].Version = toolchain
		all[i].PURL = strings.TrimSuffix(c.PURL, "@"+c.Version) + "@" + toolchain
	}
	return all
}

// canary reads a planted manifest whose component must be found.
func canary(readers map[string]filesystem.Extractor) bool {
	dir, err := os.MkdirTemp("", "canary")
	if err != nil {
		return false
	}
	defer os.RemoveAll(dir)
	if os.WriteFile(path.Join(dir, "requirements.txt"), []byte("canary==1.2.3\n"), 0o644) != nil {
		return false
	}
	got, err := extract(os.DirFS(dir), readers["requirements.txt"], "requirements.txt", maxFile)
	return err == nil && len(got) == 1 && got[0].Name == "canary" && got[0].Version == "1.2.3"
}

// maxFile bounds a manifest.
const maxFile = 64 << 20

func extract(root fs.FS, e filesystem.Extractor, p string, most int64) (out []Component, err error) {
	defer func() {
		if r := recover(); r != nil {
			out, err = nil, fmt.Errorf("the reader crashed: %v", r)
		}
	}()
	f, err := root.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > most {
		return nil, fmt.Errorf("%d bytes are more than can be read", info.Size())
	}
	sfs, ok := root.(scalibrfs.FS)
	if !ok {
		return nil, fmt.Errorf("the file system can't list directories")
	}
	inv, err := e.Extract(context.Background(), &filesystem.ScanInput{FS: sfs, Path: p, Info: info, Reader: f})
	if err != nil {
		return nil, err
	}
	for _, pkg := range inv.Packages {
		c := Component{Name: advisoryName(pkg), Version: pkg.Version, Ecosystem: pkg.Ecosystem().String(), Location: p}
		if u := pkg.PURL(); u != nil {
			c.PURL = u.String()
		}
		out = append(out, c)
	}
	return out, nil
}
