// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package source_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/source"
)

// incoming is a push of unsigned commits, each the child of the one before.
type incoming struct {
	line  []string // names of commits, oldest first
	links int      // paths of one link that leaves the tree at the last of them
}

func id(n int) string { return fmt.Sprintf("%040x", n+1) }

func (incoming) Objects(context.Context, func(source.Object) error) error { return nil }

func (i incoming) Object(_ context.Context, name string) (source.Object, error) {
	if name == id(999) {
		return source.Object{ID: name, Type: "blob", Data: []byte("../x")}, nil
	}
	if !slices.Contains(i.line, name) {
		return source.Object{}, errors.New("no object " + name)
	}
	return source.Object{ID: name, Type: "commit", Data: []byte("tree " + id(500) + "\nauthor A <a@example.org> 1 +0000\ncommitter A <a@example.org> 1 +0000\n\nm\n")}, nil
}

func (i incoming) Commits(_ context.Context, from string, without []string) ([]string, error) {
	var out []string
	for n := slices.Index(i.line, from); n >= 0 && !slices.Contains(without, i.line[n]); n-- {
		out = append(out, i.line[n])
	}
	return out, nil
}

func (i incoming) Changes(_ context.Context, commits []string, fn func(source.Entry) error) error {
	for n := range i.links {
		p := fmt.Sprintf("deep/%04d", n)
		if n == i.links-1 {
			p = "top"
		}
		if err := fn(source.Entry{Commit: commits[0], Mode: "120000", ID: id(999), Path: p}); err != nil {
			return err
		}
	}
	return nil
}

func (incoming) Descends(context.Context, string, string) (bool, error) { return true, nil }

func judge(t *testing.T, in incoming, edit func(*source.PushConfig), u source.Update) source.PushFacts {
	t.Helper()
	cfg := source.PushConfig{Incoming: in, Clock: time.Now, MaxFile: 1, MaxReason: 3, Same: func(string, string) bool { return false },
		Verify: func([]byte, []byte, time.Time) source.Verdict { return source.Verdict{} }}
	if edit != nil {
		edit(&cfg)
	}
	facts, err := source.JudgePush(t.Context(), cfg, []source.Update{u})
	if err != nil {
		t.Fatal(err)
	}
	return facts
}

func codes(facts source.PushFacts) (out []hallmark.Code) {
	for _, r := range facts.Reasons {
		out = append(out, r.Code)
	}
	return out
}

// Commits that another branch shows may be there by other rules, such as those
// of an import: the branch that they come to is asked for its own.
func TestPushOfKnownCommits(t *testing.T) {
	in := incoming{line: []string{id(0), id(1), id(2)}}
	u := source.Update{Ref: "refs/heads/main", Old: id(0), New: id(2)}
	known := func(every bool) func(*source.PushConfig) {
		return func(c *source.PushConfig) {
			c.Known = func(context.Context) ([]string, error) { return []string{id(2)}, nil }
			c.Every = map[string]bool{u.Ref: every}
		}
	}
	if got := codes(judge(t, in, known(false), u)); len(got) != 0 {
		t.Errorf("elsewhere: %v", got)
	}
	facts := judge(t, in, known(true), u)
	if got := codes(facts); !slices.Equal(got, []hallmark.Code{hallmark.CodeSourceUnsigned, hallmark.CodeSourceUnsigned}) || facts.Tips[u.Ref] != id(2) {
		t.Errorf("protected: %v, %v", got, facts.Tips)
	}
}

// One link at very many paths is judged at each.
func TestPushOfManyLinks(t *testing.T) {
	in := incoming{line: []string{id(0)}, links: 1500}
	facts := judge(t, in, nil, source.Update{Ref: "refs/heads/x", Old: strings.Repeat("0", 40), New: id(0)})
	if !slices.Contains(codes(facts), hallmark.CodeSourceLinkEscapes) {
		t.Errorf("%v", facts.Reasons)
	}
}
