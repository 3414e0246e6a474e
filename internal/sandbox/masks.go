// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// deviceNames are the devices of a room: what holds nothing, makes noise, or is
// the terminal of the caller, of which a program inside has none.
func deviceNames() []string { return []string{"null", "zero", "random", "urandom", "tty"} }

// procShown are the entries of /proc beside processes that programs ask for
// before they decide how much to do at once. Every other entry speaks of the
// machine and is covered, also those that a later kernel adds.
func procShown() []string {
	return []string{"self", "thread-self", "mounts", "net", "sys", "cpuinfo", "meminfo", "stat", "loadavg", "uptime", "version", "filesystems"}
}

// settingsCovered are settings of the whole machine that name a program which
// the kernel runs with all rights.
func settingsCovered() []string {
	return []string{"core_pattern", "core_uses_pid", "modprobe", "poweroff_cmd", "hotplug", "usermodehelper", "kexec_load_disabled", "modules_disabled", "keys"}
}

// devices binds the few devices that hold nothing.
func (f *furniture) devices() {
	if f.err != nil {
		return
	}
	f.do("making /dev", os.MkdirAll(newRoot+"/dev", 0o755))
	for _, d := range deviceNames() {
		at := newRoot + "/dev/" + d
		f.do("making /dev/"+d, os.WriteFile(at, nil, 0o666))
		if f.err == nil {
			f.do("binding /dev/"+d, unix.Mount("/dev/"+d, at, "", unix.MS_BIND, ""))
		}
	}
	for name, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		f.do("linking /dev/"+name, os.Symlink(to, newRoot+"/dev/"+name))
	}
}

// proc mounts a proc file system of the own pid namespace, covers what speaks of
// the machine and lets no setting be written.
func (f *furniture) proc() {
	if f.err != nil {
		return
	}
	f.do("making /proc", os.MkdirAll(newRoot+"/proc", 0o555))
	f.do("mounting /proc", unix.Mount("proc", newRoot+"/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""))
	if f.err != nil {
		return
	}
	at := newRoot + "/proc/sys"
	f.do("binding /proc/sys", unix.Mount(at, at, "", unix.MS_BIND|unix.MS_REC, ""))
	f.do("protecting /proc/sys", unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""))
	for _, name := range settingsCovered() {
		if st, err := os.Lstat(at + "/kernel/" + name); err == nil {
			f.cover("/proc/sys/kernel/"+name, st.IsDir())
		}
	}
	entries, err := os.ReadDir(newRoot + "/proc")
	f.do("listing /proc", err)
	for _, e := range entries {
		if !shown(e.Name()) && e.Type()&os.ModeSymlink == 0 {
			f.cover("/proc/"+e.Name(), e.IsDir())
		}
	}
}

func shown(name string) bool {
	return strings.Trim(name, "0123456789") == "" || slices.Contains(procShown(), name)
}

// cover puts emptiness over a file or directory.
func (f *furniture) cover(target string, dir bool) {
	if f.err != nil {
		return
	}
	if dir {
		f.do("covering "+target, unix.Mount("tmpfs", newRoot+target, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, "mode=0555,size=4k"))
		return
	}
	f.do("covering "+target, unix.Mount(newRoot+"/dev/null", newRoot+target, "", unix.MS_BIND, ""))
}

// masks is what the room was seen to show of the machine, when it was ready.
type masks struct {
	Proc     []string // entries of /proc that are neither shown nor covered
	Sys      bool     // there is a sysfs
	Devices  []string // device files below /dev that don't belong there, and others' kinds
	Settings []string // settings of the kernel and control groups that can be reached
}

// lookAround finds out, with the rights of the program.
func lookAround() (masks, error) {
	var m masks
	var null unix.Stat_t
	if err := unix.Stat("/dev/null", &null); err != nil {
		return m, fmt.Errorf("looking at /dev/null: %w", err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return m, fmt.Errorf("listing /proc: %w", err)
	}
	for _, e := range entries {
		if !shown(e.Name()) && e.Type()&os.ModeSymlink == 0 && !covered("/proc/"+e.Name(), null) {
			m.Proc = append(m.Proc, e.Name())
		}
	}
	if m.Sys, err = filled("/sys"); err != nil {
		return m, err
	}
	if m.Devices, err = strangeDevices(); err != nil {
		return m, err
	}
	for _, name := range settingsCovered() {
		at := "/proc/sys/kernel/" + name
		if _, err := os.Lstat(at); err == nil && !covered(at, null) {
			m.Settings = append(m.Settings, at)
		}
	}
	if fd, err := unix.Open("/proc/sys/kernel/hostname", unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
		unix.Close(fd)
		m.Settings = append(m.Settings, "/proc/sys")
	}
	mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return m, fmt.Errorf("reading the mounts: %w", err)
	}
	for line := range strings.Lines(string(mounts)) {
		_, kind, _ := strings.Cut(line, " - ")
		kind, _, _ = strings.Cut(kind, " ")
		switch kind {
		case "cgroup", "cgroup2", "sysfs", "debugfs", "tracefs", "securityfs", "bpf", "configfs", "pstore", "efivarfs", "binfmt_misc", "fusectl":
			m.Settings = append(m.Settings, kind)
		}
	}
	return m, nil
}

// filled reports whether something is in a directory: an image may have an empty
// one as mount point.
func filled(dir string) (bool, error) {
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err != nil || len(names) > 0, nil
}

// covered reports whether nothing is to be had at a path: it is /dev/null, an
// empty directory of another file system than /proc, or closed.
func covered(path string, null unix.Stat_t) bool {
	var st, proc unix.Stat_t
	if unix.Lstat(path, &st) != nil || unix.Stat("/proc", &proc) != nil {
		return false
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return st.Rdev == null.Rdev && st.Mode&unix.S_IFMT == unix.S_IFCHR
	}
	inside, err := os.ReadDir(path)
	return err == nil && len(inside) == 0 && st.Dev != proc.Dev
}

// strangeDevices lists what is below /dev and should not be.
func strangeDevices() ([]string, error) {
	entries, err := os.ReadDir("/dev")
	if err != nil {
		return nil, fmt.Errorf("listing /dev: %w", err)
	}
	numbers := map[string]uint64{"null": unix.Mkdev(1, 3), "zero": unix.Mkdev(1, 5), "random": unix.Mkdev(1, 8), "urandom": unix.Mkdev(1, 9), "tty": unix.Mkdev(5, 0)}
	var out []string
	for _, e := range entries {
		at := filepath.Join("/dev", e.Name())
		if slices.Contains(deviceNames(), e.Name()) {
			var st unix.Stat_t
			if unix.Lstat(at, &st) != nil || st.Rdev != numbers[e.Name()] {
				out = append(out, at)
			}
			continue
		}
		if e.Type()&os.ModeSymlink == 0 && e.Name() != "shm" {
			out = append(out, at)
		}
	}
	return out, nil
}

func (m masks) guarantees() []Guarantee {
	sys := []string{}
	if m.Sys {
		sys = append(sys, "/sys")
	}
	return []Guarantee{
		{"proc-masked", len(m.Proc) == 0, detail("shown beside processes: "+strings.Join(procShown(), ", "), "not covered: ", m.Proc)},
		{"sysfs-absent", !m.Sys, detail("", "there is ", sys)},
		{"devices-minimal", len(m.Devices) == 0, detail(strings.Join(deviceNames(), ", "), "also: ", m.Devices)},
		{"kernel-settings-closed", len(m.Settings) == 0, detail("/proc/sys read-only, no control group file system", "reachable: ", m.Settings)},
	}
}
