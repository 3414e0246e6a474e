// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

var commitName = regexp.MustCompile(`^[0-9a-f]{40}([0-9a-f]{24})?$`)

// subjectKey turns what the user named into the form of the index.
func subjectKey(arg string) (key string, err error) {
	if d, err := hallmark.ParseDigest(arg); err == nil {
		return "sha256:" + d.Hex(), nil
	}
	if commitName.MatchString(arg) {
		return "gitCommit:" + arg, nil
	}
	f, err := os.Open(arg)
	if err != nil {
		return "", hallmark.Errorf(hallmark.KindInvalid, "%s is no digest, no commit and no file that can be read: %w", arg, err)
	}
	defer f.Close()
	d, _, err := hallmark.DigestFrom(f)
	return "sha256:" + d.Hex(), err
}

// Explain gathers the chain of custody of a subject, from evidence or the home.
func Explain(ctx context.Context, cfg VerifyConfig) (Chain, error) {
	key, err := subjectKey(cfg.Artifact)
	if err != nil {
		return Chain{}, err
	}
	var all []verify.Statement
	if cfg.Evidence != "" {
		ev, err := openEvidence(cfg)
		if err != nil {
			return Chain{}, err
		}
		set, err := ev.statements()
		if err != nil {
			return Chain{}, err
		}
		for _, s := range set {
			all = append(all, s)
		}
	} else {
		h, err := readHome(cfg.Home)
		if err != nil {
			return Chain{}, err
		}
		defer h.Close()
		if all, err = h.about(ctx, key); err != nil {
			return Chain{}, err
		}
	}
	c := Chain{Subject: key}
	expected := []string{"source", "secrets", "sast", "sbom", "sca", "build", "tests", "environment", "materials", "artifacts", "provenance", "verdict"}
	slices.SortFunc(all, func(a, b verify.Statement) int { return int(a.LogIndex()) - int(b.LogIndex()) })
	for _, link := range expected {
		n := 0
		for _, s := range all {
			name, state, detail := describe(s)
			if name == link {
				n++
				c.Links = append(c.Links, Link{Type: "link", Link: link, State: state, Detail: detail, Evidence: s.Digest(), Signer: s.Signer(), SignedAt: s.SignedAt(), LogIndex: s.LogIndex()})
			}
		}
		if n == 0 {
			c.Missing = true
			c.Links = append(c.Links, Link{Type: "link", Link: link, State: "missing", Detail: "no statement about this subject or its revision"})
		}
	}
	return c, nil
}

// about returns the statements about a subject and about the revisions that
// these name.
func (h *Home) about(ctx context.Context, key string) ([]verify.Statement, error) {
	seen := map[hallmark.Digest]bool{}
	var out []verify.Statement
	todo := []string{key}
	asked := map[string]bool{}
	for len(todo) > 0 {
		k := todo[0]
		todo = todo[1:]
		if asked[k] {
			continue
		}
		asked[k] = true
		rows, err := h.stores.index.Statements(ctx, k)
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			if seen[r.Statement] {
				continue
			}
			seen[r.Statement] = true
			b, err := h.stores.blobs.Get(ctx, r.Bundle)
			if err != nil {
				return nil, fmt.Errorf("reading evidence: %w", err)
			}
			s, err := h.verifier.Verify(b)
			if err != nil {
				return nil, fmt.Errorf("verifying evidence %s: %w", r.Bundle, err)
			}
			out = append(out, s)
			if p, err := intoto.ParseProvenance(s.Statement()); s.PredicateType() == intoto.PredicateProvenance && err == nil {
				todo = append(todo, "gitCommit:"+p.BuildDefinition.ExternalParameters.Revision)
			}
		}
	}
	return out, nil
}

// describe names the link that a statement is, and what it says.
func describe(s verify.Statement) (link, state, detail string) {
	st := s.Statement()
	rec, err := intoto.CheckOf(st)
	if err != nil {
		return "", "", ""
	}
	switch s.PredicateType() {
	case intoto.PredicateSource:
		p, err := intoto.DecodePredicate[intoto.SourceProvenance](st)
		if err != nil || rec == nil {
			return "", "", ""
		}
		who := "nobody"
		if p.Signer != nil {
			who = p.Signer.Name + " (" + p.Signer.Key + ")"
		}
		return "source", rec.Outcome.String(), fmt.Sprintf("commit %s, %d commits of history, signed by %s", p.Revision.Commit, p.Commits, who)
	case intoto.PredicateProvenance:
		p, err := intoto.ParseProvenance(st)
		if err != nil {
			return "", "", ""
		}
		return "provenance", "present", fmt.Sprintf("by %s, %d inputs", p.RunDetails.Builder.ID, len(p.BuildDefinition.ResolvedDependencies))
	case intoto.PredicateVSA:
		v, err := intoto.DecodePredicate[intoto.VSA](st)
		if err != nil {
			return "", "", ""
		}
		return "verdict", v.VerificationResult, fmt.Sprintf("over %d statements, levels %v", len(v.InputAttestations), v.VerifiedLevels)
	case intoto.PredicateSCAI:
		p, err := intoto.DecodePredicate[intoto.SCAI](st)
		if err != nil {
			return "", "", ""
		}
		return p.Name, "present", fmt.Sprintf("%d facts", len(p.Attributes))
	case intoto.PredicateLink:
		p, err := intoto.DecodePredicate[intoto.Link](st)
		if err == nil && p.Name == intoto.NameMaterials {
			return "materials", "present", fmt.Sprintf("%d materials", len(p.Materials))
		}
	}
	if rec == nil {
		return "", "", ""
	}
	detail = fmt.Sprintf("%s to %s", rec.StartedOn.UTC().Format("15:04:05"), rec.FinishedOn.UTC().Format("15:04:05 2006-01-02"))
	if len(rec.Reasons) > 0 {
		detail = string(rec.Reasons[0].Code) + ": " + rec.Reasons[0].Message
	}
	return rec.Check, rec.Outcome.String(), detail
}
