// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/verify"
)

// Home is an opened home: its pinned roots, its verified policy and its stores.
type Home struct {
	Layout
	id          identityFile
	rootsJSON   []byte
	trustedJSON []byte
	policyJSON  []byte
	policyLines []byte
	keys        *sign.Keyring // nil when opened for reading
	memory      *verify.FileMemory
	verifier    *verify.Verifier
	policy      verify.Policy
	document    policy.Document
	params      policy.Parameters
	stores      *stores
	own         string        // where memory and index lie; "" is in the home
	remote      *remoteSigner // signs for a home that was opened without its keys
	journal     journal       // of the log; read when it is first asked
}

// OpenHome opens a home with its keys; a nil passphrase opens unencrypted keys
// only.
func OpenHome(home string, pass []byte) (*Home, error) {
	h, err := readHome(home)
	if err != nil {
		return nil, err
	}
	if err = h.loadKeys(pass); err == nil {
		err = h.keysMatch()
	}
	if err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

func (h *Home) loadKeys(pass []byte) (err error) {
	h.keys, err = sign.Load(sign.Config{Dir: h.Home, Passphrase: pass, TrustDomain: h.id.trustDomain(), Clock: now, Administrators: h.id.Mode == verify.ModeThreshold})
	if err != nil {
		return fmt.Errorf("opening keys: %w", err)
	}
	return nil
}

// readHome opens a home without its keys. Roots, trusted root, genesis and
// policy are checked against each other before anything else is believed.
func readHome(home string) (*Home, error) {
	h, err := openRoots(home)
	if err != nil {
		return nil, err
	}
	if err := h.readPolicy(); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// openRoots opens a home whose genesis and policy need not be signed yet.
func openRoots(home string) (*Home, error) {
	if err := checkHome(home); err != nil {
		return nil, err
	}
	h := &Home{Layout: Layout{home}}
	var err error
	if h.stores, err = openStores(h.Layout); err != nil {
		return nil, err
	}
	if err := h.read(); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

func (h *Home) memoryDir() string {
	if h.own != "" {
		return filepath.Join(h.own, "seen")
	}
	return h.Memory()
}

func (h *Home) read() error {
	var err error
	for _, f := range []struct {
		path string
		to   *[]byte
	}{
		{h.Roots(), &h.rootsJSON}, {h.TrustedRoot(), &h.trustedJSON},
	} {
		if *f.to, err = readLimited(f.path, maxTrustFile); err != nil {
			return hallmark.Errorf(hallmark.KindInvalid, "reading home: %w", err)
		}
	}
	b, err := readLimited(h.Identity(), maxTrustFile)
	if err != nil {
		return hallmark.Errorf(hallmark.KindInvalid, "reading home identity: %w", err)
	}
	if err := json.Unmarshal(b, &h.id); err != nil {
		return hallmark.Errorf(hallmark.KindInvalid, "reading %s: %w", h.Identity(), err)
	}
	if h.memory, err = verify.NewFileMemory(h.memoryDir()); err != nil {
		return fmt.Errorf("opening the memory of checkpoints: %w", err)
	}
	h.verifier, err = verify.New(verify.Config{Roots: h.rootsJSON, Pin: hallmark.DigestOf(h.rootsJSON), TrustedRoot: h.trustedJSON, Memory: h.memory})
	if err != nil {
		return fmt.Errorf("reading roots of %s: %w", h.Home, err)
	}
	// home.json names the log, and with it the fork guard: under another name
	// nothing would be remembered.
	if r := h.verifier.Roots(); r.TrustDomain != h.id.trustDomain() || len(r.Logs) == 0 || r.Logs[0].Origin != h.id.origin() {
		return hallmark.Errorf(hallmark.KindInvalid, "%s is of home %q (%s), the roots are of %s (%s)", h.Identity(), h.id.ID, h.id.Mode, r.TrustDomain, r.Mode)
	}
	if mode := h.verifier.Roots().Mode; mode != h.id.Mode {
		return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeGenesisMismatch, "%s says mode %s, the roots say %s: the mode of a home never changes", h.Identity(), h.id.Mode, mode)
	}
	return nil
}

// keysMatch compares the keys with the roots: what other keys sign, nobody who
// pinned these roots would accept.
func (h *Home) keysMatch() error {
	r := h.verifier.Roots()
	release := slices.ContainsFunc(r.Signers, func(s verify.Signer) bool {
		return s.Name == "release" && s.Key != nil && s.Key.Hint == h.keys.Artifact().Hint
	})
	if !release || r.Logs[0].PublicKey != h.keys.Checkpoint().PEM {
		return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeTrustRootUnpinned, "the keys in %s are not those that %s names", h.path("keys"), h.Roots())
	}
	return nil
}

// Limits on files that are read whole.
const (
	maxTrustFile  = 4 << 20
	maxPolicyFile = 64 << 20
	maxEvidence   = 512 << 20
)

// readLimited reads a file of at most limit bytes.
func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "%s is larger than %d bytes", path, limit)
	}
	return b, nil
}

// readPolicy reads the policy in force, once the genesis is known to be signed.
func (h *Home) readPolicy() error {
	if h.id.Mode == verify.ModeThreshold && !adopted(h.Layout) {
		return h.unsigned(context.Background())
	}
	var err error
	if err := checkGenesis(h.Layout, h.verifier); err != nil {
		return err
	}
	for {
		read := h.policyLines
		if h.policyJSON, h.policyLines, err = readPolicyFiles(context.Background(), h.Layout, h.stores.blobs); err != nil {
			return err
		}
		h.policy, err = h.verifier.Policy(h.policyJSON, lines(h.policyLines))
		if hallmark.CodeOf(err) == hallmark.CodePolicyRollback && !bytes.Equal(read, h.policyLines) {
			continue // the next version came into force between the two; the same bytes again are a rollback
		}
		if err != nil {
			return fmt.Errorf("verifying the policy of %s: %w", h.Home, err)
		}
		break
	}
	if h.document, err = policy.ParseDocument(h.policy.Document()); err != nil {
		return fmt.Errorf("reading %s: %w", h.Layout.Policy(), err)
	}
	if h.params, err = h.document.Typed(); err != nil {
		return fmt.Errorf("reading %s: %w", h.Layout.Policy(), err)
	}
	return h.checkFactors(context.Background())
}

// Close releases the stores.
func (h *Home) Close() error {
	if h.stores == nil {
		return nil
	}
	return errors.Join(h.stores.close(), giveHomeBack(h.Layout))
}

// lines splits a file of one JSON object a line.
func lines(b []byte) [][]byte {
	var out [][]byte
	for l := range bytes.SplitSeq(b, []byte{'\n'}) {
		if len(bytes.TrimSpace(l)) > 0 {
			out = append(out, l)
		}
	}
	return out
}
