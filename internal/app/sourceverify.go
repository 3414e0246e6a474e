// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/gitcli"
	"github.com/hallmark-sc/hallmark/intoto"
)

// RefDifference is one reference that is not where the log says.
type RefDifference struct {
	Ref    string        `json:"ref"`
	Is     string        `json:"is"`  // zeros: it does not exist
	Logged string        `json:"log"` // zeros: the log knows none
	Code   hallmark.Code `json:"code"`
	Detail string        `json:"detail"`
}

// SourceState is what comparing a repository with the log found.
type SourceState struct {
	Repository  string          `json:"repository"` // URI
	Refs        int             `json:"refs"`       // compared
	Transitions int             `json:"transitions"`
	Differences []RefDifference `json:"differences"`
}

// VerifySource compares the references of a clone, an upstream's mirror or a
// repository of the home with what the log says of the repository of that name.
// Every transition is verified, and that each follows from the one before.
func VerifySource(ctx context.Context, home, name, path string) (SourceState, error) {
	h, err := readHome(home)
	if err != nil {
		return SourceState{}, err
	}
	defer h.Close()
	out := SourceState{Repository: h.repositoryURI(name), Differences: []RefDifference{}}
	if path == "" {
		path = h.path("repositories", name+".git")
	}
	is, err := gitcli.Heads(ctx, path)
	if err != nil {
		return out, err
	}
	logged, broken, err := h.transitions(ctx, out.Repository)
	if err != nil {
		return out, err
	}
	out.Differences = append(out.Differences, broken...)
	for ref, chain := range logged {
		out.Transitions += len(chain)
		last := chain[len(chain)-1].New
		at, ok := is[ref]
		if !ok {
			at = zeros
		}
		out.Refs++
		if at == last || strings.Trim(at+last, "0") == "" {
			continue
		}
		d := RefDifference{Ref: ref, Is: at, Logged: last, Code: hallmark.CodeRefOutsideLog, Detail: "it was moved outside of the gate"}
		switch {
		case !ok:
			d.Detail = "it is gone, and the gate deleted nothing"
		case slices.ContainsFunc(chain, func(t intoto.RefTransition) bool { return t.New == at }):
			d.Detail = "it is at an earlier revision: an old copy, or moved back outside of the gate"
		}
		out.Differences = append(out.Differences, d)
	}
	for ref, at := range is {
		if _, ok := logged[ref]; !ok {
			out.Refs++
			out.Differences = append(out.Differences, RefDifference{Ref: ref, Is: at, Logged: zeros, Code: hallmark.CodeRefOutsideLog, Detail: "it never passed the gate"})
		}
	}
	slices.SortFunc(out.Differences, func(a, b RefDifference) int { return strings.Compare(a.Ref+a.Detail, b.Ref+b.Detail) })
	return out, nil
}

const zeros = "0000000000000000000000000000000000000000"

// transitions are those of a repository's references, each list in its order, and
// what does not follow from the one before.
func (h *Home) transitions(ctx context.Context, uri string) (map[string][]intoto.RefTransition, []RefDifference, error) {
	rows, err := h.stores.index.OfPredicate(ctx, intoto.PredicateTransition)
	if err != nil {
		return nil, nil, err
	}
	type link struct {
		statement hallmark.Digest
		t         intoto.RefTransition
	}
	follows := map[string]map[hallmark.Digest][]link{} // by reference and by what comes before
	for _, row := range rows {
		t, err := h.readTransition(ctx, row.Bundle)
		if err != nil {
			return nil, nil, fmt.Errorf("reading transition %s: %w", row.Statement, err)
		}
		if t.Repository != uri || t.Effect != hallmark.Allow {
			continue
		}
		if follows[t.Ref] == nil {
			follows[t.Ref] = map[hallmark.Digest][]link{}
		}
		follows[t.Ref][t.Previous] = append(follows[t.Ref][t.Previous], link{row.Statement, t})
	}
	out := map[string][]intoto.RefTransition{}
	var broken []RefDifference
	for ref, links := range follows {
		// Their order is that of the chain: timestamps count seconds.
		before := zeros
		bad := func(t intoto.RefTransition) {
			broken = append(broken, RefDifference{Ref: ref, Is: t.New, Logged: before, Code: hallmark.CodeEvidenceMissing,
				Detail: fmt.Sprintf("the transition of %s does not follow from the one before: evidence is missing", t.On.Format("2006-01-02T15:04:05Z"))})
		}
		add := func(l link) {
			if !l.t.Void && l.t.Old != before {
				bad(l.t)
			}
			out[ref] = append(out[ref], l.t)
			before = l.t.New
		}
		for at := hallmark.Digest(""); len(links[at]) > 0; {
			next := links[at]
			delete(links, at)
			for _, more := range next[1:] {
				bad(more.t)
			}
			add(next[0])
			at = next[0].statement
		}
		for _, rest := range links { // what nothing leads to
			for _, l := range rest {
				bad(l.t)
				out[ref] = append(out[ref], l.t)
				before = l.t.New
			}
		}
	}
	return out, broken, nil
}
