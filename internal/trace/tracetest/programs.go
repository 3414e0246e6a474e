// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package tracetest

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/trace"
)

func testPrograms(t *testing.T, c contract) {
	dir := input(t)
	compile(t, dir, "static", "int main(void){return 5;}", "-static")
	compile(t, dir, "dynamic", "int main(void){return 6;}")
	r := c.run(t, dir, "/in/static; echo $?; /in/dynamic; echo $?; cp /in/static /tmp/copy; /tmp/copy; rm /tmp/copy", nil).whole()
	if r.out != "5\n6\n" {
		t.Errorf("output %q", r.out)
	}
	r.want(build.EventExec, "/in/static", host(t, filepath.Join(dir, "static")))
	r.want(build.EventExec, "/in/dynamic", host(t, filepath.Join(dir, "dynamic")))
	r.want(build.EventExec, "/tmp/copy", host(t, filepath.Join(dir, "static")))
}

func testScripts(t *testing.T, c contract) {
	dir := input(t)
	script := write(t, dir, "script", "#!/bin/sh\necho ran\n")
	blind := write(t, dir, "blind", "#!/usr/bin/env true\n")
	r := c.run(t, dir, "/in/script with args; cd /in && ./blind", nil).whole()
	r.want(build.EventRead, "/in/script", script)
	r.want(build.EventRead, "/in/blind", blind) // which true never opens
	r.want(build.EventExec, "/env", host(t, "/usr/bin/env"))
	for _, e := range r.find(build.EventExec, "/dash") {
		if len(e.Args) == 4 && e.Args[1] == "/in/script" && e.Args[3] == "args" {
			return
		}
	}
	t.Errorf("the script was not run with its arguments: %v", r.find(build.EventExec, ""))
}

func testLibraries(t *testing.T, c contract) {
	dir := input(t)
	compile(t, dir, "plugin.so", "int answer(void){return 42;}", "-shared", "-fPIC")
	r := c.do(t, dir, "dlopen /in/plugin.so").whole()
	if r.out != "dlopen 42\n" {
		t.Errorf("output %q", r.out)
	}
	r.want(build.EventRead, "/in/plugin.so", host(t, filepath.Join(dir, "plugin.so")))
	for _, lib := range []string{"libc.so", "ld-linux", "ld.so.cache"} {
		found := false
		for _, e := range r.events {
			found = found || e.Kind == build.EventRead && strings.Contains(string(e.Path), lib) && e.Digest != ""
		}
		if !found {
			t.Errorf("%s was not recorded", lib)
		}
	}
}

func testSetuid(t *testing.T, c contract) {
	dir := input(t)
	compile(t, dir, "setuid", "#include <unistd.h>\n#include <stdio.h>\nint main(void){printf(\"%d\\n\",geteuid());return 0;}")
	if err := os.Chmod(filepath.Join(dir, "setuid"), 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	r := c.run(t, dir, "/in/setuid", nil).whole()
	if r.out != "1000\n" {
		t.Errorf("it runs as %q", r.out)
	}
	r.want(build.EventExec, "/in/setuid", host(t, filepath.Join(dir, "setuid")))
}

func testUring(t *testing.T, c contract) {
	if r := c.do(t, "", "uring").whole(); r.out != "io_uring missing\n" {
		t.Errorf("output %q", r.out)
	}
}

func testMemfd(t *testing.T, c contract) {
	dir := input(t)
	compile(t, dir, "static", "int main(void){return 5;}", "-static")
	r := c.do(t, dir, "hide /in/static arg").whole()
	if r.report.ExitCode != 5 && r.out == "memfd refused\n" {
		return // so it is not run at all
	}
	r.want(build.EventExec, "", append(host(t, filepath.Join(dir, "static")), "tail"...))
}

func testArguments(t *testing.T, c contract) {
	r := c.run(t, "", `exec perl -e 'exec "/usr/bin/true", "", "a\xffb", "new\nline", "back\\slash", "\xc3\xbc", "x" x 100_000, "y" x 100_000'`, nil).whole()
	want := []build.Raw{"/usr/bin/true", "", "a\xffb", "new\nline", `back\slash`, "ü", build.Raw(strings.Repeat("x", 100_000)), build.Raw(strings.Repeat("y", 100_000))}
	got := r.find(build.EventExec, "/true")
	if len(got) != 1 {
		t.Fatalf("%d programs", len(got))
	}
	if diff := cmp.Diff(want, got[0].Args); diff != "" {
		t.Errorf("arguments: %.500s", diff)
	}
}

func testProcesses(t *testing.T, c contract) {
	r := c.run(t, "", `(exit 3) & wait $!; sh -c 'kill -TERM $$'; python3 -c 'import os
if os.fork() == 0: os._exit(4)
os.wait()
pid = os.posix_spawn("/usr/bin/true", ["true"], {})
os.waitpid(pid, 0)'; exit 9`, nil).whole()
	codes := map[string]int{}
	parents := map[int]int{}
	for _, e := range r.events {
		switch e.Kind {
		case build.EventExit:
			codes[fmt.Sprint(e.Code, e.Signal)]++
		case build.EventFork:
			if _, twice := parents[e.Child]; twice {
				t.Errorf("two processes are %d", e.Child)
			}
			parents[e.Child] = e.Process
		}
	}
	for _, want := range []string{"3", "0SIGTERM", "4", "9"} {
		if codes[want] != 1 {
			t.Errorf("ends %v, want one %s", codes, want)
		}
	}
	if parents[1] != 0 || parents[2] != 1 {
		t.Errorf("parents %v", parents)
	}
	if n, m := len(r.find(build.EventFork, "")), len(r.find(build.EventExit, "")); n != m {
		t.Errorf("%d began, %d ended", n, m)
	}
}

// testUntraced: a child that asks not to be traced is not made, or is traced.
func testUntraced(t *testing.T, c contract) {
	r := c.do(t, "", "untraced").whole()
	if r.out != "untraced refused\n" {
		r.want(build.EventExec, "/true", host(t, "/usr/bin/true"))
	}
}

func testManyProcesses(t *testing.T, c contract) {
	const n = 500
	r := c.run(t, "", fmt.Sprintf(`i=0; while [ $i -lt %d ]; do /usr/bin/true $i & i=$((i+1)); [ $((i %% 20)) = 0 ] && wait; done; wait`, n), nil).whole()
	seen := map[build.Raw]bool{}
	for _, e := range r.find(build.EventExec, "/true") {
		if len(e.Args) == 2 {
			seen[e.Args[1]] = true
		}
	}
	if len(seen) != n {
		t.Errorf("%d programs of %d", len(seen), n)
	}
	if began, ended := len(r.find(build.EventFork, "")), len(r.find(build.EventExit, "")); began != n+1 || ended != n+1 {
		t.Errorf("%d began and %d ended, want %d", began, ended, n+1)
	}
}

// agents are the tracing agents that this process started.
func agents(t *testing.T) []int {
	t.Helper()
	all, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, f := range all {
		b, _ := os.ReadFile(f)
		for _, p := range strings.Fields(string(b)) {
			cmdline, _ := os.ReadFile("/proc/" + p + "/cmdline")
			pid, err := strconv.Atoi(p)
			if err == nil && strings.TrimRight(string(cmdline), "\x00") == trace.Alias {
				out = append(out, pid)
			}
		}
	}
	return out
}

// testKilledAgent: nothing goes on when nobody watches.
func testKilledAgent(t *testing.T, c contract) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	done := make(chan recorded)
	go func() {
		defer w.Close()
		done <- c.run(t, "", "", func(s *sandbox.Spec) {
			s.Argv, s.Stdout = []string{"sh", "-c", "echo up; sleep 1000 & sleep 1000; echo survived >&2"}, w
		})
	}()
	if _, err := io.ReadFull(r, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	found := agents(t)
	if len(found) != 1 {
		t.Fatalf("agents %v", found)
	}
	if err := syscall.Kill(found[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	got := <-done
	if got.report.ExitCode == 0 || got.report.Trace == nil || got.report.Trace.Whole() || got.report.Trace.Failure == "" {
		t.Errorf("%+v %+v", got.report, got.report.Trace)
	}
	if strings.Contains(got.out, "survived") {
		t.Error("it went on")
	}
	// The pipe ends when no process of the sandbox holds it any more.
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Errorf("%q %v", rest, err)
	}
}

func testConnections(t *testing.T, c contract) {
	r := c.run(t, "", `timeout 5 bash -c 'exec 3<>/dev/tcp/192.0.2.1/443'; timeout 5 bash -c 'exec 3<>/dev/tcp/127.0.0.1/9'`, nil).whole()
	found := map[string]bool{}
	for _, e := range r.events {
		if e.Kind == build.EventConnect && e.Process > 0 {
			found[fmt.Sprint(e.Address, " ", e.Refused)] = true
		}
	}
	if !found["192.0.2.1:443 true"] || !found["127.0.0.1:9 false"] {
		t.Errorf("%v", found)
	}
}
