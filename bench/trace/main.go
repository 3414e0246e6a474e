// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Trace measures what tracing costs: it runs one build in turn bare, in the
// sandbox, in the sandbox traced by each engine, and bare under strace, and
// prints the CPU time of the whole tree (the agent's and the kernel's for it
// included) with its median and its ratio to the untraced sandbox.
//
//	trace [-rounds N] [-modes LIST] [-mounts HOST=INSIDE,…] [-scratch DIR] SOURCE COMMAND…
//
// The command runs in a copy of the directory SOURCE; HOME and TMPDIR are empty
// in every run. Every second round goes through the modes backwards, so that a
// machine that gets slower or faster does so for none of them.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/trace"
)

func main() {
	code := 0
	switch filepath.Base(os.Args[0]) {
	case sandbox.Alias:
		code = sandbox.Main()
	case trace.Alias:
		code = trace.Main()
	case once:
		code = report(single(os.Args[1]))
	default:
		code = report(compare())
	}
	os.Exit(code)
}

// once is the name under which the program does one run.
const once = "hallmark-bench-once"

func report(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "trace:", err)
		return 1
	}
	return 0
}

// task is one run.
type task struct {
	Mode    string
	Source  string
	Command []string
	Mounts  []sandbox.Mount
	Digests string
	Dir     string // scratch of this run
}

func compare() error {
	rounds := flag.Int("rounds", 5, "how often each mode is run")
	list := flag.String("modes", "bare,sandbox,kernel,ptrace,strace", "what is compared")
	mounts := flag.String("mounts", "", "HOST=INSIDE,…: directories that are seen read-only")
	scratch := flag.String("scratch", os.TempDir(), "where runs write")
	flag.Parse()
	if flag.NArg() < 2 {
		return fmt.Errorf("usage: trace [-rounds N] [-modes LIST] [-mounts HOST=INSIDE,…] SOURCE COMMAND…")
	}
	top, err := os.MkdirTemp(*scratch, "bench-trace-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(top)
	t := task{Source: flag.Arg(0), Command: flag.Args()[1:], Digests: filepath.Join(top, "digests")}
	for _, m := range strings.Split(*mounts, ",") {
		if host, inside, ok := strings.Cut(m, "="); ok {
			t.Mounts = append(t.Mounts, sandbox.Mount{Source: host, Target: inside})
		}
	}
	cpu, wall := map[string][]float64{}, map[string][]float64{}
	modes := strings.Split(*list, ",")
	for round := range *rounds {
		order := slices.Clone(modes)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, mode := range order {
			t.Mode, t.Dir = mode, filepath.Join(top, "run")
			c, w, said, err := t.run()
			if err != nil {
				return fmt.Errorf("%s: %w", mode, err)
			}
			fmt.Printf("round %d %-8s cpu %7.2f s wall %7.2f s load %s %s\n", round+1, mode, c, w, load(), said)
			cpu[mode], wall[mode] = append(cpu[mode], c), append(wall[mode], w)
		}
	}
	base := median(cpu["sandbox"])
	fmt.Println("| mode | rounds | wall s | CPU s | ratio of medians | median of ratios |")
	for _, mode := range modes {
		var pairs []float64
		for i, c := range cpu[mode] {
			if i < len(cpu["sandbox"]) {
				pairs = append(pairs, c/cpu["sandbox"][i])
			}
		}
		fmt.Printf("| %s | %d | %.2f | %.2f | %.3f | %.3f |\n", mode, *rounds, median(wall[mode]), median(cpu[mode]), median(cpu[mode])/base, median(pairs))
	}
	return nil
}

// load is how many wanted the processors in the last minute, as the kernel says.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "?"
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if len(s) == 0 {
		return 0
	}
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// run does one run in a process of its own, whose children's time is counted.
func (t task) run() (cpu, wall float64, said string, err error) {
	if err := os.MkdirAll(t.Dir, 0o755); err != nil {
		return 0, 0, "", err
	}
	defer os.RemoveAll(t.Dir)
	for _, d := range []string{"source", "cache", "home", "tmp"} {
		if err := os.MkdirAll(filepath.Join(t.Dir, d), 0o777); err != nil {
			return 0, 0, "", err
		}
	}
	if out, err := exec.Command("cp", "-a", t.Source+"/.", filepath.Join(t.Dir, "source")).CombinedOutput(); err != nil {
		return 0, 0, "", fmt.Errorf("copying the source: %s", out)
	}
	spec, err := json.Marshal(t)
	if err != nil {
		return 0, 0, "", err
	}
	var out bytes.Buffer
	cmd := exec.Cmd{Path: "/proc/self/exe", Args: []string{once, string(spec)}, Env: os.Environ(), Stdout: &out, Stderr: &out}
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return 0, 0, "", fmt.Errorf("%w: %s", err, out.String())
	}
	wall = time.Since(began).Seconds()
	return cmd.ProcessState.UserTime().Seconds() + cmd.ProcessState.SystemTime().Seconds(), wall, strings.TrimSpace(out.String()), nil
}

// single does one run in this process.
func single(arg string) error {
	var t task
	if err := json.Unmarshal([]byte(arg), &t); err != nil {
		return err
	}
	dir := func(name string) string { return filepath.Join(t.Dir, name) }
	env := func(home, tmp, cache string) []string {
		return []string{"PATH=" + sandbox.Path(), "HOME=" + home, "TMPDIR=" + tmp, "GOCACHE=" + cache + "/go", "CACHE=" + cache, "LANG=C.UTF-8"}
	}
	if t.Mode == "bare" || t.Mode == "strace" {
		argv := t.Command
		if t.Mode == "strace" {
			argv = append([]string{"strace", "-f", "-o", dir("strace.log")}, argv...)
		}
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Dir, cmd.Env = dir("source"), env(dir("home"), dir("tmp"), dir("cache"))
		for _, m := range t.Mounts {
			cmd.Env = append(cmd.Env, "MOUNT="+m.Source)
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, tail(out))
		}
		return nil
	}
	return t.inside(env("/tmp", "/tmp", "/cache"))
}

func (t task) inside(env []string) error {
	dir := func(name string) string { return filepath.Join(t.Dir, name) }
	id := sandbox.HostID()
	for _, d := range []string{"scratch", "cache"} {
		if err := sandbox.NewScratch(dir(d), id); err != nil {
			return err
		}
	}
	if err := sandbox.Give(dir("source"), id); err != nil {
		return err
	}
	box, err := sandbox.New(sandbox.Config{Clock: time.Now})
	if err != nil {
		return err
	}
	var out bytes.Buffer
	spec := sandbox.Spec{
		Argv: t.Command, Env: env, Dir: "/workspace", Stdout: &out, Stderr: &out,
		Workspace: &sandbox.Workspace{Lower: dir("source"), Scratch: dir("scratch"), Target: "/workspace"},
		Mounts:    append([]sandbox.Mount{{Source: dir("cache"), Target: "/cache", Writable: true}}, t.Mounts...),
	}
	for _, m := range t.Mounts {
		spec.Env = append(spec.Env, "MOUNT="+m.Target)
	}
	engines := map[string]trace.Engine{"kernel": trace.Kernel, "ptrace": trace.Ptrace}
	if e, ok := engines[t.Mode]; ok {
		spec.Trace = &sandbox.Trace{Engine: e, Log: dir("log"), Digests: t.Digests}
	}
	rep, err := box.RunAs(context.Background(), id, spec)
	if err != nil {
		return err
	}
	if rep.ExitCode != 0 {
		return fmt.Errorf("exit %d %s %s, trace %+v: %s", rep.ExitCode, rep.Signal, rep.LimitHit, rep.Trace, tail(out.Bytes()))
	}
	if spec.Trace == nil {
		return nil
	}
	if !rep.Trace.Whole() {
		return fmt.Errorf("the trace is not whole: %s", rep.Trace.Failure)
	}
	return count(*rep.Trace)
}

// count says what a log holds and what the agent used.
func count(tr build.Trace) error {
	f, err := os.Open(tr.Log)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	var self, children syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &self)
	syscall.Getrusage(syscall.RUSAGE_CHILDREN, &children)
	kinds := map[build.EventKind]int{}
	if os.Getenv("COUNT") != "" { // reading the log costs time that is not the trace's
		if err := build.ReadEvents(f, func(e build.Event) error { kinds[e.Kind]++; return nil }); err != nil {
			return err
		}
	}
	fmt.Printf("%d events, %d KiB of log %v", tr.Events, st.Size()>>10, kinds)
	return nil
}

func tail(b []byte) []byte { return b[max(0, len(b)-2000):] }
