// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package translogtest holds what every implementation of the log's interfaces
// must do, as tests, and an index in memory for tests of the log.
package translogtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/translog"
)

// Guard is the contract of translog.Guard. open returns the same guard again
// each time, as a process that starts anew would.
func Guard(t *testing.T, open func(t *testing.T) translog.Guard) {
	ctx := t.Context()
	const origin = "log.example.test"
	head := func(size uint64, fill byte) translog.Head {
		return translog.Head{Origin: origin, Size: size, Root: bytes.Repeat([]byte{fill}, 32)}
	}
	same := func(h *translog.Head, want translog.Head) bool {
		return h != nil && h.Origin == want.Origin && h.Size == want.Size && bytes.Equal(h.Root, want.Root)
	}
	set := func(h translog.Head) error {
		return open(t).Advance(ctx, origin, func(*translog.Head) (translog.Head, error) { return h, nil })
	}
	h, err := open(t).Head(ctx, origin)
	if h != nil || err != nil {
		t.Fatalf("a new guard has the head %v, %v", h, err)
	}
	if err := set(head(3, 1)); err != nil {
		t.Fatal(err)
	}
	if h, err := open(t).Head(ctx, origin); err != nil || !same(h, head(3, 1)) {
		t.Errorf("stored head: %v, %v", h, err)
	}
	refusal := errors.New("refused")
	err = open(t).Advance(ctx, origin, func(old *translog.Head) (translog.Head, error) {
		if !same(old, head(3, 1)) {
			t.Errorf("step got %v", old)
		}
		return head(9, 9), refusal
	})
	if !errors.Is(err, refusal) {
		t.Errorf("the error of step: %v", err)
	}
	if h, err := open(t).Head(ctx, origin); err != nil || !same(h, head(3, 1)) {
		t.Errorf("after a refusal: %v, %v", h, err)
	}
	if err := set(head(4, 2)); err != nil {
		t.Fatal(err)
	}
	if h, err := open(t).Head(ctx, origin); err != nil || !same(h, head(4, 2)) {
		t.Errorf("next head: %v, %v", h, err)
	}
	// The head of one log is never taken for that of another.
	if h, err := open(t).Head(ctx, "other.example.test"); h != nil || (err != nil && hallmark.CodeOf(err) != hallmark.CodeLogForked) {
		t.Errorf("head of another log: %v, %v", h, err)
	}
}

// Index is the contract of translog.Index.
func Index(t *testing.T, open func(t *testing.T) translog.Index) {
	ctx := t.Context()
	leaf := func(n int) []byte { d, _ := hallmark.DigestOf(fmt.Append(nil, n)).Sum(); return d }
	statement := hallmark.DigestOf([]byte("statement"))
	index := open(t)
	if _, ok, err := index.Leaf(ctx, leaf(0)); ok || err != nil {
		t.Fatalf("an empty index knows a leaf: %v", err)
	}
	expect := func(n int, want uint64) {
		t.Helper()
		if at, ok, err := open(t).Leaf(ctx, leaf(n)); err != nil || !ok || at != want {
			t.Errorf("leaf %d: at %d, %v, %v; want %d", n, at, ok, err, want)
		}
	}
	if err := index.PutLeaf(ctx, leaf(0), 0, statement); err != nil {
		t.Fatal(err)
	}
	expect(0, 0)
	if err := index.PutLeaf(ctx, leaf(1), math.MaxInt64, statement); err != nil {
		t.Fatal(err)
	}
	expect(1, math.MaxInt64)
	// Again, and in a second place: the first place stays.
	if err := errors.Join(index.PutLeaf(ctx, leaf(0), 0, statement), index.PutLeaf(ctx, leaf(0), 7, statement)); err != nil {
		t.Fatal(err)
	}
	expect(0, 0)
	// Two leaves in one place can't both be true.
	if err := index.PutLeaf(ctx, leaf(2), 0, statement); err == nil {
		t.Error("two leaves in one place")
	}
	if _, ok, err := index.Leaf(ctx, leaf(2)); ok || err != nil {
		t.Errorf("the refused leaf is there: %v", err)
	}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 10 {
				n := 100 + i*10 + j
				if n < 0 {
					return
				}
				if err := index.PutLeaf(ctx, leaf(n), uint64(n), statement); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	for n := 100; n < 180; n++ {
		expect(n, uint64(n))
	}
}

// Memory is an index in memory. It is safe for concurrent use.
type Memory struct {
	mu     sync.Mutex
	leaves map[string]uint64
	places map[uint64]bool
}

// NewMemory makes an empty index.
func NewMemory() *Memory {
	return &Memory{leaves: map[string]uint64{}, places: map[uint64]bool{}}
}

// Leaf implements translog.Index.
func (m *Memory) Leaf(_ context.Context, leafHash []byte) (uint64, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at, ok := m.leaves[string(leafHash)]
	return at, ok, nil
}

// PutLeaf implements translog.Index.
func (m *Memory) PutLeaf(_ context.Context, leafHash []byte, index uint64, _ hallmark.Digest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.leaves[string(leafHash)]; ok {
		return nil
	}
	if m.places[index] {
		return fmt.Errorf("another leaf stands at %d", index)
	}
	m.leaves[string(leafHash)], m.places[index] = index, true
	return nil
}
