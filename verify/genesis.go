// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"encoding/json"
	"slices"

	"github.com/cyberphone/json-canonicalization/go/src/webpki.org/jsoncanonicalizer"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

// genesis is what this package reads of a genesis predicate.
type genesis struct {
	Mode           string          `json:"mode"`
	Administrators []string        `json:"administrators"`
	Threshold      int             `json:"threshold"`
	Policy         hallmark.Digest `json:"policy"`
	Roots          hallmark.Digest `json:"roots"`
}

// Genesis verifies the genesis of a log: at least the pinned threshold of
// distinct policy keys signed the same facts, and these name the pinned roots.
// It returns the digest of the first policy. A bundle that does not verify is
// refused, not skipped.
func (v *Verifier) Genesis(bundles [][]byte) (policy hallmark.Digest, err error) {
	if len(bundles) > maxPolicyBundles {
		return "", denied(hallmark.CodeGenesisUnsigned, "genesis with %d signatures: the limit is %d", len(bundles), maxPolicyBundles)
	}
	signers := map[string]bool{}
	var facts []byte
	for i, b := range bundles {
		s, err := v.Verify(b)
		if err != nil {
			return "", denied(hallmark.CodeGenesisUnsigned, "signature %d of the genesis: %w", i+1, err)
		}
		g, common, err := v.genesisOf(s)
		if err != nil {
			return "", err
		}
		if facts != nil && !bytes.Equal(facts, common) {
			return "", denied(hallmark.CodeGenesisMismatch, "signature %d of the genesis is of other facts than the first", i+1)
		}
		facts, policy = common, g.Policy
		signers[s.hint] = true
	}
	if n := len(signers); n < v.roots.Policy.Threshold {
		return "", denied(hallmark.CodeGenesisUnsigned, "the genesis is signed by %d distinct policy keys: want %d", n, v.roots.Policy.Threshold)
	}
	return policy, nil
}

// genesisOf reads the facts that s states and compares them with the roots. The
// second result is what all administrators sign alike, in canonical form.
func (v *Verifier) genesisOf(s Statement) (genesis, []byte, error) {
	var g genesis
	if s.predicate != intoto.PredicateGenesis {
		return g, nil, denied(hallmark.CodePredicateType, "predicate type %.200s: want %s", s.predicate, intoto.PredicateGenesis)
	}
	if !v.policyHints[s.hint] {
		return g, nil, denied(hallmark.CodeSignerNotAuthorized, "signer %s holds no policy key", s.signer)
	}
	predicate := s.Statement().Predicate
	if err := namesSigner(predicate, s.hint); err != nil {
		return g, nil, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(predicate, &fields); err != nil {
		return g, nil, denied(hallmark.CodeEvidenceMalformed, "reading the genesis: %w", err)
	}
	delete(fields, "signer")
	// Exact names only: encoding/json would also take keys that differ in case.
	for name, to := range map[string]any{"mode": &g.Mode, "administrators": &g.Administrators, "threshold": &g.Threshold, "policy": &g.Policy, "roots": &g.Roots} {
		if err := json.Unmarshal(fields[name], to); err != nil {
			return g, nil, denied(hallmark.CodeEvidenceMalformed, "reading the genesis: field %s: %w", name, err)
		}
	}
	switch {
	case g.Roots != v.rootsDigest:
		return g, nil, denied(hallmark.CodeGenesisMismatch, "the genesis is of roots %.80s, the pinned roots are %s", g.Roots, v.rootsDigest)
	case g.Mode != v.roots.Mode || g.Threshold != v.roots.Policy.Threshold || !slices.Equal(g.Administrators, v.roots.Administrators):
		return g, nil, denied(hallmark.CodeGenesisMismatch, "the genesis names another mode, threshold or other administrators than the pinned roots")
	case g.Policy.Check() != nil:
		return g, nil, denied(hallmark.CodeEvidenceMalformed, "the genesis names no policy")
	}
	raw, err := json.Marshal(fields)
	if err != nil {
		return g, nil, denied(hallmark.CodeEvidenceMalformed, "reading the genesis: %w", err)
	}
	common, err := jsoncanonicalizer.Transform(raw)
	if err != nil {
		return g, nil, denied(hallmark.CodeEvidenceMalformed, "reading the genesis: %w", err)
	}
	return g, common, nil
}
