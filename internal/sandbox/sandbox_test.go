// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark/internal/trace"
)

func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case Alias:
		os.Exit(Main())
	case WrapAlias:
		os.Exit(WrapMain())
	case trace.Alias:
		os.Exit(trace.Main())
	}
	os.Exit(m.Run())
}

func open(t *testing.T) *Sandbox {
	t.Helper()
	s, err := New(Config{Clock: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sh runs a script and returns what it printed.
func sh(t *testing.T, script string, change func(*Spec)) (string, Report) {
	t.Helper()
	var out bytes.Buffer
	spec := Spec{Argv: []string{"sh", "-c", script}, Env: []string{"PATH=" + Path()}, Dir: "/", Stdout: &out, Stderr: &out,
		Limits: Limits{Wall: time.Minute, Memory: 512 << 20, PIDs: 64, Disk: 64 << 20}}
	if change != nil {
		change(&spec)
	}
	rep, err := open(t).Run(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), rep
}

func TestRunReportsExit(t *testing.T) {
	if out, rep := sh(t, "echo hello; exit 7", nil); rep.ExitCode != 7 || out != "hello\n" {
		t.Errorf("exit %d, output %q", rep.ExitCode, out)
	}
	if _, rep := sh(t, "kill -9 $$", nil); rep.Signal != "SIGKILL" || rep.ExitCode == 0 {
		t.Errorf("report %+v", rep)
	}
}

// TestHoldsNothingOfTheHost: no environment, home, file, process, descriptor or
// privilege of ours.
func TestHoldsNothingOfTheHost(t *testing.T) {
	t.Setenv("HALLMARK_CANARY", "leaked")
	secret := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(secret, []byte("leaked"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, _ := sh(t, `env; cat `+secret+`; ls /root /home /sys; cat /proc/1/environ; ls /proc/1/fd; id -u; hostname; ls /proc | grep -c '^[0-9]'
		grep -E 'CapEff|CapBnd|CapPrm|CapAmb|NoNewPrivs|Seccomp:' /proc/self/status; ls /proc/self/fd; touch /usr/x /x`, nil)
	for _, bad := range []string{"leaked", "CANARY"} {
		if strings.Contains(out, bad) {
			t.Errorf("%q is visible inside:\n%s", bad, out)
		}
	}
	for _, want := range []string{"1000\n", "sandbox\n", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "Read-only file system"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	t.Log(out)
}

func TestRefusesWhatReachesBeyond(t *testing.T) {
	out, _ := sh(t, `unshare -r true; mount -t tmpfs x /tmp; chroot / true; dmesg; unshare -n true`, nil)
	if n := strings.Count(out, "Operation not permitted"); n < 4 {
		t.Errorf("only %d refusals:\n%s", n, out)
	}
}

func TestEgressIsRecordedAndRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	out, rep := sh(t, `timeout 5 bash -c 'exec 3<>/dev/tcp/192.0.2.1/443'; timeout 5 bash -c 'echo x >/dev/udp/198.51.100.7/99'
		timeout 5 bash -c 'exec 3<>/dev/tcp/127.0.0.1/`+port+`'; getent hosts canary.example.org; echo done`, nil)
	var got []string
	for _, e := range rep.Egress {
		got = append(got, e.Address+" "+e.Name)
	}
	all := strings.Join(got, "\n")
	for _, want := range []string{"192.0.2.1:443", "198.51.100.7:99", "192.0.2.53:53"} {
		if !strings.Contains(all, want) {
			t.Errorf("no attempt on %s recorded: %s\n%s", want, all, out)
		}
	}
	if strings.Contains(all, "127.0.0.1") {
		t.Errorf("loopback recorded as egress: %s", all)
	}
	if !strings.Contains(out, "refused") { // the host's loopback listener is not ours
		t.Errorf("the host's loopback is reachable:\n%s", out)
	}
}

func TestLoopbackWorks(t *testing.T) {
	out, rep := sh(t, `python3 - <<'E'
import socket,threading
s=socket.socket(); s.bind(("127.0.0.1",0)); s.listen()
c=socket.create_connection(s.getsockname()); a,_=s.accept(); c.sendall(b"hi"); print(a.recv(2))
u=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); u.bind(("127.0.0.1",0))
v=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); v.sendto(b"yo",u.getsockname()); print(u.recv(2))
E`, nil)
	if !strings.Contains(out, "b'hi'") || !strings.Contains(out, "b'yo'") || len(rep.Egress) != 0 {
		t.Errorf("output %s, egress %v", out, rep.Egress)
	}
}

func TestWorkspaceKeepsTheSource(t *testing.T) {
	dir := t.TempDir()
	lower := filepath.Join(dir, "lower")
	scratch := filepath.Join(dir, "scratch")
	if err := os.MkdirAll(lower, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(lower, "a.txt"), []byte("source"), 0o644); err != nil {
		t.Fatal(err)
	}
	id := HostID()
	if err := errors.Join(NewScratch(scratch, id), Give(lower, id)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(filepath.Join(scratch, "work", "work"), 0o700) })
	var out bytes.Buffer
	spec := Spec{Argv: []string{"sh", "-c", "cat a.txt; echo changed >a.txt; mkdir out; cp a.txt out/; rm a.txt; ls"}, Env: []string{"PATH=" + Path()}, Dir: "/workspace",
		Stdout: &out, Stderr: &out, Workspace: &Workspace{Lower: lower, Scratch: scratch, Target: "/workspace"}}
	rep, err := open(t).RunAs(t.Context(), id, spec)
	if err != nil || rep.ExitCode != 0 {
		t.Fatalf("%v %+v\n%s", err, rep, &out)
	}
	if b, _ := os.ReadFile(filepath.Join(lower, "a.txt")); string(b) != "source" {
		t.Errorf("the source was changed to %q", b)
	}
	if b, err := os.ReadFile(filepath.Join(Upper(scratch), "out", "a.txt")); string(b) != "changed\n" {
		t.Errorf("output %q, %v", b, err)
	}
}

func TestLimits(t *testing.T) {
	start := time.Now()
	_, rep := sh(t, `sleep 100 & sleep 100`, func(s *Spec) { s.Limits.Wall = 300 * time.Millisecond })
	if rep.LimitHit != "wall" || time.Since(start) > 10*time.Second {
		t.Errorf("wall: %+v", rep)
	}
	out, rep := sh(t, `for i in $(seq 200); do sleep 5 & done; echo $?`, func(s *Spec) { s.Limits.PIDs = 20; s.Limits.Wall = 20 * time.Second })
	if holds(rep, "pids-limit") && !strings.Contains(out, "fork") {
		t.Errorf("pids: %+v\n%s", rep, out)
	}
	_, rep = sh(t, `python3 -c 'x=bytearray(400<<20)'`, func(s *Spec) { s.Limits.Memory = 64 << 20 })
	if holds(rep, "memory-limit") && (rep.LimitHit != "memory" || rep.ExitCode == 0) {
		t.Errorf("memory: %+v", rep)
	}
}

func holds(rep Report, name string) bool {
	for _, g := range rep.Guarantees {
		if g.Name == name {
			return g.Holds
		}
	}
	return false
}

func BenchmarkStart(b *testing.B) {
	s, err := New(Config{Clock: time.Now})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if rep, err := s.Run(b.Context(), Spec{Argv: []string{"true"}, Env: []string{"PATH=" + Path()}, Dir: "/"}); err != nil || rep.ExitCode != 0 {
			b.Fatal(err, rep)
		}
	}
}
