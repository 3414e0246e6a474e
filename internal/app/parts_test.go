// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/gitcli"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
)

// TestWatchSource: whatever happens to the copy of the source is noticed, also
// when bytes and times were put back; reading it is not a change.
func TestWatchSource(t *testing.T) {
	for name, tt := range map[string]struct {
		act  func(dir, file string) error
		want bool
	}{
		"read":   {func(_, file string) error { _, err := os.ReadFile(file); return err }, false},
		"edited": {func(_, file string) error { return os.WriteFile(file, []byte("evil"), 0o644) }, true},
		"edited and restored": {func(_, file string) error {
			st, err := os.Stat(file)
			if err != nil {
				return err
			}
			return errors.Join(os.WriteFile(file, []byte("evil"), 0o644), os.WriteFile(file, []byte("good"), 0o644), os.Chtimes(file, st.ModTime(), st.ModTime()))
		}, true},
		"replaced by a like file": {func(dir, file string) error {
			other := filepath.Join(dir, "other")
			return errors.Join(os.WriteFile(other, []byte("good"), 0o644), os.Rename(other, file))
		}, true},
		"added": {func(dir, _ string) error { return os.WriteFile(filepath.Join(dir, "more"), nil, 0o644) }, true},
		"added and removed": {func(dir, _ string) error {
			more := filepath.Join(dir, "more")
			return errors.Join(os.WriteFile(more, nil, 0o644), os.Remove(more))
		}, true},
		"made executable": {func(_, file string) error { return os.Chmod(file, 0o755) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "file")
			if err := os.WriteFile(file, []byte("good"), 0o644); err != nil {
				t.Fatal(err)
			}
			// The clock of a file system may stand still for some milliseconds;
			// an export is older than that when its build begins.
			settle(t, dir)
			m, err := gitcli.Measure(dir)
			if err != nil {
				t.Fatal(err)
			}
			changed, err := watchSource(dir, m.Digest)
			if err != nil {
				t.Fatal(err)
			}
			if err := tt.act(dir, file); err != nil {
				t.Fatal(err)
			}
			got, err := changed()
			if err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("changed is %t", got)
			}
		})
	}
	t.Run("another tree from the start", func(t *testing.T) {
		dir := t.TempDir()
		changed, err := watchSource(dir, hallmark.DigestOf([]byte("another manifest")))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := changed(); err != nil || !got {
			t.Errorf("changed is %t, %v", got, err)
		}
	})
	t.Run("gone", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "copy")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		m, err := gitcli.Measure(dir)
		if err != nil {
			t.Fatal(err)
		}
		changed, err := watchSource(dir, m.Digest)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		if got, err := changed(); err == nil || !got {
			t.Errorf("changed is %t, %v", got, err)
		}
	})
}

// settle waits, by the file system's own clock, until a new change of dir has a
// later time than all there were.
func settle(t *testing.T, dir string) {
	t.Helper()
	before, err := stamps(dir)
	if err != nil {
		t.Fatal(err)
	}
	probe := filepath.Join(t.TempDir(), "probe")
	for {
		if err := os.WriteFile(probe, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		now, err := stamps(probe)
		if err != nil {
			t.Fatal(err)
		}
		later := true
		for _, s := range before {
			later = later && s.changed != now[probe].changed
		}
		if later {
			return
		}
		if err := os.Remove(probe); err != nil {
			t.Fatal(err)
		}
	}
}

// TestComposeBuilder: a builder without a part is refused, and composing one
// leaves the other as it was.
func TestComposeBuilder(t *testing.T) {
	whole := &builder{parts: buildParts(&room{}, &Home{})}
	for name, drop := range map[string]func(*BuildParts){
		"engine": func(p *BuildParts) { p.Engine = nil }, "watch": func(p *BuildParts) { p.Watch = nil },
		"collect": func(p *BuildParts) { p.Collect = nil }, "build policy": func(p *BuildParts) { p.Authorize = nil },
		"permission": func(p *BuildParts) { p.Permit = nil },
	} {
		if _, err := ComposeBuilder(whole, drop); err == nil {
			t.Errorf("a builder without %s", name)
		}
	}
	if whole.parts.Engine == nil || whole.parts.Watch == nil || whole.parts.Collect == nil || whole.parts.Authorize == nil {
		t.Error("composing a builder changed the one it was made from")
	}
	var other pipeline.Builder
	if _, err := ComposeBuilder(other, func(*BuildParts) {}); err == nil {
		t.Error("a builder that no home made was composed")
	}
}
