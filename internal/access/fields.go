// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package access

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// Fields are the section as whoever signs a policy compares it: every value under
// the name of its principal, grant or rule.
func (s *Section) Fields() map[string]string {
	out := map[string]string{}
	if s == nil {
		return out
	}
	list := func(l []string) string { return strings.Join(l, ", ") }
	var order []string
	for _, p := range s.Principals {
		at := "access.principals." + p.Name + "."
		out[at+"kind"], out[at+"outside"] = p.Kind, fmt.Sprint(p.Outside)
		set(out, at+"owner", p.Owner)
		set(out, at+"aliases", list(p.Aliases))
		set(out, at+"sshKeys", list(p.SSHKeys))
		for _, o := range p.OIDC {
			out[at+"oidc."+o.Issuer+"."+o.Subject] = "signs in"
		}
		for _, k := range p.OpenPGP {
			out[at+"openpgp."+k.Fingerprint] = digestText(k.Key)
		}
		for _, c := range p.X509 {
			key := at + "x509." + c.Name
			for out[key] != "" { // the same name of several authorities
				key += "+"
			}
			out[key] = "by authority " + digestText(c.Authority)
		}
	}
	for _, g := range s.Grants {
		at := "access.grants." + g.ID + "."
		out[at+"principal"], out[at+"role"], out[at+"owner"], out[at+"reason"] = g.Principal, string(g.Role), g.Owner, g.Reason
		out[at+"repositories"], out[at+"refs"] = list(g.Repositories), list(g.Refs)
		if !slices.Equal(g.Paths, []string{"**"}) {
			out[at+"paths"] = list(g.Paths)
		}
		out[at+"notBefore"] = g.NotBefore.UTC().Format(time.RFC3339)
		out[at+"notAfter"] = until(g)
	}
	for _, r := range s.Refs {
		at := "access.refs." + r.Name + "."
		order = append(order, r.Name)
		out[at+"repositories"], out[at+"refs"], out[at+"history"], out[at+"approvals"] = list(r.Repositories), list(r.Refs), r.History, r.Approvals
		set(out, at+"checks", list(r.Checks))
		set(out, at+"properties", list(r.Properties))
		for i, o := range r.Owners {
			out[fmt.Sprintf("%sowners.%d", at, i+1)] = list(o.Paths) + ": " + list(o.Owners)
		}
	}
	for _, i := range s.Issuers {
		at := "access.issuers." + i.URL + "."
		out[at+"audience"], out[at+"claim"], out[at+"flow"] = i.Audience, i.Claim, i.Flow
		for name, value := range i.Require {
			out[at+"require."+name] = value
		}
	}
	for _, f := range s.SecondFactors {
		out["access.secondFactors."+f.Administrator+"."+f.Key] = "confirms policies"
	}
	for _, d := range s.TrustDomains {
		out["access.trustDomains."+d.Name] = "by authorities " + digestText(d.Authorities)
	}
	set(out, "access.refs", list(order)) // their order counts
	return out
}

// digestText stands for what is too long to show.
func digestText(s string) string { return string(hallmark.DigestOf([]byte(s))) }

func set(m map[string]string, k, v string) {
	if v != "" {
		m[k] = v
	}
}

// Whole makes lists that were left out empty ones, as policy.json has them.
func (s *Section) Whole() {
	fill(&s.Principals)
	fill(&s.Grants)
	fill(&s.Refs)
	for i := range s.Principals {
		p := &s.Principals[i]
		fill(&p.Aliases)
		fill(&p.SSHKeys)
		fill(&p.OIDC)
	}
	for i := range s.Grants {
		fill(&s.Grants[i].Repositories)
		fill(&s.Grants[i].Refs)
		if s.Grants[i].Paths == nil { // of a policy that is older than the field
			s.Grants[i].Paths = []string{"**"}
		}
	}
	for i := range s.Refs {
		r := &s.Refs[i]
		fill(&r.Repositories)
		fill(&r.Refs)
		fill(&r.Checks)
		fill(&r.Owners)
		fill(&r.Properties)
	}
}

func fill[T any](l *[]T) {
	if *l == nil {
		*l = []T{}
	}
}
