// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// issuer is an OpenID Connect provider that says what a test wants.
type issuer struct {
	*httptest.Server
	key   *rsa.PrivateKey
	kid   string
	asked atomic.Int32 // for keys
	alter func(w http.ResponseWriter, r *http.Request) bool
}

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	i := &issuer{kid: "one"}
	i.rotate(t, "one")
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if i.alter != nil && i.alter(w, r) {
			return
		}
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q,"authorization_endpoint":%q,"token_endpoint":%q,"id_token_signing_alg_values_supported":["RS256","HS256","none"]}`,
				i.URL, i.URL+"/keys", i.URL+"/authorize", i.URL+"/token")
		case "/keys":
			i.asked.Add(1)
			n, e := base64.RawURLEncoding.EncodeToString(i.key.N.Bytes()), base64.RawURLEncoding.EncodeToString(big.NewInt(int64(i.key.E)).Bytes())
			fmt.Fprintf(w, `{"keys":[{"kty":"RSA","use":"sig","alg":"RS256","kid":%q,"n":%q,"e":%q}]}`, i.kid, n, e)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(i.Close)
	return i
}

func (i *issuer) rotate(t testing.TB, kid string) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	i.key, i.kid = key, kid
}

// claims are those of a good token, with some altered; nil takes one away.
func (i *issuer) claims(alter map[string]any) map[string]any {
	now := time.Now().Unix()
	c := map[string]any{"iss": i.URL, "sub": "alice", "aud": "hallmark", "iat": now - 5, "exp": now + 300, "nonce": "n"}
	maps.Copy(c, alter)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

func part(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func (i *issuer) token(alter map[string]any) string { return i.signed(part(i.claims(alter))) }

func (i *issuer) signed(payload string) string {
	return i.with(map[string]any{"alg": "RS256", "kid": i.kid}, payload)
}

func (i *issuer) with(header map[string]any, payload string) string {
	head := part(header) + "." + payload
	sum := sha256.Sum256([]byte(head))
	sig, err := rsa.SignPKCS1v15(rand.Reader, i.key, crypto.SHA256, sum[:])
	if err != nil {
		panic(err)
	}
	return head + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// brought is a token that brings the key along that it is signed with.
func (i *issuer) brought(payload string) string {
	n, e := base64.RawURLEncoding.EncodeToString(i.key.N.Bytes()), base64.RawURLEncoding.EncodeToString(big.NewInt(int64(i.key.E)).Bytes())
	return i.with(map[string]any{"alg": "RS256", "jwk": map[string]any{"kty": "RSA", "n": n, "e": e}}, payload)
}

// hs is signed with the bytes of a public key as a shared secret.
func (i *issuer) hs(secret []byte) string {
	head := part(map[string]any{"alg": "HS256", "kid": i.kid}) + "." + part(i.claims(nil))
	m := hmac.New(sha256.New, secret)
	m.Write([]byte(head))
	return head + "." + base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

func TestOIDC(t *testing.T) {
	i, other := newIssuer(t), newIssuer(t)
	o := NewOIDC(nil, time.Now)
	list := []Issuer{{URL: i.URL, Audience: "hallmark", Claim: "sub"}}
	der, err := x509.MarshalPKIXPublicKey(i.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Unix()
	unsigned := part(map[string]any{"alg": "none"}) + "." + part(i.claims(nil)) + "."
	otherKey := &issuer{Server: i.Server, key: other.key, kid: i.kid}
	good := i.token(nil)
	for name, tc := range map[string]struct{ token, want string }{
		"good":              {good, ""},
		"two audiences":     {i.token(map[string]any{"aud": []string{"hallmark", "x"}, "azp": "hallmark"}), ""},
		"soon":              {i.token(map[string]any{"nbf": now + 60}), ""},
		"audience":          {i.token(map[string]any{"aud": "other"}), "audience"},
		"no audience":       {i.token(map[string]any{"aud": nil}), "audience"},
		"one of audiences":  {i.token(map[string]any{"aud": []string{"hallmark", "x"}}), "for"},
		"given to another":  {i.token(map[string]any{"azp": "x"}), "was given to"},
		"issuer":            {other.token(nil), "not one that the policy lists"},
		"issuer, right key": {i.token(map[string]any{"iss": other.URL}), "not one that the policy lists"},
		"issuer, slash":     {i.token(map[string]any{"iss": i.URL + "/"}), "not one that the policy lists"},
		"issuer, case":      {i.token(map[string]any{"iss": strings.ToUpper(i.URL)}), "not one that the policy lists"},
		"key of another":    {otherKey.token(nil), "verify"},
		"expired":           {i.token(map[string]any{"exp": now - 1}), "expired"},
		"no end":            {i.token(map[string]any{"exp": nil}), "expired"},
		"not yet":           {i.token(map[string]any{"nbf": now + 3600}), "nbf"},
		"of the future":     {i.token(map[string]any{"iat": now + 3600, "exp": now + 7200}), "in the future"},
		"old":               {i.token(map[string]any{"iat": now - 7200}), "more than 1h0m0s ago"},
		"no issue":          {i.token(map[string]any{"iat": nil}), "issued"},
		"none":              {unsigned, "it is no signed token"},
		"hs256 of the DER":  {i.hs(der), "unexpected signature algorithm"},
		"hs256 of the PEM":  {i.hs(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), "unexpected signature algorithm"},
		"no subject":        {i.token(map[string]any{"sub": nil}), "names nobody"},
		"number":            {i.token(map[string]any{"sub": 1}), ""},
		"look-alike":        {i.token(map[string]any{"sub": "\u0430lice"}), "names nobody"},
		"control":           {i.token(map[string]any{"sub": "alice\n"}), "names nobody"},
		"claim twice":       {i.signed(base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"` + i.URL + `","sub":"bob","sub":"alice","aud":"hallmark"}`))), "stands twice"},
		"claim in capitals": {i.token(map[string]any{"SUB": "bob"}), "stands twice"},
		"altered":           {good[:len(good)-4] + "AAAA", "verify"},
		"two parts":         {good[:strings.LastIndex(good, ".")], "no signed token"},
		"empty":             {"", "bytes"},
		"huge":              {good + strings.Repeat("A", maxToken), "bytes"},
		"a key of its own":  {other.brought(part(i.claims(nil))), "verify"},
		"claims are a list": {part(map[string]any{"alg": "RS256"}) + "." + part([]string{}) + ".AA", "no object"},
	} {
		if name == "number" {
			tc.want = "json"
		}
		v, err := o.Verify(t.Context(), list, tc.token)
		if (tc.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
		if err == nil && (v.Issuer != i.URL || v.Subject != "alice" || v.Nonce != "n" || v.Token.Check() != nil || v.Expires.Before(time.Now())) {
			t.Errorf("%s: %+v", name, v)
		}
	}
	n := i.asked.Load()
	i.rotate(t, "two")
	if _, err := o.Verify(t.Context(), list, i.token(nil)); err != nil || i.asked.Load() != n+1 {
		t.Errorf("a new key: %v, asked %d times", err, i.asked.Load()-n)
	}
	if _, err := o.Verify(t.Context(), list, good); err == nil {
		t.Error("a key that the issuer took away")
	}
}

// TestOIDCForms: libraries read other forms of signed tokens too. In them what stands
// between two dots is not what was signed, and one token has many spellings.
func TestOIDCForms(t *testing.T) {
	i := newIssuer(t)
	o := NewOIDC(nil, time.Now)
	list := []Issuer{{URL: i.URL, Audience: "hallmark", Claim: "sub"}}
	good := i.token(map[string]any{"sub": "mallory"})
	p := strings.Split(good, ".")
	forged := part(i.claims(map[string]any{"sub": "alice"}))
	whole := fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, p[0], p[1], p[2])
	for name, token := range map[string]string{
		"JSON":              fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q,"x":"a.%s.c"}`, p[0], p[1], p[2], forged),
		"JSON without dots": whole,
		"general JSON":      fmt.Sprintf(`{"payload":%q,"signatures":[{"protected":%q,"signature":%q}],"x":"a.%s.c"}`, p[1], p[0], p[2], forged),
		"a line feed in it": p[0] + "." + p[1] + "\n." + p[2],
		"a carriage return": p[0] + "." + p[1][:4] + "\r" + p[1][4:] + "." + p[2],
		"another payload":   p[0] + "." + forged + "." + p[2],
		"padded":            p[0] + "." + p[1] + "=." + p[2],
	} {
		if v, err := o.Verify(t.Context(), list, token); err == nil {
			t.Errorf("%s: %+v", name, v)
		}
	}
	v, err := o.Verify(t.Context(), list, good)
	if err != nil || v.Subject != "mallory" {
		t.Fatalf("%+v %v", v, err)
	}
	// Signed again, or spelled with another signature, it is the token that was used.
	again, err := o.Verify(t.Context(), list, i.signed(p[1]))
	if err != nil || again.Token != v.Token {
		t.Errorf("%+v %v", again, err)
	}
}

func TestOIDCClaims(t *testing.T) {
	i := newIssuer(t)
	o := NewOIDC(nil, time.Now)
	list := []Issuer{{URL: i.URL, Audience: "hallmark", Claim: "email", Require: map[string]string{"repository": "org/app", "protected": "true"}}}
	with := map[string]any{"email": "a@example.org", "email_verified": true, "repository": "org/app", "protected": true}
	but := func(k string, v any) string {
		m := maps.Clone(with)
		m[k] = v
		return i.token(m)
	}
	if v, err := o.Verify(t.Context(), list, i.token(with)); err != nil || v.Subject != "a@example.org" {
		t.Errorf("%+v, %v", v, err)
	}
	for name, token := range map[string]string{
		"unverified": but("email_verified", false), "unverified text": but("email_verified", "true"), "not verified": but("email_verified", nil),
		"other": but("repository", "org/app2"), "none": but("repository", nil), "null": but("protected", "<nil>"), "unprotected": but("protected", false),
	} {
		if v, err := o.Verify(t.Context(), list, token); err == nil {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

// TestOIDCDiscovery plays issuers that send whoever asks elsewhere, or too much.
func TestOIDCDiscovery(t *testing.T) {
	for name, tc := range map[string]struct {
		alter func(i, evil *issuer, w http.ResponseWriter, r *http.Request) bool
		want  string
	}{
		"redirected": {func(_, evil *issuer, w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, evil.URL+r.URL.Path, http.StatusFound)
			return true
		}, "redirects"},
		"keys redirected": {func(_, evil *issuer, w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/keys" {
				return false
			}
			http.Redirect(w, r, evil.URL+"/keys", http.StatusFound)
			return true
		}, "redirects"},
		"names another": {func(_, evil *issuer, w http.ResponseWriter, _ *http.Request) bool {
			fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, evil.URL, evil.URL+"/keys")
			return true
		}, "did not match"},
		"keys in the clear": {func(i, _ *issuer, w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/keys" {
				return false
			}
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":"http://example.org/keys"}`, i.URL)
			return true
		}, "https"},
		"huge discovery": {func(_, _ *issuer, w http.ResponseWriter, _ *http.Request) bool {
			w.Write(make([]byte, maxDocument+1))
			return true
		}, "sends more than"},
		"huge keys": {func(_, _ *issuer, w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/keys" {
				return false
			}
			fmt.Fprintf(w, `{"keys":[%s]}`, strings.Repeat(" ", 64<<20))
			return true
		}, "sends more than"},
		"broken": {func(_, _ *issuer, w http.ResponseWriter, _ *http.Request) bool {
			fmt.Fprint(w, `{`)
			return true
		}, ""},
	} {
		i, evil := newIssuer(t), newIssuer(t)
		evil.key, evil.kid = i.key, i.kid
		i.alter = func(w http.ResponseWriter, r *http.Request) bool { return tc.alter(i, evil, w, r) }
		_, err := NewOIDC(nil, time.Now).Verify(t.Context(), []Issuer{{URL: i.URL, Audience: "hallmark", Claim: "sub"}}, i.token(nil))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
		if evil.asked.Load() != 0 {
			t.Errorf("%s: another was asked", name)
		}
	}
	if _, err := NewOIDC(nil, time.Now).Verify(t.Context(), []Issuer{{URL: "http://example.org", Audience: "hallmark", Claim: "sub"}}, (&issuer{Server: &httptest.Server{URL: "http://example.org"}, key: newIssuer(t).key}).token(nil)); hallmark.KindOf(err) != hallmark.KindUnavailable {
		t.Errorf("an issuer in the clear: %v", err)
	}
}

func TestCheckIssuer(t *testing.T) {
	for _, good := range []string{"https://accounts.example.org", "https://example.org/realms/x", "http://127.0.0.1:5556/dex", "http://localhost:9998/", "http://[::1]:1"} {
		if err := CheckIssuer(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "example.org", "http://example.org", "https://user@example.org", "https://example.org?x", "https://example.org#x", "ftp://example.org", "http://127.0.0.1.example.org",
		"https://ex\u0430mple.org", "https://example.org/ x", "https:example.org", "http://localhost.example.org"} {
		if CheckIssuer(bad) == nil {
			t.Errorf("accepted %q", bad)
		}
	}
}

func FuzzReadClaims(f *testing.F) {
	f.Add(`{"sub":"a"}`)
	f.Add(`{"a":1,"A":2}`)
	f.Fuzz(func(t *testing.T, token string) {
		c, err := readClaims([]byte(token))
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for name := range c {
			if seen[strings.ToLower(name)] {
				t.Errorf("%q stands twice", name)
			}
			seen[strings.ToLower(name)] = true
		}
	})
}
