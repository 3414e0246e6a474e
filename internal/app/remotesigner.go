// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/notary"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/internal/translog"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// askTime is how long a signer that is away or being started again is waited for.
const askTime = 30 * time.Second

// remoteSigner has a notary sign and keeps what it gives. It believes the notary
// as little as that believes it: every bundle is verified under the pinned roots.
type remoteSigner struct {
	home  *Home
	cfg   notary.ClientConfig
	log   *slog.Logger
	check *verify.Verifier // remembers nothing: what it sees is ours
	// mend gives log and guard to their owner, where we may. Optional.
	mend func() error
}

func newRemoteSigner(h *Home, cfg notary.ClientConfig, log *slog.Logger) (*remoteSigner, error) {
	check, err := verify.New(verify.Config{Roots: h.rootsJSON, Pin: h.verifier.RootsDigest(), TrustedRoot: h.trustedJSON})
	if err != nil {
		return nil, err
	}
	return &remoteSigner{home: h, cfg: cfg, log: log, check: check}, nil
}

// remoteName is what a notary calls an identity, "" for those it does not sign for.
func remoteName(who sign.Identity) string {
	return map[sign.Identity]string{sign.Observer: "observer", sign.Server: "server", sign.Release: "release", sign.Gate: "gate"}[who]
}

// sign makes a bundle and keeps it: payload first, so that no leaf of the log
// stands for bytes that nobody has.
func (r *remoteSigner) sign(ctx context.Context, who sign.Identity, st intoto.Statement, permit *sign.Permit) (sign.Bundle, error) {
	name := remoteName(who)
	if name == "" {
		return sign.Bundle{}, hallmark.Coded(hallmark.KindDenied, hallmark.CodeSignerIdentity, "no server signs as the %s", signerName(who))
	}
	payload, err := st.Marshal()
	if err != nil {
		return sign.Bundle{}, err
	}
	pae := intoto.PAE(intoto.PayloadType, payload)
	digest, err := r.home.stores.blobs.Put(ctx, pae)
	if err != nil {
		return sign.Bundle{}, fmt.Errorf("keeping a statement: %w", err)
	}
	if who != sign.Server || permit != nil { // a bundle that was made before spares no permit
		if b, ok, err := r.earlier(ctx, name, digest, pae); err != nil || ok {
			return b, err
		}
	}
	raw, err := r.ask(ctx, who, st, payload, permit)
	if err != nil {
		r.log.Warn("not signed", "identity", name, "predicate", st.PredicateType, "statement", string(digest), "code", string(hallmark.CodeOf(err)), "error", err.Error())
		return sign.Bundle{}, err
	}
	b, err := r.read(raw, name, digest, pae)
	if err != nil {
		return sign.Bundle{}, err
	}
	if _, err := r.home.stores.blobs.Put(ctx, b.JSON); err != nil {
		return sign.Bundle{}, fmt.Errorf("keeping a bundle: %w", err)
	}
	leaf, index, err := translog.LeafOf(b.JSON)
	if err != nil {
		return sign.Bundle{}, err
	}
	if err := r.home.stores.index.PutLeaf(ctx, leaf, index, b.Statement); err != nil {
		return sign.Bundle{}, hallmark.WithHint(fmt.Errorf("indexing leaf %d: %w", index, err), "hallmark log fsck --rebuild makes the index again")
	}
	if err := r.home.stores.index.PutStatement(ctx, rowOf(st, b, name, b.SignedAt)); err != nil {
		return sign.Bundle{}, fmt.Errorf("indexing a bundle: %w", err)
	}
	return b, nil
}

// earlier finds the bundle that was made for a statement before. One that is lost,
// altered or another's is as good as none.
func (r *remoteSigner) earlier(ctx context.Context, name string, digest hallmark.Digest, pae []byte) (sign.Bundle, bool, error) {
	bundle, ok, err := r.home.stores.index.BundleOf(ctx, digest)
	if err != nil || !ok {
		return sign.Bundle{}, false, err
	}
	raw, err := r.home.stores.blobs.Get(ctx, bundle)
	switch {
	case hallmark.KindOf(err) == hallmark.KindNotFound, hallmark.CodeOf(err) == hallmark.CodeEvidenceMalformed:
		return sign.Bundle{}, false, nil
	case err != nil:
		return sign.Bundle{}, false, fmt.Errorf("reading bundle %s: %w", bundle, err)
	}
	b, err := r.read(raw, name, digest, pae)
	return b, err == nil, nil
}

// read verifies a bundle: signed by whom we asked for, of our statement, logged.
func (r *remoteSigner) read(raw []byte, name string, digest hallmark.Digest, pae []byte) (sign.Bundle, error) {
	v, err := r.check.Verify(raw)
	if err != nil {
		return sign.Bundle{}, fmt.Errorf("verifying what the signer made: %w", err)
	}
	if v.Digest() != digest || v.Signer() != name {
		return sign.Bundle{}, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSignerMessage, "asked for %s by the %s, the signer made %s by the %s", digest, name, v.Digest(), v.Signer())
	}
	b := sign.Bundle{JSON: raw, Statement: digest, PAE: pae, Digest: v.BundleDigest(), SignedAt: v.SignedAt()}
	if b.LogIndex = int64(v.LogIndex()); b.LogIndex < 0 {
		return sign.Bundle{}, hallmark.Errorf(hallmark.KindInvalid, "a log index beyond what counts")
	}
	return b, nil
}

// ask shows the notary what the statement rests on and has it signed. A notary
// that dies meanwhile is asked again: the same statement signed twice is one.
func (r *remoteSigner) ask(ctx context.Context, who sign.Identity, st intoto.Statement, payload []byte, permit *sign.Permit) ([]byte, error) {
	rests, verdict, err := r.restsOn(ctx, who, st)
	if err != nil {
		return nil, err
	}
	var p *notary.Permit
	if permit != nil {
		p = &notary.Permit{Statement: permit.Statement, Policy: permit.BuildPolicy, Decision: permit.Decision}
	}
	var out []byte
	err = r.with(ctx, func(ctx context.Context, c *notary.Conn) error {
		for _, b := range rests {
			if err := c.Present(ctx, b); err != nil {
				return err
			}
		}
		out, err = c.Sign(ctx, remoteName(who), payload, p, verdict)
		return err
	})
	return out, err
}

// with has a connection for f, and another one while the notary is away.
func (r *remoteSigner) with(ctx context.Context, f func(context.Context, *notary.Conn) error) error {
	wait, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	mended := false
	for {
		c, err := dialNotary(wait, r.cfg)
		if err == nil {
			err = f(ctx, c)
			c.Close()
		}
		switch {
		case err == nil:
			return nil
		case hallmark.CodeOf(err) == hallmark.CodeSignerNotPrepared && r.mend != nil && !mended:
			mended = true
			r.log.Warn("giving the signer what is its own", "error", err.Error())
			if merr := r.mend(); merr != nil {
				return merr
			}
		case hallmark.CodeOf(err) != hallmark.CodeSignerUnreachable || wait.Err() != nil:
			return err
		}
	}
}

// restsOn collects the bundles that a notary wants to see for a statement.
func (r *remoteSigner) restsOn(ctx context.Context, who sign.Identity, st intoto.Statement) (bundles [][]byte, verdict []byte, err error) {
	var digests []hallmark.Digest
	switch who {
	case sign.Server:
		p, err := intoto.ParseProvenance(st)
		if err != nil {
			return nil, nil, err
		}
		for _, d := range p.RunDetails.Byproducts {
			b, ok, err := r.home.stores.index.BundleOf(ctx, hallmark.Digest("sha256:"+d.Digest["sha256"]))
			if err != nil {
				return nil, nil, err
			}
			if ok { // what is not there the notary will miss
				digests = append(digests, b)
			}
		}
	case sign.Release:
		v, err := intoto.DecodePredicate[intoto.VSA](st)
		if err != nil {
			return nil, nil, err
		}
		for _, d := range v.InputAttestations {
			digests = append(digests, hallmark.Digest("sha256:"+d.Digest["sha256"]))
		}
		if v.Verdict != nil {
			if verdict, err = r.home.stores.blobs.Get(ctx, v.Verdict.Digest); err != nil {
				return nil, nil, fmt.Errorf("reading a verdict: %w", err)
			}
		}
	case sign.Observer, sign.Gate, sign.Builder, sign.Policy, sign.Wrapper:
	}
	for _, d := range digests {
		b, err := r.home.stores.blobs.Get(ctx, d)
		if err != nil {
			return nil, nil, fmt.Errorf("reading evidence: %w", err)
		}
		bundles = append(bundles, b)
	}
	return bundles, verdict, nil
}

// warm has the notary open the log for who will sign in a moment. That it can't is
// told to who signs.
func (r *remoteSigner) warm(ctx context.Context) {
	go func() {
		wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		cfg := r.cfg
		cfg.Warm = true
		if c, err := notary.Dial(wait, cfg); err == nil {
			c.Close()
		}
	}()
}

func (r *remoteSigner) end() {}

// Seal has the notary make the code of a saved result.
func (r *remoteSigner) Seal(purpose string, b []byte) (code []byte, err error) {
	err = r.with(context.Background(), func(ctx context.Context, c *notary.Conn) error {
		code, err = c.Seal(ctx, purpose, b)
		return err
	})
	return code, err
}

// statementSigner signs for a server.
type statementSigner interface {
	// sign returns when the bundle is logged, kept and indexed.
	sign(ctx context.Context, who sign.Identity, st intoto.Statement, permit *sign.Permit) (sign.Bundle, error)
	// warm says that something will be signed in a moment.
	warm(ctx context.Context)
	end()
}

var (
	_ statementSigner = (*sharedSigner)(nil)
	_ statementSigner = (*remoteSigner)(nil)
)

// seal makes the code of a saved result.
func (h *Home) seal(purpose string, b []byte) ([]byte, error) {
	if h.remote != nil {
		return h.remote.Seal(purpose, b)
	}
	return h.keys.Seal(purpose, b)
}

// guard is what remembers the newest head of the log: a file of ours, or the
// signer, whose file it is.
func (h *Home) guard() translog.Guard {
	if h.remote != nil {
		return remoteGuard{h.remote}
	}
	return translog.NewFileGuard(guardPath(h.Layout, h.id))
}

// remoteGuard implements translog.Guard for reading.
type remoteGuard struct{ r *remoteSigner }

func (g remoteGuard) Head(ctx context.Context, origin string) (head *translog.Head, err error) {
	err = g.r.with(ctx, func(_ context.Context, c *notary.Conn) error {
		f := c.Facts()
		if f.Origin != origin {
			return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeLogForked, "the signer guards %s, not %s", f.Origin, origin)
		}
		if f.Size > 0 {
			head = &translog.Head{Origin: origin, Size: f.Size, Root: f.Root}
		}
		return nil
	})
	return head, err
}

func (remoteGuard) Advance(context.Context, string, func(*translog.Head) (translog.Head, error)) error {
	return hallmark.Errorf(hallmark.KindInternal, "only the signer moves its guard")
}
