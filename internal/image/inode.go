// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"io/fs"
	"os"
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

// chownLike gives a file the owner of another, where we may.
func chownLike(root *os.Root, name string, st fs.FileInfo) error {
	s, ok := st.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 {
		return nil
	}
	return root.Lchown(name, int(s.Uid), int(s.Gid))
}
