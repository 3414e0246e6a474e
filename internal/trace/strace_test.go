// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/trace"
)

// straced are the calls that strace is asked for: all that open, run, name or
// reach something.
const straced = "open,openat,openat2,creat,open_by_handle_at,execve,execveat,fork,vfork,clone,clone3," +
	"rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,symlink,symlinkat,link,linkat,mknod,mknodat,truncate,connect,chdir,fchdir"

// seen is one process as strace saw it.
type seen struct {
	pid      int
	children []*seen
	execs    [][]string      // arguments of each
	reads    map[string]bool // regular files, by path
	writes   map[string]bool
	names    []named
	connects int
}

type named struct{ kind, path, to string }

// straceDir reads the files that strace -ff wrote, one for each thread.
type straceDir struct {
	t     *testing.T
	dir   string
	known map[int]*seen
	dirs  map[string]bool // that were made
}

// A line: call(arguments) = result. With -xx all text is \xHH, so that no text
// has a parenthesis, comma or quote.
var (
	straceLine   = regexp.MustCompile(`^([a-z0-9_]+)\((.*)\)\s+= (-?\d+)(<[^>]*>)?(?:\s+/\* (\d+) in strace's PID NS \*/)?`)
	straceQuoted = regexp.MustCompile(`"((?:\\x[0-9a-f]{2})*)"`)
	straceHex    = regexp.MustCompile(`\\x([0-9a-f]{2})`)
)

func unhex(s string) string {
	return straceHex.ReplaceAllStringFunc(s, func(m string) string {
		n, _ := strconv.ParseUint(m[2:], 16, 8)
		return string([]byte{byte(n)})
	})
}

// process reads one process, its threads and all that descends from it. cwd is
// where it begins.
func (d *straceDir) process(pid int, cwd string) *seen {
	p := &seen{pid: pid, reads: map[string]bool{}, writes: map[string]bool{}}
	d.known[pid] = p
	d.thread(p, pid, &cwd)
	return p
}

func (d *straceDir) thread(p *seen, tid int, cwd *string) {
	f, err := os.Open(fmt.Sprintf("%s/o.%d", d.dir, tid))
	if errors.Is(err, fs.ErrNotExist) {
		return // it made no call that was asked for
	}
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		m := straceLine.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		result, _ := strconv.Atoi(m[3])
		if result < 0 && m[1] != "connect" {
			continue
		}
		var text []string
		for _, q := range straceQuoted.FindAllStringSubmatch(m[2], -1) {
			text = append(text, unhex(q[1]))
		}
		d.call(p, m, text, cwd)
	}
	if err := lines.Err(); err != nil {
		d.t.Fatal(err)
	}
}

func (d *straceDir) call(p *seen, m, text []string, cwd *string) {
	args := strings.Split(m[2], ", ")
	decorated := func(s string) string {
		_, s, _ = strings.Cut(s, "<")
		return unhex(strings.TrimSuffix(s, ">"))
	}
	at := func(i, n int) string { // the path text[n], below the directory in args[i] (-1: the working directory)
		if path.IsAbs(text[n]) {
			return path.Clean(text[n])
		}
		if i >= 0 {
			return path.Join(decorated(args[i]), text[n])
		}
		return path.Join(*cwd, text[n])
	}
	name := func(kind, path, to string) { p.names = append(p.names, named{kind, path, to}) }
	switch m[1] {
	case "open", "openat", "openat2", "creat", "open_by_handle_at":
		d.opened(p, m[1], m[2], decorated(m[4]))
	case "execve", "execveat":
		end := strings.Index(m[2], "]")
		var argv []string
		for _, q := range straceQuoted.FindAllStringSubmatch(m[2][strings.Index(m[2], "[")+1:end], -1) {
			argv = append(argv, unhex(q[1]))
		}
		p.execs = append(p.execs, argv)
	case "fork", "vfork", "clone", "clone3":
		tid, _ := strconv.Atoi(m[3])
		if m[5] != "" {
			tid, _ = strconv.Atoi(m[5])
		}
		if strings.Contains(m[2], "CLONE_THREAD") {
			d.thread(p, tid, cwd)
		} else {
			p.children = append(p.children, d.process(tid, *cwd))
		}
	case "chdir":
		*cwd = at(-1, 0)
	case "fchdir":
		*cwd = decorated(args[0])
	case "connect":
		if strings.Contains(m[2], "AF_INET") {
			p.connects++
		}
	case "rename":
		name("rename", at(-1, 0), at(-1, 1))
	case "renameat", "renameat2":
		name("rename", at(0, 0), at(2, 1))
	case "link":
		name("link", at(-1, 0), at(-1, 1))
	case "linkat":
		name("link", at(0, 0), at(2, 1))
	case "unlink", "rmdir":
		name("remove", at(-1, 0), "")
	case "unlinkat":
		name("remove", at(0, 0), "")
	case "mkdir":
		d.dirs[at(-1, 0)] = true
		name("make", at(-1, 0), "")
	case "mkdirat":
		d.dirs[at(0, 0)] = true
		name("make", at(0, 0), "")
	case "mknod":
		name("make", at(-1, 0), "")
	case "mknodat":
		name("make", at(0, 0), "")
	case "symlink":
		name("make", at(-1, 1), "")
	case "symlinkat":
		name("make", at(1, 1), "")
	case "truncate":
		p.writes[at(-1, 0)] = true
	}
}

// opened takes an open. What has no content of its own is none of the files that
// are compared: directories, devices, /proc.
func (d *straceDir) opened(p *seen, call, args, label string) {
	for _, not := range []string{"O_DIRECTORY", "O_PATH"} {
		if strings.Contains(args, not) && !strings.Contains(args, "O_TMPFILE") {
			return
		}
	}
	if !path.IsAbs(label) || strings.HasPrefix(label, "/proc/") || strings.HasPrefix(label, "/sys/") || strings.HasPrefix(label, "/dev/") && !strings.HasPrefix(label, "/dev/shm/") {
		return
	}
	label = strings.TrimSuffix(label, "(deleted)")
	write := call == "creat" || strings.Contains(args, "O_WRONLY") || strings.Contains(args, "O_RDWR") || strings.Contains(args, "O_TRUNC")
	if write {
		p.writes[label] = true
	} else {
		p.reads[label] = true
	}
}

// logged is one process as the event log has it.
type logged struct {
	number, parent int
	children       []*logged
	execs          [][]string
	reads, writes  map[string]bool
	connects       int
}

// readLogged returns the process that ran the first program, which is the
// sandbox's own, and what all of them did.
func readLogged(events []build.Event) (first *logged, names map[named]int, writes map[string]bool) {
	all := map[int]*logged{0: {reads: map[string]bool{}, writes: map[string]bool{}}}
	names, writes = map[named]int{}, map[string]bool{}
	for _, e := range events {
		p := all[e.Process]
		switch e.Kind {
		case build.EventFork:
			c := &logged{number: e.Child, parent: e.Process, reads: map[string]bool{}, writes: map[string]bool{}}
			all[e.Child] = c
			p.children = append(p.children, c)
		case build.EventExec:
			if first == nil {
				first = p
			}
			var argv []string
			for _, a := range e.Args {
				argv = append(argv, string(a))
			}
			p.execs = append(p.execs, argv)
		case build.EventRead:
			p.reads[string(e.Path)] = true
		case build.EventWrite:
			p.writes[string(e.Path)] = true
			writes[string(e.Path)] = true
		case build.EventConnect:
			p.connects++
		case build.EventMake, build.EventRename, build.EventLink, build.EventRemove:
			names[named{string(e.Kind), string(e.Path), string(e.To)}]++
		}
	}
	return first, names, writes
}

// tally is what a comparison counts.
type tally struct {
	processes, execs, reads, writes, names, connects int
	missing                                          []string
	// directories were opened without O_DIRECTORY: strace does not say what it is
	directories func(string) bool
	renamed     map[string]string
}

func (c *tally) miss(format string, args ...any) {
	c.missing = append(c.missing, fmt.Sprintf(format, args...))
}

// compare looks for everything that strace saw in the log, process by process.
func (c *tally) compare(s *seen, l *logged, names map[named]int, writes map[string]bool) {
	c.processes++
	who := fmt.Sprintf("process %d (%.60q)", l.number, slices.Concat(l.execs...))
	for i, x := range s.execs {
		c.execs++
		if !slices.ContainsFunc(l.execs, func(y []string) bool { return sameProgram(x, y) }) {
			c.miss("%s: exec %d of %.200q: the log has %.300q", who, i, x, l.execs)
		}
	}
	for p := range s.reads {
		if l.reads[p] {
			c.reads++
		} else if !c.directories(p) {
			c.miss("%s: read of %s", who, p)
		}
	}
	for p := range s.writes {
		c.writes++
		// A write is known when its file is closed, which may have another name by then.
		for n := 0; n < 8 && c.renamed[p] != "" && !l.writes[p] && !writes[p]; n++ {
			p = c.renamed[p]
		}
		if !l.writes[p] && !writes[p] {
			c.miss("%s: write of %s", who, p)
		}
	}
	for _, n := range s.names {
		c.names++
		if names[n]--; names[n] < 0 {
			c.miss("%s: %s of %s %s", who, n.kind, n.path, n.to)
		}
	}
	c.connects += s.connects
	if s.connects > l.connects {
		c.miss("%s: %d connects, the log has %d", who, s.connects, l.connects)
	}
	if len(s.children) != len(l.children) {
		c.miss("%s: strace saw %d children, the log has %d", who, len(s.children), len(l.children))
		return
	}
	// Threads may make processes in another order than strace tells of them.
	left := slices.Clone(l.children)
	for _, child := range s.children {
		at := max(0, slices.IndexFunc(left, func(m *logged) bool { return slices.EqualFunc(child.execs, m.execs, sameProgram) }))
		c.compare(child, left[at], names, writes)
		left = slices.Delete(left, at, at+1)
	}
}

// sameProgram reports whether what a process asked for (strace) is what it got:
// a script is run by its interpreter, which gets the script's path.
func sameProgram(asked, got []string) bool {
	if slices.Equal(asked, got) {
		return true
	}
	rest := len(got) - len(asked)
	return len(asked) > 0 && rest > 0 && slices.Equal(asked[1:], got[rest+1:]) && filepath.Base(got[rest]) == filepath.Base(asked[0])
}

// awaitProgram waits for the program of the sandbox that this test started with
// the given marker among its arguments.
func awaitProgram(t *testing.T, marker string) int {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, d := range dirs {
			if b, err := os.ReadFile(d); err == nil && strings.HasPrefix(string(b), "sh\x00-c\x00") && strings.Contains(string(b), marker) {
				pid, _ := strconv.Atoi(strings.Split(d, "/")[2])
				return pid
			}
		}
	}
	t.Error("the sandbox's program did not start")
	return 0
}

// attach lets strace follow a process and returns when it does, and what ends it.
func attach(t *testing.T, pid int, dir string) (end func()) {
	cmd := exec.Command("strace", "-ff", "-o", filepath.Join(dir, "o"), "-xx", "-y", "-s", "1000000", "-e", "abbrev=none",
		"--decode-pids=pidns", "-e", "trace="+straced, "-e", "signal=none", "-p", strconv.Itoa(pid))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Error(err)
		return func() {}
	}
	if err := cmd.Start(); err != nil {
		t.Error(err)
		return func() {}
	}
	lines := bufio.NewScanner(stderr)
	for lines.Scan() && !strings.Contains(lines.Text(), "attached") {
	}
	ended := make(chan struct{})
	go func() { // or strace would wait for us
		defer close(ended)
		for lines.Scan() {
		}
		cmd.Wait()
	}()
	return func() { <-ended }
}

// TestStrace runs builds that strace watches from outside, at the same time:
// fanotify and BPF leave ptrace free. Whatever strace saw succeed must be in the
// log, of the same process. HALLMARK_STRACE=TREE runs the script in
// HALLMARK_STRACE_RUN over a tree in its place: bench/trace-compare.
func TestStrace(t *testing.T) {
	if !trace.KernelWorks() {
		t.Skip("fanotify and BPF can't be used here: they need root, and the machine's own namespaces")
	}
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("strace is missing: apt-get install strace")
	}
	tree, script := os.Getenv("HALLMARK_STRACE"), os.Getenv("HALLMARK_STRACE_RUN")
	if tree == "" {
		tree, script = sample(t), "make -s && ./hello && ./names.sh && { ! command -v go || go version; } && python3 spawn.py"
	}
	s, r := bothWays(t, tree, script)
	first, names, writes := readLogged(r.events)
	renamed := map[string]string{}
	for n := range names {
		if n.kind == "rename" {
			renamed[n.path] = n.to
		}
	}
	c := &tally{renamed: renamed, directories: func(p string) bool {
		if r.dirs[p] {
			return true
		}
		for _, root := range []string{"", tree} {
			if st, err := os.Stat(root + strings.TrimPrefix(p, "/workspace")); err == nil && st.IsDir() {
				return true
			}
		}
		return slices.ContainsFunc(r.events, func(e build.Event) bool { return strings.HasPrefix(string(e.Path), p+"/") })
	}}
	c.compare(s, first, names, writes)
	t.Logf("compared %d processes, %d programs, %d reads, %d writes, %d names, %d connects; %d events", c.processes, c.execs, c.reads, c.writes, c.names, c.connects, len(r.events))
	for i, m := range c.missing {
		if i == 50 {
			t.Errorf("… %d more", len(c.missing)-i)
			break
		}
		t.Error("missing: " + m)
	}
	if c.processes < 10 || c.reads < 50 || c.writes < 5 || c.execs < 5 {
		t.Errorf("strace saw next to nothing: %+v", c)
	}
	if r.report.ExitCode != 0 {
		t.Errorf("%+v\n%s", r.report, r.out)
	}
}

// both is what the kernel engine left of such a run.
type both struct {
	out    string
	report sandbox.Report
	events []build.Event
	dirs   map[string]bool // that strace saw made
}

func eventsOf(t *testing.T, log string) []build.Event {
	t.Helper()
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []build.Event
	if err := build.ReadEvents(f, func(e build.Event) error { out = append(out, e); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

// openDir makes a directory that the user of a sandbox can read.
func openDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// bothWays runs a script over a tree, recorded by the kernel engine and by strace.
func bothWays(t *testing.T, tree, script string) (*seen, both) {
	t.Helper()
	in, stdir, scratch, host := openDir(t), t.TempDir(), filepath.Join(t.TempDir(), "scratch"), sandbox.HostID()
	if err := errors.Join(sandbox.NewScratch(scratch, host), sandbox.Give(tree, host)); err != nil {
		t.Fatal(err)
	}
	marker := fmt.Sprintf("/in/strace-%d-%d", os.Getpid(), time.Now().UnixNano())
	ended := make(chan func(), 1)
	pid := 0
	go func() {
		end := func() {}
		if pid = awaitProgram(t, marker); pid != 0 {
			end = attach(t, pid, stdir)
		}
		os.WriteFile(filepath.Join(in, path.Base(marker)), nil, 0o644)
		ended <- end
	}()
	var out bytes.Buffer
	log := filepath.Join(t.TempDir(), "events")
	box, err := sandbox.New(sandbox.Config{Clock: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	rep, err := box.RunAs(t.Context(), host, sandbox.Spec{
		Argv: []string{"sh", "-c", "until [ -e " + marker + " ]; do sleep 0.05; done; " + script}, Dir: "/workspace", Stdout: &out, Stderr: &out,
		Env: []string{"PATH=" + sandbox.Path(), "HOME=/tmp/home", "TMPDIR=/tmp", "LANG=C.UTF-8", "SOURCE_DATE_EPOCH=1700000000", "GOFLAGS=-mod=mod -buildvcs=false",
			"GOPROXY=off", "GOTOOLCHAIN=local", "GOCACHE=/tmp/go", "GOENV=off"},
		Mounts:    []sandbox.Mount{{Source: in, Target: "/in"}},
		Workspace: &sandbox.Workspace{Lower: tree, Scratch: scratch, Target: "/workspace"},
		Limits:    sandbox.Limits{Wall: 20 * time.Minute},
		Trace:     &sandbox.Trace{Engine: trace.Kernel, Log: log},
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	r := both{out: out.String(), report: rep, events: eventsOf(t, log)}
	(<-ended)()
	if rep.Trace == nil || !rep.Trace.Whole() {
		t.Errorf("the trace is not whole: %+v", rep.Trace)
	}
	d := &straceDir{t: t, dir: stdir, known: map[int]*seen{}, dirs: map[string]bool{}}
	s := d.process(pid, "/workspace")
	// The waiting loop began before strace came.
	first := -1
	for i := range r.events {
		if e := r.events[i]; e.Kind == build.EventExec && first < 0 {
			first = e.Process
		}
	}
	r.dirs = d.dirs
	dropWaiting(&r, first, s)
	return s, r
}

// dropWaiting takes the processes out of the log that the waiting made before
// strace saw them: the first children.
func dropWaiting(r *both, first int, s *seen) {
	before := -len(s.children)
	for _, e := range r.events {
		if e.Kind == build.EventFork && e.Process == first {
			before++
		}
	}
	drop := map[int]bool{}
	r.events = slices.DeleteFunc(r.events, func(e build.Event) bool {
		if e.Kind == build.EventFork && e.Process == first && before > 0 {
			before--
			drop[e.Child] = true
		}
		return drop[e.Process] || drop[e.Child]
	})
}

// sample is a small tree that does with files what builds do.
func sample(t *testing.T) string {
	t.Helper()
	dir := openDir(t)
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("Makefile", `CFLAGS = -O1 -I.
hello: hello.o lib/libpart.a
	$(CC) -o hello hello.o -Llib -lpart
lib/libpart.a: part.o more.o
	mkdir -p lib && ar rcs lib/libpart.a part.o more.o && ranlib lib/libpart.a
%.o: %.c part.h
	$(CC) $(CFLAGS) -c -o $@.tmp $< && mv $@.tmp $@
`)
	write("part.h", "int part(void); int more(void);\n")
	write("part.c", "#include \"part.h\"\nint part(void) { return 1; }\n")
	write("more.c", "#include \"part.h\"\nint more(void) { return 2; }\n")
	write("hello.c", "#include <stdio.h>\n#include \"part.h\"\nint main(void) { return printf(\"%d\\n\", part() + more()) < 0; }\n")
	write("names.sh", `#!/bin/sh -e
mkdir -p a/b && cd a/b
echo one >x && cp x y && ln y z && ln -s z w && cat w && mv z ../z && mkfifo f
cd .. && rm -r b && rmdir ../lib2 2>/dev/null || mkdir ../lib2
tar cf ../a.tar . && cd ../lib2 && tar xf ../a.tar && cat z | gzip | gunzip >zz && rm "$PWD/zz"
(cat z; echo more) >both; exec 3<>both; echo x >&3; exec 3>&-
`)
	write("spawn.py", `import os, socket, subprocess, tempfile, threading, shutil
def job(n):
    subprocess.run(["cat", "Makefile"], stdout=subprocess.DEVNULL, check=True)
    with tempfile.NamedTemporaryFile() as f:
        f.write(b"x%d" % n)
for t in [threading.Thread(target=job, args=(n,)) for n in range(2)]:
    t.start(); t.join()
with tempfile.TemporaryDirectory() as d:
    shutil.copytree("a", d + "/a")
    os.replace(d + "/a/z", d + "/q")
s = socket.socket()
try: s.connect(("127.0.0.1", 9))
except OSError: pass
`)
	return dir
}
