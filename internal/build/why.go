// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"container/heap"
	"fmt"
	"io"
	"slices"

	"github.com/hallmark-sc/hallmark"
)

// Hop is one part of the way from a file to an artifact.
type Hop struct {
	Kind    HopKind         `json:"kind"`
	Step    string          `json:"step,omitempty"`
	Path    Raw             `json:"path,omitempty"` // of a file, or of the program of a process
	Digest  hallmark.Digest `json:"digest,omitempty"`
	Process int             `json:"process,omitempty"`
	Args    []Raw           `json:"args,omitempty"`
	// Fed is what a reader wrote after it had opened the file: each may hold some
	// of it.
	Fed []Hop `json:"fed,omitempty"`
}

// HopKind is how a hop was reached from the one before.
type HopKind string

// The kinds of hop. Only the first three are known from what the kernel told:
// between a process and its parent or child, data may have gone through a pipe,
// an argument or an exit status.
const (
	HopFile    HopKind = "file"    // where the way begins, or what the process before wrote
	HopReader  HopKind = "reader"  // a process that opened the file before
	HopRenamed HopKind = "renamed" // the same file under the name that it got
	HopParent  HopKind = "parent"  // the process that started the one before
	HopChild   HopKind = "child"   // a process that the one before started
)

// StepLog is the event log of one step.
type StepLog struct {
	Step string
	Log  io.Reader
}

// Flow is who read and wrote what, of one build.
type Flow struct {
	nodes []flowNode
	files map[version]int
	paths map[Raw][]int // nodes of files by path
}

type flowNode struct {
	hop   Hop
	edges []flowEdge
}

type flowEdge struct {
	to   int
	at   int64 // when, in the order of the steps
	kind HopKind
}

// NewFlow reads the logs of a build, in the order of its steps.
func NewFlow(logs []StepLog) (*Flow, error) {
	f := &Flow{files: map[version]int{}, paths: map[Raw][]int{}}
	var clock int64 // counts events over all steps: an order is all that is needed
	for _, l := range logs {
		procs := map[int]int{}
		names := map[Raw]int{} // newest version that is known under a name
		err := ReadEvents(l.Log, func(e Event) error {
			clock++
			f.event(l.Step, clock, e, procs, names)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("reading the events of step %s: %w", l.Step, err)
		}
	}
	return f, nil
}

func (f *Flow) event(step string, clock int64, e Event, procs map[int]int, names map[Raw]int) {
	switch e.Kind {
	case EventFork:
		procs[e.Child] = f.add(Hop{Kind: HopReader, Step: step, Process: e.Child})
		if parent, ok := procs[e.Process]; ok {
			child := procs[e.Child]
			f.nodes[child].hop.Path, f.nodes[child].hop.Digest = f.nodes[parent].hop.Path, f.nodes[parent].hop.Digest
			f.edge(parent, child, clock, HopChild)
			// Whenever it ends: its parent may learn from it until then.
			f.edge(child, parent, 1<<62, HopParent)
		}
	case EventExec:
		if p, ok := procs[e.Process]; ok {
			h := &f.nodes[p].hop
			h.Path, h.Digest, h.Args = e.Path, e.Digest, e.Args
		}
	case EventRead:
		if p, ok := procs[e.Process]; ok && e.Digest != "" {
			n := f.file(e.Path, e.Digest)
			names[e.Path] = n
			f.edge(n, p, clock, HopReader)
		}
	case EventWrite:
		n := f.file(e.Path, e.Digest)
		names[e.Path] = n
		if p, ok := procs[e.Process]; ok {
			f.edge(p, n, clock, HopFile)
		}
	case EventRename, EventLink:
		if from, ok := names[e.Path]; ok {
			to := f.file(e.To, f.nodes[from].hop.Digest)
			names[e.To] = to
			f.edge(from, to, clock, HopRenamed)
		}
	}
}

func (f *Flow) add(h Hop) int {
	f.nodes = append(f.nodes, flowNode{hop: h})
	return len(f.nodes) - 1
}

func (f *Flow) file(path Raw, d hallmark.Digest) int {
	v := version{path, d}
	n, ok := f.files[v]
	if !ok {
		n = f.add(Hop{Kind: HopFile, Path: path, Digest: d})
		f.files[v] = n
		f.paths[path] = append(f.paths[path], n)
	}
	return n
}

func (f *Flow) edge(from, to int, at int64, kind HopKind) {
	f.nodes[from].edges = append(f.nodes[from].edges, flowEdge{to, at, kind})
}

// Find returns the versions of a file that the build saw: by path, or by digest.
func (f *Flow) Find(path Raw, d hallmark.Digest) []Hop {
	var out []Hop
	for _, n := range f.starts(path, d) {
		out = append(out, f.nodes[n].hop)
	}
	return out
}

func (f *Flow) starts(path Raw, d hallmark.Digest) []int {
	if path != "" {
		return f.paths[path]
	}
	var out []int
	for v, n := range f.files {
		if v.digest == d {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// Readers are the processes that read a version of the file.
func (f *Flow) Readers(path Raw, d hallmark.Digest) []Hop {
	var out []Hop
	for _, n := range f.starts(path, d) {
		for _, e := range f.nodes[n].edges {
			if e.kind == HopReader {
				h := f.nodes[e.to].hop
				h.Fed = f.fed(e.to, e.at)
				out = append(out, h)
			}
		}
	}
	return out
}

// fed are the files that a process wrote after a moment, each name once with what
// it held last.
func (f *Flow) fed(process int, after int64) []Hop {
	var out []Hop
	at := map[Raw]int{}
	for _, e := range f.nodes[process].edges {
		if e.kind != HopFile || e.at < after {
			continue
		}
		h := f.nodes[e.to].hop
		if i, ok := at[h.Path]; ok {
			out[i] = h
		} else {
			at[h.Path] = len(out)
			out = append(out, h)
		}
	}
	return out
}

// Way is the most certain way by which a file reached an artifact, in the order
// of time; nil when none is known. Hops through files count little, those between
// processes, through which data need not have gone, much.
func (f *Flow) Way(path Raw, d, artifact hallmark.Digest) []Hop {
	type place struct {
		cost int
		at   int64
		from int
		kind HopKind
		done bool
	}
	best := make([]place, len(f.nodes))
	for i := range best {
		best[i] = place{cost: -1, from: -1}
	}
	q := &costs{}
	for _, n := range f.starts(path, d) {
		best[n] = place{cost: 0, from: -1, kind: HopFile}
		heap.Push(q, cost{n, 0})
	}
	for q.Len() > 0 {
		c := heap.Pop(q).(cost)
		if best[c.node].done {
			continue
		}
		best[c.node].done = true
		here := f.nodes[c.node]
		if here.hop.Process == 0 && here.hop.Digest == artifact {
			var way []Hop
			for n := c.node; n >= 0; n = best[n].from {
				h := f.nodes[n].hop
				h.Kind = best[n].kind
				way = append(way, h)
			}
			slices.Reverse(way)
			return way
		}
		for _, e := range here.edges {
			if e.at < best[c.node].at {
				continue // before what it would have passed on
			}
			step, at := 1, e.at
			if e.kind == HopParent || e.kind == HopChild {
				step = 1000
			}
			if e.kind == HopParent {
				at = best[c.node].at
			}
			if b := best[e.to]; !b.done && (b.cost < 0 || c.cost+step < b.cost) {
				best[e.to] = place{cost: c.cost + step, at: at, from: c.node, kind: e.kind}
				heap.Push(q, cost{e.to, c.cost + step})
			}
		}
	}
	return nil
}

type cost struct{ node, cost int }

type costs []cost

func (c costs) Len() int           { return len(c) }
func (c costs) Less(i, j int) bool { return c[i].cost < c[j].cost }
func (c costs) Swap(i, j int)      { c[i], c[j] = c[j], c[i] }
func (c *costs) Push(x any)        { *c = append(*c, x.(cost)) }
func (c *costs) Pop() any {
	last := (*c)[len(*c)-1]
	*c = (*c)[:len(*c)-1]
	return last
}
