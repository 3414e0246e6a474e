// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package intoto_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	linkpb "github.com/in-toto/attestation/go/predicates/link/v0"
	provpb "github.com/in-toto/attestation/go/predicates/provenance/v1"
	scaipb "github.com/in-toto/attestation/go/predicates/scai/v0"
	testpb "github.com/in-toto/attestation/go/predicates/test_result/v0"
	vsapb "github.com/in-toto/attestation/go/predicates/vsa/v1"
	vulnspb "github.com/in-toto/attestation/go/predicates/vulns/v02"
	statementpb "github.com/in-toto/attestation/go/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

var digest = hallmark.DigestOf([]byte("artifact"))

func marshal(t testing.TB, predicateType string, predicate any) []byte {
	t.Helper()
	p, err := json.Marshal(predicate)
	if err != nil {
		t.Fatal(err)
	}
	b, err := intoto.Statement{Type: intoto.StatementType, PredicateType: predicateType, Predicate: p,
		Subject: []intoto.ResourceDescriptor{intoto.SubjectOf(hallmark.Artifact{Name: "app", Digest: digest})}}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func provenance() intoto.Provenance {
	p := intoto.Provenance{}
	p.BuildDefinition = intoto.BuildDefinition{BuildType: intoto.BuildTypePipeline,
		ExternalParameters:   intoto.ExternalParameters{Repository: "https://git.example/app", Revision: strings.Repeat("a", 40), Pipeline: intoto.PipelineRef{Path: ".hallmark/pipeline.yaml", Digest: digest}},
		ResolvedDependencies: []intoto.ResourceDescriptor{{URI: "pkg:golang/x", Digest: map[string]string{"sha256": digest.Hex()}}}}
	p.RunDetails.Builder.ID = intoto.BuilderLocal
	p.RunDetails.Metadata = intoto.BuildMetadata{InvocationID: "1", StartedOn: time.Unix(1, 0).UTC(), FinishedOn: time.Unix(2, 0).UTC()}
	return p
}

func record() *hallmark.CheckRecord {
	return &hallmark.CheckRecord{Check: "sast", Outcome: hallmark.Pass, StartedOn: time.Unix(1, 0).UTC(), FinishedOn: time.Unix(2, 0).UTC()}
}

func TestRoundTrip(t *testing.T) {
	b := marshal(t, intoto.PredicateProvenance, provenance())
	s, err := intoto.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Marshal()
	if err != nil || !bytes.Equal(b, again) {
		t.Errorf("marshalled again: %v\n%s\n%s", err, b, again)
	}
	p, err := intoto.ParseProvenance(s)
	if d := cmp.Diff(provenance(), p); err != nil || d != "" {
		t.Error(err, d)
	}
}

func TestParseRefuses(t *testing.T) {
	good := string(marshal(t, intoto.PredicateProvenance, provenance()))
	change := func(old, with string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%s is not in the statement", old)
		}
		return strings.Replace(good, old, with, 1)
	}
	subject := func(digests string) string {
		i, j := strings.Index(good, `"digest":{`), strings.Index(good, `}],"predicateType"`)
		return good[:i] + `"digest":{` + digests + `}` + good[j:]
	}
	hex40 := strings.Repeat("a", 40)
	for name, s := range map[string]string{
		"empty":                    "",
		"array":                    "[]",
		"null":                     "null",
		"other type":               change("Statement/v1", "Statement/v0.1"),
		"no type":                  change(`"_type":"https://in-toto.io/Statement/v1",`, ""),
		"duplicate key":            change(`{"_type"`, `{"_type":"x","_type"`),
		"duplicate, escaped":       change(`{"_type"`, `{"\u005ftype":"x","_type"`),
		"duplicate deep inside":    change(`"externalParameters":{`, `"externalParameters":{"ref":"a","ref":"b",`),
		"trailing data":            good + "{}",
		"no subject":               change(`"subject":[`, `"subject":[],"x":[`),
		"subject of null":          change(`"subject":[`, `"subject":null,"x":[`),
		"folded key":               change(`"digest":`, `"Digest":{},"digest":`),
		"folded top-level key":     change(`"subject":`, `"Subject":`),
		"no digest":                subject(""),
		"sha1 only":                subject(`"sha1":"` + hex40 + `"`),
		"md5 only":                 subject(`"md5":"` + hex40[:32] + `"`),
		"short sha256":             subject(`"sha256":"` + hex40 + `"`),
		"upper case sha256":        subject(`"sha256":"` + strings.Repeat("A", 64) + `"`),
		"one digest malformed":     subject(`"sha256":"` + digest.Hex() + `","sha512":"00"`),
		"digest is a number":       subject(`"sha256":1`),
		"empty predicate type":     change(intoto.PredicateProvenance, ""),
		"relative predicate type":  change(intoto.PredicateProvenance, "provenance"),
		"predicate is a string":    change(`"predicate":{`, `"predicate":"x","y":{`),
		"no predicate":             change(`"predicate":{`, `"y":{`),
		"invalid UTF-8":            change("app", "a\xffp"),
		"nested too deep":          change(`"predicate":{`, `"predicate":{"x":`+strings.Repeat("[", 200)+strings.Repeat("]", 200)+`,`),
		"huge":                     good + strings.Repeat(" ", intoto.MaxSize),
		"subject with null digest": change(`"subject":[`, `"subject":[{"digest":null},`),
	} {
		if s, err := intoto.Parse([]byte(s)); hallmark.KindOf(err) != hallmark.KindInvalid || hallmark.CodeOf(err) == "" || s.Type != "" {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for _, digests := range []string{`"sha512":"` + strings.Repeat("a", 128) + `"`, `"gitCommit":"` + hex40 + `","sha1":"` + hex40 + `"`, `"dirHash1":"` + digest.Hex() + `"`} {
		if _, err := intoto.Parse([]byte(subject(digests))); err != nil {
			t.Errorf("%s: %v", digests, err)
		}
	}
	if _, err := intoto.Parse([]byte(change(`{"_type"`, `{"unknown":1,"_type"`))); err != nil {
		t.Errorf("an unknown field: %v", err)
	}
}

func TestProvenanceRefuses(t *testing.T) {
	good := string(marshal(t, intoto.PredicateProvenance, provenance()))
	for name, c := range map[string]struct {
		old, with string
		code      hallmark.Code
	}{
		"unknown parameter":    {`"externalParameters":{`, `"externalParameters":{"env":1,`, hallmark.CodeExternalParameters},
		"parameters":           {`"externalParameters":{`, `"externalParameters":{"parameters":{},`, hallmark.CodeExternalParameters},
		"null parameters":      {`"externalParameters":{`, `"externalParameters":{"parameters":null,`, hallmark.CodeExternalParameters},
		"unknown in pipeline":  {`"pipeline":{`, `"pipeline":{"x":1,`, hallmark.CodeExternalParameters},
		"no repository":        {`"repository":"https://git.example/app",`, ``, hallmark.CodeExternalParameters},
		"folded parameter":     {`"revision":`, `"Revision":"x","revision":`, hallmark.CodeEvidenceMalformed},
		"folded container":     {`"externalParameters":`, `"ExternalParameters":{},"externalParameters":`, hallmark.CodeEvidenceMalformed},
		"folded definition":    {`"buildDefinition":`, `"BuildDefinition":`, hallmark.CodeEvidenceMalformed},
		"folded builder":       {`"builder":{`, `"builder":{"ID":"x",`, hallmark.CodeEvidenceMalformed},
		"no builder":           {intoto.BuilderLocal, ``, hallmark.CodeEvidenceMalformed},
		"no build type":        {intoto.BuildTypePipeline, ``, hallmark.CodeEvidenceMalformed},
		"parameters elsewhere": {`"externalParameters":{`, `"externalParameters":[],"x":{`, hallmark.CodeEvidenceMalformed},
	} {
		if !strings.Contains(good, c.old) {
			t.Fatalf("%s: nothing to change", name)
		}
		s, err := intoto.Parse([]byte(strings.Replace(good, c.old, c.with, 1)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := intoto.ParseProvenance(s); hallmark.CodeOf(err) != c.code {
			t.Errorf("%s: got %v (%s)", name, err, hallmark.CodeOf(err))
		}
	}
	s, err := intoto.Parse([]byte(strings.Replace(good, `"runDetails":{`, `"runDetails":{"x":1,`, 1)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := intoto.ParseProvenance(s); err != nil {
		t.Errorf("an unknown field outside the external parameters: %v", err)
	}
}

func TestCheckOf(t *testing.T) {
	parse := func(predicate string) intoto.Statement {
		return intoto.Statement{PredicateType: intoto.PredicateTestResult, Predicate: json.RawMessage(predicate)}
	}
	s, err := intoto.Parse(marshal(t, intoto.PredicateTestResult, intoto.TestResult{Result: "PASSED", Check: record()}))
	if err != nil {
		t.Fatal(err)
	}
	c, err := intoto.CheckOf(s)
	if d := cmp.Diff(record(), c); err != nil || d != "" {
		t.Error(err, d)
	}
	for _, p := range []string{`{}`, `{"` + intoto.ExtensionCheck + `":null}`} {
		if c, err := intoto.CheckOf(parse(p)); c != nil || err != nil {
			t.Errorf("%s: got %v %v", p, c, err)
		}
	}
	for _, p := range []string{`{}`, `{"check":"sast"}`, `{"outcome":"pass"}`, `{"check":"sast","outcome":"fine"}`, `{"check":"sast","outcome":"fail","Outcome":"pass"}`, `"pass"`} {
		if c, err := intoto.CheckOf(parse(`{"` + intoto.ExtensionCheck + `":` + p + `}`)); c != nil || err == nil {
			t.Errorf("%s: got %v %v", p, c, err)
		}
	}
	if _, err := intoto.DecodePredicate[intoto.VSA](parse(`{"verificationResult":"FAILED","VerificationResult":"PASSED"}`)); err == nil {
		t.Error("a field in another case was read")
	}
	if _, err := intoto.DecodePredicate[intoto.Link](parse(`{"environment":{"PATH":"a","path":"b"}}`)); err != nil {
		t.Errorf("keys of a map: %v", err)
	}
}

// TestPublishedTypes reads what we write with the types that in-toto publishes.
func TestPublishedTypes(t *testing.T) {
	rd := intoto.ResourceDescriptor{Name: "x", URI: "https://x.example/", Digest: map[string]string{"sha256": digest.Hex()}}
	now := time.Unix(1700000000, 0).UTC()
	for _, tc := range []struct {
		predicateType string
		predicate     any
		into          proto.Message
	}{
		{intoto.PredicateProvenance, provenance(), &provpb.Provenance{}},
		{intoto.PredicateVSA, intoto.VSA{Verifier: intoto.VSAVerifier{ID: "https://v.example/"}, TimeVerified: now, ResourceURI: "pkg:x", Policy: rd, InputAttestations: []intoto.ResourceDescriptor{rd},
			VerificationResult: "PASSED", VerifiedLevels: []string{"SLSA_BUILD_LEVEL_1"}, SLSAVersion: "1.2", Verdict: &intoto.VerdictRef{Digest: digest}}, &vsapb.VerificationSummary{}},
		{intoto.PredicateTestResult, intoto.TestResult{Result: "PASSED", Configuration: []intoto.ResourceDescriptor{rd}, PassedTests: []string{"a"}, Check: record()}, &testpb.TestResult{}},
		{intoto.PredicateVulns, intoto.Vulns{Scanner: intoto.VulnScanner{URI: "https://s.example/", Version: "1", DB: intoto.VulnDB{URI: "https://d.example/", Version: "1", LastUpdate: now},
			Result: []intoto.VulnResult{{ID: "GO-1", Severity: []intoto.VulnSeverity{{Method: "hallmark", Score: "high"}}}}}, Metadata: intoto.VulnMetadata{ScanStartedOn: now, ScanFinishedOn: now}, Check: record()}, &vulnspb.Vulns{}},
		{intoto.PredicateLink, intoto.Link{Name: intoto.NameProcess, Command: []string{"go", "build"}, Materials: []intoto.ResourceDescriptor{rd}, Byproducts: map[string]any{"return-value": 0}, Environment: map[string]any{"a": "b"}, Check: record()}, &linkpb.Link{}},
		{intoto.PredicateSCAI, intoto.SCAI{Name: intoto.NameEnvironment, Producer: &rd, Attributes: []intoto.SCAIAttribute{{Attribute: "NETWORK_DENIED", Target: &rd, Conditions: map[string]any{"a": true}, Evidence: &rd}}}, &scaipb.AttributeReport{}},
	} {
		b := marshal(t, tc.predicateType, tc.predicate)
		var st statementpb.Statement
		if err := protojson.Unmarshal(b, &st); err != nil {
			t.Errorf("%s: %v", tc.predicateType, err)
			continue
		}
		if err := st.Validate(); err != nil {
			t.Errorf("%s: %v", tc.predicateType, err)
		}
		s, err := intoto.Parse(b)
		if err != nil {
			t.Errorf("%s: %v", tc.predicateType, err)
			continue
		}
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(s.Predicate, tc.into); err != nil {
			t.Errorf("%s: %v", tc.predicateType, err)
			continue
		}
		if v, ok := tc.into.(interface{ Validate() error }); ok {
			if err := v.Validate(); err != nil {
				t.Errorf("%s: %v", tc.predicateType, err)
			}
		}
	}
}

func TestPAE(t *testing.T) {
	if got := string(intoto.PAE("http://example.com/HelloWorld", []byte("hello world"))); got != "DSSEv1 29 http://example.com/HelloWorld 11 hello world" {
		t.Error(got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(marshal(f, intoto.PredicateProvenance, provenance()))
	f.Add(marshal(f, intoto.PredicateTestResult, intoto.TestResult{Result: "PASSED", Check: record()}))
	f.Add([]byte(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha1":"00"}}],"predicateType":"a:b","predicate":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := intoto.Parse(b)
		if err != nil {
			return
		}
		_, _ = intoto.ParseProvenance(s)
		_, _ = intoto.CheckOf(s)
		_, _ = intoto.DecodePredicate[intoto.Vulns](s)
		out, err := s.Marshal()
		if err != nil {
			t.Fatalf("what was read can't be written: %v", err)
		}
		again, err := intoto.Parse(out)
		if err != nil {
			t.Fatalf("what was written can't be read: %v", err)
		}
		out2, err := again.Marshal()
		if err != nil || !bytes.Equal(out, out2) {
			t.Errorf("two encodings of one statement: %v", err)
		}
	})
}
