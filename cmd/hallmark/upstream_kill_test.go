// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// giteaDir names a directory of scripts/gitea start: with it the upstream of these
// tests is that Gitea, behind a proxy that can hold a request; else git's own
// http-backend.
const giteaDir = "HALLMARK_GITEA"

// newUpstream is another forge with an empty repository, and the flags that make a
// repository here forward to it.
func newUpstream(t *testing.T, work string) (b *backend, remote string, create []string) {
	b = &backend{dir: filepath.Join(work, "upstream"), token: "upstream-" + strings.Repeat("t", 20)}
	name := "app"
	if dir := os.Getenv(giteaDir); dir != "" {
		base, err := os.ReadFile(filepath.Join(dir, "url"))
		if err != nil {
			t.Fatal(err)
		}
		token, err := os.ReadFile(filepath.Join(dir, "gate.token"))
		if err != nil {
			t.Fatal(err)
		}
		u, err := url.Parse(strings.TrimSpace(string(base)))
		if err != nil {
			t.Fatal(err)
		}
		b.token = strings.TrimSpace(string(token))
		b.proxy = &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u) }, FlushInterval: -1}
		short := fmt.Sprintf("kill%d", os.Getpid())
		name = "gate/" + short
		r, err := http.NewRequest(http.MethodPost, u.String()+"/api/v1/user/repos", strings.NewReader(`{"name":"`+short+`","default_branch":"work"}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "token "+b.token)
		r.Header.Set("Content-Type", "application/json")
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusCreated {
			t.Fatalf("making a repository at Gitea: %s", answer.Status)
		}
	} else if err := b.repository(name); err != nil {
		t.Fatal(err)
	}
	if err := b.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.stop() })
	file := filepath.Join(work, "upstream.token")
	if err := os.WriteFile(file, []byte(b.token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	remote = "http://" + b.address + "/" + name + ".git"
	return b, remote, []string{"--upstream", remote, "--upstream-token-file", file}
}

// held has the upstream stop at a request of one service: before it has it, or when
// it has answered, whose answer is then lost.
func held(b *backend, method, service string, after bool) func(*serveLab) (reached, release func()) {
	return func(*serveLab) (func(), func()) {
		at, goOn := make(chan struct{}), make(chan struct{})
		var once sync.Once
		stop := func(r *http.Request) bool {
			if r.Method != method || !strings.Contains(r.URL.String(), service) {
				return false
			}
			once.Do(func() { close(at) })
			<-goOn
			return true
		}
		b.mu.Lock()
		if after {
			b.after = stop
		} else {
			b.before = stop // it never gets there
		}
		b.mu.Unlock()
		return func() { <-at }, func() {
			b.mu.Lock()
			b.before, b.after = nil, nil
			b.mu.Unlock()
			close(goOn)
		}
	}
}

// abandoned breaks the connection of the first request with objects, once it is let
// go: the client sends it once more, if it still lives.
func abandoned(b *backend) (asked chan struct{}, letGo func()) {
	asked, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	b.mu.Lock()
	b.before = func(r *http.Request) bool {
		first := false
		if r.Method == http.MethodPost && strings.Contains(r.URL.Path, "git-receive-pack") {
			once.Do(func() { first = true })
		}
		if first {
			close(asked)
			<-goOn
			panic(http.ErrAbortHandler)
		}
		return false
	}
	b.mu.Unlock()
	return asked, func() { close(goOn) }
}

// TestUpstreamKilled kills the server with SIGKILL at every step of a push and of a
// merge that are forwarded. After the next start references, log and upstream agree:
// what reached the upstream has happened here, what did not has not.
func TestUpstreamKilled(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("kills many servers; go test without -short does")
	}
	b, remote, create := newUpstream(t, t.TempDir())
	l := newServeLab(t, create...)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(l.serveLog())
		}
	})
	l.start()
	l.change()
	l.program(l.path("app"), "git", "push", "-q", l.remote("alice"), "work")
	there := func(ref string) string {
		cmd := exec.Command("git", "ls-remote", strings.Replace(remote, "://", "://x:"+b.token+"@", 1), ref)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null")
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("asking the upstream: %v", err)
		}
		id, _, _ := strings.Cut(string(out), "\t")
		return id
	}
	agree := func(when, ref string) {
		t.Helper()
		if up, here := there(ref), l.at(ref); up != here {
			t.Errorf("%s: %s is at %s there and at %s here", when, ref, up, here)
		}
	}
	const begin, yes = "#!/bin/sh\n", `"yes $$") exit 0 ;;`
	for _, s := range []stop{
		{"before the gate is asked", inHook("pre-receive", begin, begin+"WAIT\n"), false},
		{"before the upstream is asked where it is", held(b, http.MethodGet, "git-upload-pack", false), false},
		{"while the log is waited for", logTaken, false},
		{"before the checkpoint is signed", guardRead(2), false},
		{"after the log, before the upstream hears of it", held(b, http.MethodGet, "git-receive-pack", false), false},
		{"after the log, before the upstream has the objects", held(b, http.MethodPost, "git-receive-pack", false), false},
		{"after the upstream took it, before its answer", held(b, http.MethodPost, "git-receive-pack", true), true},
		{"after the upstream took it, with the objects in quarantine", inHook("pre-receive", yes, `"yes $$") WAIT exit 0 ;;`), true},
		{"after the upstream took it, before the reference moves", inHook("reference-transaction", yes, `"yes $$") WAIT exit 0 ;;`), true},
		{"after the reference moved", inHook("reference-transaction", "case $1 in prepared)", "case $1 in committed) WAIT exit 0 ;; prepared)"), true},
	} {
		l.killedPush(s)
		agree(s.name, "refs/heads/work")
	}
	for _, s := range []stop{
		{"merge after the log, before the upstream has the objects", held(b, http.MethodPost, "git-receive-pack", false), false},
		{"merge after the upstream took it, before its answer", held(b, http.MethodPost, "git-receive-pack", true), true},
	} {
		l.killedMerge(s)
		agree(s.name, "refs/heads/main")
	}

	// What git left running goes on waiting through the next start, and would send
	// again to an upstream that was asked before: it is ended.
	before := l.at("refs/heads/work")
	l.change()
	asked, letGo := abandoned(b)
	pushed := make(chan error, 1)
	go func() {
		_, err := l.try(l.path("app"), "git", "push", l.remote("alice"), "work")
		pushed <- err
	}()
	<-asked
	l.kill9()
	if err := <-pushed; err == nil {
		t.Error("the client believes that its push succeeded")
	}
	l.start()
	letGo()
	l.agree()
	if got := l.at("refs/heads/work"); got != before {
		t.Errorf("the reference is at %s, want %s", got, before)
	}
	agree("sent again", "refs/heads/work")
	l.program(l.path("app"), "git", "push", "-q", l.remote("alice"), "work")

	// Killed when the upstream had it, and the upstream is away at the next start: the
	// server serves, nothing moves there, and when it is back the push has happened.
	commit := l.change()
	reached, release := held(b, http.MethodPost, "git-receive-pack", true)(l)
	done := make(chan error, 1)
	go func() {
		_, err := l.try(l.path("app"), "git", "push", l.remote("alice"), "work")
		done <- err
	}()
	reached()
	l.kill9()
	if err := <-done; err == nil {
		t.Error("the client believes that its push succeeded")
	}
	release()
	b.stop()
	l.start()
	if said, err := l.try(l.path("app"), "git", "push", l.remote("alice"), "work"); err == nil || !strings.Contains(said, "UPSTREAM_UNREACHABLE") {
		t.Errorf("a push while nobody knows how the one before ended: %v\n%s", err, said)
	}
	if err := b.start(); err != nil {
		t.Fatal(err)
	}
	if said, err := l.try(l.path("app"), "git", "push", l.remote("alice"), "work"); err == nil {
		t.Logf("the push again: %s", said)
	}
	l.program(l.path("app"), "git", "push", "-q", l.remote("alice"), "work")
	if got := l.at("refs/heads/work"); got != commit {
		t.Errorf("the reference is at %s, want %s", got, commit)
	}
	agree("at the end", "refs/heads/work")
	l.agree()
	l.stop()
	l.gone()
	if strings.Contains(l.serveLog(), b.token) {
		t.Error("the server's log holds the token of the upstream")
	}
	if out := l.must("log", "fsck"); !strings.Contains(out, " 0 problems") {
		t.Errorf("fsck: %s", out)
	}
}
