// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/identity"
)

// Client asks a server for things in somebody's name.
type Client struct {
	base  *url.URL
	token string
	http  *http.Client
}

// NewClient makes a client. authority is a PEM file of whom to trust besides the
// machine's own authorities; "" is none.
func NewClient(server, authority, token string) (*Client, error) {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" {
		return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindUsage, "server %.200q: want https://HOST:PORT", server), "--server URL or $HALLMARK_SERVER")
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if authority != "" {
		b, err := readLimited(authority, maxTrustFile)
		if err != nil || !pool.AppendCertsFromPEM(b) {
			return nil, hallmark.Errorf(hallmark.KindInvalid, "%s holds no certificate that can be read: %w", authority, err)
		}
	}
	return &Client{base: u, token: token, http: &http.Client{
		Timeout:       5 * time.Minute,
		Transport:     &http.Transport{Proxy: nil, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// call sends one request; a server's error comes back with its code and hint.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return hallmark.Errorf(hallmark.KindInternal, "encoding a request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	path, query, _ := strings.Cut(path, "?")
	u := c.base.JoinPath(path)
	u.RawQuery = query
	r, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return hallmark.Errorf(hallmark.KindUsage, "making a request: %w", err)
	}
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	res, err := c.http.Do(r)
	if err != nil {
		return hallmark.WithHint(hallmark.Errorf(hallmark.KindUnavailable, "asking %s: %w", c.base.Host, err), "is the server running, and its authority trusted? --authority FILE names it")
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	if err != nil {
		return hallmark.Errorf(hallmark.KindUnavailable, "reading the answer of %s: %w", c.base.Host, err)
	}
	if res.StatusCode != http.StatusOK {
		var f Failure
		if json.Unmarshal(b, &f) != nil || f.Message == "" {
			f.Message = "it answered " + res.Status
		}
		return hallmark.WithHint(hallmark.Coded(kindOfStatus(res.StatusCode), f.Code, "%s: %s", c.base.Host, f.Message), f.Hint)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return hallmark.Errorf(hallmark.KindInvalid, "reading the answer of %s: %w", c.base.Host, err)
	}
	return nil
}

func kindOfStatus(status int) hallmark.Kind {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return hallmark.KindDenied
	case http.StatusNotFound:
		return hallmark.KindNotFound
	case http.StatusBadRequest:
		return hallmark.KindUsage
	}
	return hallmark.KindUnavailable
}

// SignIn signs in with an SSH private key, for a token.
func (c *Client) SignIn(ctx context.Context, key, passphrase []byte, a SignIn) (Issued, error) {
	var ch Challenge
	if err := c.call(ctx, http.MethodPost, "/api/v1/challenge", nil, &ch); err != nil {
		return Issued{}, err
	}
	a.Nonce = ch.Nonce
	sig, _, err := identity.Sign(key, passphrase, ch.text(a), identity.SignInNamespace)
	if err != nil {
		return Issued{}, hallmark.Errorf(hallmark.KindInvalid, "signing in: %w", err)
	}
	a.Signature = string(sig)
	var out Issued
	return out, c.call(ctx, http.MethodPost, "/api/v1/sign-in", a, &out)
}

// Propose proposes a change.
func (c *Client) Propose(ctx context.Context, p ChangeProposal) (ChangeAnswer, error) {
	var out ChangeAnswer
	return out, c.call(ctx, http.MethodPost, "/api/v1/changes", p, &out)
}

// Change shows how a change stands.
func (c *Client) Change(ctx context.Context, id string) (ChangeView, error) {
	var out ChangeView
	return out, c.call(ctx, http.MethodGet, "/api/v1/changes/"+url.PathEscape(id), nil, &out)
}

// Act approves or merges a change.
func (c *Client) Act(ctx context.Context, id, action string) (ChangeAnswer, error) {
	var out ChangeAnswer
	return out, c.call(ctx, http.MethodPost, "/api/v1/changes/"+url.PathEscape(id)+"/"+action, nil, &out)
}
