// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark/internal/trace"
)

// rooted makes a root of the host's shell and its libraries, given to hostID.
func rooted(t *testing.T, hostID int) Root {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for up := filepath.Dir(dir); len(up) > len(os.TempDir()); up = filepath.Dir(up) {
		_ = os.Chmod(up, 0o755)
	}
	base, points := filepath.Join(dir, "base"), filepath.Join(dir, "points")
	put := func(name string, b []byte, mode fs.FileMode) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, b, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, program := range []string{"sh", "cat", "ls", "rm", "mkdir", "chmod", "chown", "ln", "mknod", "touch", "id", "mv"} {
		from, err := exec.LookPath(program)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		put(filepath.Join(base, "bin", program), b, 0o755)
		out, err := exec.Command("ldd", from).Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range strings.Fields(string(out)) {
			if strings.HasPrefix(f, "/") {
				b, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				put(filepath.Join(base, f), b, 0o755)
			}
		}
	}
	put(filepath.Join(base, "etc", "passwd"), []byte("root:x:0:0:::\n"), 0o644)
	put(filepath.Join(base, "opt", "file"), []byte("base\n"), 0o644)
	dirs, files := RootPoints()
	for _, d := range dirs {
		if err := os.MkdirAll(filepath.Join(points, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range files {
		put(filepath.Join(points, f), nil, 0o644)
	}
	for _, d := range []string{base, points} {
		if err := Give(d, hostID); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { // the kernel closes its own directory to everybody
		_ = os.Chmod(filepath.Join(dir, "scratch", "work", "work"), 0o755) //nolint:gosec // of the test
	})
	r := Root{Lowers: []string{points, base}, Scratch: filepath.Join(dir, "scratch")}
	if err := NewScratch(r.Scratch, hostID); err != nil {
		t.Fatal(err)
	}
	return r
}

func inRoot(t *testing.T, hostID int, r Root, script string) (string, Report) {
	t.Helper()
	var out bytes.Buffer
	rep, err := open(t).RunAs(t.Context(), hostID, Spec{
		Argv: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin"}, Dir: "/", Stdout: &out, Stderr: &out, Root: &r,
		Limits: Limits{Wall: time.Minute, Memory: 512 << 20, PIDs: 64, Disk: 64 << 20},
		Trace:  &Trace{Engine: trace.Best, Log: filepath.Join(t.TempDir(), "log")},
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), rep
}

func TestARootIsTheProgramsOwn(t *testing.T) {
	id := HostID()
	r := rooted(t, id)
	out, rep := inRoot(t, id, r, `id -u; id -g; echo new > /opt/new; echo more >> /opt/file; rm /etc/passwd; mkdir -p /usr/local/x; ls /`)
	if rep.ExitCode != 0 || !strings.HasPrefix(out, "0\n0\n") {
		t.Errorf("exit %d:\n%s", rep.ExitCode, out)
	}
	up := Upper(r.Scratch)
	for name, want := range map[string]string{"opt/new": "new\n", "opt/file": "base\nmore\n"} {
		if b, err := os.ReadFile(filepath.Join(up, name)); err != nil || string(b) != want {
			t.Errorf("%s holds %q, %v", name, b, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(up, "etc", "passwd"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		t.Errorf("a removed file: %o %d, %v", st.Mode, st.Rdev, err)
	}
	if b, err := os.ReadFile(filepath.Join(r.Lowers[1], "opt", "file")); err != nil || string(b) != "base\n" {
		t.Errorf("the base holds %q, %v", b, err)
	}
	// The room's own names are not among what was written.
	for _, name := range []string{"dev", "proc", "etc/hosts", "tmp", ".hallmark"} {
		if _, err := os.Lstat(filepath.Join(up, name)); err == nil {
			t.Errorf("%s was written", name)
		}
	}
	held := map[string]bool{}
	for _, g := range rep.Guarantees {
		held[g.Name] = g.Holds
	}
	for _, name := range []string{GuaranteeRootOverlay, "capabilities-dropped", "no-network", "no-new-privileges", "sysfs-absent", "devices-minimal", "proc-masked", "disk-limit"} {
		if !held[name] {
			t.Errorf("%s does not hold: %v", name, rep.Guarantees)
		}
	}
	if _, ok := held["root-read-only"]; ok {
		t.Error("a root that can be written to is called read-only")
	}
}

func TestARootHasOneUser(t *testing.T) {
	id := HostID()
	r := rooted(t, id)
	r.UID, r.GID = 70, 71
	out, rep := inRoot(t, id, r, `id -u; id -g; touch /opt/mine; chown 0 /opt/mine && echo CHANGED; chmod u+s /opt/mine; mknod /opt/null c 1 3 && echo MADE; mv /etc /elsewhere && echo MOVED; rm -f /etc/hosts; cat /etc/hosts; echo x > /dev/x && echo WROTE; ls /usr/bin/apt /root /home /work 2>/dev/null`)
	if !strings.HasPrefix(out, "70\n71\n") || rep.ExitCode == 0 {
		t.Errorf("exit %d:\n%s", rep.ExitCode, out)
	}
	for _, no := range []string{"CHANGED", "MADE", "MOVED", "WROTE", "/usr/bin/apt", "/home"} {
		if strings.Contains(out, no+"\n") {
			t.Errorf("%s:\n%s", no, out)
		}
	}
	if !strings.Contains(out, "127.0.0.1 localhost sandbox") {
		t.Errorf("/etc/hosts is not the room's:\n%s", out)
	}
}

func TestARootThatLeadsElsewhereIsRefused(t *testing.T) {
	id := HostID()
	for _, name := range []string{"dev", "proc", "etc", "etc/hosts"} {
		r := rooted(t, id)
		over := filepath.Join(filepath.Dir(r.Scratch), "over")
		at := filepath.Join(over, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/usr", at); err != nil {
			t.Fatal(err)
		}
		r.Lowers = slices.Insert(r.Lowers, 0, over)
		_, err := open(t).RunAs(t.Context(), id, Spec{Argv: []string{"/bin/sh", "-c", "true"}, Dir: "/", Root: &r, Trace: &Trace{Engine: trace.Best, Log: filepath.Join(t.TempDir(), "log")}})
		if err == nil || !strings.Contains(err.Error(), "finding /") {
			t.Errorf("%s is a link: %v", name, err)
		}
	}
}

func TestARootStandsAlone(t *testing.T) {
	r := Root{Lowers: []string{"/a"}, Scratch: "/b"}
	many := r
	many.Lowers = make([]string, maxLowers+1)
	for name, s := range map[string]Spec{
		"self": {Self: true, Root: &r}, "workspace": {Workspace: &Workspace{}, Root: &r}, "secret": {Secrets: [][]byte{{1}}, Root: &r}, "many": {Root: &many},
		"none": {Root: &Root{Scratch: "/b"}}, "relative": {Root: &Root{Lowers: []string{"a"}, Scratch: "/b"}}, "option": {Root: &Root{Lowers: []string{"/a,b"}, Scratch: "/b"}},
		"user": {Root: &Root{Lowers: []string{"/a"}, Scratch: "/b", UID: -1}}, "gateway": {Gateway: "/x", Root: &r}, "toolchain": {Toolchain: Toolchain{Root: "/x"}, Root: &r},
	} {
		s.Argv = []string{"true"}
		if _, err := open(t).RunAs(t.Context(), HostID(), s); err == nil {
			t.Errorf("%s: it was run", name)
		}
	}
}
