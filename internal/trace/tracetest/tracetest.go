// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package tracetest holds what every tracing engine must do, as a test.
package tracetest

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/trace"
)

// attacks is a program with the ways that a compiled program has.
//
//go:embed testdata/attack.c
var attacks string

// Engine is the contract of a tracing engine: what it must see, each proven by
// what would hide from it. The test's binary must be an agent and a sandbox's
// first process under their names (trace.Alias, sandbox.Alias).
func Engine(t *testing.T, e trace.Engine) {
	c := contract{engine: e}
	bin := input(t)
	compile(t, bin, "attack", attacks, "-pthread", "-ldl")
	c.attack = filepath.Join(bin, "attack")
	for _, test := range []struct {
		name string
		run  func(*testing.T, contract)
	}{
		{"files", testFiles}, {"ways to open", testWays}, {"deleted", testDeleted}, {"read-only mounts", testMounts},
		{"programs", testPrograms}, {"scripts", testScripts}, {"libraries", testLibraries}, {"setuid", testSetuid},
		{"io_uring", testUring}, {"memfd", testMemfd}, {"path flip", testFlip}, {"two versions", testVersions},
		{"shared mapping", testShared}, {"misled reader", testMisled}, {"known digests", testKnownDigests}, {"arguments", testArguments}, {"processes", testProcesses},
		{"names", testNames}, {"labels", testLabels}, {"fifo", testFifo}, {"passed descriptor", testPassed}, {"threads", testThreads}, {"stolen descriptor", testStolen}, {"fifo between threads", testThreadFifo},

		{"untraced child", testUntraced}, {"many opens", testManyOpens}, {"many processes", testManyProcesses},
		{"killed agent", testKilledAgent}, {"full disk", testFullDisk}, {"connections", testConnections},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, c) })
	}
}

// do runs one way of the attack program.
func (c contract) do(t *testing.T, dir, args string) recorded {
	t.Helper()
	return c.run(t, dir, "exec /bin.attack "+args, func(s *sandbox.Spec) {
		s.Mounts = append(s.Mounts, sandbox.Mount{Source: c.attack, Target: "/bin.attack"})
	})
}

// recorded is one traced run.
type recorded struct {
	t      *testing.T
	out    string
	report sandbox.Report
	events []build.Event
}

// contract runs programs under one engine.
type contract struct {
	engine trace.Engine
	attack string // testdata/attack.c, compiled
}

// run runs a shell script with dir mounted read-only at /in, and reads the log.
func (c contract) run(t *testing.T, dir, script string, change func(*sandbox.Spec)) recorded {
	t.Helper()
	s, err := sandbox.New(sandbox.Config{Clock: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	log := filepath.Join(t.TempDir(), "events")
	spec := sandbox.Spec{
		Argv: []string{"sh", "-c", script}, Env: []string{"PATH=" + sandbox.Path()}, Dir: "/tmp", Stdout: &out, Stderr: &out,
		Limits: sandbox.Limits{Wall: 10 * time.Minute, Disk: 256 << 20},
		Trace:  &sandbox.Trace{Engine: c.engine, Log: log},
	}
	if dir != "" {
		spec.Mounts = []sandbox.Mount{{Source: dir, Target: "/in"}}
	}
	if change != nil {
		change(&spec)
	}
	rep, err := s.Run(t.Context(), spec)
	if err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	r := recorded{t: t, out: out.String(), report: rep}
	f, err := os.Open(spec.Trace.Log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = build.ReadEvents(f, func(e build.Event) error { r.events = append(r.events, e); return nil })
	if err != nil && rep.Trace.Failure == "" {
		t.Fatal(err)
	}
	return r
}

// whole fails the test unless the trace is whole.
func (r recorded) whole() recorded {
	r.t.Helper()
	if r.report.Trace == nil || !r.report.Trace.Whole() {
		r.t.Fatalf("the trace is not whole: %+v\noutput: %s", r.report.Trace, r.out)
	}
	return r
}

// find returns the events of one kind whose path ends like that.
func (r recorded) find(kind build.EventKind, suffix string) []build.Event {
	var out []build.Event
	for _, e := range r.events {
		if e.Kind == kind && strings.HasSuffix(string(e.Path), suffix) {
			out = append(out, e)
		}
	}
	return out
}

// want fails the test unless there is an event of this kind with path and content.
func (r recorded) want(kind build.EventKind, suffix string, content []byte) {
	r.t.Helper()
	d := digest(content)
	for _, e := range r.find(kind, suffix) {
		if content == nil || e.Digest == d {
			return
		}
	}
	r.t.Errorf("no %s of %s with %.12s: %v\noutput: %s", kind, suffix, d, r.find(kind, suffix), r.out)
}

func digest(b []byte) hallmark.Digest {
	sum := sha256.Sum256(b)
	return hallmark.Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// write makes a file that everybody can read.
func write(t *testing.T, dir, name, content string) []byte {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	return []byte(content)
}

// input makes a directory for /in.
func input(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// compile builds a C program into dir.
func compile(t *testing.T, dir, name, source string, flags ...string) {
	t.Helper()
	src := filepath.Join(t.TempDir(), name+".c")
	if err := os.WriteFile(src, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", append([]string{"-O1", "-o", filepath.Join(dir, name), src}, flags...)...).CombinedOutput(); err != nil {
		t.Fatalf("compiling %s: %v\n%s", name, err, out)
	}
}

func host(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
