// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// intent says what a process that waits in an open wants with the file: the flags
// are in a register of its system call, which nobody else can change. Where it
// can't be told, it may want everything. The event is told a moment before the
// opener sleeps, and only then the register is shown.
func intent(pid int) access {
	const tries = 20
	for range tries {
		if a, asleep := intentNow(pid); asleep {
			return a
		}
		unix.Poll(nil, 1)
	}
	return access{reads: true, writes: true}
}

// intentNow is false if no thread is seen in an open, and one is not asleep.
func intentNow(pid int) (a access, asleep bool) {
	anything := access{reads: true, writes: true}
	dir := fmt.Sprintf("/proc/%d/task", pid)
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return anything, true
	}
	found, flags, awake := 0, 0, false
	for _, t := range tasks {
		b, err := os.ReadFile(dir + "/" + t.Name() + "/syscall")
		if err != nil {
			return anything, true
		}
		awake = awake || strings.HasPrefix(string(b), "running")
		if f, opens, known := openFlags(string(b)); opens && !known {
			return anything, true
		} else if opens {
			found, flags = found+1, f
		}
	}
	if found != 1 {
		return anything, found > 1 || !awake
	}
	mode := flags & unix.O_ACCMODE
	return access{reads: mode != unix.O_WRONLY && flags&unix.O_TRUNC == 0, writes: mode != unix.O_RDONLY || flags&unix.O_TRUNC != 0}, true
}

// openFlags reads a line of /proc/PID/syscall: the number and the arguments of
// the call that a thread waits in.
func openFlags(line string) (flags int, opens, known bool) {
	f := strings.Fields(line)
	if len(f) < 7 {
		return 0, false, true // "running", or not in a call
	}
	nr, err := strconv.Atoi(f[0])
	if err != nil {
		return 0, true, false
	}
	at, opens := openCalls()[nr]
	switch {
	case !opens:
		return 0, false, true
	case at == 0:
		return 0, true, false // the flags are in the caller's memory
	case at < 0:
		return unix.O_WRONLY | unix.O_CREAT | unix.O_TRUNC, true, true
	}
	v, err := strconv.ParseUint(f[at], 0, 64)
	return int(v), true, err == nil
}
