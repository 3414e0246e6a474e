// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package intoto holds in-toto attestation Statements v1
// (https://in-toto.io/Statement/v1) and the predicate types Hallmark reads and
// writes. It is a strict codec: duplicate keys, wrong types, empty subjects and
// weak digests are refused. It never signs, verifies or does I/O.
package intoto

import (
	"encoding/json"

	"github.com/hallmark-sc/hallmark"
)

// Statement is an in-toto Statement v1 that nobody has verified. Verified
// statements are verify.Statement.
type Statement struct {
	Type          string               `json:"_type"`
	Subject       []ResourceDescriptor `json:"subject"`
	PredicateType string               `json:"predicateType"`
	Predicate     json.RawMessage      `json:"predicate"`
}

// ResourceDescriptor is in-toto's ResourceDescriptor v1.
type ResourceDescriptor struct {
	Name        string            `json:"name,omitempty"`
	URI         string            `json:"uri,omitempty"`
	Digest      map[string]string `json:"digest,omitempty"` // sha256, gitCommit, gitTree, dirHash1, …
	MediaType   string            `json:"mediaType,omitempty"`
	Annotations map[string]any    `json:"annotations,omitempty"`
}

// SubjectOf makes the subject entry of an artifact.
func SubjectOf(a hallmark.Artifact) ResourceDescriptor {
	return ResourceDescriptor{Name: a.Name, MediaType: a.MediaType, Digest: map[string]string{"sha256": a.Digest.Hex()}}
}

// SubjectOfRevision makes the subject entry of a revision. Its commit stands
// under the digest algorithm "gitCommit".
func SubjectOfRevision(r hallmark.Revision) ResourceDescriptor {
	return ResourceDescriptor{URI: r.Repository, Digest: map[string]string{"gitCommit": r.Commit, "gitTree": r.Tree}}
}
