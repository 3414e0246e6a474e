// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"slices"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// Controls that the source gate enforces; docs/design/gate.md says what each
// means.
const (
	controlSigned    = "signed-commits"
	controlSecrets   = "push-secrets-scan"
	controlDescend   = "descendants-only"
	controlImmutable = "immutable-tags"
	controlReviewed  = "reviewed"
)

// enforced are the controls that a rule enforces on a reference. Review is one of
// them only where nothing lands without.
func enforced(rule access.RefRule) []string {
	out := []string{controlSigned, controlSecrets, controlImmutable}
	if rule.History == access.Descend {
		out = append(out, controlDescend)
	}
	if rule.Needed() > 0 {
		out = append(out, controlReviewed)
	}
	return out
}

// controls are those in force at a transition, each with the revision since which
// it held without a lapse (SLSA v1.2 Source track, continuity). A control begins
// anew when the transition before did not have it, or any policy in between.
func (s *Server) controls(ctx context.Context, name string, rule access.RefRule, t intoto.RefTransition, reviewed bool) ([]intoto.RefControl, error) {
	var before []intoto.RefControl
	lapsed := map[string]bool{}
	if t.Previous != "" {
		l, ok, err := s.home.loggedAs(ctx, t.Previous)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeEvidenceMissing, "the transition before, %s, is not in the log", t.Previous)
		}
		if err := s.home.evidence(ctx, l); err != nil {
			return nil, err
		}
		last, err := intoto.DecodePredicate[intoto.RefTransition](l.statement)
		if err != nil {
			return nil, err
		}
		before = last.Controls
		if lapsed, err = s.lapses(ctx, name, t.Ref, last.Policy, t.Policy, before); err != nil {
			return nil, err
		}
	}
	var out []intoto.RefControl
	for _, c := range enforced(rule) {
		if c == controlReviewed && !reviewed {
			continue
		}
		now := intoto.RefControl{Name: c, Start: t.New, Since: t.On}
		if i := slices.IndexFunc(before, func(b intoto.RefControl) bool { return b.Name == c }); i >= 0 && !lapsed[c] {
			now = before[i]
		}
		out = append(out, now)
	}
	return out, nil
}

// maxPolicies bounds how many policies lie between two transitions.
const maxPolicies = 10000

// lapses names the controls that some policy between two did not enforce on a
// reference: whoever weakens a rule and restores it begins anew.
func (s *Server) lapses(ctx context.Context, name, ref string, from, to hallmark.Digest, before []intoto.RefControl) (map[string]bool, error) {
	out := map[string]bool{}
	for range maxPolicies {
		if to == from {
			return out, nil
		}
		b, err := s.home.stores.blobs.Get(ctx, to)
		if err != nil {
			return nil, fmt.Errorf("reading policy %s: %w", to, err)
		}
		doc, err := policy.ParseDocument(b)
		if err != nil {
			return nil, fmt.Errorf("reading policy %s: %w", to, err)
		}
		book, err := access.NewBook(doc.Access)
		if err != nil {
			return nil, fmt.Errorf("reading policy %s: %w", to, err)
		}
		rule, ok := book.Protection(name, ref)
		for _, c := range before {
			if ok && !slices.Contains(enforced(rule), c.Name) { // without a rule nothing could move
				out[c.Name] = true
			}
		}
		if doc.Previous == "" {
			break
		}
		to = doc.Previous
	}
	for _, c := range before { // no chain leads from one to the other: nothing is known to have held
		out[c.Name] = true
	}
	return out, nil
}

// levels are what the controls of a transition come to. Where one administrator
// alone names persons and makes rules, nothing comes to two persons.
func levels(mode string, rule access.RefRule, controls []intoto.RefControl) []string {
	has := func(name string) bool {
		return slices.ContainsFunc(controls, func(c intoto.RefControl) bool { return c.Name == name })
	}
	level := "SLSA_SOURCE_LEVEL_1"
	switch {
	case mode == verify.ModeThreshold && has(controlReviewed) && has(controlDescend) && has(controlSigned):
		level = "SLSA_SOURCE_LEVEL_4"
	case has(controlDescend) && has(controlSigned):
		level = "SLSA_SOURCE_LEVEL_3"
	}
	return append([]string{level}, rule.Properties...)
}

// transit signs a transition that is allowed and, of the revision that it shows,
// the summary. It returns the transition's statement once that is logged.
func (s *Server) transit(ctx context.Context, t intoto.RefTransition, rule access.RefRule) (hallmark.Digest, error) {
	st, err := attest.RefTransition(t)
	if err != nil {
		return "", err
	}
	b, err := s.signer.sign(ctx, sign.Gate, st, nil)
	if err != nil || t.New == zeros {
		return b.Statement, err
	}
	vsa, err := attest.SourceVSA(attest.SourceSummary{
		Repository: t.Repository, Ref: t.Ref, Commit: t.New, VerifierID: s.home.id.verifierID(), Version: version(), Time: t.On, Policy: t.Policy,
		Provenance: b.Digest, Levels: levels(s.home.verifier.Roots().Mode, rule, t.Controls),
	})
	if err != nil {
		return b.Statement, err
	}
	_, err = s.signer.sign(ctx, sign.Release, vsa, nil)
	return b.Statement, err
}
