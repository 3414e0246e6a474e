// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
)

// Change is one name that a layer puts over a tree, or takes away.
type Change struct {
	Entry
	Removed bool   // the name is gone
	Opaque  bool   // of a directory: what layers below have in it is gone
	Link    string // path of an earlier change, which is the same file

	id inode // of a file that was written
}

// Written is a directory that holds what a program wrote over a tree, as an
// overlay of the kernel keeps it. No process may have it any more.
type Written struct {
	Dir        string
	Attributes string // how the names of the kernel's own extended attributes begin
	UID, GID   int    // who the program saw itself as: the owner of new names
	Part       bool   // Dir is no root: what it is itself does not count
}

// hostileWrite is what no layer may hold.
func hostileWrite(name, format string, args ...any) error {
	return hallmark.WithHint(hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageRunRefused, "%.300q: %s", "/"+name, fmt.Sprintf(format, args...)),
		"remove it in the same instruction, or don't make it: docs/design/image.md says what an image may hold")
}

// Changes reads what was written over t, which is not changed. Names that are as
// they were are left out. What could mean something else to the reader of a layer
// is refused: devices, pipes and sockets, set-user and set-group bits of files,
// names that stand for removals, extended attributes. Where our own user wrote
// it, what it closed to us is opened while it is read.
func (t *Tree) Changes(ctx context.Context, w Written, limits Limits) ([]Change, error) {
	root, err := os.OpenRoot(w.Dir)
	if err != nil {
		return nil, fmt.Errorf("reading what was written: %w", err)
	}
	defer root.Close()
	limits = limits.defaults()
	r := &written{Written: w, ctx: ctx, root: root, entries: limits.Entries, bytes: limits.Bytes}
	if err := r.top(); err != nil {
		return nil, err
	}
	if err := r.directory("", t.root, false); err != nil {
		return nil, err
	}
	slices.SortFunc(r.out, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	first := map[inode]string{}
	for i, c := range r.out {
		if c.id == (inode{}) {
			continue
		}
		if name, twice := first[c.id]; twice {
			r.out[i].Link = name
		} else {
			first[c.id] = c.Path
		}
	}
	return r.out, nil
}

// written is a directory on the way through Changes.
type written struct {
	Written
	ctx     context.Context // of the call
	root    *os.Root
	out     []Change
	entries int
	bytes   int64
}

// topMode is what the directories of layers are made with.
const topMode = 0o755

// top judges the directory itself, which is the root of what was written over: no
// layer says anything of it.
func (r *written) top() error {
	st, err := r.root.Lstat(".")
	if err != nil {
		return fmt.Errorf("reading what was written: %w", err)
	}
	if !r.Part && st.Mode() != fs.ModeDir|topMode {
		return hostileWrite("", "its mode was changed to %s", st.Mode())
	}
	opaque, err := r.attributes("")
	if err == nil && opaque {
		err = hostileWrite("", "it hides everything below")
	}
	return err
}

func (r *written) directory(name string, base *node, fresh bool) error {
	if strings.Count(name, "/") >= maxDepth {
		return hostileWrite(name, "it lies too deep")
	}
	f, back, err := r.open(name)
	if err != nil {
		return fmt.Errorf("reading what was written: %w", err)
	}
	defer back()
	entries, err := f.ReadDir(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("reading what was written: %w", err)
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, e := range entries {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		if r.entries--; r.entries < 0 {
			return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageTooLarge, "more names were written than are allowed")
		}
		var old *node
		if base != nil && base.Type == Directory {
			old = base.children[e.Name()]
		}
		if err := r.name(path.Join(name, e.Name()), old, fresh); err != nil {
			return err
		}
	}
	return nil
}

// open opens a directory, which its mode may close to us; back puts the mode back.
func (r *written) open(name string) (f *os.File, back func(), err error) {
	at := filepath.FromSlash(path.Join(".", name))
	st, err := r.root.Lstat(at)
	if err != nil {
		return nil, nil, err
	}
	back = func() {}
	if st.Mode().Perm()&0o500 != 0o500 && os.Geteuid() != 0 {
		if err := r.root.Chmod(at, st.Mode()|0o700); err != nil {
			return nil, nil, err
		}
		back = func() { _ = r.root.Chmod(at, st.Mode()) } // it is ours: no reason to fail
	}
	if f, err = r.root.OpenFile(at, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0); err != nil {
		back()
	}
	return f, back, err
}

// name reads one name. fresh: nothing of the tree is seen below here any more.
func (r *written) name(name string, old *node, fresh bool) error {
	at := filepath.FromSlash(name)
	info, err := r.root.Lstat(at)
	if err != nil {
		return fmt.Errorf("reading what was written: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return hallmark.Errorf(hallmark.KindInternal, "no status of %s", name)
	}
	if info.Mode()&fs.ModeCharDevice != 0 && st.Rdev == 0 { // how the kernel notes a removal
		if old != nil && !fresh {
			r.out = append(r.out, Change{Entry: Entry{Path: name}, Removed: true})
		}
		return nil
	}
	base := path.Base(name)
	if strings.HasPrefix(base, whiteout) {
		return hostileWrite(name, "a name that begins with .wh. stands for a removal in a layer")
	}
	opaque, err := r.attributes(name)
	if err != nil {
		return err
	}
	c := Change{Entry: Entry{Path: name, Mode: uint32(info.Mode().Perm()), UID: r.UID, GID: r.GID}}
	switch info.Mode().Type() {
	case fs.ModeDir:
		return r.dir(c, st.Mode, old, fresh, opaque)
	case 0:
		return r.file(c, info, st, old, fresh)
	case fs.ModeSymlink:
		c.Type, c.Mode = Symlink, 0o777
		if c.Target, err = r.root.Readlink(at); err != nil {
			return fmt.Errorf("reading what was written: %w", err)
		}
		if same := r.inherit(&c, old, fresh); !same || old.Target != c.Target {
			r.out = append(r.out, c)
		}
		return nil
	}
	return hostileWrite(name, "a device, a pipe or a socket is no part of an image")
}

// inherit gives a name that was there the owner that it had. same: it is of the
// same type.
func (r *written) inherit(c *Change, old *node, fresh bool) (same bool) {
	if fresh || old == nil || old.Type != c.Type {
		return false
	}
	c.UID, c.GID, c.Special = old.UID, old.GID, old.Special
	return true
}

func (r *written) dir(c Change, mode uint32, old *node, fresh, opaque bool) error {
	c.Type = Directory
	if mode&unix.S_ISUID != 0 {
		return hostileWrite(c.Path, "it has a set-user-ID bit")
	}
	if opaque {
		c.Opaque = old != nil && old.Type == Directory && !fresh
		fresh = true
	}
	same := r.inherit(&c, old, fresh)
	c.Special = mode & 0o3000
	if !same || old.Mode != c.Mode || old.Special&0o3000 != c.Special {
		r.out = append(r.out, c)
	}
	return r.directory(c.Path, old, fresh)
}

func (r *written) file(c Change, info fs.FileInfo, st *syscall.Stat_t, old *node, fresh bool) error {
	c.Type = File
	if st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		return hostileWrite(c.Path, "it has a set-user-ID or set-group-ID bit")
	}
	if st.Mode&unix.S_ISVTX != 0 {
		return hostileWrite(c.Path, "a file has a sticky bit")
	}
	if r.bytes -= info.Size(); r.bytes < 0 {
		return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageTooLarge, "more bytes were written than are allowed")
	}
	f, err := openClosed(r.root, filepath.FromSlash(c.Path))
	if err != nil {
		return fmt.Errorf("reading what was written: %w", err)
	}
	defer f.Close()
	if now, err := f.Stat(); err != nil || !os.SameFile(info, now) {
		return hallmark.Errorf(hallmark.KindUnavailable, "%s changed while it was read", c.Path)
	}
	if c.Digest, c.Size, err = hallmark.DigestFrom(f); err != nil {
		return fmt.Errorf("reading what was written: %w", err)
	}
	same := r.inherit(&c, old, fresh)
	if same && old.Digest != c.Digest {
		c.Special = 0 // as the kernel takes the bits from a program that is written to
	}
	if same && old.Digest == c.Digest && old.Mode == c.Mode {
		return nil
	}
	if st.Nlink > 1 {
		c.id, _ = inodeOf(info)
	}
	r.out = append(r.out, c)
	return nil
}

// attributes judges the extended attributes of a name: the kernel's own tell of
// directories that hide what is below them.
func (r *written) attributes(name string) (opaque bool, err error) {
	at := filepath.Join(r.Dir, filepath.FromSlash(name)) // no part of it is a link: the walk went through directories alone
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(at, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading the attributes of %s: %w", name, err)
	}
	for a := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		own, ours := strings.CutPrefix(a, r.Attributes)
		switch {
		case a == "" || a == "security.selinux":
		case ours && own == "opaque":
			value := make([]byte, 8)
			m, err := unix.Lgetxattr(at, a, value)
			if err != nil {
				return false, fmt.Errorf("reading the attributes of %s: %w", name, err)
			}
			if string(value[:m]) != "y" {
				return false, hostileWrite(name, "it hides what is below in a way that is not known")
			}
			opaque = true
		case ours && slices.Contains([]string{"origin", "impure", "nlink", "upper", "uuid"}, own):
		default:
			return false, hostileWrite(name, "it has the extended attribute %.100q, which no layer keeps", a)
		}
	}
	return opaque, nil
}
