// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// stop is a moment at which the server is killed. arm sees to it, before the work
// begins, that the server gets no further; reached waits until it is there, and
// release lets go what was held, when the server is dead.
type stop struct {
	name  string
	arm   func(l *serveLab) (reached, release func())
	moved bool // the reference is at the new commit after the next start
}

// inHook has a hook of git say where it is and wait: git and server stand still.
func inHook(name, old, new string) func(*serveLab) (reached, release func()) {
	return func(l *serveLab) (reached, release func()) {
		at, goOn := l.path("at"), l.path("go-on")
		for _, p := range []string{at, goOn} {
			if err := unix.Mkfifo(p, 0o600); err != nil {
				l.t.Fatal(err)
			}
		}
		hook := filepath.Join(l.hooksDir, name)
		b, err := os.ReadFile(hook)
		if err != nil || !strings.Contains(string(b), old) {
			l.t.Fatalf("hook %s: %v\n%s", name, err, b)
		}
		text := strings.Replace(string(b), old, strings.ReplaceAll(new, "WAIT", "echo here >"+at+"; read x <"+goOn+";"), 1)
		if err := os.WriteFile(hook, []byte(text), 0o700); err != nil {
			l.t.Fatal(err)
		}
		reached = func() {
			if _, err := os.ReadFile(at); err != nil { // ends when the hook is there
				l.t.Fatal(err)
			}
		}
		return reached, func() {
			f, err := os.OpenFile(goOn, os.O_RDWR, 0) // never waits
			if err != nil {
				l.t.Fatal(err)
			}
			defer f.Close()
			fmt.Fprintln(f, "go on")
			l.until("the end of the hook", func() bool { return len(l.processes("hooks/"+name)) == 0 })
			os.Remove(at)
			os.Remove(goOn)
		}
	}
}

// logTaken holds the log, so that the server waits for it with the reference
// locked.
func logTaken(l *serveLab) (reached, release func()) {
	lock := l.path("home", "log.lock")
	f, err := os.OpenFile(lock, os.O_RDWR, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil { // the server gives it back by itself
		l.t.Fatal(err)
	}
	reached = func() { l.until("the server waiting for the log", func() bool { return l.holds(lock) }) }
	return reached, func() { f.Close() }
}

// guardRead stops the server when it reads the fork guard for the nth time since
// it opened the log: the first is before anything is appended, the second when an
// entry is in the tree and its checkpoint is about to be signed.
func guardRead(n int) func(*serveLab) (reached, release func()) {
	return func(l *serveLab) (reached, release func()) {
		found, err := filepath.Glob(l.path("home", "guard", "*.json"))
		if err != nil || len(found) != 1 {
			l.t.Fatalf("guards: %v, %v", found, err)
		}
		guard := found[0]
		// Nobody else may be at it: the log is taken, as the server does, to look.
		lock, err := os.OpenFile(l.path("home", "log.lock"), os.O_RDWR, 0)
		if err != nil {
			l.t.Fatal(err)
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
			l.t.Fatal(err)
		}
		b, err := os.ReadFile(guard)
		if err != nil {
			l.t.Fatal(err)
		}
		if err := os.Rename(guard, l.path("guard")); err != nil {
			l.t.Fatal(err)
		}
		if err := unix.Mkfifo(guard, 0o600); err != nil {
			l.t.Fatal(err)
		}
		if st, err := os.Stat(filepath.Dir(guard)); err != nil {
			l.t.Fatal(err)
		} else if err := os.Chown(guard, int(st.Sys().(*syscall.Stat_t).Uid), -1); err != nil {
			l.t.Fatal(err)
		}
		lock.Close()
		var w *os.File
		reached = func() {
			for i := range n {
				l.until(fmt.Sprintf("reading %d of the guard", i+1), func() bool {
					w, err = os.OpenFile(guard, os.O_WRONLY|unix.O_NONBLOCK, 0)
					return err == nil
				})
				if i == n-1 {
					return
				}
				if _, err := w.Write(b); err != nil {
					l.t.Fatal(err)
				}
				w.Close()
				l.until("the end of the reading", func() bool { return !l.holds(guard) })
			}
		}
		return reached, func() {
			w.Close()
			if err := os.Rename(l.path("guard"), guard); err != nil {
				l.t.Fatal(err)
			}
		}
	}
}

// TestServeKilled kills the server with SIGKILL at every step of a push and of a
// merge. After the next start references and log agree, what was logged has
// happened, what was not has not, the client can go on, and nothing is left.
func TestServeKilled(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("kills many servers; go test without -short does")
	}
	l := newServeLab(t)
	l.start()
	l.change()
	l.program(l.path("app"), "git", "push", "-q", l.remote("alice"), "work")
	const begin, yes = "#!/bin/sh\n", `"yes $$") exit 0 ;;`
	for _, s := range []stop{
		{"before the gate is asked", inHook("pre-receive", begin, begin+"WAIT\n"), false},
		{"after an allowing decision", inHook("pre-receive", yes, `"yes $$") WAIT exit 0 ;;`), false},
		{"with the reference locked", inHook("reference-transaction", "case $1 in prepared)", "case $1 in prepared) WAIT"), false},
		{"while the log is waited for", logTaken, false},
		{"before the log is opened", guardRead(1), false},
		{"before the checkpoint is signed", guardRead(2), true},
		{"after the log, before the reference moves", inHook("reference-transaction", yes, `"yes $$") WAIT exit 0 ;;`), true},
		{"after the reference moved", inHook("reference-transaction", "case $1 in prepared)", "case $1 in committed) WAIT exit 0 ;; prepared)"), true},
	} {
		l.killedPush(s)
	}
	for _, s := range []stop{
		{"merge while the log is waited for", logTaken, false},
		{"merge before the checkpoint is signed", guardRead(2), true},
		{"merge after the log, git killed too", mergeLogged(true), true},
		{"merge after the log, git goes on late", mergeLogged(false), true},
	} {
		l.killedMerge(s)
	}
	l.stop()
	l.gone()
	if out := l.must("log", "fsck"); !strings.Contains(out, " 0 problems") {
		t.Errorf("fsck: %s", out)
	}
	for _, who := range []string{"alice", "bob"} {
		token, err := os.ReadFile(l.path(who + ".token"))
		if err != nil || strings.Contains(l.serveLog(), strings.TrimSpace(string(token))) {
			t.Errorf("the server's log holds a token: %v", err)
		}
	}
}

// TestServeStopped ends the server in the middle of a push: it takes no other
// connection, and the push comes to its end.
func TestServeStopped(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("runs a server; go test without -short does")
	}
	l := newServeLab(t)
	l.start()
	commit := l.change()
	reached, release := inHook("pre-receive", `"yes $$") exit 0 ;;`, `"yes $$") WAIT exit 0 ;;`)(l)
	done := make(chan error, 1)
	go func() {
		said, err := l.try(l.path("app"), "git", "push", l.remote("alice"), "work")
		if err != nil {
			err = fmt.Errorf("%w: %s", err, said)
		}
		done <- err
	}()
	reached()
	if err := l.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	l.until("no connection being taken", func() bool {
		c, err := net.Dial("tcp", strings.TrimPrefix(l.url, "https://"))
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	release()
	if err := <-done; err != nil {
		t.Errorf("the push that was under way: %v", err)
	}
	if err := l.cmd.Wait(); err != nil {
		t.Errorf("the server ended with %v\n%s", err, l.serveLog())
	}
	l.cmd = nil
	if got := l.at("refs/heads/work"); got != commit {
		t.Errorf("the reference is at %q, want %s", got, commit)
	}
	l.agree()
	l.gone()
}

// killedAt runs work, kills the server at a stop and starts it again.
func (l *serveLab) killedAt(s stop, work func() (string, error)) {
	l.t.Helper()
	reached, release := s.arm(l)
	type result struct {
		said string
		err  error
	}
	done := make(chan result, 1)
	go func() {
		said, err := work()
		done <- result{said, err}
	}()
	reached()
	select {
	case r := <-done:
		l.t.Fatalf("%s: the work ended before the kill: %v\n%s", s.name, r.err, r.said)
	default:
	}
	l.kill9()
	if r := <-done; r.err == nil {
		l.t.Errorf("%s: the client believes that it succeeded\n%s", s.name, r.said)
	}
	release()
	l.start()
	l.agree()
	l.gone()
}

func (l *serveLab) killedPush(s stop) {
	l.t.Helper()
	l.t.Log(s.name)
	before, commit := l.at("refs/heads/work"), l.change()
	push := func() (string, error) { return l.try(l.path("app"), "git", "push", l.remote("alice"), "work") }
	l.killedAt(s, push)
	want := before
	if s.moved {
		want = commit
	}
	if got := l.at("refs/heads/work"); got != want {
		l.t.Errorf("%s: the reference is at %s, want %s", s.name, got, want)
	}
	if said, err := push(); err != nil {
		l.t.Fatalf("%s: pushing again: %v\n%s", s.name, err, said)
	}
	if got := l.at("refs/heads/work"); got != commit {
		l.t.Errorf("%s: pushed again, the reference is at %s, want %s", s.name, got, commit)
	}
	l.agree()
}

var changeID = regexp.MustCompile(`c-[0-9a-f]{16}`)

func (l *serveLab) killedMerge(s stop) {
	l.t.Helper()
	l.t.Log(s.name)
	before, commit := l.at("refs/heads/main"), l.change()
	l.program(l.path("app"), "git", "push", "-q", l.remote("alice"), "work")
	id := changeID.FindString(l.program("", l.bin, "change", "propose", "app", "--from", "work", "--to", "main", "--token-file", l.path("alice.token")))
	l.program("", l.bin, "change", "approve", id, "--token-file", l.path("bob.token"))
	merge := func() (string, error) {
		return l.try("", l.bin, "change", "merge", id, "--token-file", l.path("alice.token"))
	}
	l.killedAt(s, merge)
	want := before
	if s.moved {
		want = commit
	}
	if got := l.at("refs/heads/main"); got != want {
		l.t.Errorf("%s: the reference is at %s, want %s", s.name, got, want)
	}
	if !s.moved {
		if said, err := merge(); err != nil {
			l.t.Fatalf("%s: merging again: %v\n%s", s.name, err, said)
		}
	}
	if got := l.at("refs/heads/main"); got != commit {
		l.t.Errorf("%s: merged again, the reference is at %s, want %s", s.name, got, commit)
	}
	l.agree()
}

// mergeLogged stops the git process that holds the reference, so that the
// transition is in the log and the reference can't move; it is killed with the
// server, or goes on when another server runs.
func mergeLogged(kill bool) func(*serveLab) (reached, release func()) {
	return func(l *serveLab) (reached, release func()) {
		waits, letLog := logTaken(l)
		pid := 0
		reached = func() {
			waits()
			holders := l.processes("update-ref")
			if len(holders) != 1 {
				l.t.Fatalf("git processes that hold a reference: %v", holders)
			}
			pid = holders[0]
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				l.t.Fatal(err)
			}
			pipe, err := os.Open(fmt.Sprintf("/proc/%d/fd/0", pid))
			if err != nil {
				l.t.Fatal(err)
			}
			defer pipe.Close()
			letLog()
			l.until("what the server said to git after it logged", func() bool {
				n, err := unix.IoctlGetInt(int(pipe.Fd()), unix.TIOCINQ)
				return err == nil && n > 0
			})
			if kill {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					l.t.Fatal(err)
				}
			}
		}
		return reached, func() {
			if kill {
				return
			}
			if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
				l.t.Fatal(err)
			}
		}
	}
}
