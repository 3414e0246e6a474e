// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"
	"path/filepath"
	"testing"
)

// TestRegistriesElsewhere: another user of the machine may write to the directory
// of temporary files, and clients read settings where they are started and in
// every directory above.
func TestRegistriesElsewhere(t *testing.T) {
	shared, bin := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", shared)
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	if err := os.WriteFile(filepath.Join(shared, ".npmrc"), []byte("https://evil.example/"), 0o644); err != nil {
		t.Fatal(err)
	}
	const fake = "#!/bin/sh\nd=$PWD\nwhile :; do test -e \"$d/.npmrc\" && cat \"$d/.npmrc\" && exit; test \"$d\" = / && break; d=$(dirname \"$d\"); done\necho https://good.example/\n"
	for _, name := range []string{"go", "npm"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(fake), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	got, err := registries(t.Context(), nil)
	if err != nil || got["go"] != "https://good.example" || got["npm"] != "https://good.example" {
		t.Errorf("%v %v", got, err)
	}
}
