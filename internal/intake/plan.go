// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package intake brings third-party packages in before a build: Go modules and
// npm packages, exactly those that the lock files of the revision name.
//
// A keyless worker in a sandbox runs the package managers. Its network is one
// socket, behind which a gateway asks the registries of the signed policy and
// nobody else; the client configuration of repository and user is out of its
// sight, and no install script runs. What it leaves is not believed: every byte
// that a build will see is compared with go.sum and package-lock.json of the
// commit by the control plane, which also names the digests.
package intake

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/modfile"

	"github.com/hallmark-sc/hallmark"
)

// Registry names one kind of registry; the policy says where it is.
type Registry string

// The registries there are.
const (
	RegistryGo  Registry = "go"
	RegistryNPM Registry = "npm"
)

// Limits on what is read of a revision.
const (
	maxManifest  = 64 << 20 // bytes of one manifest
	maxAll       = 4 * maxManifest
	maxManifests = 2000
)

// Plan is what a revision's manifests ask for.
type Plan struct {
	Files map[string][]byte // manifests and lock files by slash-separated path
	Go    []GoModule
	NPM   []string // directories that hold a package-lock.json with packages
}

// GoModule is one go.mod that names other modules.
type GoModule struct {
	Dir       string `json:"dir"`       // slash-separated, "." for the root
	Workspace bool   `json:"workspace"` // a go.work above it counts
}

// Empty reports whether nothing has to be fetched.
func (p Plan) Empty() bool { return len(p.Go) == 0 && len(p.NPM) == 0 }

// Registries lists the kinds that the plan needs.
func (p Plan) Registries() []Registry {
	var out []Registry
	if len(p.Go) > 0 {
		out = append(out, RegistryGo)
	}
	if len(p.NPM) > 0 {
		out = append(out, RegistryNPM)
	}
	return out
}

// Digest names everything the plan says.
func (p Plan) Digest() (hallmark.Digest, error) {
	b, err := json.Marshal(p)
	return hallmark.DigestOf(b), err
}

func manifest(name string) bool {
	switch name {
	case "go.mod", "go.sum", "go.work", "go.work.sum", "package.json", "package-lock.json", "npm-shrinkwrap.json":
		return true
	}
	return false
}

// unbuilt are directories whose manifests describe nothing that is built.
func unbuilt(dir string) bool {
	for part := range strings.SplitSeq(dir, "/") {
		if part == "testdata" || part == "vendor" || part == "node_modules" || strings.HasPrefix(part, "_") || strings.HasPrefix(part, ".") && part != "." {
			return true
		}
	}
	return false
}

// ReadPlan reads the manifests of an exported tree.
func ReadPlan(dir string) (Plan, error) {
	p := Plan{Files: map[string][]byte{}}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return p, fmt.Errorf("opening the source: %w", err)
	}
	defer root.Close()
	all := 0
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "node_modules" || d.Name() == "vendor") {
			return fs.SkipDir // what lies there is not asked: packages come from registries
		}
		if (d.Name() == "npm-shrinkwrap.json" || d.Name() == "node_modules") && !unbuilt(path.Dir(name)) {
			// Of any kind: npm would read the first in place of the lock file that we
			// verify against, and the inventory as well. Fetched packages are mounted
			// over the second, which must be a directory for that.
			if _, err := root.Lstat(filepath.FromSlash(path.Join(path.Dir(name), "package-lock.json"))); err == nil {
				return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeDependencyUnavailable, "%s: a package-lock.json lies beside it, and only one of them can count", name)
			}
		}
		if !manifest(d.Name()) || !d.Type().IsRegular() {
			return nil
		}
		if len(p.Files) == maxManifests {
			return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeDependencyUnavailable, "the revision has more than %d manifests", maxManifests)
		}
		if info, err := d.Info(); err != nil {
			return err
		} else if info.Size() > maxManifest {
			return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeDependencyUnavailable, "%s: %d bytes are more than can be read", name, info.Size())
		}
		if p.Files[name], err = root.ReadFile(filepath.FromSlash(name)); err != nil {
			return err
		}
		if all += len(p.Files[name]); all > maxAll {
			return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeDependencyUnavailable, "the manifests of the revision have more than %d bytes", maxAll)
		}
		return nil
	})
	if err != nil {
		return p, fmt.Errorf("reading manifests: %w", err)
	}
	return p, p.decide()
}

// decide says which of the manifests ask for packages.
func (p *Plan) decide() error {
	work, err := p.workspaces()
	if err != nil {
		return err
	}
	for name, b := range p.Files {
		dir := path.Dir(name)
		switch {
		case unbuilt(dir):
		case path.Base(name) == "go.mod":
			f, err := modfile.ParseLax(name, b, nil)
			if err != nil {
				return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeDependencyUnavailable, "reading a manifest: %w", err)
			}
			if in := work[dir]; len(f.Require) > 0 || in {
				p.Go = append(p.Go, GoModule{Dir: dir, Workspace: in})
			}
		case path.Base(name) == "package-lock.json":
			l, err := parseLock(name, b)
			if err != nil {
				return err
			}
			if len(l.installed()) > 0 {
				p.NPM = append(p.NPM, dir)
			}
		}
	}
	slices.SortFunc(p.Go, func(a, b GoModule) int { return strings.Compare(a.Dir, b.Dir) })
	slices.Sort(p.NPM)
	return nil
}

// workspaces lists the directories that a go.work uses.
func (p *Plan) workspaces() (map[string]bool, error) {
	out := map[string]bool{}
	for name, b := range p.Files {
		if path.Base(name) != "go.work" || unbuilt(path.Dir(name)) {
			continue
		}
		w, err := modfile.ParseWork(name, b, nil)
		if err != nil {
			return nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeDependencyUnavailable, "reading a manifest: %w", err)
		}
		for _, u := range w.Use {
			if dir := path.Join(path.Dir(name), filepath.ToSlash(u.Path)); !path.IsAbs(dir) && dir != ".." && !strings.HasPrefix(dir, "../") {
				out[dir] = true
			}
		}
	}
	return out, nil
}

// write lays the manifests out in dir, where the worker reads them.
func (p Plan) write(dir string) error {
	for name, b := range p.Files {
		at := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			return fmt.Errorf("laying out manifests: %w", err)
		}
		if err := os.WriteFile(at, b, 0o644); err != nil {
			return fmt.Errorf("laying out manifests: %w", err)
		}
	}
	return nil
}
