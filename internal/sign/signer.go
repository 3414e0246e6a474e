// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sign

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/digitorus/timestamp"
	pbundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	pcommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	pdsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	prekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	rekor "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

// Identity is who signs.
type Identity int

// The identities of a local run.
const (
	Observer Identity = iota + 1 // short-lived certificate: observations
	Builder                      // short-lived certificate: provenance, with a permit
	Release                      // artifact key: verification summaries
	Policy                       // policy key: policies and the genesis entry
	Wrapper                      // short-lived certificate: provenance of a wrapped command, with a permit
	Gate                         // short-lived certificate: what the gates let through or refused
	Server                       // short-lived certificate: provenance of a server's build, with a permit
)

// may is who may sign which predicate types.
func may(id Identity, predicateType string) bool {
	switch id {
	case Observer:
		return slices.Contains([]string{
			intoto.PredicateSource, intoto.PredicateTestResult, intoto.PredicateVulns, intoto.PredicateSCAI,
			intoto.PredicateLink, intoto.PredicateTrace, intoto.PredicateSPDX, intoto.PredicateCycloneDX,
		}, predicateType)
	case Builder, Wrapper, Server:
		return predicateType == intoto.PredicateProvenance
	case Gate:
		return slices.Contains([]string{intoto.PredicateTransition, intoto.PredicateReview, intoto.PredicateAccess}, predicateType)
	case Release:
		return predicateType == intoto.PredicateVSA
	case Policy:
		return predicateType == intoto.PredicatePolicy || predicateType == intoto.PredicateGenesis
	}
	return false
}

// Log makes a signature public. When Append returns, a published checkpoint
// covers the entry; the same entry again gives the same leaf.
type Log interface {
	Append(ctx context.Context, request *rekor.HashedRekordRequestV002) (*prekor.TransparencyLogEntry, error)
}

// Permit lets a builder identity sign one statement.
type Permit struct {
	Statement   hallmark.Digest // of the statement's PAE
	BuildPolicy hallmark.Digest // of the policy that decided
	Decision    hallmark.Decision
}

// SignerConfig is what a signer needs.
type SignerConfig struct {
	Keyring     *Keyring
	Log         Log
	TrustDomain string
	Clock       func() time.Time
	// PolicyKey signs policies instead of the keyring's own key. Optional.
	PolicyKey *PolicyKey
	// Existing finds the bundle made for a statement before, so that a resumed
	// run signs nothing twice. What it returns is checked; what is not such a
	// bundle is signed anew. Optional.
	Existing func(ctx context.Context, statement hallmark.Digest) (bundle []byte, ok bool, err error)
}

// Signer signs statements. It is safe for concurrent use.
type Signer struct {
	cfg SignerConfig

	mu     sync.Mutex
	leaves map[Identity]leaf // guarded by mu
}

// leaf is a short-lived key with its certificate; the key is never stored.
type leaf struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// NewSigner checks its configuration.
func NewSigner(cfg SignerConfig) (*Signer, error) {
	if cfg.Keyring == nil || cfg.Log == nil || cfg.TrustDomain == "" || cfg.Clock == nil {
		return nil, hallmark.Errorf(hallmark.KindInternal, "signer without keyring, log, trust domain or clock")
	}
	return &Signer{cfg: cfg, leaves: map[Identity]leaf{}}, nil
}

// Request is one statement to sign.
type Request struct {
	Identity  Identity
	Statement []byte // JSON of an in-toto Statement v1
	Permit    *Permit
}

// Bundle is a signed, time-stamped and logged statement.
type Bundle struct {
	JSON      []byte
	Statement hallmark.Digest // of PAE: the digest in the log
	PAE       []byte
	Digest    hallmark.Digest // of JSON
	LogIndex  int64
	SignedAt  time.Time // as the timestamp says
}

// Sign signs a statement. Refusals are of kind denied.
func (s *Signer) Sign(ctx context.Context, r Request) (Bundle, error) {
	st, err := intoto.Parse(r.Statement)
	if err != nil {
		return Bundle{}, fmt.Errorf("reading the statement to sign: %w", err)
	}
	if !may(r.Identity, st.PredicateType) {
		return Bundle{}, hallmark.Coded(hallmark.KindDenied, hallmark.CodeSignerNotAuthorized, "identity %d may not sign %s", r.Identity, st.PredicateType)
	}
	b := Bundle{PAE: intoto.PAE(intoto.PayloadType, r.Statement)}
	b.Statement = hallmark.DigestOf(b.PAE)
	if r.Identity == Builder || r.Identity == Wrapper || r.Identity == Server {
		if err := permitted(r.Permit, b.Statement); err != nil {
			return Bundle{}, err
		}
	}
	if s.cfg.Existing != nil {
		old, ok, err := s.cfg.Existing(ctx, b.Statement)
		if err != nil {
			return Bundle{}, fmt.Errorf("looking for an earlier bundle: %w", err)
		}
		if ok {
			if adopted, ok := s.adopt(b, r.Identity, old); ok {
				return adopted, nil
			}
		}
	}
	return s.make(ctx, b, r)
}

func permitted(p *Permit, statement hallmark.Digest) error {
	switch {
	case p == nil:
		return hallmark.Coded(hallmark.KindDenied, hallmark.CodeBuildPolicy, "provenance without a permit of the build policy")
	case p.Statement != statement:
		return hallmark.Coded(hallmark.KindDenied, hallmark.CodeBuildPolicy, "the permit is for statement %s, not %s", p.Statement, statement)
	case p.BuildPolicy.Check() != nil || !p.Decision.Allowed():
		return hallmark.Coded(hallmark.KindDenied, hallmark.CodeBuildPolicy, "the build policy does not allow this provenance")
	}
	return nil
}

// adopt takes a bundle that was made before, if it is one of this very
// statement, signed by the same identity. The index that named it is believed in
// nothing: what it says would be handed on as our signature.
func (s *Signer) adopt(b Bundle, id Identity, old []byte) (Bundle, bool) {
	var parsed pbundle.Bundle
	if err := protojson.Unmarshal(old, &parsed); err != nil {
		return Bundle{}, false
	}
	material, env := parsed.GetVerificationMaterial(), parsed.GetDsseEnvelope()
	stamps := material.GetTimestampVerificationData().GetRfc3161Timestamps()
	if len(material.GetTlogEntries()) != 1 || len(env.GetSignatures()) != 1 || len(stamps) != 1 ||
		!bytes.Equal(intoto.PAE(env.GetPayloadType(), env.GetPayload()), b.PAE) {
		return Bundle{}, false
	}
	key, ok := s.keyOf(id, material)
	sum := sha256.Sum256(b.PAE)
	if !ok || !ecdsa.VerifyASN1(key, sum[:], env.GetSignatures()[0].GetSig()) {
		return Bundle{}, false
	}
	var err error
	if b.SignedAt, err = timeOf(stamps[0].GetSignedTimestamp()); err != nil {
		return Bundle{}, false
	}
	b.JSON, b.Digest = old, hallmark.DigestOf(old)
	b.LogIndex = material.GetTlogEntries()[0].GetLogIndex()
	return b, true
}

// keyOf returns the key that a bundle names, if it is one of the identity's.
func (s *Signer) keyOf(id Identity, m *pbundle.VerificationMaterial) (*ecdsa.PublicKey, bool) {
	k := s.cfg.Keyring
	switch id {
	case Release:
		return &k.artifact.PublicKey, m.GetPublicKey().GetHint() == k.Artifact().Hint
	case Policy:
		if own := s.cfg.PolicyKey; own != nil {
			return &own.key.PublicKey, m.GetPublicKey().GetHint() == own.Public().Hint
		}
		if k.policy == nil { // administrators have their own
			return nil, false
		}
		return &k.policy.PublicKey, m.GetPublicKey().GetHint() == k.Policy().Hint
	case Observer, Builder, Wrapper, Gate, Server:
		cert, err := x509.ParseCertificate(m.GetCertificate().GetRawBytes())
		if err != nil || cert.CheckSignatureFrom(k.ca.intermediate) != nil || len(cert.URIs) != 1 || cert.URIs[0].String() != s.san(id) {
			return nil, false
		}
		key, ok := cert.PublicKey.(*ecdsa.PublicKey)
		return key, ok
	}
	return nil, false
}

// san is the name in the certificate of an identity, or "" for one with a key.
func (s *Signer) san(id Identity) string {
	switch id {
	case Observer:
		return "spiffe://" + s.cfg.TrustDomain + "/observer"
	case Builder:
		return "spiffe://" + s.cfg.TrustDomain + "/builder/local"
	case Wrapper:
		return "spiffe://" + s.cfg.TrustDomain + "/builder/wrap"
	case Gate:
		return "spiffe://" + s.cfg.TrustDomain + "/gate"
	case Server:
		return "spiffe://" + s.cfg.TrustDomain + "/builder/server"
	case Release, Policy:
	}
	return ""
}

// timeOf reads the time of a timestamp response.
func timeOf(response []byte) (time.Time, error) {
	ts, err := timestamp.ParseResponse(response)
	if err != nil {
		return time.Time{}, fmt.Errorf("reading timestamp: %w", err)
	}
	return ts.Time.UTC(), nil
}

func (s *Signer) make(ctx context.Context, b Bundle, r Request) (Bundle, error) {
	at := s.cfg.Clock()
	key, cert, err := s.credential(r.Identity, at)
	if err != nil {
		return Bundle{}, err
	}
	sum := sha256.Sum256(b.PAE)
	sig, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return Bundle{}, fmt.Errorf("signing statement %s: %w", b.Statement, err)
	}
	verifier := &rekor.Verifier{KeyDetails: pcommon.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256}
	material := &pbundle.VerificationMaterial{}
	pub := public(key.Public())
	if cert != nil {
		c := &pcommon.X509Certificate{RawBytes: cert.Raw}
		verifier.Verifier = &rekor.Verifier_X509Certificate{X509Certificate: c}
		material.Content = &pbundle.VerificationMaterial_Certificate{Certificate: c}
	} else {
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return Bundle{}, fmt.Errorf("encoding public key: %w", err)
		}
		verifier.Verifier = &rekor.Verifier_PublicKey{PublicKey: &rekor.PublicKey{RawBytes: der}}
		material.Content = &pbundle.VerificationMaterial_PublicKey{PublicKey: &pcommon.PublicKeyIdentifier{Hint: pub.Hint}}
	}
	stamp, err := s.cfg.Keyring.stamp(sig, at)
	if err != nil {
		return Bundle{}, err
	}
	material.TimestampVerificationData = &pbundle.TimestampVerificationData{
		Rfc3161Timestamps: []*pcommon.RFC3161SignedTimestamp{{SignedTimestamp: stamp}},
	}
	entry, err := s.cfg.Log.Append(ctx, &rekor.HashedRekordRequestV002{Digest: sum[:], Signature: &rekor.Signature{Content: sig, Verifier: verifier}})
	if err != nil {
		return Bundle{}, fmt.Errorf("logging statement %s: %w", b.Statement, err)
	}
	material.TlogEntries = []*prekor.TransparencyLogEntry{entry}
	raw, err := protojson.Marshal(&pbundle.Bundle{
		MediaType: "application/vnd.dev.sigstore.bundle.v0.3+json", VerificationMaterial: material,
		Content: &pbundle.Bundle_DsseEnvelope{DsseEnvelope: &pdsse.Envelope{
			Payload: r.Statement, PayloadType: intoto.PayloadType, // No keyid: verifiers that compare it compute it in different ways.
			Signatures: []*pdsse.Signature{{Sig: sig}},
		}},
	})
	if err != nil {
		return Bundle{}, fmt.Errorf("encoding bundle: %w", err)
	}
	var compact bytes.Buffer // protojson spaces its output at random
	if err := json.Compact(&compact, raw); err != nil {
		return Bundle{}, fmt.Errorf("encoding bundle: %w", err)
	}
	b.JSON = compact.Bytes()
	b.Digest, b.LogIndex = hallmark.DigestOf(b.JSON), entry.GetLogIndex()
	b.SignedAt, err = timeOf(stamp)
	return b, err
}

// credential returns the key of an identity and, for workloads, a certificate
// with at least two minutes left.
func (s *Signer) credential(id Identity, at time.Time) (*ecdsa.PrivateKey, *x509.Certificate, error) {
	switch id {
	case Release:
		return s.cfg.Keyring.artifact, nil, nil
	case Policy:
		switch {
		case s.cfg.PolicyKey != nil:
			return s.cfg.PolicyKey.key, nil, nil
		case s.cfg.Keyring.policy == nil:
			return nil, nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindUnavailable, "this home holds no policy key: its administrators do"),
				"each signs with hallmark policy sign --key FILE")
		}
		return s.cfg.Keyring.policy, nil, nil
	case Observer, Builder, Wrapper, Gate, Server:
	default:
		return nil, nil, hallmark.Errorf(hallmark.KindInternal, "identity %d has no key", id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if l, ok := s.leaves[id]; ok && at.Add(2*time.Minute).Before(l.cert.NotAfter) && at.After(l.cert.NotBefore) {
		return l.key, l.cert, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generating a signing key: %w", err)
	}
	cert, err := s.cfg.Keyring.issue(s.san(id), key.Public(), at)
	if err != nil {
		return nil, nil, err
	}
	s.leaves[id] = leaf{key: key, cert: cert}
	return key, cert, nil
}
