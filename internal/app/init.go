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
	"github.com/hallmark-sc/hallmark/internal/blob"
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
	// Administrators are NAME=FILE, FILE being the public half of their key; only
	// NAME, and at most one, for a single operator.
	Administrators []string
	Threshold      int // of administrators who must sign a policy
	Passphrase     []byte
	Registries     map[string]string // kind (go, npm) to URL, for the first policy
	Repositories   []string          // patterns of what the first policy lets be built; none: any
}

// InitResult says what the home is.
type InitResult struct {
	Created       bool
	Roots         hallmark.Digest
	Origin        string
	Mode          string
	PolicyVersion int               // 0 while the first one waits for signatures
	Registries    map[string]string // kind to URL, or none
	Threshold     int
	Others        []string // administrators, while the first policy waits
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
	// Of a home of several administrators: their public keys (PEM), in the order
	// of their names, and how many must sign.
	PolicyKeys []string `json:"policyKeys,omitempty"`
	Threshold  int      `json:"threshold,omitempty"`

	Registries   map[string]string `json:"registries,omitempty"`
	Repositories []string          `json:"repositories,omitempty"`
}

func (f identityFile) trustDomain() string { return f.ID + ".hallmark.internal" }
func (f identityFile) origin() string      { return "log." + f.trustDomain() }
func (f identityFile) verifierID() string  { return "https://" + f.trustDomain() + "/verifier" }

// Init makes a home, or completes one that was half made, or changes nothing.
// roots.json is written last: a home without it is not a home yet. A home of
// several administrators can be used when enough of them signed.
func Init(ctx context.Context, cfg InitConfig) (InitResult, error) {
	l := Layout{cfg.Home}
	if err := checkHome(cfg.Home); err == nil {
		return existing(ctx, l, cfg)
	} else if hallmark.KindOf(err) != hallmark.KindNotFound {
		return InitResult{}, err
	}
	id, err := decideIdentity(l, cfg)
	if err != nil {
		return InitResult{}, err
	}
	keys, err := sign.Create(sign.Config{Dir: cfg.Home, Passphrase: cfg.Passphrase, TrustDomain: id.trustDomain(), Clock: now, Administrators: id.Mode == verify.ModeThreshold})
	if err != nil {
		return InitResult{}, fmt.Errorf("making keys: %w", err)
	}
	files, err := makeHome(ctx, l, id, keys)
	if err != nil {
		return InitResult{}, err
	}
	if err := fingerprintKey(l.Fingerprints()); err != nil {
		return InitResult{}, err
	}
	for _, f := range files {
		if err := writeDurable(f.path, f.b, 0o644); err != nil {
			return InitResult{}, fmt.Errorf("writing %s: %w", f.path, err)
		}
	}
	res, err := existing(ctx, l, cfg)
	res.Created = true
	return res, err
}

// homeFile is a file of a new home.
type homeFile struct {
	path string
	b    []byte
}

// makeHome assembles the files of a new home in the order in which they must be
// written.
func makeHome(ctx context.Context, l Layout, id identityFile, keys *sign.Keyring) ([]homeFile, error) {
	trusted, err := trustedRoot(keys, id)
	if err != nil {
		return nil, fmt.Errorf("assembling the trusted root: %w", err)
	}
	config, err := keys.SigningConfig(id.origin())
	if err != nil {
		return nil, fmt.Errorf("assembling the signing configuration: %w", err)
	}
	roots, err := makeRoots(id, keys, trusted)
	if err != nil {
		return nil, err
	}
	rootsJSON, err := roots.Encode()
	if err != nil {
		return nil, fmt.Errorf("encoding the roots: %w", err)
	}
	docJSON, err := firstPolicy(id)
	if err != nil {
		return nil, err
	}
	files := []homeFile{{l.TrustedRoot(), trusted}, {l.SigningConfig(), config}}
	if id.Mode == verify.ModeThreshold {
		return append(files, homeFile{l.Proposal(), docJSON}, homeFile{l.Roots(), rootsJSON}), nil
	}
	bundles, err := signGenesis(ctx, l, id, keys, roots, docJSON)
	if err != nil {
		return nil, err
	}
	return append(files, homeFile{l.Policy(), docJSON}, homeFile{l.PolicyBundles(), bundles}, homeFile{l.Roots(), rootsJSON}), nil
}

// existing describes a home that is there. It has one mode and one set of
// administrators for ever: asking for others is refused, not ignored.
func existing(ctx context.Context, l Layout, cfg InitConfig) (InitResult, error) {
	b, err := os.ReadFile(l.Roots())
	if err != nil {
		return InitResult{}, hallmark.Errorf(hallmark.KindInvalid, "reading roots: %w", err)
	}
	roots, err := verify.ParseRoots(b)
	if err != nil {
		return InitResult{}, fmt.Errorf("reading %s: %w", l.Roots(), err)
	}
	res := InitResult{Roots: hallmark.DigestOf(b), Origin: roots.Logs[0].Origin, Mode: roots.Mode, Threshold: roots.Policy.Threshold}
	is := identityFile{Mode: roots.Mode, Administrators: roots.Administrators, Threshold: roots.Policy.Threshold}
	for _, k := range roots.Policy.Keys {
		is.PolicyKeys = append(is.PolicyKeys, k.PublicKey)
	}
	if err := sameMode(l, is, cfg); err != nil {
		return res, err
	}
	var raw []byte
	if roots.Mode == verify.ModeThreshold && !adopted(l) {
		res.Others = roots.Administrators
		raw, err = os.ReadFile(l.Proposal())
	} else if blobs, berr := blob.New(blob.Config{Dir: l.Blobs()}); berr != nil {
		err = berr
	} else {
		raw, _, err = readPolicyFiles(ctx, l, blobs)
	}
	if err != nil {
		return res, hallmark.Errorf(hallmark.KindInvalid, "reading home: %w", err)
	}
	doc, err := policy.ParseDocument(raw)
	if err != nil {
		return res, err
	}
	if len(res.Others) == 0 {
		res.PolicyVersion = doc.Version
	}
	res.Registries = map[string]string{}
	for _, kind := range []string{"go", "npm"} {
		res.Registries[kind] = doc.Value("registries." + kind)
	}
	if doc.AllowedSigners == "" {
		res.Warnings = append(res.Warnings, "the policy allows no signer: every commit will be denied; a home gets its signers when it is made, with --allowed-signers FILE")
	}
	return res, nil
}

// firstPolicy is the policy that a home begins with.
func firstPolicy(id identityFile) ([]byte, error) {
	doc := policy.Default(policy.Options{AllowedSigners: id.AllowedSigners, IssuedOn: id.CreatedOn, Registries: id.Registries, Repositories: id.Repositories})
	docJSON, err := doc.Encode()
	if err != nil {
		return nil, fmt.Errorf("encoding the policy: %w", err)
	}
	_, err = policy.ParseDocument(docJSON)
	return docJSON, err
}

// sameMode compares what init is asked for with what the home is, or was begun as.
func sameMode(l Layout, is identityFile, cfg InitConfig) error {
	differs := func(what string) error {
		return hallmark.WithHint(hallmark.Errorf(hallmark.KindUsage, "the home %s exists and has %s: that never changes, since everyone who verifies pins it", l.Home, what),
			"make another home: --home DIR")
	}
	if cfg.SingleOperator {
		if is.Mode != verify.ModeSingleOperator {
			return differs("several administrators")
		}
		return nil
	}
	if len(cfg.Administrators) == 0 {
		return nil
	}
	all, err := administratorsOf(cfg)
	switch {
	case err != nil:
		return err
	case is.Mode != verify.ModeThreshold:
		return differs("a single operator")
	case cfg.Threshold != is.Threshold:
		return differs(fmt.Sprintf("the threshold %d", is.Threshold))
	}
	for i, a := range all {
		if len(all) != len(is.Administrators) || a.name != is.Administrators[i] || a.pem != is.PolicyKeys[i] {
			return differs("other administrators or other keys of theirs")
		}
	}
	return nil
}

// decideIdentity reads or writes home.json.
func decideIdentity(l Layout, cfg InitConfig) (identityFile, error) {
	var id identityFile
	b, err := os.ReadFile(l.Identity())
	if err == nil {
		if err := json.Unmarshal(b, &id); err != nil || id.ID == "" {
			return id, hallmark.Errorf(hallmark.KindInvalid, "reading %s: not a home identity", l.Identity())
		}
		if len(id.PolicyKeys) != len(id.Administrators) && id.Mode == verify.ModeThreshold {
			return id, hallmark.Errorf(hallmark.KindInvalid, "reading %s: %d administrators with %d keys", l.Identity(), len(id.Administrators), len(id.PolicyKeys))
		}
		return id, sameMode(l, id, cfg)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return id, hallmark.Errorf(hallmark.KindInvalid, "reading home identity: %w", err)
	}
	all, err := administratorsOf(cfg)
	if err != nil {
		return id, err
	}
	id = identityFile{CreatedOn: now().Truncate(time.Second), Mode: verify.ModeSingleOperator}
	if !cfg.SingleOperator {
		id.Mode, id.Threshold = verify.ModeThreshold, cfg.Threshold
	}
	for _, a := range all {
		id.Administrators = append(id.Administrators, a.name)
		if a.pem != "" {
			id.PolicyKeys = append(id.PolicyKeys, a.pem)
		}
	}
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
	id.ID, id.Registries, id.Repositories = hex.EncodeToString(raw[:]), cfg.Registries, cfg.Repositories
	if b, err = json.MarshalIndent(id, "", "  "); err != nil {
		return id, err
	}
	// What is written here can't be given again: a policy that can't be made of it
	// would leave a home that no init completes.
	if _, err := firstPolicy(id); err != nil {
		return id, hallmark.Errorf(hallmark.KindUsage, "making the first policy: %w", err)
	}
	if err := os.MkdirAll(cfg.Home, 0o700); err != nil {
		return id, hallmark.WithHint(hallmark.Errorf(hallmark.KindInvalid, "making home: %w", err), "name a directory that you may write with --home DIR or $HALLMARK_HOME")
	}
	return id, writeDurable(l.Identity(), append(b, '\n'), 0o600)
}

// policyRoots is who may sign policies, and the signers that say so by name.
func policyRoots(id identityFile, keys *sign.Keyring) (verify.PolicyRoots, []verify.Signer, error) {
	may := []string{intoto.PredicatePolicy, intoto.PredicateGenesis}
	if id.Mode != verify.ModeThreshold {
		k := keys.Policy()
		key := verify.Key{Hint: k.Hint, PublicKey: k.PEM}
		return verify.PolicyRoots{Keys: []verify.Key{key}, Threshold: 1, MinimumVersion: 1}, []verify.Signer{{Name: "policy", Key: &key, PredicateTypes: may}}, nil
	}
	p := verify.PolicyRoots{Threshold: id.Threshold, MinimumVersion: 1}
	var signers []verify.Signer
	if len(id.PolicyKeys) != len(id.Administrators) {
		return p, nil, hallmark.Errorf(hallmark.KindInvalid, "home identity: %d administrators with %d keys", len(id.Administrators), len(id.PolicyKeys))
	}
	for i, text := range id.PolicyKeys {
		pub, _, err := sign.ParsePolicyPublic("key of "+id.Administrators[i], []byte(text))
		if err != nil {
			return p, nil, err
		}
		key := verify.Key{Hint: pub.Hint, PublicKey: pub.PEM}
		p.Keys = append(p.Keys, key)
		signers = append(signers, verify.Signer{Name: policySigner + id.Administrators[i], Key: &key, PredicateTypes: may})
	}
	return p, signers, nil
}

// Signers of the gates and of a server's builds, as roots name them.
const (
	gateName   = "gate"
	serverName = "server"
)

func makeRoots(id identityFile, keys *sign.Keyring, trusted []byte) (*verify.Roots, error) {
	artifact, checkpoint := keys.Artifact(), keys.Checkpoint()
	admins, policySigners, err := policyRoots(id, keys)
	if err != nil {
		return nil, err
	}
	issuer := "https://" + id.trustDomain()
	san := "spiffe://" + id.trustDomain()
	return &verify.Roots{
		APIVersion: "hallmark/v1", Kind: "Roots", TrustDomain: id.trustDomain(), Mode: id.Mode, Administrators: id.Administrators,
		Policy: admins,
		Signers: append([]verify.Signer{
			{Name: "observer", Certificate: &verify.Certificate{Issuer: issuer, SAN: san + "/observer"}, PredicateTypes: []string{
				intoto.PredicateSource, intoto.PredicateTestResult, intoto.PredicateVulns, intoto.PredicateSCAI,
				intoto.PredicateLink, intoto.PredicateTrace, intoto.PredicateSPDX, intoto.PredicateCycloneDX}},
			{Name: "builder", Certificate: &verify.Certificate{Issuer: issuer, SAN: san + "/builder/local"},
				PredicateTypes: []string{intoto.PredicateProvenance}, BuilderIDs: []string{intoto.BuilderLocal}, MaxLevel: "SLSA_BUILD_LEVEL_1"},
			{Name: wrapperName, Certificate: &verify.Certificate{Issuer: issuer, SAN: san + "/builder/wrap"},
				PredicateTypes: []string{intoto.PredicateProvenance}, BuilderIDs: []string{intoto.BuilderWrap}, MaxLevel: "SLSA_BUILD_LEVEL_1"},
			{Name: gateName, Certificate: &verify.Certificate{Issuer: issuer, SAN: san + "/gate"}, PredicateTypes: []string{
				intoto.PredicateTransition, intoto.PredicateReview, intoto.PredicateAccess}},
			{Name: serverName, Certificate: &verify.Certificate{Issuer: issuer, SAN: san + "/builder/server"},
				PredicateTypes: []string{intoto.PredicateProvenance}, BuilderIDs: []string{intoto.BuilderServer}, MaxLevel: "SLSA_BUILD_LEVEL_3"},
			{Name: "release", Key: &verify.Key{Hint: artifact.Hint, PublicKey: artifact.PEM},
				PredicateTypes: []string{intoto.PredicateVSA}, VerifierIDs: []string{id.verifierID()}},
		}, policySigners...),
		Logs:        []verify.Log{{Origin: id.origin(), PublicKey: checkpoint.PEM}},
		TrustedRoot: hallmark.DigestOf(trusted),
	}, nil
}

// signGenesis logs the genesis entry as the first one, then the policy.
func signGenesis(ctx context.Context, l Layout, id identityFile, keys *sign.Keyring, roots *verify.Roots, doc []byte) ([]byte, error) {
	st, err := openStores(l)
	if err != nil {
		return nil, err
	}
	defer st.close()
	signer := newSigner(l, id, keys, st)
	defer signer.close()
	digest, err := roots.Digest()
	if err != nil {
		return nil, err
	}
	genesis, err := genesisStatement(id, *roots, digest, hallmark.DigestOf(doc), "")
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
