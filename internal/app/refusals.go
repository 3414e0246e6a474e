// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// refusals bounds how many refused credentials are recorded: whoever tries many
// fills no disk. What is left out is counted, and the next record says how many.
type refusals struct {
	mu    sync.Mutex
	since time.Time
	n     int
	left  int
}

// recordedRefusals are recorded each minute, of everybody together.
const recordedRefusals = 30

// admit reports whether one more is recorded, and how many were not since the last
// one that was.
func (r *refusals) admit(at time.Time) (left int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at.Sub(r.since) >= time.Minute || at.Before(r.since) {
		r.since, r.n = at, 0
	}
	if r.n >= recordedRefusals {
		r.left++
		return 0, false
	}
	r.n++
	left, r.left = r.left, 0
	return left, true
}

// credentialRefused is what the record of a refused credential says that it is.
const credentialRefused = "credential"

// refusedCredential records that somebody showed what is no credential, without
// it. A request without any is none: git clients begin with one.
func (s *Server) refusedCredential(ctx context.Context, r *http.Request, token string, why error) {
	code := hallmark.CodeOf(why)
	if hallmark.KindOf(why) != hallmark.KindDenied || code == hallmark.CodeAccessUnauthenticated {
		return
	}
	d := hallmark.Decision{Effect: hallmark.Deny, Reasons: []hallmark.Reason{{Code: code}}}
	s.counters.count("authenticate", d, nil)
	left, ok := s.refusals.admit(now())
	if !ok {
		return
	}
	address, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		address = ""
	}
	err = s.spool.add(ctx, fetchRecord{What: credentialRefused, Token: token, Address: address, LeftOut: left, Effect: hallmark.Deny, Code: code, Policy: s.rules().policy, On: now()})
	if err != nil { // it is refused all the same
		s.log.Error("a refused credential was not recorded", "error", err.Error())
	}
}
