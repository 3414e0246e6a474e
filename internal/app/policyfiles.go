// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/blob"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// writePolicy puts a signed policy in force. The signatures name the document by
// its digest and the document is a blob already, so the one file with the
// signatures is the switch: before it the old version is in force, after it the
// new one, whatever policy.json says.
func writePolicy(disk durable.Disk, l Layout, doc, bundles []byte) error {
	if err := durable.Sweep(l.path("policy")); err != nil {
		return err
	}
	if err := disk.Replace(l.PolicyBundles(), bundles, 0o644); err != nil {
		return err
	}
	return disk.Replace(l.Policy(), doc, 0o644)
}

// readPolicyFiles reads a policy and its signatures, unverified. A policy.json
// that a killed change left behind, one version old or absent, is replaced by
// the blob that the signatures name; any other is returned as it stands, for the
// signatures to refuse.
func readPolicyFiles(ctx context.Context, l Layout, blobs *blob.Store) (doc, bundles []byte, err error) {
	for {
		if bundles, err = readLimited(l.PolicyBundles(), maxPolicyFile); err != nil {
			return nil, nil, hallmark.Errorf(hallmark.KindInvalid, "reading home: %w", err)
		}
		doc, err = readLimited(l.Policy(), maxPolicyFile)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, hallmark.Errorf(hallmark.KindInvalid, "reading home: %w", err)
		}
		named, previous := policyNamed(bundles)
		if err == nil && (named == "" || hallmark.DigestOf(doc) == named) {
			return doc, bundles, nil
		}
		if err != nil || hallmark.DigestOf(doc) == previous {
			blob, berr := blobs.Get(ctx, named)
			if berr != nil {
				return nil, nil, hallmark.Errorf(hallmark.KindInvalid, "reading the policy that is in force: %w", errors.Join(err, berr))
			}
			return blob, bundles, nil
		}
		// Another process may have changed both between our two looks.
		again, aerr := os.ReadFile(l.PolicyBundles())
		if aerr == nil && bytes.Equal(again, bundles) {
			return doc, bundles, nil
		}
	}
}

// policyNamed reads which document the first signature is of, and which came
// before it.
func policyNamed(bundles []byte) (named, previous hallmark.Digest) {
	all := lines(bundles)
	if len(all) == 0 {
		return "", ""
	}
	var b struct {
		DSSE struct {
			Payload []byte `json:"payload"`
		} `json:"dsseEnvelope"`
	}
	if json.Unmarshal(all[0], &b) != nil {
		return "", ""
	}
	st, err := intoto.Parse(b.DSSE.Payload)
	if err != nil || len(st.Subject) != 1 {
		return "", ""
	}
	var p struct {
		Previous hallmark.Digest `json:"previous"`
	}
	if json.Unmarshal(st.Predicate, &p) != nil {
		return "", ""
	}
	return hallmark.Digest("sha256:" + st.Subject[0].Digest["sha256"]), p.Previous
}

// checkPolicy verifies a policy that is not in force yet, without remembering
// its version: a version that was remembered and then not written would be one
// that this home could never satisfy again.
func (h *Home) checkPolicy(doc, bundles []byte) error {
	v, err := verify.New(verify.Config{Roots: h.rootsJSON, Pin: hallmark.DigestOf(h.rootsJSON), TrustedRoot: h.trustedJSON})
	if err != nil {
		return err
	}
	_, err = v.Policy(doc, lines(bundles))
	return err
}
