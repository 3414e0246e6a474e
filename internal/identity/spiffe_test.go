// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"net/url"
	"testing"
	"time"
)

func TestTrustDomains(t *testing.T) {
	now := time.Now()
	ca, foreign := issue(t, nil, nil, nil), issue(t, nil, nil, nil)
	d, err := NewTrustDomains(map[string]string{"example.org": ca.pem(), "other.example": foreign.pem()})
	if err != nil {
		t.Fatal(err)
	}
	svid := func(by *issued, ids []string, alter func(*x509.Certificate)) *x509.Certificate {
		return issue(t, by, nil, func(c *x509.Certificate) {
			c.EmailAddresses, c.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
			for _, id := range ids {
				u, err := url.Parse(id)
				if err != nil {
					t.Fatal(err)
				}
				c.URIs = append(c.URIs, u)
			}
			if alter != nil {
				alter(c)
			}
		}).cert
	}
	const id = "spiffe://example.org/ci/deploy"
	middle := issue(t, ca, nil, func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage, c.ExtKeyUsage, c.EmailAddresses, c.Subject.CommonName = true, x509.KeyUsageCertSign, nil, nil, "Middle"
	})
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weak := issue(t, ca, short, func(c *x509.Certificate) {
		u, _ := url.Parse(id)
		c.EmailAddresses, c.URIs, c.ExtKeyUsage = nil, []*url.URL{u}, nil
	}).cert
	for name, tc := range map[string]struct {
		chain []*x509.Certificate
		good  bool
	}{
		"good":              {[]*x509.Certificate{svid(ca, []string{id}, nil)}, true},
		"below":             {[]*x509.Certificate{svid(middle, []string{id}, nil), middle.cert}, true},
		"no chain":          {[]*x509.Certificate{svid(middle, []string{id}, nil)}, false},
		"none":              {nil, false},
		"by another domain": {[]*x509.Certificate{svid(foreign, []string{id}, nil)}, false},
		"unlisted domain":   {[]*x509.Certificate{svid(ca, []string{"spiffe://evil.example/ci"}, nil)}, false},
		"other's authority": {[]*x509.Certificate{svid(ca, []string{"spiffe://other.example/ci"}, nil)}, false},
		"two names":         {[]*x509.Certificate{svid(ca, []string{id, "spiffe://example.org/b"}, nil)}, false},
		"no name":           {[]*x509.Certificate{svid(ca, nil, nil)}, false},
		"https":             {[]*x509.Certificate{svid(ca, []string{"https://example.org/ci/deploy"}, nil)}, false},
		"expired":           {[]*x509.Certificate{svid(ca, []string{id}, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) })}, false},
		"early":             {[]*x509.Certificate{svid(ca, []string{id}, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) })}, false},
		"an authority": {[]*x509.Certificate{svid(ca, []string{id}, func(c *x509.Certificate) {
			c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
		})}, false},
		"no signature usage": {[]*x509.Certificate{svid(ca, []string{id}, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment })}, false},
		"for servers":        {[]*x509.Certificate{svid(ca, []string{id}, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })}, false},
		"weak":               {[]*x509.Certificate{weak}, false},
	} {
		w, err := d.Verify(tc.chain, now)
		if (err == nil) != tc.good || err == nil && (w.ID != id || !w.Expires.Equal(tc.chain[0].NotAfter)) {
			t.Errorf("%s: %+v, %v", name, w, err)
		}
	}
	for name, bad := range map[string]map[string]string{
		"scheme": {"spiffe://example.org": ca.pem()}, "none": {"example.org": ""}, "text": {"example.org": "x"}, "capitals": {"Example.org": ca.pem()},
		"a leaf": {"example.org": issue(t, ca, nil, nil).pem()},
	} {
		if _, err := NewTrustDomains(bad); err == nil {
			t.Errorf("accepted %s", name)
		}
	}
}
