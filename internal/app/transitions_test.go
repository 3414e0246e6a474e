// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/intoto"
)

// TestLastTransitionOfOneSecond: transitions that follow each other faster than
// timestamps tell apart are in the order of their chain.
func TestLastTransitionOfOneSecond(t *testing.T) {
	ctx, home := t.Context(), filepath.Join(t.TempDir(), "home")
	if _, err := Init(ctx, InitConfig{Home: home, SingleOperator: true}); err != nil {
		t.Fatal(err)
	}
	h, err := OpenHome(home, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	signer := newSigner(h.Layout, h.id, h.keys, h.stores)
	defer signer.close()
	const ref = "refs/heads/x"
	uri := h.repositoryURI("app")
	previous, old := hallmark.Digest(""), zeros
	for i := range 8 {
		id := strings.Repeat(fmt.Sprint(i+1), 40)
		if i == 7 {
			id = zeros
		}
		st, err := attest.RefTransition(intoto.RefTransition{Repository: uri, Ref: ref, Old: old, New: id, Effect: hallmark.Allow, On: now(), Policy: h.policy.Digest(),
			Actor: hallmark.Principal{Name: "alice@example.org", Method: "ssh"}, Previous: previous})
		if err != nil {
			t.Fatal(err)
		}
		b, err := signer.sign(ctx, sign.Gate, st, nil)
		if err != nil {
			t.Fatal(err)
		}
		last, err := h.lastTransition(ctx, uri, ref)
		if err != nil {
			t.Fatal(err)
		}
		ever := id
		if id == zeros {
			ever = old
		}
		if last.Statement != b.Statement || last.New != id || last.Ever != ever || last.Old != old {
			t.Fatalf("after %d: %+v", i+1, last)
		}
		previous, old = b.Statement, id
	}
	chains, broken, err := h.transitions(ctx, uri)
	if err != nil || len(broken) > 0 || len(chains[ref]) != 8 {
		t.Errorf("%d transitions, broken %+v, %v", len(chains[ref]), broken, err)
	}
}
