// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package gitcli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/source"
)

func TestResolve(t *testing.T) {
	dir := t.TempDir()
	first := commit(t, dir, map[string]string{"a": "1\n"})
	second := commit(t, dir, map[string]string{"a": "2\n"})
	git(t, dir, nil, "tag", "v1", first)
	git(t, dir, nil, "-c", "user.name=D", "-c", "user.email=d@example.org", "tag", "-a", "-m", "note", "v2", second)
	git(t, dir, nil, "branch", "both", first)
	git(t, dir, nil, "tag", "both", second)
	git(t, dir, nil, "pack-refs", "--all")
	git(t, dir, nil, "branch", "loose", first)
	r := open(t, dir)
	for _, tc := range []struct{ rev, commit, ref string }{
		{"HEAD", second, "refs/heads/main"}, {"main", second, "refs/heads/main"}, {"refs/heads/main", second, "refs/heads/main"},
		{"refs/tags/both", second, "refs/tags/both"}, {"v1", first, "refs/tags/v1"}, {"v2", second, "refs/tags/v2"},
		{"loose", first, "refs/heads/loose"}, {first, first, ""},
	} {
		got, ref, err := r.Resolve(tc.rev)
		if err != nil || got != tc.commit || ref != tc.ref {
			t.Errorf("%s: %s %s %v", tc.rev, got, ref, err)
		}
	}
	for _, rev := range []string{"", "-x", "--upload-pack=x", "both", "nothing", "HEAD~9", "HEAD@{1}", "main..loose", ":/a", "main:a",
		"a b", "v1\n", strings.Repeat("cd", 20), "refs/../HEAD", "HEAD^{tree}"} {
		if _, _, err := r.Resolve(rev); hallmark.CodeOf(err) != hallmark.CodeSourceRevisionUnknown {
			t.Errorf("%q: %v", rev, err)
		}
	}
}

// TestHostileConfiguration gives a repository every setting known to name a
// program, and checks that none of them runs and that nothing is written.
func TestHostileConfiguration(t *testing.T) {
	dir, tools := t.TempDir(), t.TempDir()
	marker, script := filepath.Join(tools, "marker"), filepath.Join(tools, "evil")
	write(t, script, "#!/bin/sh\necho \"$0 $*\" >>'"+marker+"'\ncat\n")
	commit(t, dir, map[string]string{".gitattributes": "* filter=evil diff=evil merge=evil ident\n", "a": "one\n"})
	want := commit(t, dir, map[string]string{"a": "two\n"})
	var config strings.Builder
	for _, key := range []string{"core.fsmonitor", "core.sshCommand", "core.gitProxy", "core.pager", "core.editor", "core.askPass",
		"core.alternateRefsCommand", "uploadpack.packObjectsHook", "filter.evil.clean", "filter.evil.smudge", "filter.evil.process",
		"diff.evil.textconv", "diff.evil.command", "diff.external", "merge.evil.driver", "gpg.program", "gpg.ssh.program",
		"remote.origin.uploadpack", "alias.status", "alias.cat-file", "alias.rev-list", "gc.recentObjectsHook", "trace2.normalTarget"} {
		parts := strings.Split(key, ".")
		section := "[" + parts[0] + "]"
		if len(parts) == 3 {
			section = fmt.Sprintf("[%s %q]", parts[0], parts[1])
		}
		value := script
		if parts[0] == "alias" {
			value = "!" + script
		}
		fmt.Fprintf(&config, "%s\n\t%s = %s\n", section, parts[len(parts)-1], value)
	}
	fmt.Fprintf(&config, "[core]\n\thooksPath = %s\n[filter \"evil\"]\n\trequired = true\n[remote \"origin\"]\n\turl = ext::%s\n"+
		"\tpromisor = true\n[extensions]\n\tpartialClone = origin\n[protocol]\n\tallow = always\n[include]\n\tpath = %s\n", tools, script, script)
	write(t, filepath.Join(dir, ".git", "config"), config.String())
	for _, hook := range []string{"post-checkout", "pre-auto-gc", "post-index-change", "reference-transaction"} {
		for _, at := range []string{tools, filepath.Join(dir, ".git", "hooks")} {
			write(t, filepath.Join(at, hook), "#!/bin/sh\necho hook >>'"+marker+"'\n")
		}
	}
	before := snapshot(t, filepath.Join(dir, ".git"))
	t.Setenv("GIT_DIR", "/nonexistent")
	t.Setenv("GIT_CONFIG_PARAMETERS", "'core.fsmonitor="+script+"'")
	t.Setenv("GIT_EXTERNAL_DIFF", script)
	r := open(t, dir)
	id, _, err := r.Resolve("HEAD")
	if err != nil || id != want {
		t.Fatalf("HEAD is %s: %v", id, err)
	}
	if dirty, err := r.Dirty(t.Context(), id); err != nil || len(dirty) != 0 {
		t.Errorf("dirty: %v, %v", dirty, err)
	}
	dest := filepath.Join(t.TempDir(), "out")
	tree := git(t, t.TempDir(), nil, "--git-dir="+r.dir, "rev-parse", id+"^{tree}")
	if _, err := r.Export(t.Context(), tree, dest, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dest, "a")); err != nil || string(b) != "two\n" {
		t.Errorf("exported %q, %v", b, err)
	}
	if err := r.Each(t.Context(), id, func(Object) error { return nil }); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(marker); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a program of the repository ran: %s", b)
	}
	if diff := cmp.Diff(before, snapshot(t, filepath.Join(dir, ".git"))); diff != "" {
		t.Errorf("the repository changed:\n%s", diff)
	}
}

func snapshot(t *testing.T, dir string) map[string]hallmark.Digest {
	t.Helper()
	files := map[string]hallmark.Digest{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		files[path] = hallmark.DigestOf(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestIncompleteHistory(t *testing.T) {
	origin := t.TempDir()
	first := commit(t, origin, map[string]string{"a": "1\n", "gone": "x\n"})
	if err := os.Remove(filepath.Join(origin, "gone")); err != nil {
		t.Fatal(err)
	}
	second := commit(t, origin, map[string]string{"a": "2\n"})
	git(t, origin, nil, "config", "uploadpack.allowFilter", "true")
	clone := func(args ...string) string {
		dir := filepath.Join(t.TempDir(), "c")
		git(t, origin, nil, append(append([]string{"clone", "-q"}, args...), "file://"+origin, dir)...)
		return dir
	}
	grafted, missing, replaced := clone(), clone(), clone()
	write(t, filepath.Join(grafted, ".git", "info", "grafts"), second+"\n")
	for name, dir := range map[string]string{"shallow": clone("--depth=1"), "partial": clone("--filter=blob:none"), "graft": grafted} {
		if why := open(t, dir).Incomplete(); !strings.Contains(why, name) {
			t.Errorf("%s: incomplete is %q", name, why)
		}
	}
	// An object that is gone without a trace: reading everything must say so.
	packs, err := filepath.Glob(filepath.Join(missing, ".git", "objects", "pack", "*.pack"))
	if err != nil || len(packs) != 1 {
		t.Fatalf("packs: %v, %v", packs, err)
	}
	pack, err := os.ReadFile(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Dir(packs[0])); err != nil {
		t.Fatal(err)
	}
	git(t, missing, pack, "unpack-objects", "-q")
	blob := git(t, origin, nil, "rev-parse", first+":gone")
	if err := os.Remove(filepath.Join(missing, ".git", "objects", blob[:2], blob[2:])); err != nil {
		t.Fatal(err)
	}
	err = open(t, missing).Each(t.Context(), second, func(Object) error { return nil })
	if hallmark.CodeOf(err) != hallmark.CodeSourceHistoryIncomplete {
		t.Errorf("missing object: %v", err)
	}
	// Replace refs never apply.
	git(t, replaced, nil, "replace", second, first)
	if n, err := open(t, replaced).Commits(t.Context(), second); err != nil || n != 2 {
		t.Errorf("replaced: %d commits, %v", n, err)
	}
}

// TestSwappedObject puts the bytes of one object under the name of another.
func TestSwappedObject(t *testing.T) {
	dir := t.TempDir()
	id := commit(t, dir, map[string]string{"a": "honest\n", "b": "evil\n"})
	path := func(name string) string {
		blob := git(t, dir, nil, "rev-parse", id+":"+name)
		return filepath.Join(dir, ".git", "objects", blob[:2], blob[2:])
	}
	a, b := path("a"), path("b")
	evil, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	tree := git(t, dir, nil, "rev-parse", id+"^{tree}")
	if err := os.Chmod(a, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a, evil, 0o644); err != nil {
		t.Fatal(err)
	}
	r := open(t, dir)
	if _, err := r.Export(t.Context(), tree, filepath.Join(t.TempDir(), "out"), time.Unix(1, 0)); err == nil {
		t.Error("a swapped object was exported")
	}
	if err := r.Each(t.Context(), id, func(Object) error { return nil }); err == nil {
		t.Error("a swapped object was read")
	}
}

func TestDirty(t *testing.T) {
	dir := t.TempDir()
	id := commit(t, dir, map[string]string{"a": "1\n", ".gitignore": "*.log\n", "gone": "x\n"})
	r := open(t, dir)
	check := func(want ...string) {
		t.Helper()
		got, err := r.Dirty(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("dirty (-want +got):\n%s", diff)
		}
	}
	check()
	write(t, filepath.Join(dir, "x.log"), "ignored")
	check()
	write(t, filepath.Join(dir, "new"), "x")
	check("new")
	write(t, filepath.Join(dir, "a"), "2\n")
	if err := os.Remove(filepath.Join(dir, "gone")); err != nil {
		t.Fatal(err)
	}
	check("a", "gone", "new")
	git(t, dir, nil, "add", "-A") // the repository's index is not asked
	check("a", "gone", "new")
}

func TestExportRefuses(t *testing.T) {
	dir := t.TempDir()
	head := commit(t, dir, map[string]string{"a": "x\n"})
	blob := git(t, dir, []byte("x\n"), "hash-object", "-w", "--stdin")
	link := func(to string) string { return git(t, dir, []byte(to), "hash-object", "-w", "--stdin") }
	sub := rawTree(t, dir, [2]string{"100644 f", blob})
	r := open(t, dir)
	for name, entries := range map[string][][2]string{
		"dot git":      {{"40000 .git", sub}},
		"case":         {{"40000 .GiT", sub}},
		"short name":   {{"40000 GIT~1", sub}},
		"trailing dot": {{"40000 .git. ", sub}},
		"ignorable":    {{"40000 .g\u200cit", sub}},
		"dot dot":      {{"40000 ..", sub}},
		"slash":        {{"100644 a/b", blob}},
		"empty":        {{"100644 ", blob}},
		"newline":      {{"100644 a\nb", blob}},
		"escape":       {{"100644 a\x1b[2J", blob}},
		"doubled":      {{"100644 a", blob}, {"100644 a", blob}},
		"file and dir": {{"100644 a", blob}, {"40000 a", sub}},
		"device":       {{"60000 a", blob}},
		"setuid":       {{"104755 a", blob}},
		"submodule":    {{"160000 a", head}},
		"absolute":     {{"120000 a", link("/etc/passwd")}},
		"climbing":     {{"120000 a", link("../a")}},
		"dog leg":      {{"120000 a", link("b/../../x")}},
		"empty link":   {{"120000 a", link("")}},
		"blob as tree": {{"40000 a", blob}},
		"tree as blob": {{"100644 a", sub}},
	} {
		tree := rawTree(t, dir, entries...)
		_, err := r.Export(t.Context(), tree, filepath.Join(t.TempDir(), "out"), time.Unix(1, 0))
		if hallmark.CodeOf(err) != hallmark.CodeSourceObjectInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStaysInside(t *testing.T) {
	for _, tc := range []struct {
		name, target string
		want         bool
	}{
		{"a", "b", true}, {"a", "./b/c", true}, {"d/a", "../b", true}, {"d/e/a", "../../b", true}, {"d/a", "..", true},
		{"a", "..", false}, {"d/a", "../..", false}, {"a", "/b", false}, {"a", "b/..", false}, {"d/a", "x/../y", false}, {"a", "", false},
		{"a", ".git/hooks", false}, {"d/a", "../.GIT", false}, {"a", "d/.git/config", false}, {"a", ".gitignore", true},
	} {
		if got := source.StaysInside(tc.name, tc.target); got != tc.want {
			t.Errorf("%s -> %s: %v", tc.name, tc.target, got)
		}
	}
}

func FuzzParseTree(f *testing.F) {
	id := strings.Repeat("\xab", 20)
	f.Add([]byte("100644 a\x00" + id + "40000 d\x00" + id))
	f.Add([]byte("120000 .git\x00" + id))
	f.Add([]byte("100644 a"))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := parseTree(data, 40)
		if err != nil {
			return
		}
		for _, e := range entries {
			if strings.ContainsAny(e.name, "/\x00\n") || e.name == ".." || strings.EqualFold(e.name, ".git") || len(e.id) != 40 {
				t.Errorf("accepted %q", e.name)
			}
		}
	})
}

// TestMeasure: an export measures as what it was written from, and no other tree does.
func TestMeasure(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{"a": "one\n", "b/c": "two\n", "b/same": "one\n", "name with \"quotes\"": "\x00"}
	for name, text := range files {
		write(t, filepath.Join(dir, name), text)
	}
	if err := os.Chmod(filepath.Join(dir, "a"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("b/c", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	id := commit(t, dir, nil)
	r := open(t, dir)
	tree := git(t, dir, nil, "rev-parse", id+"^{tree}")
	to := filepath.Join(t.TempDir(), "export")
	want, err := r.Export(t.Context(), tree, to, time.Unix(1_700_000_000, 0))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Measure(to)
	if err != nil || got != want {
		t.Errorf("measured %v, exported %v, %v", got, want, err)
	}
	for name, change := range map[string]func(string) error{
		"bytes": func(d string) error { return os.WriteFile(filepath.Join(d, "a"), []byte("One\n"), 0o644) },
		"mode":  func(d string) error { return os.Chmod(filepath.Join(d, "b/c"), 0o644) },
		"added": func(d string) error { return os.WriteFile(filepath.Join(d, "b/new"), nil, 0o644) },
		"gone":  func(d string) error { return os.Remove(filepath.Join(d, "b/same")) },
		"link": func(d string) error {
			return errors.Join(os.Remove(filepath.Join(d, "link")), os.Symlink("a", filepath.Join(d, "link")))
		},
		"link to a file": func(d string) error {
			return errors.Join(os.Remove(filepath.Join(d, "link")), os.WriteFile(filepath.Join(d, "link"), []byte("b/c"), 0o644))
		},
		"fifo": func(d string) error {
			return errors.Join(os.Remove(filepath.Join(d, "a")), syscall.Mkfifo(filepath.Join(d, "a"), 0o644))
		},
	} {
		t.Run(name, func(t *testing.T) {
			to := filepath.Join(t.TempDir(), "export")
			if _, err := r.Export(t.Context(), tree, to, time.Unix(1_700_000_000, 0)); err != nil {
				t.Fatal(err)
			}
			if err := change(to); err != nil {
				t.Fatal(err)
			}
			if got, err := Measure(to); err != nil || got == want {
				t.Errorf("measures as before: %v", err)
			}
		})
	}
}
