// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// To tell which process made, moved or removed a name, the kernel has to give
// directories handles that last, which an overlay can do only when root of the
// machine mounts it; and the file system must be the sandbox's own, or we would
// hear of everybody's names. Therefore under root we mount what a traced program
// can write to ourselves, and the first process only puts it into its place.

// overlays are mounts that the first process is given.
type overlays struct {
	files []*os.File
	names map[string]int // what furnish calls it: index in files
	dirs  []string       // to be removed
}

// mountOverlays mounts the writable directories of a traced sandbox.
func mountOverlays(spec Spec) (o *overlays, err error) {
	o = &overlays{names: map[string]int{}}
	if spec.Trace == nil || os.Geteuid() != 0 {
		return o, nil
	}
	defer func() {
		if err != nil {
			o.close()
			o.remove()
		}
	}()
	if r := spec.Root; r != nil {
		if err := o.addRoot(*r); err != nil {
			return o, err
		}
	}
	if w := spec.Workspace; w != nil {
		if err := o.add("workspace", []string{w.Lower}, Upper(w.Scratch), filepath.Join(w.Scratch, "work")); err != nil {
			return o, err
		}
	}
	for i, l := range spec.Layers {
		if err := o.add("layer"+strconv.Itoa(i), []string{l.Lower}, Upper(l.Scratch), filepath.Join(l.Scratch, "work")); err != nil {
			return o, err
		}
	}
	for i, m := range spec.Mounts {
		st, err := os.Stat(m.Source)
		if err != nil || !m.Writable || !st.IsDir() {
			continue // what is wrong with it is told when it is mounted
		}
		beside, err := os.MkdirTemp(filepath.Dir(m.Source), ".overlay-")
		if err != nil {
			return o, fmt.Errorf("making a directory beside %s: %w", m.Source, err)
		}
		o.dirs = append(o.dirs, beside)
		lower, work := filepath.Join(beside, "lower"), filepath.Join(beside, "work")
		if err := errors.Join(os.Mkdir(lower, 0o755), os.Mkdir(work, 0o755)); err != nil {
			return o, fmt.Errorf("making a directory beside %s: %w", m.Source, err)
		}
		// The kernel notes which lower directory an upper one was used with, and
		// takes it with no other: this one is always empty, and new each time.
		if err := unix.Lremovexattr(m.Source, "trusted.overlay.origin"); err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
			return o, fmt.Errorf("preparing %s: %w", m.Source, err)
		}
		if err := o.add(strconv.Itoa(i), []string{lower}, m.Source, work); err != nil {
			return o, err
		}
	}
	return o, nil
}

func (o *overlays) add(name string, lowers []string, upper, work string) error {
	// The last sandbox on the same directories lets go of them a little after its
	// end.
	for end := time.Now().Add(5 * time.Second); ; {
		fd, err := overlay(lowers, upper, work)
		if err == nil {
			o.names[name] = len(o.files)
			o.files = append(o.files, os.NewFile(uintptr(fd), name))
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return fmt.Errorf("mounting %s over %s: %w", upper, lowers[0], err)
		}
		unix.Poll(nil, 2)
	}
}

// overlay makes a mount that is in no place yet.
func overlay(lowers []string, upper, work string) (int, error) {
	fd, err := detached(lowers, upper, work)
	if len(lowers) == 1 || !errors.Is(err, unix.EINVAL) {
		return fd, err
	}
	if fd, old := detachedBefore(lowers, upper, work); old == nil {
		return fd, nil
	}
	return -1, err
}

// options are those of an overlay; lowers are told as option says. Directories are
// named by descriptor: a path with a colon would be two of them, one with a comma
// two options before Linux 6.5, which has no option for a single one either.
func options(option string, lowers []string, upper, work string) (out [][2]string, release func(), err error) {
	var fds []int
	release = func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
	var held []string
	for _, path := range append([]string{upper, work}, lowers...) {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			release()
			return nil, nil, fmt.Errorf("opening %s: %w", path, err)
		}
		fds = append(fds, fd)
		held = append(held, "/proc/self/fd/"+strconv.Itoa(fd))
	}
	for _, l := range held[2:] {
		out = append(out, [2]string{option, l})
	}
	// What was written is read from the upper directory alone: neither a file without
	// its content nor a directory that stands for a renamed one may be there, as some
	// kernels make them when nobody says otherwise.
	return append(out, [][2]string{
		{"upperdir", held[0]}, {"workdir", held[1]}, {"redirect_dir", "nofollow"}, {"metacopy", "off"}, {"index", "on"}, {"nfs_export", "on"},
	}...), release, nil
}

// detached asks for a mount option by option. Several lower directories are named
// one by one, which Linux 6.5 and later understand.
func detached(lowers []string, upper, work string) (int, error) {
	option := "lowerdir+"
	if len(lowers) == 1 {
		option = "lowerdir"
	}
	all, release, err := options(option, lowers, upper, work)
	if err != nil {
		return -1, err
	}
	defer release()
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	for _, o := range all {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return -1, fmt.Errorf("%s: %w", o[0], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
}

// detachedBefore does what detached does on a kernel that takes the list of lower
// directories as one option, which may have 255 bytes there and a page in mount(2):
// that mounts in a place, of a mount name space that goes with this thread.
func detachedBefore(lowers []string, upper, work string) (int, error) {
	type made struct {
		fd  int
		err error
	}
	done := make(chan made)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this function
		fd, err := mountElsewhere(lowers, upper, work)
		done <- made{fd, err}
	}()
	m := <-done
	return m.fd, m.err
}

func mountElsewhere(lowers []string, upper, work string) (int, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return -1, fmt.Errorf("taking a mount name space: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return -1, fmt.Errorf("making its mounts private: %w", err)
	}
	all, release, err := options("lowerdir", lowers, upper, work) // of this name space's mounts
	if err != nil {
		return -1, err
	}
	defer release()
	var below, others []string
	for _, o := range all {
		if o[0] == "lowerdir" {
			below = append(below, o[1])
		} else {
			others = append(others, o[0]+"="+o[1])
		}
	}
	text := "lowerdir=" + strings.Join(below, ":") + "," + strings.Join(others, ",")
	if err := unix.Mount("overlay", newRoot, "overlay", unix.MS_NOSUID|unix.MS_NODEV, text); err != nil {
		return -1, err
	}
	return unix.OpenTree(unix.AT_FDCWD, newRoot, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
}

// given tells the first process which descriptors it has, from the first on.
func (o *overlays) given(first int) map[string]int {
	out := map[string]int{}
	for name, i := range o.names {
		out[name] = first + i
	}
	return out
}

func (o *overlays) close() {
	for _, f := range o.files {
		f.Close()
	}
	o.files = nil
}

// remove removes the directories; the mounts must be gone.
func (o *overlays) remove() {
	for _, d := range o.dirs {
		os.RemoveAll(d)
	}
}

// place puts a given mount into the room.
func (f *furniture) place(name, target string) bool {
	fd, ok := f.given[name]
	if !ok || f.err != nil {
		return ok
	}
	f.do("making "+target, os.MkdirAll(newRoot+target, 0o755))
	f.do("mounting "+target, unix.MoveMount(fd, "", unix.AT_FDCWD, newRoot+target, unix.MOVE_MOUNT_F_EMPTY_PATH))
	unix.Close(fd)
	return true
}
