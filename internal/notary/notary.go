// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package notary keeps the keys of a hosted builder away from the process that
// talks to the outside. The notary is a process of another user behind a Unix
// socket: it owns keys, log and fork guard, answers four typed requests and signs
// nothing that it did not judge itself. Who asks is told by the kernel
// (SO_PEERCRED), on both sides.
//
// It believes a request in nothing. Provenance needs a permit for that one
// statement, under the policy in force, which the notary reads and verifies
// itself, and the observations of the same build, signed before. A summary needs
// the evidence that it lists, over which the notary decides again.
package notary

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// Signer has the keys. When Sign returns, the bundle is in the published log.
type Signer interface {
	Sign(ctx context.Context, r sign.Request) (sign.Bundle, error)
	// Seal makes a code that only the keys can make.
	Seal(purpose string, b []byte) ([]byte, error)
	// Warm prepares for what will be asked in a moment. It does not wait.
	Warm(ctx context.Context)
	// Head is the newest head of the log that was ever signed, as the fork guard
	// remembers it; size 0 when there is none.
	Head(ctx context.Context) (size uint64, root []byte, err error)
}

// Law gives the rules in force. A policy that can't be read or verified is an
// error: nothing is signed under the one before.
type Law interface {
	InForce(ctx context.Context) (Rules, error)
}

// Rules are the policy in force, as the notary read and verified it.
type Rules struct {
	Policy   verify.Policy
	Document policy.Document
	Engine   *policy.Engine
	Verifier *verify.Verifier
}

// Config is what a notary needs; every field is required.
type Config struct {
	For         int // the only user who may ask
	TrustDomain string
	Origin      string
	VerifierID  string
	Signer      Signer
	Law         Law
	// Levels is what the controls of a transition come to under a policy.
	Levels func(mode string, doc policy.Document, t intoto.RefTransition) ([]string, error)
	Clock  func() time.Time
	Log    *slog.Logger
}

// Limits on what one asker, or all together, may cost.
const (
	maxConnections = 32
	maxMemory      = 512 << 20 // of messages and evidence that are held
	maxEvidence    = 256 << 20 // of one connection
	signTime       = 2 * time.Minute
	idleTime       = time.Minute // between two messages
	messageTime    = 30 * time.Second
)

// Notary answers requests.
type Notary struct {
	cfg    Config
	memory *semaphore.Weighted
	slots  chan struct{}
}

// New checks its configuration.
func New(cfg Config) (*Notary, error) {
	if cfg.TrustDomain == "" || cfg.Origin == "" || cfg.VerifierID == "" || cfg.Signer == nil || cfg.Law == nil || cfg.Levels == nil || cfg.Clock == nil || cfg.Log == nil || cfg.For < 0 {
		return nil, hallmark.Errorf(hallmark.KindInternal, "notary with an unfinished configuration")
	}
	return &Notary{cfg: cfg, memory: semaphore.NewWeighted(maxMemory), slots: make(chan struct{}, maxConnections)}, nil
}

// Serve answers until ctx ends; what is being signed then comes to its end.
func (n *Notary) Serve(ctx context.Context, l *net.UnixListener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var all sync.WaitGroup
	defer all.Wait()
	for {
		select {
		case n.slots <- struct{}{}: // who comes when all are taken waits in the queue of the kernel
		case <-ctx.Done():
			return nil
		}
		c, err := l.AcceptUnix()
		if err != nil {
			<-n.slots
			if ctx.Err() != nil {
				return nil
			}
			return hallmark.Errorf(hallmark.KindInternal, "accepting a connection: %w", err)
		}
		all.Go(func() {
			defer func() { <-n.slots }()
			defer c.Close()
			// A connection that waits for its next request must not hold up the end.
			defer context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Now()) })()
			n.serve(context.WithoutCancel(ctx), ctx, c)
		})
	}
}

// session is one connection.
type session struct {
	n         *Notary
	challenge string                               // for one permit; "" when it was used
	bundles   map[hallmark.Digest]verify.Statement // presented, by the digest of their bytes
	held      int64
}

func (n *Notary) serve(ctx, end context.Context, c *net.UnixConn) {
	peer, err := peerOf(c)
	if err != nil || int(peer.Uid) != n.cfg.For {
		if err == nil {
			err = hallmark.Coded(hallmark.KindDenied, hallmark.CodeSignerPeer, "the signer answers user %d only, and user %d asks", n.cfg.For, peer.Uid)
		}
		n.cfg.Log.Warn("refused", "code", string(hallmark.CodeOf(err)), "error", err.Error())
		c.SetWriteDeadline(time.Now().Add(messageTime))
		_ = writeFrame(c, response{Refused: refusalOf(err)}) // nobody is owed this answer
		return
	}
	s := &session{n: n, bundles: map[hallmark.Digest]verify.Statement{}}
	defer func() { n.memory.Release(s.held) }()
	for end.Err() == nil {
		var req request
		size, err := n.read(ctx, end, c, &req)
		if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
			return
		}
		var res response
		if err == nil {
			res, err = s.answer(ctx, req)
		}
		n.memory.Release(size)
		if err != nil {
			n.cfg.Log.Warn("refused", "code", string(hallmark.CodeOf(err)), "kind", int(hallmark.KindOf(err)), "error", err.Error(), "pid", peer.Pid)
			res = response{Refused: refusalOf(err)}
		}
		if c.SetWriteDeadline(time.Now().Add(messageTime)) != nil || writeFrame(c, res) != nil {
			return
		}
		if hallmark.CodeOf(err) == hallmark.CodeSignerMessage { // where the next one begins is not known
			return
		}
	}
}

// read takes one message, once there is room for it.
func (n *Notary) read(ctx, end context.Context, c *net.UnixConn, req *request) (held int64, err error) {
	if err := c.SetReadDeadline(time.Now().Add(idleTime)); err != nil {
		return 0, err
	}
	if end.Err() != nil { // which ended the wait that this one replaced
		return 0, io.EOF
	}
	size, err := readLength(c)
	if err != nil {
		return 0, err
	}
	wait, cancel := context.WithTimeout(ctx, messageTime)
	defer cancel()
	held = 3 * int64(size) // as text, decoded and parsed
	if n.memory.Acquire(wait, held) != nil {
		return 0, hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeSignerMessage, "the signer has no room for a message of %d bytes now", size)
	}
	if err := c.SetReadDeadline(time.Now().Add(messageTime)); err != nil {
		return held, err
	}
	if err := readBody(c, size, req); err != nil {
		return held, err
	}
	return held, req.check()
}

func (s *session) answer(ctx context.Context, req request) (response, error) {
	ctx, cancel := context.WithTimeout(ctx, signTime)
	defer cancel()
	rules, err := s.n.cfg.Law.InForce(ctx)
	if err != nil {
		return response{}, fmt.Errorf("reading the policy in force: %w", err)
	}
	switch {
	case req.Hello != nil:
		return s.hello(ctx, *req.Hello, rules)
	case req.Present != nil:
		return s.present(*req.Present, rules)
	case req.Seal != nil:
		code, err := s.n.cfg.Signer.Seal(req.Seal.Purpose, req.Seal.Bytes)
		return response{Seal: &sealed{Code: code}}, err
	}
	return s.sign(ctx, *req.Sign, rules)
}

func (s *session) hello(ctx context.Context, h Hello, rules Rules) (response, error) {
	if h.Version != Version || h.TrustDomain != s.n.cfg.TrustDomain {
		return response{}, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSignerMessage, "asked as version %d of %.100q: this is version %d of %s", h.Version, h.TrustDomain, Version, s.n.cfg.TrustDomain)
	}
	size, root, err := s.n.cfg.Signer.Head(ctx)
	if err != nil {
		return response{}, fmt.Errorf("reading the fork guard: %w", err)
	}
	var b [16]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	s.challenge = hex.EncodeToString(b[:])
	if h.Warm {
		s.n.cfg.Signer.Warm(context.Background())
	}
	return response{Hello: &Facts{
		Version: Version, TrustDomain: s.n.cfg.TrustDomain, Origin: s.n.cfg.Origin, UID: os.Geteuid(),
		Policy: rules.Policy.Digest(), PolicyVersion: rules.Policy.Version(), Roots: rules.Verifier.RootsDigest(), Challenge: s.challenge, Size: size, Root: root,
	}}, nil
}

// present keeps evidence for what is asked next. Only what verifies under the
// pinned roots, its place in the log with it, is evidence.
func (s *session) present(p presentation, rules Rules) (response, error) {
	size := int64(len(p.Bundle))
	if s.held+size > maxEvidence || !s.n.memory.TryAcquire(size) {
		return response{}, hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeSignerMessage, "the signer has no room for more evidence now")
	}
	s.held += size
	st, err := rules.Verifier.Verify(p.Bundle)
	if err != nil {
		return response{}, fmt.Errorf("verifying evidence: %w", err)
	}
	s.bundles[st.BundleDigest()] = st
	return response{Present: &presented{Bundle: st.BundleDigest()}}, nil
}

// identities are those that a notary signs for. Policies are their
// administrators', and what was built on a person's machine is signed there.
func identities() map[string]sign.Identity {
	return map[string]sign.Identity{"observer": sign.Observer, "server": sign.Server, "release": sign.Release, "gate": sign.Gate}
}

func (s *session) sign(ctx context.Context, r signing, rules Rules) (response, error) {
	who, ok := identities()[r.Identity]
	if !ok {
		return response{}, hallmark.Coded(hallmark.KindDenied, hallmark.CodeSignerIdentity, "the signer does not sign for the identity %.40q", r.Identity)
	}
	st, err := intoto.Parse(r.Statement)
	if err != nil {
		return response{}, fmt.Errorf("reading the statement to sign: %w", err)
	}
	digest := hallmark.DigestOf(intoto.PAE(intoto.PayloadType, r.Statement))
	req := sign.Request{Identity: who, Statement: r.Statement}
	switch who {
	case sign.Observer:
		err = observation(st)
	case sign.Server:
		req.Permit, err = s.provenance(st, digest, r.Permit, rules)
	case sign.Release:
		err = s.summary(ctx, st, r.Verdict, rules)
	case sign.Gate: // what the gates saw; the type of the predicate is checked with every signature
	case sign.Builder, sign.Policy, sign.Wrapper:
		err = hallmark.Errorf(hallmark.KindInternal, "identity %d", who)
	}
	if err != nil {
		return response{}, fmt.Errorf("%s %s: %w", st.PredicateType, digest, err)
	}
	b, err := s.n.cfg.Signer.Sign(ctx, req)
	if err != nil {
		return response{}, err
	}
	s.n.cfg.Log.Info("signed", "identity", r.Identity, "predicate", st.PredicateType, "statement", string(digest), "index", b.LogIndex)
	return response{Sign: &signedBundle{Bundle: b.JSON}}, nil
}
