// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
)

// issued is a certificate with its key.
type issued struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// issue makes a certificate; by nil it is of an authority and signs itself.
func issue(t testing.TB, by *issued, key crypto.Signer, alter func(*x509.Certificate)) *issued {
	t.Helper()
	if key == nil {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "Someone"}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true}
	parent, signer := c, key
	if by == nil {
		c.IsCA, c.KeyUsage, c.Subject.CommonName = true, x509.KeyUsageCertSign, "Authority"
	} else {
		parent, signer = by.cert, by.key
		c.KeyUsage, c.ExtKeyUsage, c.EmailAddresses = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection}, []string{"a@example.org"}
	}
	if alter != nil {
		alter(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &issued{cert, key}
}

func (i *issued) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw}))
}

// openssl signs as gpgsm does for git: detached, in DER, armored.
func openssl(t testing.TB, data []byte, by []*issued, more ...string) []byte {
	t.Helper()
	needed(t, "openssl", "openssl")
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	args := []string{"cms", "-sign", "-binary", "-outform", "DER", "-in", write("data", data), "-nosmimecap"}
	for n, i := range by {
		raw, err := x509.MarshalPKCS8PrivateKey(i.key)
		if err != nil {
			t.Fatal(err)
		}
		id := string(rune('a' + n))
		args = append(args, "-signer", write(id+".pem", []byte(i.pem())), "-inkey", write(id+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})))
	}
	out, err := exec.Command("openssl", append(args, more...)...).Output()
	if err != nil {
		var exit *exec.ExitError
		errors.As(err, &exit)
		t.Fatalf("openssl %v: %v: %s", args, err, exit.Stderr)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "SIGNED MESSAGE", Bytes: out})
}

func TestX509(t *testing.T) {
	message, now := []byte("tree 1\n\nmessage\n"), time.Now()
	ca, foreign := issue(t, nil, nil, nil), issue(t, nil, nil, nil)
	leaf := issue(t, ca, nil, nil)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	byRSA := issue(t, ca, rsaKey, nil)
	middle := issue(t, ca, nil, func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage, c.ExtKeyUsage, c.EmailAddresses, c.Subject.CommonName = true, x509.KeyUsageCertSign, nil, nil, "Middle"
	})
	below := issue(t, middle, nil, nil)
	middleFile := filepath.Join(t.TempDir(), "middle.pem")
	if err := os.WriteFile(middleFile, []byte(middle.pem()), 0o600); err != nil {
		t.Fatal(err)
	}
	old := issue(t, ca, nil, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Hour) })
	of := func(alter func(*x509.Certificate)) []byte {
		return openssl(t, message, []*issued{issue(t, ca, nil, alter)})
	}
	file := "a@example.org,alias@example.org email:a@example.org " + AuthorityPrint(ca.cert) + "\n" +
		"robot uri:https://ci.example.org/robot " + AuthorityPrint(ca.cert) + "\n" + ca.pem()
	registered, err := ParseX509Signers("f", []byte(file))
	if err != nil {
		t.Fatal(err)
	}
	s := NewSigners(nil, nil, registered)
	good := openssl(t, message, []*issued{leaf})
	for name, tc := range map[string]struct {
		sig  []byte
		want error
	}{
		"good":  {good, nil},
		"rsa":   {openssl(t, message, []*issued{byRSA}, "-md", "sha512"), nil},
		"chain": {openssl(t, message, []*issued{below}, "-certfile", middleFile), nil},
		"uri": {of(func(c *x509.Certificate) {
			c.EmailAddresses, c.URIs = nil, []*url.URL{{Scheme: "https", Host: "ci.example.org", Path: "/robot"}}
		}), nil},
		"code":       {of(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }), nil},
		"no chain":   {openssl(t, message, []*issued{below}), ErrChain},
		"foreign":    {openssl(t, message, []*issued{issue(t, foreign, nil, nil)}), ErrChain},
		"self":       {openssl(t, message, []*issued{issue(t, nil, nil, func(c *x509.Certificate) { c.EmailAddresses = []string{"a@example.org"} })}), ErrChain},
		"other name": {of(func(c *x509.Certificate) { c.EmailAddresses = []string{"b@example.org"} }), ErrNotAllowed},
		"no name":    {of(func(c *x509.Certificate) { c.EmailAddresses, c.Subject.CommonName = nil, "a@example.org" }), ErrNotAllowed},
		"prefix":     {of(func(c *x509.Certificate) { c.EmailAddresses = []string{"a@example.org.evil.example"} }), ErrNotAllowed},
		"case":       {of(func(c *x509.Certificate) { c.EmailAddresses = []string{"A@example.org"} }), ErrNotAllowed},
		"tls":        {of(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), ErrUsage},
		"any":        {of(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }), ErrUsage},
		"no purpose": {of(func(c *x509.Certificate) { c.ExtKeyUsage = nil }), ErrUsage},
		"encryption": {of(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), ErrUsage},
		"no usage":   {of(func(c *x509.Certificate) { c.KeyUsage = 0 }), ErrUsage},
		"early":      {openssl(t, message, []*issued{issue(t, ca, nil, func(c *x509.Certificate) { c.NotBefore = now.Add(30 * time.Minute) })}), ErrExpired},
		"late":       {openssl(t, message, []*issued{old}), ErrExpired},
		"undated":    {openssl(t, message, []*issued{old}, "-noattr"), ErrMalformed},
		"sha1":       {openssl(t, message, []*issued{byRSA}, "-md", "sha1"), ErrWeak},
		"md5":        {openssl(t, message, []*issued{byRSA}, "-md", "md5"), ErrWeak},
		"ecdsa sha1": {openssl(t, message, []*issued{leaf}, "-md", "sha1"), ErrWeak},
		"short":      {openssl(t, message, []*issued{issue(t, ca, short, nil)}, "-md", "sha256"), ErrWeak},
		"two":        {openssl(t, message, []*issued{leaf, byRSA}), ErrAmbiguous},
		"attached":   {openssl(t, []byte("another"), []*issued{leaf}, "-nodetach"), ErrAmbiguous},
		"no cert":    {openssl(t, message, []*issued{leaf}, "-nocerts"), ErrMalformed},
		"no attrs":   {openssl(t, message, []*issued{leaf}, "-noattr"), ErrMalformed},
		"receipt":    {openssl(t, message, []*issued{leaf}, "-econtent_type", "1.2.840.113549.1.9.16.1.4"), ErrMalformed},
		"other data": {openssl(t, []byte("other"), []*issued{leaf}), ErrInvalid},
		"trailing":   {append(bytes.Clone(good), 'x'), ErrMalformed},
		"twice":      {append(bytes.Clone(good), good...), ErrMalformed},
	} {
		got, err := s.Verify(tc.sig, message, now)
		if !errors.Is(err, tc.want) || (tc.want == nil) != (err == nil) || (err != nil && got != nil) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if got, err := s.Verify(good, message, now); err != nil || len(got) != 2 || got[0].Name != "a@example.org" || got[1].Name != "alias@example.org" || got[0].Method != "x509" {
		t.Errorf("%v, %v", got, err)
	}
	// It is our clock that counts: what was good when it was signed is good no more.
	if _, err := s.Verify(good, message, now.Add(2*time.Hour)); !errors.Is(err, ErrExpired) {
		t.Errorf("after its end: %v", err)
	}
	// CMS leaves versions and the list of digests in front unsigned; whatever is
	// signed, and by whom, can't be changed.
	whole, _, err := oneCMS(good, message)
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 2
		p, err := s.Verify(bad, message, now)
		if err != nil {
			continue
		}
		same, cert, err := oneCMS(bad, message)
		if err != nil || !cert.Equal(leaf.cert) || !bytes.Equal(same.Signers[0].EncryptedDigest, whole.Signers[0].EncryptedDigest) ||
			!cmp.Equal(same.Signers[0].AuthenticatedAttributes, whole.Signers[0].AuthenticatedAttributes) {
			t.Errorf("byte %d changed: accepted for %v", i, p)
		}
	}
}

func TestParseX509SignersRefuses(t *testing.T) {
	ca := issue(t, nil, nil, nil)
	leaf := issue(t, ca, nil, nil)
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weak := issue(t, nil, short, nil)
	print := AuthorityPrint(ca.cert)
	for name, text := range map[string]string{
		"no line": ca.pem(), "no authority": "a email:a@example.org " + print + "\n", "other authority": "a email:a@example.org sha256:00\n" + ca.pem(),
		"no kind": "a a@example.org " + print + "\n" + ca.pem(), "pattern": "a email:*@example.org " + print + "\n" + ca.pem(), "dns": "a dns:example.org " + print + "\n" + ca.pem(),
		"twice": "a email:a@example.org " + print + "\nb email:a@example.org " + print + "\n" + ca.pem(), "doubled": "a email:a@example.org " + print + "\n" + ca.pem() + ca.pem(),
		"a leaf": "a email:a@example.org " + AuthorityPrint(leaf.cert) + "\n" + leaf.pem(), "weak": "a email:a@example.org " + AuthorityPrint(weak.cert) + "\n" + weak.pem(),
		"a key": "a email:a@example.org " + print + "\n" + strings.ReplaceAll(ca.pem(), "CERTIFICATE", "PRIVATE KEY"), "open": "a email:a@example.org " + print + "\n-----BEGIN CERTIFICATE-----\n",
	} {
		if k, err := ParseX509Signers("f", []byte(text)); err == nil || !strings.HasPrefix(err.Error(), "f:") || hallmark.KindOf(err) != hallmark.KindInvalid {
			t.Errorf("%s: %v, %v", name, k, err)
		}
	}
}

func FuzzVerifyX509(f *testing.F) {
	ca := issue(f, nil, nil, nil)
	leaf := issue(f, ca, nil, nil)
	s := NewSigners(nil, nil, []X509Signer{{Principals: []string{"a"}, Name: "email:a@example.org", Authority: ca.cert}})
	good := openssl(f, []byte("message"), []*issued{leaf})
	b, _ := pem.Decode(good)
	f.Add([]byte("other"), b.Bytes)
	at := time.Now()
	f.Fuzz(func(t *testing.T, message, der []byte) {
		sig := pem.EncodeToMemory(&pem.Block{Type: "SIGNED MESSAGE", Bytes: der})
		if _, err := s.Verify(sig, message, at); err == nil && string(message) != "message" {
			t.Errorf("accepted for %q", message)
		}
	})
}
