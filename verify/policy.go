// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"encoding/json"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

const maxPolicyBundles = 64

// Policy is a policy document that enough policy keys signed. Only a Verifier
// makes a valid one.
type Policy struct {
	document []byte
	digest   hallmark.Digest
	version  int
}

// Valid reports whether a Verifier made p.
func (p Policy) Valid() bool { return p.version > 0 }

// Document returns the bytes of policy.json.
func (p Policy) Document() []byte { return bytes.Clone(p.document) }

// Digest returns the digest of policy.json.
func (p Policy) Digest() hallmark.Digest { return p.digest }

// Version returns the version of the policy.
func (p Policy) Version() int { return p.version }

// versioned is what this package reads of a policy, in the document and in the
// signed predicate alike.
type versioned struct {
	Version  int    `json:"version"`
	Previous string `json:"previous"`
}

// Policy verifies a policy document. At least the pinned threshold of distinct
// policy keys must have signed these bytes under this version, and the version
// must not be below the pinned or the remembered floor. A bundle that does not
// verify is refused, not skipped: it would be evidence that is not understood.
func (v *Verifier) Policy(document []byte, bundles [][]byte) (Policy, error) {
	if len(bundles) > maxPolicyBundles {
		return Policy{}, denied(hallmark.CodePolicyUnsigned, "policy with %d signatures: the limit is %d", len(bundles), maxPolicyBundles)
	}
	p := Policy{document: bytes.Clone(document), digest: hallmark.DigestOf(document)}
	doc, err := policyVersion(document)
	if err != nil {
		return Policy{}, err
	}
	signers := map[string]bool{}
	for i, b := range bundles {
		hint, err := v.policySignature(b, p.digest, doc)
		if err != nil {
			return Policy{}, denied(hallmark.CodePolicyUnsigned, "signature %d of policy: %w", i+1, err)
		}
		signers[hint] = true
	}
	if n := len(signers); n < v.roots.Policy.Threshold {
		return Policy{}, denied(hallmark.CodePolicyUnsigned, "policy version %d is signed by %d distinct policy keys: want %d", doc.Version, n, v.roots.Policy.Threshold)
	}
	floor := v.roots.Policy.MinimumVersion
	if v.memory != nil {
		seen, err := v.memory.PolicyFloor(v.rootsDigest)
		if err != nil {
			return Policy{}, denied(hallmark.CodePolicyRollback, "reading the newest policy version seen: %w", err)
		}
		floor = max(floor, seen)
	}
	if doc.Version < floor {
		return Policy{}, denied(hallmark.CodePolicyRollback, "policy version %d: version %d was pinned or seen before", doc.Version, floor)
	}
	if v.memory != nil {
		if err := v.memory.RaisePolicyFloor(v.rootsDigest, doc.Version); err != nil {
			return Policy{}, denied(hallmark.CodePolicyRollback, "remembering policy version %d: %w", doc.Version, err)
		}
	}
	p.version = doc.Version
	return p, nil
}

func policyVersion(document []byte) (versioned, error) {
	if len(document) > intoto.MaxSize {
		return versioned{}, denied(hallmark.CodePolicyUnsigned, "policy of %d bytes: the limit is %d", len(document), intoto.MaxSize)
	}
	if err := intoto.CheckJSON(document, intoto.MaxDepth); err != nil {
		return versioned{}, denied(hallmark.CodePolicyUnsigned, "reading policy: %w", err)
	}
	doc, err := exactVersion(document)
	if err != nil {
		return versioned{}, denied(hallmark.CodePolicyUnsigned, "reading policy: %w", err)
	}
	return doc, nil
}

// exactVersion reads the two fields under exactly their names.
func exactVersion(b []byte) (versioned, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil {
		return versioned{}, err
	}
	var out versioned
	if err := json.Unmarshal(fields["version"], &out.Version); err != nil || out.Version < 1 {
		return versioned{}, hallmark.Errorf(hallmark.KindInvalid, "version: want a whole number from 1")
	}
	if raw, ok := fields["previous"]; ok {
		if err := json.Unmarshal(raw, &out.Previous); err != nil {
			return versioned{}, hallmark.Errorf(hallmark.KindInvalid, "previous: want a string")
		}
	}
	return out, nil
}

// policySignature returns the hint of the policy key that signed this document.
func (v *Verifier) policySignature(bundle []byte, digest hallmark.Digest, doc versioned) (string, error) {
	s, err := v.Verify(bundle)
	if err != nil {
		return "", err
	}
	if s.predicate != intoto.PredicatePolicy {
		return "", denied(hallmark.CodePredicateType, "predicate type %.200s: want %s", s.predicate, intoto.PredicatePolicy)
	}
	if !v.policyHints[s.hint] {
		return "", denied(hallmark.CodeSignerNotAuthorized, "signer %s holds no policy key", s.signer)
	}
	st := s.Statement()
	if len(st.Subject) != 1 || st.Subject[0].Digest["sha256"] != digest.Hex() {
		return "", denied(hallmark.CodeSubjectMismatch, "the signature is of another document")
	}
	signed, err := exactVersion(st.Predicate)
	if err != nil {
		return "", denied(hallmark.CodeEvidenceMalformed, "reading predicate: %w", err)
	}
	if signed != doc {
		return "", denied(hallmark.CodePolicyMismatch, "the signature is of version %d, the document says %d", signed.Version, doc.Version)
	}
	if err := namesSigner(st.Predicate, s.hint); err != nil {
		return "", err
	}
	return s.hint, nil
}

// namesSigner checks that a predicate which names the key that signs it names
// the right one. Administrators' statements do, so that each of them has a
// digest, and a place in the log, of its own.
func namesSigner(predicate json.RawMessage, hint string) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(predicate, &fields); err != nil {
		return denied(hallmark.CodeEvidenceMalformed, "reading predicate: %w", err)
	}
	raw, ok := fields["signer"]
	if !ok {
		return nil
	}
	var named string
	if err := json.Unmarshal(raw, &named); err != nil || named != hint {
		return denied(hallmark.CodeSubjectMismatch, "the statement names another signer than the key that signed it")
	}
	return nil
}
