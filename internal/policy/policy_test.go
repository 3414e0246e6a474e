// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

var clock = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func lab(t testing.TB) (*Engine, Verdict, []fact) {
	t.Helper()
	e, err := compile(Default(Options{IssuedOn: clock}))
	if err != nil {
		t.Fatal(err)
	}
	e.params.Tools, e.params.AnyTool = []string{"go=bb"}, false
	rev := hallmark.Revision{Repository: "https://example.org/app", Commit: strings.Repeat("a", 40), Tree: strings.Repeat("b", 40)}
	art := hallmark.Artifact{Name: "app", Digest: hallmark.DigestOf([]byte("app")), Size: 3}
	v := Verdict{Clock: clock, Revision: rev, Subjects: []hallmark.Artifact{art}}
	about := []intoto.ResourceDescriptor{intoto.SubjectOf(art)}
	source := []intoto.ResourceDescriptor{intoto.SubjectOfRevision(rev)}
	start, end := clock.Add(-time.Hour), clock.Add(-50*time.Minute)
	record := func(check string) *hallmark.CheckRecord {
		return &hallmark.CheckRecord{Check: check, Outcome: hallmark.Pass, Revision: rev, StartedOn: start, FinishedOn: end, Tool: hallmark.Tool{Name: "t", Version: "1"}}
	}
	var facts []fact
	add := func(f fact) {
		f.Digest = hallmark.DigestOf([]byte{byte(len(facts))})
		f.SignedAt = clock
		if f.Signer == "" {
			f.Signer = "observer"
		}
		facts = append(facts, f)
	}
	add(fact{PredicateType: intoto.PredicateSource, Subjects: source, Check: record("source")})
	for _, c := range []string{"secrets", "sast", "sbom", "tests"} {
		add(fact{PredicateType: intoto.PredicateTestResult, Subjects: source, Check: record(c), Result: "PASSED"})
	}
	add(fact{PredicateType: intoto.PredicateVulns, Subjects: source, Check: record("sca")})
	add(fact{PredicateType: intoto.PredicateLink, Name: intoto.NameProcess, Subjects: about, Check: record("build")})
	add(fact{PredicateType: intoto.PredicateLink, Name: intoto.NameMaterials, Subjects: about})
	add(fact{PredicateType: intoto.PredicateSCAI, Name: intoto.NameEnvironment, Subjects: source, Tools: []string{"go=bb"}})
	add(fact{PredicateType: intoto.PredicateSCAI, Name: intoto.NameArtifacts, Subjects: about})
	add(fact{PredicateType: intoto.PredicateSPDX, Subjects: about})
	add(fact{PredicateType: intoto.PredicateCycloneDX, Subjects: about})
	add(fact{PredicateType: intoto.PredicateProvenance, Signer: "builder", Subjects: about, BuilderID: intoto.BuilderLocal, BuildType: intoto.BuildTypePipeline, MaxLevel: "SLSA_BUILD_LEVEL_1",
		External: &intoto.ExternalParameters{Repository: rev.Repository, Revision: rev.Commit}, StartedOn: start, FinishedOn: end, Requesters: []string{RequesterOperator}, Image: ImageHost})
	return e, v, facts
}

func decide(t testing.TB, e *Engine, v Verdict, facts []fact) hallmark.Decision {
	t.Helper()
	reasons, allow, err := e.eval(t.Context(), v, facts)
	if err != nil {
		t.Fatal(err)
	}
	return e.decision(v, facts, reasons, allow)
}

// TestDroppingEvidenceNeverAllows removes every statement, and every pair.
func TestDroppingEvidenceNeverAllows(t *testing.T) {
	e, v, facts := lab(t)
	if d := decide(t, e, v, facts); !d.Allowed() {
		t.Fatalf("the whole evidence is denied: %+v", d.Reasons)
	}
	for i := range facts {
		one := slices.Delete(slices.Clone(facts), i, i+1)
		if d := decide(t, e, v, one); d.Allowed() || len(d.Reasons) == 0 {
			t.Errorf("allowed without %s %s", facts[i].PredicateType, facts[i].Name)
		}
		for j := range one {
			if d := decide(t, e, v, slices.Delete(slices.Clone(one), j, j+1)); d.Allowed() {
				t.Errorf("allowed without %d and %d", i, j)
			}
		}
	}
	if d := decide(t, e, v, nil); d.Allowed() {
		t.Error("allowed without evidence")
	}
}

// TestEachFactDenies changes one thing at a time, and expects its reason.
func TestEachFactDenies(t *testing.T) {
	for name, c := range map[string]struct {
		change func(v *Verdict, f []fact)
		code   hallmark.Code
	}{
		"failed":  {func(_ *Verdict, f []fact) { f[1].Check.Outcome = hallmark.Fail }, hallmark.CodeCheckFailed},
		"errored": {func(_ *Verdict, f []fact) { f[1].Check.Outcome = hallmark.Errored }, hallmark.CodeCheckError},
		"skipped": {func(_ *Verdict, f []fact) { f[4].Check.Outcome = hallmark.Skipped }, hallmark.CodeCheckNotRun},
		"own reason": {func(_ *Verdict, f []fact) {
			f[1].Check.Outcome = hallmark.Fail
			f[1].Check.Reasons = []hallmark.Reason{{Code: hallmark.CodeSecretFound, Message: "m"}}
		}, hallmark.CodeSecretFound},
		"other commit": {func(_ *Verdict, f []fact) { f[2].Check.Revision.Commit = strings.Repeat("c", 40) }, hallmark.CodeEvidenceMissing},
		"other tree":   {func(_ *Verdict, f []fact) { f[2].Check.Revision.Tree = strings.Repeat("c", 40) }, hallmark.CodeEvidenceMissing},
		"other signer": {func(_ *Verdict, f []fact) { f[2].Signer = "release" }, hallmark.CodeEvidenceMissing},
		"other type":   {func(_ *Verdict, f []fact) { f[5].PredicateType = intoto.PredicateTestResult }, hallmark.CodeEvidenceMissing},
		"stale":        {func(v *Verdict, _ []fact) { v.Clock = clock.AddDate(0, 2, 0) }, hallmark.CodeScanStale},
		"future":       {func(_ *Verdict, f []fact) { f[1].Check.FinishedOn = clock.Add(time.Hour) }, hallmark.CodeTimeInFuture},
		"counts": {func(_ *Verdict, f []fact) {
			f[2].Check.Counts = []hallmark.Count{{Severity: hallmark.SeverityHigh, Confidence: hallmark.ConfidenceMedium, Count: 1}}
		}, hallmark.CodeCheckFailed},
		"old data": {func(_ *Verdict, f []fact) {
			f[5].Check.Data = []hallmark.DataSource{{Name: "osv:Go", Newest: clock.AddDate(0, -1, 0)}}
		}, hallmark.CodeScanDataStale},
		"future data": {func(_ *Verdict, f []fact) {
			f[5].Check.Data = []hallmark.DataSource{{Name: "osv:Go", Newest: clock.AddDate(1, 0, 0)}}
		}, hallmark.CodeTimeInFuture},
		"undated data": {func(_ *Verdict, f []fact) { f[5].Check.Data = []hallmark.DataSource{{Name: "osv:Go"}} }, hallmark.CodeScanDataStale},
		"time zero":    {func(_ *Verdict, f []fact) { f[1].Check.FinishedOn = time.Time{} }, hallmark.CodeScanStale},
		"time endless": {func(_ *Verdict, f []fact) { f[1].Check.FinishedOn = clock.AddDate(5000, 0, 0) }, hallmark.CodeTimeInFuture},
		"signed later": {func(_ *Verdict, f []fact) { f[9].SignedAt = clock.Add(6 * time.Minute) }, hallmark.CodeTimeInFuture},
		"incomplete": {func(_ *Verdict, f []fact) {
			f[1].Check.Coverage = &hallmark.Coverage{Scanned: 1, Missed: []string{"a blob"}}
		}, hallmark.CodeScanIncomplete},
		"pass with reasons": {func(_ *Verdict, f []fact) {
			f[1].Check.Reasons = []hallmark.Reason{{Code: hallmark.CodeSecretFound, Message: "m"}}
		}, hallmark.CodeEvidenceMalformed},
		"pass that failed":   {func(_ *Verdict, f []fact) { f[1].Result = "FAILED" }, hallmark.CodeEvidenceMalformed},
		"other build type":   {func(_ *Verdict, f []fact) { f[12].BuildType = "https://example.org/t" }, hallmark.CodeExternalParameters},
		"no external":        {func(_ *Verdict, f []fact) { f[12].External = nil }, hallmark.CodeRevisionMismatch},
		"provenance undated": {func(_ *Verdict, f []fact) { f[12].StartedOn, f[12].FinishedOn = time.Time{}, time.Time{} }, hallmark.CodeEvidenceTime},
		"foreign spdx": {func(_ *Verdict, f []fact) {
			f[10].Subjects = []intoto.ResourceDescriptor{{Name: "x", Digest: map[string]string{"sha256": strings.Repeat("0", 64)}}}
		}, hallmark.CodeEvidenceMissing},
		"secrets of another commit": {func(_ *Verdict, f []fact) {
			other := hallmark.Revision{Commit: strings.Repeat("c", 40)}
			f[1].Subjects = []intoto.ResourceDescriptor{intoto.SubjectOfRevision(other)}
		}, hallmark.CodeEvidenceMissing},
		"build of another artifact": {func(_ *Verdict, f []fact) {
			f[6].Subjects = []intoto.ResourceDescriptor{intoto.SubjectOf(hallmark.Artifact{Name: "x", Digest: hallmark.DigestOf([]byte("x"))})}
		}, hallmark.CodeEvidenceMissing},
		"provenance of an observer": {func(_ *Verdict, f []fact) { f[12].Signer = "observer" }, hallmark.CodeSignerNotAuthorized},
		"other tool":                {func(_ *Verdict, f []fact) { f[8].Tools = []string{"go=bb", "cc=aa"} }, hallmark.CodeBuildTool},
		"other requester":           {func(_ *Verdict, f []fact) { f[12].Requesters = []string{"uid:5"} }, hallmark.CodeBuildRequester},
		"no requester":              {func(_ *Verdict, f []fact) { f[12].Requesters = nil }, hallmark.CodeBuildRequester},
		"other image":               {func(_ *Verdict, f []fact) { f[12].Image = "" }, hallmark.CodeBuildPlatform},
		"a parameter":               {func(_ *Verdict, f []fact) { f[12].External.Parameters = map[string]string{"DEBUG": "1"} }, hallmark.CodeBuildParameter},
		"other builder":             {func(_ *Verdict, f []fact) { f[12].BuilderID = "https://example.org/b" }, hallmark.CodeBuilderNotTrusted},
		"other source":              {func(_ *Verdict, f []fact) { f[12].External.Repository = "https://example.org/fork" }, hallmark.CodeRevisionMismatch},
		"other bytes":               {func(v *Verdict, _ []fact) { v.Subjects[0].Digest = hallmark.DigestOf([]byte("other")) }, hallmark.CodeSubjectMismatch},
		"other time":                {func(_ *Verdict, f []fact) { f[6].Check.StartedOn = clock }, hallmark.CodeEvidenceTime},
		"no artifact":               {func(v *Verdict, _ []fact) { v.Subjects = nil }, hallmark.CodeNoEvidenceForArtifact},
	} {
		e, v, facts := lab(t)
		c.change(&v, facts)
		d := decide(t, e, v, facts)
		if d.Allowed() || !slices.ContainsFunc(d.Reasons, func(r hallmark.Reason) bool { return r.Code == c.code }) {
			t.Errorf("%s: want %s, got %s %+v", name, c.code, d.Effect, d.Reasons)
		}
	}
}

// TestLaterPassHidesNothing: an earlier failure of the same check counts.
func TestLaterPassHidesNothing(t *testing.T) {
	e, v, facts := lab(t)
	failed := facts[1]
	rec := *failed.Check
	rec.Outcome = hallmark.Fail
	failed.Check, failed.Digest = &rec, hallmark.DigestOf([]byte("earlier"))
	for _, order := range [][]fact{append([]fact{failed}, facts...), append(slices.Clone(facts), failed)} {
		if d := decide(t, e, v, order); d.Allowed() {
			t.Error("a pass hides a failure")
		}
	}
}

// TestUndefinedDenies: rules that give no answer, and rules that allow without
// the required checks.
func TestUndefinedDenies(t *testing.T) {
	for name, module := range map[string]string{
		"undefined":   "package hallmark.release\n\ndecision := d if { d := input.nothing }\n",
		"no allow":    "package hallmark.release\n\ndecision := {\"reasons\": []}\n",
		"no reasons":  "package hallmark.release\n\ndecision := {\"allow\": false, \"reasons\": []}\n",
		"no object":   "package hallmark.release\n\ndecision := true\n",
		"blind allow": "package hallmark.release\n\ndecision := {\"allow\": true, \"reasons\": []}\n",
	} {
		doc := Default(Options{IssuedOn: clock})
		doc.Modules = map[string]string{"release.rego": module}
		e, err := compile(doc)
		if err != nil {
			t.Fatal(err)
		}
		_, v, _ := lab(t)
		if d := decide(t, e, v, nil); d.Allowed() || len(d.Reasons) == 0 {
			t.Errorf("%s: %+v", name, d)
		}
	}
	doc := Default(Options{IssuedOn: clock})
	doc.Modules = map[string]string{"x.rego": "package hallmark.release\n\ndecision := {\"allow\": http.send({}).x, \"reasons\": []}\n"}
	if _, err := compile(doc); err == nil {
		t.Error("a rule may use the network")
	}
}

func TestDocument(t *testing.T) {
	d := Default(Options{IssuedOn: clock, AllowedSigners: "a"})
	b, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseDocument(b); err != nil {
		t.Fatal(err)
	}
	next, err := d.Set([][2]string{{"advisories.maxAge", "400d"}}, clock)
	if err != nil || next.Version != 2 || next.Previous != hallmark.DigestOf(b) || d.Parameters["advisories.maxAge"] != "7d" {
		t.Errorf("%+v %v", next, err)
	}
	pin := "sha256:" + strings.Repeat("0", 64)
	for value, want := range map[string]map[string]hallmark.Digest{"none": {}, "x=" + pin + ", y-2=" + pin: {"x": hallmark.Digest(pin), "y-2": hallmark.Digest(pin)}} {
		next, err := d.Set([][2]string{{"sast.drivers", value}}, clock)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := next.Typed(); err != nil || !maps.Equal(p.Drivers, want) {
			t.Errorf("%s: %v %v", value, p.Drivers, err)
		}
	}
	for _, c := range [][2]string{{"checks.required", ""}, {"checks.required", "nonsense"}, {"nonsense", "1"}, {"build.egress", "allow"}, {"scans.maxAge", "-1d"}, {"build.memory", "4"}, {"findings.severity", "none"},
		{"sast.drivers", ""}, {"sast.drivers", "flawfinder"}, {"sast.drivers", "x=sha256:12"}, {"sast.drivers", "X=" + pin}, {"sast.drivers", "=" + pin}, {"sast.drivers", "none,x=" + pin},
		{"sast.drivers", "x=" + pin + ",x=" + pin[:len(pin)-1] + "1"}, {"sast.drivers", "x=" + pin + ","}} {
		if _, err := d.Set([][2]string{c}, clock); err == nil {
			t.Errorf("%v was accepted", c)
		}
	}
	for _, bad := range []string{`{}`, strings.Replace(string(b), `"version":1`, `"version":0`, 1), strings.Replace(string(b), `"kind":"Policy"`, `"kind":"Policy","more":1`, 1), strings.Replace(string(b), `"scans.maxAge":"30d"`, `"scans.maxAge":"30d","x":"y"`, 1)} {
		if _, err := ParseDocument([]byte(bad)); err == nil {
			t.Errorf("accepted %.80s", bad)
		}
	}
}

// TestOlderDocument: a policy made before a parameter existed reads with its
// default, says so everywhere, and gets it written with its next version.
func TestOlderDocument(t *testing.T) {
	doc := Default(Options{IssuedOn: clock})
	for _, key := range added() {
		delete(doc.Parameters, key)
	}
	b, err := doc.Encode()
	if err != nil {
		t.Fatal(err)
	}
	old, err := ParseDocument(b)
	if err != nil {
		t.Fatal(err)
	}
	p, err := old.Typed()
	if err != nil || len(p.Registries) != 0 || p.Tools != nil || !p.AnyTool || len(p.Drivers) != 0 {
		t.Errorf("%+v %v", p, err)
	}
	next, err := old.Set([][2]string{{"build.cpus", "3"}}, clock)
	if err != nil || next.Parameters["registries.go"] != "none" || len(next.Parameters) != len(Table()) {
		t.Errorf("%+v %v", next.Parameters, err)
	}
	delete(doc.Parameters, "checks.required")
	if b, err = doc.Encode(); err != nil {
		t.Fatal(err)
	}
	if _, err := ParseDocument(b); err == nil || !strings.Contains(err.Error(), "checks.required is missing") {
		t.Errorf("a parameter that was always there: %v", err)
	}
}
