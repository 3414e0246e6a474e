// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package durable writes files so that a crash at any moment leaves the old
// bytes or the new ones, never a part of either: it writes under another name,
// syncs, gives the final name and syncs the directory. When a function returns
// nil, the bytes survive a power failure.
//
// What a killed process left behind under other names is told from what a living
// one is writing by a lock on the file, so any process may sweep.
package durable

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// prefix marks a file that has no final name yet.
const prefix = ".part-"

// Step is one step of a write.
type Step int

// The steps, in their order.
const (
	Created Step = iota + 1 // the file exists under another name
	Written                 // all bytes were handed to the kernel
	Synced                  // bytes and mode are on the disk
	Named                   // the file has its final name
	Kept                    // the name is on the disk
)

// Disk writes files. The zero value is ready for use.
type Disk struct {
	// After is called when a step is done. An error ends the write there: tests
	// fail or die at a step. Nil asks nobody.
	After func(step Step, path string) error
	// Inherit gives what root makes to the owner of the directory that it stands
	// in, before it has its name: a service of another user can read it.
	Inherit bool
}

// Step says that a step of a write which a caller makes itself is done.
func (d Disk) Step(step Step, path string) error {
	if d.After == nil {
		return nil
	}
	return d.After(step, path)
}

// Replace writes a file that may exist, and the directories that it needs.
func (d Disk) Replace(path string, b []byte, mode fs.FileMode) error {
	return d.write(path, b, mode, (*Temp).Replace)
}

// Create writes a file that must not exist: fs.ErrExist says that it does.
func (d Disk) Create(path string, b []byte, mode fs.FileMode) error {
	return d.write(path, b, mode, (*Temp).Create)
}

func (d Disk) write(path string, b []byte, mode fs.FileMode, publish func(*Temp, string, fs.FileMode) error) error {
	if err := MakeDir(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	t, err := d.Temp(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer t.Discard()
	if _, err := t.Write(b); err != nil {
		return err
	}
	return publish(t, path, mode)
}

// Temp is a file without its final name. Discard must be called, also after a
// publication.
type Temp struct {
	disk Disk
	f    *os.File
	name string
	err  error // of the first write that failed
}

// Temp makes a file without a name in dir, locked as long as this process lives.
func (d Disk) Temp(dir string) (*Temp, error) {
	for {
		f, err := os.CreateTemp(dir, prefix+"*")
		if err != nil {
			return nil, fmt.Errorf("making a file in %s: %w", dir, err)
		}
		ok, err := lockFresh(f, f.Name())
		if ok && d.Inherit {
			err = inherit(dir, f.Chown)
		}
		if ok && err == nil {
			if err = d.Step(Created, f.Name()); err == nil {
				return &Temp{disk: d, f: f, name: f.Name()}, nil
			}
		}
		f.Close()
		if err != nil {
			os.Remove(f.Name())
			return nil, fmt.Errorf("making a file in %s: %w", dir, err)
		}
		// A sweep took the file between its making and its locking: again.
	}
}

// lockFresh locks an open file and reports whether path still names it.
func lockFresh(f *os.File, path string) (bool, error) {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return false, err
	}
	mine, err := f.Stat()
	if err != nil {
		return false, err
	}
	there, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(mine, there), err
}

// Write implements io.Writer. A write that failed makes publication impossible.
func (t *Temp) Write(b []byte) (int, error) {
	n, err := t.f.Write(b)
	if err != nil && t.err == nil {
		t.err = err
	}
	return n, err
}

// Replace gives the file its final name, which may be taken.
func (t *Temp) Replace(path string, mode fs.FileMode) error {
	return t.publish(path, mode, func(from, to string) error {
		err := os.Rename(from, to)
		if err == nil {
			t.name = ""
		}
		return err
	})
}

// Create gives the file its final name, which must be free.
func (t *Temp) Create(path string, mode fs.FileMode) error {
	// Link, unlike rename, refuses to replace what appeared meanwhile.
	return t.publish(path, mode, os.Link)
}

func (t *Temp) publish(path string, mode fs.FileMode, name func(from, to string) error) error {
	if t.err != nil {
		return t.err
	}
	if err := t.disk.Step(Written, path); err != nil {
		return err
	}
	if err := errors.Join(t.f.Chmod(mode), t.f.Sync()); err != nil {
		return err
	}
	if err := t.disk.Step(Synced, path); err != nil {
		return err
	}
	if err := name(t.name, path); err != nil {
		return err
	}
	if err := t.disk.Step(Named, path); err != nil {
		return err
	}
	if err := SyncDir(filepath.Dir(path)); err != nil {
		return err
	}
	if err := t.disk.Step(Kept, path); err != nil {
		return err
	}
	return t.f.Close()
}

// Discard removes what has no final name.
func (t *Temp) Discard() {
	if t.name != "" {
		os.Remove(t.name)
	}
	t.f.Close()
}

// inherit makes something the owner's of a directory, if we are root.
func inherit(dir string, chown func(uid, gid int) error) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return err
	}
	if st.Uid == 0 {
		return nil
	}
	return chown(int(st.Uid), int(st.Gid))
}

// MakeDir makes a directory in one that exists, durably.
func (d Disk) MakeDir(dir string, mode fs.FileMode) error {
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return nil
	}
	if err := MakeDir(dir, mode); err != nil || !d.Inherit {
		return err
	}
	return inherit(filepath.Dir(dir), func(uid, gid int) error { return os.Lchown(dir, uid, gid) })
}

// MakeDir makes a directory and its parents, each durably.
func MakeDir(dir string, mode fs.FileMode) error {
	if st, err := os.Stat(dir); err == nil {
		if !st.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: dir, Err: unix.ENOTDIR}
		}
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := MakeDir(parent, mode); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return SyncDir(parent)
}

// Lock takes the lock of a file, which it makes if needed, and waits for another
// process that holds it until ctx ends. Closing the file gives the lock back.
func Lock(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("waiting for %s, which another process holds: %w", path, ctx.Err())
		case <-tick.C:
		}
	}
}

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Sweep removes from dir what killed processes left without a name. Files that a
// living process is writing stay.
func Sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type().IsRegular() && strings.HasPrefix(e.Name(), prefix) {
			if err := sweepOne(filepath.Join(dir, e.Name()), os.Remove); err != nil {
				return err
			}
		}
	}
	return nil
}

func sweepOne(path string, remove func(string) error) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// TempDir makes a directory beside what it will be exchanged with, locked as
// long as the returned file is open.
func TempDir(parent, prefix string) (string, *os.File, error) {
	for {
		dir, err := os.MkdirTemp(parent, prefix)
		if err != nil {
			return "", nil, err
		}
		f, err := os.Open(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // swept before it was locked
		}
		if err != nil {
			return "", nil, err
		}
		ok, err := lockFresh(f, dir)
		if ok {
			return dir, f, nil
		}
		f.Close()
		if err != nil {
			return "", nil, err
		}
	}
}

// SweepDirs removes directories of TempDir in parent whose process died, with
// the given function.
func SweepDirs(parent, prefix string, remove func(dir string) error) error {
	entries, err := os.ReadDir(parent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), prefix) {
			if err := sweepOne(filepath.Join(parent, e.Name()), remove); err != nil {
				return err
			}
		}
	}
	return nil
}

// RemoveTree removes a directory whose parts may be read-only, and nothing that a
// link in it leads to. A directory that is not there is no error.
func RemoveTree(dir string) error {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			return root.Chmod(p, 0o700)
		}
		return nil // what can't be read is left to the removal
	})
	return errors.Join(err, os.RemoveAll(dir))
}
