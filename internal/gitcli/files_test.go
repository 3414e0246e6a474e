// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package gitcli

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
)

// TestFiles: every path of the tree is told once, also where two hold the same
// object, and no link; an object that is not there is an error.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("a", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	id := commit(t, dir, map[string]string{"a": "same\n", "d/e/b": "same\n", "d/c": "other\n"})
	r := open(t, dir)
	_, body, err := r.Object(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	tree := strings.TrimPrefix(strings.SplitN(string(body), "\n", 2)[0], "tree ")
	got := map[string]string{}
	if err := r.Files(t.Context(), tree, func(p string, data []byte) error {
		if _, ok := got[p]; ok {
			t.Errorf("%s is told twice", p)
		}
		got[p] = string(data)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"a": "same\n", "d/e/b": "same\n", "d/c": "other\n"}, got); diff != "" {
		t.Error(diff)
	}
	stop := errors.New("stop")
	if err := r.Files(t.Context(), tree, func(string, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("told to stop: %v", err)
	}
	blob := HashObject("blob", []byte("other\n"), len(tree))
	if err := os.Remove(filepath.Join(dir, ".git", "objects", blob[:2], blob[2:])); err != nil {
		t.Fatal(err)
	}
	if err := r.Files(t.Context(), tree, func(string, []byte) error { return nil }); hallmark.CodeOf(err) != hallmark.CodeSourceHistoryIncomplete {
		t.Errorf("a file is missing: %v", err)
	}
	if err := r.Files(t.Context(), id, func(string, []byte) error { return nil }); hallmark.CodeOf(err) != hallmark.CodeSourceObjectInvalid {
		t.Errorf("a commit for a tree: %v", err)
	}
}
