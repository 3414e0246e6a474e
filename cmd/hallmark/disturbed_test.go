// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// stepMark is the last argument of the process that a disturbed step waits in.
const stepMark = "31415"

// TestDisturbed disturbs builds of the real command while a step runs: what
// records it is killed, its room is full, its limits are taken away. Each is a
// denial whose evidence names the reason, and nothing of the run is left: no
// process, mount, control group or directory.
func TestDisturbed(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the command; go test without -short does")
	}
	lab := newKillLab(t)
	wait := "mkdir out; cp run.sh out/hello; exec sleep " + stepMark
	for _, c := range []struct {
		name, step, code string
		policy           string
		disturb          func(t *testing.T, run, step int) // nil: the step does it
	}{
		{"the agent is killed", wait, "BUILD_TRACE_INCOMPLETE", "", killAgent},
		{"the disk is full", "mkdir out; cp run.sh out/hello; head -c 100M /dev/zero > out/fill1; head -c 100M /dev/zero > out/fill2; exec sleep " + stepMark, "BUILD_LIMIT_EXCEEDED", "build.disk=128MiB", nil},
		{"a limit is raised", wait, "BUILD_NOT_ISOLATED", "", raiseLimit},
		{"the control group is removed", wait, "BUILD_NOT_ISOLATED", "", removeGroup},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.policy != "" {
				lab.must("policy", "set", c.policy)
				defer lab.must("policy", "set", "build.disk=8GiB")
			}
			lab.commitSteps(t, c.step)
			before := mounts(t)
			out := filepath.Join(lab.work, "out")
			cmd := lab.command(lab.runArgs()...)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			run := cmd.Process.Pid
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			if c.disturb != nil {
				c.disturb(t, run, awaitStep(t, run, ended))
			}
			select {
			case err := <-ended:
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.ExitCode() != 3 {
					t.Errorf("it ended with %v, want exit code 3\n%s%s", err, stdout.Bytes(), stderr.Bytes())
				}
			case <-time.After(3 * time.Minute):
				cmd.Process.Kill()
				<-ended
				t.Fatalf("the disturbed run does not end\n%s%s", stdout.Bytes(), stderr.Bytes())
			}
			if !strings.Contains(stdout.String(), c.code) {
				t.Errorf("the denial does not say %s:\n%s", c.code, stdout.Bytes())
			}
			lab.deniedFor(t, out, c.code)
			lab.nothingRuns()
			lab.nothingIsLeft(t, run, before)
		})
	}
	// The machine is as it was, and the next build is a good one.
	lab.commit()
	lab.finish()
	lab.check()
}

func (l *killLab) commitSteps(t *testing.T, step string) {
	t.Helper()
	l.steps = fmt.Sprintf("    - name: build\n      run: %q\n", step)
	l.commit()
	l.steps = ""
}

// deniedFor reads the evidence: no provenance, and a verdict with the reason that
// anyone computes again.
func (l *killLab) deniedFor(t *testing.T, out, code string) {
	t.Helper()
	verdict, err := os.ReadFile(filepath.Join(out, "verdict.json"))
	if err != nil || !bytes.Contains(verdict, []byte(`"`+code+`"`)) {
		t.Errorf("the verdict does not name %s: %v\n%.2000s", code, err, verdict)
	}
	if _, err := os.Stat(filepath.Join(out, "hello")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an artifact was published: %v", err)
	}
	if text := l.must("replay", filepath.Join(out, "verdict.json"), "--evidence", out); !strings.Contains(text, "equal") && !strings.Contains(text, "same") {
		t.Errorf("replay: %s", text)
	}
}

// processes are the parents of all processes, by number.
func processes(t *testing.T) map[int]int {
	t.Helper()
	out := map[int]int{}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range stats {
		b, err := os.ReadFile(s)
		if err != nil {
			continue // gone meanwhile
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		f := strings.Fields(rest)
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(s)))
		if len(f) > 1 {
			out[pid], _ = strconv.Atoi(f[1])
		}
	}
	return out
}

// below lists the processes that descend from one, itself not among them.
func below(t *testing.T, top int) []int {
	t.Helper()
	parents := processes(t)
	var out []int
	for pid := range parents {
		for p := parents[pid]; p > 1; p = parents[p] {
			if p == top {
				out = append(out, pid)
				break
			}
		}
	}
	slices.Sort(out)
	return out
}

func argv(pid int) []string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}

// awaitStep waits until the step of a run has come to where it waits.
func awaitStep(t *testing.T, run int, ended chan error) int {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(3 * time.Minute)
	for range tick.C {
		for _, pid := range below(t, run) {
			if a := argv(pid); a[len(a)-1] == stepMark && a[0] == "sleep" {
				return pid
			}
		}
		if len(ended) > 0 || time.Now().After(deadline) {
			t.Fatal("the step did not begin to wait")
		}
	}
	return 0
}

// killAgent kills the process that records the step: a child of this run.
func killAgent(t *testing.T, run, _ int) {
	t.Helper()
	for _, pid := range below(t, run) {
		if argv(pid)[0] == "hallmark-trace" {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("the run has no tracing agent")
}

// groupOf finds the control group of a step that limits its processes. It has the
// number of the run in its name.
func groupOf(t *testing.T, run, step int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", step))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || !strings.HasPrefix(filepath.Base(f[2]), fmt.Sprintf("hallmark-%d-", run)) {
			continue
		}
		for _, dir := range []string{"/sys/fs/cgroup/" + f[1], "/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
			if _, err := os.Stat(filepath.Join(dir, f[2], "pids.max")); err == nil {
				return filepath.Join(dir, f[2])
			}
		}
	}
	t.Skipf("nothing limits a step of this user by control groups:\n%s", b)
	return ""
}

func raiseLimit(t *testing.T, run, step int) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(groupOf(t, run, step), "pids.max"), []byte("max"), 0); err != nil {
		t.Fatal(err)
	}
}

// removeGroup moves what is in the group out of it, and removes it. Processes that
// begin meanwhile are moved too; the run may end first, which is what is asked.
func removeGroup(t *testing.T, run, step int) {
	t.Helper()
	group := groupOf(t, run, step)
	for range 1000 {
		members, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range strings.Fields(string(members)) {
			os.WriteFile(filepath.Join(filepath.Dir(group), "cgroup.procs"), []byte(pid), 0) //nolint:errcheck // it may be gone
		}
		if err := os.Remove(group); err == nil || errors.Is(err, fs.ErrNotExist) {
			return
		}
	}
	t.Fatal("the group could not be removed")
}

func mounts(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// nothingIsLeft looks for what a run could leave on the machine.
func (l *killLab) nothingIsLeft(t *testing.T, run int, before string) {
	t.Helper()
	for line := range strings.Lines(mounts(t)) {
		if strings.Contains(line, l.work) && !strings.Contains(before, line) {
			t.Errorf("a mount is left: %s", line)
		}
	}
	filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error { //nolint:errcheck // groups of others come and go
		if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), fmt.Sprintf("hallmark-%d-", run)) {
			t.Errorf("a control group is left: %s", p)
		}
		return nil
	})
	if left := below(t, run); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	runs, _ := os.ReadDir(filepath.Join(l.work, "home", "runs"))
	tmp, _ := os.ReadDir(filepath.Join(l.work, "tmp"))
	if len(runs)+len(tmp) > 0 {
		t.Errorf("directories are left: %v %v", runs, tmp)
	}
}
