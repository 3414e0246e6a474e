// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/trace"
)

func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case sandbox.Alias:
		os.Exit(sandbox.Main())
	case trace.Alias:
		os.Exit(trace.Main())
	}
	os.Exit(m.Run())
}

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
	if e == trace.Kernel && os.Geteuid() != 0 {
		t.Skip("fanotify and BPF need root")
	}
	box, err := sandbox.New(sandbox.Config{Clock: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	spec := sandbox.Spec{
		Argv: []string{"sh", "-c", script}, Env: []string{"PATH=" + sandbox.Path()}, Dir: "/tmp", Stdout: &out, Stderr: &out,
		Limits: sandbox.Limits{Wall: 2 * time.Minute, Memory: 1 << 30, PIDs: 256, Disk: 256 << 20},
		Trace:  &sandbox.Trace{Engine: e, Log: filepath.Join(t.TempDir(), "log")},
	}
	if change != nil {
		change(&spec)
	}
	rep, err := box.RunAs(t.Context(), owner(spec), spec)
	if err != nil {
		t.Fatal(err)
	}
	r := recorded{out: out.String(), report: rep}
	f, err := os.Open(spec.Trace.Log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := build.ReadEvents(f, func(e build.Event) error { r.events = append(r.events, e); return nil }); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestFirst(t *testing.T) {
	r := run(t, trace.Kernel, "cd /workspace; mkdir d d/e; echo hello >d/e/x; mv d/e/x d/y; ln d/y d/z; ln sub/a sub/b; mv d dd; rm -r dd; rm -r sub; mkdir sub; ln -s x sub/y; cd /cache; echo x >z; mv z y; ls", func(s *sandbox.Spec) {
		place(t, s, map[string]string{"sub/a": "a"})
	})
	t.Log(r.out, r.report.Trace)
	for _, e := range r.events {
		if e.Kind == "read" || e.Kind == "exit" || e.Kind == "fork" {
			continue
		}
		b, _ := e.Encode()
		t.Logf("%s", b)
	}
}
