// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import "golang.org/x/sys/unix"

// archCalls adds the older calls of this architecture.
func archCalls(out map[uint32]call) {
	out[unix.SYS_OPEN] = call{op: opOpen, dir: none, at: 0, flags: 1}
	out[unix.SYS_CREAT] = call{op: opOpen, dir: none, at: 0, flags: none, implied: unix.O_CREAT | unix.O_WRONLY | unix.O_TRUNC}
	out[unix.SYS_RENAME] = call{op: opRename, dir: none, at: 0, dir2: none, to: 1}
	out[unix.SYS_RENAMEAT] = call{op: opRename, dir: 0, at: 1, dir2: 2, to: 3}
	out[unix.SYS_LINK] = call{op: opLink, dir: none, at: 0, dir2: none, to: 1}
	out[unix.SYS_UNLINK] = call{op: opRemove, dir: none, at: 0}
	out[unix.SYS_RMDIR] = call{op: opRemove, dir: none, at: 0}
	out[unix.SYS_SYMLINK] = call{op: opMake, dir: none, at: 1}
	out[unix.SYS_MKDIR] = call{op: opMake, dir: none, at: 0}
	out[unix.SYS_DUP2] = call{op: opPut}
	out[unix.SYS_MKNOD] = call{op: opMake, dir: none, at: 0}
}
