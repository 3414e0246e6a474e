// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package trace records what the processes of one sandbox do: every program,
// file read or written, name made, moved or removed, and connection, as the
// kernel tells it, each file's content hashed as it is used (SP 800-204D §5.1.1,
// tasks 2 and 3; evidence 2).
//
// The recorder is an agent: our own binary started again under another name
// (Main), outside of the sandbox and with no key. It attaches to the first
// process of a sandbox before that process starts the program. What the agent
// can't record makes the trace incomplete, and an agent that dies ends the step:
// nothing runs unseen.
package trace

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/build"
)

// Alias is the name under which the binary is a tracing agent.
const Alias = "hallmark-trace"

// Engine is how the kernel tells of a build.
type Engine int

// The engines. Best takes the first of the others that this machine lets us use.
const (
	Best   Engine = iota + 1
	Kernel        // fanotify and BPF: needs root
	Ptrace        // ptrace and seccomp: works for any user
)

// Subject is what an agent attaches to.
type Subject struct {
	PID    int // of the sandbox's first process, which waits to be released
	Engine Engine
	// Filter says that the sandbox's filter stops traced calls (SECCOMP_RET_TRACE),
	// as the ptrace engine needs.
	Filter bool
	// Writable are the mount points inside that the program can write to; all
	// others hold what was there before.
	Writable []string
	Log      string // where the canonical event log is written, on the host
	// Digests is a file of digests of files outside of the sandbox's reach, known
	// from earlier traces; empty: none is kept.
	Digests string
	// Hidden are values that must not come into the log: where an argument, a path
	// or an address has one, its name is written.
	Hidden []Hidden
}

// Hidden is a value that is told to nobody, such as a credential.
type Hidden struct {
	Name  string
	Value []byte // never empty
	// Argument: it is looked for in arguments alone. A variable whose value is a
	// path is no credential where that path is used.
	Argument bool
}

// Agent is a running agent.
type Agent struct {
	cmd     *exec.Cmd
	notices *json.Encoder
	stop    io.Closer
	dead    chan struct{}
	engine  string

	mu   sync.Mutex
	last message // the agent's last word
	err  error
}

// notice is what the control plane tells the agent: exactly one of the fields.
type notice struct {
	Connect *Connect `json:"connect,omitempty"`
	Finish  bool     `json:"finish,omitempty"` // no process of the sandbox is left
}

// Connect is a connection that a process tried to make, as the sandbox's watcher
// saw it.
type Connect struct {
	PID     int // in our pid namespace
	Address string
	Refused bool
}

// message is what the agent says: ready once, and the trace at the end.
type message struct {
	Ready  bool         `json:"ready,omitempty"`
	Engine string       `json:"engine,omitempty"`
	Trace  *build.Trace `json:"trace,omitempty"`
	Error  string       `json:"error,omitempty"`
}

// Files that an agent finds open after 0, 1 and 2.
const (
	fdSubject  = 3
	fdMessages = 4
	fdNotices  = 5
)

// Start starts an agent and waits until it is attached: from then on nothing that
// the sandbox does goes unseen. An error means that nothing is recorded and the
// sandbox must not be released.
func Start(s Subject) (*Agent, error) {
	if s.Engine < Best || s.Engine > Ptrace || s.PID <= 0 || s.Log == "" {
		return nil, hallmark.Errorf(hallmark.KindInternal, "tracing without an engine, a process or a log")
	}
	var opened []*os.File
	defer func() {
		for _, f := range opened {
			f.Close()
		}
	}()
	var ends [6]*os.File
	for i := range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, fmt.Errorf("making a pipe for the tracing agent: %w", err)
		}
		ends[2*i], ends[2*i+1] = r, w
	}
	subjectR, subjectW, messagesR, messagesW, noticesR, noticesW := ends[0], ends[1], ends[2], ends[3], ends[4], ends[5]
	opened = []*os.File{subjectR, messagesW, noticesR, subjectW}
	a := &Agent{
		cmd: &exec.Cmd{
			Path: "/proc/self/exe", Args: []string{Alias}, Env: append(environment(), QuickStart), Dir: "/", Stderr: os.Stderr,
			ExtraFiles:  []*os.File{subjectR, messagesW, noticesR},
			SysProcAttr: &syscall.SysProcAttr{Setsid: true},
		},
		notices: json.NewEncoder(noticesW), stop: noticesW, dead: make(chan struct{}),
	}
	if err := a.cmd.Start(); err != nil {
		messagesR.Close()
		noticesW.Close()
		return nil, fmt.Errorf("starting the tracing agent: %w", err)
	}
	messagesW.Close() // so that the pipe ends with the agent
	if err := json.NewEncoder(subjectW).Encode(s); err != nil {
		a.kill(messagesR)
		return nil, fmt.Errorf("telling the tracing agent what to record: %w", err)
	}
	dec := json.NewDecoder(messagesR)
	var first message
	if err := dec.Decode(&first); err != nil || !first.Ready {
		a.kill(messagesR)
		if first.Error != "" {
			err = errors.New(first.Error)
		}
		return nil, fmt.Errorf("attaching the tracing agent: %w", err)
	}
	a.engine = first.Engine
	go func() {
		defer close(a.dead)
		var last message
		err := dec.Decode(&last)
		messagesR.Close()
		waited := a.cmd.Wait()
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.last = last; err != nil || last.Trace == nil {
			a.err = fmt.Errorf("the tracing agent ended without a word (%v)", waited)
		}
	}()
	return a, nil
}

func (a *Agent) kill(messages *os.File) {
	a.cmd.Process.Kill()
	a.stop.Close()
	messages.Close()
	a.cmd.Wait()
}

// Engine names what records.
func (a *Agent) Engine() string { return a.engine }

// PID is the agent's process.
func (a *Agent) PID() int { return a.cmd.Process.Pid }

// Dead is closed when the agent has ended. If Finish was not called before, the
// step is over: its processes must be killed.
func (a *Agent) Dead() <-chan struct{} { return a.dead }

// Connect records a connection.
func (a *Agent) Connect(c Connect) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.notices.Encode(notice{Connect: &c}); err != nil {
		return fmt.Errorf("telling the tracing agent of a connection: %w", err)
	}
	return nil
}

// Finish tells the agent that no process of the sandbox is left, waits for it and
// returns the trace. It always returns one: a trace that is not whole says why.
func (a *Agent) Finish() build.Trace {
	a.mu.Lock()
	told := a.notices.Encode(notice{Finish: true})
	a.mu.Unlock()
	a.stop.Close()
	<-a.dead
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil || a.last.Trace == nil {
		return build.Trace{Engine: a.engine, Failure: a.err.Error()}
	}
	out := *a.last.Trace
	if out.Failure == "" && told != nil {
		out.Failure = "the tracing agent ended before the step did"
	}
	return out
}
