// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/trace"
)

// TestReads: however a file is named and opened, the read that is recorded has
// the content that the process saw.
func TestReads(t *testing.T) {
	engines(t, func(t *testing.T, e trace.Engine) {
		deps := t.TempDir()
		if err := os.WriteFile(filepath.Join(deps, "dep"), []byte("dependency"), 0o644); err != nil {
			t.Fatal(err)
		}
		os.Chmod(deps, 0o755)
		r := run(t, e, `cd /workspace/d && python3 - <<'E'
import os, ctypes
libc = ctypes.CDLL(None)
d = os.open('.', os.O_RDONLY)
os.read(os.open('relative', os.O_RDONLY, dir_fd=d), 10)
class How(ctypes.Structure): _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]
how = How(0, 0, 0)
fd = libc.syscall(437, d, b"two", ctypes.byref(how), ctypes.sizeof(how))
assert fd >= 0, "openat2"
os.link('linked', 'again'); open('again').read()
os.symlink('target', 'soft'); open('soft').read()
open('/deps/dep').read()
fd = os.open('gone', os.O_RDONLY); os.unlink('gone'); os.read(fd, 10)
import mmap
f = open('mapped', 'rb'); mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ).close()
ctypes.CDLL('libm.so.6')
open('empty').read()
E`, func(s *sandbox.Spec) {
			files := map[string]string{}
			for _, n := range []string{"relative", "two", "linked", "target", "gone", "mapped"} {
				files["d/"+n] = "holds " + n
			}
			files["d/empty"] = ""
			place(t, s, files)
			mount(deps, "/deps")(s)
		}).whole(t)
		for _, n := range []string{"relative", "two", "target", "mapped", "gone"} {
			r.read(t, "/workspace/d/"+n, sha("holds "+n))
		}
		r.read(t, "/workspace/d/again", sha("holds linked"))
		r.read(t, "/workspace/d/empty", sha(""))
		r.read(t, "/deps/dep", sha("dependency"))
		for _, lib := range []string{"libc.so.6", "libm.so.6"} {
			found := false
			for _, ev := range r.pick(build.EventRead) {
				found = found || strings.HasSuffix(string(ev.Path), "/"+lib) && ev.Digest == shaOf(t, string(ev.Path))
			}
			if !found {
				t.Errorf("%s was loaded and not recorded", lib)
			}
		}
	})
}

// TestVersions: a file that changes between two reads is two versions, an append
// and a truncation read nothing, and an update reads what was there.
func TestVersions(t *testing.T) {
	engines(t, func(t *testing.T, e trace.Engine) {
		r := run(t, e, `cd /workspace; echo one >f; cat f; echo two >f; cat f
			echo more >>append; cat append
			echo new >truncated; cat truncated
			python3 -c 'f=open("update","r+"); f.write("X"); f.close()'; cat update
			touch made; : >made`, func(s *sandbox.Spec) {
			place(t, s, map[string]string{"append": "old\n", "truncated": "old\n", "update": "old\n"})
		}).whole(t)
		r.read(t, "/workspace/f", sha("one\n"), sha("two\n"))
		r.read(t, "/workspace/append", sha("old\nmore\n"))
		r.read(t, "/workspace/truncated", sha("new\n"))
		r.read(t, "/workspace/update", sha("old\n"), sha("Xld\n"))
		r.read(t, "/workspace/made")
		for _, text := range []string{"one\n", "two\n"} {
			r.has(t, build.EventWrite, "/workspace/f", "", sha(text))
		}
		r.has(t, build.EventWrite, "/workspace/append", "", sha("old\nmore\n"))
		r.has(t, build.EventWrite, "/workspace/update", "", sha("Xld\n"))
		if u := r.pick(build.EventUnstable); len(u) > 0 {
			t.Errorf("nobody was misled: %v", u)
		}
	})
}

// TestUnstable: a file that changes under a reader is named, whether it is
// written to or changed through a mapping, and whoever came first.
func TestUnstable(t *testing.T) {
	for name, script := range map[string]string{
		"writer first, mapping": `
w = open('f', 'r+b'); m = mmap.mmap(w.fileno(), 0); w.close()
m[0:1] = b'1'
if os.fork() == 0:
    r = open('f', 'rb'); r.read(); os._exit(0)
os.wait()
m[0:1] = b'2'; m.close()`,
		"reader first, mapping": `
a, b = os.pipe(); c, d = os.pipe()
if os.fork() == 0:
    r = open('f', 'rb'); r.read(1); os.write(b, b'x'); os.read(c, 1); r.read(); os._exit(0)
os.read(a, 1)
w = open('f', 'r+b'); m = mmap.mmap(w.fileno(), 0); w.close(); m[0:1] = b'2'; m.close()
os.write(d, b'x'); os.wait()`,
		"reader first, write": `
a, b = os.pipe(); c, d = os.pipe()
if os.fork() == 0:
    r = open('f', 'rb', buffering=0); r.read(1); os.write(b, b'x'); os.read(c, 1); r.read(1); os._exit(0)
os.read(a, 1)
w = open('f', 'r+b'); w.write(b'other'); w.close()
os.write(d, b'x'); os.wait()`,
		"same size, same time": `
w = open('f', 'r+b', buffering=0)
for i in range(200):
    if os.fork() == 0:
        open('f', 'rb').read(); os._exit(0)
    os.wait(); os.pwrite(w.fileno(), b'%03d' % i, 0)
w.close()`,
	} {
		t.Run(name, func(t *testing.T) {
			engines(t, func(t *testing.T, e trace.Engine) {
				r := run(t, e, "cd /workspace; python3 - <<'E'\nimport os, mmap\n"+script+"\nE", func(s *sandbox.Spec) {
					place(t, s, map[string]string{"f": strings.Repeat("0", 5000)})
				}).whole(t)
				if len(r.pick(build.EventUnstable, "/workspace/f")) == 0 {
					t.Errorf("the file changed under its reader and is not named:\n%s", r.text())
				}
			})
		})
	}
}

// TestNames: names that are made, moved, linked and removed, with the process
// that did it.
func TestNames(t *testing.T) {
	engines(t, func(t *testing.T, e trace.Engine) {
		r := run(t, e, `python3 - <<'E'
import errno, os
for top in ('/workspace', '/cache', '/tmp'):
    os.chdir(top)
    os.makedirs('a/b'); open('a/b/c', 'w').write('text'); os.rename('a/b/c', 'a/d'); os.link('a/d', 'a/e')
    os.rename('a', 'z'); os.mkfifo('z/p'); os.symlink('x', 'z/s'); os.remove('z/d')
    try:
        fd = os.open('.', os.O_TMPFILE | os.O_RDWR); os.write(fd, b'unnamed')
        os.link('/proc/self/fd/%d' % fd, 'named', src_dir_fd=fd, follow_symlinks=True); os.close(fd)
    except OSError as e:
        if e.errno != errno.EOPNOTSUPP or top == '/tmp': raise
        print('only named files in', top)
    os.makedirs('gone/deep'); open('gone/deep/f', 'w').close(); os.remove('gone/deep/f'); os.rmdir('gone/deep'); os.rmdir('gone')
os.chdir('/workspace'); os.link('old/file', 'old/more'); os.remove('old/file'); os.remove('old/more'); os.rmdir('old')
E`, func(s *sandbox.Spec) { place(t, s, map[string]string{"old/file": "x"}) }).whole(t)
		for _, top := range []string{"/workspace", "/cache", "/tmp"} {
			for _, want := range []struct {
				kind     build.EventKind
				path, to string
			}{
				{build.EventMake, "/a", ""}, {build.EventMake, "/a/b", ""}, {build.EventMake, "/a/b/c", ""},
				{build.EventRename, "/a/b/c", "/a/d"}, {build.EventLink, "/a/d", "/a/e"}, {build.EventRename, "/a", "/z"},
				{build.EventMake, "/z/p", ""}, {build.EventMake, "/z/s", ""}, {build.EventRemove, "/z/d", ""},
				{build.EventMake, "/gone/deep/f", ""}, {build.EventRemove, "/gone/deep/f", ""}, {build.EventRemove, "/gone/deep", ""},
				{build.EventRemove, "/gone", ""},
			} {
				to := want.to
				if to != "" {
					to = top + to
				}
				r.has(t, want.kind, top+want.path, to, "")
			}
		}
		// A file without a name that gets one is made, or linked from its descriptor. An
		// overlay has none on older kernels (6.1).
		for _, top := range []string{"/workspace", "/cache", "/tmp"} {
			if strings.Contains(r.out, "only named files in "+top+"\n") {
				continue
			}
			linked := func(ev build.Event) bool { return ev.Kind == build.EventLink && string(ev.To) == top+"/named" }
			if r.pick(build.EventMake, top+"/named") == nil && !slices.ContainsFunc(r.events, linked) {
				t.Errorf("%s/named has no event", top)
			}
		}
		// Which file got a further name is known for what was made in the trace, and
		// else if it was still there.
		if r.pick(build.EventMake, "/workspace/old/more") == nil {
			r.has(t, build.EventLink, "/workspace/old/file", "/workspace/old/more", "")
		}
		r.has(t, build.EventRemove, "/workspace/old", "", "")
		program := r.pick(build.EventExec)[len(r.pick(build.EventExec))-1].Process
		for _, ev := range r.events {
			if (ev.Kind == build.EventMake || ev.Kind == build.EventRename || ev.Kind == build.EventRemove) && ev.Process != program && !strings.HasPrefix(string(ev.Path), "/tmp/") {
				t.Errorf("process %d did not do this: %+v", program, ev)
			}
		}
	})
}

// TestFifo: waiting in an open is not disturbed by the recorder's own look.
func TestFifo(t *testing.T) {
	engines(t, func(t *testing.T, e trace.Engine) {
		r := run(t, e, `mkfifo f; for i in 1 2 3 4 5 6 7 8 9; do (echo hello >f) & cat f; wait; done`, nil).whole(t)
		if strings.Count(r.out, "hello") != 9 {
			t.Errorf("output %q", r.out)
		}
	})
}

// TestLossless: every file that each of many processes opens at once is there.
func TestLossless(t *testing.T) {
	const procs, files, again = 24, 250, 5
	engines(t, func(t *testing.T, e trace.Engine) {
		deps := t.TempDir()
		os.Chmod(deps, 0o755)
		content := map[string]string{}
		for i := range files {
			name := fmt.Sprintf("f%d", i)
			content[name] = "workspace " + name
			if err := os.WriteFile(filepath.Join(deps, name), []byte("dependency "+name), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		r := run(t, e, fmt.Sprintf(`python3 - <<'E'
import os
for p in range(%d):
    if os.fork() == 0:
        for i in range(%d):
            for j in range(%d):
                for d in ('/workspace', '/deps'): os.close(os.open('%%s/f%%d' %% (d, i), os.O_RDONLY))
        os._exit(0)
for p in range(%d): os.wait()
E`, procs, files, again, procs), func(s *sandbox.Spec) {
			place(t, s, content)
			mount(deps, "/deps")(s)
		}).whole(t)
		got := map[string]int{}
		for _, ev := range r.pick(build.EventRead) {
			dir, name := filepath.Split(string(ev.Path))
			if text := strings.Trim(dir, "/"); text == "deps" && ev.Digest == sha("dependency "+name) || text == "workspace" && ev.Digest == sha("workspace "+name) {
				got[text]++
			}
		}
		for _, d := range []string{"deps", "workspace"} {
			if got[d] != procs*files {
				t.Errorf("%d of %d reads in %s", got[d], procs*files, d)
			}
		}
		if r.report.Trace.Attribution != "" {
			t.Errorf("attribution: %s", r.report.Trace.Attribution)
		}
	})
}

// TestKeptDigests: the toolchain is hashed once for many traces; an inventory
// that tells a falsehood is found out, and one that is damaged is not used.
func TestKeptDigests(t *testing.T) {
	if !trace.KernelWorks() {
		t.Skip("fanotify and BPF can't be used here: they need root, and the machine's own namespaces")
	}
	given := filepath.Join(t.TempDir(), "digests")
	kept := given + ".fanotify+bpf"
	with := func(s *sandbox.Spec) { s.Trace.Digests = given }
	first := run(t, trace.Kernel, "cat /etc/passwd", with).whole(t)
	b, err := os.ReadFile(kept)
	if err != nil {
		t.Fatal(err)
	}
	second := run(t, trace.Kernel, "cat /etc/passwd", with).whole(t)
	for _, r := range []recorded{first, second} {
		for _, ev := range r.pick(build.EventRead) {
			if strings.HasPrefix(string(ev.Path), "/usr/") && ev.Digest != shaOf(t, string(ev.Path)) {
				t.Errorf("%s has another digest", ev.Path)
			}
		}
	}
	// Every digest is false, and the seal is right.
	const head, entry = len("hallmark digests 1\n") + 36, 72
	for at := head + 40; at < len(b)-32; at += entry {
		b[at] ^= 1
	}
	seal := sha256.Sum256(b[:len(b)-32])
	found := false
	for range 200 {
		if err := os.WriteFile(kept, append(b[:len(b)-32:len(b)-32], seal[:]...), 0o600); err != nil {
			t.Fatal(err)
		}
		if r := run(t, trace.Kernel, "true", with); strings.Contains(r.report.Trace.Failure, "false") {
			found = true
			break
		}
	}
	if !found {
		t.Error("false digests were believed 200 times")
	}
	if err := os.WriteFile(kept, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := run(t, trace.Kernel, "true", with).whole(t)
	for _, ev := range r.pick(build.EventExec) {
		if ev.Digest != shaOf(t, string(ev.Path)) {
			t.Errorf("%s has another digest", ev.Path)
		}
	}
}

// TestNextStep: a step finds what the step before it wrote and removed.
func TestNextStep(t *testing.T) {
	engines(t, func(t *testing.T, e trace.Engine) {
		var same sandbox.Spec
		first := run(t, e, `cd /workspace; echo one >made; rm old; rm -r dir; mkdir dir; echo x >/cache/kept`, func(s *sandbox.Spec) {
			place(t, s, map[string]string{"old": "x", "dir/below": "x", "stays": "x"})
			same = *s
		}).whole(t)
		first.has(t, build.EventRemove, "/workspace/dir", "", "")
		for range 3 {
			r := run(t, e, `cd /workspace; cat made /cache/kept; ls . dir`, func(s *sandbox.Spec) {
				s.Workspace, s.Mounts = same.Workspace, same.Mounts
			}).whole(t)
			if r.out != "one\nx\n.:\ndir\nmade\nstays\n\ndir:\n" {
				t.Errorf("the next step saw %q", r.out)
			}
			r.read(t, "/workspace/made", sha("one\n"))
			r.read(t, "/cache/kept", sha("x\n"))
		}
	})
}

// TestManyAtOnce: more large files wait for their hash at once than there are
// hands to hash them, and some openers wait for the same one.
func TestManyAtOnce(t *testing.T) {
	const procs = 150
	engines(t, func(t *testing.T, e trace.Engine) {
		r := run(t, e, fmt.Sprintf(`cd /workspace; python3 - <<'E'
import os
r, w = os.pipe()
for p in range(%d):
    open('f%%d' %% p, 'wb').write(b'%%d' %% p * 200000)
for p in range(%d):
    if os.fork() == 0:
        os.close(w); os.read(r, 1)
        for n in ('f%%d' %% p, 'f0', '/deps/large'): open(n).read(1)
        os._exit(0)
os.close(w)
for p in range(%d): os.wait()
E`, procs, procs, procs), func(s *sandbox.Spec) {
			place(t, s, nil)
			deps := t.TempDir()
			os.Chmod(deps, 0o755)
			if err := os.WriteFile(filepath.Join(deps, "large"), make([]byte, 20<<20), 0o644); err != nil {
				t.Fatal(err)
			}
			mount(deps, "/deps")(s)
			s.Limits.Disk = 1 << 30
		}).whole(t)
		for path, want := range map[string]int{"/workspace/f0": procs, "/deps/large": procs, "/workspace/f149": 1} {
			if n := len(r.pick(build.EventRead, path)); n != want {
				t.Errorf("%d of %d reads of %s", n, want, path)
			}
		}
		r.read(t, "/workspace/f149", sha(strings.Repeat("149", 200000)))
	})
}
