// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// A layer is a directory that reads from one place and writes to another, beside
// the workspace.

func (f *furniture) grabLayer(i int, l Workspace) {
	f.grab("layer"+strconv.Itoa(i), l.Lower)
	f.grab("layer-scratch"+strconv.Itoa(i), l.Scratch)
}

func (f *furniture) layer(i int, l Workspace) {
	n := strconv.Itoa(i)
	if f.place("layer"+n, l.Target) {
		return
	}
	lower, scratch := "/.hallmark/layer"+n, "/.hallmark/layer-scratch"+n
	f.put("layer"+n, lower, false)
	f.put("layer-scratch"+n, scratch, true)
	if f.err != nil {
		return
	}
	f.do("making "+l.Target, os.MkdirAll(newRoot+l.Target, 0o755))
	opts := "userxattr,lowerdir=" + newRoot + lower + ",upperdir=" + newRoot + scratch + "/upper,workdir=" + newRoot + scratch + "/work"
	f.do("mounting "+l.Target, unix.Mount("overlay", newRoot+l.Target, "overlay", unix.MS_NOSUID|unix.MS_NODEV, opts))
	f.do("covering its scratch directory", unix.Mount("tmpfs", newRoot+scratch, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_RDONLY, "mode=0000,size=4k"))
}
