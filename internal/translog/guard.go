// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package translog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	flog "github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/client"
	"golang.org/x/mod/sumdb/note"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/durable"
)

// Head is a tree head that was signed.
type Head struct {
	Origin string `json:"origin"`
	Size   uint64 `json:"size"`
	Root   []byte `json:"root"`
}

// Guard remembers the newest head that was ever signed, in another failure
// domain than the log's directory. Advance is a compare-and-swap: it calls step
// with the head it has (nil when there is none) and stores, durably, what step
// returns; an error of step leaves it as it was.
type Guard interface {
	Head(ctx context.Context, origin string) (*Head, error)
	Advance(ctx context.Context, origin string, step func(old *Head) (Head, error)) error
}

// FileGuard keeps heads in one file. The log's lock serializes its use.
type FileGuard struct {
	path string
	disk durable.Disk
	once sync.Once // sweeps before the first write
}

// NewFileGuard names the file; it appears with the first head.
func NewFileGuard(path string) *FileGuard { return &FileGuard{path: path} }

var _ Guard = (*FileGuard)(nil)

// Head returns the stored head, or nil when there is none.
func (g *FileGuard) Head(_ context.Context, origin string) (*Head, error) {
	b, err := os.ReadFile(g.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading fork guard: %w", err)
	}
	var h Head
	if err := json.Unmarshal(b, &h); err != nil || h.Origin != origin || len(h.Root) != 32 {
		return nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeLogForked, "fork guard %s is not a head of %s", g.path, origin)
	}
	return &h, nil
}

// Advance implements Guard.
func (g *FileGuard) Advance(ctx context.Context, origin string, step func(old *Head) (Head, error)) error {
	old, err := g.Head(ctx, origin)
	if err != nil {
		return err
	}
	h, err := step(old)
	if err != nil {
		return err
	}
	if old != nil && old.Size == h.Size {
		return nil
	}
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	g.once.Do(func() { err = durable.Sweep(filepath.Dir(g.path)) })
	if err != nil {
		return fmt.Errorf("sweeping beside the fork guard: %w", err)
	}
	if err := g.disk.Replace(g.path, b, 0o600); err != nil {
		return fmt.Errorf("writing fork guard: %w", err)
	}
	return nil
}

// guardedSigner signs a checkpoint only after the guard accepted its head: a
// head is remembered before anybody can see its signature.
type guardedSigner struct {
	note.Signer
	guard  Guard
	reader *Reader
	origin string
	told   func(error) // hears how each signing ended: who waits for a checkpoint must know

	mu   sync.Mutex
	last Head // the newest head that this process signed; guarded by mu
}

// Sign implements note.Signer.
func (s *guardedSigner) Sign(msg []byte) ([]byte, error) {
	sig, err := s.sign(msg)
	s.told(err)
	return sig, err
}

func (s *guardedSigner) sign(msg []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var cp flog.Checkpoint
	if _, err := cp.Unmarshal(msg); err != nil {
		return nil, fmt.Errorf("reading the checkpoint to sign: %w", err)
	}
	if cp.Origin != s.origin {
		return nil, hallmark.Coded(hallmark.KindDenied, hallmark.CodeLogForked, "checkpoint of %q, not %q", cp.Origin, s.origin)
	}
	ctx := context.Background()
	next := Head{Origin: s.origin, Size: cp.Size, Root: cp.Hash}
	err := s.guard.Advance(ctx, s.origin, func(old *Head) (Head, error) {
		if s.last.Size > 0 && (old == nil || old.Size < s.last.Size) {
			return Head{}, hallmark.Coded(hallmark.KindDenied, hallmark.CodeLogForked, "the fork guard lost the head of %d entries while the log was open", s.last.Size)
		}
		return next, s.reader.follows(ctx, old, next)
	})
	if err != nil {
		return nil, err
	}
	s.last = next
	return s.Signer.Sign(msg)
}

// follows reports whether next extends old, by a consistency proof from the
// log's own tiles.
func (r *Reader) follows(ctx context.Context, old *Head, next Head) error {
	switch {
	case old == nil || old.Size == 0:
		return nil
	case next.Size < old.Size:
		return hallmark.Coded(hallmark.KindDenied, hallmark.CodeLogTruncated, "the log has %d entries, but %d were signed before: an older copy was put back or entries were cut off", next.Size, old.Size)
	case next.Size == old.Size:
		if string(next.Root) != string(old.Root) {
			return hallmark.Coded(hallmark.KindDenied, hallmark.CodeLogForked, "another tree of %d entries was signed before", old.Size)
		}
		return nil
	}
	builder, err := client.NewProofBuilder(ctx, next.Size, r.tile)
	if err != nil {
		return hallmark.Coded(hallmark.KindDenied, hallmark.CodeLogForked, "reading tiles for consistency: %w", err)
	}
	hashes, err := builder.ConsistencyProof(ctx, old.Size, next.Size)
	if err != nil {
		return hallmark.Coded(hallmark.KindDenied, hallmark.CodeLogForked, "proving consistency: %w", err)
	}
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, old.Size, next.Size, hashes, old.Root, next.Root); err != nil {
		return hallmark.Coded(hallmark.KindDenied, hallmark.CodeLogForked, "the tree of %d entries does not extend the tree of %d that was signed before: %w", next.Size, old.Size, err)
	}
	return nil
}

// Check compares the published checkpoint with the guard and with a head that is
// known from elsewhere, as opening the log does.
func (r *Reader) Check(ctx context.Context, g Guard, known Head) error {
	return r.checkGuard(ctx, g, known)
}

// checkGuard compares the published checkpoint with the guard, and both with a
// head that the caller knows from elsewhere, before anything is appended. Only a
// log without entries may be without a guard.
func (r *Reader) checkGuard(ctx context.Context, g Guard, known Head) error {
	if known.Size > 0 && known.Origin != r.origin {
		return hallmark.Errorf(hallmark.KindInternal, "known head of log %s, not %s", known.Origin, r.origin)
	}
	head, err := g.Head(ctx, r.origin)
	if err != nil {
		return err
	}
	published := Head{Origin: r.origin}
	raw, err := r.Checkpoint(ctx)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if n := max(known.Size, sizeOf(head)); n > 0 {
			return hallmark.Coded(hallmark.KindDenied, hallmark.CodeLogTruncated, "the log has no checkpoint, but %d entries were signed before", n)
		}
		return nil
	case err != nil:
		return err
	}
	cp, _, _, err := flog.ParseCheckpoint(raw, r.origin, r.verifier)
	if err != nil {
		return hallmark.Coded(hallmark.KindDenied, hallmark.CodeLogForked, "reading checkpoint: %w", err)
	}
	published.Size, published.Root = cp.Size, cp.Hash
	newest := published
	switch {
	case head == nil && cp.Size > 0:
		return hallmark.WithHint(
			hallmark.Coded(hallmark.KindDenied, hallmark.CodeLogForked, "the log has %d entries and its fork guard is missing", cp.Size),
			"put the guard file back; without it nobody can tell whether this log was rewritten")
	case head != nil && head.Size > cp.Size:
		// The head is stored before the checkpoint that it is about is published,
		// so a crash between the two leaves the guard one head ahead of the
		// checkpoint, and the tiles of that head are there.
		if err := r.holds(ctx, *head, published); err != nil {
			return err
		}
		newest = *head
	case head != nil:
		if err := r.follows(ctx, head, published); err != nil {
			return err
		}
	}
	return r.follows(ctx, &known, newest)
}

func sizeOf(h *Head) uint64 {
	if h == nil {
		return 0
	}
	return h.Size
}

// holds reports whether the tiles still make up the remembered head.
func (r *Reader) holds(ctx context.Context, head, published Head) error {
	lost := func(err error) error {
		return hallmark.Coded(hallmark.KindDenied, hallmark.CodeLogTruncated, "the log has %d entries, but %d were signed before: an older copy was put back or entries were cut off (%w)", published.Size, head.Size, err)
	}
	leaves, err := r.leafHashes(ctx, head.Size)
	if err != nil {
		return lost(err)
	}
	root, err := rootOf(leaves)
	if err != nil {
		return lost(err)
	}
	if string(root) != string(head.Root) {
		return lost(errors.New("the tree of that size has another root"))
	}
	// What is published must be the beginning of that same tree.
	if root, err = rootOf(leaves[:published.Size]); err != nil || string(root) != string(published.Root) {
		return hallmark.Coded(hallmark.KindDenied, hallmark.CodeLogForked, "the published tree of %d entries is not the beginning of the %d that were signed", published.Size, head.Size)
	}
	return nil
}

func short(err error) string {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return s
}
