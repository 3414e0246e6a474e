// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/gitcli"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/intoto"
)

// buildPlatform is what builds, by which identity it signs that, and for whom.
type buildPlatform struct {
	builder   string        // builder.id
	identity  sign.Identity // signs provenance
	san       string        // of that identity, below the trust domain
	hosted    bool          // a server's, which says of an environment what it gave
	separate  bool          // what signs is another process
	requester intoto.Requester
	sign      signFunc // nil: a signer of the run's own
	pin       *pinned
	pack      hallmark.Digest // of a held push, beside the repository's objects
	offline   bool            // dependencies only that were fetched before
}

// platform is where a run builds, and what ends with it.
func (h *Home) platform(cfg RunConfig) (on buildPlatform, end func() error) {
	if cfg.platform != nil {
		on = *cfg.platform
	} else {
		on = buildPlatform{builder: intoto.BuilderLocal, identity: sign.Builder, san: "/builder/local", requester: localRequester()}
	}
	if on.sign != nil {
		return on, func() error { return nil }
	}
	signer := newSigner(h.Layout, h.id, h.keys, h.stores)
	on.sign = signer.sign
	return on, signer.close
}

// roleSigner implements pipeline.Signer: an identity for each role.
type roleSigner struct {
	sign     signFunc
	platform sign.Identity // of provenance
}

func (s roleSigner) Sign(ctx context.Context, role pipeline.Role, st intoto.Statement, permit *pipeline.Permit) (pipeline.Signed, error) {
	who, ok := map[pipeline.Role]sign.Identity{pipeline.Observer: sign.Observer, pipeline.Platform: s.platform, pipeline.Release: sign.Release}[role]
	if !ok || who == 0 {
		return pipeline.Signed{}, hallmark.Errorf(hallmark.KindInternal, "no identity for role %d", role)
	}
	var p *sign.Permit
	if permit != nil {
		p = &sign.Permit{Statement: permit.Statement, BuildPolicy: permit.Policy, Decision: permit.Decision}
	}
	b, err := s.sign(ctx, who, st, p)
	if err != nil {
		return pipeline.Signed{}, err
	}
	return pipeline.Signed{JSON: b.JSON, Statement: b.Statement, Digest: b.Digest}, nil
}

// platformGuarantees are those that no sandbox can give: what was there before the
// first one, and where the keys are.
func (b *builder) platformGuarantees() []attest.Guarantee {
	if !b.on.hosted {
		return nil
	}
	where := "the keys are in the process that builds"
	if b.on.separate {
		where = "the keys are in another process, which takes statements and gives signatures"
	}
	return []attest.Guarantee{
		{Name: intoto.GuaranteeFresh, Holds: b.fresh, Detail: "workspace and caches were made for this build and were empty; what lies under them is read-only"},
		{Name: intoto.GuaranteeSigner, Holds: b.on.separate, Detail: where},
	}
}

// untouched reports whether nothing is where a build will be.
func untouched(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking into the place of the build: %w", err)
	}
	return len(entries) == 0, nil
}

// heldRepository makes a repository of the run's own of a held push: its pack, over
// the objects of the repository that it was pushed to. Nothing of it goes there.
func (h *Home) heldRepository(ctx context.Context, repo string, pack hallmark.Digest, work string) (string, error) {
	dir := filepath.Join(work, "held.git")
	if err := gitcli.Create(ctx, dir, "main"); err != nil {
		return "", err
	}
	objects, err := filepath.Abs(filepath.Join(repo, "objects"))
	if err != nil {
		return "", hallmark.Errorf(hallmark.KindInternal, "resolving %s: %w", repo, err)
	}
	info := filepath.Join(dir, "objects", "info")
	if err := os.MkdirAll(info, 0o700); err != nil {
		return "", hallmark.Errorf(hallmark.KindInternal, "unpacking a held push: %w", err)
	}
	if err := os.WriteFile(filepath.Join(info, "alternates"), []byte(objects+"\n"), 0o600); err != nil {
		return "", hallmark.Errorf(hallmark.KindInternal, "unpacking a held push: %w", err)
	}
	in, err := gitcli.NewIncoming(dir, "")
	if err != nil {
		return "", err
	}
	b, err := h.stores.blobs.Open(ctx, pack)
	if err != nil {
		return "", fmt.Errorf("reading a held push: %w", err)
	}
	defer b.Close()
	return dir, in.Unpack(ctx, b)
}

// knownResolver is for revisions that nobody accepted yet: nothing is fetched for
// them. A lock file that a landed revision had too needs no fetching.
type knownResolver struct{ pipeline.Resolver }

func (knownResolver) Fetch(context.Context, pipeline.Export, string) (pipeline.Dependencies, error) {
	return pipeline.Dependencies{}, hallmark.WithHint(
		hallmark.Coded(hallmark.KindDenied, hallmark.CodeDependencyNew, "the change names packages that no build here fetched before, and nothing is fetched for what has not landed"),
		"bring the lock file in by a change of its own, whose author may push")
}
