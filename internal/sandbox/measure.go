// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// facts are read back from the kernel by the thread that starts the program,
// after the last step of the set-up: what a report guarantees was measured.
type facts struct {
	Status       map[string]string // of /proc/thread-self/status
	Interfaces   []string
	RootReadOnly bool
	RootOverlay  bool // it can be written to, into an overlay
	Masks        *masks
	MemoryRuns   bool   // an executable file in memory could be made
	Processes    string // limit of processes of the user namespace, if it bounds a tree
}

// gauge reads them. Its files are opened before the filter is installed, since one that serves a
// tracer lets nothing be opened before there is one; the kernel writes what they
// say when they are read.
type gauge struct {
	status, interfaces *os.File
	masks              masks // what the file system shows does not change any more
}

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
	m, err := lookAround()
	if err != nil {
		status.Close()
		interfaces.Close()
	}
	return gauge{status, interfaces, m}, err
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
	f.RootOverlay = rootOverlay(st)
	var nproc unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NPROC, &nproc); err != nil {
		return f, fmt.Errorf("reading the limit of processes: %w", err)
	}
	if nproc.Max != unix.RLIM_INFINITY && nproc.Cur == nproc.Max && countsByNamespace() {
		f.Processes = strconv.FormatUint(nproc.Max, 10)
	}
	f.Masks = &g.masks
	if fd, merr := unix.MemfdCreate("probe", unix.MFD_EXEC|unix.MFD_CLOEXEC); merr == nil {
		unix.Close(fd)
		f.MemoryRuns = true
	}
	return f, nil
}

// countsByNamespace reports whether the kernel counts the processes of a user
// for each user namespace, so that the limit is one of the room (Linux 5.14).
func countsByNamespace() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var major, minor int
	if n, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); n != 2 || err != nil {
		return false
	}
	return major > 5 || major == 5 && minor >= 14
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

// GuaranteeRootOverlay is what a program with a root of its own has in place of a
// read-only one.
const GuaranteeRootOverlay = "root-overlay"

// guarantees turns facts and the namespaces shared with the host into what a
// report says of the isolation.
func (f facts) guarantees(shared []string, as self) []Guarantee {
	var held []string
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if f.Status[set] == "" || strings.Trim(f.Status[set], "0") != "" {
			held = append(held, set+" "+f.Status[set])
		}
	}
	id := func(n int) string { return fmt.Sprintf("%d %[1]d %[1]d %[1]d", n) }
	root := Guarantee{"root-read-only", f.RootReadOnly, "the toolchain and the root directory"}
	if as.Rooted {
		root = Guarantee{GuaranteeRootOverlay, f.RootOverlay, "what is written goes into an overlay over the image's own tree"}
	}
	m := masks{Proc: []string{"not looked at"}, Sys: true, Devices: []string{"not looked at"}, Settings: []string{"not looked at"}}
	if f.Masks != nil {
		m = *f.Masks
	}
	return append([]Guarantee{
		{"namespaces", len(shared) == 0, detail(strings.Join(namespaces, ", "), "shared with the host: ", shared)},
		{"no-new-privileges", f.Status["NoNewPrivs"] == "1", ""},
		{"capabilities-dropped", len(held) == 0 && f.Status["Uid"] == id(as.UID) && f.Status["Gid"] == id(as.GID), detail("all, bounding set included", "held: ", held)},
		{"seccomp", f.Status["Seccomp"] == "2", "only listed system calls exist"},
		root,
		{"no-network", slices.Equal(f.Interfaces, []string{"lo"}), "interfaces: " + strings.Join(f.Interfaces, ", ")},
		{"memory-not-executable", f.Masks != nil && !f.MemoryRuns, "memfd_create makes no program"},
	}, m.guarantees()...)
}

func detail(good, bad string, list []string) string {
	if len(list) == 0 {
		return good
	}
	return bad + strings.Join(list, ", ")
}
