// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/intake"
)

// lab is a registry with an open gateway before it.
type lab struct {
	session intake.Session
	client  *http.Client
	asked   []string
}

func open(t *testing.T, basePath string, handler http.HandlerFunc) *lab {
	t.Helper()
	l := &lab{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.asked = append(l.asked, r.Method+" "+r.URL.EscapedPath()+" "+r.Header.Get("Authorization")+r.Header.Get("Cookie"))
		handler(w, r)
	}))
	t.Cleanup(server.Close)
	g, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	where := server.URL + basePath
	l.session, err = g.Open(t.Context(), socket, dir, map[intake.Registry]string{intake.RegistryGo: where, intake.RegistryNPM: where})
	if err != nil {
		t.Fatal(err)
	}
	l.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	return l
}

func (l *lab) get(t *testing.T, path string) (int, string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://gateway"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer secret")
	req.Header.Set("Cookie", "a=b")
	resp, err := l.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func TestPassesOn(t *testing.T) {
	l := open(t, "/base/path", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "bytes of "+r.URL.Path) })
	for ask, want := range map[string]string{
		"/.go/example.com/!a/@v/v1.0.0.zip": "bytes of /base/path/example.com/!a/@v/v1.0.0.zip",
		"/@s%2fname":                        "bytes of /base/path/@s/name",
		"/base/path/a/-/a-1.0.0.tgz":        "bytes of /base/path/a/-/a-1.0.0.tgz",
	} {
		if status, got, err := l.get(t, ask); err != nil || status != 200 || got != want {
			t.Errorf("%s: %d %q %v", ask, status, got, err)
		}
	}
	for _, a := range l.asked {
		if !strings.HasSuffix(a, " ") {
			t.Errorf("the registry was shown %q", a)
		}
	}
	fetched, err := l.session.Close()
	if err != nil || len(fetched) != 3 {
		t.Fatalf("%+v %v", fetched, err)
	}
	for _, f := range fetched {
		if f.Problem != "" || f.Status != 200 || f.SHA256.Check() != nil || len(f.SHA512) != 64 {
			t.Errorf("%+v", f)
		}
		if isPackage := strings.HasSuffix(f.Path, ".tgz"); isPackage != (f.File != "") {
			t.Errorf("%s is kept as %q", f.Path, f.File)
		} else if isPackage {
			if b, err := os.ReadFile(f.File); err != nil || hallmark.DigestOf(b) != f.SHA256 {
				t.Errorf("kept other bytes: %v", err)
			}
		}
	}
	if _, _, err := l.get(t, "/a"); err == nil {
		t.Error("a closed gateway answers")
	}
}

// TestRefuses: nothing but GET of a package's path reaches a registry, and no
// other host does.
func TestRefuses(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("another host was asked") }))
	defer elsewhere.Close()
	l := open(t, "", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL+"/x", http.StatusFound)
	})
	for _, path := range []string{"/a?x=y", "/../a", "/a/../../b", "/a//b", "/%2e%2e/a", "/a%00b", "/a%5cb", "/a%20b", "/a/%252e%252e/b", "/a%3fx", "/a%23x", "/", "/" + strings.Repeat("a", 3000)} {
		if status, _, err := l.get(t, path); err == nil && status == 200 {
			t.Errorf("%q was passed on", path)
		}
	}
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodHead, http.MethodConnect} {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://gateway/a", strings.NewReader(""))
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := l.client.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode != http.StatusForbidden {
				t.Errorf("%s: %d", method, resp.StatusCode)
			}
		}
	}
	if len(l.asked) > 0 {
		t.Errorf("the registry was asked %q", l.asked)
	}
	if status, body, _ := l.get(t, "/a"); status != http.StatusBadGateway || !strings.Contains(body, "redirects to another host") {
		t.Errorf("%d %q", status, body)
	}
}

// TestBrokenAnswer: what ends early is never taken for the whole.
func TestBrokenAnswer(t *testing.T) {
	l := open(t, "", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		fmt.Fprint(w, "short")
	})
	if status, body, err := l.get(t, "/a/-/a-1.tgz"); err == nil {
		t.Errorf("%d %q", status, body)
	}
	fetched, err := l.session.Close()
	if err != nil || len(fetched) != 1 || fetched[0].Problem == "" || fetched[0].File != "" {
		t.Errorf("%+v %v", fetched, err)
	}
}

func TestNotFound(t *testing.T) {
	l := open(t, "", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no such module", http.StatusGone) })
	if status, body, _ := l.get(t, "/.go/a"); status != http.StatusGone || !strings.Contains(body, "no such module") {
		t.Errorf("%d %q", status, body)
	}
	if fetched, _ := l.session.Close(); len(fetched) != 1 || fetched[0].Status != http.StatusGone || fetched[0].Registry != intake.RegistryGo {
		t.Errorf("%+v", fetched)
	}
}

func TestCheckURL(t *testing.T) {
	for url, good := range map[string]bool{
		"https://r.example/path": true, "http://127.0.0.1:8080": true, "http://localhost/x": true, "http://[::1]:1": true,
		"http://r.example": false, "ftp://r.example": false, "https://user@r.example": false, "https://r.example?x": false, "r.example": false, "": false, "http://127.0.0.1.r.example": false,
	} {
		if err := CheckURL(url); (err == nil) != good {
			t.Errorf("%q: %v", url, err)
		}
	}
}

// TestSpent: a session has an end, however many answers it is asked for, and what
// was broken off is not kept.
func TestSpent(t *testing.T) {
	l := open(t, "", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "0123456789") })
	s := l.session.(*session)
	s.mu.Lock()
	s.left = 15
	s.mu.Unlock()
	for i, want := range []bool{true, false, false} {
		if status, body, err := l.get(t, "/a/-/a-1.tgz"); (err == nil && status == 200) != want {
			t.Errorf("answer %d: %d %q %v", i, status, body, err)
		}
	}
	if len(l.asked) != 2 {
		t.Errorf("the registry was asked %d times", len(l.asked))
	}
	if _, err := l.session.Close(); err != nil {
		t.Error(err)
	}
	if kept, _ := filepath.Glob(filepath.Join(s.spool, "package-*")); len(kept) != 1 {
		t.Errorf("%d answers are kept", len(kept))
	}
}

// TestFewConnections: idle connections of a worker don't take all descriptors,
// and those that wait don't keep the session open.
func TestFewConnections(t *testing.T) {
	l := open(t, "", func(http.ResponseWriter, *http.Request) {})
	s := l.session.(*session)
	var all []net.Conn
	for range maxClients + 10 {
		c, err := net.Dial("unix", filepath.Join(s.spool, "s"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		all = append(all, c)
	}
	fmt.Fprint(all[0], "GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := all[0].Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	last := all[len(all)-1]
	fmt.Fprint(last, "GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if err := last.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := last.Read(make([]byte, 1)); err == nil {
		t.Error("too many connections are served at once")
	}
	if _, err := l.session.Close(); err != nil {
		t.Error(err)
	}
}
