// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package intake

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/module"

	"github.com/hallmark-sc/hallmark"
)

// The modes that everything fetched has.
const (
	dirMode     = 0o755
	fileMode    = 0o644
	programMode = 0o755 // only of npm packages
)

// maxFiles bounds what one fetch may leave.
const maxFiles = 2_000_000

// settle brings what the worker left into the one form that is verified: plain
// modes, so that no file is there for us and closed to the build, and none of
// the package managers' own notes, for which no lock file vouches. Names and
// bytes are judged afterwards.
func (p Plan) settle(dest string) error {
	root, err := os.OpenRoot(dest)
	if err != nil {
		return fmt.Errorf("opening fetched packages: %w", err)
	}
	defer root.Close()
	n := 0
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if n++; n > maxFiles {
			return wrong("more than %d files were fetched", maxFiles)
		}
		switch {
		case d.IsDir():
			return root.Chmod(name, dirMode)
		case !d.Type().IsRegular():
			return nil // refused or judged later
		case strings.HasPrefix(name, "go/"):
			return settleModule(root, name)
		case path.Base(name) == ".package-lock.json" && path.Base(path.Dir(name)) == "node_modules":
			return root.Remove(name)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode()&0o111 != 0 {
			return root.Chmod(name, programMode)
		}
		return root.Chmod(name, fileMode)
	})
	if err != nil {
		return fmt.Errorf("settling fetched packages: %w", err)
	}
	var want []string // a package manager makes no directory for nothing
	if len(p.Go) > 0 {
		want = append(want, "go")
	}
	for i := range p.NPM {
		want = append(want, npmHost(i))
	}
	for _, dir := range want {
		if err := root.MkdirAll(dir, dirMode); err != nil {
			return wrong("fetched %s is no directory: %w", dir, err)
		}
	}
	return nil
}

// settleModule brings a file of the module cache into its form.
func settleModule(root *os.Root, name string) error {
	base := path.Base(name)
	if !strings.HasPrefix(name, "go/cache/") {
		return root.Chmod(name, fileMode)
	}
	if base == "list" || base == "lock" || path.Ext(base) == ".lock" {
		return root.Remove(name)
	}
	if version, err := module.UnescapeVersion(strings.TrimSuffix(base, ".info")); err == nil && path.Ext(base) == ".info" {
		if err := root.Remove(name); err != nil { // other names of the file keep their bytes
			return err
		}
		return root.WriteFile(name, []byte(moduleInfo(version)), fileMode)
	}
	return root.Chmod(name, fileMode)
}

// layout refuses everything beside the directories that are verified, and those
// that are not directories: a link would be verified in one place and seen in
// another.
func (p Plan) layout(dest string) error {
	for _, d := range []struct {
		dir  string
		want func(name string) bool
	}{
		{".", func(name string) bool {
			return name == "go" && len(p.Go) > 0 || (name == "npm" || name == "npm-packages") && len(p.NPM) > 0
		}},
		{"npm", func(name string) bool {
			i, err := strconv.Atoi(name)
			return err == nil && i >= 0 && i < len(p.NPM) && strconv.Itoa(i) == name
		}},
	} {
		if err := onlyDirs(filepath.Join(dest, d.dir), d.want); err != nil {
			return err
		}
	}
	for i := range p.NPM {
		if err := onlyDirs(filepath.Join(dest, filepath.FromSlash(path.Dir(npmHost(i)))), func(name string) bool { return name == "node_modules" }); err != nil {
			return err
		}
	}
	archives, err := files(filepath.Join(dest, "npm-packages"))
	if err != nil {
		return fmt.Errorf("listing archives: %w", err)
	}
	for name, mode := range archives {
		if !mode.IsRegular() {
			return wrong("fetched archive %s is no file", name)
		}
	}
	return nil
}

func onlyDirs(dir string, want func(name string) bool) error {
	all, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listing fetched packages: %w", err)
	}
	for _, e := range all {
		if !e.IsDir() || !want(e.Name()) {
			return wrong("fetched %s belongs to no package", e.Name())
		}
	}
	return nil
}

func wrong(format string, args ...any) error {
	return hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodeDependencyIntegrity, format, args...), "find out why the bytes differ before anything else")
}

// files lists every entry below dir that is no directory, slash-separated, with
// its mode; what is neither a link nor a regular file of a plain mode is refused.
func files(dir string) (map[string]fs.FileMode, error) {
	out := map[string]fs.FileMode{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if m := info.Mode(); m.Type() != fs.ModeSymlink && m != fileMode && m != programMode {
			return wrong("fetched %s has the mode %s", rel, m)
		}
		if len(out) == maxFiles {
			return wrong("more than %d files were fetched", maxFiles)
		}
		out[filepath.ToSlash(rel)] = info.Mode()
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	return out, err
}
