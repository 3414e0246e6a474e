// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"os"

	"golang.org/x/sys/unix"
)

// Pick is the engine that will be used where e is asked for. A sandbox must know
// it before its filter is made: calls that the filter hands to a tracer fail when
// there is none. An engine that then can't attach starts nothing.
func Pick(e Engine) Engine {
	if e == Best {
		if KernelWorks() {
			return Kernel
		}
		return Ptrace
	}
	return e
}

// KernelWorks reports whether this machine lets us use fanotify permission
// events and BPF, and says how the kernel's types are laid out.
func KernelWorks() bool {
	// BPF numbers processes as the machine's first namespace does; in another one
	// nothing would fit together.
	const first = "pid:[4026531836]" // PROC_PID_INIT_INO
	if ns, err := os.Readlink("/proc/self/ns/pid"); err != nil || ns != first || os.Geteuid() != 0 {
		return false
	}
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return false
	}
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC|unix.FAN_UNLIMITED_QUEUE|unix.FAN_UNLIMITED_MARKS, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return bpfWorks()
}
