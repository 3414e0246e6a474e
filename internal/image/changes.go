// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/hallmark-sc/hallmark"
)

// Contents finds the bytes of files by their digests. Whoever reads compares.
type Contents struct {
	files map[hallmark.Digest]contentAt
	small map[hallmark.Digest][]byte
}

type contentAt struct{ dir, name string }

// Put says where bytes are: in a file of a directory, or here.
func (c *Contents) Put(d hallmark.Digest, dir, name string) {
	if c.files == nil {
		c.files = map[hallmark.Digest]contentAt{}
	}
	if _, ok := c.files[d]; !ok {
		c.files[d] = contentAt{dir, name}
	}
}

// PutBytes keeps bytes.
func (c *Contents) PutBytes(b []byte) hallmark.Digest {
	if c.small == nil {
		c.small = map[hallmark.Digest][]byte{}
	}
	d := hallmark.DigestOf(b)
	c.small[d] = b
	return d
}

// Open opens the bytes of a digest.
func (c *Contents) Open(d hallmark.Digest) (io.ReadCloser, error) {
	if b, ok := c.small[d]; ok {
		return io.NopCloser(strings.NewReader(string(b))), nil
	}
	at, ok := c.files[d]
	if !ok {
		return nil, hallmark.Errorf(hallmark.KindInternal, "the content %s is nowhere", d)
	}
	root, err := os.OpenRoot(at.dir)
	if err != nil {
		return nil, fmt.Errorf("reading content: %w", err)
	}
	defer root.Close()
	f, err := openClosed(root, filepath.FromSlash(at.name))
	if err != nil {
		return nil, fmt.Errorf("reading content: %w", err)
	}
	return f, nil
}

// copyTo writes the bytes of a digest, and no others, whatever became of the file.
func (c *Contents) copyTo(w io.Writer, d hallmark.Digest, size int64) error {
	in, err := c.Open(d)
	if err != nil {
		return err
	}
	defer in.Close()
	got, n, err := hallmark.DigestFrom(io.TeeReader(io.LimitReader(in, size+1), w))
	if err != nil {
		return err
	}
	if got != d || n != size {
		return altered(d, got)
	}
	return nil
}

// WriteLayer writes changes, sorted by path, as a packed layer. Equal changes
// give equal bytes: every time is created.
func WriteLayer(w io.Writer, created time.Time, changes []Change, contents *Contents) (Layer, error) {
	packed := &sum{w: w, h: sha256.New()}
	z, err := packer(packed)
	if err != nil {
		return Layer{}, err
	}
	plain := &sum{w: z, h: sha256.New()}
	t := tar.NewWriter(plain)
	for _, c := range changes {
		if err := writeChange(t, created, c, contents); err != nil {
			return Layer{}, fmt.Errorf("writing %s into a layer: %w", c.Path, err)
		}
	}
	if err := errors.Join(t.Close(), z.Close()); err != nil {
		return Layer{}, fmt.Errorf("writing a layer: %w", err)
	}
	return Layer{Digest: packed.digest(), DiffID: plain.digest(), Size: packed.n, MediaType: string(types.OCILayer)}, nil
}

func writeChange(t *tar.Writer, created time.Time, c Change, contents *Contents) error {
	h := &tar.Header{
		Name: c.Path, Mode: int64(c.Mode | c.Special), Uid: c.UID, Gid: c.GID, ModTime: created.UTC().Truncate(time.Second), Format: tar.FormatPAX,
	}
	switch {
	case c.Removed:
		h.Typeflag, h.Name, h.Mode = tar.TypeReg, path.Join(path.Dir(c.Path), whiteout+path.Base(c.Path)), 0
		return t.WriteHeader(h)
	case c.Link != "":
		h.Typeflag, h.Linkname = tar.TypeLink, c.Link
		return t.WriteHeader(h)
	case c.Type == Directory:
		h.Typeflag, h.Name = tar.TypeDir, c.Path+"/"
		if err := t.WriteHeader(h); err != nil || !c.Opaque {
			return err
		}
		return t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(c.Path, opaque), ModTime: h.ModTime, Format: tar.FormatPAX})
	case c.Type == Symlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, c.Target
		return t.WriteHeader(h)
	}
	h.Typeflag, h.Size = tar.TypeReg, c.Size
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	return contents.copyTo(t, c.Digest, c.Size)
}

// Lay writes changes into an empty directory, to be seen over the tree that they
// were made for: after is that tree with them. It can't take anything away.
func Lay(dir string, changes []Change, after *Tree, contents *Contents) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("laying out a layer: %w", err)
	}
	defer root.Close()
	var dirs []string
	parents := func(name string) error {
		var missing []string
		for d := path.Dir(name); d != "."; d = path.Dir(d) {
			missing = append(missing, d)
		}
		for _, d := range slices.Backward(missing) {
			switch err := root.Mkdir(filepath.FromSlash(d), 0o700); {
			case err == nil:
				dirs = append(dirs, d)
			case !errors.Is(err, fs.ErrExist):
				return err
			}
		}
		return nil
	}
	for _, c := range changes {
		name := c.Path
		err := parents(name)
		if c.Type == Directory {
			name = path.Join(c.Path, ".")
			err = errors.Join(err, parents(path.Join(c.Path, "x")))
		}
		switch {
		case err != nil:
		case c.Removed || c.Opaque || c.Link != "":
			err = hallmark.Errorf(hallmark.KindInternal, "%s can't be laid out", name)
		case c.Type == Symlink:
			err = root.Symlink(c.Target, filepath.FromSlash(name))
		case c.Type == File:
			err = layFile(root, c, contents)
		}
		if err != nil {
			return fmt.Errorf("laying out a layer: %w", err)
		}
	}
	if err := os.Chmod(dir, asIs(after.root.Entry)); err != nil {
		return fmt.Errorf("laying out a layer: %w", err)
	}
	for _, d := range slices.Backward(dirs) {
		e, ok := after.At(d)
		if !ok || e.Type != Directory {
			return hallmark.Errorf(hallmark.KindInternal, "laying out a layer: %s is no directory", d)
		}
		if err := root.Chmod(filepath.FromSlash(d), asIs(e)); err != nil {
			return fmt.Errorf("laying out a layer: %w", err)
		}
	}
	return nil
}

func layFile(root *os.Root, c Change, contents *Contents) error {
	f, err := root.OpenFile(filepath.FromSlash(c.Path), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = contents.copyTo(f, c.Digest, c.Size)
	return errors.Join(err, f.Chmod(asIs(c.Entry)), f.Close())
}

// separate gives a name of a file a file of its own.
func separate(root *os.Root, name string) error {
	back, err := openWay(root, name)
	defer back()
	if err != nil {
		return err
	}
	st, err := root.Lstat(name)
	if err != nil {
		return err
	}
	part := filepath.Join(filepath.Dir(name), ".separate")
	if err := duplicate(root, name, part); err != nil {
		return err
	}
	return errors.Join(chownLike(root, part, st), root.Rename(part, name))
}

// Unlink gives every name of changes that is a hard link a file of its own in
// dir, where a program wrote them: written over later, one would change with the
// other, and only one of them would be seen to.
func Unlink(dir string, changes []Change) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("separating files: %w", err)
	}
	defer root.Close()
	for _, c := range changes {
		if c.Link == "" {
			continue
		}
		if err := separate(root, filepath.FromSlash(c.Path)); err != nil {
			return fmt.Errorf("separating files: %w", err)
		}
	}
	return nil
}

// sum hashes and counts what is written through it.
type sum struct {
	w io.Writer
	h hash.Hash
	n int64
}

func (s *sum) Write(b []byte) (int, error) {
	n, err := s.w.Write(b)
	s.h.Write(b[:n])
	s.n += int64(n)
	return n, err
}

func (s *sum) digest() hallmark.Digest {
	var d [sha256.Size]byte
	copy(d[:], s.h.Sum(nil))
	return hallmark.DigestFromSum(d)
}
