// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
)

func logOf(t *testing.T, events ...Event) *bytes.Buffer {
	t.Helper()
	var out bytes.Buffer
	for i, e := range events {
		e.Seq = int64(i + 1)
		out.Write(e.Encode())
	}
	return &out
}

func of(s string) hallmark.Digest { return hallmark.DigestOf([]byte(s)) }

// traced is a build of one source file with an undeclared input.
func traced(t *testing.T) *Summary {
	t.Helper()
	s := NewSummary()
	err := s.Add("build", logOf(t,
		Event{Kind: EventFork, Child: 1},
		Event{Kind: EventExec, Process: 1, Path: "/usr/bin/cc", Digest: of("cc"), Args: []Raw{"cc"}},
		Event{Kind: EventRead, Process: 1, Path: "/workspace/main.c", Digest: of("main"), Size: 4},
		Event{Kind: EventRead, Process: 1, Path: "/workspace/changed.c", Digest: of("new"), Size: 3},
		Event{Kind: EventRead, Process: 1, Path: "/workspace/moved.c", Digest: of("main"), Size: 4},
		Event{Kind: EventRead, Process: 1, Path: "/usr/lib/libc.so", Digest: of("libc")},
		Event{Kind: EventRead, Process: 1, Path: "/opt/other.h", Digest: of("other")},
		Event{Kind: EventRead, Process: 1, Path: "/proc/self/maps"},
		Event{Kind: EventRead, Process: 1, Path: "/deps/x@v1/x.go", Digest: of("x")},
		Event{Kind: EventRead, Process: 1, Path: "/deps/y.go", Digest: of("y")},
		Event{Kind: EventFork, Process: 1, Child: 2},
		Event{Kind: EventWrite, Process: 2, Path: "/tmp/a.o", Digest: of("object"), Size: 6},
		Event{Kind: EventExit, Process: 2, Code: 1},
		Event{Kind: EventRead, Process: 1, Path: "/tmp/a.o", Digest: of("object")},
		Event{Kind: EventRead, Process: 1, Path: "/workspace/own", Digest: of("object")},
		Event{Kind: EventRead, Process: 1, Path: "/tmp/half-written", Digest: of("half")},
		Event{Kind: EventRead, Process: 1, Path: "/workspace/half-written", Digest: of("half")},
		Event{Kind: EventConnect, Process: 1, Address: "127.0.0.1:1"},
		Event{Kind: EventUnstable, Path: "/workspace/main.c", Digest: of("later")},
		Event{Kind: EventExit, Process: 1, Signal: "SIGKILL"},
	))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestExplain(t *testing.T) {
	o := Origins{
		Workspace: "/workspace", Source: map[string]hallmark.Digest{"main.c": of("main"), "changed.c": of("old")}, Empty: []string{"/tmp"},
		Places: []Place{
			{Prefix: "/", Origin: OriginToolchain, Owner: func(p string) (string, bool) { return "pkg:deb/x", strings.HasPrefix(p, "usr/") }},
			{Prefix: "/proc", Origin: OriginKernel},
			{Prefix: "/deps", Origin: OriginDependency, Owner: func(p string) (string, bool) {
				name, _, ok := strings.Cut(p, "/")
				return "pkg:golang/" + name, ok
			}},
		},
	}
	got := map[Raw]string{}
	all, err := o.Explain(traced(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		got[m.Path] = strings.TrimSpace(string(m.Origin) + " " + m.Package)
	}
	want := map[Raw]string{
		"/workspace/main.c": "source", "/workspace/moved.c": "source", "/workspace/changed.c": "unexplained", "/usr/lib/libc.so": "toolchain pkg:deb/x",
		"/opt/other.h": "unexplained", "/proc/self/maps": "kernel", "/deps/x@v1/x.go": "dependency pkg:golang/x@v1", "/deps/y.go": "unexplained",
		"/tmp/a.o": "build", "/workspace/own": "build", "/tmp/half-written": "build", "/workspace/half-written": "build",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	m, err := Collate(all)
	if err != nil {
		t.Fatal(err)
	}
	if m.Files != 8 || len(m.Unexplained) != 3 || m.Digest != hallmark.DigestOf(m.List) || len(m.Groups) != 5 {
		t.Errorf("collated %+v", m)
	}
	// Another digest of any one file is another list and another group.
	all[0].Digest = of("other content")
	if again, err := Collate(all); err != nil || again.Digest == m.Digest {
		t.Errorf("a changed file leaves the list as it was: %v", err)
	}
}

func TestSummary(t *testing.T) {
	s := traced(t)
	want := []Process{
		{Number: 1, Execs: []Exec{{Path: "/usr/bin/cc", Digest: of("cc"), Args: []Raw{"cc"}}}, Exited: true, Signal: "SIGKILL"},
		{Number: 2, Parent: 1, Exited: true, Code: 1},
	}
	if d := cmp.Diff(want, s.Steps[0].Processes); d != "" {
		t.Error(d)
	}
	if len(s.Steps[0].Connects) != 1 || len(s.Unstable) != 1 || len(s.Programs()) != 1 {
		t.Errorf("summary %+v", s)
	}
	list, n, untraced, err := Products(s, map[Raw]hallmark.Digest{"/tmp/a.o": of("object"), "/workspace/copy": of("libc"), "/workspace/ghost": of("from nowhere")})
	if err != nil || n != 1 || !strings.Contains(string(list), `"left":true`) {
		t.Errorf("products %q, %d, %v", list, n, err)
	}
	if d := cmp.Diff([]Raw{"/workspace/ghost"}, untraced); d != "" {
		t.Error(d)
	}
}

// TestSummaryRefuses: a log that contradicts itself is no record.
func TestSummaryRefuses(t *testing.T) {
	for name, events := range map[string][]Event{
		"unborn process": {{Kind: EventExit, Process: 1}},
		"child order":    {{Kind: EventFork, Child: 2}},
		"negative":       {{Kind: EventExit, Process: -1}},
	} {
		if err := NewSummary().Add("x", logOf(t, events...)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
