// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroup bounds a process tree where this machine lets us: version 2 where the
// controllers are delegated to us, or version 1 hierarchies. Where it does not,
// the guarantees say so: resource limits of single processes don't bound a tree.
type cgroup struct {
	dirs   map[string]string // controller to directory; "unified" of version 2
	v2     bool
	bounds []bound
	why    string            // no limit could be set
	failed map[string]string // why one could not be set, by guarantee
}

// bound is one limit as the kernel gave it back after it was set.
type bound struct {
	what, group string // guarantee; key of dirs
	file, value string
}

const cgroupRoot = "/sys/fs/cgroup"

// groupPrefix and our process id name a group, so that what a killed process
// left can be told from what a living one uses.
const groupPrefix = "hallmark-"

// setting is one file to write. Several of one name have to hold together.
type setting struct {
	what, file, value string
	optional          bool // the kernel may be built without it
}

func newCgroup(l Limits) *cgroup {
	page := int64(os.Getpagesize())
	memory, quota := strconv.FormatInt(l.Memory/page*page, 10), strconv.Itoa(int(l.CPUs*100000))
	name := fmt.Sprintf("%s%d-%d", groupPrefix, os.Getpid(), draw())
	g := &cgroup{dirs: map[string]string{}, failed: map[string]string{}}
	if place, ok := delegation(cgroupRoot, "/proc/self/cgroup"); ok {
		g.v2 = true
		dir := filepath.Join(place, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			g.why = "no control group of our own: " + err.Error()
			return g
		}
		g.dirs["unified"] = dir
		g.set("unified", []setting{
			{"memory", "memory.max", memory, false}, {"memory", "memory.swap.max", "0", true},
			{"pids", "pids.max", strconv.Itoa(l.PIDs), false}, {"cpu", "cpu.max", quota + " 100000", false},
		})
		return g
	}
	g.why = "no control group is delegated to us"
	for controller, settings := range map[string][]setting{
		"memory": {{"memory", "memory.limit_in_bytes", memory, false}, {"memory", "memory.memsw.limit_in_bytes", memory, true}},
		"pids":   {{"pids", "pids.max", strconv.Itoa(l.PIDs), false}},
		"cpu":    {{"cpu", "cpu.cfs_period_us", "100000", false}, {"cpu", "cpu.cfs_quota_us", quota, false}},
	} {
		dir := filepath.Join(ownGroup(cgroupRoot, controller, "/proc/self/cgroup"), name)
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		g.dirs[controller] = dir
		g.set(controller, settings)
	}
	return g
}

// set writes limits and reads them back: one that the kernel did not take as it
// was asked bounds nothing.
func (g *cgroup) set(group string, settings []setting) {
	var got []bound
	for _, s := range settings {
		file := filepath.Join(g.dirs[group], s.file)
		_, absent := os.Stat(file)
		if absent != nil && s.optional && noSwap() {
			continue
		}
		err := os.WriteFile(file, []byte(s.value), 0)
		value, rerr := readLine(file)
		switch {
		case absent != nil:
			g.failed[s.what] = "the controller is not delegated to us (no " + s.file + ")"
		case errors.Join(err, rerr) != nil:
			g.failed[s.what] = errors.Join(err, rerr).Error()
		case value != s.value:
			g.failed[s.what] = s.file + " was set to " + s.value + " and is " + value
		}
		got = append(got, bound{what: s.what, group: group, file: file, value: s.value})
	}
	for _, b := range got {
		if g.failed[b.what] == "" {
			g.bounds = append(g.bounds, b)
		}
	}
}

// noSwap reports whether memory can't leave for a swap device.
func noSwap() bool {
	b, err := os.ReadFile("/proc/swaps")
	return err == nil && strings.Count(string(b), "\n") <= 1
}

func readLine(file string) (string, error) {
	b, err := os.ReadFile(file)
	return strings.TrimSpace(string(b)), err
}

func (g *cgroup) add(pid int) {
	for c, dir := range g.dirs {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			delete(g.dirs, c)
			os.Remove(dir)
			// a limit that does not hold the process holds nothing
			for _, b := range g.bounds {
				if b.group == c {
					g.failed[b.what] = "putting the program into its group: " + err.Error()
				}
			}
			g.bounds = slices.DeleteFunc(g.bounds, func(b bound) bool { return b.group == c })
		}
	}
}

// lost lists the limits that were set and bound process pid no longer: the group
// is gone, the process was moved, or the number is another one.
func (g *cgroup) lost(pid int) []string {
	if len(g.bounds) == 0 {
		return nil
	}
	member, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	dead := ended(pid)
	var out []string
	for _, b := range g.bounds {
		value, err := readLine(b.file)
		holds := err == nil && value == b.value && (dead || isMember(string(member), b.group, filepath.Base(g.dirs[b.group])))
		if !holds && !slices.Contains(out, b.what) {
			out = append(out, b.what)
		}
	}
	return out
}

// ended reports whether a child of ours that was not waited for has ended, or is
// on its way: it leaves its groups before it is a zombie.
func ended(pid int) bool {
	const exiting = 4 // PF_EXITING
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // from the state on, which is the third field
	if len(f) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(f[6], 10, 64)
	return f[0] == "Z" || f[0] == "X" || err == nil && flags&exiting != 0
}

// isMember reads /proc/PID/cgroup: lines of number:controllers:path.
func isMember(table, group, name string) bool {
	for line := range strings.Lines(table) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || !strings.HasSuffix(f[2], "/"+name) {
			continue
		}
		if group == "unified" && f[0] == "0" || slices.Contains(strings.Split(f[1], ","), group) {
			return true
		}
	}
	return false
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

// guarantees says which limits were set, read back and held to the end; lost
// are those that did not.
func (g *cgroup) guarantees(lost []string, facts facts) []Guarantee {
	kind := "cgroup v1"
	if g.v2 {
		kind = "cgroup v2"
	}
	var out []Guarantee
	for _, want := range []string{"memory", "pids", "cpu"} {
		why := g.failed[want]
		if why == "" {
			why = g.why
		}
		gu := Guarantee{Name: want + "-limit", Detail: why + ": the process tree is not bounded"}
		var values []string
		for _, b := range g.bounds {
			if b.what == want {
				values = append(values, filepath.Base(b.file)+"="+b.value)
			}
		}
		switch {
		case slices.Contains(lost, want):
			gu.Detail = kind + ": vanished while the program ran"
		case len(values) > 0:
			gu.Holds, gu.Detail = true, kind+" "+strings.Join(values, ", ")
		case want == "pids" && facts.Processes != "":
			gu.Holds, gu.Detail = true, "limit of processes of the own user namespace: "+facts.Processes
		}
		out = append(out, gu)
	}
	return out
}

// SweepGroups removes the groups of processes that are gone.
func SweepGroups() {
	places := []string{cgroupRoot, cgroupRoot + "/*", cgroupRoot + "/*/*", cgroupRoot + "/*/*/*"}
	if place, ok := delegation(cgroupRoot, "/proc/self/cgroup"); ok {
		places = append(places, place)
	}
	for _, c := range []string{"memory", "pids", "cpu"} {
		places = append(places, ownGroup(cgroupRoot, c, "/proc/self/cgroup"))
	}
	for _, place := range places {
		dirs, _ := filepath.Glob(filepath.Join(place, groupPrefix+"*"))
		for _, dir := range dirs {
			pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), groupPrefix), "-")
			if _, err := os.Stat("/proc/" + pid); os.IsNotExist(err) {
				(&cgroup{dirs: map[string]string{"x": dir}}).kill()
				os.Remove(dir)
			}
		}
	}
}
