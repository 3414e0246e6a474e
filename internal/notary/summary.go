// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package notary

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// maxClockDifference is how far the time of a summary may lie from the notary's
// own: replay allows as much between a verdict and its trusted time.
const maxClockDifference = 5 * time.Minute

func differs(format string, args ...any) error {
	return denied(hallmark.CodeSignerSummary, format, args...)
}

// summary judges a verification summary, whatever it says: a false FAILED would
// stop what is good.
func (s *session) summary(ctx context.Context, st intoto.Statement, verdict []byte, rules Rules) error {
	v, err := intoto.DecodePredicate[intoto.VSA](st)
	if err != nil {
		return err
	}
	now := s.n.cfg.Clock()
	switch {
	case v.Verifier.ID != s.n.cfg.VerifierID:
		return differs("the verifier is %.200q, and this one is %s", v.Verifier.ID, s.n.cfg.VerifierID)
	case v.Policy.Digest["sha256"] != rules.Policy.Digest().Hex():
		return hallmark.WithHint(denied(hallmark.CodeSignerPolicy, "the summary is under policy %s, in force is %s", v.Policy.Digest["sha256"], rules.Policy.Digest()), "decide again under the policy in force")
	case v.TimeVerified.Sub(now).Abs() > maxClockDifference:
		return differs("the summary is of %s, and it is %s", v.TimeVerified.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	var inputs []verify.Statement
	for _, in := range v.InputAttestations {
		b, ok := s.bundles[hallmark.Digest("sha256:"+in.Digest["sha256"])]
		if !ok {
			return denied(hallmark.CodeEvidenceMissing, "the summary rests on bundle sha256:%s, which was not shown", in.Digest["sha256"])
		}
		inputs = append(inputs, b)
	}
	if v.Verdict == nil {
		return s.sourceSummary(st, v, inputs, rules)
	}
	return s.decided(ctx, st, v, inputs, verdict, rules)
}

// decided decides again over the inputs, and wants the same bytes.
func (s *session) decided(ctx context.Context, st intoto.Statement, v intoto.VSA, inputs []verify.Statement, verdict []byte, rules Rules) error {
	if hallmark.DigestOf(verdict) != v.Verdict.Digest {
		return denied(hallmark.CodeEvidenceMissing, "the summary rests on verdict %s, which was not shown", v.Verdict.Digest)
	}
	recorded, err := policy.ParseVerdict(verdict)
	if err != nil {
		return err
	}
	rev, subjects := policy.ContentOf(inputs)
	computed, err := rules.Engine.Decide(ctx, policy.Request{
		Statements: inputs, Subjects: subjects, Revision: rev, ResourceURI: v.ResourceURI, Clock: v.TimeVerified,
		Roots: rules.Verifier.Roots(), RootsDigest: rules.Verifier.RootsDigest(),
	})
	if err != nil {
		return fmt.Errorf("deciding again: %w", err)
	}
	again, err := computed.Encode()
	if err != nil {
		return err
	}
	if !bytes.Equal(again, verdict) {
		diffs, err := policy.Compare(recorded, computed)
		if err != nil || len(diffs) == 0 {
			return differs("the verdict is not what the policy says of its inputs")
		}
		return differs("the verdict is not what the policy says of its inputs: %.500s", diffs[0])
	}
	result, levels := "FAILED", []string{}
	if computed.Decision.Allowed() {
		result, levels = "PASSED", computed.Levels
	}
	if v.VerificationResult != result || !slices.Equal(v.VerifiedLevels, levels) {
		return differs("the summary says %.20s %.200q, the verdict %s %q", v.VerificationResult, v.VerifiedLevels, result, levels)
	}
	if uri := "git+" + rev.Repository; v.ResourceURI != uri && v.ResourceURI != rev.Repository {
		return differs("the summary is of %.200q, the evidence of %s", v.ResourceURI, uri)
	}
	return ofContent(st, rev, subjects)
}

// ofContent wants the artifacts as subjects, and the revision, and no other.
func ofContent(st intoto.Statement, rev hallmark.Revision, artifacts []hallmark.Artifact) error {
	// The whole of each subject: a digest of another algorithm, a reference or a name
	// beside those that were judged would be one that nobody judged.
	var want []intoto.ResourceDescriptor
	for _, a := range artifacts {
		want = append(want, intoto.SubjectOf(a))
	}
	of := intoto.SubjectOfRevision(rev)
	if rev.Ref != "" {
		of.Annotations = map[string]any{"sourceRefs": []string{rev.Ref}}
	}
	want = append(want, of)
	for _, s := range st.Subject {
		i := slices.IndexFunc(want, func(w intoto.ResourceDescriptor) bool { return equal(w, s) })
		if i < 0 {
			return differs("the evidence is not about the subject %.200q as it stands", s.Name)
		}
		want = slices.Delete(want, i, i+1)
	}
	if len(want) > 0 {
		return differs("the summary leaves out what the evidence is about")
	}
	return nil
}

// sourceSummary judges the summary of a revision: it rests on one transition that
// the gate let through, and says of it what its controls come to.
func (s *session) sourceSummary(st intoto.Statement, v intoto.VSA, inputs []verify.Statement, rules Rules) error {
	if len(inputs) != 1 || inputs[0].PredicateType() != intoto.PredicateTransition || inputs[0].Signer() != "gate" {
		return denied(hallmark.CodeEvidenceMissing, "a summary without a verdict rests on one transition of a reference")
	}
	t, err := intoto.DecodePredicate[intoto.RefTransition](inputs[0].Statement())
	if err != nil {
		return err
	}
	levels, err := s.n.cfg.Levels(rules.Verifier.Roots().Mode, rules.Document, t)
	if err != nil {
		return err
	}
	refs := []any{t.Ref}
	switch {
	case t.Effect != hallmark.Allow || t.Void || strings.Trim(t.New, "0") == "":
		return differs("the transition let nothing through")
	case t.Policy != rules.Policy.Digest():
		return denied(hallmark.CodeSignerPolicy, "the transition is under policy %s, in force is %s", t.Policy, rules.Policy.Digest())
	case v.VerificationResult != "PASSED" || !slices.Equal(v.VerifiedLevels, levels):
		return differs("the summary says %.20s %.200q, the controls come to %q", v.VerificationResult, v.VerifiedLevels, levels)
	case v.ResourceURI != "git+"+t.Repository:
		return differs("the summary is of %.200q, the transition of %s", v.ResourceURI, t.Repository)
	case len(st.Subject) != 1 || st.Subject[0].URI != v.ResourceURI || !equal(st.Subject[0].Digest, map[string]string{"gitCommit": t.New}) || !equal(st.Subject[0].Annotations["sourceRefs"], refs):
		return differs("the summary is not of the revision that the transition shows")
	}
	return nil
}
