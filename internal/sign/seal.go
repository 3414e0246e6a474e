// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sign

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
)

// Seal authenticates what the home keeps for itself, such as a result that a
// later run may reuse: only who can open the keys can make the same code. Each
// purpose has a key of its own, and nothing about a signing key can be learnt
// from a code.
func (k *Keyring) Seal(purpose string, b []byte) ([]byte, error) {
	secret, err := k.artifact.Bytes()
	if err != nil {
		return nil, fmt.Errorf("deriving the key for %s: %w", purpose, err)
	}
	key, err := hkdf.Key(sha256.New, secret, nil, "hallmark seal v1 "+purpose, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("deriving the key for %s: %w", purpose, err)
	}
	m := hmac.New(sha256.New, key)
	m.Write(b)
	return m.Sum(nil), nil
}
