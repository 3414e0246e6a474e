// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
)

// digest hashes an open file and returns the version that was hashed. A file
// that others change meanwhile is hashed again; one that never rests is recorded
// as unstable.
func (t *tracer) digest(f *os.File, label string) (hallmark.Digest, identity, error) {
	const tries = 3
	for n := 1; ; n++ {
		before, err := identityOf(f)
		if err != nil {
			return "", identity{}, err
		}
		d, err := t.sum(f)
		if err != nil {
			return "", identity{}, err
		}
		after, err := identityOf(f)
		if err != nil {
			return "", identity{}, err
		}
		if before == after {
			return d, after, nil
		}
		if n == tries {
			t.rec.unstable(label, d)
			return d, before, nil
		}
	}
}

func identityOf(f *os.File) (identity, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return identity{}, fmt.Errorf("looking at it: %w", err)
	}
	return identify(&st), nil
}

func (t *tracer) sum(f *os.File) (hallmark.Digest, error) {
	h := sha256.New()
	for off := int64(0); ; {
		n, err := unix.Pread(int(f.Fd()), t.hash, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("hashing it: %w", err)
		}
		if n == 0 {
			return hallmark.Digest("sha256:" + hex.EncodeToString(h.Sum(nil))), nil
		}
		h.Write(t.hash[:n])
		off += int64(n)
	}
}

// inode is one file, whatever it holds.
type inode struct{ dev, ino uint64 }

func (id identity) inode() inode { return inode{id.dev, id.ino} }

// known are the digests of the versions that were hashed.
type known struct {
	files map[inode]version
}

type version struct {
	id     identity
	digest hallmark.Digest
}

func openKnown(path string) (known, error) { return known{files: map[inode]version{}}, nil }

// find returns the digest of a version. What somebody may be writing is not
// known.
func (k *known) find(id identity, label string, shaky, inside bool) (hallmark.Digest, bool) {
	if shaky {
		return "", false
	}
	v, ok := k.files[id.inode()]
	return v.digest, ok && v.id == id
}

func (k *known) keep(id identity, d hallmark.Digest, inside bool) {
	k.files[id.inode()] = version{id, d}
}

// drop forgets a file that is about to change: two versions may look the same
// where a kernel's clock is coarse.
func (k *known) drop(id identity) { delete(k.files, id.inode()) }

func (k *known) close() error { return nil }
