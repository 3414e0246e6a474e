// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/gitcli"
	"github.com/hallmark-sc/hallmark/internal/ledger"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// RefDifference is one reference that is not where the log says.
type RefDifference struct {
	Ref    string        `json:"ref"`
	Is     string        `json:"is"`  // zeros: it does not exist
	Logged string        `json:"log"` // zeros: the log knows none
	Code   hallmark.Code `json:"code"`
	Detail string        `json:"detail"`
	// Where is the URL of the upstream that differs; absent for the repository itself.
	Where string `json:"where,omitempty"`
}

// SourceState is what comparing a repository with the log found.
type SourceState struct {
	Repository  string          `json:"repository"`         // URI
	Upstream    string          `json:"upstream,omitempty"` // URL of the one that was compared as well
	Refs        int             `json:"refs"`               // compared
	Transitions int             `json:"transitions"`
	Differences []RefDifference `json:"differences"`
	// Unmet is what the transitions oblige to and is not there.
	Unmet []ledger.Obligation `json:"unmet"`
}

// VerifySource compares the references of a clone, a repository at a URL or one of
// the home, and then those of its upstream too, with what the log says of the
// repository of that name. Every transition is verified, and that each follows from
// the one before.
func VerifySource(ctx context.Context, home, name, path string) (SourceState, error) {
	h, err := readHome(home)
	if err != nil {
		return SourceState{}, err
	}
	defer h.Close()
	out := SourceState{Repository: h.repositoryURI(name), Differences: []RefDifference{}}
	logged, broken, err := h.transitions(ctx, out.Repository)
	if err != nil {
		return out, err
	}
	out.Differences = append(out.Differences, broken...)
	for _, chain := range logged {
		out.Transitions += len(chain)
	}
	up, err := h.upstream(name)
	if err != nil {
		return out, err
	}
	if strings.Contains(path, "://") {
		if err := gitcli.CheckURL(path); err != nil {
			return out, err
		}
		if up == nil || up.URL != path { // the credential goes nowhere else
			up = &gitcli.Upstream{URL: path}
		}
	} else {
		if path == "" {
			path = h.path("repositories", name+".git")
		} else {
			up = nil
		}
		is, err := gitcli.Heads(ctx, path)
		if err != nil {
			return out, err
		}
		out.compare("", is, logged)
	}
	if up != nil {
		is, err := up.Refs(ctx)
		if err != nil {
			return out, err
		}
		out.Upstream = up.URL
		out.compare(up.URL, is, logged)
	}
	// Where bytes of the log are gone, nobody can say what is owed: eachLogged has
	// said so before.
	owed, err := h.obligations(ctx, out.Repository, now())
	if err != nil {
		return out, err
	}
	out.Unmet = append([]ledger.Obligation{}, ledger.Unmet(owed, "")...)
	slices.SortFunc(out.Differences, func(a, b RefDifference) int {
		return strings.Compare(a.Where+a.Ref+a.Detail, b.Where+b.Ref+b.Detail)
	})
	return out, nil
}

// compare adds what differs at one place.
func (out *SourceState) compare(where string, is map[string]string, logged map[string][]intoto.RefTransition) {
	code := hallmark.CodeRefOutsideLog
	if where != "" {
		code = hallmark.CodeUpstreamMoved
	}
	for ref, chain := range logged {
		last := chain[len(chain)-1].New
		at, ok := is[ref]
		if !ok {
			at = zeros
		}
		out.Refs++
		if at == last || strings.Trim(at+last, "0") == "" {
			continue
		}
		d := RefDifference{Ref: ref, Is: at, Logged: last, Code: code, Where: where, Detail: "it was moved outside of the gate"}
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
			out.Differences = append(out.Differences, RefDifference{Ref: ref, Is: at, Logged: zeros, Code: code, Where: where, Detail: "it never passed the gate"})
		}
	}
}

const zeros = "0000000000000000000000000000000000000000"

// transitions are those of a repository's references, each list in its order, and
// what does not follow from the one before.
func (h *Home) transitions(ctx context.Context, uri string) (map[string][]intoto.RefTransition, []RefDifference, error) {
	out := map[string][]intoto.RefTransition{}
	last := map[string]hallmark.Digest{}
	var broken []RefDifference
	unkept := map[string]intoto.RefTransition{} // newest, by ref
	err := h.eachLogged(ctx, []string{intoto.PredicateTransition}, time.Time{}, func(v verify.Statement) error {
		t, err := intoto.DecodePredicate[intoto.RefTransition](v.Statement())
		if err != nil {
			return fmt.Errorf("reading transition %s: %w", v.Digest(), err)
		}
		if t.Repository != uri || t.Effect != hallmark.Allow {
			return nil
		}
		delete(unkept, t.Ref) // this one followed, or says below that it did not
		before := zeros
		if chain := out[t.Ref]; len(chain) > 0 {
			before = chain[len(chain)-1].New
		}
		if t.Previous != last[t.Ref] || !t.Void && t.Old != before {
			broken = append(broken, RefDifference{Ref: t.Ref, Is: t.New, Logged: before, Code: hallmark.CodeEvidenceMissing,
				Detail: fmt.Sprintf("the transition of %s does not follow from the one before: evidence is missing", t.On.Format("2006-01-02T15:04:05Z"))})
		}
		out[t.Ref] = append(out[t.Ref], t)
		last[t.Ref] = v.Digest()
		return nil
	}, func(_ uint64, st intoto.Statement) error {
		t, err := intoto.DecodePredicate[intoto.RefTransition](st)
		if err == nil && t.Repository == uri && t.Effect == hallmark.Allow {
			unkept[t.Ref] = t
		}
		return nil
	})
	for ref, t := range unkept {
		broken = append(broken, RefDifference{Ref: ref, Is: t.New, Logged: t.Old, Code: hallmark.CodeEvidenceMissing,
			Detail: "a transition to it was logged, and no bundle of it is kept: the server was stopped while it signed, or somebody took it away"})
	}
	return out, broken, err
}
