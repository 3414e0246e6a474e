// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package translog_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/translog"
)

func (l *lab) grow(names ...string) {
	l.t.Helper()
	log := l.open()
	for _, n := range names {
		if _, err := log.Append(l.t.Context(), request(l.t, l.entry, n)); err != nil {
			l.t.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		l.t.Fatal(err)
	}
}

// next reads on and returns the indices that came.
func next(t *testing.T, f *translog.Follower) ([]uint64, error) {
	t.Helper()
	var got []uint64
	_, err := f.Next(t.Context(), func(i uint64, body []byte) error {
		if len(body) == 0 {
			return errors.New("an empty entry")
		}
		got = append(got, i)
		return nil
	})
	return got, err
}

func TestFollow(t *testing.T) {
	l := newLab(t)
	f := l.reader().Follow(0)
	if got, err := next(t, f); err != nil || len(got) != 0 {
		t.Fatalf("before the first entry: %v, %v", got, err)
	}
	l.grow("a", "b", "c")
	if got, err := next(t, f); err != nil || fmt.Sprint(got) != "[0 1 2]" || f.Size() != 3 {
		t.Fatalf("first: %v, %v", got, err)
	}
	if got, err := next(t, f); err != nil || len(got) != 0 {
		t.Fatalf("nothing new: %v, %v", got, err)
	}
	old, err := os.ReadFile(filepath.Join(l.dir, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	l.grow("d")
	boom := errors.New("no")
	if _, err := f.Next(t.Context(), func(uint64, []byte) error { return boom }); !errors.Is(err, boom) {
		t.Fatalf("an error of the reader's: %v", err)
	}
	if got, err := next(t, f); err != nil || fmt.Sprint(got) != "[3]" {
		t.Fatalf("again after an error: %v, %v", got, err)
	}
	// An older checkpoint is not one to go back to.
	write(t, filepath.Join(l.dir, "checkpoint"), old)
	if _, err := next(t, f); hallmark.CodeOf(err) != hallmark.CodeLogTruncated {
		t.Fatalf("an older checkpoint: %v", err)
	}
	if _, err := next(t, l.reader().Follow(4)); hallmark.CodeOf(err) != hallmark.CodeLogTruncated {
		t.Fatalf("an older checkpoint, at first sight: %v", err)
	}
	if err := os.Remove(filepath.Join(l.dir, "checkpoint")); err != nil {
		t.Fatal(err)
	}
	if _, err := next(t, f); hallmark.CodeOf(err) != hallmark.CodeLogTruncated {
		t.Fatalf("no checkpoint: %v", err)
	}
	if _, err := next(t, l.reader().Follow(4)); hallmark.CodeOf(err) != hallmark.CodeLogTruncated {
		t.Fatalf("no checkpoint, at first sight: %v", err)
	}
}

// TestFollowAltered: what is not under the checkpoint is given to nobody as read.
func TestFollowAltered(t *testing.T) {
	for name, alter := range map[string]func(t *testing.T, file string){
		"an entry": func(t *testing.T, file string) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			at := bytes.LastIndex(b, []byte(`"digest":"`)) + len(`"digest":"`)
			b[at] ^= 1
			write(t, file, b)
		},
		"the end": func(t *testing.T, file string) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			write(t, file, b[:len(b)-7])
		},
		"all of them": func(t *testing.T, file string) {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.grow("a", "b")
			f := l.reader().Follow(0)
			if _, err := next(t, f); err != nil {
				t.Fatal(err)
			}
			l.grow("c")
			alter(t, filepath.Join(l.dir, "tile", "entries", "000.p", "3"))
			if _, err := next(t, f); hallmark.CodeOf(err) != hallmark.CodeLogEntryAltered || f.Size() != 2 {
				t.Errorf("size %d: %v", f.Size(), err)
			}
		})
	}
}

func write(t *testing.T, file string, b []byte) {
	t.Helper()
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
