// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"

	pcommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	rekor "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/intoto"
)

// BenchmarkJournal measures the first reading of a log of so many transitions
// ($HALLMARK_BENCH_ENTRIES, 2000 without), one look-up after it, and what a server
// reads after one more entry. The log is a real one; payloads are files in the
// place of blobs, written without syncing each.
func BenchmarkJournal(b *testing.B) {
	entries := 2000
	if n, err := strconv.Atoi(os.Getenv("HALLMARK_BENCH_ENTRIES")); err == nil {
		entries = n
	}
	home := filepath.Join(b.TempDir(), "home")
	if _, err := Init(b.Context(), InitConfig{Home: home, SingleOperator: true}); err != nil {
		b.Fatal(err)
	}
	h, err := OpenHome(home, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	signer := newSigner(h.Layout, h.id, h.keys, h.stores)
	defer signer.close()
	if err := signer.open(b.Context()); err != nil {
		b.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	uri, policy := h.repositoryURI("app"), h.policy.Digest()
	add := func(i int) error {
		t := intoto.RefTransition{Repository: uri, Ref: fmt.Sprintf("refs/heads/b%d", i%1000), Old: fmt.Sprintf("%040x", i), New: fmt.Sprintf("%040x", i+1), Effect: hallmark.Allow,
			Actor: hallmark.Principal{Name: "alice@example.org", Method: "ssh"}, On: now(), Policy: policy, Checks: []hallmark.CheckRecord{}, Commits: []intoto.RefCommit{}}
		st := made1(attest.RefTransition(t))
		payload, err := st.Marshal()
		if err != nil {
			return err
		}
		return appendRaw(b, signer, h, key, intoto.PAE(intoto.PayloadType, payload))
	}
	var all sync.WaitGroup
	work := make(chan int)
	for range 512 {
		all.Go(func() {
			for i := range work {
				if err := add(i); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for i := range entries {
		work <- i
	}
	close(work)
	all.Wait()
	var before, after runtime.MemStats
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			h.journal = journal{}
			runtime.GC()
			runtime.ReadMemStats(&before)
			if _, ok, err := h.loggedAs(b.Context(), hallmark.DigestOf(nil)); ok || err != nil {
				b.Fatal(ok, err)
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
		}
		b.ReportMetric(float64(entries)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(entries), "B/entry")
	})
	b.Run("lookup", func(b *testing.B) {
		for b.Loop() {
			if _, t, ok, err := h.lastLogged(b.Context(), uri, "refs/heads/b7"); !ok || err != nil || t.Ref != "refs/heads/b7" {
				b.Fatal(ok, err)
			}
		}
	})
	b.Run("one-more", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			b.StopTimer()
			if err := add(entries + i); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			if _, _, ok, err := h.lastLogged(b.Context(), uri, "refs/heads/b7"); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
}

func appendRaw(b *testing.B, signer *logSigner, h *Home, key *ecdsa.PrivateKey, pae []byte) error {
	d := hallmark.DigestOf(pae)
	file := filepath.Join(h.Blobs(), "sha256", d.Hex()[:2], d.Hex())
	sum, err := hex.DecodeString(d.Hex())
	if err != nil {
		return err
	}
	sig, err := key.Sign(rand.Reader, sum, crypto.SHA256)
	der, err2 := x509.MarshalPKIXPublicKey(key.Public())
	if err := errors.Join(err, err2, os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, pae, 0o400)); err != nil {
		return err
	}
	_, err = signer.log.Append(b.Context(), &rekor.HashedRekordRequestV002{Digest: sum, Signature: &rekor.Signature{Content: sig, Verifier: &rekor.Verifier{
		KeyDetails: pcommon.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256, Verifier: &rekor.Verifier_PublicKey{PublicKey: &rekor.PublicKey{RawBytes: der}}}}})
	return err
}
