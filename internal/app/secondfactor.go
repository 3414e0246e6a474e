// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/identity"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// A policy key and its passphrase are one factor. The other one is a FIDO key that
// an administrator touches: its signature (sk-ssh-ed25519, sk-ecdsa) over what is
// to be put in force says that it was touched, can be made on a machine without
// network, and is checked from the evidence by anyone.

const (
	confirmAction    = "policy.confirm"
	confirmNamespace = "hallmark-policy"
	secondFactor     = "access.secondFactor"
	factorRequired   = "required"
)

// confirmation is what an administrator's FIDO key signs: one version of the policy
// of one home, by one administrator.
func confirmation(origin string, version int, digest, previous hallmark.Digest, administrator string) []byte {
	return []byte(strings.Join([]string{"hallmark policy", origin, strconv.Itoa(version), string(digest), string(previous), administrator}, "\n") + "\n")
}

// confirmed are the administrators who confirmed a policy by a FIDO key that the
// policy before it names for them.
func (h *Home) confirmed(ctx context.Context, before policy.Document, version int, digest, previous hallmark.Digest) (map[string]bool, error) {
	out := map[string]bool{}
	resource := "policy:" + string(digest)
	rows, err := h.stores.index.Statements(ctx, string(hallmark.DigestOf([]byte(resource))))
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		if row.Predicate != intoto.PredicateAccess {
			continue
		}
		r, err := readGateStatement[intoto.AccessRecord](ctx, h, row.Bundle)
		if err != nil {
			return nil, err
		}
		if r.Action != confirmAction || r.Resource != resource || r.Effect != hallmark.Allow {
			continue
		}
		print, err := identity.TouchedBy([]byte(r.Details["signature"]), confirmation(h.id.origin(), version, digest, previous, r.Actor.Name), confirmNamespace)
		if err == nil && before.Access.FactorOf(print) == r.Actor.Name {
			out[r.Actor.Name] = true
		}
	}
	return out, nil
}

// checkFactors wants every policy since the first to be confirmed, where the one
// before it required that: who has the policy keys alone can't do without for one
// version and then forbid it.
func (h *Home) checkFactors(ctx context.Context) error {
	if h.id.Mode != verify.ModeThreshold {
		return nil
	}
	doc, digest := h.document, h.policy.Digest()
	var signed map[hallmark.Digest]*signedPolicy
	if doc.Version > 1 && h.own == "" {
		var err error
		if signed, err = h.signedPolicies(ctx); err != nil {
			return err
		}
	}
	for doc.Version > 1 {
		b, err := h.earlierPolicy(ctx, doc.Previous)
		if err != nil {
			return hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodePolicySecondFactor, "policy version %d is not kept, so whether version %d needed a second factor can't be told: %w", doc.Version-1, doc.Version, err),
				"restore the blobs of the home from a backup")
		}
		before, err := policy.ParseDocument(b)
		if err != nil {
			return fmt.Errorf("reading policy version %d: %w", doc.Version-1, err)
		}
		// What a version names as the one before was in force once: of its number, with
		// the signatures of the threshold in the log, and the only one.
		if before.Version != doc.Version-1 || h.own == "" && signed[doc.Previous] == nil {
			return hallmark.Coded(hallmark.KindDenied, hallmark.CodePolicySecondFactor, "policy version %d names %s as the one before, which is version %d and was never in force", doc.Version, doc.Previous, before.Version)
		}
		for other, p := range signed {
			if p.version == before.Version && other != doc.Previous {
				return hallmark.Coded(hallmark.KindDenied, hallmark.CodePolicySecondFactor, "two policies of version %d are signed: %s and %s", before.Version, other, doc.Previous)
			}
		}
		if before.Value(secondFactor) == factorRequired {
			by, err := h.confirmed(ctx, before, doc.Version, digest, doc.Previous)
			if err != nil {
				return err
			}
			if need := h.verifier.Roots().Policy.Threshold; len(by) < need {
				return hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodePolicySecondFactor, "policy version %d was confirmed by the second factor of %d administrators, and %d are needed", doc.Version, len(by), need),
					"an index that was lost is made again by hallmark log fsck --rebuild; else find out who signed it")
			}
		}
		doc, digest = before, doc.Previous
	}
	return nil
}

// earlierPolicy reads the document of an earlier version. A signer, which sees no
// blobs, reads the copy beside the policy in force: its name is its digest, which the
// signed version after it names.
func (h *Home) earlierPolicy(ctx context.Context, d hallmark.Digest) ([]byte, error) {
	if h.own == "" {
		return h.stores.blobs.Get(ctx, d)
	}
	if err := d.Check(); err != nil {
		return nil, err
	}
	b, err := readLimited(h.KeptPolicy(d), maxPolicyFile)
	if err == nil && hallmark.DigestOf(b) != d {
		err = hallmark.Coded(hallmark.KindInvalid, hallmark.CodeEvidenceMalformed, "%s holds something else", h.KeptPolicy(d))
	}
	return b, err
}

// confirm logs an administrator's confirmation of a proposal before they sign it,
// where the policy in force requires one.
func (h *Home) confirm(ctx context.Context, p *Proposal, who administrator, signature []byte) error {
	if !h.policy.Valid() || h.document.Value(secondFactor) != factorRequired {
		return nil
	}
	by, err := h.confirmed(ctx, h.document, p.Version, p.Digest, p.Previous)
	if err != nil || by[who.name] {
		return err
	}
	refused := func(format string, args ...any) error {
		return hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodePolicySecondFactor, format, args...),
			"hallmark policy confirm --as "+who.name+" --out FILE; ssh-keygen -Y sign -n "+confirmNamespace+" -f SECURITY-KEY FILE; hallmark policy sign --key KEY --second-factor FILE.sig")
	}
	if len(signature) == 0 {
		return refused("the policy in force requires a second factor of %s", who.name)
	}
	print, err := identity.TouchedBy(signature, confirmation(h.id.origin(), p.Version, p.Digest, p.Previous, who.name), confirmNamespace)
	if err != nil {
		return refused("the second factor: %s", err)
	}
	if owner := h.document.Access.FactorOf(print); owner != who.name {
		return refused("the second factor: %s is no security key that the policy in force names for %s", print, who.name)
	}
	st, err := attest.AccessRecord(intoto.AccessRecord{
		Action: confirmAction, Actor: hallmark.Principal{Name: who.name, Key: print, Method: "fido"}, Resource: "policy:" + string(p.Digest), Effect: hallmark.Allow, On: now(), Policy: h.policy.Digest(),
		Details: map[string]string{"signature": string(signature), "version": strconv.Itoa(p.Version)},
	})
	if err != nil {
		return err
	}
	signer := newSigner(h.Layout, h.id, h.keys, h.stores)
	defer signer.close()
	_, err = signer.sign(ctx, sign.Gate, st, nil)
	return err
}

// factorsFit wants a policy that requires second factors to name enough of them:
// else nobody could ever change it again.
func (h *Home) factorsFit(next policy.Document) error {
	if next.Value(secondFactor) != factorRequired {
		return nil
	}
	if h.id.Mode != verify.ModeThreshold {
		return hallmark.WithHint(hallmark.Errorf(hallmark.KindUsage, "parameter %s: the home has a single operator, whose policy is signed as it is made; a second factor is for several administrators", secondFactor),
			"make a home of several: hallmark init --administrator NAME=FILE… --threshold N")
	}
	n := 0
	for _, a := range h.administrators() {
		if next.Access != nil && slices.ContainsFunc(next.Access.SecondFactors, func(f access.SecondFactor) bool { return f.Administrator == a.name }) {
			n++
		}
	}
	if need := h.verifier.Roots().Policy.Threshold; n < need {
		return hallmark.WithHint(hallmark.Errorf(hallmark.KindUsage, "parameter %s: %d administrators have a security key, %d must be able to sign", secondFactor, n, need), "hallmark access second-factor NAME --key FILE")
	}
	return nil
}

// PolicyConfirmation is what an administrator's security key has to sign of the
// pending policy.
func PolicyConfirmation(ctx context.Context, home, administrator string) ([]byte, error) {
	h, err := openProposal(home)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	p, err := h.proposal(ctx)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return nil, nothingPending()
	}
	for _, a := range h.administrators() {
		if a.name == administrator {
			return confirmation(h.id.origin(), p.Version, p.Digest, p.Previous, administrator), nil
		}
	}
	return nil, hallmark.Errorf(hallmark.KindUsage, "the roots name no administrator %.80q", administrator)
}

// FactorChange is what is said of one administrator's security keys.
type FactorChange struct {
	Administrator string
	KeyFiles      []string
	Remove        bool
}

// Apply replaces the security keys of an administrator.
func (c FactorChange) Apply(s *access.Section) error {
	s.SecondFactors = slices.DeleteFunc(s.SecondFactors, func(f access.SecondFactor) bool { return f.Administrator == c.Administrator })
	if !c.Remove && len(c.KeyFiles) == 0 {
		return hallmark.Errorf(hallmark.KindUsage, "want --key FILE or --remove")
	}
	for _, file := range c.KeyFiles {
		b, err := readLimited(file, 1<<16)
		if err != nil {
			return hallmark.Errorf(hallmark.KindInvalid, "reading key: %w", err)
		}
		key, _, _, rest, err := ssh.ParseAuthorizedKey(b)
		if err != nil || len(bytes.TrimSpace(rest)) > 0 {
			return hallmark.Errorf(hallmark.KindInvalid, "%s: want one OpenSSH public key", file)
		}
		s.SecondFactors = append(s.SecondFactors, access.SecondFactor{Administrator: c.Administrator, Key: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))})
	}
	return nil
}
