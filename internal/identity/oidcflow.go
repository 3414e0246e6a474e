// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

// callbackPath is where an issuer sends a browser back to; it must know
// http://127.0.0.1/callback as a redirect URI, with any port.
const callbackPath = "/callback"

// Browse gets an ID token by the authorization code flow: a browser on this
// machine signs in, and comes back to an address that only this machine has. The
// code is good with the secret of this request alone (PKCE), the token with the
// nonce alone.
func (o *OIDC) Browse(ctx context.Context, iss Issuer, nonce string, open func(url string)) (string, error) {
	p, err := o.provider(ctx, iss.URL)
	if err != nil {
		return "", err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("waiting for the browser: %w", err)
	}
	config := oauth2.Config{ClientID: iss.Audience, Endpoint: p.Endpoint(), RedirectURL: "http://" + l.Addr().String() + callbackPath, Scopes: []string{oidc.ScopeOpenID, "email"}}
	config.Endpoint.AuthStyle = oauth2.AuthStyleInParams
	state, verifier := rand.Text(), oauth2.GenerateVerifier()
	type answer struct {
		code string
		err  error
	}
	got := make(chan answer, 1)
	srv := &http.Server{ReadHeaderTimeout: fetchTime, MaxHeaderBytes: 64 << 10, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if r.Method != http.MethodGet || r.URL.Path != callbackPath || subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(state)) != 1 {
			http.Error(w, "this is not what was asked for", http.StatusNotFound) // and goes on waiting
			return
		}
		a := answer{code: q.Get("code")}
		if a.code == "" {
			a.err = fmt.Errorf("the issuer refuses: %.80q %.200q", q.Get("error"), q.Get("error_description"))
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintln(w, "You may close this window and go back to hallmark.")
		select {
		case got <- a:
		default:
		}
	})}
	go srv.Serve(l)
	defer srv.Close()
	open(config.AuthCodeURL(state, oidc.Nonce(nonce), oauth2.S256ChallengeOption(verifier)))
	var a answer
	select {
	case <-ctx.Done():
		return "", fmt.Errorf("waiting for the browser: %w", ctx.Err())
	case a = <-got:
	}
	if a.err != nil {
		return "", a.err
	}
	fetch, cancel := context.WithTimeout(oidc.ClientContext(ctx, o.client), 3*fetchTime)
	defer cancel()
	t, err := config.Exchange(fetch, a.code, oauth2.VerifierOption(verifier))
	if err != nil {
		return "", fmt.Errorf("exchanging the code: %w", err)
	}
	raw, _ := t.Extra("id_token").(string)
	if raw == "" {
		return "", errors.New("the issuer gave no ID token")
	}
	id, err := p.VerifierContext(fetch, &oidc.Config{ClientID: iss.Audience, SupportedSigningAlgs: algorithms(), Now: time.Now}).Verify(fetch, raw)
	if err != nil {
		return "", fmt.Errorf("checking the ID token: %w", err)
	}
	if id.Nonce != nonce {
		return "", errors.New("the ID token answers another request")
	}
	if id.AccessTokenHash != "" {
		if err := id.VerifyAccessToken(t.AccessToken); err != nil {
			return "", fmt.Errorf("checking the ID token: %w", err)
		}
	}
	return raw, nil
}
