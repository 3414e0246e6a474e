// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"errors"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An agent waits some ten thousand times for something that comes within
// microseconds. Go's scheduler is kept out of that: each time it would take the
// waiting thread's place away, give it back, and wake its own watcher. In return
// nobody may wait for this thread to come to a rest: it alone collects garbage, and
// others have places of their own.

// environment of an agent: its thread is not to be interrupted to make it share a
// place that it need not share.
func environment() []string { return []string{"GODEBUG=asyncpreemptoff=1"} }

// alone gives the calling thread a place of its own, beside those that others
// need.
func alone(others int) {
	runtime.GOMAXPROCS(1 + max(others, runtime.GOMAXPROCS(0)))
}

// heap collects garbage when its owner says so.
type heap struct {
	after uint64 // bytes after the last collection
}

// newHeap stops the collections that come by themselves.
func newHeap() *heap {
	debug.SetGCPercent(-1)
	return &heap{}
}

// tidy collects garbage once there is some.
func (h *heap) tidy() {
	const much = 64 << 20
	now := [1]metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	if metrics.Read(now[:]); now[0].Value.Kind() == metrics.KindUint64 && now[0].Value.Uint64() > h.after+much {
		runtime.GC()
		metrics.Read(now[:])
		h.after = now[0].Value.Uint64()
	}
}

// pollLong is poll for a time in which nothing is to come: the scheduler knows of
// it, so that its watcher sleeps too.
func pollLong(fds []unix.PollFd, milliseconds int) (int, unix.Errno) {
	n, err := unix.Poll(fds, milliseconds)
	if err == nil {
		return n, 0
	}
	var e unix.Errno
	if errors.As(err, &e) {
		return 0, e
	}
	return 0, unix.EIO
}

// poll waits without the scheduler's knowledge; none are ready when the time, in
// milliseconds, is over.
func poll(fds []unix.PollFd, milliseconds int) (int, unix.Errno) {
	t := unix.NsecToTimespec(int64(milliseconds) * 1e6)
	n, _, e := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), uintptr(len(fds)), uintptr(unsafe.Pointer(&t)), 0, 0, 0)
	return int(n), e
}
