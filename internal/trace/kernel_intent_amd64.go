// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import "golang.org/x/sys/unix"

// openCalls are the calls that open files, with the place of the flags among the
// arguments: 0 in memory, negative none.
func openCalls() map[int]int {
	return map[int]int{unix.SYS_OPENAT: 3, unix.SYS_OPEN: 2, unix.SYS_CREAT: -1, unix.SYS_OPENAT2: 0}
}
