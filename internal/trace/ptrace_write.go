// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
)

// writers are the files that somebody may write to. A descriptor holds each one,
// by O_PATH, which keeps nobody from running it; inotify says when a writer lets
// go, which is when the last descriptor and the last mapping of one open are
// gone.
type writers struct {
	notify int
	files  map[inode]*written
	watch  map[int32]*written
}

// written is one such file.
type written struct {
	key     inode
	fd      int
	wd      int32 // -1: it is not watched, since the user has no watch left
	label   string
	opens   int   // how often it was opened for writing
	writers []int // processes that did, by their numbers in the trace
	last    identity
	reads   []sight
}

// sight is what a process read while somebody else could write.
type sight struct {
	process int
	digest  hallmark.Digest
}

func (w *writers) open() error {
	w.files, w.watch = map[inode]*written{}, map[int32]*written{}
	var err error
	if w.notify, err = unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC); err != nil {
		return fmt.Errorf("watching for files that are closed: %w", err)
	}
	return nil
}

func (w *writers) has(id identity) bool {
	if len(w.files) == 0 {
		return false
	}
	_, ok := w.files[id.inode()]
	return ok
}

// read remembers what a process saw of a file that somebody can write to.
func (w *writers) read(id identity, process int, d hallmark.Digest) {
	if f := w.files[id.inode()]; f != nil {
		f.reads = append(f.reads, sight{process, d})
	}
}

// writes takes note of a file that is open for writing. t.path leads to it.
func (t *tracer) writes(th *thread, label string, id identity) {
	t.digests.drop(id)
	w := t.writing.files[id.inode()]
	if w == nil {
		fd, e := openRaw(t.path, unix.O_PATH)
		if e != 0 {
			t.lost(th, "%s, which it writes: %v", label, e)
			return
		}
		w = &written{key: id.inode(), fd: fd, wd: -1, label: label}
		t.writing.files[id.inode()] = w
		if wd, err := unix.InotifyAddWatch(t.writing.notify, ownPath(fd), unix.IN_CLOSE_WRITE); err == nil {
			w.wd = int32(wd)
			t.writing.watch[w.wd] = w
		}
	}
	w.opens++
	if p := t.rec.number(th.proc.pid); !slices.Contains(w.writers, p) {
		w.writers = append(w.writers, p)
	}
}

func ownPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// drain records what was closed since the last time.
func (t *tracer) drain() {
	if len(t.writing.files) == 0 {
		return
	}
	var buf [1 << 13]byte
	for {
		n, err := unix.Read(t.writing.notify, buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			wd := int32(binary.NativeEndian.Uint32(b))
			mask := binary.NativeEndian.Uint32(b[4:])
			b = b[unix.SizeofInotifyEvent+int(binary.NativeEndian.Uint32(b[12:])):]
			w := t.writing.watch[wd]
			switch {
			case mask&unix.IN_Q_OVERFLOW != 0:
				t.settleAll()
			case w != nil && mask&unix.IN_CLOSE_WRITE != 0:
				t.settle(w, w.opens == 1)
			}
		}
	}
}

// settle records what a file holds now that a writer let go of it. last says
// that nobody else can write to it.
func (t *tracer) settle(w *written, last bool) {
	f, err := os.Open(ownPath(w.fd))
	if err != nil {
		t.rec.fail("recording %s, which was written: %v", w.label, err)
		t.release(w)
		return
	}
	defer f.Close()
	d, id, err := t.digest(f, w.label)
	if err != nil {
		t.rec.fail("recording %s, which was written: %v", w.label, err)
	}
	if err == nil && id != w.last {
		w.last = id
		for _, process := range w.writers {
			t.rec.wroteBy(process, w.label, id, d)
		}
		if slices.ContainsFunc(w.reads, func(s sight) bool { return s.digest != d && !(len(w.writers) == 1 && w.writers[0] == s.process) }) {
			t.rec.unstable(w.label, d)
			w.reads = nil
		}
	}
	if last {
		t.release(w)
		if err == nil {
			t.digests.keep(id, d, true)
		}
	}
}

// release lets go of a file.
func (t *tracer) release(w *written) {
	if w.wd >= 0 {
		unix.InotifyRmWatch(t.writing.notify, uint32(w.wd))
		delete(t.writing.watch, w.wd)
	}
	delete(t.writing.files, w.key)
	unix.Close(w.fd)
}

// settleAll records all files that are still held: nobody is left to write, or
// nobody knows who has closed what.
func (t *tracer) settleAll() {
	for _, w := range t.writing.files {
		t.settle(w, false)
	}
}

// forget records at the end of a process the files that it alone wrote and that
// could not be watched.
func (t *tracer) forget(p *proc) {
	number := t.rec.number(p.pid)
	for _, w := range t.writing.files {
		if w.wd < 0 && slices.Contains(w.writers, number) {
			t.settle(w, false)
		}
	}
}
