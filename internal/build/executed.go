// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"cmp"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// scripts finds the scripts that one step executed. The kernel makes a process
// that executes a script its interpreter, and the record says that it did: the
// script itself is a file that the process is told to have read just before or just
// after (the engines differ), beside interpreter and loader, and whose name the
// interpreter gets as its first or second argument. A compiler that somebody
// wrapped in a script would otherwise look like a shell.
type scripts struct {
	read  map[int]map[Raw]hallmark.Digest // by process: what it ever read outside of writable places
	last  map[int]Executable              // by process: what it read last, since it began or last executed
	began map[int]*began                  // by process: an execution whose first reads are still to come
	found map[Executable]bool
}

// began is a program that has read nothing yet but itself and its loader.
type began struct {
	path   Raw
	named  []Raw // absolute names among its first arguments that nothing read has
	linked bool  // there are some
}

func newScripts() scripts {
	return scripts{began: map[int]*began{}, read: map[int]map[Raw]hallmark.Digest{}, last: map[int]Executable{}, found: map[Executable]bool{}}
}

func (s scripts) event(step string, e Event) {
	switch e.Kind {
	case EventRead:
		s.first(step, e)
		if e.Digest == "" || inWritable(string(e.Path)) {
			return
		}
		if s.read[e.Process] == nil {
			s.read[e.Process] = map[Raw]hallmark.Digest{}
		}
		s.read[e.Process][e.Path] = e.Digest
		s.last[e.Process] = Executable{Path: string(e.Path), Digest: e.Digest, Step: step}
	case EventExec:
		s.executed(step, e)
		delete(s.last, e.Process)
	case EventExit:
		delete(s.last, e.Process)
		delete(s.read, e.Process)
		delete(s.began, e.Process)
	}
}

// executed takes the named script, or what the process opened last where an
// absolute name leads there by a link. A relative name is of the workspace; that
// of a link outside of it, after a change of directory, is not found.
func (s scripts) executed(step string, e Event) {
	if !e.Script {
		delete(s.began, e.Process)
		return
	}
	b := &began{path: e.Path}
	s.began[e.Process] = b
	for _, arg := range e.Args[min(1, len(e.Args)):min(3, len(e.Args))] {
		if !strings.HasPrefix(string(arg), "/") || inWritable(string(arg)) {
			continue
		}
		if d, ok := s.read[e.Process][arg]; ok {
			if arg != e.Path {
				s.found[Executable{Path: string(arg), Digest: d, Step: step}] = true
			}
		} else {
			b.named, b.linked = append(b.named, arg), true
		}
	}
	if x, ok := s.last[e.Process]; ok && b.linked && x.Path != string(e.Path) {
		s.found[x] = true
	}
}

// first looks at what a program reads first: itself, its loader and, if it is an
// interpreter that was executed for one, the script. The loader's own files end
// that.
func (s scripts) first(step string, e Event) {
	b := s.began[e.Process]
	if b == nil || e.Path == b.path {
		return
	}
	named := slices.Contains(b.named, e.Path)
	if !named && strings.HasPrefix(path.Base(string(e.Path)), "ld-") {
		return
	}
	delete(s.began, e.Process)
	if b.linked && e.Digest != "" && !inWritable(string(e.Path)) && (named || !strings.HasPrefix(string(e.Path), "/etc/ld.so")) {
		s.found[Executable{Path: string(e.Path), Digest: e.Digest, Step: step}] = true
	}
}

// Programs are the programs that ran, scripts among them, each path and digest
// once a step, by step and path.
func (s *Summary) Programs() []Executable {
	var out []Executable
	for _, st := range s.Steps {
		seen := map[Executable]bool{}
		for _, p := range st.Processes {
			for _, x := range p.Execs {
				seen[Executable{Path: string(x.Path), Digest: x.Digest, Step: st.Step}] = true
			}
		}
		maps.Copy(seen, st.scripts.found)
		out = append(out, slices.SortedFunc(maps.Keys(seen), func(a, b Executable) int {
			return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Digest, b.Digest))
		})...)
	}
	return out
}

// Written are the contents that the build's processes left, sorted.
func (s *Summary) Written() []hallmark.Digest { return slices.Sorted(maps.Keys(s.written)) }
