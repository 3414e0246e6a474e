// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Threads share their descriptors. Between the moment that an open puts a file
// under a number and the moment that the tracer looks there, another thread
// could read the file, close it and put something harmless in its place. So of
// the calls that can put a file under a number, a process with several threads
// has one under way at a time; the others wait where they are stopped anyway.
// What is then under the number is what was opened, or it is nothing that has a
// path, which fails the trace.
//
// Two kinds of call can't be made to wait, since they may wait for another
// thread themselves: opening a pipe by its name, and receiving descriptors. The
// tracer lets them go, and asks at each look whether they still sleep.

// turn reports whether a thread may go on with a call that puts a file under a
// number; else it waits.
func (t *tracer) turn(th *thread) bool {
	p := th.proc
	if p.busy != nil && t.fifo(p.busy) {
		p.loose, p.busy = append(p.loose, p.busy), nil
	}
	switch {
	case th.call.op == opReceive:
		p.loose = append(p.loose, th)
	case p.busy != nil:
		p.waiting = append(p.waiting, th)
		return false
	default:
		p.busy = th
	}
	return true
}

// yield ends a thread's turn and lets the next one go on.
func (t *tracer) yield(th *thread) {
	p := th.proc
	is := func(o *thread) bool { return o == th }
	p.loose, p.waiting = slices.DeleteFunc(p.loose, is), slices.DeleteFunc(p.waiting, is)
	if p.busy != th {
		return
	}
	p.busy = nil
	for p.busy == nil && len(p.waiting) > 0 {
		next := p.waiting[0]
		p.waiting = p.waiting[1:]
		if t.fifo(next) {
			p.loose = append(p.loose, next)
		} else {
			p.busy = next
		}
		t.resume(unix.PTRACE_SYSCALL, next.tid, 0)
	}
}

// fifo reports whether an open may wait for the other end of a pipe. A program
// that changes the name meanwhile makes only its own threads wait.
func (t *tracer) fifo(th *thread) bool {
	if th.name == "" {
		return false
	}
	var st unix.Stat_t
	h, err := unix.Openat2(t.root, th.name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return false
	}
	defer unix.Close(h)
	return unix.Fstat(h, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO
}

// sure reports whether what the tracer has just seen under a number is what the
// call put there.
func (t *tracer) sure(th *thread, fd int, label string) bool {
	p := th.proc
	if p.threads <= 1 && len(p.loose) == 0 {
		return true
	}
	for _, l := range p.loose {
		if l != th && mayHavePut(l, fd) {
			return false
		}
	}
	if strings.HasPrefix(label, "/") && !strings.HasPrefix(label, "/memfd:") && !strings.HasPrefix(label, "/secretmem") {
		return true
	}
	// A pipe or a file in memory can be opened by the names that the kernel has
	// for descriptors only.
	for _, dir := range []string{"/dev/", "/proc/"} {
		if strings.HasPrefix(th.name, dir) {
			name, err := t.said(th, th.call.dir, th.call.at)
			return err == nil && name == th.name
		}
	}
	return false
}

// mayHavePut reports whether a call that was let go may have put something under
// a number by now: not while it sleeps, and not if it was an open that got
// another number. One that received descriptors says so in its header.
func mayHavePut(l *thread, fd int) bool {
	var info syscallInfo
	for range 100 {
		if asleep(l.tid) {
			return false
		}
		if e := ptraceInfo(l.tid, &info); e == 0 {
			break
		}
		time.Sleep(50 * time.Microsecond) // it is on its way to the stop
	}
	switch {
	case info.op != infoExit:
		return true
	case int64(info.data[0]) < 0:
		return false
	case l.call.op != opReceive:
		return int(info.data[0]) == fd
	}
	const control = 40 // offset of msg_controllen in struct msghdr
	var b [8]byte
	return l.call.flags != none || readMemory(l.tid, l.args[1]+control, b[:]) != len(b) || binary.NativeEndian.Uint64(b[:]) != 0
}

// asleep reports whether a thread waits in the kernel.
func asleep(tid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", tid))
	if err != nil {
		return false
	}
	i := bytes.LastIndexByte(b, ')')
	return i >= 0 && len(b) > i+2 && b[i+2] == 'S'
}
