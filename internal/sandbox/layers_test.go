// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestLayerKeepsWhatIsUnderIt: a program reads a shared directory, writes beside
// what is in it, and changes nothing of it.
func TestLayerKeepsWhatIsUnderIt(t *testing.T) {
	dir := t.TempDir()
	lower, scratch := filepath.Join(dir, "lower"), filepath.Join(dir, "scratch")
	id := HostID()
	if err := errors.Join(os.MkdirAll(filepath.Join(lower, "ab"), 0o755), os.WriteFile(filepath.Join(lower, "ab", "entry"), []byte("kept"), 0o444),
		NewScratch(scratch, id), os.Mkdir(filepath.Join(Upper(scratch), "ab"), 0o755), Give(Upper(scratch), id)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(filepath.Join(scratch, "work", "work"), 0o700) })
	rep, err := open(t).RunAs(t.Context(), id, Spec{
		Argv: []string{"sh", "-c", `cat /cache/ab/entry; echo new >/cache/ab/new && cat /cache/ab/new; { rm -f /cache/ab/entry; echo poisoned >/cache/ab/entry; } 2>/dev/null; ls /.hallmark/layer-scratch0 2>/dev/null; echo x >/.hallmark/layer0/ab/entry; true`},
		Env:  []string{"PATH=" + Path()}, Dir: "/", Layers: []Workspace{{Lower: lower, Scratch: scratch, Target: "/cache"}},
	})
	if err != nil || rep.ExitCode != 0 {
		t.Fatalf("%v %+v", err, rep)
	}
	if b, _ := os.ReadFile(filepath.Join(lower, "ab", "entry")); string(b) != "kept" {
		t.Errorf("the shared directory holds %q", b)
	}
	if b, err := os.ReadFile(filepath.Join(Upper(scratch), "ab", "new")); string(b) != "new\n" {
		t.Errorf("written %q, %v", b, err)
	}
}
