// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package upstream fetches from outside for those who may not: it is the only
// way from a sandbox to a registry, and it goes nowhere else.
package upstream

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/intake"
)

// Limits of one session.
const (
	maxAnswer  = 1 << 30 // bytes of one answer
	maxTotal   = 8 << 30 // bytes of all
	maxAnswers = 200_000
	maxClients = 64 // connections at once; the client programs use 15
	answerTime = 10 * time.Minute
)

// Config is what a gateway needs. A nil Transport is one that asks the machine's
// own proxy settings and its certificate authorities.
type Config struct {
	Transport http.RoundTripper
}

// Gateway implements intake.Gateway.
type Gateway struct{ client *http.Client }

// New makes a gateway.
func New(cfg Config) (*Gateway, error) {
	if cfg.Transport == nil {
		cfg.Transport = &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
			MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute, TLSHandshakeTimeout: 20 * time.Second, ResponseHeaderTimeout: 2 * time.Minute,
		}
	}
	return &Gateway{client: &http.Client{Transport: cfg.Transport, CheckRedirect: sameHost}}, nil
}

var errElsewhere = errors.New("the registry redirects to another host, which the policy does not name")

// sameHost follows redirects only within the registry.
func sameHost(req *http.Request, via []*http.Request) error {
	if len(via) > 5 {
		return errors.New("the registry redirects in circles")
	}
	if first := via[0].URL; req.URL.Scheme != first.Scheme || req.URL.Host != first.Host {
		return errElsewhere
	}
	return nil
}

// CheckURL refuses an address that no registry of a policy may have: it wants
// https, or http on this machine's own loopback, and nothing but host and path.
func CheckURL(s string) error {
	u, err := url.Parse(s)
	if err != nil {
		return fmt.Errorf("%q is no URL", s)
	}
	local := u.Hostname() == "localhost"
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
		local = ip.IsLoopback()
	}
	switch {
	case u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "":
		return fmt.Errorf("%q: want https://HOST/PATH", s)
	case u.Scheme != "https" && (u.Scheme != "http" || !local):
		return fmt.Errorf("%q: want https; plain http is for registries on this machine", s)
	}
	return nil
}

// session is an open gateway.
type session struct {
	ctx    context.Context
	client *http.Client
	bases  map[intake.Registry]*url.URL
	spool  string
	server *http.Server
	served chan error
	cancel context.CancelFunc

	mu      sync.Mutex
	left    int64 // bytes that may still be passed on
	asked   int
	fetched []intake.Fetched
}

// Open implements intake.Gateway.
func (g *Gateway) Open(ctx context.Context, socket, spool string, registries map[intake.Registry]string) (intake.Session, error) {
	s := &session{client: g.client, spool: spool, bases: map[intake.Registry]*url.URL{}, served: make(chan error, 1), left: maxTotal}
	for name, where := range registries {
		if err := CheckURL(where); err != nil {
			return nil, hallmark.Errorf(hallmark.KindInvalid, "reading registry %s: %w", name, err)
		}
		u, err := url.Parse(where)
		if err != nil {
			return nil, hallmark.Errorf(hallmark.KindInvalid, "reading registry %s: %w", name, err)
		}
		s.bases[name] = u
	}
	l, err := listenAt(socket)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInternal, "opening the gateway's socket: %w", err)
	}
	// Whoever is given the socket may ask; the directory keeps everybody else out.
	if err := os.Chmod(socket, 0o666); err != nil {
		l.Close()
		return nil, hallmark.Errorf(hallmark.KindInternal, "opening the gateway's socket: %w", err)
	}
	s.ctx, s.cancel = context.WithCancel(ctx)
	s.server = &http.Server{Handler: s, ReadHeaderTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 1 << 16}
	go func() {
		s.served <- s.server.Serve(&few{Listener: l, free: make(chan struct{}, maxClients), closed: s.ctx.Done()})
	}()
	return s, nil
}

// listenAt listens on a path of any length: the kernel takes 107 bytes, which a
// home in a deep directory has already. The socket goes with its directory.
func listenAt(socket string) (net.Listener, error) {
	dir, err := os.Open(filepath.Dir(socket))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(socket))})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // by then the number is that of another file
	return l, nil
}

// few accepts a bounded number of connections at once: each holds descriptors of
// ours, of which a worker must not take all.
type few struct {
	net.Listener
	free   chan struct{}
	closed <-chan struct{}
}

func (l *few) Accept() (net.Conn, error) {
	select {
	case l.free <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &counted{Conn: c, done: sync.OnceFunc(func() { <-l.free })}, nil
}

type counted struct {
	net.Conn
	done func()
}

func (c *counted) Close() error {
	defer c.done()
	return c.Conn.Close()
}

// Close implements intake.Session.
func (s *session) Close() ([]intake.Fetched, error) {
	s.cancel()
	s.server.Close()
	if err := <-s.served; err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return nil, fmt.Errorf("serving the gateway: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.fetched), nil
}

// ServeHTTP asks the registry that the path belongs to.
func (s *session) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rest := strings.TrimPrefix(r.URL.EscapedPath(), "/")
	f := intake.Fetched{Registry: intake.RegistryNPM}
	if modules, ok := strings.CutPrefix(rest, intake.GoPrefix+"/"); ok {
		f.Registry, rest = intake.RegistryGo, modules
	}
	f.Path = rest
	defer func() { s.record(f) }() // also of an answer that was broken off
	base, ok := s.bases[f.Registry]
	switch {
	case r.Method != http.MethodGet:
		f.Problem = "only GET is passed on"
	case !ok:
		f.Problem = "no registry of the policy"
	case r.URL.RawQuery != "" || len(rest) > 2048 || !plain(rest):
		f.Problem = "the path is not one of a package"
	case !s.more():
		f.Problem = fmt.Sprintf("more than %d answers or %d bytes were asked for", maxAnswers, int64(maxTotal))
	default:
		s.pass(w, r, base, &f)
		return
	}
	http.Error(w, f.Problem, http.StatusForbidden)
}

// more counts an answer, and reports whether there may be one.
func (s *session) more() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	return s.asked <= maxAnswers && s.left > 0
}

// plain reports whether an escaped path stays where it is, also for a server that
// unescapes it twice, and is no more than a path.
func plain(escaped string) bool {
	p, err := url.PathUnescape(escaped)
	return err == nil && p != "" && path.Clean("/"+p) == "/"+strings.TrimSuffix(p, "/") && !strings.ContainsFunc(p, func(r rune) bool { return r < 0x21 || strings.ContainsRune("\x7f\\%?#", r) })
}

func (s *session) record(f intake.Fetched) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.fetched) < maxAnswers { // refused ones have no end
		s.fetched = append(s.fetched, f)
	}
}

func (s *session) pass(w http.ResponseWriter, r *http.Request, base *url.URL, f *intake.Fetched) {
	fail := func(format string, args ...any) {
		f.Problem = fmt.Sprintf(format, args...)
		http.Error(w, f.Problem, http.StatusBadGateway)
	}
	ctx, cancel := context.WithTimeout(s.ctx, answerTime)
	defer cancel()
	stop := context.AfterFunc(r.Context(), cancel)
	defer stop()
	// npm's client keeps the whole path of an archive's address.
	f.Path = strings.TrimPrefix(f.Path, strings.Trim(base.EscapedPath(), "/")+"/")
	to := strings.TrimSuffix(base.String(), "/") + "/" + f.Path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, to, nil)
	if err != nil {
		fail("%s", err)
		return
	}
	if a := r.Header.Get("Accept"); a != "" && len(a) < 512 {
		req.Header.Set("Accept", a)
	}
	req.Header.Set("User-Agent", "hallmark")
	resp, err := s.client.Do(req)
	if err != nil {
		fail("%s", why(err))
		return
	}
	defer resp.Body.Close()
	f.Status = resp.StatusCode
	if t := resp.Header.Get("Content-Type"); t != "" {
		w.Header().Set("Content-Type", t)
	}
	if resp.StatusCode != http.StatusOK {
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, io.LimitReader(resp.Body, 4096))
		return
	}
	if err := s.copy(w, resp.Body, f); err != nil {
		f.Problem = err.Error()
		// The worker must not take what it got for the whole.
		panic(http.ErrAbortHandler)
	}
}

// why leaves the address out: it may hold the name of a private host, and stands
// in the policy anyway.
func why(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return err.Error()
}

// copy passes an answer on, hashes it and, for npm packages, keeps it.
func (s *session) copy(w io.Writer, body io.Reader, f *intake.Fetched) (err error) {
	h256, h512 := sha256.New(), sha512.New()
	to := []io.Writer{h256, h512}
	var file *os.File
	if f.Registry == intake.RegistryNPM && strings.HasSuffix(f.Path, ".tgz") {
		if file, err = os.CreateTemp(s.spool, "package-"); err != nil {
			return fmt.Errorf("keeping an answer: %w", err)
		}
		defer func() {
			file.Close()
			if err != nil {
				os.Remove(file.Name()) // what was broken off takes no room
			}
		}()
		to = append(to, file)
	}
	n, err := io.Copy(io.MultiWriter(append(to, w)...), io.LimitReader(&metered{s: s, r: body}, maxAnswer+1))
	f.Size = n
	switch {
	case err != nil:
		return fmt.Errorf("passing an answer on: %w", err)
	case n > maxAnswer:
		return fmt.Errorf("the answer has more than %d bytes", int64(maxAnswer))
	}
	f.SHA256, f.SHA512 = hallmark.Digest("sha256:"+fmt.Sprintf("%x", h256.Sum(nil))), h512.Sum(nil)
	if file != nil {
		f.File = filepath.Clean(file.Name())
	}
	return nil
}

// metered takes what is read from what the whole session may read.
type metered struct {
	s *session
	r io.Reader
}

func (m *metered) Read(b []byte) (int, error) {
	n, err := m.r.Read(b)
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	if m.s.left -= int64(n); m.s.left < 0 {
		return 0, fmt.Errorf("all answers have more than %d bytes", int64(maxTotal))
	}
	return n, err
}
