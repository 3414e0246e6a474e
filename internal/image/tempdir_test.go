// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"testing"

	"github.com/hallmark-sc/hallmark/internal/durable"
)

// tempDir is a directory of a test, in which trees are that nobody may write.
func tempDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		if err := durable.RemoveTree(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}
