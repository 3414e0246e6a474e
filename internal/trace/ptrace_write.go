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
	files  map[node]*written
	watch  map[int32]*written
}

// written is one such file.
type written struct {
	key     node
	fd      int
	wd      int32 // -1: it is not watched, since the user has no watch left
	label   string
	writers []writer // that opened it and may have it open
	last    version  // what was recorded last
	reads   []sight
}

// writer is a process that opened a file for writing.
type writer struct {
	number int // in the trace
	proc   *proc
}

// sight is what a process read and may still be reading while others can write.
type sight struct {
	process int
	digest  hallmark.Digest
}

func (w *writers) open() error {
	w.files, w.watch = map[node]*written{}, map[int32]*written{}
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
	_, ok := w.files[id.node()]
	return ok
}

// read remembers what a process saw of a file that somebody can write to.
func (w *writers) read(id identity, process int, d hallmark.Digest) {
	if f := w.files[id.node()]; f != nil {
		f.reads = append(f.reads, sight{process, d})
	}
}

// writes takes note of a file that is open for writing. t.path leads to it.
func (t *tracer) writes(th *thread, label string, id identity) {
	t.digests.drop(id)
	w := t.writing.files[id.node()]
	if w == nil {
		fd, e := openRaw(t.path, unix.O_PATH)
		if e != 0 {
			t.lost(th, "%s, which it writes: %v", label, e)
			return
		}
		w = &written{key: id.node(), fd: fd, wd: -1, label: label}
		t.writing.files[id.node()] = w
		if wd, err := unix.InotifyAddWatch(t.writing.notify, ownPath(fd), unix.IN_CLOSE_WRITE); err == nil {
			w.wd = int32(wd)
			t.writing.watch[w.wd] = w
		}
	}
	t.stillReading(w)
	p := th.proc
	if !slices.ContainsFunc(w.writers, func(o writer) bool { return o.proc == p }) {
		w.writers = append(w.writers, writer{t.rec.number(p.pid), p})
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
				t.settle(w)
			}
		}
	}
}

// settle records what a file holds now that a writer let go of it, and lets go
// of it too if there is no other.
func (t *tracer) settle(w *written) {
	h, e := openRaw(append([]byte(ownPath(w.fd)), 0), unix.O_RDONLY)
	if e == unix.EACCES {
		t.unreadable(w)
		return
	}
	if e != 0 {
		t.rec.fail("recording %s, which was written: %v", w.label, e)
		t.release(w)
		return
	}
	f := os.NewFile(uintptr(h), w.label)
	defer f.Close()
	last := unwritten(h) // asked before it is read: no new writer goes on meanwhile
	d, id, err := t.digest(f, w.label)
	if err != nil {
		t.rec.fail("recording %s, which was written: %v", w.label, err)
		t.release(w)
		return
	}
	if now := (version{id, d}); now != w.last {
		w.last = now
		for _, o := range w.writers {
			t.rec.wroteBy(o.number, w.label, id, d)
		}
		t.judge(w, d)
	}
	if last {
		t.release(w)
		t.digests.keep(id, d, nil)
		return
	}
	// What a process that has ended wrote is recorded; whoever has its descriptor
	// is another process, which is not told apart from those that still write.
	if alive := slices.DeleteFunc(slices.Clone(w.writers), func(o writer) bool { return o.proc.threads <= 0 }); len(alive) > 0 {
		w.writers = alive
	}
}

// unreadable records without content a file whose mode lets nobody read it, not
// its writers either, where the tracer is an ordinary user like them. It stays a
// file that somebody may write, so that whoever reads it after a change of its
// mode is recorded with what it holds then.
func (t *tracer) unreadable(w *written) {
	var st unix.Stat_t
	if err := unix.Fstat(w.fd, &st); err != nil {
		t.rec.fail("recording %s, which was written: %v", w.label, err)
		return
	}
	if now := (version{id: identify(&st)}); now != w.last {
		w.last = now
		for _, o := range w.writers {
			t.rec.wroteBy(o.number, w.label, now.id, "")
		}
	}
}

// judge says that a file is unstable if somebody read something else from it
// than it holds now, without having written it alone.
func (t *tracer) judge(w *written, d hallmark.Digest) {
	misled := func(s sight) bool {
		return s.digest != d && !(len(w.writers) == 1 && w.writers[0].number == s.process)
	}
	if slices.ContainsFunc(w.reads, misled) {
		t.rec.unstable(w.label, d)
		w.reads = nil
	}
}

// unwritten reports whether nobody has a file open for writing, mappings
// included: only then the kernel grants a lease for reading.
func unwritten(fd int) bool {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		return false
	}
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
	return err == nil
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
		t.settle(w)
	}
}

// forget records at the end of a process the files that it wrote and that could
// not be watched.
func (t *tracer) forget(p *proc) {
	for _, w := range t.writing.files {
		if w.wd < 0 && slices.ContainsFunc(w.writers, func(o writer) bool { return o.proc == p }) {
			t.settle(w)
		}
	}
}
