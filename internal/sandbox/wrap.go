// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/trace"
)

// WrapSpec is one command to run as it is: in this directory, with this network
// and this user. It is not isolated from anything, only recorded.
type WrapSpec struct {
	Path                  string // absolute, of the program
	Argv                  []string
	Env                   []string // complete
	Stdin, Stdout, Stderr *os.File // are the command's own
	Hidden                []trace.Hidden
	Log                   string // where the event log is written; no file may be there
}

// Wrap runs a command under the ptrace engine and waits for everything it
// started; what it leaves behind is killed, since it would go on unseen. An error
// means that the command did not run. A report whose trace is not whole means that
// it was killed, or may have done what nobody saw.
//
// A signal that asks us to end is passed on to the command, which decides.
func Wrap(ctx context.Context, clock func() time.Time, spec WrapSpec) (Report, error) {
	if clock == nil || len(spec.Argv) == 0 || spec.Log == "" {
		return Report{}, hallmark.Errorf(hallmark.KindInternal, "wrapping without a clock, a command or a log")
	}
	asked := make(chan os.Signal, 8)
	signal.Notify(asked, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(asked)
	w, err := startWrapped(spec)
	if err != nil {
		return Report{}, hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeSandboxUnavailable, "starting the command: %w", err)
	}
	defer w.cleanup()
	return w.serve(ctx, clock, asked)
}

// wrapped is the first process of a wrapped command as the parent holds it.
type wrapped struct {
	spec  WrapSpec
	cmd   *exec.Cmd
	tell  *os.File // the spec, then a byte to release it, then signals to pass on
	notes *os.File
}

// order is what the first process is told: bytes, since arguments and environment
// need not be UTF-8.
type order struct {
	Path      string
	Argv, Env [][]byte
}

// The descriptors of the first process of a wrapped command.
const (
	fdOrder     = 3 // reads order, a byte, then signal numbers; ends with the parent
	fdWrapNotes = 4 // writes notes
)

func startWrapped(spec WrapSpec) (*wrapped, error) {
	orderR, orderW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	notesR, notesW, err := os.Pipe()
	if err != nil {
		orderR.Close()
		orderW.Close()
		return nil, err
	}
	w := &wrapped{spec: spec, tell: orderW, notes: notesR, cmd: &exec.Cmd{
		// No environment of the caller's: what the command gets is not meant for us
		// (LD_PRELOAD).
		Path: "/proc/self/exe", Args: []string{WrapAlias}, Env: []string{trace.QuickStart},
		Stdin: spec.Stdin, Stdout: spec.Stdout, Stderr: spec.Stderr, ExtraFiles: []*os.File{orderR, notesW},
	}}
	err = w.cmd.Start()
	orderR.Close()
	notesW.Close()
	if err != nil {
		orderW.Close()
		notesR.Close()
		return nil, err
	}
	return w, nil
}

func (w *wrapped) cleanup() {
	w.tell.Close()
	w.cmd.Process.Kill()
	w.cmd.Wait()
	w.notes.Close()
}

func (w *wrapped) serve(ctx context.Context, clock func() time.Time, asked <-chan os.Signal) (Report, error) {
	dec := json.NewDecoder(w.notes)
	n, err := w.ready(dec)
	if err != nil {
		return Report{}, hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeSandboxUnavailable, "preparing the command: %w", err)
	}
	watcher, agent, err := w.observe(n, clock)
	if err != nil {
		return Report{}, hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeTraceUnavailable, "recording the command: %w", err)
	}
	rep := Report{StartedOn: clock()}
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		watcher.run()
	}()
	last, err := w.run(ctx, dec, agent, asked)
	watcher.stop()
	<-watching
	rep.FinishedOn, rep.Egress = clock(), watcher.seen()
	lost := ""
	if !last.Exited { // who watches the command's end is gone: end what it left
		select {
		case <-agent.Dead():
		default:
			lost = "the process that watched over the command was ended from outside"
		}
		unix.Kill(agent.PID(), unix.SIGKILL) // and everything traced dies with the agent
	}
	t := agent.Finish()
	if err != nil {
		return Report{}, err
	}
	if lost != "" {
		t.Failure = lost
	}
	rep.Trace, rep.ExitCode, rep.Guarantees = &t, last.Code, wrapGuarantees(n.Facts)
	if last.Signal != 0 {
		rep.ExitCode, rep.Signal = -1, unix.SignalName(syscall.Signal(last.Signal))
	}
	if !last.Exited {
		rep.ExitCode, rep.Signal = -1, "SIGKILL"
	}
	return rep, nil
}

// ready tells the first process what to run and waits until it is in sight.
func (w *wrapped) ready(dec *json.Decoder) (note, error) {
	o := order{Path: w.spec.Path}
	for _, a := range w.spec.Argv {
		o.Argv = append(o.Argv, []byte(a))
	}
	for _, e := range w.spec.Env {
		o.Env = append(o.Env, []byte(e))
	}
	var n note
	if err := json.NewEncoder(w.tell).Encode(o); err != nil {
		return n, fmt.Errorf("telling the first process what to run: %w", err)
	}
	if err := dec.Decode(&n); err != nil {
		return n, fmt.Errorf("waiting for the first process: %w", err)
	}
	if n.Error != "" || !n.Ready {
		return n, errors.New(n.Error)
	}
	return n, nil
}

// observe attaches the agent, and what sees connections.
func (w *wrapped) observe(n note, clock func() time.Time) (*watcher, *trace.Agent, error) {
	watcher, err := newWatcher(w.cmd.Process.Pid, n.Listener, clock)
	if err != nil {
		return nil, nil, fmt.Errorf("watching for connections: %w", err)
	}
	agent, err := trace.Start(trace.Subject{
		PID: w.cmd.Process.Pid, Engine: trace.Ptrace, Filter: true, Writable: []string{"/"}, Log: w.spec.Log, Hidden: w.spec.Hidden,
	})
	if err != nil {
		watcher.abandon()
		return nil, nil, err
	}
	watcher.open, watcher.probed = true, true // there is no probe: it would leave the machine
	watcher.connected = func(pid int, address string, refused bool) {
		// An agent that can't be told has ended, which ends the command.
		_ = agent.Connect(trace.Connect{PID: pid, Address: address, Refused: refused})
	}
	return watcher, agent, nil
}

// run releases the command and waits for the last note.
func (w *wrapped) run(ctx context.Context, dec *json.Decoder, agent *trace.Agent, asked <-chan os.Signal) (note, error) {
	if _, err := w.tell.Write([]byte{0}); err != nil {
		return note{}, hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeSandboxUnavailable, "releasing the command: %w", err)
	}
	end := make(chan note, 1)
	go func() {
		var n note
		if err := dec.Decode(&n); err != nil && !errors.Is(err, io.EOF) {
			n = note{}
		}
		end <- n
	}()
	done := ctx.Done()
	for {
		select {
		case last := <-end:
			w.cmd.Wait()
			if last.Error != "" {
				return last, hallmark.Errorf(hallmark.KindInvalid, "%s", last.Error)
			}
			return last, nil
		case <-agent.Dead():
			w.cmd.Process.Kill()
			w.cmd.Wait()
			return note{}, nil
		case s := <-asked:
			if sig, ok := s.(syscall.Signal); ok && !(sig == unix.SIGINT && foreground()) {
				w.tell.Write([]byte{byte(sig)})
			}
		case <-done: // the signal that ended it is passed on too
			done = nil
		}
	}
}

// foreground reports whether a key of the terminal reaches the command as well as
// us.
func foreground() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// wrapGuarantees names every guarantee of a sandbox and what is true of it here.
func wrapGuarantees(f facts) []Guarantee {
	out := f.guarantees(namespaces, self{UID: insideID, GID: insideID})
	for i, g := range out {
		if g.Name == "seccomp" {
			out[i].Holds, out[i].Detail = false, "the filter keeps the command in sight and refuses nothing but what would hide from it"
		}
	}
	out = append(out,
		Guarantee{"egress-recorded", f.Status["Seccomp"] == "2", "connect, sendto, sendmsg, sendmmsg by seccomp notification; recorded, not refused, and as the call said when it was looked at"},
		Guarantee{"unprivileged-user", false, fmt.Sprintf("user %d of the host, as whoever called", os.Getuid())},
		Guarantee{"workspace-overlay", false, "the directory itself"},
		Guarantee{"wall-time-limit", false, "none"},
		Guarantee{"disk-limit", false, "none"})
	return append(out, (&cgroup{why: "a wrapped command is in no group of its own"}).guarantees(nil, facts{})...)
}

// FindProgram finds a command as a shell would, as an absolute path.
func FindProgram(name string) (string, error) {
	p, err := exec.LookPath(name)
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return "", hallmark.Errorf(hallmark.KindInvalid, "finding the command %s: %w", name, err)
	}
	if strings.HasPrefix(p, "/") {
		return p, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", hallmark.Errorf(hallmark.KindInvalid, "finding the command %s: %w", name, err)
	}
	return dir + "/" + p, nil
}

// HideMemory closes our memory to processes of our own user: what a wrapped
// command could read there are keys. It does not hold against root.
func HideMemory() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("closing memory to the command: %w", err)
	}
	return nil
}

// toStrings undoes order.
func toStrings(all [][]byte) []string {
	return slices.Collect(func(yield func(string) bool) {
		for _, b := range all {
			if !yield(string(b)) {
				return
			}
		}
	})
}

// SignalNumber is the number of a signal that a report names.
func SignalNumber(name string) int { return int(unix.SignalNum(name)) }
