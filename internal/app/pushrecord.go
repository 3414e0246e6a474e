// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/gitgate"
	"github.com/hallmark-sc/hallmark/internal/source"
)

// Record makes allowed transitions evidence; git holds the references' locks.
func (g *sourceGate) Record(ctx context.Context, p *gitgate.Push, updates []source.Update) error {
	c, ok := p.State.(*considered)
	if !ok {
		return hallmark.Errorf(hallmark.KindInternal, "nothing was decided of this push")
	}
	fresh := slices.DeleteFunc(slices.Clone(updates), func(u source.Update) bool { return c.done[u.Ref] != "" })
	if len(fresh) == 0 {
		return nil
	}
	if c.upstream != nil {
		return hallmark.Errorf(hallmark.KindInternal, "%s was not forwarded", fresh[0].Ref)
	}
	g.settle(p, c)
	for _, u := range fresh {
		unlock, err := g.s.locks.lock(ctx, p.Repository, u.Ref)
		if err != nil {
			return err
		}
		c.locked = append(c.locked, lockedRef{u.Ref, unlock})
		if err := g.follows(ctx, c, u); err != nil {
			return err
		}
	}
	for _, u := range fresh {
		if err := g.record(ctx, p, c, u); err != nil {
			return err
		}
	}
	return nil
}

// follows wants the log to say of a reference what it said when the push was
// judged, or to have come back to the same revision.
func (g *sourceGate) follows(ctx context.Context, c *considered, u source.Update) error {
	last, err := g.s.home.lastTransition(ctx, c.uri, u.Ref)
	if err != nil || last.Statement == c.last[u.Ref].Statement {
		return err
	}
	if !at(last, u.Old) || strings.HasPrefix(u.Ref, "refs/tags/") {
		return hallmark.Coded(hallmark.KindDenied, hallmark.CodeRefBusy, "%s moved since the push was judged: push again", u.Ref)
	}
	c.last[u.Ref] = last
	return nil
}

func (g *sourceGate) record(ctx context.Context, p *gitgate.Push, c *considered, u source.Update) error {
	t := c.transition(p, u)
	t.Effect = hallmark.Allow
	var err error
	if t.Controls, err = g.s.controls(ctx, p.Repository, c.rule[u.Ref], t, false); err != nil {
		return err
	}
	t.Obligations = obliges(c.rule[u.Ref], t)
	statement, err := g.s.transit(ctx, t, c.rule[u.Ref])
	if statement != "" { // logged, whatever came after it
		c.done[u.Ref] = statement
	}
	if err != nil {
		return err
	}
	g.s.log.Info("reference moves", "principal", p.Caller.Name, "repository", p.Repository, "ref", u.Ref, "old", u.Old, "new", u.New)
	return nil
}

// Moved ends a push.
func (g *sourceGate) Moved(p *gitgate.Push) {
	c, ok := p.State.(*considered)
	if ok {
		g.settle(p, c)
		return
	}
	if p.Updates != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := g.malformed(ctx, p); err != nil {
		g.s.log.Error("a refusal of git's could not be logged", "repository", p.Repository, "error", err.Error())
	}
}

// settle looks whether what was logged happened, also where it is not known
// whether it was logged; what did not is carried out or logged as void.
func (g *sourceGate) settle(p *gitgate.Push, c *considered) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, l := range c.locked {
		if err := g.s.settle(ctx, p.Repository, l.ref, c.done[l.ref]); err != nil {
			g.s.log.Error("a logged transition could not be settled", "repository", p.Repository, "ref", l.ref, "error", err.Error())
		} else if err := g.s.landed(ctx, p.Repository, l.ref, c.done[l.ref]); err != nil {
			g.s.log.Error("a build could not be queued; the next start does it", "repository", p.Repository, "ref", l.ref, "error", err.Error())
		}
		l.unlock()
	}
	c.locked = nil
}
