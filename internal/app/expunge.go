// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/gitcli"
	"github.com/hallmark-sc/hallmark/internal/gitgate"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/intoto"
)

// maxExpunged bounds one record.
const maxExpunged = 1000

// alone makes this process the only one that works in the repositories of a home,
// until the returned file is closed.
func (h *Home) alone() (*os.File, error) {
	f, err := os.OpenFile(h.Serving(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "locking the repositories: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindUnavailable, "another process serves the repositories of %s", h.Home), "end that server first")
		}
		return nil, hallmark.Errorf(hallmark.KindInternal, "locking the repositories: %w", err)
	}
	return f, nil
}

// Expunge takes objects out of a repository for good, for a legal or privacy
// reason (SLSA v1.2 Source track, "safe expunging process"). No reference may
// reach them any more: that takes a rule of references that lets history be
// rewritten, which is a version of the signed policy, and somebody's push. What
// was taken out and why is logged before it is done; the names of the objects
// stay in the evidence.
func Expunge(ctx context.Context, home, name, reason string, objects []string, pass []byte) error {
	if err := gitgate.CheckName(name); err != nil {
		return err
	}
	switch {
	case strings.TrimSpace(reason) == "" || len(reason) > 1000 || strings.ContainsAny(reason, "\r\n"):
		return hallmark.Errorf(hallmark.KindUsage, "--reason: want one line that says for which legal or privacy reason")
	case len(objects) == 0 || len(objects) > maxExpunged:
		return hallmark.Errorf(hallmark.KindUsage, "%d objects: want 1 to %d", len(objects), maxExpunged)
	}
	for _, id := range objects {
		if !commitID.MatchString(id) {
			return hallmark.Errorf(hallmark.KindUsage, "object %.80q: want a full object id", id)
		}
	}
	h, err := OpenHome(home, pass)
	if err != nil {
		return err
	}
	defer h.Close()
	lock, err := h.alone()
	if err != nil {
		return err
	}
	defer lock.Close()
	dir := filepath.Join(h.Repositories(), name+".git")
	if _, err := os.Stat(dir); err != nil {
		return hallmark.Errorf(hallmark.KindNotFound, "there is no repository %s", name)
	}
	if has, err := gitcli.Has(ctx, dir, objects); err != nil {
		return err
	} else if len(has) == 0 {
		return hallmark.Errorf(hallmark.KindNotFound, "repository %s has none of these objects", name)
	}
	shown, err := gitcli.Shown(ctx, dir, objects)
	if err != nil {
		return err
	}
	if len(shown) > 0 {
		return hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodeExpungeShown, "a reference still shows %s, and %d more", shown[0], len(shown)-1),
			"let a rule of references allow its history to be rewritten (hallmark access refs --set FILE), push history without it, and restore the rule: docs/serve.md")
	}
	signer := newSigner(h.Layout, h.id, h.keys, h.stores)
	defer signer.close()
	st, err := attest.AccessRecord(intoto.AccessRecord{
		Action: "repository.expunge", Actor: operator(), Resource: h.repositoryURI(name), Effect: hallmark.Allow, On: now(), Policy: h.policy.Digest(),
		Details: map[string]string{"reason": reason, "objects": strings.Join(objects, " ")},
	})
	if err != nil {
		return err
	}
	if _, err := signer.sign(ctx, sign.Gate, st, nil); err != nil {
		return err
	}
	return gitcli.Expunge(ctx, dir, objects)
}
