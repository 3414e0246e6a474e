// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package gitcli

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // git's checksum
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/gittest"
)

func open(t *testing.T, dir string) *Repository {
	t.Helper()
	r, err := Open(t.Context(), Config{Repo: dir, WorkDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func commit(t *testing.T, dir string, files map[string]string) string {
	t.Helper()
	for name, text := range files {
		write(t, filepath.Join(dir, name), text)
	}
	id, err := gittest.CommitAll(dir, gittest.Options{Message: "a change", Name: "Dev", Mail: "dev@example.org", Time: time.Unix(1_700_000_000, 0)})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func git(t *testing.T, dir string, stdin []byte, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-C", dir}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null"}
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// raw stores a tree with the given entries ("MODE NAME", object name).
func rawTree(t *testing.T, dir string, entries ...[2]string) string {
	t.Helper()
	var b bytes.Buffer
	for _, e := range entries {
		id, err := hex.DecodeString(e[1])
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s\x00%s", e[0], id)
	}
	return git(t, dir, b.Bytes(), "hash-object", "--literally", "-t", "tree", "-w", "--stdin")
}

// TestSubmoduleFilter: git status looks into submodules with their own
// configuration; nothing that it names may run.
func TestSubmoduleFilter(t *testing.T) {
	dir, marker := t.TempDir(), filepath.Join(t.TempDir(), "marker")
	sub := filepath.Join(dir, "sub")
	commit(t, sub, map[string]string{"f": "one\n", ".gitattributes": "* filter=evil\n"})
	id := commit(t, dir, map[string]string{"a": "x\n"})
	write(t, filepath.Join(sub, ".git", "config"), "[core]\n\tfsmonitor = touch "+marker+"\n[filter \"evil\"]\n\tclean = touch "+marker+"; cat\n\trequired = true\n")
	if err := os.Chtimes(filepath.Join(sub, "f"), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if mode := git(t, dir, nil, "ls-tree", id, "sub"); !strings.HasPrefix(mode, "160000 ") {
		t.Fatalf("sub is %q", mode)
	}
	if _, err := open(t, dir).Dirty(t.Context(), id); err != nil {
		t.Log(err)
	}
	if _, err := os.Stat(marker); !errors.Is(err, os.ErrNotExist) {
		t.Error("a program that the submodule's configuration names ran")
	}
}

// TestCommitGraphLies: a commit-graph file is a cache that nobody signed; one
// that denies a commit's parents must not hide history from the scanners.
func TestCommitGraphLies(t *testing.T) {
	dir := t.TempDir()
	commit(t, dir, map[string]string{"secret": "hidden\n"})
	if err := os.Remove(filepath.Join(dir, "secret")); err != nil {
		t.Fatal(err)
	}
	head := commit(t, dir, map[string]string{"a": "x\n"})
	git(t, dir, nil, "commit-graph", "write", "--reachable")
	path := filepath.Join(dir, ".git", "objects", "info", "commit-graph")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	oids, data := chunk(b, "OIDL"), chunk(b, "CDAT")
	want, err := hex.DecodeString(head)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if bytes.Equal(b[oids+20*i:oids+20*i+20], want) {
			binary.BigEndian.PutUint32(b[data+36*i+20:], 0x70000000) // no parent
		}
	}
	sum := sha1.Sum(b[:len(b)-20]) //nolint:gosec // as above
	copy(b[len(b)-20:], sum[:])
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	if n := git(t, dir, nil, "rev-list", "--count", "HEAD"); n != "1" {
		t.Fatalf("the lie does not work: git counts %s", n)
	}
	r, seen := open(t, dir), false
	err = r.Each(t.Context(), head, func(o Object) error {
		seen = seen || string(o.Data) == "hidden\n"
		return nil
	})
	if n, cerr := r.Commits(t.Context(), head); err == nil && (!seen || n != 2 || cerr != nil) {
		t.Errorf("history was hidden: seen %v, %d commits, %v", seen, n, cerr)
	}
}

// chunk returns the offset of a chunk of a commit-graph file.
func chunk(b []byte, name string) int {
	for i := range int(b[6]) + 1 {
		row := b[8+12*i:]
		if string(row[:4]) == name {
			return int(binary.BigEndian.Uint64(row[4:12]))
		}
	}
	return -1
}

// TestLinkThroughLink: each link looks harmless by its text, both together leave
// the tree.
func TestLinkThroughLink(t *testing.T) {
	dir := t.TempDir()
	commit(t, dir, map[string]string{"a": "x\n"})
	blob := func(text string) string {
		return git(t, dir, []byte(text), "hash-object", "-w", "--stdin")
	}
	sub := rawTree(t, dir, [2]string{"120000 l", blob("..")})
	tree := rawTree(t, dir, [2]string{"40000 d", sub}, [2]string{"120000 m", blob("d/l/../outside")})
	parent := t.TempDir()
	write(t, filepath.Join(parent, "outside"), "not in the tree\n")
	dest := filepath.Join(parent, "tree")
	_, err := open(t, dir).Export(t.Context(), tree, dest, time.Unix(1, 0))
	if b, rerr := os.ReadFile(filepath.Join(dest, "m")); rerr == nil {
		t.Errorf("read through the link: %q (export: %v)", b, err)
	}
	if hallmark.CodeOf(err) != hallmark.CodeSourceObjectInvalid {
		t.Errorf("export: %v", err)
	}
}

// TestEachReadsTags: messages of tags belong to the history of their commit.
func TestEachReadsTags(t *testing.T) {
	dir := t.TempDir()
	id := commit(t, dir, map[string]string{"a": "one\n"})
	who := []string{"-c", "user.name=Dev", "-c", "user.email=dev@example.org"}
	git(t, dir, nil, append(who, "tag", "-a", "-m", "inner note", "v1")...)
	git(t, dir, nil, append(who, "tag", "-a", "-m", "outer note", "v2", "v1")...)
	git(t, dir, nil, "tag", "light")
	git(t, dir, nil, "tag", "-d", "v1")
	commit(t, dir, map[string]string{"b": "later\n"})
	git(t, dir, nil, append(who, "tag", "-a", "-m", "of a later commit", "v3")...)
	got := map[string]int{}
	err := open(t, dir).Each(t.Context(), id, func(o Object) error {
		lines := strings.Split(strings.TrimSpace(string(o.Data)), "\n")
		got[o.Type+" "+lines[len(lines)-1]]++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int{"commit a change": 1, "blob one": 1, "tag inner note": 1, "tag outer note": 1}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
}
