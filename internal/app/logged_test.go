// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// TestFirstSince: an audit of a period looks at nothing from long before it, and
// leaves out nothing of it, also where a bundle is gone.
func TestFirstSince(t *testing.T) {
	g := newGated(t)
	h, ctx := g.s.home, t.Context()
	digests, err := h.everyStatement(ctx)
	if err != nil || len(digests) < 6 {
		t.Fatal(len(digests), err)
	}
	if at := h.firstSince(ctx, digests, now().Add(48*time.Hour)); at != len(digests) {
		t.Errorf("of a time to come: from %d of %d", at, len(digests))
	}
	if at := h.firstSince(ctx, digests, now()); at != 0 {
		t.Errorf("what was signed a moment ago is left out up to %d", at)
	}
	if at := h.firstSince(ctx, digests, time.Time{}); at != 0 {
		t.Errorf("of all times: from %d", at)
	}
	count := func() (events, lost int) {
		t.Helper()
		if err := h.eachLogged(ctx, nil, now().Add(-time.Minute), func(verify.Statement) error { events++; return nil }, func(uint64, intoto.Statement) error { lost++; return nil }); err != nil {
			t.Fatal(err)
		}
		return events, lost
	}
	if events, lost := count(); events != len(digests) || lost != 0 {
		t.Errorf("%d events and %d lost of %d", events, lost, len(digests))
	}
	g.rows("push")
	g.remove(g.said["push"].Digest)
	if events, lost := count(); events != len(digests)-1 || lost != 1 {
		t.Errorf("one is gone: %d events and %d lost of %d", events, lost, len(digests))
	}
	g.remove(g.said["push"].Statement)
	if err := h.eachLogged(ctx, nil, time.Time{}, func(verify.Statement) error { return nil }, func(uint64, intoto.Statement) error { return nil }); hallmark.CodeOf(err) != hallmark.CodeEvidenceMissing {
		t.Errorf("its bytes are gone: %v", err)
	}
}
