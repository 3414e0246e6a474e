// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// killSoon starts a command and kills it with SIGKILL at a random moment within
// the limit, unless it ended before.
func (l *killLab) killSoon(rng *rand.Rand, limit time.Duration, args ...string) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Duration(rng.Int64N(int64(limit))))
	defer cancel()
	cmd := exec.CommandContext(ctx, l.bin, args...)
	cmd.Env = l.env
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) && !errors.Is(err, context.DeadlineExceeded) {
		l.t.Fatal(err)
	}
}

// TestKillCeremony kills init, proposals and signatures of several
// administrators ($HALLMARK_KILLS versions, 3 unless set): the same command
// again ends well, nobody counts twice, and log and blobs still say all.
func TestKillCeremony(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("kills many commands; go test without -short does")
	}
	versions := 3
	if s := os.Getenv("HALLMARK_KILLS"); s != "" {
		var err error
		if versions, err = strconv.Atoi(s); err != nil {
			t.Fatalf("HALLMARK_KILLS: %v", err)
		}
	}
	work := t.TempDir()
	home := filepath.Join(work, "home")
	l := &killLab{t: t, work: work, bin: plainBinary(t, work), env: append(os.Environ(), "HALLMARK_HOME="+home, "XDG_STATE_HOME="+filepath.Join(work, "state"))}
	names := []string{"ada", "grace", "joan"}
	start := []string{"init", "--threshold", "2"}
	for _, n := range names {
		l.must("policy", "key", n, "--out", filepath.Join(work, n))
		start = append(start, "--administrator", n+"="+filepath.Join(work, n)+".pub")
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 4 {
		l.killSoon(rng, 120*time.Millisecond, start...)
	}
	l.must(start...)
	for version := 1; version <= versions; version++ {
		if version > 1 {
			change := []string{"policy", "set", fmt.Sprintf("build.cpus=%d", version+1)}
			l.killSoon(rng, 120*time.Millisecond, change...)
			l.must(change...)
		}
		l.signAll(rng, names)
		if out := l.must("policy", "show"); !strings.Contains(out, fmt.Sprintf("policy version %d ", version)) || strings.Contains(out, "pending") {
			t.Fatalf("want version %d in force:\n%s", version, out)
		}
	}
	if out := l.must("log", "fsck"); !strings.Contains(out, " 0 problems") {
		t.Errorf("fsck: %s", out)
	}
	if err := errors.Join(os.RemoveAll(filepath.Join(home, "policy")), os.Remove(filepath.Join(home, "index.sqlite"))); err != nil {
		t.Fatal(err)
	}
	l.must("log", "fsck", "--rebuild")
	if out := l.must("policy", "show"); !strings.Contains(out, fmt.Sprintf("policy version %d ", versions)) {
		t.Errorf("rebuilt:\n%s", out)
	}
}

// signAll lets administrators sign, each killed a few times before, until the
// pending policy is in force.
func (l *killLab) signAll(rng *rand.Rand, names []string) {
	l.t.Helper()
	for _, i := range rng.Perm(len(names)) {
		args := []string{"policy", "sign", "--key", filepath.Join(l.work, names[i])}
		for range 3 {
			l.killSoon(rng, 600*time.Millisecond, args...)
		}
		// One that was killed late may have signed, or been the last one needed.
		if out, err := l.command(args...).CombinedOutput(); err != nil &&
			!strings.Contains(string(out), "POLICY_ALREADY_SIGNED: "+names[i]) && !strings.Contains(string(out), "POLICY_NOTHING_PENDING") {
			l.t.Fatalf("%s signs: %v\n%s", names[i], err, out)
		}
		if !strings.Contains(l.must("policy", "show"), "pending") {
			return
		}
	}
}
