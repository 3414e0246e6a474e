// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/ledger"
	"github.com/hallmark-sc/hallmark/intoto"
)

// obliges is what a transition obliges to under the rule of its reference. Whatever
// shows a revision has it scanned and built; what takes only approved changes has
// it reviewed.
func obliges(rule access.RefRule, t intoto.RefTransition) []string {
	if t.Effect != hallmark.Allow || t.Void || strings.Trim(t.New, "0") == "" {
		return nil
	}
	out := []string{ledger.Scan, ledger.Build}
	if rule.Needed() > 0 {
		out = append(out, ledger.Review)
	}
	return out
}

// Obligations lists what must exist because of what was pushed, from the log: of
// one repository, or of all for "". at is when it is asked.
func Obligations(ctx context.Context, home, repository string, at time.Time) ([]ledger.Obligation, error) {
	h, err := readHome(home)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	names, err := h.repositoryNames()
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "listing repositories: %w", err)
	}
	if repository != "" {
		if !slices.Contains(names, repository) {
			return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindNotFound, "there is no repository %.80q", repository), "hallmark repository list")
		}
		names = []string{repository}
	}
	var out []ledger.Obligation
	for _, n := range names {
		all, err := h.obligations(ctx, h.repositoryURI(n), at)
		if err != nil {
			return nil, err
		}
		out = append(out, all...)
	}
	return out, nil
}

// obligations are those of one repository, in the order of the log. Every
// statement that it counts for met was verified.
func (h *Home) obligations(ctx context.Context, uri string, at time.Time) ([]ledger.Obligation, error) {
	chain, err := h.logged(ctx, repositoryKey, uri)
	if err != nil {
		return nil, err
	}
	var transitions []ledger.Transition
	var evidence []ledger.Evidence
	asked := map[string]bool{}
	for _, l := range chain {
		t, ok, err := moved(l)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		lt := ledger.Transition{
			Statement: l.digest, Previous: t.Previous, Repository: t.Repository, Ref: t.Ref, Commit: shows(t), On: t.On, Opens: t.Obligations, Approvals: t.Approvals, Void: t.Void,
			Forward: strings.HasPrefix(t.Ref, "refs/tags/") || slices.ContainsFunc(t.Controls, func(c intoto.RefControl) bool { return c.Name == controlDescend }),
		}
		transitions = append(transitions, lt)
		pushed, err := h.pushEvidence(ctx, l, t, lt.Commit)
		if err != nil {
			return nil, err
		}
		evidence = append(evidence, pushed...)
		if lt.Commit == "" || asked[lt.Commit] {
			continue
		}
		asked[lt.Commit] = true
		about, err := h.revisionEvidence(ctx, uri, lt.Commit)
		if err != nil {
			return nil, err
		}
		evidence = append(evidence, about...)
	}
	return ledger.Obligations(transitions, evidence, h.params.ObligationMaxAge, at), nil
}

// shows is the commit that a reference shows after a transition; "" when it is gone.
func shows(t intoto.RefTransition) string {
	switch {
	case strings.Trim(t.New, "0") == "":
		return ""
	case t.Commit != "":
		return t.Commit
	}
	return t.New
}

// pushEvidence is what the gate itself saw of a push.
func (h *Home) pushEvidence(ctx context.Context, l logged, t intoto.RefTransition, commit string) ([]ledger.Evidence, error) {
	var out []ledger.Evidence
	for _, rec := range t.Checks {
		if rec.Check != "secrets" || commit == "" || t.Void {
			continue
		}
		outcome, err := h.counts(ctx, l, rec.Outcome)
		if err != nil {
			return nil, err
		}
		out = append(out, ledger.Evidence{Statement: l.digest, Kind: ledger.Scan, Repository: t.Repository, Commit: commit, Outcome: outcome, On: t.On})
	}
	return out, nil
}

// revisionEvidence is what the log has of one revision of a repository: scans and
// builds, and what persons said.
func (h *Home) revisionEvidence(ctx context.Context, uri, commit string) ([]ledger.Evidence, error) {
	var out []ledger.Evidence
	add := func(l logged, kind, ref string, outcome hallmark.Outcome, on time.Time) error {
		outcome, err := h.counts(ctx, l, outcome)
		out = append(out, ledger.Evidence{Statement: l.digest, Kind: kind, Repository: uri, Ref: ref, Commit: commit, Outcome: outcome, On: on})
		return err
	}
	about, err := h.logged(ctx, checkKey, commit)
	if err != nil {
		return nil, err
	}
	for _, l := range about {
		if l.statement.PredicateType == intoto.PredicateProvenance {
			p, err := intoto.ParseProvenance(l.statement)
			if err != nil {
				return nil, err
			}
			if x := p.BuildDefinition.ExternalParameters; x.Repository == uri && x.Revision == commit {
				err = add(l, ledger.Build, "", hallmark.Pass, p.RunDetails.Metadata.FinishedOn)
			}
			if err != nil {
				return nil, err
			}
			continue
		}
		rec, err := intoto.CheckOf(l.statement)
		if err != nil {
			return nil, err
		}
		if rec == nil || rec.Revision.Repository != uri || rec.Revision.Commit != commit {
			continue
		}
		switch {
		case rec.Check == "secrets":
			err = add(l, ledger.Scan, "", rec.Outcome, rec.FinishedOn)
		case rec.Check == "build" && rec.Outcome != hallmark.Pass: // one that passed has provenance
			err = add(l, ledger.Build, "", rec.Outcome, rec.FinishedOn)
		}
		if err != nil {
			return nil, err
		}
	}
	said, err := h.logged(ctx, aboutKey, "gitCommit:"+commit)
	if err != nil {
		return nil, err
	}
	for _, l := range said {
		if l.statement.PredicateType != intoto.PredicateReview {
			continue
		}
		r, err := intoto.DecodePredicate[intoto.ChangeReview](l.statement)
		if err != nil {
			return nil, err
		}
		if r.Action == intoto.ReviewApprove && r.Repository == uri && r.Revision == commit {
			if err := add(l, ledger.Review, r.Target, hallmark.Pass, r.On); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// counts is an outcome as it counts: a pass whose evidence can't be shown is none.
func (h *Home) counts(ctx context.Context, l logged, outcome hallmark.Outcome) (hallmark.Outcome, error) {
	if outcome != hallmark.Pass {
		return outcome, nil
	}
	ok, err := h.kept(ctx, l)
	if err == nil && !ok {
		outcome = hallmark.Errored
	}
	return outcome, err
}
