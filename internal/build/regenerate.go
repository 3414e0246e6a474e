// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"go.yaml.in/yaml/v3"

	"github.com/hallmark-sc/hallmark"
)

// regenerates reads the paths that a step writes anew.
func (p *parser) regenerates(n *yaml.Node) []string {
	var out []string
	for _, v := range p.list(n, "regenerates") {
		a := p.text(v, "regenerates")
		if a == "" || a == "." || path.IsAbs(a) || path.Clean(a) != a || a == ".." || strings.HasPrefix(a, "../") || strings.ContainsRune(a, 0) || slices.Contains(out, a) {
			p.fail(v, hallmark.CodePipelineInvalid, "regenerates: %q: want a clean path inside the workspace, once", a)
		}
		out = append(out, a)
	}
	return out
}

// Regenerated compares what steps wrote below the paths with what the commit has
// there. The source directory holds the commit's tree, written only what the
// build wrote. Each file that the commit has must have been written, with the
// same bytes, and no other file may be there: a file that nobody wrote was not
// made from anything.
func Regenerated(source, written string, paths []string) []hallmark.Reason {
	var out []hallmark.Reason
	for _, p := range paths {
		if differs, err := regenerated(source, written, p); err != nil {
			out = append(out, notRegenerated("%s can't be compared: %s", p, err))
		} else if differs != "" {
			out = append(out, notRegenerated("%s", differs))
		}
	}
	return out
}

func notRegenerated(format string, args ...any) hallmark.Reason {
	return hallmark.Reason{Code: hallmark.CodeSourceGenerated, Check: "build", Message: fmt.Sprintf(format, args...), Fix: "run the step's command yourself, look at what differs, and commit what it writes"}
}

// regenerated names the first difference, or "".
func regenerated(source, written, at string) (string, error) {
	commit, err := os.OpenRoot(source)
	if err != nil {
		return "", err
	}
	defer commit.Close()
	build, err := os.OpenRoot(written)
	if err != nil {
		return "", err
	}
	defer build.Close()
	want, err := filesBelow(commit, at)
	if err != nil {
		return "", err
	}
	got, err := filesBelow(build, at)
	if err != nil {
		return "", err
	}
	if len(want) == 0 {
		return at + " is not in the commit", nil
	}
	for _, name := range slices.Sorted(mapKeys(want)) {
		mode, ok := got[name]
		switch {
		case !ok:
			return name + " was not written by the build", nil
		case mode.Type() != want[name].Type() || mode&0o100 != want[name]&0o100:
			return fmt.Sprintf("%s is %s in the commit, the build made it %s", name, want[name], mode), nil
		}
		same, err := sameFile(commit, build, name, mode)
		if err != nil {
			return "", err
		}
		if !same {
			return name + " has other bytes in the commit than the build wrote", nil
		}
	}
	for _, name := range slices.Sorted(mapKeys(got)) {
		if _, ok := want[name]; !ok {
			return name + " was written by the build and is not in the commit", nil
		}
	}
	return "", nil
}

func mapKeys(m map[string]fs.FileMode) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// filesBelow lists everything but directories; a path that is not there has none.
func filesBelow(root *os.Root, at string) (map[string]fs.FileMode, error) {
	out := map[string]fs.FileMode{}
	for dir := path.Dir(at); dir != "."; dir = path.Dir(dir) { // a link would lead elsewhere
		if st, err := root.Lstat(filepath.FromSlash(dir)); err == nil && !st.IsDir() {
			return nil, fmt.Errorf("%s is not a directory", dir)
		}
	}
	if _, err := root.Lstat(filepath.FromSlash(at)); errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	err := fs.WalkDir(root.FS(), at, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		out[name] = info.Mode()
		return nil
	})
	return out, err
}

func sameFile(a, b *os.Root, name string, mode fs.FileMode) (bool, error) {
	name = filepath.FromSlash(name)
	switch mode.Type() {
	case 0:
	case fs.ModeSymlink:
		x, err := a.Readlink(name)
		if err != nil {
			return false, err
		}
		y, err := b.Readlink(name)
		return x == y, err
	default:
		return false, nil
	}
	var content [2][]byte
	for i, r := range []*os.Root{a, b} {
		f, err := r.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
		if err != nil {
			return false, err
		}
		content[i], err = io.ReadAll(io.LimitReader(f, maxGenerated+1))
		f.Close()
		if err != nil {
			return false, err
		}
		if len(content[i]) > maxGenerated {
			return false, fmt.Errorf("%s has more than %d bytes", name, maxGenerated)
		}
	}
	return bytes.Equal(content[0], content[1]), nil
}

// maxGenerated bounds one generated file in memory.
const maxGenerated = 256 << 20
