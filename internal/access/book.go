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

// Book answers from one section. It is safe for concurrent use.
type Book struct {
	section *Section
	byName  map[string]*Principal // names and aliases in lower case
	byKey   map[string]*Principal // fingerprints of keys to sign in with
	bySub   map[Subject]*Principal
	grants  map[string][]*Grant
}

// NewBook reads a checked section; nil is a section that grants nothing.
func NewBook(s *Section) (*Book, error) {
	if s == nil {
		s = &Section{}
	}
	if err := s.Check(); err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading access section: %w", err)
	}
	b := &Book{section: s, byName: map[string]*Principal{}, byKey: map[string]*Principal{}, bySub: map[Subject]*Principal{}, grants: map[string][]*Grant{}}
	for i := range s.Principals {
		p := &s.Principals[i]
		for _, n := range append([]string{p.Name}, p.Aliases...) {
			b.byName[strings.ToLower(n)] = p
		}
		for _, k := range p.SSHKeys {
			print, err := keyPrint(k)
			if err != nil {
				return nil, err
			}
			b.byKey[print] = p
		}
		for _, o := range p.OIDC {
			b.bySub[o] = p
		}
	}
	for i := range s.Grants {
		g := &s.Grants[i]
		b.grants[g.Principal] = append(b.grants[g.Principal], g)
	}
	return b, nil
}

// Named finds a principal by its name or, for persons, an alias.
func (b *Book) Named(name string) (Principal, bool) { return found(b.byName[strings.ToLower(name)]) }

// WithKey finds whose sign-in key has a fingerprint (SHA256:…).
func (b *Book) WithKey(fingerprint string) (Principal, bool) { return found(b.byKey[fingerprint]) }

// WithSubject finds whom an OpenID Connect issuer's subject is.
func (b *Book) WithSubject(s Subject) (Principal, bool) { return found(b.bySub[s]) }

// Issuers lists the OpenID Connect issuers that may vouch for somebody.
func (b *Book) Issuers() []Issuer { return slices.Clone(b.section.Issuers) }

// TrustDomains lists the domains whose workloads may show a certificate.
func (b *Book) TrustDomains() []TrustDomain { return slices.Clone(b.section.TrustDomains) }

func found(p *Principal) (Principal, bool) {
	if p == nil {
		return Principal{}, false
	}
	return *p, true
}

// Request is one thing that somebody wants to do.
type Request struct {
	Principal  string // by name, never by alias
	Permission Permission
	Repository string // name; "" where the permission has none
	Ref        string // full; "" where the permission has none
	Path       string // a file that is changed; "" asks for none
	EveryPath  bool   // a grant for some paths alone does not do
	At         time.Time
}

// Ruling is the answer to a Request. The zero value refuses.
type Ruling struct {
	Allowed bool
	Grant   string // id of the grant that allows it
	Role    Role
	Reason  hallmark.Reason // why not, when it is refused
}

// Rule answers a request: the first grant in force that fits allows it.
func (b *Book) Rule(r Request) Ruling {
	p, ok := b.byName[strings.ToLower(r.Principal)]
	if !ok || p.Name != r.Principal {
		return refuse(hallmark.CodeAccessPrincipal, r, "no principal of the policy is named "+quote(r.Principal), "hallmark access principal "+r.Principal)
	}
	near := ""
	for _, g := range b.grants[p.Name] {
		switch {
		case !g.Role.Allows(r.Permission):
			near = orElse(near, fmt.Sprintf("grant %s, role %s, does not have %s", g.ID, g.Role, r.Permission))
		case p.Outside && !Outsider.Allows(r.Permission):
			near = orElse(near, fmt.Sprintf("%s is an outside collaborator, who can't have %s", p.Name, r.Permission))
		case !inForce(*g, r.At):
			near = fmt.Sprintf("grant %s is in force from %s to %s", g.ID, g.NotBefore.Format(time.RFC3339), until(*g))
		case r.Repository != "" && !Matches(g.Repositories, r.Repository):
			near = orElse(near, fmt.Sprintf("grant %s is for %s", g.ID, strings.Join(g.Repositories, ", ")))
		case r.Ref != "" && !Matches(g.Refs, r.Ref):
			near = orElse(near, fmt.Sprintf("grant %s is for refs %s", g.ID, strings.Join(g.Refs, ", ")))
		case r.Path != "" && !Matches(g.Paths, r.Path) || r.EveryPath && !slices.Contains(g.Paths, "**"):
			near = orElse(near, fmt.Sprintf("grant %s is for paths %s", g.ID, strings.Join(g.Paths, ", ")))
		default:
			return Ruling{Allowed: true, Grant: g.ID, Role: g.Role}
		}
	}
	role := "ROLE"
	for _, row := range Roles() {
		if slices.Contains(row.Permissions, r.Permission) {
			role = string(row.Role)
			break
		}
	}
	out := refuse(hallmark.CodeAccessDenied, r, fmt.Sprintf("%s may not %s%s", p.Name, r.Permission, where(r)),
		fmt.Sprintf("hallmark access grant %s %s --repository %s --reason WHY", p.Name, role, orElse(r.Repository, "NAME")))
	out.Reason.Nearest = near
	return out
}

func refuse(code hallmark.Code, r Request, message, fix string) Ruling {
	return Ruling{Reason: hallmark.Reason{Code: code, Check: "access", Message: message, Missing: fmt.Sprintf("a grant of %s%s", r.Permission, where(r)), Fix: fix}}
}

func where(r Request) string {
	out := ""
	if r.Repository != "" {
		out += " in " + r.Repository
	}
	if r.Ref != "" {
		out += " at " + r.Ref
	}
	if r.Path != "" {
		out += fmt.Sprintf(" of %.200q", r.Path)
	}
	if r.EveryPath {
		out += " of every path"
	}
	return out
}

func quote(s string) string { return fmt.Sprintf("%.80q", s) }

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func inForce(g Grant, at time.Time) bool {
	return !at.Before(g.NotBefore) && (g.NotAfter.IsZero() || at.Before(g.NotAfter))
}

func until(g Grant) string {
	if g.NotAfter.IsZero() {
		return "its revocation"
	}
	return g.NotAfter.Format(time.RFC3339)
}

// Holder is one principal who may do something, and by which grant.
type Holder struct {
	Principal Principal
	Grant     Grant
}

// WhoCan lists every principal who may do something, with the grant that allows it.
func (b *Book) WhoCan(p Permission, repository, ref string, at time.Time) []Holder {
	var out []Holder
	for i := range b.section.Principals {
		who := &b.section.Principals[i]
		ruling := b.Rule(Request{Principal: who.Name, Permission: p, Repository: repository, Ref: ref, At: at})
		if !ruling.Allowed {
			continue
		}
		for _, g := range b.grants[who.Name] {
			if g.ID == ruling.Grant {
				out = append(out, Holder{*who, *g})
			}
		}
	}
	return out
}

// Principals lists everybody, in the order of the section.
func (b *Book) Principals() []Principal { return slices.Clone(b.section.Principals) }

// Grants lists every grant, in the order of the section.
func (b *Book) Grants() []Grant { return slices.Clone(b.section.Grants) }

// Protection is the rule of a ref; ok is false where nothing may be pushed.
func (b *Book) Protection(repository, ref string) (RefRule, bool) {
	for _, r := range b.section.Refs {
		if Matches(r.Repositories, repository) && Matches(r.Refs, ref) {
			return r, true
		}
	}
	return RefRule{}, false
}

// Needed is the number of approvals as a number.
func (r RefRule) Needed() int {
	if len(r.Approvals) != 1 || r.Approvals[0] < '0' || r.Approvals[0] > '9' {
		return 9 // Check refuses it; nothing lands by a rule that can't be read
	}
	return int(r.Approvals[0] - '0')
}
