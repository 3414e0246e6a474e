// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/forge"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/internal/source"
	"github.com/hallmark-sc/hallmark/intoto"
)

// ForgeAuditConfig says what is audited, and what becomes of it.
type ForgeAuditConfig struct {
	Forge  forge.Config
	Wanted source.Wanted
	Mend   ForgeMending
	// Home signs what was read; "" signs nothing.
	Home       string
	Passphrase []byte
	// Said is called with each change: before it is made, and with the error where it
	// failed. Optional.
	Said func(r source.Repair, err error)
}

// ForgeMending is what an audit does about what it finds.
type ForgeMending int

// Nothing is changed unless somebody says so.
const (
	ForgeReport ForgeMending = iota // only says what is wrong
	ForgePlan                       // and what a repair would change
	ForgeFix                        // changes it, and reads again
)

// ForgeAudit is what an audit found, after the repairs if any were made.
type ForgeAudit struct {
	Posture    source.Posture    `json:"posture"`
	Wanted     source.Wanted     `json:"wanted"`
	Aspects    []source.Aspect   `json:"aspects"`
	Repairs    []source.Repair   `json:"repairs"`              // made, or planned
	Left       []source.Repair   `json:"left,omitempty"`       // that failed or had no effect
	Statements []hallmark.Digest `json:"statements,omitempty"` // logged
	on         time.Time
}

// Findings are the aspects that are not as wanted, or were not read.
func (a ForgeAudit) Findings() []source.Aspect {
	return slices.DeleteFunc(slices.Clone(a.Aspects), func(x source.Aspect) bool {
		return x.Outcome == hallmark.Pass || x.Outcome == hallmark.Skipped
	})
}

// AuditForge reads how a repository at a forge is set up, mends it if that is asked
// for, reads it again, and signs what it saw.
func AuditForge(ctx context.Context, cfg ForgeAuditConfig) (out ForgeAudit, err error) {
	f, err := forge.New(cfg.Forge)
	if err != nil {
		return out, err
	}
	if cfg.Said == nil {
		cfg.Said = func(source.Repair, error) {}
	}
	var keep func(ForgeAudit) (hallmark.Digest, error)
	if cfg.Home != "" {
		var done func() error
		if keep, done, err = forgeKeeper(ctx, cfg); err != nil {
			return out, err
		}
		defer func() { err = errors.Join(err, done()) }()
	}
	statement := func() error {
		if keep == nil {
			return nil
		}
		d, err := keep(out)
		if err == nil {
			out.Statements = append(out.Statements, d)
		}
		return err
	}
	if err := out.read(ctx, f, cfg.Wanted); err != nil {
		return out, err
	}
	if cfg.Mend != ForgeReport {
		if out.Repairs, err = f.Repairs(cfg.Wanted); err != nil {
			return out, err
		}
	}
	if cfg.Mend != ForgeFix || len(out.Repairs) == 0 {
		for _, r := range out.Repairs {
			cfg.Said(r, nil)
		}
		return out, statement()
	}
	// What was found is evidence before anything is changed.
	if err := statement(); err != nil {
		return out, err
	}
	for _, r := range out.Repairs {
		cfg.Said(r, nil)
		if err := f.Apply(ctx, r); err != nil {
			out.Left = append(out.Left, r)
			cfg.Said(r, err)
		}
	}
	if err := out.read(ctx, f, cfg.Wanted); err != nil {
		return out, fmt.Errorf("reading again after the repairs: %w", err)
	}
	// Nothing is left to do, or it is said: an answer "done" is no proof.
	again, err := f.Repairs(cfg.Wanted)
	if err != nil {
		return out, err
	}
	for _, r := range again {
		if !slices.ContainsFunc(out.Left, func(l source.Repair) bool { return l.Path == r.Path && l.On == r.On }) {
			out.Left = append(out.Left, r)
			cfg.Said(r, hallmark.Errorf(hallmark.KindUnavailable, "the forge said that it is done, and it is not"))
		}
	}
	return out, statement()
}

func (a *ForgeAudit) read(ctx context.Context, f source.Forge, w source.Wanted) error {
	p, err := f.Read(ctx)
	if err != nil {
		return hallmark.Coded(hallmark.KindUnavailable, firstCode(err, hallmark.CodeForgeUnknown), "auditing: %w", err)
	}
	a.Posture, a.Wanted, a.on = p, w, now()
	a.Aspects = p.Judge(w)
	return nil
}

func firstCode(err error, or hallmark.Code) hallmark.Code {
	if c := hallmark.CodeOf(err); c != "" {
		return c
	}
	return or
}

// forgeKeeper signs audits in a home.
func forgeKeeper(ctx context.Context, cfg ForgeAuditConfig) (keep func(ForgeAudit) (hallmark.Digest, error), done func() error, err error) {
	h, err := OpenHome(cfg.Home, cfg.Passphrase)
	if err != nil {
		return nil, nil, err
	}
	tool, err := Tool()
	if err != nil {
		h.Close()
		return nil, nil, err
	}
	signer := newSigner(h.Layout, h.id, h.keys, h.stores)
	keep = func(a ForgeAudit) (hallmark.Digest, error) {
		b, err := json.Marshal(a)
		if err != nil {
			return "", hallmark.Errorf(hallmark.KindInternal, "encoding an audit: %w", err)
		}
		report, err := h.stores.blobs.Put(ctx, b)
		if err != nil {
			return "", fmt.Errorf("keeping an audit: %w", err)
		}
		st, err := a.statement(report, tool)
		if err != nil {
			return "", err
		}
		signed, err := signer.sign(ctx, sign.Observer, st, nil)
		return signed.Statement, err
	}
	return keep, func() error { return errors.Join(signer.close(), h.Close()) }, nil
}

// statement is the audit as evidence; the report has every setting.
func (a ForgeAudit) statement(report hallmark.Digest, tool hallmark.Tool) (intoto.Statement, error) {
	rec := hallmark.CheckRecord{
		Check: intoto.CheckForge, Outcome: hallmark.Pass, Revision: hallmark.Revision{Repository: a.Posture.Repository}, StartedOn: a.on, FinishedOn: now(), Tool: tool, Report: report,
	}
	var passed, failed []string
	for _, x := range a.Aspects {
		name := string(x.Code)
		if x.On != "" {
			name += " " + x.On
		}
		switch x.Outcome {
		case hallmark.Pass:
			passed = append(passed, name)
			continue
		case hallmark.Skipped:
			continue
		case hallmark.Fail:
			failed = append(failed, name)
			if rec.Outcome == hallmark.Pass {
				rec.Outcome = hallmark.Fail
			}
		default:
			rec.Outcome = hallmark.Errored
		}
		rec.Reasons = append(rec.Reasons, x.Reason())
	}
	return attest.ForgeSettings(rec, passed, failed)
}
