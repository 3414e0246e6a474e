// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/blob"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// lockWait is how long a change of the policy waits for another one.
const lockWait = 30 * time.Second

// lockPolicy keeps other processes from changing the policy until unlock.
func lockPolicy(ctx context.Context, l Layout) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	f, err := durable.Lock(ctx, l.PolicyLock())
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindUnavailable, "another process is changing the policy of %s", l.Home), "try again when it has ended")
	}
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "locking the policy: %w", err)
	}
	// What a killed process was writing when it held the lock is nobody's now.
	if err := durable.Sweep(filepath.Dir(l.Policy())); err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.Close()
		return nil, hallmark.Errorf(hallmark.KindInternal, "sweeping the policy: %w", err)
	}
	return func() { f.Close() }, nil
}

// adoptPolicy puts a policy in force: the only place where that happens after
// init. The caller holds the policy lock, and the document is a blob. The floor
// of versions rises last: a crash before leaves the old policy or the new one,
// never none.
func (h *Home) adoptPolicy(document, bundles []byte) error {
	if err := h.checkPolicy(document, bundles); err != nil {
		return fmt.Errorf("verifying the new policy: %w", err)
	}
	if h.policy.Valid() {
		// A killed change may have left the document of the version before; one
		// older than that would not be known again.
		if err := writeDurable(h.Layout.Policy(), h.policy.Document(), 0o644); err != nil {
			return fmt.Errorf("writing the policy in force: %w", err)
		}
	}
	if err := writePolicy(durable.Disk{}, h.Layout, document, bundles); err != nil {
		return fmt.Errorf("writing the policy: %w", err)
	}
	p, err := h.verifier.Policy(document, lines(bundles))
	if err != nil {
		return fmt.Errorf("verifying the new policy: %w", err)
	}
	h.policy = p
	return nil
}

// checkPolicy verifies a policy that is not in force yet, without remembering
// its version: a version that was remembered and then not written would be one
// that this home could never satisfy again.
func (h *Home) checkPolicy(document, bundles []byte) error {
	judge, err := verify.New(verify.Config{Roots: h.rootsJSON, Pin: h.verifier.RootsDigest(), TrustedRoot: h.trustedJSON})
	if err != nil {
		return err
	}
	p, err := judge.Policy(document, lines(bundles))
	if err != nil {
		return err
	}
	floor, err := h.memory.PolicyFloor(h.verifier.RootsDigest())
	if err != nil {
		return fmt.Errorf("reading the newest policy version seen: %w", err)
	}
	if p.Version() < floor || h.policy.Valid() && p.Version() <= h.policy.Version() {
		return hallmark.Coded(hallmark.KindDenied, hallmark.CodePolicyRollback, "policy version %d: version %d was in force before", p.Version(), max(floor, h.policy.Version()))
	}
	return nil
}

// writePolicy writes document and signatures. The signatures name the document
// by its digest and the document is a blob already, so the one file with the
// signatures is the switch: before it the old version is in force, after it the
// new one, whatever policy.json says.
func writePolicy(disk durable.Disk, l Layout, document, bundles []byte) error {
	// A signer of another user sees no blobs: for it each version is kept here too.
	if err := durable.MakeDir(l.KeptPolicies(), 0o755); err != nil {
		return err
	}
	if err := writeDurable(l.KeptPolicy(hallmark.DigestOf(document)), document, 0o644); err != nil {
		return err
	}
	if err := disk.Replace(l.PolicyBundles(), bundles, 0o644); err != nil {
		return err
	}
	return disk.Replace(l.Policy(), document, 0o644)
}

// adopted reports whether a policy was ever in force.
func adopted(l Layout) bool {
	_, err := os.Lstat(l.PolicyBundles())
	return !errors.Is(err, fs.ErrNotExist)
}

// readPolicyFiles reads a policy and its signatures, unverified. A policy.json
// that a killed change left behind, one version old or absent, is replaced by
// the blob that the signatures name; any other is returned as it stands, for the
// signatures to refuse.
func readPolicyFiles(ctx context.Context, l Layout, blobs *blob.Store) (doc, bundles []byte, err error) {
	for {
		if bundles, err = readLimited(l.PolicyBundles(), maxPolicyFile); err != nil {
			return nil, nil, hallmark.Errorf(hallmark.KindInvalid, "reading policy: %w", err)
		}
		doc, err = readLimited(l.Policy(), maxPolicyFile)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, hallmark.Errorf(hallmark.KindInvalid, "reading policy: %w", err)
		}
		named, previous := policyNamed(bundles)
		if err == nil && (named == "" || hallmark.DigestOf(doc) == named) {
			return doc, bundles, nil
		}
		if err != nil || hallmark.DigestOf(doc) == previous {
			kept, berr := blobs.Get(ctx, named)
			if berr != nil {
				return nil, nil, hallmark.Errorf(hallmark.KindInvalid, "reading the policy that is in force: %w", errors.Join(err, berr))
			}
			return kept, bundles, nil
		}
		// Another process may have changed both between our two looks.
		again, aerr := os.ReadFile(l.PolicyBundles())
		if aerr == nil && bytes.Equal(again, bundles) {
			return doc, bundles, nil
		}
	}
}

// policyNamed reads which document the first signature is of, and which came
// before it. Nobody has verified that yet.
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
