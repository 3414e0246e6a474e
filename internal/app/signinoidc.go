// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/identity"
)

// SignInIssuer is an issuer as clients are told of it.
type SignInIssuer struct {
	Issuer   string `json:"issuer"`
	Audience string `json:"audience"`
	Flow     string `json:"flow"`
}

// SignInToken asks for a token of ours by one of an OpenID Connect issuer.
type SignInToken struct {
	SignIn
	Token string `json:"token"`
}

// nonce is what a browser's token must answer: the whole request, so that nobody
// can widen it.
func (c Challenge) nonce(a SignIn) string {
	sum := sha256.Sum256(c.text(a))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func issuersOf(b *access.Book) []identity.Issuer {
	var out []identity.Issuer
	for _, i := range b.Issuers() {
		out = append(out, identity.Issuer{URL: i.URL, Audience: i.Audience, Claim: i.Claim, Require: i.Require})
	}
	return out
}

func (s *Server) issuers(w http.ResponseWriter, _ *http.Request) {
	rules, err := s.current()
	if err != nil {
		s.answer(w, nil, err)
		return
	}
	out := []SignInIssuer{}
	for _, i := range rules.book.Issuers() {
		out = append(out, SignInIssuer{i.URL, i.Audience, i.Flow})
	}
	s.answer(w, out, nil)
}

func (s *Server) signInOIDC(w http.ResponseWriter, r *http.Request) {
	var a SignInToken
	if err := readJSON(w, r, &a); err != nil {
		s.answer(w, nil, err)
		return
	}
	out, err := s.signedInOIDC(r.Context(), a)
	s.refusedCredential(r.Context(), r, "", err)
	s.answer(w, out, err)
}

// signedInOIDC takes a token of an issuer that the policy lists, once: for a
// person's request the one that answers it, for a robot's any.
func (s *Server) signedInOIDC(ctx context.Context, a SignInToken) (Issued, error) {
	refused := func(format string, args ...any) error {
		return hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodeAccessCredential, "signing in: "+format, args...),
			"an administrator registers issuers and subjects: hallmark access issuer URL --audience ID, hallmark access principal NAME --oidc ISSUER#SUBJECT")
	}
	rules, err := s.current()
	if err != nil {
		return Issued{}, err
	}
	v, err := s.oidc.Verify(ctx, issuersOf(rules.book), a.Token)
	if hallmark.KindOf(err) == hallmark.KindUnavailable {
		return Issued{}, err
	}
	if err != nil {
		return Issued{}, refused("the token is refused: %s", err)
	}
	all := rules.book.Issuers()
	i := slices.IndexFunc(all, func(i access.Issuer) bool { return i.URL == v.Issuer })
	if i < 0 {
		return Issued{}, refused("issuer %s is not listed", v.Issuer)
	}
	if all[i].Flow != access.FlowToken {
		ok, err := s.home.stores.index.TakeChallenge(ctx, a.Nonce, now())
		if err != nil {
			return Issued{}, err
		}
		c := Challenge{Nonce: a.Nonce, Origin: s.home.id.origin()}
		switch {
		case !ok:
			return Issued{}, refused("the challenge is unknown, used or too old")
		case v.Nonce != c.nonce(a.SignIn):
			return Issued{}, refused("the token answers another request")
		}
	}
	used, err := s.home.stores.index.UseCredential(ctx, string(v.Token), v.Expires, now())
	if err != nil {
		return Issued{}, err
	}
	if used && !s.parts.ignores(hallmark.Reason{Code: hallmark.CodeAccessCredential, Check: "oidc-replay"}) {
		return Issued{}, refused("the token was used before; each is good once")
	}
	who, ok := rules.book.WithSubject(access.Subject{Issuer: v.Issuer, Subject: v.Subject})
	if !ok {
		who, ok = s.parts.alike(rules.book, v)
	}
	switch {
	case !ok:
		return Issued{}, refused("the policy names nobody who is %+q at %s", v.Subject, v.Issuer)
	case a.Principal != "" && who.Name != a.Principal:
		return Issued{}, refused("%q at %s is %s, not %.80q", v.Subject, v.Issuer, who.Name, a.Principal)
	}
	life, err := time.ParseDuration(a.Life)
	if err != nil {
		return Issued{}, hallmark.Errorf(hallmark.KindUsage, "life %.40q: want a duration such as 8h", a.Life)
	}
	by := hallmark.Principal{Name: who.Name, Key: "oidc:" + v.Issuer + "#" + v.Subject, Method: "oidc"}
	return s.home.issue(ctx, s.signer.sign, rules.policy, who, by, a.Scopes, a.Repository, life)
}

// Issuers asks a server who may vouch for somebody.
func (c *Client) Issuers(ctx context.Context) ([]SignInIssuer, error) {
	var out []SignInIssuer
	return out, c.call(ctx, http.MethodGet, "/api/v1/issuers", nil, &out)
}

// SignInBrowser signs in by a browser at an issuer; "" is the only one there is.
func (c *Client) SignInBrowser(ctx context.Context, issuer string, a SignIn, open func(url string)) (Issued, error) {
	all, err := c.Issuers(ctx)
	if err != nil {
		return Issued{}, err
	}
	all = slices.DeleteFunc(all, func(i SignInIssuer) bool { return i.Flow != access.FlowCode || issuer != "" && i.Issuer != issuer })
	if len(all) != 1 {
		var names []string
		for _, i := range all {
			names = append(names, i.Issuer)
		}
		return Issued{}, hallmark.WithHint(hallmark.Errorf(hallmark.KindUsage, "%d issuers fit, one is wanted: %s", len(all), strings.Join(names, ", ")),
			"name it with --issuer URL; an administrator lists one with hallmark access issuer URL --audience ID")
	}
	var ch Challenge
	if err := c.call(ctx, http.MethodPost, "/api/v1/challenge", nil, &ch); err != nil {
		return Issued{}, err
	}
	a.Nonce = ch.Nonce
	token, err := identity.NewOIDC(nil, now).Browse(ctx, identity.Issuer{URL: all[0].Issuer, Audience: all[0].Audience}, ch.nonce(a), open)
	if err != nil {
		return Issued{}, hallmark.Errorf(hallmark.KindDenied, "signing in at %s: %w", all[0].Issuer, err)
	}
	return c.signInToken(ctx, SignInToken{SignIn: a, Token: token})
}

// SignInToken signs in by a token that an issuer gave to a robot.
func (c *Client) SignInToken(ctx context.Context, token []byte, a SignIn) (Issued, error) {
	return c.signInToken(ctx, SignInToken{SignIn: a, Token: strings.TrimSpace(string(token))})
}

func (c *Client) signInToken(ctx context.Context, a SignInToken) (Issued, error) {
	var out Issued
	return out, c.call(ctx, http.MethodPost, "/api/v1/sign-in/oidc", a, &out)
}

// IssuerChange is what is said of one issuer.
type IssuerChange struct {
	URL, Audience, Claim, Flow string
	Require                    []string // CLAIM=VALUE
	Remove                     bool
}

// Apply adds, replaces or removes an issuer. Its subjects stay, and nobody vouches
// for them.
func (c IssuerChange) Apply(s *access.Section) error {
	i := slices.IndexFunc(s.Issuers, func(o access.Issuer) bool { return o.URL == c.URL })
	if c.Remove {
		if i < 0 {
			return hallmark.Errorf(hallmark.KindUsage, "there is no issuer %.120q", c.URL)
		}
		s.Issuers = slices.Delete(s.Issuers, i, i+1)
		return nil
	}
	if err := identity.CheckIssuer(c.URL); err != nil {
		return hallmark.Errorf(hallmark.KindUsage, "%w", err)
	}
	n := access.Issuer{URL: c.URL, Audience: c.Audience, Claim: c.Claim, Flow: c.Flow}
	for _, r := range c.Require {
		name, value, ok := strings.Cut(r, "=")
		if _, twice := n.Require[name]; !ok || twice {
			return hallmark.Errorf(hallmark.KindUsage, "--require %.80q: want CLAIM=VALUE, each claim once", r)
		}
		if n.Require == nil {
			n.Require = map[string]string{}
		}
		n.Require[name] = value
	}
	if i < 0 {
		s.Issuers = append(s.Issuers, n)
	} else {
		s.Issuers[i] = n
	}
	return nil
}
