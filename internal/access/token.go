// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package access

import (
	"crypto/rand"
	"encoding/base64"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// Token is a credential for a while, as it is kept: only the digest of its
// secret is, so that who reads the store can't use it.
type Token struct {
	ID         string          // public, names it in evidence
	Digest     hallmark.Digest // of the secret
	Principal  string
	Method     string       // how its holder was authenticated: ssh, oidc, x509, operator
	Scopes     []Permission // at most these; never empty
	Repository string       // pattern of what it is for; ** is everything
	IssuedAt   time.Time
	ExpiresAt  time.Time // always set
}

// TokenPrefix lets scanners for secrets know one where it should not be.
const TokenPrefix = "hlm_"

// MaxTokenLife bounds how long a token is good.
const MaxTokenLife = 30 * 24 * time.Hour

// NewToken makes a token and its secret, which is shown once.
func NewToken(t Token) (Token, string, error) {
	switch life := t.ExpiresAt.Sub(t.IssuedAt); {
	case t.Principal == "" || t.Method == "" || len(t.Scopes) == 0 || t.Repository == "":
		return t, "", hallmark.Errorf(hallmark.KindInternal, "a token without principal, method, scope or repository")
	case life <= 0 || life > MaxTokenLife:
		return t, "", hallmark.Errorf(hallmark.KindUsage, "a token is good for up to %s, not for %s", MaxTokenLife, life)
	}
	if err := patterns("repository", []string{t.Repository}); err != nil { // whoever signs in chooses it
		return t, "", hallmark.Errorf(hallmark.KindUsage, "a token's %w", err)
	}
	var b [36]byte
	if _, err := rand.Read(b[:]); err != nil {
		return t, "", hallmark.Errorf(hallmark.KindInternal, "making a token: %w", err)
	}
	text := base64.RawURLEncoding.EncodeToString(b[:])
	t.ID = "t-" + strings.ToLower(strings.NewReplacer("-", "x", "_", "y").Replace(text[:10]))
	secret := TokenPrefix + text[10:]
	t.Digest = hallmark.DigestOf([]byte(secret))
	return t, secret, nil
}

// Covers reports whether a token may be used for a permission on a repository.
func (t Token) Covers(p Permission, repository string) bool {
	for _, s := range t.Scopes {
		if s == p {
			return repository == "" || match(t.Repository, repository)
		}
	}
	return false
}
