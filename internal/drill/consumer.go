// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/md5"  //nolint:gosec // what a careless consumer would compare
	"crypto/sha1" //nolint:gosec // what a careless consumer would compare
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/tlog"
	"github.com/hallmark-sc/hallmark/verify"
)

// The checks of the consumer, each of which a case leaves out.
const (
	pinCheck       check = iota + 101 // the roots are the pinned ones
	sizeCheck                         // a payload has a bounded size
	keysCheck                         // no key occurs twice in an object
	typeCheck                         // the payload type is in-toto's
	singleCheck                       // a bundle has one signature
	signatureCheck                    // the payload is what was signed and logged
	leafCheck                         // the log entry is that of this bundle
	signerCheck                       // this identity may sign this predicate type
	subjectCheck                      // a statement has a subject
	strongCheck                       // a subject has a strong digest
	digestCheck                       // the artifact is compared by digest
	inputsCheck                       // every input of the summary is there
	resourceCheck                     // the summary is about the expected package
	floorCheck                        // no policy is older than one seen before
)

// consumer verifies a result folder in the simplest way that makes each check in
// its own right, from pinned roots to the verification summary, without the code
// of package verify. It leaves out one check. What a case does must pass a
// consumer that lacks its check, and be refused by one that lacks none: then the
// check is what makes the difference.
type consumer struct {
	without  check
	pin      hallmark.Digest
	resource string
	floor    int // newest policy version seen before

	roots   *verify.Roots
	trusted *root.TrustedRoot
}

// wire is a Sigstore bundle as this consumer reads it.
type wire struct {
	Material struct {
		Certificate *struct {
			RawBytes []byte `json:"rawBytes"`
		} `json:"certificate"`
		PublicKey *struct {
			Hint string `json:"hint"`
		} `json:"publicKey"`
		Entries []struct {
			Body  []byte `json:"canonicalizedBody"`
			Proof struct {
				Index      uint64   `json:"logIndex,string"`
				Hashes     [][]byte `json:"hashes"`
				Checkpoint struct {
					Envelope string `json:"envelope"`
				} `json:"checkpoint"`
			} `json:"inclusionProof"`
		} `json:"tlogEntries"`
		Times struct {
			Stamps []struct {
				Signed []byte `json:"signedTimestamp"`
			} `json:"rfc3161Timestamps"`
		} `json:"timestampVerificationData"`
	} `json:"verificationMaterial"`
	Envelope struct {
		Payload     []byte `json:"payload"`
		PayloadType string `json:"payloadType"`
		Signatures  []struct {
			Sig []byte `json:"sig"`
		} `json:"signatures"`
	} `json:"dsseEnvelope"`
}

// told is what a verified bundle says.
type told struct {
	PredicateType string                      `json:"predicateType"`
	Subject       []intoto.ResourceDescriptor `json:"subject"`
	Predicate     json.RawMessage             `json:"predicate"`
}

// accept returns nil when the folder's evidence speaks for the artifact in it.
func (c consumer) accept(dir, artifact string) error {
	if err := c.trust(dir); err != nil {
		return err
	}
	bytesOf, err := os.ReadFile(filepath.Join(dir, artifact))
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(filepath.Join(dir, "evidence.jsonl"))
	if err != nil {
		return err
	}
	have := map[string]bool{}
	var summaries []told
	for line := range bytes.Lines(raw) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		t, err := c.bundle(line)
		if err != nil {
			return err
		}
		have[hallmark.DigestOf(line).Hex()] = true
		if t.PredicateType == intoto.PredicateVSA {
			summaries = append(summaries, t)
		}
	}
	for _, t := range summaries {
		if c.names(t, artifact, bytesOf) {
			return c.summary(dir, t, have)
		}
	}
	return errors.New("no summary names the artifact")
}

// trust reads the roots of the folder, which count when they are pinned.
func (c *consumer) trust(dir string) error {
	raw, err := os.ReadFile(filepath.Join(dir, "roots.json"))
	if err != nil {
		return err
	}
	if c.without != pinCheck && hallmark.DigestOf(raw) != c.pin {
		return errors.New("the roots are not the pinned ones")
	}
	if c.roots, err = verify.ParseRoots(raw); err != nil {
		return err
	}
	trusted, err := os.ReadFile(filepath.Join(dir, "trusted_root.json"))
	if err != nil {
		return err
	}
	if hallmark.DigestOf(trusted) != c.roots.TrustedRoot {
		return errors.New("the trusted root is not the pinned one")
	}
	c.trusted, err = root.NewTrustedRootFromJSON(trusted)
	return err
}

// bundle verifies one line of evidence.
func (c *consumer) bundle(line []byte) (told, error) {
	var w wire
	var t told
	if c.without != keysCheck && keyTwice(line) {
		return t, errors.New("a key occurs twice in the bundle")
	}
	if err := json.Unmarshal(line, &w); err != nil {
		return t, err
	}
	e := w.Envelope
	switch {
	case c.without != sizeCheck && len(e.Payload) > intoto.MaxSize:
		return t, errors.New("the payload is too large")
	case c.without != typeCheck && e.PayloadType != intoto.PayloadType:
		return t, errors.New("the payload is no in-toto statement")
	case c.without != singleCheck && len(e.Signatures) != 1:
		return t, errors.New("the bundle has not one signature")
	case len(e.Signatures) == 0 || len(w.Material.Entries) != 1 || len(w.Material.Times.Stamps) != 1:
		return t, errors.New("the bundle has no signature, log entry or time")
	}
	if err := c.signed(&w, &t); err != nil {
		return t, err
	}
	if c.without != keysCheck && keyTwice(e.Payload) {
		return t, errors.New("a key occurs twice in the payload")
	}
	return t, c.says(e.Payload, &t)
}

// says reads a payload whose signature was verified.
func (c *consumer) says(payload []byte, t *told) error {
	allowed := t.PredicateType // by the signer's name; see signed
	if err := json.Unmarshal(payload, t); err != nil {
		return err
	}
	for _, s := range c.roots.Signers {
		if c.without != signerCheck && s.Name == allowed && !slices.Contains(s.PredicateTypes, t.PredicateType) {
			return fmt.Errorf("%s may not sign %s", s.Name, t.PredicateType)
		}
	}
	if c.without != subjectCheck && len(t.Subject) == 0 {
		return errors.New("the statement has no subject")
	}
	for _, s := range t.Subject {
		if c.without != strongCheck && s.Digest["sha256"] == "" && s.Digest["gitCommit"] == "" {
			return errors.New("a subject has no strong digest")
		}
	}
	return nil
}

// signed verifies key or certificate, time, signature and log entry. It leaves
// the name of the signer in t.PredicateType, which is read afterwards.
func (c *consumer) signed(w *wire, t *told) error {
	key, name, err := c.signer(w)
	if err != nil {
		return err
	}
	t.PredicateType = name
	pae := sha256.Sum256(intoto.PAE(w.Envelope.PayloadType, w.Envelope.Payload))
	var good []byte
	for _, s := range w.Envelope.Signatures {
		if c.without == signatureCheck || ecdsa.VerifyASN1(key, pae[:], s.Sig) {
			good = s.Sig
		}
	}
	if good == nil {
		return errors.New("no signature fits")
	}
	if _, err := c.trusted.TimestampingAuthorities()[0].Verify(w.Material.Times.Stamps[0].Signed, good); err != nil {
		return err
	}
	return c.logged(w, pae, good)
}

func (c *consumer) signer(w *wire) (*ecdsa.PublicKey, string, error) {
	if w.Material.PublicKey != nil {
		for _, s := range c.roots.Signers {
			if s.Key == nil || s.Key.Hint != w.Material.PublicKey.Hint {
				continue
			}
			block, _ := pem.Decode([]byte(s.Key.PublicKey))
			pub, err := x509.ParsePKIXPublicKey(block.Bytes)
			if err != nil {
				return nil, "", err
			}
			return pub.(*ecdsa.PublicKey), s.Name, nil // ParseRoots takes no other
		}
		return nil, "", errors.New("the key is not in the roots")
	}
	if w.Material.Certificate == nil {
		return nil, "", errors.New("the bundle names nobody")
	}
	leaf, err := x509.ParseCertificate(w.Material.Certificate.RawBytes)
	if err != nil {
		return nil, "", err
	}
	if _, err := c.trusted.FulcioCertificateAuthorities()[0].Verify(leaf, leaf.NotBefore.Add(time.Minute)); err != nil {
		return nil, "", err
	}
	key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	for _, s := range c.roots.Signers {
		if ok && s.Certificate != nil && len(leaf.URIs) == 1 && leaf.URIs[0].String() == s.Certificate.SAN {
			return key, s.Name, nil
		}
	}
	return nil, "", errors.New("the certificate's identity is not in the roots")
}

// logged verifies checkpoint and inclusion, and that the entry is this bundle's.
func (c *consumer) logged(w *wire, pae [32]byte, sig []byte) error {
	entry := w.Material.Entries[0]
	key, err := c.roots.Logs[0].Key()
	if err != nil {
		return err
	}
	cp, err := tlog.ParseCheckpoint([]byte(entry.Proof.Checkpoint.Envelope), c.roots.Logs[0].Origin, key)
	if err != nil {
		return err
	}
	if err := tlog.VerifyInclusion(cp, entry.Proof.Index, tlog.LeafHash(entry.Body), entry.Proof.Hashes); err != nil {
		return err
	}
	var body struct {
		Spec struct {
			Record struct {
				Data struct {
					Digest []byte `json:"digest"`
				} `json:"data"`
				Signature struct {
					Content []byte `json:"content"`
				} `json:"signature"`
			} `json:"hashedRekordV002"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(entry.Body, &body); err != nil {
		return err
	}
	// Digest and signature in the entry repeat each other: the one belongs to
	// the payload, the other to the bundle.
	if c.without != leafCheck && !bytes.Equal(body.Spec.Record.Signature.Content, sig) {
		return errors.New("the log entry is of another signature")
	}
	if c.without != leafCheck && c.without != signatureCheck && !bytes.Equal(body.Spec.Record.Data.Digest, pae[:]) {
		return errors.New("the log entry is of another statement")
	}
	return nil
}

// names reports whether a summary is about the artifact.
func (c *consumer) names(t told, artifact string, b []byte) bool {
	if len(t.Subject) == 0 {
		return true // nothing differs; says refuses it
	}
	of := weakDigests(b)
	of["sha256"] = hallmark.DigestOf(b).Hex()
	for _, s := range t.Subject {
		if c.without == digestCheck && s.Name == artifact {
			return true
		}
		for alg, value := range s.Digest {
			if of[alg] == value {
				return true
			}
		}
	}
	return false
}

// summary checks what the summary says and rests on.
func (c *consumer) summary(dir string, t told, have map[string]bool) error {
	var v intoto.VSA
	if err := json.Unmarshal(t.Predicate, &v); err != nil {
		return err
	}
	if v.VerificationResult != "PASSED" {
		return errors.New("the summary says " + v.VerificationResult)
	}
	if c.without != resourceCheck && v.ResourceURI != c.resource {
		return errors.New("the summary is about " + v.ResourceURI)
	}
	for _, in := range v.InputAttestations {
		if c.without != inputsCheck && !have[in.Digest["sha256"]] {
			return errors.New("an input of the summary is missing")
		}
	}
	raw, err := os.ReadFile(filepath.Join(dir, "policy", "policy.json"))
	if err != nil {
		return err
	}
	if hallmark.DigestOf(raw).Hex() != v.Policy.Digest["sha256"] {
		return errors.New("the summary is of another policy")
	}
	var p struct{ Version int }
	if err := json.Unmarshal(raw, &p); err != nil {
		return err
	}
	if c.without != floorCheck && p.Version < c.floor {
		return fmt.Errorf("policy version %d is older than %d", p.Version, c.floor)
	}
	return nil
}

func weakDigests(b []byte) map[string]string {
	s, m := sha1.Sum(b), md5.Sum(b) //nolint:gosec // see the imports
	return map[string]string{"sha1": hex.EncodeToString(s[:]), "md5": hex.EncodeToString(m[:])}
}

// keyTwice reports whether an object in a JSON text has a key twice.
func keyTwice(text []byte) bool {
	dec := json.NewDecoder(bytes.NewReader(text))
	var twice func() bool // of the next value
	twice = func() bool {
		open, err := dec.Token()
		if open != json.Delim('{') && open != json.Delim('[') || err != nil {
			return false
		}
		seen := map[json.Token]bool{}
		for dec.More() {
			if open == json.Delim('{') {
				key, err := dec.Token()
				if err != nil || seen[key] {
					return true
				}
				seen[key] = true
			}
			if twice() {
				return true
			}
		}
		_, err = dec.Token()
		return err != nil
	}
	return twice()
}
