// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/gitgate"
	"github.com/hallmark-sc/hallmark/internal/identity"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/scan/secrets"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/intoto"
)

// ServeConfig says how a server is started.
type ServeConfig struct {
	Home       string
	Passphrase []byte
	Config     ServerFile
	Log        *slog.Logger
	// Ready is called with the address once connections are taken. Optional.
	Ready func(url, authority string)
	// Parts takes controls away, for drills; the zero value takes none.
	Parts GateParts
}

// Server is all gates in one process.
type Server struct {
	home   *Home
	file   ServerFile
	log    *slog.Logger
	signer statementSigner
	git    *gitgate.Server
	tool   hallmark.Tool
	room   *room
	spare  *spareWorker // for the secrets of pushes
	key    []byte       // of fingerprints
	work   string
	parts  GateParts

	counters counters
	refusals refusals
	alerts   *alerter
	locks    refLocks
	issued   sync.Map // tokens that the log is known to have
	spool    *spool
	builds   *builds
	oidc     *identity.OIDC
	attempts attempts

	mu    sync.RWMutex
	state *rules
}

// rules are what is read from the policy in force, together.
type rules struct {
	policy   hallmark.Digest
	version  int
	book     *access.Book
	domains  *identity.TrustDomains
	signers  func(sig, signed []byte, at time.Time) verdictOf
	binaries []hallmark.Digest
	params   policy.Parameters
	stamp    policyStamp
}

// Serve runs a server until ctx ends; requests under way get time to end.
func Serve(ctx context.Context, cfg ServeConfig) error {
	s, done, err := newServer(ctx, cfg)
	if err != nil {
		return err
	}
	defer done()
	if err := s.began(ctx); err != nil {
		return err
	}
	if err := s.recover(ctx); err != nil {
		return err
	}
	if err := s.configured(ctx); err != nil {
		return err
	}
	cert, authority, err := s.certificate()
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", cfg.Config.Listen)
	if err != nil {
		return hallmark.WithHint(hallmark.Errorf(hallmark.KindUnavailable, "listening on %s: %w", cfg.Config.Listen, err), "name another address: listen in the configuration, or --listen")
	}
	s.builds = newBuilds(ctx, s)
	defer s.builds.close()
	if err := s.builds.start(); err != nil {
		return err
	}
	stopMetrics, err := s.serveMetrics(ctx)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	defer stopMetrics()
	srv := &http.Server{
		Handler: s.routes(), ReadHeaderTimeout: 20 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog:  slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cert.get, ClientAuth: tls.RequestClientCert},
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.ServeTLS(l, "", "") }()
	s.spare.prepare()
	url := "https://" + l.Addr().String()
	cfg.Log.Info("serving", "url", url, "policy", s.rules().policy, "origin", s.home.id.origin(), "builder", s.builderID())
	if cfg.Ready != nil {
		cfg.Ready(url, authority)
	}
	select {
	case err := <-ended:
		return hallmark.Errorf(hallmark.KindInternal, "serving: %w", err)
	case <-ctx.Done():
	}
	s.builds.close() // what is built is given back, and who listens to it is let go
	// The context of the command has ended; what is under way has its own.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if err := srv.Shutdown(last); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return hallmark.Errorf(hallmark.KindInternal, "ending: %w", err)
	}
	cfg.Log.Info("ended")
	return nil
}

func newServer(ctx context.Context, cfg ServeConfig) (*Server, func(), error) {
	h, leave, err := openServed(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	s := &Server{home: h, file: cfg.Config, log: cfg.Log, parts: cfg.Parts, oidc: identity.NewOIDC(nil, now)}
	h.journal.hides = cfg.Parts.Hides
	if s.signer = h.remote; h.remote == nil {
		s.signer = &sharedSigner{make: func() *logSigner { return newSigner(h.Layout, h.id, h.keys, h.stores) }}
	}
	var lock, alone *os.File
	done := func() {
		if s.spool != nil {
			if err := s.spool.close(context.WithoutCancel(ctx)); err != nil {
				s.log.Error("fetch records were not sealed; the next start does it", "error", err.Error())
			}
		}
		s.signer.end()
		if s.alerts != nil {
			s.alerts.close()
		}
		if s.spare != nil {
			s.spare.close()
		}
		if lock != nil {
			if err := durable.RemoveTree(s.work); err != nil {
				cfg.Log.Warn("the work directory of the server stays", "error", err.Error())
			}
			lock.Close()
		}
		leave()
		h.Close()
		if alone != nil {
			alone.Close()
		}
	}
	err = func() error {
		if !cfg.Parts.Beside {
			if alone, err = h.alone(); err != nil {
				return err
			}
		}
		if !h.mayGate() {
			return hallmark.WithHint(hallmark.Errorf(hallmark.KindUnavailable, "the roots of %s are older than the gates: they name no identity %q", h.Home, gateName), "make a new home: hallmark init --home DIR")
		}
		if err := s.reload(); err != nil {
			return err
		}
		if s.tool, err = Tool(); err != nil {
			return err
		}
		if s.alerts, err = newAlerter(cfg.Config.Alerts, h.id.origin(), cfg.Log); err != nil {
			return err
		}
		if s.key, err = os.ReadFile(h.Fingerprints()); err != nil || len(s.key) != 32 {
			return hallmark.Errorf(hallmark.KindInvalid, "reading the fingerprint key: %w", err)
		}
		if err := sweepRuns(h.Runs()); err != nil {
			return err
		}
		if s.work, lock, err = newRunDir(h.Runs()); err != nil {
			return err
		}
		box, err := sandbox.New(sandbox.Config{Clock: now})
		if err != nil {
			return err
		}
		s.room = &room{box: box, hostID: sandbox.HostID(), work: s.work, params: h.params}
		s.spare = &spareWorker{room: s.room, args: []string{secrets.JobName}, log: cfg.Log}
		if s.spool, err = openSpool(h.Spool(), s.sealFetches); err != nil {
			return err
		}
		s.git, err = gitgate.New(gitgate.Config{Dir: h.Repositories(), WorkDir: s.work, Gate: &sourceGate{s}, Log: cfg.Log, MaxPush: cfg.Config.maxPush(),
			Pushes: cfg.Config.Limits.Pushes, PushesEach: cfg.Config.Limits.PushesEach, Patience: cfg.Config.patience(),
			Busy: func(gitgate.Caller, string) {
				s.counters.count("push", hallmark.Decision{Effect: hallmark.Deny, Reasons: []hallmark.Reason{{Code: hallmark.CodePushBusy}}}, nil)
			},
		})
		return err
	}()
	if err != nil {
		done()
		return nil, nil, err
	}
	return s, done, nil
}

// mayGate reports whether the pinned roots know the identity of the gates.
func (h *Home) mayGate() bool {
	for _, s := range h.verifier.Roots().Signers {
		if s.Name == gateName && s.Certificate != nil {
			return true
		}
	}
	return false
}

// policyStamp tells whether another policy came into force.
type policyStamp struct {
	modified, changed int64
	inode             uint64
	size              int64
}

func stampOf(path string) (policyStamp, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return policyStamp{}, hallmark.Errorf(hallmark.KindInvalid, "reading the policy in force: %w", err)
	}
	return policyStamp{st.Mtim.Nano(), st.Ctim.Nano(), st.Ino, st.Size}, nil
}

func (s *Server) rules() *rules {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.state
}

// current are the rules in force now. A policy that can't be verified is an
// error: nothing is decided under the one before.
func (s *Server) current() (*rules, error) {
	stamp, err := stampOf(s.home.PolicyBundles())
	if err != nil {
		return nil, err
	}
	if r := s.rules(); r.stamp == stamp {
		return r, nil
	}
	if err := s.reload(); err != nil {
		return nil, err
	}
	s.log.Info("another policy is in force", "policy", s.rules().policy, "version", s.rules().version)
	return s.rules(), nil
}

func (s *Server) reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	stamp, err := stampOf(s.home.PolicyBundles())
	if err != nil {
		return err
	}
	if s.parts.Document == nil {
		if err := s.home.readPolicy(); err != nil {
			return err
		}
		if err := s.home.settlePolicyFile(context.Background(), s.log); err != nil {
			return err
		}
	}
	if err := s.parts.document(s.home); err != nil {
		return err
	}
	book, err := access.NewBook(s.home.document.Access)
	if err != nil {
		return err
	}
	verifySigner, err := commitVerifier(s.home.document)
	if err != nil {
		return err
	}
	domains, err := trustDomainsOf(book)
	if err != nil {
		return err
	}
	s.state = &rules{
		domains: domains,
		policy:  s.home.policy.Digest(), version: s.home.policy.Version(), book: book, signers: verifySigner,
		binaries: s.home.params.Binaries, params: s.home.params, stamp: stamp,
	}
	return nil
}

// sharedSigner holds the log while there is something to sign, and gives it back
// soon after: one process at a time may hold it, and administrators change the
// policy beside a running server.
type sharedSigner struct {
	make func() *logSigner

	mu    sync.Mutex
	open  *logSigner
	users int
	timer *time.Timer
}

// lease is how long the log is kept for the next one.
const lease = 300 * time.Millisecond

func (s *sharedSigner) sign(ctx context.Context, who sign.Identity, st intoto.Statement, permit *sign.Permit) (sign.Bundle, error) {
	signer := s.take()
	defer s.give()
	b, err := signer.sign(ctx, who, st, permit)
	if err != nil {
		return b, fmt.Errorf("signing: %w", err)
	}
	return b, nil
}

// warm opens the log for who will sign in a moment, and holds it no longer than any
// other. That it can't be opened is told to who signs.
func (s *sharedSigner) warm(ctx context.Context) {
	signer := s.take()
	go func() {
		defer s.give()
		_ = signer.open(context.WithoutCancel(ctx))
	}()
}

func (s *sharedSigner) take() *logSigner {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	if s.open == nil || s.open.err != nil && s.users == 0 {
		s.open = s.make()
	}
	s.users++
	return s.open
}

func (s *sharedSigner) give() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users == 0 {
		s.timer = time.AfterFunc(lease, s.end)
	}
}

func (s *sharedSigner) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users == 0 && s.open != nil {
		s.open.close()
		s.open = nil
	}
}
