// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/digitorus/timestamp"
	pbundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	pcommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	pdsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	prekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	rekor "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// insider signs whatever he likes with a key file of the throwaway home, has it
// time-stamped and, where log is set, logged. The real signer signs none of it:
// he is a signer with a fault, or a thief.
type insider struct {
	home string
	key  string // "artifact" or "policy"
	typ  string // payload type; empty means in-toto's
	log  bool
}

func (i insider) sign(ctx context.Context, payload []byte) (line []byte, err error) {
	key, err := i.private(i.key)
	if err != nil {
		return nil, err
	}
	if i.typ == "" {
		i.typ = intoto.PayloadType
	}
	sum := sha256.Sum256(intoto.PAE(i.typ, payload))
	sig, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	stamp, err := i.stamp(sig)
	if err != nil {
		return nil, err
	}
	hint, err := verify.HintOf(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	material := &pbundle.VerificationMaterial{
		Content: &pbundle.VerificationMaterial_PublicKey{PublicKey: &pcommon.PublicKeyIdentifier{Hint: hint}},
		TimestampVerificationData: &pbundle.TimestampVerificationData{
			Rfc3161Timestamps: []*pcommon.RFC3161SignedTimestamp{{SignedTimestamp: stamp}},
		},
	}
	if i.log {
		entry, err := i.append(ctx, &key.PublicKey, sum[:], sig)
		if err != nil {
			return nil, err
		}
		material.TlogEntries = append(material.TlogEntries, entry)
	}
	raw, err := protojson.Marshal(&pbundle.Bundle{
		MediaType: "application/vnd.dev.sigstore.bundle.v0.3+json", VerificationMaterial: material,
		Content: &pbundle.Bundle_DsseEnvelope{DsseEnvelope: &pdsse.Envelope{
			Payload: payload, PayloadType: i.typ, Signatures: []*pdsse.Signature{{Sig: sig}},
		}},
	})
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = json.Compact(&out, raw)
	return out.Bytes(), err
}

func (i insider) append(ctx context.Context, pub *ecdsa.PublicKey, sum, sig []byte) (e *prekor.TransparencyLogEntry, err error) {
	l, err := openLedger(ctx, i.home, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	return l.log.Append(ctx, &rekor.HashedRekordRequestV002{Digest: sum, Signature: &rekor.Signature{Content: sig, Verifier: &rekor.Verifier{
		KeyDetails: pcommon.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256,
		Verifier:   &rekor.Verifier_PublicKey{PublicKey: &rekor.PublicKey{RawBytes: der}},
	}}})
}

func (i insider) stamp(sig []byte) ([]byte, error) {
	key, err := i.private("tsa")
	if err != nil {
		return nil, err
	}
	der, err := i.pem("pki", "tsa")
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(sig)
	ts := &timestamp.Timestamp{
		HashAlgorithm: crypto.SHA256, HashedMessage: sum[:], Time: clock(), Policy: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 2}, AddTSACertificate: true,
	}
	return ts.CreateResponseWithOpts(cert, key, crypto.SHA256)
}

func (i insider) private(name string) (*ecdsa.PrivateKey, error) {
	der, err := i.pem("keys", name)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("key %s is not an ECDSA key", name)
	}
	return ec, nil
}

func (i insider) pem(dir, name string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(i.home, dir, name+".pem"))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s/%s.pem holds no PEM block", dir, name)
	}
	return block.Bytes, nil
}
