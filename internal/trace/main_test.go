// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/trace"
	"github.com/hallmark-sc/hallmark/internal/trace/tracetest"
)

// otherThread ends the name of a test binary whose sandboxes start their programs
// from another thread than the main one, as may happen to any.
const otherThread = "-thread"

// TestMain lets the test's binary be what the product is under these names.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case sandbox.Alias:
		if exe, err := os.Executable(); err == nil && strings.HasSuffix(exe, otherThread) {
			runtime.LockOSThread()
			go func() { os.Exit(sandbox.Main()) }()
			select {}
		}
		os.Exit(sandbox.Main())
	case trace.Alias:
		os.Exit(trace.Main())
	}
	os.Exit(m.Run())
}

// TestKernel holds the engine for root to the same contract.
func TestKernel(t *testing.T) {
	if !trace.KernelWorks() {
		t.Skip("fanotify and BPF can't be used here: they need root, and the machine's own namespaces")
	}
	tracetest.Engine(t, trace.Kernel)
}
