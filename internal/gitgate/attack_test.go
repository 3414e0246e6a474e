// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package gitgate

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/source"
)

// onlyX is a gate that lets refs/heads/x move and nothing else.
type onlyX struct {
	mu       sync.Mutex
	recorded []source.Update
	fetches  int
}

func (g *onlyX) Authenticate(context.Context, *http.Request) (Caller, error) { return Caller{}, nil }

func (g *onlyX) Fetch(_ context.Context, _ Caller, _ string, record bool) (hallmark.Decision, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if record {
		g.fetches++
	}
	return hallmark.Decision{Effect: hallmark.Allow}, nil
}

func (g *onlyX) Consider(_ context.Context, p *Push, _ func(string)) (hallmark.Decision, error) {
	for _, u := range p.Updates {
		if u.Ref != "refs/heads/x" {
			return hallmark.Decision{Effect: hallmark.Deny, Reasons: []hallmark.Reason{{Code: hallmark.CodeRefName, Message: u.Ref}}}, nil
		}
	}
	return hallmark.Decision{Effect: hallmark.Allow}, nil
}

func (g *onlyX) Record(_ context.Context, _ *Push, updates []source.Update) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.recorded = append(g.recorded, updates...)
	return nil
}

func (g *onlyX) Moved(*Push) {}

type place struct {
	t      *testing.T
	gate   *onlyX
	url    string
	dir    string // of the repository
	work   string // a clone with one commit
	server *Server
}

// gitFails runs git and returns all that it says.
func gitFails(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir = dir
	cmd.Env = append(cmd.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func git(t *testing.T, dir string, in string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", append([]string{"-c", "user.name=a", "-c", "user.email=a@example.org"}, args...)...)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(in)
	cmd.Env = append(cmd.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git %q: %v", args, err)
	}
	return out
}

func newPlace(t *testing.T) *place {
	p := &place{t: t, gate: &onlyX{}, work: t.TempDir()}
	repositories := t.TempDir()
	p.dir = filepath.Join(repositories, "app.git")
	git(t, repositories, "", "init", "-q", "--bare", p.dir)
	git(t, p.work, "", "init", "-q", p.work)
	git(t, p.work, "", "commit", "-q", "--allow-empty", "-m", "one")
	s, err := New(Config{Dir: repositories, WorkDir: t.TempDir(), Gate: p.gate, Log: slog.New(slog.DiscardHandler), MaxPush: 1 << 20, Pushes: 4, PushesEach: 4, Patience: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	p.server = s
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	p.url = srv.URL + "/app.git/"
	return p
}

func (p *place) post(service string, body []byte, header ...string) []byte {
	p.t.Helper()
	r, err := http.NewRequestWithContext(p.t.Context(), http.MethodPost, p.url+service, bytes.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-"+service+"-request")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		p.t.Logf("the connection was broken: %v", err)
		return nil
	}
	defer res.Body.Close()
	out, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Logf("the answer was cut off: %v", err)
	}
	return out
}

func packet(text string) string { return fmt.Sprintf("%04x%s", len(text)+4, text) }

// push speaks receive-pack's protocol, with names of references that git's own
// client would never send.
func (p *place) push(refs ...string) []byte {
	p.t.Helper()
	head := strings.TrimSpace(string(git(p.t, p.work, "", "rev-parse", "HEAD")))
	pack := git(p.t, p.work, head+"\n", "pack-objects", "--revs", "--stdout", "-q")
	var body bytes.Buffer
	for i, ref := range refs {
		line := strings.Repeat("0", 40) + " " + head + " " + strings.ReplaceAll(ref, "HEAD", head)
		if i == 0 {
			line += "\x00 report-status"
		}
		body.WriteString(packet(line))
	}
	body.WriteString("0000")
	body.Write(pack)
	return p.post(receivePack, body.Bytes())
}

// Git hands names of references to hooks before it has looked at them: one with
// line feeds must not speak in the hook's place.
func TestPushWithForgedQuestions(t *testing.T) {
	zeros := strings.Repeat("0", 40)
	for name, refs := range map[string][]string{
		"control": {"refs/heads/x"},
		"answers in advance": {"refs/heads/x", "refs/heads/y\nend\nreference-transaction\n\n" + zeros + " HEAD refs/heads/x\nend\nreference-transaction\n",
			"refs/heads/main"},
		"first": {"refs/heads/x\nend\nreference-transaction\n\n" + zeros + " HEAD refs/heads/x\nend\nreference-transaction", "refs/heads/main"},
		"alone": {"refs/heads/x\nend\nreference-transaction\n\nend\nreference-transaction\n", "refs/heads/main"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			out := p.push(refs...)
			refs := string(git(t, p.dir, "", "for-each-ref", "--format=%(refname)"))
			if want := map[bool]string{true: "refs/heads/x\n"}[name == "control"]; refs != want {
				t.Errorf("references %q, want %q: %q", refs, want, out)
			}
			if name != "control" && len(p.gate.recorded) > 0 {
				t.Errorf("recorded %+v", p.gate.recorded)
			}
		})
	}
}

// What is read is recorded, also by who leaves the first request out.
func TestFetchWithoutAdvertisement(t *testing.T) {
	p := newPlace(t)
	p.push("refs/heads/x")
	if out := p.post(uploadPack, []byte(packet("command=ls-refs\n")+"0000"), "Git-Protocol", "version=2"); !bytes.Contains(out, []byte("refs/heads/x")) {
		t.Fatalf("nothing was served: %q", out)
	}
	if p.gate.fetches != 1 {
		t.Errorf("%d fetches are recorded", p.gate.fetches)
	}
}

// A request that is small and unpacks to very much.
func TestFetchBomb(t *testing.T) {
	p := newPlace(t)
	p.push("refs/heads/x")
	var body bytes.Buffer
	z := gzip.NewWriter(&body)
	io.WriteString(z, packet("command=fetch")+"0001")
	have := packet("have " + strings.Repeat("1", 40) + "\n")
	chunk := strings.Repeat(have, 1<<14)
	for n := 0; n < 2*maxRequest; n += len(chunk) {
		io.WriteString(z, chunk)
	}
	io.WriteString(z, packet("want "+strings.TrimSpace(string(git(t, p.work, "", "rev-parse", "HEAD"))))+packet("done")+"0000")
	z.Close()
	if out := p.post(uploadPack, body.Bytes(), "Git-Protocol", "version=2", "Content-Encoding", "gzip"); bytes.Contains(out, []byte("PACK")) {
		t.Errorf("%d bytes that unpack to more than %d were read to the end", body.Len(), 2*maxRequest)
	}
}
