// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestSignerBuilds: what a server builds whose signer is another user is of SLSA
// Build level 3, for everybody who pinned the roots; the signer judged it again. It
// is killed while it signs, and the run comes to its verdict all the same.
func TestSignerBuilds(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("runs a server that builds; go test without -short does")
	}
	l := newSignerLab(t)
	l.builds = true
	l.start()
	defer func() {
		if t.Failed() {
			t.Log(l.serveLog())
		}
	}()
	l.write("app/.hallmark/pipeline.yaml", `apiVersion: hallmark/v1
kind: Pipeline
build:
  steps:
    - run: mkdir -p out; cp f out/f
    - name: test
      run: test -s out/f
  artifacts: [out/f]
`)
	l.program(l.path("app"), "git", "add", ".hallmark")
	for _, kill := range []bool{false, true} {
		commit := l.change()
		l.program(l.path("app"), "git", "push", "-q", l.remote("alice"), "work")
		if kill {
			l.until("an observation of the build being signed", func() bool {
				return strings.Contains(l.serveLog(), `"msg":"run begins"`) && strings.Count(l.serveLog(), `"predicate":"https://in-toto.io/attestation/link/v0.3"`) > 2
			})
			if err := syscall.Kill(l.signer(), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		r := l.runs()[0]
		if r.Revision != commit {
			t.Fatalf("the newest run is of %s, not %s", r.Revision, commit)
		}
		out := l.path("out-" + r.Run)
		said := l.program("", l.bin, "runs", "fetch", r.Run, "--out", out, "--json", "--token-file", l.path("alice.token"))
		if !strings.Contains(said, `"effect":"allow"`) {
			t.Fatalf("%s\n%s", said, l.serveLog())
		}
		if said := l.program("", l.bin, "verify", out+"/f", "--evidence", out, "--level", "SLSA_BUILD_LEVEL_3"); !strings.Contains(said, "ALLOWED") {
			t.Error(said)
		}
		evidence, err := os.ReadFile(out + "/evidence.jsonl")
		if err != nil || len(evidence) == 0 {
			t.Fatal(err)
		}
	}
	l.agree()
	l.ownKeys()
	l.stop()
	if out := l.must("log", "fsck"); !strings.Contains(out, " 0 problems") {
		t.Errorf("fsck: %s", out)
	}
}
