// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// rootWith is an unpacked file system with a shell of this machine.
func rootWith(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "rootfs")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// The directories above are a test's own; programs inside have another user.
	for d := filepath.Dir(root); d != os.TempDir() && len(d) > 1; d = filepath.Dir(d) {
		must(os.Chmod(d, 0o755))
	}
	must(os.MkdirAll(root+"/usr/bin", 0o755))
	must(os.MkdirAll(root+"/usr/lib", 0o755))
	for _, name := range []string{"sh", "ls", "cat"} {
		host, err := exec.LookPath(name)
		must(err)
		b, err := os.ReadFile(host)
		must(err)
		must(os.WriteFile(root+"/usr/bin/"+name, b, 0o755))
		libs, err := exec.Command("ldd", host).Output()
		must(err)
		for _, m := range regexp.MustCompile(`(/[^ ]+) \(0x`).FindAllStringSubmatch(string(libs), -1) {
			b, err := os.ReadFile(m[1])
			must(err)
			must(os.WriteFile(root+"/usr/lib/"+filepath.Base(m[1]), b, 0o755))
		}
	}
	for _, l := range [][2]string{{"usr/bin", "bin"}, {"usr/lib", "lib"}, {"usr/lib", "lib64"}} {
		must(os.Symlink(l[0], filepath.Join(root, l[1])))
	}
	return root
}

// TestToolchainIsTheImage: programs and files are those of the root, nothing of
// the host's is seen, and nothing can be written.
func TestToolchainIsTheImage(t *testing.T) {
	root := rootWith(t)
	for name, text := range map[string]string{"etc/marker": "of the image", "etc/passwd": "evil:x:0:0::/:/bin/sh", "opt/x": "opt of the image", "dev/evil": "x", "proc/evil": "x"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, rep := sh(t, `cat /etc/marker /opt/x; cat /etc/passwd; ls /; ls /usr /usr/bin; ls /dev/evil /proc/evil 2>/dev/null
for f in /opt/y /usr/bin/sh /etc/passwd; do (echo x > $f) 2>/dev/null && echo WROTE; done; exit 0`, func(s *Spec) {
		s.Toolchain = Toolchain{Root: root}
		s.Env = []string{"PATH=/bin"}
	})
	if rep.ExitCode != 0 || !strings.Contains(out, "of the imageopt of the image") {
		t.Errorf("%+v\n%s", rep, out)
	}
	for _, bad := range []string{"evil", "WROTE", "python", "share", "home", "root\n"} {
		if strings.Contains(strings.ReplaceAll(out, "root:x:0", ""), bad) {
			t.Errorf("%q is there:\n%s", bad, out)
		}
	}
	if b, err := os.ReadFile(root + "/opt/x"); err != nil || string(b) != "opt of the image" {
		t.Errorf("the root changed: %q, %v", b, err)
	}
}

// TestToolchainLinksLeadNowhere: an image whose names in the root are links gets
// nothing written on the host through them.
func TestToolchainLinksLeadNowhere(t *testing.T) {
	for _, name := range []string{"etc", "dev", "proc", "tmp", "workspace", "cache", ".hallmark"} {
		root := rootWith(t)
		host := filepath.Join(t.TempDir(), "host")
		if err := os.Mkdir(host, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(host, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(host, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
		scratch, lower, id := filepath.Join(t.TempDir(), "scratch"), t.TempDir(), HostID()
		if err := NewScratch(scratch, id); err != nil {
			t.Fatal(err)
		}
		for d := filepath.Dir(scratch); d != os.TempDir() && len(d) > 1; d = filepath.Dir(d) {
			os.Chmod(d, 0o755)
		}
		spec := Spec{
			Argv: []string{"sh", "-c", ": > /workspace/made; : > /cache/made; ls / > /workspace/list"}, Env: []string{"PATH=/bin"}, Dir: "/workspace", Toolchain: Toolchain{Root: root},
			Workspace: &Workspace{Lower: lower, Scratch: scratch, Target: "/workspace"}, Mounts: []Mount{{Source: Upper(scratch), Target: "/cache", Writable: true}},
		}
		rep, err := open(t).RunAs(t.Context(), id, spec)
		if err != nil || rep.ExitCode != 0 {
			t.Errorf("%s: %+v, %v", name, rep, err)
		}
		left, err := os.ReadDir(host)
		if err != nil || len(left) > 0 {
			t.Errorf("%s: written on the host: %v, %v", name, left, err)
		}
	}
}
