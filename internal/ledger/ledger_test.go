// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
)

const (
	repo = "https://h.example/app.git"
	week = 7 * 24 * time.Hour
)

func day(n int) time.Time { return time.Date(2026, 11, 1+n, 0, 0, 0, 0, time.UTC) }

func digest(s string) hallmark.Digest { return hallmark.DigestOf([]byte(s)) }

// move is a transition of main, named by its commit.
func move(commit, previous string, n int, opens ...string) Transition {
	t := Transition{Statement: digest(commit), Repository: repo, Ref: "refs/heads/main", Commit: commit, On: day(n), Opens: opens, Forward: true}
	if previous != "" {
		t.Previous = digest(previous)
	}
	return t
}

func built(commit string, outcome hallmark.Outcome, n int) Evidence {
	return Evidence{Statement: digest(fmt.Sprint("build ", commit, outcome, n)), Kind: Build, Repository: repo, Commit: commit, Outcome: outcome, On: day(n)}
}

func states(all []Obligation) []string {
	var out []string
	for _, o := range all {
		s := o.Kind + " " + o.State.String()
		if o.Kind != Record {
			s = o.Kind + " " + o.Revision + " " + o.State.String()
		}
		if o.Late {
			s += " late"
		}
		if len(o.Failed) > 0 {
			s += " failed"
		}
		out = append(out, s)
	}
	return out
}

func TestObligations(t *testing.T) {
	approval := Evidence{Statement: digest("approval"), Kind: Review, Repository: repo, Ref: "refs/heads/main", Commit: "b", Outcome: hallmark.Pass, On: day(1)}
	unshown := approval
	unshown.Outcome = hallmark.Errored
	elsewhere := approval
	elsewhere.Ref = "refs/heads/dev"
	reviewed := move("b", "a", 1, Review)
	reviewed.Approvals = []hallmark.Digest{approval.Statement}
	bare := move("b", "a", 1, Review)
	scratch := move("a", "", 0, Build)
	scratch.Forward = false
	void := move("a0", "b", 2)
	void.Void = true
	gone := move("", "a", 1, Build)
	killed, instead := move("k", "a", 1, Build), move("b", "a", 2, Build)
	for name, tt := range map[string]struct {
		transitions []Transition
		evidence    []Evidence
		at          int
		want        []string
	}{
		"open":                               {[]Transition{move("a", "", 0, Build)}, nil, 7, []string{"build a open"}},
		"overdue":                            {[]Transition{move("a", "", 0, Build)}, nil, 8, []string{"build a overdue"}},
		"met":                                {[]Transition{move("a", "", 0, Build)}, []Evidence{built("a", hallmark.Pass, 1)}, 8, []string{"build a met"}},
		"met too late":                       {[]Transition{move("a", "", 0, Build)}, []Evidence{built("a", hallmark.Pass, 8)}, 9, []string{"build a met late"}},
		"of another revision":                {[]Transition{move("a", "", 0, Build)}, []Evidence{built("b", hallmark.Pass, 1)}, 1, []string{"build a open"}},
		"a failure meets nothing":            {[]Transition{move("a", "", 0, Build)}, []Evidence{built("a", hallmark.Fail, 1)}, 8, []string{"build a overdue failed"}},
		"skipped is no pass":                 {[]Transition{move("a", "", 0, Build)}, []Evidence{built("a", hallmark.Skipped, 1)}, 8, []string{"build a overdue failed"}},
		"no outcome is no pass":              {[]Transition{move("a", "", 0, Build)}, []Evidence{built("a", 0, 1)}, 8, []string{"build a overdue failed"}},
		"a failure hides no pass":            {[]Transition{move("a", "", 0, Build)}, []Evidence{built("a", hallmark.Fail, 1), built("a", hallmark.Pass, 2)}, 8, []string{"build a met failed"}},
		"a scan is no build":                 {[]Transition{move("a", "", 0, Scan, Build)}, []Evidence{built("a", hallmark.Pass, 1)}, 1, []string{"scan a open", "build a met"}},
		"what nobody knows is never met":     {[]Transition{move("a", "", 0, "notarize")}, []Evidence{{Kind: "notarize", Repository: repo, Commit: "a", Outcome: hallmark.Pass}}, 8, []string{"notarize a overdue"}},
		"reviewed":                           {[]Transition{move("a", "", 0), reviewed}, []Evidence{approval}, 8, []string{"review b met"}},
		"its approval is gone":               {[]Transition{move("a", "", 0), reviewed}, nil, 9, []string{"review b overdue"}},
		"its approval is for another ref":    {[]Transition{move("a", "", 0), reviewed}, []Evidence{elsewhere}, 9, []string{"review b overdue"}},
		"its approval can't be shown":        {[]Transition{move("a", "", 0), reviewed}, []Evidence{unshown}, 9, []string{"review b overdue"}},
		"it rests on no approval":            {[]Transition{move("a", "", 0), bare}, []Evidence{approval}, 9, []string{"review b overdue"}},
		"the transition before is gone":      {[]Transition{move("b", "a", 1, Build)}, []Evidence{built("b", hallmark.Pass, 1)}, 1, []string{"record overdue", "build b met"}},
		"forgotten by leave":                 {[]Transition{scratch, {Statement: digest("n"), Previous: digest("a"), Repository: repo, Ref: "refs/heads/main", Commit: "n", On: day(1)}}, nil, 20, []string{"build a closed"}},
		"shown still":                        {[]Transition{scratch}, nil, 20, []string{"build a overdue"}},
		"did not happen":                     {[]Transition{move("a", "", 0), move("b", "a", 1, Build), void}, nil, 20, []string{"build b closed"}},
		"gone":                               {[]Transition{move("a", "", 0), gone}, nil, 20, nil},
		"logged by who was killed, no more":  {[]Transition{move("a", "", 0), killed, instead}, nil, 20, []string{"build b overdue"}},
		"logged by who was killed, and last": {[]Transition{move("a", "", 0), killed}, nil, 20, []string{"build k overdue"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := states(Obligations(tt.transitions, tt.evidence, week, day(tt.at)))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestLessMeetsNothing: taking away any statement never meets an obligation that
// was unmet with it, and each that is met names what meets it, without which it is
// not.
func TestLessMeetsNothing(t *testing.T) {
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		transitions, evidence := history(r)
		at := day(r.IntN(30))
		before := standing(Obligations(transitions, evidence, week, at))
		for i := range transitions {
			onlyLess(t, seed, before, standing(Obligations(slices.Delete(slices.Clone(transitions), i, i+1), evidence, week, at)))
		}
		for i, e := range evidence {
			less := standing(Obligations(transitions, slices.Delete(slices.Clone(evidence), i, i+1), week, at))
			onlyLess(t, seed, before, less)
			for key, o := range less {
				if slices.Contains(o.Evidence, e.Statement) {
					t.Fatalf("seed %d: %s is met by what was taken away", seed, key)
				}
			}
		}
	}
}

func standing(all []Obligation) map[string]Obligation {
	out := map[string]Obligation{}
	for _, o := range all {
		out[strings.Join([]string{o.Kind, o.Repository, o.Ref, o.Revision, string(o.By)}, " ")] = o
	}
	return out
}

func onlyLess(t *testing.T, seed uint64, before, after map[string]Obligation) {
	t.Helper()
	for key, o := range after {
		if b, ok := before[key]; ok && b.Unmet() && o.State == Met {
			t.Fatalf("seed %d: %s was unmet, and with less it is met", seed, key)
		}
		if o.State == Met && len(o.Evidence) == 0 {
			t.Fatalf("seed %d: %s is met by nothing", seed, key)
		}
	}
}

// history makes up what could have happened.
func history(r *rand.Rand) ([]Transition, []Evidence) {
	commits := []string{"a", "b", "c", "d"}
	kinds := []string{Scan, Review, Build}
	var transitions []Transition
	var evidence []Evidence
	for i := range 1 + r.IntN(6) {
		c := commits[r.IntN(len(commits))]
		e := Evidence{Statement: digest(fmt.Sprint("evidence", i)), Kind: kinds[r.IntN(3)], Repository: repo, Ref: fmt.Sprint("refs/heads/", r.IntN(2)), Commit: c,
			Outcome: hallmark.Outcome(1 + r.IntN(4)), On: day(r.IntN(20))}
		evidence = append(evidence, e)
	}
	for i := range 1 + r.IntN(6) {
		t := Transition{Statement: digest(fmt.Sprint("transition", i)), Repository: repo, Ref: fmt.Sprint("refs/heads/", r.IntN(2)), Commit: commits[r.IntN(len(commits))],
			On: day(i), Opens: kinds, Forward: r.IntN(2) == 0, Void: r.IntN(6) == 0}
		for j := len(transitions) - 1; j >= 0; j-- {
			if transitions[j].Ref == t.Ref && r.IntN(4) > 0 {
				t.Previous = transitions[j].Statement
				break
			}
		}
		for range r.IntN(3) {
			t.Approvals = append(t.Approvals, evidence[r.IntN(len(evidence))].Statement)
		}
		transitions = append(transitions, t)
	}
	return transitions, evidence
}

func TestSays(t *testing.T) {
	all := Obligations([]Transition{move("b", "a", 1, Build)}, []Evidence{built("b", hallmark.Fail, 1)}, week, day(1))
	if got := all[0].Says(); !strings.Contains(got, "missing "+string(digest("a"))) {
		t.Error(got)
	}
	if got := all[1].Says(); !strings.HasPrefix(got, "build of b on refs/heads/main, open, due 2026-11-09T00:00:00Z, failed in sha256:") {
		t.Error(got)
	}
	if u := Unmet(all, Build); len(u) != 1 || len(Unmet(all, "")) != 2 {
		t.Errorf("%+v", u)
	}
}
