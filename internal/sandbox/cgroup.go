// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroup bounds a process tree where this machine lets us: version 2 with the
// controllers delegated, or version 1 hierarchies. Where it does not, the
// guarantees say so: resource limits of single processes don't bound a tree.
type cgroup struct {
	dirs  map[string]string // controller to directory
	v2    bool
	names []string // limits that hold
}

const cgroupRoot = "/sys/fs/cgroup"

// groupPrefix and our process id name a group, so that what a killed process
// left can be told from what a living one uses.
const groupPrefix = "hallmark-"

func newCgroup(l Limits) *cgroup {
	name := fmt.Sprintf("%s%d-%d", groupPrefix, os.Getpid(), draw())
	g := &cgroup{dirs: map[string]string{}}
	if b, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.subtree_control")); err == nil &&
		strings.Contains(string(b), "memory") && strings.Contains(string(b), "pids") {
		g.v2 = true
		dir := filepath.Join(cgroupRoot, name)
		if os.Mkdir(dir, 0o755) != nil {
			return g
		}
		g.dirs["unified"] = dir
		g.set("memory", dir, "memory.max", strconv.FormatInt(l.Memory, 10))
		os.WriteFile(filepath.Join(dir, "memory.swap.max"), []byte("0"), 0)
		g.set("pids", dir, "pids.max", strconv.Itoa(l.PIDs))
		g.set("cpu", dir, "cpu.max", fmt.Sprintf("%d 100000", int(l.CPUs*100000)))
		return g
	}
	for _, c := range []struct{ controller, file, value string }{
		{"memory", "memory.limit_in_bytes", strconv.FormatInt(l.Memory, 10)},
		{"pids", "pids.max", strconv.Itoa(l.PIDs)},
		{"cpu", "cpu.cfs_quota_us", strconv.Itoa(int(l.CPUs * 100000))},
	} {
		dir := filepath.Join(cgroupRoot, c.controller, name)
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		g.dirs[c.controller] = dir
		g.set(c.controller, dir, c.file, c.value)
	}
	return g
}

func (g *cgroup) set(what, dir, file, value string) {
	if os.WriteFile(filepath.Join(dir, file), []byte(value), 0) == nil {
		g.names = append(g.names, what)
	}
}

func (g *cgroup) add(pid int) {
	for c, dir := range g.dirs {
		if os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0) != nil {
			delete(g.dirs, c)
			os.Remove(dir)
			g.names = nil // a limit that does not hold the process holds nothing
		}
	}
}

// kill ends whatever is still in the group.
func (g *cgroup) kill() {
	for _, dir := range g.dirs {
		if g.v2 && os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0) == nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
}

func (g *cgroup) remove() {
	for _, dir := range g.dirs {
		os.Remove(dir)
	}
}

// outOfMemory reports whether the kernel killed something for its memory.
func (g *cgroup) outOfMemory() bool {
	file := filepath.Join(g.dirs["memory"], "memory.oom_control")
	if g.v2 {
		file = filepath.Join(g.dirs["unified"], "memory.events")
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
			return n != "0"
		}
	}
	return false
}

func (g *cgroup) guarantees() []Guarantee {
	kind := "cgroup v1"
	if g.v2 {
		kind = "cgroup v2"
	}
	var out []Guarantee
	for _, want := range []string{"memory", "pids", "cpu"} {
		holds := false
		for _, have := range g.names {
			holds = holds || have == want
		}
		detail := kind
		if !holds {
			detail = "no delegated cgroup controller: the process tree is not bounded"
		}
		out = append(out, Guarantee{Name: want + "-limit", Holds: holds, Detail: detail})
	}
	return out
}

// SweepGroups removes the groups of processes that are gone.
func SweepGroups() {
	for _, pattern := range []string{groupPrefix + "*", "*/" + groupPrefix + "*"} {
		dirs, _ := filepath.Glob(filepath.Join(cgroupRoot, pattern))
		for _, dir := range dirs {
			pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), groupPrefix), "-")
			if _, err := os.Stat("/proc/" + pid); os.IsNotExist(err) {
				(&cgroup{dirs: map[string]string{"x": dir}}).kill()
				os.Remove(dir)
			}
		}
	}
}
