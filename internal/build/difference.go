// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// Written is one file as a process left it, and the program that wrote it.
type Written struct {
	Path    Raw
	Digest  hallmark.Digest // "": the other build did not write it
	Program Raw             // "": the log does not say
	Args    []Raw
}

// Difference is the first file in which two builds of the same inputs differ, in
// the order in which the first of them wrote.
type Difference struct {
	Step   int // from 0
	First  Written
	Second Written
}

// FirstDifference compares what two builds wrote, step by step, by their event
// logs. It reports nil when both wrote the same.
//
// A file is compared with the write of the same path that has the same number
// there; in places for temporary files, whose names are drawn, with the write of
// the same program and ending. A file that only one of them wrote counts when no
// file that both wrote differs before it in any step.
func FirstDifference(first, second []io.Reader) (*Difference, error) {
	var lone *Difference
	for i := range max(len(first), len(second)) {
		a, err := writesAt(first, i)
		if err != nil {
			return nil, fmt.Errorf("reading the event log of the first build, step %d: %w", i+1, err)
		}
		b, err := writesAt(second, i)
		if err != nil {
			return nil, fmt.Errorf("reading the event log of the second build, step %d: %w", i+1, err)
		}
		if d := firstOf(a, b); d != nil {
			d.Step = i
			if d.First.Digest != "" && d.Second.Digest != "" {
				return d, nil
			}
			if lone == nil {
				lone = d
			}
		}
	}
	return lone, nil
}

// place is a write with the number that it has among those of its name.
type place struct {
	name string
	n    int
}

type writes struct {
	order []place
	at    map[place]Written
}

func firstOf(a, b writes) *Difference {
	var lone *Difference
	for _, p := range a.order {
		x := a.at[p]
		y, ok := b.at[p]
		if ok && x.Digest != y.Digest {
			return &Difference{First: x, Second: y}
		}
		if !ok && lone == nil {
			lone = &Difference{First: x}
		}
	}
	if lone != nil {
		return lone
	}
	for _, p := range b.order {
		if _, ok := a.at[p]; !ok {
			return &Difference{Second: b.at[p]}
		}
	}
	return nil
}

// program is what a process is.
type program struct {
	path Raw
	args []Raw
}

func writesAt(logs []io.Reader, i int) (writes, error) {
	w := writes{at: map[place]Written{}}
	if i >= len(logs) {
		return w, nil
	}
	programs, counts := map[int]program{}, map[string]int{}
	err := ReadEvents(logs[i], func(e Event) error {
		switch e.Kind {
		case EventFork:
			programs[e.Child] = programs[e.Process]
		case EventExec:
			programs[e.Process] = program{e.Path, e.Args}
		case EventWrite:
			p := programs[e.Process]
			name := nameOf(string(e.Path), string(p.path))
			at := place{name, counts[name]}
			counts[name]++
			w.order = append(w.order, at)
			w.at[at] = Written{Path: e.Path, Digest: e.Digest, Program: p.path, Args: slices.Clone(p.args)}
		}
		return nil
	})
	return w, err
}

// nameOf is what a file is called in both builds.
func nameOf(file, program string) string {
	for _, d := range []string{"/tmp/", "/dev/shm/"} {
		if strings.HasPrefix(file, d) {
			return d + "*" + path.Ext(file) + " by " + program
		}
	}
	return file
}
