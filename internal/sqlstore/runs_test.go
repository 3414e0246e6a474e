// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sqlstore_test

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/sqlstore"
)

var noon = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func aRun(id, principal string, minute int) sqlstore.Run {
	return sqlstore.Run{
		ID: id, Repository: "app", Ref: "refs/heads/main", Revision: "c", Cause: "push", Basis: hallmark.DigestOf([]byte(id)), Principal: principal,
		Parameters: map[string]string{"A": "b"}, State: sqlstore.RunQueued, Queued: noon.Add(time.Duration(minute) * time.Minute),
	}
}

func queue(t *testing.T, s *sqlstore.Store, runs ...sqlstore.Run) {
	t.Helper()
	for _, r := range runs {
		if added, err := s.QueueRun(t.Context(), r, 0); err != nil || !added {
			t.Fatalf("%s: %v, %v", r.ID, added, err)
		}
	}
}

func lease(t *testing.T, s *sqlstore.Store, worker, want string) sqlstore.Run {
	t.Helper()
	r, ok, err := s.LeaseRun(t.Context(), worker, noon.Add(time.Hour))
	if err != nil || ok != (want != "") || r.ID != want {
		t.Fatalf("leased %q, want %q: %v", r.ID, want, err)
	}
	return r
}

// TestRunsAreKept: what was queued is there for whoever opens the index next, and
// nothing of a call that failed is.
func TestRunsAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.sqlite")
	s := open(t, path)
	queue(t, s, aRun("one", "alice", 0))
	if added, err := s.QueueRun(t.Context(), aRun("one", "alice", 5), 0); err != nil || added {
		t.Errorf("queued twice: %v, %v", added, err)
	}
	if _, err := s.QueueRun(t.Context(), aRun("two", "alice", 1), 1); hallmark.CodeOf(err) != hallmark.CodeRunQueueFull {
		t.Errorf("more than may wait: %v", err)
	}
	if _, err := s.QueueRun(t.Context(), aRun("three", "bob", 1), 1); err != nil {
		t.Errorf("somebody else's queue: %v", err)
	}
	other := open(t, path)
	got, ok, err := other.RunOf(t.Context(), "one")
	if d := cmp.Diff(aRun("one", "alice", 0), got); err != nil || !ok || d != "" {
		t.Errorf("%v, %v\n%s", ok, err, d)
	}
	if _, ok, err := other.RunOf(t.Context(), "two"); ok || err != nil {
		t.Errorf("refused and there: %v, %v", ok, err)
	}
}

// TestSchemaGrows: an index of the version before has no runs, and gets them; what
// it held stays.
func TestSchemaGrows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.sqlite")
	s := open(t, path)
	if err := s.PutStatement(t.Context(), row("a")); err != nil {
		t.Fatal(err)
	}
	if err := sqlstore.DropRuns(s); err != nil {
		t.Fatal(err)
	}
	if err := sqlstore.SetVersion(s, 2); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, path)
	queue(t, s, aRun("one", "alice", 0))
	if rows, err := s.Statements(t.Context(), ""); err != nil || len(rows) != 1 {
		t.Errorf("%v, %v", rows, err)
	}
}

// TestLeases: one holder at a time, and an older one's word counts for nothing.
func TestLeases(t *testing.T) {
	s, ctx := open(t, filepath.Join(t.TempDir(), "index.sqlite")), t.Context()
	queue(t, s, aRun("one", "alice", 0))
	first := lease(t, s, "w1", "one")
	lease(t, s, "w2", "")
	if held, err := s.StartRun(ctx, "one", first.Fence, noon); !held || err != nil {
		t.Fatal(held, err)
	}
	again, lost, err := s.ReclaimRuns(ctx, noon, func(w string) bool { return w == "w1" }, 3)
	if err != nil || len(again) != 1 || len(lost) != 0 {
		t.Fatal(again, lost, err)
	}
	second := lease(t, s, "w2", "one")
	if second.Fence <= first.Fence || second.Attempt != 2 {
		t.Errorf("fence %d after %d, attempt %d", second.Fence, first.Fence, second.Attempt)
	}
	for what, try := range map[string]func() (bool, error){
		"start": func() (bool, error) { return s.StartRun(ctx, "one", first.Fence, noon) },
		"end": func() (bool, error) {
			return s.EndRun(ctx, "one", first.Fence, sqlstore.RunEnd{State: sqlstore.RunDone, Effect: "allow"}, noon)
		},
		"return": func() (bool, error) { return s.ReturnRun(ctx, "one", first.Fence) },
		"renew": func() (bool, error) {
			held, _, err := s.RenewRun(ctx, "one", first.Fence, noon)
			return held, err
		},
	} {
		if held, err := try(); held || err != nil {
			t.Errorf("the first holder may still %s: %v, %v", what, held, err)
		}
	}
	if held, err := s.ReturnRun(ctx, "one", second.Fence); !held || err != nil {
		t.Fatal(held, err)
	}
	third := lease(t, s, "w3", "one")
	if third.Attempt != 2 { // giving back is no attempt
		t.Errorf("attempt %d", third.Attempt)
	}
	if held, err := s.EndRun(ctx, "one", third.Fence, sqlstore.RunEnd{State: sqlstore.RunDone, Effect: "allow"}, noon); !held || err != nil {
		t.Fatal(held, err)
	}
	if held, err := s.EndRun(ctx, "one", third.Fence, sqlstore.RunEnd{State: sqlstore.RunFailed}, noon); held || err != nil {
		t.Errorf("ended twice: %v, %v", held, err)
	}
	lease(t, s, "w4", "")
}

// TestReclaim: a lease that ended, and a run that no worker survives.
func TestReclaim(t *testing.T) {
	s, ctx := open(t, filepath.Join(t.TempDir(), "index.sqlite")), t.Context()
	queue(t, s, aRun("one", "alice", 0))
	alive := func(string) bool { return false }
	lease(t, s, "w", "one")
	if again, _, err := s.ReclaimRuns(ctx, noon, alive, 2); len(again) != 0 || err != nil {
		t.Errorf("a lease that holds: %v, %v", again, err)
	}
	if again, _, err := s.ReclaimRuns(ctx, noon.Add(2*time.Hour), alive, 2); len(again) != 1 || err != nil {
		t.Errorf("a lease that ended: %v, %v", again, err)
	}
	lease(t, s, "w", "one")
	if _, lost, err := s.ReclaimRuns(ctx, noon.Add(2*time.Hour), alive, 2); len(lost) != 1 || err != nil {
		t.Errorf("begun twice: %v, %v", lost, err)
	}
	if r, _, err := s.RunOf(ctx, "one"); err != nil || r.State != sqlstore.RunLost || r.Code != string(hallmark.CodeRunLost) {
		t.Errorf("%+v, %v", r, err)
	}
	lease(t, s, "w", "")
	queue(t, s, aRun("one", "alice", 0)) // whoever finds that it is owed
	if r := lease(t, s, "w", "one"); r.Attempt != 1 {
		t.Errorf("attempt %d", r.Attempt)
	}
}

// TestTurns: who asks for much does not keep the others waiting.
func TestTurns(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "index.sqlite"))
	queue(t, s, aRun("a1", "alice", 0), aRun("a2", "alice", 1), aRun("a3", "alice", 2), aRun("b1", "bob", 3))
	for _, want := range []string{"a1", "b1", "a2", "a3", ""} {
		lease(t, s, "w", want)
	}
}

func TestCancel(t *testing.T) {
	s, ctx := open(t, filepath.Join(t.TempDir(), "index.sqlite")), t.Context()
	queue(t, s, aRun("one", "alice", 0), aRun("two", "alice", 1))
	first := lease(t, s, "w", "one")
	for _, id := range []string{"one", "two"} {
		if ended, err := s.CancelRun(ctx, id, "why", noon); ended || err != nil {
			t.Errorf("%s: %v, %v", id, ended, err)
		}
	}
	if r, _, _ := s.RunOf(ctx, "two"); r.State != sqlstore.RunFailed || r.Code != string(hallmark.CodeRunCancelled) {
		t.Errorf("%+v", r)
	}
	if held, cancelled, err := s.RenewRun(ctx, "one", first.Fence, noon); !held || !cancelled || err != nil {
		t.Errorf("the holder is told: %v, %v, %v", held, cancelled, err)
	}
	if _, err := s.EndRun(ctx, "one", first.Fence, sqlstore.RunEnd{State: sqlstore.RunDone, Effect: "allow"}, noon); err != nil {
		t.Fatal(err)
	}
	if r, _, _ := s.RunOf(ctx, "one"); r.State != sqlstore.RunDone {
		t.Errorf("%+v", r)
	}
	if list, err := s.Runs(ctx, "app", sqlstore.RunFailed); err != nil || len(list) != 1 || list[0].ID != "two" {
		t.Errorf("%v, %v", list, err)
	}
}

// TestEvents: in order, from where the reader was, also with many writers.
func TestEvents(t *testing.T) {
	s, ctx := open(t, filepath.Join(t.TempDir(), "index.sqlite")), t.Context()
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			for i := range 10 {
				if err := s.AddRunEvent(ctx, "one", fmt.Appendf(nil, "%d-%d", w, i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	got, last, err := s.RunEvents(ctx, "one", 0)
	if err != nil || len(got) != 40 || last != 40 {
		t.Fatalf("%d events up to %d, %v", len(got), last, err)
	}
	if got, last, err = s.RunEvents(ctx, "one", 39); err != nil || len(got) != 1 || last != 40 {
		t.Errorf("%d events up to %d, %v", len(got), last, err)
	}
}
