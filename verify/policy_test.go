// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package verify_test

import (
	"crypto/ecdsa"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

func policyDocument(version int) []byte {
	return fmt.Appendf(nil, `{"apiVersion":"hallmark/v1","kind":"Policy","version":%d,"previous":""}`, version)
}

func (t *trust) signPolicy(key *ecdsa.PrivateKey, document []byte, version int) []byte {
	return t.sign(order{key: key, payload: must(intoto.Statement{Type: intoto.StatementType, PredicateType: intoto.PredicatePolicy,
		Predicate: must(json.Marshal(map[string]any{"version": version, "previous": ""})),
		Subject:   []intoto.ResourceDescriptor{{Name: "policy.json", Digest: map[string]string{"sha256": hallmark.DigestOf(document).Hex()}}}}.Marshal())})
}

func TestPolicy(t *testing.T) {
	tr := newTrust()
	two := func(r *verify.Roots) {
		r.Policy = verify.PolicyRoots{Keys: []verify.Key{keyOf(tr.pol), keyOf(tr.pol2)}, Threshold: 2, MinimumVersion: 3}
	}
	v := tr.verifier(t, nil, two)
	doc, older := policyDocument(3), policyDocument(2)
	first, second := tr.signPolicy(tr.pol, doc, 3), tr.signPolicy(tr.pol2, doc, 3)

	p, err := v.Policy(doc, [][]byte{first, second})
	if err != nil {
		t.Fatal(err)
	}
	if !p.Valid() || p.Version() != 3 || p.Digest() != hallmark.DigestOf(doc) || string(p.Document()) != string(doc) {
		t.Errorf("got %+v", p)
	}
	for _, tc := range []struct {
		name    string
		doc     []byte
		bundles [][]byte
		code    hallmark.Code
	}{
		{"nobody", doc, nil, hallmark.CodePolicyUnsigned},
		{"1 of 2 keys", doc, [][]byte{first}, hallmark.CodePolicyUnsigned},
		{"the same bundle twice", doc, [][]byte{first, first}, hallmark.CodePolicyUnsigned},
		{"the same key twice", doc, [][]byte{first, tr.signPolicy(tr.pol, doc, 3)}, hallmark.CodePolicyUnsigned},
		{"another document", policyDocument(4), [][]byte{first, second}, hallmark.CodePolicyUnsigned},
		{"another version signed", doc, [][]byte{first, tr.signPolicy(tr.pol2, doc, 4)}, hallmark.CodePolicyUnsigned},
		{"key of another role", doc, [][]byte{first, tr.signPolicy(tr.release, doc, 3)}, hallmark.CodePolicyUnsigned},
		{"unknown key", doc, [][]byte{first, tr.signPolicy(newKey(), doc, 3)}, hallmark.CodePolicyUnsigned},
		{"another predicate", doc, [][]byte{first, tr.sign(order{key: tr.release, payload: vsa(nil)})}, hallmark.CodePolicyUnsigned},
		{"rollback under the pin", older, [][]byte{tr.signPolicy(tr.pol, older, 2), tr.signPolicy(tr.pol2, older, 2)}, hallmark.CodePolicyRollback},
		{"not JSON", []byte("policy"), [][]byte{first, second}, hallmark.CodePolicyUnsigned},
		{"two versions in one document", []byte(`{"version":3,"version":9}`), [][]byte{first, second}, hallmark.CodePolicyUnsigned},
		{"version under another case", []byte(`{"Version":3}`), [][]byte{first, second}, hallmark.CodePolicyUnsigned},
	} {
		p, err := v.Policy(tc.doc, tc.bundles)
		if hallmark.CodeOf(err) != tc.code || hallmark.KindOf(err) != hallmark.KindDenied || p.Valid() {
			t.Errorf("%s: got %v (%s)", tc.name, err, hallmark.CodeOf(err))
		}
	}
	// The second policy key is no signer of anything else.
	_, err = v.Verify(tr.sign(order{key: tr.pol2, payload: testResult()}))
	wantCode(t, err, hallmark.KindDenied, hallmark.CodeSignerNotAuthorized)
}

// TestPolicyRollback checks that the floor rises with what was seen, survives a
// restart, and belongs to one set of roots.
func TestPolicyRollback(t *testing.T) {
	tr := newTrust()
	dir := t.TempDir()
	open := func(edit func(*verify.Roots)) *verify.Verifier {
		return tr.verifier(t, must(verify.NewFileMemory(dir)), edit)
	}
	doc1, doc2 := policyDocument(1), policyDocument(2)
	b1, b2 := tr.signPolicy(tr.pol, doc1, 1), tr.signPolicy(tr.pol, doc2, 2)
	for _, p := range []struct{ doc, bundle []byte }{{doc1, b1}, {doc2, b2}, {doc2, b2}} {
		if _, err := open(nil).Policy(p.doc, [][]byte{p.bundle}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := open(nil).Policy(doc1, [][]byte{b1})
	wantCode(t, err, hallmark.KindDenied, hallmark.CodePolicyRollback)
	if _, err := open(func(r *verify.Roots) { r.Administrators = []string{"grace"} }).Policy(doc1, [][]byte{b1}); err != nil {
		t.Errorf("under other roots: %v", err)
	}
}

func TestVSA(t *testing.T) {
	tr := newTrust()
	v := tr.verifier(t, nil, nil)
	want := verify.VSAExpectation{Artifact: artifact, ResourceURI: "pkg:generic/app", Levels: []string{"SLSA_BUILD_LEVEL_1"}}
	sign := func(edit func(*intoto.VSA)) verify.Statement {
		return must(v.Verify(tr.sign(order{key: tr.release, payload: vsa(edit)})))
	}
	good := sign(nil)
	for _, tc := range []struct {
		name string
		s    verify.Statement
		want func(*verify.VSAExpectation)
		code hallmark.Code
	}{
		{"as expected", good, nil, ""},
		{"a higher level", sign(func(v *intoto.VSA) { v.VerifiedLevels = []string{"SLSA_BUILD_LEVEL_3"} }), nil, ""},
		{"not verified", verify.Statement{}, nil, hallmark.CodeSignatureInvalid},
		{"another artifact", good, func(w *verify.VSAExpectation) { w.Artifact = hallmark.DigestOf(nil) }, hallmark.CodeSubjectMismatch},
		{"no artifact", good, func(w *verify.VSAExpectation) { w.Artifact = "" }, hallmark.CodeSubjectMismatch},
		{"another predicate", must(v.Verify(tr.sign(order{san: observerSAN, payload: testResult()}))), nil, hallmark.CodePredicateType},
		{"another resource", good, func(w *verify.VSAExpectation) { w.ResourceURI = "pkg:generic/other" }, hallmark.CodeVSAResource},
		{"no resource", sign(func(v *intoto.VSA) { v.ResourceURI = "" }), func(w *verify.VSAExpectation) { w.ResourceURI = "" }, hallmark.CodeVSAResource},
		{"failed", sign(func(v *intoto.VSA) { v.VerificationResult = "FAILED" }), nil, hallmark.CodeVSANotPassed},
		{"empty result", sign(func(v *intoto.VSA) { v.VerificationResult = "" }), nil, hallmark.CodeVSANotPassed},
		{"a lower level", good, func(w *verify.VSAExpectation) { w.Levels = []string{"SLSA_BUILD_LEVEL_2"} }, hallmark.CodeVSALevel},
		{"another track", sign(func(v *intoto.VSA) { v.VerifiedLevels = []string{"SLSA_SOURCE_LEVEL_3"} }), nil, hallmark.CodeVSALevel},
		{"no level wanted", good, func(w *verify.VSAExpectation) { w.Levels = nil }, hallmark.CodeVSALevel},
	} {
		w := want
		if tc.want != nil {
			tc.want(&w)
		}
		if err := v.VSA(tc.s, w); hallmark.CodeOf(err) != tc.code {
			t.Errorf("%s: got %v", tc.name, err)
		}
	}
}
