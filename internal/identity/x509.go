// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/smallstep/pkcs7"

	"github.com/hallmark-sc/hallmark"
)

// X509Signer is whose a certificate is: one of an authority that is pinned, with
// exactly one name in it.
type X509Signer struct {
	Principals []string
	Name       string // email:ADDRESS or uri:URI, as the certificate's alternative name says it
	Authority  *x509.Certificate
}

// CheckCertificateName checks the name that a certificate must bear.
func CheckCertificateName(s string) error {
	kind, value, ok := strings.Cut(s, ":")
	if !ok || value == "" || kind != "email" && kind != "uri" || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }) || strings.ContainsAny(value, "*?") {
		return fmt.Errorf("%.80q: want email:ADDRESS or uri:URI, whole", s)
	}
	return nil
}

// ReadAuthority reads one certificate that may issue others, in PEM.
func ReadAuthority(text []byte) (*x509.Certificate, error) {
	b, rest := pem.Decode(text)
	if b == nil || b.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("want one certificate in PEM")
	}
	c, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate: %w", err)
	}
	if !c.IsCA || !c.BasicConstraintsValid || c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, errors.New("the certificate is of no authority: name who issues, not who signs")
	}
	if err := strongPublicKey(c.PublicKey); err != nil {
		return nil, err
	}
	return c, nil
}

// AuthorityPrint names an authority: the SHA-256 of its certificate.
func AuthorityPrint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// RegisteredX509 is what the policy registers for one principal.
func RegisteredX509(principal, name, authority string) (X509Signer, error) {
	if err := CheckCertificateName(name); err != nil {
		return X509Signer{}, fmt.Errorf("certificates of %s: %w", principal, err)
	}
	c, err := ReadAuthority([]byte(authority))
	if err != nil {
		return X509Signer{}, fmt.Errorf("authority of %s's certificates: %w", principal, err)
	}
	return X509Signer{Principals: []string{principal}, Name: name, Authority: c}, nil
}

// ParseX509Signers reads a file of signers by certificate: lines of
// PRINCIPAL[,PRINCIPAL…] email:ADDRESS sha256:HEX, where the last is the
// fingerprint of one of the authorities whose certificates the file holds.
func ParseX509Signers(name string, data []byte) ([]X509Signer, error) {
	bad := func(line int, err error) error {
		return hallmark.Errorf(hallmark.KindInvalid, "%s:%d: %w", name, line, err)
	}
	entries, blocks, err := readSigners(data, 2)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "%s: %w", name, err)
	}
	authorities, used := map[string]*x509.Certificate{}, map[string]bool{}
	lines := map[string]int{}
	for _, b := range blocks {
		c, err := ReadAuthority([]byte(b.text))
		if err != nil {
			return nil, bad(b.line, err)
		}
		print := AuthorityPrint(c)
		if authorities[print] != nil {
			return nil, bad(b.line, fmt.Errorf("authority %s stands twice", print))
		}
		authorities[print], lines[print] = c, b.line
	}
	var out []X509Signer
	seen := map[string]bool{}
	for _, e := range entries {
		if err := CheckCertificateName(e.fields[0]); err != nil {
			return nil, bad(e.line, err)
		}
		c := authorities[e.fields[1]]
		if c == nil {
			return nil, bad(e.line, fmt.Errorf("the file holds no authority %.80s", e.fields[1]))
		}
		if key := e.fields[0] + " " + e.fields[1]; seen[key] {
			return nil, bad(e.line, fmt.Errorf("%s stands twice", key))
		} else {
			seen[key], used[e.fields[1]] = true, true
		}
		out = append(out, X509Signer{Principals: e.principals, Name: e.fields[0], Authority: c})
	}
	for print, line := range lines {
		if !used[print] {
			return nil, bad(line, fmt.Errorf("no line names authority %s", print))
		}
	}
	return out, nil
}

func strongPublicKey(k any) error {
	switch pub := k.(type) {
	case *rsa.PublicKey:
		if pub.N.BitLen() < 2048 {
			return fmt.Errorf("%w: an RSA key of %d bits", ErrWeak, pub.N.BitLen())
		}
		return nil
	case *ecdsa.PublicKey:
		if pub.Curve.Params().BitSize < 256 {
			return fmt.Errorf("%w: an elliptic curve of %d bits", ErrWeak, pub.Curve.Params().BitSize)
		}
		return nil
	case ed25519.PublicKey:
		return nil
	}
	return fmt.Errorf("%w: a key of type %T", ErrWeak, k)
}

// strongCMS are the digests and ways to sign that are taken. The library knows
// others, and would take a weak one from either of the two fields.
func strongCMS(digest, signing asn1.ObjectIdentifier) error {
	digests := []asn1.ObjectIdentifier{pkcs7.OIDDigestAlgorithmSHA256, pkcs7.OIDDigestAlgorithmSHA384, pkcs7.OIDDigestAlgorithmSHA512}
	if !slices.ContainsFunc(digests, digest.Equal) {
		return fmt.Errorf("%w: its digest algorithm is %s", ErrWeak, digest)
	}
	ways := []asn1.ObjectIdentifier{
		pkcs7.OIDEncryptionAlgorithmRSA, pkcs7.OIDEncryptionAlgorithmRSASHA256, pkcs7.OIDEncryptionAlgorithmRSASHA384, pkcs7.OIDEncryptionAlgorithmRSASHA512,
		pkcs7.OIDDigestAlgorithmECDSASHA256, pkcs7.OIDDigestAlgorithmECDSASHA384, pkcs7.OIDDigestAlgorithmECDSASHA512,
	}
	if !slices.ContainsFunc(ways, signing.Equal) {
		return fmt.Errorf("%w: its signature algorithm is %s", ErrWeak, signing)
	}
	return nil
}

// oneCMS reads a detached signature of one signer, whose attributes bind it to
// data.
func oneCMS(armored, data []byte) (*pkcs7.PKCS7, *x509.Certificate, error) {
	blob, err := unpack(armored, "SIGNED MESSAGE")
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	p, err := pkcs7.Parse(blob)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	switch {
	case len(p.Signers) > 1:
		return nil, nil, fmt.Errorf("%w: it holds %d signatures", ErrAmbiguous, len(p.Signers))
	case len(p.Signers) == 0:
		return nil, nil, fmt.Errorf("%w: it holds no signature", ErrMalformed)
	case len(p.Content) > 0: // else it would vouch for that, and not for the commit
		return nil, nil, fmt.Errorf("%w: it holds a text of its own", ErrAmbiguous)
	}
	cert := p.GetOnlySigner()
	if cert == nil {
		return nil, nil, fmt.Errorf("%w: it does not hold the certificate of its signer", ErrMalformed)
	}
	if err := strongCMS(p.Signers[0].DigestAlgorithm.Algorithm, p.Signers[0].DigestEncryptionAlgorithm.Algorithm); err != nil {
		return nil, nil, err
	}
	// Without signed attributes, or with others than of plain data, the bytes that
	// are signed could be read as something else.
	counts := map[string]int{}
	for _, a := range p.Signers[0].AuthenticatedAttributes {
		counts[a.Type.String()]++
	}
	var kind asn1.ObjectIdentifier
	if counts[pkcs7.OIDAttributeMessageDigest.String()] != 1 || counts[pkcs7.OIDAttributeContentType.String()] != 1 {
		return nil, nil, fmt.Errorf("%w: it lacks the attributes that say what is signed", ErrMalformed)
	}
	if err := p.UnmarshalSignedAttribute(pkcs7.OIDAttributeContentType, &kind); err != nil || !kind.Equal(pkcs7.OIDData) {
		return nil, nil, fmt.Errorf("%w: it signs something else than data", ErrMalformed)
	}
	p.Content = data
	return p, cert, nil
}

func (s *Signers) verifyX509(armored, data []byte, at time.Time) ([]hallmark.Principal, error) {
	p, cert, err := oneCMS(armored, data)
	if err != nil {
		return nil, err
	}
	if err := strongPublicKey(cert.PublicKey); err != nil {
		return nil, err
	}
	var early *pkcs7.SigningTimeNotValidError
	if err := p.VerifyWithChain(nil); errors.As(err, &early) {
		return nil, fmt.Errorf("%w: it was made outside of the time of its certificate", ErrExpired)
	} else if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	names := certificateNames(cert)
	if len(names) == 0 {
		return nil, fmt.Errorf("%w: the certificate has no mail address or URI as its alternative name", ErrNotAllowed)
	}
	inter := x509.NewCertPool()
	for _, c := range p.Certificates {
		inter.AddCert(c)
	}
	sum := sha256.Sum256(cert.Raw)
	var out []hallmark.Principal
	why := fmt.Errorf("%w: nobody is registered for a certificate of %s", ErrNotAllowed, strings.Join(names, ", "))
	for _, r := range s.x509 {
		if !slices.Contains(names, r.Name) {
			continue
		}
		if err := chains(cert, inter, r.Authority, at); err != nil {
			why = err
			continue
		}
		for _, name := range r.Principals {
			out = append(out, hallmark.Principal{Name: name, Key: "x509:" + hex.EncodeToString(sum[:]), Method: "x509"})
		}
	}
	if len(out) == 0 {
		return nil, why
	}
	return out, nil
}

func certificateNames(c *x509.Certificate) []string {
	var out []string
	for _, m := range c.EmailAddresses {
		out = append(out, "email:"+m)
	}
	for _, u := range c.URIs {
		out = append(out, "uri:"+u.String())
	}
	return out
}

// chains wants a certificate for signing, of an authority, in its time.
func chains(cert *x509.Certificate, inter *x509.CertPool, authority *x509.Certificate, at time.Time) error {
	roots := x509.NewCertPool()
	roots.AddCert(authority)
	// Everything but the purpose first, so that the reason is the right one.
	built, err := cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("%w: the certificate of %s is good from %s to %s, or its authority is not", ErrExpired, strings.Join(certificateNames(cert), ", "),
			cert.NotBefore.UTC().Format(time.RFC3339), cert.NotAfter.UTC().Format(time.RFC3339))
	case err != nil:
		return fmt.Errorf("%w: %w", ErrChain, err)
	}
	for _, c := range slices.Concat(built...) {
		if err := strongPublicKey(c.PublicKey); err != nil {
			return err
		}
	}
	signs := []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection, x509.ExtKeyUsageCodeSigning}
	if cert.KeyUsage&x509.KeyUsageDigitalSignature == 0 || cert.IsCA || !slices.ContainsFunc(cert.ExtKeyUsage, func(u x509.ExtKeyUsage) bool { return slices.Contains(signs, u) }) {
		return fmt.Errorf("%w: the certificate is not for digital signatures of mail or code", ErrUsage)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, CurrentTime: at, KeyUsages: signs}); err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	return nil
}
