// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/identity"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/source"
)

// signersOf are all who may sign commits and tags under a policy: those of the
// whole home, and those whom the access section gives keys of their own. One
// registration that can't be read makes all of them unusable.
func signersOf(d policy.Document) (*identity.Signers, error) {
	ssh, err := identity.ParseAllowedSigners("allowedSigners", []byte(d.AllowedSigners))
	if err != nil {
		return nil, fmt.Errorf("reading the policy's allowed signers: %w", err)
	}
	pgp, err := identity.ParseOpenPGPKeys(policy.OpenPGPKeys, []byte(d.OpenPGPKeys))
	if err != nil {
		return nil, fmt.Errorf("reading the policy's OpenPGP keys: %w", err)
	}
	certs, err := identity.ParseX509Signers(policy.X509Signers, []byte(d.X509Signers))
	if err != nil {
		return nil, fmt.Errorf("reading the policy's signers by certificate: %w", err)
	}
	if d.Access != nil {
		for _, p := range d.Access.Principals {
			for _, k := range p.OpenPGP {
				r, err := identity.RegisteredOpenPGP(p.Name, k.Fingerprint, k.Key)
				if err != nil {
					return nil, hallmark.Errorf(hallmark.KindInvalid, "reading the policy: %w", err)
				}
				pgp = append(pgp, r)
			}
			for _, c := range p.X509 {
				r, err := identity.RegisteredX509(p.Name, c.Name, c.Authority)
				if err != nil {
					return nil, hallmark.Errorf(hallmark.KindInvalid, "reading the policy: %w", err)
				}
				certs = append(certs, r)
			}
		}
	}
	return identity.NewSigners(ssh, pgp, certs), nil
}

// commitVerifier checks signatures of commits and tags against who may sign.
func commitVerifier(d policy.Document) (func(sig, signed []byte, at time.Time) source.Verdict, error) {
	signers, err := signersOf(d)
	if err != nil {
		return nil, err
	}
	return func(sig, signed []byte, at time.Time) source.Verdict { return verdictOn(signers, sig, signed, at) }, nil
}

func verdictOn(signers *identity.Signers, sig, signed []byte, at time.Time) source.Verdict {
	who, err := signers.Verify(sig, signed, at)
	if err != nil {
		return source.Verdict{Code: identity.CodeOf(err), Message: err.Error()}
	}
	return source.Verdict{Principals: who}
}

// ReadOpenPGPKeys and ReadX509Signers read files of signers as changes of the
// policy.
func ReadOpenPGPKeys(path string) ([2]string, error) {
	return readSignerFile(path, policy.OpenPGPKeys, func(name string, b []byte) error { _, err := identity.ParseOpenPGPKeys(name, b); return err })
}

// ReadX509Signers is like ReadOpenPGPKeys.
func ReadX509Signers(path string) ([2]string, error) {
	return readSignerFile(path, policy.X509Signers, func(name string, b []byte) error { _, err := identity.ParseX509Signers(name, b); return err })
}

func readSignerFile(path, key string, parse func(string, []byte) error) ([2]string, error) {
	text, err := readLimited(path, maxTrustFile)
	if err != nil {
		return [2]string{}, hallmark.Errorf(hallmark.KindInvalid, "reading signers: %w", err)
	}
	if err := parse(path, text); err != nil {
		return [2]string{}, err
	}
	return [2]string{key, string(text)}, nil
}

// signing reads the files of keys that somebody signs with: public OpenPGP keys,
// and lines of email:ADDRESS or uri:URI before the certificate of the authority.
func (p PrincipalChange) signing(n *access.Principal) error {
	for _, file := range p.OpenPGPFiles {
		b, err := readLimited(file, 1<<18)
		if err != nil {
			return hallmark.Errorf(hallmark.KindInvalid, "reading OpenPGP key: %w", err)
		}
		k, err := identity.ReadOpenPGPKey(b)
		if err != nil {
			return hallmark.Errorf(hallmark.KindInvalid, "%s: %w", file, err)
		}
		n.OpenPGP = append(n.OpenPGP, access.OpenPGPKey{Fingerprint: k.Fingerprint, Key: base64.StdEncoding.EncodeToString(k.Key)})
	}
	for _, file := range p.X509Files {
		b, err := readLimited(file, 1<<18)
		if err != nil {
			return hallmark.Errorf(hallmark.KindInvalid, "reading signers by certificate: %w", err)
		}
		before, _, _ := strings.Cut(string(b), "-----BEGIN ")
		c, err := identity.ReadAuthority([]byte(strings.TrimPrefix(string(b), before)))
		if err != nil {
			return hallmark.Errorf(hallmark.KindInvalid, "%s: %w", file, err)
		}
		names := strings.Fields(before)
		if len(names) == 0 {
			return hallmark.Errorf(hallmark.KindInvalid, "%s: want email:ADDRESS or uri:URI on the lines before the certificate of the authority", file)
		}
		for _, name := range names {
			if err := identity.CheckCertificateName(name); err != nil {
				return hallmark.Errorf(hallmark.KindInvalid, "%s: %w", file, err)
			}
			n.X509 = append(n.X509, access.Certificate{Name: name, Authority: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))})
		}
	}
	return nil
}
