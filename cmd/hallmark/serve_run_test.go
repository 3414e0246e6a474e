// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/hallmark-sc/hallmark"
)

// slowPipeline builds for as long as it takes to look at it.
const slowPipeline = `apiVersion: hallmark/v1
kind: Pipeline
build:
  steps:
    - run: mkdir -p out; i=0; while [ $i -lt 2000000 ]; do i=$((i+1)); done; cp f out/f
    - name: test
      run: test -s out/f
  artifacts: [out/f]
`

type shownRun struct {
	Run, State, Effect, Revision, Code string
	Attempt                            int
}

// runs are those that the server tells of, the newest first.
func (l *serveLab) runs() (out []shownRun) {
	l.t.Helper()
	for line := range strings.Lines(l.program("", l.bin, "runs", "list", "--json", "--token-file", l.path("alice.token"))) {
		var r shownRun
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			l.t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

// building waits until the build of a commit has begun.
func (l *serveLab) building(commit string, logged int) {
	l.t.Helper()
	begins := regexp.MustCompile(`"msg":"run begins".*"revision":"` + commit)
	l.until("the beginning of the run", func() bool { return len(begins.FindAllString(l.serveLog(), -1)) > logged })
	l.until("a sandbox of the build", func() bool { return len(l.processes("while [")) > 0 || len(sandboxed(l.cmd.Process.Pid)) > 0 })
}

var shellLoop = []byte("while [ $i -lt 2000000 ]")

// sandboxed are processes under a server that run the slow step.
func sandboxed(server int) (out []string) {
	all, _ := os.ReadDir("/proc")
	for _, d := range all {
		if b, err := os.ReadFile("/proc/" + d.Name() + "/cmdline"); err == nil && strings.Contains(string(b), string(shellLoop)) {
			out = append(out, d.Name())
		}
	}
	return out
}

// verdicts counts the verdicts of builds of a commit that are in the log.
func (l *serveLab) verdicts(commit string) int {
	l.t.Helper()
	n := 0
	for line := range strings.Lines(l.must("audit", "--from", "2020-01-01")) {
		if strings.Contains(line, commit) && strings.Contains(line, "verdict") && strings.Contains(line, "SLSA_BUILD_LEVEL") {
			n++
		}
	}
	return n
}

// TestServeRunKilled kills the server in the middle of a build, and ends it in the
// middle of another: each is taken up again, and each comes to one verdict.
func TestServeRunKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("kills servers; go test without -short does")
	}
	l := newServeLab(t)
	l.builds = true
	l.start()
	l.write("app/.hallmark/pipeline.yaml", slowPipeline)
	l.program(l.path("app"), "git", "add", ".hallmark")
	for _, c := range []struct {
		name    string
		end     func()
		attempt int
		says    string
	}{
		{"killed", l.kill9, 2, "a run is queued again: who had it is gone"},
		{"ended", func() {
			if err := l.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if err := l.cmd.Wait(); err != nil {
				t.Fatalf("the server ended with %v\n%s", err, l.serveLog())
			}
			l.cmd = nil
		}, 1, "run is given back"},
	} {
		commit := l.change()
		l.program(l.path("app"), "git", "push", "-q", l.remote("alice"), "work")
		l.building(commit, 0)
		c.end()
		l.until("the end of the sandbox", func() bool { return len(sandboxed(0)) == 0 })
		l.start()
		r := l.runs()[0]
		if r.Revision != commit {
			t.Fatalf("%s: the newest run is of %s", c.name, r.Revision)
		}
		said := l.program("", l.bin, "runs", "fetch", r.Run, "--out", l.path("out-"+c.name), "--json", "--token-file", l.path("alice.token"))
		if !strings.Contains(said, `"effect":"allow"`) {
			t.Errorf("%s: %s", c.name, said)
		}
		if !strings.Contains(said, `"state":"reused"`) {
			t.Errorf("%s: nothing that was done was kept: %s", c.name, said)
		}
		if r = l.runs()[0]; r.State != "done" || r.Effect != "allow" || r.Attempt != c.attempt {
			t.Errorf("%s: %+v", c.name, r)
		}
		if n := l.verdicts(commit); n != 1 {
			t.Errorf("%s: %d verdicts\n%s", c.name, n, l.must("audit", "--from", "2020-01-01"))
		}
		if !strings.Contains(l.serveLog(), c.says) {
			t.Errorf("%s: the log does not say %q", c.name, c.says)
		}
	}
	l.stop()
	l.gone()
	if out := l.must("log", "fsck"); !strings.Contains(out, " 0 problems") {
		t.Errorf("fsck: %s", out)
	}
}

// TestServeRunSeparateSigner: what a server builds whose signer is another user's is
// the server's, and of level 3 where the environment shows all that it takes.
func TestServeRunSeparateSigner(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a server; go test without -short does")
	}
	l := newSignerLab(t)
	l.builds = true
	l.start()
	l.write("app/.hallmark/pipeline.yaml", strings.Replace(slowPipeline, "2000000", "1", 1))
	l.program(l.path("app"), "git", "add", ".hallmark")
	commit := l.change()
	l.program(l.path("app"), "git", "push", "-q", l.remote("alice"), "work")
	r := l.runs()[0]
	if r.Revision != commit {
		t.Fatalf("the newest run is of %s", r.Revision)
	}
	said := l.program("", l.bin, "runs", "fetch", r.Run, "--out", l.path("out"), "--json", "--token-file", l.path("alice.token"))
	for _, want := range []string{`"effect":"allow"`, `"levels":["SLSA_BUILD_LEVEL_3"]`} {
		if !strings.Contains(said, want) {
			t.Errorf("it does not say %s: %s\n%s", want, said, l.serveLog())
		}
	}
	roots, err := os.ReadFile(l.path("out", "roots.json"))
	if err != nil {
		t.Fatal(err)
	}
	out := l.must("verify", l.path("out", "f"), "--evidence", l.path("out"), "--roots", string(hallmark.DigestOf(roots)), "--level", "SLSA_BUILD_LEVEL_3", "--ref", "refs/heads/work")
	if !strings.Contains(out, "ALLOWED") || strings.Contains(out, "built by a local builder") {
		t.Error(out)
	}
	l.stop()
}
