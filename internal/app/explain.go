// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

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
	if _, err := os.Stat(arg); err != nil {
		return "", hallmark.Errorf(hallmark.KindInvalid, "%s is no digest, no commit and no file that can be read: %w", arg, err)
	}
	a, err := artifactAt(arg)
	if err != nil {
		return "", err
	}
	return "sha256:" + a.Digest.Hex(), nil
}

// custody is every verified statement about a subject and what belongs to it, and
// where the blobs lie that they name.
type custody struct {
	statements []verify.Statement
	blob       func(hallmark.Digest) ([]byte, error)
	close      func() error
}

// openCustody reads evidence or, where none is named, the home.
func openCustody(ctx context.Context, cfg VerifyConfig, key string) (custody, error) {
	if cfg.Evidence != "" {
		ev, err := openEvidence(cfg)
		if err != nil {
			return custody{}, err
		}
		set, err := ev.statements()
		if err != nil {
			return custody{}, err
		}
		return custody{statements: aboutIn(set, key), blob: ev.traced, close: func() error { return nil }}, nil
	}
	h, err := readHome(cfg.Home)
	if err != nil {
		return custody{}, err
	}
	all, err := h.about(ctx, key)
	if err != nil {
		h.Close()
		return custody{}, err
	}
	return custody{statements: all, blob: func(d hallmark.Digest) ([]byte, error) { return h.stores.blobs.Get(ctx, d) }, close: h.Close}, nil
}

// Explain gathers the chain of custody of a subject, from evidence or the home.
func Explain(ctx context.Context, cfg VerifyConfig) (Chain, error) {
	key, err := subjectKey(cfg.Artifact)
	if err != nil {
		return Chain{}, err
	}
	cust, err := openCustody(ctx, cfg, key)
	if err != nil {
		return Chain{}, err
	}
	defer cust.close()
	all := cust.statements
	c := Chain{Subject: key}
	expected := []string{"source", "secrets", "sast", "sbom", "sca", "build", "tests", "environment", "trace", "materials", "artifacts", "provenance", "verdict"}
	if slices.ContainsFunc(all, isImage) { // policy asks for the scan of an image where there is one
		expected = slices.Insert(expected, slices.Index(expected, "tests")+1, "image")
	}
	slices.SortFunc(all, func(a, b verify.Statement) int { return cmp.Compare(a.LogIndex(), b.LogIndex()) })
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

// isImage reports whether a statement is about an image.
func isImage(s verify.Statement) bool {
	return slices.ContainsFunc(s.Statement().Subject, func(r intoto.ResourceDescriptor) bool { return hallmark.ImageType(r.MediaType) })
}

// aboutIn is about for statements at hand: evidence holds all of one run, and
// somebody who asks about another subject must not be told its story.
func aboutIn(set map[hallmark.Digest]verify.Statement, key string) []verify.Statement {
	var out []verify.Statement
	asked := map[string]bool{}
	seen := map[hallmark.Digest]bool{}
	for todo := []string{key}; len(todo) > 0; todo = todo[1:] {
		if asked[todo[0]] {
			continue
		}
		asked[todo[0]] = true
		alg, value, _ := strings.Cut(todo[0], ":")
		for d, s := range set {
			named := slices.ContainsFunc(s.Statement().Subject, func(r intoto.ResourceDescriptor) bool { return r.Digest[alg] == value })
			if !named || seen[d] {
				continue
			}
			seen[d] = true
			out = append(out, s)
			todo = append(todo, relatedOf(s)...)
		}
	}
	return out
}

// relatedOf are the keys of what belongs to the same chain: the revision that
// provenance names, and all that a summary is about.
func relatedOf(s verify.Statement) []string {
	switch s.PredicateType() {
	case intoto.PredicateProvenance:
		if p, err := intoto.ParseProvenance(s.Statement()); err == nil {
			return []string{"gitCommit:" + p.BuildDefinition.ExternalParameters.Revision}
		}
	case intoto.PredicateVSA:
		var out []string
		for _, r := range s.Statement().Subject {
			for _, alg := range []string{"sha256", "gitCommit"} {
				if v := r.Digest[alg]; v != "" {
					out = append(out, alg+":"+v)
				}
			}
		}
		return out
	}
	return nil
}

// about returns the statements about a subject and about what belongs to the
// same chain.
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
			todo = append(todo, relatedOf(s)...)
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
		if len(rec.Reasons) > 0 { // the signer is recorded only when the check accepted it
			return "source", rec.Outcome.String(), string(rec.Reasons[0].Code) + ": " + rec.Reasons[0].Message
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
	case intoto.PredicateTrace:
		p, err := intoto.DecodePredicate[intoto.RuntimeTrace](st)
		if err != nil {
			return "", "", ""
		}
		return "trace", "present", fmt.Sprintf("%d processes, by %s", len(p.MonitorLog.Process), path.Base(p.Monitor.Type))
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
