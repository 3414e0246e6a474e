// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/sqlstore"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// RevisionEvidence is what the source gate and the builds of a server say of one
// revision: source provenance (the transitions that made it reachable), source
// verification summaries, reviews, and whatever else names the commit.
type RevisionEvidence struct {
	Repository string            `json:"repository"` // locator
	Revision   string            `json:"revision"`   // full commit id
	Bundles    []json.RawMessage `json:"bundles"`    // Sigstore bundles, oldest first
	// What they verify under. A reader takes it only if it knew its digest before.
	Roots       []byte `json:"roots"`
	TrustedRoot []byte `json:"trustedRoot"`
}

// SourceFact is one of them as a reader sees it.
type SourceFact struct {
	Kind   string          `json:"kind"` // transition, summary, review, other
	Ref    string          `json:"ref"`
	Actor  string          `json:"actor"`
	On     time.Time       `json:"on"`
	Levels []string        `json:"levels"` // of a summary
	What   string          `json:"what"`   // the predicate type
	Bundle hallmark.Digest `json:"bundle"`
}

var commitID = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

// evidence hands out what is signed of a revision to everybody who may read it
// (SLSA v1.2, Source track: "distributing summary attestations" and provenance).
func (s *Server) evidence(w http.ResponseWriter, r *http.Request) {
	who, ok := s.caller(w, r)
	if !ok {
		return
	}
	out, err := s.revisionEvidence(r.Context(), who.Name, func(rules *rules, repository string) access.Ruling {
		return (&sourceGate{s}).may(rules, who, access.RepositoryRead, repository, "")
	}, r.URL.Query().Get("repository"), r.URL.Query().Get("revision"))
	s.answer(w, out, err)
}

func (s *Server) revisionEvidence(ctx context.Context, who string, may func(*rules, string) access.Ruling, repository, revision string) (RevisionEvidence, error) {
	var none RevisionEvidence
	if !commitID.MatchString(revision) {
		return none, hallmark.Errorf(hallmark.KindUsage, "revision %.80q: want a full commit id", revision)
	}
	rules, err := s.current()
	if err != nil {
		return none, err
	}
	// Who may not read is told what is told of a revision that does not exist.
	unknown := hallmark.Coded(hallmark.KindNotFound, hallmark.CodeEvidenceMissing, "nothing is signed of revision %s of %.80q, or %s may not read it", revision, repository, who)
	if !may(rules, repository).Allowed {
		return none, unknown
	}
	rows, err := s.home.stores.index.Statements(ctx, "gitCommit:"+revision)
	if err != nil {
		return none, err
	}
	out := RevisionEvidence{Repository: s.uri(repository), Revision: revision, Roots: s.home.rootsJSON, TrustedRoot: s.home.trustedJSON}
	for _, row := range rows {
		b, err := s.home.stores.blobs.Get(ctx, row.Bundle)
		if err != nil {
			return none, fmt.Errorf("reading evidence: %w", err)
		}
		v, err := s.home.verifier.Verify(b)
		if err != nil {
			return none, fmt.Errorf("verifying evidence: %w", err)
		}
		if names(v, out.Repository, revision) {
			out.Bundles = append(out.Bundles, b)
		}
	}
	// What the gates said is all there or nothing is handed out: the index may have
	// lost a row.
	said, err := s.home.logged(ctx, aboutKey, "gitCommit:"+revision)
	if err != nil {
		return none, err
	}
	for _, l := range said {
		if !slices.ContainsFunc(rows, func(r sqlstore.Row) bool { return r.Statement == l.digest }) {
			return none, hallmark.WithHint(hallmark.Coded(hallmark.KindInvalid, hallmark.CodeEvidenceMissing, "the index lacks a statement of the log about %s", revision), "hallmark log fsck --rebuild")
		}
	}
	if len(out.Bundles) == 0 {
		return none, unknown
	}
	return out, nil
}

// names reports whether a statement is about a revision of a repository. Two may
// share a commit; each has its own evidence.
func names(v verify.Statement, repository, revision string) bool {
	return slices.ContainsFunc(v.Statement().Subject, func(d intoto.ResourceDescriptor) bool {
		return d.Digest["gitCommit"] == revision && strings.TrimPrefix(d.URI, "git+") == repository
	})
}

// Evidence asks for what is signed of a revision.
func (c *Client) Evidence(ctx context.Context, repository, revision string) (RevisionEvidence, error) {
	var out RevisionEvidence
	q := url.Values{"repository": {repository}, "revision": {revision}}
	return out, c.call(ctx, http.MethodGet, "/api/v1/evidence?"+q.Encode(), nil, &out)
}

// ReadSource verifies what a server handed out and says what it is. The roots
// are those that pin names, or without one those of the home. A bundle that does
// not verify, or is about something else, is an error: the server is believed in
// nothing.
func ReadSource(home string, pin hallmark.Digest, repository string, e RevisionEvidence) ([]SourceFact, error) {
	if pin == "" {
		b, err := readLimited(Layout{home}.Roots(), maxTrustFile)
		if err != nil {
			return nil, hallmark.WithHint(hallmark.Coded(hallmark.KindUnpinned, hallmark.CodeTrustRootUnpinned, "no roots are pinned: there is no home in %s and no --roots", home),
				"name the roots digest that the server's operator gave you by another way: --roots sha256:…")
		}
		pin = hallmark.DigestOf(b)
	}
	if got := hallmark.DigestOf(e.Roots); got != pin {
		return nil, hallmark.Coded(hallmark.KindUnpinned, hallmark.CodeTrustRootUnpinned, "the server's evidence was made under roots %s, the pinned roots are %s", got, pin)
	}
	v, err := verify.New(verify.Config{Roots: e.Roots, Pin: pin, TrustedRoot: e.TrustedRoot})
	if err != nil {
		return nil, err
	}
	if want := "/" + repository + ".git"; !strings.HasSuffix(e.Repository, want) {
		return nil, hallmark.Coded(hallmark.KindDenied, hallmark.CodeRevisionMismatch, "the server answers for %.200q, %s was asked for", e.Repository, repository)
	}
	out := []SourceFact{}
	for i, b := range e.Bundles {
		st, err := v.Verify(b)
		if err != nil {
			return nil, fmt.Errorf("verifying line %d of the evidence: %w", i+1, err)
		}
		if !names(st, e.Repository, e.Revision) {
			return nil, hallmark.Coded(hallmark.KindDenied, hallmark.CodeRevisionMismatch, "line %d of the evidence is not about %s of %s", i+1, e.Revision, e.Repository)
		}
		f, err := sourceFact(st)
		if err != nil {
			return nil, err
		}
		f.Bundle = hallmark.DigestOf(b)
		out = append(out, f)
	}
	return out, nil
}

func sourceFact(st verify.Statement) (SourceFact, error) {
	f := SourceFact{Kind: "other", On: st.SignedAt(), Levels: []string{}, What: st.PredicateType()}
	switch st.PredicateType() {
	case intoto.PredicateTransition:
		t, err := intoto.DecodePredicate[intoto.RefTransition](st.Statement())
		f.Kind, f.Ref, f.Actor = "transition", t.Ref, t.Actor.Name
		return f, err
	case intoto.PredicateReview:
		r, err := intoto.DecodePredicate[intoto.ChangeReview](st.Statement())
		f.Kind, f.Ref, f.Actor = "review", r.Target, r.Actor.Name
		return f, err
	case intoto.PredicateVSA:
		v, err := intoto.DecodePredicate[intoto.VSA](st.Statement())
		f.Kind, f.Levels = "summary", v.VerifiedLevels
		for _, d := range st.Statement().Subject {
			if refs, ok := d.Annotations["sourceRefs"].([]any); ok && len(refs) > 0 {
				f.Ref = fmt.Sprint(refs[0])
			}
		}
		return f, err
	}
	return f, nil
}
