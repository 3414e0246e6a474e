// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// clients is how many push at the same time: $HALLMARK_CLIENTS, 16 unless set.
func clients(t *testing.T) int {
	n := 16
	if s := os.Getenv("HALLMARK_CLIENTS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil || n < 2 {
			t.Fatalf("HALLMARK_CLIENTS: %q", s)
		}
	}
	return n
}

// TestServeMany has many git clients push to one reference at once: one wins each
// time, and nothing of the others' stays. To different references all succeed.
func TestServeMany(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts many git clients; go test without -short does")
	}
	l := newServeLab(t)
	l.start()
	l.change()
	l.program(l.path("app"), "git", "push", "-q", l.remote("alice"), "work")
	n := clients(t)
	wins := map[string]bool{l.at("refs/heads/work"): true}
	for round := range 2 {
		base := l.at("refs/heads/work")
		commits := l.siblings(base, round, n)
		var refs []string
		for range n {
			refs = append(refs, "refs/heads/work")
		}
		var won []string
		for i, err := range l.pushes(commits, refs) {
			if err == nil {
				won = append(won, commits[i])
			}
		}
		got := l.at("refs/heads/work")
		if len(won) != 1 || won[0] != got {
			t.Fatalf("round %d: %v won, the reference is at %s (before: %s)", round, won, got, base)
		}
		wins[got] = true
		l.agree()
	}
	for _, c := range strings.Fields(l.program("", "git", "--git-dir="+l.path("home", "repositories", "app.git"), "rev-list", "--all")) {
		if !wins[c] {
			t.Errorf("commit %s is shown and its push did not win", c)
		}
	}
	commits := l.siblings(l.at("refs/heads/work"), 2, n)
	var refs []string
	for i := range n {
		refs = append(refs, fmt.Sprintf("refs/heads/many/%d", i))
	}
	for i, err := range l.pushes(commits, refs) {
		if got := l.at(refs[i]); err != nil || got != commits[i] {
			t.Errorf("%s is at %s, want %s: %v", refs[i], got, commits[i], err)
		}
	}
	l.agree()
	// One push after the other, as fast as the client goes: what is settled at the
	// end of one must not undo the next.
	for i := range 10 {
		ref := fmt.Sprintf("refs/heads/passing/%d", i)
		l.program(l.path("app"), "git", "push", "-q", l.remote("alice"), commits[0]+":"+ref)
		l.program(l.path("app"), "git", "push", "-q", l.remote("alice"), ":"+ref)
	}
	l.agree()
	for i := range 10 {
		if got := l.at(fmt.Sprintf("refs/heads/passing/%d", i)); got != "" {
			t.Errorf("a deleted branch came back at %s", got)
		}
	}
	l.stop()
	l.gone()
	if out := l.must("log", "fsck"); !strings.Contains(out, " 0 problems") {
		t.Errorf("fsck: %s", out)
	}
}

// siblings makes signed commits that have a parent in common.
func (l *serveLab) siblings(parent string, round, n int) (out []string) {
	l.t.Helper()
	for i := range n {
		out = append(out, l.program(l.path("app"), "git", "commit-tree", "-S", "-p", parent, "-m", fmt.Sprintf("round %d, client %d", round, i), parent+"^{tree}"))
	}
	return out
}

// pushes pushes commits to references, all at the same time.
func (l *serveLab) pushes(commits, refs []string) []error {
	errs := make([]error, len(commits))
	remote := l.remote("alice")
	begin := make(chan struct{})
	var wg sync.WaitGroup
	for i := range commits {
		cmd := exec.Command("git", "push", "-q", remote, commits[i]+":"+refs[i])
		cmd.Dir, cmd.Env = l.path("app"), append(l.env, "GIT_SSL_CAINFO="+l.ca)
		wg.Go(func() {
			<-begin
			if said, err := cmd.CombinedOutput(); err != nil {
				errs[i] = fmt.Errorf("%w: %s", err, said)
			}
		})
	}
	close(begin)
	wg.Wait()
	return errs
}
