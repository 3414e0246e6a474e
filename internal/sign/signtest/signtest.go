// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package signtest holds what every log that a signer writes to must do, as a
// test, and a log in memory for tests of signing.
package signtest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"sync"
	"testing"

	"github.com/cyberphone/json-canonicalization/go/src/webpki.org/jsoncanonicalizer"
	pcommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	prekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	rekor "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"
	"github.com/sigstore/rekor-tiles/v2/pkg/types/hashedrekord"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/tlog"
)

// Request is a log entry about text, signed with a key of its own.
func Request(t testing.TB, text string) *rekor.HashedRekordRequestV002 {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(text))
	sig, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return &rekor.HashedRekordRequestV002{Digest: sum[:], Signature: &rekor.Signature{Content: sig, Verifier: &rekor.Verifier{
		KeyDetails: pcommon.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256,
		Verifier:   &rekor.Verifier_PublicKey{PublicKey: &rekor.PublicKey{RawBytes: der}}}}}
}

// Log is the contract of sign.Log over an empty log of this origin and key.
func Log(t *testing.T, log sign.Log, origin string, key ed25519.PublicKey) {
	ctx := t.Context()
	id, err := tlog.LogID(origin, key)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	places := map[int64]bool{}
	proved := func(e *prekor.TransparencyLogEntry) {
		t.Helper()
		p := e.GetInclusionProof()
		cp, err := tlog.ParseCheckpoint([]byte(p.GetCheckpoint().GetEnvelope()), origin, key)
		if err == nil {
			at := e.GetLogIndex()
			if at < 0 {
				t.Errorf("an entry at %d", at)
				return
			}
			err = tlog.VerifyInclusion(cp, uint64(at), tlog.LeafHash(e.GetCanonicalizedBody()), p.GetHashes())
		}
		if err != nil || !bytes.Equal(p.GetRootHash(), cp.Root) || fmt.Sprint(p.GetTreeSize()) != fmt.Sprint(cp.Size) || p.GetLogIndex() != e.GetLogIndex() {
			t.Errorf("entry %d is not proved: %v", e.GetLogIndex(), err)
		}
		if !bytes.Equal(e.GetLogId().GetKeyId(), id) || e.GetKindVersion().GetKind() != "hashedrekord" || e.GetKindVersion().GetVersion() != "0.0.2" {
			t.Errorf("entry %d: log id %x, kind %v", e.GetLogIndex(), e.GetLogId().GetKeyId(), e.GetKindVersion())
		}
		mu.Lock()
		defer mu.Unlock()
		places[e.GetLogIndex()] = true
	}
	first := Request(t, "first")
	a, err := log.Append(ctx, first)
	if err != nil {
		t.Fatal(err)
	}
	proved(a)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			e, err := log.Append(ctx, Request(t, fmt.Sprint(i)))
			if err != nil {
				t.Error(err)
				return
			}
			proved(e)
		})
	}
	all.Wait()
	if len(places) != 9 {
		t.Errorf("9 entries stand in %d places", len(places))
	}
	again, err := log.Append(ctx, first)
	if err != nil || again.GetLogIndex() != a.GetLogIndex() || !bytes.Equal(again.GetCanonicalizedBody(), a.GetCanonicalizedBody()) {
		t.Errorf("the same entry again stands at %d, %v; want %d", again.GetLogIndex(), err, a.GetLogIndex())
	}
	proved(again)
	for name, edit := range map[string]func(*rekor.HashedRekordRequestV002){
		"another digest": func(r *rekor.HashedRekordRequestV002) { r.Digest[0] ^= 1 },
		"no signature":   func(r *rekor.HashedRekordRequestV002) { r.Signature.Content = nil },
		"no key":         func(r *rekor.HashedRekordRequestV002) { r.Signature.Verifier = nil },
		"nothing":        func(r *rekor.HashedRekordRequestV002) { r.Digest, r.Signature = nil, nil },
	} {
		r := Request(t, "refused")
		edit(r)
		if _, err := log.Append(ctx, r); hallmark.KindOf(err) != hallmark.KindInvalid {
			t.Errorf("%s: got %v", name, err)
		}
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := log.Append(gone, Request(t, "too late")); err == nil {
		t.Error("a caller that went away was told that its entry is published")
	}
}

// Memory is a log in memory that proves what it says. It is safe for concurrent
// use.
type Memory struct {
	origin   string
	signer   note.Signer
	id       []byte
	registry *signature.AlgorithmRegistryConfig

	mu     sync.Mutex
	leaves [][]byte
	fail   error
}

// NewMemory makes an empty log.
func NewMemory(origin string, signer note.Signer, key ed25519.PublicKey) (*Memory, error) {
	id, err := tlog.LogID(origin, key)
	if err != nil {
		return nil, err
	}
	reg, err := signature.NewAlgorithmRegistryConfig([]pcommon.PublicKeyDetails{pcommon.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256})
	return &Memory{origin: origin, signer: signer, id: id, registry: reg}, err
}

// Fail makes every further Append fail; nil ends that.
func (m *Memory) Fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

// Size is the number of entries.
func (m *Memory) Size() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.leaves)
}

// Append implements sign.Log.
func (m *Memory) Append(ctx context.Context, req *rekor.HashedRekordRequestV002) (*prekor.TransparencyLogEntry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	entry, err := hashedrekord.ToLogEntry(req, m.registry)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "assembling log entry: %w", err)
	}
	raw, err := protojson.Marshal(entry)
	if err != nil {
		return nil, err
	}
	body, err := jsoncanonicalizer.Transform(raw)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return nil, m.fail
	}
	leaf, at := tlog.LeafHash(body), len(m.leaves)
	for i, l := range m.leaves {
		if bytes.Equal(l, leaf) {
			at = i
		}
	}
	if at == len(m.leaves) {
		m.leaves = append(m.leaves, leaf)
	}
	root := rootOf(m.leaves)
	cp, err := note.Sign(&note.Note{Text: fmt.Sprintf("%s\n%d\n%s\n", m.origin, len(m.leaves), base64.StdEncoding.EncodeToString(root))}, m.signer)
	if err != nil {
		return nil, err
	}
	return &prekor.TransparencyLogEntry{
		LogIndex: int64(at), LogId: &pcommon.LogId{KeyId: m.id}, KindVersion: &prekor.KindVersion{Kind: "hashedrekord", Version: "0.0.2"},
		InclusionProof: &prekor.InclusionProof{LogIndex: int64(at), RootHash: root, TreeSize: int64(len(m.leaves)), Hashes: path(at, m.leaves),
			Checkpoint: &prekor.Checkpoint{Envelope: string(cp)}},
		CanonicalizedBody: body,
	}, nil
}

// split is the largest power of two below n (RFC 6962 §2.1).
func split(n int) int {
	k := 1
	for k*2 < n {
		k *= 2
	}
	return k
}

func rootOf(leaves [][]byte) []byte {
	if len(leaves) == 1 {
		return leaves[0]
	}
	k := split(len(leaves))
	return rfc6962.DefaultHasher.HashChildren(rootOf(leaves[:k]), rootOf(leaves[k:]))
}

// path is the audit path of a leaf (RFC 6962 §2.1.1).
func path(at int, leaves [][]byte) [][]byte {
	if len(leaves) == 1 {
		return nil
	}
	k := split(len(leaves))
	if at < k {
		return append(path(at, leaves[:k]), rootOf(leaves[k:]))
	}
	return append(path(at-k, leaves[k:]), rootOf(leaves[:k]))
}

var _ sign.Log = (*Memory)(nil)
