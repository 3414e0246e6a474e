// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
)

// onDisk is the mode of an entry in an unpacked tree: nobody may write, and we
// can read it again. Ownership is ours, whatever the layer says.
func onDisk(e Entry) fs.FileMode {
	m := fs.FileMode(e.Mode) &^ 0o222
	if e.Type == Directory {
		return m | 0o500
	}
	return m | 0o400
}

// Unpack writes a tree that Flatten made of these layers into dir, which must
// be empty. Only what the tree holds is written, each name once, directories
// first and symlinks last, so that nothing is ever written through a link.
func (t *Tree) Unpack(ctx context.Context, blobs Blobs, layers []Layer, dir string) error {
	return t.unpack(ctx, blobs, layers, dir, onDisk, (*os.Root).Link)
}

// UnpackAsIs is Unpack with the modes of the layers, for a tree that is written
// over: directories keep their set-group and sticky bits, files of several names
// become files of their own.
func (t *Tree) UnpackAsIs(ctx context.Context, blobs Blobs, layers []Layer, dir string) error {
	if err := t.unpack(ctx, blobs, layers, dir, asIs, duplicate); err != nil {
		return err
	}
	return os.Chmod(dir, asIs(t.root.Entry))
}

// asIs is the mode of an entry in a tree that a program may write over.
func asIs(e Entry) fs.FileMode {
	m := fs.FileMode(e.Mode)
	if e.Type == Directory {
		if e.Special&0o1000 != 0 {
			m |= fs.ModeSticky
		}
		if e.Special&0o2000 != 0 {
			m |= fs.ModeSetgid
		}
	}
	return m
}

// duplicate copies a file that was written before.
func duplicate(root *os.Root, from, to string) error {
	st, err := root.Lstat(from)
	if err != nil {
		return err
	}
	in, err := openClosed(root, from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := root.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(st.Mode()), out.Close())
}

// openClosed opens a file that its own mode, or that of a directory that it lies
// in, may close to us.
func openClosed(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if !errors.Is(err, fs.ErrPermission) {
		return f, err
	}
	back, err := openWay(root, name)
	defer back()
	if err != nil {
		return nil, err
	}
	st, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fs.ErrPermission
	}
	if err := root.Chmod(name, 0o600); err != nil {
		return nil, err
	}
	f, err = root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if back := root.Chmod(name, st.Mode()); err == nil && back != nil {
		f.Close()
		return nil, back
	}
	return f, err
}

// openWay opens the directories in the way to a file; back puts their modes back.
func openWay(root *os.Root, name string) (back func(), err error) {
	type closed struct {
		name string
		mode fs.FileMode
	}
	var was []closed
	back = func() {
		for _, c := range slices.Backward(was) {
			_ = root.Chmod(c.name, c.mode) // it is ours: no reason to fail
		}
	}
	parts := strings.Split(filepath.Dir(name), string(filepath.Separator))
	for i := range parts {
		dir := filepath.Join(parts[:i+1]...)
		st, err := root.Lstat(dir)
		if err != nil {
			return back, err
		}
		if !st.IsDir() {
			return back, fs.ErrPermission
		}
		if st.Mode().Perm()&0o700 == 0o700 {
			continue
		}
		if err := root.Chmod(dir, st.Mode()|0o700); err != nil {
			return back, err
		}
		was = append(was, closed{dir, st.Mode()})
	}
	return back, nil
}

type (
	modeOf func(Entry) fs.FileMode
	linker func(root *os.Root, from, to string) error
)

func (t *Tree) unpack(ctx context.Context, blobs Blobs, layers []Layer, dir string, mode modeOf, link linker) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("unpacking: %w", err)
	}
	defer root.Close()
	entries := t.Entries()
	wanted := map[position][]Entry{}
	for _, e := range entries {
		switch e.Type {
		case Directory:
			if err := root.Mkdir(filepath.FromSlash(e.Path), 0o700); err != nil {
				return clash(err)
			}
		case File:
			wanted[e.source] = append(wanted[e.source], e)
		}
	}
	for i, l := range layers {
		b := &budget{entries: Limits{}.defaults().Entries, bytes: Limits{}.defaults().Bytes}
		err := each(ctx, blobs, l, b, func(n int, _ *tar.Header, r io.Reader) error {
			return write(root, wanted[position{i, n}], r, mode, link)
		})
		if err != nil {
			return fmt.Errorf("unpacking layer %d: %w", i+1, err)
		}
	}
	for _, e := range entries {
		if e.Type == Symlink {
			if err := root.Symlink(e.Target, filepath.FromSlash(e.Path)); err != nil {
				return clash(err)
			}
		}
	}
	for _, e := range slices.Backward(entries) {
		if e.Type == Directory {
			if err := root.Chmod(filepath.FromSlash(e.Path), mode(e)); err != nil {
				return fmt.Errorf("unpacking: %w", err)
			}
		}
	}
	return nil
}

// clash explains why a name can't be made: where the file system takes two names
// for one, the tree is not what the image says.
func clash(err error) error {
	if errors.Is(err, fs.ErrExist) {
		return hostile("two names of the image are one on this file system: %s", err)
	}
	return fmt.Errorf("unpacking: %w", err)
}

// write writes the bytes of one entry under all its names.
func write(root *os.Root, names []Entry, r io.Reader, mode modeOf, link linker) error {
	for i, e := range names {
		p := filepath.FromSlash(e.Path)
		if i > 0 {
			if err := link(root, filepath.FromSlash(names[0].Path), p); err != nil {
				return clash(err)
			}
			continue
		}
		f, err := root.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return clash(err)
		}
		_, err = io.Copy(f, r)
		if err = errors.Join(err, f.Chmod(mode(e)), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// ErrAltered says that an unpacked tree is not the image's.
var ErrAltered = errors.New("the unpacked tree is not the image's")

// Verify reads an unpacked tree whole and compares it with t: every name, type,
// mode, link and byte, and nothing besides.
func (t *Tree) Verify(ctx context.Context, dir string) error {
	if st, err := os.Lstat(dir); err != nil || !st.IsDir() { // a link could lead elsewhere tomorrow
		return fmt.Errorf("reading an unpacked image: %s: %w", dir, ErrAltered)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("reading an unpacked image: %w", err)
	}
	defer root.Close()
	want := map[string]Entry{}
	for _, e := range t.Entries() {
		want[e.Path] = e
	}
	read := map[inode]hallmark.Digest{}
	err = fs.WalkDir(root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == "." {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		e, ok := want[p]
		if !ok {
			return fmt.Errorf("%s: %w", p, ErrAltered)
		}
		delete(want, p)
		return same(root, p, e, read)
	})
	if err != nil {
		return fmt.Errorf("reading an unpacked image: %w", err)
	}
	if len(want) > 0 {
		return fmt.Errorf("reading an unpacked image: %d names are gone: %w", len(want), ErrAltered)
	}
	return nil
}

// same compares one name on the disk with its entry.
func same(root *os.Root, p string, e Entry, read map[inode]hallmark.Digest) error {
	other := fmt.Errorf("%s: %w", p, ErrAltered)
	st, err := root.Lstat(filepath.FromSlash(p))
	if err != nil {
		return err
	}
	types := map[Type]fs.FileMode{Directory: fs.ModeDir, File: 0, Symlink: fs.ModeSymlink}
	if st.Mode().Type() != types[e.Type] {
		return other
	}
	if e.Type == Symlink {
		if to, err := root.Readlink(filepath.FromSlash(p)); err != nil || to != e.Target {
			return other
		}
		return nil
	}
	if st.Mode() != onDisk(e)|types[e.Type] {
		return other
	}
	if e.Type == Directory {
		return nil
	}
	id, ok := inodeOf(st)
	if !ok || st.Size() != e.Size {
		return other
	}
	if _, ok := read[id]; !ok {
		f, err := root.Open(filepath.FromSlash(p))
		if err != nil {
			return err
		}
		d, _, err := hallmark.DigestFrom(f)
		f.Close()
		if err != nil {
			return err
		}
		read[id] = d
	}
	if read[id] != e.Digest {
		return other
	}
	return nil
}
