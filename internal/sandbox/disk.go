// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// disk measures what a sandbox occupies, in sum: what it wrote to host
// directories, its own file systems in memory, and files that have no name left
// but are still open. What none of these sees (a file without a name that is only
// mapped) still takes free space, of which a floor is kept.
type disk struct {
	dirs    []string        // host directories that take what the program writes
	scratch []int           // O_PATH descriptors of the room's own file systems
	own     map[uint64]bool // their devices
	proc    string          // the room's processes as we see them
	floors  []floor
	log     string      // event log, which grows with what the program does; or empty
	hurry   atomic.Bool // the sum does not matter any more: whoever waits wants the end
}

// floor is the free space of one host file system below which no program runs.
type floor struct {
	dir          string
	bytes, files uint64
}

// inodeSize is what a file costs beside its content.
const inodeSize = 1024

// maxDepth bounds the directories that a program nests; nothing that is built
// comes near it.
const maxDepth = 1000

func newDisk(pid int, spec Spec) (*disk, error) {
	d := &disk{own: map[uint64]bool{}, proc: fmt.Sprintf("/proc/%d/root/proc", pid)}
	for _, name := range []string{"/tmp", "/dev/shm"} {
		if spec.Root != nil && name == "/tmp" {
			continue // it is part of the root
		}
		if slices.ContainsFunc(spec.Mounts, func(m Mount) bool { return m.Target == name }) {
			continue // a host directory lies over it
		}
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/root%s", pid, name), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			d.close()
			return nil, fmt.Errorf("opening %s of the room: %w", name, err)
		}
		d.scratch = append(d.scratch, fd)
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil {
			d.own[st.Dev] = true
		}
	}
	if t := spec.Trace; t != nil {
		d.log = t.Log
	}
	if w := spec.Workspace; w != nil {
		d.dirs = append(d.dirs, w.Scratch)
	}
	if r := spec.Root; r != nil {
		d.dirs = append(d.dirs, r.Scratch)
	}
	for _, l := range spec.Layers {
		d.dirs = append(d.dirs, l.Scratch)
	}
	for _, m := range spec.Mounts {
		if m.Writable && isDir(m.Source) {
			d.dirs = append(d.dirs, m.Source)
		}
	}
	for _, dir := range d.dirs {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Bsize > 0 {
			const most, mostFiles = 1 << 30, 10000
			d.floors = append(d.floors, floor{dir: dir, bytes: min(most, st.Bavail*uint64(st.Bsize)/8), files: min(mostFiles, st.Ffree/8)})
		}
	}
	return d, nil
}

func (d *disk) close() {
	for _, fd := range d.scratch {
		unix.Close(fd)
	}
	d.scratch = nil
}

// used is the sum in bytes; full says that a host file system is nearly so. When
// it is told to hurry it ends early, and the sum is too small.
func (d *disk) used() (total int64, full bool) {
	for _, fd := range d.scratch {
		var st unix.Statfs_t
		if unix.Fstatfs(fd, &st) == nil {
			total += int64(st.Blocks-st.Bfree)*st.Bsize + int64(st.Files-st.Ffree)*inodeSize
		}
	}
	seen := map[[2]uint64]bool{}
	for _, dir := range d.dirs {
		total += d.treeSize(dir, seen)
	}
	total += d.nameless(seen)
	if st, err := os.Stat(d.log); err == nil && d.log != "" {
		total += st.Size()
	}
	_, full = d.free()
	return total, full
}

// free is the free space of the host's file systems and of the room's own, which
// costs nothing to ask: whatever the program writes takes from it, and so does a
// file without content.
func (d *disk) free() (bytes uint64, full bool) {
	for _, f := range d.floors {
		var st unix.Statfs_t
		if unix.Statfs(f.dir, &st) != nil {
			continue
		}
		left := st.Bavail * uint64(max(st.Bsize, 0))
		bytes += left + st.Ffree*inodeSize
		full = full || left < f.bytes || st.Ffree < f.files
	}
	for _, fd := range d.scratch {
		var st unix.Statfs_t
		if unix.Fstatfs(fd, &st) == nil {
			bytes += st.Bavail*uint64(max(st.Bsize, 0)) + st.Ffree*inodeSize
		}
	}
	return bytes, full
}

// nameless sums up open files that stand in no directory any more.
func (d *disk) nameless(seen map[[2]uint64]bool) int64 {
	processes, err := os.ReadDir(d.proc)
	if err != nil {
		return 0
	}
	var total int64
	for _, p := range processes {
		if d.hurry.Load() {
			return total
		}
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		for _, kind := range []string{"fd", "map_files"} {
			dir := filepath.Join(d.proc, p.Name(), kind)
			open, err := os.ReadDir(dir)
			if err != nil {
				continue
			}
			for _, f := range open {
				var st unix.Stat_t
				if unix.Stat(filepath.Join(dir, f.Name()), &st) != nil || st.Nlink > 0 || st.Mode&unix.S_IFMT != unix.S_IFREG || d.own[st.Dev] {
					continue
				}
				if id := [2]uint64{st.Dev, st.Ino}; !seen[id] {
					seen[id] = true
					total += st.Blocks*512 + inodeSize
				}
			}
		}
	}
	return total
}

// treeSize sums up a directory that a program may change meanwhile: by
// descriptors, so that no link leads out of it. seen holds files of several names.
func (d *disk) treeSize(dir string, seen map[[2]uint64]bool) int64 {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0 // what can't be read can't be collected either
	}
	return d.sizeBelow(fd, 0, seen)
}

func (d *disk) sizeBelow(fd, depth int, seen map[[2]uint64]bool) int64 {
	f := os.NewFile(uintptr(fd), "") //nolint:gosec // a descriptor is not negative here
	defer f.Close()
	if depth > maxDepth {
		return 1 << 50
	}
	var total int64
	for {
		names, err := f.Readdirnames(1024)
		for _, name := range names {
			var st unix.Stat_t
			if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				continue
			}
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				total += st.Blocks*512 + inodeSize
				if sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err == nil {
					total += d.sizeBelow(sub, depth+1, seen)
				}
				continue
			}
			if id := [2]uint64{st.Dev, st.Ino}; st.Nlink > 1 {
				if seen[id] {
					continue
				}
				seen[id] = true
			}
			total += st.Blocks*512 + inodeSize
		}
		if err != nil || len(names) == 0 || d.hurry.Load() {
			return total
		}
	}
}
