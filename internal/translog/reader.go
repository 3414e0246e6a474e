// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package translog

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	prekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	flog "github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/client"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/hallmark-sc/hallmark"
)

// Reader reads a log's published files. It needs no lock and changes nothing.
type Reader struct {
	dir      string
	origin   string
	verifier note.Verifier
	id       []byte
	files    client.FileFetcher
}

// OpenReader opens a log for reading.
func OpenReader(dir, origin string, key crypto.PublicKey) (*Reader, error) {
	pub, ok := key.(ed25519.PublicKey)
	if !ok {
		return nil, hallmark.Errorf(hallmark.KindInternal, "log key is not an Ed25519 key")
	}
	v, id, err := keyOf(origin, pub)
	if err != nil {
		return nil, err
	}
	return &Reader{dir: dir, origin: origin, verifier: v, id: id, files: client.FileFetcher{Root: dir}}, nil
}

// Checkpoint returns the newest signed checkpoint, as published. It wraps
// fs.ErrNotExist when nothing was published yet.
func (r *Reader) Checkpoint(_ context.Context) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(r.dir, layout.CheckpointPath))
	if err != nil {
		return nil, fmt.Errorf("reading checkpoint: %w", err)
	}
	return b, nil
}

func (r *Reader) tile(ctx context.Context, level, index uint64, p uint8) ([]byte, error) {
	return r.files.ReadTile(ctx, level, index, p)
}

// head is the newest checkpoint, whose signature verifies.
func (r *Reader) head(ctx context.Context) (Head, []byte, error) {
	raw, err := r.Checkpoint(ctx)
	if err != nil {
		return Head{}, nil, err
	}
	cp, _, _, err := flog.ParseCheckpoint(raw, r.origin, r.verifier)
	if err != nil {
		return Head{}, raw, hallmark.Coded(hallmark.KindDenied, hallmark.CodeLogForked, "verifying checkpoint: %w", err)
	}
	return Head{Origin: cp.Origin, Size: cp.Size, Root: cp.Hash}, raw, nil
}

// Size is that of the newest checkpoint, whose signature verifies. One that is
// smaller than a size that was seen before is an error.
func (r *Reader) Size(ctx context.Context, known uint64) (uint64, error) {
	h, _, err := r.head(ctx)
	if err != nil {
		return 0, err
	}
	if h.Size < known {
		return 0, hallmark.Coded(hallmark.KindDenied, hallmark.CodeLogTruncated, "the log of %s has %d entries, and had %d", r.origin, h.Size, known)
	}
	return h.Size, nil
}

// Entries calls fn for every entry below size, in order.
func (r *Reader) Entries(ctx context.Context, size uint64, fn func(index uint64, body []byte) error) error {
	return r.entries(ctx, 0, size, fn)
}

// entries reads from an index on; one bundle holds 256.
func (r *Reader) entries(ctx context.Context, from, size uint64, fn func(index uint64, body []byte) error) error {
	for from < size {
		bundle := from / layout.EntryBundleWidth
		raw, err := r.files.ReadEntryBundle(ctx, bundle, layout.PartialTileSize(0, bundle, size))
		if err != nil {
			return &badEntry{index: from, err: fmt.Errorf("reading entry bundle %d: %w", bundle, err)}
		}
		var eb api.EntryBundle
		if err := eb.UnmarshalText(raw); err != nil {
			return &badEntry{index: from, err: fmt.Errorf("parsing entry bundle %d: %w", bundle, err)}
		}
		for i := from % layout.EntryBundleWidth; from < size && from/layout.EntryBundleWidth == bundle; i++ {
			if i >= uint64(len(eb.Entries)) {
				return &badEntry{index: from, err: fmt.Errorf("entry bundle %d ends early", bundle)}
			}
			if err := fn(from, eb.Entries[i]); err != nil {
				return err
			}
			from++
		}
	}
	return nil
}

// First returns the body of entry 0; ok is false while the log is empty.
func (r *Reader) First(ctx context.Context) (body []byte, ok bool, err error) {
	head, _, err := r.head(ctx)
	if errors.Is(err, fs.ErrNotExist) || err == nil && head.Size == 0 {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	enough := errors.New("entry 0 was read")
	err = r.Entries(ctx, head.Size, func(_ uint64, b []byte) error {
		body, ok = b, true
		return enough
	})
	if !errors.Is(err, enough) {
		return nil, false, err
	}
	return body, ok, nil
}

type badEntry struct {
	index uint64
	err   error
}

func (b *badEntry) Error() string { return b.err.Error() }
func (b *badEntry) Unwrap() error { return b.err }

// leafHashes reads the leaf hashes of a tree from its level-0 tiles.
func (r *Reader) leafHashes(ctx context.Context, size uint64) ([][]byte, error) {
	var out [][]byte
	for tile := uint64(0); uint64(len(out)) < size; tile++ {
		raw, err := r.files.ReadTile(ctx, 0, tile, layout.PartialTileSize(0, tile, size))
		if err != nil {
			return nil, fmt.Errorf("reading tile %d: %w", tile, err)
		}
		var t api.HashTile
		if err := t.UnmarshalText(raw); err != nil {
			return nil, fmt.Errorf("parsing tile %d: %w", tile, err)
		}
		if len(t.Nodes) == 0 {
			return nil, fmt.Errorf("tile %d is empty", tile)
		}
		for _, n := range t.Nodes {
			if uint64(len(out)) < size {
				out = append(out, n)
			}
		}
	}
	return out, nil
}

func rootOf(leaves [][]byte) ([]byte, error) {
	f := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	for _, l := range leaves {
		if err := f.Append(l, nil); err != nil {
			return nil, err
		}
	}
	if len(leaves) == 0 {
		return rfc6962.DefaultHasher.EmptyRoot(), nil
	}
	return f.GetRootHash(nil)
}

// Prove returns the entry at an index with its proof under the newest
// checkpoint.
func (r *Reader) Prove(ctx context.Context, index uint64) (*prekor.TransparencyLogEntry, error) {
	head, raw, err := r.head(ctx)
	if err != nil {
		return nil, err
	}
	if index >= head.Size {
		return nil, hallmark.Errorf(hallmark.KindNotFound, "the log has %d entries: there is no entry %d", head.Size, index)
	}
	var body []byte
	stop := errors.New("found")
	err = r.entries(ctx, index, head.Size, func(_ uint64, b []byte) error {
		body = b
		return stop
	})
	if err != nil && !errors.Is(err, stop) {
		return nil, err
	}
	return proveEntry(ctx, r.tile, r.origin, r.verifier, r.id, index, raw, body, rfc6962.DefaultHasher.HashLeaf(body))
}

// ProveJSON is Prove in the JSON form that Rekor uses.
func (r *Reader) ProveJSON(ctx context.Context, index uint64) ([]byte, error) {
	e, err := r.Prove(ctx, index)
	if err != nil {
		return nil, err
	}
	raw, err := protojson.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encoding log entry: %w", err)
	}
	var b bytes.Buffer
	err = json.Compact(&b, raw)
	return b.Bytes(), err
}

// Problem is one thing that fsck found. Index is -1 when it concerns no entry.
type Problem struct {
	Code    hallmark.Code `json:"code"`
	Index   int64         `json:"index"`
	Message string        `json:"message"`
}

// Report is what fsck saw.
type Report struct {
	Entries  uint64    `json:"entries"`
	Problems []Problem `json:"problems"`
}

// Blobs tells whether the payload of a leaf is kept.
type Blobs interface {
	Get(ctx context.Context, d hallmark.Digest) ([]byte, error)
}

// Fsck recomputes the tree from its entries and compares it with tiles,
// checkpoint, guard and a head known from elsewhere (see Config.Known); every
// leaf's payload must be a blob. It names the first entry that is wrong.
func (r *Reader) Fsck(ctx context.Context, guard Guard, known Head, blobs Blobs) (Report, error) {
	var rep Report
	add := func(code hallmark.Code, index int64, format string, args ...any) {
		rep.Problems = append(rep.Problems, Problem{Code: code, Index: index, Message: fmt.Sprintf(format, args...)})
	}
	if err := r.checkGuard(ctx, guard, known); err != nil {
		code := hallmark.CodeOf(err)
		if code == "" {
			return rep, err
		}
		add(code, -1, "%s", short(err))
	}
	head, _, err := r.head(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return rep, nil
	}
	if err != nil {
		add(hallmark.CodeLogForked, -1, "%s", short(err))
		return rep, nil
	}
	tiles, tileErr := r.leafHashes(ctx, head.Size)
	if tileErr != nil {
		add(hallmark.CodeLogEntryAltered, -1, "%s", short(tileErr))
	}
	var leaves [][]byte
	altered := false
	err = r.Entries(ctx, head.Size, func(i uint64, body []byte) error {
		rep.Entries++
		leaf := rfc6962.DefaultHasher.HashLeaf(body)
		leaves = append(leaves, leaf)
		if tileErr == nil && string(tiles[i]) != string(leaf) {
			if !altered {
				add(hallmark.CodeLogEntryAltered, signed(i), "the entry is not the one in the tree")
			}
			altered = true
			return nil
		}
		d, err := StatementOf(body)
		if err != nil {
			add(hallmark.CodeLogEntryAltered, signed(i), "%s", short(err))
		} else if _, err := blobs.Get(ctx, d); err != nil {
			add(hallmark.CodeEvidenceMissing, signed(i), "the payload of statement %s: %s", d, short(err))
		}
		return nil
	})
	var bad *badEntry
	if errors.As(err, &bad) {
		add(hallmark.CodeLogEntryAltered, signed(bad.index), "%s", short(bad))
		return rep, nil
	}
	if err != nil {
		return rep, err
	}
	if root, err := rootOf(leaves); err != nil || string(root) != string(head.Root) {
		if !altered {
			add(hallmark.CodeLogEntryAltered, -1, "the entries do not make up the tree of the checkpoint")
		}
	}
	return rep, nil
}

// CheckIndex compares the index with the first size entries of the log. It counts
// what the index forgot, as a killed process leaves it, and names what it
// invents. Either is mended by making the index again from the log.
func (r *Reader) CheckIndex(ctx context.Context, size uint64, index Index) (forgotten int, invented []Problem, err error) {
	first := map[string]uint64{}
	err = r.Entries(ctx, size, func(i uint64, body []byte) error {
		leaf := rfc6962.DefaultHasher.HashLeaf(body)
		want := i
		if n, ok := first[string(leaf)]; ok {
			want = n // an entry that was logged twice stands in the index once
		} else {
			first[string(leaf)] = i
		}
		at, ok, err := index.Leaf(ctx, leaf)
		if err != nil {
			return fmt.Errorf("looking up leaf %d: %w", i, err)
		}
		switch {
		case !ok:
			forgotten++
		case at != want:
			invented = append(invented, Problem{Code: hallmark.CodeLogIndexDiffers, Index: signed(i), Message: fmt.Sprintf("the index has the entry at %d", at)})
		}
		return nil
	})
	return forgotten, invented, err
}

// StatementOf returns the digest that an entry of the kind hashedrekord 0.0.2 is
// about: that of a statement's PAE.
func StatementOf(body []byte) (hallmark.Digest, error) {
	var e struct {
		Kind string `json:"kind"`
		Spec struct {
			V2 struct {
				Data struct {
					Digest []byte `json:"digest"`
				} `json:"data"`
			} `json:"hashedRekordV002"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(body, &e); err != nil {
		return "", fmt.Errorf("reading log entry: %w", err)
	}
	if e.Kind != "hashedrekord" || len(e.Spec.V2.Data.Digest) != 32 {
		return "", fmt.Errorf("log entry of kind %q without a SHA-256 digest", e.Kind)
	}
	return hallmark.DigestFromSum([32]byte(e.Spec.V2.Data.Digest)), nil
}

// LeafOf reads out of a bundle which leaf its entry is and where it stands. The
// caller verified the bundle.
func LeafOf(bundle []byte) (leaf []byte, index uint64, err error) {
	var b struct {
		Material struct {
			Entries []struct {
				Index uint64 `json:"logIndex,string"`
				Body  []byte `json:"canonicalizedBody"`
			} `json:"tlogEntries"`
		} `json:"verificationMaterial"`
	}
	if err := json.Unmarshal(bundle, &b); err != nil {
		return nil, 0, fmt.Errorf("reading a bundle: %w", err)
	}
	if len(b.Material.Entries) != 1 {
		return nil, 0, fmt.Errorf("a bundle with %d log entries", len(b.Material.Entries))
	}
	e := b.Material.Entries[0]
	return rfc6962.DefaultHasher.HashLeaf(e.Body), e.Index, nil
}
