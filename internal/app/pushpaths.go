// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/gitcli"
	"github.com/hallmark-sc/hallmark/internal/gitgate"
	"github.com/hallmark-sc/hallmark/internal/source"
)

// paths wants a grant for every file that a push changes, in any of its commits:
// what one commit changes and the next one restores was changed. Who is granted
// some paths alone neither deletes a reference nor moves it anywhere but forward,
// since that takes changes of others away.
func (g *sourceGate) paths(ctx context.Context, p *gitgate.Push, c *considered, in *gitcli.Incoming) ([]hallmark.Reason, error) {
	var out []hallmark.Reason
	for _, u := range p.Updates {
		req := access.Request{Permission: access.RefPush, Repository: p.Repository, Ref: u.Ref}
		switch {
		case u.Deletes() && strings.HasPrefix(u.Ref, "refs/tags/"):
			continue // refused by itself
		case strings.HasPrefix(u.Ref, "refs/tags/"):
			// A tag names a revision. One that no branch shows, or will by this push, is
			// brought in by it, and that takes what a push to a branch takes.
			brings, err := g.brings(ctx, p, c, in, u)
			if err != nil {
				return nil, err
			}
			if !brings {
				continue
			}
		case c.held:
			req.Permission = access.ChangePropose
		}
		req.EveryPath = true
		whole := g.mayDo(c.rules, p.Caller, req)
		if whole.Allowed {
			continue
		}
		forward := u.Creates() && strings.Trim(c.last[u.Ref].Ever, "0") == "" // it never was anywhere
		if !u.Creates() && !u.Deletes() {
			var err error
			if forward, err = in.Descends(ctx, u.New, u.Old); err != nil {
				return nil, err
			}
		}
		if !forward {
			out = append(out, whole.Reason)
			continue
		}
		changed, err := changedBy(ctx, in, u, c.facts.Paths)
		if err != nil {
			return nil, err
		}
		req.EveryPath = false
		for _, req.Path = range changed {
			if ruling := g.mayDo(c.rules, p.Caller, req); !ruling.Allowed && len(out) < maxSameReason {
				out = append(out, ruling.Reason)
			}
		}
	}
	return out, nil
}

// brings reports whether a tag shows commits that came with the push and that no
// branch of it shows.
func (g *sourceGate) brings(ctx context.Context, p *gitgate.Push, c *considered, in *gitcli.Incoming, u source.Update) (bool, error) {
	var shown []string
	for _, o := range p.Updates {
		if strings.HasPrefix(o.Ref, "refs/heads/") && !o.Deletes() {
			shown = append(shown, o.New)
		}
	}
	fresh := map[string]bool{}
	for _, pc := range c.facts.Commits {
		fresh[pc.Commit] = true
	}
	tip := c.facts.Tips[u.Ref]
	if len(fresh) == 0 || tip == "" {
		return false, nil
	}
	commits, err := in.Commits(ctx, tip, shown)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(commits, func(id string) bool { return fresh[id] }), nil
}

// changedBy are the files that new commits of a push change, and those that commits
// which the reference did not show before change, new or not.
func changedBy(ctx context.Context, in *gitcli.Incoming, u source.Update, paths []string) ([]string, error) {
	out := slices.Clone(paths)
	if u.Creates() {
		return out, nil
	}
	commits, err := in.Commits(ctx, u.New, []string{u.Old})
	if err != nil {
		return nil, err
	}
	err = in.Changes(ctx, commits, func(e source.Entry) error {
		out = append(out, e.Path)
		return nil
	})
	slices.Sort(out)
	return slices.Compact(out), err
}
