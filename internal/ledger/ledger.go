// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package ledger finds evidence that is missing, not only evidence that was
// altered. Each transition of a reference opens obligations (DESIGN §1, "missing
// evidence is found"): what it shows must be scanned, reviewed and built. Each is
// met by named evidence about exactly that revision, and no other way: evidence
// that was taken away, or never written, leaves an obligation unmet.
//
// The package reads nothing. Whoever calls it vouches for its inputs being all
// that the log has.
package ledger

import (
	"slices"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// Kinds of obligations. One of another name can't be met: a transition of a newer
// version may open what this one does not know.
const (
	Scan   = "scan"   // its objects were looked at for secrets
	Review = "review" // every approval that its transition rests on is there
	Build  = "build"  // it was built
	Record = "record" // the transition before, which another one follows, is there
)

// Transition is one move of a reference that the log has.
type Transition struct {
	Statement  hallmark.Digest
	Previous   hallmark.Digest // of the same reference; "" for its first
	Repository string
	Ref        string
	Commit     string // that the reference shows; "" when it is gone
	On         time.Time
	Opens      []string
	Approvals  []hallmark.Digest // statements that it rests on
	Forward    bool              // the reference only goes forward: it shows this for ever
	Void       bool              // the one before did not happen
}

// Evidence is one statement about a revision.
type Evidence struct {
	Statement  hallmark.Digest
	Kind       string // Scan, Review or Build
	Repository string
	Ref        string // of a review: what it was for
	Commit     string
	Outcome    hallmark.Outcome
	On         time.Time
}

// State is how an obligation stands.
type State int

// The states. Closed is one of a transition that did not happen, or of a revision
// that its reference was allowed to forget.
const (
	Open State = iota + 1
	Met
	Overdue
	Closed
)

func (s State) String() string {
	switch s {
	case Open:
		return "open"
	case Met:
		return "met"
	case Overdue:
		return "overdue"
	case Closed:
		return "closed"
	}
	return "unset"
}

// MarshalText gives the word that scripts read.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Obligation is something that has to exist because of a transition.
type Obligation struct {
	Kind       string            `json:"kind"`
	State      State             `json:"state"`
	Repository string            `json:"repository"` // URI
	Ref        string            `json:"ref"`
	Revision   string            `json:"revision"` // commit; of a record the statement that is missing
	Opened     time.Time         `json:"opened"`
	By         hallmark.Digest   `json:"by"` // statement of the transition
	Due        time.Time         `json:"due"`
	Evidence   []hallmark.Digest `json:"evidence,omitempty"` // statements that meet it
	Late       bool              `json:"late,omitempty"`     // met after it was due
	Failed     []hallmark.Digest `json:"failed,omitempty"`   // statements that would, had they passed
	Missing    []hallmark.Digest `json:"missing,omitempty"`  // statements that are named and not there
}

// Unmet reports whether something is still missing.
func (o Obligation) Unmet() bool { return o.State != Met && o.State != Closed }

// Unmet are the obligations of a kind that are open or overdue; "" is any kind.
func Unmet(all []Obligation, kind string) []Obligation {
	var out []Obligation
	for _, o := range all {
		if o.Unmet() && (kind == "" || o.Kind == kind) {
			out = append(out, o)
		}
	}
	return out
}

// Obligations are those that the transitions open, given in the log's order, each
// as the evidence leaves it. They must be met within a time of the transition.
//
// A failure meets nothing and hides no pass: whether it counts is for the policy
// to say. So more evidence never makes an obligation unmet, and less never meets
// one.
func Obligations(transitions []Transition, evidence []Evidence, within time.Duration, at time.Time) []Obligation {
	l := newLedger(transitions, evidence)
	var out []Obligation
	for _, t := range transitions {
		if t.Previous != "" && !l.known[t.Previous] {
			out = append(out, Obligation{
				Kind: Record, State: Overdue, Repository: t.Repository, Ref: t.Ref, Revision: string(t.Previous), Opened: t.On, By: t.Statement, Due: t.On,
				Missing: []hallmark.Digest{t.Previous},
			})
		}
		if t.Void || t.Commit == "" || l.skipped(t) {
			continue
		}
		for _, kind := range t.Opens {
			o := Obligation{Kind: kind, State: Open, Repository: t.Repository, Ref: t.Ref, Revision: t.Commit, Opened: t.On, By: t.Statement, Due: t.On.Add(within)}
			met := l.meet(&o, t)
			switch {
			case met:
				o.State = Met
			case l.void[t.Statement], !t.Forward && l.followed[t.Statement]:
				o.State = Closed
			case at.After(o.Due):
				o.State = Overdue
			}
			out = append(out, o)
		}
	}
	return out
}

type place struct{ repository, commit string }

type ledger struct {
	known    map[hallmark.Digest]bool
	followed map[hallmark.Digest]bool // by a transition that names it
	void     map[hallmark.Digest]bool
	siblings map[sibling]hallmark.Digest // the last of those that follow one
	about    map[place][]Evidence
}

// sibling is a place in the chain of a reference, which one transition has: where
// two claim it, the first of them was logged by a process that was killed then.
type sibling struct {
	repository, ref string
	previous        hallmark.Digest
}

func newLedger(transitions []Transition, evidence []Evidence) *ledger {
	l := &ledger{known: map[hallmark.Digest]bool{}, followed: map[hallmark.Digest]bool{}, void: map[hallmark.Digest]bool{}, siblings: map[sibling]hallmark.Digest{}, about: map[place][]Evidence{}}
	for _, t := range transitions {
		l.known[t.Statement] = true
		if t.Previous != "" {
			l.followed[t.Previous] = true
			if t.Void {
				l.void[t.Previous] = true
			}
		}
		l.siblings[sibling{t.Repository, t.Ref, t.Previous}] = t.Statement
	}
	for _, e := range evidence {
		p := place{e.Repository, e.Commit}
		l.about[p] = append(l.about[p], e)
	}
	return l
}

// skipped reports that a transition had no effect: nothing follows it, and another
// one took its place.
func (l *ledger) skipped(t Transition) bool {
	return !l.followed[t.Statement] && l.siblings[sibling{t.Repository, t.Ref, t.Previous}] != t.Statement
}

// meet finds what meets an obligation.
func (l *ledger) meet(o *Obligation, t Transition) bool {
	switch o.Kind {
	case Scan, Build:
		return l.pass(o)
	case Review:
		return l.reviewed(o, t)
	}
	return false
}

// pass wants one statement that passed.
func (l *ledger) pass(o *Obligation) bool {
	var first *Evidence
	for _, e := range l.about[place{o.Repository, o.Revision}] {
		switch {
		case e.Kind != o.Kind:
		case e.Outcome != hallmark.Pass:
			o.Failed = append(o.Failed, e.Statement)
		case first == nil || e.On.Before(first.On):
			first = &e
		}
	}
	if first == nil {
		return false
	}
	o.Evidence, o.Late = []hallmark.Digest{first.Statement}, first.On.After(o.Due)
	return true
}

// reviewed wants every approval that the transition rests on, and one at least.
func (l *ledger) reviewed(o *Obligation, t Transition) bool {
	there := l.about[place{o.Repository, o.Revision}]
	for _, want := range t.Approvals {
		if slices.ContainsFunc(there, func(e Evidence) bool { return e.Kind == Review && e.Statement == want && e.Ref == t.Ref && e.Outcome == hallmark.Pass }) {
			o.Evidence = append(o.Evidence, want)
		} else {
			o.Missing = append(o.Missing, want)
		}
	}
	return len(t.Approvals) > 0 && len(o.Missing) == 0
}

// Says is an obligation for people, without its repository.
func (o Obligation) Says() string {
	var b strings.Builder
	b.WriteString(o.Kind + " of " + o.Revision + " on " + o.Ref + ", " + o.State.String())
	switch {
	case o.State == Met:
		b.WriteString(" by " + join(o.Evidence))
		if o.Late {
			b.WriteString(", late")
		}
	case o.State != Closed:
		b.WriteString(", due " + o.Due.UTC().Format(time.RFC3339))
		if len(o.Missing) > 0 {
			b.WriteString(", missing " + join(o.Missing))
		}
		if len(o.Failed) > 0 {
			b.WriteString(", failed in " + join(o.Failed))
		}
	}
	return b.String()
}

func join(list []hallmark.Digest) string {
	var out []string
	for _, d := range list {
		out = append(out, string(d))
	}
	return strings.Join(out, ", ")
}
