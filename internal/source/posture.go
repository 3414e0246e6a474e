// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// Forge is a repository at a server that is not ours. Read must return every
// setting, each as told or with why it was not; an answer that is not whole is an
// error. Repairs are about what Read last read; none of them makes a setting weaker.
// Apply carries out one of them.
type Forge interface {
	Read(ctx context.Context) (Posture, error)
	Repairs(w Wanted) ([]Repair, error)
	Apply(ctx context.Context, r Repair) error
}

// Known is a setting as a forge told it. The zero value was not read, and counts for
// nothing.
type Known[T any] struct {
	Value  T      `json:"value"`
	Read   bool   `json:"read"`
	Absent bool   `json:"absent,omitempty"` // this forge has no such setting, or its interface tells nobody
	Why    string `json:"why,omitempty"`    // it is absent or was not read
}

// Told is a setting that was read.
func Told[T any](v T) Known[T] { return Known[T]{Value: v, Read: true} }

// Unread is a setting that the token may not see or that an answer lacked.
func Unread[T any](why string) Known[T] { return Known[T]{Why: why} }

// Absent is a setting that a kind of forge does not have, or tells nobody.
func Absent[T any](why string) Known[T] { return Known[T]{Absent: true, Why: why} }

// Everybody is each account that may write to the repository.
const Everybody = "everybody who may write"

// Posture is how a repository at a forge is set up.
type Posture struct {
	Forge      string                `json:"forge"` // gitea, github or gitlab
	Version    string                `json:"version,omitempty"`
	Repository string                `json:"repository"` // URL
	Page       string                `json:"page"`       // of its settings
	Branches   []BranchGuard         `json:"branches"`   // the default branch first
	Tags       Known[TagGuard]       `json:"tags"`
	Outsiders  Known[[]Collaborator] `json:"outsiders"`
	Hooks      Known[[]Webhook]      `json:"hooks"`
	DeployKeys Known[[]DeployKey]    `json:"deployKeys"`
	Workflow   WorkflowGuard         `json:"workflow"`
	Visibility Known[string]         `json:"visibility"` // public, internal or private
	TwoFactor  Known[bool]           `json:"twoFactor"`  // required of members
}

// BranchGuard is what protects a branch.
type BranchGuard struct {
	Name      string          `json:"name"`
	Protected Known[bool]     `json:"protected"`
	ForcePush Known[[]string] `json:"forcePush"` // who may
	Deletable Known[bool]     `json:"deletable"`
	Pushers   Known[[]string] `json:"pushers"` // who may push without a review
	Approvals Known[int]      `json:"approvals"`
	Stale     Known[bool]     `json:"stale"`    // an approval outlives another push
	Owners    Known[bool]     `json:"owners"`   // owners of the code must agree
	Rejected  Known[bool]     `json:"rejected"` // a change can land although somebody rejected it
	Checks    Known[[]string] `json:"checks"`   // that must have passed
	Override  Known[[]string] `json:"override"` // who may go round all of it
	Unsigned  Known[bool]     `json:"unsigned"` // commits without a signature are taken
}

// TagGuard is what protects tags.
type TagGuard struct {
	All    bool     `json:"all"`    // of any name
	Movers []string `json:"movers"` // who may move or delete them all the same
}

// Collaborator is an account that is no member of the owner.
type Collaborator struct {
	Name       string `json:"name"`
	Permission string `json:"permission"`
	Writes     bool   `json:"writes"`
}

// Webhook is where a forge sends what happens.
type Webhook struct {
	ID     string      `json:"id"`
	URL    string      `json:"url"` // without what could be a secret
	Verify Known[bool] `json:"verify"`
	Secret Known[bool] `json:"secret"`
}

// DeployKey is a key that is of no account.
type DeployKey struct {
	ID     string `json:"id"`
	Title  string `json:"title"`
	Writes bool   `json:"writes"`
}

// WorkflowGuard is what the forge's own CI may do.
type WorkflowGuard struct {
	TokenWrites Known[bool] `json:"tokenWrites"` // the token of a run may write, if the run asks for nothing else
	Unapproved  Known[bool] `json:"unapproved"`  // what comes from outside runs before a member agreed
}

// Wanted is what a repository is held to.
type Wanted struct {
	Approvals  int      // at least 1
	Checks     []string // by name; none: some check
	Pushers    []string // accounts that may push without a review, such as the gate's
	Trusted    []string // collaborators from outside who may write
	Visibility string   // ""; nothing is asked of it
	Unsigned   bool     // commits need no signature that the forge verifies
}

// Aspect is one setting held against what is wanted: pass, fail, error (not read) or
// skipped (this forge has no such setting, or tells nobody).
type Aspect struct {
	Code    hallmark.Code    `json:"code"`
	On      string           `json:"on"` // branch, tag, account, hook or key; "" is the repository
	Outcome hallmark.Outcome `json:"outcome"`
	Is      string           `json:"is"`
	Want    string           `json:"want"`
	Fix     string           `json:"fix,omitempty"`
}

// Repair is one change of settings. Body holds no secret.
type Repair struct {
	Codes   []hallmark.Code `json:"codes"` // of the findings that it is for
	On      string          `json:"on"`
	Is      string          `json:"is"`
	Becomes string          `json:"becomes"`
	Method  string          `json:"method"`
	Path    string          `json:"path"`
	Body    json.RawMessage `json:"body"`
}

// Judge holds a posture against what is wanted; every aspect has its line.
func (p Posture) Judge(w Wanted) []Aspect {
	j := &judging{page: p.Page}
	for _, b := range p.Branches {
		j.branch(b, w)
	}
	look(j, hallmark.CodeForgeTags, "tags", p.Tags, "nobody moves or deletes a tag", "protect all tags", func(t TagGuard) (bool, string) {
		movers := without(t.Movers, w.Pushers)
		switch {
		case !t.All:
			return false, "there are tags that anybody who may write can move"
		case len(movers) > 0:
			return false, "moved by " + strings.Join(movers, ", ")
		}
		return true, "protected"
	})
	outsiders(j, p.Outsiders, w)
	hooks(j, p.Hooks)
	if !p.DeployKeys.Read {
		look(j, hallmark.CodeForgeDeployKey, "", p.DeployKeys, "no deploy key writes", "", nil)
	}
	if p.DeployKeys.Read && len(p.DeployKeys.Value) == 0 {
		j.add(hallmark.CodeForgeDeployKey, "", true, "there is none", "no deploy key writes", "")
	}
	for _, k := range p.DeployKeys.Value {
		is := "reads"
		if k.Writes {
			is = "writes"
		}
		j.add(hallmark.CodeForgeDeployKey, "key "+k.Title, !k.Writes, is, "reads", "make it a key that reads, or remove it")
	}
	look(j, hallmark.CodeForgeWorkflowToken, "", p.Workflow.TokenWrites, "the token of a run reads", "let workflows ask for what they need", func(v bool) (bool, string) { return !v, either(v, "it writes", "it reads") })
	look(j, hallmark.CodeForgeWorkflowRuns, "", p.Workflow.Unapproved, "a member agrees to each run of what comes from outside", "ask for approval of all outside collaborators", func(v bool) (bool, string) {
		return !v, either(v, "some of it runs before anybody agreed", "a member agrees first")
	})
	look(j, hallmark.CodeForgeVisibility, "", p.Visibility, orAny(w.Visibility), "change who can see the repository", func(v string) (bool, string) {
		return w.Visibility == "" || v == w.Visibility, v
	})
	look(j, hallmark.CodeForgeTwoFactor, "", p.TwoFactor, "every member has a second factor", "require it of the organization", func(v bool) (bool, string) { return v, either(v, "required", "not required") })
	return j.out
}

func (j *judging) branch(b BranchGuard, w Wanted) {
	on := b.Name
	look(j, hallmark.CodeForgeUnprotected, on, b.Protected, "protected", "protect it", func(v bool) (bool, string) { return v, either(v, "protected", "not protected") })
	nobody := func(trusted []string, who string) func([]string) (bool, string) {
		return func(v []string) (bool, string) {
			left := without(v, trusted)
			return len(left) == 0, list(v, who)
		}
	}
	look(j, hallmark.CodeForgeForcePush, on, b.ForcePush, "nobody rewrites it", "forbid forced pushes", nobody(nil, "nobody"))
	look(j, hallmark.CodeForgeDeletion, on, b.Deletable, "nobody deletes it", "forbid its deletion", func(v bool) (bool, string) { return !v, either(v, "it can be deleted", "it can't be deleted") })
	look(j, hallmark.CodeForgeDirectPush, on, b.Pushers, "pushed to by "+list(w.Pushers, "nobody"), "let changes land by review alone", nobody(w.Pushers, "nobody"))
	look(j, hallmark.CodeForgeReview, on, b.Approvals, fmt.Sprintf("%d or more approvals", max(1, w.Approvals)), "require approvals", func(v int) (bool, string) {
		return v >= max(1, w.Approvals), fmt.Sprintf("%d approvals", v)
	})
	look(j, hallmark.CodeForgeStale, on, b.Stale, "an approval ends with the next push", "dismiss stale approvals", func(v bool) (bool, string) {
		return !v, either(v, "approvals outlive a push", "approvals end with a push")
	})
	look(j, hallmark.CodeForgeOwners, on, b.Owners, "owners of the code agree", "require reviews of code owners", func(v bool) (bool, string) { return v, either(v, "owners are asked", "owners are not asked") })
	look(j, hallmark.CodeForgeRejected, on, b.Rejected, "a rejection stops a change", "block on rejected reviews", func(v bool) (bool, string) {
		return !v, either(v, "lands in spite of a rejection", "stopped by a rejection")
	})
	look(j, hallmark.CodeForgeChecks, on, b.Checks, "requires "+list(w.Checks, "some check"), "name the checks that must pass (--check NAME)", func(v []string) (bool, string) {
		return len(v) > 0 && len(without(w.Checks, v)) == 0, "requires " + list(v, "nothing")
	})
	look(j, hallmark.CodeForgeOverride, on, b.Override, "nobody goes round it", "hold administrators to it too", nobody(w.Pushers, "nobody"))
	unsigned := b.Unsigned
	if w.Unsigned {
		unsigned = Absent[bool]("not asked for")
	}
	look(j, hallmark.CodeForgeUnsigned, on, unsigned, "only signed commits", "require signed commits", func(v bool) (bool, string) { return !v, either(v, "unsigned commits are taken", "only signed commits") })
}

func outsiders(j *judging, all Known[[]Collaborator], w Wanted) {
	if !all.Read {
		look(j, hallmark.CodeForgeOutsider, "", all, "nobody from outside writes", "", nil)
	}
	if all.Read && len(all.Value) == 0 {
		j.add(hallmark.CodeForgeOutsider, "", true, "there is nobody", "nobody from outside writes", "")
	}
	for _, c := range all.Value {
		trusted := slices.Contains(w.Trusted, c.Name) || slices.Contains(w.Pushers, c.Name)
		j.add(hallmark.CodeForgeOutsider, c.Name, !c.Writes || trusted, c.Permission, "read", "let them read only, or trust them: --trust "+c.Name)
	}
}

func hooks(j *judging, all Known[[]Webhook]) {
	if !all.Read {
		look(j, hallmark.CodeForgeHookPlain, "", all, "webhooks are encrypted", "", nil)
	}
	if all.Read && len(all.Value) == 0 {
		j.add(hallmark.CodeForgeHookPlain, "", true, "there is none", "webhooks are encrypted", "")
	}
	for _, h := range all.Value {
		on := "hook " + h.ID + " to " + h.URL
		j.add(hallmark.CodeForgeHookPlain, on, strings.HasPrefix(h.URL, "https://"), h.URL, "https", "give it an https URL, or remove it")
		look(j, hallmark.CodeForgeHookTLS, on, h.Verify, "its certificate is verified", "let it verify the certificate", func(v bool) (bool, string) { return v, either(v, "verified", "not verified") })
		look(j, hallmark.CodeForgeHookSecret, on, h.Secret, "it has a secret", "give it a secret, and its receiver too", func(v bool) (bool, string) { return v, either(v, "it has a secret", "it has none") })
	}
}

type judging struct {
	page string
	out  []Aspect
}

func (j *judging) add(code hallmark.Code, on string, good bool, is, want, fix string) {
	a := Aspect{Code: code, On: on, Outcome: hallmark.Pass, Is: is, Want: want}
	if !good {
		a.Outcome, a.Fix = hallmark.Fail, fix+": "+j.page
	}
	j.out = append(j.out, a)
}

// look judges one setting; what was not read never passes.
func look[T any](j *judging, code hallmark.Code, on string, k Known[T], want, fix string, good func(T) (bool, string)) {
	switch {
	case k.Absent:
		j.out = append(j.out, Aspect{Code: code, On: on, Outcome: hallmark.Skipped, Is: k.Why, Want: want})
	case !k.Read:
		why := k.Why
		if why == "" {
			why = "not read"
		}
		j.out = append(j.out, Aspect{Code: code, On: on, Outcome: hallmark.Errored, Is: why, Want: want, Fix: "give a token of an administrator of the repository"})
	default:
		ok, is := good(k.Value)
		j.add(code, on, ok, is, want, fix)
	}
}

func either(v bool, yes, no string) string {
	if v {
		return yes
	}
	return no
}

func list(v []string, none string) string {
	if len(v) == 0 {
		return none
	}
	return strings.Join(v, ", ")
}

func orAny(s string) string {
	if s == "" {
		return "as its owners decide"
	}
	return s
}

func without(all, some []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return slices.Contains(some, s) })
}

// Reason is a finding as every other reason is told.
func (a Aspect) Reason() hallmark.Reason {
	r := hallmark.Reason{Code: a.Code, Check: "forge-settings", Message: a.Is + "; wanted: " + a.Want, Fix: a.Fix}
	if a.On != "" {
		r.Message = a.On + ": " + r.Message
	}
	if a.Outcome == hallmark.Errored {
		r.Code, r.Field = hallmark.CodeForgeUnknown, string(a.Code)
	}
	return r
}
