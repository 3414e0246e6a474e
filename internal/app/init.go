// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/identity"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/internal/translog"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// InitConfig is what a home is made from.
type InitConfig struct {
	Home           string
	AllowedSigners string // path of an OpenSSH allowed_signers file; may be empty
	SingleOperator bool
	Administrators []string
	Passphrase     []byte
}

// InitResult says what the home is.
type InitResult struct {
	Created       bool
	Roots         hallmark.Digest
	Origin        string
	Mode          string
	PolicyVersion int
	Warnings      []string
}

// identityFile is home.json: what was decided when init began. It is written
// first, so that an init that was killed goes on with the same names and times.
type identityFile struct {
	ID             string    `json:"id"`
	CreatedOn      time.Time `json:"createdOn"`
	Mode           string    `json:"mode"`
	Administrators []string  `json:"administrators"`
	AllowedSigners string    `json:"allowedSigners"`
}

func (f identityFile) trustDomain() string { return f.ID + ".hallmark.internal" }
func (f identityFile) origin() string      { return "log." + f.trustDomain() }
func (f identityFile) verifierID() string  { return "https://" + f.trustDomain() + "/verifier" }

// Init makes a home, or completes one that was half made, or changes nothing.
// roots.json is written last: a home without it is not a home yet.
func Init(ctx context.Context, cfg InitConfig) (InitResult, error) {
	l := Layout{cfg.Home}
	if err := checkHome(cfg.Home); err == nil {
		return existing(l)
	} else if hallmark.KindOf(err) != hallmark.KindNotFound {
		return InitResult{}, err
	}
	id, err := decideIdentity(l, cfg)
	if err != nil {
		return InitResult{}, err
	}
	keys, err := sign.Create(sign.Config{Dir: cfg.Home, Passphrase: cfg.Passphrase, TrustDomain: id.trustDomain(), Clock: now})
	if err != nil {
		return InitResult{}, fmt.Errorf("making keys: %w", err)
	}
	trusted, err := trustedRoot(keys, id)
	if err != nil {
		return InitResult{}, fmt.Errorf("assembling the trusted root: %w", err)
	}
	config, err := keys.SigningConfig(id.origin())
	if err != nil {
		return InitResult{}, fmt.Errorf("assembling the signing configuration: %w", err)
	}
	roots, err := makeRoots(id, keys, trusted)
	if err != nil {
		return InitResult{}, err
	}
	rootsJSON, err := roots.Encode()
	if err != nil {
		return InitResult{}, fmt.Errorf("encoding the roots: %w", err)
	}
	doc := policy.Default(policy.Options{AllowedSigners: id.AllowedSigners, IssuedOn: id.CreatedOn})
	docJSON, err := doc.Encode()
	if err != nil {
		return InitResult{}, fmt.Errorf("encoding the policy: %w", err)
	}
	bundles, err := signGenesis(ctx, l, id, keys, trusted, docJSON)
	if err != nil {
		return InitResult{}, err
	}
	if err := fingerprintKey(l.Fingerprints()); err != nil {
		return InitResult{}, err
	}
	for _, f := range []struct {
		path string
		b    []byte
	}{
		{l.TrustedRoot(), trusted}, {l.SigningConfig(), config}, {l.Policy(), docJSON},
		{l.PolicyBundles(), bundles}, {l.Roots(), rootsJSON},
	} {
		if err := writeDurable(f.path, f.b, 0o644); err != nil {
			return InitResult{}, fmt.Errorf("writing %s: %w", f.path, err)
		}
	}
	res, err := existing(l)
	res.Created = true
	return res, err
}

func existing(l Layout) (InitResult, error) {
	b, err := os.ReadFile(l.Roots())
	if err != nil {
		return InitResult{}, hallmark.Errorf(hallmark.KindInvalid, "reading roots: %w", err)
	}
	roots, err := verify.ParseRoots(b)
	if err != nil {
		return InitResult{}, fmt.Errorf("reading %s: %w", l.Roots(), err)
	}
	doc, err := readPolicy(l)
	if err != nil {
		return InitResult{}, err
	}
	res := InitResult{Roots: hallmark.DigestOf(b), Origin: roots.Logs[0].Origin, Mode: roots.Mode, PolicyVersion: doc.Version}
	if doc.AllowedSigners == "" {
		res.Warnings = append(res.Warnings, "the policy allows no signer: every commit will be denied until one is allowed")
	}
	return res, nil
}

// decideIdentity reads or writes home.json.
func decideIdentity(l Layout, cfg InitConfig) (identityFile, error) {
	var id identityFile
	b, err := os.ReadFile(l.Identity())
	if err == nil {
		if err := json.Unmarshal(b, &id); err != nil || id.ID == "" {
			return id, hallmark.Errorf(hallmark.KindInvalid, "reading %s: not a home identity", l.Identity())
		}
		return id, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return id, hallmark.Errorf(hallmark.KindInvalid, "reading home identity: %w", err)
	}
	if !cfg.SingleOperator {
		return id, hallmark.WithHint(
			hallmark.Errorf(hallmark.KindUsage, "a home of several administrators needs each one's key, which this version can't collect yet"),
			"say --single-operator: every verdict will note it, and two-person rows are never satisfied")
	}
	id = identityFile{CreatedOn: now().Truncate(time.Second), Mode: "single-operator", Administrators: cfg.Administrators}
	if cfg.AllowedSigners != "" {
		text, err := os.ReadFile(cfg.AllowedSigners)
		if err != nil {
			return id, hallmark.Errorf(hallmark.KindInvalid, "reading allowed signers: %w", err)
		}
		signers, err := identity.ParseAllowedSigners(cfg.AllowedSigners, text)
		if err != nil {
			return id, err
		}
		id.AllowedSigners = string(text)
		if names := signers.Names(); len(id.Administrators) == 0 && len(names) > 0 {
			id.Administrators = names[:1]
		}
	}
	if len(id.Administrators) == 0 {
		id.Administrators = []string{"operator"}
	}
	var raw [4]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return id, hallmark.Errorf(hallmark.KindInternal, "drawing a home id: %w", err)
	}
	id.ID = hex.EncodeToString(raw[:])
	if b, err = json.MarshalIndent(id, "", "  "); err != nil {
		return id, err
	}
	if err := os.MkdirAll(cfg.Home, 0o700); err != nil {
		return id, hallmark.Errorf(hallmark.KindInvalid, "making home: %w", err)
	}
	return id, writeDurable(l.Identity(), append(b, '\n'), 0o600)
}

func makeRoots(id identityFile, keys *sign.Keyring, trusted []byte) (*verify.Roots, error) {
	artifact, policyKey, checkpoint := keys.Artifact(), keys.Policy(), keys.Checkpoint()
	issuer := "https://" + id.trustDomain()
	san := "spiffe://" + id.trustDomain()
	return &verify.Roots{
		APIVersion: "hallmark/v1", Kind: "Roots", TrustDomain: id.trustDomain(), Mode: id.Mode, Administrators: id.Administrators,
		Policy: verify.PolicyRoots{Keys: []verify.Key{{Hint: policyKey.Hint, PublicKey: policyKey.PEM}}, Threshold: 1, MinimumVersion: 1},
		Signers: []verify.Signer{
			{Name: "observer", Certificate: &verify.Certificate{Issuer: issuer, SAN: san + "/observer"}, PredicateTypes: []string{
				intoto.PredicateSource, intoto.PredicateTestResult, intoto.PredicateVulns, intoto.PredicateSCAI,
				intoto.PredicateLink, intoto.PredicateSPDX, intoto.PredicateCycloneDX}},
			{Name: "builder", Certificate: &verify.Certificate{Issuer: issuer, SAN: san + "/builder/local"},
				PredicateTypes: []string{intoto.PredicateProvenance}, BuilderIDs: []string{intoto.BuilderLocal}, MaxLevel: "SLSA_BUILD_LEVEL_1"},
			{Name: "release", Key: &verify.Key{Hint: artifact.Hint, PublicKey: artifact.PEM},
				PredicateTypes: []string{intoto.PredicateVSA}, VerifierIDs: []string{id.verifierID()}},
			{Name: "policy", Key: &verify.Key{Hint: policyKey.Hint, PublicKey: policyKey.PEM},
				PredicateTypes: []string{intoto.PredicatePolicy, intoto.PredicateGenesis}},
		},
		Logs:        []verify.Log{{Origin: id.origin(), PublicKey: checkpoint.PEM}},
		TrustedRoot: hallmark.DigestOf(trusted),
	}, nil
}

// signGenesis logs the genesis entry as the first one, then the policy.
func signGenesis(ctx context.Context, l Layout, id identityFile, keys *sign.Keyring, trusted, doc []byte) ([]byte, error) {
	st, err := openStores(l)
	if err != nil {
		return nil, err
	}
	defer st.close()
	signer := newSigner(l, id, keys, st)
	defer signer.close()
	genesis, err := attest.GenesisStatement(attest.Genesis{
		Mode: id.Mode, Administrators: id.Administrators, Threshold: 1, TrustDomain: id.trustDomain(),
		Policy: hallmark.DigestOf(doc), TrustedRoot: hallmark.DigestOf(trusted), CreatedOn: id.CreatedOn,
	})
	if err != nil {
		return nil, err
	}
	first, err := signer.sign(ctx, sign.Policy, genesis, nil)
	if err != nil {
		return nil, fmt.Errorf("signing the genesis entry: %w", err)
	}
	if first.LogIndex != 0 {
		return nil, hallmark.Errorf(hallmark.KindInternal, "the genesis entry has log index %d, not 0: the log of %s is not new", first.LogIndex, l.Home)
	}
	if _, err := st.blobs.Put(ctx, doc); err != nil {
		return nil, fmt.Errorf("keeping the policy: %w", err)
	}
	statement, err := attest.PolicyStatement(hallmark.DigestOf(doc), 1, "")
	if err != nil {
		return nil, err
	}
	signed, err := signer.sign(ctx, sign.Policy, statement, nil)
	if err != nil {
		return nil, fmt.Errorf("signing the policy: %w", err)
	}
	return append(signed.JSON, '\n'), nil
}

// trustedRoot is trusted_root.json for the log of this home.
func trustedRoot(keys *sign.Keyring, id identityFile) ([]byte, error) {
	pub, ok := keys.Checkpoint().Key.(ed25519.PublicKey)
	if !ok {
		return nil, hallmark.Errorf(hallmark.KindInternal, "the checkpoint key is not an Ed25519 key")
	}
	logID, err := translog.LogID(id.origin(), pub)
	if err != nil {
		return nil, err
	}
	return keys.TrustedRoot(id.origin(), logID)
}

// fingerprintKey makes the key under which fingerprints of secrets are computed:
// a plain digest would confirm a guessed password.
func fingerprintKey(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return hallmark.Errorf(hallmark.KindInternal, "drawing the fingerprint key: %w", err)
	}
	return writeDurable(path, key, 0o600)
}

// writeDurable replaces a file so that it is whole or as it was. Equal bytes are
// left alone.
func writeDurable(path string, b []byte, mode os.FileMode) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, b) {
		return nil
	}
	return durable.Disk{}.Replace(path, b, mode)
}
