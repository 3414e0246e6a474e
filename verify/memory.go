// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/tlog"
)

// Memory remembers what a verifier has seen, so that a log can't show it two
// trees and an old policy can't come back. It must be safe for concurrent use.
type Memory interface {
	// Largest returns the largest checkpoint remembered of a log; size 0 and a
	// nil root mean that none is.
	Largest(origin string) (size uint64, root []byte, err error)
	// Remember keeps a checkpoint, durably before it returns. A smaller one than
	// the largest is no error and changes nothing. One of equal size with another
	// root is an error with CodeLogSplitView.
	Remember(origin string, size uint64, root []byte) error
	// PolicyFloor returns the highest policy version seen under these roots, 0
	// when none was.
	PolicyFloor(roots hallmark.Digest) (int, error)
	// RaisePolicyFloor keeps a version, durably; a lower one changes nothing.
	RaisePolicyFloor(roots hallmark.Digest, version int) error
}

// remember compares a checkpoint with the largest seen, and keeps it.
func (v *Verifier) remember(cp tlog.Checkpoint) error {
	if v.memory == nil {
		return nil
	}
	size, root, err := v.memory.Largest(cp.Origin)
	if err != nil {
		return denied(hallmark.CodeLogProofInvalid, "reading the largest checkpoint seen of log %s: %w", cp.Origin, err)
	}
	if size == cp.Size && bytes.Equal(root, cp.Root) {
		return nil // the common case: no write
	}
	if size == cp.Size && root != nil {
		return splitView(cp.Origin, cp.Size)
	}
	if err := v.memory.Remember(cp.Origin, cp.Size, cp.Root); err != nil {
		return refusal(err, hallmark.CodeLogProofInvalid)
	}
	return nil
}

func splitView(origin string, size uint64) error {
	return denied(hallmark.CodeLogSplitView, "log %s showed another root at size %d before", origin, size)
}

// FileMemory is a Memory in a directory: one small file for each log and for
// each set of roots, replaced atomically.
type FileMemory struct {
	dir string
	mu  sync.Mutex
	// largest caches what the files hold. Another process may only raise it, and
	// every write reads the file again under a lock.
	largest map[string]memoryCheckpoint
}

type memoryCheckpoint struct {
	Origin string `json:"origin"`
	Size   uint64 `json:"size"`
	Root   []byte `json:"root"`
}

type memoryPolicy struct {
	Roots   hallmark.Digest `json:"roots"`
	Version int             `json:"version"`
}

// NewFileMemory opens the memory in dir, which it creates when it is missing.
func NewFileMemory(dir string) (*FileMemory, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("creating verifier memory: %w", err)
	}
	return &FileMemory{dir: dir, largest: map[string]memoryCheckpoint{}}, nil
}

// Largest implements Memory.
func (m *FileMemory) Largest(origin string) (uint64, []byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.largest[origin]
	if !ok {
		var err error
		if c, err = m.readCheckpoint(origin); err != nil {
			return 0, nil, err
		}
		m.largest[origin] = c
	}
	return c.Size, bytes.Clone(c.Root), nil
}

// Remember implements Memory.
func (m *FileMemory) Remember(origin string, size uint64, root []byte) error {
	return m.locked(func() error {
		c, err := m.readCheckpoint(origin)
		if err != nil {
			return err
		}
		if c.Root != nil && size == c.Size && !bytes.Equal(root, c.Root) {
			return splitView(origin, size)
		}
		if c.Root == nil || size > c.Size {
			c = memoryCheckpoint{Origin: origin, Size: size, Root: bytes.Clone(root)}
			if err := m.write(checkpointFile(origin), c); err != nil {
				return err
			}
		}
		m.largest[origin] = c
		return nil
	})
}

// PolicyFloor implements Memory.
func (m *FileMemory) PolicyFloor(roots hallmark.Digest) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.readPolicy(roots)
}

// RaisePolicyFloor implements Memory.
func (m *FileMemory) RaisePolicyFloor(roots hallmark.Digest, version int) error {
	return m.locked(func() error {
		seen, err := m.readPolicy(roots)
		if err != nil || version <= seen {
			return err
		}
		return m.write(policyFile(roots), memoryPolicy{Roots: roots, Version: version})
	})
}

func checkpointFile(origin string) string {
	sum := sha256.Sum256([]byte(origin))
	return "log-" + hex.EncodeToString(sum[:]) + ".json"
}

func policyFile(roots hallmark.Digest) string {
	sum := sha256.Sum256([]byte(roots))
	return "policy-" + hex.EncodeToString(sum[:]) + ".json"
}

func (m *FileMemory) readCheckpoint(origin string) (memoryCheckpoint, error) {
	var c memoryCheckpoint
	found, err := m.read(checkpointFile(origin), &c)
	if err != nil || !found {
		return memoryCheckpoint{}, err
	}
	if c.Origin != origin || len(c.Root) != sha256.Size {
		return memoryCheckpoint{}, hallmark.Errorf(hallmark.KindInvalid, "verifier memory of log %.100q is damaged", origin)
	}
	return c, nil
}

func (m *FileMemory) readPolicy(roots hallmark.Digest) (int, error) {
	var p memoryPolicy
	found, err := m.read(policyFile(roots), &p)
	if err != nil || !found {
		return 0, err
	}
	if p.Roots != roots || p.Version < 1 {
		return 0, hallmark.Errorf(hallmark.KindInvalid, "verifier memory of roots %s is damaged", roots.Short())
	}
	return p.Version, nil
}

// read decodes a file; a missing one is not an error, a damaged one is.
func (m *FileMemory) read(name string, into any) (bool, error) {
	b, err := os.ReadFile(filepath.Join(m.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading verifier memory: %w", err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return false, hallmark.Errorf(hallmark.KindInvalid, "reading verifier memory %s: %w", name, err)
	}
	return true, nil
}

// locked runs f while no other goroutine and no other process writes.
func (m *FileMemory) locked(f func() error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	lock, err := os.OpenFile(filepath.Join(m.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("locking verifier memory: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking verifier memory: %w", err)
	}
	return f()
}

// write replaces a file atomically: after a crash it is the old or the new one.
func (m *FileMemory) write(name string, value any) (err error) {
	b, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encoding verifier memory: %w", err)
	}
	tmp, err := os.CreateTemp(m.dir, ".tmp-*")
	if err != nil {
		return fmt.Errorf("writing verifier memory: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(b)
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(m.dir, name))
	}
	if err != nil {
		return fmt.Errorf("writing verifier memory: %w", err)
	}
	d, err := os.Open(m.dir)
	if err != nil {
		return fmt.Errorf("syncing verifier memory: %w", err)
	}
	defer d.Close()
	if err = d.Sync(); err != nil {
		return fmt.Errorf("syncing verifier memory: %w", err)
	}
	return nil
}
