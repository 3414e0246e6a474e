// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package blob keeps bytes under their SHA-256 digest in a directory. What Put
// returned for is durable and whole; what Get returns has the digest that was
// asked for. With the log, the blobs are the truth that the index is made from.
package blob

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/durable"
)

// Config names the directory.
type Config struct {
	Dir  string
	Disk durable.Disk
}

// Store is a blob directory. It is safe for concurrent use by many processes.
type Store struct {
	dir  string
	disk durable.Disk
}

// New makes the directory if needed, and removes what killed processes left
// unfinished in it.
func New(cfg Config) (*Store, error) {
	s := &Store{dir: cfg.Dir, disk: cfg.Disk}
	for _, d := range []string{s.algorithm(), s.parts()} {
		if err := s.disk.MakeDir(d, 0o700); err != nil {
			return nil, hallmark.Errorf(hallmark.KindInvalid, "making blob directory: %w", err)
		}
	}
	if err := durable.Sweep(s.parts()); err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "sweeping blob directory: %w", err)
	}
	return s, nil
}

func (s *Store) algorithm() string { return filepath.Join(s.dir, "sha256") }
func (s *Store) parts() string     { return filepath.Join(s.dir, "part") }

func (s *Store) path(d hallmark.Digest) string {
	return filepath.Join(s.algorithm(), d.Hex()[:2], d.Hex())
}

// Put keeps b and returns its digest. It is idempotent.
func (s *Store) Put(ctx context.Context, b []byte) (hallmark.Digest, error) {
	d, _, err := s.PutFrom(ctx, bytes.NewReader(b))
	return d, err
}

// PutFrom keeps what r yields.
func (s *Store) PutFrom(_ context.Context, r io.Reader) (hallmark.Digest, int64, error) {
	t, err := s.disk.Temp(s.parts())
	if err != nil {
		return "", 0, fmt.Errorf("keeping a blob: %w", err)
	}
	defer t.Discard()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(t, h), r)
	if err != nil {
		return "", n, fmt.Errorf("keeping a blob: %w", err)
	}
	d := sum(h)
	path := s.path(d)
	if err := s.disk.MakeDir(filepath.Dir(path), 0o700); err != nil {
		return "", n, fmt.Errorf("keeping blob %s: %w", d, err)
	}
	if s.whole(path, d) {
		// Another process may have given it its name a moment ago, without having
		// synced the directory yet: its promise is not ours.
		err = durable.SyncDir(filepath.Dir(path))
	} else {
		err = t.Replace(path, 0o400)
	}
	if err != nil {
		return "", n, fmt.Errorf("keeping blob %s: %w", d, err)
	}
	return d, n, nil
}

// whole reports whether a file holds the bytes of d: one that was altered is
// written again, not taken for kept.
func (s *Store) whole(path string, d hallmark.Digest) bool {
	f, err := openRegular(path)
	if err != nil {
		return false
	}
	defer f.Close()
	got, _, err := hallmark.DigestFrom(f)
	return err == nil && got == d
}

// openRegular opens a file of ours: no link, no pipe that would wait for ever.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func sum(h hash.Hash) hallmark.Digest {
	return hallmark.DigestFromSum([sha256.Size]byte(h.Sum(nil)))
}

// Get returns the bytes of d after hashing them again.
func (s *Store) Get(_ context.Context, d hallmark.Digest) ([]byte, error) {
	if err := d.Check(); err != nil {
		return nil, err
	}
	f, err := openRegular(s.path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hallmark.Errorf(hallmark.KindNotFound, "blob %s is not kept here", d)
	}
	if err != nil {
		return nil, fmt.Errorf("reading blob %s: %w", d, err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("reading blob %s: %w", d, err)
	}
	if got := hallmark.DigestOf(b); got != d {
		return nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeEvidenceMalformed, "blob %s: the file holds %s", s.path(d), got)
	}
	return b, nil
}

// Open returns a reader of d, whose bytes were hashed before and are not held in
// memory. The caller closes it.
func (s *Store) Open(_ context.Context, d hallmark.Digest) (io.ReadCloser, error) {
	if err := d.Check(); err != nil {
		return nil, err
	}
	f, err := openRegular(s.path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hallmark.Errorf(hallmark.KindNotFound, "blob %s is not kept here", d)
	}
	if err != nil {
		return nil, fmt.Errorf("reading blob %s: %w", d, err)
	}
	got, _, err := hallmark.DigestFrom(f)
	if err == nil && got != d {
		err = hallmark.Coded(hallmark.KindInvalid, hallmark.CodeEvidenceMalformed, "blob %s: the file holds %s", s.path(d), got)
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("reading blob %s: %w", d, err)
	}
	return f, nil
}

// Walk calls fn for every blob, in the order of their digests.
func (s *Store) Walk(_ context.Context, fn func(d hallmark.Digest, size int64) error) error {
	return filepath.WalkDir(s.algorithm(), func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		d, err := hallmark.ParseDigest("sha256:" + e.Name())
		if err != nil {
			return hallmark.Errorf(hallmark.KindInvalid, "blob directory holds %s: %w", p, err)
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		return fn(d, info.Size())
	})
}
