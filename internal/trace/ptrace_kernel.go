// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"bytes"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of the tracer's loop. Those that can't block go past the scheduler:
// there are some hundred thousand of them in a build.

// syscallInfo is struct ptrace_syscall_info.
type syscallInfo struct {
	op   uint8
	_    [3]uint8
	arch uint32
	ip   uint64
	sp   uint64
	// Of an entry: the number and six arguments. Of an exit: the result.
	data    [7]uint64
	retData uint32
	_       uint32
}

const (
	infoExit    = 2
	infoSeccomp = 3
)

func ptraceInfo(tid int, out *syscallInfo) unix.Errno {
	_, _, e := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid), unsafe.Sizeof(*out), uintptr(unsafe.Pointer(out)), 0, 0)
	return e
}

func ptraceMessage(tid int) (int, unix.Errno) {
	var out uint64
	_, _, e := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_GETEVENTMSG, uintptr(tid), 0, uintptr(unsafe.Pointer(&out)), 0, 0)
	return int(out), e
}

func ptraceResume(how, tid int, signal unix.Signal) unix.Errno {
	_, _, e := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(how), uintptr(tid), 0, uintptr(signal), 0, 0)
	return e
}

// waitFor waits for any stop or end. The scheduler does not know that it blocks:
// see alone.
func waitFor(ws *unix.WaitStatus, flags uintptr) (int, error) {
	var status uint32
	for {
		tid, _, e := unix.RawSyscall6(unix.SYS_WAIT4, ^uintptr(0), uintptr(unsafe.Pointer(&status)), unix.WALL|flags, 0, 0, 0)
		switch e {
		case 0:
			*ws = unix.WaitStatus(status)
			return int(tid), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

func exists(pid int) bool {
	_, _, e := unix.RawSyscall(unix.SYS_KILL, uintptr(pid), 0, 0)
	return e != unix.ESRCH
}

// sameGroup reports whether a thread belongs to a process.
func sameGroup(pid, tid int) bool {
	_, _, e := unix.RawSyscall(unix.SYS_TGKILL, uintptr(pid), uintptr(tid), 0)
	return e == 0
}

// procPath is /proc/TID/name, ended by a zero for the kernel.
func procPath(buf []byte, tid int, name string) []byte {
	buf = append(buf[:0], "/proc/"...)
	buf = strconv.AppendInt(buf, int64(tid), 10)
	buf = append(buf, '/')
	buf = append(buf, name...)
	return append(buf, 0)
}

// fdPath is /proc/TID/fd/N, ended by a zero for the kernel.
func fdPath(buf []byte, tid, fd int) []byte {
	buf = procPath(buf, tid, "fd/")
	buf = strconv.AppendInt(buf[:len(buf)-1], int64(fd), 10)
	return append(buf, 0)
}

func stat(path []byte, st *unix.Stat_t) unix.Errno {
	_, _, e := unix.RawSyscall6(sysStatAt, atCWD, uintptr(unsafe.Pointer(&path[0])), uintptr(unsafe.Pointer(st)), 0, 0, 0)
	return e
}

const atCWD = ^uintptr(99) // AT_FDCWD

func openRaw(path []byte, flags int) (int, unix.Errno) {
	fd, _, e := unix.Syscall6(unix.SYS_OPENAT, atCWD, uintptr(unsafe.Pointer(&path[0])), uintptr(flags|unix.O_CLOEXEC), 0, 0, 0)
	return int(fd), e
}

func readlink(path, buf []byte) (string, unix.Errno) {
	n, _, e := unix.RawSyscall6(unix.SYS_READLINKAT, atCWD, uintptr(unsafe.Pointer(&path[0])), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, 0)
	if e != 0 {
		return "", e
	}
	return string(buf[:n]), 0
}

// readMemory reads up to len(buf) bytes of a stopped thread; fewer where its
// memory ends.
func readMemory(tid int, at uint64, buf []byte) int {
	local := unix.Iovec{Base: &buf[0]}
	local.SetLen(len(buf))
	remote := unix.RemoteIovec{Base: uintptr(at), Len: len(buf)}
	n, _, e := unix.RawSyscall6(unix.SYS_PROCESS_VM_READV, uintptr(tid), uintptr(unsafe.Pointer(&local)), 1, uintptr(unsafe.Pointer(&remote)), 1, 0)
	if e != 0 {
		return 0
	}
	return int(n)
}

// readString reads a string of at most PATH_MAX bytes, page by page.
func readString(tid int, at uint64) (string, bool) {
	const page = 4096
	var out []byte
	for len(out) < unix.PathMax {
		var buf [page]byte
		part := buf[:page-int(at%page)]
		n := readMemory(tid, at, part)
		if n == 0 {
			return "", false
		}
		if i := bytes.IndexByte(part[:n], 0); i >= 0 {
			return string(append(out, part[:i]...)), true
		}
		out, at = append(out, part[:n]...), at+uint64(n)
	}
	return "", false
}
