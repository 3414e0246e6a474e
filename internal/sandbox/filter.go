// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"golang.org/x/sys/unix"
)

// The filter answers by system call number. Other architectures and the x32 ABI
// kill the caller; what is not listed is allowed, since builds use most of the
// kernel's ordinary surface, and what is listed is the part that reaches beyond
// a process: name spaces, mounts, tracing, keys, modules, clocks, io_uring.

// refused end with EPERM.
func refused() []uint32 {
	return []uint32{
		unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE,
		unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
		unix.SYS_SETNS, unix.SYS_UNSHARE, unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV,
		unix.SYS_PIDFD_GETFD, unix.SYS_KCMP, unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
		unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_NAME_TO_HANDLE_AT,
		unix.SYS_FANOTIFY_INIT, unix.SYS_FANOTIFY_MARK, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_REBOOT,
		unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_SWAPON, unix.SYS_SWAPOFF,
		unix.SYS_SYSLOG, unix.SYS_ACCT, unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD,
		unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME, unix.SYS_ADJTIMEX, unix.SYS_SETDOMAINNAME, unix.SYS_SETHOSTNAME,
		unix.SYS_VHANGUP, unix.SYS_LOOKUP_DCOOKIE, unix.SYS_MOVE_PAGES, unix.SYS_MIGRATE_PAGES, unix.SYS_SECCOMP,
	}
}

// missing end with ENOSYS, so that libraries fall back to what is watched:
// io_uring could connect unseen, clone3 hides its flags from a filter.
func missing() []uint32 {
	return []uint32{unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER, unix.SYS_CLONE3}
}

// watched are reported to the outside, which refuses what is no loopback.
func watched() []uint32 {
	return []uint32{unix.SYS_CONNECT, unix.SYS_SENDMSG, unix.SYS_SENDMMSG}
}

const namespaceFlags = unix.CLONE_NEWNS | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWTIME

// offsets in struct seccomp_data
const (
	offNR   = 0
	offArch = 4
	offArgs = 16
)

// filter assembles the program. Jumps are short: each test stands alone and
// falls through to the next.
func filter() []unix.SockFilter {
	stmt := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	jump := func(code uint16, k uint32, jt, jf uint8) unix.SockFilter {
		return unix.SockFilter{Code: code, K: k, Jt: jt, Jf: jf}
	}
	const (
		load = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jeq  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		jge  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		jset = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		ret  = unix.BPF_RET | unix.BPF_K
	)
	eperm := uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.EPERM)
	enosys := uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.ENOSYS)
	p := []unix.SockFilter{
		stmt(load, offArch), jump(jeq, auditArch, 1, 0), stmt(ret, unix.SECCOMP_RET_KILL_PROCESS),
		stmt(load, offNR),
	}
	if x32Bit != 0 {
		p = append(p, jump(jge, x32Bit, 0, 1), stmt(ret, unix.SECCOMP_RET_KILL_PROCESS))
	}
	for _, nr := range append(refused(), archRefused()...) {
		p = append(p, jump(jeq, nr, 0, 1), stmt(ret, eperm))
	}
	for _, nr := range missing() {
		p = append(p, jump(jeq, nr, 0, 1), stmt(ret, enosys))
	}
	for _, nr := range watched() {
		p = append(p, jump(jeq, nr, 0, 1), stmt(ret, unix.SECCOMP_RET_USER_NOTIF))
	}
	// sendto is watched only with an address, its fifth argument.
	p = append(p,
		jump(jeq, unix.SYS_SENDTO, 0, 5),
		stmt(load, offArgs+4*8), jump(jeq, 0, 0, 2),
		stmt(load, offArgs+4*8+4), jump(jeq, 0, 1, 0),
		stmt(ret, unix.SECCOMP_RET_USER_NOTIF),
		stmt(load, offNR),
	)
	// clone may start threads and processes, not name spaces.
	p = append(p,
		jump(jeq, unix.SYS_CLONE, 0, 4),
		stmt(load, offArgs), jump(jset, namespaceFlags, 0, 1), stmt(ret, eperm),
		stmt(load, offNR),
	)
	// Terminals are not fed with input (TIOCSTI), and sockets are of the kinds
	// that the watcher understands.
	p = append(p,
		jump(jeq, unix.SYS_IOCTL, 0, 4),
		stmt(load, offArgs+8), jump(jeq, unix.TIOCSTI, 0, 1), stmt(ret, eperm),
		stmt(load, offNR),
		jump(jeq, unix.SYS_SOCKET, 0, 8),
		stmt(load, offArgs),
		jump(jeq, unix.AF_UNIX, 5, 0), jump(jeq, unix.AF_INET, 4, 0), jump(jeq, unix.AF_INET6, 3, 0), jump(jeq, unix.AF_NETLINK, 2, 0),
		stmt(ret, uint32(unix.SECCOMP_RET_ERRNO)|uint32(unix.EAFNOSUPPORT)), stmt(ret, eperm),
		stmt(load, offNR),
	)
	return append(p, stmt(ret, unix.SECCOMP_RET_ALLOW))
}
