// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// whole returns a request that is allowed, with its inputs and facts.
func whole(t testing.TB) (*Engine, Request, []Input, []fact) {
	t.Helper()
	e, v, facts := lab(t)
	r := Request{
		Subjects: v.Subjects, Revision: v.Revision, ResourceURI: "git+" + v.Revision.Repository, Clock: clock.Add(300 * time.Millisecond),
		Roots: verify.Roots{Mode: verify.ModeSingleOperator}, RootsDigest: hallmark.DigestOf([]byte("roots")),
	}
	var inputs []Input
	for i, f := range facts {
		inputs = append(inputs, Input{Statement: f.Digest, Bundle: hallmark.DigestOf(fmt.Appendf(nil, "bundle %d", i)), PredicateType: f.PredicateType})
	}
	return e, r, inputs, facts
}

func verdictOf(t testing.TB, e *Engine, r Request, inputs []Input, facts []fact) (Verdict, []byte) {
	t.Helper()
	v, err := e.decide(t.Context(), r, inputs, facts)
	if err != nil {
		t.Fatal(err)
	}
	b, err := v.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return v, b
}

func TestVerdictIsAFunctionOfItsInputs(t *testing.T) {
	e, r, inputs, facts := whole(t)
	v, want := verdictOf(t, e, r, inputs, facts)
	if !v.Decision.Allowed() || !slices.Equal(v.Levels, []string{"SLSA_BUILD_LEVEL_1"}) || !v.Clock.Equal(clock) {
		t.Fatalf("%s", want)
	}
	for _, note := range []string{"single operator", "at most SLSA Build L1", "no witness"} {
		if !slices.ContainsFunc(v.Decision.Notes, func(s string) bool { return strings.Contains(s, note) }) {
			t.Errorf("no note says %q: %q", note, v.Decision.Notes)
		}
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 10 {
		rnd.Shuffle(len(facts), func(i, j int) { facts[i], facts[j] = facts[j], facts[i] })
		rnd.Shuffle(len(inputs), func(i, j int) { inputs[i], inputs[j] = inputs[j], inputs[i] })
		if _, got := verdictOf(t, e, r, inputs, facts); !bytes.Equal(got, want) {
			t.Fatalf("another order gives another verdict:\n%s\n%s", want, got)
		}
	}
	read, err := ParseVerdict(want)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := read.Encode(); err != nil || !bytes.Equal(again, want) {
		t.Errorf("read and written again: %v\n%s", err, again)
	}
}

func TestCompareNamesPinsFirst(t *testing.T) {
	e, r, inputs, facts := whole(t)
	a, _ := verdictOf(t, e, r, inputs, facts)
	r.RootsDigest = hallmark.DigestOf([]byte("other"))
	b, _ := verdictOf(t, e, r, inputs[:12], facts[:12])
	b.Engine.Version = "0"
	diffs, err := Compare(a, b)
	if err != nil {
		t.Fatal(err)
	}
	var fields []string
	for _, d := range diffs {
		fields = append(fields, d.Field)
	}
	if len(fields) < 5 || fields[0] != "/engine/version" || fields[1] != "/roots" || !strings.HasPrefix(fields[2], "/inputs/") {
		t.Errorf("%q", fields)
	}
	if !slices.Contains(fields, "/decision/effect") || !slices.Contains(fields, "/levels/0") {
		t.Errorf("%q", fields)
	}
	if same, err := Compare(a, a); err != nil || len(same) != 0 {
		t.Errorf("a verdict differs from itself: %v %v", same, err)
	}
}

// TestSubsetsNeverAllow drops random sets of statements.
func TestSubsetsNeverAllow(t *testing.T) {
	e, r, _, facts := whole(t)
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		var kept []fact
		for _, f := range facts {
			if rnd.IntN(4) > 0 {
				kept = append(kept, f)
			}
		}
		v, err := e.decide(t.Context(), r, nil, kept)
		if err != nil {
			t.Fatal(err)
		}
		if v.Decision.Allowed() && len(kept) < len(facts) {
			t.Fatalf("allowed with %d of %d statements", len(kept), len(facts))
		}
		if !v.Decision.Allowed() && len(v.Levels) > 0 {
			t.Fatal("a denial has levels")
		}
	}
}

// TestEachCheckMustPass: no outcome of any check but pass allows, whatever other
// records of it say, and whatever the rules say.
func TestEachCheckMustPass(t *testing.T) {
	blind := Default(Options{IssuedOn: clock})
	blind.Modules = map[string]string{"x.rego": "package hallmark.release\n\ndecision := {\"allow\": true, \"reasons\": []}\n"}
	open, err := compile(blind)
	if err != nil {
		t.Fatal(err)
	}
	e, r, _, facts := whole(t)
	if v, err := open.decide(t.Context(), r, nil, facts); err != nil || !v.Decision.Allowed() {
		t.Fatalf("%+v %v", v.Decision, err)
	}
	for i, f := range facts {
		if f.Check == nil {
			continue
		}
		for _, o := range []hallmark.Outcome{hallmark.Fail, hallmark.Errored, hallmark.Skipped} {
			rec := *f.Check
			rec.Outcome = o
			bad := f
			bad.Check, bad.Digest, bad.Result = &rec, hallmark.DigestOf([]byte(o.String())), "FAILED"
			replaced := slices.Clone(facts)
			replaced[i] = bad
			for _, set := range [][]fact{replaced, append(slices.Clone(facts), bad), append([]fact{bad}, facts...)} {
				for name, engine := range map[string]*Engine{"default": e, "blind": open} {
					v, err := engine.decide(t.Context(), r, nil, set)
					if err != nil {
						t.Fatal(err)
					}
					k := slices.IndexFunc(v.Decision.Checks, func(c hallmark.CheckResult) bool { return c.Check == rec.Check })
					if v.Decision.Allowed() || v.Decision.Checks[k].Outcome != o {
						t.Errorf("%s rules, %s %s: %s, check %s", name, rec.Check, o, v.Decision.Effect, v.Decision.Checks[k].Outcome)
					}
				}
			}
		}
	}
	// What rules that allow everything can't take away about provenance.
	for name, change := range map[string]func(r *Request, f *fact){
		"foreign artifact": func(r *Request, _ *fact) {
			r.Subjects = append(r.Subjects, hallmark.Artifact{Name: "b", Digest: hallmark.DigestOf([]byte("b"))})
		},
		"no digest":       func(r *Request, _ *fact) { r.Subjects = []hallmark.Artifact{{Name: "b"}} },
		"no artifact":     func(r *Request, _ *fact) { r.Subjects = nil },
		"other builder":   func(_ *Request, f *fact) { f.BuilderID = "x" },
		"other revision":  func(_ *Request, f *fact) { f.External = &intoto.ExternalParameters{} },
		"other requester": func(_ *Request, f *fact) { f.Requesters = []string{"ssh:eve@example.org"} },
		"a parameter":     func(_ *Request, f *fact) { f.External.Parameters = map[string]string{"DEBUG": "1"} },
	} {
		_, r, _, facts := whole(t)
		change(&r, &facts[12])
		if v, err := open.decide(t.Context(), r, nil, facts); err != nil || v.Decision.Allowed() {
			t.Errorf("%s: allowed (%v)", name, err)
		}
	}
}

// TestReasonsSayWhatToDo: nearest evidence, the field that differs, and a fix.
func TestReasonsSayWhatToDo(t *testing.T) {
	for field, change := range map[string]func(f *fact){
		"revision.commit":     func(f *fact) { f.Check.Revision.Commit = strings.Repeat("c", 40) },
		"revision.tree":       func(f *fact) { f.Check.Revision.Tree = strings.Repeat("c", 40) },
		"revision.repository": func(f *fact) { f.Check.Revision.Repository = "https://example.org/fork" },
		"signer":              func(f *fact) { f.Signer = "release" },
		"predicateType":       func(f *fact) { f.PredicateType = intoto.PredicateVulns },
	} {
		e, r, _, facts := whole(t)
		change(&facts[1])
		v, err := e.decide(t.Context(), r, nil, facts)
		if err != nil {
			t.Fatal(err)
		}
		var got []hallmark.Reason
		for _, reason := range v.Decision.Reasons {
			reason.Message, reason.Missing = "", ""
			got = append(got, reason)
		}
		want := []hallmark.Reason{{Code: hallmark.CodeEvidenceMissing, Check: "secrets", Nearest: facts[1].Digest.String(), Field: field, Fix: "hallmark run"}}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", field, d)
		}
	}
	e, r, _, facts := whole(t)
	facts[1].Check.Outcome = hallmark.Fail
	facts[1].Check.Reasons = []hallmark.Reason{{Code: hallmark.CodeSecretFound, Message: "m"}}
	v, err := e.decide(t.Context(), r, nil, facts)
	if err != nil || len(v.Decision.Reasons) != 1 || v.Decision.Reasons[0].Fix != Remedy(hallmark.CodeSecretFound) || v.Decision.Checks[1].Reasons[0].Fix == "" {
		t.Errorf("%+v %v", v.Decision, err)
	}
}

func TestLevelsAreTheLowest(t *testing.T) {
	_, _, _, facts := whole(t)
	high := facts[12]
	high.MaxLevel = "SLSA_BUILD_LEVEL_3"
	if got := levels(append(facts, high), hallmark.Revision{}); !slices.Equal(got, []string{"SLSA_BUILD_LEVEL_1"}) {
		t.Errorf("%q", got)
	}
}

func TestDecideRefusesWhatNobodyVerified(t *testing.T) {
	e, r, _, _ := whole(t)
	r.Statements = []verify.Statement{{}}
	if v, err := e.Decide(t.Context(), r); err == nil || v.Decision.Allowed() {
		t.Errorf("%+v", v.Decision)
	}
	r.Statements = make([]verify.Statement, maxStatements+1)
	if _, err := e.Decide(t.Context(), r); err == nil {
		t.Error("any number of statements")
	}
	r.Statements, r.Clock = nil, time.Time{}
	if _, err := e.Decide(t.Context(), r); err == nil {
		t.Error("a clock that nobody set")
	}
	if _, err := New(verify.Policy{}); err == nil {
		t.Error("a policy that nobody verified")
	}
}

// TestRulesThatFailDecideNothing: an error of the rules, or rules that never
// end, give an error and no verdict.
func TestRulesThatFailDecideNothing(t *testing.T) {
	_, r, _, facts := whole(t)
	doc := Default(Options{IssuedOn: clock})
	doc.Modules = map[string]string{"x.rego": "package hallmark.release\n\ndecision := {\"allow\": true, \"reasons\": []} if time.parse_rfc3339_ns(\"never\") > 0\n"}
	e, err := compile(doc)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := e.decide(t.Context(), r, nil, facts); err == nil || v.Decision.Allowed() {
		t.Errorf("%+v", v.Decision)
	}
	for _, call := range []string{"http.send({})", "opa.runtime()", "time.now_ns()", "rand.intn(\"a\", 9)", "uuid.rfc4122(\"a\")", "net.lookup_ip_addr(\"a\")", "trace(\"a\")"} {
		doc.Modules["x.rego"] = "package hallmark.release\n\ndecision := {\"allow\": true, \"x\": " + call + "}\n"
		if _, err := compile(doc); err == nil {
			t.Errorf("a rule may call %s", call)
		}
	}
}

func TestParseRefusesWhatReadsTwoWays(t *testing.T) {
	b, err := Default(Options{IssuedOn: clock, AllowedSigners: "a"}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseDocument(append([]byte(" \n"), b...)); err != nil {
		t.Error(err)
	}
	for from, to := range map[string]string{
		`"version":1`:                 `"Version":2,"version":1`,
		`"kind":"Policy"`:             `"Kind":"Policy"`,
		`"allowedSigners":"a",`:       ``,
		`"previous":""`:               `"previous":"sha256:00"`,
		`"issuedOn":"2026-03-01T`:     `"issuedOn":"0001-01-01T`,
		`"release.rego":`:             `"../release.rego":`,
		`"build.pids":"2048"`:         `"build.pids":2048`,
		`"build.cpus":"2"`:            `"build.cpus":"+2"`,
		`"build.memory":"4GiB"`:       `"build.memory":"+4GiB"`,
		`"build.timeout":"30m"`:       `"build.timeout":"+30m"`,
		`"findings.severity":"high"`:  `"findings.severity":"HIGH"`,
		`"checks.required":"source,`:  `"checks.required":"source,source,`,
		`"checks.required":"source,s`: `"checks.required":"source,,s`,
		`"scans.maxAge":"30d"`:        `"scans.maxage":"30d"`,
	} {
		bad := bytes.Replace(b, []byte(from), []byte(to), 1)
		if bytes.Equal(bad, b) {
			t.Fatalf("the policy has no %s", from)
		}
		if _, err := ParseDocument(bad); err == nil {
			t.Errorf("%s for %s was accepted", to, from)
		}
	}
	e, r, inputs, facts := whole(t)
	_, v := verdictOf(t, e, r, inputs, facts)
	for from, to := range map[string]string{`"effect":"allow"`: `"effect":""`, `"kind":"Verdict"`: `"Kind":"Verdict"`, `"roots":`: `"root":`} {
		if _, err := ParseVerdict(bytes.Replace(v, []byte(from), []byte(to), 1)); err == nil {
			t.Errorf("verdict: %s for %s was accepted", to, from)
		}
	}
}

// TestParametersAreDocumented keeps docs/policy.md and the table together.
func TestParametersAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for _, p := range Table() {
		fmt.Fprintf(&want, "| `%s` | `%s` | %s |\n", p.Key, p.Default, p.Doc)
	}
	if !strings.Contains(string(doc), want.String()) {
		t.Errorf("docs/policy.md lacks these rows:\n%s", want.String())
	}
}

// FuzzDecide changes, doubles and drops statements: nothing panics, and nothing
// is allowed unless one untouched copy of every statement is left and no record
// of a required check says anything but pass.
func FuzzDecide(f *testing.F) {
	for _, seed := range [][]byte{nil, {0}, {1, 2, 3}, {12, 9, 9}, []byte("a failing record"), bytes.Repeat([]byte{7, 1}, 9)} {
		f.Add(seed)
	}
	e, r, _, facts := whole(f)
	type copied struct {
		fact
		touched bool
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		var set []copied
		for _, x := range facts {
			set = append(set, copied{fact: x})
		}
		for i := 0; i+1 < len(script) && len(set) > 0 && i < 40; i += 2 {
			k := int(script[i]) % len(set)
			switch op := script[i+1] % 8; op {
			case 0:
				set = slices.Delete(set, k, k+1)
			case 7:
				set = append(set, set[k])
			default:
				set[k].touched = touch(&set[k].fact, op, script, i) || set[k].touched
			}
		}
		var given []fact
		whole, changed, refused := map[hallmark.Digest]bool{}, false, false
		for _, x := range set {
			given = append(given, x.fact)
			whole[x.Digest] = whole[x.Digest] || !x.touched
			changed = changed || x.touched
			refused = refused || x.Check != nil && x.records(x.Check.Check, r.Revision, r.Subjects, nil) && x.Check.Outcome != hallmark.Pass
		}
		missing := slices.ContainsFunc(facts, func(x fact) bool { return !whole[x.Digest] })
		v, err := e.decide(t.Context(), r, nil, given)
		switch allowed := err == nil && v.Decision.Allowed(); {
		case allowed && (missing || refused):
			t.Fatalf("allowed, missing %t, refused %t: %+v", missing, refused, v.Decision)
		case !allowed && !missing && !changed:
			t.Fatalf("denied, and nothing is wrong: %v %+v", err, v.Decision)
		}
	})
}

// touch changes one field of a fact and reports whether it did.
func touch(x *fact, op byte, script []byte, i int) bool {
	if x.Check != nil {
		rec := *x.Check
		x.Check = &rec
	}
	switch {
	case op == 1 && x.Check != nil:
		x.Check.Outcome = hallmark.Outcome(2 + script[i+1]/8%3)
	case op == 2 && x.Check != nil:
		x.Check.FinishedOn = time.Unix(int64(script[i+1])<<52, 0).UTC()
	case op == 3:
		x.Signer = string(script)
	case op == 4:
		x.Subjects = nil
	case op == 5:
		x.PredicateType = string(script)
	case op == 6 && x.Check != nil:
		x.Check.Revision.Tree = string(script)
	default:
		return false
	}
	return true
}

func FuzzParse(f *testing.F) {
	b, err := Default(Options{IssuedOn: clock}).Encode()
	if err != nil {
		f.Fatal(err)
	}
	e, r, inputs, facts := whole(f)
	_, v := verdictOf(f, e, r, inputs, facts)
	f.Add(b)
	f.Add(v)
	f.Add([]byte(`{"apiVersion":"hallmark/v1","kind":"Policy"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := ParseDocument(b); err == nil {
			if _, err := d.Typed(); err != nil {
				t.Errorf("accepted, but without values: %v", err)
			}
			if _, err := d.Encode(); err != nil {
				t.Error(err)
			}
		}
		if v, err := ParseVerdict(b); err == nil {
			if _, err := v.Encode(); err != nil {
				t.Error(err)
			}
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	e, r, inputs, facts := whole(b)
	for b.Loop() {
		if v, err := e.decide(b.Context(), r, inputs, facts); err != nil || !v.Decision.Allowed() {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	doc := Default(Options{IssuedOn: clock})
	for b.Loop() {
		if _, err := compile(doc); err != nil {
			b.Fatal(err)
		}
	}
}
