// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package tlog reads what a transparency log publishes: C2SP signed notes,
// checkpoints (tlog-checkpoint), witness cosignatures and policies
// (tlog-cosignature, tlog-policy) and RFC 6962 proofs. The cryptography is that
// of transparency-dev and of Sigstore's Rekor v2 libraries, so that key ids and
// hashes are theirs. It does no I/O and holds no private key.
package tlog

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"

	rekornote "github.com/sigstore/rekor-tiles/v2/pkg/note"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"

	"github.com/hallmark-sc/hallmark"
)

// maxNote bounds a checkpoint with all its cosignatures.
const maxNote = 1 << 18

// Checkpoint is the state of a log that its key signed.
type Checkpoint struct {
	Origin string
	Size   uint64
	Root   []byte // 32 bytes
}

// RootDigest returns the root hash as a digest.
func (c Checkpoint) RootDigest() hallmark.Digest {
	if len(c.Root) != sha256.Size {
		return ""
	}
	return hallmark.DigestFromSum([sha256.Size]byte(c.Root))
}

// NewVerifier returns the note verifier of a log, with the key id that Rekor v2
// and Sigstore clients use.
func NewVerifier(origin string, key ed25519.PublicKey) (note.Verifier, error) {
	if len(key) != ed25519.PublicKeySize {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "key of log %.100q: want %d bytes, have %d", origin, ed25519.PublicKeySize, len(key))
	}
	sv, err := signature.LoadVerifier(key, crypto.Hash(0))
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "loading key of log %.100q: %w", origin, err)
	}
	v, err := rekornote.NewNoteVerifier(origin, sv)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "loading key of log %.100q: %w", origin, err)
	}
	return v, nil
}

// LogID returns the full 32-byte id behind the C2SP key id of a log: what a
// Sigstore bundle calls logId.keyId.
func LogID(origin string, key ed25519.PublicKey) ([]byte, error) {
	if len(key) != ed25519.PublicKeySize {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "key of log %.100q: want %d bytes, have %d", origin, ed25519.PublicKeySize, len(key))
	}
	_, id, err := rekornote.KeyHash(origin, key)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "hashing key of log %.100q: %w", origin, err)
	}
	return id, nil
}

// Origin returns what the first line of a checkpoint says, without trusting it:
// it serves only to choose the key.
func Origin(raw []byte) string {
	line, _, _ := bytes.Cut(raw, []byte("\n"))
	if len(line) > 256 {
		return ""
	}
	return string(line)
}

// ParseCheckpoint opens a checkpoint: its note must carry a valid signature by
// the log's key, and its origin line must be origin.
func ParseCheckpoint(raw []byte, origin string, key ed25519.PublicKey) (Checkpoint, error) {
	v, err := NewVerifier(origin, key)
	if err != nil {
		return Checkpoint{}, err
	}
	return OpenCheckpoint(raw, v)
}

// OpenCheckpoint is ParseCheckpoint with a verifier made before.
func OpenCheckpoint(raw []byte, v note.Verifier) (Checkpoint, error) {
	if len(raw) > maxNote {
		return Checkpoint{}, invalid("checkpoint of %d bytes: the limit is %d", len(raw), maxNote)
	}
	cp, _, _, err := log.ParseCheckpoint(raw, v.Name(), v)
	if err != nil {
		return Checkpoint{}, invalid("opening checkpoint of log %s: %w", v.Name(), err)
	}
	if len(cp.Hash) != sha256.Size {
		return Checkpoint{}, invalid("checkpoint of log %s: root hash of %d bytes", v.Name(), len(cp.Hash))
	}
	return Checkpoint{Origin: cp.Origin, Size: cp.Size, Root: cp.Hash}, nil
}

// LeafHash is the RFC 6962 hash of an entry.
func LeafHash(entry []byte) []byte { return rfc6962.DefaultHasher.HashLeaf(entry) }

// VerifyInclusion proves that the leaf stands at index in the tree of cp.
func VerifyInclusion(cp Checkpoint, index uint64, leafHash []byte, hashes [][]byte) error {
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, index, cp.Size, leafHash, hashes, cp.Root); err != nil {
		return invalid("proving that entry %d is in log %s of size %d: %w", index, cp.Origin, cp.Size, err)
	}
	return nil
}

// VerifyConsistency proves that the log of size newer.Size still holds all of
// older, unchanged.
func VerifyConsistency(older, newer Checkpoint, hashes [][]byte) error {
	if older.Origin != newer.Origin {
		return invalid("checkpoints of two logs, %.100q and %.100q", older.Origin, newer.Origin)
	}
	if older.Size == newer.Size && !bytes.Equal(older.Root, newer.Root) {
		return hallmark.Coded(hallmark.KindDenied, hallmark.CodeLogSplitView, "log %s has two roots at size %d", older.Origin, older.Size)
	}
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, older.Size, newer.Size, hashes, older.Root, newer.Root); err != nil {
		return invalid("proving that log %s grew from %d to %d: %w", older.Origin, older.Size, newer.Size, err)
	}
	return nil
}

func invalid(format string, args ...any) error {
	return hallmark.Coded(hallmark.KindDenied, hallmark.CodeLogProofInvalid, format, args...)
}
