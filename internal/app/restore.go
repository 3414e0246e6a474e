// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/translog"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// signedPolicy is a policy that the log says enough policy keys signed.
type signedPolicy struct {
	version           int
	last              uint64 // log index of its last signature
	document, bundles []byte
}

// newestPolicy finds the policy of the highest version that enough policy keys
// signed, whatever the files of the home say; nil when there is none. A crash may
// leave two of one version, signed and not adopted: the one signed last counts.
func (h *Home) newestPolicy(ctx context.Context) (*signedPolicy, error) {
	all, err := h.signedPolicies(ctx)
	if err != nil {
		return nil, err
	}
	var newest *signedPolicy
	for _, p := range all {
		if newest == nil || p.version > newest.version || p.version == newest.version && p.last > newest.last {
			newest = p
		}
	}
	return newest, nil
}

// signedPolicies are the policies that enough policy keys signed, by digest. A
// proposal that was given up is none, though its signatures stay in the log.
func (h *Home) signedPolicies(ctx context.Context) (map[hallmark.Digest]*signedPolicy, error) {
	judge, err := verify.New(verify.Config{Roots: h.rootsJSON, Pin: h.verifier.RootsDigest(), TrustedRoot: h.trustedJSON})
	if err != nil {
		return nil, err
	}
	signatures, err := h.policySignatures(ctx)
	if err != nil {
		return nil, err
	}
	out := map[hallmark.Digest]*signedPolicy{}
	for digest, signed := range signatures {
		document, err := h.stores.blobs.Get(ctx, digest)
		if hallmark.KindOf(err) == hallmark.KindNotFound {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading a policy: %w", err)
		}
		p, err := judge.Policy(document, lines(signed.bundles))
		if hallmark.KindOf(err) == hallmark.KindDenied {
			continue
		}
		if err != nil {
			return nil, err
		}
		signed.version, signed.document = p.Version(), document
		out[digest] = signed
	}
	return out, nil
}

// policySignatures are the logged signatures of policies by the digest of the
// document, which nobody has looked at yet.
func (h *Home) policySignatures(ctx context.Context) (map[hallmark.Digest]*signedPolicy, error) {
	rows, err := h.stores.index.Statements(ctx, "")
	if err != nil {
		return nil, err
	}
	out := map[hallmark.Digest]*signedPolicy{}
	for _, r := range rows {
		if r.Predicate != intoto.PredicatePolicy {
			continue
		}
		b, err := h.stores.blobs.Get(ctx, r.Bundle)
		if err != nil {
			return nil, fmt.Errorf("reading a signature of a policy: %w", err)
		}
		s, err := h.verifier.Verify(b)
		if err != nil {
			return nil, fmt.Errorf("verifying a signature of a policy: %w", err)
		}
		for _, subject := range s.Statement().Subject {
			d := hallmark.Digest("sha256:" + subject.Digest["sha256"])
			if out[d] == nil {
				out[d] = &signedPolicy{}
			}
			out[d].bundles = append(append(out[d].bundles, b...), '\n')
			out[d].last = max(out[d].last, s.LogIndex())
		}
	}
	return out, nil
}

// restorePolicy makes genesis and policy in force again from log and blobs.
// Proposals are no evidence: what waits for signatures is left as it is.
func (h *Home) restorePolicy(ctx context.Context) error {
	unlock, err := lockPolicy(ctx, h.Layout)
	if err != nil {
		return err
	}
	defer unlock()
	newest, err := h.newestPolicy(ctx)
	if err != nil {
		return err
	}
	if newest == nil {
		return nil
	}
	if h.id.Mode == verify.ModeThreshold {
		if err := h.restoreGenesis(ctx); err != nil {
			return err
		}
	}
	if h.readPolicy() == nil && h.policy.Version() >= newest.version {
		return writeDurable(h.Layout.Policy(), h.policy.Document(), 0o644)
	}
	h.policy = verify.Policy{} // whatever was in force is older, or is not what was signed
	return h.adoptPolicy(newest.document, newest.bundles)
}

// restoreGenesis gathers the signatures of the genesis. One that can't be
// completed is left alone: opening the home says what is missing.
func (h *Home) restoreGenesis(ctx context.Context) error {
	rows, err := h.stores.index.Statements(ctx, string(h.verifier.RootsDigest()))
	if err != nil {
		return err
	}
	var bundles []byte
	for _, r := range rows {
		if r.Predicate != intoto.PredicateGenesis {
			continue
		}
		b, err := h.stores.blobs.Get(ctx, r.Bundle)
		if err != nil {
			return fmt.Errorf("reading a signature of the genesis: %w", err)
		}
		bundles = append(append(bundles, b...), '\n')
	}
	if _, err := h.verifier.Genesis(lines(bundles)); err != nil {
		return fmt.Errorf("verifying the genesis in the log: %w", err)
	}
	if err := writeDurable(h.Layout.Genesis(), bundles, 0o644); err != nil {
		return fmt.Errorf("writing the genesis: %w", err)
	}
	return nil
}

// policyProblems compares roots, genesis and policy with what the log of size
// entries holds. Where the index lacks entries, the log itself is asked whether a
// newer policy is among them: a row that is taken away hides no rollback.
func (h *Home) policyProblems(ctx context.Context, r *translog.Reader, size uint64, indexed bool) []translog.Problem {
	var out []translog.Problem
	add := func(index int64, err error) {
		code := hallmark.CodeOf(err)
		if code == "" {
			code = hallmark.CodePolicyUnsigned
		}
		out = append(out, translog.Problem{Code: code, Index: index, Message: err.Error()})
	}
	if err := h.checkFirstEntry(ctx, r); err != nil {
		add(0, err)
	}
	if h.id.Mode == verify.ModeThreshold && !adopted(h.Layout) {
		if _, err := os.Lstat(h.Layout.Proposal()); err == nil {
			return out // it waits for its first signatures
		}
	}
	if err := h.readPolicy(); err != nil {
		add(-1, err)
		return out
	}
	if !indexed {
		if err := h.unindexedPolicy(ctx, r, size); err != nil {
			add(-1, err)
		}
		return out
	}
	newest, err := h.newestPolicy(ctx)
	switch {
	case err != nil:
		add(-1, err)
	case newest == nil:
		add(-1, hallmark.Coded(hallmark.KindDenied, hallmark.CodeEvidenceMissing, "the log holds no signed policy"))
	case newest.version > h.policy.Version():
		add(-1, hallmark.Coded(hallmark.KindDenied, hallmark.CodePolicyRollback, "policy version %d is in force, the log holds version %d", h.policy.Version(), newest.version))
	}
	return out
}

// unindexedPolicy reports a logged policy of a higher version than the one in
// force. Whether enough keys signed it is for a rebuilt index to say.
func (h *Home) unindexedPolicy(ctx context.Context, r *translog.Reader, size uint64) error {
	return r.Entries(ctx, size, func(i uint64, body []byte) error {
		d, err := translog.StatementOf(body)
		if err != nil {
			return err
		}
		pae, err := h.stores.blobs.Get(ctx, d)
		if err != nil {
			return err
		}
		st, err := intoto.Parse(pae[max(bytes.IndexByte(pae, '{'), 0):])
		if err != nil || st.PredicateType != intoto.PredicatePolicy {
			return nil //nolint:nilerr // not a policy; what it is, fsck has looked at
		}
		var p struct {
			Version int `json:"version"`
		}
		if err := json.Unmarshal(st.Predicate, &p); err != nil || p.Version <= h.policy.Version() {
			return err
		}
		return hallmark.Coded(hallmark.KindDenied, hallmark.CodePolicyRollback, "policy version %d is in force, log entry %d speaks of version %d, and the index is not whole: hallmark log fsck --rebuild", h.policy.Version(), i, p.Version)
	})
}

// checkFirstEntry checks that log entry 0 is the genesis of these roots.
func (h *Home) checkFirstEntry(ctx context.Context, r *translog.Reader) error {
	mismatch := func(format string, args ...any) error {
		return hallmark.Coded(hallmark.KindDenied, hallmark.CodeGenesisMismatch, format, args...)
	}
	body, ok, err := r.First(ctx)
	if err != nil || !ok {
		return err
	}
	d, err := translog.StatementOf(body)
	if err != nil {
		return err
	}
	pae, err := h.stores.blobs.Get(ctx, d)
	if err != nil {
		return err
	}
	payload := pae[max(bytes.IndexByte(pae, '{'), 0):]
	st, err := intoto.Parse(payload)
	if err != nil || !bytes.Equal(intoto.PAE(intoto.PayloadType, payload), pae) {
		return mismatch("log entry 0 is not a statement")
	}
	var g struct {
		Mode        string          `json:"mode"`
		Roots       hallmark.Digest `json:"roots"`
		TrustedRoot hallmark.Digest `json:"trustedRoot"`
	}
	if st.PredicateType != intoto.PredicateGenesis || json.Unmarshal(st.Predicate, &g) != nil {
		return mismatch("log entry 0 is not a genesis")
	}
	roots := h.verifier.Roots()
	switch {
	case g.Mode != roots.Mode:
		return mismatch("the genesis in the log says mode %.40s, the roots say %s", g.Mode, roots.Mode)
	case g.TrustedRoot != roots.TrustedRoot || g.Roots != h.verifier.RootsDigest() && (g.Roots != "" || roots.Mode == verify.ModeThreshold):
		// The first homes of single operators named no roots.
		return mismatch("the genesis in the log is of roots %.80s, the home has %s", g.Roots, h.verifier.RootsDigest())
	}
	return nil
}
