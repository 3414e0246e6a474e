// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

// Command nosocket runs a program that is killed at its first system call which
// has to do with the network: nosocket PROGRAM ARG… With "probe NAME" as the
// program it does one such call itself, to show that the filter has teeth.
package main

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// denied is every call that makes or uses a socket, and io_uring, which could do
// both without a call of its own.
var denied = []uint32{
	unix.SYS_SOCKET, unix.SYS_SOCKETPAIR, unix.SYS_CONNECT, unix.SYS_BIND, unix.SYS_LISTEN, unix.SYS_ACCEPT4, unix.SYS_ACCEPT,
	unix.SYS_SENDTO, unix.SYS_SENDMSG, unix.SYS_SENDMMSG, unix.SYS_RECVFROM, unix.SYS_RECVMSG, unix.SYS_IO_URING_SETUP,
}

func main() {
	if len(os.Args) >= 3 && os.Args[1] == "probe" { // without a filter
		probe(os.Args[2])
		return
	}
	runtime.LockOSThread() // the filter is this thread's, and exec goes on from it
	if err := install(); err != nil {
		panic(fmt.Errorf("installing the filter: %w", err))
	}
	program, args := os.Args[1], os.Args[1:]
	if program == "filtered" {
		program, args = "/proc/self/exe", append([]string{os.Args[0], "probe"}, os.Args[2:]...)
	}
	panic(fmt.Errorf("executing %s: %w", program, unix.Exec(program, args, os.Environ())))
}

func install() error {
	arch := uint32(unix.AUDIT_ARCH_X86_64)
	if runtime.GOARCH == "arm64" {
		arch = unix.AUDIT_ARCH_AARCH64
	}
	const load, jeq, jge, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	kill := unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_KILL_PROCESS}
	program := []unix.SockFilter{
		{Code: load, K: 4}, {Code: jeq, K: arch, Jt: 1}, kill, // another architecture counts its calls otherwise
		{Code: load, K: 0}, {Code: jge, K: 0x40000000, Jf: 1}, kill, // x32
	}
	for _, nr := range denied {
		program = append(program, unix.SockFilter{Code: jeq, K: nr, Jf: 1}, kill)
	}
	program = append(program, unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW})
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
}

// probe does one thing and says how it ended, if it is still there to say so.
func probe(name string) {
	var err error
	switch name {
	case "nothing":
	case "devices":
		var b []byte
		b, err = os.ReadFile("/proc/self/net/dev")
		os.Stdout.Write(b)
	case "inet":
		_, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	case "unix":
		_, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	case "pair":
		_, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	case "connect": // of a descriptor that somebody else may have opened
		unix.Connect(0, &unix.SockaddrUnix{Name: "/nowhere"})
	case "send":
		unix.Sendto(0, []byte("x"), 0, &unix.SockaddrUnix{Name: "/nowhere"})
	case "uring":
		unix.Syscall(unix.SYS_IO_URING_SETUP, 1, 0, 0)
	default:
		err = fmt.Errorf("there is no probe %q", name)
	}
	if err != nil {
		panic(fmt.Errorf("%s: %w", name, err))
	}
	fmt.Println("ended:", name)
}
