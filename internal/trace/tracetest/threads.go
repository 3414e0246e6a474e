// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package tracetest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark/internal/build"
)

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

// testStolen: a thread reads what another one has just opened and puts something
// harmless in its place. Whatever it read is recorded, or the trace is not whole.
func testStolen(t *testing.T, c contract) {
	const n = 3000
	dir := input(t)
	if err := os.Mkdir(filepath.Join(dir, "s"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		write(t, dir, fmt.Sprintf("s/%d", i), fmt.Sprintf("s%d", i))
	}
	write(t, dir, "innocent", "innocent")
	for way, name := range map[string]string{"d": "dup2", "o": "open", "f": "fcntl", "c": "close"} {
		r := c.do(t, dir, fmt.Sprintf("swap %s %d", way, n))
		told := map[string]bool{}
		for _, e := range r.events {
			if e.Kind == build.EventRead && strings.HasPrefix(string(e.Path), "/in/s/") {
				told["s"+strings.TrimPrefix(string(e.Path), "/in/s/")] = e.Digest == digest([]byte("s"+strings.TrimPrefix(string(e.Path), "/in/s/")))
			}
		}
		stolen, missed := strings.Fields(r.out), 0
		for _, s := range stolen {
			if !told[s] {
				missed++
			}
		}
		if r.report.ExitCode != 0 || missed > 0 && r.report.Trace.Whole() {
			t.Errorf("%s: %d of %d stolen files are missing from a trace that is whole (exit %d)", name, missed, len(stolen), r.report.ExitCode)
		}
		t.Logf("%s: %d stolen, %d missed, %q", name, len(stolen), missed, r.report.Trace.Failure)
	}
}

// testThreadFifo: one thread waits for another one in an open.
func testThreadFifo(t *testing.T, c contract) {
	r := c.run(t, "", `mkfifo /tmp/f; exec python3 -c 'import threading
def read(): print(open("/tmp/f").read())
threads = [threading.Thread(target=read)]
for t in threads: t.start()
for i in range(200): open("/usr/bin/true").close()
open("/tmp/f", "w").write("through")
for t in threads: t.join()'`, nil).whole()
	if r.out != "through\n" {
		t.Errorf("output %q", r.out)
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
