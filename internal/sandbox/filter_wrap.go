// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import "golang.org/x/sys/unix"

// unseen end with EPERM in a wrapped command: they open a file, or take one from
// another process, without a call that the tracer is stopped at.
func unseen() []uint32 {
	return []uint32{unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_PIDFD_GETFD}
}

// untold end with ENOSYS, so that libraries fall back to what is seen: io_uring
// could open and connect by itself, and clone3 hides its flags from a filter.
func untold() []uint32 {
	return []uint32{unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER, unix.SYS_CLONE3}
}

// wrapFilter keeps a wrapped command in sight and forbids it nothing else: what
// would hide from the tracer fails, connections are told of, and calls of another
// architecture, which have other numbers, kill the caller.
//
// A program's own filter can't answer a traced call in the tracer's place: that
// takes a listener, and the kernel lets a process have one (EBUSY).
func wrapFilter() []unix.SockFilter {
	stmt := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	jump := func(code uint16, k uint32, jt, jf uint8) unix.SockFilter {
		return unix.SockFilter{Code: code, K: k, Jt: jt, Jf: jf}
	}
	const (
		load = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jeq  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		jge  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		ret  = unix.BPF_RET | unix.BPF_K
	)
	p := []unix.SockFilter{
		stmt(load, offArch), jump(jeq, auditArch, 1, 0), stmt(ret, unix.SECCOMP_RET_KILL_PROCESS),
		stmt(load, offNR),
	}
	if x32Bit != 0 {
		p = append(p, jump(jge, x32Bit, 0, 1), stmt(ret, unix.SECCOMP_RET_KILL_PROCESS))
	}
	for _, nr := range unseen() {
		p = append(p, jump(jeq, nr, 0, 1), stmt(ret, uint32(unix.SECCOMP_RET_ERRNO)|uint32(unix.EPERM)))
	}
	for _, nr := range untold() {
		p = append(p, jump(jeq, nr, 0, 1), stmt(ret, uint32(unix.SECCOMP_RET_ERRNO)|uint32(unix.ENOSYS)))
	}
	for _, nr := range watched() {
		p = append(p, jump(jeq, nr, 0, 1), stmt(ret, unix.SECCOMP_RET_USER_NOTIF))
	}
	// sendto is told of only with an address, its fifth argument.
	return append(p,
		jump(jeq, unix.SYS_SENDTO, 0, 4),
		stmt(load, offArgs+4*8), jump(jeq, 0, 0, 3),
		stmt(load, offArgs+4*8+4), jump(jeq, 0, 0, 1),
		stmt(ret, unix.SECCOMP_RET_ALLOW),
		stmt(ret, unix.SECCOMP_RET_USER_NOTIF),
	)
}
