// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package pipelinetest holds what every implementation of the pipeline's stores
// must do, as tests, and both stores in memory for tests of the pipeline.
package pipelinetest

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
)

// Saves is the contract of pipeline.Saves. open returns the same store again
// each time, as a process that starts anew would.
func Saves(t *testing.T, open func(t *testing.T) pipeline.Saves) {
	ctx := t.Context()
	key, other := hallmark.DigestOf([]byte("key")), hallmark.DigestOf([]byte("another key"))
	at := time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.FixedZone("east", 3600))
	absent := func(stage string, key hallmark.Digest) {
		t.Helper()
		if b, _, ok, err := open(t).Saved(ctx, stage, key); ok || err != nil || b != nil {
			t.Errorf("%s %s: got %q, %v, %v", stage, key.Short(), b, ok, err)
		}
	}
	present := func(stage string, key hallmark.Digest, want []byte, when time.Time) {
		t.Helper()
		b, got, ok, err := open(t).Saved(ctx, stage, key)
		if err != nil || !ok || !bytes.Equal(b, want) || !got.Equal(when) {
			t.Errorf("%s %s: got %d bytes of %v, %v, %v", stage, key.Short(), len(b), got, ok, err)
		}
		for i := range b { // what was returned belongs to the caller
			b[i] ^= 0xff
		}
	}
	save := func(stage string, key hallmark.Digest, b []byte, when time.Time) {
		t.Helper()
		if err := open(t).Save(ctx, stage, key, b, when); err != nil {
			t.Fatal(err)
		}
	}
	absent("build", key)
	result := []byte(`{"some":"result"}`)
	save("build", key, result, at)
	present("build", key, result, at)
	present("build", key, result, at)
	absent("build", other)
	absent("sast", key) // a result of one stage is never that of another
	save("build", key, []byte("newer"), at.Add(time.Hour))
	present("build", key, []byte("newer"), at.Add(time.Hour))
	large := bytes.Repeat([]byte{0, 1, 0xff}, 2<<20)
	save("sbom", other, large, at)
	present("sbom", other, large, at)
	var all sync.WaitGroup
	store := open(t)
	for i := range 16 {
		all.Go(func() {
			key := hallmark.DigestOf(fmt.Append(nil, i%4))
			if err := store.Save(ctx, "secrets", key, fmt.Append(nil, "result ", i%4), at); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for i := range 4 {
		present("secrets", hallmark.DigestOf(fmt.Append(nil, i)), fmt.Append(nil, "result ", i), at)
	}
}

// Blobs is the contract of pipeline.Blobs.
func Blobs(t *testing.T, open func(t *testing.T) pipeline.Blobs) {
	ctx := t.Context()
	for _, b := range [][]byte{{}, []byte("bytes"), {0}, bytes.Repeat([]byte("large "), 1<<20)} {
		given := bytes.Clone(b)
		for range 2 {
			d, err := open(t).Put(ctx, given)
			if err != nil || d != hallmark.DigestOf(b) {
				t.Fatalf("put %d bytes: %s, %v", len(b), d, err)
			}
		}
		for i := range given { // what was given belongs to the caller
			given[i] ^= 0xff
		}
		for range 2 {
			got, err := open(t).Get(ctx, hallmark.DigestOf(b))
			if err != nil || !bytes.Equal(got, b) {
				t.Errorf("got %d bytes, want %d: %v", len(got), len(b), err)
			}
			for i := range got {
				got[i] ^= 0xff
			}
		}
	}
	if b, err := open(t).Get(ctx, hallmark.DigestOf([]byte("never put"))); hallmark.KindOf(err) != hallmark.KindNotFound || b != nil {
		t.Errorf("a blob that was never put: %v", err)
	}
	for _, d := range []hallmark.Digest{"", "sha256:", "sha256:..", "sha256:../../../../etc/passwd", "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709", "x"} {
		if b, err := open(t).Get(ctx, d); err == nil || b != nil {
			t.Errorf("digest %q: got %d bytes", d, len(b))
		}
	}
	store := open(t)
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			b := fmt.Append(nil, "blob ", i%3)
			d, err := store.Put(ctx, b)
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := store.Get(ctx, d); err != nil || !bytes.Equal(got, b) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	all.Wait()
}

// Memory keeps saves and blobs in memory. It is safe for concurrent use.
type Memory struct {
	mu    sync.Mutex
	saves map[string]saved
	blobs map[hallmark.Digest][]byte
}

type saved struct {
	b  []byte
	at time.Time
}

// NewMemory makes an empty store.
func NewMemory() *Memory {
	return &Memory{saves: map[string]saved{}, blobs: map[hallmark.Digest][]byte{}}
}

// Save implements pipeline.Saves.
func (m *Memory) Save(_ context.Context, stage string, key hallmark.Digest, result []byte, at time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.saves[stage+" "+string(key)] = saved{bytes.Clone(result), at}
	return nil
}

// Saved implements pipeline.Saves.
func (m *Memory) Saved(_ context.Context, stage string, key hallmark.Digest) ([]byte, time.Time, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.saves[stage+" "+string(key)]
	return bytes.Clone(s.b), s.at, ok, nil
}

// Put implements pipeline.Blobs.
func (m *Memory) Put(_ context.Context, b []byte) (hallmark.Digest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := hallmark.DigestOf(b)
	m.blobs[d] = bytes.Clone(b)
	return d, nil
}

// Get implements pipeline.Blobs.
func (m *Memory) Get(_ context.Context, d hallmark.Digest) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.blobs[d]
	if !ok {
		return nil, hallmark.Errorf(hallmark.KindNotFound, "blob %s is not kept here", d)
	}
	return append([]byte{}, b...), nil
}

// Saves counts the results that are kept of a stage.
func (m *Memory) Saves(stage string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for k := range m.saves {
		if len(k) > len(stage) && k[:len(stage)+1] == stage+" " {
			n++
		}
	}
	return n
}

var (
	_ pipeline.Saves = (*Memory)(nil)
	_ pipeline.Blobs = (*Memory)(nil)
)
