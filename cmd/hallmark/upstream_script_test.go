// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/pem"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
)

// backend is another forge: git's own http-backend over TLS, which wants a token
// as the password, as the forges do.
type backend struct {
	dir, token string
	address    string
	tls        bool
	proxy      http.Handler // instead of http-backend; nil is that

	mu sync.Mutex
	// before is called with each request, before git has it, which it does not get if
	// before says so; after when git answered: the answer is lost if after says so.
	before func(r *http.Request) (refused bool)
	after  func(r *http.Request) (lost bool)
	server *httptest.Server
}

func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, token, ok := r.BasicAuth(); !ok || token != b.token {
		w.Header().Set("WWW-Authenticate", `Basic realm="upstream"`)
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	b.mu.Lock()
	before, after := b.before, b.after
	b.mu.Unlock()
	if before != nil && before(r) {
		http.Error(w, "not now", http.StatusServiceUnavailable)
		return
	}
	if b.proxy != nil {
		b.answer(w, r, b.proxy, after)
		return
	}
	git, err := exec.LookPath("git")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	h := cgi.Handler{Path: git, Args: []string{"http-backend"}, Env: []string{"GIT_PROJECT_ROOT=" + b.dir, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=gate", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "HOME=/nonexistent"}, Stderr: os.Stderr}
	b.answer(w, r, &h, after)
}

func (b *backend) answer(w http.ResponseWriter, r *http.Request, h http.Handler, after func(*http.Request) bool) {
	answer := httptest.NewRecorder()
	h.ServeHTTP(answer, r)
	if after != nil && after(r) {
		panic(http.ErrAbortHandler)
	}
	for k, v := range answer.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(answer.Code)
	w.Write(answer.Body.Bytes())
}

// start listens, at the address of before if there is one.
func (b *backend) start() error {
	l, err := net.Listen("tcp", cmpOr(b.address, "127.0.0.1:0"))
	if err != nil {
		return err
	}
	b.address = l.Addr().String()
	b.server = httptest.NewUnstartedServer(b)
	b.server.Listener.Close()
	b.server.Listener = l
	if b.tls {
		b.server.StartTLS()
	} else {
		b.server.Start()
	}
	return nil
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func (b *backend) stop() {
	b.server.CloseClientConnections()
	b.server.Close()
}

// repository makes an empty one that can be pushed to.
func (b *backend) repository(name string) error {
	dir := filepath.Join(b.dir, name+".git")
	for _, args := range [][]string{{"init", "-q", "--bare", "-b", "main", dir}, {"--git-dir=" + dir, "config", "http.receivepack", "true"}} {
		if out, err := exec.Command("git", args...).CombinedOutput(); err != nil {
			return &exec.Error{Name: string(out), Err: err}
		}
	}
	return nil
}

var backends sync.Map // by work directory

// upstream NAME starts another forge with an empty repository, whose directory is
// upstream/NAME.git; it sets UPSTREAM to its URL, upstream.token is the token and
// upstream.pem the authority. upstream stop and upstream start take it away and
// bring it back.
func cmdUpstream(ts *testscript.TestScript, _ bool, args []string) {
	work := ts.Getenv("WORK")
	if args[0] == "stop" || args[0] == "start" {
		v, ok := backends.Load(work)
		if !ok {
			ts.Fatalf("there is no upstream")
		}
		if args[0] == "stop" {
			v.(*backend).stop()
			return
		}
		ts.Check(v.(*backend).start())
		return
	}
	v, ok := backends.Load(work)
	if !ok {
		b := &backend{dir: filepath.Join(work, "upstream"), token: "upstream-" + strings.Repeat("t", 20), tls: true}
		ts.Check(os.MkdirAll(b.dir, 0o755))
		ts.Check(b.start())
		backends.Store(work, b)
		ts.Defer(func() {
			backends.Delete(work)
			b.stop()
		})
		ts.Check(os.WriteFile(filepath.Join(work, "upstream.token"), []byte(b.token+"\n"), 0o600))
		ts.Check(os.WriteFile(filepath.Join(work, "upstream.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.server.Certificate().Raw}), 0o644))
		v = b
	}
	b := v.(*backend)
	ts.Check(b.repository(args[0]))
	ts.Setenv("UPSTREAM", "https://"+b.address+"/"+args[0]+".git")
}
