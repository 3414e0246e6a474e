// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/gate"
	"github.com/hallmark-sc/hallmark/internal/gitcli"
	"github.com/hallmark-sc/hallmark/internal/gitgate"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/scan"
	"github.com/hallmark-sc/hallmark/internal/scan/secrets"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/internal/source"
	"github.com/hallmark-sc/hallmark/intoto"
)

// ImportResult is what an import took over, or why it took nothing.
type ImportResult struct {
	URI      string
	Refs     int
	Commits  int
	Unsigned int // commits of before that nobody vouches for
	Decision hallmark.Decision
}

// ImportRepository takes an existing repository over under a new name. Its whole
// content and history are looked at before anybody can see it (SP 800-204D
// §5.1.4, N106). Its commits of before need no signature of an allowed signer:
// they are the start revision, and how many nobody vouches for is recorded. With an
// upstream, what is there is imported, or must be the same as what is in from.
func ImportRepository(ctx context.Context, home, name, from string, upstream UpstreamConfig, pass []byte) (ImportResult, error) {
	if err := gitgate.CheckName(name); err != nil {
		return ImportResult{}, err
	}
	h, err := OpenHome(home, pass)
	if err != nil {
		return ImportResult{}, err
	}
	defer h.Close()
	i := &importing{home: h, name: name, from: from, signer: newSigner(h.Layout, h.id, h.keys, h.stores), res: ImportResult{URI: h.repositoryURI(name)}}
	defer i.signer.close()
	if i.dir = filepath.Join(h.Repositories(), name+".git"); exists(i.dir) {
		return i.res, hallmark.Errorf(hallmark.KindUsage, "there is a repository %s", name)
	}
	if err := durable.MakeDir(h.Repositories(), 0o700); err != nil {
		return i.res, hallmark.Errorf(hallmark.KindInvalid, "making %s: %w", h.Repositories(), err)
	}
	made, lock, err := durable.TempDir(h.Repositories(), "new-")
	if err != nil {
		return i.res, hallmark.Errorf(hallmark.KindInvalid, "making repository %s: %w", name, err)
	}
	defer lock.Close()
	defer durable.RemoveTree(made)
	i.made = filepath.Join(made, "r.git")
	i.upstream, i.apart = upstream, made
	i.res.Decision, err = gate.Pass(ctx, gate.Steps{
		Authenticate: func(context.Context) (hallmark.Principal, error) { return operator(), nil },
		// Whoever holds the home's keys may: there is nobody else to ask here.
		Authorize: func(context.Context, hallmark.Principal) ([]hallmark.Reason, error) { return nil, nil },
		Gather:    i.gather,
		Decide: func(context.Context) (hallmark.Decision, error) {
			if len(i.reasons) > 0 {
				return gate.Denied(i.reasons...), nil
			}
			return hallmark.Decision{Effect: hallmark.Allow}, nil
		},
		Log:    i.log,
		Effect: i.show,
	})
	return i.res, err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

type importing struct {
	home                  *Home
	upstream              UpstreamConfig
	apart                 string       // private directory
	forward               func() error // puts the upstream's files where they count
	signer                *logSigner
	name, from, dir, made string
	refs                  map[string]string
	checks                []hallmark.CheckRecord
	reasons               []hallmark.Reason
	res                   ImportResult
}

// gather copies the objects apart and looks at all of them.
func (i *importing) gather(ctx context.Context) error {
	work, lock, err := newRunDir(i.home.Runs())
	if err != nil {
		return err
	}
	defer lock.Close()
	defer durable.RemoveTree(work)
	if i.from == "" {
		i.from = filepath.Join(work, "upstream.git")
		up, err := putUpstream(filepath.Join(i.apart, "mirror"), i.upstream)
		if err != nil {
			return err
		}
		if err := up.Mirror(ctx, i.from); err != nil {
			return err
		}
	}
	from, err := gitcli.Open(ctx, gitcli.Config{Repo: i.from, WorkDir: work})
	if err != nil {
		return err
	}
	if why := from.Incomplete(); why != "" {
		return hallmark.WithHint(hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceHistoryIncomplete, "importing %s: %s", i.from, why), "fetch the whole history first")
	}
	all, err := gitcli.Branches(ctx, i.from)
	if err != nil {
		return err
	}
	i.refs = map[string]string{}
	for ref, id := range all {
		if why := refName(ref); why != "" {
			i.reasons = append(i.reasons, hallmark.Reason{Code: hallmark.CodeRefName, Check: "access", Message: fmt.Sprintf("reference %q: %s", ref, why), Fix: "rename or delete it before the import"})
			continue
		}
		i.refs[ref] = id
	}
	if i.forward, err = i.home.prepareUpstream(ctx, i.apart, i.name, i.upstream, all); err != nil {
		return err
	}
	if len(i.refs) == 0 {
		i.reasons = append(i.reasons, hallmark.Reason{Code: hallmark.CodeSourceRevisionUnknown, Check: "source", Message: i.from + " has no branch and no tag", Fix: "hallmark repository create " + i.name + " makes an empty one"})
		return nil
	}
	branch := "main"
	for _, ref := range slices.Sorted(maps.Keys(i.refs)) {
		if b, ok := strings.CutPrefix(ref, "refs/heads/"); ok && (b == "main" || b == "master") {
			branch = b
		}
	}
	if err := gitcli.Create(ctx, i.made, branch); err != nil {
		return err
	}
	quarantine := filepath.Join(i.made, "objects", "incoming-import")
	if err := os.MkdirAll(filepath.Join(quarantine, "pack"), 0o700); err != nil {
		return hallmark.Errorf(hallmark.KindInternal, "importing: %w", err)
	}
	in, err := gitcli.NewIncoming(i.made, quarantine)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(from.PackAll(ctx, slices.Collect(maps.Values(i.refs)), w)) }()
	if err := in.Unpack(ctx, r); err != nil {
		r.CloseWithError(err)
		return err
	}
	if err := i.judge(ctx, in, work); err != nil {
		return err
	}
	// The pack becomes the repository's own.
	packs, err := filepath.Glob(filepath.Join(quarantine, "pack", "*"))
	if err != nil {
		return hallmark.Errorf(hallmark.KindInternal, "importing: %w", err)
	}
	for _, p := range packs {
		if err := os.Rename(p, filepath.Join(i.made, "objects", "pack", filepath.Base(p))); err != nil {
			return hallmark.Errorf(hallmark.KindInternal, "importing: %w", err)
		}
	}
	return os.RemoveAll(quarantine)
}

// ofSigning are codes that commits of before an import are not refused for.
func ofSigning(c hallmark.Code) bool {
	return slices.Contains([]hallmark.Code{hallmark.CodeSourceUnsigned, hallmark.CodeSourceSignatureInvalid, hallmark.CodeSourceSignatureFormat,
		hallmark.CodeSourceSignerNotAllowed, hallmark.CodeSourceSignerNotAuthor, hallmark.CodeSourceAuthor, hallmark.CodeSourceTagger}, c)
}

func (i *importing) judge(ctx context.Context, in *gitcli.Incoming, work string) error {
	h := i.home
	verifySigner, err := commitVerifier(h.document)
	if err != nil {
		return err
	}
	var updates []source.Update
	for ref, id := range i.refs {
		updates = append(updates, source.Update{Ref: ref, Old: zeros, New: id})
	}
	facts, err := source.JudgePush(ctx, source.PushConfig{
		Incoming: in, Verify: verifySigner, Same: func(string, string) bool { return false }, Clock: now, Binaries: h.params.Binaries, MaxFile: maxPushedFile, MaxReason: maxSameReason,
	}, updates)
	if err != nil {
		return err
	}
	i.res.Refs, i.res.Commits = len(i.refs), len(facts.Commits)
	for _, c := range facts.Commits {
		if c.Signer == nil {
			i.res.Unsigned++
		}
	}
	for _, r := range facts.Reasons {
		if !ofSigning(r.Code) {
			i.reasons = append(i.reasons, r)
		}
	}
	key, err := os.ReadFile(h.Fingerprints())
	if err != nil || len(key) != 32 {
		return hallmark.Errorf(hallmark.KindInvalid, "reading the fingerprint key: %w", err)
	}
	tool, err := Tool()
	if err != nil {
		return err
	}
	box, err := sandbox.New(sandbox.Config{Clock: now})
	if err != nil {
		return err
	}
	rec, found, err := secrets.Scan(ctx, secrets.Config{
		Worker: &room{box: box, hostID: sandbox.HostID(), work: work, params: h.params}, Key: key,
		Thresholds: scan.Thresholds{Severity: h.params.Severity, Confidence: h.params.Confidence}, Clock: now, Tool: tool, Wall: scanWall,
	}, hallmark.Revision{Repository: i.res.URI}, incomingObjects{in})
	if err != nil {
		return err
	}
	i.checks = append(i.checks, rec)
	if rec.Outcome != hallmark.Pass {
		places, err := placesOf(ctx, in, facts, found)
		if err != nil {
			return err
		}
		i.reasons = append(i.reasons, pushedSecrets(rec, found, places)...)
	}
	return nil
}

// log signs the import and the first transition of every reference; the commits
// stand in the repository, not in each statement.
func (i *importing) log(ctx context.Context, d hallmark.Decision) error {
	details := map[string]string{"references": strconv.Itoa(i.res.Refs), "commits": strconv.Itoa(i.res.Commits), "unsigned": strconv.Itoa(i.res.Unsigned)}
	if i.upstream.URL != "" {
		details["upstream"] = i.upstream.URL
	}
	st, err := attest.AccessRecord(intoto.AccessRecord{
		Action: "repository.import", Actor: operator(), Resource: i.res.URI, Effect: d.Effect, On: now(), Policy: i.home.policy.Digest(), Reasons: d.Reasons, Details: details,
	})
	if err != nil {
		return err
	}
	if _, err := i.signer.sign(ctx, sign.Gate, st, nil); err != nil || !d.Allowed() {
		return err
	}
	for _, ref := range slices.Sorted(maps.Keys(i.refs)) {
		st, err := attest.RefTransition(intoto.RefTransition{
			Repository: i.res.URI, Ref: ref, Old: zeros, New: i.refs[ref], Effect: hallmark.Allow, Actor: operator(), On: now(), Policy: i.home.policy.Digest(), Rule: "import", Checks: i.checks,
		})
		if err != nil {
			return err
		}
		if _, err := i.signer.sign(ctx, sign.Gate, st, nil); err != nil {
			return err
		}
	}
	return nil
}

// show sets the references and gives the repository its name, last.
func (i *importing) show(ctx context.Context) error {
	for ref, id := range i.refs {
		if err := gitcli.Move(ctx, i.made, ref, id, zeros); err != nil {
			return err
		}
	}
	if err := i.forward(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(i.dir), 0o700); err != nil {
		return hallmark.Errorf(hallmark.KindInvalid, "making repository %s: %w", i.name, err)
	}
	if err := os.Rename(i.made, i.dir); err != nil {
		return hallmark.Errorf(hallmark.KindInvalid, "making repository %s: %w", i.name, err)
	}
	return nil
}
