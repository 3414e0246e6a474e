// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/hallmark-sc/hallmark"
)

// Summary is what the event logs of the steps of one build say, file by file and
// process by process. Its size grows with files and processes, not with events.
type Summary struct {
	Steps    []StepSummary
	reads    map[version]*Read
	written  map[hallmark.Digest]bool
	writes   map[version]*Write
	Unstable []Unstable
}

// StepSummary is what one step did.
type StepSummary struct {
	Step      string
	Events    int64
	Processes []Process // by number, from 1
	Connects  []Connect
	scripts   scripts
}

// Process is one process of a step.
type Process struct {
	Number  int    `json:"number"`
	Parent  int    `json:"parent"` // 0: the sandbox itself
	Execs   []Exec `json:"execs,omitempty"`
	Started int64  `json:"started"` // nanoseconds since the step began
	Ended   int64  `json:"ended,omitempty"`
	Exited  bool   `json:"exited"`
	Code    int    `json:"code"`
	Signal  string `json:"signal,omitempty"`
}

// Exec is one program that a process became.
type Exec struct {
	Path   Raw             `json:"path"`
	Digest hallmark.Digest `json:"digest"`
	Args   []Raw           `json:"args"`
}

// Connect is one connection that a process tried to make.
type Connect struct {
	Process int  `json:"process"`
	Address Raw  `json:"address"`
	Refused bool `json:"refused"`
}

type version struct {
	path   Raw
	digest hallmark.Digest
}

// Read is one version of a file that was read.
type Read struct {
	Path   Raw             `json:"path"`
	Digest hallmark.Digest `json:"digest,omitempty"` // empty: not a file with content of its own, such as one of /proc
	Size   int64           `json:"size"`
	// The first process that read it, and how many did.
	Step    string `json:"step"`
	Process int    `json:"process"`
	Readers int    `json:"readers"`
	// after says that the build had written this content before it read it.
	after bool
}

// Write is one version of a file that a process left behind.
type Write struct {
	Path    Raw             `json:"path"`
	Digest  hallmark.Digest `json:"digest"`
	Size    int64           `json:"size"`
	Step    string          `json:"step"`
	Process int             `json:"process"`
}

// Unstable is a file whose content changed after it was hashed for a reader.
type Unstable struct {
	Step   string          `json:"step"`
	Path   Raw             `json:"path"`
	Digest hallmark.Digest `json:"digest"` // what it holds now
}

// NewSummary returns a summary of nothing.
func NewSummary() *Summary {
	return &Summary{reads: map[version]*Read{}, written: map[hallmark.Digest]bool{}, writes: map[version]*Write{}}
}

// Add takes in the event log of one step; steps are added in their order. A log
// that contradicts itself is an error.
func (s *Summary) Add(step string, log io.Reader) error {
	st := StepSummary{Step: step, scripts: newScripts()}
	err := ReadEvents(log, func(e Event) error {
		st.Events++
		if err := st.process(e); err != nil {
			return err
		}
		s.file(step, e)
		st.scripts.event(step, e)
		return nil
	})
	if err != nil {
		return fmt.Errorf("summing up step %s: %w", step, err)
	}
	s.Steps = append(s.Steps, st)
	return nil
}

func (st *StepSummary) process(e Event) error {
	if e.Process < 0 || e.Process > len(st.Processes) {
		return hallmark.Errorf(hallmark.KindInvalid, "event %d is of process %d, which did not begin", e.Seq, e.Process)
	}
	if e.Kind == EventFork {
		if e.Child != len(st.Processes)+1 {
			return hallmark.Errorf(hallmark.KindInvalid, "event %d: process %d begins out of order", e.Seq, e.Child)
		}
		st.Processes = append(st.Processes, Process{Number: e.Child, Parent: e.Process, Started: e.Time})
		return nil
	}
	if e.Kind == EventConnect {
		st.Connects = append(st.Connects, Connect{Process: e.Process, Address: e.Address, Refused: e.Refused})
	}
	if e.Process == 0 {
		return nil
	}
	p := &st.Processes[e.Process-1]
	switch e.Kind {
	case EventExec:
		p.Execs = append(p.Execs, Exec{Path: e.Path, Digest: e.Digest, Args: few(e.Args)})
	case EventExit:
		p.Exited, p.Ended, p.Code, p.Signal = true, e.Time, e.Code, e.Signal
	}
	return nil
}

// few are the arguments that a summary keeps: a program may be given megabytes of
// them, and there may be a million programs. The event log has all.
func few(args []Raw) []Raw {
	const most = 8 << 10
	room := most
	for i, a := range args {
		if room -= len(a) + 16; room < 0 {
			return append(slices.Clone(args[:i]), "…")
		}
	}
	return args
}

func (s *Summary) file(step string, e Event) {
	v := version{e.Path, e.Digest}
	switch e.Kind {
	case EventRead:
		if r := s.reads[v]; r != nil {
			r.Readers++
			return
		}
		s.reads[v] = &Read{Path: e.Path, Digest: e.Digest, Size: e.Size, Step: step, Process: e.Process, Readers: 1, after: s.written[e.Digest]}
	case EventWrite:
		s.written[e.Digest] = true
		s.writes[v] = &Write{Path: e.Path, Digest: e.Digest, Size: e.Size, Step: step, Process: e.Process}
	case EventUnstable:
		s.Unstable = append(s.Unstable, Unstable{Step: step, Path: e.Path, Digest: e.Digest})
	}
}

// Reads are the versions of files that were read, by path and digest.
func (s *Summary) Reads() []*Read {
	return slices.SortedFunc(maps.Values(s.reads), func(a, b *Read) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Digest, b.Digest))
	})
}

// Writes are the versions of files that were written, by path and digest.
func (s *Summary) Writes() []*Write {
	return slices.SortedFunc(maps.Values(s.writes), func(a, b *Write) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Digest, b.Digest))
	})
}

// Wrote reports whether a process of the build wrote this content.
func (s *Summary) Wrote(d hallmark.Digest) bool { return s.written[d] }
