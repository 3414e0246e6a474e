// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sqlstore_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/pipeline/pipelinetest"
	"github.com/hallmark-sc/hallmark/internal/sqlstore"
	"github.com/hallmark-sc/hallmark/internal/translog"
	"github.com/hallmark-sc/hallmark/internal/translog/translogtest"
)

// TestMain is also the process that is killed while it writes.
func TestMain(m *testing.M) {
	if path := os.Getenv("SQLSTORE_WRITE"); path != "" {
		s, err := sqlstore.Open(sqlstore.Config{Path: path})
		if err != nil {
			panic(err)
		}
		for i := 0; ; i++ {
			name := fmt.Sprintf("%d-%d", os.Getpid(), i)
			err := errors.Join(
				s.PutStatement(context.Background(), row(name)),
				s.Save(context.Background(), "build", hallmark.DigestOf([]byte(name)), []byte(name), time.Unix(1, 0)))
			if err != nil {
				panic(err)
			}
			os.Stdout.WriteString(name + "\n")
		}
	}
	os.Exit(m.Run())
}

func row(name string) sqlstore.Row {
	return sqlstore.Row{Statement: hallmark.DigestOf([]byte(name)), Bundle: hallmark.DigestOf([]byte("bundle of " + name)), Predicate: "p", Signer: "observer",
		At: time.Unix(1700000000, 5).UTC(), Subjects: []string{"sha256:" + name, "gitCommit:" + name}}
}

func open(t *testing.T, path string) *sqlstore.Store {
	t.Helper()
	s, err := sqlstore.Open(sqlstore.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestContracts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a #b?c", "index.sqlite")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	pipelinetest.Saves(t, func(t *testing.T) pipeline.Saves { return open(t, path) })
	translogtest.Index(t, func(t *testing.T) translog.Index { return open(t, path) })
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if st, err := os.Stat(path + suffix); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("index%s: %v, %v: it holds findings", suffix, st.Mode(), err)
		}
	}
}

// TestModeIsMended: an index that an earlier version made readable for others.
func TestModeIsMended(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.sqlite")
	open(t, path).Close()
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	open(t, path)
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

func TestStatements(t *testing.T) {
	ctx := t.Context()
	s := open(t, filepath.Join(t.TempDir(), "index.sqlite"))
	a, b := row("a"), row("b")
	b.At = a.At.Add(-time.Second)
	b.Subjects = append(b.Subjects, "sha256:a")
	for _, r := range []sqlstore.Row{a, b, a} {
		if err := s.PutStatement(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	all, err := s.Statements(ctx, "")
	bare := func(rows ...sqlstore.Row) (out []sqlstore.Row) {
		for _, r := range rows {
			r.Subjects = nil
			out = append(out, r)
		}
		return out
	}
	if d := cmp.Diff(bare(b, a), all); err != nil || d != "" {
		t.Errorf("all, oldest first: %v\n%s", err, d)
	}
	about, err := s.Statements(ctx, "sha256:a")
	if d := cmp.Diff(bare(b, a), about); err != nil || d != "" {
		t.Errorf("about sha256:a: %v\n%s", err, d)
	}
	if about, err = s.Statements(ctx, "gitCommit:b"); err != nil || len(about) != 1 {
		t.Errorf("about gitCommit:b: %v, %v", about, err)
	}
	if about, err = s.Statements(ctx, "sha256:' OR '1'='1"); err != nil || len(about) != 0 {
		t.Errorf("injection: %v, %v", about, err)
	}
	// Signing times have seconds: within one, the log has the order.
	var want []hallmark.Digest
	for i := range 20 {
		r := row(fmt.Sprint("same", i))
		r.At, r.Subjects = a.At, []string{"sha256:same"}
		if err := errors.Join(s.PutLeaf(ctx, []byte(fmt.Sprint("leaf", i)), uint64(i), r.Statement), s.PutStatement(ctx, r)); err != nil {
			t.Fatal(err)
		}
		want = append(want, r.Statement)
	}
	same, err := s.Statements(ctx, "sha256:same")
	var got []hallmark.Digest
	for _, r := range same {
		got = append(got, r.Statement)
	}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("within a second: %v\n%s", err, d)
	}
	// A bundle that was lost is replaced by the one that was made anew.
	a.Bundle = hallmark.DigestOf([]byte("made anew"))
	if err := s.PutStatement(ctx, a); err != nil {
		t.Fatal(err)
	}
	if d, ok, err := s.BundleOf(ctx, a.Statement); err != nil || !ok || d != a.Bundle {
		t.Errorf("bundle: %s, %v, %v", d, ok, err)
	}
	if _, ok, err := s.BundleOf(ctx, hallmark.DigestOf(nil)); ok || err != nil {
		t.Errorf("a statement that nobody put: %v, %v", ok, err)
	}
}

func TestRebuild(t *testing.T) {
	ctx := t.Context()
	s := open(t, filepath.Join(t.TempDir(), "index.sqlite"))
	leaf := func(n byte) []byte { return []byte{n, 31: n} }
	if err := errors.Join(s.PutStatement(ctx, row("old")), s.PutLeaf(ctx, leaf(9), 0, row("old").Statement),
		s.Save(ctx, "build", row("old").Statement, []byte("kept"), time.Unix(1, 0))); err != nil {
		t.Fatal(err)
	}
	// Two leaves in one place can't be: everything stays as it was.
	bad := []sqlstore.LeafRow{{Hash: leaf(1), Index: 0}, {Hash: leaf(2), Index: 0}}
	if err := s.Rebuild(ctx, bad, nil); err == nil {
		t.Error("two leaves in one place")
	}
	if at, ok, err := s.Leaf(ctx, leaf(9)); err != nil || !ok || at != 0 {
		t.Errorf("a rebuild that failed changed the index: %d, %v, %v", at, ok, err)
	}
	if all, err := s.Statements(ctx, ""); err != nil || len(all) != 1 {
		t.Errorf("a rebuild that failed changed the index: %v, %v", all, err)
	}
	// The same entry twice, as a crash between log and index leaves it.
	leaves := []sqlstore.LeafRow{{Hash: leaf(1), Index: 0, Statement: row("new").Statement}, {Hash: leaf(2), Index: 1}, {Hash: leaf(1), Index: 2, Statement: row("new").Statement}}
	if err := s.Rebuild(ctx, leaves, []sqlstore.Row{row("new")}); err != nil {
		t.Fatal(err)
	}
	if at, ok, err := s.Leaf(ctx, leaf(1)); err != nil || !ok || at != 0 {
		t.Errorf("leaf: %d, %v, %v", at, ok, err)
	}
	if at, ok, err := s.LeafOf(ctx, row("new").Statement); err != nil || !ok || at != 0 {
		t.Errorf("leaf of the statement: %d, %v, %v", at, ok, err)
	}
	if _, ok, err := s.Leaf(ctx, leaf(9)); ok || err != nil {
		t.Errorf("the old leaf is still there: %v", err)
	}
	if about, err := s.Statements(ctx, "sha256:old"); err != nil || len(about) != 0 {
		t.Errorf("the old subject is still there: %v, %v", about, err)
	}
	if b, _, ok, err := s.Saved(ctx, "build", row("old").Statement); err != nil || !ok || string(b) != "kept" {
		t.Errorf("saved results: %q, %v, %v", b, ok, err)
	}
}

// TestNotAnIndex: what is no index of ours is refused with the way out, and not
// written over.
func TestNotAnIndex(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"text":     func(p string) error { return os.WriteFile(p, []byte(strings.Repeat("no database ", 1000)), 0o600) },
		"cut":      func(p string) error { open(t, p).Close(); return os.Truncate(p, 1000) },
		"zeroed":   func(p string) error { return os.WriteFile(p, make([]byte, 8192), 0o600) },
		"a link":   func(p string) error { return os.Symlink(p+".elsewhere", p) },
		"a pipe":   func(p string) error { return syscall.Mkfifo(p, 0o600) },
		"a folder": func(p string) error { return os.Mkdir(p, 0o700) },
		"a newer schema": func(p string) error {
			s := open(t, p)
			return errors.Join(sqlstore.SetVersion(s, 99), s.Close())
		},
	} {
		path := filepath.Join(t.TempDir(), "index.sqlite")
		if err := spoil(path); err != nil {
			t.Fatal(err)
		}
		s, err := sqlstore.Open(sqlstore.Config{Path: path})
		if err == nil {
			s.Close()
		}
		if hallmark.KindOf(err) != hallmark.KindInvalid || !strings.Contains(hallmark.HintOf(err), "--rebuild") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestManyOpeners: many processes make and use one index at the same time.
func TestManyOpeners(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.sqlite")
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			s, err := sqlstore.Open(sqlstore.Config{Path: path})
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			if err := s.PutStatement(t.Context(), row(fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if rows, err := open(t, path).Statements(t.Context(), ""); err != nil || len(rows) != 8 {
		t.Errorf("%d rows, %v", len(rows), err)
	}
}

// TestKilled kills a writer: what it acknowledged is there, with its subjects.
func TestKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.sqlite")
	var acknowledged []string
	for range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "SQLSTORE_WRITE="+path)
		cmd.Stderr = t.Output()
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		n := 0
		for sc := bufio.NewScanner(out); sc.Scan(); n++ {
			acknowledged = append(acknowledged, sc.Text())
			if n == 20 {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()
	}
	s := open(t, path)
	for _, name := range acknowledged {
		about, err := s.Statements(t.Context(), "gitCommit:"+name)
		if err != nil || len(about) != 1 || about[0].Statement != row(name).Statement {
			t.Errorf("%s was acknowledged: %v, %v", name, about, err)
		}
		if b, _, ok, err := s.Saved(t.Context(), "build", hallmark.DigestOf([]byte(name))); err != nil || !ok || string(b) != name {
			t.Errorf("%s was saved: %q, %v, %v", name, b, ok, err)
		}
	}
	if len(acknowledged) < 60 {
		t.Errorf("only %d rows were acknowledged", len(acknowledged))
	}
	all, err := s.Statements(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all { // a row without its subjects would be half a transaction
		if n, err := sqlstore.Subjects(s, r.Statement); err != nil || n != 2 {
			t.Errorf("statement %s has %d subjects, %v", r.Statement.Short(), n, err)
		}
	}
}
