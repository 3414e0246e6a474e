// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
)

func TestMain(m *testing.M) {
	// The sandbox's first process and the workers are this binary under other names.
	if code, ok := app.Alias(filepath.Base(os.Args[0]), os.Args[1:], os.Stdin, os.Stdout, os.Stderr); ok {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// fake is a case whose two runs have the given effects.
func fake(off, on effect, err error) Case {
	return Case{Attack: "AT-00", Letter: "a", Stops: hallmark.CodeCheckFailed,
		attack: func(_ context.Context, _ *ground, c Control) (effect, error) {
			if c == Off {
				return off, err
			}
			return on, err
		}}
}

// drillFakes runs cases without a home.
func drillFakes(t *testing.T, cases ...Case) (ok bool, lines []string) {
	t.Helper()
	ok, err := drillAll(t.Context(), cases, func(r Result) {
		lines = append(lines, fmt.Sprint(r.Control, " ", r.Outcome, " ", r.Reason, " ", r.OK))
	}, func(context.Context) (*ground, error) {
		dir, lock, err := makeDir()
		return &ground{dir: dir, lock: lock}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return ok, lines
}

// TestTwoRunRule: only a case that succeeds without its control and is stopped by
// it, for its reason, is ok.
func TestTwoRunRule(t *testing.T) {
	done, stopped := effect{done: true}, effect{reason: hallmark.CodeCheckFailed}
	for name, tt := range map[string]struct {
		c    Case
		ok   bool
		want []string
	}{
		"good":                {fake(done, stopped, nil), true, []string{"off succeeded  true", "on stopped CHECK_FAILED true"}},
		"no teeth":            {fake(stopped, stopped, nil), false, []string{"off stopped CHECK_FAILED false", "on stopped CHECK_FAILED true"}},
		"nothing done at all": {fake(effect{}, effect{}, nil), false, []string{"off stopped  false", "on stopped  false"}},
		"control fails":       {fake(done, done, nil), false, []string{"off succeeded  true", "on succeeded  false"}},
		"stopped by another":  {fake(done, effect{reason: hallmark.CodeCheckError}, nil), false, []string{"off succeeded  true", "on stopped CHECK_ERROR false"}},
		"can't run":           {fake(done, stopped, errors.New("no program")), false, []string{"off skipped  false", "on skipped  false"}},
	} {
		t.Run(name, func(t *testing.T) {
			ok, lines := drillFakes(t, tt.c)
			if ok != tt.ok {
				t.Errorf("ok is %t", ok)
			}
			if diff := cmp.Diff(tt.want, lines); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("a case without a reason of its own", func(t *testing.T) {
		c := fake(done, effect{}, nil)
		c.Stops = ""
		if ok, lines := drillFakes(t, c); ok {
			t.Errorf("ok: %q", lines)
		}
	})
	t.Run("no case", func(t *testing.T) {
		if ok, _ := drillFakes(t); ok {
			t.Error("nothing ran, and that is ok")
		}
	})
	t.Run("one bad among good", func(t *testing.T) {
		other := fake(done, stopped, nil)
		other.Attack = "AT-01"
		if ok, lines := drillFakes(t, fake(done, stopped, nil), fake(done, done, nil), other); ok || len(lines) != 6 {
			t.Errorf("ok %t: %q", ok, lines)
		}
	})
}

// TestNothingToSee: a real case whose attacker does nothing is not ok, in either
// of its runs.
func TestNothingToSee(t *testing.T) {
	g, err := newGround(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	idle := Case{Stops: hallmark.CodeLogEntryAltered, attack: auditCase(treeCheck, func(history, app.Layout) (int64, error) { return 1, nil })}
	for _, c := range []Control{Off, On} {
		e, err := idle.attack(t.Context(), g, c)
		if r := judge(idle, c, e, err); r.OK {
			t.Errorf("control %s: %+v", c, r)
		}
	}
	// A tampering that the omitted check is not about is no success either.
	wrong := Case{Stops: hallmark.CodeLogEntryAltered, attack: auditCase(payloadCheck, editEntry)}
	e, err := wrong.attack(t.Context(), g, Off)
	if r := judge(wrong, Off, e, err); r.OK || r.Outcome != Stopped {
		t.Errorf("an edited entry passes an auditor who recomputes the tree: %+v", r)
	}
}

// TestFreshBuilds: a build without a control is never taken for one with it.
func TestFreshBuilds(t *testing.T) {
	g, err := newGround(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	r, err := g.project("plain", releaseFiles("one\n"))
	if err != nil {
		t.Fatal(err)
	}
	var reused []string
	for range 2 {
		reused = nil
		if _, err := g.run(t.Context(), r, func(pc *pipeline.Config) error {
			pc.Progress = func(e pipeline.Event) {
				if e.State == pipeline.Reused {
					reused = append(reused, e.Stage)
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if slices.Contains(reused, "build") || !slices.Contains(reused, "secrets") {
		t.Errorf("reused: %q", reused)
	}
}

func TestJSON(t *testing.T) {
	r := Result{Case: Case{Attack: "AT-14", Letter: "b"}, Control: Off, Outcome: Succeeded, OK: true, Detail: "not for scripts"}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"drill":"AT-14","case":"b","control":"off","outcome":"succeeded","reason":"","ok":true}`
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
}

// TestCatalogue: every case says all that a reader needs, and docs/drills.md
// says the same.
func TestCatalogue(t *testing.T) {
	doc, err := os.ReadFile("../../docs/drills.md")
	if err != nil {
		t.Fatal(err)
	}
	codes, err := os.ReadFile("../../codes.go")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	rows := 0
	for _, c := range Catalogue() {
		name := c.Attack + " " + c.Letter
		if seen[name] || c.Does == "" || c.Control == "" || c.Residual == "" || c.attack == nil {
			t.Errorf("%s: stands twice or leaves something out", name)
		}
		seen[name] = true
		if !strings.Contains(string(codes), `"`+string(c.Stops)+`"`) || c.Stops == "" {
			t.Errorf("%s: %q is no reason code", name, c.Stops)
		}
		rows++
		if row := fmt.Sprintf("| %s | %s | %s | `%s` | %s |\n", name, c.Does, c.Control, c.Stops, c.Residual); !strings.Contains(string(doc), row) {
			t.Errorf("docs/drills.md lacks the row\n%s", row)
		}
	}
	if n := strings.Count(string(doc), "\n| AT-"); n != rows {
		t.Errorf("docs/drills.md has %d rows, the catalogue %d cases", n, rows)
	}
}

func TestSelect(t *testing.T) {
	if _, err := Select([]string{"AT-12", "AT-99"}); hallmark.KindOf(err) != hallmark.KindUsage || !strings.Contains(hallmark.HintOf(err), "AT-14") {
		t.Errorf("an unknown attack: %v (%s)", err, hallmark.HintOf(err))
	}
	some, err := Select([]string{"AT-19"})
	if err != nil || len(some) == 0 || slices.ContainsFunc(some, func(c Case) bool { return c.Attack != "AT-19" }) {
		t.Errorf("%d cases, %v", len(some), err)
	}
	if all, err := Select(nil); err != nil || len(all) != len(Catalogue()) {
		t.Errorf("%d cases of all, %v", len(all), err)
	}
}

// TestNothingIsLeft: neither an interrupt nor a killed drill leaves a home.
func TestNothingIsLeft(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	killed := filepath.Join(tmp, dirPrefix+"killed")
	if err := os.MkdirAll(filepath.Join(killed, "read-only"), 0o500); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(killed, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(killed, "lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	running, lock, err := makeDir() // the killed one goes, another's stays
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ok, err := Run(ctx, Config{Attacks: []string{"AT-19"}, Report: func(Result) { cancel() }})
	if ok || !errors.Is(err, context.Canceled) {
		t.Errorf("an interrupted drill: ok %t, %v", ok, err)
	}
	left, err := os.ReadDir(tmp)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 1 || left[0].Name() != filepath.Base(running) {
		t.Errorf("left in the temporary directory: %v", left)
	}
}

func TestKeyTwice(t *testing.T) {
	for text, want := range map[string]bool{
		`{}`: false, `[]`: false, `1`: false, `{"a":1,"b":{"a":[{"a":1},{"a":2}]},"c":"a"}`: false,
		`{"a":1,"a":2}`: true, `{"b":[{"c":1,"d":2,"c":3}]}`: true, `{"a":{"x":1},"b":2,"a":{}}`: true, `[[{"a":"a"}],{"b":1,"b":1}]`: true,
	} {
		if got := keyTwice([]byte(text)); got != want {
			t.Errorf("%s: %t", text, got)
		}
	}
}
