// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"slices"

	"golang.org/x/sys/unix"
)

// operation is what a stopped system call does.
type operation uint8

const (
	opNone operation = iota
	opOpen
	opOpenHow // openat2: flags are in memory
	opMake
	opRename
	opLink
	opRemove
	opTruncate
	opPut     // puts an open file under another number
	opReceive // may put received files under numbers; flags: several messages
)

// call says where a system call has its operands: the number of an argument, or
// none.
type call struct {
	op       operation
	dir, at  int8 // of the first path
	dir2, to int8 // of the second path
	flags    int8 // of an open
	implied  int  // flags that the call has anyway
}

const none int8 = -1

// calls are the system calls that the ptrace engine is stopped at, by number.
func calls() map[uint32]call {
	out := map[uint32]call{
		unix.SYS_OPENAT:    {op: opOpen, dir: 0, at: 1, flags: 2},
		unix.SYS_OPENAT2:   {op: opOpenHow, dir: 0, at: 1, flags: 2},
		unix.SYS_RENAMEAT2: {op: opRename, dir: 0, at: 1, dir2: 2, to: 3},
		unix.SYS_LINKAT:    {op: opLink, dir: 0, at: 1, dir2: 2, to: 3},
		unix.SYS_UNLINKAT:  {op: opRemove, dir: 0, at: 1},
		unix.SYS_SYMLINKAT: {op: opMake, dir: 1, at: 2},
		unix.SYS_MKDIRAT:   {op: opMake, dir: 0, at: 1},
		unix.SYS_MKNODAT:   {op: opMake, dir: 0, at: 1},
		unix.SYS_TRUNCATE:  {op: opTruncate, dir: none, at: 0},
		unix.SYS_DUP:       {op: opPut},
		unix.SYS_DUP3:      {op: opPut},
		unix.SYS_FCNTL:     {op: opPut},
		unix.SYS_RECVMSG:   {op: opReceive, flags: none},
		unix.SYS_RECVMMSG:  {op: opReceive},
	}
	archCalls(out)
	return out
}

// Traced are the system calls that a sandbox's filter must answer with
// SECCOMP_RET_TRACE for the ptrace engine, in order.
func Traced() []uint32 {
	var out []uint32
	for nr := range calls() {
		out = append(out, nr)
	}
	slices.Sort(out)
	return out
}

// Openers are those of the traced calls that open a file with flags in one of
// their arguments, and which one that is.
func Openers() map[uint32]int {
	out := map[uint32]int{}
	for nr, c := range calls() {
		if c.op == opOpen && c.flags != none {
			out[nr] = int(c.flags)
		}
	}
	return out
}
