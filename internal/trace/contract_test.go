// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
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
		Limits: sandbox.Limits{Wall: 2 * time.Minute, Disk: 256 << 20},
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

// contracts are what every engine must do, each proven by who would hide from it.
// Directories given to run are /in inside; attack is testdata/attack.c.
func suite(t *testing.T, c contract) {
	bin := input(t)
	source, err := os.ReadFile("testdata/attack.c")
	if err != nil {
		t.Fatal(err)
	}
	compile(t, bin, "attack", string(source), "-pthread", "-ldl")
	c.attack = filepath.Join(bin, "attack")
	for _, test := range []struct {
		name string
		run  func(*testing.T, contract)
	}{
		{"files", testFiles}, {"ways to open", testWays}, {"deleted", testDeleted}, {"read-only mounts", testMounts},
		{"programs", testPrograms}, {"scripts", testScripts}, {"libraries", testLibraries}, {"setuid", testSetuid},
		{"io_uring", testUring}, {"memfd", testMemfd}, {"path flip", testFlip}, {"two versions", testVersions},
		{"shared mapping", testShared}, {"misled reader", testMisled}, {"arguments", testArguments}, {"processes", testProcesses},
		{"names", testNames}, {"labels", testLabels}, {"fifo", testFifo}, {"passed descriptor", testPassed}, {"threads", testThreads},
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

func testFiles(t *testing.T, c contract) {
	dir := input(t)
	a := write(t, dir, "a.txt", "hello")
	r := c.run(t, dir, "cat /in/a.txt; echo made >/tmp/b; cat /tmp/b; exit 7", nil).whole()
	if r.report.ExitCode != 7 {
		t.Errorf("%+v", r.report)
	}
	r.want(build.EventRead, "/in/a.txt", a)
	r.want(build.EventWrite, "/tmp/b", []byte("made\n"))
	r.want(build.EventMake, "/tmp/b", nil)
	r.want(build.EventRead, "/tmp/b", []byte("made\n"))
	r.want(build.EventExec, "/cat", host(t, "/usr/bin/cat"))
}

func testWays(t *testing.T, c contract) {
	dir := input(t)
	d := filepath.Join(dir, "d")
	if err := os.Mkdir(d, 0o755); err != nil {
		t.Fatal(err)
	}
	names := []string{"openat", "opath", "openat2", "relative", "dots", "open", "reopen", "mmap"}
	for _, n := range names {
		write(t, d, n, "content of "+n)
	}
	write(t, d, "symlinked", "content of symlink")
	if err := os.Symlink("symlinked", filepath.Join(d, "tosymlink")); err != nil {
		t.Fatal(err)
	}
	r := c.do(t, dir, "ways").whole()
	if r.report.ExitCode != 0 {
		t.Fatalf("%+v\n%s", r.report, r.out)
	}
	for _, n := range names {
		r.want(build.EventRead, "/in/d/"+n, []byte("content of "+n))
	}
	r.want(build.EventRead, "/in/d/symlinked", []byte("content of symlink"))
	r.want(build.EventWrite, "/tmp/written2", []byte("two"))
	r.want(build.EventWrite, "/tmp/creat", []byte("made"))
	r.want(build.EventWrite, "/tmp/append", []byte("app"))
	r.want(build.EventWrite, "/tmp/append", []byte("a"))
}

func testDeleted(t *testing.T, c contract) {
	r := c.do(t, "", "deleted").whole()
	r.want(build.EventRead, "", []byte("gone"))
	r.want(build.EventWrite, "", []byte("tmpfile"))
	r.want(build.EventRead, "/tmp/linked", []byte("tmpfile"))
}

func testMounts(t *testing.T, c contract) {
	dir, other := input(t), input(t)
	a := write(t, dir, "a", "one")
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "hard")); err != nil {
		t.Fatal(err)
	}
	b := write(t, other, "b", "two")
	r := c.run(t, dir, "cat /in/hard /other/b /in/sub/b", func(s *sandbox.Spec) {
		s.Mounts = append(s.Mounts, sandbox.Mount{Source: other, Target: "/other"}, sandbox.Mount{Source: other, Target: "/tmp/again"})
	}).whole()
	r.want(build.EventRead, "/in/hard", a)
	r.want(build.EventRead, "/other/b", b)
}

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

// testFlip: what was opened is what is recorded, not what the path said before or
// after.
func testFlip(t *testing.T, c contract) {
	const n = 2000
	dir := input(t)
	for i := range n {
		write(t, dir, fmt.Sprintf("g-%d", i), "good")
		write(t, dir, fmt.Sprintf("e-%d", i), "evil")
	}
	r := c.do(t, dir, fmt.Sprintf("flip /in %d", n)).whole()
	var really, told []string
	really = strings.Fields(r.out)
	for _, e := range r.events {
		if name := strings.TrimPrefix(string(e.Path), "/in/"); e.Kind == build.EventRead && name != string(e.Path) {
			told = append(told, name)
			want := digest([]byte("good"))
			if name[0] == 'e' {
				want = digest([]byte("evil"))
			}
			if e.Digest != want {
				t.Errorf("%s has %s", name, e.Digest)
			}
		}
	}
	if diff := cmp.Diff(really, told); diff != "" {
		t.Errorf("really opened (-), recorded (+):\n%.2000s", diff)
	}
	if evil := strings.Count(r.out, "e-"); evil == 0 || evil == n {
		t.Logf("the path was never caught while it changed: %d evil of %d", evil, n)
	}
}

func testVersions(t *testing.T, c contract) {
	r := c.run(t, "", `perl -e 'for my $v ("one", "two") { open my $o, ">", "/tmp/v"; print $o $v; close $o; open my $i, "<", "/tmp/v"; print <$i>; close $i }'`, nil).whole()
	if r.out != "onetwo" {
		t.Errorf("output %q", r.out)
	}
	for _, v := range []string{"one", "two"} {
		r.want(build.EventWrite, "/tmp/v", []byte(v))
		r.want(build.EventRead, "/tmp/v", []byte(v))
	}
	if u := r.find(build.EventUnstable, ""); len(u) > 0 {
		t.Errorf("nobody was misled: %v", u)
	}
}

func testShared(t *testing.T, c contract) {
	r := c.do(t, "", "shared").whole()
	r.want(build.EventRead, "/tmp/shared", []byte("beforE"))
	r.want(build.EventUnstable, "/tmp/shared", []byte("after!"))
	r.want(build.EventWrite, "/tmp/shared", []byte("after!"))
}

func testMisled(t *testing.T, c contract) {
	r := c.do(t, "", "misled").whole()
	if r.out != "misled DSECO\n" {
		t.Errorf("output %q", r.out)
	}
	r.want(build.EventRead, "/tmp/half", []byte("firstfirst"))
	r.want(build.EventUnstable, "/tmp/half", []byte("SECONDSECO"))
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

func testNames(t *testing.T, c contract) {
	r := c.run(t, "", `mkdir -p /tmp/d; cd /tmp/d; echo x >a; mv a b; ln b hard; ln -s b soft; mkfifo pipe; rm b; mkdir e; rmdir e
		ln -s /tmp/d /tmp/way; mv /tmp/way/hard /tmp/way/moved; python3 -c 'import os
d = os.open("/tmp", os.O_RDONLY); os.rename("d/moved", "d/again", src_dir_fd=d, dst_dir_fd=d); os.unlink("d/none") if os.path.exists("/tmp/d/none") else 0'
		mv nothing elsewhere 2>/dev/null; true`, nil).whole()
	for _, want := range []string{
		"make /tmp/d ", "make /tmp/d/a ", "rename /tmp/d/a /tmp/d/b", "link /tmp/d/b /tmp/d/hard", "make /tmp/d/soft ", "make /tmp/d/pipe ",
		"remove /tmp/d/b ", "make /tmp/d/e ", "remove /tmp/d/e ", "rename /tmp/d/hard /tmp/d/moved", "rename /tmp/d/moved /tmp/d/again",
	} {
		found := false
		for _, e := range r.events {
			found = found || fmt.Sprintf("%s %s %s", e.Kind, e.Path, e.To) == want
		}
		if !found {
			t.Errorf("no %q", want)
		}
	}
	for _, e := range r.events {
		if strings.Contains(string(e.Path), "nothing") {
			t.Errorf("a call that failed is recorded: %+v", e)
		}
	}
}

// testLabels: what has no content of its own is recorded by its name at most.
func testLabels(t *testing.T, c contract) {
	r := c.run(t, "", "cat /proc/self/status >/dev/null; ls /usr >/dev/null; head -c 3 /dev/urandom >/dev/null", nil).whole()
	for _, e := range r.events {
		special := strings.HasPrefix(string(e.Path), "/proc/") || strings.HasPrefix(string(e.Path), "/dev/")
		if special && e.Digest != "" || e.Path == "/usr" {
			t.Errorf("%+v", e)
		}
	}
}

func testFifo(t *testing.T, c contract) {
	r := c.run(t, "", `mkfifo /tmp/f; cat /tmp/f & p=$!; cat /usr/bin/true >/tmp/o; for i in 1 2 3 4 5; do /usr/bin/true; done; echo through >/tmp/f; wait $p`, nil).whole()
	if r.out != "through\n" {
		t.Errorf("output %q", r.out)
	}
}

func testPassed(t *testing.T, c contract) {
	dir := input(t)
	passed := write(t, dir, "passed", "handed over")
	r := c.do(t, dir, "pass").whole()
	if r.out != "passed handed over\n" {
		t.Errorf("output %q", r.out)
	}
	r.want(build.EventRead, "/in/passed", passed)
}

func testThreads(t *testing.T, c contract) {
	dir := input(t)
	if err := os.Mkdir(filepath.Join(dir, "t"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		for j := range 200 {
			write(t, dir, fmt.Sprintf("t/%d-%d", i, j), fmt.Sprint(i, j))
		}
	}
	odd := write(t, dir, "odd", "odd")
	r := c.do(t, dir, "threads").whole()
	if got := len(r.find(build.EventRead, "")) - len(r.libraries()); got != 8*200 {
		t.Errorf("%d files of %d", got, 8*200)
	}
	if n := len(r.find(build.EventFork, "")); n != 1 {
		t.Errorf("%d processes, want 1", n)
	}
	r = c.do(t, dir, "threadexec /usr/bin/cat /in/odd").whole()
	r.want(build.EventRead, "/in/odd", odd)
	if n, m := len(r.find(build.EventFork, "")), len(r.find(build.EventExit, "")); n != 1 || m != 1 {
		t.Errorf("%d began, %d ended, want 1", n, m)
	}
	r = c.do(t, dir, "oddthread").whole()
	r.want(build.EventRead, "/in/odd", odd)
	if n := len(r.find(build.EventFork, "")); n != 1 {
		t.Errorf("%d processes, want 1", n)
	}
}

// libraries are the reads outside of /in.
func (r recorded) libraries() []build.Event {
	var out []build.Event
	for _, e := range r.find(build.EventRead, "") {
		if !strings.HasPrefix(string(e.Path), "/in/") {
			out = append(out, e)
		}
	}
	return out
}

// testUntraced: a child that asks not to be traced is not made, or is traced.
func testUntraced(t *testing.T, c contract) {
	r := c.do(t, "", "untraced").whole()
	if r.out != "untraced refused\n" {
		r.want(build.EventExec, "/true", host(t, "/usr/bin/true"))
	}
}

func testManyOpens(t *testing.T, c contract) {
	n := 30_000
	if testing.Short() {
		n = 3000
	}
	r := c.run(t, "", fmt.Sprintf(`python3 - <<'E'
import os
os.mkdir("/tmp/m")
for i in range(%[1]d // 4): open("/tmp/m/%%d" %% i, "w").write(str(i))
for p in range(4):
    if os.fork() == 0:
        for i in range(%[1]d // 4): os.close(os.open("/tmp/m/%%d" %% i, os.O_RDONLY))
        os._exit(0)
for p in range(4): os.wait()
E`, n), nil).whole()
	reads, writes := map[string]int{}, 0
	for _, e := range r.events {
		if !strings.HasPrefix(string(e.Path), "/tmp/m/") {
			continue
		}
		switch e.Kind {
		case build.EventRead:
			reads[string(e.Path)]++
			if e.Digest != digest([]byte(strings.TrimPrefix(string(e.Path), "/tmp/m/"))) {
				t.Fatalf("%+v", e)
			}
		case build.EventWrite:
			writes++
		}
	}
	for path, got := range reads {
		if got != 4 {
			t.Errorf("%s: %d of 4 reads", path, got)
		}
	}
	if len(reads) != n/4 || writes != n/4 {
		t.Errorf("%d files read and %d written, want %d", len(reads), writes, n/4)
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

func testFullDisk(t *testing.T, c contract) {
	if os.Geteuid() != 0 {
		t.Skip("a full file system is mounted as root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Skip(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	r := c.run(t, "", "i=0; while [ $i -lt 40 ]; do cat /usr/bin/true >/tmp/$i; i=$((i+1)); done", func(s *sandbox.Spec) { s.Trace.Log = filepath.Join(dir, "log") })
	if r.report.Trace == nil || r.report.Trace.Whole() || !strings.Contains(r.report.Trace.Failure, "writing the event log") {
		t.Errorf("%+v", r.report.Trace)
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
