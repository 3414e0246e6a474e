// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
)

// TestSpool: what was added is there after a kill at any point, once and in its
// order; what was not made durable was not acknowledged.
func TestSpool(t *testing.T) {
	dir := t.TempDir()
	var sealed []string
	seal := func(_ context.Context, first, last uint64, lines []byte) error {
		if n := bytes.Count(lines, []byte{'\n'}); n != int(last-first)+1 {
			t.Errorf("%d lines from %d to %d", n, first, last)
		}
		sealed = append(sealed, string(lines))
		return nil
	}
	rec := fetchRecord{Principal: "a", Effect: hallmark.Allow}
	open := func() *spool {
		t.Helper()
		s, err := openSpool(dir, seal)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	for range 3 {
		if err := s.add(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
	}
	s.file.Close() // killed
	path := filepath.Join(dir, spoolFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(b, `{"number":4,"prin`...), 0o600); err != nil { // lost
		t.Fatal(err)
	}
	s = open()
	if s.next != 4 || s.lines != 3 {
		t.Fatalf("next %d, %d lines", s.next, s.lines)
	}
	if err := s.close(t.Context()); err != nil || len(sealed) != 1 || strings.Count(sealed[0], "\n") != 3 {
		t.Fatalf("%v, %q", err, sealed)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil { // killed after "next", before the file was emptied
		t.Fatal(err)
	}
	s = open()
	if err := s.add(t.Context(), rec); err != nil || s.next != 5 {
		t.Fatalf("%v, next %d", err, s.next)
	}
	if err := s.close(t.Context()); err != nil || len(sealed) != 2 || !strings.Contains(sealed[1], `"number":4`) {
		t.Fatalf("%v, %q", err, sealed)
	}
	// A record that somebody took out is noticed.
	s = open()
	for range 2 {
		if err := s.add(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
	}
	s.file.Close()
	if b, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	_, second, _ := bytes.Cut(b, []byte{'\n'})
	if err := os.WriteFile(path, second, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openSpool(dir, seal); hallmark.CodeOf(err) != hallmark.CodeEvidenceMissing {
		t.Errorf("a gap: %v", err)
	}
	// What can't be signed stays.
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s = open()
	s.seal = func(context.Context, uint64, uint64, []byte) error { return errors.New("no log") }
	if err := s.close(t.Context()); err == nil {
		t.Error("what could not be signed counts as signed")
	}
	if s = open(); s.lines != 2 {
		t.Errorf("%d lines are left", s.lines)
	}
	s.file.Close()
}

// TestSpoolFull: a record that could be written in part alone leaves nothing that
// the next one would be joined to, and nothing that keeps a server from starting.
func TestSpoolFull(t *testing.T) {
	dir := t.TempDir()
	s, err := openSpool(dir, func(context.Context, uint64, uint64, []byte) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	rec := fetchRecord{Principal: "a", Effect: hallmark.Allow}
	if err := s.add(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	st, err := s.file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	signal.Ignore(unix.SIGXFSZ)
	defer signal.Reset(unix.SIGXFSZ)
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(st.Size()) + 20, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	err = s.add(t.Context(), rec)
	if rerr := unix.Setrlimit(unix.RLIMIT_FSIZE, &was); rerr != nil {
		t.Fatal(rerr)
	}
	if err == nil {
		t.Fatal("a record that does not fit counts as written")
	}
	if err := s.add(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	s.file.Close()
	if s, err = openSpool(dir, s.seal); err != nil || s.lines != 2 || s.next != 3 {
		t.Fatalf("%v: %+v", err, s)
	}
	s.file.Close()
}

// TestPolicyStamp: another file of the same size and time is another policy.
func TestPolicyStamp(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	at := time.Now()
	for _, p := range []string{path, other} {
		if err := errors.Join(os.WriteFile(p, []byte(p), 0o600), os.Chtimes(p, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	before, err := stampOf(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(other, path); err != nil {
		t.Fatal(err)
	}
	if after, err := stampOf(path); err != nil || after == before {
		t.Errorf("%v: %+v", err, after)
	}
}
