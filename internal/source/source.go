// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package source is the source stage: it says which revision is meant, whether
// its history is whole, and whether its commit is signed by somebody the signed
// policy allows, for the committer it names. The words are those of SLSA v1.2's
// Source track.
//
// Signatures are verified over the raw bytes of the commit object, which it
// parses itself and whose name it recomputes. It must never ask the
// repository's or the user's configuration whom to trust, and it runs no
// programs: the repository comes through a port.
package source

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

// CheckName is the name of this check in records and policy.
const CheckName = "source"

// Repository is a private copy of the repository under judgement. No
// configuration of the original may take effect in it.
type Repository interface {
	// Resolve names the one commit rev means. Unknown, ambiguous and
	// option-like names are errors with SOURCE_REVISION_UNKNOWN.
	Resolve(ctx context.Context, rev string) (Named, error)
	// RawCommit returns the exact bytes of a commit object.
	RawCommit(ctx context.Context, id string) ([]byte, error)
	// Incomplete says why the history of the resolved revision is not whole
	// (shallow, grafted, partial, missing objects), or "".
	Incomplete() string
	// Commits counts the commits reachable from id, itself included.
	Commits(ctx context.Context, id string) (int, error)
	// Dirty lists files of the work tree that differ from commit id, untracked
	// ones included, without running a filter or hook. It returns nil when the
	// work tree has another commit checked out, or there is none.
	Dirty(ctx context.Context, id string) ([]string, error)
}

// Named is a revision by all its names.
type Named struct {
	Commit string
	Tree   string // as the copy says; Check compares it with the commit object
	Ref    string // fully qualified; empty when named by object name
}

// Signers verify commit signatures. Errors of kind hallmark.KindDenied are
// judgements with a reason code; any other error means "could not decide".
type Signers interface {
	// VerifyGit returns every principal that the key of an armored SSH
	// signature over message stands for; at least one.
	VerifyGit(message, armored []byte, signedOn, now time.Time) ([]hallmark.Principal, error)
}

// Config is what a check needs. Every field but AllowDirty is required.
type Config struct {
	Repository Repository
	Signers    Signers
	Clock      func() time.Time
	Tool       hallmark.Tool
	// AllowDirty lets a revision be checked although the work tree holds other
	// bytes. They are ignored in any case: only the commit is ever used.
	AllowDirty bool
}

// Request names the revision to check.
type Request struct {
	Rev string
	URI string // canonical locator of the repository, from the caller and never from its configuration
}

// Result is what the source stage found. Its record has an outcome in any case.
type Result struct {
	Provenance intoto.SourceProvenance
	CommitTime time.Time // zero when the commit could not be parsed
}

// Record returns the check record.
func (r Result) Record() hallmark.CheckRecord { return *r.Provenance.Check }

// Check judges one revision. A revision that can't be named and a dirty work
// tree are errors; everything else is a Result with an outcome.
func Check(ctx context.Context, cfg Config, req Request) (Result, error) {
	if cfg.Repository == nil || cfg.Signers == nil || cfg.Clock == nil || req.URI == "" {
		return Result{}, hallmark.Errorf(hallmark.KindInternal, "source check without repository, signers, clock or locator")
	}
	rec := &hallmark.CheckRecord{Check: CheckName, StartedOn: cfg.Clock().UTC(), Tool: cfg.Tool}
	named, err := cfg.Repository.Resolve(ctx, req.Rev)
	if err != nil {
		return Result{}, fmt.Errorf("resolving revision %.80q: %w", req.Rev, err)
	}
	if err := refuseDirty(ctx, cfg, named.Commit); err != nil {
		return Result{}, err
	}
	rec.Revision = hallmark.Revision{Repository: req.URI, Ref: named.Ref, Commit: named.Commit, Tree: named.Tree}
	res := Result{Provenance: intoto.SourceProvenance{Revision: rec.Revision, Parents: []string{}, Check: rec}}
	if err := judge(ctx, cfg, &res); err != nil {
		return Result{}, err
	}
	rec.FinishedOn = cfg.Clock().UTC()
	return res, nil
}

func refuseDirty(ctx context.Context, cfg Config, commit string) error {
	if cfg.AllowDirty {
		return nil
	}
	dirty, err := cfg.Repository.Dirty(ctx, commit)
	if err != nil {
		return fmt.Errorf("comparing the work tree with %s: %w", commit, err)
	}
	if len(dirty) == 0 {
		return nil
	}
	err = hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceTreeDirty,
		"%d files of the work tree are not as in commit %.12s, such as %.80q", len(dirty), commit, dirty[0])
	return hallmark.WithHint(err, "commit, ignore or remove them, or name the revision of another commit; work tree files are never built")
}

// judge sets the outcome. An error means that the copy could not be read.
func judge(ctx context.Context, cfg Config, res *Result) error {
	rec := res.Provenance.Check
	if why := cfg.Repository.Incomplete(); why != "" {
		rec.Outcome = hallmark.Errored
		rec.Reasons = append(rec.Reasons, hallmark.Reason{Code: hallmark.CodeSourceHistoryIncomplete, Check: CheckName,
			Message: "the history is not whole: " + why,
			Fix:     "git fetch --unshallow, or clone again without --depth, --filter, grafts or missing objects"})
	} else if n, err := cfg.Repository.Commits(ctx, rec.Revision.Commit); err != nil {
		return fmt.Errorf("counting commits: %w", err)
	} else {
		res.Provenance.Commits = n
	}
	raw, err := cfg.Repository.RawCommit(ctx, rec.Revision.Commit)
	if err != nil {
		return fmt.Errorf("reading commit %s: %w", rec.Revision.Commit, err)
	}
	c, err := ParseCommit(rec.Revision.Commit, raw)
	if err != nil {
		// The message quotes the object in %q form only.
		fail(rec, hallmark.CodeSourceObjectInvalid, err.Error(), "make the commit again with a current git")
		return nil
	}
	if c.Tree != rec.Revision.Tree {
		return objectError("commit %s has tree %s, its copy says %s", c.ID, c.Tree, rec.Revision.Tree)
	}
	p := &res.Provenance
	p.Author, p.Committer, p.CommittedOn = c.Author.String(), c.Committer.String(), c.Committer.Time
	p.Parents = append(p.Parents, c.Parents...)
	res.CommitTime = c.Committer.Time
	if err := judgeSignature(cfg, c, res); err != nil {
		return err
	}
	if rec.Outcome == 0 {
		rec.Outcome = hallmark.Pass
		rec.Coverage = &hallmark.Coverage{Scanned: 1, Bytes: int64(len(raw))}
	}
	return nil
}

// fixSign is what makes git sign with an SSH key.
const fixSign = "git -c gpg.format=ssh -c user.signingkey=KEY.pub commit --amend --no-edit -S"

func judgeSignature(cfg Config, c *Commit, res *Result) error {
	rec := res.Provenance.Check
	switch {
	case c.Signature == nil:
		fail(rec, hallmark.CodeSourceUnsigned, "commit "+c.ID+" carries no signature", fixSign)
		return nil
	case bytes.HasPrefix(c.Signature, []byte("-----BEGIN PGP ")),
		bytes.HasPrefix(c.Signature, []byte("-----BEGIN SIGNED MESSAGE-----")):
		fail(rec, hallmark.CodeSourceSignatureFormat, "commit "+c.ID+" has an OpenPGP or X.509 signature; this version verifies SSH signatures", fixSign)
		return nil
	}
	principals, err := cfg.Signers.VerifyGit(c.Payload, c.Signature, c.Committer.Time, cfg.Clock())
	if hallmark.KindOf(err) == hallmark.KindDenied && err != nil {
		fail(rec, hallmark.CodeOf(err), err.Error(), fixFor(hallmark.CodeOf(err)))
		return nil
	}
	if err != nil {
		return fmt.Errorf("verifying the signature of commit %s: %w", c.ID, err)
	}
	i := slices.IndexFunc(principals, func(p hallmark.Principal) bool { return p.Name == c.Committer.Mail })
	if i < 0 {
		key := ""
		if len(principals) > 0 {
			key = principals[0].Key
		}
		fail(rec, hallmark.CodeSourceSignerNotAuthor,
			fmt.Sprintf("commit %s names the committer %.120q, but key %s does not belong to that address", c.ID, c.Committer.Mail, key),
			"commit with the address that the allowed signers list for your key: git -c user.email=ADDRESS commit --amend --no-edit -S")
		return nil
	}
	res.Provenance.Signer = &principals[i]
	return nil
}

func fixFor(code hallmark.Code) string {
	if code == hallmark.CodeSourceSignerNotAllowed {
		return "have the key added to the allowed signers of the signed policy, or sign with a key that is in it"
	}
	return fixSign
}

// fail adds a reason. An outcome that is already "error" stays so: what could
// not be read whole was not judged.
func fail(rec *hallmark.CheckRecord, code hallmark.Code, message, fix string) {
	if rec.Outcome != hallmark.Errored {
		rec.Outcome = hallmark.Fail
	}
	rec.Reasons = append(rec.Reasons, hallmark.Reason{Code: code, Check: CheckName, Message: message, Fix: fix})
}
