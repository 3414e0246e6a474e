// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// Limits on signing in, for which nobody has to be known yet. A person needs two
// requests for one token.
const (
	attemptsIn   = time.Minute
	maxAttempts  = 60     // of one address
	maxAddresses = 50_000 // that are told apart; more than that is an attack, and refused
)

// attempts counts who tries to sign in, by address. The zero value is ready.
type attempts struct {
	mu    sync.Mutex
	since time.Time
	of    map[string]int
}

// allow counts one attempt. A network of IPv6 counts as one address: who has one
// has all of them.
func (a *attempts) allow(remote string, at time.Time) error {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	if ip := net.ParseIP(host); ip != nil && ip.To4() == nil {
		host = ip.Mask(net.CIDRMask(64, 128)).String()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.of == nil || at.Sub(a.since) >= attemptsIn || at.Before(a.since) {
		a.since, a.of = at, map[string]int{}
	}
	n, known := a.of[host]
	if n >= maxAttempts || !known && len(a.of) >= maxAddresses {
		return hallmark.WithHint(hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeAccessAttempts, "too many attempts to sign in from %s", host), "wait a minute")
	}
	a.of[host] = n + 1
	return nil
}

// slowly lets only so many requests of one address through.
func (s *Server) slowly(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := s.attempts.allow(r.RemoteAddr, now()); err != nil {
			s.answer(w, nil, err)
			return
		}
		h(w, r)
	}
}
