// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/verify"
)

// The policy in force is two files, which can't be replaced at one moment. So a
// new one is first written whole into a third: from then on it is in force, and
// whoever comes next finishes what was begun.

// adoption is that third file.
type adoption struct {
	Document string   `json:"document"`
	Bundles  []string `json:"bundles"`
}

// lockPolicy keeps other processes from changing the policy until unlock.
func lockPolicy(l Layout) (unlock func(), err error) {
	f, err := os.OpenFile(l.PolicyLock(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "opening the policy lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindUnavailable, "another process is changing the policy of %s", l.Home), "try again when it has ended")
		}
		return nil, hallmark.Errorf(hallmark.KindInternal, "locking the policy: %w", err)
	}
	// What a killed process was writing when it held the lock is nobody's now.
	parts, err := filepath.Glob(filepath.Join(filepath.Dir(l.Policy()), ".part-*"))
	for _, p := range parts {
		err = errors.Join(err, os.Remove(p))
	}
	if err != nil {
		f.Close()
		return nil, hallmark.Errorf(hallmark.KindInternal, "sweeping the policy: %w", err)
	}
	return func() { f.Close() }, nil
}

// adoptPolicy puts a policy in force: the only place where that happens after
// init. The caller holds the policy lock. The floor of versions rises last: a
// crash before leaves the old policy or the new one, never none.
func (h *Home) adoptPolicy(document, bundles []byte) error {
	judge, err := verify.New(verify.Config{Roots: h.rootsJSON, Pin: h.verifier.RootsDigest(), TrustedRoot: h.trustedJSON})
	if err != nil {
		return err
	}
	p, err := judge.Policy(document, lines(bundles))
	if err != nil {
		return fmt.Errorf("verifying the new policy: %w", err)
	}
	floor, err := h.memory.PolicyFloor(h.verifier.RootsDigest())
	if err != nil {
		return fmt.Errorf("reading the newest policy version seen: %w", err)
	}
	if p.Version() < floor || h.policy.Valid() && p.Version() <= h.policy.Version() {
		return hallmark.Coded(hallmark.KindDenied, hallmark.CodePolicyRollback, "policy version %d: version %d was in force before", p.Version(), max(floor, h.policy.Version()))
	}
	a := adoption{Document: string(document)}
	for _, b := range lines(bundles) {
		a.Bundles = append(a.Bundles, string(b))
	}
	whole, err := json.Marshal(a)
	if err != nil {
		return hallmark.Errorf(hallmark.KindInternal, "encoding the new policy: %w", err)
	}
	if err := writeDurable(h.Adoption(), append(whole, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the policy: %w", err)
	}
	if err := h.finishAdoption(); err != nil {
		return err
	}
	if h.policy, err = h.verifier.Policy(document, lines(bundles)); err != nil {
		return fmt.Errorf("verifying the new policy: %w", err)
	}
	return nil
}

// finishAdoption completes an adoption that was begun, if there is one. The
// caller holds the policy lock.
func (h *Home) finishAdoption() error {
	document, bundles, ok, err := readAdoption(h.Layout)
	if err != nil || !ok {
		return err
	}
	for _, f := range []struct {
		path string
		b    []byte
	}{{h.PolicyBundles(), bundles}, {h.Layout.Policy(), document}} {
		if err := writeDurable(f.path, f.b, 0o644); err != nil {
			return fmt.Errorf("writing the policy: %w", err)
		}
	}
	if err := os.Remove(h.Adoption()); err != nil {
		return hallmark.Errorf(hallmark.KindInternal, "finishing a change of policy: %w", err)
	}
	if err := syncDir(filepath.Dir(h.Adoption())); err != nil {
		return hallmark.Errorf(hallmark.KindInternal, "finishing a change of policy: %w", err)
	}
	return nil
}

func readAdoption(l Layout) (document, bundles []byte, ok bool, err error) {
	b, err := os.ReadFile(l.Adoption())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, false, nil
	}
	if err != nil {
		return nil, nil, false, hallmark.Errorf(hallmark.KindInvalid, "reading policy: %w", err)
	}
	var a adoption
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&a); err != nil {
		return nil, nil, false, hallmark.Errorf(hallmark.KindInvalid, "reading %s: %w", l.Adoption(), err)
	}
	for _, s := range a.Bundles {
		bundles = append(append(bundles, s...), '\n')
	}
	return []byte(a.Document), bundles, true, nil
}

// readAdopted reads the policy in force with its signatures, which nobody has
// verified yet. An error that is fs.ErrNotExist means that there is none.
func readAdopted(l Layout) (document, bundles []byte, err error) {
	for range 100 {
		document, bundles, ok, err := readAdoption(l)
		if err != nil || ok {
			return document, bundles, err
		}
		if document, err = os.ReadFile(l.Policy()); err != nil {
			return nil, nil, fmt.Errorf("reading policy: %w", err)
		}
		if bundles, err = os.ReadFile(l.PolicyBundles()); err != nil {
			return nil, nil, fmt.Errorf("reading policy: %w", err)
		}
		// Nobody changed one of the two between the reads.
		again, err := os.ReadFile(l.Policy())
		if _, serr := os.Lstat(l.Adoption()); err == nil && bytes.Equal(again, document) && errors.Is(serr, fs.ErrNotExist) {
			return document, bundles, nil
		}
	}
	return nil, nil, hallmark.Errorf(hallmark.KindUnavailable, "reading policy: it changes all the time")
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
