// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package blob keeps bytes under their SHA-256 digest in a directory. What Put
// returned for is durable and whole; what Get returns has the digest that was
// asked for. With the log, the blobs are the truth that the index is made from.
package blob

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// Config names the directory.
type Config struct{ Dir string }

// Store is a blob directory. It is safe for concurrent use by many processes.
type Store struct{ dir string }

// New makes the directory if needed.
func New(cfg Config) (*Store, error) {
	s := &Store{dir: cfg.Dir}
	for _, d := range []string{s.algorithm(), s.parts()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, hallmark.Errorf(hallmark.KindInvalid, "making blob directory: %w", err)
		}
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
	d, _, err := s.PutFrom(ctx, strings.NewReader(string(b)))
	return d, err
}

// PutFrom keeps what r yields.
func (s *Store) PutFrom(_ context.Context, r io.Reader) (hallmark.Digest, int64, error) {
	f, err := os.CreateTemp(s.parts(), "blob-*")
	if err != nil {
		return "", 0, fmt.Errorf("keeping a blob: %w", err)
	}
	defer os.Remove(f.Name())
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), r)
	if err = errors.Join(err, f.Chmod(0o400), f.Sync(), f.Close()); err != nil {
		return "", n, fmt.Errorf("keeping a blob: %w", err)
	}
	d := sum(h)
	path := s.path(d)
	if _, err := os.Stat(path); err == nil {
		return d, n, nil
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", n, fmt.Errorf("keeping blob %s: %w", d, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return "", n, fmt.Errorf("keeping blob %s: %w", d, err)
	}
	if err := errors.Join(syncDir(dir), syncDir(s.algorithm())); err != nil {
		return "", n, fmt.Errorf("keeping blob %s: %w", d, err)
	}
	return d, n, nil
}

func sum(h hash.Hash) hallmark.Digest {
	return hallmark.DigestFromSum([sha256.Size]byte(h.Sum(nil)))
}

// Get returns the bytes of d after hashing them again.
func (s *Store) Get(_ context.Context, d hallmark.Digest) ([]byte, error) {
	if err := d.Check(); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(s.path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hallmark.Errorf(hallmark.KindNotFound, "blob %s is not kept here", d)
	}
	if err != nil {
		return nil, fmt.Errorf("reading blob %s: %w", d, err)
	}
	if got := hallmark.DigestOf(b); got != d {
		return nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeEvidenceMalformed, "blob %s: the file holds %s", s.path(d), got)
	}
	return b, nil
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

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
