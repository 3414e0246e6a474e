// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// full is evidence of an allowed run that satisfies everything a builder of the
// given id can.
func full(mode, builder string) Evidence {
	ev := Evidence{Mode: mode}
	add := func(key string, it Item, input bool) {
		it.Digest, it.InLog = hallmark.DigestOf([]byte(key)), true
		ev.Items = append(ev.Items, it)
		if input {
			ev.Inputs = append(ev.Inputs, it.Digest)
		}
	}
	for _, sel := range []Selector{source(), secrets(), sast(), sbom(), sca(), build(), tests()} {
		it := Item{PredicateType: sel.PredicateType, Name: sel.Name, Check: sel.Check, Outcome: hallmark.Pass}
		add(sel.Check, it, true)
	}
	for _, sel := range []Selector{materials(), environment(), artifacts(), spdx(), cycloneDX()} {
		add(sel.String(), Item{PredicateType: sel.PredicateType, Name: sel.Name}, true)
	}
	add("provenance 1", Item{PredicateType: intoto.PredicateProvenance, BuilderID: builder}, true)
	add("provenance 2", Item{PredicateType: intoto.PredicateProvenance, BuilderID: builder}, true)
	add("policy", Item{PredicateType: intoto.PredicatePolicy}, false)
	add("genesis", Item{PredicateType: intoto.PredicateGenesis}, false)
	add("old vsa", Item{PredicateType: intoto.PredicateVSA, Outcome: hallmark.Fail}, false)
	add("vsa", Item{PredicateType: intoto.PredicateVSA, Outcome: hallmark.Pass}, false)
	ev.Summary = hallmark.DigestOf([]byte("vsa"))
	return ev
}

const serverBuilder = "https://hallmark-sc.github.io/builders/server"

func states(f Framework, ev Evidence) map[string]State {
	m := map[string]State{}
	for _, r := range Evaluate(f, ev) {
		m[r.ID] = r.State
	}
	return m
}

func TestEveryStateIsReached(t *testing.T) {
	local := full("single-operator", intoto.BuilderLocal)
	nist, slsa := states(NIST800204D, local), states(SLSA12, local)
	for id, want := range map[string]State{"N029": Satisfied, "N123": Satisfied, "N058": NotSatisfied, "N043": NotImplemented, "N075": NoEvidence} {
		if nist[id] != want {
			t.Errorf("%s is %v, want %v", id, nist[id], want)
		}
	}
	for id, want := range map[string]State{"B08": NotSatisfied, "B04": Satisfied, "S26": NotApplicable, "B20": NotImplemented, "S22": NoEvidence} {
		if slsa[id] != want {
			t.Errorf("%s is %v, want %v", id, slsa[id], want)
		}
	}
	if s := states(SLSA12, full(ModeThreshold, serverBuilder))["B08"]; s != Satisfied {
		t.Errorf("B08 by a hosted builder is %v", s)
	}
}

func TestWithoutEvidence(t *testing.T) {
	for _, f := range Frameworks() {
		for _, r := range Evaluate(f, Evidence{}) {
			if implemented := r.Rule != ""; implemented != (r.State == NoEvidence) {
				t.Errorf("%s without evidence is %v", r.ID, r.State)
			}
		}
	}
}

func TestOutcomesOtherThanPass(t *testing.T) {
	for _, o := range []hallmark.Outcome{0, hallmark.Fail, hallmark.Errored, hallmark.Skipped} {
		ev := full(ModeThreshold, serverBuilder)
		for i := range ev.Items {
			if ev.Items[i].Check == "secrets" {
				ev.Items[i].Outcome = o
			}
		}
		got := states(NIST800204D, ev)
		if got["N098"] != NotSatisfied || got["N094"] != Satisfied {
			t.Errorf("secrets %v: N098 %v, N094 %v", o, got["N098"], got["N094"])
		}
	}
}

// A pass beside a failure of the same check does not hide it, a denied verdict
// still shows how decisions are made, and an older VSA counts for nothing.
func TestScope(t *testing.T) {
	ev := full(ModeThreshold, serverBuilder)
	d := hallmark.DigestOf([]byte("secrets again"))
	ev.Inputs = append(ev.Inputs, d)
	ev.Items = append(ev.Items, Item{Digest: d, PredicateType: intoto.PredicateTestResult, Check: "secrets", Outcome: hallmark.Fail, InLog: true})
	if s := states(NIST800204D, ev)["N098"]; s != NotSatisfied {
		t.Errorf("a pass hid a failure: %v", s)
	}
	ev = full(ModeThreshold, serverBuilder)
	ev.Summary = hallmark.DigestOf([]byte("old vsa"))
	got := states(NIST800204D, ev)
	if got["N029"] != Satisfied || got["N123"] != NotSatisfied {
		t.Errorf("denied verdict: N029 %v, N123 %v", got["N029"], got["N123"])
	}
	ev = full(ModeThreshold, serverBuilder)
	ev.Inputs = nil
	if s := states(NIST800204D, ev)["N094"]; s != NoEvidence {
		t.Errorf("statements of no verdict count: %v", s)
	}
	ev = full(ModeThreshold, serverBuilder)
	for i := range ev.Items {
		ev.Items[i].InLog = false
	}
	for id, s := range states(NIST800204D, ev) {
		if s == Satisfied {
			t.Errorf("%s is satisfied by evidence outside the log", id)
		}
	}
}

// A guarantee that did not hold counts against the rows about isolation, and
// not against the inventory that says so.
func TestIncompleteIsolation(t *testing.T) {
	ev := full(ModeThreshold, serverBuilder)
	for i := range ev.Items {
		if ev.Items[i].Name == intoto.NameEnvironment {
			ev.Items[i].Outcome = hallmark.Fail
		}
	}
	got := states(NIST800204D, ev)
	if got["N041"] != NotSatisfied || got["N056"] != NotSatisfied || got["N061"] != Satisfied {
		t.Errorf("N041 %v, N056 %v, N061 %v", got["N041"], got["N056"], got["N061"])
	}
}

func TestTwoPersonsAndHosted(t *testing.T) {
	req := Requirement{ID: "X", Rule: "r", Evidence: []Selector{provenance()}, TwoPersons: true, Hosted: true}
	for _, c := range []struct {
		mode, builder string
		want          State
	}{
		{ModeThreshold, serverBuilder, Satisfied},
		{"single-operator", serverBuilder, NotSatisfied},
		{"", serverBuilder, NotSatisfied},
		{ModeThreshold, intoto.BuilderLocal, NotSatisfied},
		{ModeThreshold, "", NotSatisfied},
	} {
		if got := newBasis(full(c.mode, c.builder)).row(req); got.State != c.want {
			t.Errorf("mode %q, builder %q: %v, want %v", c.mode, c.builder, got.State, c.want)
		}
	}
}

// Taking evidence away never turns a row to satisfied, whatever the evidence.
func TestRemovalNeverSatisfies(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		ev := full([]string{ModeThreshold, "single-operator"}[rng.IntN(2)], []string{serverBuilder, intoto.BuilderLocal}[rng.IntN(2)])
		for i := range ev.Items {
			if rng.IntN(12) == 0 {
				ev.Items[i].Outcome = hallmark.Outcome(1 + rng.IntN(4))
			}
			if rng.IntN(40) == 0 {
				ev.Items[i].InLog = false
			}
			if rng.IntN(20) == 0 {
				ev.Items[i].BuilderID = intoto.BuilderLocal
			}
		}
		less := ev
		less.Items = nil
		for _, it := range ev.Items {
			if rng.IntN(6) != 0 {
				less.Items = append(less.Items, it)
			}
		}
		for _, f := range Frameworks() {
			before := states(f, ev)
			for id, s := range states(f, less) {
				if s == Satisfied && before[id] != Satisfied {
					t.Fatalf("%s was %v and became satisfied by removal", id, before[id])
				}
			}
		}
	}
}

func TestNewItem(t *testing.T) {
	const rec = `"https://hallmark-sc.github.io/ext/check/v0.1":{"check":"sca","outcome":"fail"}`
	d := hallmark.DigestOf(nil)
	for _, c := range []struct {
		typ, predicate string
		want           Item
	}{
		{intoto.PredicateVulns, `{` + rec + `}`, Item{Check: "sca", Outcome: hallmark.Fail}},
		{intoto.PredicateTestResult, `{"result":"PASSED"}`, Item{Outcome: hallmark.Errored}},
		{intoto.PredicateLink, `{"name":"materials"}`, Item{Name: "materials"}},
		{intoto.PredicateSCAI, `{"https://hallmark-sc.github.io/ext/name/v0.1":"environment"}`, Item{Name: "environment"}},
		{intoto.PredicateSCAI, `{"attributes":[{"attribute":"ISOLATION_GUARANTEE_ABSENT"}]}`, Item{Outcome: hallmark.Fail}},
		{intoto.PredicateProvenance, `{"runDetails":{"builder":{"id":"b"}}}`, Item{BuilderID: "b"}},
		{intoto.PredicateVSA, `{"verificationResult":"PASSED"}`, Item{Outcome: hallmark.Pass}},
		{intoto.PredicateVSA, `{"verificationResult":"passed"}`, Item{Outcome: hallmark.Fail}},
		{intoto.PredicateSPDX, `{}`, Item{}},
	} {
		c.want.Digest, c.want.PredicateType, c.want.InLog = d, c.typ, true
		got, err := NewItem(d, intoto.Statement{PredicateType: c.typ, Predicate: []byte(c.predicate)}, true)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", c.predicate, diff)
		}
	}
	if _, err := NewItem(d, intoto.Statement{PredicateType: intoto.PredicateVSA, Predicate: []byte(`[]`)}, true); err == nil {
		t.Error("a VSA that is no object was read")
	}
	if _, err := ItemOf(verify.Statement{}, true); err == nil {
		t.Error("a statement that nobody verified was taken")
	}
	if _, err := NewItem("sha256:1", intoto.Statement{}, true); err == nil {
		t.Error("a digest that is none was taken")
	}
}
