// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"slices"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/sqlstore"
	"github.com/hallmark-sc/hallmark/intoto"
)

// runID names the run that a statement asks for: asked twice it is one run.
func runID(basis hallmark.Digest) string {
	return "r-" + hallmark.DigestOf([]byte("run\x00" + string(basis))).Hex()[:16]
}

// transited queues the build that a logged transition asks for. That it could not
// be queued undoes nothing: the log has it, and who looks there queues it.
func (s *Server) transited(ctx context.Context, repository string, t intoto.RefTransition, statement hallmark.Digest) {
	if s.builds == nil || !s.file.Builds.Enabled || statement == "" || !owesBuild(t) {
		return
	}
	r := sqlstore.Run{ID: runID(statement), Repository: repository, Ref: t.Ref, Revision: t.New, Cause: causePush, Basis: statement, Principal: t.Actor.Name, Queued: now()}
	if err := s.queue(context.WithoutCancel(ctx), r); hallmark.CodeOf(err) == hallmark.CodeRunQueueFull {
		s.builds.mu.Lock()
		s.builds.missed = true
		s.builds.mu.Unlock()
		s.log.Warn("a build waits for a place in the queue", "principal", r.Principal, "repository", repository, "ref", t.Ref, "revision", t.New)
	} else if err != nil {
		s.log.Error("a build could not be queued; the next start does it", "repository", repository, "ref", t.Ref, "revision", t.New, "error", err.Error())
	}
}

// landed queues the build of a transition that happened.
func (s *Server) landed(ctx context.Context, repository, ref string, statement hallmark.Digest) error {
	if s.builds == nil || statement == "" {
		return nil
	}
	last, err := s.home.lastTransition(ctx, s.uri(repository), ref)
	if err != nil || last.Statement != statement {
		return err
	}
	l, ok, err := s.home.loggedAs(ctx, statement)
	if err != nil || !ok {
		return err
	}
	t, ok, err := moved(l)
	if err != nil || !ok {
		return err
	}
	s.transited(ctx, repository, t, statement)
	return nil
}

func (s *Server) queue(ctx context.Context, r sqlstore.Run) error {
	added, err := s.home.stores.index.QueueRun(ctx, r, s.file.Builds.Queue)
	if err != nil || !added {
		return err
	}
	s.log.Info("run queued", "run", r.ID, "repository", r.Repository, "ref", r.Ref, "revision", r.Revision, "principal", r.Principal, "cause", r.Cause)
	s.builds.say(r.ID, map[string]any{"type": "run", "run": r.ID, "state": sqlstore.RunQueued, "repository": r.Repository, "ref": r.Ref, "revision": r.Revision})
	s.builds.nudge()
	return nil
}

// owed queues what the log says has to be built and has no verdict: who loses the
// queue loses no build.
func (b *builds) owed() error {
	s, ctx := b.s, b.ctx
	names, err := s.home.repositoryNames()
	if err != nil {
		return err
	}
	of := map[string]string{}
	for _, n := range names {
		of[s.uri(n)] = n
	}
	rows, err := s.home.logged(ctx, kindKey, intoto.PredicateTransition)
	if err != nil {
		return err
	}
	type owing struct {
		statement hallmark.Digest
		t         intoto.RefTransition
	}
	var open []owing
	void := map[hallmark.Digest]bool{}
	for _, row := range rows {
		t, ok, err := moved(row)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if t.Void {
			void[t.Previous] = true
		}
		if of[t.Repository] != "" && owesBuild(t) {
			open = append(open, owing{row.digest, t})
		}
	}
	for _, o := range open {
		if void[o.statement] {
			continue
		}
		if r, known, err := s.home.stores.index.RunOf(ctx, runID(o.statement)); err != nil {
			return err
		} else if known && r.State != sqlstore.RunLost {
			continue
		}
		has, err := s.home.verdictOf(ctx, o.t.Repository, o.t.Ref, o.t.New)
		if err != nil {
			return err
		}
		if !has {
			s.transited(ctx, of[o.t.Repository], o.t, o.statement)
		}
	}
	return b.owedChanges(of)
}

// owedChanges queues the changes that somebody let run and that have no verdict.
func (b *builds) owedChanges(of map[string]string) error {
	s, ctx := b.s, b.ctx
	rows, err := s.home.logged(ctx, kindKey, intoto.PredicateReview)
	if err != nil {
		return err
	}
	for _, row := range rows {
		r, err := intoto.DecodePredicate[intoto.ChangeReview](row.statement)
		if err != nil {
			return err
		}
		if r.Action != intoto.ReviewRun || of[r.Repository] == "" {
			continue
		}
		has, err := s.home.verdictOf(ctx, r.Repository, intoto.ChangeRefs+r.Change, r.Revision)
		if err != nil {
			return err
		}
		if has {
			continue
		}
		if err := s.queue(ctx, changeRun(of[r.Repository], r, row.digest)); err != nil && hallmark.CodeOf(err) != hallmark.CodeRunQueueFull {
			return err
		}
	}
	return nil
}

func changeRun(repository string, r intoto.ChangeReview, statement hallmark.Digest) sqlstore.Run {
	return sqlstore.Run{ID: runID(statement), Repository: repository, Ref: intoto.ChangeRefs + r.Change, Revision: r.Revision, Change: r.Change, Cause: causeChange, Basis: statement, Principal: r.Actor.Name, Queued: now()}
}

// verdictOf reports whether there is a verdict about a revision as that of a
// reference, allowing or not. What the source gate says of a revision is none.
func (h *Home) verdictOf(ctx context.Context, uri, ref, commit string) (bool, error) {
	rows, err := h.stores.index.Statements(ctx, "gitCommit:"+commit)
	if err != nil {
		return false, err
	}
	for _, row := range rows {
		if row.Predicate != intoto.PredicateVSA {
			continue
		}
		b, err := h.stores.blobs.Get(ctx, row.Bundle)
		if err != nil {
			return false, fmt.Errorf("reading evidence: %w", err)
		}
		st, err := h.verifier.Verify(b)
		if err != nil {
			return false, fmt.Errorf("verifying evidence: %w", err)
		}
		v, err := intoto.DecodePredicate[intoto.VSA](st.Statement())
		if err != nil {
			return false, err
		}
		if v.ResourceURI != "git+"+uri || v.Verdict == nil {
			continue
		}
		for _, subject := range st.Statement().Subject {
			refs, _ := subject.Annotations["sourceRefs"].([]any)
			if subject.Digest["gitCommit"] == commit && slices.Contains(refs, any(ref)) {
				return true, nil
			}
		}
	}
	return false, nil
}
