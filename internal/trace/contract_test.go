// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"bytes"
	"os"
	"path/filepath"
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
	rep, err := box.Run(t.Context(), spec)
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
	r := run(t, trace.Kernel, "echo hello >x; cat x; cp /bin/true t; ./t; (exit 3); ls / | cat; kill -9 $$", nil)
	t.Log(r.out, r.report.Trace)
	for _, e := range r.events {
		b, _ := e.Encode()
		t.Logf("%s", b)
	}
}
