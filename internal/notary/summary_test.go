// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package notary

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// evidence is everything about a build of the server, as the notary signed it.
func (l *lab) evidence(c *Conn) [][]byte {
	l.t.Helper()
	b := l.facts()
	list := l.observed(b)
	var out [][]byte
	signed := func(st intoto.Statement) attest.Observation {
		l.t.Helper()
		raw, err := c.Sign(l.t.Context(), "observer", marshal(l.t, st), nil, nil)
		must(l.t, err)
		out = append(out, raw)
		must(l.t, c.Present(l.t.Context(), raw))
		return attest.Observation{Statement: hallmark.DigestOf(intoto.PAE(intoto.PayloadType, marshal(l.t, st))), PredicateType: st.PredicateType}
	}
	var over []attest.Observation
	for _, k := range kinds() {
		over = append(over, signed(list[k]))
	}
	for _, check := range []string{"secrets", "sast", "sbom", "sca"} {
		rec := b.Record
		rec.Check = check
		rec.Data = []hallmark.DataSource{{Name: "osv:Go", Digest: hallmark.DigestOf([]byte("osv")), Newest: l.started.Add(-time.Hour), Records: 1}}
		st, err := attest.TestResult(rec, nil, nil, nil)
		if check == "sca" {
			st, err = attest.Vulns(rec, nil)
		}
		must(l.t, err)
		over = append(over, signed(st))
	}
	for _, p := range []string{intoto.PredicateSPDX, intoto.PredicateCycloneDX} {
		st, err := attest.Inventory(p, attest.Products(b), []byte(`{"bomFormat":"x"}`))
		must(l.t, err)
		over = append(over, signed(st))
	}
	payload, permit := l.provenance(b, over)
	raw, err := c.Sign(l.t.Context(), "server", payload, permit, nil)
	must(l.t, err)
	return append(out, raw)
}

// decide is the verdict over evidence, and the summary of it.
func (l *lab) decide(evidence [][]byte) (policy.Verdict, []byte, attest.Summary) {
	l.t.Helper()
	var inputs []verify.Statement
	var digests []hallmark.Digest
	for _, e := range evidence {
		v, err := l.rules.Verifier.Verify(e)
		must(l.t, err)
		inputs, digests = append(inputs, v), append(digests, v.BundleDigest())
	}
	rev, subjects := policy.ContentOf(inputs)
	v, err := l.rules.Engine.Decide(l.t.Context(), policy.Request{Statements: inputs, Subjects: subjects, Revision: rev, ResourceURI: "git+" + repository,
		Clock: time.Now(), Roots: l.rules.Verifier.Roots(), RootsDigest: l.rules.Verifier.RootsDigest()})
	must(l.t, err)
	raw, err := v.Encode()
	must(l.t, err)
	own := intoto.SubjectOfRevision(rev)
	if rev.Ref != "" {
		own.Annotations = map[string]any{"sourceRefs": []string{rev.Ref}}
	}
	return v, raw, attest.Summary{Subjects: []intoto.ResourceDescriptor{intoto.SubjectOf(l.facts().Artifacts[0]), own}, VerifierID: verifierID, Version: "test", Time: v.Clock,
		ResourceURI: "git+" + repository, Policy: l.rules.Policy.Digest(), Inputs: digests, Allowed: v.Decision.Allowed(), Levels: v.Levels, Verdict: hallmark.DigestOf(raw)}
}

// TestSummary: a summary says what the notary decides itself over what it lists.
func TestSummary(t *testing.T) {
	l := newLab(t, os.Geteuid())
	c := l.conn()
	evidence := l.evidence(c)
	must(t, c.Present(t.Context(), evidence[len(evidence)-1]))
	v, verdict, good := l.decide(evidence)
	if !v.Decision.Allowed() || !slices.Equal(v.Levels, []string{"SLSA_BUILD_LEVEL_3"}) {
		t.Fatalf("%s", verdict)
	}
	ask := func(s attest.Summary, verdict []byte) error {
		t.Helper()
		st, err := attest.VSA(s)
		must(t, err)
		_, err = c.Sign(t.Context(), "release", marshal(t, st), nil, verdict)
		return err
	}
	before := l.log.Size()
	for _, tc := range []struct {
		name string
		want hallmark.Code
		edit func(*attest.Summary) []byte // the verdict, where it is another
	}{
		{"FAILED instead", hallmark.CodeSignerSummary, func(s *attest.Summary) []byte { s.Allowed = false; return nil }},
		{"a higher level", hallmark.CodeSignerSummary, func(s *attest.Summary) []byte { s.Levels = []string{"SLSA_BUILD_LEVEL_4"}; return nil }},
		{"a level more", hallmark.CodeSignerSummary, func(s *attest.Summary) []byte { s.Levels = append(s.Levels, "X"); return nil }},
		{"another artifact", hallmark.CodeSignerSummary, func(s *attest.Summary) []byte {
			s.Subjects = append(slices.Clone(s.Subjects), intoto.SubjectOf(hallmark.Artifact{Name: "evil", Digest: hallmark.DigestOf([]byte("evil"))}))
			return nil
		}},
		{"a digest more", hallmark.CodeSignerSummary, func(s *attest.Summary) []byte {
			s.Subjects = slices.Clone(s.Subjects)
			s.Subjects[0].Digest = map[string]string{"sha256": s.Subjects[0].Digest["sha256"], "sha512": strings.Repeat("ab", 64)}
			return nil
		}},
		{"another reference", hallmark.CodeSignerSummary, func(s *attest.Summary) []byte {
			s.Subjects = slices.Clone(s.Subjects)
			s.Subjects[1].Annotations = map[string]any{"sourceRefs": []string{"refs/heads/release"}}
			return nil
		}},
		{"without the artifact", hallmark.CodeSignerSummary, func(s *attest.Summary) []byte { s.Subjects = s.Subjects[1:]; return nil }},
		{"without the revision", hallmark.CodeSignerSummary, func(s *attest.Summary) []byte { s.Subjects = s.Subjects[:1]; return nil }},
		{"another verifier", hallmark.CodeSignerSummary, func(s *attest.Summary) []byte { s.VerifierID = "https://evil.test"; return nil }},
		{"another policy", hallmark.CodeSignerPolicy, func(s *attest.Summary) []byte { s.Policy = hallmark.DigestOf([]byte("evil")); return nil }},
		{"another resource", hallmark.CodeSignerSummary, func(s *attest.Summary) []byte { s.ResourceURI = "git+https://evil.test/x"; return nil }},
		{"an old time", hallmark.CodeSignerSummary, func(s *attest.Summary) []byte { s.Time = s.Time.Add(-time.Hour); return nil }},
		{"an input less", hallmark.CodeSignerSummary, func(s *attest.Summary) []byte { s.Inputs = s.Inputs[1:]; return nil }},
		{"an input that nobody showed", hallmark.CodeEvidenceMissing, func(s *attest.Summary) []byte {
			s.Inputs = append(slices.Clone(s.Inputs), hallmark.DigestOf([]byte("x")))
			return nil
		}},
		{"no verdict", hallmark.CodeEvidenceMissing, func(s *attest.Summary) []byte { return []byte{} }},
		{"a verdict of one's own", hallmark.CodeSignerSummary, func(s *attest.Summary) []byte {
			// The evidence of a build that was never scanned, and a verdict that allows it.
			s.Inputs = s.Inputs[:6]
			own := v
			own.Inputs = own.Inputs[:6]
			raw, err := own.Encode()
			must(t, err)
			s.Verdict = hallmark.DigestOf(raw)
			return raw
		}},
	} {
		s := good
		raw := tc.edit(&s)
		if raw == nil {
			raw = verdict
		}
		wantCode(t, tc.name, ask(s, raw), tc.want)
	}
	if l.log.Size() != before {
		t.Error("something was logged by what was refused")
	}
	must(t, ask(good, verdict))
	// Of a denial the truth is told too, and nothing else.
	_, denial, bad := l.decide(evidence[:6])
	if bad.Allowed {
		t.Fatal("a build without scans is allowed")
	}
	must(t, ask(bad, denial))
	bad.Allowed, bad.Levels = true, []string{"SLSA_BUILD_LEVEL_3"}
	wantCode(t, "PASSED instead", ask(bad, denial), hallmark.CodeSignerSummary)
}

// TestSourceSummary: the summary of a revision rests on one transition that the
// gate let through.
func TestSourceSummary(t *testing.T) {
	l := newLab(t, os.Geteuid())
	c := l.conn()
	transition := func(edit func(*intoto.RefTransition)) hallmark.Digest {
		t.Helper()
		tr := intoto.RefTransition{Repository: repository, Ref: "refs/heads/main", Old: strings.Repeat("0", 40), New: l.revision.Commit, Effect: hallmark.Allow,
			On: time.Now(), Policy: l.rules.Policy.Digest(), Actor: hallmark.Principal{Name: "bob@example.org", Method: "ssh"}}
		edit(&tr)
		st, err := attest.RefTransition(tr)
		must(t, err)
		raw, err := c.Sign(t.Context(), "gate", marshal(t, st), nil, nil)
		must(t, err)
		must(t, c.Present(t.Context(), raw))
		return hallmark.DigestOf(raw)
	}
	good := attest.SourceSummary{Repository: repository, Ref: "refs/heads/main", Commit: l.revision.Commit, VerifierID: verifierID, Version: "test", Time: time.Now(),
		Policy: l.rules.Policy.Digest(), Provenance: transition(func(*intoto.RefTransition) {}), Levels: []string{"SLSA_SOURCE_LEVEL_3"}}
	ask := func(s attest.SourceSummary) error {
		t.Helper()
		st, err := attest.SourceVSA(s)
		must(t, err)
		_, err = c.Sign(t.Context(), "release", marshal(t, st), nil, nil)
		return err
	}
	for _, tc := range []struct {
		name string
		want hallmark.Code
		edit func(*attest.SourceSummary)
	}{
		{"a higher level", hallmark.CodeSignerSummary, func(s *attest.SourceSummary) { s.Levels = []string{"SLSA_SOURCE_LEVEL_4"} }},
		{"a property more", hallmark.CodeSignerSummary, func(s *attest.SourceSummary) { s.Levels = append(slices.Clone(s.Levels), "ORG_SOURCE_X") }},
		{"another commit", hallmark.CodeSignerSummary, func(s *attest.SourceSummary) { s.Commit = strings.Repeat("c", 40) }},
		{"another reference", hallmark.CodeSignerSummary, func(s *attest.SourceSummary) { s.Ref = "refs/heads/x" }},
		{"another repository", hallmark.CodeSignerSummary, func(s *attest.SourceSummary) { s.Repository = "https://evil.test/x" }},
		{"another policy", hallmark.CodeSignerPolicy, func(s *attest.SourceSummary) { s.Policy = hallmark.DigestOf([]byte("x")) }},
		{"no transition", hallmark.CodeEvidenceMissing, func(s *attest.SourceSummary) { s.Provenance = hallmark.DigestOf([]byte("x")) }},
		{"a refusal", hallmark.CodeSignerSummary, func(s *attest.SourceSummary) {
			s.Provenance = transition(func(r *intoto.RefTransition) { r.Effect = hallmark.Deny })
		}},
		{"a deletion", hallmark.CodeSignerSummary, func(s *attest.SourceSummary) {
			s.Provenance = transition(func(r *intoto.RefTransition) { r.Old, r.New = r.New, r.Old })
		}},
		{"under the policy before", hallmark.CodeSignerPolicy, func(s *attest.SourceSummary) {
			s.Provenance = transition(func(r *intoto.RefTransition) { r.Policy = hallmark.DigestOf([]byte("x")) })
		}},
		{"an observation", hallmark.CodeEvidenceMissing, func(s *attest.SourceSummary) {
			raw, err := c.Sign(t.Context(), "observer", marshal(t, l.observed(l.facts())[kindTests]), nil, nil)
			must(t, err)
			must(t, c.Present(t.Context(), raw))
			s.Provenance = hallmark.DigestOf(raw)
		}},
	} {
		s := good
		tc.edit(&s)
		wantCode(t, tc.name, ask(s), tc.want)
	}
	must(t, ask(good))
}
