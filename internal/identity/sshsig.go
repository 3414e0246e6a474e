// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"slices"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/hallmark-sc/hallmark"
)

// userPresent is the flag of a security key that says somebody touched it.
const userPresent = 0x01

// VerifyGit verifies an armored SSH signature over message in git's namespace
// and returns every principal its key stands for. signedOn is when the signer
// says it was made: the line must have been valid then, and a line whose
// valid-before has passed by now is not believed for any time, because signedOn
// is the signer's own word (so valid-before is how a key is withdrawn).
//
// Errors of kind KindDenied are judgements and carry SOURCE_SIGNATURE_INVALID,
// SOURCE_SIGNER_NOT_ALLOWED or SOURCE_SIGNATURE_UNSUPPORTED.
func (s *AllowedSigners) VerifyGit(message, armored []byte, signedOn, now time.Time) ([]hallmark.Principal, error) {
	sig, err := parseSignature(armored)
	if err != nil {
		return nil, denied(hallmark.CodeSourceSignatureInvalid, "reading the SSH signature: %w", err)
	}
	if err := checkSignature(message, sig); err != nil {
		return nil, err
	}
	fingerprint := ssh.FingerprintSHA256(sig.PublicKey)
	blob := sig.PublicKey.Marshal()
	var principals []hallmark.Principal
	why := "it is not in the allowed signers of the policy"
	for _, e := range s.entries {
		if !bytes.Equal(e.key.Marshal(), blob) {
			continue
		}
		if reason := e.unusable(signedOn, now); reason != "" {
			why = fmt.Sprintf("line %d of the allowed signers %s", e.line, reason)
			continue
		}
		for _, name := range e.principals {
			p := hallmark.Principal{Name: name, Key: fingerprint, Method: "ssh"}
			if !slices.Contains(principals, p) {
				principals = append(principals, p)
			}
		}
	}
	if len(principals) == 0 {
		return nil, denied(hallmark.CodeSourceSignerNotAllowed, "key %s made the signature, but %s", fingerprint, why)
	}
	return principals, nil
}

// unusable says why the entry does not count, or "".
func (e entry) unusable(signedOn, now time.Time) string {
	switch {
	case len(e.namespaces) > 0 && !slices.Contains(e.namespaces, NamespaceGit):
		return "is not for the namespace git"
	case !e.validAfter.IsZero() && signedOn.Before(e.validAfter):
		return "was not valid yet at " + signedOn.UTC().Format(time.RFC3339)
	case !e.validBefore.IsZero() && !signedOn.Before(e.validBefore):
		return "was no longer valid at " + signedOn.UTC().Format(time.RFC3339)
	case !e.validBefore.IsZero() && !now.Before(e.validBefore):
		return "is no longer valid since " + e.validBefore.UTC().Format(time.RFC3339)
	}
	return ""
}

// parseSignature accepts one armored signature and nothing beside it, in the one
// encoding a signer would write.
func parseSignature(armored []byte) (*sshsig.Signature, error) {
	if !bytes.HasPrefix(armored, []byte("-----BEGIN "+sshsig.PEMType+"-----\n")) {
		return nil, invalid("it is not armored as %s", sshsig.PEMType)
	}
	block, rest := pem.Decode(armored)
	if block == nil || block.Type != sshsig.PEMType || len(block.Headers) != 0 {
		return nil, invalid("the armor is broken")
	}
	if len(bytes.TrimSpace(rest)) != 0 {
		return nil, invalid("something follows the signature")
	}
	sig, err := sshsig.ParseSignature(block.Bytes)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(sig.Marshal(), block.Bytes) {
		return nil, invalid("its encoding is not canonical")
	}
	return sig, nil
}

func checkSignature(message []byte, sig *sshsig.Signature) error {
	switch sig.PublicKey.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoRSA:
	case ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		if len(sig.Signature.Rest) != 5 || sig.Signature.Rest[0]&userPresent == 0 {
			return denied(hallmark.CodeSourceSignatureInvalid, "the security key signed without a touch")
		}
	default:
		return denied(hallmark.CodeSourceSignatureFormat, "key type %.60q can't sign commits here", sig.PublicKey.Type())
	}
	if err := checkStrength(sig.PublicKey); err != nil {
		return denied(hallmark.CodeSourceSignatureFormat, "judging the signing key: %w", err)
	}
	if sig.Namespace != NamespaceGit {
		return denied(hallmark.CodeSourceSignatureInvalid, "the signature is for the namespace %.40q, not for git", sig.Namespace)
	}
	if err := sshsig.Verify(bytes.NewReader(message), sig, sig.PublicKey, sig.HashAlgorithm, NamespaceGit); err != nil {
		return denied(hallmark.CodeSourceSignatureInvalid, "verifying the SSH signature: %w", err)
	}
	return nil
}

func denied(code hallmark.Code, format string, args ...any) error {
	return hallmark.Coded(hallmark.KindDenied, code, format, args...)
}
