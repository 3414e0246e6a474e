// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// inventory are digests of files that no sandbox can write to, kept from one
// trace to the next so that the toolchain is not hashed in each.
//
// An entry holds for one version of a file, by what the kernel alone sets (change
// time), while the machine runs: after a boot nothing is believed, since a disk
// may have been changed elsewhere. The file is the control plane's, like its
// keys; that it is whole is seen by its seal, and that it tells the truth is
// tried on some entries in every trace.
type inventory struct {
	path    string
	boot    string
	digests map[identity]digest
	used    map[identity]struct{}
	grown   bool
}

const (
	inventoryHead = "hallmark digests 1\n"
	bootLength    = 36
	entryLength   = 5*8 + sha256.Size
	maxEntries    = 1 << 18
	tried         = 64 // one of so many entries is hashed all the same
)

// openInventory reads what was kept. A file that can't be believed is none, and
// the reason is returned beside the empty inventory.
func openInventory(path string) (*inventory, error) {
	v := &inventory{path: path, digests: map[identity]digest{}, used: map[identity]struct{}{}}
	if path == "" {
		return v, nil
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(boot) < bootLength {
		v.path = "" // nothing can be kept
		return v, fmt.Errorf("reading the number of this boot: %v", err)
	}
	v.boot = string(boot[:bootLength])
	b, err := readOwn(path)
	if errors.Is(err, fs.ErrNotExist) {
		return v, nil
	}
	if err != nil {
		return v, fmt.Errorf("reading digests %s: %w", path, err)
	}
	if v.digests, err = parseInventory(b, v.boot); err != nil {
		v.digests = map[identity]digest{}
		return v, fmt.Errorf("reading digests %s: %w", path, err)
	}
	return v, nil
}

// readOwn reads a file that only we can have written.
func readOwn(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !st.Mode().IsRegular() || int(sys.Uid) != os.Geteuid() || st.Mode().Perm()&0o077 != 0 {
		return nil, errors.New("it is not a file that only we can read and write")
	}
	return io.ReadAll(io.LimitReader(f, int64(len(inventoryHead)+bootLength+maxEntries*entryLength+sha256.Size+1)))
}

// parseInventory reads the file: head, boot, entries, and the SHA-256 of all that.
func parseInventory(b []byte, boot string) (map[identity]digest, error) {
	out := map[identity]digest{}
	body := len(b) - sha256.Size
	if body < len(inventoryHead)+bootLength || !strings.HasPrefix(string(b), inventoryHead) {
		return nil, errors.New("it is no inventory of digests")
	}
	if seal := sha256.Sum256(b[:body]); !bytes.Equal(seal[:], b[body:]) {
		return nil, errors.New("its seal does not match")
	}
	if string(b[len(inventoryHead):len(inventoryHead)+bootLength]) != boot {
		return out, nil
	}
	b = b[len(inventoryHead)+bootLength : body]
	if len(b)%entryLength != 0 {
		return nil, errors.New("its length does not fit")
	}
	for ; len(b) > 0; b = b[entryLength:] {
		n := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
		id := identity{dev: n(0), ino: n(1), size: int64(n(2)), mtime: int64(n(3)), ctime: int64(n(4))}
		out[id] = digest(b[40:entryLength])
	}
	return out, nil
}

// find looks a version up; try: it has to be hashed all the same, and compared.
func (v *inventory) find(id identity) (d digest, ok, try bool) {
	d, ok = v.digests[id]
	if ok {
		v.used[id] = struct{}{}
	}
	return d, ok, ok && rand.IntN(tried) == 0
}

// keep adds a version that was hashed at now, unless it is so young that a change
// might not have changed its times.
func (v *inventory) keep(id identity, d digest, now time.Time) {
	if v.path == "" || id.ctime > now.Add(-2*time.Second).UnixNano() || len(v.digests) >= maxEntries {
		return
	}
	v.digests[id] = d
	v.used[id] = struct{}{}
	v.grown = true
}

// save writes the inventory for the next trace: all of it, or what this trace
// used when it is nearly full.
func (v *inventory) save() error {
	if v.path == "" || !v.grown {
		return nil
	}
	b := []byte(inventoryHead + v.boot)
	for id, d := range v.digests {
		if _, used := v.used[id]; !used && len(v.digests) > maxEntries*3/4 {
			continue
		}
		for _, n := range []uint64{id.dev, id.ino, uint64(id.size), uint64(id.mtime), uint64(id.ctime)} {
			b = binary.LittleEndian.AppendUint64(b, n)
		}
		b = append(b, d[:]...)
	}
	seal := sha256.Sum256(b)
	f, err := os.CreateTemp(filepath.Dir(v.path), ".digests-") // mode 0600
	if err != nil {
		return fmt.Errorf("keeping digests: %w", err)
	}
	_, err = f.Write(append(b, seal[:]...))
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), v.path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("keeping digests: %w", err)
	}
	return nil
}

// forget removes a file that told a falsehood.
func (v *inventory) forget() {
	os.Remove(v.path)
	v.path, v.digests = "", map[identity]digest{}
}
