// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/internal/translog"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// Where several administrators share a home, a policy is proposed first and in
// force when enough of them signed it. The proposal is a file and no evidence;
// each signature is a logged statement, so that log, blobs and roots say who
// signed what, and nothing else is believed.

// policySigner begins the names that roots give administrators.
const policySigner = "policy/"

// PolicyKey makes an administrator's key pair.
func PolicyKey(name, path string, passphrase []byte) (hint string, err error) {
	pub, err := sign.CreatePolicyKey(path, name, passphrase)
	return pub.Hint, err
}

// Proposal is a policy that waits for signatures, for people.
type Proposal struct {
	Genesis        bool // it is the first policy, and the genesis is signed with it
	Version        int
	Digest         hallmark.Digest
	Previous       hallmark.Digest
	Threshold      int
	Signed, Others []string // administrators who signed, and who could
	Changes        []policy.Change
	Roots          hallmark.Digest
	Keys           []KeyValue // the administrators and the hints of their keys
	bytes          []byte
}

// administrator is one of those whom the roots name.
type administrator struct{ name, hint, pem string }

// administrators are the holders of policy keys, in the order of the roots.
func (h *Home) administrators() []administrator {
	var out []administrator
	roots := h.verifier.Roots()
	for _, k := range roots.Policy.Keys {
		for _, s := range roots.Signers {
			if name, ok := strings.CutPrefix(s.Name, policySigner); ok && s.Key != nil && s.Key.Hint == k.Hint {
				out = append(out, administrator{name: name, hint: k.Hint, pem: k.PublicKey})
			}
		}
	}
	return out
}

// genesis is what one administrator signs of a home's beginning.
func (h *Home) genesis(first hallmark.Digest, signer string) (intoto.Statement, error) {
	return genesisStatement(h.id, h.verifier.Roots(), h.verifier.RootsDigest(), first, signer)
}

// genesisStatement is the same for every administrator but for the signer.
func genesisStatement(id identityFile, roots verify.Roots, digest, first hallmark.Digest, signer string) (intoto.Statement, error) {
	g := attest.Genesis{
		Mode: roots.Mode, Administrators: roots.Administrators, Threshold: roots.Policy.Threshold, TrustDomain: roots.TrustDomain,
		Policy: first, Roots: digest, TrustedRoot: roots.TrustedRoot, CreatedOn: id.CreatedOn, Signer: signer,
	}
	for i, k := range roots.Policy.Keys {
		g.PolicyKeys = append(g.PolicyKeys, attest.PolicyKey{Administrator: roots.Administrators[i], Hint: k.Hint, PublicKey: k.PublicKey})
	}
	return attest.GenesisStatement(g)
}

func (p *Proposal) approval(signer string) (intoto.Statement, error) {
	return attest.PolicyApproval(p.Digest, p.Version, p.Previous, signer)
}

// approvals are the logged statements of administrators, by name: each exactly
// the one that make returns for the administrator's key, signed with that key.
func (h *Home) approvals(ctx context.Context, make func(signer string) (intoto.Statement, error)) (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, a := range h.administrators() {
		want, err := statementDigest(make, a.hint)
		if err != nil {
			return nil, err
		}
		at, ok, err := h.stores.index.BundleOf(ctx, want)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		b, err := h.stores.blobs.Get(ctx, at)
		if err != nil {
			return nil, fmt.Errorf("reading the signature of %s: %w", a.name, err)
		}
		s, err := h.verifier.Verify(b)
		if err != nil {
			return nil, fmt.Errorf("verifying the signature of %s: %w", a.name, err)
		}
		if s.Digest() == want && s.Signer() == policySigner+a.name {
			out[a.name] = b
		}
	}
	return out, nil
}

func statementDigest(make func(signer string) (intoto.Statement, error), signer string) (hallmark.Digest, error) {
	st, err := make(signer)
	if err != nil {
		return "", err
	}
	payload, err := st.Marshal()
	if err != nil {
		return "", err
	}
	return hallmark.DigestOf(intoto.PAE(intoto.PayloadType, payload)), nil
}

// proposal reads what waits for signatures; nil when nothing does. It must
// follow the policy in force, and its bytes must be the ones that are shown.
func (h *Home) proposal(ctx context.Context) (*Proposal, error) {
	b, err := os.ReadFile(h.Layout.Proposal())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading the pending policy: %w", err)
	}
	invalid := func(format string, args ...any) error {
		return hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodePolicyProposal, "the pending policy: "+format, args...),
			"propose again: hallmark policy set KEY=VALUE…")
	}
	doc, err := policy.ParseDocument(b)
	if err != nil {
		return nil, invalid("%w", err)
	}
	if canon, err := doc.Encode(); err != nil || !bytes.Equal(canon, b) {
		return nil, invalid("is not in the form that hallmark writes")
	}
	roots := h.verifier.Roots()
	p := &Proposal{Genesis: !h.policy.Valid(), Version: doc.Version, Digest: hallmark.DigestOf(b), Previous: doc.Previous,
		Threshold: roots.Policy.Threshold, Roots: h.verifier.RootsDigest(), bytes: b}
	switch {
	case h.policy.Valid() && p.Digest == h.policy.Digest():
		return nil, nil // in force since; a crash left the file
	case p.Version != h.policy.Version()+1:
		return nil, invalid("has version %d, the policy in force %d", p.Version, h.policy.Version())
	case p.Previous != h.policy.Digest():
		return nil, invalid("follows another policy than the one in force")
	case doc.IssuedOn.After(now()):
		return nil, invalid("was issued in the future, on %s", doc.IssuedOn)
	}
	p.Changes = policy.Changes(h.document, doc)
	signed, err := h.approvals(ctx, p.approval)
	if err != nil {
		return nil, err
	}
	if h.policy.Valid() && h.document.Value(secondFactor) == factorRequired {
		by, err := h.confirmed(ctx, h.document, p.Version, p.Digest, p.Previous)
		if err != nil {
			return nil, err
		}
		maps.DeleteFunc(signed, func(name string, _ []byte) bool { return !by[name] })
	}
	if p.Genesis {
		first, err := h.approvals(ctx, h.firstOf(p))
		if err != nil {
			return nil, err
		}
		for name := range signed {
			if first[name] == nil {
				delete(signed, name)
			}
		}
	}
	for _, a := range h.administrators() {
		p.Keys = append(p.Keys, KeyValue{a.name, a.hint})
		if signed[a.name] != nil {
			p.Signed = append(p.Signed, a.name)
		} else {
			p.Others = append(p.Others, a.name)
		}
	}
	return p, nil
}

func (h *Home) firstOf(p *Proposal) func(signer string) (intoto.Statement, error) {
	return func(signer string) (intoto.Statement, error) { return h.genesis(p.Digest, signer) }
}

// propose replaces what waits for signatures. The caller holds the policy lock.
func (h *Home) propose(ctx context.Context, document []byte) (PolicyState, error) {
	old, err := h.proposal(ctx)
	if err != nil && hallmark.CodeOf(err) != hallmark.CodePolicyProposal {
		return PolicyState{}, err
	}
	if err := writeDurable(h.Layout.Proposal(), document, 0o644); err != nil {
		return PolicyState{}, fmt.Errorf("writing the pending policy: %w", err)
	}
	st := PolicyState{Version: h.policy.Version(), Digest: h.policy.Digest(), Replaced: old}
	st.Pending, err = h.proposal(ctx)
	return st, err
}

// unsigned says what a home lacks before it can be used.
func (h *Home) unsigned(ctx context.Context) error {
	p, err := h.proposal(ctx)
	if err != nil {
		return err
	}
	if p == nil {
		return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeGenesisUnsigned, "the home %s has neither a policy nor one that waits for signatures", h.Home)
	}
	by := ""
	if len(p.Signed) > 0 {
		by = " (" + strings.Join(p.Signed, ", ") + ")"
	}
	return unsignedError("genesis and first policy of %s are signed by %d of %d administrators%s", h.Home, len(p.Signed), p.Threshold, by)(
		"one of " + strings.Join(p.Others, ", ") + " signs: hallmark policy sign --home " + h.Home + " --key FILE")
}

func unsignedError(format string, args ...any) func(hint string) error {
	return func(hint string) error {
		return hallmark.WithHint(hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeGenesisUnsigned, format, args...), hint)
	}
}

// checkGenesis checks that enough administrators signed the beginning of a home
// under these roots. A single operator's roots say all that there is to say.
func checkGenesis(l Layout, v *verify.Verifier) error {
	if v.Roots().Mode != verify.ModeThreshold {
		return nil
	}
	b, err := os.ReadFile(l.Genesis())
	if errors.Is(err, fs.ErrNotExist) {
		return unsignedError("the home %s has no signed genesis", l.Home)("administrators sign with hallmark policy sign --key FILE; when they have, hallmark log fsck --rebuild finds their signatures")
	}
	if err != nil {
		return hallmark.Errorf(hallmark.KindInvalid, "reading the genesis: %w", err)
	}
	if _, err := v.Genesis(lines(b)); err != nil {
		return fmt.Errorf("verifying the genesis of %s: %w", l.Home, err)
	}
	return nil
}

// SignConfig is what an administrator signs with.
type SignConfig struct {
	Home           string
	HomePassphrase []byte // of the home's keys, which log and time-stamp
	Key            string
	KeyPassphrase  []byte
	SecondFactor   []byte          // the signature of a FIDO key, where the policy in force requires one
	Digest         hallmark.Digest // of the proposal that was shown; required
}

// Signing is what came of a signature.
type Signing struct {
	Administrator string
	Version       int
	Digest        hallmark.Digest
	InForce       bool
	Signed        []string
	Others        []string
	Threshold     int
}

// PolicyReview is what an administrator is about to sign.
func PolicyReview(ctx context.Context, home string) (Proposal, error) {
	h, err := openProposal(home)
	if err != nil {
		return Proposal{}, err
	}
	defer h.Close()
	p, err := h.proposal(ctx)
	if err != nil {
		return Proposal{}, err
	}
	if p == nil {
		return Proposal{}, nothingPending()
	}
	return *p, nil
}

func nothingPending() error {
	return hallmark.WithHint(hallmark.Coded(hallmark.KindNotFound, hallmark.CodePolicyNotPending, "no policy waits for signatures"),
		"propose one: hallmark policy set KEY=VALUE…")
}

// openProposal opens a home of several administrators, with its policy if one is
// in force.
func openProposal(home string) (*Home, error) {
	h, err := openRoots(home)
	if err != nil {
		return nil, err
	}
	if h.id.Mode != verify.ModeThreshold {
		h.Close()
		return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindUsage, "the home %s has a single operator: nothing waits for signatures", home),
			"hallmark policy set changes and signs the policy")
	}
	if !adopted(h.Layout) {
		return h, nil
	}
	if err := h.readPolicy(); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// PolicySign adds one administrator's signature to the pending policy, and puts
// it in force when that makes enough.
func PolicySign(ctx context.Context, cfg SignConfig) (Signing, error) {
	if err := checkHome(cfg.Home); err != nil {
		return Signing{}, err
	}
	key, err := sign.LoadPolicyKey(cfg.Key, cfg.KeyPassphrase)
	if err != nil {
		return Signing{}, err
	}
	unlock, err := lockPolicy(ctx, Layout{cfg.Home})
	if err != nil {
		return Signing{}, err
	}
	defer unlock()
	h, err := openProposal(cfg.Home)
	if err != nil {
		return Signing{}, err
	}
	defer h.Close()
	p, err := h.proposal(ctx)
	if err != nil {
		return Signing{}, err
	}
	if p == nil {
		return Signing{}, nothingPending()
	}
	if p.Digest != cfg.Digest {
		return Signing{}, hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodePolicyProposal, "the pending policy is %s, not %s which was reviewed", p.Digest, cfg.Digest),
			"review it: hallmark policy show")
	}
	all := h.administrators()
	i := slices.IndexFunc(all, func(a administrator) bool { return a.hint == key.Public().Hint })
	if i < 0 {
		return Signing{}, hallmark.Coded(hallmark.KindDenied, hallmark.CodeSignerUnknown, "key %s (%s) is not a policy key of this home", cfg.Key, key.Public().Hint)
	}
	// A crash may have left enough signatures and no policy in force.
	if done, err := h.settle(ctx, p); err != nil || done {
		return p.signing(all[i].name, done), err
	}
	if slices.Contains(p.Signed, all[i].name) {
		return Signing{}, hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodePolicyAlreadySigned, "%s signed policy version %d before", all[i].name, p.Version),
			"one of "+strings.Join(p.Others, ", ")+" signs: hallmark policy sign --key FILE")
	}
	if err := h.loadKeys(cfg.HomePassphrase); err != nil {
		return Signing{}, err
	}
	if err := h.confirm(ctx, p, all[i], cfg.SecondFactor); err != nil {
		return Signing{}, err
	}
	if err := h.approve(ctx, p, all[i], key); err != nil {
		return Signing{}, err
	}
	if p, err = h.proposal(ctx); err != nil {
		return Signing{}, err
	}
	if p == nil || !slices.Contains(p.Signed, all[i].name) {
		return Signing{}, hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodeSignatureInvalid, "the log holds what %s was to sign under another key", all[i].name),
			"propose again: hallmark policy set KEY=VALUE…")
	}
	done, err := h.settle(ctx, p)
	return p.signing(all[i].name, done), err
}

func (p *Proposal) signing(name string, inForce bool) Signing {
	return Signing{Administrator: name, Version: p.Version, Digest: p.Digest, InForce: inForce, Signed: p.Signed, Others: p.Others, Threshold: p.Threshold}
}

// approve logs what one administrator signs. A statement that was signed before
// a crash is found again and not signed twice.
func (h *Home) approve(ctx context.Context, p *Proposal, who administrator, key *sign.PolicyKey) error {
	signer := newSigner(h.Layout, h.id, h.keys, h.stores)
	signer.policyKey, signer.policyName = key, policySigner+who.name
	defer signer.close()
	if _, err := h.stores.blobs.Put(ctx, p.bytes); err != nil {
		return fmt.Errorf("keeping the policy: %w", err)
	}
	if p.Genesis {
		if err := h.startsLog(ctx, p); err != nil {
			return err
		}
		st, err := h.genesis(p.Digest, who.hint)
		if err != nil {
			return err
		}
		if _, err := signer.sign(ctx, sign.Policy, st, nil); err != nil {
			return fmt.Errorf("signing the genesis entry: %w", err)
		}
	}
	st, err := p.approval(who.hint)
	if err != nil {
		return err
	}
	if _, err := signer.sign(ctx, sign.Policy, st, nil); err != nil {
		return fmt.Errorf("signing the policy: %w", err)
	}
	return nil
}

// startsLog checks that log entry 0 is the genesis, by one of the
// administrators, or that the log is still empty.
func (h *Home) startsLog(ctx context.Context, p *Proposal) error {
	r, err := h.reader()
	if err != nil {
		return err
	}
	body, ok, err := r.First(ctx)
	if err != nil || !ok {
		return err
	}
	first, err := translog.StatementOf(body)
	if err != nil {
		return err
	}
	for _, a := range h.administrators() {
		d, err := statementDigest(h.firstOf(p), a.hint)
		if err != nil {
			return err
		}
		if d == first {
			return nil
		}
	}
	return hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodeGenesisMismatch, "log entry 0 is not the genesis that is to be signed"),
		"the first policy or the roots were changed after the first signature: restore them, or make a new home")
}

// settle puts the proposal in force if enough administrators signed it; who
// counts is the verifier's to say. The caller holds the policy lock.
func (h *Home) settle(ctx context.Context, p *Proposal) (bool, error) {
	if len(p.Signed) < p.Threshold {
		return false, nil
	}
	signed, err := h.approvals(ctx, p.approval)
	if err != nil {
		return false, err
	}
	if p.Genesis {
		if err := h.startsLog(ctx, p); err != nil {
			return false, err
		}
		first, err := h.approvals(ctx, h.firstOf(p))
		if err != nil {
			return false, err
		}
		bundles := joined(p.Signed, first)
		if named, err := h.verifier.Genesis(lines(bundles)); err != nil {
			return false, fmt.Errorf("verifying the genesis: %w", err)
		} else if named != p.Digest {
			return false, hallmark.Coded(hallmark.KindDenied, hallmark.CodeGenesisMismatch, "the genesis names policy %s, not %s", named, p.Digest)
		}
		if err := writeDurable(h.Layout.Genesis(), bundles, 0o644); err != nil {
			return false, fmt.Errorf("writing the genesis: %w", err)
		}
	}
	if err := h.adoptPolicy(p.bytes, joined(p.Signed, signed)); err != nil {
		return false, err
	}
	if err := os.Remove(h.Layout.Proposal()); err != nil {
		return false, hallmark.Errorf(hallmark.KindInternal, "removing the pending policy: %w", err)
	}
	return true, durable.SyncDir(filepath.Dir(h.Layout.Proposal()))
}

// settlePending puts a proposal in force that a crash left with enough
// signatures, before another takes its place. The caller holds the policy lock.
func (h *Home) settlePending(ctx context.Context) error {
	if h.id.Mode != verify.ModeThreshold {
		return nil
	}
	p, err := h.proposal(ctx)
	if hallmark.CodeOf(err) == hallmark.CodePolicyProposal || err == nil && p == nil {
		return nil // what can't be signed can be replaced
	}
	if err != nil {
		return err
	}
	if done, err := h.settle(ctx, p); err != nil || !done {
		return err
	}
	return h.readPolicy()
}

// joined is one bundle a line, in the order of names.
func joined(names []string, bundles map[string][]byte) []byte {
	var out []byte
	for _, n := range names {
		out = append(append(out, bundles[n]...), '\n')
	}
	return out
}
