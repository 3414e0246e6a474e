// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

// RefTransition states what was asked of a reference and what the gate answered.
func RefTransition(t intoto.RefTransition) (intoto.Statement, error) {
	fill(&t.Commits)
	fill(&t.Checks)
	fill(&t.Approvals)
	fill(&t.Controls)
	fill(&t.Obligations)
	fill(&t.Reasons)
	if t.Effect != hallmark.Allow {
		return statement(intoto.PredicateTransition, []intoto.ResourceDescriptor{intoto.SubjectOfRefusal(t.Repository, t.Ref)}, t)
	}
	subjects := []intoto.ResourceDescriptor{intoto.SubjectOfRef(t.Repository, t.Ref)}
	if strings.Trim(t.New, "0") != "" {
		subjects = append(subjects, intoto.ResourceDescriptor{URI: "git+" + t.Repository, Digest: map[string]string{"gitCommit": t.New}})
	}
	return statement(intoto.PredicateTransition, subjects, t)
}

// AccessRecord states one use, change or refusal of access.
func AccessRecord(r intoto.AccessRecord) (intoto.Statement, error) {
	return statement(intoto.PredicateAccess, []intoto.ResourceDescriptor{
		{Name: r.Resource, Digest: sha256Of(hallmark.DigestOf([]byte(r.Resource)))},
	}, r)
}

// ChangeReview states what somebody said of a change. Its subjects are the change
// and the revision.
func ChangeReview(r intoto.ChangeReview) (intoto.Statement, error) {
	return statement(intoto.PredicateReview, []intoto.ResourceDescriptor{
		SubjectOfChange(r.Change),
		{URI: "git+" + r.Repository, Digest: map[string]string{"gitCommit": r.Revision}},
	}, r)
}

// SourceSummary is what the source gate says of a revision that a reference shows.
type SourceSummary struct {
	Repository, Ref, Commit string
	VerifierID, Version     string
	Time                    time.Time
	Policy                  hallmark.Digest
	Provenance              hallmark.Digest // of the transition's bundle
	Levels                  []string        // SLSA_SOURCE_LEVEL_n first, then ORG_SOURCE_…
}

// SourceVSA states a summary as SLSA v1.2 asks for a revision (Source track,
// "Communicating source levels").
func SourceVSA(s SourceSummary) (intoto.Statement, error) {
	for i, l := range s.Levels {
		level := strings.HasPrefix(l, "SLSA_SOURCE_LEVEL_")
		if level != (i == 0) || !level && !strings.HasPrefix(l, "ORG_SOURCE_") {
			return intoto.Statement{}, hallmark.Errorf(hallmark.KindInternal, "source summary with level %.80q", l)
		}
	}
	return statement(intoto.PredicateVSA, []intoto.ResourceDescriptor{{
		URI: "git+" + s.Repository, Digest: map[string]string{"gitCommit": s.Commit}, Annotations: map[string]any{"sourceRefs": []string{s.Ref}},
	}}, intoto.VSA{
		Verifier:     intoto.VSAVerifier{ID: s.VerifierID, Version: map[string]string{"hallmark": s.Version}},
		TimeVerified: s.Time, ResourceURI: "git+" + s.Repository, Policy: intoto.ResourceDescriptor{URI: "hallmark:policy", Digest: sha256Of(s.Policy)},
		InputAttestations:  []intoto.ResourceDescriptor{{URI: "hallmark:bundle", Digest: sha256Of(s.Provenance)}},
		VerificationResult: "PASSED", VerifiedLevels: s.Levels, SLSAVersion: "1.2",
	})
}

// SubjectOfChange names a change as a subject.
func SubjectOfChange(id string) intoto.ResourceDescriptor {
	return intoto.ResourceDescriptor{Name: id, Digest: sha256Of(hallmark.DigestOf([]byte("change\x00" + id)))}
}

func fill[T any](l *[]T) {
	if *l == nil {
		*l = []T{}
	}
}
