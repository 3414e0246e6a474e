// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"testing"

	"github.com/hallmark-sc/hallmark/internal/trace"
)

func TestPtrace(t *testing.T) { suite(t, contract{engine: trace.Ptrace}) }
