// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/policy"
)

// AccessChange is one change of the access section of the policy.
type AccessChange func(*access.Section) error

// ChangeAccess changes principals, grants or rules of references: the next
// version of the policy, signed or proposed as any other.
func ChangeAccess(ctx context.Context, home string, pass []byte, change AccessChange) (PolicyState, error) {
	h, err := readHome(home)
	if err != nil {
		return PolicyState{}, err
	}
	document := h.document
	if err := h.Close(); err != nil {
		return PolicyState{}, err
	}
	section := access.Section{}
	if document.Access != nil {
		raw, err := json.Marshal(document.Access)
		if err != nil {
			return PolicyState{}, hallmark.Errorf(hallmark.KindInternal, "copying the access section: %w", err)
		}
		if err := json.Unmarshal(raw, &section); err != nil {
			return PolicyState{}, hallmark.Errorf(hallmark.KindInternal, "copying the access section: %w", err)
		}
	}
	if err := change(&section); err != nil {
		return PolicyState{}, err
	}
	section.Whole()
	if err := section.Check(); err != nil {
		return PolicyState{}, hallmark.Errorf(hallmark.KindUsage, "%w", err)
	}
	text, err := json.Marshal(section)
	if err != nil {
		return PolicyState{}, hallmark.Errorf(hallmark.KindInternal, "encoding the access section: %w", err)
	}
	return PolicySet(ctx, home, pass, [][2]string{{policy.AccessSection, string(text)}})
}

// PrincipalChange is what is said of one principal.
type PrincipalChange struct {
	Name, Kind, Owner string
	Outside           bool
	Aliases           []string
	KeyFiles          []string // OpenSSH public keys, to sign in with
	OIDC              []string // ISSUER#SUBJECT
	OpenPGPFiles      []string // public keys, to sign commits with
	X509Files         []string // names and authorities, likewise
	Remove            bool
}

// Apply adds, replaces or removes a principal. Removing one removes its grants.
func (p PrincipalChange) Apply(s *access.Section) error {
	i := slices.IndexFunc(s.Principals, func(q access.Principal) bool { return q.Name == p.Name })
	if p.Remove {
		if i < 0 {
			return hallmark.Errorf(hallmark.KindUsage, "there is no principal %.80q", p.Name)
		}
		s.Principals = slices.Delete(s.Principals, i, i+1)
		s.Grants = slices.DeleteFunc(s.Grants, func(g access.Grant) bool { return g.Principal == p.Name })
		return nil
	}
	n := access.Principal{Name: p.Name, Kind: p.Kind, Owner: p.Owner, Outside: p.Outside, Aliases: p.Aliases}
	for _, file := range p.KeyFiles {
		b, err := readLimited(file, 1<<16)
		if err != nil {
			return hallmark.Errorf(hallmark.KindInvalid, "reading key: %w", err)
		}
		key, _, _, rest, err := ssh.ParseAuthorizedKey(b)
		if err != nil || len(bytes.TrimSpace(rest)) > 0 {
			return hallmark.Errorf(hallmark.KindInvalid, "%s: want one OpenSSH public key", file)
		}
		n.SSHKeys = append(n.SSHKeys, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))))
	}
	for _, o := range p.OIDC {
		issuer, subject, ok := strings.Cut(o, "#")
		if !ok {
			return hallmark.Errorf(hallmark.KindUsage, "--oidc %.80q: want ISSUER#SUBJECT", o)
		}
		n.OIDC = append(n.OIDC, access.Subject{Issuer: issuer, Subject: subject})
	}
	if err := p.signing(&n); err != nil {
		return err
	}
	if i < 0 {
		s.Principals = append(s.Principals, n)
	} else {
		s.Principals[i] = n
	}
	return nil
}

// GrantRole is a change that grants a role; its ID comes back.
func GrantRole(g access.Grant) (string, AccessChange, error) {
	var b [5]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", nil, hallmark.Errorf(hallmark.KindInternal, "naming a grant: %w", err)
	}
	g.ID = "g-" + hex.EncodeToString(b[:])
	g.NotBefore = now().Truncate(time.Second)
	if len(g.Refs) == 0 {
		g.Refs = []string{"**"}
	}
	if len(g.Paths) == 0 {
		g.Paths = []string{"**"}
	}
	return g.ID, func(s *access.Section) error {
		if g.Owner == "" {
			g.Owner = g.Principal
			if i := slices.IndexFunc(s.Principals, func(p access.Principal) bool { return p.Name == g.Principal }); i >= 0 && s.Principals[i].Owner != "" {
				g.Owner = s.Principals[i].Owner
			}
		}
		s.Grants = append(s.Grants, g)
		return nil
	}, nil
}

// RevokeGrant is a change that takes a grant away.
func RevokeGrant(id string) AccessChange {
	return func(s *access.Section) error {
		i := slices.IndexFunc(s.Grants, func(g access.Grant) bool { return g.ID == id })
		if i < 0 {
			return hallmark.WithHint(hallmark.Errorf(hallmark.KindUsage, "there is no grant %.80q", id), "hallmark access show lists them")
		}
		s.Grants = slices.Delete(s.Grants, i, i+1)
		return nil
	}
}

// SetRefs is a change of the rules of references, from a file of them as JSON.
func SetRefs(path string) AccessChange {
	return func(s *access.Section) error {
		b, err := readLimited(path, maxTrustFile)
		if err != nil {
			return hallmark.Errorf(hallmark.KindInvalid, "reading rules of references: %w", err)
		}
		dec := json.NewDecoder(bytes.NewReader(b))
		dec.DisallowUnknownFields()
		var refs []access.RefRule
		if err := dec.Decode(&refs); err != nil {
			return hallmark.Errorf(hallmark.KindInvalid, "%s: %w", path, err)
		}
		s.Refs = refs
		return nil
	}
}

// AccessState is who may do what in a home.
type AccessState struct {
	Section *access.Section
	Book    *access.Book
	Policy  hallmark.Digest
	Version int
}

// Access reads who may do what.
func Access(home string) (AccessState, error) {
	h, err := readHome(home)
	if err != nil {
		return AccessState{}, err
	}
	defer h.Close()
	section := h.document.Access
	if section == nil {
		section = &access.Section{}
	}
	book, err := access.NewBook(section)
	if err != nil {
		return AccessState{}, fmt.Errorf("reading the policy: %w", err)
	}
	return AccessState{Section: section, Book: book, Policy: h.policy.Digest(), Version: h.policy.Version()}, nil
}

// byOperator is the method of tokens that were handed out and not signed in for.
const byOperator = "operator"

// IssueToken makes a token for a principal on the machine of the home, whose
// keys whoever asks must be able to open.
func IssueToken(ctx context.Context, home string, pass []byte, principal string, scopes []string, repository string, life time.Duration) (Issued, error) {
	h, err := OpenHome(home, pass)
	if err != nil {
		return Issued{}, err
	}
	defer h.Close()
	book, err := access.NewBook(h.document.Access)
	if err != nil {
		return Issued{}, err
	}
	who, ok := book.Named(principal)
	if !ok || who.Name != principal {
		return Issued{}, hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodeAccessPrincipal, "the policy names no principal %.80q", principal), "hallmark access principal "+principal)
	}
	signer := newSigner(h.Layout, h.id, h.keys, h.stores)
	defer signer.close()
	by := operator()
	by.Method = byOperator
	return h.issue(ctx, signer.sign, h.policy.Digest(), who, by, scopes, repository, life)
}

// WriteSecret writes a token for its holder alone.
func WriteSecret(path, secret string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return hallmark.Errorf(hallmark.KindInvalid, "writing the token: %w", err)
	}
	_, err = f.WriteString(secret + "\n")
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return hallmark.Errorf(hallmark.KindInvalid, "writing the token: %w", err)
	}
	return nil
}
