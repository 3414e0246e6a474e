// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/identity"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/intoto"
)

// token finds the token of a request. Nobody is anybody without one.
func (s *Server) token(ctx context.Context, r *http.Request) (access.Token, error) {
	secret := ""
	if _, password, ok := r.BasicAuth(); ok {
		secret = password
	} else if t, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		secret = t
	}
	if secret == "" && r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		return s.workload(r)
	}
	hint := "sign in for a token: hallmark sign-in --server https://" + r.Host
	if secret == "" {
		return access.Token{}, hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodeAccessUnauthenticated, "nobody is signed in"), hint)
	}
	t, revoked, ok, err := s.home.stores.index.TokenOf(ctx, hallmark.DigestOf([]byte(secret)))
	switch {
	case err != nil:
		return t, err
	case !ok:
		return t, hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodeAccessCredential, "the token is not known"), hint)
	case revoked && !s.parts.ignores(hallmark.Reason{Code: hallmark.CodeAccessCredential, Check: "token"}):
		return t, hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodeAccessCredential, "token %s was withdrawn", t.ID), hint)
	case !now().Before(t.ExpiresAt) && !s.parts.ignores(hallmark.Reason{Code: hallmark.CodeAccessCredential, Check: "token"}):
		return t, hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodeAccessCredential, "token %s expired at %s", t.ID, t.ExpiresAt.Format(time.RFC3339)), hint)
	}
	rules, err := s.current()
	if err != nil {
		return t, err
	}
	if p, ok := rules.book.Named(t.Principal); (!ok || p.Name != t.Principal) && !s.parts.ignores(hallmark.Reason{Code: hallmark.CodeAccessPrincipal, Check: "token"}) {
		return t, hallmark.Coded(hallmark.KindDenied, hallmark.CodeAccessPrincipal, "token %s is of %s, whom the policy does not name any more", t.ID, t.Principal)
	}
	if err := s.wasIssued(ctx, t); err != nil {
		return t, hallmark.WithHint(err, hint)
	}
	return t, nil
}

// wasIssued wants the log to say that a token was issued as the index has it, and
// not that it was withdrawn: who can write to the database makes no token by that,
// widens none and brings none back. The statements are read again whenever there
// are others than at the last use.
func (s *Server) wasIssued(ctx context.Context, t access.Token) error {
	want := issueDetails(t)
	key := fmt.Sprint(t.ID, want)
	n, err := s.home.tokenRows(ctx, t.ID)
	if err != nil {
		return err
	}
	if seen, ok := s.issued.Load(key); ok && seen == n {
		return nil
	}
	records, err := s.home.tokenRecords(ctx, t.ID)
	if err != nil {
		return err
	}
	if withdrawn(records) && !s.parts.ignores(hallmark.Reason{Code: hallmark.CodeAccessCredential, Check: "token"}) {
		return hallmark.Coded(hallmark.KindDenied, hallmark.CodeAccessCredential, "token %s was withdrawn", t.ID)
	}
	for _, r := range records {
		if r.Action == issueAction && r.Actor.Method == t.Method && maps.Equal(r.Details, want) {
			s.issued.Store(key, n)
			return nil
		}
	}
	return hallmark.Coded(hallmark.KindDenied, hallmark.CodeAccessCredential, "the log does not say that token %s was issued as it is kept", t.ID)
}

const issueAction = "token.issue"

// issueDetails are what the log says of a token; its secret's digest tells
// nothing of the secret.
func issueDetails(t access.Token) map[string]string {
	var scopes []string
	for _, p := range t.Scopes {
		scopes = append(scopes, string(p))
	}
	return map[string]string{"principal": t.Principal, "scopes": strings.Join(scopes, " "), "repository": t.Repository, "expires": t.ExpiresAt.UTC().Format(time.RFC3339Nano), "secret": string(t.Digest)}
}

// challengeLife is how long a challenge may be answered.
const challengeLife = 2 * time.Minute

// Challenge is what whoever signs in has to sign.
type Challenge struct {
	Nonce  string `json:"nonce"`
	Origin string `json:"origin"` // of this server's log: a signature is good for no other
}

// text is what is signed: the whole request, so that nobody can widen it.
func (c Challenge) text(a SignIn) []byte {
	return []byte(strings.Join([]string{"hallmark sign-in", c.Origin, c.Nonce, a.Principal, a.Repository, strings.Join(a.Scopes, " "), a.Life}, "\n") + "\n")
}

// SignIn asks for a token by an SSH signature in the namespace
// hallmark-sign-in over Challenge's text.
type SignIn struct {
	Nonce      string   `json:"nonce"`
	Principal  string   `json:"principal"`
	Repository string   `json:"repository"` // pattern
	Scopes     []string `json:"scopes"`
	Life       string   `json:"life"` // such as 8h
	Signature  string   `json:"signature"`
}

// Issued is a token as its holder gets it, once.
type Issued struct {
	ID        string    `json:"id"`
	Token     string    `json:"token"`
	Principal string    `json:"principal"`
	ExpiresAt time.Time `json:"expiresAt"`
}

func (s *Server) challenge(w http.ResponseWriter, r *http.Request) {
	var b [24]byte
	if _, err := rand.Read(b[:]); err != nil {
		s.answer(w, nil, hallmark.Errorf(hallmark.KindInternal, "making a challenge: %w", err))
		return
	}
	c := Challenge{Nonce: base64.RawURLEncoding.EncodeToString(b[:]), Origin: s.home.id.origin()}
	err := s.home.stores.index.PutChallenge(r.Context(), c.Nonce, now().Add(challengeLife), now())
	s.answer(w, c, err)
}

func (s *Server) signIn(w http.ResponseWriter, r *http.Request) {
	var a SignIn
	if err := readJSON(w, r, &a); err != nil {
		s.answer(w, nil, err)
		return
	}
	out, err := s.signedIn(r.Context(), a)
	s.refusedCredential(r.Context(), r, "", err)
	s.answer(w, out, err)
}

func (s *Server) signedIn(ctx context.Context, a SignIn) (Issued, error) {
	refused := func(format string, args ...any) error {
		return hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodeAccessCredential, format, args...), "an administrator registers keys: hallmark access principal NAME --ssh-key FILE")
	}
	rules, err := s.current()
	if err != nil {
		return Issued{}, err
	}
	ok, err := s.home.stores.index.TakeChallenge(ctx, a.Nonce, now())
	if err != nil {
		return Issued{}, err
	}
	if !ok {
		return Issued{}, refused("the challenge is unknown, used or too old")
	}
	c := Challenge{Nonce: a.Nonce, Origin: s.home.id.origin()}
	print, err := identity.SignedBy([]byte(a.Signature), c.text(a), identity.SignInNamespace)
	if err != nil {
		return Issued{}, refused("signing in: %s", err)
	}
	who, ok := rules.book.WithKey(print)
	if !ok || who.Name != a.Principal && !s.parts.ignores(hallmark.Reason{Code: hallmark.CodeAccessCredential, Check: "sign-in"}) {
		return Issued{}, refused("%s is no key that %.80q signs in with", print, a.Principal)
	}
	life, err := time.ParseDuration(a.Life)
	if err != nil {
		return Issued{}, hallmark.Errorf(hallmark.KindUsage, "life %.40q: want a duration such as 8h", a.Life)
	}
	return s.home.issue(ctx, s.signer.sign, rules.policy, who, hallmark.Principal{Name: who.Name, Key: print, Method: "ssh"}, a.Scopes, a.Repository, life)
}

type signFunc func(context.Context, sign.Identity, intoto.Statement, *sign.Permit) (sign.Bundle, error)

// issue makes a token for somebody who was authenticated. That it was issued is
// logged before it is handed out; its secret is kept nowhere.
func (h *Home) issue(ctx context.Context, signs signFunc, policy hallmark.Digest, who access.Principal, by hallmark.Principal, scopes []string, repository string, life time.Duration) (Issued, error) {
	t := access.Token{Principal: who.Name, Method: by.Method, Repository: repository, IssuedAt: now().Truncate(time.Second)}
	t.ExpiresAt = t.IssuedAt.Add(life)
	for _, sc := range scopes {
		p := access.Permission(sc)
		if !slices.Contains(access.Permissions(), p) {
			return Issued{}, hallmark.Errorf(hallmark.KindUsage, "there is no permission %.60q", sc)
		}
		t.Scopes = append(t.Scopes, p)
	}
	t, secret, err := access.NewToken(t)
	if err != nil {
		return Issued{}, err
	}
	st, err := attest.AccessRecord(intoto.AccessRecord{
		Action: issueAction, Actor: by, Resource: "token:" + t.ID, Effect: hallmark.Allow, On: t.IssuedAt, Policy: policy,
		Details: issueDetails(t),
	})
	if err != nil {
		return Issued{}, err
	}
	if _, err := signs(ctx, sign.Gate, st, nil); err != nil {
		return Issued{}, err
	}
	if err := h.stores.index.PutToken(ctx, t); err != nil {
		return Issued{}, err
	}
	return Issued{ID: t.ID, Token: secret, Principal: who.Name, ExpiresAt: t.ExpiresAt}, nil
}

// routes are all that the server answers.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.health)
	s.changeRoutes(mux)
	s.runRoutes(mux)
	mux.HandleFunc("GET /api/v1/evidence", s.evidence)
	mux.HandleFunc("POST /api/v1/challenge", s.slowly(s.challenge))
	mux.HandleFunc("POST /api/v1/sign-in", s.slowly(s.signIn))
	mux.HandleFunc("GET /api/v1/issuers", s.issuers)
	mux.HandleFunc("POST /api/v1/sign-in/oidc", s.slowly(s.signInOIDC))
	mux.Handle("/", s.git)
	return mux
}

// answer writes JSON; errors carry code, message and hint, with the status of
// their kind.
func (s *Server) answer(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if err != nil {
		status := hallmark.HTTPStatus(err)
		if status == http.StatusInternalServerError {
			s.log.Error("a request failed", "error", err.Error())
		}
		w.WriteHeader(status)
		v = Failure{Code: hallmark.CodeOf(err), Message: err.Error(), Hint: hallmark.HintOf(err)}
	}
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.log.Debug("an answer was not taken", "error", err.Error())
	}
}

// Failure is an error as the API says it.
type Failure struct {
	Code    hallmark.Code `json:"code"`
	Message string        `json:"message"`
	Hint    string        `json:"hint,omitempty"`
}

// requestTime is how long the body of a request to the API may take.
const requestTime = 30 * time.Second

func readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	// Nobody has to be known for some requests: who sends slowly is not waited for.
	if err := http.NewResponseController(w).SetReadDeadline(now().Add(requestTime)); err != nil {
		return hallmark.Errorf(hallmark.KindInternal, "reading the request: %w", err)
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return hallmark.Errorf(hallmark.KindInvalid, "reading the request: %w", err)
	}
	return nil
}
