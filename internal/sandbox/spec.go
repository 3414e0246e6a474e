// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package sandbox runs one program in fresh Linux user, mount, pid, network,
// IPC, UTS and cgroup namespaces: a read-only view of the host's toolchain, a
// private workspace, no device, no capability, no network but its own loopback,
// a seccomp filter and limits. It works as root and as an ordinary user.
//
// The first process inside is our own binary started again under another name
// (Main). It prepares the room, gives up every privilege and starts the program;
// it holds no key and is told nothing but its Spec. What the sandbox reports
// (exit, egress, limits, guarantees) is what the kernel told the outside.
package sandbox

import (
	"io"
	"time"

	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/trace"
)

// Alias is the name under which the binary is the sandbox's first process.
const Alias = "hallmark-sandbox"

// Spec is one program to run.
type Spec struct {
	Argv   []string
	Env    []string // complete; nothing is inherited
	Dir    string   // working directory inside
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer

	Toolchain Toolchain
	Mounts    []Mount
	Workspace *Workspace
	Layers    []Workspace // more directories of this kind
	Root      *Root       // a file system of its own, in place of all of these
	Self      bool        // our own binary is at SelfPath; Argv[0] is the name it gets
	Limits    Limits      //

	// Secrets are read from the descriptors 3, 4, … in this order, once; no file
	// and no variable holds them.
	Secrets [][]byte // each at most MaxSecret bytes
	// Gateway is a socket on the host that is seen at GatewayPath; empty shows none.
	Gateway string

	// OnEgress hears of every attempt while the program runs, before the call
	// that made it returns. It may be nil; it must be quick and safe for calls
	// from another goroutine.
	OnEgress func(Egress)

	Trace *Trace // nil: nothing is recorded
}

// Trace asks for a record of everything that the program does.
type Trace struct {
	Engine  trace.Engine // the zero value is refused
	Log     string       // where the canonical event log is written; no file may be there
	Digests string       // file of known digests, or empty
	// Hidden must not come into the record: a program that is given a secret may
	// have it in arguments or names.
	Hidden []trace.Hidden
}

// GatewayPath is where the one socket of the host lies that a room may show.
const GatewayPath = "/run/hallmark/packages.sock"

// MaxSecret is what surely fits in a pipe that nobody reads yet.
const MaxSecret = 32 << 10

// SelfPath is where the binary lies inside when Spec.Self asks for it.
const SelfPath = "/.hallmark/self"

// Mount is a host directory, file or socket that is seen at Target; read-only
// unless Writable.
type Mount struct {
	Source, Target string
	Writable       bool
}

// Workspace is a directory that reads from Lower and writes to the directory
// "upper" of Scratch; Lower is never changed. Scratch is made by NewScratch and
// may serve several sandboxes one after the other.
type Workspace struct {
	Lower, Scratch, Target string
}

// Limits bound a sandbox; every zero value means the default beside it.
type Limits struct {
	Memory int64         // bytes, 4 GiB
	Disk   int64         // bytes of each scratch file system and of one file, 8 GiB
	PIDs   int           // 2048
	CPUs   float64       // 2
	Wall   time.Duration // 30 minutes
}

func (l Limits) defaults() Limits {
	if l.Memory <= 0 {
		l.Memory = 4 << 30
	}
	if l.Disk <= 0 {
		l.Disk = 8 << 30
	}
	if l.PIDs <= 0 {
		l.PIDs = 2048
	}
	if l.CPUs <= 0 {
		l.CPUs = 2
	}
	if l.Wall <= 0 {
		l.Wall = 30 * time.Minute
	}
	return l
}

// Report is what the outside saw.
type Report struct {
	ExitCode   int      // of the program; -1 when a signal ended it
	Signal     string   // its name, if one ended it
	LimitHit   string   // wall, memory, disk or empty
	Lost       []string // limits (memory, pids, cpu) that vanished while it ran; the program was ended
	StartedOn  time.Time
	FinishedOn time.Time
	Egress     []Egress
	Guarantees []Guarantee
	Trace      *build.Trace // set exactly when Spec.Trace was
}

// Egress is one attempt to reach an address outside the own loopback. It was
// refused.
type Egress struct {
	Time    time.Time
	PID     int    // on the host
	Process string // the name that it gives itself
	Program string // its executable: path inside, and only the kernel can say it
	Proto   string
	Address string
	Name    string // from a DNS question
}

// Guarantee is one property of the isolation.
type Guarantee struct {
	Name   string
	Holds  bool
	Detail string
}
