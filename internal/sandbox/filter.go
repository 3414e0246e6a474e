// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"golang.org/x/sys/unix"
)

// The filter answers by system call number. Other architectures and the x32 ABI
// kill the caller. What is on no list does not exist inside (ENOSYS), so that a
// call which a later kernel adds is closed before we know of it, and libraries
// fall back to an older one; what a program may know to be forbidden says so
// (EPERM).

// refused end with EPERM.
func refused() []uint32 {
	return append([]uint32{
		unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE,
		unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
		unix.SYS_SETNS, unix.SYS_UNSHARE, unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV,
		unix.SYS_PIDFD_GETFD, unix.SYS_KCMP, unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
		unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_NAME_TO_HANDLE_AT,
		unix.SYS_FANOTIFY_INIT, unix.SYS_FANOTIFY_MARK, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_REBOOT,
		unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_SWAPON, unix.SYS_SWAPOFF,
		unix.SYS_SYSLOG, unix.SYS_ACCT, unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD,
		unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME, unix.SYS_ADJTIMEX, unix.SYS_SETDOMAINNAME, unix.SYS_SETHOSTNAME,
		unix.SYS_VHANGUP, unix.SYS_LOOKUP_DCOOKIE, unix.SYS_MBIND, unix.SYS_SET_MEMPOLICY, unix.SYS_MOVE_PAGES, unix.SYS_MIGRATE_PAGES, unix.SYS_SECCOMP,
	}, archRefused()...)
}

// watched are reported to the outside, which refuses what is no loopback.
func watched() []uint32 {
	return []uint32{unix.SYS_CONNECT, unix.SYS_SENDMSG, unix.SYS_SENDMMSG}
}

// cloneRefused are flags that start a process in other name spaces, or hide it
// from whoever traces its parent.
const cloneRefused = unix.CLONE_NEWNS | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWTIME |
	unix.CLONE_UNTRACED | unix.CLONE_PTRACE

// offsets in struct seccomp_data
const (
	offNR   = 0
	offArch = 4
	offArgs = 16
)

// low and high are the offsets of the halves of argument i; both architectures
// are little endian.
func low(i uint32) uint32  { return offArgs + 8*i }
func high(i uint32) uint32 { return offArgs + 8*i + 4 }

// The instructions that the filter is made of.
const (
	opLoad = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	opEq   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	opGe   = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	opSet  = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	opAnd  = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	opRet  = unix.BPF_RET | unix.BPF_K

	allow  = unix.SECCOMP_RET_ALLOW
	notify = unix.SECCOMP_RET_USER_NOTIF
	kill   = unix.SECCOMP_RET_KILL_PROCESS
	eperm  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	enosys = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	nofam  = unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)
	noprot = unix.SECCOMP_RET_ERRNO | uint32(unix.EPROTONOSUPPORT)
)

type program []unix.SockFilter

func (p *program) do(code uint16, k uint32) { *p = append(*p, unix.SockFilter{Code: code, K: k}) }

// when answers if the loaded word passes the test, else goes on.
func (p *program) when(op uint16, k, answer uint32) {
	*p = append(*p, unix.SockFilter{Code: op, K: k, Jf: 1}, unix.SockFilter{Code: opRet, K: answer})
}

// unless answers if the loaded word does not pass the test, else goes on.
func (p *program) unless(op uint16, k, answer uint32) {
	*p = append(*p, unix.SockFilter{Code: op, K: k, Jt: 1}, unix.SockFilter{Code: opRet, K: answer})
}

// call says what happens to call nr; the number is loaded before and has to be
// loaded again only where judge goes on.
func (p *program) call(nr uint32, judge func(*program)) {
	var body program
	judge(&body)
	body.do(opRet, eperm)                                                     // a judgement that comes to no answer refuses
	*p = append(*p, unix.SockFilter{Code: opEq, K: nr, Jf: uint8(len(body))}) // bodies are short: tested
	*p = append(*p, body...)
}

// filter assembles the program. memfd says that the kernel makes no file in
// memory executable here, whatever the caller asks for.
func filter(memfd bool) []unix.SockFilter {
	p := &program{}
	p.do(opLoad, offArch)
	p.unless(opEq, auditArch, kill)
	p.do(opLoad, offNR)
	if x32Bit != 0 {
		p.when(opGe, x32Bit, kill)
	}
	for _, nr := range allowed() {
		p.when(opEq, nr, allow)
	}
	for _, nr := range watched() {
		p.when(opEq, nr, notify)
	}
	for _, nr := range refused() {
		p.when(opEq, nr, eperm)
	}
	p.call(unix.SYS_SENDTO, judgeSendto)
	p.call(unix.SYS_CLONE, func(b *program) {
		b.do(opLoad, low(0))
		b.when(opSet, cloneRefused, eperm)
		b.do(opRet, allow)
	})
	p.call(unix.SYS_IOCTL, func(b *program) {
		b.do(opLoad, low(1))
		for _, k := range ioctlRefused() {
			b.when(opEq, k, eperm)
		}
		b.do(opRet, allow)
	})
	p.call(unix.SYS_SOCKET, judgeSocket)
	p.call(unix.SYS_SOCKETPAIR, func(b *program) {
		b.do(opLoad, low(0))
		b.when(opEq, unix.AF_UNIX, allow)
		b.do(opRet, nofam)
	})
	p.call(unix.SYS_PRCTL, func(b *program) {
		b.do(opLoad, low(0))
		for _, k := range prctlAllowed() {
			b.when(opEq, k, allow)
		}
	})
	p.call(unix.SYS_PERSONALITY, func(b *program) {
		b.do(opLoad, low(0))
		for _, k := range personalities() {
			b.when(opEq, k, allow)
		}
	})
	p.call(unix.SYS_PRLIMIT64, judgePrlimit)
	p.call(unix.SYS_MEMFD_CREATE, func(b *program) {
		if memfd {
			b.do(opRet, allow)
		}
		b.do(opLoad, low(1))
		b.when(opSet, unix.MFD_NOEXEC_SEAL, allow)
		b.do(opRet, enosys)
	})
	for nr, mode := range nodeCalls() {
		p.call(nr, func(b *program) {
			b.do(opLoad, low(mode))
			b.do(opAnd, unix.S_IFMT)
			b.when(opEq, unix.S_IFCHR, eperm)
			b.when(opEq, unix.S_IFBLK, eperm)
			b.do(opRet, allow)
		})
	}
	p.do(opRet, enosys)
	return *p
}

// judgeSendto watches what names an address, the fifth argument; else the
// message goes where its socket was connected to.
func judgeSendto(b *program) {
	b.do(opLoad, low(4))
	b.unless(opEq, 0, notify)
	b.do(opLoad, high(4))
	b.unless(opEq, 0, notify)
	b.do(opRet, allow)
}

// judgeSocket lets in the kinds of sockets that the watcher understands: local
// ones, TCP and UDP, and questions about the own interfaces. What asks for
// multipath TCP gets TCP on its second try.
func judgeSocket(b *program) {
	b.do(opLoad, low(0))
	b.when(opEq, unix.AF_UNIX, allow)
	*b = append(*b,
		unix.SockFilter{Code: opEq, K: unix.AF_NETLINK, Jf: 4},
		unix.SockFilter{Code: opLoad, K: low(2)},
		unix.SockFilter{Code: opEq, K: unix.NETLINK_ROUTE, Jt: 0, Jf: 1},
		unix.SockFilter{Code: opRet, K: allow},
		unix.SockFilter{Code: opRet, K: eperm},
		unix.SockFilter{Code: opEq, K: unix.AF_INET, Jt: 2},
		unix.SockFilter{Code: opEq, K: unix.AF_INET6, Jt: 1},
		unix.SockFilter{Code: opRet, K: nofam},
	)
	b.do(opLoad, low(1))
	b.do(opAnd, 0xf) // the type without its flags
	b.when(opEq, unix.SOCK_RAW, eperm)
	b.do(opLoad, low(2))
	b.when(opEq, 0, allow)
	b.when(opEq, unix.IPPROTO_TCP, allow)
	b.when(opEq, unix.IPPROTO_UDP, allow)
	b.do(opRet, noprot)
}

// judgePrlimit lets a process change its own limits, which without a capability
// means to lower them, and read those of others.
func judgePrlimit(b *program) {
	b.do(opLoad, low(0))
	b.when(opEq, 0, allow)
	b.do(opLoad, low(2))
	b.unless(opEq, 0, eperm)
	b.do(opLoad, high(2))
	b.unless(opEq, 0, eperm)
	b.do(opRet, allow)
}
