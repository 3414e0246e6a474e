// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package pipelinetest_test

import (
	"testing"

	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/pipeline/pipelinetest"
)

func TestMemory(t *testing.T) {
	m := pipelinetest.NewMemory()
	pipelinetest.Saves(t, func(*testing.T) pipeline.Saves { return m })
	pipelinetest.Blobs(t, func(*testing.T) pipeline.Blobs { return m })
}
