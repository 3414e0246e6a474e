// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/url"
	"slices"

	"github.com/cyberphone/json-canonicalization/go/src/webpki.org/jsoncanonicalizer"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/tlog"
)

// Modes of an installation.
const (
	ModeSingleOperator = "single-operator" // one person; two-person rules are never satisfied
	ModeThreshold      = "threshold"       // two or more administrators
)

const maxRoots = 1 << 20

// Roots is roots.json: every pin that a verdict rests on. Its digest, over the
// RFC 8785 bytes, is what a caller pins.
type Roots struct {
	APIVersion     string          `json:"apiVersion"`
	Kind           string          `json:"kind"`
	TrustDomain    string          `json:"trustDomain"`
	Mode           string          `json:"mode"`
	Administrators []string        `json:"administrators"`
	Policy         PolicyRoots     `json:"policy"`
	Signers        []Signer        `json:"signers"`
	Logs           []Log           `json:"logs"`
	WitnessPolicy  string          `json:"witnessPolicy"`
	TrustedRoot    hallmark.Digest `json:"trustedRoot"`
}

// PolicyRoots is who may change the policy.
type PolicyRoots struct {
	Keys           []Key `json:"keys"`
	Threshold      int   `json:"threshold"`
	MinimumVersion int   `json:"minimumVersion"`
}

// Key is a public key and the hint under which bundles name it.
type Key struct {
	Hint      string `json:"hint"`      // base64 of the SHA-256 of the SubjectPublicKeyInfo
	PublicKey string `json:"publicKey"` // PEM
}

// Certificate is an exact certificate issuer and subject name.
type Certificate struct {
	Issuer string `json:"issuer"`
	SAN    string `json:"san"`
}

// Signer is one identity and all that it may sign. Exactly one of Certificate
// and Key is set.
type Signer struct {
	Name           string       `json:"name"`
	Certificate    *Certificate `json:"certificate,omitempty"`
	Key            *Key         `json:"key,omitempty"`
	PredicateTypes []string     `json:"predicateTypes"`
	BuilderIDs     []string     `json:"builderIds,omitempty"`
	MaxLevel       string       `json:"maxLevel,omitempty"` // highest SLSA build level its provenance can support
	VerifierIDs    []string     `json:"verifierIds,omitempty"`
}

// Log is a transparency log that is trusted.
type Log struct {
	Origin    string `json:"origin"`
	PublicKey string `json:"publicKey"` // PEM, Ed25519
}

// HintOf returns the hint of a public key.
func HintOf(key *ecdsa.PublicKey) (string, error) {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", hallmark.Errorf(hallmark.KindInvalid, "encoding public key: %w", err)
	}
	sum := sha256.Sum256(spki)
	return base64.StdEncoding.EncodeToString(sum[:]), nil
}

// ParseRoots reads roots.json strictly: unknown fields, duplicate keys, missing
// or contradictory pins are refused.
func ParseRoots(b []byte) (*Roots, error) {
	if len(b) > maxRoots {
		return nil, rootsError("roots of %d bytes: the limit is %d", len(b), maxRoots)
	}
	if err := intoto.CheckJSON(b, 16); err != nil {
		return nil, rootsError("reading roots: %w", err)
	}
	var r Roots
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return nil, rootsError("reading roots: %w", err)
	}
	// encoding/json takes keys that differ in case; what was read must be what
	// stands there, so the canonical forms are compared.
	canon, err := r.Encode()
	if err != nil {
		return nil, err
	}
	given, err := jsoncanonicalizer.Transform(b)
	if err != nil {
		return nil, rootsError("reading roots: %w", err)
	}
	if !bytes.Equal(canon, given) {
		return nil, rootsError("roots are not in the form that hallmark writes: a field is missing, empty or written another way")
	}
	return &r, nil
}

// Encode returns the RFC 8785 bytes of r, after the checks that ParseRoots makes.
func (r *Roots) Encode() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	b, err := json.Marshal(r)
	if err != nil {
		return nil, rootsError("encoding roots: %w", err)
	}
	canon, err := jsoncanonicalizer.Transform(b)
	if err != nil {
		return nil, rootsError("encoding roots: %w", err)
	}
	return canon, nil
}

// Digest returns the roots digest: SHA-256 of the RFC 8785 bytes.
func (r *Roots) Digest() (hallmark.Digest, error) {
	b, err := r.Encode()
	if err != nil {
		return "", err
	}
	return hallmark.DigestOf(b), nil
}

func (r *Roots) check() error {
	if r.APIVersion != "hallmark/v1" || r.Kind != "Roots" {
		return rootsError("roots of %.40q %.40q: want hallmark/v1 Roots", r.APIVersion, r.Kind)
	}
	if u, err := url.Parse("spiffe://" + r.TrustDomain); err != nil || r.TrustDomain == "" || u.Host != r.TrustDomain {
		return rootsError("trustDomain %.100q: want a host name", r.TrustDomain)
	}
	if err := distinct("administrators", r.Administrators, 1); err != nil {
		return err
	}
	switch r.Mode {
	case ModeSingleOperator:
	case ModeThreshold:
		if len(r.Administrators) < 2 {
			return rootsError("administrators: mode %s needs two or more", r.Mode)
		}
		if len(r.Policy.Keys) != len(r.Administrators) {
			return rootsError("policy.keys: %d of %d administrators: mode %s needs one for each, in their order", len(r.Policy.Keys), len(r.Administrators), r.Mode)
		}
		// Rows that need two persons rest on the mode: it must not be a word only.
		if r.Policy.Threshold < 2 {
			return rootsError("policy.threshold %d: mode %s needs two or more", r.Policy.Threshold, r.Mode)
		}
	default:
		return rootsError("mode %.40q: want %s or %s", r.Mode, ModeSingleOperator, ModeThreshold)
	}
	if err := r.Policy.check(); err != nil {
		return err
	}
	if err := r.checkSigners(); err != nil {
		return err
	}
	if err := r.checkLogs(); err != nil {
		return err
	}
	if _, err := tlog.ParsePolicy(r.WitnessPolicy); err != nil {
		return rootsError("witnessPolicy: %w", err)
	}
	if err := r.TrustedRoot.Check(); err != nil {
		return rootsError("trustedRoot: %w", err)
	}
	return nil
}

func (p PolicyRoots) check() error {
	if len(p.Keys) == 0 {
		return rootsError("policy.keys: want at least one")
	}
	var hints []string
	for i, k := range p.Keys {
		if _, err := k.parse(); err != nil {
			return rootsError("policy.keys[%d]: %w", i, err)
		}
		hints = append(hints, k.Hint)
	}
	if err := distinct("policy.keys", hints, 1); err != nil {
		return err
	}
	if p.Threshold < 1 || p.Threshold > len(p.Keys) {
		return rootsError("policy.threshold %d: want 1 to %d", p.Threshold, len(p.Keys))
	}
	if p.MinimumVersion < 1 {
		return rootsError("policy.minimumVersion %d: want 1 or more", p.MinimumVersion)
	}
	return nil
}

func (r *Roots) checkSigners() error {
	if len(r.Signers) == 0 {
		return rootsError("signers: want at least one")
	}
	var names, identities []string
	for i, s := range r.Signers {
		if err := s.check(); err != nil {
			return rootsError("signers[%d]: %w", i, err)
		}
		names = append(names, s.Name)
		if s.Key != nil {
			identities = append(identities, "key "+s.Key.Hint)
		} else {
			identities = append(identities, s.Certificate.Issuer+" "+s.Certificate.SAN)
		}
	}
	if err := distinct("signers, by name", names, 1); err != nil {
		return err
	}
	// Two entries of one identity would make "what may it sign" ambiguous.
	return distinct("signers, by identity", identities, 1)
}

func (s Signer) check() error {
	switch {
	case s.Name == "":
		return rootsError("name: want one")
	case (s.Certificate == nil) == (s.Key == nil):
		return rootsError("want either certificate or key")
	case s.Certificate != nil && (s.Certificate.Issuer == "" || s.Certificate.SAN == ""):
		return rootsError("certificate: want issuer and san")
	}
	if s.Key != nil {
		if _, err := s.Key.parse(); err != nil {
			return rootsError("key: %w", err)
		}
	}
	if err := distinct("predicateTypes", s.PredicateTypes, 1); err != nil {
		return err
	}
	provenance := slices.Contains(s.PredicateTypes, intoto.PredicateProvenance)
	if provenance != (len(s.BuilderIDs) > 0) || provenance != (s.MaxLevel != "") {
		return rootsError("builderIds and maxLevel: want both exactly for a signer of provenance")
	}
	if provenance && !slices.Contains([]string{"SLSA_BUILD_LEVEL_0", "SLSA_BUILD_LEVEL_1", "SLSA_BUILD_LEVEL_2", "SLSA_BUILD_LEVEL_3"}, s.MaxLevel) {
		return rootsError("maxLevel %.40q: want SLSA_BUILD_LEVEL_0 to 3", s.MaxLevel)
	}
	if slices.Contains(s.PredicateTypes, intoto.PredicateVSA) != (len(s.VerifierIDs) > 0) {
		return rootsError("verifierIds: want them exactly for a signer of verification summaries")
	}
	if err := distinct("builderIds", s.BuilderIDs, 0); err != nil {
		return err
	}
	return distinct("verifierIds", s.VerifierIDs, 0)
}

func (r *Roots) checkLogs() error {
	if len(r.Logs) == 0 {
		return rootsError("logs: want at least one")
	}
	var origins []string
	for i, l := range r.Logs {
		key, err := l.Key()
		if err != nil {
			return rootsError("logs[%d]: %w", i, err)
		}
		if _, err := tlog.NewVerifier(l.Origin, key); err != nil {
			return rootsError("logs[%d]: %w", i, err)
		}
		origins = append(origins, l.Origin)
	}
	return distinct("logs, by origin", origins, 1)
}

// Key returns the log's checkpoint key.
func (l Log) Key() (ed25519.PublicKey, error) {
	pub, err := parsePublicKey(l.PublicKey)
	if err != nil {
		return nil, err
	}
	key, ok := pub.(ed25519.PublicKey)
	if !ok {
		return nil, rootsError("key of log %.100q: want Ed25519", l.Origin)
	}
	return key, nil
}

// parse returns the key and checks that the hint is its own.
func (k Key) parse() (*ecdsa.PublicKey, error) {
	pub, err := parsePublicKey(k.PublicKey)
	if err != nil {
		return nil, err
	}
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, rootsError("publicKey: want ECDSA P-256")
	}
	hint, err := HintOf(key)
	if err != nil {
		return nil, err
	}
	if hint != k.Hint {
		return nil, rootsError("hint %.60q: is not the hint of its publicKey", k.Hint)
	}
	return key, nil
}

func parsePublicKey(text string) (any, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) != 0 {
		return nil, rootsError("publicKey: want one PEM block PUBLIC KEY")
	}
	pub, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, rootsError("publicKey: %w", err)
	}
	return pub, nil
}

func distinct(what string, values []string, least int) error {
	if len(values) < least {
		return rootsError("%s: want at least %d", what, least)
	}
	seen := map[string]bool{}
	for _, v := range values {
		if v == "" || seen[v] {
			return rootsError("%s: %.100q is empty or occurs twice", what, v)
		}
		seen[v] = true
	}
	return nil
}

func rootsError(format string, args ...any) error {
	return hallmark.Errorf(hallmark.KindInvalid, format, args...)
}
