// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/trace"
)

// recorded is what one traced run left.
type recorded struct {
	out    string
	report sandbox.Report
	events []build.Event
}

// place gives a spec a workspace with files, and a cache.
func place(t *testing.T, s *sandbox.Spec, files map[string]string) {
	t.Helper()
	dir := t.TempDir()
	id := sandbox.HostID()
	for _, d := range []string{"scratch", "cache"} {
		if err := sandbox.NewScratch(filepath.Join(dir, d), id); err != nil {
			t.Fatal(err)
		}
	}
	// The kernel leaves the overlay's own directory without any mode, and an ordinary
	// user could not remove it.
	t.Cleanup(func() { os.Chmod(filepath.Join(dir, "scratch", "work", "work"), 0o700) })
	src := filepath.Join(dir, "src")
	for name, text := range files {
		at := filepath.Join(src, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(src, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := sandbox.Give(src, id); err != nil {
		t.Fatal(err)
	}
	s.Workspace = &sandbox.Workspace{Lower: src, Scratch: filepath.Join(dir, "scratch"), Target: "/workspace"}
	s.Mounts = append(s.Mounts, sandbox.Mount{Source: filepath.Join(dir, "cache"), Target: "/cache", Writable: true})
}

// owner is the user that the scratch directory of a spec was made for.
func owner(s sandbox.Spec) int {
	if s.Workspace == nil {
		return sandbox.HostID()
	}
	var st syscall.Stat_t
	if err := syscall.Stat(s.Workspace.Scratch, &st); err != nil {
		return sandbox.HostID()
	}
	return int(st.Uid)
}

// run runs a script with tracing.
func run(t *testing.T, e trace.Engine, script string, change func(*sandbox.Spec)) recorded {
	t.Helper()
	box, err := sandbox.New(sandbox.Config{Clock: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	spec := sandbox.Spec{
		Argv: []string{"sh", "-c", script}, Env: []string{"PATH=" + sandbox.Path()}, Dir: "/tmp", Stdout: &out, Stderr: &out,
		Limits: sandbox.Limits{Wall: 40 * time.Minute, Memory: 1 << 30, PIDs: 256, Disk: 256 << 20},
		Trace:  &sandbox.Trace{Engine: e, Log: filepath.Join(t.TempDir(), "log")},
	}
	if change != nil {
		change(&spec)
	}
	rep, err := box.RunAs(t.Context(), owner(spec), spec)
	if err != nil && strings.Contains(err.Error(), "no engine can trace here") {
		t.Skip("this engine is not part of this build")
	}
	if err != nil {
		t.Fatal(err)
	}
	r := recorded{out: out.String(), report: rep}
	if t.Failed() || rep.Trace == nil || rep.Trace.Digest == "" {
		return r
	}
	f, err := os.Open(spec.Trace.Log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := build.ReadEvents(f, func(e build.Event) error { r.events = append(r.events, e); return nil }); err != nil && rep.Trace.Failure == "" {
		t.Fatal(err)
	}
	return r
}

// whole fails the test unless the trace is whole and the script ended well.
func (r recorded) whole(t *testing.T) recorded {
	t.Helper()
	if r.report.Trace == nil || !r.report.Trace.Whole() {
		t.Fatalf("the trace is not whole: %+v\n%s", r.report.Trace, r.out)
	}
	if r.report.ExitCode != 0 {
		t.Fatalf("exit %d %s:\n%s", r.report.ExitCode, r.report.Signal, r.out)
	}
	return r
}

func sha(text string) hallmark.Digest {
	return hallmark.Digest(fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(text))))
}

func shaOf(t *testing.T, path string) hallmark.Digest {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sha(string(b))
}

// select picks events of a kind whose path is one of those given; none: all.
func (r recorded) pick(kind build.EventKind, paths ...string) []build.Event {
	var out []build.Event
	for _, e := range r.events {
		if e.Kind == kind && (len(paths) == 0 || slices.Contains(paths, string(e.Path))) {
			out = append(out, e)
		}
	}
	return out
}

// read fails the test unless some process read exactly these contents of a path,
// in any order.
func (r recorded) read(t *testing.T, path string, want ...hallmark.Digest) {
	t.Helper()
	got := map[hallmark.Digest]bool{}
	for _, e := range r.pick(build.EventRead, path) {
		got[e.Digest] = true
	}
	ok := len(got) == len(want)
	for _, d := range want {
		ok = ok && got[d]
	}
	if !ok {
		t.Errorf("%s was read as %v, want %v\n%s", path, got, want, r.text())
	}
}

// has fails the test unless there is such an event.
func (r recorded) has(t *testing.T, kind build.EventKind, path, to string, d hallmark.Digest) {
	t.Helper()
	for _, e := range r.pick(kind, path) {
		if string(e.To) == to && (d == "" || e.Digest == d) {
			return
		}
	}
	t.Errorf("no %s of %s %s %s in\n%s", kind, path, to, d, r.text())
}

// text is the log without what the toolchain reads.
func (r recorded) text() string {
	var b strings.Builder
	for _, e := range r.events {
		if e.Kind == build.EventRead && strings.HasPrefix(string(e.Path), "/usr/") {
			continue
		}
		line := e.Encode()
		fmt.Fprintf(&b, "%.300s\n", line)
	}
	return b.String()
}

// compile builds a C program on the host.
func compile(t *testing.T, source string, flags ...string) string {
	t.Helper()
	gcc, err := sandbox.Find("gcc")
	if err != nil {
		t.Skip("no C compiler")
	}
	dir := t.TempDir()
	src, out := filepath.Join(dir, "p.c"), filepath.Join(dir, "p")
	if err := os.WriteFile(src, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	if b, err := exec.Command(gcc, append([]string{"-o", out, src}, flags...)...).CombinedOutput(); err != nil {
		t.Fatalf("compiling: %v\n%s", err, b)
	}
	return out
}

// mount shows a host file or directory at a place inside.
func mount(source, target string) func(*sandbox.Spec) {
	return func(s *sandbox.Spec) { s.Mounts = append(s.Mounts, sandbox.Mount{Source: source, Target: target}) }
}

// engines runs a test with each engine.
func engines(t *testing.T, f func(t *testing.T, e trace.Engine)) {
	for name, e := range map[string]trace.Engine{"kernel": trace.Kernel, "ptrace": trace.Ptrace} {
		t.Run(name, func(t *testing.T) {
			if e == trace.Kernel && !trace.KernelWorks() {
				t.Skip("fanotify and BPF can't be used here: they need root, and the machine's own namespaces")
			}
			f(t, e)
		})
	}
}
