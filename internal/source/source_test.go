// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
)

const (
	treeID = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
	person = "Dev <dev@example.org> 1700000000 +0000"
	armor  = "-----BEGIN SSH SIGNATURE-----\n U1NI\n -----END SSH SIGNATURE-----\n"
)

func object(extra, message string) string {
	return "tree " + treeID + "\nauthor " + person + "\ncommitter " + person + "\n" + extra + "\n" + message
}

func TestParseCommit(t *testing.T) {
	signed := object("", "message\n")
	for name, extra := range map[string]string{
		"plain":            "gpgsig " + armor,
		"header after":     "gpgsig " + armor + "x-note kept\n",
		"header before":    "encoding UTF-8\ngpgsig " + armor,
		"signed merge tag": "mergetag object " + treeID + "\n type commit\n \n gpgsig inner\ngpgsig " + armor,
	} {
		raw := object(extra, "message\n")
		c, err := ParseCommit([]byte(raw))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if want := strings.Replace(raw, "gpgsig "+armor, "", 1); string(c.Signed) != want {
			t.Errorf("%s: signed bytes %q, want %q", name, c.Signed, want)
		}
		if want := strings.ReplaceAll(armor, "\n ", "\n"); string(c.Signature) != want {
			t.Errorf("%s: signature %q", name, c.Signature)
		}
	}
	c, err := ParseCommit([]byte(signed))
	if err != nil || c.Signature != nil || c.Tree != treeID || !c.When.Equal(time.Unix(1_700_000_000, 0)) || Mail(c.Committer) != "dev@example.org" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestParseCommitRefuses(t *testing.T) {
	good := object("gpgsig "+armor, "m\n")
	for name, raw := range map[string]string{
		"empty":              "",
		"no end":             strings.Split(good, "\n\n")[0],
		"NUL in message":     good + "\x00hidden",
		"NUL in header":      strings.Replace(good, "Dev", "De\x00v", 1),
		"no tree":            strings.Replace(good, "tree "+treeID+"\n", "", 1),
		"two trees":          "tree " + treeID + "\n" + good,
		"short tree":         strings.Replace(good, treeID, treeID[:39], 1),
		"no committer":       strings.Replace(good, "committer "+person+"\n", "", 1),
		"two committers":     strings.Replace(good, "committer ", "committer "+person+"\ncommitter ", 1),
		"late committer":     object("gpgsig "+armor+"committer "+person+"\n", "m\n"),
		"swapped":            strings.Replace(strings.Replace(strings.Replace(good, "author", "X", 1), "committer", "author", 1), "X", "committer", 1),
		"late parent":        object("parent "+treeID+"\n", "m\n"),
		"bad parent":         strings.Replace(good, "author", "parent HEAD\nauthor", 1),
		"two signatures":     object("gpgsig "+armor+"gpgsig "+armor, "m\n"),
		"two formats":        object("gpgsig "+armor+"gpgsig-sha256 "+armor, "m\n"),
		"continuation first": " x\n" + good,
		"header no value":    object("x\n", "m\n"),
		"two addresses":      strings.ReplaceAll(good, "Dev <dev@example.org>", "Boss <boss@example.org> <dev@example.org>"),
		"bracket in name":    strings.ReplaceAll(good, "Dev <", "Dev > <"),
		"no address":         strings.ReplaceAll(good, "<dev@example.org>", "dev@example.org"),
		"control in name":    strings.ReplaceAll(good, "Dev", "De\x1b[2Jv"),
		"not UTF-8":          strings.ReplaceAll(good, "Dev", "De\xffv"),
		"no time":            strings.ReplaceAll(good, " 1700000000 +0000", ""),
		"bad time":           strings.ReplaceAll(good, "1700000000", "soon"),
	} {
		if c, err := ParseCommit([]byte(raw)); hallmark.CodeOf(err) != hallmark.CodeSourceObjectInvalid {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

// fake is a repository in memory.
type fake struct {
	raw   string
	why   string
	dirty []string
}

const commitID = "1111111111111111111111111111111111111111"

func (f fake) Resolve(string) (string, string, error) { return commitID, "refs/heads/main", nil }
func (f fake) Object(context.Context, string) (string, []byte, error) {
	return "commit", []byte(f.raw), nil
}
func (f fake) Incomplete() string                              { return f.why }
func (f fake) Dirty(context.Context, string) ([]string, error) { return f.dirty, nil }
func (f fake) Commits(context.Context, string) (int, error)    { return 7, nil }

var dev = hallmark.Principal{Name: "dev@example.org", Key: "SHA256:x", Method: "ssh"}

func TestCheck(t *testing.T) {
	now := time.Unix(1_800_000_000, 0).UTC()
	good := object("gpgsig "+armor, "m\n")
	allow := func(who ...hallmark.Principal) func(_, _ []byte, _ time.Time) Verdict {
		return func(_, _ []byte, _ time.Time) Verdict { return Verdict{Principals: who} }
	}
	between := func(from, to int64, who hallmark.Principal) func(_, _ []byte, _ time.Time) Verdict {
		return func(_, _ []byte, at time.Time) Verdict {
			if at.Unix() < from || at.Unix() >= to {
				return Verdict{Code: hallmark.CodeSourceSignerNotAllowed, Message: "not valid then"}
			}
			return Verdict{Principals: []hallmark.Principal{who}}
		}
	}
	for name, tc := range map[string]struct {
		repo    fake
		verify  func(_, _ []byte, _ time.Time) Verdict
		outcome hallmark.Outcome
		code    hallmark.Code
	}{
		"signed":          {fake{raw: good}, allow(dev), hallmark.Pass, ""},
		"in its window":   {fake{raw: good}, between(1_600_000_000, 1_900_000_000, dev), hallmark.Pass, ""},
		"unsigned":        {fake{raw: object("", "m\n")}, allow(dev), hallmark.Fail, hallmark.CodeSourceUnsigned},
		"openpgp, now":    {fake{raw: object("gpgsig -----BEGIN PGP SIGNATURE-----\n x\n", "m\n")}, between(1_750_000_000, 1_900_000_000, dev), hallmark.Pass, ""},
		"openpgp, then":   {fake{raw: object("gpgsig -----BEGIN PGP SIGNATURE-----\n x\n", "m\n")}, between(1_600_000_000, 1_750_000_000, dev), hallmark.Fail, hallmark.CodeSourceSignerNotAllowed},
		"another's name":  {fake{raw: good}, allow(hallmark.Principal{Name: "eve@example.org"}), hallmark.Fail, hallmark.CodeSourceSignerNotAuthor},
		"withdrawn key":   {fake{raw: good}, between(1_600_000_000, 1_750_000_000, dev), hallmark.Fail, hallmark.CodeSourceSignerNotAllowed},
		"later key":       {fake{raw: good}, between(1_750_000_000, 1_900_000_000, dev), hallmark.Fail, hallmark.CodeSourceSignerNotAllowed},
		"shallow":         {fake{raw: good, why: "shallow"}, allow(dev), hallmark.Errored, hallmark.CodeSourceHistoryIncomplete},
		"bad and shallow": {fake{raw: object("", "m\n"), why: "shallow"}, allow(dev), hallmark.Errored, hallmark.CodeSourceHistoryIncomplete},
	} {
		p, err := Check(t.Context(), Config{Repository: tc.repo, Verify: tc.verify, URI: "file:///r", Files: files(nil), Clock: func() time.Time { return now }}, "HEAD")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var codes []hallmark.Code
		for _, r := range p.Check.Reasons {
			codes = append(codes, r.Code)
			if r.Fix == "" {
				t.Errorf("%s: %s has no fix", name, r.Code)
			}
		}
		var want []hallmark.Code
		if tc.code != "" {
			want = []hallmark.Code{tc.code}
		}
		if p.Check.Outcome != tc.outcome || !cmp.Equal(codes, want) {
			t.Errorf("%s: %v %v, want %v %v", name, p.Check.Outcome, codes, tc.outcome, want)
		}
		if (p.Signer != nil) != (tc.outcome == hallmark.Pass) {
			t.Errorf("%s: signer %v", name, p.Signer)
		}
	}
}

// TestKeyChangesHands: a key that stood for one person then and for another now
// speaks for neither.
func TestKeyChangesHands(t *testing.T) {
	verify := func(_, _ []byte, at time.Time) Verdict {
		if at.Unix() < 1_750_000_000 {
			return Verdict{Principals: []hallmark.Principal{dev}}
		}
		return Verdict{Principals: []hallmark.Principal{{Name: "eve@example.org"}}}
	}
	p, err := Check(t.Context(), Config{Repository: fake{raw: object("gpgsig "+armor, "m\n")}, Verify: verify, URI: "file:///r", Files: files(nil),
		Clock: func() time.Time { return time.Unix(1_800_000_000, 0) }}, "HEAD")
	if err != nil || p.Check.Outcome != hallmark.Fail || p.Check.Reasons[0].Code != hallmark.CodeSourceSignerNotAllowed {
		t.Errorf("%+v, %v", p.Check, err)
	}
}

func TestDirtyTree(t *testing.T) {
	cfg := Config{Repository: fake{raw: object("", "m\n"), dirty: []string{"a"}}, URI: "file:///r", Files: files(nil), Clock: time.Now}
	if _, err := Check(t.Context(), cfg, "HEAD"); hallmark.CodeOf(err) != hallmark.CodeSourceTreeDirty || hallmark.HintOf(err) == "" {
		t.Errorf("dirty: %v", err)
	}
	cfg.CommittedOnly = true
	if _, err := Check(t.Context(), cfg, "HEAD"); err != nil {
		t.Errorf("committed only: %v", err)
	}
}

func FuzzParseCommit(f *testing.F) {
	f.Add([]byte(object("gpgsig "+armor, "m\n")))
	f.Add([]byte(object("mergetag object x\n gpgsig y\n", "m\n\nmore")))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := ParseCommit(raw)
		if err != nil {
			if hallmark.CodeOf(err) != hallmark.CodeSourceObjectInvalid {
				t.Error(err)
			}
			return
		}
		if (c.Signature == nil) != (len(c.Signed) == len(raw)) {
			t.Errorf("signature %q, %d of %d bytes signed", c.Signature, len(c.Signed), len(raw))
		}
		again, err := ParseCommit(c.Signed)
		if err != nil || again.Signature != nil || again.Committer != c.Committer || again.Tree != c.Tree {
			t.Errorf("the signed bytes say something else: %+v, %v", again, err)
		}
	})
}
