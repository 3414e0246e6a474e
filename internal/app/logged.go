// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/translog"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// eachLogged calls fn for every statement in the log, verified, in its order; with
// predicates, for those alone, and from a time on without those that were signed
// long before it, which are not looked at. The log says what there is and the
// blobs what it says: an index that lost a row, or from which somebody took one,
// hides nothing.
//
// An entry whose bundle is nowhere is of a process that was killed between the
// two, and had no effect, or was taken away: lost is called with what it says.
func (h *Home) eachLogged(ctx context.Context, predicates []string, from time.Time, fn func(verify.Statement) error, lost func(uint64, intoto.Statement) error) error {
	digests, err := h.everyStatement(ctx)
	if err != nil {
		return err
	}
	begin := h.firstSince(ctx, digests, from)
	var kept map[hallmark.Digest]hallmark.Digest // bundles by statement; found once an index lacks one
	seen := map[hallmark.Digest]bool{}
	one := func(i int, d hallmark.Digest) error {
		st, ok, err := h.said(ctx, d)
		if err == nil && !ok {
			err = hallmark.Coded(hallmark.KindInvalid, hallmark.CodeEvidenceMalformed, "%s is no statement", d)
		}
		if err != nil {
			return fmt.Errorf("reading entry %d of the log: %w", i, err)
		}
		if len(predicates) > 0 && !slices.Contains(predicates, st.PredicateType) {
			return nil
		}
		bundle, ok, err := h.stores.index.BundleOf(ctx, d)
		if err != nil {
			return err
		}
		if !ok {
			if kept == nil {
				if kept, err = h.keptBundles(ctx); err != nil {
					return err
				}
			}
			if bundle, ok = kept[d]; !ok {
				return lost(uint64(i), st)
			}
		}
		b, err := h.stores.blobs.Get(ctx, bundle)
		if err != nil {
			return fmt.Errorf("reading evidence: %w", err)
		}
		v, err := h.verifier.Verify(b)
		if err != nil {
			return fmt.Errorf("verifying evidence: %w", err)
		}
		if v.Digest() != d {
			return hallmark.WithHint(hallmark.Coded(hallmark.KindInvalid, hallmark.CodeLogIndexDiffers, "the index gives %s for %s", v.Digest(), d), "hallmark log fsck --rebuild")
		}
		return fn(v)
	}
	for i, d := range digests[begin:] {
		if seen[d] { // signed anew, since its first bundle was of no use
			continue
		}
		seen[d] = true
		if err := one(begin+i, d); err != nil {
			return err
		}
	}
	return nil
}

// everyStatement lists what the entries of the log are about, in order. They make
// up the tree of its checkpoint.
func (h *Home) everyStatement(ctx context.Context) ([]hallmark.Digest, error) {
	r, err := h.reader()
	if err != nil {
		return nil, err
	}
	known, err := knownHead(h.Layout, h.id)
	if err != nil {
		return nil, err
	}
	var out []hallmark.Digest
	_, err = r.Follow(known.Size).Next(ctx, func(i uint64, body []byte) error {
		d, err := translog.StatementOf(body)
		if err != nil {
			return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeLogEntryAltered, "entry %d: %w", i, err)
		}
		out = append(out, d)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the log: %w", err)
	}
	return out, nil
}

// orderSlack is by how much signing times may be out of the log's order.
const orderSlack = time.Hour

// firstSince is the position from which on statements were signed after a time, or
// some before that: the log's order is that of signing, but for the slack and for
// what was signed anew, which stands again where it was. What can't be read is
// taken for late, so that it is looked at.
func (h *Home) firstSince(ctx context.Context, digests []hallmark.Digest, from time.Time) int {
	if from.IsZero() {
		return 0
	}
	return sort.Search(len(digests), func(i int) bool {
		bundle, ok, err := h.stores.index.BundleOf(ctx, digests[i])
		if err != nil || !ok {
			return true
		}
		b, err := h.stores.blobs.Get(ctx, bundle)
		if err != nil {
			return true
		}
		v, err := h.verifier.Verify(b)
		return err != nil || v.Digest() != digests[i] || !v.SignedAt().Before(from.Add(-orderSlack))
	})
}

// keptBundles finds the bundles among the blobs, as making the index anew does.
func (h *Home) keptBundles(ctx context.Context) (map[hallmark.Digest]hallmark.Digest, error) {
	out := map[hallmark.Digest]hallmark.Digest{}
	err := h.stores.blobs.Walk(ctx, func(d hallmark.Digest, size int64) error {
		if size > verify.MaxBundle {
			return nil
		}
		b, err := h.stores.blobs.Get(ctx, d)
		if err != nil || len(b) == 0 || b[0] != '{' {
			return nil //nolint:nilerr // what can't be read is no bundle that could be shown
		}
		if s, err := h.verifier.Verify(b); err == nil {
			out[s.Digest()] = d
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking for bundles: %w", err)
	}
	return out, nil
}
