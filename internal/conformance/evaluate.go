// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

// Row is a requirement with its state.
type Row struct {
	Requirement
	State   State
	Digests []hallmark.Digest // statements the state rests on, sorted; all in the log
	Why     string            // why it is not satisfied or has no evidence; may be empty
}

// Test is the tests of the row, joined for the one field that scripts read.
func (r Row) Test() string { return strings.Join(r.Tests, ", ") }

// Evaluate says how each requirement of f stands under ev. Taking evidence away
// never turns a row to satisfied.
func Evaluate(f Framework, ev Evidence) []Row {
	reqs := Requirements(f)
	b := newBasis(ev)
	rows := make([]Row, 0, len(reqs))
	for _, req := range reqs {
		rows = append(rows, b.row(req))
	}
	return rows
}

// basis is the evidence in scope of the latest verdict.
type basis struct {
	mode    string
	verdict bool              // the VSA of the latest verdict is in the log
	items   []Item            // in the log and in scope
	lost    []hallmark.Digest // what the verdict lists and the log does not hold
}

func newBasis(ev Evidence) basis {
	listed := make(map[hallmark.Digest]bool, len(ev.Inputs))
	for _, d := range ev.Inputs {
		listed[d] = true
	}
	b := basis{mode: ev.Mode}
	found := map[hallmark.Digest]bool{}
	for _, it := range ev.Items {
		if !it.InLog || it.Digest.Check() != nil {
			continue
		}
		found[it.Digest] = true
		if inScope(it, listed, ev.Summary) {
			b.items = append(b.items, it)
		}
	}
	for d := range listed {
		if !found[d] {
			b.lost = append(b.lost, d)
		}
	}
	slices.Sort(b.lost)
	b.verdict = found[ev.Summary]
	return b
}

// inScope: policy and genesis stand for themselves, and so does what the source
// gate says of a reference, a change or a revision, and an audit of a forge; another
// VSA counts only as the
// latest verdict's, everything else only as its input.
func inScope(it Item, listed map[hallmark.Digest]bool, summary hallmark.Digest) bool {
	switch it.PredicateType {
	case intoto.PredicatePolicy, intoto.PredicateGenesis, intoto.PredicateTransition, intoto.PredicateReview, intoto.PredicateAccess:
		return true
	case intoto.PredicateVSA:
		return it.Digest == summary || it.Name == nameSourceSummary
	}
	return listed[it.Digest] || it.Check == intoto.CheckForge
}

func (b basis) row(req Requirement) Row {
	row := Row{Requirement: req}
	switch {
	case req.Rule == "" && req.NotApplicable != "":
		row.State = NotApplicable
	case req.Rule == "" || len(req.Evidence) == 0:
		row.State = NotImplemented
	default:
		b.judge(&row)
	}
	return row
}

// judge sets the state of an implemented row. A refusal weighs more than an
// absence, and an absence more than any number of passes.
func (b basis) judge(row *Row) {
	var absent, against []string
	for _, sel := range row.Evidence {
		n := 0
		for _, it := range b.items {
			if !sel.matches(it) {
				continue
			}
			n++
			row.Digests = append(row.Digests, it.Digest)
			if !sel.holds(it) {
				against = append(against, fmt.Sprintf("%s: %s", sel, it.Outcome))
			}
		}
		if n == 0 {
			absent = append(absent, sel.String())
		}
	}
	slices.Sort(row.Digests)
	row.Digests = slices.Compact(row.Digests)
	if len(row.Digests) > 0 {
		against = append(against, b.forbidden(row.Requirement)...)
	}
	switch {
	case len(against) > 0:
		row.State, row.Why = NotSatisfied, strings.Join(slices.Compact(against), "; ")
	case len(absent) > 0:
		row.State, row.Why = NoEvidence, "the log holds no "+strings.Join(absent, ", no ")+" of the latest verdict"
	case !b.verdict:
		row.State, row.Why = NoEvidence, "the log holds no verdict"
	case len(b.lost) > 0:
		row.State = NotSatisfied
		row.Why = fmt.Sprintf("the log lacks %d statement(s) that the verdict lists, first %s", len(b.lost), b.lost[0])
	default:
		row.State = Satisfied
	}
}

// forbidden says which properties of the home or the builder rule the row out.
func (b basis) forbidden(req Requirement) []string {
	var why []string
	if req.TwoPersons && b.mode != ModeThreshold {
		why = append(why, "needs two persons, and this home has a single operator")
	}
	if req.Hosted && !b.hosted() {
		why = append(why, "needs a hosted builder, and the artifact was built on a person's own machine")
	}
	return why
}

// hosted reports whether all provenance in scope names a builder whose mode is
// the server's. Without provenance nothing is hosted.
func (b basis) hosted() bool {
	n := 0
	for _, it := range b.items {
		if it.PredicateType != intoto.PredicateProvenance {
			continue
		}
		n++
		if !strings.HasSuffix(it.BuilderID, "/server") {
			return false
		}
	}
	return n > 0
}

// Count is the number of rows in one state.
type Count struct {
	State State
	N     int
}

// Summary counts rows by state, every state once, in the order of States.
func Summary(rows []Row) []Count {
	counts := make([]Count, 0, len(stateNames)-1)
	for _, s := range States() {
		n := 0
		for _, r := range rows {
			if r.State == s {
				n++
			}
		}
		counts = append(counts, Count{State: s, N: n})
	}
	return counts
}
