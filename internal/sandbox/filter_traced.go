// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"
	"math"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark/internal/trace"
)

// tracedFilter stops the caller for its tracer at the calls that the ptrace
// engine looks at; without a tracer they fail (ENOSYS). It is a filter of its
// own, installed before the other one: of two answers the kernel takes the one
// that forbids more, so that it can add stops and open nothing.
//
// What can't be a file with content needs no stop: a directory, and a descriptor
// that only names a place (O_PATH).
func tracedFilter() []unix.SockFilter {
	stmt := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	jump := func(code uint16, k uint32, jt, jf uint8) unix.SockFilter {
		return unix.SockFilter{Code: code, K: k, Jt: jt, Jf: jf}
	}
	const (
		load = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jeq  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		jset = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		and  = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
		ret  = unix.BPF_RET | unix.BPF_K
	)
	stop, allow := stmt(ret, unix.SECCOMP_RET_TRACE), stmt(ret, unix.SECCOMP_RET_ALLOW)
	p := []unix.SockFilter{
		stmt(load, offNR),
		// A process that hides from its parent's tracer would run unseen, and one
		// that shares descriptors with another could rob it of what it opens.
		jump(jeq, unix.SYS_CLONE, 0, 6),
		stmt(load, offArgs), jump(jset, unix.CLONE_UNTRACED, 2, 0),
		stmt(and, unix.CLONE_FILES|unix.CLONE_THREAD), jump(jeq, unix.CLONE_FILES, 0, 1), stmt(ret, unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM)), allow,
		// A message queue looks like a file, and is none that anybody opened.
		jump(jeq, unix.SYS_MQ_OPEN, 0, 1), stmt(ret, unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS)),
		// Only a copy of a descriptor (F_DUPFD, F_DUPFD_CLOEXEC) is of interest.
		jump(jeq, unix.SYS_FCNTL, 0, 5),
		stmt(load, offArgs+8), jump(jeq, unix.F_DUPFD, 1, 0), jump(jeq, unix.F_DUPFD_CLOEXEC, 0, 1), stop, allow,
	}
	const directory = unix.O_DIRECTORY | unix.O_TMPFILE | unix.O_CREAT
	openers := trace.Openers()
	for _, nr := range trace.Traced() {
		flags, ok := openers[nr]
		if !ok {
			p = append(p, jump(jeq, nr, 0, 1), stop)
			continue
		}
		p = append(p, jump(jeq, nr, 0, 6),
			stmt(load, offArgs+8*uint32(flags)), jump(jset, unix.O_PATH, 3, 0),
			stmt(and, directory), jump(jeq, unix.O_DIRECTORY, 1, 0), stop, allow)
	}
	return append(slices.Clip(p), allow)
}

// installTraced makes the ptrace engine's calls stop from here on, in this thread
// and what it starts.
func installTraced() error {
	prog := tracedFilter()
	size := len(prog)
	if size <= 0 || size > math.MaxUint16 {
		return fmt.Errorf("a filter of %d instructions for the tracer", size)
	}
	fprog := unix.SockFprog{Len: uint16(size), Filter: &prog[0]}
	if _, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&fprog))); e != 0 {
		return fmt.Errorf("installing the tracer's filter: %w", e)
	}
	return nil
}
