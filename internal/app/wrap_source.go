// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/gitcli"
	"github.com/hallmark-sc/hallmark/internal/toolchain"
)

// workTree is the git work tree that a command runs in, as it was before.
type workTree struct {
	repo    *gitcli.Repository // nil: there is none
	root    string
	rev     hallmark.Revision
	differs string // a path that is not what the commit says
	files   map[string]hallmark.Digest
	count   int
	digest  hallmark.Digest // of the manifest
}

// readSource reads the commit that is checked out, from its objects. That there is
// none is no error.
func (w *wrapping) readSource(ctx context.Context) (workTree, error) {
	t, err := w.openWorkTree(ctx)
	if errors.Is(err, errNoWorkTree) {
		return workTree{}, nil
	}
	return t, err
}

func (w *wrapping) openWorkTree(ctx context.Context) (workTree, error) {
	var t workTree
	repo, uri, err := openRepository(ctx, RunConfig{Repo: w.dir, Out: w.cfg.Out, RepositoryURI: w.cfg.RepositoryURI}, w.work)
	if hallmark.KindOf(err) == hallmark.KindNotFound {
		return t, errNoWorkTree
	}
	if err != nil {
		return t, err
	}
	t.repo, t.root = repo, repo.WorkTree()
	if t.root == "" {
		return t, errNoWorkTree
	}
	if w.cfg.RepositoryURI == "" {
		uri = "file://" + t.root
	}
	commit, ref, err := repo.Resolve("HEAD")
	if hallmark.KindOf(err) == hallmark.KindNotFound {
		return t, errNoWorkTree // no commit yet
	}
	if err != nil {
		return t, err
	}
	typ, body, err := repo.Object(ctx, commit)
	if err != nil {
		return t, fmt.Errorf("reading commit %s: %w", commit, err)
	}
	line, _, _ := strings.Cut(string(body), "\n")
	tree, ok := strings.CutPrefix(line, "tree ")
	if typ != "commit" || !ok {
		return t, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceObjectInvalid, "%s is no commit", commit)
	}
	t.rev = hallmark.Revision{Repository: uri, Ref: ref, Commit: commit, Tree: tree}
	return t, w.exportTo(ctx, &t)
}

// exportTo writes the commit's files to a private place to learn their digests,
// and compares the work tree. What can't be exported is not what the commit says.
func (w *wrapping) exportTo(ctx context.Context, t *workTree) error {
	dirty, err := t.repo.Dirty(ctx, t.rev.Commit)
	if err != nil {
		return err
	}
	if len(dirty) > 0 {
		t.differs = dirty[0]
	}
	dir := filepath.Join(w.work, "source")
	m, err := t.repo.Export(ctx, t.rev.Tree, dir, time.Unix(0, 0))
	if err != nil {
		t.differs = err.Error()
		return nil
	}
	t.count, t.digest = m.Files, m.Digest
	if t.files, err = digestsBelow(dir); err != nil {
		return fmt.Errorf("hashing the source: %w", err)
	}
	return nil
}

// moved says what of the source is not as it was before the command, or "". New
// files are the command's work.
func (t workTree) moved(ctx context.Context) (string, error) {
	if t.rev.Commit == "" {
		return "", nil
	}
	commit, _, err := t.repo.Resolve("HEAD")
	if err != nil {
		return "HEAD: " + err.Error(), nil
	}
	if commit != t.rev.Commit {
		return "HEAD is commit " + commit + " now", nil
	}
	dirty, err := t.repo.Dirty(ctx, commit)
	if err != nil {
		return "", err
	}
	for _, p := range dirty {
		if _, ok := t.files[p]; ok && t.differs == "" {
			return p, nil
		}
	}
	return "", nil
}

// describe is what evidence says of the work tree, and the revision that was built.
func (t workTree) describe() (*attest.WorkTree, hallmark.Revision) {
	if t.rev.Commit == "" {
		return nil, hallmark.Revision{}
	}
	out := &attest.WorkTree{Commit: t.rev.Commit, Tree: t.rev.Tree, Dirty: t.differs != "", Differs: text(build.Raw(t.differs))}
	if out.Dirty {
		return out, hallmark.Revision{}
	}
	return out, t.rev
}

// origins say where what a command read came from. Nothing was empty when it
// began: what was there and is of no commit and no package is not explained.
func (t workTree) origins(known *toolchain.Contents) (build.Origins, error) {
	places, err := kit{}.places(known)
	if err != nil {
		return build.Origins{}, err
	}
	nobody := func(string) (string, bool) { return "", false }
	places = append(places, build.Place{Prefix: "/dev/shm", Origin: build.OriginUnexplained, Owner: nobody})
	o := build.Origins{Workspace: t.root, Source: t.files, Places: places}
	if t.root == "" {
		o.Workspace = "/nonexistent"
		return o, nil
	}
	o.Places = append(o.Places, build.Place{Prefix: t.root, Origin: build.OriginUnexplained, Owner: nobody})
	return o, nil
}

// onHost corrects origins that rest on a name: outside of a sandbox a command may
// have written the file, or have mounted another in its place. A package has what
// the file of that name holds and has held since before the command.
func onHost(all []build.Material, sum *build.Summary, began time.Time) []build.Material {
	for i, m := range all {
		if !(m.Origin == build.OriginKernel && m.Digest != "" || m.Content == build.ContentAltered || m.Origin == build.OriginToolchain && !unchanged(string(m.Path), m.Digest, began)) {
			continue
		}
		all[i].Origin = build.OriginUnexplained
		if m.Content != build.ContentAltered {
			all[i].Package, all[i].Content = "", ""
		}
		if sum.Wrote(m.Digest) {
			all[i].Origin, all[i].Content, all[i].Why = build.OriginBuild, "", ""
		}
	}
	return all
}

func unchanged(path string, want hallmark.Digest, since time.Time) bool {
	if want == "" {
		return true // no content of its own
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !time.Unix(sys.Ctim.Unix()).Before(since) {
		return false
	}
	d, _, err := hallmark.DigestFrom(f)
	return err == nil && d == want
}
