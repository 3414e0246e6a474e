// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark/internal/build"
)

// named records a call that changed names. The names are read from the memory of
// the process when the call is done.
func (t *tracer) named(th *thread, c call) {
	from, err := t.operand(th, c.dir, c.at)
	if err != nil {
		t.lost(th, "a name that it changed: %v", err)
		return
	}
	to := ""
	if c.op == opRename || c.op == opLink {
		if to, err = t.operand(th, c.dir2, c.to); err != nil {
			t.lost(th, "a name that it changed: %v", err)
			return
		}
	}
	switch c.op {
	case opMake:
		t.rec.named(build.EventMake, th.proc.pid, from, "")
	case opRename:
		t.rec.named(build.EventRename, th.proc.pid, from, to)
	case opLink:
		t.rec.named(build.EventLink, th.proc.pid, from, to)
	case opRemove:
		t.rec.named(build.EventRemove, th.proc.pid, from, "")
	case opTruncate:
		if err := t.truncated(th, from); err != nil {
			t.lost(th, "%s, which it cut: %v", from, err)
		}
	}
}

// operand is the name that a call was given, made absolute: the directory as the
// kernel knows it, and the last part as it was said.
func (t *tracer) operand(th *thread, dir, at int8) (string, error) {
	name, err := t.said(th, dir, at)
	if err != nil {
		return "", err
	}
	parent, last := path.Split(strings.TrimRight(name, "/"))
	if last == "" || last == "." || last == ".." {
		return name, nil
	}
	h, err := unix.Openat2(t.root, parent, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return path.Clean(name), nil // the directory has gone since: the words remain
	}
	defer unix.Close(h)
	real, err := os.Readlink(ownPath(h))
	if err != nil {
		return "", fmt.Errorf("naming %s: %w", parent, err)
	}
	return path.Join(real, last), nil
}

// said is the name that a call was given, absolute but not yet followed.
func (t *tracer) said(th *thread, dir, at int8) (string, error) {
	name, ok := readString(th.tid, th.args[at])
	if !ok {
		return "", fmt.Errorf("there is none at %#x", th.args[at])
	}
	if strings.HasPrefix(name, "/") {
		return name, nil
	}
	from := procPath(t.path, th.tid, "cwd")
	if dir != none && int32(th.args[dir]) != unix.AT_FDCWD {
		from = fdPath(t.path, th.tid, int(int32(th.args[dir])))
	}
	t.path = from
	base, e := readlink(from, t.link)
	if e != 0 {
		return "", fmt.Errorf("finding the directory of %s: %w", name, e)
	}
	if name == "" {
		return base, nil // by descriptor (AT_EMPTY_PATH)
	}
	return base + "/" + name, nil
}

// absent reports whether the name that an open is about to look for does not
// exist. It is a label only: what was opened is looked at when it is open.
func (t *tracer) absent(name string) bool {
	if name == "" {
		return false
	}
	h, err := unix.Openat2(t.root, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return err == unix.ENOENT
	}
	unix.Close(h)
	return false
}

// truncated records a file that was cut by its name, without being opened.
func (t *tracer) truncated(th *thread, name string) error {
	h, err := unix.Openat2(t.root, name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(h), name)
	defer f.Close()
	d, id, err := t.digest(f, name)
	if err != nil {
		return err
	}
	t.digests.drop(id)
	t.rec.wrote(th.proc.pid, name, id, d)
	return nil
}
