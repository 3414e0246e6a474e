// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package verify_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	pbundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

var artifact = hallmark.DigestOf([]byte("artifact"))

func statement(predicateType string, predicate any) []byte {
	return must(intoto.Statement{Type: intoto.StatementType, PredicateType: predicateType, Predicate: must(json.Marshal(predicate)),
		Subject: []intoto.ResourceDescriptor{{Name: "app", Digest: map[string]string{"sha256": artifact.Hex()}}}}.Marshal())
}

func testResult() []byte {
	return statement(intoto.PredicateTestResult, map[string]any{"result": "PASSED", "configuration": []any{}})
}

func provenance(builder string) []byte {
	p := intoto.Provenance{}
	p.BuildDefinition.BuildType = intoto.BuildTypePipeline
	p.BuildDefinition.ExternalParameters = intoto.ExternalParameters{Repository: "https://git.example/app", Revision: strings.Repeat("a", 40), Pipeline: intoto.PipelineRef{Path: ".hallmark/pipeline.yaml", Digest: artifact}}
	p.RunDetails.Builder.ID = builder
	return statement(intoto.PredicateProvenance, p)
}

func vsa(edit func(*intoto.VSA)) []byte {
	v := intoto.VSA{Verifier: intoto.VSAVerifier{ID: verifierID}, TimeVerified: time.Now().UTC(), ResourceURI: "pkg:generic/app", VerificationResult: "PASSED", VerifiedLevels: []string{"SLSA_BUILD_LEVEL_1"}, SLSAVersion: "1.2"}
	if edit != nil {
		edit(&v)
	}
	return statement(intoto.PredicateVSA, v)
}

func wantCode(t *testing.T, err error, kind hallmark.Kind, code hallmark.Code) {
	t.Helper()
	var e *hallmark.Error
	if !errors.As(err, &e) || e.Kind != kind || e.Code != code {
		t.Errorf("got error %v (code %q), want kind %d code %q", err, hallmark.CodeOf(err), kind, code)
	}
}

func TestVerifyAccepts(t *testing.T) {
	tr := newTrust()
	v := tr.verifier(t, nil, nil)
	for _, tc := range []struct {
		name, signer, builder, level string
		o                            order
	}{
		{"test result", "observer", "", "", order{san: observerSAN, payload: testResult()}},
		{"provenance", "builder", intoto.BuilderLocal, "SLSA_BUILD_LEVEL_1", order{san: builderSAN, payload: provenance(intoto.BuilderLocal)}},
		{"summary", "release", "", "", order{key: tr.release, payload: vsa(nil)}},
		{"certificate that has expired since", "observer", "", "", order{san: observerSAN, payload: testResult(), certFrom: tr.started.Add(-3 * time.Hour), stampedAt: tr.started.Add(-3*time.Hour + time.Minute)}},
	} {
		raw := tr.sign(tc.o)
		s, err := v.Verify(raw)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if !s.Valid() || s.Signer() != tc.signer || s.BuilderID() != tc.builder || s.MaxLevel() != tc.level || s.LogOrigin() != logOrigin {
			t.Errorf("%s: got %+v", tc.name, s)
		}
		if s.Digest() != hallmark.DigestOf(intoto.PAE(intoto.PayloadType, tc.o.payload)) || s.BundleDigest() != hallmark.DigestOf(raw) {
			t.Errorf("%s: wrong digests", tc.name)
		}
		if s.LogIndex()+1 != s.CheckpointSize() || s.SignedAt().IsZero() {
			t.Errorf("%s: index %d size %d at %v", tc.name, s.LogIndex(), s.CheckpointSize(), s.SignedAt())
		}
		s.Statement().Subject[0].Digest["sha256"] = "changed"
		if s.Statement().Subject[0].Digest["sha256"] != artifact.Hex() {
			t.Errorf("%s: a caller could change a verified statement", tc.name)
		}
	}
	if (verify.Statement{}).Valid() {
		t.Error("the zero Statement is valid")
	}
}

// flip changes one byte in the middle, which every signed part must notice.
func flip(b []byte) []byte { c := bytes.Clone(b); c[len(c)/2] ^= 1; return c }

func sigs(b *pbundle.Bundle) []byte { return b.GetDsseEnvelope().Signatures[0].Sig }

// TestVerifyRefuses is AT-17: each tampering with its own reason.
func TestVerifyRefuses(t *testing.T) {
	tr, foreign := newTrust(), newTrust()
	v := tr.verifier(t, nil, nil)
	cert := order{san: observerSAN, payload: testResult()}
	other := tr.bundle(cert)
	weak := `{"_type":"https://in-toto.io/Statement/v1","subject":[%SUBJECT%],"predicateType":"` + intoto.PredicateTestResult + `","predicate":{}}`
	with := func(subject string) []byte { return []byte(strings.ReplaceAll(weak, "%SUBJECT%", subject)) }
	good := `{"digest":{"sha256":"` + artifact.Hex() + `"}}`
	for _, tc := range []struct {
		name string
		o    order
		edit func(*pbundle.Bundle)
		code hallmark.Code
	}{
		{"payload type", order{san: observerSAN, payload: testResult(), payloadType: "application/json"}, nil, hallmark.CodePayloadType},
		{"duplicate key in statement", order{san: observerSAN, payload: []byte(strings.Replace(string(testResult()), `{"_type"`, `{"_type":"x","_type"`, 1))}, nil, hallmark.CodeEvidenceMalformed},
		{"case-folded key in statement", order{san: observerSAN, payload: bytes.Replace(testResult(), []byte(`"digest"`), []byte(`"Digest":{},"digest"`), 1)}, nil, hallmark.CodeEvidenceMalformed},
		{"trailing data in statement", order{san: observerSAN, payload: append(testResult(), "{}"...)}, nil, hallmark.CodeEvidenceMalformed},
		{"statement type", order{san: observerSAN, payload: bytes.Replace(testResult(), []byte("Statement/v1"), []byte("Statement/v0.1"), 1)}, nil, hallmark.CodeEvidenceMalformed},
		{"sha1 only", order{san: observerSAN, payload: with(`{"digest":{"sha1":"` + strings.Repeat("a", 40) + `"}}`)}, nil, hallmark.CodeEvidenceMalformed},
		{"md5 only", order{san: observerSAN, payload: with(`{"digest":{"md5":"` + strings.Repeat("a", 32) + `"}}`)}, nil, hallmark.CodeEvidenceMalformed},
		{"one weak subject of two", order{san: observerSAN, payload: with(good + `,{"digest":{"sha1":"` + strings.Repeat("a", 40) + `"}}`)}, nil, hallmark.CodeEvidenceMalformed},
		{"empty subject", order{san: observerSAN, payload: with("")}, nil, hallmark.CodeEvidenceMalformed},
		{"two signatures, one bad", cert, func(b *pbundle.Bundle) {
			e := b.GetDsseEnvelope()
			e.Signatures = append(e.Signatures, proto.CloneOf(e.Signatures[0]))
			e.Signatures[1].Sig = flip(e.Signatures[1].Sig)
		}, hallmark.CodeEvidenceMalformed},
		{"no signature", cert, func(b *pbundle.Bundle) { b.GetDsseEnvelope().Signatures = nil }, hallmark.CodeEvidenceMalformed},
		{"payload flipped", cert, func(b *pbundle.Bundle) { b.GetDsseEnvelope().Payload = flip(b.GetDsseEnvelope().Payload) }, hallmark.CodeSignatureInvalid},
		{"payload exchanged", cert, func(b *pbundle.Bundle) { b.GetDsseEnvelope().Payload = provenance(intoto.BuilderLocal) }, hallmark.CodeSignatureInvalid},
		{"signature flipped", cert, func(b *pbundle.Bundle) { b.GetDsseEnvelope().Signatures[0].Sig = flip(sigs(b)) }, hallmark.CodeSignatureInvalid},
		{"signature of another bundle", cert, func(b *pbundle.Bundle) { b.GetDsseEnvelope().Signatures[0].Sig = sigs(tr.bundle(cert)) }, hallmark.CodeSignatureInvalid},
		{"certificate signature flipped", cert, func(b *pbundle.Bundle) {
			c := b.VerificationMaterial.GetCertificate()
			c.RawBytes[len(c.RawBytes)-1] ^= 1
		}, hallmark.CodeLogProofInvalid},
		{"SCT by another key", order{san: observerSAN, payload: testResult(), ctKey: newKey()}, nil, hallmark.CodeSignatureInvalid},
		{"timestamp flipped", cert, func(b *pbundle.Bundle) {
			ts := b.VerificationMaterial.TimestampVerificationData.Rfc3161Timestamps[0]
			ts.SignedTimestamp[len(ts.SignedTimestamp)-1] ^= 1
		}, hallmark.CodeTimestampInvalid},
		{"timestamp of another bundle", cert, func(b *pbundle.Bundle) {
			b.VerificationMaterial.TimestampVerificationData = other.VerificationMaterial.TimestampVerificationData
		}, hallmark.CodeTimestampInvalid},
		{"timestamp by a foreign authority", cert, func(b *pbundle.Bundle) {
			b.VerificationMaterial.TimestampVerificationData.Rfc3161Timestamps[0].SignedTimestamp = foreign.stamp(sigs(b), time.Now())
		}, hallmark.CodeTimestampInvalid},
		{"no timestamp", cert, func(b *pbundle.Bundle) { b.VerificationMaterial.TimestampVerificationData = nil }, hallmark.CodeTimestampInvalid},
		{"no timestamp, key", order{key: tr.release, payload: vsa(nil)}, func(b *pbundle.Bundle) { b.VerificationMaterial.TimestampVerificationData = nil }, hallmark.CodeTimestampInvalid},
		{"stamped after the certificate's end", order{san: observerSAN, payload: testResult(), certFrom: time.Now().Add(-time.Hour)}, nil, hallmark.CodeSignatureInvalid},
		{"no log entry", order{san: observerSAN, payload: testResult(), skipLog: true}, nil, hallmark.CodeLogProofInvalid},
		{"log entry of another bundle", cert, func(b *pbundle.Bundle) { b.VerificationMaterial.TlogEntries = other.VerificationMaterial.TlogEntries }, hallmark.CodeLogProofInvalid},
		{"two log entries", cert, func(b *pbundle.Bundle) {
			b.VerificationMaterial.TlogEntries = append(b.VerificationMaterial.TlogEntries, other.VerificationMaterial.TlogEntries...)
		}, hallmark.CodeLogProofInvalid},
		{"log entry kind", cert, func(b *pbundle.Bundle) { b.VerificationMaterial.TlogEntries[0].KindVersion.Version = "0.0.1" }, hallmark.CodeLogProofInvalid},
		{"log entry body flipped", cert, func(b *pbundle.Bundle) {
			e := b.VerificationMaterial.TlogEntries[0]
			e.CanonicalizedBody = bytes.Replace(e.CanonicalizedBody, []byte(`"digest":"`), []byte(`"digest":"AAAA`), 1)
		}, hallmark.CodeLogProofInvalid},
		{"no inclusion proof", cert, func(b *pbundle.Bundle) { b.VerificationMaterial.TlogEntries[0].InclusionProof = nil }, hallmark.CodeEvidenceMalformed},
		{"proof flipped", cert, func(b *pbundle.Bundle) {
			p := b.VerificationMaterial.TlogEntries[0].InclusionProof
			p.Hashes[0] = flip(p.Hashes[0])
		}, hallmark.CodeLogProofInvalid},
		{"proof index", cert, func(b *pbundle.Bundle) { b.VerificationMaterial.TlogEntries[0].InclusionProof.LogIndex-- }, hallmark.CodeLogProofInvalid},
		{"proof size", cert, func(b *pbundle.Bundle) { b.VerificationMaterial.TlogEntries[0].InclusionProof.TreeSize++ }, hallmark.CodeLogProofInvalid},
		{"checkpoint body changed", cert, func(b *pbundle.Bundle) {
			c := b.VerificationMaterial.TlogEntries[0].InclusionProof.Checkpoint
			c.Envelope = strings.Replace(c.Envelope, "\n", "\n1", 1)
		}, hallmark.CodeLogProofInvalid},
		{"checkpoint without signature", cert, func(b *pbundle.Bundle) {
			c := b.VerificationMaterial.TlogEntries[0].InclusionProof.Checkpoint
			c.Envelope, _, _ = strings.Cut(c.Envelope, "— ")
		}, hallmark.CodeLogProofInvalid},
		{"checkpoint of another log", cert, func(b *pbundle.Bundle) {
			c := b.VerificationMaterial.TlogEntries[0].InclusionProof.Checkpoint
			c.Envelope = strings.ReplaceAll(c.Envelope, logOrigin, "log.example.test")
		}, hallmark.CodeLogOriginUnknown},
		{"log id", cert, func(b *pbundle.Bundle) { b.VerificationMaterial.TlogEntries[0].LogId.KeyId = foreign.logID }, hallmark.CodeLogOriginUnknown},
		{"another SAN", order{san: "spiffe://" + trustDomain + "/intruder", payload: testResult()}, nil, hallmark.CodeSignerUnknown},
		{"SAN that extends a known one", order{san: observerSAN + "/x", payload: testResult()}, nil, hallmark.CodeSignerUnknown},
		{"key that is not in the roots", order{key: newKey(), payload: vsa(nil)}, nil, hallmark.CodeSignerUnknown},
		{"hint of another key", order{key: newKey(), payload: vsa(nil)}, func(b *pbundle.Bundle) { b.VerificationMaterial.GetPublicKey().Hint = keyOf(tr.release).Hint }, hallmark.CodeSignatureInvalid},
		{"keyid of another key", order{key: tr.release, payload: vsa(nil)}, func(b *pbundle.Bundle) { b.GetDsseEnvelope().Signatures[0].Keyid = keyOf(tr.pol).Hint }, hallmark.CodeSignatureInvalid},
		{"observer signs policy", order{san: observerSAN, payload: statement(intoto.PredicatePolicy, map[string]any{"version": 1})}, nil, hallmark.CodeSignerNotAuthorized},
		{"observer signs provenance", order{san: observerSAN, payload: provenance(intoto.BuilderLocal)}, nil, hallmark.CodeSignerNotAuthorized},
		{"release key signs a test result", order{key: tr.release, payload: testResult()}, nil, hallmark.CodeSignerNotAuthorized},
		{"predicate type nobody may sign", order{san: observerSAN, payload: statement("https://example.test/any/v1", map[string]any{})}, nil, hallmark.CodePredicateType},
		{"known signer, another builder", order{san: builderSAN, payload: provenance("https://example.test/builder")}, nil, hallmark.CodeBuilderMismatch},
		{"known key, another verifier", order{key: tr.release, payload: vsa(func(v *intoto.VSA) { v.Verifier.ID = "https://example.test/verifier" })}, nil, hallmark.CodeSignerNotAuthorized},
		{"unknown external parameter", order{san: builderSAN, payload: bytes.Replace(provenance(intoto.BuilderLocal), []byte(`"externalParameters":{`), []byte(`"externalParameters":{"env":"x",`), 1)}, nil, hallmark.CodeExternalParameters},
		{"media type", cert, func(b *pbundle.Bundle) { b.MediaType = "application/vnd.dev.sigstore.bundle+json;version=0.3" }, hallmark.CodeEvidenceMalformed},
		{"no verification material", cert, func(b *pbundle.Bundle) { b.VerificationMaterial = nil }, hallmark.CodeEvidenceMalformed},
		{"no content", cert, func(b *pbundle.Bundle) { b.Content = nil }, hallmark.CodeEvidenceMalformed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := tr.bundle(tc.o)
			if tc.edit != nil {
				tc.edit(b)
			}
			s, err := v.Verify(must(protojson.Marshal(b)))
			wantCode(t, err, hallmark.KindDenied, tc.code)
			if s.Valid() {
				t.Error("a refused statement is valid")
			}
		})
	}

	raw := tr.sign(cert)
	for name, b := range map[string][]byte{
		"nothing":              nil,
		"not JSON":             []byte("bundle"),
		"trailing data":        append(bytes.Clone(raw), " {}"...),
		"duplicate key":        bytes.Replace(raw, []byte(`{"mediaType"`), []byte(`{"mediaType":"x","mediaType"`), 1),
		"unknown field":        append([]byte(`{"x":1,`), raw[1:]...),
		"huge":                 bytes.Repeat([]byte(" "), verify.MaxBundle+1),
		"nested without bound": bytes.Repeat([]byte("["), 1<<20),
	} {
		_, err := v.Verify(b)
		if hallmark.CodeOf(err) != hallmark.CodeEvidenceMalformed || hallmark.KindOf(err) != hallmark.KindDenied {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := v.Verify(foreign.sign(cert)); hallmark.KindOf(err) != hallmark.KindDenied {
		t.Errorf("bundle of a foreign trust: got %v", err)
	}
	if _, err := v.Verify(raw); err != nil {
		t.Errorf("the good case: %v", err)
	}
}

// TestVerifyEveryByte flips bits all over the decoded parts of a bundle: none
// may give another statement.
func TestVerifyEveryByte(t *testing.T) {
	tr := newTrust()
	v := tr.verifier(t, nil, nil)
	raw := tr.sign(order{san: observerSAN, payload: testResult()})
	want := must(v.Verify(raw))
	for i := 0; i < len(raw); i += 11 {
		b := bytes.Clone(raw)
		b[i] ^= 1
		s, err := v.Verify(b)
		if err == nil && (s.Digest() != want.Digest() || s.Signer() != want.Signer() || !s.SignedAt().Equal(want.SignedAt()) || s.LogIndex() != want.LogIndex()) {
			t.Errorf("byte %d: another statement passed", i)
		}
		if err != nil && hallmark.KindOf(err) != hallmark.KindDenied {
			t.Errorf("byte %d: %v is not a denial", i, err)
		}
	}
}

func TestPins(t *testing.T) {
	tr, foreign := newTrust(), newTrust()
	roots := must(tr.roots.Encode())
	cfg := verify.Config{Roots: roots, Pin: hallmark.DigestOf(roots), TrustedRoot: tr.trustedRoot}
	for name, edit := range map[string]func(*verify.Config){
		"no pin":               func(c *verify.Config) { c.Pin = "" },
		"another pin":          func(c *verify.Config) { c.Pin = artifact },
		"foreign roots":        func(c *verify.Config) { c.Roots, c.TrustedRoot = must(foreign.roots.Encode()), foreign.trustedRoot },
		"foreign trusted root": func(c *verify.Config) { c.TrustedRoot = foreign.trustedRoot },
		"roots changed":        func(c *verify.Config) { c.Roots = bytes.Replace(c.Roots, []byte("ada"), []byte("eve"), 1) },
		"roots unreadable":     func(c *verify.Config) { c.Roots = []byte("{") },
	} {
		c := cfg
		edit(&c)
		_, err := verify.New(c)
		if hallmark.KindOf(err) != hallmark.KindUnpinned || hallmark.CodeOf(err) != hallmark.CodeTrustRootUnpinned || hallmark.ExitCode(err) != 1 {
			t.Errorf("%s: got %v", name, err)
		}
	}
	v, err := verify.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if v.RootsDigest() != cfg.Pin || v.TrustedRootDigest() != hallmark.DigestOf(tr.trustedRoot) {
		t.Error("wrong digests")
	}
	r := v.Roots()
	r.Signers[0].PredicateTypes[0] = "changed"
	if v.Roots().Signers[0].PredicateTypes[0] == "changed" {
		t.Error("a caller could change the roots")
	}
}

func TestWitnessQuorum(t *testing.T) {
	tr := newTrust()
	o := order{san: observerSAN, payload: testResult()}
	bare := tr.sign(o)
	tr.cosign = true
	witnessed := tr.sign(o)
	v := tr.verifier(t, nil, func(r *verify.Roots) { r.WitnessPolicy = "witness w " + tr.witnessKey + "\nquorum w\n" })
	if _, err := v.Verify(witnessed); err != nil {
		t.Error(err)
	}
	_, err := v.Verify(bare)
	wantCode(t, err, hallmark.KindDenied, hallmark.CodeLogWitnessQuorum)
	if _, err := tr.verifier(t, nil, nil).Verify(bare); err != nil {
		t.Errorf("without a witness policy: %v", err)
	}
}

func TestSplitView(t *testing.T) {
	tr := newTrust()
	dir := t.TempDir()
	open := func() *verify.Verifier { return tr.verifier(t, must(verify.NewFileMemory(dir)), nil) }
	o := order{san: observerSAN, payload: testResult()}
	small, large := tr.sign(o), tr.sign(o)
	if _, err := open().Verify(large); err != nil {
		t.Fatal(err)
	}
	if _, err := open().Verify(small); err != nil {
		t.Errorf("an earlier checkpoint: %v", err)
	}
	tr.leaves = tr.leaves[:len(tr.leaves)-1] // the operator forks the log
	forked := tr.sign(o)
	s, err := open().Verify(forked)
	wantCode(t, err, hallmark.KindDenied, hallmark.CodeLogSplitView)
	if s.Valid() {
		t.Error("a statement of the fork is valid")
	}
}

func TestConcurrentUse(t *testing.T) {
	tr := newTrust()
	v := tr.verifier(t, must(verify.NewFileMemory(t.TempDir())), nil)
	raw, keyed := tr.sign(order{san: observerSAN, payload: testResult()}), tr.sign(order{key: tr.release, payload: vsa(nil)})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				for _, b := range [][]byte{raw, keyed} {
					if _, err := v.Verify(b); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkVerifyCertificate(b *testing.B) {
	tr := newTrust()
	benchmark(b, tr, tr.sign(order{san: builderSAN, payload: provenance(intoto.BuilderLocal)}))
}

func BenchmarkVerifyKey(b *testing.B) {
	tr := newTrust()
	benchmark(b, tr, tr.sign(order{key: tr.release, payload: vsa(nil)}))
}

func FuzzVerify(f *testing.F) {
	tr := newTrust()
	v := tr.verifier(f, nil, nil)
	f.Add(tr.sign(order{san: observerSAN, payload: testResult()}))
	f.Add(tr.sign(order{key: tr.release, payload: vsa(nil)}))
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"certificate":{}},"dsseEnvelope":{"payloadType":"application/vnd.in-toto+json","signatures":[{}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := v.Verify(b)
		if (err == nil) != s.Valid() {
			t.Error("error and validity disagree")
		}
		if err != nil && (hallmark.KindOf(err) != hallmark.KindDenied || hallmark.CodeOf(err) == "") {
			t.Errorf("refusal without kind and code: %v", err)
		}
	})
}
