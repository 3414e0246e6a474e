// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/trace"
	"github.com/hallmark-sc/hallmark/internal/trace/tracetest"
)

// TestMain lets the test's binary be what the product is under these names.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case sandbox.Alias:
		os.Exit(sandbox.Main())
	case trace.Alias:
		os.Exit(trace.Main())
	}
	os.Exit(m.Run())
}

// TestKernel holds the engine for root to the same contract.
func TestKernel(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("fanotify and BPF need root")
	}
	tracetest.Engine(t, trace.Kernel)
}
