// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package gitcli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Objects go, loose and packed, and no other does; half a removal is finished by
// the next one.
func TestExpunge(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r.git")
	if err := Create(t.Context(), dir, "main"); err != nil {
		t.Fatal(err)
	}
	blob := func(s string) string {
		return strings.TrimSpace(git(t, dir, []byte(s), "hash-object", "-w", "--stdin"))
	}
	packed, loose, kept := blob("packed"), blob("loose"), blob("kept")
	tree := strings.TrimSpace(git(t, dir, []byte("100644 blob "+kept+"\tf\n"), "mktree"))
	commit := strings.TrimSpace(git(t, dir, nil, "-c", "user.name=x", "-c", "user.email=x@y", "commit-tree", "-m", "x", tree))
	git(t, dir, nil, "update-ref", "refs/heads/main", commit)
	git(t, dir, []byte(packed+"\n"+kept+"\n"), "pack-objects", "-q", filepath.Join(dir, "objects", "pack", "pack"))
	git(t, dir, nil, "prune-packed")
	unreachable := blob("nobody shows it")

	if shown, err := Shown(t.Context(), dir, []string{packed, kept, unreachable}); err != nil || len(shown) != 1 || shown[0] != kept {
		t.Fatalf("shown: %v %v", shown, err)
	}
	old, err := filepath.Glob(filepath.Join(dir, "objects", "pack", "pack-*"))
	if err != nil || len(old) == 0 {
		t.Fatal("no pack", err)
	}
	saved := map[string][]byte{}
	for _, p := range old {
		if saved[p], err = os.ReadFile(p); err != nil {
			t.Fatal(err)
		}
	}
	gone := []string{packed, loose}
	check := func() {
		t.Helper()
		if err := Expunge(t.Context(), dir, gone); err != nil {
			t.Fatal(err)
		}
		has, err := Has(t.Context(), dir, []string{packed, loose, kept, tree, commit, unreachable})
		if err != nil || len(has) != 4 {
			t.Fatalf("left: %v %v", has, err)
		}
		git(t, dir, nil, "fsck", "--strict")
	}
	check()
	for p, b := range saved { // as if it had been killed before it removed the old pack
		if err := os.WriteFile(p, b, 0o444); err != nil {
			t.Fatal(err)
		}
	}
	check()
	if err := Expunge(t.Context(), dir, []string{"main"}); err == nil {
		t.Error("a name that is no object id was taken")
	}
}
