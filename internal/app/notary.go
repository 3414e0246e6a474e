// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/blob"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/notary"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/internal/sqlstore"
	"github.com/hallmark-sc/hallmark/internal/translog"
	"github.com/hallmark-sc/hallmark/intoto"
)

// SignerConfig says how the signer of a server is started.
type SignerConfig struct {
	Home       string
	Passphrase []byte
	Socket     string // "" is the one in the home
	For        int    // user id of the server
	Log        *slog.Logger
	Ready      func(socket string) // called once it answers; optional
}

// RunSigner is the process that has the keys of a server. It ends with ctx.
func RunSigner(ctx context.Context, cfg SignerConfig) error {
	if own := os.Geteuid(); cfg.For == own {
		return hallmark.WithHint(hallmark.Coded(hallmark.KindUsage, hallmark.CodeSignerNotSeparate, "the signer runs as user %d, for whom it shall sign", own),
			"run it as another user than the server: hallmark signer prepare --user NAME")
	}
	// Nobody of our own user reads keys out of our memory.
	if err := sandbox.HideMemory(); err != nil {
		return err
	}
	unix.Umask(0o022) // the log is for everybody to read
	n, done, err := OpenNotary(ctx, cfg)
	if err != nil {
		return err
	}
	defer done()
	if cfg.Socket == "" {
		cfg.Socket = Layout{cfg.Home}.SignerSocket()
	}
	l, err := notary.Listen(cfg.Socket)
	if err != nil {
		return err
	}
	defer l.Close()
	cfg.Log.Info("signing", "socket", cfg.Socket, "for", cfg.For)
	if cfg.Ready != nil {
		cfg.Ready(cfg.Socket)
	}
	return n.Serve(ctx, l)
}

// OpenNotary opens a home as its signer: keys, log and guard are ours alone, and of
// the rest no more is read than the pinned roots and the policy.
func OpenNotary(ctx context.Context, cfg SignerConfig) (n *notary.Notary, done func(), err error) {
	l := Layout{cfg.Home}
	if err := ownedBy(l, os.Geteuid()); err != nil {
		return nil, nil, err
	}
	wait, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	lock, err := durable.Lock(wait, filepath.Join(l.Signer(), "lock"))
	if err != nil {
		return nil, nil, hallmark.Errorf(hallmark.KindUnavailable, "another signer of this home runs: %w", err)
	}
	h, err := openSignerHome(l)
	if err != nil {
		lock.Close()
		return nil, nil, err
	}
	shared := &sharedSigner{make: func() *logSigner {
		s := newSigner(h.Layout, h.id, h.keys, h.stores)
		s.memory = h.memoryDir()
		return s
	}}
	leave := func() {
		shared.end()
		h.Close()
		lock.Close()
	}
	defer func() {
		if err != nil {
			leave()
		}
	}()
	if err := h.loadKeys(cfg.Passphrase); err != nil {
		return nil, nil, err
	}
	if err := h.keysMatch(); err != nil {
		return nil, nil, err
	}
	n, err = notary.New(notary.Config{
		For: cfg.For, TrustDomain: h.id.trustDomain(), Origin: h.id.origin(), VerifierID: h.id.verifierID(),
		Signer: &notarySigner{shared: shared, home: h}, Law: &homeLaw{home: h}, Levels: sourceLevels, Clock: now, Log: cfg.Log,
	})
	return n, leave, err
}

// openSignerHome opens a home without the stores of the server, which are another
// user's. The signer has an index of the log and a memory of its own.
func openSignerHome(l Layout) (h *Home, err error) {
	if err := checkHome(l.Home); err != nil {
		return nil, err
	}
	h = &Home{Layout: l, own: l.Signer(), stores: &stores{}}
	if h.stores.index, err = sqlstore.Open(sqlstore.Config{Path: filepath.Join(h.own, "index.sqlite")}); err != nil {
		return nil, fmt.Errorf("opening the signer's index: %w", err)
	}
	// Nothing is ever kept here: policies are read from their file.
	if h.stores.blobs, err = blob.New(blob.Config{Dir: filepath.Join(h.own, "blobs")}); err == nil {
		err = h.read()
	}
	if err == nil {
		err = h.readPolicy()
	}
	if err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// notarySigner implements notary.Signer: it holds the log while there is something
// to sign.
type notarySigner struct {
	shared *sharedSigner
	home   *Home
}

// Sign implements notary.Signer.
func (s *notarySigner) Sign(ctx context.Context, r sign.Request) (sign.Bundle, error) {
	signer := s.shared.take()
	defer s.shared.give()
	if err := signer.open(ctx); err != nil {
		// Root who was killed with the log open leaves files that are not ours.
		if oerr := ownedBy(s.home.Layout, os.Geteuid()); oerr != nil {
			return sign.Bundle{}, oerr
		}
		return sign.Bundle{}, fmt.Errorf("opening the log: %w", err)
	}
	return signer.signer.Sign(ctx, r)
}

// Seal implements notary.Signer.
func (s *notarySigner) Seal(purpose string, b []byte) ([]byte, error) {
	return s.home.keys.Seal(purpose, b)
}

// Warm implements notary.Signer.
func (s *notarySigner) Warm(ctx context.Context) { s.shared.warm(ctx) }

// Head implements notary.Signer.
func (s *notarySigner) Head(ctx context.Context) (uint64, []byte, error) {
	h, err := translog.NewFileGuard(guardPath(s.home.Layout, s.home.id)).Head(ctx, s.home.id.origin())
	if err != nil || h == nil {
		return 0, nil, err
	}
	return h.Size, h.Root, nil
}

// homeLaw implements notary.Law over the policy files of a home.
type homeLaw struct {
	mu    sync.Mutex
	home  *Home
	stamp [2]policyStamp
	rules notary.Rules
}

// InForce implements notary.Law.
func (l *homeLaw) InForce(context.Context) (notary.Rules, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var stamp [2]policyStamp
	var err error
	for i, path := range []string{l.home.PolicyBundles(), l.home.Layout.Policy()} {
		if stamp[i], err = stampOf(path); err != nil {
			return notary.Rules{}, err
		}
	}
	if l.rules.Engine != nil && stamp == l.stamp {
		return l.rules, nil
	}
	if err := l.home.readPolicy(); err != nil {
		return notary.Rules{}, err
	}
	engine, err := policy.New(l.home.policy)
	if err != nil {
		return notary.Rules{}, err
	}
	l.stamp, l.rules = stamp, notary.Rules{Policy: l.home.policy, Document: l.home.document, Engine: engine, Verifier: l.home.verifier}
	return l.rules, nil
}

// sourceLevels is what the controls of a transition come to under a policy.
func sourceLevels(mode string, doc policy.Document, t intoto.RefTransition) ([]string, error) {
	book, err := access.NewBook(doc.Access)
	if err != nil {
		return nil, err
	}
	_, path, _ := strings.Cut(strings.TrimPrefix(t.Repository, "https://"), "/")
	rule, ok := book.Protection(strings.TrimSuffix(path, ".git"), t.Ref)
	if !ok {
		return nil, hallmark.Coded(hallmark.KindDenied, hallmark.CodeRefUnprotected, "no rule protects %.200q of %.200q", t.Ref, t.Repository)
	}
	return levels(mode, rule, t.Controls), nil
}

// dialNotary asks a notary; it waits for one that is being started again.
func dialNotary(ctx context.Context, cfg notary.ClientConfig) (*notary.Conn, error) {
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		c, err := notary.Dial(ctx, cfg)
		if err == nil || hallmark.CodeOf(err) != hallmark.CodeSignerUnreachable {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}
