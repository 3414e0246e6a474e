// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package sign holds the keys of a home and signs in-toto statements into
// Sigstore bundles v0.3: ECDSA P-256 keys, short-lived certificates with an
// embedded SCT (RFC 6962), RFC 3161 timestamps and a transparency log entry
// (hashedrekord 0.0.2 over the DSSE pre-authentication encoding).
//
// Keys for code signing, timestamps, certificates, checkpoints and policy are
// different keys. A private key never leaves the package, provenance is signed
// only with a permit bound to that one statement, and who may sign what is
// checked here as well as by every verifier.
package sign

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/durable"
)

// Config says where the keys lie and how they are protected.
type Config struct {
	Dir         string // the home; keys/ and pki/ lie under it
	Passphrase  []byte // encrypts the private keys; empty leaves them in the clear, mode 0600
	TrustDomain string // host name; the CA's organization
	Clock       func() time.Time
	// Administrators says that the policy keys lie with several administrators:
	// no policy key is made or loaded here.
	Administrators bool
}

// Keyring is the keys of one home.
type Keyring struct {
	domain     string
	artifact   *ecdsa.PrivateKey
	policy     *ecdsa.PrivateKey // nil where administrators have their own
	checkpoint ed25519.PrivateKey
	ct         *ecdsa.PrivateKey
	ca         authority
	tsa        authority
	tsaLeaf    *x509.Certificate
	tsaKey     *ecdsa.PrivateKey
}

// authority is a root and the intermediate that issues.
type authority struct {
	root, intermediate *x509.Certificate
	rootKey, key       *ecdsa.PrivateKey
}

// Public is the public half of a key.
type Public struct {
	Hint string // base64 of the SHA-256 of the SPKI
	PEM  string
	Key  crypto.PublicKey
}

const (
	plainBlock     = "PRIVATE KEY"
	encryptedBlock = "HALLMARK ENCRYPTED PRIVATE KEY"
)

// Create makes the keys that are missing and loads the others: a home that was
// half made is completed, an existing key is never replaced.
func Create(cfg Config) (*Keyring, error) { return open(cfg, true) }

// Load loads the keys; a missing one is an error.
func Load(cfg Config) (*Keyring, error) { return open(cfg, false) }

func open(cfg Config, create bool) (*Keyring, error) {
	if cfg.TrustDomain == "" || cfg.Clock == nil {
		return nil, hallmark.Errorf(hallmark.KindInternal, "keyring without a trust domain or clock")
	}
	f := files{cfg: cfg, create: create}
	k := &Keyring{domain: cfg.TrustDomain}
	var err error
	ec := func(name string) *ecdsa.PrivateKey {
		if err != nil {
			return nil
		}
		var s crypto.Signer
		if s, err = f.key(name, func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }); err != nil {
			return nil
		}
		key, ok := s.(*ecdsa.PrivateKey)
		if !ok || key.Curve != elliptic.P256() {
			err = hallmark.Errorf(hallmark.KindInvalid, "key %s is not an ECDSA P-256 key", f.path(name))
			return nil
		}
		return key
	}
	k.artifact, k.ct = ec("artifact"), ec("ct")
	if !cfg.Administrators {
		k.policy = ec("policy")
	}
	k.ca.rootKey, k.ca.key = ec("ca-root"), ec("ca")
	k.tsa.rootKey, k.tsa.key, k.tsaKey = ec("tsa-root"), ec("tsa-ca"), ec("tsa")
	if err != nil {
		return nil, err
	}
	s, err := f.key("checkpoint", func() (crypto.Signer, error) {
		_, priv, err := ed25519.GenerateKey(rand.Reader)
		return priv, err
	})
	if err != nil {
		return nil, err
	}
	var ok bool
	if k.checkpoint, ok = s.(ed25519.PrivateKey); !ok {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "key %s is not an Ed25519 key", f.path("checkpoint"))
	}
	if err := k.certificates(f); err != nil {
		return nil, err
	}
	if !create { // nothing was written, and the home may be another user's
		return k, nil
	}
	return k, f.syncDirs()
}

// files reads and writes the key directory.
type files struct {
	cfg    Config
	create bool
}

func (f files) path(name string) string { return filepath.Join(f.cfg.Dir, "keys", name+".pem") }
func (f files) cert(name string) string { return filepath.Join(f.cfg.Dir, "pki", name+".pem") }

func (f files) key(name string, make func() (crypto.Signer, error)) (crypto.Signer, error) {
	path := f.path(name)
	b, err := readKey(path)
	if err == nil {
		return f.parse(path, b)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if !f.create {
		return nil, hallmark.Errorf(hallmark.KindNotFound, "key %s is missing", path)
	}
	key, err := make()
	if err != nil {
		return nil, fmt.Errorf("generating key %s: %w", name, err)
	}
	block, err := sealed(key, f.cfg.Passphrase)
	if err != nil {
		return nil, fmt.Errorf("sealing key %s: %w", name, err)
	}
	return key, writeNew(path, block, 0o600)
}

// readKey reads a key file that only its owner can read. What is judged is the
// file that was opened, not what stands under its name a moment later.
func readKey(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading key: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxKeyFile {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "key %s is not a file of at most %d bytes", path, maxKeyFile)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindInvalid, "key %s can be read by others (mode %04o)", path, info.Mode().Perm()), "chmod 600 "+path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading key: %w", err)
	}
	return b, nil
}

const maxKeyFile = 1 << 16

func (f files) parse(path string, b []byte) (crypto.Signer, error) {
	block, rest := pem.Decode(b)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "key %s is not one PEM block", path)
	}
	der := block.Bytes
	var err error
	switch block.Type {
	case plainBlock:
		// An init that was killed and goes on with a passphrase must not end with
		// a key in the clear that its owner believes encrypted.
		if f.create && len(f.cfg.Passphrase) > 0 {
			return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindInvalid, "key %s is not encrypted, and a passphrase was given", path),
				"go on without a passphrase, or remove the unfinished home and begin again")
		}
	case encryptedBlock:
		if len(f.cfg.Passphrase) == 0 {
			return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindUnavailable, "key %s needs a passphrase", path),
				"give it with --passphrase-file FILE or $HALLMARK_PASSPHRASE")
		}
		if der, err = encrypted.Decrypt(der, f.cfg.Passphrase); err != nil {
			return nil, hallmark.Errorf(hallmark.KindInvalid, "key %s does not open with this passphrase", path)
		}
	default:
		return nil, hallmark.Errorf(hallmark.KindInvalid, "key %s has the PEM type %q", path, block.Type)
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "parsing key %s: %w", path, err)
	}
	s, ok := key.(crypto.Signer)
	if !ok {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "key %s can't sign", path)
	}
	return s, nil
}

// syncDirs makes the new names durable.
func (f files) syncDirs() error {
	for _, dir := range []string{f.cfg.Dir, filepath.Join(f.cfg.Dir, "keys"), filepath.Join(f.cfg.Dir, "pki")} {
		if err := durable.SyncDir(dir); err != nil {
			return hallmark.Errorf(hallmark.KindInvalid, "syncing %s: %w", dir, err)
		}
	}
	return nil
}

// writeNew writes a file that must not exist: whole and durable, or not there.
// It sweeps what a killed init left half-written beside it.
func writeNew(path string, b []byte, mode os.FileMode) error {
	dir := filepath.Dir(path)
	if err := errors.Join(durable.MakeDir(dir, 0o700), durable.Sweep(dir)); err != nil {
		return hallmark.Errorf(hallmark.KindInvalid, "making key directory: %w", err)
	}
	if err := (durable.Disk{}).Create(path, b, mode); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// Artifact is the public half of the key that signs verification summaries.
func (k *Keyring) Artifact() Public { return public(k.artifact.Public()) }

// Policy is the public half of the key that signs policies; the zero value where
// administrators have their own.
func (k *Keyring) Policy() Public {
	if k.policy == nil {
		return Public{}
	}
	return public(k.policy.Public())
}

// Checkpoint is the public half of the key that signs checkpoints.
func (k *Keyring) Checkpoint() Public { return public(k.checkpoint.Public()) }

func public(key crypto.PublicKey) Public {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil { // only for key types that we never make
		return Public{}
	}
	sum := sha256.Sum256(der)
	return Public{
		Hint: base64.StdEncoding.EncodeToString(sum[:]),
		PEM:  string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})),
		Key:  key,
	}
}
