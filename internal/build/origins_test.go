// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"errors"
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
	all, err := (Origins{
		Workspace: "/workspace", Source: map[string]hallmark.Digest{"main.c": of("main")}, Empty: []string{"/tmp", "/cache"},
		Places: []Place{{
			Prefix: "/", Origin: OriginToolchain, Owner: func(string) (string, bool) { return "pkg:oci/x", true },
			Holds: func(p string, d hallmark.Digest) bool { return held[p] == d },
		}},
	}).Explain(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		got[m.Path] = m.Origin
	}
	if d := cmp.Diff(map[Raw]Origin{
		"/usr/bin/cc": OriginToolchain, "/usr/bin/ld": OriginUnexplained, "/memfd:x": OriginUnexplained,
		"/tmp/a.o": OriginBuild, "/cache/b": OriginBuild, "/workspace/gen.c": OriginBuild, "/workspace/main.c": OriginUnexplained,
	}, got); d != "" {
		t.Error(d)
	}
}

// TestExplainContent: a file of a package that has other bytes than the package
// declares is explained by nothing; what is declared by nobody is counted; and
// only what the platform has is looked at.
func TestExplainContent(t *testing.T) {
	s := NewSummary()
	err := s.Add("build", logOf(t,
		Event{Kind: EventFork, Child: 1},
		Event{Kind: EventRead, Process: 1, Path: "/usr/bin/cc", Digest: of("cc")},
		Event{Kind: EventRead, Process: 1, Path: "/usr/bin/ld", Digest: of("other")},
		Event{Kind: EventRead, Process: 1, Path: "/usr/lib/made.so", Digest: of("made")},
		Event{Kind: EventRead, Process: 1, Path: "/opt/foreign.so", Digest: of("foreign")},
		Event{Kind: EventRead, Process: 1, Path: "/workspace/main.c", Digest: of("main")},
		Event{Kind: EventRead, Process: 1, Path: "/usr/dir"},
	))
	if err != nil {
		t.Fatal(err)
	}
	asked := map[string]bool{}
	o := Origins{
		Workspace: "/workspace", Source: map[string]hallmark.Digest{"main.c": of("main")},
		Places: []Place{{
			Prefix: "/", Origin: OriginToolchain, Owner: func(p string) (string, bool) { return "pkg:deb/x", strings.HasPrefix(p, "usr/") },
			Inspect: func(p string, d hallmark.Digest) (Inspection, error) {
				asked[p] = true
				switch {
				case d == of("cc"):
					return Inspection{Content: ContentDeclared}, nil
				case d == of("other"):
					return Inspection{Content: ContentAltered, Why: "another sum"}, nil
				}
				return Inspection{Content: ContentUndeclared, Code: true}, nil
			},
		}},
	}
	all, err := o.Explain(s)
	if err != nil {
		t.Fatal(err)
	}
	got := map[Raw]string{}
	for _, m := range all {
		got[m.Path] = strings.TrimSpace(strings.Join([]string{string(m.Origin), m.Package, string(m.Content), m.Why, map[bool]string{true: "code"}[m.Code]}, " "))
	}
	if d := cmp.Diff(map[Raw]string{
		"/usr/bin/cc": "toolchain pkg:deb/x declared", "/usr/bin/ld": "unexplained pkg:deb/x altered another sum", "/usr/lib/made.so": "toolchain pkg:deb/x undeclared  code",
		"/opt/foreign.so": "unexplained    code", "/workspace/main.c": "source", "/usr/dir": "toolchain pkg:deb/x",
	}, got); d != "" {
		t.Error(d)
	}
	if asked["workspace/main.c"] || asked["usr/dir"] {
		t.Errorf("looked at: %v", asked)
	}
	list, err := Collate(all)
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Unexplained) != 2 || list.Groups[1].Undeclared != 1 {
		t.Errorf("%+v", list)
	}
	o.Places[0].Inspect = func(string, hallmark.Digest) (Inspection, error) { return Inspection{}, errors.New("no database") }
	if _, err := o.Explain(s); err == nil {
		t.Error("what can't be compared passes")
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
