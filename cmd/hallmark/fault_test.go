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

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark/internal/gittest"
)

// nobody is an ordinary user.
const nobody = 65534

// TestFaults breaks a build that is being traced, under each engine: what is not
// seen whole is denied with its reason, and nothing of it is left.
func TestFaults(t *testing.T) {
	t.Parallel()
	if os.Geteuid() == 0 {
		t.Run("kernel", func(t *testing.T) { t.Parallel(); faults(t, 0) })
		t.Run("ptrace", func(t *testing.T) { t.Parallel(); faults(t, nobody) })
		return
	}
	t.Run("ptrace", func(t *testing.T) { faults(t, os.Geteuid()) })
}

func faults(t *testing.T, uid int) {
	t.Run("agent killed", func(t *testing.T) {
		l := newFaultLab(t, uid)
		l.commit(`touch up; sleep 86399; touch survived`)
		run := l.start()
		run.await("sleep")
		run.signal("hallmark-trace", syscall.SIGKILL)
		out := run.end(3)
		l.wants(out, "BUILD_TRACE_INCOMPLETE", "the tracing agent ended")
		l.nothingLeft()
	})
	t.Run("disk full", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("a small file system is mounted as root")
		}
		l := newFaultLab(t, uid)
		runs := filepath.Join(l.home(), "runs")
		if err := errors.Join(os.MkdirAll(runs, 0o700), unix.Mount("tmpfs", runs, "tmpfs", 0, fmt.Sprintf("size=24m,mode=700,uid=%d", uid))); err != nil {
			t.Skip("mounting a small file system: ", err)
		}
		t.Cleanup(func() { unix.Unmount(runs, unix.MNT_DETACH) })
		l.commit(`dd if=/dev/zero of=fill bs=64k 2>/dev/null || true; i=0; while [ $i -lt 50 ]; do cat /etc/passwd >/dev/null; i=$((i+1)); done`)
		out := l.start().end(3)
		// Where no control group bounds the step, it may be ended before the log fails.
		if !strings.Contains(out, "BUILD_LIMIT_EXCEEDED step step-1 hit the disk limit") {
			l.wants(out, "BUILD_TRACE_INCOMPLETE", "no space left on device")
		}
		l.nothingLeft()
	})
	t.Run("control plane killed", func(t *testing.T) {
		l := newFaultLab(t, uid)
		l.commit(`sleep 86399`)
		run := l.start()
		run.await("sleep")
		run.cmd.Process.Kill()
		run.cmd.Wait()
		l.nothingRuns()
		// The next run takes away what the killed one had to leave.
		l.commit(`true`)
		l.start().end(0)
		l.nothingLeft()
	})
}

// faultLab is a home and a repository of one user.
type faultLab struct {
	*killLab
	uid  int
	n    int
	runs []string // process ids of the runs, which name their control groups
}

func newFaultLab(t *testing.T, uid int) *faultLab {
	t.Helper()
	if testing.Short() {
		t.Skip("breaks many runs; go test without -short does")
	}
	l := &faultLab{killLab: newKillLab(t), uid: uid}
	if uid != os.Geteuid() {
		// Everything is the other user's, who has to reach it.
		for dir := l.work; dir != "/" && strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		l.give()
	}
	return l
}

func (l *faultLab) home() string { return filepath.Join(l.work, "home") }

// give gives everything to the user, own the repository back to us: git works in
// nobody else's.
func (l *faultLab) give() { l.chown(l.work, l.uid) }
func (l *faultLab) own()  { l.chown(filepath.Join(l.work, "app"), os.Geteuid()) }

func (l *faultLab) chown(dir string, uid int) {
	if l.uid == os.Geteuid() {
		return
	}
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(p, uid, uid))
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.t.Fatal(err)
	}
}

// commit makes a revision whose build runs a script.
func (l *faultLab) commit(script string) {
	l.t.Helper()
	l.n++
	l.own()
	l.write("app/run.sh", fmt.Sprintf("#!/bin/sh\necho release %d\n", l.n))
	l.write("app/.hallmark/pipeline.yaml", fmt.Sprintf("apiVersion: hallmark/v1\nkind: Pipeline\nbuild:\n  steps:\n    - run: |\n        mkdir out; cp run.sh out/hello\n        %s\n    - name: test\n      run: sh out/hello\n  artifacts: [out/hello]\n", script))
	pem, err := os.ReadFile(filepath.Join(l.work, "dev.key"))
	if err != nil {
		l.t.Fatal(err)
	}
	key, err := gittest.ParseKey(pem, "dev@example.org")
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := gittest.CommitAll(filepath.Join(l.work, "app"), gittest.Options{Message: "Release", Name: "Dev", Mail: "dev@example.org", Time: time.Now().Add(-time.Hour), Key: key}); err != nil {
		l.t.Fatal(err)
	}
	l.give()
}

// faulty is a run that something happens to.
type faulty struct {
	l   *faultLab
	cmd *exec.Cmd
	out bytes.Buffer
}

func (l *faultLab) start() *faulty {
	l.t.Helper()
	r := &faulty{l: l, cmd: l.command("run", filepath.Join(l.work, "app"), "--out", filepath.Join(l.work, "out"))}
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.out
	r.cmd.Env = append(r.cmd.Env, "HOME="+l.work)
	if l.uid != os.Geteuid() {
		r.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(l.uid), Gid: uint32(l.uid)}}
	}
	if err := r.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.runs = append(l.runs, strconv.Itoa(r.cmd.Process.Pid))
	l.t.Cleanup(func() { r.cmd.Process.Kill() })
	return r
}

// descendants are the living processes below the run whose first argument is
// name.
func (r *faulty) descendants(name string) []int {
	parent, names := map[int]int{}, map[int]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		var pid int
		fmt.Sscan(filepath.Base(d), &pid)
		stat, err := os.ReadFile(d + "/stat")
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		var state string
		var up int
		fmt.Sscan(rest, &state, &up)
		cmdline, _ := os.ReadFile(d + "/cmdline")
		arg0, _, _ := strings.Cut(string(cmdline), "\x00")
		parent[pid], names[pid] = up, arg0
	}
	var out []int
	for pid, n := range names {
		for up := pid; n == name && up > 1; up = parent[up] {
			if up == r.cmd.Process.Pid {
				out = append(out, pid)
				break
			}
		}
	}
	return out
}

// await waits until a process of the build runs.
func (r *faulty) await(name string) {
	r.l.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); <-tick.C {
		if len(r.descendants(name)) > 0 {
			return
		}
		if r.cmd.Process.Signal(syscall.Signal(0)) != nil {
			break
		}
	}
	r.cmd.Process.Kill()
	r.cmd.Wait()
	r.l.t.Fatalf("%s did not run\n%s", name, &r.out)
}

func (r *faulty) signal(name string, s syscall.Signal) {
	r.l.t.Helper()
	found := r.descendants(name)
	if len(found) != 1 {
		r.l.t.Fatalf("%d processes are %s", len(found), name)
	}
	if err := syscall.Kill(found[0], s); err != nil {
		r.l.t.Fatal(err)
	}
}

// end waits for the run, which must exit with code, and returns what it said.
func (r *faulty) end(code int) string {
	r.l.t.Helper()
	r.cmd.Wait()
	if got := r.cmd.ProcessState.ExitCode(); got != code {
		r.l.t.Fatalf("exit code %d, want %d\n%s", got, code, &r.out)
	}
	if code != 0 {
		b, err := os.ReadFile(filepath.Join(r.l.work, "out", "evidence.jsonl"))
		if err != nil || bytes.Contains(b, []byte("hello.sigstore.json")) {
			r.l.t.Errorf("evidence of the denial: %v", err)
		}
		if _, err := os.Stat(filepath.Join(r.l.work, "out", "hello")); err == nil {
			r.l.t.Error("there is an artifact")
		}
	}
	return r.out.String()
}

func (l *faultLab) wants(out string, want ...string) {
	l.t.Helper()
	for _, w := range want {
		if !strings.Contains(out, w) {
			l.t.Errorf("no %q in\n%s", w, out)
		}
	}
}

// nothingLeft looks for processes, mounts, control groups and run directories.
func (l *faultLab) nothingLeft() {
	l.t.Helper()
	l.nothingRuns()
	var left []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		l.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], l.work+"/") && f[4] != filepath.Join(l.home(), "runs") {
			left = append(left, "mount "+f[4])
		}
	}
	runs, _ := os.ReadDir(filepath.Join(l.home(), "runs"))
	for _, r := range runs {
		left = append(left, "run "+r.Name())
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/hallmark-*")
	more, _ := filepath.Glob("/sys/fs/cgroup/hallmark-*")
	for _, g := range append(groups, more...) {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(g), "hallmark-"), "-")
		if slices.Contains(l.runs, pid) && os.Geteuid() == 0 { // those of other tests are theirs
			left = append(left, "control group "+g)
		}
	}
	if len(left) > 0 {
		l.t.Errorf("left behind: %q", left)
	}
}
