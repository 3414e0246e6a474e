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
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

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
func Catalogue() []Case {
	return slices.Concat(at01(), at02(), at03(), at03source(), at03forge(), at04(), at04upstream(), at05(), at05upstream(), at06(), at07(), at08(), at08run(), at09(), at10image(), at10(), at11(), at12(), at13(), at13image(), at14(), at14image(), at15(), at17(), at19(), at22(), at23(), hostedBuilds())
}

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

// lanes is how many attacks are drilled at the same time, each on a ground of its
// own: much of a run is waiting for disks and for processes to start.
const lanes = 2

// limit bounds one run of a case: an attack that makes the control hang was not
// stopped by it.
const limit = 5 * time.Minute // a cold compilation on a busy machine takes two

// Run runs the named attacks in throwaway homes, which are gone when it returns.
// It reports results in the order of the catalogue, and whether every run was ok.
func Run(ctx context.Context, cfg Config) (bool, error) {
	cases, err := Select(cfg.Attacks)
	if err != nil {
		return false, err
	}
	return drillAll(ctx, cases, cfg.Report, func(ctx context.Context) (*ground, error) { return newGround(ctx, cfg.Parameters) })
}

func drillAll(ctx context.Context, cases []Case, report func(Result), prepare func(context.Context) (*ground, error)) (bool, error) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(lanes + 1)
	var attacks []chan Result
	var work []func() error
	for len(cases) > 0 {
		n := slices.IndexFunc(cases, func(c Case) bool { return c.Attack != cases[0].Attack })
		if n < 0 {
			n = len(cases)
		}
		own := cases[:n]
		cases = cases[n:]
		results := make(chan Result, 2*n)
		attacks = append(attacks, results)
		work = append(work, func() error {
			defer close(results)
			return drillAttack(ctx, own, results, prepare)
		})
	}
	ok := len(work) > 0
	group.Go(func() error {
		for _, results := range attacks {
			for r := range results {
				ok = ok && r.OK
				report(r)
			}
		}
		return nil
	})
	for _, w := range work {
		group.Go(w)
	}
	if err := group.Wait(); err != nil {
		return false, err
	}
	return ok, nil
}

// drillAttack runs the cases of one attack on one ground.
func drillAttack(ctx context.Context, cases []Case, results chan<- Result, prepare func(context.Context) (*ground, error)) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	g, err := prepare(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := g.close(); cerr != nil {
			err = errors.Join(err, fmt.Errorf("removing the throwaway home: %w", cerr))
		}
	}()
	for _, c := range cases {
		for _, control := range []Control{Off, On} {
			limited, cancel := context.WithTimeout(ctx, limit)
			e, err := c.attack(limited, g, control)
			cancel()
			if ctx.Err() != nil {
				return fmt.Errorf("drilling %s %s: %w", c.Attack, c.Letter, ctx.Err())
			}
			r := judge(c, control, e, err)
			r.Detail = g.plain(r.Detail)
			results <- r
		}
	}
	return nil
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
