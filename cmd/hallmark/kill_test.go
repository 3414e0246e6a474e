// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark/internal/gittest"
)

// stages are the moments at which a run is killed for certain.
var stages = []string{"source", "resolve", "secrets", "sast", "sbom", "sca", "build", "attest", "decide"}

// killLab is one home and one repository that runs are killed over.
type killLab struct {
	t         *testing.T
	bin, work string
	env       []string
	commits   int
	steps     string // of the pipeline, instead of those of commit
}

// TestKill kills runs with SIGKILL at every stage and at random moments
// ($HALLMARK_KILLS, 6 unless set): the next run resumes or restarts cleanly,
// nothing signed is lost, nothing half-written is believed, and nothing of a
// sandbox is left.
func TestKill(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("kills many runs; go test without -short does")
	}
	kills := 6
	if s := os.Getenv("HALLMARK_KILLS"); s != "" {
		var err error
		if kills, err = strconv.Atoi(s); err != nil {
			t.Fatalf("HALLMARK_KILLS: %v", err)
		}
	}
	lab := newKillLab(t)
	lab.commit()
	took := lab.finish() // once undisturbed, to learn how long a run takes
	for _, stage := range stages {
		lab.commit()
		lab.kill(func(event map[string]any, _ time.Duration) bool { return event != nil && event["stage"] == stage })
		lab.finish()
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range kills {
		lab.commit()
		at := time.Duration(rng.Int64N(int64(took)))
		lab.kill(func(_ map[string]any, since time.Duration) bool { return since >= at })
		lab.finish()
	}
	lab.check()
}

// plain is a plain build, not the test binary: this is what users run. To link it
// takes longer than most of what is done with it, so it is linked once.
var plain = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(shared, "hallmark")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("building: %w\n%s", err, out)
	}
	return bin, nil
})

// plainBinary gives the plain build a name in a directory: processes are told
// apart by the path of their binary. Another process copies, if need be: what this
// one has open for writing, a child of another test could hold while it is started.
func plainBinary(t *testing.T, dir string) string {
	t.Helper()
	from, err := plain()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "hallmark")
	if exec.Command("cp", "-l", from, bin).Run() != nil {
		if out, err := exec.Command("cp", from, bin).CombinedOutput(); err != nil {
			t.Fatalf("copying the binary: %v\n%s", err, out)
		}
	}
	return bin
}

func newKillLab(t *testing.T) *killLab {
	work := t.TempDir()
	lab := &killLab{t: t, work: work, bin: plainBinary(t, work)}
	lab.env = append(os.Environ(), "HALLMARK_HOME="+filepath.Join(work, "home"), "XDG_STATE_HOME="+filepath.Join(work, "state"), "TMPDIR="+filepath.Join(work, "tmp"))
	if err := os.MkdirAll(filepath.Join(work, "tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	key, err := gittest.NewKey("dev@example.org")
	if err != nil {
		t.Fatal(err)
	}
	lab.write("allowed_signers", key.AllowedSigner()+"\n")
	lab.write("dev.key", string(key.PrivatePEM()))
	osv, err := filepath.Abs("../../testdata/osv")
	if err != nil {
		t.Fatal(err)
	}
	lab.must("init", "--single-operator", "--allowed-signers", filepath.Join(work, "allowed_signers"))
	lab.must("advisories", "sync", osv)
	lab.must("policy", "set", "advisories.maxAge=3650d")
	return lab
}

func (l *killLab) write(name, text string) {
	path := filepath.Join(l.work, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

func (l *killLab) command(args ...string) *exec.Cmd {
	cmd := exec.Command(l.bin, args...)
	cmd.Env = l.env
	return cmd
}

func (l *killLab) must(args ...string) string {
	l.t.Helper()
	out, err := l.command(args...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("hallmark %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (l *killLab) commit() {
	l.t.Helper()
	l.commits++
	l.write("app/run.sh", "#!/bin/sh\necho release "+strconv.Itoa(l.commits)+"\n")
	steps := l.steps
	if steps == "" {
		steps = "    - run: mkdir out && cp run.sh out/hello && sleep 0.2\n"
	}
	l.write("app/.hallmark/pipeline.yaml", `apiVersion: hallmark/v1
kind: Pipeline
build:
  steps:
`+steps+`    - name: test
      run: sh out/hello
  artifacts: [out/hello]
`)
	pem, err := os.ReadFile(filepath.Join(l.work, "dev.key"))
	if err != nil {
		l.t.Fatal(err)
	}
	key, err := gittest.ParseKey(pem, "dev@example.org")
	if err != nil {
		l.t.Fatal(err)
	}
	_, err = gittest.CommitAll(filepath.Join(l.work, "app"), gittest.Options{
		Message: "Release " + strconv.Itoa(l.commits), Name: "Dev", Mail: "dev@example.org", Time: time.Now().Add(-time.Hour), Key: key})
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *killLab) runArgs() []string {
	return []string{"run", filepath.Join(l.work, "app"), "--out", filepath.Join(l.work, "out"), "--json"}
}

// kill starts a run and kills it with SIGKILL when now says so.
func (l *killLab) kill(now func(event map[string]any, since time.Duration) bool) {
	l.t.Helper()
	cmd := l.command(l.runArgs()...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	events := make(chan map[string]any)
	go func() {
		defer close(events)
		sc := bufio.NewScanner(out)
		sc.Buffer(nil, 16<<20)
		for sc.Scan() {
			var e map[string]any
			if json.Unmarshal(sc.Bytes(), &e) == nil {
				events <- e
			}
		}
	}()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	killed := false
	for open := true; open; {
		select {
		case e, ok := <-events:
			open = ok
			if ok && !killed && now(e, time.Since(start)) {
				killed = true
				cmd.Process.Signal(syscall.SIGKILL)
			}
		case <-tick.C:
			if !killed && now(nil, time.Since(start)) {
				killed = true
				cmd.Process.Signal(syscall.SIGKILL)
			}
		}
	}
	cmd.Wait()
	l.nothingRuns()
}

// nothingRuns waits until no process of the killed run's sandboxes is left, but
// those of the processes named.
func (l *killLab) nothingRuns(but ...*exec.Cmd) {
	l.t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		left := ""
		dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, d := range dirs {
			b, _ := os.ReadFile(d)
			arg0, _, _ := bytes.Cut(b, []byte{0})
			exe, _ := os.Readlink(filepath.Join(filepath.Dir(d), "exe"))
			if slices.ContainsFunc(but, func(c *exec.Cmd) bool { return c != nil && descends(filepath.Base(filepath.Dir(d)), c.Process.Pid) }) {
				continue
			}
			if name := string(arg0); (name == "hallmark-sandbox" || name == "hallmark-worker" || name == "hallmark-trace") && strings.HasPrefix(exe, l.work) {
				left += d + " " + name + "\n"
			}
		}
		if left == "" {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("processes outlive the run:\n%s", left)
		}
	}
}

// descends reports whether a process is one that another started.
func descends(pid string, of int) bool {
	for range 20 {
		b, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil {
			return false
		}
		f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
		if pid = string(f[1]); pid == strconv.Itoa(of) {
			return true
		}
	}
	return false
}

// finish runs to the end and verifies what it left.
func (l *killLab) finish() time.Duration {
	l.t.Helper()
	start := time.Now()
	l.must(l.runArgs()...)
	took := time.Since(start)
	l.must("verify", filepath.Join(l.work, "out", "hello"), "--evidence", filepath.Join(l.work, "out"))
	return took
}

// check looks for anything lost, doubled or left behind.
func (l *killLab) check() {
	if out := l.must("log", "fsck"); !strings.Contains(out, " 0 problems") {
		l.t.Errorf("fsck: %s", out)
	}
	parts, _ := filepath.Glob(filepath.Join(l.work, ".hallmark-part-*"))
	runs, _ := os.ReadDir(filepath.Join(l.work, "home", "runs"))
	tmp, _ := os.ReadDir(filepath.Join(l.work, "tmp"))
	if len(parts)+len(runs)+len(tmp) > 0 {
		l.t.Errorf("left behind: %v %v %v", parts, runs, tmp)
	}
}
