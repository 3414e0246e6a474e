// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/identity"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/intoto"
)

// GateParts are what a drill puts in the place of parts of the gates. Only code
// that is linked in can set them: no flag, variable or file leads here. The zero
// value is every control in place.
type GateParts struct {
	// Beside lets a server work beside another one of its home, in one process.
	Beside bool
	// Ignores reports that a reason against something counts for nothing.
	Ignores func(hallmark.Reason) bool
	// ChangeID says what an approval is bound to.
	ChangeID func(repository, target, revision string) string
	// Hides reports that a statement in the log stands in no list.
	Hides func(hallmark.Digest) bool
	// Document reads the policy without verifying it.
	Document func() ([]byte, error)
}

// alike finds somebody whose subject looks like the one that an issuer vouches for,
// where a drill took it away that it must be the same.
func (p GateParts) alike(b *access.Book, v identity.Vouched) (access.Principal, bool) {
	if !p.ignores(hallmark.Reason{Code: hallmark.CodeAccessCredential, Check: "oidc-subject"}) {
		return access.Principal{}, false
	}
	for _, who := range b.Principals() {
		for _, s := range who.OIDC {
			if s.Issuer == v.Issuer && strings.EqualFold(s.Subject, v.Subject) {
				return who, true
			}
		}
	}
	return access.Principal{}, false
}

func (p GateParts) ignores(r hallmark.Reason) bool { return p.Ignores != nil && p.Ignores(r) }

// heed keeps the reasons that count.
func (p GateParts) heed(reasons []hallmark.Reason) []hallmark.Reason {
	return slices.DeleteFunc(reasons, p.ignores)
}

func (p GateParts) changeID(repository, target, revision string) string {
	if p.ChangeID != nil {
		return p.ChangeID(repository, target, revision)
	}
	return intoto.ChangeID(repository, target, revision)
}

// document replaces the policy's document where a drill took its verification away.
func (p GateParts) document(h *Home) error {
	if p.Document == nil {
		return nil
	}
	b, err := p.Document()
	if err != nil {
		return err
	}
	h.document, err = policy.ParseDocument(b)
	return err
}

// RefusedUpdates are the logged refusals of a reference of a repository, each
// verified, oldest first.
func RefusedUpdates(ctx context.Context, home, name, ref string) ([]intoto.RefTransition, error) {
	h, err := readHome(home)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	uri := h.repositoryURI(name)
	all, err := h.logged(ctx, aboutKey, sumKey(intoto.SubjectOfRefusal(uri, ref)))
	if err != nil {
		return nil, err
	}
	var out []intoto.RefTransition
	for _, l := range all {
		if l.statement.PredicateType != intoto.PredicateTransition {
			continue
		}
		if err := h.evidence(ctx, l); err != nil {
			return nil, err
		}
		t, err := intoto.DecodePredicate[intoto.RefTransition](l.statement)
		if err != nil {
			return nil, err
		}
		if t.Repository == uri && t.Ref == ref && t.Effect != hallmark.Allow {
			out = append(out, t)
		}
	}
	return out, nil
}
