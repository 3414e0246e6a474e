// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// Why else a signature was not accepted. What is wrong with a key or certificate
// is told apart, since each has another remedy.
var (
	ErrExpired   = errors.New("the key is not valid at this time")
	ErrRevoked   = errors.New("the key was revoked")
	ErrWeak      = errors.New("the signature is made by weak means")
	ErrUsage     = errors.New("the key is not for signing")
	ErrChain     = errors.New("the certificate is not of the authority that is named")
	ErrAmbiguous = errors.New("the signature says more than one thing")
	ErrFormat    = errors.New("the signature is of a kind that is not known")
)

// CodeOf is the reason code of a signature's refusal.
func CodeOf(err error) hallmark.Code {
	for _, row := range []struct {
		is   error
		code hallmark.Code
	}{
		{ErrExpired, hallmark.CodeSourceKeyExpired}, {ErrRevoked, hallmark.CodeSourceKeyRevoked}, {ErrWeak, hallmark.CodeSourceSignatureWeak},
		{ErrUsage, hallmark.CodeSourceKeyUsage}, {ErrChain, hallmark.CodeSourceChain}, {ErrAmbiguous, hallmark.CodeSourceSignatureAmbiguous},
		{ErrFormat, hallmark.CodeSourceSignatureFormat}, {ErrNotAllowed, hallmark.CodeSourceSignerNotAllowed},
	} {
		if errors.Is(err, row.is) {
			return row.code
		}
	}
	return hallmark.CodeSourceSignatureInvalid
}

// Signers are all who may sign commits and tags: each by the kinds of signature
// that are registered for them, and by no other.
type Signers struct {
	ssh     *AllowedSigners
	openpgp []OpenPGPSigner
	x509    []X509Signer
}

// NewSigners puts the registrations together; nil and none allow nobody.
func NewSigners(ssh *AllowedSigners, openpgp []OpenPGPSigner, x509 []X509Signer) *Signers {
	if ssh == nil {
		ssh = &AllowedSigners{}
	}
	return &Signers{ssh: ssh, openpgp: openpgp, x509: x509}
}

// armours are how signatures of commits begin, as git writes them. git itself
// goes by this line too, so a signature is checked as what it says it is.
const (
	armourSSH  = "-----BEGIN SSH SIGNATURE-----"
	armourPGP  = "-----BEGIN PGP SIGNATURE-----"
	armourX509 = "-----BEGIN SIGNED MESSAGE-----"
)

// Verify checks an armored signature over the bytes of a commit or tag, and
// returns every principal whose it is as of the given time.
func (s *Signers) Verify(armored, data []byte, at time.Time) ([]hallmark.Principal, error) {
	line, _, _ := bytes.Cut(armored, []byte{'\n'})
	switch string(line) {
	case armourSSH:
		return s.ssh.VerifySSH(armored, data, at)
	case armourPGP:
		return s.verifyOpenPGP(armored, data, at)
	case armourX509:
		return s.verifyX509(armored, data, at)
	}
	return nil, fmt.Errorf("%w: it begins with %.60q", ErrFormat, line)
}

// maxSignature bounds one signature: a certificate chain fits.
const maxSignature = 24 << 10

// unpack reads base64 between two lines with nothing before, after or inside.
func unpack(armored []byte, kind string) ([]byte, error) {
	if len(armored) > maxSignature {
		return nil, fmt.Errorf("it has %d bytes, more than %d", len(armored), maxSignature)
	}
	text, ok := strings.CutPrefix(string(armored), "-----BEGIN "+kind+"-----\n")
	text, ok2 := strings.CutSuffix(text, "-----END "+kind+"-----\n")
	if !ok || !ok2 {
		return nil, errors.New("it is not armored, or something stands beside it")
	}
	blob, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("decoding the armor: %w", err)
	}
	return blob, nil
}

// entry is a line of a file of signers, and where it stands.
type entry struct {
	line       int
	principals []string
	fields     []string // after the principals
}

// block is an armored block of a file of signers.
type block struct {
	line int
	kind string
	text string
}

// readSigners splits a file of signers into lines that say whose something is,
// and armored blocks, which are the things. Empty lines and comments count for
// nothing.
func readSigners(data []byte, fields int) (entries []entry, blocks []block, err error) {
	var open *block
	for i, raw := range strings.Split(string(data), "\n") {
		line := strings.TrimSpace(strings.TrimSuffix(raw, "\r"))
		kind, begins := strings.CutPrefix(line, "-----BEGIN ")
		kind, whole := strings.CutSuffix(kind, "-----")
		switch {
		case open != nil:
			if begins {
				return nil, nil, fmt.Errorf("line %d: a block begins inside another", i+1)
			}
			open.text += line + "\n"
			if line == "-----END "+open.kind+"-----" {
				blocks, open = append(blocks, *open), nil
			}
		case begins && whole:
			open = &block{line: i + 1, kind: kind, text: line + "\n"}
		case line == "" || strings.HasPrefix(line, "#"):
		default:
			f := strings.Fields(line)
			if len(f) != fields+1 {
				return nil, nil, fmt.Errorf("line %d: %.80q: want PRINCIPALS and %d fields, or an armored block", i+1, line, fields)
			}
			e := entry{line: i + 1, fields: f[1:]}
			for p := range strings.SplitSeq(f[0], ",") {
				if p == "" || strings.ContainsAny(p, "*?!\"") || slices.Contains(e.principals, p) {
					return nil, nil, fmt.Errorf("line %d: principal %.60q: name each principal once; patterns are not supported", i+1, p)
				}
				e.principals = append(e.principals, p)
			}
			entries = append(entries, e)
		}
	}
	if open != nil {
		return nil, nil, fmt.Errorf("line %d: the block does not end", open.line)
	}
	return entries, blocks, nil
}
