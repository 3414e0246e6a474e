// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"slices"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/translog"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// eachLogged calls fn for every statement in the log, verified, in its order; with
// predicates, for those alone. The log says what there is and the blobs what it
// says: an index that lost a row, or from which somebody took one, hides nothing.
//
// An entry whose bundle is nowhere is of a process that was killed between the
// two, and had no effect, or was taken away: lost is called with what it says.
func (h *Home) eachLogged(ctx context.Context, predicates []string, fn func(verify.Statement) error, lost func(uint64, intoto.Statement) error) error {
	r, err := h.reader()
	if err != nil {
		return err
	}
	known, err := knownHead(h.Layout, h.id)
	if err != nil {
		return err
	}
	size, err := r.Size(ctx, known.Size)
	if err != nil {
		return fmt.Errorf("reading the log: %w", err)
	}
	var kept map[hallmark.Digest]hallmark.Digest // bundles by statement; found once an index lacks one
	seen := map[hallmark.Digest]bool{}
	return r.Entries(ctx, size, func(i uint64, body []byte) error {
		d, err := translog.StatementOf(body)
		if err != nil {
			return err
		}
		if seen[d] { // signed anew, since its first bundle was of no use
			return nil
		}
		seen[d] = true
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
				return lost(i, st)
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
