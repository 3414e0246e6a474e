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
		d, err := t.sum(f, before.size)
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

// sum hashes a file. Its end is not looked for where size says that it is: whoever
// asks compares the size after that.
func (t *tracer) sum(f *os.File, size int64) (hallmark.Digest, error) {
	h := sha256.New()
	for off := int64(0); ; {
		n, err := unix.Pread(int(f.Fd()), t.hash, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("hashing it: %w", err)
		}
		h.Write(t.hash[:n])
		off += int64(n)
		if n == 0 || off == size {
			return hallmark.Digest("sha256:" + hex.EncodeToString(h.Sum(nil))), nil
		}
	}
}

// node is one file, whatever it holds.
type node struct{ dev, ino uint64 }

func (id identity) node() node { return node{id.dev, id.ino} }

// known are the digests of the versions that were hashed: those of this trace,
// and of files out of reach also earlier ones.
type known struct {
	files map[node]version
	store *digestStore
}

// version is what a file held.
type version struct {
	id     identity
	digest hallmark.Digest
}

func openKnown(path string) (known, error) {
	store, err := openDigests(path)
	return known{files: map[node]version{}, store: store}, err
}

// find returns the digest of a version. What somebody may be writing is not
// known.
func (k *known) find(id identity, shaky, inside bool) (hallmark.Digest, bool) {
	if shaky {
		return "", false
	}
	if v, ok := k.files[id.node()]; ok && v.id == id {
		return v.digest, true
	}
	if inside {
		return "", false
	}
	d, ok := k.store.find(id)
	if ok {
		k.files[id.node()] = version{id, d}
	}
	return d, ok
}

// keep remembers a digest; f is open where the file is out of reach, else nil.
func (k *known) keep(id identity, d hallmark.Digest, f *os.File) {
	k.files[id.node()] = version{id, d}
	if f != nil {
		k.store.keep(id, d, int(f.Fd()))
	}
}

// drop forgets a file that is about to change: two versions may look the same
// where a kernel's clock is coarse.
func (k *known) drop(id identity) { delete(k.files, id.node()) }

func (k *known) close() error { return k.store.close() }

// content is the digest of an open file, and the version that was hashed.
func (t *tracer) content(f *os.File, label string, id identity) (hallmark.Digest, identity, error) {
	shaky, inside := t.writing.has(id), t.inside(label)
	if d, ok := t.digests.find(id, shaky, inside); ok {
		return d, id, nil
	}
	d, id, err := t.digest(f, label)
	switch {
	case err != nil || shaky:
	case inside:
		t.digests.keep(id, d, nil)
	default:
		t.digests.keep(id, d, f)
	}
	return d, id, err
}
