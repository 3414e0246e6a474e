// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/intoto"
)

// at02 is "review bypass". References m* and dev* of the repository take only
// changes that one independent person agreed to.
func at02() []Case {
	independent := weakness{code: hallmark.CodeChangeApprover}
	const collusion = "two persons who agree to it"
	return []Case{
		{
			Attack: "AT-02", Letter: "a", Does: "the author approves their own change",
			Control: "who had a part in a change can't approve it", Stops: hallmark.CodeChangeApprover,
			Residual: collusion, attack: hosted("reviewed", independent, func(ctx context.Context, t *try) (bool, error) {
				id, rev, err := t.proposed(ctx, "alice@example.org", wrote{by: "alice@example.org"})
				return t.landed(ctx, rev, err, id, "alice@example.org")
			}),
		},
		{
			Attack: "AT-02", Letter: "b", Does: "a change that was signed with a second key and address of the person who approves it",
			Control: "addresses and keys belong to one principal, who had a part in it", Stops: hallmark.CodeChangeApprover,
			Residual: "a second identity that an administrator lets in", attack: hosted("reviewed", independent, func(ctx context.Context, t *try) (bool, error) {
				id, rev, err := t.proposed(ctx, "bob@example.org", wrote{by: "alice@home.example"})
				return t.landed(ctx, rev, err, id, "alice@example.org")
			}),
		},
		{
			Attack: "AT-02", Letter: "c", Does: "a robot with the role of a reviewer approves",
			Control: "programs don't review", Stops: hallmark.CodeChangeApprover,
			Residual: "a robot that is entered as a person", attack: hosted("reviewed", independent, func(ctx context.Context, t *try) (bool, error) {
				id, rev, err := t.proposed(ctx, "bob@example.org", wrote{by: "bob@example.org"})
				return t.landed(ctx, rev, err, id, "robot@example.org")
			}),
		},
		{
			Attack: "AT-02", Letter: "d", Does: "a commit is pushed after the approval",
			Control: "an approval is of one revision", Stops: hallmark.CodeChangeNotApproved,
			Residual: "an approver who did not look", attack: hosted("reviewed", weakness{changeID: func(repository, target, _ string) string { return intoto.ChangeID(repository, target, "any") }}, func(ctx context.Context, t *try) (bool, error) {
				id, rev, err := t.proposed(ctx, "alice@example.org", wrote{by: "alice@example.org"})
				if err := errors.Join(err, t.agreed(ctx, "bob@example.org", id)); err != nil {
					return false, err
				}
				id, rev, err = t.proposed(ctx, "alice@example.org", wrote{by: "alice@example.org", message: "evil", parents: []string{rev}})
				return t.landed(ctx, rev, err, id)
			}),
		},
		{
			Attack: "AT-02", Letter: "e", Does: "what was approved for dev is proposed for the release branch",
			Control: "an approval is for one reference", Stops: hallmark.CodeChangeNotApproved,
			Residual: "an approver who did not look", attack: hosted("reviewed", weakness{changeID: func(repository, _, revision string) string { return intoto.ChangeID(repository, "any", revision) }}, func(ctx context.Context, t *try) (bool, error) {
				main := t.target
				t.target = fmt.Sprintf("refs/heads/dev%d", t.n)
				id, rev, err := t.proposed(ctx, "alice@example.org", wrote{by: "alice@example.org"})
				if err := errors.Join(err, t.agreed(ctx, "bob@example.org", id)); err != nil {
					return false, err
				}
				t.target, t.ref = main, main
				id, err = t.proposes(ctx, "alice@example.org", t.branch())
				return t.landed(ctx, rev, err, id)
			}),
		},
		{
			Attack: "AT-02", Letter: "f", Does: "what was approved in a fork is proposed here",
			Control: "an approval is for one repository", Stops: hallmark.CodeChangeNotApproved,
			Residual: "an approver who did not look", attack: hosted("reviewed", weakness{changeID: func(_, target, revision string) string { return intoto.ChangeID("any", target, revision) }}, func(ctx context.Context, t *try) (bool, error) {
				fork, err := t.h.try(ctx, "fork")
				if err != nil {
					return false, err
				}
				fork.dir, fork.main, fork.target, fork.n = t.dir, t.main, t.target, t.n
				id, rev, err := fork.proposed(ctx, "alice@example.org", wrote{by: "alice@example.org"})
				if err := errors.Join(err, fork.agreed(ctx, "bob@example.org", id)); err != nil {
					return false, err
				}
				if err := t.push(ctx, "alice@example.org", rev+":"+t.branch()); err != nil {
					return false, err
				}
				id, err = t.proposes(ctx, "alice@example.org", t.branch())
				return t.landed(ctx, rev, err, id)
			}),
		},
		{
			Attack: "AT-02", Letter: "g", Does: "the reviewer pushes a commit to the branch under review, and approves",
			Control: "whoever pushed or wrote any of it has a part in it", Stops: hallmark.CodeChangeApprover,
			Residual: collusion, attack: hosted("reviewed", independent, func(ctx context.Context, t *try) (bool, error) {
				_, rev, err := t.proposed(ctx, "alice@example.org", wrote{by: "alice@example.org"})
				if err != nil {
					return false, err
				}
				id, rev, err := t.proposed(ctx, "bob@example.org", wrote{by: "bob@example.org", message: "evil", parents: []string{rev}})
				return t.landed(ctx, rev, err, id, "bob@example.org")
			}),
		},
		{
			Attack: "AT-02", Letter: "h", Does: "who pushed a revision of somebody else's approves it",
			Control: "whoever pushed it has a part in it", Stops: hallmark.CodeChangeApprover,
			Residual: collusion, attack: hosted("reviewed", independent, func(ctx context.Context, t *try) (bool, error) {
				id, rev, err := t.proposed(ctx, "bob@example.org", wrote{by: "mallory@example.org"})
				return t.landed(ctx, rev, err, id, "bob@example.org")
			}),
		},
		{
			Attack: "AT-02", Letter: "i", Does: "somebody has their own robot write a change, and approves it",
			Control: "who answers for a robot has a part in what it does", Stops: hallmark.CodeChangeApprover,
			Residual: "a robot of somebody who colludes", attack: hosted("reviewed", independent, func(ctx context.Context, t *try) (bool, error) {
				id, rev, err := t.proposed(ctx, "robot@example.org", wrote{by: "robot@example.org"})
				return t.landed(ctx, rev, err, id, "alice@example.org")
			}),
		},
		{
			Attack: "AT-02", Letter: "j", Does: "a change is made for a branch that is named like a tag",
			Control: "no name is both a branch and a tag", Stops: hallmark.CodeRefName,
			Residual: "names that only look alike to a reader", attack: hosted("reviewed", weakness{code: hallmark.CodeRefName}, func(ctx context.Context, t *try) (bool, error) {
				if err := t.push(ctx, "alice@example.org", t.main+":refs/tags/"+strings.TrimPrefix(t.target, "refs/heads/")); err != nil {
					return false, err
				}
				id, rev, err := t.proposed(ctx, "alice@example.org", wrote{by: "alice@example.org"})
				if err := errors.Join(err, t.agreed(ctx, "bob@example.org", id)); err != nil {
					return false, err
				}
				return t.landed(ctx, rev, nil, id)
			}),
		},
		{
			Attack: "AT-02", Letter: "k", Does: "who pushed a revision of somebody else's takes the row of that push out of the index, and approves",
			Control: "who had a part in a change is listed from the log, not from the index", Stops: hallmark.CodeChangeApprover,
			Residual: collusion, attack: hosted("reviewed", weakness{forgets: true}, func(ctx context.Context, t *try) (bool, error) { return t.unseen(ctx, false) }),
		},
		{
			Attack: "AT-02", Letter: "l", Does: "and removes the bytes of the record as well",
			Control: "a log entry whose bytes are gone is an error, not a shorter list", Stops: hallmark.CodeEvidenceMissing,
			Residual: "nothing is decided until the bytes are put back from a copy", attack: hosted("reviewed", weakness{forgets: true}, func(ctx context.Context, t *try) (bool, error) { return t.unseen(ctx, true) }),
		},
	}
}

// unseen has bob push mallory's revision, which carol proposes, take the record of
// his push away, and approve.
func (t *try) unseen(ctx context.Context, bytes bool) (done bool, err error) {
	rev, err := t.commit(ctx, wrote{by: "mallory@example.org", message: fmt.Sprint("change ", t.n), parents: []string{t.main}, files: map[string]string{"readme": fmt.Sprint("unseen ", t.n, "\n")}})
	if err != nil {
		return false, err
	}
	if err := t.push(ctx, "bob@example.org", rev+":"+t.branch()); err != nil {
		return false, err
	}
	id, err := t.proposes(ctx, "carol@example.org", t.branch())
	if err != nil {
		return false, err
	}
	back, err := t.h.forget(ctx, rev, bytes)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, back()) }()
	done, err = t.landed(ctx, rev, nil, id, "bob@example.org")
	if code := hallmark.CodeOf(err); code == hallmark.CodeEvidenceMissing {
		at, aerr := t.at(ctx, t.target)
		t.undecided, t.answer = code, err.Error()
		return at == rev, aerr
	}
	return done, err
}

// branch is the unprotected reference of a try.
func (t *try) branch() string { return fmt.Sprintf("refs/heads/work%d", t.n) }

// proposed pushes a commit to a branch and proposes it for the target.
func (t *try) proposed(ctx context.Context, who string, w wrote) (id, rev string, err error) {
	if w.parents == nil {
		w.parents = []string{t.main}
	}
	if w.message == "" {
		w.message = fmt.Sprint("change ", t.n)
	}
	w.files = map[string]string{"readme": fmt.Sprint(w.message, t.n, "\n")}
	if rev, err = t.commit(ctx, w); err != nil {
		return "", "", err
	}
	if err := t.push(ctx, who, rev+":"+t.branch()); err != nil {
		return "", "", err
	}
	id, err = t.proposes(ctx, who, t.branch())
	return id, rev, err
}

func (t *try) api(who string) (*app.Client, error) {
	return app.NewClient(t.h.url, t.h.authority, t.h.people[who].token)
}

func (t *try) proposes(ctx context.Context, who, from string) (string, error) {
	c, err := t.api(who)
	if err != nil {
		return "", err
	}
	a, err := c.Propose(ctx, app.ChangeProposal{Repository: t.name, From: strings.TrimPrefix(from, "refs/heads/"), To: strings.TrimPrefix(t.target, "refs/heads/"), Title: "drill"})
	if err == nil && !a.Allowed {
		err = fmt.Errorf("a proposal was refused: %v", a.Reasons)
	}
	return a.Change, err
}

// agreed is an approval that must count.
func (t *try) agreed(ctx context.Context, who, id string) error {
	a, err := t.act(ctx, who, id, "approve")
	if err == nil && !a.Allowed {
		err = fmt.Errorf("an approval that is nobody's attack: %v", a.Reasons)
	}
	return err
}

func (t *try) act(ctx context.Context, who, id, action string) (app.ChangeAnswer, error) {
	c, err := t.api(who)
	if err != nil {
		return app.ChangeAnswer{}, err
	}
	return c.Act(ctx, id, action)
}

// landed has somebody approve a change, if one is named, and then lands it. It
// reports whether the protected reference is at the revision. Where it is not,
// the refusals are what the approver or whoever lands it was told first.
func (t *try) landed(ctx context.Context, rev string, err error, id string, approvers ...string) (bool, error) {
	if err != nil {
		return false, err
	}
	if t.objects, err = stored(t.bare); err != nil {
		return false, err
	}
	t.ref = t.target
	for _, a := range append(approvers, "") {
		action, by := "approve", a
		if a == "" { // a reviewer's token lands it: the author's has no such permission in all cases
			action, by = "merge", "carol@example.org"
		}
		answer, err := t.act(ctx, by, id, action)
		if err != nil {
			return false, err
		}
		if !answer.Allowed && t.said == "" {
			t.said = answer.Reasons[0].Code
			t.answer = answer.Reasons[0].Message
		}
	}
	at, err := t.at(ctx, t.target)
	return at == rev, err
}
