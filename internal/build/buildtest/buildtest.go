// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package buildtest holds what every engine that runs build steps must do, as a
// test.
package buildtest

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark/internal/build"
)

// Engine is the contract of build.Engine. open makes an engine over a new
// workspace; path is the PATH of its environments.
func Engine(t *testing.T, path string, open func(t *testing.T) build.Engine) {
	t.Setenv("HALLMARK_PASSPHRASE", "a-secret-of-the-host")
	run := func(t *testing.T, e build.Engine, script string) (build.CommandReport, string) {
		t.Helper()
		var out bytes.Buffer
		rep, err := e.Run(t.Context(), build.Command{Script: script, Env: []string{"PATH=" + path, "GIVEN=yes"}, Timeout: time.Minute}, &out)
		if err != nil {
			t.Fatalf("%s: %v", script, err)
		}
		if rep.StartedOn.IsZero() || rep.FinishedOn.Before(rep.StartedOn) {
			t.Errorf("%s: from %s to %s", script, rep.StartedOn, rep.FinishedOn)
		}
		if len(rep.Guarantees) == 0 {
			t.Errorf("%s: nothing is said about the isolation", script)
		}
		return rep, out.String()
	}
	t.Run("exit", func(t *testing.T) {
		e := open(t)
		for script, want := range map[string]int{"true": 0, "exit 3": 3, "false; true": 1} { // a step ends at the first command that fails
			if rep, out := run(t, e, script); rep.ExitCode != want || rep.Signal != "" || rep.LimitHit != "" {
				t.Errorf("%s: %+v\n%s", script, rep, out)
			}
		}
		if rep, _ := run(t, e, "kill -9 $$"); rep.ExitCode == 0 && rep.Signal == "" {
			t.Errorf("a killed step ended well: %+v", rep)
		}
		if rep, _ := run(t, e, "no-such-program-anywhere"); rep.ExitCode == 0 {
			t.Errorf("a program that is not there ended well: %+v", rep)
		}
	})
	t.Run("output", func(t *testing.T) {
		if _, out := run(t, open(t), "echo to-out; echo to-err >&2"); !strings.Contains(out, "to-out") || !strings.Contains(out, "to-err") {
			t.Errorf("output %q", out)
		}
	})
	t.Run("environment", func(t *testing.T) {
		_, out := run(t, open(t), "env")
		if !strings.Contains(out, "GIVEN=yes") || strings.Contains(out, "a-secret-of-the-host") || strings.Contains(out, "HALLMARK") {
			t.Errorf("the environment of a step:\n%s", out)
		}
	})
	t.Run("workspace", func(t *testing.T) {
		e := open(t)
		run(t, e, "echo kept > kept; echo gone > /tmp/gone")
		rep, out := run(t, e, "cat kept; if test -e /tmp/gone; then echo still-here; fi")
		if rep.ExitCode != 0 || !strings.Contains(out, "kept") || strings.Contains(out, "still-here") {
			t.Errorf("after a first step: %+v\n%s", rep, out)
		}
		if _, out := run(t, open(t), "ls"); strings.Contains(out, "kept") {
			t.Errorf("another workspace holds\n%s", out)
		}
	})
	t.Run("nothing outlives a step", func(t *testing.T) {
		e := open(t)
		run(t, e, "(sleep 60; echo late > late) & echo started")
		if _, out := run(t, e, "for p in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $p || true; echo; done"); strings.Contains(out, "sleep 60") {
			t.Errorf("a process of the step before is still there:\n%s", out)
		}
	})
	t.Run("limit", func(t *testing.T) {
		var out bytes.Buffer
		rep, err := open(t).Run(t.Context(), build.Command{Script: "sleep 60", Env: []string{"PATH=" + path}, Timeout: 300 * time.Millisecond}, &out)
		if err != nil || rep.LimitHit == "" {
			t.Errorf("a step that takes too long: %+v, %v", rep, err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		var out bytes.Buffer
		rep, err := open(t).Run(ctx, build.Command{Script: "echo done", Env: []string{"PATH=" + path}, Timeout: time.Minute}, &out)
		if err == nil && rep.ExitCode == 0 && rep.Signal == "" && rep.LimitHit == "" {
			t.Errorf("a step of a run that was given up ended well: %+v", rep)
		}
	})
}
