// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sast

import "testing"

// TestOwnGo: a module that only pins tools has nothing to analyse; one with code
// must be loaded, wherever its modules lie.
func TestOwnGo(t *testing.T) {
	tr := tree{modules: []string{".", "tools", "a", "a/b"}, files: map[string][]string{"Go": {"main.go", "a/b/x.go"}}}
	for module, want := range map[string]bool{".": true, "tools": false, "a": false, "a/b": true} {
		if got := tr.ownGo(module); got != want {
			t.Errorf("%s: %t", module, got)
		}
	}
	tr.files["Go"] = []string{"a/b/x.go"}
	if tr.ownGo(".") {
		t.Error("the root owns a file of a module below it")
	}
}
