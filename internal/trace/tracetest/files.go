// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package tracetest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/trace"
)

func testFiles(t *testing.T, c contract) {
	dir := input(t)
	a := write(t, dir, "a.txt", "hello")
	r := c.run(t, dir, "cat /in/a.txt; echo made >/tmp/b; cat /tmp/b; exit 7", nil).whole()
	if r.report.ExitCode != 7 {
		t.Errorf("%+v", r.report)
	}
	r.want(build.EventRead, "/in/a.txt", a)
	r.want(build.EventWrite, "/tmp/b", []byte("made\n"))
	r.want(build.EventMake, "/tmp/b", nil)
	r.want(build.EventRead, "/tmp/b", []byte("made\n"))
	r.want(build.EventExec, "/cat", host(t, "/usr/bin/cat"))
}

func testWays(t *testing.T, c contract) {
	dir := input(t)
	d := filepath.Join(dir, "d")
	if err := os.Mkdir(d, 0o755); err != nil {
		t.Fatal(err)
	}
	names := []string{"openat", "opath", "openat2", "relative", "dots", "open", "reopen", "mmap"}
	for _, n := range names {
		write(t, d, n, "content of "+n)
	}
	write(t, d, "symlinked", "content of symlink")
	if err := os.Symlink("symlinked", filepath.Join(d, "tosymlink")); err != nil {
		t.Fatal(err)
	}
	r := c.do(t, dir, "ways").whole()
	if r.report.ExitCode != 0 {
		t.Fatalf("%+v\n%s", r.report, r.out)
	}
	for _, n := range names {
		r.want(build.EventRead, "/in/d/"+n, []byte("content of "+n))
	}
	r.want(build.EventRead, "/in/d/symlinked", []byte("content of symlink"))
	r.want(build.EventWrite, "/tmp/written2", []byte("two"))
	r.want(build.EventWrite, "/tmp/creat", []byte("made"))
	if c.engine == trace.Ptrace {
		r.want(build.EventWrite, "/tmp/append", []byte("app"))
		r.want(build.EventWrite, "/tmp/append", []byte("a"))
	} else if len(r.find(build.EventWrite, "/tmp/append")) == 0 {
		// The other engine looks once, after the close: nobody read what the file
		// held between that and being cut by its name.
		t.Error("no write of /tmp/append")
	}
}

func testDeleted(t *testing.T, c contract) {
	r := c.do(t, "", "deleted").whole()
	r.want(build.EventRead, "", []byte("gone"))
	r.want(build.EventWrite, "", []byte("tmpfile"))
	r.want(build.EventRead, "/tmp/linked", []byte("tmpfile"))
}

func testMounts(t *testing.T, c contract) {
	dir, other := input(t), input(t)
	a := write(t, dir, "a", "one")
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "hard")); err != nil {
		t.Fatal(err)
	}
	b := write(t, other, "b", "two")
	r := c.run(t, dir, "cat /in/hard /other/b /in/sub/b", func(s *sandbox.Spec) {
		s.Mounts = append(s.Mounts, sandbox.Mount{Source: other, Target: "/other"}, sandbox.Mount{Source: other, Target: "/tmp/again"})
	}).whole()
	r.want(build.EventRead, "/in/hard", a)
	r.want(build.EventRead, "/other/b", b)
}

func testVersions(t *testing.T, c contract) {
	r := c.run(t, "", `perl -e 'for my $v ("one", "two") { open my $o, ">", "/tmp/v"; print $o $v; close $o; open my $i, "<", "/tmp/v"; print <$i>; close $i }'`, nil).whole()
	if r.out != "onetwo" {
		t.Errorf("output %q", r.out)
	}
	for _, v := range []string{"one", "two"} {
		r.want(build.EventWrite, "/tmp/v", []byte(v))
		r.want(build.EventRead, "/tmp/v", []byte(v))
	}
	if u := r.find(build.EventUnstable, ""); len(u) > 0 {
		t.Errorf("nobody was misled: %v", u)
	}
}

func testShared(t *testing.T, c contract) {
	r := c.do(t, "", "shared").whole()
	r.want(build.EventRead, "/tmp/shared", []byte("beforE"))
	r.want(build.EventUnstable, "/tmp/shared", []byte("after!"))
	r.want(build.EventWrite, "/tmp/shared", []byte("after!"))
}

// testKnownDigests: what an earlier trace knew is what a later one says, and a
// file that was changed in between is not known, though it looks alike.
func testKnownDigests(t *testing.T, c contract) {
	dir, store := input(t), filepath.Join(t.TempDir(), "digests")
	for _, content := range []string{"one", "two"} {
		a := write(t, dir, "a", content)
		if err := os.Chtimes(filepath.Join(dir, "a"), time.Unix(1e9, 1), time.Unix(1e9, 1)); err != nil {
			t.Fatal(err)
		}
		r := c.run(t, dir, "cat /in/a", func(s *sandbox.Spec) { s.Trace.Digests = store }).whole()
		r.want(build.EventRead, "/in/a", a)
		r.want(build.EventExec, "/cat", host(t, "/usr/bin/cat"))
	}
}

func testMisled(t *testing.T, c contract) {
	r := c.do(t, "", "misled").whole()
	if r.out != "misled DSECO\n" {
		t.Errorf("output %q", r.out)
	}
	r.want(build.EventRead, "/tmp/half", []byte("firstfirst"))
	r.want(build.EventUnstable, "/tmp/half", []byte("SECONDSECO"))
}

func testNames(t *testing.T, c contract) {
	r := c.run(t, "", `mkdir -p /tmp/d; cd /tmp/d; echo x >a; mv a b; ln b hard; ln -s b soft; mkfifo pipe; rm b; mkdir e; rmdir e
		ln -s /tmp/d /tmp/way; mv /tmp/way/hard /tmp/way/moved; python3 -c 'import os
d = os.open("/tmp", os.O_RDONLY); os.rename("d/moved", "d/again", src_dir_fd=d, dst_dir_fd=d); os.unlink("d/none") if os.path.exists("/tmp/d/none") else 0'
		mv nothing elsewhere 2>/dev/null; true`, nil).whole()
	for _, want := range []string{
		"make /tmp/d ", "make /tmp/d/a ", "rename /tmp/d/a /tmp/d/b", "link /tmp/d/b /tmp/d/hard", "make /tmp/d/soft ", "make /tmp/d/pipe ",
		"remove /tmp/d/b ", "make /tmp/d/e ", "remove /tmp/d/e ", "rename /tmp/d/hard /tmp/d/moved", "rename /tmp/d/moved /tmp/d/again",
	} {
		found := false
		for _, e := range r.events {
			found = found || fmt.Sprintf("%s %s %s", e.Kind, e.Path, e.To) == want
		}
		if !found {
			t.Errorf("no %q", want)
		}
	}
	for _, e := range r.events {
		if strings.Contains(string(e.Path), "nothing") {
			t.Errorf("a call that failed is recorded: %+v", e)
		}
	}
}

// testLabels: what has no content of its own is recorded by its name at most.
func testLabels(t *testing.T, c contract) {
	r := c.run(t, "", "cat /proc/self/status >/dev/null; ls /usr >/dev/null; head -c 3 /dev/urandom >/dev/null", nil).whole()
	for _, e := range r.events {
		special := strings.HasPrefix(string(e.Path), "/proc/") || strings.HasPrefix(string(e.Path), "/dev/")
		if special && e.Digest != "" || e.Path == "/usr" {
			t.Errorf("%+v", e)
		}
	}
}

func testManyOpens(t *testing.T, c contract) {
	n := 30_000
	if testing.Short() {
		n = 3000
	}
	r := c.run(t, "", fmt.Sprintf(`python3 - <<'E'
import os
os.mkdir("/tmp/m")
for i in range(%[1]d // 4): open("/tmp/m/%%d" %% i, "w").write(str(i))
for p in range(4):
    if os.fork() == 0:
        for i in range(%[1]d // 4): os.close(os.open("/tmp/m/%%d" %% i, os.O_RDONLY))
        os._exit(0)
for p in range(4): os.wait()
E`, n), nil).whole()
	reads, writes := map[string]int{}, 0
	for _, e := range r.events {
		if !strings.HasPrefix(string(e.Path), "/tmp/m/") {
			continue
		}
		switch e.Kind {
		case build.EventRead:
			reads[string(e.Path)]++
			if e.Digest != digest([]byte(strings.TrimPrefix(string(e.Path), "/tmp/m/"))) {
				t.Fatalf("%+v", e)
			}
		case build.EventWrite:
			writes++
		}
	}
	for path, got := range reads {
		if got != 4 {
			t.Errorf("%s: %d of 4 reads", path, got)
		}
	}
	if len(reads) != n/4 || writes != n/4 {
		t.Errorf("%d files read and %d written, want %d", len(reads), writes, n/4)
	}
}

func testFullDisk(t *testing.T, c contract) {
	if os.Geteuid() != 0 {
		t.Skip("a full file system is mounted as root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Skip(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	r := c.run(t, "", "i=0; while [ $i -lt 40 ]; do cat /usr/bin/true >/tmp/$i; i=$((i+1)); done", func(s *sandbox.Spec) { s.Trace.Log = filepath.Join(dir, "log") })
	if r.report.Trace == nil || r.report.Trace.Whole() || !strings.Contains(r.report.Trace.Failure, "writing the event log") {
		t.Errorf("%+v", r.report.Trace)
	}
}
