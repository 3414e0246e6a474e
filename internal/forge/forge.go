// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package forge reads and mends how a repository is set up at Gitea, GitHub or
// GitLab, over the interface that each has for programs (SP 800-204D §5.1.2,
// PULL-PUSH_REQ-4).
//
// An answer is believed only where it says something: a field that is absent is not
// false, a page that was not read is an error, and what the token may not see is
// unread. The published client libraries read an absent field as its zero value,
// which here is often the good one, and bring some ten megabytes; hence our own.
package forge

import (
	"context"
	"crypto/x509"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/source"
)

// Kinds of forges.
const (
	Gitea  = "gitea"
	GitHub = "github"
	GitLab = "gitlab"
)

// Config names a repository and who asks.
type Config struct {
	URL       string // of the repository, as in a browser or for git
	Kind      string // "": by the host's name
	API       string // base of the interface; "": where the kind has it
	Token     string
	Authority []byte   // PEM, to trust instead of the machine's; nil: the machine's
	Branches  []string // besides the default one
	// Wait pauses where a forge asks for it; nil waits by the clock.
	Wait func(ctx context.Context, d time.Duration) error
}

// New makes the adapter of one repository.
func New(cfg Config) (source.Forge, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.User != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindUsage, "forge: that is no URL of a repository"), "give https://HOST/OWNER/NAME; a token goes in a file")
	}
	if err := encrypted(u); err != nil {
		return nil, err
	}
	parts := strings.Split(strings.Trim(strings.TrimSuffix(strings.TrimSuffix(u.Path, "/"), ".git"), "/"), "/")
	for _, p := range parts {
		if p == "" || p == "." || p == ".." || strings.ContainsFunc(p, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return nil, hallmark.Errorf(hallmark.KindUsage, "forge: %.200q names no repository: want https://HOST/OWNER/NAME", u.Path)
		}
	}
	kind := cfg.Kind
	if kind == "" {
		kind = map[string]string{"github.com": GitHub, "gitlab.com": GitLab, "gitea.com": Gitea, "codeberg.org": Gitea}[u.Hostname()]
	}
	if len(parts) < 2 || kind != GitLab && len(parts) != 2 {
		return nil, hallmark.Errorf(hallmark.KindUsage, "forge: %.200q names no repository: want https://HOST/OWNER/NAME", u.Path)
	}
	root := u.Scheme + "://" + u.Host
	page := root + "/" + strings.Join(parts, "/")
	repo := repository{owner: parts[0], name: parts[len(parts)-1], path: strings.Join(parts, "/"), page: page, branches: cfg.Branches}
	var base string
	auth := [2]string{"Authorization", "token " + cfg.Token}
	switch kind {
	case Gitea:
		base = root + "/api/v1"
	case GitHub:
		auth[1] = "Bearer " + cfg.Token
		if base = root + "/api/v3"; u.Host == "github.com" {
			base = "https://api.github.com"
		}
	case GitLab:
		base, auth = root+"/api/v4", [2]string{"PRIVATE-TOKEN", cfg.Token}
	default:
		return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindUsage, "forge: %s is of no known kind", u.Host), "say what it is: --kind gitea, github or gitlab")
	}
	if cfg.API != "" {
		base = strings.TrimSuffix(cfg.API, "/")
	}
	c, err := newClient(base, auth, cfg)
	if err != nil {
		return nil, err
	}
	switch kind {
	case Gitea:
		return &gitea{c: c, repo: repo}, nil
	case GitHub:
		return &github{c: c, repo: repo}, nil
	}
	return &gitlab{c: c, repo: repo}, nil
}

// repository is one at a forge.
type repository struct {
	owner, name, path string
	page              string
	branches          []string // that were asked for
}

// encrypted wants TLS, but to this machine itself.
func encrypted(u *url.URL) error {
	ip := net.ParseIP(u.Hostname())
	if u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()) {
		return nil
	}
	return hallmark.Errorf(hallmark.KindUsage, "forge: %s://%s is not encrypted; want https", u.Scheme, u.Host)
}

func pool(pem []byte) (*x509.CertPool, error) {
	if pem == nil {
		return nil, nil
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(pem) {
		return nil, hallmark.Errorf(hallmark.KindUsage, "forge: the authority holds no certificate")
	}
	return p, nil
}

// seen turns the answer to one question into a setting: what is refused or not there
// was not read, and the audit goes on.
func seen[T any](v T, err error) (source.Known[T], error) {
	if err == nil {
		return source.Told(v), nil
	}
	if s := statusOf(err); s == http.StatusForbidden || s == http.StatusNotFound || s == http.StatusUnauthorized {
		return source.Unread[T](err.Error()), nil
	}
	return source.Known[T]{}, err
}

// told is a setting that a field says, where it is there.
func told[T any](v *T, field string) source.Known[T] {
	if v == nil {
		return source.Unread[T]("the answer has no " + field)
	}
	return source.Told(*v)
}
