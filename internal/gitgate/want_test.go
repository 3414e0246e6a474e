// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package gitgate

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// fetching are requests for objects, as each version of the protocol asks.
func fetching(version int, ids ...string) []byte {
	var b strings.Builder
	if version == 2 {
		b.WriteString(packet("command=fetch\n") + packet("object-format=sha1") + "0001" + packet("ofs-delta\n"))
		for _, id := range ids {
			b.WriteString(packet("want " + id + "\n"))
		}
		b.WriteString(packet("done\n") + "0000")
		return []byte(b.String())
	}
	for i, id := range ids {
		if i == 0 {
			id += " ofs-delta side-band-64k"
		}
		b.WriteString(packet("want " + id + "\n"))
	}
	b.WriteString("0000" + packet("done\n"))
	return []byte(b.String())
}

// TestWhatNothingShows: an object that no branch and no tag shows is given to
// nobody, in no version of the protocol, whatever its kind. Git itself gives it.
func TestWhatNothingShows(t *testing.T) {
	p := newPlace(t)
	git(t, p.work, "", "commit", "-q", "--allow-empty", "-m", "two")
	git(t, p.work, "", "tag", "-m", "a tag", "v1")
	git(t, p.work, "", "push", "-q", p.dir, "HEAD:refs/heads/main", "v1")
	name := func(args ...string) string { return strings.TrimSpace(string(git(t, p.dir, "", args...))) }
	tip, first, tag := name("rev-parse", "main"), name("rev-parse", "main~"), name("rev-parse", "v1")
	tree := strings.TrimSpace(string(git(t, p.dir, "", "hash-object", "-t", "tree", "-w", "/dev/null")))
	hidden := name("commit-tree", "-m", "hidden", "-p", tip, tree)
	blob := strings.TrimSpace(string(git(t, p.dir, "a secret of nobody's", "hash-object", "-w", "--stdin")))
	held := name("commit-tree", "-m", "held", tree)
	git(t, p.dir, "", "update-ref", "refs/internal/held", held)
	hiddenTag := strings.TrimSpace(string(git(t, p.dir, "object "+tip+"\ntype commit\ntag v2\ntagger a <a@example.org> 1 +0000\n\nm\n", "mktag")))
	nowhere := strings.Repeat("ab", 20)
	for _, version := range []int{0, 1, 2} {
		ask := func(ids ...string) []byte {
			return p.post(uploadPack, fetching(version, ids...), "Git-Protocol", fmt.Sprint("version=", version))
		}
		for what, ids := range map[string][]string{
			"a commit": {hidden}, "a blob": {blob}, "a tree": {tree}, "behind another reference": {held}, "a tag object": {hiddenTag}, "what is not there": {nowhere},
			"beside what is shown": {tip, hidden}, "the other way round": {hidden, tip}, "a blob beside an ancestor": {first, blob},
		} {
			if got := ask(ids...); !bytes.Contains(got, []byte("ERR "+string(hallmark.CodeObjectHidden))) || bytes.Contains(got, []byte("PACK")) {
				t.Errorf("version %d gives %s: %.200q", version, what, got)
			}
		}
		for what, ids := range map[string][]string{"the tip": {tip}, "a tag": {tag}, "an ancestor": {first}, "all": {tip, tag, first}} {
			if got := ask(ids...); !bytes.Contains(got, []byte("PACK")) {
				t.Errorf("version %d does not give %s: %.200q", version, what, got)
			}
		}
	}
	for what, body := range map[string]string{
		"another command": packet("command=object-info\n") + packet("object-format=sha1") + "0001" + packet("size") + packet("oid "+blob) + "0000",
		"a name":          packet("command=fetch\n") + "0001" + packet("want-ref refs/internal/held\n") + packet("done\n") + "0000",
		"half a name":     packet("command=fetch\n") + "0001" + packet("want "+blob[:10]+"\n") + packet("done\n") + "0000",
		"two commands":    packet("command=ls-refs\n") + packet("command=fetch\n") + "0001" + packet("want "+tip+"\n") + packet("done\n") + "0000",
		"no packet":       "zzzz",
	} {
		if got := p.post(uploadPack, []byte(body), "Git-Protocol", "version=2"); bytes.Contains(got, []byte("PACK")) || bytes.Contains(got, []byte("size")) {
			t.Errorf("%s: %.200q", what, got)
		}
	}
	// Stock git is served as ever: whole, shallow, deeper, and by the name of a commit.
	base := t.TempDir()
	url := strings.TrimSuffix(p.url, "/")
	git(t, base, "", "clone", "-q", "-b", "main", url, "whole")
	git(t, base, "", "clone", "-q", "-b", "main", "--depth=1", url, "shallow")
	if out, err := gitFails(t, filepath.Join(base, "shallow"), "fetch", "--unshallow"); err != nil {
		t.Errorf("deepening: %v: %s", err, out)
	}
	git(t, base, "", "clone", "-q", "-b", "main", "--filter=blob:none", url, "partial")
	git(t, filepath.Join(base, "whole"), "", "fetch", "-q", "origin", first)
	if out := git(t, base, "", "ls-remote", url); bytes.Contains(out, []byte("refs/internal")) {
		t.Errorf("%s", out)
	}
}

func FuzzReadRequest(f *testing.F) {
	f.Add(fetching(0, strings.Repeat("a", 40)))
	f.Add(fetching(2, strings.Repeat("b", 40)))
	f.Add([]byte("0003"))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := readRequest(b)
		if err != nil {
			return
		}
		for _, id := range a.wants {
			if !bytes.Contains(b, []byte("want "+id)) {
				t.Fatalf("%q was not asked for", id)
			}
		}
		if n := bytes.Count(b, []byte("want ")); len(a.wants) > n {
			t.Fatalf("%d wants, %d at most", len(a.wants), n)
		}
	})
}

// TestTurns: nobody has more places than they may, whoever waits gets the one that
// comes free, and nobody waits longer than it was said.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(3, 2, time.Minute)
		one, _ := turns.take(t.Context(), "mallory")
		two, _ := turns.take(t.Context(), "mallory")
		start := time.Now()
		if _, ok := turns.take(t.Context(), "mallory"); ok || time.Since(start) != time.Minute {
			t.Fatalf("a third place after %s", time.Since(start))
		}
		three, ok := turns.take(t.Context(), "alice")
		if !ok {
			t.Fatal("one keeps the others waiting")
		}
		if _, ok := turns.take(t.Context(), "bob"); ok {
			t.Fatal("a fourth place of three")
		}
		var got []string
		for _, who := range []string{"bob", "carol"} {
			go func() {
				if give, ok := turns.take(t.Context(), who); ok {
					got = append(got, who)
					give()
				}
			}()
			synctest.Wait()
		}
		if turns.waiting != 2 {
			t.Errorf("%d wait", turns.waiting)
		}
		three()
		three() // once is enough
		synctest.Wait()
		slices.Sort(got)
		if !slices.Equal(got, []string{"bob", "carol"}) {
			t.Errorf("served: %q", got)
		}
		one()
		two()
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if turns.taken != 0 || len(turns.by) != 0 || turns.waiting != 0 {
			t.Errorf("%d places, %v, %d wait", turns.taken, turns.by, turns.waiting)
		}
		full, _ := turns.take(t.Context(), "x")
		turns.take(t.Context(), "x")
		if _, ok := turns.take(ended, "x"); ok {
			t.Error("a place for who has gone")
		}
		full()
	})
}

// TestBusy: who waits in vain is told so in words that git shows, and nothing of
// the push is kept.
func TestBusy(t *testing.T) {
	p := newPlace(t)
	p.server.turns.patience = 10 * time.Millisecond
	for range 4 {
		if _, ok := p.server.turns.take(t.Context(), ""); !ok {
			t.Fatal("no place")
		}
	}
	out, err := gitFails(t, p.work, "push", strings.TrimSuffix(p.url, "/"), "HEAD:refs/heads/x")
	if err == nil || !strings.Contains(out, string(hallmark.CodePushBusy)) {
		t.Errorf("%v: %s", err, out)
	}
	if len(p.gate.recorded) > 0 {
		t.Errorf("recorded: %v", p.gate.recorded)
	}
}
