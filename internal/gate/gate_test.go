// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package gate_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/gate"
)

func steps(taken *[]string) gate.Steps {
	note := func(s string) { *taken = append(*taken, s) }
	return gate.Steps{
		Authenticate: func(context.Context) (hallmark.Principal, error) {
			note("authenticate")
			return hallmark.Principal{Name: "a"}, nil
		},
		Authorize: func(context.Context, hallmark.Principal) ([]hallmark.Reason, error) {
			note("authorize")
			return nil, nil
		},
		Gather: func(context.Context) error { note("gather"); return nil },
		Decide: func(context.Context) (hallmark.Decision, error) {
			note("decide")
			return hallmark.Decision{Effect: hallmark.Allow}, nil
		},
		Log:    func(context.Context, hallmark.Decision) error { note("log"); return nil },
		Effect: func(context.Context) error { note("effect"); return nil },
	}
}

func TestPass(t *testing.T) {
	reason := hallmark.Reason{Code: hallmark.CodeAccessDenied}
	boom := errors.New("boom")
	for name, tc := range map[string]struct {
		edit    func(*gate.Steps)
		taken   []string
		allowed bool
		fails   bool
	}{
		"allowed": {func(*gate.Steps) {}, []string{"authenticate", "authorize", "gather", "decide", "log", "effect"}, true, false},
		"nobody": {func(s *gate.Steps) {
			s.Authenticate = func(context.Context) (hallmark.Principal, error) {
				return hallmark.Principal{}, hallmark.Coded(hallmark.KindDenied, hallmark.CodeAccessCredential, "no")
			}
		}, nil, false, false},
		"unauthorized": {func(s *gate.Steps) {
			s.Authorize = func(context.Context, hallmark.Principal) ([]hallmark.Reason, error) {
				return []hallmark.Reason{reason}, nil
			}
		}, []string{"authenticate", "log"}, false, false},
		"denied": {func(s *gate.Steps) {
			s.Decide = func(context.Context) (hallmark.Decision, error) { return gate.Denied(reason), nil }
		}, []string{"authenticate", "authorize", "gather", "log"}, false, false},
		"undecided": {func(s *gate.Steps) {
			s.Decide = func(context.Context) (hallmark.Decision, error) { return hallmark.Decision{}, nil }
		}, []string{"authenticate", "authorize", "gather", "log"}, false, false},
		"allowed and reasons": {func(s *gate.Steps) {
			s.Decide = func(context.Context) (hallmark.Decision, error) {
				return hallmark.Decision{Effect: hallmark.Allow, Reasons: []hallmark.Reason{reason}}, nil
			}
		}, []string{"authenticate", "authorize", "gather", "log"}, false, false},
		"gather fails":    {func(s *gate.Steps) { s.Gather = func(context.Context) error { return boom } }, []string{"authenticate", "authorize"}, false, true},
		"not logged":      {func(s *gate.Steps) { s.Log = func(context.Context, hallmark.Decision) error { return boom } }, []string{"authenticate", "authorize", "gather", "decide"}, false, true},
		"no log":          {func(s *gate.Steps) { s.Log = nil }, nil, false, true},
		"no decision":     {func(s *gate.Steps) { s.Decide = nil }, nil, false, true},
		"no one asks who": {func(s *gate.Steps) { s.Authenticate = nil }, nil, false, true},
	} {
		var taken []string
		s := steps(&taken)
		tc.edit(&s)
		d, err := gate.Pass(t.Context(), s)
		if d.Allowed() != tc.allowed || (err != nil) != tc.fails || !slices.Equal(taken, tc.taken) {
			t.Errorf("%s: %v %v, took %v, want %v", name, d.Effect, err, taken, tc.taken)
		}
	}
}
