// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"

	pbundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	prekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

const (
	mediaType = "application/vnd.dev.sigstore.bundle.v0.3+json"

	// MaxBundle bounds a bundle: base64 of the largest statement and room for
	// the verification material.
	MaxBundle = intoto.MaxSize/3*4 + 1<<20
)

// opened is a bundle whose shape is known and whose content nobody has verified.
type opened struct {
	entity    *bundle.Bundle
	payload   []byte
	pae       []byte
	signature []byte
	entry     *prekor.TransparencyLogEntry
	leaf      *x509.Certificate // nil for a key bundle
	hint      string            // of a key bundle
}

// openBundle accepts one shape only: bundle v0.3, one DSSE signature, a leaf
// certificate or a key hint, one hashedrekord 0.0.2 entry with proof, and one or
// more timestamps.
func openBundle(raw []byte) (*opened, error) {
	if len(raw) > MaxBundle {
		return nil, denied(hallmark.CodeEvidenceMalformed, "bundle of %d bytes: the limit is %d", len(raw), MaxBundle)
	}
	if err := intoto.CheckJSON(raw, 32); err != nil {
		return nil, denied(hallmark.CodeEvidenceMalformed, "reading bundle: %w", err)
	}
	pb := new(pbundle.Bundle)
	if err := protojson.Unmarshal(raw, pb); err != nil {
		return nil, denied(hallmark.CodeEvidenceMalformed, "reading bundle: %w", err)
	}
	if pb.GetMediaType() != mediaType {
		return nil, denied(hallmark.CodeEvidenceMalformed, "bundle media type %.100q: want %s", pb.GetMediaType(), mediaType)
	}
	o := &opened{}
	if err := o.envelope(pb); err != nil {
		return nil, err
	}
	if err := o.material(pb.GetVerificationMaterial()); err != nil {
		return nil, err
	}
	entity, err := bundle.NewBundle(pb)
	if err != nil {
		return nil, denied(hallmark.CodeEvidenceMalformed, "reading bundle: %w", err)
	}
	o.entity = entity
	return o, nil
}

func (o *opened) envelope(pb *pbundle.Bundle) error {
	env := pb.GetDsseEnvelope()
	if env == nil {
		return denied(hallmark.CodeEvidenceMalformed, "bundle without DSSE envelope")
	}
	if env.GetPayloadType() != intoto.PayloadType {
		return denied(hallmark.CodePayloadType, "payload type %.100q: want %s", env.GetPayloadType(), intoto.PayloadType)
	}
	if n := len(env.GetSignatures()); n != 1 {
		return denied(hallmark.CodeEvidenceMalformed, "bundle with %d signatures: want exactly one", n)
	}
	if len(env.GetPayload()) > intoto.MaxSize {
		return denied(hallmark.CodeEvidenceMalformed, "payload of %d bytes: the limit is %d", len(env.GetPayload()), intoto.MaxSize)
	}
	o.payload = env.GetPayload()
	o.signature = env.GetSignatures()[0].GetSig()
	o.pae = intoto.PAE(env.GetPayloadType(), o.payload)
	return nil
}

func (o *opened) material(vm *pbundle.VerificationMaterial) error {
	switch c := vm.GetContent().(type) {
	case *pbundle.VerificationMaterial_Certificate:
		leaf, err := x509.ParseCertificate(c.Certificate.GetRawBytes())
		if err != nil {
			return denied(hallmark.CodeSignatureInvalid, "reading certificate of bundle: %w", err)
		}
		o.leaf = leaf
	case *pbundle.VerificationMaterial_PublicKey:
		if o.hint = c.PublicKey.GetHint(); o.hint == "" {
			return denied(hallmark.CodeSignerUnknown, "bundle names no key and has no certificate")
		}
	default:
		return denied(hallmark.CodeEvidenceMalformed, "bundle without a single certificate or key hint")
	}
	if len(vm.GetTlogEntries()) != 1 {
		return denied(hallmark.CodeLogProofInvalid, "bundle with %d log entries: want exactly one", len(vm.GetTlogEntries()))
	}
	o.entry = vm.GetTlogEntries()[0]
	if kv := o.entry.GetKindVersion(); kv.GetKind() != "hashedrekord" || kv.GetVersion() != "0.0.2" {
		return denied(hallmark.CodeLogProofInvalid, "log entry of kind %.40q %.40q: want hashedrekord 0.0.2", kv.GetKind(), kv.GetVersion())
	}
	switch n := len(vm.GetTimestampVerificationData().GetRfc3161Timestamps()); {
	case n == 0:
		return denied(hallmark.CodeTimestampInvalid, "bundle without a signed timestamp")
	case n > 4:
		return denied(hallmark.CodeEvidenceMalformed, "bundle with %d signed timestamps: the limit is 4", n)
	}
	return nil
}

// checkSignature verifies the one DSSE signature under key.
func (o *opened) checkSignature(key *ecdsa.PublicKey) error {
	sum := sha256.Sum256(o.pae)
	if key == nil || !ecdsa.VerifyASN1(key, sum[:], o.signature) {
		return denied(hallmark.CodeSignatureInvalid, "the signature does not fit the payload and the signer's key")
	}
	return nil
}

// certificateKey returns the key of a leaf certificate, ECDSA P-256 only.
func certificateKey(c *x509.Certificate) *ecdsa.PublicKey {
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil
	}
	return key
}

// certificateIdentity reads the one URI name and the issuer extension of a leaf
// certificate, untrusted until the chain is verified. ok is false unless each
// occurs exactly once.
func certificateIdentity(c *x509.Certificate) (id Certificate, ok bool) {
	if len(c.URIs) != 1 || len(c.DNSNames)+len(c.EmailAddresses)+len(c.IPAddresses) != 0 {
		return id, false
	}
	id.SAN = c.URIs[0].String()
	v2 := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 8}
	v1 := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}
	for _, e := range c.Extensions {
		issuer := string(e.Value)
		switch {
		case e.Id.Equal(v2):
			var s string
			rest, err := asn1.Unmarshal(e.Value, &s)
			if err != nil || len(rest) != 0 {
				return id, false
			}
			issuer = s
		case !e.Id.Equal(v1):
			continue
		}
		if id.Issuer != "" && id.Issuer != issuer {
			return id, false
		}
		id.Issuer = issuer
	}
	return id, id.Issuer != ""
}

// sameRoot reports whether what the proof repeats agrees with the checkpoint.
func sameRoot(p *prekor.InclusionProof, size uint64, root []byte) bool {
	given := p.GetTreeSize()
	if given < 0 {
		return false
	}
	return uint64(given) == size && bytes.Equal(p.GetRootHash(), root)
}

// denied makes the error of a refused bundle. A code of the cause gives way.
func denied(code hallmark.Code, format string, args ...any) error {
	return hallmark.Coded(hallmark.KindDenied, code, format, args...)
}
