// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package gitgate

import (
	"context"
	"sync"
	"time"
)

// turns bounds how many pushes are judged at the same time: of all, and of one
// principal, so that nobody keeps the others waiting. Who comes waits, for so long
// and no longer. The zero value lets nobody in.
type turns struct {
	all, each int
	patience  time.Duration

	mu      sync.Mutex
	taken   int
	by      map[string]int
	waiting int
	freed   chan struct{} // closed and made anew when a place is free
}

func newTurns(all, each int, patience time.Duration) *turns {
	return &turns{all: all, each: each, patience: patience, by: map[string]int{}, freed: make(chan struct{})}
}

// take waits for a place; give must be called when it is not needed any more. ok is
// false when none came free in time.
func (t *turns) take(ctx context.Context, who string) (give func(), ok bool) {
	ctx, cancel := context.WithTimeout(ctx, t.patience)
	defer cancel()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting++
	defer func() { t.waiting-- }()
	for t.taken >= t.all || t.by[who] >= t.each {
		freed := t.freed
		t.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
		}
		t.mu.Lock()
		if ctx.Err() != nil {
			return nil, false
		}
	}
	t.taken++
	t.by[who]++
	return sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.taken--
		if t.by[who]--; t.by[who] == 0 {
			delete(t.by, who)
		}
		close(t.freed)
		t.freed = make(chan struct{})
	}), true
}

// Load is how many pushes are under way, and how many wait.
func (s *Server) Load() (pushing, waiting int) {
	s.turns.mu.Lock()
	defer s.turns.mu.Unlock()
	return s.turns.taken, s.turns.waiting
}
