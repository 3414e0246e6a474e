// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import "golang.org/x/sys/unix"

// archCalls adds the older calls of this architecture.
func archCalls(out map[uint32]call) {
	out[unix.SYS_RENAMEAT] = call{op: opRename, dir: 0, at: 1, dir2: 2, to: 3}
}
