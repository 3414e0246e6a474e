// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

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

// Repository is what the check reads. Object must return bytes that hash to the
// name; Commits must walk the whole history and err when any part is missing.
type Repository interface {
	Resolve(rev string) (commit, ref string, err error)
	Object(ctx context.Context, id string) (typ string, body []byte, err error)
	Incomplete() string
	Dirty(ctx context.Context, commit string) ([]string, error)
	Commits(ctx context.Context, commit string) (int, error)
}

// Verdict is what a signature turned out to be.
type Verdict struct {
	Principals []hallmark.Principal
	Code       hallmark.Code // empty when the signature is good
	Message    string
}

// Config is what a check needs.
type Config struct {
	Repository    Repository
	Verify        func(signature, signed []byte, at time.Time) Verdict
	URI           string // canonical locator of the repository
	CommittedOnly bool   // accept a work tree with changes
	Clock         func() time.Time
	Tool          hallmark.Tool
	// Files calls each with every file of a tree. Errors say that the tree can't
	// be read whole.
	Files    func(ctx context.Context, tree string, each func(path string, data []byte) error) error
	Binaries []hallmark.Digest // compiled code that may be in the tree
}

// Check judges a revision. It errs when the revision can't be named, or the work
// tree has changes that the commit has not; everything else is in the record.
func Check(ctx context.Context, cfg Config, rev string) (intoto.SourceProvenance, error) {
	if cfg.Files == nil {
		return intoto.SourceProvenance{}, hallmark.Errorf(hallmark.KindInternal, "a source check that does not look into the tree")
	}
	start := cfg.Clock()
	commit, ref, err := cfg.Repository.Resolve(rev)
	if err != nil {
		return intoto.SourceProvenance{}, err
	}
	_, raw, err := cfg.Repository.Object(ctx, commit)
	if err != nil {
		return intoto.SourceProvenance{}, fmt.Errorf("reading commit %s: %w", commit, err)
	}
	c, err := ParseCommit(raw)
	if err != nil {
		return intoto.SourceProvenance{}, fmt.Errorf("reading commit %s: %w", commit, err)
	}
	if !cfg.CommittedOnly {
		dirty, err := cfg.Repository.Dirty(ctx, commit)
		if err != nil {
			return intoto.SourceProvenance{}, fmt.Errorf("looking for changes: %w", err)
		}
		if len(dirty) > 0 {
			return intoto.SourceProvenance{}, hallmark.WithHint(
				hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceTreeDirty, "the work tree differs from the commit in %d files, such as %q", len(dirty), dirty[0]),
				"commit or remove the changes, or say --committed-only to build the commit without them")
		}
	}
	p := intoto.SourceProvenance{
		Revision: hallmark.Revision{Repository: cfg.URI, Ref: ref, Commit: commit, Tree: c.Tree},
		Author:   c.Author, Committer: c.Committer, CommittedOn: c.When, Parents: c.Parents,
	}
	if p.Parents == nil {
		p.Parents = []string{}
	}
	rec := hallmark.CheckRecord{Check: "source", Revision: p.Revision, StartedOn: start, Tool: cfg.Tool}
	judge(ctx, cfg, c, commit, &p, &rec)
	rec.FinishedOn = cfg.Clock()
	p.Check = &rec
	return p, nil
}

// verify wants the signature to be good now and, by an SSH key, for the time the
// commit claims too. The claim alone is the signer's own word: whoever holds a
// withdrawn key would only have to date the commit back. OpenPGP keys and
// certificates carry their own times, which are held against our clock alone: a
// key that was prolonged has no self-signature any more that is as old as the
// commit.
func verify(cfg Config, c Commit) Verdict {
	if !bytes.HasPrefix(c.Signature, []byte("-----BEGIN SSH SIGNATURE-----")) {
		return cfg.Verify(c.Signature, c.Signed, cfg.Clock())
	}
	then := cfg.Verify(c.Signature, c.Signed, c.When)
	if then.Code != "" {
		return then
	}
	v := cfg.Verify(c.Signature, c.Signed, cfg.Clock())
	if v.Code != "" {
		return v
	}
	v.Principals = slices.DeleteFunc(slices.Clone(v.Principals), func(p hallmark.Principal) bool { return !slices.Contains(then.Principals, p) })
	if len(v.Principals) == 0 {
		return Verdict{Code: hallmark.CodeSourceSignerNotAllowed, Message: "nobody's key was allowed both when the commit says it was made and now"}
	}
	return v
}

const signFix = "sign it: git commit --amend --no-edit -S, with a key that the policy allows"

// fixOf is what to do about a signature that was refused.
func fixOf(code hallmark.Code, sign string) string {
	switch code {
	case hallmark.CodeSourceSignerNotAllowed:
		return "sign with a key that the policy allows, or have an administrator allow this one: hallmark policy set --allowed-signers FILE, --openpgp-keys FILE or --x509-signers FILE"
	case hallmark.CodeSourceSignatureFormat:
		return "set gpg.format to ssh, openpgp or x509, and sign again"
	case hallmark.CodeSourceSignatureWeak:
		return "sign with SHA-256 or better: gpg --digest-algo SHA512, or a newer key"
	case hallmark.CodeSourceKeyExpired, hallmark.CodeSourceKeyRevoked, hallmark.CodeSourceKeyUsage:
		return "sign with a key or certificate that is for signing and in its time, and have an administrator register it: hallmark policy set --openpgp-keys FILE or --x509-signers FILE"
	case hallmark.CodeSourceChain:
		return "sign with a certificate of the registered authority, or have an administrator name its authority: hallmark policy set --x509-signers FILE"
	}
	return sign
}

func judge(ctx context.Context, cfg Config, c Commit, commit string, p *intoto.SourceProvenance, rec *hallmark.CheckRecord) {
	end := func(o hallmark.Outcome, code hallmark.Code, fix, format string, args ...any) {
		rec.Outcome = o
		rec.Reasons = append(rec.Reasons, hallmark.Reason{Code: code, Check: "source", Message: fmt.Sprintf(format, args...), Fix: fix})
	}
	const deepen = "fetch the whole history (git fetch --unshallow), without filters, and run again"
	if why := cfg.Repository.Incomplete(); why != "" {
		end(hallmark.Errored, hallmark.CodeSourceHistoryIncomplete, deepen, "the history can't be judged: %s", why)
		return
	}
	n, err := cfg.Repository.Commits(ctx, commit)
	if err != nil {
		end(hallmark.Errored, hallmark.CodeSourceHistoryIncomplete, deepen, "the history can't be judged: %s", err)
		return
	}
	p.Commits = n
	if c.Signature == nil {
		end(hallmark.Fail, hallmark.CodeSourceUnsigned, signFix, "commit %s is not signed", commit)
		return
	}
	v := verify(cfg, c)
	if v.Code != "" {
		end(hallmark.Fail, v.Code, fixOf(v.Code, signFix), "commit %s: %s", commit, v.Message)
		return
	}
	mail := Mail(c.Committer)
	i := slices.IndexFunc(v.Principals, func(p hallmark.Principal) bool { return p.Name == mail })
	if i < 0 {
		end(hallmark.Fail, hallmark.CodeSourceSignerNotAuthor, "commit under the name that the key is registered for",
			"commit %s is signed with the key of %s, its committer is %q", commit, v.Principals[0].Name, mail)
		return
	}
	signer := v.Principals[i]
	p.Signer = &signer
	why, err := binaries(ctx, cfg, c.Tree)
	switch {
	case err != nil:
		end(hallmark.Errored, hallmark.CodeSourceObjectInvalid, "mend the repository", "the tree can't be read: %s", err)
	case why != nil:
		rec.Outcome, rec.Reasons = hallmark.Fail, append(rec.Reasons, *why)
	default:
		rec.Outcome = hallmark.Pass
	}
}
