// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// AuditEvent is one thing that happened, as verified evidence has it.
type AuditEvent struct {
	On        time.Time       `json:"on"`
	Kind      string          `json:"kind"` // transition, review, access, fetch, policy, genesis, check, build, verdict, other
	Effect    string          `json:"effect,omitempty"`
	Actor     string          `json:"actor,omitempty"`
	Grant     string          `json:"grant,omitempty"`
	Resource  string          `json:"resource,omitempty"`
	Detail    string          `json:"detail,omitempty"`
	Codes     []string        `json:"codes,omitempty"`
	Policy    hallmark.Digest `json:"policy,omitempty"`
	Statement hallmark.Digest `json:"statement"`
	LogIndex  uint64          `json:"logIndex"`
}

// Audit gives everything that happened in a period, from evidence alone: every
// statement in the log, verified, whose signing time is in it.
func Audit(ctx context.Context, home string, from, to time.Time, each func(AuditEvent) error) (int, error) {
	h, err := readHome(home)
	if err != nil {
		return 0, err
	}
	defer h.Close()
	n := 0
	var read uint64 // number of the last fetch
	err = h.eachLogged(ctx, nil, from, func(v verify.Statement) error {
		if v.SignedAt().Before(from) || !v.SignedAt().Before(to) {
			return nil
		}
		events, err := h.events(ctx, v, &read)
		if err != nil {
			return fmt.Errorf("reading statement %s: %w", v.Digest(), err)
		}
		for _, e := range events {
			n++
			if err := each(e); err != nil {
				return err
			}
		}
		return nil
	}, func(i uint64, st intoto.Statement) error {
		n++
		return each(AuditEvent{Kind: "other", LogIndex: i, Resource: subjectsOf(st), Codes: []string{string(hallmark.CodeEvidenceMissing)},
			Detail: "logged, and no bundle of it is kept: whoever signed it was stopped, or somebody took it away: " + st.PredicateType})
	})
	return n, err
}

// events are what a statement tells of. read is the number of the last fetch
// before it, 0 when none was seen.
func (h *Home) events(ctx context.Context, v verify.Statement, read *uint64) ([]AuditEvent, error) {
	e := AuditEvent{On: v.SignedAt(), Statement: v.Digest(), LogIndex: v.LogIndex(), Kind: "other", Detail: v.PredicateType(), Actor: v.Signer()}
	st := v.Statement()
	switch v.PredicateType() {
	case intoto.PredicateTransition:
		t, err := intoto.DecodePredicate[intoto.RefTransition](st)
		if err != nil {
			return nil, err
		}
		e.Kind, e.Effect, e.Actor, e.Grant, e.Policy, e.Codes = "transition", t.Effect.String(), t.Actor.Name, t.Grant, t.Policy, codesOf(t.Reasons)
		e.Resource, e.Detail = t.Repository+"#"+t.Ref, t.Old+" to "+t.New
		if t.Void {
			e.Detail += ", void"
		}
	case intoto.PredicateReview:
		r, err := intoto.DecodePredicate[intoto.ChangeReview](st)
		if err != nil {
			return nil, err
		}
		e.Kind, e.Effect, e.Actor, e.Grant, e.Policy = "review", hallmark.Allow.String(), r.Actor.Name, r.Grant, r.Policy
		e.Resource, e.Detail = r.Repository+"#"+r.Target, r.Action+" "+r.Change+" of "+r.Revision
	case intoto.PredicateAccess:
		r, err := intoto.DecodePredicate[intoto.AccessRecord](st)
		if err != nil {
			return nil, err
		}
		if r.Action == "repository.read" {
			return h.fetches(ctx, r, e, read)
		}
		e.Kind, e.Effect, e.Actor, e.Grant, e.Policy, e.Codes, e.Resource, e.Detail = "access", r.Effect.String(), r.Actor.Name, r.Grant, r.Policy, codesOf(r.Reasons), r.Resource, r.Action
	case intoto.PredicatePolicy:
		e.Kind, e.Detail = "policy", string(st.Predicate)
	case intoto.PredicateGenesis:
		e.Kind, e.Detail = "genesis", ""
	case intoto.PredicateProvenance:
		e.Kind, e.Detail, e.Resource = "build", v.BuilderID(), subjectsOf(st)
	case intoto.PredicateVSA:
		s, err := intoto.DecodePredicate[intoto.VSA](st)
		if err != nil {
			return nil, err
		}
		e.Kind, e.Effect, e.Resource, e.Detail = "verdict", s.VerificationResult, subjectsOf(st), strings.Join(s.VerifiedLevels, " ")
	default:
		e.Resource = subjectsOf(st)
	}
	return []AuditEvent{e}, nil
}

func subjectsOf(st intoto.Statement) string {
	var out []string
	for _, s := range st.Subject {
		for alg, v := range s.Digest {
			out = append(out, strings.TrimSpace(s.Name+" "+alg+":"+v))
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// fetches reads a batch of fetch records. A number that is missing is an error.
func (h *Home) fetches(ctx context.Context, r intoto.AccessRecord, e AuditEvent, read *uint64) ([]AuditEvent, error) {
	b, err := h.stores.blobs.Get(ctx, hallmark.Digest(r.Details["records"]))
	if err != nil {
		return nil, fmt.Errorf("reading fetch records: %w", err)
	}
	next, err := strconv.ParseUint(r.Details["first"], 10, 64)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "fetch records without a first number")
	}
	if *read > 0 && next != *read+1 {
		return nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeEvidenceMissing, "fetch record %d is missing: the next batch begins with %d", *read+1, next)
	}
	var out []AuditEvent
	for line := range bytes.SplitSeq(bytes.TrimSpace(b), []byte{'\n'}) {
		var f fetchRecord
		if err := json.Unmarshal(line, &f); err != nil || f.Number != next {
			return nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeEvidenceMissing, "fetch record %d is missing", next)
		}
		next++
		one := e
		one.On, one.Kind, one.Effect, one.Actor, one.Grant, one.Policy, one.Resource, one.Detail = f.On, "fetch", f.Effect.String(), f.Principal, f.Grant, f.Policy, f.Repository, "token "+f.Token
		if f.What == credentialRefused {
			one.Kind, one.Resource, one.Detail = "access", "token:"+f.Token, "a credential from "+f.Address
			if f.LeftOut > 0 {
				one.Detail += fmt.Sprintf(", and %d others before", f.LeftOut)
			}
		}
		if f.Code != "" {
			one.Codes = []string{string(f.Code)}
		}
		out = append(out, one)
	}
	if strconv.FormatUint(next-1, 10) != r.Details["last"] {
		return nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeEvidenceMissing, "fetch records end at %d, not at %s", next-1, r.Details["last"])
	}
	*read = next - 1
	return out, nil
}

// GrantUse is one grant and when it was used last.
type GrantUse struct {
	Grant access.Grant `json:"grant"`
	Used  int          `json:"used"`
	Last  time.Time    `json:"last,omitzero"`
	Ended bool         `json:"ended"`
}

// ReviewAccess says of every grant in the policy how often it was used and when
// last, from the log: what was never used can be revoked (N033, least privilege).
func ReviewAccess(ctx context.Context, home string) ([]GrantUse, error) {
	a, err := Access(home)
	if err != nil {
		return nil, err
	}
	uses := map[string]*GrantUse{}
	var out []GrantUse
	for _, g := range a.Book.Grants() {
		out = append(out, GrantUse{Grant: g, Ended: !g.NotAfter.IsZero() && !now().Before(g.NotAfter)})
	}
	for i := range out {
		uses[out[i].Grant.ID] = &out[i]
	}
	_, err = Audit(ctx, home, time.Time{}, now().Add(time.Hour), func(e AuditEvent) error {
		if u, ok := uses[e.Grant]; ok && e.Effect == hallmark.Allow.String() {
			u.Used++
			if e.On.After(u.Last) {
				u.Last = e.On
			}
		}
		return nil
	})
	return out, err
}
