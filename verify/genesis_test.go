// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package verify_test

import (
	"crypto/ecdsa"
	"encoding/json"
	"maps"
	"testing"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// council is a trust that three administrators share, two of whom must sign.
type council struct {
	*trust
	keys  []*ecdsa.PrivateKey
	names []string
}

func newCouncil() *council {
	return &council{trust: newTrust(), keys: []*ecdsa.PrivateKey{newKey(), newKey(), newKey()}, names: []string{"ada", "grace", "joan"}}
}

func (c *council) edit(r *verify.Roots) {
	r.Mode, r.Administrators = verify.ModeThreshold, c.names
	r.Policy = verify.PolicyRoots{Threshold: 2, MinimumVersion: 1}
	r.Signers = r.Signers[:3] // without the single operator's policy key
	for i, k := range c.keys {
		key := keyOf(k)
		r.Policy.Keys = append(r.Policy.Keys, key)
		r.Signers = append(r.Signers, verify.Signer{Name: "policy/" + c.names[i], Key: &key, PredicateTypes: []string{intoto.PredicatePolicy, intoto.PredicateGenesis}})
	}
}

func statementOn(predicateType string, subject hallmark.Digest, predicate map[string]any) []byte {
	return must(intoto.Statement{Type: intoto.StatementType, PredicateType: predicateType, Predicate: must(json.Marshal(predicate)),
		Subject: []intoto.ResourceDescriptor{{Name: "subject", Digest: map[string]string{"sha256": subject.Hex()}}}}.Marshal())
}

func hintOf(k *ecdsa.PrivateKey) string { return keyOf(k).Hint }

func TestGenesis(t *testing.T) {
	c := newCouncil()
	v := c.verifier(t, nil, c.edit)
	first := hallmark.DigestOf([]byte("policy"))
	facts := map[string]any{"mode": "threshold", "administrators": c.names, "threshold": 2, "policy": first, "roots": v.RootsDigest(), "more": "x"}
	sign := func(key *ecdsa.PrivateKey, change map[string]any) []byte {
		p := maps.Clone(facts)
		p["signer"] = hintOf(key)
		maps.Copy(p, change)
		for k, x := range p {
			if x == nil {
				delete(p, k)
			}
		}
		return c.sign(order{key: key, payload: statementOn(intoto.PredicateGenesis, v.RootsDigest(), p)})
	}
	both := func(field string, value any) [][]byte { // two agree on what is not so
		change := map[string]any{field: value}
		return [][]byte{sign(c.keys[0], change), sign(c.keys[1], change)}
	}
	ada, grace, joan := sign(c.keys[0], nil), sign(c.keys[1], nil), sign(c.keys[2], nil)
	for _, tc := range []struct {
		name    string
		bundles [][]byte
		code    hallmark.Code
	}{
		{"2 of 3", [][]byte{ada, joan}, ""},
		{"all", [][]byte{ada, grace, joan}, ""},
		{"nobody", nil, hallmark.CodeGenesisUnsigned},
		{"1 of 3", [][]byte{grace}, hallmark.CodeGenesisUnsigned},
		{"the same bundle twice", [][]byte{grace, grace}, hallmark.CodeGenesisUnsigned},
		{"the same key twice", [][]byte{grace, sign(c.keys[1], nil)}, hallmark.CodeGenesisUnsigned},
		{"a foreign key", [][]byte{ada, sign(newKey(), nil)}, hallmark.CodeGenesisUnsigned},
		{"a key of another role", [][]byte{ada, sign(c.release, nil)}, hallmark.CodeGenesisUnsigned},
		{"a foreign key beside enough", [][]byte{ada, grace, sign(newKey(), nil)}, hallmark.CodeGenesisUnsigned},
		{"in another's name", [][]byte{ada, sign(c.keys[1], map[string]any{"signer": hintOf(c.keys[2])})}, hallmark.CodeSubjectMismatch},
		{"another first policy", [][]byte{ada, sign(c.keys[1], map[string]any{"policy": hallmark.DigestOf(nil)})}, hallmark.CodeGenesisMismatch},
		{"another fact that is not read here", [][]byte{ada, sign(c.keys[1], map[string]any{"more": "y"})}, hallmark.CodeGenesisMismatch},
		{"other roots", both("roots", hallmark.DigestOf(nil)), hallmark.CodeGenesisMismatch},
		{"another mode", both("mode", "single-operator"), hallmark.CodeGenesisMismatch},
		{"another threshold", both("threshold", 1), hallmark.CodeGenesisMismatch},
		{"other administrators", both("administrators", []string{"ada"}), hallmark.CodeGenesisMismatch},
		{"no first policy", both("policy", ""), hallmark.CodeEvidenceMalformed},
		{"no roots", both("roots", nil), hallmark.CodeEvidenceMalformed},
		{"roots under another case", [][]byte{sign(c.keys[0], map[string]any{"roots": nil, "Roots": v.RootsDigest()}), grace}, hallmark.CodeEvidenceMalformed},
		{"a policy instead", [][]byte{ada, c.sign(order{key: c.keys[1], payload: statementOn(intoto.PredicatePolicy, first, facts)})}, hallmark.CodePredicateType},
		{"not a bundle", [][]byte{ada, []byte("{}")}, hallmark.CodeGenesisUnsigned},
	} {
		got, err := v.Genesis(tc.bundles)
		if hallmark.CodeOf(err) != tc.code || err != nil && (hallmark.KindOf(err) != hallmark.KindDenied || got != "") || err == nil && got != first {
			t.Errorf("%s: got %q, %v (%s), want %q", tc.name, got, err, hallmark.CodeOf(err), tc.code)
		}
	}
}

// TestGenesisBySigner: whom the roots let sign a genesis without a policy key
// does not count as an administrator.
func TestGenesisBySigner(t *testing.T) {
	c := newCouncil()
	v := c.verifier(t, nil, func(r *verify.Roots) {
		c.edit(r)
		r.Signers[2].PredicateTypes = append(r.Signers[2].PredicateTypes, intoto.PredicateGenesis)
	})
	facts := map[string]any{"mode": "threshold", "administrators": c.names, "threshold": 2, "policy": hallmark.DigestOf(nil), "roots": v.RootsDigest()}
	payload := statementOn(intoto.PredicateGenesis, v.RootsDigest(), facts)
	ada, grace := c.sign(order{key: c.keys[0], payload: payload}), c.sign(order{key: c.keys[1], payload: payload})
	if _, err := v.Genesis([][]byte{ada, grace}); err != nil {
		t.Error(err)
	}
	_, err := v.Genesis([][]byte{ada, c.sign(order{key: c.release, payload: payload})})
	wantCode(t, err, hallmark.KindDenied, hallmark.CodeSignerNotAuthorized)
}

// TestPolicyOfCouncil counts administrators, not signatures.
func TestPolicyOfCouncil(t *testing.T) {
	c := newCouncil()
	v := c.verifier(t, nil, c.edit)
	doc := policyDocument(2)
	sign := func(key *ecdsa.PrivateKey, change map[string]any) []byte {
		p := map[string]any{"version": 2, "previous": "", "signer": hintOf(key)}
		maps.Copy(p, change)
		return c.sign(order{key: key, payload: statementOn(intoto.PredicatePolicy, hallmark.DigestOf(doc), p)})
	}
	ada, grace, joan := sign(c.keys[0], nil), sign(c.keys[1], nil), sign(c.keys[2], nil)
	for _, tc := range []struct {
		name    string
		bundles [][]byte
		code    hallmark.Code
	}{
		{"2 of 3", [][]byte{joan, ada}, ""},
		{"3 of 3", [][]byte{joan, ada, grace}, ""},
		{"1 of 3", [][]byte{joan}, hallmark.CodePolicyUnsigned},
		{"the same key twice", [][]byte{joan, sign(c.keys[2], nil)}, hallmark.CodePolicyUnsigned},
		{"the same key under two names", [][]byte{joan, sign(c.keys[2], map[string]any{"signer": hintOf(c.keys[0])})}, hallmark.CodePolicyUnsigned},
		{"a foreign key", [][]byte{joan, sign(newKey(), nil)}, hallmark.CodePolicyUnsigned},
		{"the release key", [][]byte{joan, sign(c.release, nil)}, hallmark.CodePolicyUnsigned},
		{"the single operator's key", [][]byte{joan, sign(c.pol, nil)}, hallmark.CodePolicyUnsigned},
		{"a signer that is no text", [][]byte{joan, sign(c.keys[0], map[string]any{"signer": 1})}, hallmark.CodePolicyUnsigned},
	} {
		p, err := v.Policy(doc, tc.bundles)
		if hallmark.CodeOf(err) != tc.code || p.Valid() != (tc.code == "") {
			t.Errorf("%s: got %v", tc.name, err)
		}
	}
}
