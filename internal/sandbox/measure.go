// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// facts are read back from the kernel by the thread that starts the program,
// after the last step of the set-up: what a report guarantees was measured.
type facts struct {
	Status       map[string]string // of /proc/thread-self/status
	Interfaces   []string
	RootReadOnly bool
}

// gauge reads them. Its files are opened before the filter is installed, since one that serves a
// tracer lets nothing be opened before there is one; the kernel writes what they
// say when they are read.
type gauge struct{ status, interfaces *os.File }

func newGauge() (gauge, error) {
	status, err := os.Open("/proc/thread-self/status")
	if err != nil {
		return gauge{}, fmt.Errorf("opening our own status: %w", err)
	}
	// Not by netlink: its send would wait for a watcher that does not serve yet.
	interfaces, err := os.Open("/proc/thread-self/net/dev")
	if err != nil {
		status.Close()
		return gauge{}, fmt.Errorf("opening the list of interfaces: %w", err)
	}
	return gauge{status, interfaces}, nil
}

func (g gauge) measure() (facts, error) {
	defer g.status.Close()
	defer g.interfaces.Close()
	f := facts{Status: map[string]string{}}
	b, err := io.ReadAll(g.status)
	if err != nil {
		return f, fmt.Errorf("reading our own status: %w", err)
	}
	for l := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(l, ":")
		switch k {
		case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Uid", "Gid":
			f.Status[k] = strings.Join(strings.Fields(v), " ")
		}
	}
	if b, err = io.ReadAll(g.interfaces); err != nil {
		return f, fmt.Errorf("listing interfaces: %w", err)
	}
	for l := range strings.Lines(string(b)) {
		if name, _, ok := strings.Cut(l, ":"); ok {
			f.Interfaces = append(f.Interfaces, strings.TrimSpace(name))
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs("/", &st); err != nil {
		return f, fmt.Errorf("reading the root's mount flags: %w", err)
	}
	f.RootReadOnly = st.Flags&unix.ST_RDONLY != 0
	return f, nil
}

var namespaces = []string{"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"}

// sharedNamespaces lists the kinds of namespace that process pid shares with us
// or that can't be compared.
func sharedNamespaces(pid int) []string {
	var out []string
	for _, kind := range namespaces {
		ours, err1 := os.Readlink("/proc/self/ns/" + kind)
		theirs, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
		if err1 != nil || err2 != nil || ours == theirs {
			out = append(out, kind)
		}
	}
	return out
}

// guarantees turns facts and the namespaces shared with the host into what a
// report says of the isolation.
func (f facts) guarantees(shared []string) []Guarantee {
	var held []string
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if f.Status[set] == "" || strings.Trim(f.Status[set], "0") != "" {
			held = append(held, set+" "+f.Status[set])
		}
	}
	id := fmt.Sprintf("%d %[1]d %[1]d %[1]d", insideID)
	return []Guarantee{
		{"namespaces", len(shared) == 0, detail(strings.Join(namespaces, ", "), "shared with the host: ", shared)},
		{"no-new-privileges", f.Status["NoNewPrivs"] == "1", ""},
		{"capabilities-dropped", len(held) == 0 && f.Status["Uid"] == id && f.Status["Gid"] == id, detail("all, bounding set included", "held: ", held)},
		{"seccomp", f.Status["Seccomp"] == "2", "system calls on the list are refused"},
		{"root-read-only", f.RootReadOnly, "toolchain directories of the host"},
		{"no-network", slices.Equal(f.Interfaces, []string{"lo"}), "interfaces: " + strings.Join(f.Interfaces, ", ")},
	}
}

func detail(good, bad string, list []string) string {
	if len(list) == 0 {
		return good
	}
	return bad + strings.Join(list, ", ")
}
