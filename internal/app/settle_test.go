// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"log/slog"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/gitcli"
	"github.com/hallmark-sc/hallmark/intoto"
)

// TestSettleLeavesOthersAlone: while one push looks whether it moved its
// reference, the next one may have logged its own transition and not moved yet.
func TestSettleLeavesOthersAlone(t *testing.T) {
	l := newLab(t)
	if _, err := CreateRepository(t.Context(), l.home, "app", "main", UpstreamConfig{}, nil); err != nil {
		t.Fatal(err)
	}
	s, done, err := newServer(t.Context(), ServeConfig{Home: l.home, Config: DefaultServerFile(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	dir := filepath.Join(l.home, "repositories", "app.git")
	git := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "git", append([]string{"--git-dir=" + dir, "-c", "user.name=a", "-c", "user.email=a@example.org"}, args...)...).Output()
		if err != nil {
			t.Fatalf("git %q: %v", args, err)
		}
		return strings.TrimSpace(string(out))
	}
	const ref, tree = "refs/heads/main", "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
	git("hash-object", "-t", "tree", "-w", "/dev/null")
	one := git("commit-tree", "-m", "one", tree)
	two := git("commit-tree", "-m", "two", "-p", one, tree)
	var last hallmark.Digest
	transit := func(from, to string) hallmark.Digest {
		t.Helper()
		last, err = s.transit(t.Context(), intoto.RefTransition{Repository: s.uri("app"), Ref: ref, Old: from, New: to, Effect: hallmark.Allow, On: now(),
			Policy: s.rules().policy, Previous: last, Actor: hallmark.Principal{Name: "a", Method: "ssh"}, Rule: "main"}, access.RefRule{})
		if err != nil {
			t.Fatal(err)
		}
		return last
	}
	first := transit(zeros, one)
	git("update-ref", ref, one)
	held, err := gitcli.Hold(t.Context(), dir, ref, two, one)
	if err != nil {
		t.Fatal(err)
	}
	second := transit(one, two)
	if err := s.settle(t.Context(), "app", ref, first); err != nil {
		t.Fatal(err)
	}
	if is, err := s.home.lastTransition(t.Context(), s.uri("app"), ref); err != nil || is.Statement != second || is.Void {
		t.Errorf("%v: the log says %+v", err, is)
	}
	if err := held.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := s.settle(t.Context(), "app", ref, second); err != nil {
		t.Fatal(err)
	}
	if is := git("rev-parse", ref); is != two {
		t.Errorf("%s is at %s, and %s landed", ref, is, two)
	}
}
