// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// became records that a process is another program now. All its other threads
// are gone, and the one that did it, leader or not, has the number of the process.
func (t *tracer) became(th *thread) {
	p := th.proc
	if former, e := ptraceMessage(th.tid); e == 0 && former != th.tid {
		delete(t.threads, former)
	}
	p.threads, p.busy, p.waiting, p.loose = 1, nil, nil, nil
	th.call = call{}
	if p.ours {
		if p.pid == t.subject.PID {
			return
		}
		p.ours, t.seen = false, true
		t.rec.fork(0, p.pid)
	}
	t.drain()
	if err := t.program(th); err != nil {
		t.lost(th, "the program that it became: %v", err)
	}
}

// program records the program of a process that is about to run its first
// instruction, with what the kernel opened for it unasked: the loader that the
// program names, and the script that named the program.
func (t *tracer) program(th *thread) error {
	t.path = procPath(t.path, th.tid, "exe")
	label, e := readlink(t.path, t.link)
	if e != 0 {
		return e
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/exe", th.tid))
	if err != nil {
		return err
	}
	defer f.Close()
	id, err := identityOf(f)
	if err != nil {
		return err
	}
	d, id, err := t.content(f, label, id)
	if err != nil {
		return err
	}
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", th.tid))
	if err != nil {
		return fmt.Errorf("reading its arguments: %w", err)
	}
	base, name, err := auxiliary(th.tid)
	if err != nil {
		return err
	}
	asked, err := t.askedFor(th, name, id)
	if err != nil {
		return fmt.Errorf("its script: %w", err)
	}
	t.rec.exec(th.proc.pid, label, d, strings.Split(strings.TrimSuffix(string(args), "\x00"), "\x00"), asked)
	t.rec.opened(th.proc.pid, label, id, d)
	if base != 0 {
		if err := t.loader(th, base); err != nil {
			return fmt.Errorf("its loader: %w", err)
		}
	}
	return nil
}

// auxiliary reads where the kernel put the loader (0: there is none) and the name
// by which the program was asked for.
func auxiliary(tid int) (base uint64, name string, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/auxv", tid))
	if err != nil {
		return 0, "", fmt.Errorf("reading its auxiliary vector: %w", err)
	}
	const atBase, atExecFn = 7, 31
	for ; len(b) >= 16; b = b[16:] {
		v := binary.NativeEndian.Uint64(b[8:])
		switch binary.NativeEndian.Uint64(b) {
		case atBase:
			base = v
		case atExecFn:
			var ok bool
			if name, ok = readString(tid, v); !ok {
				return 0, "", errors.New("reading the name that it was started by")
			}
		}
	}
	return base, name, nil
}

// loader records the program interpreter, which the kernel mapped at base.
func (t *tracer) loader(th *thread, base uint64) error {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", th.tid))
	if err != nil {
		return err
	}
	start := strconv.AppendUint(nil, base, 16)
	for l := range bytes.Lines(maps) {
		// start-end perms offset dev inode path
		if !bytes.HasPrefix(l, start) || l[len(start)] != '-' {
			continue
		}
		fields := bytes.SplitN(bytes.TrimSuffix(l, []byte("\n")), []byte(" "), 6)
		if len(fields) < 6 {
			return errors.New("it is no file")
		}
		ino, err := strconv.ParseUint(string(fields[4]), 10, 64)
		if err != nil {
			return err
		}
		return t.hidden(th, unescape(string(bytes.TrimLeft(fields[5], " "))), func(id identity) bool { return id.ino == ino })
	}
	return errors.New("it is mapped nowhere")
}

// unescape takes the quoting of newlines in /proc/PID/maps away.
func unescape(s string) string { return strings.ReplaceAll(s, `\012`, "\n") }

// askedFor records the script whose first line named the program, if it is
// another file than what runs. The kernel opened it before the program.
func (t *tracer) askedFor(th *thread, name string, program identity) (script bool, err error) {
	if strings.HasPrefix(name, "/dev/fd/") {
		return false, nil // by descriptor: it was opened, and recorded, before
	}
	if name == "/proc/self/exe" || name == "/proc/thread-self/exe" {
		// What it was before, which the kernel ran and which is therefore no script: it
		// still is that. By this name we would ask for our own.
		return false, nil
	}
	if !strings.HasPrefix(name, "/") {
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", th.tid))
		if err != nil {
			return false, err
		}
		name = cwd + "/" + name
	}
	err = t.hidden(th, name, func(id identity) bool { script = id.node() != program.node(); return true })
	return script, err
}

// hidden records a file that the kernel itself opened for a program, found again
// by its name in the sandbox. right says whether it is that file.
func (t *tracer) hidden(th *thread, name string, right func(identity) bool) error {
	h, err := unix.Openat2(t.root, name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return fmt.Errorf("opening %s: %w", name, err)
	}
	f := os.NewFile(uintptr(h), name)
	defer f.Close()
	id, err := identityOf(f)
	if err != nil {
		return err
	}
	if !right(id) {
		return fmt.Errorf("%s is another file by now", name)
	}
	if t.rec.knows(th.proc.pid, id) {
		return nil
	}
	t.path = append(append(t.path[:0], ownPath(h)...), 0)
	label, e := readlink(t.path, t.link)
	if e != 0 {
		return e
	}
	d, id, err := t.content(f, label, id)
	if err != nil {
		return err
	}
	t.rec.opened(th.proc.pid, label, id, d)
	return nil
}
