// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/trace"
)

// recording is a tracing agent attached to a sandbox, or none where none was
// asked for.
type recording struct{ agent *trace.Agent }

// record attaches a tracing agent to the room, whose first process waits to be
// released. What the watcher sees goes into the same record.
func (p *process) record(n note, w *watcher) (recording, error) {
	if p.spec.Trace == nil {
		return recording{}, nil
	}
	a, err := trace.Start(trace.Subject{
		PID: p.cmd.Process.Pid, Engine: p.engine, Filter: p.traced(), Writable: p.writable(),
		Log: p.spec.Trace.Log, Digests: p.spec.Trace.Digests, Hidden: p.spec.Trace.Hidden,
	})
	if err != nil {
		return recording{}, err
	}
	w.connected = func(pid int, address string, refused bool) {
		// An agent that can't be told has ended, which ends the step.
		_ = a.Connect(trace.Connect{PID: pid, Address: address, Refused: refused})
	}
	return recording{agent: a}, nil
}

// traced reports whether the filter has to stop calls for the ptrace engine.
func (p *process) traced() bool {
	return p.engine == trace.Ptrace
}

// writable are the places inside that the program can write to.
func (p *process) writable() []string {
	out := []string{"/tmp", "/dev/shm"}
	if p.spec.Root != nil {
		return []string{"/", "/dev/shm"}
	}
	for _, m := range p.spec.Mounts {
		if m.Writable {
			out = append(out, m.Target)
		}
	}
	for _, l := range p.spec.Layers {
		out = append(out, l.Target)
	}
	if w := p.spec.Workspace; w != nil {
		out = append(out, w.Target)
	}
	return out
}

// dead is closed when the agent is gone; nothing may run then.
func (r recording) dead() <-chan struct{} {
	if r.agent == nil {
		return nil
	}
	return r.agent.Dead()
}

// finish ends the record. No process of the sandbox may be left.
func (r recording) finish() *build.Trace {
	if r.agent == nil {
		return nil
	}
	t := r.agent.Finish()
	return &t
}

// Furnished are the files that every sandbox is given by us, by their paths
// inside.
func Furnished() []string {
	return []string{"/etc/passwd", "/etc/group", "/etc/hosts", "/etc/nsswitch.conf", "/etc/resolv.conf", "/etc/hostname", SelfPath}
}
