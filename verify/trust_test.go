// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package verify_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/cyberphone/json-canonicalization/go/src/webpki.org/jsoncanonicalizer"
	"github.com/digitorus/timestamp"
	ct "github.com/google/certificate-transparency-go"
	cttls "github.com/google/certificate-transparency-go/tls"
	ctx509 "github.com/google/certificate-transparency-go/x509"
	fulcio "github.com/sigstore/fulcio/pkg/certificate"
	pbundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	pcommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	pdsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	prekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	rpb "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"
	rnote "github.com/sigstore/rekor-tiles/v2/pkg/note"
	"github.com/sigstore/rekor-tiles/v2/pkg/types/hashedrekord"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore/pkg/signature"
	flog "github.com/transparency-dev/formats/log"
	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

const (
	trustDomain = "0badcafe.hallmark.internal"
	logOrigin   = "log." + trustDomain
	issuerURL   = "https://" + trustDomain
	observerSAN = "spiffe://" + trustDomain + "/observer"
	builderSAN  = "spiffe://" + trustDomain + "/builder/local"
	verifierID  = issuerURL + "/verifier"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newKey() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

func serial() *big.Int { return must(rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))) }

func pemOf(pub any) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(pub))}))
}

func keyOf(k *ecdsa.PrivateKey) verify.Key {
	return verify.Key{Hint: must(verify.HintOf(&k.PublicKey)), PublicKey: pemOf(&k.PublicKey)}
}

func issue(tmpl, parent *x509.Certificate, pub crypto.PublicKey, signer crypto.Signer) *x509.Certificate {
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, tmpl, parent, pub, signer))))
}

// trust is a whole throwaway trust: CA, CT log, TSA, transparency log, keys.
type trust struct {
	caRoot, ca       *x509.Certificate
	caKey, ctKey     *ecdsa.PrivateKey
	tsaRoot, tsaCA   *x509.Certificate
	tsa              *x509.Certificate
	tsaKey           *ecdsa.PrivateKey
	release, pol     *ecdsa.PrivateKey
	pol2             *ecdsa.PrivateKey
	logKey           ed25519.PrivateKey
	logID            []byte
	logSigner        note.Signer
	witness          note.Signer // cosigns when cosign is set
	witnessKey       string
	cosign           bool
	mu               sync.Mutex
	leaves           [][]byte
	trustedRoot      []byte
	roots            verify.Roots
	started          time.Time
	registry         *signature.AlgorithmRegistryConfig
	registryInitOnce sync.Once
}

func caPair(org string, eku x509.ExtKeyUsage) (root, inter *x509.Certificate, key *ecdsa.PrivateKey) {
	rootKey, from := newKey(), time.Now().Add(-24*time.Hour)
	rt := &x509.Certificate{SerialNumber: serial(), Subject: pkix.Name{Organization: []string{org}, CommonName: org + " root"}, NotBefore: from, NotAfter: from.AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: 1, KeyUsage: x509.KeyUsageCertSign}
	root = issue(rt, rt, rootKey.Public(), rootKey)
	key = newKey()
	it := &x509.Certificate{SerialNumber: serial(), Subject: pkix.Name{Organization: []string{org}, CommonName: org + " issuing"}, NotBefore: from, NotAfter: from.AddDate(5, 0, 0),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{eku}}
	return root, issue(it, root, key.Public(), rootKey), key
}

func newTrust() *trust {
	t := &trust{started: time.Now(), ctKey: newKey(), tsaKey: newKey(), release: newKey(), pol: newKey(), pol2: newKey()}
	t.caRoot, t.ca, t.caKey = caPair("Test CA", x509.ExtKeyUsageCodeSigning)
	var tsaCAKey *ecdsa.PrivateKey
	t.tsaRoot, t.tsaCA, tsaCAKey = caPair("Test TSA", x509.ExtKeyUsageTimeStamping)
	eku := must(asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 8}}))
	t.tsa = issue(&x509.Certificate{SerialNumber: serial(), Subject: pkix.Name{Organization: []string{"Test TSA"}, CommonName: "tsa"}, NotBefore: t.tsaCA.NotBefore, NotAfter: t.tsaCA.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: true, Value: eku}}}, t.tsaCA, t.tsaKey.Public(), tsaCAKey)
	_, t.logKey, _ = ed25519.GenerateKey(rand.Reader)
	t.logSigner = must(rnote.NewNoteSigner(context.Background(), logOrigin, must(signature.LoadED25519Signer(t.logKey))))
	_, t.logID, _ = rnote.KeyHash(logOrigin, t.logKey.Public())
	skey, vkey, err := note.GenerateKey(rand.Reader, "witness.example")
	if err != nil {
		panic(err)
	}
	t.witness, t.witnessKey = must(fnote.NewSignerForCosignatureV1(skey)), vkey
	t.trustedRoot = t.makeTrustedRoot()
	t.roots = t.makeRoots()
	return t
}

func (t *trust) makeTrustedRoot() []byte {
	from := t.started.Add(-24 * time.Hour)
	ctID := sha256.Sum256(must(x509.MarshalPKIXPublicKey(t.ctKey.Public())))
	tr := must(root.NewTrustedRoot(root.TrustedRootMediaType01,
		[]root.CertificateAuthority{&root.FulcioCertificateAuthority{Root: t.caRoot, Intermediates: []*x509.Certificate{t.ca}, ValidityPeriodStart: from, URI: "https://ca." + trustDomain}},
		map[string]*root.TransparencyLog{hex.EncodeToString(ctID[:]): {BaseURL: "https://ct." + trustDomain, ID: ctID[:], ValidityPeriodStart: from, HashFunc: crypto.SHA256, PublicKey: t.ctKey.Public(), SignatureHashFunc: crypto.SHA256}},
		[]root.TimestampingAuthority{&root.SigstoreTimestampingAuthority{Root: t.tsaRoot, Intermediates: []*x509.Certificate{t.tsaCA}, Leaf: t.tsa, ValidityPeriodStart: from, URI: "https://tsa." + trustDomain}},
		map[string]*root.TransparencyLog{hex.EncodeToString(t.logID): {BaseURL: "https://" + logOrigin, ID: t.logID, ValidityPeriodStart: from, HashFunc: crypto.SHA256, PublicKey: t.logKey.Public(), SignatureHashFunc: crypto.SHA512}}))
	return must(tr.MarshalJSON())
}

func (t *trust) makeRoots() verify.Roots {
	release, policy := keyOf(t.release), keyOf(t.pol)
	return verify.Roots{APIVersion: "hallmark/v1", Kind: "Roots", TrustDomain: trustDomain, Mode: verify.ModeSingleOperator, Administrators: []string{"ada"},
		Policy: verify.PolicyRoots{Keys: []verify.Key{policy}, Threshold: 1, MinimumVersion: 1},
		Signers: []verify.Signer{
			{Name: "observer", Certificate: &verify.Certificate{Issuer: issuerURL, SAN: observerSAN}, PredicateTypes: []string{intoto.PredicateSource, intoto.PredicateTestResult, intoto.PredicateVulns}},
			{Name: "builder", Certificate: &verify.Certificate{Issuer: issuerURL, SAN: builderSAN}, PredicateTypes: []string{intoto.PredicateProvenance}, BuilderIDs: []string{intoto.BuilderLocal}, MaxLevel: "SLSA_BUILD_LEVEL_1"},
			{Name: "release", Key: &release, PredicateTypes: []string{intoto.PredicateVSA}, VerifierIDs: []string{verifierID}},
			{Name: "policy", Key: &policy, PredicateTypes: []string{intoto.PredicatePolicy, intoto.PredicateGenesis}},
		},
		Logs: []verify.Log{{Origin: logOrigin, PublicKey: pemOf(t.logKey.Public())}}, TrustedRoot: hallmark.DigestOf(t.trustedRoot)}
}

// verifier opens a Verifier over the trust, after edit changed its roots.
func (t *trust) verifier(tb testing.TB, memory verify.Memory, edit func(*verify.Roots)) *verify.Verifier {
	tb.Helper()
	r := t.makeRoots()
	if edit != nil {
		edit(&r)
	}
	b, err := r.Encode()
	if err != nil {
		tb.Fatal(err)
	}
	v, err := verify.New(verify.Config{Roots: b, Pin: hallmark.DigestOf(b), TrustedRoot: t.trustedRoot, Memory: memory})
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

// certificate issues a 10-minute certificate with an embedded SCT.
func (t *trust) certificate(key *ecdsa.PrivateKey, san string, from time.Time, ctKey *ecdsa.PrivateKey) *x509.Certificate {
	ext := must(fulcio.Extensions{Issuer: issuerURL}.Render())
	base := x509.Certificate{SerialNumber: serial(), NotBefore: from, NotAfter: from.Add(10 * time.Minute), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}, URIs: []*url.URL{must(url.Parse(san))}}
	pre := base
	pre.ExtraExtensions = append(append([]pkix.Extension{}, ext...), pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 3}, Critical: true, Value: asn1.NullBytes})
	preCert := issue(&pre, t.ca, key.Public(), t.caKey)
	at := uint64(from.Add(time.Second).UnixMilli())
	leaf := must(ct.MerkleTreeLeafFromChain([]*ctx509.Certificate{must(ctx509.ParseCertificate(preCert.Raw)), must(ctx509.ParseCertificate(t.ca.Raw))}, ct.PrecertLogEntryType, at))
	sct := ct.SignedCertificateTimestamp{SCTVersion: ct.V1, LogID: ct.LogID{KeyID: sha256.Sum256(must(x509.MarshalPKIXPublicKey(t.ctKey.Public())))}, Timestamp: at}
	in := must(ct.SerializeSCTSignatureInput(sct, ct.LogEntry{Leaf: *leaf}))
	sct.Signature = ct.DigitallySigned(must(cttls.CreateSignature(*ctKey, cttls.SHA256, in)))
	list := ctx509.SignedCertificateTimestampList{SCTList: []ctx509.SerializedSCT{{Val: must(cttls.Marshal(sct))}}}
	final := base
	final.ExtraExtensions = append(append([]pkix.Extension{}, ext...), pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}, Value: must(asn1.Marshal(must(cttls.Marshal(list))))})
	return issue(&final, t.ca, key.Public(), t.caKey)
}

// order says what to sign and how; the zero fields are the honest choice.
type order struct {
	key         *ecdsa.PrivateKey // key bundle when set, certificate otherwise
	san         string
	payload     []byte
	payloadType string
	stampedAt   time.Time
	certFrom    time.Time
	ctKey       *ecdsa.PrivateKey
	skipLog     bool
}

func (t *trust) stamp(sig []byte, at time.Time) []byte {
	sum := sha256.Sum256(sig)
	ts := &timestamp.Timestamp{HashAlgorithm: crypto.SHA256, HashedMessage: sum[:], Time: at.UTC(), Policy: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 2}, Accuracy: time.Second, AddTSACertificate: true}
	return must(ts.CreateResponseWithOpts(t.tsa, t.tsaKey, crypto.SHA256))
}

func (t *trust) bundle(o order) *pbundle.Bundle {
	if o.payloadType == "" {
		o.payloadType = intoto.PayloadType
	}
	if o.certFrom.IsZero() {
		o.certFrom = time.Now().Add(-time.Minute)
	}
	if o.stampedAt.IsZero() {
		o.stampedAt = time.Now()
	}
	if o.ctKey == nil {
		o.ctKey = t.ctKey
	}
	vm := &pbundle.VerificationMaterial{}
	v := &rpb.Verifier{KeyDetails: pcommon.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256}
	key := o.key
	if key == nil {
		key = newKey()
		cert := t.certificate(key, o.san, o.certFrom, o.ctKey)
		v.Verifier = &rpb.Verifier_X509Certificate{X509Certificate: &pcommon.X509Certificate{RawBytes: cert.Raw}}
		vm.Content = &pbundle.VerificationMaterial_Certificate{Certificate: &pcommon.X509Certificate{RawBytes: cert.Raw}}
	} else {
		v.Verifier = &rpb.Verifier_PublicKey{PublicKey: &rpb.PublicKey{RawBytes: must(x509.MarshalPKIXPublicKey(key.Public()))}}
		vm.Content = &pbundle.VerificationMaterial_PublicKey{PublicKey: &pcommon.PublicKeyIdentifier{Hint: must(verify.HintOf(&key.PublicKey))}}
	}
	sum := sha256.Sum256(intoto.PAE(o.payloadType, o.payload))
	sig := must(key.Sign(rand.Reader, sum[:], crypto.SHA256))
	vm.TimestampVerificationData = &pbundle.TimestampVerificationData{Rfc3161Timestamps: []*pcommon.RFC3161SignedTimestamp{{SignedTimestamp: t.stamp(sig, o.stampedAt)}}}
	if !o.skipLog {
		vm.TlogEntries = []*prekor.TransparencyLogEntry{t.log(sum[:], sig, v)}
	}
	return &pbundle.Bundle{MediaType: "application/vnd.dev.sigstore.bundle.v0.3+json", VerificationMaterial: vm,
		Content: &pbundle.Bundle_DsseEnvelope{DsseEnvelope: &pdsse.Envelope{Payload: o.payload, PayloadType: o.payloadType, Signatures: []*pdsse.Signature{{Sig: sig}}}}}
}

func (t *trust) sign(o order) []byte { return must(protojson.Marshal(t.bundle(o))) }

// log appends an entry to the log in memory and proves it.
func (t *trust) log(digest, sig []byte, v *rpb.Verifier) *prekor.TransparencyLogEntry {
	t.registryInitOnce.Do(func() {
		t.registry = must(signature.NewAlgorithmRegistryConfig([]pcommon.PublicKeyDetails{pcommon.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256}))
	})
	e := must(hashedrekord.ToLogEntry(&rpb.HashedRekordRequestV002{Digest: digest, Signature: &rpb.Signature{Content: sig, Verifier: v}}, t.registry))
	body := must(jsoncanonicalizer.Transform(must(protojson.Marshal(e))))
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leaves = append(t.leaves, leafHash(body))
	size, index := len(t.leaves), len(t.leaves)-1
	rootHash := treeHash(t.leaves)
	return &prekor.TransparencyLogEntry{LogIndex: int64(index), LogId: &pcommon.LogId{KeyId: t.logID}, KindVersion: &prekor.KindVersion{Kind: e.Kind, Version: e.ApiVersion}, CanonicalizedBody: body,
		InclusionProof: &prekor.InclusionProof{LogIndex: int64(index), RootHash: rootHash, TreeSize: int64(size), Hashes: treePath(index, t.leaves),
			Checkpoint: &prekor.Checkpoint{Envelope: t.checkpoint(uint64(size), rootHash)}}}
}

func (t *trust) checkpoint(size uint64, rootHash []byte) string {
	signers := []note.Signer{t.logSigner}
	if t.cosign {
		signers = append(signers, t.witness)
	}
	cp := flog.Checkpoint{Origin: logOrigin, Size: size, Hash: rootHash}
	return string(must(note.Sign(&note.Note{Text: string(cp.Marshal())}, signers...)))
}

// The RFC 6962 tree, written from its definition.
func leafHash(b []byte) []byte { s := sha256.Sum256(append([]byte{0}, b...)); return s[:] }

func split(n int) int {
	k := 1
	for k*2 < n {
		k *= 2
	}
	return k
}

func treeHash(l [][]byte) []byte {
	if len(l) == 1 {
		return l[0]
	}
	k := split(len(l))
	s := sha256.Sum256(bytes.Join([][]byte{{1}, treeHash(l[:k]), treeHash(l[k:])}, nil))
	return s[:]
}

func treePath(m int, l [][]byte) [][]byte {
	if len(l) == 1 {
		return nil
	}
	if k := split(len(l)); m < k {
		return append(treePath(m, l[:k]), treeHash(l[k:]))
	} else {
		return append(treePath(m-k, l[k:]), treeHash(l[:k]))
	}
}
