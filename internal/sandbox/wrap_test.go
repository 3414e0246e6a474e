// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// wrap runs a command and returns what it printed.
func wrap(t *testing.T, argv ...string) (string, Report) {
	t.Helper()
	dir := t.TempDir()
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	program, err := FindProgram(argv[0])
	if err != nil {
		t.Fatal(err)
	}
	rep, err := Wrap(t.Context(), time.Now, WrapSpec{
		Path: program, Argv: argv, Env: os.Environ(), Stdout: out, Stderr: out, Log: filepath.Join(dir, "events"),
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(b), rep
}

// hiding is a program that tries to do something that no tracer sees, and prints
// which ways are open.
const hiding = `
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *what, long result) { printf("%s %s\n", what, result >= 0 ? "open" : strerror(errno)); }

int main(int argc, char **argv) {
#ifdef __x86_64__
	if (argc > 1) {
		long r;
		__asm__ volatile("int $0x80" : "=a"(r) : "a"(20)); // getpid of another architecture
		puts("other architecture open");
		return 0;
	}
#endif
	char ring[256] = {0};
	say("io_uring", syscall(SYS_io_uring_setup, 4, ring));
	struct { unsigned bytes; int type; char handle[128]; } h = {128, 0, {0}};
	int mount;
	if (syscall(SYS_name_to_handle_at, AT_FDCWD, "/etc/passwd", &h, &mount, 0) == 0)
		say("handle", syscall(SYS_open_by_handle_at, open("/etc", O_RDONLY), &h, O_RDONLY));
	unsigned long args[11] = {0};
	args[4] = 17; // SIGCHLD
	long pid = syscall(SYS_clone3, args, 64);
	if (pid == 0) _exit(0);
	say("clone3", pid);
	pid = syscall(SYS_clone, CLONE_UNTRACED | 17, 0, 0, 0, 0);
	if (pid == 0) _exit(0);
	say("untraced", pid);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	struct sock_filter all[] = {{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW}};
	struct sock_fprog prog = {1, all};
	say("listener", syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &prog));
	while (wait(0) > 0);
	return 0;
}
`

// TestWrapKeepsInSight: each way to work behind the tracer's back is open without
// the filter and closed with it.
func TestWrapKeepsInSight(t *testing.T) {
	dir := t.TempDir()
	source, program := filepath.Join(dir, "hiding.c"), filepath.Join(dir, "hiding")
	if err := os.WriteFile(source, []byte(hiding), 0o644); err != nil {
		t.Fatal(err)
	}
	if b, err := exec.Command("gcc", "-o", program, source).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	free, err := exec.Command(program).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, free)
	}
	for _, way := range []string{"clone3", "untraced", "listener"} {
		if !strings.Contains(string(free), way+" open\n") {
			t.Errorf("%s is closed without a filter, so that this test shows nothing:\n%s", way, free)
		}
	}
	out, rep := wrap(t, program)
	if rep.ExitCode != 0 || !rep.Trace.Whole() || strings.Contains(out, " open\n") {
		t.Errorf("%+v\n%s", rep, out)
	}
	if runtime.GOARCH != "amd64" {
		return // no second architecture without another binary
	}
	out, rep = wrap(t, program, "32")
	if strings.Contains(out, "open") || rep.Signal != "SIGSYS" {
		t.Errorf("%+v\n%s", rep, out)
	}
}

// TestWrapGuarantees: every guarantee that a sandbox reports is named, and those
// that only a sandbox gives are absent.
func TestWrapGuarantees(t *testing.T) {
	_, rep := wrap(t, "true")
	_, isolated := sh(t, "true", nil)
	held := map[string]bool{}
	for _, g := range rep.Guarantees {
		held[g.Name] = g.Holds
	}
	for _, g := range isolated.Guarantees {
		if _, ok := held[g.Name]; !ok {
			t.Errorf("%s is not named", g.Name)
		}
	}
	for name, want := range map[string]bool{
		"namespaces": false, "no-new-privileges": true, "capabilities-dropped": false, "seccomp": false, "egress-recorded": true,
		"unprivileged-user": false, "workspace-overlay": false, "wall-time-limit": false, "memory-limit": false,
	} {
		if held[name] != want {
			t.Errorf("%s holds: %t", name, held[name])
		}
	}
}
