// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/gitcli"
	"github.com/hallmark-sc/hallmark/internal/gitgate"
	"github.com/hallmark-sc/hallmark/internal/scan"
	"github.com/hallmark-sc/hallmark/internal/scan/secrets"
	"github.com/hallmark-sc/hallmark/internal/source"
)

// incomingObjects streams what a push brings to the scanner of secrets.
type incomingObjects struct{ in *gitcli.Incoming }

func (o incomingObjects) Each(ctx context.Context, _ string, fn func(secrets.Object) error) error {
	return o.in.Objects(ctx, func(b source.Object) error {
		if b.Data == nil && b.Size > 0 {
			return hallmark.Errorf(hallmark.KindInvalid, "object %s has %d bytes, more than can be looked at", b.ID, b.Size)
		}
		if b.Type == "tree" { // a name can be a secret too
			b.Data = []byte(strings.Join(source.TreeNames(b), "\n"))
		}
		return fn(secrets.Object{ID: b.ID, Type: b.Type, Data: b.Data})
	})
}

func (g *sourceGate) secrets(ctx context.Context, p *gitgate.Push, c *considered, in *gitcli.Incoming) (hallmark.CheckRecord, []hallmark.Finding, error) {
	params := c.rules.params
	rev := hallmark.Revision{Repository: c.uri}
	for _, u := range p.Updates {
		if !u.Deletes() {
			rev.Ref, rev.Commit = u.Ref, u.New
		}
	}
	if rev.Commit == "" || p.Quarantine == "" {
		return hallmark.CheckRecord{Check: "secrets", Outcome: hallmark.Pass, Revision: rev, StartedOn: c.on, FinishedOn: c.on, Tool: g.s.tool, Coverage: &hallmark.Coverage{}}, nil, nil
	}
	return secrets.Scan(ctx, secrets.Config{
		Worker: g.s.spare, Key: g.s.key, Thresholds: scan.Thresholds{Severity: params.Severity, Confidence: params.Confidence}, Clock: now, Tool: g.s.tool, Wall: scanWall,
	}, rev, incomingObjects{in})
}

// pushedSecrets names each finding's place, never its value.
func pushedSecrets(rec hallmark.CheckRecord, found []hallmark.Finding, places map[string]source.Place) []hallmark.Reason {
	if len(found) == 0 || rec.Outcome == hallmark.Errored {
		return rec.Reasons
	}
	var out []hallmark.Reason
	for _, f := range found {
		if len(out) == maxSameReason {
			out = append(out, hallmark.Reason{Code: hallmark.CodeSecretFound, Check: "secrets", Message: "and more"})
			break
		}
		out = append(out, hallmark.Reason{Code: hallmark.CodeSecretFound, Check: "secrets",
			Message: fmt.Sprintf("%s (%s) in %s, line %d (object %s)", f.Message, f.Rule, where(places, f.Object), f.Line, f.Object),
			Fix:     "revoke it, take it out of every commit that has it (git rebase -i, or git filter-repo), and push again: docs/remediation.md"})
	}
	return out
}

func where(places map[string]source.Place, object string) string {
	if p, ok := places[object]; ok {
		return p.String()
	}
	return "the name of a file, or in what no commit shows"
}

// placesOf finds where the findings are. A finding in no file and no commit is in
// the name of a file: no path is told then, since it could hold the secret.
func placesOf(ctx context.Context, in *gitcli.Incoming, facts source.PushFacts, found []hallmark.Finding) (map[string]source.Place, error) {
	objects := map[string]bool{}
	for _, f := range found {
		objects[f.Object] = true
	}
	var commits []string
	for _, pc := range facts.Commits {
		commits = append(commits, pc.Commit)
	}
	places, err := source.Places(ctx, in, commits, objects)
	if err != nil {
		return nil, err
	}
	for _, id := range commits {
		if objects[id] {
			places[id] = source.Place{Commit: id}
		}
	}
	if len(places) < len(objects) {
		for id, p := range places {
			places[id] = source.Place{Commit: p.Commit}
		}
	}
	return places, nil
}

// withheld are reasons without the words of the push: beside a secret they could
// repeat it, and what is logged stays.
func withheld(reasons []hallmark.Reason) []hallmark.Reason {
	var out []hallmark.Reason
	for _, r := range reasons {
		if r.Check != "source" {
			out = append(out, r)
		} else if !slices.ContainsFunc(out, func(o hallmark.Reason) bool { return o.Code == r.Code }) {
			out = append(out, hallmark.Reason{Code: r.Code, Check: r.Check, Message: "more is wrong, told once the secret is out of the push", Fix: r.Fix})
		}
	}
	return out
}
