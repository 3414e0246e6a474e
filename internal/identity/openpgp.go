// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"github.com/hallmark-sc/hallmark"
)

// OpenPGPSigner is an OpenPGP key and whose it is.
type OpenPGPSigner struct {
	Principals  []string
	Fingerprint string // of the primary key, in upper-case hex
	Key         []byte // the public key with its self-signatures, binary

	prints [][]byte // of the primary key and its subkeys
	ids    []uint64
}

// of is the signer that an entity is.
func (s OpenPGPSigner) of(e *openpgp.Entity) OpenPGPSigner {
	s.Fingerprint = fingerprint(e.PrimaryKey)
	s.prints, s.ids = append(s.prints, e.PrimaryKey.Fingerprint), append(s.ids, e.PrimaryKey.KeyId)
	for _, k := range e.Subkeys {
		s.prints, s.ids = append(s.prints, k.PublicKey.Fingerprint), append(s.ids, k.PublicKey.KeyId)
	}
	return s
}

// may reports whether a signature names a key of this signer: by its fingerprint
// where it says one, by the short id else, which settles nothing.
func (s OpenPGPSigner) may(sig *packet.Signature) bool {
	if len(sig.IssuerFingerprint) > 0 {
		return slices.ContainsFunc(s.prints, func(p []byte) bool { return bytes.Equal(p, sig.IssuerFingerprint) })
	}
	return sig.IssuerKeyId != nil && slices.Contains(s.ids, *sig.IssuerKeyId)
}

// maxOpenPGPKey bounds a key: signatures of others on it are not wanted here.
const maxOpenPGPKey = 64 << 10

// skew is how far other people's clocks may be ahead of ours.
const skew = 5 * time.Minute

var fingerprintForm = regexp.MustCompile(`^[0-9A-F]{40}([0-9A-F]{24})?$`)

// ReadOpenPGPKey reads one armored or binary public key.
func ReadOpenPGPKey(data []byte) (OpenPGPSigner, error) {
	if len(data) > 2*maxOpenPGPKey {
		return OpenPGPSigner{}, fmt.Errorf("%d bytes: export the key without signatures of others (gpg --export-options export-clean)", len(data))
	}
	raw := data
	if trimmed := bytes.TrimSpace(data); bytes.HasPrefix(trimmed, []byte("-----BEGIN ")) {
		in := bytes.NewReader(append(trimmed, '\n'))
		b, err := armor.Decode(in)
		if err != nil {
			return OpenPGPSigner{}, fmt.Errorf("reading the armor: %w", err)
		}
		if b.Type != openpgp.PublicKeyType {
			return OpenPGPSigner{}, fmt.Errorf("a %.40q where a public key is wanted", b.Type)
		}
		if raw, err = io.ReadAll(b.Body); err != nil {
			return OpenPGPSigner{}, fmt.Errorf("reading the armor: %w", err)
		}
		if bytes.Count(trimmed, []byte("-----BEGIN ")) != 1 {
			return OpenPGPSigner{}, errors.New("want one armored key")
		}
	}
	e, err := readEntity(raw)
	if err != nil {
		return OpenPGPSigner{}, err
	}
	return OpenPGPSigner{Key: raw}.of(e), nil
}

// readEntity reads exactly one public key. It is read anew for each use: the
// library keeps judgements in it, which were made at another time.
func readEntity(raw []byte) (*openpgp.Entity, error) {
	if len(raw) > maxOpenPGPKey {
		return nil, fmt.Errorf("%d bytes: export the key without signatures of others (gpg --export-options export-clean)", len(raw))
	}
	all, err := openpgp.ReadKeyRing(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("reading the key: %w", err)
	}
	if len(all) != 1 {
		return nil, fmt.Errorf("want one key, not %d", len(all))
	}
	e := all[0]
	if e.PrivateKey != nil || slices.ContainsFunc(e.Subkeys, func(s openpgp.Subkey) bool { return s.PrivateKey != nil }) {
		return nil, errors.New("this is a private key: want the public half (gpg --export)")
	}
	return e, nil
}

func fingerprint(k *packet.PublicKey) string {
	return strings.ToUpper(hex.EncodeToString(k.Fingerprint))
}

// ParseOpenPGPKeys reads a file of keys: lines of PRINCIPAL[,PRINCIPAL…]
// FINGERPRINT, and the armored keys that they name.
func ParseOpenPGPKeys(name string, data []byte) ([]OpenPGPSigner, error) {
	bad := func(line int, err error) error {
		return hallmark.Errorf(hallmark.KindInvalid, "%s:%d: %w", name, line, err)
	}
	entries, blocks, err := readSigners(data, 1)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "%s: %w", name, err)
	}
	keys := map[string]*OpenPGPSigner{}
	for _, b := range blocks {
		k, err := ReadOpenPGPKey([]byte(b.text))
		if err != nil {
			return nil, bad(b.line, err)
		}
		if keys[k.Fingerprint] != nil {
			return nil, bad(b.line, fmt.Errorf("key %s stands twice", k.Fingerprint))
		}
		keys[k.Fingerprint] = &k
	}
	var out []OpenPGPSigner
	named := map[string]bool{}
	for _, e := range entries {
		print := e.fields[0]
		k := keys[print]
		switch {
		case !fingerprintForm.MatchString(print):
			return nil, bad(e.line, fmt.Errorf("%.80q: want a whole fingerprint in upper-case hex", print))
		case k == nil:
			return nil, bad(e.line, fmt.Errorf("the file holds no key %s", print))
		case named[print]:
			return nil, bad(e.line, fmt.Errorf("key %s is named twice", print))
		}
		named[print] = true
		k.Principals = e.principals
		out = append(out, *k)
	}
	for _, b := range blocks {
		if k, err := ReadOpenPGPKey([]byte(b.text)); err == nil && !named[k.Fingerprint] {
			return nil, bad(b.line, fmt.Errorf("no line says whose key %s is", k.Fingerprint))
		}
	}
	return out, nil
}

// RegisteredOpenPGP is the key of one principal as the policy has it: base64, and
// the fingerprint that whoever signed the policy saw.
func RegisteredOpenPGP(principal, print, key string) (OpenPGPSigner, error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(key)
	if err != nil {
		return OpenPGPSigner{}, fmt.Errorf("OpenPGP key %s of %s: %w", print, principal, err)
	}
	e, err := readEntity(raw)
	if err != nil {
		return OpenPGPSigner{}, fmt.Errorf("OpenPGP key %s of %s: %w", print, principal, err)
	}
	if got := fingerprint(e.PrimaryKey); got != print {
		return OpenPGPSigner{}, fmt.Errorf("OpenPGP key %s of %s is %s in truth", print, principal, got)
	}
	return OpenPGPSigner{Principals: []string{principal}, Key: raw}.of(e), nil
}

// strongHashes are those a signature may be made with.
func strongHash(h crypto.Hash) bool {
	return slices.Contains([]crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512, crypto.SHA3_256, crypto.SHA3_512}, h)
}

// saltNotations are noise that signers add so that no two signatures are made
// over the same bytes. No other notation is known here.
func saltNotation(name string) bool {
	return name == "salt@notations.openpgpjs.org" || name == "salt@notations.sequoia-pgp.org"
}

// oneSignature reads an armored signature packet with nothing beside it.
func oneSignature(armored []byte) (*packet.Signature, error) {
	if len(armored) > maxSignature {
		return nil, fmt.Errorf("%w: it has %d bytes, more than %d", ErrMalformed, len(armored), maxSignature)
	}
	if n := bytes.Count(armored, []byte("-----BEGIN ")); n != 1 || !bytes.HasSuffix(armored, []byte("\n-----END PGP SIGNATURE-----\n")) {
		if n > 1 {
			return nil, fmt.Errorf("%w: it holds several signatures", ErrAmbiguous)
		}
		return nil, fmt.Errorf("%w: it is not armored, or something stands beside it", ErrMalformed)
	}
	b, err := armor.Decode(bytes.NewReader(armored))
	if err != nil || b.Type != openpgp.SignatureType {
		return nil, fmt.Errorf("%w: its armor can't be read", ErrMalformed)
	}
	blob, err := io.ReadAll(b.Body)
	if err != nil {
		return nil, fmt.Errorf("%w: its armor can't be read: %w", ErrMalformed, err)
	}
	in := bytes.NewReader(blob)
	p, err := packet.Read(in)
	var unsupported pgperrors.UnsupportedError
	if errors.As(err, &unsupported) && strings.HasPrefix(string(unsupported), "hash function ") {
		return nil, fmt.Errorf("%w: %s", ErrWeak, unsupported) // MD5 and others that no version of the library takes
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	sig, ok := p.(*packet.Signature)
	if !ok {
		return nil, fmt.Errorf("%w: it holds something else than a signature", ErrMalformed)
	}
	if in.Len() > 0 {
		return nil, fmt.Errorf("%w: it holds more than one packet", ErrAmbiguous)
	}
	return sig, nil
}

func (s *Signers) verifyOpenPGP(armored, data []byte, at time.Time) ([]hallmark.Principal, error) {
	sig, err := oneSignature(armored)
	if err != nil {
		return nil, err
	}
	if sig.SigType != packet.SigTypeBinary {
		return nil, fmt.Errorf("%w: it is of type %#x, not over bytes", ErrInvalid, int(sig.SigType))
	}
	if !strongHash(sig.Hash) {
		return nil, fmt.Errorf("%w: it is made with %s", ErrWeak, sig.Hash)
	}
	for _, n := range sig.Notations {
		if !saltNotation(n.Name) {
			return nil, fmt.Errorf("%w: its notation %.80q is not known here", ErrAmbiguous, n.Name)
		}
	}
	var out []hallmark.Principal
	why := fmt.Errorf("%w: %s", ErrNotAllowed, "no registered OpenPGP key has the id that it names")
	for _, k := range s.openpgp {
		if !k.may(sig) {
			continue
		}
		e, err := readEntity(k.Key)
		if err != nil {
			return nil, fmt.Errorf("%w: reading registered key %s: %w", ErrNotAllowed, k.Fingerprint, err)
		}
		pub, sub := keyOfSignature(e, sig)
		if pub == nil {
			continue
		}
		if err := signedBy(e, pub, sub, sig, data, at); err != nil {
			why = err
			continue
		}
		for _, p := range k.Principals {
			out = append(out, hallmark.Principal{Name: p, Key: "openpgp:" + fingerprint(pub), Method: "openpgp"})
		}
	}
	if len(out) == 0 {
		return nil, why
	}
	return out, nil
}

// keyOfSignature finds the key that a signature names.
func keyOfSignature(e *openpgp.Entity, sig *packet.Signature) (*packet.PublicKey, *openpgp.Subkey) {
	is := func(k *packet.PublicKey) bool {
		if len(sig.IssuerFingerprint) > 0 {
			return bytes.Equal(sig.IssuerFingerprint, k.Fingerprint)
		}
		return sig.IssuerKeyId != nil && *sig.IssuerKeyId == k.KeyId
	}
	if is(e.PrimaryKey) {
		return e.PrimaryKey, nil
	}
	for i := range e.Subkeys {
		if is(e.Subkeys[i].PublicKey) {
			return e.Subkeys[i].PublicKey, &e.Subkeys[i]
		}
	}
	return nil, nil
}

// signedBy checks the signature, and then that the key may sign at a time.
func signedBy(e *openpgp.Entity, pub *packet.PublicKey, sub *openpgp.Subkey, sig *packet.Signature, data []byte, at time.Time) error {
	print := fingerprint(pub)
	if err := strongKey(pub); err != nil {
		return err
	}
	h, err := sig.PrepareVerify()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if _, err := h.Write(data); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := pub.VerifySignature(h, sig); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrInvalid, print, err)
	}
	if e.Revoked(at) {
		return fmt.Errorf("%w: %s", ErrRevoked, print)
	}
	// Self-signatures that expired keys have are looked for at the time too, so
	// that the newest word of the key counts.
	config := &packet.Config{RejectHashAlgorithms: map[crypto.Hash]bool{crypto.MD5: true, crypto.RIPEMD160: true, crypto.SHA1: true}}
	self, err := e.VerifyPrimaryKey(at, config)
	if err := keyState(print, err, at); err != nil {
		return err
	}
	if sub != nil {
		binding, err := sub.Verify(at, config)
		if err := keyState(print, err, at); err != nil {
			return err
		}
		self = binding
	}
	if !self.FlagsValid || !self.FlagSign {
		return fmt.Errorf("%w: %s has no signing capability", ErrUsage, print)
	}
	switch {
	case sig.CreationTime.After(at.Add(skew)):
		return fmt.Errorf("%w: the signature by %s is of the future", ErrExpired, print)
	case sig.CreationTime.Before(at) && sig.SigExpired(at):
		return fmt.Errorf("%w: the signature by %s expired itself", ErrExpired, print)
	case sig.CreationTime.Before(pub.CreationTime):
		return fmt.Errorf("%w: it is older than key %s", ErrInvalid, print)
	}
	return nil
}

func keyState(print string, err error, at time.Time) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, pgperrors.ErrKeyRevoked):
		return fmt.Errorf("%w: %s", ErrRevoked, print)
	case errors.Is(err, pgperrors.ErrKeyExpired):
		return fmt.Errorf("%w: %s expired before %s", ErrExpired, print, at.UTC().Format(time.RFC3339))
	}
	return fmt.Errorf("%w: %s has no self-signature that holds at %s and is made by strong means", ErrUsage, print, at.UTC().Format(time.RFC3339))
}

func strongKey(k *packet.PublicKey) error {
	switch k.PubKeyAlgo {
	case packet.PubKeyAlgoRSA, packet.PubKeyAlgoRSASignOnly:
		if bits, err := k.BitLength(); err != nil || bits < 2047 {
			return fmt.Errorf("%w: RSA keys of fewer than 2048 bits", ErrWeak)
		}
		return nil
	case packet.PubKeyAlgoECDSA, packet.PubKeyAlgoEdDSA, packet.PubKeyAlgoEd25519, packet.PubKeyAlgoEd448:
		return nil
	}
	return fmt.Errorf("%w: keys of OpenPGP algorithm %d", ErrWeak, k.PubKeyAlgo)
}
