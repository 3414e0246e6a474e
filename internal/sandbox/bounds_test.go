// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDiskIsBoundedWhileItRuns: a program that fills whatever takes bytes is
// ended, before its time is over: one big file, many small ones, a file
// without a name, memory file systems, and several of them that are each within
// the limit.
func TestDiskIsBoundedWhileItRuns(t *testing.T) {
	const wait = "; sleep 1000"
	for name, script := range map[string]string{
		"one file": `head -c 15M /dev/zero >big; head -c 15M /dev/zero >big2`,
		"small files": `python3 -c 'import os
for i in range(200000): open("f%d" % i, "w").write("x")'`,
		"empty files": `mkdir d; python3 -c 'import os
for i in range(200000): os.close(os.open("d/%d" % i, os.O_CREAT))'`,
		"no name": `python3 -c 'import os, time
for k in (1, 2):
    f = os.open("gone", os.O_CREAT | os.O_WRONLY); os.unlink("gone")
    for i in range(12): os.write(f, bytes(1<<20))
time.sleep(1000)'`,
		"shared memory": `for i in 1 2 3 4 5 6 7 8 9 10; do head -c 1M /dev/zero >/dev/shm/$i; done; head -c 15M /dev/zero >/tmp/x; head -c 5M /dev/zero >y`,
		"in sum":        `head -c 7M /dev/zero >a; head -c 7M /dev/zero >/tmp/b; head -c 7M /dev/zero >/cache/c`,
		"deep": `python3 -c 'import os
for i in range(3000): os.mkdir("d"); os.chdir("d")'`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			lower, scratch, cache := filepath.Join(dir, "lower"), filepath.Join(dir, "scratch"), filepath.Join(dir, "cache")
			id := HostID()
			if err := errors.Join(os.MkdirAll(lower, 0o755), NewScratch(scratch, id), NewScratch(cache, id)); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.Chmod(filepath.Join(scratch, "work", "work"), 0o700) })
			var out bytes.Buffer
			rep, err := open(t).RunAs(t.Context(), id, Spec{Argv: []string{"sh", "-c", script + wait}, Env: []string{"PATH=" + Path()}, Dir: "/workspace", Stdout: &out, Stderr: &out,
				Workspace: &Workspace{Lower: lower, Scratch: scratch, Target: "/workspace"}, Mounts: []Mount{{Source: cache, Target: "/cache", Writable: true}},
				Limits: Limits{Wall: 15 * time.Minute, Disk: 16 << 20}})
			if err != nil || rep.LimitHit != "disk" {
				t.Fatalf("%v %+v\n%s", err, rep, &out)
			}
			if !holds(rep, "disk-limit") {
				t.Errorf("%+v", rep.Guarantees)
			}
			if name == "deep" {
				os.RemoveAll(dir)
			}
		})
	}
}

// TestEndIsNotLate: what was written takes seconds to look at, and the program
// ends when its time is over all the same, in the middle of a look.
func TestEndIsNotLate(t *testing.T) {
	const files, wall, late, look = 10000, time.Second, 3 * time.Second, 7 * time.Second
	dir := t.TempDir()
	for i := range files {
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	id := HostID()
	if err := Give(dir, id); err != nil {
		t.Fatal(err)
	}
	// The same directory at many places is many files to look at.
	began := time.Now()
	(&disk{}).treeSize(dir, map[[2]uint64]bool{})
	once := max(time.Since(began), time.Millisecond)
	spec := Spec{Argv: []string{"sleep", "1000"}, Env: []string{"PATH=" + Path()}, Dir: "/", Limits: Limits{Wall: wall, Disk: 1 << 50}}
	for i := range int(look/once) + 1 {
		spec.Mounts = append(spec.Mounts, Mount{Source: dir, Target: "/many/" + strconv.Itoa(i), Writable: true})
	}
	began = time.Now()
	rep, err := open(t).RunAs(t.Context(), id, spec)
	if err != nil {
		t.Fatal(err)
	}
	all, ran := time.Since(began), rep.FinishedOn.Sub(rep.StartedOn)
	if rep.LimitHit != "wall" || !holds(rep, "wall-time-limit") || !holds(rep, "disk-limit") || ran < wall || ran > wall+late {
		t.Errorf("it ran for %s of %s: %+v", ran, wall, rep)
	}
	if all-ran < late {
		t.Errorf("the last look took less than %s, which shows nothing", all-ran)
	}
}

// TestEndIsNoLoss: a process leaves its groups as it ends, and no limit vanished.
func TestEndIsNoLoss(t *testing.T) {
	for i := range 100 {
		if _, rep := sh(t, "sleep 0.0"+strconv.Itoa(i%10), nil); len(rep.Lost) > 0 || rep.ExitCode != 0 {
			t.Fatalf("%d: %+v", i, rep)
		}
	}
}

// TestLimitThatVanishes: someone with the rights to do so moves the program out
// of its group and removes it, or raises the number. The program is ended, the
// report says which limit is gone, and no group is left.
func TestLimitThatVanishes(t *testing.T) {
	probe := newCgroup(Limits{}.defaults())
	probe.remove()
	if len(probe.bounds) == 0 {
		t.Skip("no control group can be made here")
	}
	for name, attack := range map[string]func(g *cgroup, pid int) error{
		"removed": func(g *cgroup, pid int) error {
			dir := g.dirs[probe.bounds[0].group]
			for {
				members, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
				if err != nil {
					return err
				}
				for _, m := range strings.Fields(string(members)) {
					if err := elsewhere(t, dir, m); err != nil && !errors.Is(err, unix.ESRCH) { // one may have ended meanwhile
						return err
					}
				}
				if err := os.Remove(dir); !errors.Is(err, unix.EBUSY) {
					return err
				}
			}
		},
		"raised": func(g *cgroup, pid int) error {
			i := slices.IndexFunc(g.bounds, func(b bound) bool { return b.what == "pids" })
			return os.WriteFile(g.bounds[i].file, []byte("max"), 0)
		},
		"left": func(g *cgroup, pid int) error {
			return elsewhere(t, g.dirs[g.bounds[0].group], strconv.Itoa(pid))
		},
	} {
		t.Run(name, func(t *testing.T) {
			spec := Spec{Argv: []string{"sleep", "1000"}, Env: []string{"PATH=" + Path()}, Dir: "/", Limits: Limits{Wall: time.Minute}.defaults()}
			p, err := open(t).start(HostID(), spec)
			if err != nil {
				t.Fatal(err)
			}
			defer p.cleanup()
			group, started := *p.group, make(chan error, 1)
			// The control group is there as soon as the sandbox was started.
			go func() {
				for !hasChild(p.cmd.Process.Pid) {
					if ended(p.cmd.Process.Pid) {
						started <- errors.New("the sandbox ended before its program was seen")
						return
					}
				}
				started <- attack(&group, p.cmd.Process.Pid)
			}()
			rep, err := p.serve(t.Context(), time.Now)
			if err != nil {
				t.Fatal(err)
			}
			if err := <-started; err != nil {
				t.Fatal(err)
			}
			if len(rep.Lost) == 0 || rep.ExitCode == 0 || rep.LimitHit != "" || holds(rep, rep.Lost[0]+"-limit") {
				t.Errorf("report %+v", rep)
			}
			p.cleanup()
			for _, dir := range group.dirs {
				if _, err := os.Stat(dir); err == nil {
					t.Errorf("%s is left", dir)
				}
			}
		})
	}
}

// elsewhere moves a process to a group beside dir that bounds nothing. Above dir
// there may be no place: version 2 lets no process live in a group that hands
// controllers down.
func elsewhere(t *testing.T, dir, pid string) error {
	beside := filepath.Join(filepath.Dir(dir), "elsewhere-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(beside, 0o755); err == nil {
		t.Cleanup(func() { removeEmpty(t, beside) })
	} else if !os.IsExist(err) {
		return err
	}
	return os.WriteFile(filepath.Join(beside, "cgroup.procs"), []byte(pid), 0)
}

// removeEmpty waits until the last process of a group is gone.
func removeEmpty(t *testing.T, dir string) {
	for end := time.Now().Add(time.Minute); ; {
		err := os.Remove(dir)
		if err == nil || os.IsNotExist(err) {
			return
		}
		if time.Now().After(end) {
			t.Errorf("removing %s: %v", dir, err)
			return
		}
	}
}

// TestGroupsOfTheMachine: where the machine's owner says what it delegates, the
// guarantees say so too, and the group bounds what runs. scripts/vm says it.
func TestGroupsOfTheMachine(t *testing.T) {
	want := os.Getenv("HALLMARK_TEST_GROUPS")
	if want != "v2" && want != "none" {
		t.Skip("HALLMARK_TEST_GROUPS does not say what is delegated here (scripts/vm)")
	}
	out, rep := sh(t, `cat /proc/self/cgroup`, func(s *Spec) { s.Limits.CPUs = 1.5 })
	for _, g := range rep.Guarantees {
		detail := map[string]string{
			"memory-limit": "cgroup v2 memory.max=536870912", "pids-limit": "cgroup v2 pids.max=64", "cpu-limit": "cgroup v2 cpu.max=150000 100000",
		}[g.Name]
		if detail == "" {
			continue
		}
		switch {
		case want == "v2" && (!g.Holds || !strings.HasPrefix(g.Detail, detail)):
			t.Errorf("%+v, want %s\n%s", g, detail, out)
		case want == "none" && (g.Holds != (g.Name == "pids-limit") || strings.Contains(g.Detail, "cgroup v2")):
			t.Errorf("%+v, although nothing is delegated\n%s", g, out)
		}
	}
	_, rep = sh(t, `python3 -c 'x=bytearray(400<<20)'`, func(s *Spec) { s.Limits.Memory = 64 << 20 })
	if ended := rep.LimitHit == "memory"; ended != (want == "v2") {
		t.Errorf("memory: %+v", rep)
	}
	if want == "none" {
		return
	}
	out, rep = sh(t, `python3 -c '
import os, time
began, before = time.monotonic(), os.times()
while time.monotonic() < began + 4: pass
after = os.times(); print((after.user + after.system - before.user - before.system) / (time.monotonic() - began))'`, func(s *Spec) { s.Limits.CPUs = 0.25 })
	if share, err := strconv.ParseFloat(strings.TrimSpace(out), 64); err != nil || share > 0.4 {
		t.Errorf("a quarter of a processor: got %s of one, %v: %+v", out, err, rep)
	}
}

// hasChild reports whether the first process has started its program, which any of
// its threads may have done.
func hasChild(pid int) bool {
	lists, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	return slices.ContainsFunc(lists, func(l string) bool {
		b, err := os.ReadFile(l)
		return err == nil && len(bytes.TrimSpace(b)) > 0
	})
}

// TestForkBombIsBounded also where no control group is to be had.
func TestForkBombIsBounded(t *testing.T) {
	out, rep := sh(t, `python3 -c '
import os, time
n = 0
try:
    while n < 500:
        if os.fork() == 0: time.sleep(1000)
        n += 1
except OSError: pass
print("made", n)'`, func(s *Spec) { s.Limits.PIDs = 40 })
	n, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(out, "made")))
	if err != nil || !holds(rep, "pids-limit") || n > 40 {
		t.Errorf("%d processes: %+v\n%s", n, rep, out)
	}
}

// TestEgressIsToldWhileItRuns: the program waits for what the one who hears of
// its attempt sends.
func TestEgressIsToldWhileItRuns(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var heard []Egress
	out, rep := sh(t, `timeout 20 bash -c 'exec 3<>/dev/tcp/198.51.100.77/443' 2>/dev/null; cat`, func(s *Spec) {
		s.Stdin = r
		s.OnEgress = func(e Egress) {
			heard = append(heard, e)
			w.WriteString("told\n")
			w.Close()
		}
	})
	if rep.ExitCode != 0 || out != "told\n" || len(heard) != 1 || len(rep.Egress) != 1 {
		t.Fatalf("%+v heard %+v\n%s", rep, heard, out)
	}
	if e := heard[0]; e.Address != "198.51.100.77:443" || !strings.HasSuffix(e.Program, "bash") || e.PID == 0 || e.Process != "bash" {
		t.Errorf("heard %+v", e)
	}
	if !holds(rep, "egress-recorded") {
		t.Error("an attempt was seen, and the guarantee does not hold")
	}
}

// TestUndumpableIsLookedAt: closing oneself to /proc is no way past the watcher.
func TestUndumpableIsLookedAt(t *testing.T) {
	out, rep := sh(t, `python3 -c '
import ctypes, socket
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen()
socket.create_connection(s.getsockname()); print("local")
try: socket.create_connection(("203.0.113.5", 80))
except OSError as e: print(e)'`, nil)
	if !strings.Contains(out, "local") || len(rep.Egress) != 1 || rep.Egress[0].Address != "203.0.113.5:80" {
		t.Errorf("%+v\n%s", rep.Egress, out)
	}
}

// TestDelegation: groups are made in the nearest place that hands the
// controllers down. Files stand for the kernel's, which this machine may not have.
func TestDelegation(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		p := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	self := filepath.Join(t.TempDir(), "cgroup")
	if err := os.WriteFile(self, []byte("4:memory:/old\n0::/user.slice/app.scope\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, ok := delegation(root, self); ok {
		t.Error("delegated without a hierarchy")
	}
	write("cgroup.controllers", "hugetlb")
	if _, ok := delegation(root, self); ok {
		t.Error("delegated without the controllers")
	}
	write("cgroup.controllers", "cpu memory pids")
	write("cgroup.subtree_control", "cpu memory pids")
	write("user.slice/cgroup.subtree_control", "memory pids")
	write("user.slice/app.scope/cgroup.subtree_control", "")
	if dir, ok := delegation(root, self); !ok || dir != filepath.Join(root, "user.slice") {
		t.Errorf("%s %t, want the slice, which is nearer than the root", dir, ok)
	}
	write("cgroup.subtree_control", "")
	write("user.slice/cgroup.subtree_control", "memory")
	own := "user.slice/app.scope/"
	write(own+"cgroup.controllers", "cpu memory pids")
	write(own+"cgroup.procs", "1\n2\n")
	if _, ok := delegation(root, self); ok {
		t.Error("took a group in which others live")
	}
	write(own+"cgroup.procs", strconv.Itoa(os.Getpid())+"\n")
	dir, ok := delegation(root, self)
	if !ok || dir != filepath.Join(root, filepath.FromSlash(strings.TrimSuffix(own, "/"))) {
		t.Errorf("%s %t, want our own", dir, ok)
	}
	if b, _ := os.ReadFile(filepath.Join(root, own, "cgroup.subtree_control")); string(b) != "+memory +pids +cpu" {
		t.Errorf("handed down %q", b)
	}
	if got := ownGroup(root, "memory", self); got != filepath.Join(root, "memory") {
		t.Errorf("version 1: %s", got)
	}
	write("memory/old/x", "")
	if got := ownGroup(root, "memory", self); got != filepath.Join(root, "memory", "old") {
		t.Errorf("version 1: %s", got)
	}
}
