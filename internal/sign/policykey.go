// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sign

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"

	"github.com/hallmark-sc/hallmark"
)

// PolicyKey is one administrator's key for policies. It lies with its owner:
// a home knows its public half only.
type PolicyKey struct{ key *ecdsa.PrivateKey }

// Public is the public half.
func (k *PolicyKey) Public() Public { return public(k.key.Public()) }

// publicNote is the line before the public half that says whose it is. RFC 7468
// lets text stand there.
const publicNote = "hallmark administrator "

// CheckAdministrator checks the name of an administrator.
func CheckAdministrator(name string) error {
	if !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}$`).MatchString(name) {
		return hallmark.Errorf(hallmark.KindUsage, "administrator %.80q: want a name of letters, digits and . _ @ + -, at most 64", name)
	}
	return nil
}

// CreatePolicyKey makes an administrator's key pair: the private half in path,
// encrypted when there is a passphrase, and the public half in path.pub. It
// never replaces a file.
func CreatePolicyKey(path, name string, passphrase []byte) (Public, error) {
	if err := CheckAdministrator(name); err != nil {
		return Public{}, err
	}
	for _, p := range []string{path, path + ".pub"} {
		if _, err := os.Lstat(p); err == nil {
			return Public{}, hallmark.WithHint(hallmark.Errorf(hallmark.KindInvalid, "%s exists: a key is never replaced", p), "name another file with --out")
		} else if !errors.Is(err, fs.ErrNotExist) {
			return Public{}, hallmark.Errorf(hallmark.KindInvalid, "looking for %s: %w", p, err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Public{}, fmt.Errorf("generating key %s: %w", path, err)
	}
	block, err := sealed(key, passphrase)
	if err != nil {
		return Public{}, fmt.Errorf("sealing key %s: %w", path, err)
	}
	if err := writeNew(path, block, 0o600); err != nil {
		return Public{}, err
	}
	pub := public(key.Public())
	if err := writeNew(path+".pub", []byte(publicNote+name+"\n"+pub.PEM), 0o644); err != nil {
		// Without its public half the key is of no use, and its file would be in
		// the way of the next try.
		return Public{}, errors.Join(err, os.Remove(path))
	}
	return pub, nil
}

// LoadPolicyKey opens an administrator's key.
func LoadPolicyKey(path string, passphrase []byte) (*PolicyKey, error) {
	b, err := readKey(path)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading the key of an administrator: %w", err)
	}
	s, err := files{cfg: Config{Passphrase: passphrase}}.parse(path, b)
	if err != nil {
		return nil, err
	}
	key, ok := s.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "key %s is not an ECDSA P-256 key", path)
	}
	return &PolicyKey{key: key}, nil
}

const maxPublicKey = 16 << 10

// ParsePolicyPublic reads the public half of an administrator's key. name is
// whose key the file says it is, or "".
func ParsePolicyPublic(path string, b []byte) (pub Public, name string, err error) {
	invalid := func(format string, args ...any) (Public, string, error) {
		return Public{}, "", hallmark.Errorf(hallmark.KindInvalid, "%s: "+format, append([]any{path}, args...)...)
	}
	if len(b) > maxPublicKey {
		return invalid("%d bytes: the limit is %d", len(b), maxPublicKey)
	}
	note, _, found := bytes.Cut(b, []byte("-----BEGIN "))
	block, rest := pem.Decode(b)
	if !found || block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return invalid("want one PEM block PUBLIC KEY")
	}
	if strings.Contains(block.Type, "PRIVATE") {
		return invalid("is a private key, which stays with its owner: give the file that ends in .pub")
	}
	if block.Type != "PUBLIC KEY" {
		return invalid("PEM type %.40q: want PUBLIC KEY", block.Type)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return invalid("%w", err)
	}
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok || ec.Curve != elliptic.P256() {
		return invalid("want an ECDSA P-256 key")
	}
	if text := strings.TrimSpace(string(note)); text != "" {
		if name, ok = strings.CutPrefix(text, publicNote); !ok || CheckAdministrator(name) != nil {
			return invalid("the text before the key is not that of hallmark policy key")
		}
	}
	return public(crypto.PublicKey(ec)), name, nil
}

// sealed is the PEM form of a private key.
func sealed(key crypto.Signer, passphrase []byte) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding: %w", err)
	}
	if len(passphrase) == 0 {
		return pem.EncodeToMemory(&pem.Block{Type: plainBlock, Bytes: der}), nil
	}
	secret, err := encrypted.Encrypt(der, passphrase)
	if err != nil {
		return nil, fmt.Errorf("encrypting: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: encryptedBlock, Bytes: secret}), nil
}
