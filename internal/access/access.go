// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package access says who may do what: principals, roles, grants and the
// protection of references, as a section of the signed policy (SP 800-204D §5
// task 2 and 3, §5.1.4; SLSA Source track). What no grant in force allows is
// refused. The package does no I/O and asks no clock.
package access

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// Section is the access section of a policy document.
type Section struct {
	Principals []Principal `json:"principals"`
	Grants     []Grant     `json:"grants"`
	Refs       []RefRule   `json:"refs"`
	// Issuers are the OpenID Connect providers that may vouch for somebody, and
	// TrustDomains those whose workloads may show a certificate. Nobody else may.
	Issuers      []Issuer      `json:"issuers,omitempty"`
	TrustDomains []TrustDomain `json:"trustDomains,omitempty"`
	// SecondFactors are the FIDO keys that administrators of the policy touch.
	SecondFactors []SecondFactor `json:"secondFactors,omitempty"`
}

// SecondFactor is a FIDO key of an administrator whom the roots name.
type SecondFactor struct {
	Administrator string `json:"administrator"`
	Key           string `json:"key"` // sk-…: KEYTYPE KEY
}

// FactorOf says whose second factor a key is, by its fingerprint; "" is nobody's.
func (s *Section) FactorOf(fingerprint string) string {
	if s == nil {
		return ""
	}
	for _, f := range s.SecondFactors {
		if print, err := keyPrint(f.Key); err == nil && print == fingerprint {
			return f.Administrator
		}
	}
	return ""
}

// Issuer is an OpenID Connect provider.
type Issuer struct {
	URL      string `json:"issuer"`   // as its tokens say it, exactly
	Audience string `json:"audience"` // whom its tokens must be for: our client id
	Claim    string `json:"claim"`    // the claim that is the subject of principals: sub
	// Flow: code has persons sign in by a browser, and each token answers a request
	// of ours; token takes what a robot was given, once each.
	Flow    string            `json:"flow"`
	Require map[string]string `json:"require,omitempty"` // claims, with their values
}

// Flows of an issuer.
const (
	FlowCode  = "code"
	FlowToken = "token"
)

// TrustDomain is a SPIFFE trust domain and its authorities.
type TrustDomain struct {
	Name        string `json:"name"`        // without spiffe://
	Authorities string `json:"authorities"` // certificates in PEM
}

// Kinds of principals.
const (
	Person   = "person"
	Robot    = "robot"    // never counts as a reviewer
	Workload = "workload" // a running program, by SPIFFE ID
)

// Principal is somebody who can be granted something. Every credential belongs
// to exactly one principal, and every principal is one person or program: there
// are no shared and no anonymous ones.
type Principal struct {
	Name    string `json:"name"`    // a person's mail address as commits name it, a robot's name, a SPIFFE ID
	Kind    string `json:"kind"`    // person, robot or workload
	Owner   string `json:"owner"`   // the person who answers for a robot or workload; "" for a person
	Outside bool   `json:"outside"` // an outside collaborator: nothing of theirs runs or lands unapproved

	Aliases []string  `json:"aliases"` // other addresses of the same person in commits
	SSHKeys []string  `json:"sshKeys"` // to sign in with: KEYTYPE KEY
	OIDC    []Subject `json:"oidc"`

	// To sign commits and tags with, beside the home's allowed signers.
	OpenPGP []OpenPGPKey  `json:"openpgp,omitempty"`
	X509    []Certificate `json:"x509,omitempty"`
}

// OpenPGPKey is an OpenPGP key that signs in a principal's name.
type OpenPGPKey struct {
	Fingerprint string `json:"fingerprint"` // of the primary key, upper-case hex
	Key         string `json:"key"`         // the public key, base64
}

// Certificate is what a certificate must say to sign in a principal's name.
type Certificate struct {
	Name      string `json:"name"`      // email:ADDRESS or uri:URI, an alternative name of it
	Authority string `json:"authority"` // PEM of the certificate of who issues it
}

// Subject is an identity that an OpenID Connect issuer vouches for.
type Subject struct {
	Issuer  string `json:"issuer"`
	Subject string `json:"subject"`
}

// Grant gives a role to a principal on repositories and refs, for a reason, and
// may end.
type Grant struct {
	ID           string    `json:"id"`
	Principal    string    `json:"principal"`
	Role         Role      `json:"role"`
	Repositories []string  `json:"repositories"` // patterns of names
	Refs         []string  `json:"refs"`         // patterns of full refs; for permissions that have one
	Paths        []string  `json:"paths"`        // patterns of the files that a push may change
	Owner        string    `json:"owner"`        // who answers for the grant
	Reason       string    `json:"reason"`
	NotBefore    time.Time `json:"notBefore"`
	NotAfter     time.Time `json:"notAfter,omitzero"` // zero: until it is revoked
}

// RefRule protects references. The first rule that fits a repository and ref
// counts; what none fits can't be pushed to at all.
type RefRule struct {
	Name         string   `json:"name"`
	Repositories []string `json:"repositories"`
	Refs         []string `json:"refs"`
	// History: descend lets a branch move to descendants of its revision only,
	// and never be deleted; rewrite lets it be forced and deleted.
	History string `json:"history"`
	// Approvals that a revision needs before it lands, of trusted persons who had
	// no part in it; what comes from outside needs at least two of them. "0" lands
	// by a push; any other number by the merge of an approved change only.
	Approvals string `json:"approvals"`
	// Checks that must have passed for the exact revision.
	Checks []string `json:"checks"`
	// Owners are the persons of whom one must approve changes of these paths.
	Owners []PathOwner `json:"owners"`
	// Properties that the source summary of a revision claims: ORG_SOURCE_….
	Properties []string `json:"properties"`
}

// PathOwner is who must agree to changes below paths.
type PathOwner struct {
	Paths  []string `json:"paths"` // patterns
	Owners []string `json:"owners"`
}

// Histories of a ref.
const (
	Descend = "descend"
	Rewrite = "rewrite"
)

// Limits on a section.
const (
	maxEntries = 20000
	maxList    = 500
	maxText    = 1000
	maxKeyText = 100_000
	maxBytes   = 3 << 20
)

// Parse reads a section as JSON, strictly.
func Parse(name string, data []byte) (*Section, error) {
	if len(data) > maxBytes {
		return nil, fmt.Errorf("reading %s: %d bytes, more than %d", name, len(data), maxBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var s Section
	if err := dec.Decode(&s); err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading %s: more than one JSON value", name)
	}
	s.Whole()
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return &s, nil
}

var (
	nameForm    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@+:/-]{0,199}$`)
	idForm      = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)
	orgForm     = regexp.MustCompile(`^ORG_SOURCE_[A-Z0-9_]{1,80}$`)
	checkForm   = regexp.MustCompile(`^[a-z][a-z0-9-]{0,40}$`)
	countForm   = regexp.MustCompile(`^[0-9]$`)
	openpgpForm = regexp.MustCompile(`^[0-9A-F]{40}([0-9A-F]{24})?$`)
	issuerForm  = regexp.MustCompile(`^(https://[^/\s?#@]+|http://(127\.0\.0\.1|localhost):[0-9]+)(/[!-~]*)?$`)
	claimForm   = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_:./-]{0,100}$`)
	domainForm  = regexp.MustCompile(`^[a-z0-9._-]{1,255}$`)
	spiffeForm  = regexp.MustCompile(`^spiffe://[a-z0-9._-]+/[A-Za-z0-9._/-]+$`)
)

// Check reports what is wrong with a section, by its field.
func (s *Section) Check() error {
	if len(s.Principals) > maxEntries || len(s.Grants) > maxEntries || len(s.Refs) > maxList {
		return fmt.Errorf("principals, grants: at most %d, refs: at most %d", maxEntries, maxList)
	}
	if err := s.checkIssuers(); err != nil {
		return err
	}
	people, err := s.checkPrincipals()
	if err != nil {
		return err
	}
	ids := map[string]bool{}
	for i, g := range s.Grants {
		at := fmt.Sprintf("grants[%d]", i)
		switch {
		case !idForm.MatchString(g.ID) || ids[g.ID]:
			return fmt.Errorf("%s.id: %.80q: want lower-case letters, digits and hyphens, each once", at, g.ID)
		case !knows(s.Principals, g.Principal):
			return fmt.Errorf("%s.principal: there is no principal %.80q", at, g.Principal)
		case !g.Role.Known():
			return fmt.Errorf("%s.role: %.40q: want one of %s", at, g.Role, strings.Join(roleNames(), ", "))
		case !people[g.Owner]:
			return fmt.Errorf("%s.owner: %.80q is no person of this section", at, g.Owner)
		case strings.TrimSpace(g.Reason) == "" || len(g.Reason) > maxText || control(g.Reason):
			return fmt.Errorf("%s.reason: want one line that says why", at)
		case g.NotBefore.IsZero():
			return fmt.Errorf("%s.notBefore: want a time", at)
		case !g.NotAfter.IsZero() && !g.NotAfter.After(g.NotBefore):
			return fmt.Errorf("%s.notAfter: it ends before it begins", at)
		}
		if g.Role.beyondPaths() && !slices.Equal(g.Paths, []string{"**"}) {
			return fmt.Errorf("%s.paths: role %s approves, lands, tags or runs what others wrote, whatever its paths: want **", at, g.Role)
		}
		ids[g.ID] = true
		if err := errors.Join(patterns(at+".repositories", g.Repositories), patterns(at+".refs", g.Refs), patterns(at+".paths", g.Paths)); err != nil {
			return err
		}
	}
	return s.checkRefs(people)
}

func (s *Section) checkPrincipals() (people map[string]bool, err error) {
	people, names, credentials := map[string]bool{}, map[string]bool{}, map[string]string{}
	for i, p := range s.Principals {
		at := fmt.Sprintf("principals[%d]", i)
		for _, n := range append([]string{p.Name}, p.Aliases...) {
			if !nameForm.MatchString(n) || names[strings.ToLower(n)] {
				return nil, fmt.Errorf("%s: name %.80q: want a mail address, name or SPIFFE ID that nobody else has", at, n)
			}
			names[strings.ToLower(n)] = true
		}
		switch p.Kind {
		case Person:
			people[p.Name] = true
			if p.Owner != "" {
				return nil, fmt.Errorf("%s.owner: a person answers for themselves", at)
			}
		case Robot:
		case Workload:
			if !spiffeForm.MatchString(p.Name) {
				return nil, fmt.Errorf("%s.name: a workload's is its SPIFFE ID", at)
			}
		default:
			return nil, fmt.Errorf("%s.kind: %.40q: want person, robot or workload", at, p.Kind)
		}
		for _, k := range p.SSHKeys {
			print, err := keyPrint(k)
			if err != nil {
				return nil, fmt.Errorf("%s.sshKeys: %w", at, err)
			}
			if who, taken := credentials[print]; taken {
				return nil, fmt.Errorf("%s.sshKeys: %s is a key of %s already: a credential belongs to one principal", at, print, who)
			}
			credentials[print] = p.Name
		}
		for _, o := range p.OIDC {
			if !issuerForm.MatchString(o.Issuer) || o.Subject == "" || len(o.Subject) > maxText || !ascii(o.Subject) {
				return nil, fmt.Errorf("%s.oidc: want an https issuer and a subject in ASCII: %+.80q", at, o.Subject)
			}
			c := o.Issuer + "\x00" + o.Subject
			if who, taken := credentials[c]; taken {
				return nil, fmt.Errorf("%s.oidc: %s of %s is %s already", at, o.Subject, o.Issuer, who)
			}
			credentials[c] = p.Name
		}
		if err := p.checkSigning(at, credentials); err != nil {
			return nil, err
		}
	}
	for i, p := range s.Principals {
		if p.Kind != Person && !people[p.Owner] {
			return nil, fmt.Errorf("principals[%d].owner: %.80q is no person of this section", i, p.Owner)
		}
	}
	return people, nil
}

func (s *Section) checkIssuers() error {
	seen := map[string]bool{}
	for i, o := range s.Issuers {
		at := fmt.Sprintf("issuers[%d]", i)
		switch {
		case !issuerForm.MatchString(o.URL) || !ascii(o.URL) || len(o.URL) > maxText || seen[o.URL]:
			return fmt.Errorf("%s.issuer: %+.120q: want https://HOST[/PATH] as its tokens say it, each once", at, o.URL)
		case o.Audience == "" || !ascii(o.Audience) || len(o.Audience) > maxText:
			return fmt.Errorf("%s.audience: %+.80q: want the client id that tokens are for", at, o.Audience)
		case !claimForm.MatchString(o.Claim):
			return fmt.Errorf("%s.claim: %+.80q: want the claim that names the principal, such as sub", at, o.Claim)
		case o.Flow != FlowCode && o.Flow != FlowToken:
			return fmt.Errorf("%s.flow: %.40q: want %s or %s", at, o.Flow, FlowCode, FlowToken)
		case len(o.Require) > 50:
			return fmt.Errorf("%s.require: want at most 50 claims", at)
		}
		for name, value := range o.Require {
			if !claimForm.MatchString(name) || value == "" || !ascii(value) || len(value) > maxText {
				return fmt.Errorf("%s.require: %+.80q=%+.80q: want a claim and its value", at, name, value)
			}
		}
		seen[o.URL] = true
	}
	factors := map[string]bool{}
	for i, f := range s.SecondFactors {
		print, err := keyPrint(f.Key)
		switch {
		case err != nil:
			return fmt.Errorf("secondFactors[%d].key: %w", i, err)
		case !strings.HasPrefix(f.Key, "sk-ssh-ed25519@openssh.com ") && !strings.HasPrefix(f.Key, "sk-ecdsa-sha2-nistp256@openssh.com "):
			return fmt.Errorf("secondFactors[%d].key: a %.40s is no FIDO key: ssh-keygen -t ed25519-sk makes one", i, f.Key)
		case factors[print]:
			return fmt.Errorf("secondFactors[%d].key: %s stands twice: a key is of one administrator", i, print)
		case !nameForm.MatchString(f.Administrator):
			return fmt.Errorf("secondFactors[%d].administrator: %.80q: want the name of an administrator", i, f.Administrator)
		}
		factors[print] = true
	}
	for i, d := range s.TrustDomains {
		at := fmt.Sprintf("trustDomains[%d]", i)
		if !domainForm.MatchString(d.Name) || seen["spiffe://"+d.Name] {
			return fmt.Errorf("%s.name: %+.80q: want the name of a trust domain, each once", at, d.Name)
		}
		if d.Authorities == "" || len(d.Authorities) > maxKeyText {
			return fmt.Errorf("%s.authorities: want certificates in PEM", at)
		}
		seen["spiffe://"+d.Name] = true
	}
	return nil
}

// ascii keeps names apart that look alike.
func ascii(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// checkSigning checks what a principal signs with. Whether keys and certificates
// are what they are called is seen where they are read.
func (p Principal) checkSigning(at string, credentials map[string]string) error {
	take := func(field, c string) error {
		if who, taken := credentials[c]; taken {
			return fmt.Errorf("%s.%s: %.200q is of %s already: a credential belongs to one principal", at, field, c, who)
		}
		credentials[c] = p.Name
		return nil
	}
	for _, k := range p.OpenPGP {
		if !openpgpForm.MatchString(k.Fingerprint) || len(k.Key) > maxKeyText {
			return fmt.Errorf("%s.openpgp: %.80q: want a whole fingerprint in upper-case hex and a key of at most %d characters", at, k.Fingerprint, maxKeyText)
		}
		if err := take("openpgp", "openpgp:"+k.Fingerprint); err != nil {
			return err
		}
	}
	for _, c := range p.X509 {
		if kind, value, _ := strings.Cut(c.Name, ":"); kind != "email" && kind != "uri" || value == "" || control(c.Name) || len(c.Name) > maxText || len(c.Authority) > maxKeyText {
			return fmt.Errorf("%s.x509: %.80q: want email:ADDRESS or uri:URI, and an authority", at, c.Name)
		}
		if err := take("x509", "x509:"+c.Name+" "+c.Authority); err != nil {
			return err
		}
	}
	return nil
}

func (s *Section) checkRefs(people map[string]bool) error {
	seen := map[string]bool{}
	for i, r := range s.Refs {
		at := fmt.Sprintf("refs[%d]", i)
		switch {
		case !idForm.MatchString(r.Name) || seen[r.Name]:
			return fmt.Errorf("%s.name: %.80q: want lower-case letters, digits and hyphens, each once", at, r.Name)
		case r.History != Descend && r.History != Rewrite:
			return fmt.Errorf("%s.history: %.40q: want %s or %s", at, r.History, Descend, Rewrite)
		case !countForm.MatchString(r.Approvals):
			return fmt.Errorf("%s.approvals: %.20q: want a number from 0 to 9", at, r.Approvals)
		case r.History == Rewrite && r.Approvals != "0":
			return fmt.Errorf("%s.approvals: what was approved could be rewritten; want history %s", at, Descend)
		}
		seen[r.Name] = true
		if err := errors.Join(patterns(at+".repositories", r.Repositories), patterns(at+".refs", r.Refs)); err != nil {
			return err
		}
		for _, c := range r.Checks {
			if !checkForm.MatchString(c) {
				return fmt.Errorf("%s.checks: %.40q is no name of a check", at, c)
			}
		}
		for _, p := range r.Properties {
			if !orgForm.MatchString(p) {
				return fmt.Errorf("%s.properties: %.80q: want ORG_SOURCE_… (SLSA v1.2 Source track)", at, p)
			}
		}
		for j, o := range r.Owners {
			if err := patterns(fmt.Sprintf("%s.owners[%d].paths", at, j), o.Paths); err != nil {
				return err
			}
			if len(o.Owners) == 0 {
				return fmt.Errorf("%s.owners[%d].owners: want at least one person", at, j)
			}
			for _, who := range o.Owners {
				if !people[who] {
					return fmt.Errorf("%s.owners[%d].owners: %.80q is no person of this section", at, j, who)
				}
			}
		}
	}
	return nil
}

func knows(all []Principal, name string) bool {
	return slices.ContainsFunc(all, func(p Principal) bool { return p.Name == name })
}

func control(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// keyPrint reads KEYTYPE KEY and returns the key's fingerprint.
func keyPrint(line string) (string, error) {
	kind, key, ok := strings.Cut(line, " ")
	raw, err := base64.StdEncoding.DecodeString(key)
	if !ok || err != nil {
		return "", fmt.Errorf("%.60q: want KEYTYPE KEY, as in a .pub file without its comment", line)
	}
	pub, err := ssh.ParsePublicKey(raw)
	if err != nil || pub.Type() != kind {
		return "", fmt.Errorf("%.60q: want KEYTYPE KEY, as in a .pub file without its comment", line)
	}
	return ssh.FingerprintSHA256(pub), nil
}

// patterns checks a list of patterns: * stands for what is between slashes, **
// at the end for everything below.
func patterns(field string, list []string) error {
	if len(list) == 0 || len(list) > maxList {
		return fmt.Errorf("%s: want 1 to %d patterns; ** is everything", field, maxList)
	}
	for _, p := range list {
		if p == "" || len(p) > maxText || control(p) || strings.Contains(strings.TrimSuffix(p, "**"), "**") || strings.Count(p, "*") > 6 {
			return fmt.Errorf("%s: %.80q: want a name; * stands for a part of it between slashes, ** at its end for all below", field, p)
		}
	}
	return nil
}

// Matches reports whether one of the patterns fits the whole of a name.
func Matches(list []string, name string) bool {
	return slices.ContainsFunc(list, func(p string) bool { return match(p, name) })
}

func match(pattern, name string) bool {
	if head, ok := strings.CutSuffix(pattern, "**"); ok {
		if !strings.Contains(head, "*") {
			return strings.HasPrefix(name, head)
		}
		for i := range len(name) + 1 {
			if match(head, name[:i]) {
				return true
			}
		}
		return false
	}
	before, after, ok := strings.Cut(pattern, "*")
	if !ok {
		return pattern == name
	}
	rest, ok := strings.CutPrefix(name, before)
	if !ok {
		return false
	}
	for i := 0; ; i++ {
		if match(after, rest[i:]) {
			return true
		}
		if i == len(rest) || rest[i] == '/' {
			return false
		}
	}
}
