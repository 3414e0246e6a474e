// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"path/filepath"
	"testing"
	"time"
)

// TestCertificateRenewed lets the certificate near its end: another one of the
// same authority is shown, and while none can be made the old one to its end.
func TestCertificateRenewed(t *testing.T) {
	dir := t.TempDir()
	ca, key, err := makeAuthority(filepath.Join(dir, "a.pem"), filepath.Join(dir, "a.key"))
	if err != nil {
		t.Fatal(err)
	}
	broken := false
	c := &shown{make: func() (tls.Certificate, time.Time, error) {
		if broken {
			return tls.Certificate{}, time.Time{}, errors.New("no")
		}
		return makeLeaf(ca, key, []string{"localhost"})
	}}
	first, err := c.get(nil)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.get(nil); err != nil || again != first {
		t.Errorf("made anew at once: %v", err)
	}
	c.end = now().Add(leafAhead - time.Minute)
	broken = true
	if again, err := c.get(nil); err != nil || again != first {
		t.Errorf("none can be made: %v", err)
	}
	broken = false
	second, err := c.get(nil)
	if err != nil || second == first {
		t.Fatalf("not renewed: %v", err)
	}
	leaf, err := x509.ParseCertificate(second.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "localhost", CurrentTime: now()}); err != nil {
		t.Error(err)
	}
	if left := time.Until(leaf.NotAfter); left < leafLife-time.Hour || left > leafLife {
		t.Errorf("good for %s", left)
	}
	c.end, broken = now().Add(-time.Minute), true
	if _, err := c.get(nil); err == nil {
		t.Error("a certificate that ended is shown")
	}
}
