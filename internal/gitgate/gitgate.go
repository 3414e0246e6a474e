// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package gitgate serves git repositories over smart HTTP to stock git clients.
// The git program does the work, in bare repositories of ours; what it may do is
// asked before an object becomes reachable (SP 800-204D §5.1.4).
//
// A push goes through two of git's hooks. pre-receive sees every update while
// the objects are in quarantine, and refuses for good. reference-transaction
// sees each reference while git holds its lock and before it moves: there the
// decision is logged, so log and references agree whatever is killed.
package gitgate

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/source"
)

// Caller is who asks, and what they said they may at most.
type Caller struct {
	hallmark.Principal
	Token any // what Authenticate wants to see again
}

// Push is one push on its way.
type Push struct {
	Caller     Caller
	Repository string          // name
	Dir        string          // of the bare repository
	Quarantine string          // of its objects; "" where nothing came
	Announced  []source.Update // as the client's request begins
	Updates    []source.Update // as git is about to make them; nil until it asked
	State      any             // what Consider wants Record to see
	sideband   bool            // the client reads messages in packets
}

// Gate decides. Consider must refuse whatever it can't judge; it may be called
// at the same time for one repository. Record is called while git holds the locks
// of the references of one transaction and must return only when the transitions
// are durable: after it the references move. It may be called twice for one
// update; when it is called for others, the transactions before have ended. Moved
// is called when a push has ended, also one that git refused before it asked
// anything.
type Gate interface {
	Authenticate(ctx context.Context, r *http.Request) (Caller, error)
	// Fetch decides whether somebody may read; record says that something is read
	// now, which must be durable when it returns.
	Fetch(ctx context.Context, who Caller, repository string, record bool) (hallmark.Decision, error)
	Consider(ctx context.Context, p *Push, say func(string)) (hallmark.Decision, error)
	Record(ctx context.Context, p *Push, updates []source.Update) error
	Moved(p *Push)
}

// Config is what a server needs.
type Config struct {
	Dir     string // of the repositories, each NAME.git below it
	WorkDir string // private; of sessions
	Gate    Gate
	Log     *slog.Logger
	MaxPush int64 // bytes of one pack; 0 is refused
	// Pushes at the same time, of all and of one principal, and how long another one
	// waits for its turn; 0 is refused.
	Pushes, PushesEach int
	Patience           time.Duration
	// Busy is told of each push that waited in vain. Optional.
	Busy func(who Caller, repository string)
}

// Server is an http.Handler for the paths of git repositories.
type Server struct {
	cfg   Config
	hooks string
	turns *turns
}

// New makes a server and the hooks that its git processes run.
func New(cfg Config) (*Server, error) {
	if cfg.Gate == nil || cfg.Log == nil || cfg.MaxPush <= 0 || cfg.Pushes <= 0 || cfg.PushesEach <= 0 || cfg.Patience <= 0 {
		return nil, hallmark.Errorf(hallmark.KindInternal, "git gate: gate, log or a limit of pushes is missing")
	}
	s := &Server{cfg: cfg, hooks: filepath.Join(cfg.WorkDir, "hooks"), turns: newTurns(cfg.Pushes, cfg.PushesEach, cfg.Patience)}
	for _, d := range []string{cfg.Dir, cfg.WorkDir, s.hooks} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("making %s: %w", d, err)
		}
	}
	for _, name := range []string{"pre-receive", "reference-transaction"} {
		if err := os.WriteFile(filepath.Join(s.hooks, name), []byte(hook(name)), 0o700); err != nil {
			return nil, fmt.Errorf("writing the hook %s: %w", name, err)
		}
	}
	return s, nil
}

var repositoryName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}(/[a-z0-9][a-z0-9._-]{0,63}){0,3}$`)

// CheckName reports what is wrong with the name of a repository.
func CheckName(name string) error {
	if !repositoryName.MatchString(name) || strings.Contains(name, "..") || strings.HasSuffix(name, ".git") || strings.Contains(name, ".git/") || strings.HasSuffix(name, ".lock") {
		return hallmark.Errorf(hallmark.KindUsage, "repository name %.80q: want lower-case letters, digits, dot, hyphen and underscore, in parts between slashes", name)
	}
	return nil
}

// Limits on requests, when they are unpacked: of a fetch, and of what a push says
// besides its pack.
const maxRequest = 16 << 20

// Services of git's protocol.
const (
	uploadPack  = "git-upload-pack"
	receivePack = "git-receive-pack"
)

// ServeHTTP answers the three requests of smart HTTP (gitprotocol-http). The dumb
// protocol does not exist here.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, rest, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), ".git/")
	service := strings.TrimPrefix(rest, "/")
	advertise := false
	if rest == "info/refs" {
		service, advertise = r.URL.Query().Get("service"), true
	}
	if !ok || CheckName(name) != nil || service != uploadPack && service != receivePack || (r.Method != http.MethodGet) == advertise || !advertise && r.Method != http.MethodPost {
		http.NotFound(w, r)
		return
	}
	who, err := s.cfg.Gate.Authenticate(r.Context(), r)
	if err != nil {
		s.refuseCaller(w, r, err)
		return
	}
	dir := filepath.Join(s.cfg.Dir, name+".git")
	// Whether a repository exists is told to nobody who may not read it. Content is
	// given for the second request, which nobody has to begin with the first; that
	// one names references in the older versions of the protocol.
	d, err := s.cfg.Gate.Fetch(r.Context(), who, name, service == uploadPack && (!advertise || r.Header.Get("Git-Protocol") != "version=2"))
	if err != nil || !d.Allowed() {
		s.refuse(w, r, who, name, d, err)
		return
	}
	if _, err := os.Stat(filepath.Join(dir, "HEAD")); err != nil {
		http.Error(w, "there is no repository "+name, http.StatusNotFound)
		return
	}
	w.Header().Set("Cache-Control", "no-cache, max-age=0, must-revalidate")
	if advertise {
		s.advertise(w, r, dir, service)
		return
	}
	if got := r.Header.Get("Content-Type"); got != "application/x-"+service+"-request" {
		http.Error(w, "wrong content type", http.StatusUnsupportedMediaType)
		return
	}
	limit := int64(maxRequest)
	if service == receivePack {
		limit += s.cfg.MaxPush
	}
	body, err := content(r, limit)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if service == uploadPack {
		s.upload(w, r, dir, body)
		return
	}
	w.Header().Set("Content-Type", "application/x-"+service+"-result")
	s.receive(w, r, &Push{Caller: who, Repository: name, Dir: dir}, body)
}

// content undoes the compression that git clients use for requests. What is
// longer than limit then ends early, and git refuses it.
func content(r *http.Request, limit int64) (io.Reader, error) {
	switch r.Header.Get("Content-Encoding") {
	case "", "identity":
		return io.LimitReader(r.Body, limit), nil
	case "gzip", "x-gzip":
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, err
		}
		return io.LimitReader(z, limit), nil
	}
	return nil, errors.New("unknown content encoding")
}

// git is a git process on a repository of ours. Its configuration is what stands
// here and in the repository, which only this package writes.
func (s *Server) git(ctx context.Context, r *http.Request, dir string, args ...string) *exec.Cmd {
	fixed := []string{
		// What git is told to ignore here the gate refuses, with a reason.
		"-c", "core.hooksPath=" + s.hooks, "-c", "safe.directory=" + dir, "-c", "transfer.fsckObjects=true", "-c", "receive.fsckObjects=true", "-c", "receive.fsck.hasDotgit=ignore", "-c", "receive.fsck.hasDot=ignore", "-c", "receive.fsck.hasDotdot=ignore",
		"-c", "receive.fsck.fullPathname=ignore", "-c", "receive.fsck.duplicateEntries=ignore", "-c", "receive.fsck.multipleAuthors=ignore", "-c", "receive.fsck.nulInCommit=ignore",

		"-c", "receive.autogc=false", "-c", "gc.auto=0", "-c", "receive.denyDeleteCurrent=ignore", "-c", "receive.denyCurrentBranch=ignore",
		"-c", "receive.advertisePushOptions=false", "-c", "receive.unpackLimit=1", "-c", fmt.Sprintf("receive.maxInputSize=%d", s.cfg.MaxPush),
		"-c", "receive.keepAlive=5", "-c", "uploadpack.allowFilter=false", "-c", "uploadpack.allowAnySHA1InWant=false", "-c", "uploadpack.allowTipSHA1InWant=false", "-c", "uploadpack.allowReachableSHA1InWant=false", "-c", "uploadpack.allowRefInWant=false", "-c", "transfer.advertiseObjectInfo=false",
		"-c", "uploadpack.hideRefs=refs/", "-c", "uploadpack.hideRefs=!refs/heads/", "-c", "uploadpack.hideRefs=!refs/tags/", "-c", "core.fsmonitor=false",
		"-c", "core.alternateRefsCommand=true", "-c", "transfer.advertiseSID=false", "-c", "core.logAllRefUpdates=false",
	}
	cmd := exec.CommandContext(ctx, "git", append(fixed, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "LC_ALL=C", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_ATTR_NOSYSTEM=1", "GIT_NO_REPLACE_OBJECTS=1", "GIT_TERMINAL_PROMPT=0"}
	if v := r.Header.Get("Git-Protocol"); protocolVersion.MatchString(v) {
		cmd.Env = append(cmd.Env, "GIT_PROTOCOL="+v)
	}
	// A server that is killed takes its git processes with it: none may go on to
	// move a reference that nobody logged.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

var protocolVersion = regexp.MustCompile(`^version=[012]$`)

func (s *Server) advertise(w http.ResponseWriter, r *http.Request, dir, service string) {
	w.Header().Set("Content-Type", "application/x-"+service+"-advertisement")
	if r.Header.Get("Git-Protocol") != "version=2" || service == receivePack {
		line := "# service=" + service + "\n"
		fmt.Fprintf(w, "%04x%s0000", len(line)+4, line)
	}
	abort(s.serve(r.Context(), w, s.git(r.Context(), r, dir, strings.TrimPrefix(service, "git-"), "--stateless-rpc", "--http-backend-info-refs", dir), nil))
}

// serve runs a git process between request and answer.
func (s *Server) serve(ctx context.Context, w http.ResponseWriter, cmd *exec.Cmd, body io.Reader) (whole bool) {
	failed := false
	cmd.Stdin = body
	cmd.Stdout = &flusher{w: w, c: http.NewResponseController(w)}
	var stderr strings.Builder
	cmd.Stderr = &limited{w: &stderr, left: 4096}
	if err := run(cmd); err != nil && ctx.Err() == nil {
		s.cfg.Log.Warn("git process failed", "error", err.Error(), "said", strings.TrimSpace(stderr.String()))
		failed = true
	}
	return !failed
}

// abort breaks the connection after an answer that is not whole: a client that is
// told of its end would wait for the rest for ever.
func abort(whole bool) {
	if !whole {
		panic(http.ErrAbortHandler)
	}
}

// run starts a process from a thread that lives as long as the process: the
// kernel sends the death signal when the thread ends that started it.
func run(cmd *exec.Cmd) error {
	done := make(chan error, 1)
	go func() {
		lockThread()
		done <- cmd.Run()
	}()
	return <-done
}

// flusher passes on what git says at once: a push waits for its first line.
type flusher struct {
	w io.Writer
	c *http.ResponseController
}

func (f *flusher) Write(b []byte) (int, error) {
	n, err := f.w.Write(b)
	if err == nil {
		err = f.c.Flush()
	}
	return n, err
}

type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(b []byte) (int, error) {
	if n := min(len(b), l.left); n > 0 {
		l.left -= n
		if _, err := l.w.Write(b[:n]); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

func (s *Server) refuseCaller(w http.ResponseWriter, r *http.Request, err error) {
	if hallmark.KindOf(err) != hallmark.KindDenied {
		s.cfg.Log.Error("authentication could not be decided", "error", err.Error())
		http.Error(w, string(hallmark.CodeGateUnavailable)+": who you are could not be checked", http.StatusServiceUnavailable)
		return
	}
	s.cfg.Log.Info("refused", "code", hallmark.CodeOf(err), "path", r.URL.Path, "from", r.RemoteAddr)
	w.Header().Set("WWW-Authenticate", `Basic realm="hallmark", charset="UTF-8"`)
	http.Error(w, fmt.Sprintf("%s: %s\n%s", hallmark.CodeOf(err), plain(err.Error()), plain(hallmark.HintOf(err))), http.StatusUnauthorized)
}

func (s *Server) refuse(w http.ResponseWriter, r *http.Request, who Caller, name string, d hallmark.Decision, err error) {
	if err != nil {
		s.cfg.Log.Error("no decision", "repository", name, "error", err.Error())
		http.Error(w, string(hallmark.CodeGateUnavailable)+": no decision could be made", http.StatusServiceUnavailable)
		return
	}
	var text strings.Builder
	for _, reason := range d.Reasons {
		fmt.Fprintf(&text, "%s: %s\n", reason.Code, plain(reason.Message))
		if reason.Fix != "" {
			fmt.Fprintf(&text, "hint: %s\n", plain(reason.Fix))
		}
	}
	s.cfg.Log.Info("refused", "principal", who.Name, "repository", name, "path", r.URL.Path)
	http.Error(w, text.String(), http.StatusForbidden)
}
