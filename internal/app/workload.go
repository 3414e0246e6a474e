// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"fmt"
	"net/http"
	"slices"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/identity"
)

func trustDomainsOf(b *access.Book) (*identity.TrustDomains, error) {
	list := map[string]string{}
	for _, d := range b.TrustDomains() {
		list[d.Name] = d.Authorities
	}
	d, err := identity.NewTrustDomains(list)
	if err != nil {
		return nil, fmt.Errorf("reading the policy: %w", err)
	}
	return d, nil
}

// workload is whom a certificate of TLS shows: a workload of a trust domain that the
// policy lists, which it names exactly. It stands in the place of a token, for
// whatever the workload is granted, as long as the certificate is good.
func (s *Server) workload(r *http.Request) (access.Token, error) {
	rules, err := s.current()
	if err != nil {
		return access.Token{}, err
	}
	w, err := rules.domains.Verify(r.TLS.PeerCertificates, now())
	if err != nil {
		return access.Token{}, hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodeAccessCredential, "the certificate of the client is refused: %s", err),
			"an administrator lists the trust domain: hallmark access trust-domain NAME --authority FILE")
	}
	who, ok := rules.book.Named(w.ID)
	if !ok || who.Name != w.ID || who.Kind != access.Workload {
		return access.Token{}, hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodeAccessPrincipal, "the policy names no workload %s", w.ID), "hallmark access principal "+w.ID+" --kind workload --owner NAME")
	}
	return access.Token{ID: w.Key, Principal: who.Name, Method: "x509", Scopes: access.Permissions(), Repository: "**", IssuedAt: now(), ExpiresAt: w.Expires}, nil
}

// TrustDomainChange is what is said of one trust domain.
type TrustDomainChange struct {
	Name   string
	Files  []string // certificates of its authorities, PEM
	Remove bool
}

// Apply adds, replaces or removes a trust domain.
func (c TrustDomainChange) Apply(s *access.Section) error {
	i := slices.IndexFunc(s.TrustDomains, func(d access.TrustDomain) bool { return d.Name == c.Name })
	if c.Remove {
		if i < 0 {
			return hallmark.Errorf(hallmark.KindUsage, "there is no trust domain %.80q", c.Name)
		}
		s.TrustDomains = slices.Delete(s.TrustDomains, i, i+1)
		return nil
	}
	n := access.TrustDomain{Name: c.Name}
	for _, file := range c.Files {
		b, err := readLimited(file, 1<<18)
		if err != nil {
			return hallmark.Errorf(hallmark.KindInvalid, "reading authorities: %w", err)
		}
		n.Authorities += string(b)
	}
	if _, err := identity.NewTrustDomains(map[string]string{n.Name: n.Authorities}); err != nil {
		return hallmark.Errorf(hallmark.KindInvalid, "%w", err)
	}
	if i < 0 {
		s.TrustDomains = append(s.TrustDomains, n)
	} else {
		s.TrustDomains[i] = n
	}
	return nil
}
