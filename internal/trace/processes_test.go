// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/trace"
)

func exactly(t *testing.T, got []build.Raw, want ...string) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d arguments, want %d: %.200q", len(got), len(want), got)
	}
	for i, w := range want {
		if string(got[i]) != w {
			t.Errorf("argument %d is %.100q, want %.100q", i, got[i], w)
		}
	}
}

// TestPrograms: what is executed, with its content and all of its arguments.
func TestPrograms(t *testing.T) {
	engines(t, func(t *testing.T, e trace.Engine) {
		static := compile(t, "int main(void){return 0;}", "-static")
		r := run(t, e, `cp /deps/static one; chmod u+s one; ./one a; /deps/static b
			printf '#!/bin/sh -e\nexec true script\n' >s; chmod +x s; ./s x
			python3 - <<'E'
import os
big = 'x' * 100000
for argv in ([b'true', b'', b'\xff\n\\"'], ['true', big, big + 'y'], [b'true'] + [b'%d' % i for i in range(20000)]):
    if os.fork() == 0:
        os.execv('/bin/true', argv)
    os.wait()
E`, mount(static, "/deps/static")).whole(t)
		execs := map[string][]build.Event{}
		for _, ev := range r.pick(build.EventExec) {
			execs[filepath.Base(string(ev.Path))] = append(execs[filepath.Base(string(ev.Path))], ev)
		}
		d := shaOf(t, static)
		if one := execs["one"]; len(one) != 1 || one[0].Digest != d || one[0].Path != "/tmp/one" {
			t.Errorf("a copy was executed: %+v", one)
		} else {
			exactly(t, one[0].Args, "./one", "a")
		}
		if st := execs["static"]; len(st) != 1 || st[0].Digest != d {
			t.Errorf("a static program was executed: %+v", st)
		}
		r.read(t, "/tmp/s", sha("#!/bin/sh -e\nexec true script\n"))
		script := false
		for _, ev := range execs["dash"] {
			script = script || len(ev.Args) == 4 && ev.Args[1] == "-e" && ev.Args[2] == "./s" && ev.Args[3] == "x"
		}
		if !script {
			t.Errorf("no interpreter of the script: %+v", execs["dash"])
		}
		tr := execs["true"]
		if len(tr) != 4 {
			t.Fatalf("%d programs named true", len(tr))
		}
		big := strings.Repeat("x", 100000)
		exactly(t, tr[0].Args, "true", "script")
		exactly(t, tr[1].Args, "true", "", "\xff\n\\\"")
		exactly(t, tr[2].Args, "true", big, big+"y")
		if n := len(tr[3].Args); n != 20001 || tr[3].Args[20000] != "19999" {
			t.Errorf("%d arguments", n)
		}
	})
}

// TestProcesses: every fork and how each process ended.
func TestProcesses(t *testing.T) {
	engines(t, func(t *testing.T, e trace.Engine) {
		r := run(t, e, `python3 - <<'E'
import os, signal, threading
def child(f):
    pid = os.fork()
    if pid == 0: f()
    return os.waitpid(pid, 0)
child(lambda: os._exit(7))
child(lambda: os.kill(os.getpid(), signal.SIGTERM))
child(lambda: os.kill(os.getpid(), signal.SIGKILL))
def threads():
    t = threading.Thread(target=lambda: os._exit(9)); t.start(); t.join()
child(threads)
def orphan():
    r, w = os.pipe()
    if os.fork() == 0:
        os._exit(11)
    os.close(w); os.read(r, 1); os._exit(10)
child(orphan)
E`, nil).whole(t)
		born, ends := map[int]bool{}, map[string]int{}
		for _, ev := range r.events {
			switch ev.Kind {
			case build.EventFork:
				if born[ev.Child] || ev.Process != 0 && !born[ev.Process] {
					t.Errorf("born twice, or of nobody: %+v", ev)
				}
				born[ev.Child] = true
			case build.EventExit:
				if !born[ev.Process] {
					t.Errorf("ended unborn or twice: %+v", ev)
				}
				delete(born, ev.Process)
				ends[strconv.Itoa(ev.Code)+ev.Signal]++
			}
		}
		if len(born) > 0 {
			t.Errorf("%v never ended", born)
		}
		for _, want := range []string{"7", "0SIGTERM", "0SIGKILL", "9", "10", "11"} {
			if ends[want] != 1 {
				t.Errorf("%d processes ended with %s: %v", ends[want], want, ends)
			}
		}
	})
}

// TestFlippedName: a thread that changes the name while another opens it can't
// make us record another file than the one that was opened.
func TestFlippedName(t *testing.T) {
	race := compile(t, `
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
static volatile char name[] = "/tmp/good";
static void *flip(void *x) { for (;;) { memcpy((char *)name + 5, "evil", 4); memcpy((char *)name + 5, "good", 4); } }
int main(void) {
	for (int i = 0; i < 400; i++) {
		if (fork() == 0) {
			pthread_t t; pthread_create(&t, 0, flip, 0);
			char c = 'n'; int fd;
			while ((fd = open((char *)name, O_RDONLY)) < 0) {}
			read(fd, &c, 1);
			_exit(c == 'e' ? 1 : 0);
		}
		wait(0);
	}
	return 0;
}`, "-pthread")
	engines(t, func(t *testing.T, e trace.Engine) {
		r := run(t, e, `echo evil >evil; echo good >good; /deps/race`, mount(race, "/deps/race")).whole(t)
		saw := map[int]hallmark.Digest{}
		for _, ev := range r.pick(build.EventRead, "/tmp/evil", "/tmp/good") {
			if saw[ev.Process] != "" {
				t.Errorf("process %d read twice", ev.Process)
			}
			saw[ev.Process] = ev.Digest
		}
		evil, children := 0, 0
		for _, ev := range r.pick(build.EventExit) {
			d, ok := saw[ev.Process]
			if !ok {
				continue
			}
			children++
			evil += ev.Code
			if want := map[int]string{0: "good\n", 1: "evil\n"}[ev.Code]; d != sha(want) {
				t.Errorf("process %d read %sand another is recorded", ev.Process, want)
			}
		}
		if children != 400 {
			t.Errorf("%d of 400 reads", children)
		}
		t.Logf("%d of 400 were the other file", evil)
	})
}

// TestHiddenWays: ways around an open that is seen are closed, or end in a trace
// that says that it is not whole.
func TestHiddenWays(t *testing.T) {
	engines(t, func(t *testing.T, e trace.Engine) {
		r := run(t, e, `python3 - <<'E'
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall(425, 4, ctypes.create_string_buffer(200)), ctypes.get_errno())
print(libc.syscall(304, -100, ctypes.create_string_buffer(200), 0), ctypes.get_errno())
E`, nil).whole(t)
		if !strings.HasPrefix(r.out, "-1 38\n-1 1\n") {
			t.Errorf("io_uring and handles: %q", r.out)
		}
		r = run(t, e, `python3 - <<'E'
import os
fd = os.memfd_create('hidden', 0)
os.write(fd, open('/bin/true', 'rb').read())
os.execv('/proc/self/fd/%d' % fd, ['hidden'])
E`, nil)
		ran := r.report.ExitCode == 0
		told := false
		for _, ev := range r.pick(build.EventExec) {
			told = told || len(ev.Args) == 1 && ev.Args[0] == "hidden" && ev.Digest == shaOf(t, "/bin/true")
		}
		if ran && r.report.Trace.Whole() && !told {
			t.Errorf("a program without a name ran unseen:\n%s", r.text())
		}
	})
}

// TestAgentDies: without the recorder nothing goes on and nothing is left.
func TestAgentDies(t *testing.T) {
	engines(t, func(t *testing.T, e trace.Engine) {
		out := &started{seen: make(chan struct{})}
		go func() {
			<-out.seen
			for _, pid := range agents() {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}()
		began := time.Now()
		r := run(t, e, `echo started; sleep 100; cat /etc/passwd`, func(s *sandbox.Spec) {
			place(t, s, nil)
			s.Stdout = out
		})
		if r.report.Trace.Whole() || r.report.Trace.Failure == "" || r.report.ExitCode == 0 {
			t.Errorf("exit %d, trace %+v", r.report.ExitCode, r.report.Trace)
		}
		if time.Since(began) > 50*time.Second {
			t.Error("the step went on")
		}
		left, _ := filepath.Glob("/sys/fs/cgroup/*/hallmark-" + strconv.Itoa(os.Getpid()) + "-*")
		left = append(left, overlaysLeft(t)...)
		for _, name := range []string{sandbox.Alias, trace.Alias} {
			for _, pid := range children(name) {
				left = append(left, name+" "+strconv.Itoa(pid))
			}
		}
		if len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// started tells when something was written.
type started struct {
	once sync.Once
	seen chan struct{}
}

func (s *started) Write(b []byte) (int, error) {
	s.once.Do(func() { close(s.seen) })
	return len(b), nil
}

func agents() []int { return children(trace.Alias) }

// children are our own children of a name.
func children(name string) []int {
	var out []int
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range all {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		b, _ := os.ReadFile(f)
		stat, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "stat"))
		_, rest, _ := strings.Cut(string(stat), ") ")
		if fields := strings.Fields(rest); len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) && string(b) == name+"\x00" {
			out = append(out, pid)
		}
	}
	return out
}

func overlaysLeft(t *testing.T) []string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for l := range strings.Lines(string(b)) {
		if strings.Contains(l, " - overlay ") && strings.Contains(l, "TestAgentDies") {
			out = append(out, l)
		}
	}
	return out
}

// TestLogFull: a log that can't be written is no whole trace.
func TestLogFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a small file system needs root")
	}
	engines(t, func(t *testing.T, e trace.Engine) {
		dir := t.TempDir()
		if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", dir).CombinedOutput(); err != nil {
			t.Fatalf("mounting: %s", out)
		}
		defer exec.Command("umount", dir).Run()
		r := run(t, e, `for i in 1 2 3 4 5 6 7 8 9; do ls /; ls /bin; ls /usr; ls /lib; ls /etc; done >/dev/null`, func(s *sandbox.Spec) { s.Trace.Log = filepath.Join(dir, "log") })
		if r.report.Trace.Whole() || !strings.Contains(r.report.Trace.Failure, "log") {
			t.Errorf("trace %+v", r.report.Trace)
		}
	})
}
