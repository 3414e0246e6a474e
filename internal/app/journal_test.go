// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/ledger"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/internal/sqlstore"
	"github.com/hallmark-sc/hallmark/intoto"
)

// gated is a server of a home of its own, and what was logged in it.
type gated struct {
	t    *testing.T
	home string
	s    *Server
	said map[string]sign.Bundle
}

const (
	gatedRef  = "refs/heads/main"
	gatedWork = "refs/heads/work"
)

var gatedRev = strings.Repeat("1", 40)

// newGated logs that mallory pushed a revision to a branch of hers, that alice
// proposed it, that bob approved it, and that a check of it failed.
func newGated(t *testing.T) *gated {
	t.Helper()
	g := &gated{t: t, home: filepath.Join(t.TempDir(), "home"), said: map[string]sign.Bundle{}}
	if _, err := Init(t.Context(), InitConfig{Home: g.home, SingleOperator: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateRepository(t.Context(), g.home, "app", "main", UpstreamConfig{}, nil); err != nil {
		t.Fatal(err)
	}
	g.start()
	uri := g.s.uri("app")
	id := intoto.ChangeID(uri, gatedRef, gatedRev)
	g.log("push", g.transition(gatedWork, zeros, gatedRev, "mallory@example.org", ""))
	review := intoto.ChangeReview{Action: intoto.ReviewPropose, Change: id, Repository: uri, Target: gatedRef, Revision: gatedRev, Base: zeros, Actor: hallmark.Principal{Name: "alice@example.org", Method: "ssh"}, On: now(), Policy: g.s.rules().policy}
	g.log("propose", made1(attest.ChangeReview(review)))
	review.Action, review.Actor = intoto.ReviewApprove, hallmark.Principal{Name: "bob@example.org", Method: "ssh"}
	g.log("approve", made1(attest.ChangeReview(review)))
	rec := hallmark.CheckRecord{Check: "tests", Outcome: hallmark.Fail, Revision: hallmark.Revision{Repository: uri, Commit: gatedRev, Tree: gatedRev}, StartedOn: now(), FinishedOn: now(),
		Reasons: []hallmark.Reason{{Code: hallmark.CodeCheckFailed, Check: "tests", Message: "no"}}}
	g.observe("failed", rec)
	rec.Outcome, rec.Reasons, rec.FinishedOn = hallmark.Pass, nil, now().Add(time.Second)
	g.observe("passed", rec)
	return g
}

// made1 is a statement that can be made.
func made1(st intoto.Statement, err error) intoto.Statement {
	if err != nil {
		panic(err)
	}
	return st
}

func (g *gated) start() {
	g.t.Helper()
	s, done, err := newServer(g.t.Context(), ServeConfig{Home: g.home, Config: DefaultServerFile(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		g.t.Fatal(err)
	}
	g.s = s
	g.t.Cleanup(done)
}

func (g *gated) transition(ref, old, new, who string, previous hallmark.Digest) intoto.Statement {
	g.t.Helper()
	t := intoto.RefTransition{Repository: g.s.uri("app"), Ref: ref, Old: old, New: new, Effect: hallmark.Allow, Actor: hallmark.Principal{Name: who, Method: "ssh"}, On: now(), Policy: g.s.rules().policy, Previous: previous,
		Checks: []hallmark.CheckRecord{{Check: "secrets", Outcome: hallmark.Pass, Revision: hallmark.Revision{Repository: g.s.uri("app"), Commit: new}}}}
	t.Obligations = obliges(access.RefRule{Approvals: "0"}, t)
	return made1(attest.RefTransition(t))
}

func (g *gated) sign(name string, who sign.Identity, st intoto.Statement) {
	g.t.Helper()
	b, err := g.s.signer.sign(g.t.Context(), who, st, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	g.said[name] = b
}

func (g *gated) log(name string, st intoto.Statement) { g.t.Helper(); g.sign(name, sign.Gate, st) }

func (g *gated) observe(name string, rec hallmark.CheckRecord) {
	g.t.Helper()
	g.sign(name, sign.Observer, made1(attest.TestResult(rec, nil, nil, nil)))
}

// asked is what a change and its checks come to, or the code of why nothing can be said.
func (g *gated) asked(ctx context.Context, h *Home) string {
	s := &Server{home: h, parts: g.s.parts}
	c, err := s.change(ctx, intoto.ChangeID(g.s.uri("app"), gatedRef, gatedRev))
	if err != nil {
		return string(hallmark.CodeOf(err))
	}
	st := standing{Rule: access.RefRule{Checks: []string{"tests"}}}
	if err := s.parties(ctx, &rules{book: g.book()}, c, &st); err != nil {
		return string(hallmark.CodeOf(err))
	}
	if err := s.requiredChecks(ctx, c, &st); err != nil {
		return string(hallmark.CodeOf(err))
	}
	var approvers []string
	for _, a := range c.approvals {
		approvers = append(approvers, a.Actor.Name)
	}
	return fmt.Sprint(st.Parties, approvers, codesOf(st.Reasons))
}

func (g *gated) book() *access.Book {
	book, err := access.NewBook(nil)
	if err != nil {
		g.t.Fatal(err)
	}
	return book
}

// rows takes rows out of the index: of the statements that are named, or the whole.
func (g *gated) rows(without ...string) {
	g.t.Helper()
	index, err := sqlstore.Open(sqlstore.Config{Path: Layout{g.home}.Index()})
	if err != nil {
		g.t.Fatal(err)
	}
	defer index.Close()
	all, err := index.Statements(g.t.Context(), "")
	if err != nil {
		g.t.Fatal(err)
	}
	all = slices.DeleteFunc(all, func(r sqlstore.Row) bool {
		return len(without) == 0 || slices.ContainsFunc(without, func(name string) bool { return g.said[name].Statement == r.Statement })
	})
	if err := index.Rebuild(g.t.Context(), nil, all); err != nil { // leaves and subjects are gone too
		g.t.Fatal(err)
	}
}

func (g *gated) blob(d hallmark.Digest) string {
	return filepath.Join(Layout{g.home}.Blobs(), "sha256", d.Hex()[:2], d.Hex())
}

func (g *gated) remove(digests ...hallmark.Digest) {
	g.t.Helper()
	for _, d := range digests {
		if err := os.Remove(g.blob(d)); err != nil {
			g.t.Fatal(err)
		}
	}
}

// swap puts the bytes of one blob in the place of another.
func (g *gated) swap(to, from hallmark.Digest) {
	g.t.Helper()
	b, err := os.ReadFile(g.blob(from))
	if err == nil {
		err = errors.Join(os.Remove(g.blob(to)), os.WriteFile(g.blob(to), b, 0o400))
	}
	if err != nil {
		g.t.Fatal(err)
	}
}

const wholeTruth = "[alice@example.org mallory@example.org] [bob@example.org] [CHECK_FAILED]"

// TestTakenAway: whatever is taken out of the index or the blobs, no list gets
// shorter: it is whole, or nothing is said.
func TestTakenAway(t *testing.T) {
	missing := string(hallmark.CodeEvidenceMissing)
	for name, tt := range map[string]struct {
		take func(*gated)
		want string
	}{
		"nothing":                         {func(*gated) {}, wholeTruth},
		"the row of the push":             {func(g *gated) { g.rows("push") }, wholeTruth},
		"the row of the failed check":     {func(g *gated) { g.rows("failed") }, wholeTruth},
		"both":                            {func(g *gated) { g.rows("push", "failed") }, wholeTruth},
		"the bundles of both":             {func(g *gated) { g.remove(g.said["push"].Digest, g.said["failed"].Digest) }, wholeTruth},
		"rows and bundles of both":        {func(g *gated) { g.rows("push", "failed"); g.remove(g.said["push"].Digest, g.said["failed"].Digest) }, wholeTruth},
		"the row of the approval":         {func(g *gated) { g.rows("approve") }, missing},
		"the bundle of the approval":      {func(g *gated) { g.remove(g.said["approve"].Digest) }, missing},
		"the row of the proposal":         {func(g *gated) { g.rows("propose") }, missing},
		"the whole index":                 {func(g *gated) { g.rows() }, missing},
		"the words of the push":           {func(g *gated) { g.remove(g.said["push"].Statement) }, wholeTruth},
		"the words of it and the bundle":  {func(g *gated) { g.remove(g.said["push"].Statement, g.said["push"].Digest) }, missing},
		"the words of it and the row":     {func(g *gated) { g.rows("push"); g.remove(g.said["push"].Statement) }, missing},
		"the words of the failure, all":   {func(g *gated) { g.rows("failed"); g.remove(g.said["failed"].Statement, g.said["failed"].Digest) }, missing},
		"the words of the push, swapped":  {func(g *gated) { g.rows("push"); g.swap(g.said["push"].Statement, g.said["approve"].Statement) }, missing},
		"the bundle of the approval, too": {func(g *gated) { g.swap(g.said["approve"].Digest, g.said["push"].Digest) }, missing},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of it is waiting for what does not come
			g := newGated(t)
			if got := g.asked(t.Context(), g.s.home); got != wholeTruth {
				t.Fatalf("before: %s", got)
			}
			tt.take(g)
			h, err := readHome(g.home)
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			if got := g.asked(t.Context(), h); got != tt.want {
				t.Errorf("a server that starts: %s, want %s", got, tt.want)
			}
			// One that runs may know bundles that it verified; it says the same or the
			// whole truth.
			if got := g.asked(t.Context(), g.s.home); got != tt.want && got != wholeTruth {
				t.Errorf("a server that runs: %s", got)
			}
		})
	}
}

// TestRowsThatLie: rows that point elsewhere are found out.
func TestRowsThatLie(t *testing.T) {
	g := newGated(t)
	index := g.s.home.stores.index
	row := sqlstore.Row{Statement: g.said["passed"].Statement, Bundle: g.said["push"].Digest, Predicate: intoto.PredicateTestResult, Signer: "observer", At: now()}
	if err := index.PutStatement(t.Context(), row); err != nil {
		t.Fatal(err)
	}
	if got := g.asked(t.Context(), g.s.home); got != string(hallmark.CodeLogIndexDiffers) {
		t.Error(got)
	}
	// A row of what was never logged adds nothing.
	g = newGated(t)
	review := intoto.ChangeReview{Action: intoto.ReviewApprove, Change: intoto.ChangeID(g.s.uri("app"), gatedRef, gatedRev), Repository: g.s.uri("app"), Target: gatedRef, Revision: gatedRev, Actor: hallmark.Principal{Name: "carol@example.org", Method: "ssh"}}
	b, err := made1(attest.ChangeReview(review)).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	forged := intoto.PAE(intoto.PayloadType, b)
	if _, err := g.s.home.stores.blobs.Put(t.Context(), forged); err != nil {
		t.Fatal(err)
	}
	if err := g.s.home.stores.index.PutStatement(t.Context(), sqlstore.Row{Statement: hallmark.DigestOf(forged), Bundle: g.said["approve"].Digest, Predicate: intoto.PredicateReview, Signer: gateName, At: now(),
		Subjects: []string{sumKey(attest.SubjectOfChange(review.Change))}}); err != nil {
		t.Fatal(err)
	}
	if got := g.asked(t.Context(), g.s.home); got != wholeTruth {
		t.Error(got)
	}
}

// TestMovedBack: who takes the newest transition of a reference away, and moves
// the reference back, is found; a start signs it anew.
func TestMovedBack(t *testing.T) {
	g := newGated(t)
	uri, two := g.s.uri("app"), strings.Repeat("2", 40)
	g.log("second", g.transition(gatedWork, gatedRev, two, "mallory@example.org", g.said["push"].Statement))
	last, err := g.s.home.lastTransition(t.Context(), uri, gatedWork)
	if err != nil || last.New != two {
		t.Fatalf("%+v, %v", last, err)
	}
	g.rows("second")
	g.remove(g.said["second"].Digest)
	h, err := readHome(g.home)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if last, err := h.lastTransition(t.Context(), uri, gatedWork); hallmark.CodeOf(err) != hallmark.CodeEvidenceMissing {
		t.Fatalf("%+v, %v", last, err)
	}
	chain, err := h.logged(t.Context(), repositoryKey, uri)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.s.mend(t.Context(), chain); err != nil {
		t.Fatal(err)
	}
	if last, err := h.lastTransition(t.Context(), uri, gatedWork); err != nil || last.New != two || last.Statement != g.said["second"].Statement {
		t.Fatalf("mended: %+v, %v", last, err)
	}
	chains, broken, err := h.transitions(t.Context(), uri)
	if err != nil || len(broken) > 0 || len(chains[gatedWork]) != 2 {
		t.Errorf("%d transitions, broken %+v, %v", len(chains[gatedWork]), broken, err)
	}
}

// TestLogTakenBack: a log that is put back to an older state is no shorter list.
func TestLogTakenBack(t *testing.T) {
	g := newGated(t)
	old := filepath.Join(t.TempDir(), "log")
	copyDir(t, Layout{g.home}.Log(), old)
	g.log("late", g.transition("refs/heads/late", zeros, gatedRev, "eve@example.org", ""))
	if got := g.asked(t.Context(), g.s.home); !strings.Contains(got, "eve@example.org") {
		t.Fatal(got)
	}
	if err := errors.Join(os.RemoveAll(Layout{g.home}.Log()), os.Rename(old, Layout{g.home}.Log())); err != nil {
		t.Fatal(err)
	}
	if got := g.asked(t.Context(), g.s.home); got != string(hallmark.CodeLogTruncated) {
		t.Error(got)
	}
	h, err := readHome(g.home)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if got := g.asked(t.Context(), h); got != string(hallmark.CodeLogTruncated) {
		t.Errorf("after a start: %s", got)
	}
}

// TestObligationsOfAHome: each is met by evidence of that revision alone, and by
// none that can't be shown.
func TestObligationsOfAHome(t *testing.T) {
	g := newGated(t)
	list := func(at time.Time) string {
		t.Helper()
		all, err := Obligations(t.Context(), g.home, "", at)
		if err != nil {
			return string(hallmark.CodeOf(err))
		}
		var out []string
		for _, o := range all {
			out = append(out, o.Kind+" "+o.State.String())
		}
		return strings.Join(out, ", ")
	}
	if diff := cmp.Diff("scan met, build open", list(now())); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff("scan met, build overdue", list(now().Add(8*24*time.Hour))); diff != "" {
		t.Error(diff)
	}
	if _, err := Obligations(t.Context(), g.home, "other", now()); hallmark.KindOf(err) != hallmark.KindNotFound {
		t.Errorf("a repository that does not exist: %v", err)
	}
	g.rows("push")
	if diff := cmp.Diff("scan open, build open", list(now())); diff != "" {
		t.Errorf("its evidence is gone: %s", diff)
	}
	g.remove(g.said["push"].Statement)
	if diff := cmp.Diff("EVIDENCE_MISSING", list(now())); diff != "" {
		t.Errorf("nobody knows what it says: %s", diff)
	}
	if u := obliges(access.RefRule{Approvals: "2"}, intoto.RefTransition{Effect: hallmark.Allow, New: gatedRev}); !slices.Equal(u, []string{ledger.Scan, ledger.Build, ledger.Review}) {
		t.Errorf("%q", u)
	}
}
