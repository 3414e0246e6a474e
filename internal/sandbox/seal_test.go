// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFirstProcessIsClosed: a program that could write to pid 1, which speaks to
// the control plane, could report an exit status of its own.
func TestFirstProcessIsClosed(t *testing.T) {
	out, rep := sh(t, `for t in /proc/1 /proc/1/task/*; do
		for f in mem fd/3 fd/4 fd/5; do (: >>$t/$f) 2>/dev/null && echo "opened $t/$f"; done
		ls $t/fd 2>/dev/null && echo "listed $t/fd"; cat $t/environ $t/maps 2>/dev/null && echo "read $t"
	done
	echo '{"Exited":true,"Code":0}' >/proc/1/fd/4
	exit 9`, nil)
	if rep.ExitCode != 9 {
		t.Errorf("exit %d, want 9", rep.ExitCode)
	}
	for _, bad := range []string{"opened", "listed", "read "} {
		if strings.Contains(out, bad) {
			t.Errorf("the program reached the first process:\n%s", out)
			break
		}
	}
}

// TestInheritsNoDescriptor: one that our own parent left open without
// close-on-exec must not reach the program.
func TestInheritsNoDescriptor(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.Dup(int(f.Fd())) // inheritable
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	out, _ := sh(t, `ls /proc/self/fd`, nil)
	if got := strings.Join(strings.Fields(out), " "); got != "0 1 2 3" { // 3 is the directory itself
		t.Errorf("descriptors %s, want 0 1 2 3", got)
	}
}

// TestAsOrdinaryUser runs the tests of this package again without root, where
// the program has the user id of the first process.
func TestAsOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("already an ordinary user")
	}
	home, err := os.MkdirTemp("/tmp", "hallmark-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(home, "sandbox.test")
	if err := os.WriteFile(bin, self, 0o755); err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	if err := os.Chown(home, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "-test.v", "-test.short")
	cmd.Dir = home
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + home}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("as user %d: %v\n%s", nobody, err, out)
	}
}

// TestGivesUpGroups: root's supplementary groups open nothing inside.
func TestGivesUpGroups(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("an ordinary user can't give up its groups in a user namespace")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("HALLMARK_TEST_GROUPS") == "" {
		cmd := exec.Command(self, "-test.run=^TestGivesUpGroups$")
		cmd.Env = append(os.Environ(), "HALLMARK_TEST_GROUPS=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Groups: []uint32{0, 4, 27}}}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("with supplementary groups: %v\n%s", err, out)
		}
		return
	}
	if out, _ := sh(t, `grep ^Groups: /proc/self/status`, nil); strings.TrimSpace(out) != "Groups:" {
		t.Errorf("inside: %s", out)
	}
}

// TestEveryMessageIsJudged: of several messages in one sendmmsg the second one
// leaves.
func TestEveryMessageIsJudged(t *testing.T) {
	out, rep := sh(t, `python3 - <<'E'
import ctypes, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
l = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); l.bind(("127.0.0.1", 0))
def sa(ip, port): return ctypes.create_string_buffer(struct.pack("<H", 2) + struct.pack(">H", port) + socket.inet_aton(ip) + bytes(8))
names = [sa("127.0.0.1", l.getsockname()[1]), sa("203.0.113.9", 4444)]
data = ctypes.create_string_buffer(b"x"); iov = (ctypes.c_uint64 * 2)(ctypes.addressof(data), 1)
m = b"".join(struct.pack("<QIxxxxQQQQixxxxIxxxx", ctypes.addressof(n), 16, ctypes.addressof(iov), 1, 0, 0, 0, 0) for n in names)
mb = ctypes.create_string_buffer(m)
print(libc.sendmmsg(s.fileno(), mb, 2, 0), ctypes.get_errno())
E`, nil)
	if len(rep.Egress) != 1 || rep.Egress[0].Address != "203.0.113.9:4444" {
		t.Errorf("egress %+v\n%s", rep.Egress, out)
	}
}
