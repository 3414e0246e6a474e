// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
)

// TestExplainImage: every file of an image is the image's. What the build made, and
// what an image does not hold in these bytes, is not, whatever its name.
func TestExplainImage(t *testing.T) {
	s := NewSummary()
	err := s.Add("build", logOf(t,
		Event{Kind: EventFork, Child: 1},
		Event{Kind: EventRead, Process: 1, Path: "/usr/bin/cc", Digest: of("cc")},
		Event{Kind: EventRead, Process: 1, Path: "/usr/bin/ld", Digest: of("other")},
		Event{Kind: EventRead, Process: 1, Path: "/memfd:x", Digest: of("x")},
		Event{Kind: EventRead, Process: 1, Path: "/tmp/a.o", Digest: of("a.o")},
		Event{Kind: EventRead, Process: 1, Path: "/cache/b", Digest: of("b")},
		Event{Kind: EventRead, Process: 1, Path: "/workspace/gen.c", Digest: of("gen")},
		Event{Kind: EventRead, Process: 1, Path: "/workspace/main.c", Digest: of("swapped")},
	))
	if err != nil {
		t.Fatal(err)
	}
	held := map[string]hallmark.Digest{"usr/bin/cc": of("cc"), "usr/bin/ld": of("ld")}
	got := map[Raw]Origin{}
	for _, m := range (Origins{
		Workspace: "/workspace", Source: map[string]hallmark.Digest{"main.c": of("main")}, Empty: []string{"/tmp", "/cache"},
		Places: []Place{{
			Prefix: "/", Origin: OriginToolchain, Owner: func(string) (string, bool) { return "pkg:oci/x", true },
			Holds: func(p string, d hallmark.Digest) bool { return held[p] == d },
		}},
	}).Explain(s) {
		got[m.Path] = m.Origin
	}
	if d := cmp.Diff(map[Raw]Origin{
		"/usr/bin/cc": OriginToolchain, "/usr/bin/ld": OriginUnexplained, "/memfd:x": OriginUnexplained,
		"/tmp/a.o": OriginBuild, "/cache/b": OriginBuild, "/workspace/gen.c": OriginBuild, "/workspace/main.c": OriginUnexplained,
	}, got); d != "" {
		t.Error(d)
	}
}

// TestFewArguments: megabytes of arguments stay in the log.
func TestFewArguments(t *testing.T) {
	s := NewSummary()
	args := []Raw{"cc", Raw(strings.Repeat("x", 1<<20)), "last"}
	if err := s.Add("build", logOf(t, Event{Kind: EventFork, Child: 1}, Event{Kind: EventExec, Process: 1, Path: "/cc", Digest: of("cc"), Args: args})); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]Raw{"cc", "…"}, s.Steps[0].Processes[0].Execs[0].Args); d != "" {
		t.Error(d)
	}
}
