// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// TrustDomains are the SPIFFE trust domains whose workloads are believed, each with
// its own authorities: one of another domain vouches for nobody here.
type TrustDomains struct{ bundles *x509bundle.Set }

// NewTrustDomains reads domains by name, with their authorities in PEM.
func NewTrustDomains(authorities map[string]string) (*TrustDomains, error) {
	out := &TrustDomains{bundles: x509bundle.NewSet()}
	for name, text := range authorities {
		if err := out.add(name, []byte(text)); err != nil {
			return nil, fmt.Errorf("trust domain %.80q: %w", name, err)
		}
	}
	return out, nil
}

func (d *TrustDomains) add(name string, text []byte) error {
	domain, err := spiffeid.TrustDomainFromString(name)
	if err != nil || domain.Name() != name {
		return errors.New("want the name of a trust domain, without spiffe://")
	}
	bundle := x509bundle.New(domain)
	for len(strings.TrimSpace(string(text))) > 0 {
		b, rest := pem.Decode(text)
		if b == nil {
			return errors.New("want certificates in PEM")
		}
		c, err := ReadAuthority(pem.EncodeToMemory(b))
		if err != nil {
			return err
		}
		bundle.AddX509Authority(c)
		text = rest
	}
	if bundle.Empty() {
		return errors.New("want at least one authority")
	}
	d.bundles.Add(bundle)
	return nil
}

// Workload is what a certificate of a workload says.
type Workload struct {
	ID      string // spiffe://…
	Key     string // of the certificate
	Expires time.Time
}

// Verify checks the certificates that a client showed in TLS, the leaf first, of
// which it has the key.
func (d *TrustDomains) Verify(chain []*x509.Certificate, at time.Time) (Workload, error) {
	if len(chain) == 0 || len(chain) > 10 {
		return Workload{}, fmt.Errorf("%d certificates", len(chain))
	}
	leaf := chain[0]
	id, chains, err := x509svid.Verify(chain, d.bundles, x509svid.WithTime(at))
	if err != nil {
		return Workload{}, err
	}
	for _, c := range chains {
		for _, one := range c {
			if err := strongPublicKey(one.PublicKey); err != nil {
				return Workload{}, err
			}
		}
	}
	if leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 { // X.509-SVID §4.3
		return Workload{}, errors.New("the certificate is not for digital signatures")
	}
	// One that is for servers alone is not shown by clients.
	client := len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) == 0
	for _, u := range leaf.ExtKeyUsage {
		client = client || u == x509.ExtKeyUsageClientAuth
	}
	if !client {
		return Workload{}, errors.New("the certificate is not for clients")
	}
	sum := sha256.Sum256(leaf.Raw)
	return Workload{ID: id.String(), Key: "x509:" + hex.EncodeToString(sum[:]), Expires: leaf.NotAfter}, nil
}
