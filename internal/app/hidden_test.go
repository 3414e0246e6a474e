// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/translog"
)

// TestRollbackBehindALostIndex: an older policy put back, with the memory of the
// newer one and the whole index taken away, is found by fsck in the log itself.
func TestRollbackBehindALostIndex(t *testing.T) {
	l := newLab(t)
	copyDir(t, filepath.Join(l.home, "policy"), filepath.Join(l.dir, "older"))
	if _, err := PolicySet(t.Context(), l.home, nil, [][2]string{{"scans.maxAge", "1d"}}); err != nil {
		t.Fatal(err)
	}
	l.remove("home/policy", "home/seen", "home/index.sqlite", "home/index.sqlite-wal", "home/index.sqlite-shm")
	copyDir(t, filepath.Join(l.dir, "older"), filepath.Join(l.home, "policy"))
	rep, err := LogFsck(t.Context(), l.home, false)
	if err != nil || !slices.ContainsFunc(rep.Problems, func(p translog.Problem) bool { return p.Code == hallmark.CodePolicyRollback }) {
		t.Errorf("%+v, %v", rep, err)
	}
}
