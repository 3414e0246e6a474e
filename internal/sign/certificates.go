// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sign

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"time"

	"github.com/digitorus/timestamp"
	ct "github.com/google/certificate-transparency-go"
	cttls "github.com/google/certificate-transparency-go/tls"
	ctx509 "github.com/google/certificate-transparency-go/x509"
	fulcio "github.com/sigstore/fulcio/pkg/certificate"
	prototrust "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	rnote "github.com/sigstore/rekor-tiles/v2/pkg/note"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore/pkg/signature"
	"golang.org/x/mod/sumdb/note"

	"github.com/hallmark-sc/hallmark"
)

// certificateLife is how long a signing certificate is valid: as in Fulcio.
const certificateLife = 10 * time.Minute

var (
	oidPoison       = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 3}
	oidSCTList      = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}
	oidEKU          = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidTimeStamping = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 8}
	oidTSAPolicy    = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 2}
)

// certificates loads or issues the certificates of the two authorities.
func (k *Keyring) certificates(f files) error {
	var err error
	if k.ca, err = f.authority(k.ca, "ca", k.domain, x509.ExtKeyUsageCodeSigning); err != nil {
		return err
	}
	if k.tsa, err = f.authority(k.tsa, "tsa", k.domain+" timestamps", x509.ExtKeyUsageTimeStamping); err != nil {
		return err
	}
	eku, err := asn1.Marshal([]asn1.ObjectIdentifier{oidTimeStamping})
	if err != nil {
		return err
	}
	leaf := &x509.Certificate{
		Subject:  pkix.Name{Organization: []string{k.domain}, CommonName: "timestamps"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtraExtensions: []pkix.Extension{{Id: oidEKU, Critical: true, Value: eku}},
	}
	k.tsaLeaf, err = f.certificate("tsa", leaf, 5, k.tsa.intermediate, k.tsaKey.Public(), k.tsa.key)
	return err
}

func (f files) authority(a authority, name, org string, use x509.ExtKeyUsage) (authority, error) {
	rootT := &x509.Certificate{
		Subject: pkix.Name{Organization: []string{org}, CommonName: name + " root"}, IsCA: true, BasicConstraintsValid: true,
		MaxPathLen: 1, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	var err error
	if a.root, err = f.certificate(name+"-root", rootT, 10, nil, a.rootKey.Public(), a.rootKey); err != nil {
		return a, err
	}
	interT := &x509.Certificate{
		Subject: pkix.Name{Organization: []string{org}, CommonName: name + " intermediate"}, IsCA: true, BasicConstraintsValid: true,
		MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, ExtKeyUsage: []x509.ExtKeyUsage{use},
	}
	interName := name + "-intermediate"
	a.intermediate, err = f.certificate(interName, interT, 10, a.root, a.key.Public(), a.rootKey)
	return a, err
}

// certificate loads a certificate or issues one for the given years. A loaded
// one must carry the key it belongs to.
func (f files) certificate(name string, t *x509.Certificate, years int, parent *x509.Certificate, pub crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	path := f.cert(name)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if !f.create {
			return nil, hallmark.Errorf(hallmark.KindNotFound, "certificate %s is missing", path)
		}
		if t.SerialNumber, err = serial(); err != nil {
			return nil, err
		}
		start := f.cfg.Clock().Add(-time.Minute)
		t.NotBefore, t.NotAfter = start, start.AddDate(years, 0, 0)
		if parent == nil {
			parent = t
		}
		der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, signer)
		if err != nil {
			return nil, fmt.Errorf("issuing certificate %s: %w", name, err)
		}
		if err := writeNew(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
			return nil, err
		}
		return x509.ParseCertificate(der)
	}
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading certificate: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "certificate %s is not a PEM certificate", path)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "parsing certificate %s: %w", path, err)
	}
	if own, ok := c.PublicKey.(*ecdsa.PublicKey); !ok || !own.Equal(pub) {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "certificate %s belongs to another key", path)
	}
	return c, nil
}

func serial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInternal, "drawing a serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// issue makes a 10-minute certificate for a workload identity, with an embedded
// SCT: a precertificate is signed first, as RFC 6962 §3.1 asks.
func (k *Keyring) issue(san string, pub crypto.PublicKey, at time.Time) (*x509.Certificate, error) {
	uri, err := url.Parse(san)
	if err != nil {
		return nil, fmt.Errorf("parsing identity %s: %w", san, err)
	}
	ext, err := fulcio.Extensions{Issuer: "https://" + k.domain}.Render()
	if err != nil {
		return nil, fmt.Errorf("rendering certificate extensions: %w", err)
	}
	sn, err := serial()
	if err != nil {
		return nil, err
	}
	t := x509.Certificate{
		SerialNumber: sn, NotBefore: at.Add(-time.Minute), NotAfter: at.Add(certificateLife), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}, URIs: []*url.URL{uri},
	}
	pre := t
	pre.ExtraExtensions = append(append([]pkix.Extension{}, ext...), pkix.Extension{Id: oidPoison, Critical: true, Value: asn1.NullBytes})
	preDER, err := x509.CreateCertificate(rand.Reader, &pre, k.ca.intermediate, pub, k.ca.key)
	if err != nil {
		return nil, fmt.Errorf("issuing precertificate: %w", err)
	}
	list, err := k.sct(preDER, at)
	if err != nil {
		return nil, err
	}
	t.ExtraExtensions = append(append([]pkix.Extension{}, ext...), pkix.Extension{Id: oidSCTList, Value: list})
	der, err := x509.CreateCertificate(rand.Reader, &t, k.ca.intermediate, pub, k.ca.key)
	if err != nil {
		return nil, fmt.Errorf("issuing certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// sct signs a precertificate and returns the SCT list extension's value.
func (k *Keyring) sct(preDER []byte, at time.Time) ([]byte, error) {
	pre, err := ctx509.ParseCertificate(preDER)
	if ctx509.IsFatal(err) {
		return nil, fmt.Errorf("parsing precertificate: %w", err)
	}
	issuer, err := ctx509.ParseCertificate(k.ca.intermediate.Raw)
	if ctx509.IsFatal(err) {
		return nil, fmt.Errorf("parsing issuer: %w", err)
	}
	ms := uint64(at.UnixMilli())
	leaf, err := ct.MerkleTreeLeafFromChain([]*ctx509.Certificate{pre, issuer}, ct.PrecertLogEntryType, ms)
	if err != nil {
		return nil, fmt.Errorf("assembling CT leaf: %w", err)
	}
	id, err := spkiSum(k.ct.Public())
	if err != nil {
		return nil, err
	}
	sct := ct.SignedCertificateTimestamp{SCTVersion: ct.V1, LogID: ct.LogID{KeyID: id}, Timestamp: ms}
	input, err := ct.SerializeSCTSignatureInput(sct, ct.LogEntry{Leaf: *leaf})
	if err != nil {
		return nil, fmt.Errorf("assembling SCT: %w", err)
	}
	sig, err := cttls.CreateSignature(*k.ct, cttls.SHA256, input)
	if err != nil {
		return nil, fmt.Errorf("signing SCT: %w", err)
	}
	sct.Signature = ct.DigitallySigned(sig)
	one, err := cttls.Marshal(sct)
	if err != nil {
		return nil, fmt.Errorf("encoding SCT: %w", err)
	}
	list, err := cttls.Marshal(ctx509.SignedCertificateTimestampList{SCTList: []ctx509.SerializedSCT{{Val: one}}})
	if err != nil {
		return nil, fmt.Errorf("encoding SCT list: %w", err)
	}
	return asn1.Marshal(list)
}

func spkiSum(pub crypto.PublicKey) ([sha256.Size]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("encoding public key: %w", err)
	}
	return sha256.Sum256(der), nil
}

// stamp makes an RFC 3161 response over a signature.
func (k *Keyring) stamp(sig []byte, at time.Time) ([]byte, error) {
	sum := sha256.Sum256(sig)
	ts := &timestamp.Timestamp{
		HashAlgorithm: crypto.SHA256, HashedMessage: sum[:], Time: at.UTC(), Policy: oidTSAPolicy,
		Accuracy: time.Second, AddTSACertificate: true,
	}
	resp, err := ts.CreateResponseWithOpts(k.tsaLeaf, k.tsaKey, crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("making timestamp: %w", err)
	}
	return resp, nil
}

// TrustedRoot returns trusted_root.json for this keyring and the log of the
// given origin. The bytes depend on keys and certificates only.
func (k *Keyring) TrustedRoot(origin string, logID []byte) ([]byte, error) {
	ctID, err := spkiSum(k.ct.Public())
	if err != nil {
		return nil, err
	}
	start := k.ca.root.NotBefore
	tr, err := root.NewTrustedRoot(root.TrustedRootMediaType01,
		[]root.CertificateAuthority{&root.FulcioCertificateAuthority{
			Root: k.ca.root, Intermediates: []*x509.Certificate{k.ca.intermediate}, ValidityPeriodStart: start, URI: "https://ca." + k.domain,
		}},
		map[string]*root.TransparencyLog{hex.EncodeToString(ctID[:]): {
			BaseURL: "https://ct." + k.domain, ID: ctID[:], ValidityPeriodStart: start, HashFunc: crypto.SHA256,
			PublicKey: k.ct.Public(), SignatureHashFunc: crypto.SHA256,
		}},
		[]root.TimestampingAuthority{&root.SigstoreTimestampingAuthority{
			Root: k.tsa.root, Intermediates: []*x509.Certificate{k.tsa.intermediate}, Leaf: k.tsaLeaf, ValidityPeriodStart: start, URI: "https://tsa." + k.domain,
		}},
		map[string]*root.TransparencyLog{hex.EncodeToString(logID): {
			BaseURL: "https://" + origin, ID: logID, ValidityPeriodStart: start, HashFunc: crypto.SHA256,
			PublicKey: k.checkpoint.Public().(ed25519.PublicKey), SignatureHashFunc: crypto.SHA512,
		}},
	)
	if err != nil {
		return nil, fmt.Errorf("assembling trusted root: %w", err)
	}
	raw, err := tr.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("encoding trusted root: %w", err)
	}
	// Its white space differs from one build of us to the next, and an init that
	// goes on under another build must find the bytes that it signed.
	var b bytes.Buffer
	err = json.Compact(&b, raw)
	return b.Bytes(), err
}

// SigningConfig returns signing_config.v0.2.json: where a stock client would ask
// for certificates, timestamps and log entries of this home.
func (k *Keyring) SigningConfig(origin string) ([]byte, error) {
	start := k.ca.root.NotBefore
	service := func(url string, version uint32) root.Service {
		return root.Service{URL: url, MajorAPIVersion: version, ValidityPeriodStart: start, Operator: k.domain}
	}
	any1 := root.ServiceConfiguration{Selector: prototrust.ServiceSelector_ANY}
	c, err := root.NewSigningConfig(root.SigningConfigMediaType02,
		[]root.Service{service("https://ca."+k.domain, 1)}, nil,
		[]root.Service{service("https://"+origin, 2)}, any1,
		[]root.Service{service("https://tsa."+k.domain+"/api/v1/timestamp", 1)}, any1)
	if err != nil {
		return nil, fmt.Errorf("assembling signing configuration: %w", err)
	}
	return c.MarshalJSON()
}

// CheckpointSigner signs checkpoints of a log as C2SP signed notes.
func (k *Keyring) CheckpointSigner(origin string) (note.Signer, error) {
	s, err := signature.LoadED25519Signer(k.checkpoint)
	if err != nil {
		return nil, fmt.Errorf("loading checkpoint key: %w", err)
	}
	return rnote.NewNoteSigner(context.Background(), origin, s)
}
