// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package translog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	flog "github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/hallmark-sc/hallmark"
)

// Follower reads every entry of a log once, in order, and vouches for what it
// gave: it makes up the tree of the newest checkpoint. So nothing can be left out
// of it, put into it, or taken back. It is not safe for concurrent use.
type Follower struct {
	r     *Reader
	tree  *compact.Range
	known uint64 // a size that was seen by another way
	last  []byte // the checkpoint that was read up to
}

// Follow begins at the first entry. known is a size that the log had once.
func (r *Reader) Follow(known uint64) *Follower {
	return &Follower{r: r, tree: hashes().NewEmptyRange(0), known: known}
}

func hashes() *compact.RangeFactory {
	return &compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
}

// Size is how many entries were read.
func (f *Follower) Size() uint64 { return f.tree.End() }

// Next calls fn for each entry that came since, and returns whether there was any.
// On an error nothing counts as read, and what fn was given is worth nothing: it
// is given again.
func (f *Follower) Next(ctx context.Context, fn func(index uint64, body []byte) error) (bool, error) {
	raw, err := f.r.Checkpoint(ctx)
	if errors.Is(err, fs.ErrNotExist) && f.Size() == 0 && f.known == 0 {
		return false, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, hallmark.Coded(hallmark.KindDenied, hallmark.CodeLogTruncated, "the log of %s is gone, and had %d entries: %w", f.r.origin, max(f.known, f.Size()), err)
	}
	if err != nil {
		return false, err
	}
	if bytes.Equal(raw, f.last) {
		return false, nil
	}
	cp, _, _, err := flog.ParseCheckpoint(raw, f.r.origin, f.r.verifier)
	if err != nil {
		return false, hallmark.Coded(hallmark.KindDenied, hallmark.CodeLogForked, "verifying checkpoint: %w", err)
	}
	if had := max(f.known, f.Size()); cp.Size < had {
		return false, hallmark.Coded(hallmark.KindDenied, hallmark.CodeLogTruncated, "the log of %s has %d entries, and had %d", f.r.origin, cp.Size, had)
	}
	tree, err := hashes().NewRange(0, f.tree.End(), slices.Clone(f.tree.Hashes()))
	if err != nil {
		return false, fmt.Errorf("reading the log: %w", err)
	}
	err = f.r.entries(ctx, f.tree.End(), cp.Size, func(i uint64, body []byte) error {
		if err := tree.Append(rfc6962.DefaultHasher.HashLeaf(body), nil); err != nil {
			return err
		}
		return fn(i, body)
	})
	var bad *badEntry
	if errors.As(err, &bad) {
		return false, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeLogEntryAltered, "reading entry %d of the log: %w", bad.index, err)
	}
	if err != nil {
		return false, err
	}
	root := rfc6962.DefaultHasher.EmptyRoot()
	if tree.End() > 0 {
		if root, err = tree.GetRootHash(nil); err != nil {
			return false, fmt.Errorf("reading the log: %w", err)
		}
	}
	if !bytes.Equal(root, cp.Hash) {
		code := hallmark.CodeLogEntryAltered
		if cp.Size == f.tree.End() { // what was read made up the tree of another checkpoint of this size
			code = hallmark.CodeLogForked
		}
		return false, hallmark.Coded(hallmark.KindDenied, code, "the entries of the log do not make up the tree of its checkpoint of size %d", cp.Size)
	}
	grew := tree.End() > f.tree.End()
	f.tree, f.last = tree, raw
	return grew, nil
}
