// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/gitcli"
	"github.com/hallmark-sc/hallmark/internal/gitgate"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/intoto"
)

// repositoryNames lists the repositories of a home.
func (h *Home) repositoryNames() ([]string, error) {
	var out []string
	root := h.Repositories()
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if strings.HasSuffix(p, ".git") {
			rel, err := filepath.Rel(root, p)
			if err != nil {
				return err
			}
			out = append(out, strings.TrimSuffix(rel, ".git"))
			return fs.SkipDir
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	slices.Sort(out)
	return out, err
}

// Repositories lists the repositories of a home with their locators.
func Repositories(home string) (names, uris []string, err error) {
	h, err := readHome(home)
	if err != nil {
		return nil, nil, err
	}
	defer h.Close()
	if names, err = h.repositoryNames(); err != nil {
		return nil, nil, hallmark.Errorf(hallmark.KindInvalid, "listing repositories: %w", err)
	}
	for _, n := range names {
		uris = append(uris, h.repositoryURI(n))
	}
	return names, uris, nil
}

// CreateRepository makes an empty repository, whose making is logged before it
// can be seen. One with an upstream forwards there what it lets through; the
// upstream must be empty as well.
func CreateRepository(ctx context.Context, home, name, branch string, upstream UpstreamConfig, pass []byte) (uri string, err error) {
	if err := gitgate.CheckName(name); err != nil {
		return "", err
	}
	if why := refName("refs/heads/" + branch); why != "" {
		return "", hallmark.Errorf(hallmark.KindUsage, "branch %.80q: %s", branch, why)
	}
	h, err := OpenHome(home, pass)
	if err != nil {
		return "", err
	}
	defer h.Close()
	dir := filepath.Join(h.Repositories(), name+".git")
	if _, err := os.Stat(dir); err == nil {
		return "", hallmark.Errorf(hallmark.KindUsage, "there is a repository %s", name)
	}
	if err := durable.MakeDir(h.Repositories(), 0o700); err != nil {
		return "", hallmark.Errorf(hallmark.KindInvalid, "making %s: %w", h.Repositories(), err)
	}
	made, lock, err := durable.TempDir(h.Repositories(), "new-")
	if err != nil {
		return "", hallmark.Errorf(hallmark.KindInvalid, "making repository %s: %w", name, err)
	}
	defer lock.Close()
	defer durable.RemoveTree(made)
	if err := gitcli.Create(ctx, filepath.Join(made, "r.git"), branch); err != nil {
		return "", err
	}
	uri = h.repositoryURI(name)
	details := map[string]string{"branch": branch}
	forward, err := h.prepareUpstream(ctx, made, name, upstream, nil)
	if err != nil {
		return "", err
	}
	if upstream.URL != "" {
		details["upstream"] = upstream.URL
	}
	signer := newSigner(h.Layout, h.id, h.keys, h.stores)
	defer signer.close()
	st, err := attest.AccessRecord(intoto.AccessRecord{
		Action: "repository.create", Actor: operator(), Resource: uri, Effect: hallmark.Allow, On: now(), Policy: h.policy.Digest(), Details: details,
	})
	if err != nil {
		return "", err
	}
	if _, err := signer.sign(ctx, sign.Gate, st, nil); err != nil {
		return "", err
	}
	if err := forward(); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return "", hallmark.Errorf(hallmark.KindInvalid, "making repository %s: %w", name, err)
	}
	if err := os.Rename(filepath.Join(made, "r.git"), dir); err != nil {
		return "", hallmark.Errorf(hallmark.KindInvalid, "making repository %s: %w", name, err)
	}
	return uri, nil
}

// operator is who holds the keys of the home on this machine.
func operator() hallmark.Principal {
	r := localRequester()
	return hallmark.Principal{Name: policy.RequesterOperator, Key: r.User, Method: "local"}
}
