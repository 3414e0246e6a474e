// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark/internal/build"
)

// opened records what a process got from an open, from the descriptor that it
// got: names may have changed since.
func (t *tracer) opened(th *thread, c call, fd int) {
	var st unix.Stat_t
	t.path = fdPath(t.path, th.tid, fd)
	if e := stat(t.path, &st); e != 0 {
		if e != unix.ESRCH {
			t.lost(th, "what it opened as descriptor %d: %v", fd, e)
		}
		return
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		t.special(th, fd, &st)
		return
	}
	flags := int(uint32(th.args[max(c.flags, 0)])) | c.implied
	switch {
	case c.op == opOpenHow:
		var err error
		if flags, err = fileFlags(th.tid, fd); err != nil {
			t.lost(th, "how it opened descriptor %d: %v", fd, err)
			return
		}
	case c.flags == none:
		flags = c.implied
	}
	if flags&unix.O_PATH != 0 {
		return // its content can't be had without another open
	}
	writes := flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0
	id := identify(&st)
	shaky := t.writing.has(id)
	if shaky {
		// Whoever wrote it may have let go since the call began.
		t.drain()
		shaky = t.writing.has(id)
	}
	alone := th.proc.threads <= 1
	if !writes && !shaky && alone && t.rec.knows(th.proc.pid, id) {
		return
	}
	label, e := readlink(t.path, t.link)
	if e != 0 {
		if e != unix.ESRCH {
			t.lost(th, "the name of descriptor %d: %v", fd, e)
		}
		return
	}
	if !alone {
		if !t.sure(th, fd, label) {
			t.unsure(th, label)
			return
		}
		if !writes && !shaky && t.rec.knows(th.proc.pid, id) {
			return
		}
	}
	if !strings.HasPrefix(label, "/") || strings.HasPrefix(label, "/proc/") || strings.HasPrefix(label, "/sys/") {
		t.label(th, label)
		return
	}
	if th.making && id.size == 0 && !strings.HasSuffix(label, " (deleted)") {
		t.rec.named(build.EventMake, th.proc.pid, label, "")
	}
	if flags&unix.O_ACCMODE != unix.O_WRONLY && !(writes && id.size == 0) {
		t.reads(th, label, fd, id, shaky)
	}
	if writes {
		t.writes(th, label, id)
	}
}

// reads records a file that is open for reading as fd.
func (t *tracer) reads(th *thread, label string, fd int, id identity, shaky bool) {
	d, ok := t.digests.find(id, shaky, t.inside(label))
	if !ok {
		f, err := t.take(th, fd)
		if err != nil {
			t.lost(th, "%s: %v", label, err)
			return
		}
		defer f.Close()
		if d, id, err = t.content(f, label, id); err != nil {
			t.lost(th, "%s: %v", label, err)
			return
		}
	}
	t.rec.opened(th.proc.pid, label, id, d)
	switch {
	case shaky:
		t.writing.read(id, t.rec.number(th.proc.pid), d)
	case t.inside(label):
		t.readers.add(id.node(), th.proc, d)
	}
}

// take gives us the open file itself: reading it needs no permission and moves
// no offset of the process.
func (t *tracer) take(th *thread, fd int) (*os.File, error) {
	pidfd, err := unix.PidfdOpen(th.proc.pid, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the process: %w", err)
	}
	defer unix.Close(pidfd)
	own, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return nil, fmt.Errorf("taking descriptor %d: %w", fd, err)
	}
	return os.NewFile(uintptr(own), "opened"), nil
}

// special records what is no regular file by its name: what it says is not the
// same for two readers.
func (t *tracer) special(th *thread, fd int, st *unix.Stat_t) {
	if st.Mode&unix.S_IFMT == unix.S_IFDIR && th.proc.threads <= 1 {
		return
	}
	label, e := readlink(t.path, t.link)
	if e != 0 {
		return
	}
	if !t.sure(th, fd, label) {
		t.unsure(th, label)
		return
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		t.label(th, label)
	}
}

// unsure makes the trace incomplete where a thread may have been robbed of what it
// opened before it was seen.
func (t *tracer) unsure(th *thread, label string) {
	t.rec.fail("process %d changed its descriptors while one of its threads opened a file: %q is not surely what was opened", th.proc.pid, label)
}

// label records a name without content, once for each process.
func (t *tracer) label(th *thread, label string) {
	p := th.proc
	if _, known := p.labels[label]; known {
		return
	}
	if p.labels == nil {
		p.labels = map[string]struct{}{}
	}
	p.labels[label] = struct{}{}
	t.rec.named(build.EventRead, p.pid, label, "")
}

// lost makes the trace incomplete, unless the process is being killed, which
// takes its files away while we look.
func (t *tracer) lost(th *thread, format string, args ...any) {
	var info syscallInfo
	if ptraceInfo(th.tid, &info) == unix.ESRCH {
		return
	}
	t.rec.fail("recording process %d: "+format, append([]any{th.proc.pid}, args...)...)
}

// inside reports whether the program can change what has this name.
func (t *tracer) inside(label string) bool {
	for _, w := range t.subject.Writable {
		if label == w || strings.HasPrefix(label, strings.TrimSuffix(w, "/")+"/") {
			return true
		}
	}
	return !strings.HasPrefix(label, "/") || strings.HasPrefix(label, "/memfd:") || strings.HasSuffix(label, " (deleted)")
}

// fileFlags reads how a descriptor is open.
func fileFlags(tid, fd int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", tid, fd))
	if err != nil {
		return 0, err
	}
	for l := range bytes.Lines(b) {
		if v, ok := bytes.CutPrefix(l, []byte("flags:")); ok {
			flags, err := strconv.ParseInt(string(bytes.TrimSpace(v)), 8, 64)
			return int(flags), err
		}
	}
	return 0, fmt.Errorf("descriptor %d has no flags", fd)
}
