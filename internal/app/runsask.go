// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/gate"
	"github.com/hallmark-sc/hallmark/internal/gitcli"
	"github.com/hallmark-sc/hallmark/internal/gitgate"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/internal/sqlstore"
	"github.com/hallmark-sc/hallmark/intoto"
)

// requestAction is what an access record says of a build that was asked for.
const requestAction = "build.request"

// RunRequest is what a client asks to be built: the revision that a reference is
// at, or was at, or any that a reference shows.
type RunRequest struct {
	Repository string            `json:"repository"`
	Ref        string            `json:"ref,omitempty"`      // branch, tag or full reference
	Revision   string            `json:"revision,omitempty"` // commit
	Parameters map[string]string `json:"parameters,omitempty"`
}

// RunAnswer is the gate's answer to who asks for a run.
type RunAnswer struct {
	Run     string            `json:"run,omitempty"`
	Allowed bool              `json:"allowed"`
	Reasons []hallmark.Reason `json:"reasons"`
}

// Limits on the parameters of a request; what a build takes stands in its policy.
const (
	maxParameters = 64
	maxRequest    = 64 << 10
)

// requestDetails are what the log says of a run that somebody asked for.
func requestDetails(r sqlstore.Run) (map[string]string, error) {
	parameters, err := json.Marshal(r.Parameters) // in the order of names
	return map[string]string{"repository": r.Repository, "ref": r.Ref, "revision": r.Revision, "parameters": string(parameters)}, err
}

func noRepository(name string) error {
	return hallmark.WithHint(hallmark.Coded(hallmark.KindNotFound, hallmark.CodeRunUnknown, "there is no repository %.100q that you may read", name),
		"an administrator grants: hallmark access grant NAME ROLE --repository "+name+"; and the token must be for it: hallmark sign-in --scope repository.read,build.request,evidence.read")
}

// readable reports whether a repository is there for somebody: to who may not
// read it, it is as if it were not.
func (s *Server) readable(r *rules, who gitgate.Caller, name string) (bool, error) {
	if gitgate.CheckName(name) != nil {
		return false, nil
	}
	names, err := s.home.repositoryNames()
	if err != nil || !slices.Contains(names, name) {
		return false, err
	}
	return (&sourceGate{s}).may(r, who, access.RepositoryRead, name, "").Allowed, nil
}

// request queues a run that somebody asks for.
func (s *Server) request(ctx context.Context, who gitgate.Caller, q RunRequest) (string, hallmark.Decision, error) {
	none := hallmark.Decision{}
	r, err := s.current()
	if err != nil {
		return "", none, err
	}
	if !s.file.Builds.Enabled {
		return "", none, hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeRunNoBuilds, "this server builds nothing")
	}
	if ok, err := s.readable(r, who, q.Repository); err != nil || !ok {
		if err == nil {
			err = noRepository(q.Repository)
		}
		return "", none, err
	}
	if err := checkParameters(q.Parameters); err != nil {
		return "", none, err
	}
	run := sqlstore.Run{Repository: q.Repository, Cause: causeRequest, Principal: who.Name, Parameters: q.Parameters, Queued: now()}
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return "", none, hallmark.Errorf(hallmark.KindInternal, "naming a run: %w", err)
	}
	run.ID = "r-" + hex.EncodeToString(id[:])
	record := intoto.AccessRecord{Action: requestAction, Actor: who.Principal, Resource: "run:" + run.ID, On: now(), Policy: r.policy}
	var reasons []hallmark.Reason
	d, err := gate.Pass(ctx, gate.Steps{
		Authenticate: func(context.Context) (hallmark.Principal, error) { return who.Principal, nil },
		Authorize: func(context.Context, hallmark.Principal) ([]hallmark.Reason, error) {
			ruling := (&sourceGate{s}).may(r, who, access.BuildRequest, q.Repository, "")
			record.Grant = ruling.Grant
			if !ruling.Allowed {
				return []hallmark.Reason{ruling.Reason}, nil
			}
			return nil, nil
		},
		Gather: func(ctx context.Context) error {
			if err := s.mayWait(ctx, who.Name); err != nil {
				return err
			}
			run.Ref, run.Revision, reasons, err = s.named(ctx, q)
			if err != nil {
				return err
			}
			if len(reasons) == 0 {
				reasons = s.mayBuild(r, who, run)
			}
			reasons = s.parts.heed(reasons)
			return nil
		},
		Decide: func(context.Context) (hallmark.Decision, error) {
			if len(reasons) > 0 {
				return gate.Denied(reasons...), nil
			}
			return hallmark.Decision{Effect: hallmark.Allow}, nil
		},
		Log: func(ctx context.Context, d hallmark.Decision) error {
			record.Effect, record.Reasons = d.Effect, d.Reasons
			if record.Details, err = requestDetails(run); err != nil {
				return err
			}
			st, err := attest.AccessRecord(record)
			if err != nil {
				return err
			}
			b, err := s.signer.sign(ctx, sign.Gate, st, nil)
			run.Basis = b.Statement
			return err
		},
		Effect: func(ctx context.Context) error { return s.queue(context.WithoutCancel(ctx), run) },
	})
	if err != nil || !d.Allowed() {
		return "", d, err
	}
	return run.ID, d, nil
}

// mayBuild asks for the reference that a build is of: what is built of one may be
// given its secrets. A revision without one takes a grant for every reference.
func (s *Server) mayBuild(r *rules, who gitgate.Caller, run sqlstore.Run) []hallmark.Reason {
	ref := run.Ref
	if ref == "" {
		ref = "revision " + run.Revision // no pattern of references fits it but **
	}
	if ruling := (&sourceGate{s}).may(r, who, access.BuildRequest, run.Repository, ref); !ruling.Allowed {
		return []hallmark.Reason{ruling.Reason}
	}
	return nil
}

func checkParameters(p map[string]string) error {
	size := 0
	for name, v := range p {
		size += len(name) + len(v)
		if name == "" || len(name) > 64 || policy.CheckParameterValue(v) != nil {
			return hallmark.Errorf(hallmark.KindUsage, "parameter %.80q can't be given", name)
		}
	}
	if len(p) > maxParameters || size > maxRequest {
		return hallmark.Errorf(hallmark.KindUsage, "%d parameters of %d bytes: want %d of %d at most", len(p), size, maxParameters, maxRequest)
	}
	return nil
}

// mayWait reports whether another run of somebody has a place in the queue, before
// anything about it is logged.
func (s *Server) mayWait(ctx context.Context, name string) error {
	waiting, err := s.home.stores.index.Runs(ctx, "", sqlstore.RunQueued)
	if err != nil {
		return err
	}
	n := 0
	for _, w := range waiting {
		if w.Principal == name {
			n++
		}
	}
	if n >= s.file.Builds.Queue {
		return hallmark.WithHint(hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeRunQueueFull, "%d runs of %s wait already", n, name), "wait for them: hallmark runs list; or give them up: hallmark runs cancel ID")
	}
	return nil
}

// named finds the revision that a request names, and the reference that it was
// accepted for: what the log says, not what git shows. A revision that was never a
// reference's own is of none.
func (s *Server) named(ctx context.Context, q RunRequest) (ref, commit string, reasons []hallmark.Reason, err error) {
	unknown := hallmark.Coded(hallmark.KindNotFound, hallmark.CodeSourceRevisionUnknown, "there is no revision %.100q in %s", strings.TrimSpace(q.Ref+" "+q.Revision), q.Repository)
	dir := s.dir(q.Repository)
	refs, err := gitcli.Refs(ctx, dir, "refs/heads", "refs/tags")
	if err != nil {
		return "", "", nil, err
	}
	if q.Ref != "" || q.Revision == "" {
		if ref = fullRef(q.Ref, gitcli.First(dir), refs); ref == "" {
			return "", "", nil, unknown
		}
		last, err := s.home.lastTransition(ctx, s.uri(q.Repository), ref)
		if err != nil {
			return "", "", nil, err
		}
		if !at(last, refs[ref]) {
			commit, err = s.commitOf(ctx, dir, refs[ref])
			return ref, commit, []hallmark.Reason{{Code: hallmark.CodeRefOutsideLog, Check: "source", Message: fmt.Sprintf("%s is at %s, and the log says %s", ref, refs[ref], orNone(last.New)), Fix: "hallmark source verify shows what differs"}}, err
		}
		if q.Revision == "" {
			commit, err = s.commitOf(ctx, dir, refs[ref])
			return ref, commit, nil, err
		}
	}
	if !isCommitName(q.Revision) {
		return "", "", nil, unknown
	}
	in, err := gitcli.NewIncoming(dir, "")
	if err != nil {
		return "", "", nil, err
	}
	if ref != "" {
		was, err := s.home.wasAt(ctx, s.uri(q.Repository), ref, q.Revision)
		if err != nil {
			return "", "", nil, err
		}
		if !was {
			return "", "", nil, unknown
		}
		return ref, q.Revision, nil, nil
	}
	for _, id := range refs {
		if shown, err := in.Descends(ctx, id, q.Revision); err == nil && shown {
			return "", q.Revision, nil, nil
		}
	}
	return "", "", nil, unknown
}

func isCommitName(id string) bool {
	return (len(id) == 40 || len(id) == 64) && strings.Trim(id, "0123456789abcdef") == ""
}

// fullRef is the one reference that a name means, or "".
func fullRef(name, first string, refs map[string]string) string {
	if name == "" {
		name = first
	}
	found := ""
	for _, full := range []string{name, "refs/heads/" + name, "refs/tags/" + name} {
		if refs[full] == "" {
			continue
		}
		if found != "" {
			return ""
		}
		found = full
	}
	return found
}

// commitOf follows annotated tags to their commit.
func (s *Server) commitOf(ctx context.Context, dir, id string) (string, error) {
	in, err := gitcli.NewIncoming(dir, "")
	if err != nil {
		return "", err
	}
	for range 8 {
		o, err := in.Object(ctx, id)
		if err != nil {
			return "", err
		}
		if o.Type == "commit" {
			return id, nil
		}
		to, ok := strings.CutPrefix(string(o.Data[:min(len(o.Data), 80)]), "object ")
		if o.Type != "tag" || !ok {
			break
		}
		id, _, _ = strings.Cut(to, "\n")
	}
	return "", hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceRevisionUnknown, "object %s is of no commit", id)
}

// wasAt reports whether a reference was once moved to a revision.
func (h *Home) wasAt(ctx context.Context, uri, ref, commit string) (bool, error) {
	about, err := h.logged(ctx, aboutKey, "gitCommit:"+commit)
	if err != nil {
		return false, err
	}
	for _, l := range about {
		t, ok, err := moved(l)
		if err != nil {
			return false, err
		}
		if !ok || t.Void || t.Repository != uri || t.Ref != ref || shows(t) != commit {
			continue
		}
		if void, err := h.voided(ctx, uri, ref, l.digest); err != nil {
			return false, err
		} else if !void {
			return true, h.evidence(ctx, l)
		}
	}
	return false, nil
}

// voided reports whether a transition was logged and did not happen: a later one says
// so.
func (h *Home) voided(ctx context.Context, uri, ref string, transition hallmark.Digest) (bool, error) {
	chain, err := h.logged(ctx, aboutKey, "sha256:"+intoto.SubjectOfRef(uri, ref).Digest["sha256"])
	if err != nil {
		return false, err
	}
	for _, l := range chain {
		t, ok, err := moved(l)
		if err != nil {
			return false, err
		}
		if ok && t.Void && t.Previous == transition {
			return true, nil
		}
	}
	return false, nil
}

// letRun is a maintainer's word that exactly this revision of a change may run,
// without secrets and without network, before it has landed.
func (s *Server) letRun(ctx context.Context, who gitgate.Caller, id string) (string, hallmark.Decision, error) {
	r, err := s.current()
	if err != nil {
		return "", hallmark.Decision{}, err
	}
	if !s.file.Builds.Enabled {
		return "", hallmark.Decision{}, hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeRunNoBuilds, "this server builds nothing")
	}
	c, err := s.change(ctx, id)
	if err != nil {
		return "", hallmark.Decision{}, err
	}
	if ok, err := s.readable(r, who, c.name); err != nil || !ok {
		if err == nil { // as for a change that does not exist
			err = hallmark.Coded(hallmark.KindNotFound, hallmark.CodeChangeUnknown, "there is no change %.40q", id)
		}
		return "", hallmark.Decision{}, err
	}
	review := intoto.ChangeReview{Action: intoto.ReviewRun, Change: c.ID, Repository: c.Repository, Target: c.Target, Revision: c.Revision, Actor: who.Principal, On: now(), Policy: r.policy}
	var st standing
	var newer string
	var statement hallmark.Digest
	d, err := gate.Pass(ctx, gate.Steps{
		Authenticate: func(context.Context) (hallmark.Principal, error) { return who.Principal, nil },
		Authorize: func(context.Context, hallmark.Principal) ([]hallmark.Reason, error) {
			ruling := (&sourceGate{s}).may(r, who, access.RunApprove, c.name, c.Target)
			review.Grant = ruling.Grant
			if !ruling.Allowed {
				return []hallmark.Reason{ruling.Reason}, nil
			}
			return nil, nil
		},
		Gather: func(ctx context.Context) (err error) {
			if err := s.mayWait(ctx, who.Name); err != nil {
				return err
			}
			if newer, err = s.superseded(ctx, c); err != nil {
				return err
			}
			in, done, err := s.objects(ctx, c)
			if err != nil {
				return err
			}
			defer done()
			st, err = s.judge(ctx, r, c, in)
			review.Base = st.Base
			return err
		},
		Decide: func(context.Context) (hallmark.Decision, error) {
			if newer != "" {
				return gate.Denied(supersededBy(c, newer)), nil
			}
			if why := s.mayJudge(r, c, st.Parties, who.Principal, access.RunApprove, now()); why != nil {
				return gate.Denied(*why), nil
			}
			return hallmark.Decision{Effect: hallmark.Allow}, nil
		},
		Log: func(ctx context.Context, d hallmark.Decision) error {
			if !d.Allowed() {
				return s.logReview(ctx, review, d)
			}
			signed, err := attest.ChangeReview(review)
			if err != nil {
				return err
			}
			b, err := s.signer.sign(ctx, sign.Gate, signed, nil)
			statement = b.Statement
			return err
		},
		Effect: func(ctx context.Context) error {
			return s.queue(context.WithoutCancel(ctx), changeRun(c.name, review, statement))
		},
	})
	if err != nil || !d.Allowed() {
		return "", d, err
	}
	return runID(statement), d, nil
}

func supersededBy(c change, newer string) hallmark.Reason {
	return hallmark.Reason{Code: hallmark.CodeChangeRun, Check: "review", Message: fmt.Sprintf("who proposed %s pushed again: %s is the revision that is wanted now", c.ID, newer), Missing: "somebody's word about exactly that revision", Fix: "hallmark change show " + newer}
}

// superseded is the change that the same person proposed for the same reference
// since, or "".
func (s *Server) superseded(ctx context.Context, c change) (string, error) {
	reviews, err := s.home.logged(ctx, kindKey, intoto.PredicateReview)
	if err != nil {
		return "", err
	}
	// Whose change it is says who proposed it first: anybody may propose it again.
	mine := map[string]bool{c.proposals[0].Actor.Name: true}
	last := ""
	for _, l := range reviews { // in the order of the log
		r, err := intoto.DecodePredicate[intoto.ChangeReview](l.statement)
		if err != nil {
			return "", err
		}
		if (r.Action == intoto.ReviewHold || r.Action == intoto.ReviewPropose) && r.Repository == c.Repository && r.Target == c.Target && mine[r.Actor.Name] {
			last = r.Change
		}
	}
	if last == c.ID {
		return "", nil
	}
	return last, nil
}

// mayRun reads that somebody let a change run, and asks again whether their word
// counts: the grant may have ended, the change may have been pushed anew.
func (s *Server) mayRun(ctx context.Context, id string, l logged) (change, intoto.ChangeReview, error) {
	var review intoto.ChangeReview
	var err error
	if l.statement.PredicateType == intoto.PredicateReview {
		if review, err = intoto.DecodePredicate[intoto.ChangeReview](l.statement); err != nil {
			return change{}, review, err
		}
	}
	refused := func(format string, args ...any) error {
		return hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodeChangeRun, format, args...), "hallmark change run "+id+", by a maintainer who had no part in it")
	}
	c, err := s.change(ctx, id)
	if err != nil {
		return c, review, err
	}
	if review.Action != intoto.ReviewRun || review.Change != c.ID || review.Repository != c.Repository || review.Target != c.Target || review.Revision != c.Revision {
		return c, review, refused("nobody let exactly this revision of %s run", id)
	}
	newer, err := s.superseded(ctx, c)
	if err != nil {
		return c, review, err
	}
	if newer != "" {
		return c, review, refused("%s", supersededBy(c, newer).Message)
	}
	r, err := s.current()
	if err != nil {
		return c, review, err
	}
	in, done, err := s.objects(ctx, c)
	if err != nil {
		return c, review, err
	}
	defer done()
	st, err := s.judge(ctx, r, c, in)
	if err != nil {
		return c, review, err
	}
	if why := s.mayJudge(r, c, st.Parties, review.Actor, access.RunApprove, now()); why != nil {
		return c, review, refused("%s", why.Message)
	}
	return c, review, nil
}

// voidRuns ends the runs of what somebody proposed before they pushed again.
func (s *Server) voidRuns(ctx context.Context, repository string, held intoto.ChangeReview) error {
	if s.builds == nil {
		return nil
	}
	for _, state := range []sqlstore.RunState{sqlstore.RunQueued, sqlstore.RunLeased, sqlstore.RunRunning} {
		runs, err := s.home.stores.index.Runs(ctx, repository, state)
		if err != nil {
			return err
		}
		for _, r := range runs {
			if r.Cause != causeChange || r.Change == held.Change {
				continue
			}
			c, err := s.change(ctx, r.Change)
			if err != nil {
				return err
			}
			if c.Target == held.Target && c.proposals[0].Actor.Name == held.Actor.Name {
				if err := s.giveUp(ctx, r, supersededBy(c, held.Change).Message); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// giveUp ends a run, at once where it waits.
func (s *Server) giveUp(ctx context.Context, r sqlstore.Run, why string) error {
	ended, err := s.home.stores.index.CancelRun(ctx, r.ID, why, now())
	if err != nil || ended {
		return err
	}
	if after, ok, err := s.home.stores.index.RunOf(ctx, r.ID); err == nil && ok && after.State == sqlstore.RunFailed {
		s.builds.say(r.ID, endMessage(r.ID, sqlstore.RunEnd{State: after.State, Code: after.Code, Message: why}))
		s.builds.count("failed", 0)
	}
	s.log.Info("run given up", "run", r.ID, "repository", r.Repository, "why", why)
	return nil
}

// cancel gives a run up for who asked for it, or who may let changes run.
func (s *Server) cancel(ctx context.Context, who gitgate.Caller, id string) (hallmark.Decision, error) {
	r, run, err := s.runFor(ctx, who, id)
	if err != nil {
		return hallmark.Decision{}, err
	}
	return gate.Pass(ctx, gate.Steps{
		Authenticate: func(context.Context) (hallmark.Principal, error) { return who.Principal, nil },
		Authorize: func(context.Context, hallmark.Principal) ([]hallmark.Reason, error) {
			needed := access.RunApprove
			if run.Principal == who.Name {
				needed = access.BuildRequest
			}
			ref := run.Ref
			if run.Principal == who.Name {
				ref = "" // one's own, wherever it is
			} else if run.Cause == causeChange {
				c, err := s.change(ctx, run.Change)
				if err != nil {
					return nil, err
				}
				ref = c.Target
			}
			if ruling := (&sourceGate{s}).may(r, who, needed, run.Repository, ref); !ruling.Allowed {
				return []hallmark.Reason{ruling.Reason}, nil
			}
			return nil, nil
		},
		Gather: func(context.Context) error { return nil },
		Decide: func(context.Context) (hallmark.Decision, error) {
			return hallmark.Decision{Effect: hallmark.Allow}, nil
		},
		Log: func(ctx context.Context, d hallmark.Decision) error {
			return s.logAccess(ctx, "run.cancel", who.Principal, "run:"+id, d, map[string]string{"repository": run.Repository, "revision": run.Revision})
		},
		Effect: func(ctx context.Context) error {
			return s.giveUp(context.WithoutCancel(ctx), run, "given up by "+who.Name+" at "+now().Format(time.RFC3339))
		},
	})
}
