// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTracedFilter: without a tracer the calls that it has to see fail, and those
// that open no content go on.
func TestTracedFilter(t *testing.T) {
	dir := os.Getenv("HALLMARK_TEST_TRACED")
	if dir == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestTracedFilter$", "-test.v")
		cmd.Env = append(os.Environ(), "HALLMARK_TEST_TRACED="+t.TempDir())
		if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "SKIP") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	runtime.LockOSThread()
	how := &unix.OpenHow{Flags: unix.O_RDONLY}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := installTraced(); err != nil {
		t.Fatal(err)
	}
	try := func(f func() (int, error)) error {
		got, err := f()
		if err == nil && got > 2 {
			unix.Close(got)
		}
		return err
	}
	open := func(name string, flags int) func() (int, error) {
		return func() (int, error) { return unix.Openat(unix.AT_FDCWD, name, flags, 0o600) }
	}
	for name, f := range map[string]func() (int, error){
		"openat": open("/etc/passwd", unix.O_RDONLY), "tmpfile": open(dir, unix.O_TMPFILE|unix.O_RDWR),
		"make as a directory": open(dir+"/x", unix.O_CREAT|unix.O_DIRECTORY|unix.O_RDWR),
		"openat2":             func() (int, error) { return unix.Openat2(unix.AT_FDCWD, "/etc/passwd", how) },
		"rename":              func() (int, error) { return -1, unix.Rename(dir+"/a", dir+"/b") },
		"mkdir":               func() (int, error) { return -1, unix.Mkdir(dir+"/a", 0o700) },
		"truncate":            func() (int, error) { return -1, unix.Truncate(dir+"/a", 0) },
		"dup":                 func() (int, error) { return unix.Dup(fd) },
		"copy":                func() (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) },
	} {
		if err := try(f); err != unix.ENOSYS {
			t.Errorf("%s: %v, want ENOSYS", name, err)
		}
	}
	for name, f := range map[string]func() (int, error){
		"directory": open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC), "place": open("/etc/passwd", unix.O_PATH),
		"flags": func() (int, error) { _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); return -1, err },
	} {
		if err := try(f); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, flags := range []uintptr{unix.CLONE_UNTRACED, unix.CLONE_FILES} {
		pid, _, e := unix.RawSyscall6(unix.SYS_CLONE, flags|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if e == 0 && pid == 0 {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 1, 0, 0)
		}
		if e != unix.EPERM {
			t.Errorf("clone with %#x: %v", flags, e)
		}
	}
	// The test's own cleaning up would be stopped too, and the thread can't be used
	// for anything else: it ends here.
	if t.Failed() {
		return
	}
	os.Stdout.WriteString("PASS\n")
	unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
}
