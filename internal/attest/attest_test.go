// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package attest_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/intoto"
)

var update = flag.Bool("update", false, "write the golden statements anew")

func at(minute int) time.Time { return time.Date(2026, 1, 2, 3, minute, 5, 123456789, time.UTC) }

func digest(s string) hallmark.Digest { return hallmark.DigestOf([]byte(s)) }

func revision() hallmark.Revision {
	return hallmark.Revision{Repository: "https://example.org/app", Ref: "refs/heads/main", Commit: strings.Repeat("a", 40), Tree: strings.Repeat("b", 40)}
}

func record(check string, o hallmark.Outcome) hallmark.CheckRecord {
	r := hallmark.CheckRecord{Check: check, Outcome: o, Revision: revision(), StartedOn: at(1), FinishedOn: at(2), Tool: hallmark.Tool{Name: "hallmark", Version: "v1", Digest: digest("binary")},
		Data: []hallmark.DataSource{{Name: "rules", Digest: digest("rules"), Newest: at(0), Records: 3}}}
	if o != hallmark.Pass {
		r.Reasons = []hallmark.Reason{{Code: hallmark.CodeCheckFailed, Check: check, Message: "it \"failed\"\n<b>"}}
	}
	return r
}

func build() attest.Build {
	return attest.Build{
		Revision: revision(), Pipeline: intoto.PipelineRef{Path: ".hallmark/pipeline.yaml", Digest: digest("definition")}, BuilderID: intoto.BuilderLocal, Version: "v1",
		StartedOn: at(3), FinishedOn: at(4),
		Steps:        []attest.Step{{Name: "build", Command: []string{"sh", "-c", "go build"}, StartedOn: at(3), FinishedOn: at(4), Log: digest("log")}, {Name: "test", Test: true, ExitCode: 1, Signal: "killed", LimitHit: "memory", StartedOn: at(3), FinishedOn: at(4), Log: digest("log 2")}},
		Egress:       []attest.Egress{{Step: "build", Time: at(3), Process: "curl", Address: "192.0.2.1:443", Name: "evil\xff.example"}},
		Artifacts:    []hallmark.Artifact{{Name: "app", Digest: digest("app"), Size: 3, Mode: 0o755}, {Name: "app.conf", Digest: digest("conf"), Size: 4, Mode: 0o644}},
		Dependencies: []attest.Dependency{{PURL: "pkg:golang/example.org/x@v1.2.3", Name: "example.org/x", Digests: map[string]string{"sha256": digest("x").Hex(), "dirHash1": digest("tree of x").Hex()}}},
		Tools:        []attest.Tool{{Path: "/usr/bin/go", Tool: hallmark.Tool{Name: "go", Version: "go1.26.8", Digest: digest("go")}}},
		Parameters:   map[string]string{"MODE": "release"},
		Rule:         &attest.Rule{Name: "release", Inventory: digest("inventory"), BuiltPrograms: true},
		Requester:    &intoto.Requester{Principals: []string{"operator", "uid:1000"}, Authentication: "possession of the home's keys", User: "dev"},
		Platform:     map[string]string{"kernel": "6.1", "os": "Debian 12", "arch": "amd64"},
		Guarantees:   []attest.Guarantee{{Name: "no-network", Holds: true}, {Name: "cgroup", Holds: false, Detail: "no delegation"}},
		Files:        7, Manifest: digest("manifest"), Record: record("build", hallmark.Pass),
	}
}

// observed is a build that was traced whole.
func observed() attest.Build {
	b := build()
	b.Egress = nil
	b.Steps[0].Events = digest("events")
	b.Trace = attest.Trace{
		Engine: "ptrace", Whole: true, Hermetic: true, Omitted: 1,
		Programs:    []attest.Program{{Path: "/usr/bin/cc", Digest: digest("cc"), Runs: 2}},
		Processes:   []attest.TracedProcess{{Step: "build", Number: 1, Program: "/usr/bin/cc", Digest: digest("cc"), Args: []string{"cc", `\xff`}, Duration: time.Second}, {Step: "build", Number: 2, Parent: 1, Signal: "SIGKILL"}},
		Network:     []attest.TracedConnect{{Step: "build", Process: 1, Address: "127.0.0.1:1"}},
		Materials:   attest.List{Digest: digest("materials"), Files: 3},
		Products:    attest.List{Digest: digest("products"), Files: 2},
		Groups:      []attest.Group{{Origin: "source", Files: 1, Bytes: 2, Digest: digest("group")}, {Origin: "toolchain", Package: "pkg:deb/debian/gcc@12?arch=amd64", Files: 1, Bytes: 3, Digest: digest("gcc")}},
		Unexplained: []attest.FileMaterial{{Path: "/opt/x", Digest: digest("unexplained")}, {Path: "/opt/pipe"}},
		Unstable:    []attest.FileMaterial{{Path: "/workspace/x", Digest: digest("now")}},
		Packages:    []string{"pkg:deb/debian/gcc@12?arch=amd64"},
	}
	return b
}

// wrapped is a command of another CI system, in a work tree that was clean or not.
func wrapped(dirty bool) attest.Build {
	b := observed()
	b.Pipeline, b.BuilderID, b.Dependencies = intoto.PipelineRef{Path: "make", Digest: digest("command")}, intoto.BuilderWrap, nil
	b.Steps = []attest.Step{{Name: "make", Command: []string{"make", "app"}, StartedOn: at(3), FinishedOn: at(4), Events: digest("events")}}
	b.Trace.Hermetic = false
	b.Command = &attest.Command{Argv: []string{"make", "app"}, Dir: "/src/app", Variables: []string{"HOME", "TOKEN"},
		WorkTree: &attest.WorkTree{Commit: revision().Commit, Tree: revision().Tree}}
	if dirty {
		b.Command.WorkTree.Dirty, b.Command.WorkTree.Differs = true, "main.c"
		b.Revision, b.Artifacts = hallmark.Revision{}, nil
	}
	return b
}

// failed is a build that ended before there was an artifact.
func failed() attest.Build {
	b := build()
	b.Artifacts, b.Egress, b.Steps, b.Record = nil, nil, nil, record("build", hallmark.Fail)
	return b
}

// statements is one statement of every kind, by the name of its golden file.
func statements(t *testing.T) map[string]intoto.Statement {
	t.Helper()
	out := map[string]intoto.Statement{}
	add := func(name string) func(st intoto.Statement, err error) {
		return func(st intoto.Statement, err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			out[name] = st
		}
	}
	src := record("source", hallmark.Pass)
	add("source")(attest.Source(intoto.SourceProvenance{Revision: revision(), Signer: &hallmark.Principal{Name: "dev@example.org", Key: "SHA256:x", Method: "ssh"}, Author: "Dév <d>", Committer: "d", CommittedOn: at(0), Parents: []string{strings.Repeat("c", 40)}, Commits: 2, Check: &src}))
	for name, o := range map[string]hallmark.Outcome{"test-result-pass": hallmark.Pass, "test-result-fail": hallmark.Fail, "test-result-error": hallmark.Errored, "test-result-skipped": hallmark.Skipped} {
		add(name)(attest.TestResult(record("tests", o), nil, []string{"unit"}, []string{"integration"}))
	}
	add("vulns")(attest.Vulns(record("sca", hallmark.Fail), []hallmark.Finding{{Rule: "GO-2026-1", Severity: hallmark.SeverityHigh, Component: "pkg:golang/x@v1", FixedIn: "v2", Aliases: []string{"CVE-2026-1"}}}))
	add("vulns-none")(attest.Vulns(record("sca", hallmark.Pass), nil))
	add("spdx")(attest.Inventory(intoto.PredicateSPDX, attest.Products(build()), []byte(`{"spdxVersion":"SPDX-2.3"}`)))
	add("cyclonedx")(attest.Inventory(intoto.PredicateCycloneDX, attest.Products(build()), []byte(`{"bomFormat":"CycloneDX"}`)))
	add("environment")(attest.Environment(build()))
	add("process")(attest.Process(build()))
	add("process-failed")(attest.Process(failed()))
	add("materials")(attest.Materials(build()))
	add("artifacts")(attest.Artifacts(build(), []intoto.ResourceDescriptor{{Name: "findings.sarif", MediaType: "application/sarif+json", Digest: map[string]string{"sha256": digest("sarif").Hex()}}}))
	add("artifacts-failed")(attest.Artifacts(failed(), nil))
	add("provenance")(attest.Provenance(build()))
	add("environment-traced")(attest.Environment(observed()))
	add("process-traced")(attest.Process(observed()))
	add("materials-traced")(attest.Materials(observed()))
	add("artifacts-traced")(attest.Artifacts(observed(), nil))
	add("provenance-traced")(attest.Provenance(observed()))
	add("runtime-trace")(attest.RuntimeTrace(observed()))
	add("environment-wrapped")(attest.Environment(wrapped(false)))
	add("environment-wrapped-dirty")(attest.Environment(wrapped(true)))
	add("process-wrapped")(attest.Process(wrapped(false)))
	add("process-wrapped-dirty")(attest.Process(wrapped(true)))
	add("materials-wrapped")(attest.Materials(wrapped(false)))
	add("materials-wrapped-dirty")(attest.Materials(wrapped(true)))
	add("artifacts-wrapped")(attest.Artifacts(wrapped(false), nil))
	add("provenance-wrapped")(attest.Provenance(wrapped(false)))
	add("runtime-trace-wrapped")(attest.RuntimeTrace(wrapped(false)))
	s := attest.Summary{Subjects: attest.Products(build()), VerifierID: "https://v.example", Version: "v1", Time: at(5), ResourceURI: "git+https://example.org/app",
		Policy: digest("policy"), Inputs: []hallmark.Digest{digest("1"), digest("2")}, Allowed: true, Levels: []string{"SLSA_BUILD_LEVEL_1"}, Verdict: digest("verdict")}
	add("vsa-passed")(attest.VSA(s))
	s.Allowed = false
	add("vsa-failed")(attest.VSA(s))
	g := attest.Genesis{Mode: "single-operator", Administrators: []string{"ada"}, PolicyKeys: []attest.PolicyKey{{Administrator: "ada", Hint: "h", PublicKey: "PEM"}}, Threshold: 1, TrustDomain: "a.test",
		Policy: digest("policy"), Roots: digest("roots"), TrustedRoot: digest("trusted"), CreatedOn: at(0)}
	add("genesis")(attest.GenesisStatement(g))
	g.Mode, g.Administrators, g.Threshold, g.Signer = "threshold", []string{"ada", "grace"}, 2, "h"
	add("genesis-threshold")(attest.GenesisStatement(g))
	add("policy-approval")(attest.PolicyApproval(digest("policy"), 2, digest("policy 1"), "h"))
	add("policy")(attest.PolicyStatement(digest("policy"), 2, digest("policy 1")))
	return out
}

// TestGolden holds every statement against its golden file: the bytes are signed,
// and a resumed run must find the statement that it signed before.
func TestGolden(t *testing.T) {
	seen := map[string]bool{}
	for name, st := range statements(t) {
		raw, err := st.Marshal()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if again, err := statements(t)[name].Marshal(); err != nil || !bytes.Equal(raw, again) {
			t.Errorf("%s: the same facts give other bytes: %v", name, err)
		}
		seen[st.PredicateType] = true
		path := filepath.Join("testdata", name+".json")
		if *update {
			var pretty bytes.Buffer
			if err := json.Indent(&pretty, raw, "", "  "); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, append(pretty.Bytes(), '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		golden, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
			continue
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, golden); err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if !bytes.Equal(compact.Bytes(), raw) {
			var want, got any
			json.Unmarshal(golden, &want)
			json.Unmarshal(raw, &got)
			t.Errorf("%s differs (go test ./internal/attest -update writes it anew):\n%s", name, cmp.Diff(want, got))
		}
	}
	for _, p := range []string{intoto.PredicateSource, intoto.PredicateTestResult, intoto.PredicateVulns, intoto.PredicateSPDX, intoto.PredicateCycloneDX, intoto.PredicateSCAI,
		intoto.PredicateLink, intoto.PredicateProvenance, intoto.PredicateVSA, intoto.PredicateGenesis, intoto.PredicatePolicy} {
		if !seen[p] {
			t.Errorf("no statement of %s", p)
		}
	}
}

// TestStrictRoundTrip: the strict parser takes every statement and gives back
// what was meant, and so do the decoders of the predicates.
func TestStrictRoundTrip(t *testing.T) {
	for name, st := range statements(t) {
		raw, err := st.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		got, err := intoto.Parse(raw)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if again, err := got.Marshal(); err != nil || !bytes.Equal(again, raw) {
			t.Errorf("%s: another statement after parsing: %v", name, err)
		}
		if len(got.Subject) == 0 {
			t.Errorf("%s: no subject", name)
		}
		rec, err := intoto.CheckOf(got)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		carries := strings.HasPrefix(name, "test-result") || strings.HasPrefix(name, "vulns") || strings.HasPrefix(name, "process") || name == "source"
		if (rec != nil) != carries {
			t.Errorf("%s: check record %v", name, rec)
		}
		var derr error
		switch got.PredicateType {
		case intoto.PredicateSource:
			_, derr = intoto.DecodePredicate[intoto.SourceProvenance](got)
		case intoto.PredicateTestResult:
			_, derr = intoto.DecodePredicate[intoto.TestResult](got)
		case intoto.PredicateVulns:
			_, derr = intoto.DecodePredicate[intoto.Vulns](got)
		case intoto.PredicateSCAI:
			_, derr = intoto.DecodePredicate[intoto.SCAI](got)
		case intoto.PredicateLink:
			_, derr = intoto.DecodePredicate[intoto.Link](got)
		case intoto.PredicateProvenance:
			_, derr = intoto.ParseProvenance(got)
		case intoto.PredicateVSA:
			_, derr = intoto.DecodePredicate[intoto.VSA](got)
		}
		if derr != nil {
			t.Errorf("%s: %v", name, derr)
		}
	}
}

// TestNothingButPassPasses: PASSED stands for pass and an allowing decision only.
func TestNothingButPassPasses(t *testing.T) {
	for o, want := range map[hallmark.Outcome]string{hallmark.Pass: "PASSED", hallmark.Fail: "FAILED", hallmark.Errored: "FAILED", hallmark.Skipped: "FAILED"} {
		st, err := attest.TestResult(record("tests", o), nil, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		p, err := intoto.DecodePredicate[intoto.TestResult](st)
		if err != nil || p.Result != want || p.Check.Outcome != o {
			t.Errorf("%s: %s, %v, %v", o, p.Result, p.Check, err)
		}
	}
	st, err := attest.VSA(attest.Summary{Subjects: attest.Products(build()), Levels: []string{"SLSA_BUILD_LEVEL_3"}, Policy: digest("p"), Verdict: digest("v")})
	if err != nil {
		t.Fatal(err)
	}
	v, err := intoto.DecodePredicate[intoto.VSA](st)
	if err != nil || v.VerificationResult != "FAILED" || len(v.VerifiedLevels) != 0 {
		t.Errorf("a denial: %s with levels %v, %v", v.VerificationResult, v.VerifiedLevels, err)
	}
}

// TestUnsetIsRefused: facts that were never set can't be stated.
func TestUnsetIsRefused(t *testing.T) {
	marshal := func(st intoto.Statement, err error) error {
		if err != nil {
			return err
		}
		raw, err := st.Marshal()
		if err != nil {
			return err
		}
		_, err = intoto.Parse(raw)
		return err
	}
	none := build()
	none.Artifacts = nil
	noDigest := build()
	noDigest.Artifacts[0].Digest = ""
	weak := build()
	weak.Revision.Commit = "abc"
	weak.Artifacts = nil
	for name, err := range map[string]error{
		"no outcome":                        marshal(attest.TestResult(record("tests", 0), nil, nil, nil)),
		"no outcome of sca":                 marshal(attest.Vulns(record("sca", 0), nil)),
		"a scan of no revision":             marshal(attest.Vulns(hallmark.CheckRecord{Check: "sca", Outcome: hallmark.Fail}, nil)),
		"provenance without an artifact":    marshal(attest.Provenance(none)),
		"an artifact without a digest":      marshal(attest.Provenance(noDigest)),
		"a revision that names no object":   marshal(attest.Process(weak)),
		"a summary of nothing":              marshal(attest.VSA(attest.Summary{})),
		"an inventory of another type":      marshal(attest.Inventory(intoto.PredicateVSA, attest.Products(build()), []byte("{}"))),
		"an inventory that is no JSON":      marshal(attest.Inventory(intoto.PredicateSPDX, attest.Products(build()), []byte("{"))),
		"an inventory that is no object":    marshal(attest.Inventory(intoto.PredicateSPDX, attest.Products(build()), []byte("[]"))),
		"an inventory with a doubled key":   marshal(attest.Inventory(intoto.PredicateSPDX, attest.Products(build()), []byte(`{"a":1,"a":2}`))),
		"a policy statement of no document": marshal(attest.PolicyStatement("", 1, "")),
	} {
		if err == nil {
			t.Errorf("%s was stated", name)
		}
	}
}

// TestFactsAreNotShared: a statement does not change the facts that it was made
// from, nor they it.
func TestFactsAreNotShared(t *testing.T) {
	b := build()
	st, err := attest.Provenance(b)
	if err != nil {
		t.Fatal(err)
	}
	before, _ := st.Marshal()
	b.Artifacts[0].Name, b.Platform["os"], b.Tools[0].Path = "other", "other", "other"
	if after, _ := st.Marshal(); !bytes.Equal(before, after) {
		t.Error("the statement changed with the facts")
	}
	fresh := build()
	for _, make := range []func(attest.Build) (intoto.Statement, error){attest.Environment, attest.Process, attest.Materials, attest.Provenance} {
		if _, err := make(fresh); err != nil {
			t.Fatal(err)
		}
	}
	if !reflect.DeepEqual(fresh, build()) {
		t.Error("making statements changed the facts")
	}
	configuration := make([]intoto.ResourceDescriptor, 1, 4)
	rec := record("tests", hallmark.Pass)
	if _, err := attest.TestResult(rec, configuration, nil, nil); err != nil {
		t.Fatal(err)
	}
	if extra := configuration[:2][1]; extra.Name != "" {
		t.Errorf("the caller's slice was written to: %+v", extra)
	}
}
