// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package gate owns the six steps that every gate takes, in this order, and
// nothing else decides: authenticate, authorize, gather evidence, decide, log,
// effect. A step that is missing or errs is a refusal, and what was not made
// durable has no effect.
package gate

import (
	"context"
	"fmt"

	"github.com/hallmark-sc/hallmark"
)

// Steps are one event's way through a gate. None may be nil but Effect, where
// another program has the effect once Pass allowed it.
type Steps struct {
	// Authenticate returns who asks. An error of kind denied is a refusal with
	// its code; nobody is asked anything then.
	Authenticate func(ctx context.Context) (hallmark.Principal, error)
	// Authorize returns the reasons against it; none means that who asks may ask.
	Authorize func(ctx context.Context, who hallmark.Principal) ([]hallmark.Reason, error)
	// Gather looks at what is asked for. It runs only for who may ask.
	Gather func(ctx context.Context) error
	// Decide weighs what was gathered; its zero Decision refuses.
	Decide func(ctx context.Context) (hallmark.Decision, error)
	// Log makes the decision durable, a denial too. When it returns, the decision
	// is evidence.
	Log func(ctx context.Context, d hallmark.Decision) error
	// Effect makes it happen. It runs only after an allowing decision was logged.
	Effect func(ctx context.Context) error
}

// Denied is a decision against, for reasons.
func Denied(reasons ...hallmark.Reason) hallmark.Decision {
	return hallmark.Decision{Effect: hallmark.Deny, Reasons: reasons}
}

// Pass takes all steps. An error means that no decision could be made, or that
// it could not be kept: it refuses as well, and nothing has happened.
func Pass(ctx context.Context, s Steps) (hallmark.Decision, error) {
	d, err := Consider(ctx, s)
	if err != nil || !d.Allowed() {
		return d, err
	}
	if err := s.Log(ctx, d); err != nil {
		return hallmark.Decision{}, fmt.Errorf("logging the decision: %w", err)
	}
	if s.Effect == nil {
		return d, nil
	}
	if err := s.Effect(ctx); err != nil {
		return d, fmt.Errorf("carrying out what was allowed: %w", err)
	}
	return d, nil
}

// Consider takes the steps up to the decision, and logs a denial. Whoever has
// the effect must log what is allowed, and wait for that, before the effect.
func Consider(ctx context.Context, s Steps) (hallmark.Decision, error) {
	if s.Authenticate == nil || s.Authorize == nil || s.Gather == nil || s.Decide == nil || s.Log == nil {
		return hallmark.Decision{}, hallmark.Coded(hallmark.KindInternal, hallmark.CodeGateUnavailable, "a gate lacks a step")
	}
	who, err := s.Authenticate(ctx)
	if err != nil && hallmark.KindOf(err) == hallmark.KindDenied {
		return Denied(hallmark.Reason{Code: hallmark.CodeOf(err), Check: "access", Message: err.Error(), Fix: hallmark.HintOf(err)}), nil
	}
	if err != nil {
		return hallmark.Decision{}, fmt.Errorf("authenticating: %w", err)
	}
	d, err := decide(ctx, s, who)
	if err != nil || d.Allowed() {
		return d, err
	}
	if err := s.Log(ctx, d); err != nil {
		return hallmark.Decision{}, fmt.Errorf("logging a denial: %w", err)
	}
	return d, nil
}

func decide(ctx context.Context, s Steps, who hallmark.Principal) (hallmark.Decision, error) {
	reasons, err := s.Authorize(ctx, who)
	if err != nil {
		return hallmark.Decision{}, fmt.Errorf("authorizing: %w", err)
	}
	if len(reasons) > 0 {
		return Denied(reasons...), nil
	}
	if err := s.Gather(ctx); err != nil {
		return hallmark.Decision{}, fmt.Errorf("gathering evidence: %w", err)
	}
	d, err := s.Decide(ctx)
	if err != nil {
		return hallmark.Decision{}, fmt.Errorf("deciding: %w", err)
	}
	return d, nil
}
