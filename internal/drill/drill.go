// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package drill runs the attack catalogue against one's own configuration.
//
// Every case runs twice. With its control off, the attack must succeed against
// the same pipeline, of which exactly that control was taken away: otherwise the
// case has no teeth. With its control on, it must be stopped by that control,
// with a stable reason code. What is compared is the effect (the poisoned byte
// is in the artifact, the forged thing was accepted, the key was read), never a
// message alone.
//
// A control is taken away only by composition, by putting a weaker part that
// lives in this package in the place of the real one, under a throwaway home in
// a temporary directory. Nothing that any other command reads can do that.
package drill

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// Control says whether the control of a case is in place.
type Control int

// The two runs of a case.
const (
	Off Control = iota + 1
	On
)

func (c Control) String() string {
	switch c {
	case Off:
		return "off"
	case On:
		return "on"
	}
	return "unset"
}

// Outcome is how a run of an attack ended.
type Outcome int

// The outcomes. Skipped is never ok: a case that did not run proves nothing.
const (
	Succeeded Outcome = iota + 1
	Stopped
	Skipped
)

func (o Outcome) String() string {
	switch o {
	case Succeeded:
		return "succeeded"
	case Stopped:
		return "stopped"
	case Skipped:
		return "skipped"
	}
	return "unset"
}

// Case is one variant of an attack of the catalogue.
type Case struct {
	Attack   string // AT-NN
	Letter   string
	Does     string        // what the attacker does
	Control  string        // what is taken away in the first run
	Stops    hallmark.Code // the only reason that counts in the second run
	Residual string        // the variant that still works

	// attack does it and looks at the effect. An error means that the run says
	// nothing about the control.
	attack func(ctx context.Context, g *ground, c Control) (effect, error)
}

// effect is what an attack was seen to do.
type effect struct {
	done   bool          // the attacker has what he wanted
	reason hallmark.Code // what stopped him
	detail string
}

// Result is one run of a case.
type Result struct {
	Case    Case
	Control Control
	Outcome Outcome
	Reason  hallmark.Code
	OK      bool
	Detail  string
}

// MarshalJSON gives the line that scripts read: these six fields.
func (r Result) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Drill   string        `json:"drill"`
		Case    string        `json:"case"`
		Control string        `json:"control"`
		Outcome string        `json:"outcome"`
		Reason  hallmark.Code `json:"reason"`
		OK      bool          `json:"ok"`
	}{r.Case.Attack, r.Case.Letter, r.Control.String(), r.Outcome.String(), r.Reason, r.OK})
}

// Config is what a drill needs.
type Config struct {
	Attacks    []string    // ids; empty means all
	Parameters [][2]string // policy parameters of the configuration that is tried
	Report     func(Result)
}

// Catalogue lists every case, in order.
func Catalogue() []Case { return slices.Concat(at12(), at14(), at17(), at19()) }

// Attacks lists the ids that the catalogue has cases of.
func Attacks() []string {
	var out []string
	for _, c := range Catalogue() {
		if !slices.Contains(out, c.Attack) {
			out = append(out, c.Attack)
		}
	}
	return out
}

// Select returns the cases of the attacks that were named, or all.
func Select(ids []string) ([]Case, error) {
	known := Attacks()
	for _, id := range ids {
		if !slices.Contains(known, id) {
			return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindUsage, "there is no drill for %q", id),
				"the drills are: "+strings.Join(known, " "))
		}
	}
	var out []Case
	for _, c := range Catalogue() {
		if len(ids) == 0 || slices.Contains(ids, c.Attack) {
			out = append(out, c)
		}
	}
	return out, nil
}

// Run runs the named attacks in a throwaway home, which is gone when it returns.
// It reports whether every run was ok.
func Run(ctx context.Context, cfg Config) (ok bool, err error) {
	cases, err := Select(cfg.Attacks)
	if err != nil {
		return false, err
	}
	g, err := newGround(ctx, cfg.Parameters)
	if err != nil {
		return false, err
	}
	defer func() {
		if cerr := g.close(); err == nil && cerr != nil {
			ok, err = false, fmt.Errorf("removing the throwaway home: %w", cerr)
		}
	}()
	return runCases(ctx, g, cases, cfg.Report)
}

func runCases(ctx context.Context, g *ground, cases []Case, report func(Result)) (bool, error) {
	ok := len(cases) > 0
	for _, c := range cases {
		for _, control := range []Control{Off, On} {
			e, err := c.attack(ctx, g, control)
			if ctx.Err() != nil {
				return false, fmt.Errorf("drilling %s %s: %w", c.Attack, c.Letter, ctx.Err())
			}
			r := judge(c, control, e, err)
			ok = ok && r.OK
			report(r)
		}
	}
	return ok, nil
}

// judge is the two-run rule.
func judge(c Case, control Control, e effect, err error) Result {
	r := Result{Case: c, Control: control, Reason: e.reason, Detail: e.detail}
	switch {
	case err != nil:
		r.Outcome, r.Detail = Skipped, err.Error()
		r.Reason = hallmark.CodeOf(err)
	case e.done:
		r.Outcome = Succeeded
		r.OK = control == Off
	default:
		r.Outcome = Stopped
		r.OK = control == On && c.Stops != "" && e.reason == c.Stops
	}
	return r
}
