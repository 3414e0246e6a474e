// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/durable"
)

// Store keeps images under their digests, and their unpacked trees beside them.
// Several processes may use it at the same time.
type Store struct {
	dir    string
	limits Limits
	disk   durable.Disk
}

// StoreConfig is what a store needs.
type StoreConfig struct {
	Dir    string // made when it is missing
	Limits Limits
}

// NewStore opens the store in a directory.
func NewStore(cfg StoreConfig) (*Store, error) {
	if cfg.Dir == "" {
		return nil, hallmark.Errorf(hallmark.KindInternal, "image store without a directory")
	}
	return &Store{dir: cfg.Dir, limits: cfg.Limits.defaults()}, nil
}

// Limits are the limits that hold for what the store reads.
func (s *Store) Limits() Limits { return s.limits }

func (s *Store) blob(d hallmark.Digest) string {
	return filepath.Join(s.dir, "blobs", "sha256", d.Hex())
}

// Open implements Blobs.
func (s *Store) Open(d hallmark.Digest) (io.ReadCloser, error) {
	if err := d.Check(); err != nil {
		return nil, err
	}
	f, err := os.Open(s.blob(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hallmark.WithHint(hallmark.Coded(hallmark.KindNotFound, hallmark.CodeImageNotImported, "the home has no image data %s", d),
			"hallmark image import PATH|NAME@sha256:DIGEST puts an image into the home")
	}
	if err != nil {
		return nil, fmt.Errorf("reading image data %s: %w", d, err)
	}
	return f, nil
}

// has reports whether the store holds a blob with the right bytes.
func (s *Store) has(d hallmark.Digest) bool {
	f, err := os.Open(s.blob(d))
	if err != nil {
		return false
	}
	defer f.Close()
	got, _, err := hallmark.DigestFrom(f)
	return err == nil && got == d
}

// keep copies a blob into the store, unless its bytes are other ones than its
// digest says.
func (s *Store) keep(src Blobs, d hallmark.Digest, size int64) error {
	if s.has(d) {
		return nil
	}
	in, err := src.Open(d)
	if err != nil {
		return err
	}
	defer in.Close()
	dir := filepath.Dir(s.blob(d))
	if err := durable.MakeDir(dir, 0o755); err != nil {
		return fmt.Errorf("keeping image data: %w", err)
	}
	t, err := s.disk.Temp(dir)
	if err != nil {
		return err
	}
	defer t.Discard()
	got, n, err := hallmark.DigestFrom(io.TeeReader(io.LimitReader(in, size+1), t))
	if err != nil {
		return fmt.Errorf("reading image data %s: %w", d, err)
	}
	if got != d || n != size {
		return altered(d, got)
	}
	if err := t.Replace(s.blob(d), 0o444); err != nil { // what was there had other bytes
		return fmt.Errorf("keeping image data %s: %w", d, err)
	}
	return nil
}

// Import copies an image into the store: the manifest that a digest names, or of
// an index, which is kept whole, those for the given platforms. Every layer is
// read as if it were unpacked, so that a hostile image is refused here.
func (s *Store) Import(ctx context.Context, src Blobs, d hallmark.Digest, platforms []Platform) ([]*Image, error) {
	b, err := readSmall(src, d)
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(d, b)
	if err != nil {
		return nil, err
	}
	var out []*Image
	for _, p := range platforms {
		img, err := Open(src, d, p)
		if err != nil {
			return nil, err
		}
		for _, l := range img.Layers {
			if l.Size < 0 || l.Size > s.limits.Bytes {
				return nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageTooLarge, "layer %s says that it has %d bytes", l.Digest, l.Size)
			}
			if err := s.keep(src, l.Digest, l.Size); err != nil {
				return nil, err
			}
		}
		if _, err := Flatten(ctx, s, img.Layers, s.limits); err != nil {
			return nil, err
		}
		for _, x := range []struct {
			d hallmark.Digest
			n int
		}{{img.config, len(img.configJSON)}, {img.Manifest, len(img.manifestJSON)}} {
			if err := s.keep(src, x.d, int64(x.n)); err != nil {
				return nil, err
			}
		}
		out = append(out, img)
		if doc.manifest != nil {
			break // one image of one platform
		}
	}
	return out, s.keep(src, d, int64(len(b)))
}

// Root is the unpacked tree of an image.
type Root struct {
	Dir  string
	Tree *Tree
}

const rootsPart = ".part-"

// Root returns the unpacked tree of an image. It is read whole and compared with
// the layers, which are compared with their digests, before every use; a tree
// that was altered is not mended but unpacked again.
func (s *Store) Root(ctx context.Context, img *Image) (Root, error) {
	tree, err := Flatten(ctx, s, img.Layers, s.limits)
	if err != nil {
		return Root{}, err
	}
	roots := filepath.Join(s.dir, "roots")
	home := filepath.Join(roots, img.Manifest.Hex())
	dir := filepath.Join(home, "rootfs") // the kernel renames no directory that we may not write
	if _, err := os.Lstat(dir); err == nil {
		err := tree.Verify(ctx, dir)
		if err == nil {
			return Root{Dir: dir, Tree: tree}, nil
		}
		if ctx.Err() != nil {
			return Root{}, err
		}
		if err := durable.RemoveTree(home); err != nil {
			return Root{}, fmt.Errorf("removing an altered image tree: %w", err)
		}
	}
	if err := durable.MakeDir(roots, 0o755); err != nil {
		return Root{}, fmt.Errorf("making the directory of image trees: %w", err)
	}
	if err := durable.SweepDirs(roots, rootsPart, durable.RemoveTree); err != nil {
		return Root{}, fmt.Errorf("sweeping image trees: %w", err)
	}
	part, lock, err := durable.TempDir(roots, rootsPart)
	if err != nil {
		return Root{}, fmt.Errorf("unpacking image %s: %w", img.Manifest, err)
	}
	defer lock.Close()
	defer durable.RemoveTree(part)
	if err := s.unpack(ctx, tree, img, part); err != nil {
		return Root{}, err
	}
	if err := os.Rename(part, home); err != nil {
		// Another run was faster. What it left is believed no more than a file.
		if verr := tree.Verify(ctx, dir); verr != nil {
			return Root{}, fmt.Errorf("keeping the tree of image %s: %w", img.Manifest, errors.Join(err, verr))
		}
	}
	return Root{Dir: dir, Tree: tree}, nil
}

func (s *Store) unpack(ctx context.Context, tree *Tree, img *Image, part string) error {
	dir := filepath.Join(part, "rootfs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("unpacking image %s: %w", img.Manifest, err)
	}
	if err := tree.Unpack(ctx, s, img.Layers, dir); err != nil {
		return err
	}
	if err := tree.Verify(ctx, dir); err != nil {
		return err
	}
	return os.Chmod(part, 0o755) // nothing in it is secret, and a sandbox looks in as another user
}
