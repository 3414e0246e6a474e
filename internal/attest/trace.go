// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

// Trace is what the tracing agent and the control plane know of the files and
// processes of a build. The lists themselves are blobs; statements carry their
// digests and what they come to.
type Trace struct {
	Engine      string          `json:"engine,omitempty"` // empty: nothing was traced
	Whole       bool            `json:"whole"`
	Attribution string          `json:"attribution,omitempty"` // what is not known of who read what
	Programs    []Program       `json:"programs,omitempty"`
	Processes   []TracedProcess `json:"processes,omitempty"`
	Omitted     int             `json:"omitted,omitempty"` // processes that are in the event logs only
	Network     []TracedConnect `json:"network,omitempty"`
	Materials   List            `json:"materials"`
	Products    List            `json:"products"`
	Groups      []Group         `json:"groups,omitempty"`
	Unexplained []FileMaterial  `json:"unexplained,omitempty"`
	// Undeclared are files of which their package declares no digest, where it
	// does of others.
	Undeclared []FileMaterial `json:"undeclared,omitempty"`
	Unstable   []FileMaterial `json:"unstable,omitempty"`
	Packages   []string       `json:"packages,omitempty"` // purls of the toolchain packages that were used
	Hermetic   bool           `json:"hermetic"`           // whole, and no egress was attempted
}

// List is a list that is kept as a blob of JSON lines.
type List struct {
	Digest hallmark.Digest `json:"digest,omitempty"`
	Files  int             `json:"files"`
}

// Program is one program that ran, and how often.
type Program struct {
	Path   string          `json:"path"`
	Digest hallmark.Digest `json:"digest"`
	Runs   int             `json:"runs"`
}

// TracedProcess is one process of a step.
type TracedProcess struct {
	Step     string          `json:"step"`
	Number   int             `json:"number"`
	Parent   int             `json:"parent"`
	Program  string          `json:"program,omitempty"` // the last it became; empty: its parent's
	Digest   hallmark.Digest `json:"digest,omitempty"`
	Args     []string        `json:"args,omitempty"`
	Code     int             `json:"code"`
	Signal   string          `json:"signal,omitempty"`
	Duration time.Duration   `json:"durationNanoseconds"`
}

// TracedConnect is one connection that a process tried to make.
type TracedConnect struct {
	Step    string `json:"step"`
	Process int    `json:"process"`
	Address string `json:"address"`
	Refused bool   `json:"refused"`
}

// Group is what the files read from one origin and package come to.
type Group struct {
	Origin  string          `json:"origin"`
	Package string          `json:"package,omitempty"`
	Files   int             `json:"files"`
	Bytes   int64           `json:"bytes"`
	Digest  hallmark.Digest `json:"digest"`
	// Undeclared is how many of them the package declares no digest of.
	Undeclared int `json:"undeclared,omitempty"`
}

// FileMaterial is one file that was read.
type FileMaterial struct {
	Path    string          `json:"path"`
	Digest  hallmark.Digest `json:"digest,omitempty"`
	Package string          `json:"package,omitempty"` // that has the name
	Altered string          `json:"altered,omitempty"` // how it differs from what that declares
}

// RuntimeTrace states what every process of the build was and did: the monitor,
// each process with its arguments, end and duration, the network, and the event
// logs and lists of files by digest (SP 800-204D §5.1.1, evidence 2).
func RuntimeTrace(b Build) (intoto.Statement, error) {
	t := intoto.RuntimeTrace{
		Monitor: intoto.TraceMonitor{
			Type: "https://hallmark-sc.github.io/monitors/" + b.Trace.Engine,
			TracePolicy: map[string]any{
				"whole": b.Trace.Whole, "attribution": b.Trace.Attribution, "omittedProcesses": b.Trace.Omitted,
				"events": []string{"fork", "exec", "exit", "read", "write", "make", "rename", "link", "remove", "connect", "unstable"},
			},
		},
		MonitoredProcess: intoto.TraceProcess{HostID: b.BuilderID, Type: b.buildType(), Event: b.Revision.Commit},
		MonitorLog:       intoto.TraceLog{Process: []any{}, Network: []any{}, FileAccess: []intoto.ResourceDescriptor{}},
		Metadata:         intoto.TraceMetadata{BuildStartedOn: b.StartedOn, BuildFinishedOn: b.FinishedOn},
	}
	if b.Command != nil {
		t.Monitor.TracePolicy["directory"] = b.Command.Dir
	}
	for _, p := range b.Trace.Processes {
		t.MonitorLog.Process = append(t.MonitorLog.Process, p)
	}
	for _, c := range b.Trace.Network {
		t.MonitorLog.Network = append(t.MonitorLog.Network, c)
	}
	for _, s := range b.Steps {
		if s.Events != "" {
			t.MonitorLog.FileAccess = append(t.MonitorLog.FileAccess, intoto.ResourceDescriptor{Name: "events of " + s.Name, MediaType: "application/jsonl", Digest: sha256Of(s.Events)})
		}
	}
	t.MonitorLog.FileAccess = append(t.MonitorLog.FileAccess, b.Trace.lists()...)
	return statement(intoto.PredicateTrace, b.products(), t)
}

func (t Trace) lists() []intoto.ResourceDescriptor {
	var out []intoto.ResourceDescriptor
	if t.Materials.Digest != "" {
		out = append(out, intoto.ResourceDescriptor{Name: "materials.jsonl", MediaType: "application/jsonl", Digest: sha256Of(t.Materials.Digest), Annotations: map[string]any{"files": t.Materials.Files}})
	}
	return append(out, t.products()...)
}

// products describes the list of everything that the build wrote.
func (t Trace) products() []intoto.ResourceDescriptor {
	if t.Products.Digest == "" {
		return nil
	}
	return []intoto.ResourceDescriptor{{Name: "products.jsonl", MediaType: "application/jsonl", Digest: sha256Of(t.Products.Digest), Annotations: map[string]any{"files": t.Products.Files}}}
}

func (t Trace) programs() []Program {
	if t.Programs == nil {
		return []Program{}
	}
	return t.Programs
}

// materials are the groups of files that were read, one for each origin and
// package, and every file that none explains.
func (t Trace) materials() []intoto.ResourceDescriptor {
	var out []intoto.ResourceDescriptor
	if t.Materials.Digest == "" {
		return nil
	}
	out = append(out, t.lists()[0])
	for _, g := range t.Groups {
		name := g.Origin
		if g.Package != "" {
			name = g.Package
		}
		d := intoto.ResourceDescriptor{
			Name: "files of " + name, URI: g.Package, Digest: sha256Of(g.Digest),
			Annotations: map[string]any{"role": "files", "origin": g.Origin, "files": g.Files, "bytes": g.Bytes},
		}
		if g.Undeclared > 0 {
			d.Annotations["packageDeclaresNoDigest"] = g.Undeclared
		}
		out = append(out, d)
	}
	for _, f := range t.Unexplained {
		role := "unexplained"
		if f.Altered != "" {
			role = "altered"
		}
		out = append(out, f.descriptor(role))
	}
	for _, f := range t.Undeclared {
		out = append(out, f.descriptor("packageDeclaresNoDigest"))
	}
	return out
}

func (f FileMaterial) descriptor(role string) intoto.ResourceDescriptor {
	d := intoto.ResourceDescriptor{Name: f.Path, URI: f.Package, Annotations: map[string]any{"role": role}}
	if f.Digest != "" {
		d.Digest = sha256Of(f.Digest)
	}
	if f.Altered != "" {
		d.Annotations["altered"] = f.Altered
	}
	return d
}

// environment is what the trace adds to the inventory of the system.
func (t Trace) environment() []intoto.SCAIAttribute {
	if t.Engine == "" {
		return nil
	}
	out := []intoto.SCAIAttribute{{Attribute: "TRACED", Conditions: map[string]any{"engine": t.Engine, "whole": t.Whole}}}
	for _, p := range t.Packages {
		out = append(out, intoto.SCAIAttribute{Attribute: "TOOLCHAIN_PACKAGE", Target: &intoto.ResourceDescriptor{URI: p, Name: p}})
	}
	return out
}

func (b Build) materialsFacts() map[string]any {
	return map[string]any{
		"sourceFiles": b.Files, "sourceManifest": b.Manifest, "filesRead": b.Trace.Materials.Files,
		"unexplained": len(b.Trace.Unexplained), "unstable": b.Trace.Unstable, "packageDeclaresNoDigest": b.Trace.undeclared(),
		intoto.ByproductInvocation: b.Invocation(),
	}
}

// undeclared is how many files belong to a package by their name alone.
func (t Trace) undeclared() int {
	n := 0
	for _, g := range t.Groups {
		n += g.Undeclared
	}
	return n
}
