// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package hallmark

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
)

// Digest is a SHA-256 digest in the form "sha256:" + 64 lower-case hex digits.
// The zero value is no digest; it never equals the digest of anything.
type Digest string

// DigestOf returns the digest of b.
func DigestOf(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// DigestFrom returns the digest of everything r yields, and the number of bytes.
func DigestFrom(r io.Reader) (Digest, int64, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil {
		return "", n, err
	}
	return Digest("sha256:" + hex.EncodeToString(h.Sum(nil))), n, nil
}

// DigestFromSum wraps a raw 32-byte SHA-256 sum.
func DigestFromSum(sum [sha256.Size]byte) Digest {
	return Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// ParseDigest accepts "sha256:HEX" with 64 lower-case hex digits and nothing
// else: weak algorithms are not digests here (SLSA verification, subject row).
func ParseDigest(s string) (Digest, error) {
	d := Digest(s)
	if err := d.Check(); err != nil {
		return "", err
	}
	return d, nil
}

// Check reports whether d has the canonical form.
func (d Digest) Check() error {
	alg, hexa, ok := strings.Cut(string(d), ":")
	if !ok || alg != "sha256" {
		return Errorf(KindInvalid, "digest %.80q: want sha256:HEX", string(d))
	}
	if len(hexa) != 2*sha256.Size || strings.Trim(hexa, "0123456789abcdef") != "" {
		return Errorf(KindInvalid, "digest %.80q: want 64 lower-case hex digits", string(d))
	}
	return nil
}

// Hex returns the hex digits without the algorithm, the form that in-toto's
// DigestSet uses under the key "sha256".
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), "sha256:") }

// Short returns the first twelve hex digits, for people.
func (d Digest) Short() string {
	h := d.Hex()
	if len(h) > 12 {
		return h[:12]
	}
	return h
}

func (d Digest) String() string { return string(d) }

// Sum returns the raw bytes of a canonical digest.
func (d Digest) Sum() ([]byte, error) {
	if err := d.Check(); err != nil {
		return nil, err
	}
	b, err := hex.DecodeString(d.Hex())
	if err != nil {
		return nil, fmt.Errorf("decoding digest %s: %w", d, err)
	}
	return b, nil
}
