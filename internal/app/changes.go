// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/gate"
	"github.com/hallmark-sc/hallmark/internal/gitcli"
	"github.com/hallmark-sc/hallmark/internal/gitgate"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/internal/source"
	"github.com/hallmark-sc/hallmark/intoto"
)

// change is one change as the log has it: who proposed it and who agreed. It is
// read anew from verified statements each time; there is no other state of it.
type change struct {
	ID, Repository, Target, Revision string
	name                             string // of the repository
	proposals                        []intoto.ChangeReview
	approvals                        []approval
	pack                             hallmark.Digest // of a held push
}

type approval struct {
	intoto.ChangeReview
	statement hallmark.Digest
}

func (s *Server) change(ctx context.Context, id string) (change, error) {
	unknown := hallmark.WithHint(hallmark.Coded(hallmark.KindNotFound, hallmark.CodeChangeUnknown, "there is no change %.40q", id), "hallmark change propose REPOSITORY --from BRANCH --to BRANCH")
	about, err := s.home.logged(ctx, aboutKey, sumKey(attest.SubjectOfChange(id)))
	if err != nil {
		return change{}, err
	}
	c := change{ID: id}
	for _, l := range about {
		if l.statement.PredicateType != intoto.PredicateReview {
			continue
		}
		r, err := intoto.DecodePredicate[intoto.ChangeReview](l.statement)
		if err != nil {
			return c, err
		}
		if r.Change != id || s.parts.changeID(r.Repository, r.Target, r.Revision) != id {
			return c, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeEvidenceMalformed, "entry %d of the log is about another change than %s", l.at, id)
		}
		if err := s.home.evidence(ctx, l); err != nil {
			return c, err
		}
		switch r.Action {
		case intoto.ReviewPropose, intoto.ReviewHold:
			c.Repository, c.Target, c.Revision = r.Repository, r.Target, r.Revision // of the newest
			c.proposals = append(c.proposals, r)
			if r.Pack != "" {
				c.pack = r.Pack
			}
		case intoto.ReviewApprove:
			c.approvals = append(c.approvals, approval{r, l.digest})
		}
	}
	if len(c.proposals) == 0 {
		return c, unknown
	}
	names, err := s.home.repositoryNames()
	if err != nil {
		return c, err
	}
	i := slices.IndexFunc(names, func(n string) bool { return s.uri(n) == c.Repository })
	if i < 0 {
		return c, unknown
	}
	c.name = names[i]
	return c, nil
}

func (s *Server) dir(repository string) string {
	return filepath.Join(s.home.Repositories(), repository+".git")
}

// objects gives the objects of a change: those in the store, and of a held push
// those of its pack, in a quarantine of its own that done removes.
func (s *Server) objects(ctx context.Context, c change) (in *gitcli.Incoming, done func(), err error) {
	dir := s.dir(c.name)
	if c.pack == "" {
		in, err = gitcli.NewIncoming(dir, "")
		return in, func() {}, err
	}
	quarantine, err := os.MkdirTemp(filepath.Join(dir, "objects"), "incoming-held-")
	if err != nil {
		return nil, nil, hallmark.Errorf(hallmark.KindInternal, "unpacking %s: %w", c.ID, err)
	}
	done = func() { os.RemoveAll(quarantine) }
	defer func() {
		if err != nil {
			done()
		}
	}()
	if err := os.Mkdir(filepath.Join(quarantine, "pack"), 0o700); err != nil {
		return nil, nil, hallmark.Errorf(hallmark.KindInternal, "unpacking %s: %w", c.ID, err)
	}
	if in, err = gitcli.NewIncoming(dir, quarantine); err != nil {
		return nil, nil, err
	}
	return in, done, s.unpack(ctx, c, in)
}

// standing is how a change stands: what it would do, who had a part in it, who
// agreed, and what is missing.
type standing struct {
	Base      string
	Facts     source.PushFacts
	Parties   []string // who wrote, signed or pushed it
	Outside   bool     // somebody of them is no trusted person
	Approvers []string // whose agreement counts
	Needed    int
	Used      []hallmark.Digest
	Reasons   []hallmark.Reason
	Rule      access.RefRule
}

// judge works out how a change stands under the rules in force. Whatever was
// proposed or approved, objects and history are looked at again.
func (s *Server) judge(ctx context.Context, r *rules, c change, in *gitcli.Incoming) (standing, error) {
	var st standing
	add := func(code hallmark.Code, missing, fix, format string, args ...any) {
		st.Reasons = append(st.Reasons, hallmark.Reason{Code: code, Check: "review", Message: fmt.Sprintf(format, args...), Missing: missing, Fix: fix})
	}
	base, err := gitcli.Value(ctx, s.dir(c.name), c.Target)
	if err != nil {
		return st, err
	}
	st.Base = base
	rule, ok := r.book.Protection(c.name, c.Target)
	if !ok {
		add(hallmark.CodeRefUnprotected, "a rule of references that fits", "hallmark access refs --set FILE", "no rule of the policy is for %s of %s", c.Target, c.name)
		return st, nil
	}
	st.Rule = rule
	last, err := s.home.lastTransition(ctx, c.Repository, c.Target)
	if err != nil {
		return st, err
	}
	if !at(last, base) && s.hasUpstream(c.name) {
		var why *hallmark.Reason
		if last, why, err = s.catchUp(ctx, c.name, c.Target); err != nil {
			return st, err
		}
		if why != nil {
			st.Reasons = append(st.Reasons, *why)
			return st, nil
		}
		if st.Base, err = gitcli.Value(ctx, s.dir(c.name), c.Target); err != nil {
			return st, err
		}
		base = st.Base
	}
	if !at(last, base) {
		add(hallmark.CodeRefOutsideLog, "", "hallmark source verify shows what differs", "%s is at %s, and the log says %s", c.Target, base, orNone(last.New))
	}
	if strings.Trim(base, "0") == "" {
		refs, err := gitcli.Refs(ctx, s.dir(c.name), "refs/heads", "refs/tags")
		if err != nil {
			return st, err
		}
		if why := taken(c.Target, refs); why != nil {
			st.Reasons = append(st.Reasons, *why)
		}
	} else {
		forward, err := in.Descends(ctx, c.Revision, base)
		if err != nil {
			return st, err
		}
		if !forward {
			add(hallmark.CodeRefNotDescendant, "", "rebase it on the target and propose the new revision", "%s is no descendant of %s, where %s is", c.Revision, base, c.Target)
		}
	}
	st.Facts, err = source.JudgePush(ctx, source.PushConfig{
		Incoming: in, Verify: r.signers, Same: r.same, Clock: now, Binaries: r.binaries, MaxFile: maxPushedFile, MaxReason: maxSameReason,
	}, []source.Update{{Ref: c.Target, Old: base, New: c.Revision}})
	if err != nil {
		return st, err
	}
	st.Reasons = append(st.Reasons, st.Facts.Reasons...)
	if err := s.parties(ctx, r, c, &st); err != nil {
		return st, err
	}
	s.count(r, c, &st)
	st.Reasons = s.parts.heed(st.Reasons)
	return st, nil
}

// parties collects everybody who had a part in a change: its commits' authors,
// committers and signers, who pushed that revision to any reference, and who
// proposed it.
func (s *Server) parties(ctx context.Context, r *rules, c change, st *standing) error {
	var owners []string
	add := func(name string) {
		if p, ok := r.book.Named(name); ok {
			name = p.Name
			if p.Owner != "" { // who answers for a robot directs it
				owners = append(owners, p.Owner)
			}
			if p.Kind == access.Person && p.Outside {
				st.Outside = true
			}
			if p.Owner != "" && !slices.Contains(st.Parties, p.Owner) { // who answers for a program has its keys
				st.Parties = append(st.Parties, p.Owner)
			}
		} else {
			st.Outside = true // nobody whom the policy names
		}
		if name != "" && !slices.Contains(st.Parties, name) {
			st.Parties = append(st.Parties, name)
		}
	}
	for _, pc := range st.Facts.Commits {
		add(source.Mail(pc.Author))
		add(source.Mail(pc.Committer))
		if pc.Signer != nil {
			add(pc.Signer.Name)
		}
	}
	for _, p := range c.proposals {
		add(p.Actor.Name)
	}
	// Who pushed it counts whether the evidence of that can be shown or not.
	pushes, err := s.home.logged(ctx, aboutKey, "gitCommit:"+c.Revision)
	if err != nil {
		return err
	}
	for _, l := range pushes {
		t, ok, err := moved(l)
		if err != nil {
			return err
		}
		if ok && t.Repository == c.Repository && t.New == c.Revision && !t.Void {
			add(t.Actor.Name)
		}
	}
	for _, o := range owners { // persons, who have none
		add(o)
	}
	return nil
}

// count counts the agreements that count: of persons who may approve there, now
// and when they did, and had no part in the change.
func (s *Server) count(r *rules, c change, st *standing) {
	at := now()
	for _, a := range c.approvals {
		if why := s.mayAgree(r, c, st.Parties, a.Actor, at); why != nil || slices.Contains(st.Approvers, a.Actor.Name) {
			continue
		}
		st.Approvers = append(st.Approvers, a.Actor.Name)
		st.Used = append(st.Used, a.statement)
	}
	st.Needed = st.Rule.Needed()
	if st.Outside {
		st.Needed = max(st.Needed, 2)
	}
	if have := len(st.Approvers); have < st.Needed {
		st.Reasons = append(st.Reasons, hallmark.Reason{Code: hallmark.CodeChangeNotApproved, Check: "review",
			Message: fmt.Sprintf("%d of %d trusted persons agreed to %s for %s", have, st.Needed, c.Revision, c.Target),
			Missing: fmt.Sprintf("%d more approvals of exactly this revision for this reference", st.Needed-have), Nearest: nearestApproval(c), Fix: "hallmark change approve " + c.ID + ", by somebody other than " + strings.Join(st.Parties, ", ")})
	}
	for _, o := range st.Rule.Owners {
		i := slices.IndexFunc(st.Facts.Paths, func(p string) bool { return access.Matches(o.Paths, p) })
		if i < 0 || slices.ContainsFunc(st.Approvers, func(a string) bool { return slices.Contains(o.Owners, a) }) {
			continue
		}
		st.Reasons = append(st.Reasons, hallmark.Reason{Code: hallmark.CodeChangeOwner, Check: "review",
			Message: fmt.Sprintf("it changes %q, and no owner approved", st.Facts.Paths[i]), Missing: "an approval of one of " + strings.Join(o.Owners, ", "), Fix: "hallmark change approve " + c.ID + ", by one of them"})
	}
}

// nearestApproval says who agreed although it does not count.
func nearestApproval(c change) string {
	var out []string
	for _, a := range c.approvals {
		out = append(out, a.Actor.Name+" at "+a.On.Format(time.RFC3339))
	}
	return strings.Join(out, ", ")
}

// mayAgree says why somebody's agreement to a change does not count; nil is that
// it does.
func (s *Server) mayAgree(r *rules, c change, parties []string, who hallmark.Principal, at time.Time) *hallmark.Reason {
	return s.mayJudge(r, c, parties, who, access.ChangeApprove, at)
}

// mayJudge says why somebody's word about a change does not count, for what they
// need a permission.
func (s *Server) mayJudge(r *rules, c change, parties []string, who hallmark.Principal, needed access.Permission, at time.Time) *hallmark.Reason {
	name := who.Name
	ruling := r.book.Rule(access.Request{Principal: name, Permission: needed, Repository: c.name, Ref: c.Target, At: at})
	p, _ := r.book.Named(name)
	no := func(format string, args ...any) *hallmark.Reason {
		return &hallmark.Reason{Code: hallmark.CodeChangeApprover, Check: "review", Message: fmt.Sprintf(format, args...), Missing: "an approval of somebody independent", Fix: "let somebody else approve " + c.ID}
	}
	var against *hallmark.Reason
	switch {
	case p.Kind != access.Person:
		against = no("%s is no person: programs don't review", name)
	case p.Outside:
		against = no("%s comes from outside", name)
	case who.Method == byOperator:
		against = no("%s did not sign in: the token was made by who holds the home's keys, who could be anybody with it", name)
		against.Fix = "hallmark sign-in --as " + name + ", with a key of their own"
	case slices.Contains(parties, p.Name):
		against = no("%s wrote, signed, pushed or proposed it", name)
	case !ruling.Allowed:
		against = &ruling.Reason
	}
	if against != nil && s.parts.ignores(*against) {
		return nil
	}
	return against
}

// propose makes a change of the revision that a branch is at.
func (s *Server) propose(ctx context.Context, who gitgate.Caller, repository, from, to, title string) (string, hallmark.Decision, error) {
	r, err := s.current()
	if err != nil {
		return "", hallmark.Decision{}, err
	}
	if gitgate.CheckName(repository) != nil || refName("refs/heads/"+from) != "" || refName("refs/heads/"+to) != "" || len(title) > 500 {
		return "", hallmark.Decision{}, hallmark.Errorf(hallmark.KindUsage, "change: repository, branches or title can't be read")
	}
	source, target := "refs/heads/"+from, "refs/heads/"+to
	review := intoto.ChangeReview{Action: intoto.ReviewPropose, Repository: s.uri(repository), Target: target, From: source, Title: title, Actor: who.Principal, On: now(), Policy: r.policy}
	g := &sourceGate{s}
	d, err := gate.Pass(ctx, gate.Steps{
		Authenticate: func(context.Context) (hallmark.Principal, error) { return who.Principal, nil },
		Authorize: func(context.Context, hallmark.Principal) ([]hallmark.Reason, error) {
			ruling := g.may(r, who, access.ChangePropose, repository, target)
			review.Grant = ruling.Grant
			if !ruling.Allowed {
				return []hallmark.Reason{ruling.Reason}, nil
			}
			return nil, nil
		},
		Gather: func(ctx context.Context) (err error) {
			if review.Revision, err = gitcli.Value(ctx, s.dir(repository), source); err != nil {
				return err
			}
			if strings.Trim(review.Revision, "0") == "" {
				return hallmark.Coded(hallmark.KindNotFound, hallmark.CodeSourceRevisionUnknown, "there is no branch %s in %s", from, repository)
			}
			review.Change = s.parts.changeID(review.Repository, target, review.Revision)
			review.Base, err = gitcli.Value(ctx, s.dir(repository), target)
			return err
		},
		Decide: func(context.Context) (hallmark.Decision, error) {
			return hallmark.Decision{Effect: hallmark.Allow}, nil
		},
		Log: func(ctx context.Context, d hallmark.Decision) error { return s.logReview(ctx, review, d) },
	})
	return review.Change, d, err
}

// logReview signs what somebody said; a refusal is an access record.
func (s *Server) logReview(ctx context.Context, r intoto.ChangeReview, d hallmark.Decision) error {
	if d.Allowed() {
		st, err := attest.ChangeReview(r)
		if err != nil {
			return err
		}
		_, err = s.signer.sign(ctx, sign.Gate, st, nil)
		return err
	}
	return s.logAccess(ctx, "change."+r.Action, r.Actor, r.Repository+"#"+r.Target, d, map[string]string{"revision": r.Revision})
}

func (s *Server) logAccess(ctx context.Context, action string, who hallmark.Principal, resource string, d hallmark.Decision, details map[string]string) error {
	st, err := attest.AccessRecord(intoto.AccessRecord{
		Action: action, Actor: who, Resource: resource, Effect: d.Effect, On: now(), Policy: s.rules().policy, Details: details, Reasons: d.Reasons,
	})
	if err != nil {
		return err
	}
	_, err = s.signer.sign(ctx, sign.Gate, st, nil)
	return err
}

// approve takes somebody's agreement to a change, if it would count.
func (s *Server) approve(ctx context.Context, who gitgate.Caller, id string) (hallmark.Decision, error) {
	r, err := s.current()
	if err != nil {
		return hallmark.Decision{}, err
	}
	c, err := s.change(ctx, id)
	if err != nil {
		return hallmark.Decision{}, err
	}
	review := intoto.ChangeReview{Action: intoto.ReviewApprove, Change: c.ID, Repository: c.Repository, Target: c.Target, Revision: c.Revision, Actor: who.Principal, On: now(), Policy: r.policy}
	var st standing
	g := &sourceGate{s}
	return gate.Pass(ctx, gate.Steps{
		Authenticate: func(context.Context) (hallmark.Principal, error) { return who.Principal, nil },
		Authorize: func(context.Context, hallmark.Principal) ([]hallmark.Reason, error) {
			ruling := g.may(r, who, access.ChangeApprove, c.name, c.Target)
			review.Grant = ruling.Grant
			if !ruling.Allowed {
				return []hallmark.Reason{ruling.Reason}, nil
			}
			return nil, nil
		},
		Gather: func(ctx context.Context) error {
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
			if why := s.mayAgree(r, c, st.Parties, who.Principal, now()); why != nil {
				return gate.Denied(*why), nil
			}
			return hallmark.Decision{Effect: hallmark.Allow}, nil
		},
		Log: func(ctx context.Context, d hallmark.Decision) error { return s.logReview(ctx, review, d) },
	})
}

// merge lands a change: the reference moves to exactly the revision that was
// approved, from where it was looked at.
func (s *Server) merge(ctx context.Context, who gitgate.Caller, id string) (hallmark.Decision, error) {
	r, err := s.current()
	if err != nil {
		return hallmark.Decision{}, err
	}
	c, err := s.change(ctx, id)
	if err != nil {
		return hallmark.Decision{}, err
	}
	done := func() {}
	defer func() { done() }()
	var st standing
	var held *gitcli.Held
	var unlock func()
	up, err := s.home.upstream(c.name)
	if err != nil {
		return hallmark.Decision{}, err
	}
	moves := []source.Update{} // what is left to forward
	defer func() {
		if unlock != nil {
			unlock()
		}
	}()
	var logged hallmark.Digest
	t := intoto.RefTransition{Repository: c.Repository, Ref: c.Target, New: c.Revision, Actor: who.Principal, On: now(), Policy: r.policy}
	g := &sourceGate{s}
	d, err := gate.Pass(ctx, gate.Steps{
		Authenticate: func(context.Context) (hallmark.Principal, error) { return who.Principal, nil },
		Authorize: func(context.Context, hallmark.Principal) ([]hallmark.Reason, error) {
			ruling := g.may(r, who, access.ChangeMerge, c.name, c.Target)
			t.Grant = ruling.Grant
			if !ruling.Allowed {
				return []hallmark.Reason{ruling.Reason}, nil
			}
			return nil, nil
		},
		Gather: func(ctx context.Context) (err error) {
			in, unpacked, err := s.objects(ctx, c)
			if err != nil {
				return err
			}
			done = unpacked
			if st, err = s.judge(ctx, r, c, in); err != nil {
				return err
			}
			last, err := s.home.lastTransition(ctx, c.Repository, c.Target)
			if err != nil {
				return err
			}
			t.Old, t.Rule, t.Approvals, t.Previous = st.Base, st.Rule.Name, st.Used, last.Statement
			for _, pc := range st.Facts.Commits {
				t.Commits = append(t.Commits, intoto.RefCommit(pc))
			}
			return s.requiredChecks(ctx, c, &st)
		},
		Decide: func(ctx context.Context) (hallmark.Decision, error) {
			if len(st.Reasons) > 0 {
				return gate.Denied(st.Reasons...), nil
			}
			if c.pack != "" { // into the store, where no reference shows it yet
				if err := s.store(ctx, c); err != nil {
					return hallmark.Decision{}, err
				}
			}
			var err error
			if up != nil { // who forwards has this lock before git's; so has a push
				if unlock, err = s.locks.lock(ctx, c.name, c.Target); err != nil {
					return hallmark.Decision{}, err
				}
				t.Upstream = up.URL
				var why *hallmark.Reason
				if moves, why = ahead(ctx, up, []source.Update{{Ref: c.Target, Old: st.Base, New: c.Revision}}); why != nil && !s.parts.ignores(*why) {
					return gate.Denied(*why), nil
				}
			}
			held, err = gitcli.Hold(ctx, s.dir(c.name), c.Target, c.Revision, st.Base)
			if hallmark.KindOf(err) == hallmark.KindDenied && err != nil {
				return gate.Denied(hallmark.Reason{Code: hallmark.CodeOf(err), Check: "source", Message: err.Error(), Fix: hallmark.HintOf(err)}), nil
			}
			if err != nil {
				return hallmark.Decision{}, err
			}
			if unlock == nil {
				if unlock, err = s.locks.lock(ctx, c.name, c.Target); err != nil {
					return hallmark.Decision{}, err
				}
			}
			// git's lock says that the reference is where it was judged; what the log
			// says may have changed in between.
			last, err := s.home.lastTransition(ctx, c.Repository, c.Target)
			if err != nil {
				return hallmark.Decision{}, err
			}
			if !at(last, st.Base) {
				return gate.Denied(hallmark.Reason{Code: hallmark.CodeRefBusy, Check: "source", Message: c.Target + " moved since the change was judged", Fix: "try again"}), nil
			}
			t.Previous = last.Statement
			return hallmark.Decision{Effect: hallmark.Allow}, nil
		},
		Log: func(ctx context.Context, d hallmark.Decision) error {
			t.Effect, t.Reasons = d.Effect, d.Reasons
			if d.Allowed() {
				var err error
				if t.Controls, err = s.controls(ctx, c.name, st.Rule, t, true); err != nil {
					return err
				}
				t.Obligations = obliges(st.Rule, t)
				logged, err = s.transit(ctx, t, st.Rule)
				return err
			}
			statement, err := attest.RefTransition(t)
			if err == nil {
				_, err = s.signer.sign(ctx, sign.Gate, statement, nil)
			}
			return err
		},
		Effect: func(ctx context.Context) error {
			if up != nil {
				in, err := gitcli.NewIncoming(s.dir(c.name), "")
				if err == nil {
					err = s.send(ctx, up, in, moves)
				}
				if err != nil {
					return err
				}
			}
			return held.Commit()
		},
	})
	if held != nil && (err != nil || !d.Allowed()) {
		held.Release()
		if logged != "" { // and it did not move, or nobody knows
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			err = errors.Join(err, s.settle(last, c.name, c.Target, logged))
		}
	}
	if err == nil && d.Allowed() {
		s.log.Info("reference moves", "principal", who.Name, "repository", c.name, "ref", c.Target, "new", c.Revision, "change", c.ID)
	}
	if unlock != nil && logged != "" {
		if err := s.landed(context.WithoutCancel(ctx), c.name, c.Target, logged); err != nil {
			s.log.Error("a build could not be queued; the next start does it", "repository", c.name, "ref", c.Target, "error", err.Error())
		}
	}
	return d, err
}

func (s *Server) store(ctx context.Context, c change) error {
	into, err := gitcli.NewIncoming(s.dir(c.name), "")
	if err != nil {
		return err
	}
	return s.unpack(ctx, c, into)
}

func (s *Server) unpack(ctx context.Context, c change, into *gitcli.Incoming) error {
	pack, err := s.home.stores.blobs.Open(ctx, c.pack)
	if err != nil {
		return fmt.Errorf("reading the pack of %s: %w", c.ID, err)
	}
	defer pack.Close()
	return into.Unpack(ctx, pack)
}

// requiredChecks wants each check that the rule names to have passed for exactly
// this revision. A later pass hides no earlier failure.
func (s *Server) requiredChecks(ctx context.Context, c change, st *standing) error {
	if len(st.Rule.Checks) == 0 {
		return nil
	}
	about, err := s.home.logged(ctx, checkKey, c.Revision)
	if err != nil {
		return err
	}
	passed, failed := map[string]bool{}, map[string]hallmark.Reason{}
	for _, l := range about {
		rec, err := intoto.CheckOf(l.statement)
		if err != nil {
			return err
		}
		if rec == nil || rec.Revision.Repository != c.Repository || rec.Revision.Commit != c.Revision {
			continue
		}
		if rec.Outcome != hallmark.Pass { // whether the evidence of it can be shown or not
			failed[rec.Check] = hallmark.Reason{Code: hallmark.CodeCheckFailed, Check: rec.Check, Message: fmt.Sprintf("check %s ended %s for %s", rec.Check, rec.Outcome, c.Revision), Fix: "mend it and propose the new revision"}
			continue
		}
		kept, err := s.home.kept(ctx, l)
		if err != nil {
			return err
		}
		passed[rec.Check] = passed[rec.Check] || kept
	}
	for _, name := range st.Rule.Checks {
		if why, bad := failed[name]; bad {
			st.Reasons = append(st.Reasons, why)
		} else if !passed[name] {
			fix := "hallmark run --server URL " + c.name + " --rev " + c.Revision
			if c.ID != "" { // nobody but maintainers can have it run
				fix = "hallmark change run " + c.ID
			}
			st.Reasons = append(st.Reasons, hallmark.Reason{Code: hallmark.CodeCheckNotRun, Check: name, Message: fmt.Sprintf("check %s has not passed for %s", name, c.Revision),
				Missing: "a passed check of exactly this revision", Fix: fix})
		}
	}
	return nil
}
