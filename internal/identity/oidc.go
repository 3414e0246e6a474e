// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/hallmark-sc/hallmark"
)

// Issuer is an OpenID Connect provider that may vouch for somebody.
type Issuer struct {
	URL      string            // as its tokens say it, exactly
	Audience string            // whom its tokens must be for
	Claim    string            // the claim that names the principal, such as sub
	Require  map[string]string // claims that a token must have, with these values
}

// Vouched is what a verified token says.
type Vouched struct {
	Issuer, Subject string // Subject is the value of the issuer's claim
	Nonce           string
	Token           hallmark.Digest // of the token, which is good once
	Expires         time.Time       // from then on no token is taken that was before
}

// Limits on what an issuer sends and on tokens.
const (
	maxToken    = 16 << 10
	maxDocument = 512 << 10 // of discovery and keys
	fetchTime   = 10 * time.Second
	discoveryIn = time.Hour // a discovery is believed for so long
	tokenAge    = time.Hour // since it was issued
)

// CheckIssuer checks where an issuer is: https, or plain http on this machine.
func CheckIssuer(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Opaque != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.String() != s || !printable(s) {
		return fmt.Errorf("issuer %.120q: want https://HOST[/PATH] as the tokens say it", s)
	}
	ip, err := netip.ParseAddr(u.Hostname())
	local := u.Hostname() == "localhost" || err == nil && ip.IsLoopback()
	if u.Scheme != "https" && (u.Scheme != "http" || !local) {
		return fmt.Errorf("issuer %.120q: want https; plain http is for issuers on this machine", s)
	}
	return nil
}

func printable(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// algorithms that tokens may be signed with: none is symmetric, for whoever checks
// such a token could have made it.
func algorithms() []string {
	return []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA}
}

// OIDC verifies tokens of issuers. It is safe for concurrent use.
type OIDC struct {
	client *http.Client
	clock  func() time.Time

	mu    sync.Mutex
	known map[string]discovered
}

type discovered struct {
	provider *oidc.Provider
	at       time.Time
}

// NewOIDC makes a verifier. transport reaches the issuers; nil goes by the
// machine's own authorities.
func NewOIDC(transport http.RoundTripper, clock func() time.Time) *OIDC {
	return &OIDC{client: issuerClient(transport), clock: clock, known: map[string]discovered{}}
}

// issuerClient follows no redirect and reads no more than a bound: whoever is
// listed as an issuer is asked, and nobody that it names instead.
func issuerClient(transport http.RoundTripper) *http.Client {
	if transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.Proxy = nil
		transport = t
	}
	return &http.Client{
		Transport: bounded{transport}, Timeout: fetchTime,
		CheckRedirect: func(r *http.Request, _ []*http.Request) error {
			return fmt.Errorf("the issuer redirects to %s, which is not followed", r.URL.Redacted())
		},
	}
}

type bounded struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := CheckIssuer((&url.URL{Scheme: r.URL.Scheme, Host: r.URL.Host}).String()); err != nil {
		return nil, err
	}
	res, err := b.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	res.Body = &limited{res.Body, maxDocument}
	return res, nil
}

// limited errs where a body is longer than it may be: a part of one is no answer.
type limited struct {
	io.ReadCloser
	left int
}

// Read implements io.Reader.
func (l *limited) Read(p []byte) (int, error) {
	n, err := l.ReadCloser.Read(p)
	if l.left -= n; l.left < 0 {
		return 0, fmt.Errorf("the issuer sends more than %d bytes", maxDocument)
	}
	return n, err
}

// provider is the discovery of an issuer, whose keys are fetched again when a token
// names one that is not known.
func (o *OIDC) provider(ctx context.Context, issuer string) (*oidc.Provider, error) {
	if err := CheckIssuer(issuer); err != nil {
		return nil, err
	}
	o.mu.Lock()
	d, ok := o.known[issuer]
	o.mu.Unlock()
	if ok && o.clock().Before(d.at.Add(discoveryIn)) {
		return d.provider, nil
	}
	// Keys are fetched in this context later on: it has no end, its client has.
	p, err := oidc.NewProvider(oidc.ClientContext(context.WithoutCancel(ctx), o.client), issuer)
	if err != nil {
		return nil, fmt.Errorf("asking issuer %s: %w", issuer, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.known[issuer] = discovered{p, o.clock()}
	return p, nil
}

// compactToken is a signed token (RFC 7519, JWS compact serialization).
var compactToken = regexp.MustCompile(`^[A-Za-z0-9_-]+\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+$`)

// readClaims are a token's own, of which no two could be taken for one.
func readClaims(payload []byte) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(payload))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("its claims are no object")
	}
	out, seen := map[string]any{}, map[string]bool{}
	for dec.More() {
		key, err := dec.Token()
		name, ok := key.(string)
		if err != nil || !ok || seen[strings.ToLower(name)] {
			return nil, fmt.Errorf("its claim %.60q can't be read, or stands twice", name)
		}
		seen[strings.ToLower(name)] = true
		var v any
		if err := dec.Decode(&v); err != nil {
			return nil, fmt.Errorf("its claim %.60q: %w", name, err)
		}
		out[name] = v
	}
	if _, err := dec.Token(); err != nil {
		return nil, errors.New("its claims do not end")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("its claims are followed by something")
	}
	return out, nil
}

// Verify checks a token against the issuers that are listed.
func (o *OIDC) Verify(ctx context.Context, issuers []Issuer, token string) (Vouched, error) {
	token = strings.TrimSpace(token)
	if len(token) == 0 || len(token) > maxToken {
		return Vouched{}, fmt.Errorf("a token of %d bytes; up to %d are read", len(token), maxToken)
	}
	// The compact form and no other: libraries read the JSON forms too, in which what
	// is between two dots is not what was signed.
	parts := compactToken.FindStringSubmatch(token)
	if parts == nil {
		return Vouched{}, errors.New("reading the token: it is no signed token")
	}
	payload, err := base64.RawURLEncoding.Strict().DecodeString(parts[1])
	if err != nil {
		return Vouched{}, fmt.Errorf("reading the token: decoding its claims: %w", err)
	}
	claims, err := readClaims(payload)
	if err != nil {
		return Vouched{}, fmt.Errorf("reading the token: %w", err)
	}
	said, _ := claims["iss"].(string)
	i := slices.IndexFunc(issuers, func(i Issuer) bool { return i.URL == said })
	if i < 0 {
		return Vouched{}, fmt.Errorf("its issuer %.120q is not one that the policy lists", said)
	}
	iss := issuers[i]
	p, err := o.provider(ctx, iss.URL)
	if err != nil {
		return Vouched{}, hallmark.Errorf(hallmark.KindUnavailable, "%w", err)
	}
	t, err := p.VerifierContext(oidc.ClientContext(ctx, o.client), &oidc.Config{ClientID: iss.Audience, SupportedSigningAlgs: algorithms(), Now: o.clock}).Verify(ctx, token)
	if err != nil {
		return Vouched{}, err
	}
	var verified json.RawMessage
	if err := t.Claims(&verified); err != nil || !bytes.Equal(verified, payload) {
		return Vouched{}, errors.New("reading the token: what was signed is something else")
	}
	return iss.vouched(t, claims, payload, o.clock())
}

func (iss Issuer) vouched(t *oidc.IDToken, claims map[string]any, payload []byte, now time.Time) (Vouched, error) {
	if t.Issuer != iss.URL {
		return Vouched{}, fmt.Errorf("it is of issuer %.120q", t.Issuer)
	}
	if azp, ok := claims["azp"]; len(t.Audience) != 1 && azp != iss.Audience || ok && azp != iss.Audience {
		return Vouched{}, fmt.Errorf("it is for %q and was given to %.80q, not to %q alone", t.Audience, fmt.Sprint(azp), iss.Audience)
	}
	switch {
	case t.IssuedAt.Unix() <= 0 || t.Expiry.Unix() <= 0:
		return Vouched{}, errors.New("it does not say when it was issued and until when it is good")
	case t.IssuedAt.After(now.Add(skew)):
		return Vouched{}, errors.New("it was issued in the future")
	case now.After(t.IssuedAt.Add(tokenAge)):
		return Vouched{}, fmt.Errorf("it was issued more than %s ago", tokenAge)
	}
	for name, want := range iss.Require {
		if got := claims[name]; fmt.Sprint(got) != want || got == nil {
			return Vouched{}, fmt.Errorf("its claim %s is %.80q, not %q", name, fmt.Sprint(got), want)
		}
	}
	subject, _ := claims[iss.Claim].(string)
	if !printable(strings.ReplaceAll(subject, " ", "_")) {
		return Vouched{}, fmt.Errorf("its claim %s is %+.80q, which names nobody", iss.Claim, subject)
	}
	if iss.Claim == "email" && claims["email_verified"] != true {
		return Vouched{}, errors.New("the issuer did not verify the mail address")
	}
	v := Vouched{Issuer: iss.URL, Subject: subject, Nonce: t.Nonce, Token: hallmark.DigestOf(append([]byte(iss.URL+"\x00"), payload...)), Expires: t.Expiry}
	if last := t.IssuedAt.Add(tokenAge + skew); last.After(v.Expires) {
		v.Expires = last
	}
	return v, nil
}
