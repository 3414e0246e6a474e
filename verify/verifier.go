// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"encoding/hex"
	"errors"
	"net/url"
	"slices"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"
	sigverify "github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/signature"
	"golang.org/x/mod/sumdb/note"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/tlog"
)

// Config is what a Verifier trusts.
type Config struct {
	Roots       []byte          // roots.json
	Pin         hallmark.Digest // the roots digest that the caller trusts; required
	TrustedRoot []byte          // trusted_root.json; its digest must be the one in Roots
	Memory      Memory          // optional: what was seen before
}

// Verifier verifies bundles under one set of pinned roots. It is safe for
// concurrent use.
type Verifier struct {
	roots       *Roots
	rootsDigest hallmark.Digest
	trusted     hallmark.Digest
	memory      Memory
	witnesses   tlog.Policy
	logs        map[string]trustedLog // by origin
	byHint      map[string]*signer
	byIdentity  map[Certificate]*signer
	policyHints map[string]bool
	certificate *sigverify.Verifier
	key         *sigverify.Verifier
}

type trustedLog struct {
	verifier note.Verifier
	id       []byte
}

// signer is an entry of the roots, ready for use.
type signer struct {
	Signer
	key    *ecdsa.PublicKey // nil for a certificate identity
	policy sigverify.PolicyBuilder
}

// New builds a Verifier. Roots whose digest is not the pin are refused with
// KindUnpinned, whatever they say.
func New(cfg Config) (*Verifier, error) {
	roots, digest, err := pinned(cfg)
	if err != nil {
		return nil, err
	}
	v := &Verifier{roots: roots, rootsDigest: digest, trusted: roots.TrustedRoot, memory: cfg.Memory,
		logs: map[string]trustedLog{}, byHint: map[string]*signer{}, byIdentity: map[Certificate]*signer{}, policyHints: map[string]bool{}}
	if v.witnesses, err = tlog.ParsePolicy(roots.WitnessPolicy); err != nil {
		return nil, err
	}
	trusted, err := root.NewTrustedRootFromJSON(cfg.TrustedRoot)
	if err != nil {
		return nil, rootsError("reading trusted root: %w", err)
	}
	if err := v.addLogs(trusted); err != nil {
		return nil, err
	}
	keys, err := v.addSigners()
	if err != nil {
		return nil, err
	}
	material := root.TrustedMaterialCollection{trusted, keys}
	v.certificate, err = sigverify.NewVerifier(material, sigverify.WithSignedCertificateTimestamps(1),
		sigverify.WithTransparencyLog(1), sigverify.WithSignedTimestamps(1), sigverify.WithoutStatementPredicate())
	if err != nil {
		return nil, rootsError("configuring certificate verifier: %w", err)
	}
	v.key, err = sigverify.NewVerifier(material,
		sigverify.WithTransparencyLog(1), sigverify.WithSignedTimestamps(1), sigverify.WithoutStatementPredicate())
	if err != nil {
		return nil, rootsError("configuring key verifier: %w", err)
	}
	return v, nil
}

// pinned reads the roots and compares both pins before anything in them is used.
func pinned(cfg Config) (*Roots, hallmark.Digest, error) {
	if err := cfg.Pin.Check(); err != nil {
		return nil, "", unpinned("no pin for the trust roots was given")
	}
	roots, err := ParseRoots(cfg.Roots)
	if err != nil {
		if hallmark.DigestOf(cfg.Roots) != cfg.Pin {
			return nil, "", unpinned("the trust roots are not the pinned ones (%s): %w", cfg.Pin.Short(), err)
		}
		return nil, "", err
	}
	digest, err := roots.Digest()
	if err != nil {
		return nil, "", err
	}
	if digest != cfg.Pin {
		return nil, "", unpinned("trust roots %s: pinned are %s", digest.Short(), cfg.Pin.Short())
	}
	if got := hallmark.DigestOf(cfg.TrustedRoot); got != roots.TrustedRoot {
		return nil, "", unpinned("trusted_root.json %s: the pinned roots name %s", got.Short(), roots.TrustedRoot.Short())
	}
	return roots, digest, nil
}

func unpinned(format string, args ...any) error {
	return hallmark.WithHint(hallmark.Coded(hallmark.KindUnpinned, hallmark.CodeTrustRootUnpinned, format, args...),
		"give --roots the digest that hallmark init printed, received on another way than the evidence")
}

// addLogs keeps the logs of the roots, each of which must be in the trusted root
// under the same origin and key.
func (v *Verifier) addLogs(trusted *root.TrustedRoot) error {
	for _, l := range v.roots.Logs {
		key, err := l.Key()
		if err != nil {
			return err
		}
		nv, err := tlog.NewVerifier(l.Origin, key)
		if err != nil {
			return err
		}
		id, err := tlog.LogID(l.Origin, key)
		if err != nil {
			return err
		}
		instance, ok := trusted.RekorLogs()[hex.EncodeToString(id)]
		if !ok {
			return rootsError("log %s of the roots is not in trusted_root.json", l.Origin)
		}
		if u, err := url.Parse(instance.BaseURL); err != nil || u.Hostname() != l.Origin {
			return rootsError("log %s: trusted_root.json gives its key to %.100q", l.Origin, instance.BaseURL)
		}
		v.logs[l.Origin] = trustedLog{verifier: nv, id: id}
	}
	return nil
}

// addSigners indexes the signers and returns sigstore-go's view of their keys.
func (v *Verifier) addSigners() (root.TrustedMaterial, error) {
	keys := map[string]*root.ExpiringKey{}
	addKey := func(k Key) (*ecdsa.PublicKey, error) {
		pub, err := k.parse()
		if err != nil {
			return nil, err
		}
		sv, err := signature.LoadVerifier(pub, crypto.SHA256)
		if err != nil {
			return nil, rootsError("loading key %.60s: %w", k.Hint, err)
		}
		keys[k.Hint] = root.NewExpiringKey(sv, time.Time{}, time.Time{})
		return pub, nil
	}
	for _, s := range v.roots.Signers {
		entry := &signer{Signer: s}
		if s.Key != nil {
			pub, err := addKey(*s.Key)
			if err != nil {
				return nil, err
			}
			entry.key = pub
			entry.policy = sigverify.NewPolicy(sigverify.WithoutArtifactUnsafe(), sigverify.WithKey())
			v.byHint[s.Key.Hint] = entry
			continue
		}
		id, err := sigverify.NewShortCertificateIdentity(s.Certificate.Issuer, "", s.Certificate.SAN, "")
		if err != nil {
			return nil, rootsError("identity of signer %s: %w", s.Name, err)
		}
		entry.policy = sigverify.NewPolicy(sigverify.WithoutArtifactUnsafe(), sigverify.WithCertificateIdentity(id))
		v.byIdentity[*s.Certificate] = entry
	}
	for _, k := range v.roots.Policy.Keys {
		v.policyHints[k.Hint] = true
		if v.byHint[k.Hint] != nil {
			continue
		}
		// A further policy key needs no signer entry: it may sign policy only.
		pub, err := addKey(k)
		if err != nil {
			return nil, err
		}
		v.byHint[k.Hint] = &signer{Signer: Signer{Name: "policy", PredicateTypes: []string{intoto.PredicatePolicy}}, key: pub,
			policy: sigverify.NewPolicy(sigverify.WithoutArtifactUnsafe(), sigverify.WithKey())}
	}
	return root.NewTrustedPublicKeyMaterialFromMapping(keys), nil
}

// Roots returns a copy of the roots.
func (v *Verifier) Roots() Roots {
	b, err := v.roots.Encode()
	if err != nil {
		return Roots{}
	}
	r, err := ParseRoots(b)
	if err != nil {
		return Roots{}
	}
	return *r
}

// RootsDigest returns the digest of the roots, which is the pin.
func (v *Verifier) RootsDigest() hallmark.Digest { return v.rootsDigest }

// TrustedRootDigest returns the digest of trusted_root.json.
func (v *Verifier) TrustedRootDigest() hallmark.Digest { return v.trusted }

// Verify turns a bundle into a verified statement. Everything that it rests on
// is in the bundle and in the pinned roots.
func (v *Verifier) Verify(raw []byte) (Statement, error) {
	o, err := openBundle(raw)
	if err != nil {
		return Statement{}, err
	}
	who, err := v.signerOf(o)
	if err != nil {
		return Statement{}, err
	}
	key := who.key
	if o.leaf != nil {
		key = certificateKey(o.leaf)
	}
	if err := o.checkSignature(key); err != nil {
		return Statement{}, err
	}
	st, err := intoto.Parse(o.payload)
	if err != nil {
		return Statement{}, refusal(err, hallmark.CodeEvidenceMalformed)
	}
	cp, index, err := v.checkLog(o)
	if err != nil {
		return Statement{}, err
	}
	signedAt, err := v.finalWord(o, who)
	if err != nil {
		return Statement{}, err
	}
	s := Statement{payload: o.payload, predicate: st.PredicateType, digest: hallmark.DigestOf(o.pae), bundle: hallmark.DigestOf(raw),
		signer: who.Name, hint: o.hint, signedAt: signedAt, logIndex: index, checkpoint: cp}
	if err := v.authorize(st, who, &s); err != nil {
		return Statement{}, err
	}
	if err := v.remember(cp); err != nil {
		return Statement{}, err
	}
	s.valid = true
	return s, nil
}

// signerOf finds the roots' entry for the identity that the bundle names. What
// it names is proved later: the key by the signature, the certificate by
// sigstore-go.
func (v *Verifier) signerOf(o *opened) (*signer, error) {
	if o.leaf == nil {
		who, ok := v.byHint[o.hint]
		if !ok {
			return nil, denied(hallmark.CodeSignerUnknown, "key %.60q is not in the pinned roots", o.hint)
		}
		return who, nil
	}
	id, ok := certificateIdentity(o.leaf)
	if !ok {
		return nil, denied(hallmark.CodeSignerUnknown, "certificate without exactly one URI name and one issuer")
	}
	who, ok := v.byIdentity[id]
	if !ok {
		return nil, denied(hallmark.CodeSignerUnknown, "identity %.200q of issuer %.200q is not in the pinned roots", id.SAN, id.Issuer)
	}
	return who, nil
}

// checkLog verifies the checkpoint, the inclusion of the entry as it stands in
// the bundle, and the witness quorum. That the entry is this bundle's entry is
// sigstore-go's check: it rebuilds the leaf from the bundle.
func (v *Verifier) checkLog(o *opened) (tlog.Checkpoint, uint64, error) {
	p := o.entry.GetInclusionProof()
	if p == nil || o.entry.GetLogIndex() < 0 || p.GetLogIndex() != o.entry.GetLogIndex() {
		return tlog.Checkpoint{}, 0, denied(hallmark.CodeLogProofInvalid, "log entry without an inclusion proof for its index")
	}
	raw := []byte(p.GetCheckpoint().GetEnvelope())
	origin := tlog.Origin(raw)
	l, ok := v.logs[origin]
	if !ok {
		return tlog.Checkpoint{}, 0, denied(hallmark.CodeLogOriginUnknown, "log %.100q is not in the pinned roots", origin)
	}
	if !bytes.Equal(o.entry.GetLogId().GetKeyId(), l.id) {
		return tlog.Checkpoint{}, 0, denied(hallmark.CodeLogOriginUnknown, "log id of the entry is not that of log %s", origin)
	}
	cp, err := tlog.OpenCheckpoint(raw, l.verifier)
	if err != nil {
		return tlog.Checkpoint{}, 0, err
	}
	if !sameRoot(p, cp.Size, cp.Root) {
		return tlog.Checkpoint{}, 0, denied(hallmark.CodeLogProofInvalid, "inclusion proof and checkpoint of log %s speak of different trees", origin)
	}
	at := o.entry.GetLogIndex()
	if at < 0 {
		return tlog.Checkpoint{}, 0, denied(hallmark.CodeLogProofInvalid, "the log index of the entry is negative")
	}
	index := uint64(at)
	if err := tlog.VerifyInclusion(cp, index, tlog.LeafHash(o.entry.GetCanonicalizedBody()), p.GetHashes()); err != nil {
		return tlog.Checkpoint{}, 0, err
	}
	if err := tlog.CheckQuorum(raw, v.witnesses); err != nil {
		return tlog.Checkpoint{}, 0, err
	}
	return cp, index, nil
}

// finalWord lets sigstore-go verify the whole bundle and returns the trusted
// time. Only when it refuses are its stages asked one by one, for the reason.
func (v *Verifier) finalWord(o *opened, who *signer) (time.Time, error) {
	sv := v.key
	if o.leaf != nil {
		sv = v.certificate
	}
	res, err := sv.Verify(o.entity, who.policy)
	if err != nil {
		return time.Time{}, v.classify(sv, o, err)
	}
	// More than one authority may have stamped; the earliest time is the one
	// that all of them vouch for.
	var at time.Time
	for _, ts := range res.VerifiedTimestamps {
		if ts.Type == "TimestampAuthority" && (at.IsZero() || ts.Timestamp.Before(at)) {
			at = ts.Timestamp
		}
	}
	if at.IsZero() {
		return time.Time{}, denied(hallmark.CodeTimestampInvalid, "no trusted time in the bundle")
	}
	return at.UTC(), nil
}

func (v *Verifier) classify(sv *sigverify.Verifier, o *opened, cause error) error {
	if _, err := sv.VerifyTransparencyLogInclusion(o.entity); err != nil {
		return denied(hallmark.CodeLogProofInvalid, "the log entry is not that of this bundle: %w", err)
	}
	if _, err := sv.VerifyObserverTimestamps(o.entity, nil); err != nil {
		return denied(hallmark.CodeTimestampInvalid, "verifying signed timestamp: %w", err)
	}
	var mismatch *sigverify.ErrNoMatchingCertificateIdentity
	if errors.As(cause, &mismatch) {
		return denied(hallmark.CodeSignerUnknown, "verifying signer: %w", cause)
	}
	return denied(hallmark.CodeSignatureInvalid, "verifying bundle: %w", cause)
}

// authorize decides whether this signer may say this (SLSA V01, V04, V08).
func (v *Verifier) authorize(st intoto.Statement, who *signer, s *Statement) error {
	if !slices.Contains(who.PredicateTypes, st.PredicateType) {
		for _, other := range v.roots.Signers {
			if slices.Contains(other.PredicateTypes, st.PredicateType) {
				return denied(hallmark.CodeSignerNotAuthorized, "signer %s may not sign %.200s", who.Name, st.PredicateType)
			}
		}
		if st.PredicateType == intoto.PredicatePolicy {
			return denied(hallmark.CodeSignerNotAuthorized, "signer %s may not sign %.200s", who.Name, st.PredicateType)
		}
		return denied(hallmark.CodePredicateType, "predicate type %.200s: no signer of the pinned roots may sign it", st.PredicateType)
	}
	switch st.PredicateType {
	case intoto.PredicateProvenance:
		p, err := intoto.ParseProvenance(st)
		if err != nil {
			return refusal(err, hallmark.CodeEvidenceMalformed)
		}
		s.builderID, s.maxLevel = p.RunDetails.Builder.ID, who.MaxLevel
		if !slices.Contains(who.BuilderIDs, s.builderID) {
			return denied(hallmark.CodeBuilderMismatch, "signer %s may not speak for builder %.200q", who.Name, s.builderID)
		}
	case intoto.PredicateVSA:
		vsa, err := intoto.DecodePredicate[intoto.VSA](st)
		if err != nil {
			return refusal(err, hallmark.CodeEvidenceMalformed)
		}
		s.verifierID = vsa.Verifier.ID
		if !slices.Contains(who.VerifierIDs, s.verifierID) {
			return denied(hallmark.CodeSignerNotAuthorized, "signer %s may not speak for verifier %.200q", who.Name, s.verifierID)
		}
	}
	return nil
}

// refusal turns any error into a denial, with its own code where it has one.
func refusal(err error, code hallmark.Code) error {
	if c := hallmark.CodeOf(err); c != "" {
		code = c
	}
	return denied(code, "%w", err)
}
