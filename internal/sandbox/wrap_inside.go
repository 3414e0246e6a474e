// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark/internal/trace"
)

// WrapAlias is the name under which the binary is the first process of a wrapped
// command.
const WrapAlias = "hallmark-wrap"

// prSetPtracer is PR_SET_PTRACER of Yama, and any is its PR_SET_PTRACER_ANY.
const prSetPtracer = 0x59616d61

// WrapMain is the first process of a wrapped command. It puts itself in the sight
// of a tracer, waits until there is one, starts the command and outlives all that
// comes of it. It returns its exit code.
func WrapMain() int {
	runtime.LockOSThread() // its filter and its tracer are those of what it starts
	// The tracer attaches to the first thread of the process, and the runtime may
	// have put us on another one. A program that starts anew begins on the first.
	if unix.Gettid() != os.Getpid() {
		err := unix.Exec("/proc/self/exe", os.Args, os.Environ())
		fmt.Fprintln(os.Stderr, "starting again on the first thread:", err)
		return 1
	}
	trace.CollectGarbage()
	say := json.NewEncoder(os.NewFile(fdWrapNotes, "notes"))
	orders := bufio.NewReader(os.NewFile(fdOrder, "orders"))
	// Signals of a terminal reach the command too; we only watch how it ends.
	// They are caught, not ignored: the command would inherit that.
	signal.Notify(make(chan os.Signal, 1), unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	cmd, ready, err := prepareWrapped(orders)
	if err != nil {
		say.Encode(note{Error: err.Error()})
		return 1
	}
	if err := say.Encode(ready); err != nil {
		return 1
	}
	if _, err := orders.ReadByte(); err != nil {
		return 1
	}
	if err := closeToOthers(); err != nil {
		say.Encode(note{Error: err.Error()})
		return 1
	}
	if err := cmd.Start(); err != nil {
		say.Encode(note{Error: fmt.Sprintf("starting %s: %v", cmd.Path, err)})
		return 1
	}
	go passOn(orders, cmd.Process.Pid)
	say.Encode(reapAll(cmd.Process.Pid))
	return 0
}

func prepareWrapped(orders *bufio.Reader) (*exec.Cmd, note, error) {
	if err := unix.CloseRange(fdOrder, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, note{}, fmt.Errorf("keeping descriptors from the command: %w", err)
	}
	line, err := orders.ReadBytes('\n')
	if err != nil {
		return nil, note{}, fmt.Errorf("reading what to run: %w", err)
	}
	var o order
	if err := json.Unmarshal(line, &o); err != nil {
		return nil, note{}, fmt.Errorf("reading what to run: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, note{}, fmt.Errorf("becoming the parent of orphans: %w", err)
	}
	// Where Yama lets only an ancestor trace: the agent is none. Where there is no
	// Yama the call fails, and anyone of our user may trace anyway.
	unix.Prctl(prSetPtracer, ^uintptr(0), 0, 0, 0)
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil, note{}, fmt.Errorf("forbidding new privileges: %w", err)
	}
	cmd := &exec.Cmd{Path: o.Path, Args: toStrings(o.Argv), Env: toStrings(o.Env), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if cmd.Env == nil {
		cmd.Env = []string{}
	}
	gauge, err := newGauge()
	if err != nil {
		return nil, note{}, err
	}
	ready := note{Ready: true}
	if err := installTraced(); err != nil {
		return nil, note{}, err
	}
	if ready.Listener, err = installListener(wrapFilter()); err != nil {
		return nil, note{}, err
	}
	ready.Facts, err = gauge.measure()
	return cmd, ready, err
}

// closeToOthers ends what lets a tracer in: there is one now, and the command,
// which has our user, must not write our notes.
func closeToOthers() error {
	unix.Prctl(prSetPtracer, 0, 0, 0, 0)
	return HideMemory()
}

// passOn sends the command the signals that our parent was sent. When the parent
// is gone everything ends: nobody would record it.
func passOn(orders io.ByteReader, program int) {
	for {
		sig, err := orders.ReadByte()
		if err != nil {
			break
		}
		unix.Kill(program, syscall.Signal(sig))
	}
	for {
		killChildren() // again, for what their death leaves to us
		runtime.Gosched()
	}
}

// reapAll waits for the program and then ends what it left behind, which is ours
// when its parent is gone.
func reapAll(program int) note {
	last := note{Exited: true, Code: 1}
	ended := false
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return last // none is left
		case pid == program && ws.Signaled():
			last, ended = note{Exited: true, Signal: int(ws.Signal())}, true
		case pid == program:
			last, ended = note{Exited: true, Code: ws.ExitStatus()}, true
		}
		if ended {
			killChildren()
		}
	}
}

// killChildren kills every process whose parent we are.
func killChildren() {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return
	}
	for _, p := range stats {
		b, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		// pid (name) state ppid …, where the name may hold anything
		fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
		if len(fields) < 2 || string(fields[1]) != strconv.Itoa(os.Getpid()) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p))); err == nil {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
}
