// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
)

// digestStore keeps the digests of files that no sandbox can change, the
// toolchain above all, from one trace to the next: reading it anew in every build
// costs more than watching it being read.
//
// A file is known by its identity, which holds the change time that the kernel
// alone sets. A digest is kept only where that is good evidence: see durable.
// One trace uses a store at a time from one goroutine; of two traces that write
// it, the later one keeps what both had found.
type digestStore struct {
	path  string // empty: nothing is kept
	known map[identity][sha256.Size]byte
	fresh map[identity][sha256.Size]byte
	trust map[uint64]bool // devices whose change times are the kernel's
}

// The file: the magic, the SHA-256 of the rest, and records of fixed size.
const (
	storeMagic  = "hallmark digests 1\n"
	recordSize  = 5*8 + sha256.Size
	mostRecords = 1 << 19 // of 72 bytes
)

// openDigests reads a store; one that is not there, or not whole, is empty. One
// that somebody else could have written is an error.
func openDigests(path string) (*digestStore, error) {
	s := &digestStore{path: path, known: map[identity][sha256.Size]byte{}, fresh: map[identity][sha256.Size]byte{}, trust: map[uint64]bool{}}
	if path == "" {
		return s, nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading known digests: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("reading known digests: %w", err)
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("reading known digests: others can write %s", path)
	}
	if st.Size > mostRecords*recordSize+1024 {
		return s, nil
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("reading known digests: %w", err)
	}
	s.decode(b)
	return s, nil
}

func (s *digestStore) decode(b []byte) {
	rest, ok := bytes.CutPrefix(b, []byte(storeMagic))
	if !ok || len(rest) < sha256.Size {
		return
	}
	records := rest[sha256.Size:]
	if sha256.Sum256(records) != [sha256.Size]byte(rest[:sha256.Size]) || len(records)%recordSize != 0 {
		return
	}
	for ; len(records) > 0; records = records[recordSize:] {
		var v [5]uint64
		for i := range v {
			v[i] = binary.LittleEndian.Uint64(records[8*i:])
		}
		if v[2] > math.MaxInt64 || v[3] > math.MaxInt64 || v[4] > math.MaxInt64 {
			continue
		}
		id := identity{dev: v[0], ino: v[1], size: int64(v[2]), mtime: int64(v[3]), ctime: int64(v[4])}
		s.known[id] = [sha256.Size]byte(records[5*8:])
	}
}

func (s *digestStore) encode() []byte {
	var records []byte
	add := func(id identity, d [sha256.Size]byte) {
		if id.size < 0 || id.mtime < 0 || id.ctime < 0 || len(records) >= mostRecords*recordSize {
			return
		}
		for _, v := range []uint64{id.dev, id.ino, uint64(id.size), uint64(id.mtime), uint64(id.ctime)} {
			records = binary.LittleEndian.AppendUint64(records, v)
		}
		records = append(records, d[:]...)
	}
	for id, d := range s.fresh {
		add(id, d)
	}
	for id, d := range s.known {
		if _, twice := s.fresh[id]; !twice {
			add(id, d)
		}
	}
	sum := sha256.Sum256(records)
	return append(append([]byte(storeMagic), sum[:]...), records...)
}

// find returns the digest of a version of a file that is outside of the
// sandbox's reach.
func (s *digestStore) find(id identity) (hallmark.Digest, bool) {
	d, ok := s.known[id]
	if !ok {
		return "", false
	}
	return hallmark.Digest("sha256:" + hex.EncodeToString(d[:])), true
}

// keep remembers a digest; where is an open descriptor of the file, which is
// outside of the sandbox's reach.
func (s *digestStore) keep(id identity, d hallmark.Digest, where int) {
	if s.path == "" || !s.durable(id, where) {
		return
	}
	var b [sha256.Size]byte
	if n, err := hex.Decode(b[:], []byte(d[len("sha256:"):])); err != nil || n != len(b) {
		return
	}
	s.known[id], s.fresh[id] = b, b
}

// durable reports whether an identity will not be that of another content later.
// The file system must be one that sets change times by the clock: an image whose
// times were chosen when it was made (squashfs, ISO 9660, whole seconds) could be
// exchanged for another one under the same device number. And the last change
// must have been some time ago, so that no further one fits into the same tick.
func (s *digestStore) durable(id identity, where int) bool {
	const settled = 2 * time.Second
	if id.ctime%int64(time.Second) == 0 || time.Since(time.Unix(0, id.ctime)) < settled {
		return false
	}
	trust, ok := s.trust[id.dev]
	if !ok {
		var st unix.Statfs_t
		if unix.Fstatfs(where, &st) == nil {
			switch uint32(st.Type) {
			case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.OVERLAYFS_SUPER_MAGIC, zfsMagic:
				trust = true
			}
		}
		s.trust[id.dev] = trust
	}
	return trust
}

const zfsMagic = 0x2fc12fc1

// close writes what was found anew.
func (s *digestStore) close() error {
	if s.path == "" || len(s.fresh) == 0 {
		return nil
	}
	if now, err := openDigests(s.path); err == nil {
		for id, d := range now.known {
			if _, ok := s.known[id]; !ok {
				s.known[id] = d
			}
		}
	}
	f, err := os.CreateTemp(filepath.Dir(s.path), ".digests-") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(s.encode())
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), s.path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
