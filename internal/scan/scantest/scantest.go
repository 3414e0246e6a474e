// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package scantest holds what every way to run a scanner's worker must do, as a
// test.
package scantest

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark/internal/scan"
)

// Worker is the contract of scan.Worker. job is one that reads /source and ends
// well when source is mounted there.
func Worker(t *testing.T, w scan.Worker, job, source string) {
	mounts := []scan.Mount{{Source: source, Target: "/source"}}
	t.Run("runs", func(t *testing.T) {
		out, reason, err := scan.Call(t.Context(), w, scan.Job{Args: []string{job}, Mounts: mounts, Wall: time.Minute})
		if err != nil || reason != nil || out.Coverage.Scanned == 0 {
			t.Errorf("%+v, %+v, %v", out, reason, err)
		}
	})
	t.Run("sees nothing that was not mounted", func(t *testing.T) {
		out, reason, err := scan.Call(t.Context(), w, scan.Job{Args: []string{job}, Wall: time.Minute})
		if err == nil && reason == nil && out.Coverage.Scanned > 0 {
			t.Errorf("without a source it scanned %d things", out.Coverage.Scanned)
		}
	})
	t.Run("fails", func(t *testing.T) {
		rep, err := w.Run(t.Context(), scan.Job{Args: []string{"no-such-job"}, Wall: time.Minute})
		if err != nil || rep.ExitCode == 0 || !strings.Contains(string(rep.Stderr), "no-such-job") {
			t.Errorf("a job that is not there: %+v, %v", rep, err)
		}
	})
	t.Run("limit", func(t *testing.T) {
		rep, err := w.Run(t.Context(), scan.Job{Args: []string{job}, Mounts: mounts, Wall: time.Millisecond})
		if err == nil && rep.LimitHit == "" {
			t.Errorf("a worker that takes too long: %+v", rep)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		rep, err := w.Run(ctx, scan.Job{Args: []string{job}, Mounts: mounts, Wall: time.Minute})
		if err == nil && rep.ExitCode == 0 && rep.LimitHit == "" {
			t.Errorf("a worker of a run that was given up ended well: %+v", rep)
		}
	})
}
