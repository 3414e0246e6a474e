// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"io/fs"
	"syscall"
)

// inode is one file of the disk, under whichever names.
type inode struct{ device, number uint64 }

func inodeOf(st fs.FileInfo) (inode, bool) {
	s, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return inode{}, false
	}
	return inode{device: uint64(s.Dev), number: s.Ino}, true
}
