// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package gitcli

import (
	"bytes"
	"context"
	"crypto/sha1" //nolint:gosec // git's object names
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/source"
)

// HashObject returns the git name of an object; length is that of names in this
// repository, 40 (SHA-1) or 64 (SHA-256) digits.
func HashObject(typ string, body []byte, length int) string {
	h := newObjectHash(typ, int64(len(body)), length)
	h.Write(body)
	return hex.EncodeToString(h.Sum(nil))
}

// newObjectHash takes the bytes of an object of a known size.
func newObjectHash(typ string, size int64, length int) hash.Hash {
	h := sha1.New() //nolint:gosec // git's object names
	if length == 64 {
		h = sha256.New()
	}
	fmt.Fprintf(h, "%s %d\x00", typ, size)
	return h
}

// entry is one entry of a tree.
type entry struct {
	mode, name, id string
}

// parseTree reads a tree object and refuses names that would leave the tree,
// hide or deceive.
func parseTree(body []byte, idLen int) ([]entry, error) {
	var out []entry
	for len(body) > 0 {
		mode, rest, ok := bytes.Cut(body, []byte{' '})
		name, rest2, ok2 := bytes.Cut(rest, []byte{0})
		if !ok || !ok2 || len(rest2) < idLen/2 {
			return nil, errors.New("the tree ends early")
		}
		e := entry{mode: string(mode), name: string(name), id: hex.EncodeToString(rest2[:idLen/2])}
		if err := checkName(e.name); err != nil {
			return nil, err
		}
		out = append(out, e)
		body = rest2[idLen/2:]
	}
	return out, nil
}

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
		return fmt.Errorf("file name %q leaves the tree", name)
	}
	flat := strings.ToLower(strings.TrimRight(strings.Map(func(r rune) rune {
		if unicode.Is(unicode.Cf, r) { // invisible characters that some file systems ignore
			return -1
		}
		return r
	}, name), ". "))
	if flat == ".git" || flat == "git~1" {
		return fmt.Errorf("file name %q stands for a git directory", name)
	}
	for _, r := range name {
		if r < 0x20 || r == 0x7f || (r >= 0x202a && r <= 0x202e) || (r >= 0x2066 && r <= 0x2069) {
			return fmt.Errorf("file name %q has control or direction characters", name)
		}
	}
	return nil
}

// Manifest is what an export wrote.
type Manifest struct {
	Files  int
	Digest hallmark.Digest // of one line a file: mode, SHA-256, path
}

// Export writes a tree from its objects into dir: no filter, no attribute, no
// hook. Names are checked, symbolic links that leave the tree and submodules are
// refused, times are the given one.
func (r *Repository) Export(ctx context.Context, tree, dir string, at time.Time) (Manifest, error) {
	x := &export{r: r, ctx: ctx, root: dir, blobs: map[string][]string{}, modes: map[string]string{}}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Manifest{}, fmt.Errorf("making %s: %w", dir, err)
	}
	if err := x.tree(tree, ""); err != nil {
		return Manifest{}, err
	}
	var lines []string
	err := r.batch(ctx, sortedKeys(x.blobs), func(o Object) error {
		for _, p := range x.blobs[o.ID] {
			if err := x.write(p, o); err != nil {
				return err
			}
			lines = append(lines, fmt.Sprintf("%s %s %q", x.modes[p], hallmark.DigestOf(o.Data), p))
		}
		return nil
	})
	if err != nil {
		return Manifest{}, err
	}
	if err := x.times(at); err != nil {
		return Manifest{}, err
	}
	sorted := map[string]bool{}
	for _, l := range lines {
		sorted[l] = true
	}
	return Manifest{Files: len(lines), Digest: hallmark.DigestOf([]byte(strings.Join(sortedKeys(sorted), "\n")))}, nil
}

// Measure reads the manifest of a tree that Export wrote from the tree itself:
// equal to what Export returned, as long as nobody changed it.
func Measure(dir string) (Manifest, error) {
	var lines []string
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		mode, digest, err := measureFile(p)
		lines = append(lines, fmt.Sprintf("%s %s %q", mode, digest, filepath.ToSlash(rel)))
		return err
	})
	if err != nil {
		return Manifest{}, fmt.Errorf("measuring %s: %w", dir, err)
	}
	slices.Sort(lines)
	return Manifest{Files: len(lines), Digest: hallmark.DigestOf([]byte(strings.Join(lines, "\n")))}, nil
}

// measureFile never waits for a file that is no regular one.
func measureFile(p string) (mode string, digest hallmark.Digest, err error) {
	st, err := os.Lstat(p)
	switch {
	case err != nil:
		return "", "", err
	case st.Mode()&os.ModeSymlink != 0:
		to, err := os.Readlink(p)
		return "120000", hallmark.DigestOf([]byte(to)), err
	case !st.Mode().IsRegular():
		return st.Mode().Type().String(), "", nil
	}
	f, err := os.OpenFile(p, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	digest, _, err = hallmark.DigestFrom(f)
	if st.Mode()&0o100 != 0 {
		return "100755", digest, err
	}
	return "100644", digest, err
}

type export struct {
	r     *Repository
	ctx   context.Context // of Export; it ends with the call
	root  string
	blobs map[string][]string // object to paths
	modes map[string]string
	depth int
}

func bad(format string, args ...any) error {
	return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceObjectInvalid, format, args...)
}

func (x *export) tree(id, at string) error {
	if x.depth++; x.depth > 200 {
		return bad("the tree is nested too deeply at %q", at)
	}
	defer func() { x.depth-- }()
	typ, body, err := x.r.Object(x.ctx, id)
	if err != nil {
		return err
	}
	if typ != "tree" {
		return bad("object %s at %q is a %s, not a tree", id, at, typ)
	}
	entries, err := parseTree(body, len(id))
	if err != nil {
		return bad("tree %s at %q: %w", id, at, err)
	}
	seen := map[string]bool{}
	for _, e := range entries {
		p := path.Join(at, e.name)
		if seen[strings.ToLower(e.name)] {
			return bad("two files at %q differ only in case", p)
		}
		seen[strings.ToLower(e.name)] = true
		switch e.mode {
		case "40000":
			if err := os.Mkdir(filepath.Join(x.root, p), 0o755); err != nil {
				return fmt.Errorf("writing %s: %w", p, err)
			}
			if err := x.tree(e.id, p); err != nil {
				return err
			}
		case "100644", "100664", "100755", "120000":
			x.blobs[e.id] = append(x.blobs[e.id], p)
			if x.modes[p] = e.mode; e.mode == "100664" { // of old versions of git; written as any other file
				x.modes[p] = "100644"
			}
		case "160000":
			return bad("%q is a submodule: its content is not part of this revision", p)
		default:
			return bad("%q has mode %s", p, e.mode)
		}
	}
	return nil
}

func (x *export) write(p string, o Object) error {
	if o.Type != "blob" {
		return bad("object %s at %q is a %s, not a file", o.ID, p, o.Type)
	}
	full := filepath.Join(x.root, p)
	if x.modes[p] == "120000" {
		to := string(o.Data)
		if !source.StaysInside(p, to) {
			return bad("symbolic link %q points out of the tree, to %.100q", p, to)
		}
		return os.Symlink(to, full)
	}
	mode := os.FileMode(0o644)
	if x.modes[p] == "100755" {
		mode = 0o755
	}
	if err := os.WriteFile(full, o.Data, mode); err != nil {
		return fmt.Errorf("writing %s: %w", p, err)
	}
	return os.Chmod(full, mode)
}

// times gives everything the same time, so that a build can't tell when it ran.
func (x *export) times(at time.Time) error {
	root, err := os.OpenRoot(x.root)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&fs.ModeSymlink != 0 {
			return err
		}
		return root.Chtimes(p, at, at)
	})
}
