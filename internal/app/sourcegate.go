// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

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

// sourceGate implements gitgate.Gate.
type sourceGate struct{ s *Server }

type verdictOf = source.Verdict

// Authenticate takes a token as the password of HTTP's basic authentication, or
// as a bearer's.
func (g *sourceGate) Authenticate(ctx context.Context, r *http.Request) (gitgate.Caller, error) {
	t, err := g.s.token(ctx, r)
	if err != nil {
		g.s.refusedCredential(ctx, r, t.ID, err)
		return gitgate.Caller{}, err
	}
	return gitgate.Caller{Principal: hallmark.Principal{Name: t.Principal, Key: t.ID, Method: t.Method}, Token: t}, nil
}

// may asks both the principal's grants and the limits of the token.
func (g *sourceGate) may(r *rules, who gitgate.Caller, p access.Permission, repository, ref string) access.Ruling {
	return g.mayDo(r, who, access.Request{Permission: p, Repository: repository, Ref: ref})
}

func (g *sourceGate) mayDo(r *rules, who gitgate.Caller, req access.Request) access.Ruling {
	p, repository := req.Permission, req.Repository
	t, ok := who.Token.(access.Token)
	if !ok || !t.Covers(p, repository) {
		reason := hallmark.Reason{Code: hallmark.CodeAccessScope, Check: "access",
			Message: fmt.Sprintf("token %s is not for %s in %s", who.Key, p, repository), Fix: "sign in for it: hallmark sign-in --scope " + string(p)}
		if !g.s.parts.ignores(reason) {
			return access.Ruling{Reason: reason}
		}
	}
	req.Principal, req.At = who.Name, now()
	ruling := r.book.Rule(req)
	ruling.Allowed = ruling.Allowed || g.s.parts.ignores(ruling.Reason)
	return ruling
}

// Fetch decides whether somebody may read a repository.
func (g *sourceGate) Fetch(ctx context.Context, who gitgate.Caller, repository string, record bool) (hallmark.Decision, error) {
	r, err := g.s.current()
	if err != nil {
		return hallmark.Decision{}, err
	}
	ruling := g.may(r, who, access.RepositoryRead, repository, "")
	d := hallmark.Decision{Effect: hallmark.Allow}
	if !ruling.Allowed {
		d = gate.Denied(ruling.Reason)
	}
	if !record && d.Allowed() {
		return d, nil
	}
	g.s.counters.count("fetch", d, nil)
	if !d.Allowed() {
		g.s.alerts.denied("fetch", who.Name, repository, "", d.Reasons)
	}
	err = g.s.spool.add(ctx, fetchRecord{
		Principal: who.Name, Token: who.Key, Method: who.Method, Repository: repository, Effect: d.Effect, Grant: ruling.Grant, Code: ruling.Reason.Code, Policy: r.policy, On: now(),
	})
	if err != nil {
		return hallmark.Decision{}, err
	}
	return d, nil
}

// considered is what Record needs of a decision.
type considered struct {
	rules  *rules
	uri    string
	facts  source.PushFacts
	checks []hallmark.CheckRecord
	grants map[string]string // by ref
	rule   map[string]access.RefRule
	last   map[string]lastTransition // by ref
	on     time.Time
	done   map[string]hallmark.Digest // statements recorded, by ref
	locked []lockedRef                // of the transaction under way
	held   bool                       // it waits for maintainers
	// upstream is where the repository is forwarded to; nil is nowhere.
	upstream *gitcli.Upstream
}

type lockedRef struct {
	ref    string
	unlock func()
}

// Consider judges a push while its objects are in quarantine.
func (g *sourceGate) Consider(ctx context.Context, p *gitgate.Push, say func(string)) (hallmark.Decision, error) {
	d, err := g.consider(ctx, p, say)
	g.s.counters.count("push", d, err)
	if err == nil && !d.Allowed() {
		ref := ""
		if len(p.Updates) > 0 {
			ref = p.Updates[0].Ref
		}
		g.s.alerts.denied("push", p.Caller.Name, p.Repository, ref, d.Reasons)
	}
	return d, err
}

func (g *sourceGate) consider(ctx context.Context, p *gitgate.Push, say func(string)) (hallmark.Decision, error) {
	r, err := g.s.current()
	if err != nil {
		return hallmark.Decision{}, err
	}
	c := &considered{rules: r, uri: g.s.uri(p.Repository), grants: map[string]string{}, rule: map[string]access.RefRule{}, last: map[string]lastTransition{}, on: now(), done: map[string]hallmark.Digest{}}
	p.State = c
	if c.upstream, err = g.s.home.upstream(p.Repository); err != nil {
		return hallmark.Decision{}, err
	}
	in, err := gitcli.NewIncoming(p.Dir, p.Quarantine)
	if err != nil {
		return hallmark.Decision{}, err
	}
	g.s.signer.warm(ctx) // whatever is decided is signed
	var reasons []hallmark.Reason
	return gate.Consider(ctx, gate.Steps{
		Authenticate: func(context.Context) (hallmark.Principal, error) { return p.Caller.Principal, nil },
		Authorize: func(ctx context.Context, _ hallmark.Principal) ([]hallmark.Reason, error) {
			against, err := g.authorize(ctx, p, c)
			return g.s.parts.heed(against), err
		},
		Gather: func(ctx context.Context) error {
			reasons, err = g.gather(ctx, p, c, in, say)
			reasons = g.s.parts.heed(reasons)
			return err
		},
		Decide: func(ctx context.Context) (hallmark.Decision, error) {
			if len(reasons) > 0 {
				return gate.Denied(reasons...), nil
			}
			if c.held {
				return g.hold(ctx, p, c, in)
			}
			if c.upstream != nil {
				return g.forward(ctx, p, c, in, say)
			}
			return hallmark.Decision{Effect: hallmark.Allow}, nil
		},
		Log: func(ctx context.Context, d hallmark.Decision) error { return g.refused(ctx, p, c, d) },
	})
}

var pushedRef = regexp.MustCompile(`^refs/(heads|tags)/[A-Za-z0-9_][A-Za-z0-9._/+@=-]*$`)

// refName says what is wrong with the name of a reference, or "". Names are used
// by scripts all over; none is let in that a shell or a path could misread.
func refName(ref string) string {
	switch {
	case !pushedRef.MatchString(ref):
		return "only branches and tags are taken, named with letters, digits and . _ / + @ = -"
	case strings.Contains(ref, "/-") || strings.Contains(ref, "..") || strings.Contains(ref, "//") || strings.HasSuffix(ref, "/") || strings.HasSuffix(ref, ".lock") || strings.HasSuffix(ref, ".") || strings.Contains(ref, "/.") || strings.Contains(ref, "@{"):
		return "git or a path could read it as something else"
	case len(ref) > 200:
		return "it is longer than 200 characters"
	}
	_, short, _ := strings.Cut(strings.TrimPrefix(ref, "refs/"), "/")
	if first, _, more := strings.Cut(short, "/"); more && slices.Contains([]string{"refs", "heads", "tags", "remotes"}, strings.ToLower(first)) || strings.HasSuffix(strings.ToUpper(short), "HEAD") && !more {
		return "git could take it for another reference"
	}
	if len(short) >= 7 && strings.Trim(short, "0123456789abcdef") == "" {
		return "it looks like a commit"
	}
	return ""
}

// authorize asks who may move each reference at all, and how.
func (g *sourceGate) authorize(ctx context.Context, p *gitgate.Push, c *considered) ([]hallmark.Reason, error) {
	if n := len(p.Updates); n == 0 || n > maxPushedRefs {
		return []hallmark.Reason{{Code: hallmark.CodePushRefs, Check: "access", Message: fmt.Sprintf("a push of %d references; 1 to %d are taken at once", n, maxPushedRefs), Fix: "push fewer at a time"}}, nil
	}
	out := alike(p.Updates)
	for _, u := range p.Updates {
		if why := refName(u.Ref); why != "" {
			out = append(out, hallmark.Reason{Code: hallmark.CodeRefName, Check: "access", Message: fmt.Sprintf("reference %q: %s", u.Ref, why), Fix: "use another name"})
			continue
		}
		permission := access.RefPush
		tag := strings.HasPrefix(u.Ref, "refs/tags/")
		if tag {
			permission = access.RefTag
		}
		ruling := g.may(c.rules, p.Caller, permission, p.Repository, u.Ref)
		if !ruling.Allowed {
			if asks := g.may(c.rules, p.Caller, access.ChangePropose, p.Repository, u.Ref); asks.Allowed && !tag && len(p.Updates) == 1 && !u.Deletes() {
				ruling, c.held = asks, true
			} else {
				out = append(out, ruling.Reason)
				continue
			}
		}
		c.grants[u.Ref] = ruling.Grant
		last, err := g.s.home.lastTransition(ctx, c.uri, u.Ref)
		if err != nil {
			return nil, err
		}
		if c.upstream != nil && !at(last, u.Old) {
			var why *hallmark.Reason
			if last, why, err = g.s.catchUp(ctx, p.Repository, u.Ref); err != nil {
				return nil, err
			}
			if why != nil {
				out = append(out, *why)
				continue
			}
		}
		c.last[u.Ref] = last
		rule, ok := c.rules.book.Protection(p.Repository, u.Ref)
		c.rule[u.Ref] = rule
		switch {
		case !ok:
			out = append(out, hallmark.Reason{Code: hallmark.CodeRefUnprotected, Check: "access", Message: "no rule of the policy is for " + u.Ref + " of " + p.Repository + ", so nothing may move it",
				Missing: "a rule of references that fits", Fix: "hallmark access refs --set FILE"})
		case !at(last, u.Old):
			reason, err := g.elsewhere(ctx, p, c, u)
			if err != nil {
				return nil, err
			}
			out = append(out, reason)
		case tag && byChange(rule):
			out = append(out, hallmark.Reason{Code: hallmark.CodeRefNeedsChange, Check: "access", Message: fmt.Sprintf("rule %s wants approvals, checks or owners for %s, and no change can be made for a tag", rule.Name, u.Ref),
				Fix: "let the rule for tags want none of them, and say who may make tags: hallmark access refs --set FILE"})
		case tag:
			out = append(out, tagReasons(u, last)...)
		case c.held:
		case byChange(rule):
			out = append(out, hallmark.Reason{Code: hallmark.CodeRefNeedsChange, Check: "access", Message: fmt.Sprintf("%s takes only changes that %d persons agreed to", u.Ref, rule.Needed()) + wanted(rule),
				Missing: "an approved change for " + u.New, Fix: "push to a branch of your own, then: hallmark change propose " + p.Repository + " --from BRANCH --to " + strings.TrimPrefix(u.Ref, "refs/heads/")})
		case u.Deletes() && rule.History != access.Rewrite:
			out = append(out, hallmark.Reason{Code: hallmark.CodeRefDelete, Check: "access", Message: u.Ref + " can't be deleted: rule " + rule.Name, Fix: "leave it; nothing is lost by keeping it"})
		}
	}
	return out, nil
}

// at reports whether the log says that a reference is at a revision.
func at(last lastTransition, id string) bool {
	return last.New == id || last.New == "" && strings.Trim(id, "0") == ""
}

// elsewhere says why a reference is not where a push wants to move it from: another
// push was faster, or somebody went round the gate.
func (g *sourceGate) elsewhere(ctx context.Context, p *gitgate.Push, c *considered, u source.Update) (hallmark.Reason, error) {
	unlock, err := g.s.locks.lock(ctx, p.Repository, u.Ref) // nothing is logged and not yet done then
	if err != nil {
		return hallmark.Reason{}, err
	}
	defer unlock()
	last, err := g.s.home.lastTransition(ctx, c.uri, u.Ref)
	if err != nil {
		return hallmark.Reason{}, err
	}
	is, err := gitcli.Value(ctx, p.Dir, u.Ref)
	if err != nil {
		return hallmark.Reason{}, err
	}
	if at(last, is) {
		return hallmark.Reason{Code: hallmark.CodeRefBusy, Check: "source", Message: fmt.Sprintf("%s moved to %s while this was pushed", u.Ref, is), Fix: "fetch, and push again"}, nil
	}
	return hallmark.Reason{Code: hallmark.CodeRefOutsideLog, Check: "source", Message: fmt.Sprintf("%s is at %s, and the log says %s: it was moved outside of the gate", u.Ref, is, orNone(last.New)),
		Fix: "find out who moved it; hallmark source verify shows what differs"}, nil
}

// byChange reports whether a rule wants what a push can't show.
func byChange(r access.RefRule) bool {
	return r.Needed() > 0 || len(r.Checks) > 0 || len(r.Owners) > 0
}

func wanted(r access.RefRule) string {
	if len(r.Checks) == 0 {
		return ""
	}
	return ", and that passed " + strings.Join(r.Checks, ", ")
}

// alike finds references of one push that a person, a path or git could take for
// one another, and what stands in it twice.
func alike(updates []source.Update) []hallmark.Reason {
	var out []hallmark.Reason
	seen := map[string]string{}
	for _, u := range updates {
		short := shortName(u.Ref)
		if other, twice := seen[short]; twice {
			out = append(out, hallmark.Reason{Code: hallmark.CodeRefName, Check: "access", Message: fmt.Sprintf("%q and %q in one push would be taken for each other", other, u.Ref), Fix: "use another name"})
		}
		seen[short] = u.Ref
	}
	return out
}

// shortName is a reference's name without its kind, as it is compared.
func shortName(ref string) string {
	_, short, _ := strings.Cut(strings.TrimPrefix(ref, "refs/"), "/")
	return source.Fold(short)
}

// taken says which of the references a new one would be taken for.
func taken(ref string, refs map[string]string) *hallmark.Reason {
	short := func(ref string) string {
		_, short, _ := strings.Cut(strings.TrimPrefix(ref, "refs/"), "/")
		return short
	}
	wanted, other := short(ref), ""
	for name := range refs {
		if name != ref && sameFolded(short(name), wanted) && (other == "" || name < other) {
			other = name
		}
	}
	if other == "" {
		return nil
	}
	return &hallmark.Reason{Code: hallmark.CodeRefName, Check: "access", Message: ref + " would be taken for " + other, Fix: "use another name"}
}

func orNone(id string) string {
	if strings.Trim(id, "0") == "" {
		return "that it does not exist"
	}
	return id
}

// tagReasons: tags never move, never die and never return under another commit.
func tagReasons(u source.Update, last lastTransition) []hallmark.Reason {
	const fix = "make a new tag under another name"
	reason := func(format string, args ...any) []hallmark.Reason {
		return []hallmark.Reason{{Code: hallmark.CodeTagImmutable, Check: "source", Message: fmt.Sprintf(format, args...), Fix: fix}}
	}
	switch {
	case u.Deletes():
		return reason("tag %s can't be deleted", u.Ref)
	case !u.Creates():
		return reason("tag %s can't be moved from %s", u.Ref, u.Old)
	case last.Ever != "" && last.Ever != u.New:
		return reason("tag %s was %s before and can't come back as %s", u.Ref, last.Ever, u.New)
	}
	return nil
}

// Limits on one push.
const (
	maxPushedRefs = 100
	maxPushedFile = 100 << 20
	maxSameReason = 10
	// maxLoggedReasons bounds what is logged of each reference that was refused.
	maxLoggedReasons = 50
	// knownTips is how many branches are named to git as judged, and lookedUp how
	// many are looked up in the log for that.
	knownTips = 200
	lookedUp  = 400
)

// gather looks at history, commits, objects and secrets.
func (g *sourceGate) gather(ctx context.Context, p *gitgate.Push, c *considered, in *gitcli.Incoming, say func(string)) ([]hallmark.Reason, error) {
	var out []hallmark.Reason
	heads := sync.OnceValues(func() (map[string]string, error) { return gitcli.Refs(ctx, p.Dir, "refs/heads", "refs/tags") })
	every := map[string]bool{}
	names := map[string]string{}
	if slices.ContainsFunc(p.Updates, source.Update.Creates) {
		all, err := heads()
		if err != nil {
			return nil, err
		}
		names = maps.Clone(all)
	}
	for _, u := range p.Updates {
		reasons, err := g.history(ctx, u, c.rule[u.Ref], names, in)
		if err != nil {
			return nil, err
		}
		out = append(out, reasons...)
		names[u.Ref] = u.New
		every[u.Ref] = c.rule[u.Ref].History == access.Descend
	}
	known := func(ctx context.Context) ([]string, error) {
		all, err := heads()
		if err != nil {
			return nil, err
		}
		return g.judged(ctx, p.Dir, c.uri, all)
	}
	say("looking at what was pushed")
	facts, err := source.JudgePush(ctx, source.PushConfig{
		Incoming: in, Verify: c.rules.signers, Same: c.rules.same, Known: known, Every: every, Clock: now, Binaries: c.rules.binaries, MaxFile: maxPushedFile, MaxReason: maxSameReason,
	}, p.Updates)
	if err != nil {
		return nil, err
	}
	c.facts = facts
	out = append(out, facts.Reasons...)
	reasons, err := g.paths(ctx, p, c, in)
	if err != nil {
		return nil, err
	}
	out = append(out, reasons...)
	for ref, tip := range facts.Tips {
		if c.held { // its checks are asked for when it lands
			break
		}
		st := standing{Rule: c.rule[ref]}
		if err := g.s.requiredChecks(ctx, change{Repository: c.uri, name: p.Repository, Revision: tip}, &st); err != nil {
			return nil, err
		}
		out = append(out, st.Reasons...)
	}
	rec, found, err := g.secrets(ctx, p, c, in)
	if err != nil {
		return nil, err
	}
	c.checks = append(c.checks, rec)
	if rec.Outcome != hallmark.Pass {
		places, err := placesOf(ctx, in, facts, found)
		if err != nil {
			return nil, err
		}
		out = append(withheld(out), pushedSecrets(rec, found, places)...)
	}
	return out, nil
}

// judged are the tips of branches whose history was judged: those that are where
// the log says. One that was moved outside of the gate vouches for nothing. The
// repository's own first branch comes first: most others begin there.
func (g *sourceGate) judged(ctx context.Context, dir, uri string, heads map[string]string) ([]string, error) {
	names := slices.Sorted(maps.Keys(heads))
	if first := gitcli.First(dir); heads[first] != "" {
		names = append([]string{first}, names...)
	}
	var out []string
	looked := 0
	for _, name := range names {
		if len(out) == knownTips || looked == lookedUp {
			break
		}
		if !strings.HasPrefix(name, "refs/heads/") {
			continue
		}
		looked++
		l, last, ok, err := g.s.home.lastLogged(ctx, uri, name)
		if err != nil {
			return nil, err
		}
		if !ok || last.New != heads[name] {
			continue
		}
		if ok, err = g.s.home.kept(ctx, l); err != nil {
			return nil, err
		}
		if ok {
			out = append(out, heads[name])
		}
	}
	return out, nil
}

// history wants branches to go forward, and names that are not taken.
func (g *sourceGate) history(ctx context.Context, u source.Update, rule access.RefRule, heads map[string]string, in *gitcli.Incoming) ([]hallmark.Reason, error) {
	if u.Creates() {
		if r := taken(u.Ref, heads); r != nil {
			return []hallmark.Reason{*r}, nil
		}
		return nil, nil
	}
	if u.Deletes() || rule.History == access.Rewrite || strings.HasPrefix(u.Ref, "refs/tags/") {
		return nil, nil
	}
	forward, err := in.Descends(ctx, u.New, u.Old)
	if err != nil || forward {
		return nil, err
	}
	return []hallmark.Reason{{Code: hallmark.CodeRefNotDescendant, Check: "source", Message: fmt.Sprintf("%s can move forward only: %s is no descendant of %s", u.Ref, u.New, u.Old),
		Fix: "git pull --rebase, or git revert what should be undone"}}, nil
}

// sameFolded compares names as file systems do that ignore case. Nearly all are
// ASCII, where that is quick.
func sameFolded(a, b string) bool {
	ascii := func(s string) bool {
		return strings.IndexFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) < 0
	}
	if ascii(a) && ascii(b) {
		return len(a) == len(b) && strings.EqualFold(a, b)
	}
	return source.Fold(a) == source.Fold(b)
}

func (r *rules) same(principal, address string) bool {
	p, ok := r.book.Named(principal)
	return ok && p.Kind == access.Person && slices.ContainsFunc(p.Aliases, func(a string) bool { return strings.EqualFold(a, address) })
}

// transition is the statement of one update.
func (c *considered) transition(p *gitgate.Push, u source.Update) intoto.RefTransition {
	t := intoto.RefTransition{
		Repository: c.uri, Ref: u.Ref, Old: u.Old, New: u.New, Actor: p.Caller.Principal, Grant: c.grants[u.Ref], On: c.on,
		Policy: c.rules.policy, Rule: c.rule[u.Ref].Name, Previous: c.last[u.Ref].Statement, Checks: c.checks,
	}
	if tip := c.facts.Tips[u.Ref]; tip != u.New {
		t.Commit = tip
	}
	if c.upstream != nil {
		t.Upstream = c.upstream.URL
	}
	for _, pc := range c.facts.Commits {
		t.Commits = append(t.Commits, intoto.RefCommit(pc))
	}
	return t
}

// refused keeps the evidence of a denial.
func (g *sourceGate) refused(ctx context.Context, p *gitgate.Push, c *considered, d hallmark.Decision) error {
	updates := p.Updates
	if len(updates) > maxPushedRefs {
		updates = updates[:1]
	}
	for _, u := range updates {
		t := c.transition(p, u)
		t.Effect, t.Reasons = hallmark.Deny, d.Reasons[:min(len(d.Reasons), maxLoggedReasons)]
		if slices.ContainsFunc(d.Reasons, func(r hallmark.Reason) bool { return r.Code == hallmark.CodeSecretFound }) {
			for i := range t.Commits { // an author's name can hold it too
				t.Commits[i].Author, t.Commits[i].Committer = "", ""
			}
		}
		st, err := attest.RefTransition(t)
		if err != nil {
			return err
		}
		if _, err := g.s.signer.sign(ctx, sign.Gate, st, nil); err != nil {
			return err
		}
	}
	g.s.log.Info("push refused", "principal", p.Caller.Name, "repository", p.Repository, "codes", codesOf(d.Reasons))
	return nil
}

func codesOf(reasons []hallmark.Reason) []string {
	var out []string
	for _, r := range reasons {
		if !slices.Contains(out, string(r.Code)) {
			out = append(out, string(r.Code))
		}
	}
	return out
}

// malformed logs that git itself would not take a push, before it asked anything:
// its objects are damaged or not all there.
func (g *sourceGate) malformed(ctx context.Context, p *gitgate.Push) error {
	r, err := g.s.current()
	if err != nil {
		return err
	}
	p.Updates = p.Announced
	c := &considered{rules: r, uri: g.s.uri(p.Repository), grants: map[string]string{}, rule: map[string]access.RefRule{}, last: map[string]lastTransition{}, on: now()}
	d := gate.Denied(hallmark.Reason{Code: hallmark.CodeSourceObjectInvalid, Check: "source", Message: "git did not take the objects of the push: they are damaged, or some are missing", Fix: "git fsck, in the repository that was pushed from"})
	g.s.counters.count("push", d, nil)
	return g.refused(ctx, p, c, d)
}

// hold keeps a push of somebody who may only propose: as a pack that no reference
// shows, until maintainers agreed to exactly this revision.
func (g *sourceGate) hold(ctx context.Context, p *gitgate.Push, c *considered, in *gitcli.Incoming) (hallmark.Decision, error) {
	u := p.Updates[0]
	heads, err := gitcli.Refs(ctx, p.Dir, "refs/heads")
	if err != nil {
		return hallmark.Decision{}, err
	}
	digest, err := g.keepPack(ctx, in, u.New, slices.Collect(maps.Values(heads)))
	if err != nil {
		return hallmark.Decision{}, err
	}
	r := intoto.ChangeReview{
		Action: intoto.ReviewHold, Change: g.s.parts.changeID(c.uri, u.Ref, u.New), Repository: c.uri, Target: u.Ref, Revision: u.New, Base: u.Old,
		Actor: p.Caller.Principal, Grant: c.grants[u.Ref], Pack: digest, On: c.on, Policy: c.rules.policy,
	}
	if err := g.s.logReview(ctx, r, hallmark.Decision{Effect: hallmark.Allow}); err != nil {
		return hallmark.Decision{}, err
	}
	if err := g.s.voidRuns(ctx, p.Repository, r); err != nil {
		return hallmark.Decision{}, err
	}
	return gate.Denied(hallmark.Reason{Code: hallmark.CodeChangeHeld, Check: "review", Message: "it is kept as change " + r.Change + " and lands when maintainers agreed; it need not be pushed again",
		Missing: "approvals of " + u.New + " for " + u.Ref, Fix: "a maintainer: hallmark change show " + r.Change + "; hallmark change approve " + r.Change}), nil
}

// keepPack streams a pack into the blobs.
func (g *sourceGate) keepPack(ctx context.Context, in *gitcli.Incoming, id string, without []string) (hallmark.Digest, error) {
	r, w := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := in.Pack(ctx, id, without, w)
		w.CloseWithError(err) // a pack that is not whole is kept by nobody
		packed <- err
	}()
	digest, _, err := g.s.home.stores.blobs.PutFrom(ctx, r)
	r.CloseWithError(io.ErrClosedPipe)
	if perr := <-packed; perr != nil {
		return "", perr
	}
	if err != nil {
		return "", fmt.Errorf("keeping a held push: %w", err)
	}
	return digest, nil
}
