// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package identity turns proofs of identity into principals. SSH signatures
// (PROTOCOL.sshsig) are checked against an OpenSSH allowed_signers list that is
// part of the signed policy; what the list's parser does not understand it
// refuses, since an ignored restriction would widen who may sign.
package identity

import (
	"bytes"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/hallmark-sc/hallmark"
)

// AllowedSigners is a parsed allowed_signers list.
type AllowedSigners struct{ lines []allowed }

type allowed struct {
	principals          []string
	key                 ssh.PublicKey
	namespaces          []string
	notBefore, notAfter time.Time
}

// Why a signature was not accepted.
var (
	ErrMalformed  = errors.New("the signature can't be read")
	ErrInvalid    = errors.New("the signature does not verify")
	ErrNotAllowed = errors.New("the key is not allowed to sign")
)

// ParseAllowedSigners reads the list; name stands in errors before the line.
func ParseAllowedSigners(name string, data []byte) (*AllowedSigners, error) {
	a := &AllowedSigners{}
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(strings.TrimSuffix(line, "\r"))
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		l, err := parseLine(line)
		if err != nil {
			return nil, hallmark.Errorf(hallmark.KindInvalid, "%s:%d: %w", name, i+1, err)
		}
		a.lines = append(a.lines, l)
	}
	return a, nil
}

func parseLine(line string) (allowed, error) {
	var l allowed
	names, rest, ok := strings.Cut(line, " ")
	if !ok {
		return l, errors.New("want: PRINCIPAL [OPTIONS] KEYTYPE KEY")
	}
	for p := range strings.SplitSeq(names, ",") {
		if p == "" || strings.ContainsAny(p, "*?!\"") {
			return l, fmt.Errorf("principal %.60q: patterns are not supported, name each principal", p)
		}
		l.principals = append(l.principals, p)
	}
	rest = strings.TrimSpace(rest)
	if !isKeyType(rest) {
		options, after, err := cutOptions(rest)
		if err != nil {
			return l, err
		}
		seen := map[string]bool{}
		for _, o := range options {
			name, _, _ := strings.Cut(strings.ToLower(o), "=")
			if seen[name] {
				return l, fmt.Errorf("option %.60q is given twice", name)
			}
			seen[name] = true
			if err := l.option(o); err != nil {
				return l, err
			}
		}
		rest = after
	}
	fields := strings.Fields(rest)
	if len(fields) < 2 {
		return l, errors.New("want a key type and a key after the principals")
	}
	raw, err := base64.StdEncoding.DecodeString(fields[1])
	if err != nil {
		return l, fmt.Errorf("decoding the key: %w", err)
	}
	if l.key, err = ssh.ParsePublicKey(raw); err != nil {
		return l, fmt.Errorf("parsing the key: %w", err)
	}
	if l.key.Type() != fields[0] {
		return l, fmt.Errorf("the key is a %s, the line says %.40q", l.key.Type(), fields[0])
	}
	return l, strong(l.key)
}

func isKeyType(s string) bool {
	for _, p := range []string{"ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"} {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

// cutOptions splits comma-separated options, whose values may be quoted, from
// what follows them.
func cutOptions(s string) (options []string, rest string, err error) {
	quoted, start := false, 0
	for i, r := range s {
		switch {
		case r == '"':
			quoted = !quoted
		case r == ',' && !quoted:
			options = append(options, s[start:i])
			start = i + 1
		case (r == ' ' || r == '\t') && !quoted:
			return append(options, s[start:i]), strings.TrimSpace(s[i:]), nil
		}
	}
	return nil, "", errors.New("want a key type and a key after the options")
}

func (l *allowed) option(o string) error {
	name, value, _ := strings.Cut(o, "=")
	if n := len(value); n >= 2 && value[0] == '"' && value[n-1] == '"' {
		value = value[1 : n-1]
	}
	if strings.ContainsAny(value, "\"\\") {
		return fmt.Errorf("option %.60q: quotation marks or backslashes inside the value", name)
	}
	switch strings.ToLower(name) {
	case "namespaces":
		l.namespaces = strings.Split(value, ",")
		for _, n := range l.namespaces {
			if n == "" || strings.ContainsAny(n, "*?!") {
				return fmt.Errorf("namespace %.40q: patterns are not supported", n)
			}
		}
		return nil
	case "valid-after", "valid-before":
		t, err := parseTime(value)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if strings.EqualFold(name, "valid-after") {
			l.notBefore = t
		} else {
			l.notAfter = t
		}
		return nil
	case "cert-authority":
		return errors.New("cert-authority is not supported: name the keys themselves")
	}
	return fmt.Errorf("unknown option %.60q", o)
}

// parseTime wants the Z of UTC: OpenSSH reads a time without it in the zone of
// the machine, and then the same list would mean different things in two places.
func parseTime(s string) (time.Time, error) {
	s, ok := strings.CutSuffix(s, "Z")
	if !ok {
		return time.Time{}, fmt.Errorf("time %.40q: end it with Z (UTC)", s)
	}
	for _, layout := range []string{"20060102", "200601021504", "20060102150405"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("time %.40q: want YYYYMMDD[HHMM[SS]]Z", s)
}

func strong(k ssh.PublicKey) error {
	switch k.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		return nil
	case ssh.KeyAlgoRSA:
		if c, ok := k.(ssh.CryptoPublicKey); ok {
			if pub, ok := c.CryptoPublicKey().(*rsa.PublicKey); ok && pub.N.BitLen() >= 2048 {
				return nil
			}
		}
		return errors.New("RSA keys of fewer than 2048 bits are too weak")
	}
	return fmt.Errorf("keys of type %s are not accepted", k.Type())
}

// Names lists every principal, in the order of the file.
func (a *AllowedSigners) Names() []string {
	var out []string
	for _, l := range a.lines {
		for _, p := range l.principals {
			if !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	return out
}

// VerifySSH checks an armored SSH signature in the namespace "git" over data and
// returns every principal whose key it is, as of the given time. The error wraps
// ErrMalformed, ErrInvalid or ErrNotAllowed.
func (a *AllowedSigners) VerifySSH(armored, data []byte, at time.Time) ([]hallmark.Principal, error) {
	sig, err := unarmor(armored)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if err := strong(sig.PublicKey); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotAllowed, err)
	}
	if err := sshsig.Verify(bytes.NewReader(data), sig, sig.PublicKey, sig.HashAlgorithm, "git"); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if strings.HasPrefix(sig.PublicKey.Type(), "sk-") && (len(sig.Signature.Rest) != 5 || sig.Signature.Rest[0]&userPresent == 0) {
		return nil, fmt.Errorf("%w: the security key was not touched", ErrInvalid)
	}
	print := ssh.FingerprintSHA256(sig.PublicKey)
	var out []hallmark.Principal
	why := "no line names it"
	for _, l := range a.lines {
		if !bytes.Equal(l.key.Marshal(), sig.PublicKey.Marshal()) {
			continue
		}
		switch {
		case len(l.namespaces) > 0 && !slices.Contains(l.namespaces, "git"):
			why = "its line does not allow the namespace git"
		case !l.notBefore.IsZero() && at.Before(l.notBefore), !l.notAfter.IsZero() && !at.Before(l.notAfter):
			why = "its line is not valid at " + at.UTC().Format(time.RFC3339)
		default:
			for _, p := range l.principals {
				out = append(out, hallmark.Principal{Name: p, Key: print, Method: "ssh"})
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: %s: %s", ErrNotAllowed, print, why)
	}
	return out, nil
}

// userPresent is the flag of a security key's signature that says it was touched.
const userPresent = 0x01

// unarmor reads one armored signature with nothing before, after or inside it
// that the signature does not cover, in the encoding a signer writes.
func unarmor(armored []byte) (*sshsig.Signature, error) {
	const begin, end = "-----BEGIN " + sshsig.PEMType + "-----\n", "-----END " + sshsig.PEMType + "-----\n"
	text, ok := strings.CutPrefix(string(armored), begin)
	text, ok2 := strings.CutSuffix(text, end)
	if !ok || !ok2 {
		return nil, errors.New("it is not armored, or something stands beside it")
	}
	// Line lengths differ between writers; nothing else may.
	blob, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("decoding the armor: %w", err)
	}
	sig, err := sshsig.ParseSignature(blob)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(sig.Marshal(), blob) {
		return nil, errors.New("its encoding is not canonical")
	}
	return sig, nil
}

// SignInNamespace is the namespace of signatures that somebody signs in with: one
// made for a commit is good for nothing here, and the other way around.
const SignInNamespace = "hallmark-sign-in"

// SignedBy checks an armored SSH signature over data in a namespace and returns
// the fingerprint of its key. Whose key it is, the caller must know. The error
// wraps ErrMalformed, ErrInvalid or ErrNotAllowed.
func SignedBy(armored, data []byte, namespace string) (string, error) {
	sig, err := unarmor(armored)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if err := strong(sig.PublicKey); err != nil {
		return "", fmt.Errorf("%w: %w", ErrNotAllowed, err)
	}
	if err := sshsig.Verify(bytes.NewReader(data), sig, sig.PublicKey, sig.HashAlgorithm, namespace); err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if strings.HasPrefix(sig.PublicKey.Type(), "sk-") && (len(sig.Signature.Rest) != 5 || sig.Signature.Rest[0]&userPresent == 0) {
		return "", fmt.Errorf("%w: the security key was not touched", ErrInvalid)
	}
	return ssh.FingerprintSHA256(sig.PublicKey), nil
}

// TouchedBy is like SignedBy for a FIDO key, which is touched for each signature.
func TouchedBy(armored, data []byte, namespace string) (string, error) {
	sig, err := unarmor(armored)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if !strings.HasPrefix(sig.PublicKey.Type(), "sk-") {
		return "", fmt.Errorf("%w: a %s is no FIDO key", ErrNotAllowed, sig.PublicKey.Type())
	}
	return SignedBy(armored, data, namespace)
}

// Sign makes an armored SSH signature with a private key in OpenSSH's form.
func Sign(key, passphrase, data []byte, namespace string) (armored []byte, fingerprint string, err error) {
	var signer ssh.Signer
	if len(passphrase) > 0 {
		signer, err = ssh.ParsePrivateKeyWithPassphrase(key, passphrase)
	} else {
		signer, err = ssh.ParsePrivateKey(key)
	}
	if err != nil {
		return nil, "", fmt.Errorf("reading the private key: %w", err)
	}
	sig, err := sshsig.Sign(bytes.NewReader(data), signer, sshsig.HashSHA512, namespace)
	if err != nil {
		return nil, "", fmt.Errorf("signing: %w", err)
	}
	return sshsig.Armor(sig), ssh.FingerprintSHA256(signer.PublicKey()), nil
}
