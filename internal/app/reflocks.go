// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"sync"
)

// refLocks let one at a time log a transition of a reference and see to it that it
// happens. git's own lock ends when the reference moved; whoever then looks whether
// it did must not find the transition of the next one. The zero value is ready.
//
// It is taken while git holds the reference, and nobody who has one waits for git
// longer than git's own short timeout, or for another but those of one transaction.
type refLocks struct {
	mu    sync.Mutex
	known map[[2]string]*refLock
}

type refLock struct {
	held  chan struct{} // of one
	users int
}

// lock waits for a reference of a repository; unlock gives it back, once.
func (l *refLocks) lock(ctx context.Context, repository, ref string) (unlock func(), err error) {
	key := [2]string{repository, ref}
	l.mu.Lock()
	if l.known == nil {
		l.known = map[[2]string]*refLock{}
	}
	k := l.known[key]
	if k == nil {
		k = &refLock{held: make(chan struct{}, 1)}
		l.known[key] = k
	}
	k.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.known, key)
		}
	}
	select {
	case k.held <- struct{}{}:
		return func() { <-k.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("waiting for %s: %w", ref, ctx.Err())
	}
}
