// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hallmark-sc/hallmark"
)

// TestLeftClosed: directories and files without permissions are read all the same
// (as an ordinary user; root may read anything). Links are not followed.
func TestLeftClosed(t *testing.T) {
	upper := filepath.Join(t.TempDir(), "upper")
	dir := filepath.Join(upper, "a", "b")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o000); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, []byte("y"), 0o000); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(other, filepath.Join(upper, "link")); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir, filepath.Dir(dir), upper} {
		if err := os.Chmod(d, 0o000); err != nil {
			t.Fatal(err)
		}
	}
	got, err := leftIn(upper)
	if err != nil || len(got) != 1 || got["/workspace/a/b/f"] != hallmark.DigestOf([]byte("x")) {
		t.Errorf("%v, %v", got, err)
	}
	if st, err := os.Stat(other); err != nil || st.Mode().Perm() != 0 {
		t.Errorf("what a link leads to has mode %v (%v)", st.Mode(), err)
	}
}
