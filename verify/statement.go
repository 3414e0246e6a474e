// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"encoding/json"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/tlog"
)

// Statement is a verified statement. Only a Verifier makes a valid one; the zero
// Statement is not valid and says nothing.
type Statement struct {
	valid      bool
	payload    []byte
	predicate  string
	digest     hallmark.Digest
	bundle     hallmark.Digest
	signer     string
	hint       string
	builderID  string
	verifierID string
	maxLevel   string
	signedAt   time.Time
	logIndex   uint64
	checkpoint tlog.Checkpoint
}

// Valid reports whether a Verifier made s.
func (s Statement) Valid() bool { return s.valid }

// Statement returns a copy of the statement; the zero Statement gives an empty one.
func (s Statement) Statement() intoto.Statement {
	if !s.valid {
		return intoto.Statement{}
	}
	// Parsed again rather than copied: annotations are trees of any depth, and
	// a caller's change must not reach another caller.
	st, err := intoto.Parse(s.payload)
	if err != nil {
		return intoto.Statement{}
	}
	return st
}

// Payload returns the signed payload.
func (s Statement) Payload() []byte { return bytes.Clone(s.payload) }

// Predicate returns a copy of the predicate's JSON.
func (s Statement) Predicate() json.RawMessage { return s.Statement().Predicate }

// Digest returns the statement digest: SHA-256 of its PAE, the digest that the
// log holds.
func (s Statement) Digest() hallmark.Digest { return s.digest }

// BundleDigest returns the digest of the bundle's bytes as they were given.
func (s Statement) BundleDigest() hallmark.Digest { return s.bundle }

// PredicateType returns the predicate type.
func (s Statement) PredicateType() string { return s.predicate }

// Signer returns the name that the pinned roots give the signer.
func (s Statement) Signer() string { return s.signer }

// BuilderID returns the builder.id of provenance, and "" otherwise.
func (s Statement) BuilderID() string { return s.builderID }

// MaxLevel returns the highest SLSA build level that this signer's provenance
// can support, and "" for any other predicate type.
func (s Statement) MaxLevel() string { return s.maxLevel }

// SignedAt returns the trusted RFC 3161 time of the signature.
func (s Statement) SignedAt() time.Time { return s.signedAt }

// LogIndex returns the index of the log entry.
func (s Statement) LogIndex() uint64 { return s.logIndex }

// LogOrigin returns the origin of the log that holds the entry.
func (s Statement) LogOrigin() string { return s.checkpoint.Origin }

// CheckpointSize returns the size of the log that the inclusion was proved in.
func (s Statement) CheckpointSize() uint64 { return s.checkpoint.Size }
