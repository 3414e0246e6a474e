// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

// VSAExpectation is what a consumer expects of a verification summary.
type VSAExpectation struct {
	Artifact    hallmark.Digest // must be a subject
	ResourceURI string          // must be equal
	Levels      []string        // each must be among the verified levels
	Ref         string          // branch or tag, fully qualified, that the revision must be of; "" expects none
}

// VSA takes the seven steps of SLSA's verification of a summary. The first, the
// signature, and the fourth, that verifier.id belongs to the signing key, were
// taken when s was verified.
func (v *Verifier) VSA(s Statement, want VSAExpectation) error {
	if !s.valid { // 1
		return denied(hallmark.CodeSignatureInvalid, "verification summary that nobody verified")
	}
	if err := want.Artifact.Check(); err != nil {
		return denied(hallmark.CodeSubjectMismatch, "no artifact to compare the summary with: %w", err)
	}
	st := s.Statement()
	isSubject := func(d intoto.ResourceDescriptor) bool { return d.Digest["sha256"] == want.Artifact.Hex() }
	if !slices.ContainsFunc(st.Subject, isSubject) { // 2
		return denied(hallmark.CodeSubjectMismatch, "verification summary is not about artifact %s", want.Artifact.Short())
	}
	if s.predicate != intoto.PredicateVSA { // 3
		return denied(hallmark.CodePredicateType, "predicate type %.200s: want %s", s.predicate, intoto.PredicateVSA)
	}
	vsa, err := intoto.DecodePredicate[intoto.VSA](st)
	if err != nil {
		return refusal(err, hallmark.CodeEvidenceMalformed)
	}
	if !v.mayVerify(s.signer, vsa.Verifier.ID) { // 4
		return denied(hallmark.CodeSignerNotAuthorized, "signer %s may not speak for verifier %.200q", s.signer, vsa.Verifier.ID)
	}
	if want.ResourceURI == "" || vsa.ResourceURI != want.ResourceURI { // 5
		return denied(hallmark.CodeVSAResource, "verification summary is about %.200q: want %.200q", vsa.ResourceURI, want.ResourceURI)
	}
	if vsa.VerificationResult != "PASSED" { // 6
		return denied(hallmark.CodeVSANotPassed, "verification result %.40q: want PASSED", vsa.VerificationResult)
	}
	if want.Ref != "" && !slices.ContainsFunc(st.Subject, func(d intoto.ResourceDescriptor) bool { return ofRef(d, want.Ref) }) {
		return denied(hallmark.CodeSourceRef, "verification summary names no revision of %.200q", want.Ref)
	}
	if len(want.Levels) == 0 {
		return denied(hallmark.CodeVSALevel, "no level to compare the summary with")
	}
	for _, level := range want.Levels { // 7
		if !hasLevel(vsa.VerifiedLevels, level) {
			return denied(hallmark.CodeVSALevel, "verified levels %.200q: want %.60s", vsa.VerifiedLevels, level)
		}
	}
	return nil
}

// ofRef reports whether a subject is a revision that annotations.sourceRefs says
// is of ref (SLSA Source track, verifying a source VSA).
func ofRef(d intoto.ResourceDescriptor, ref string) bool {
	refs, ok := d.Annotations["sourceRefs"].([]any)
	return ok && d.Digest["gitCommit"] != "" && slices.Contains(refs, any(ref))
}

func (v *Verifier) mayVerify(name, id string) bool {
	return slices.ContainsFunc(v.roots.Signers, func(s Signer) bool {
		return s.Name == name && slices.Contains(s.VerifierIDs, id)
	})
}

// hasLevel reports whether a level, or a higher one of the same track, is among
// those verified. SLSA lists the highest level of a track only, and it implies
// the lower ones.
func hasLevel(verified []string, want string) bool {
	if slices.Contains(verified, want) {
		return true
	}
	track, n, ok := slsaLevel(want)
	return ok && slices.ContainsFunc(verified, func(s string) bool {
		t, m, ok := slsaLevel(s)
		return ok && t == track && m >= n
	})
}

func slsaLevel(s string) (track string, n int, ok bool) {
	track, digit, ok := strings.Cut(s, "_LEVEL_")
	if !ok || !slices.Contains([]string{"SLSA_BUILD", "SLSA_SOURCE"}, track) || len(digit) != 1 || digit[0] < '0' || digit[0] > '4' {
		return "", 0, false
	}
	return track, int(digit[0] - '0'), true
}
