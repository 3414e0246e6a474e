// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/gitcli"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/internal/sqlstore"
	"github.com/hallmark-sc/hallmark/intoto"
)

// lastTransition is where the log says that a reference is.
type lastTransition struct {
	Statement hallmark.Digest // of the newest; "" when there is none
	New       string          // where it is now; "" when it never was, zeros when it is gone
	Old       string
	Ever      string // what it last was, gone or not
	Void      bool
}

// lastTransition reads what the log says of a reference. The index tells where to
// look; each statement is verified again.
func (h *Home) lastTransition(ctx context.Context, uri, ref string) (lastTransition, error) {
	rows, err := h.stores.index.Statements(ctx, "sha256:"+intoto.SubjectOfRef(uri, ref).Digest["sha256"])
	if err != nil {
		return lastTransition{}, err
	}
	var chain []sqlstore.Row
	for _, row := range rows {
		if row.Predicate == intoto.PredicateTransition {
			chain = append(chain, row)
		}
	}
	if len(chain) == 0 {
		return lastTransition{}, nil
	}
	// The index orders by the timestamp, which counts seconds: among the newest,
	// the last is the one that no other follows.
	newest := map[hallmark.Digest]intoto.RefTransition{}
	for i := len(chain) - 1; i >= 0 && chain[i].At.Equal(chain[len(chain)-1].At); i-- {
		if newest[chain[i].Statement], err = h.transitionOf(ctx, uri, ref, chain[i]); err != nil {
			return lastTransition{}, err
		}
	}
	followed := map[hallmark.Digest]bool{}
	for _, t := range newest {
		followed[t.Previous] = true
	}
	var out lastTransition
	var at intoto.RefTransition
	for statement, t := range newest {
		if followed[statement] {
			continue
		}
		if out.Statement != "" {
			return out, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeLogIndexDiffers, "two transitions of %s are the last", ref)
		}
		out, at = lastTransition{Statement: statement, New: t.New, Old: t.Old, Void: t.Void}, t
	}
	if out.Statement == "" {
		return out, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeLogIndexDiffers, "no transition of %s is the last", ref)
	}
	for range chain {
		if strings.Trim(at.New, "0") != "" {
			out.Ever = at.New
			break
		}
		i := slices.IndexFunc(chain, func(r sqlstore.Row) bool { return r.Statement == at.Previous })
		if i < 0 {
			break
		}
		if at, err = h.transitionOf(ctx, uri, ref, chain[i]); err != nil {
			return out, err
		}
	}
	return out, nil
}

// transitionOf reads a transition that the index says is of a reference.
func (h *Home) transitionOf(ctx context.Context, uri, ref string, row sqlstore.Row) (intoto.RefTransition, error) {
	t, err := h.readTransition(ctx, row.Bundle)
	if err == nil && (t.Repository != uri || t.Ref != ref || t.Effect != hallmark.Allow) {
		err = hallmark.Coded(hallmark.KindInvalid, hallmark.CodeLogIndexDiffers, "the index gives a statement about another reference for %s", ref)
	}
	return t, err
}

func (h *Home) readTransition(ctx context.Context, bundle hallmark.Digest) (intoto.RefTransition, error) {
	return readGateStatement[intoto.RefTransition](ctx, h, bundle)
}

// readGateStatement verifies a bundle and reads its predicate.
func readGateStatement[T any](ctx context.Context, h *Home, bundle hallmark.Digest) (T, error) {
	var none T
	b, err := h.stores.blobs.Get(ctx, bundle)
	if err != nil {
		return none, fmt.Errorf("reading evidence: %w", err)
	}
	st, err := h.verifier.Verify(b)
	if err != nil {
		return none, fmt.Errorf("verifying evidence: %w", err)
	}
	return intoto.DecodePredicate[T](st.Statement())
}

// uri is the locator of a repository; it never changes while the home lives.
func (s *Server) uri(repository string) string { return s.home.repositoryURI(repository) }

func (h *Home) repositoryURI(name string) string {
	return "https://" + h.id.trustDomain() + "/" + name + ".git"
}

// settle makes a reference and the log agree: what was logged and did not happen
// is carried out where that is still possible, and else logged as void. own is the
// transition that the caller knows to be over; of any other one the move may be
// under way. "" is any, for who knows that nothing is.
func (s *Server) settle(ctx context.Context, repository, ref string, own hallmark.Digest) error {
	dir := filepath.Join(s.home.Repositories(), repository+".git")
	last, err := s.home.lastTransition(ctx, s.uri(repository), ref)
	if err != nil || last.Statement == "" || own != "" && last.Statement != own {
		return err
	}
	is, err := gitcli.Value(ctx, dir, ref)
	if err != nil || is == last.New || strings.Trim(is+last.New, "0") == "" {
		return err
	}
	up, err := s.home.upstream(repository)
	if err != nil {
		return err
	}
	behind := !last.Void && (is == last.Old || strings.Trim(is+last.Old, "0") == "")
	if behind && up != nil {
		done, err := s.arrived(ctx, up, dir, ref, last, is)
		if err != nil {
			return fmt.Errorf("settling %s of %s: %w", ref, repository, err)
		}
		if done {
			s.log.Warn("a transition that reached the upstream was carried out late", "repository", repository, "ref", ref, "new", last.New)
			return nil
		}
	} else if behind {
		if err := gitcli.Move(ctx, dir, ref, last.New, is); err == nil {
			s.log.Warn("a logged transition was carried out late", "repository", repository, "ref", ref, "new", last.New)
			return nil
		}
	}
	st, err := attest.RefTransition(intoto.RefTransition{
		Repository: s.uri(repository), Ref: ref, Old: last.New, New: is, Effect: hallmark.Allow, On: now(), Policy: s.rules().policy,
		Actor: hallmark.Principal{Name: "hallmark", Method: "local"}, Previous: last.Statement, Void: true,
	})
	if err != nil {
		return err
	}
	if is != last.Old && strings.Trim(is+last.Old, "0") != "" {
		return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeRefOutsideLog, "%s of %s is at %s, the log says %s", ref, repository, is, last.New)
	}
	_, err = s.signer.sign(ctx, sign.Gate, st, nil)
	return err
}

// recover settles every reference after a start: a server may have been killed
// between the log and the move.
func (s *Server) recover(ctx context.Context) error {
	names, err := s.home.repositoryNames()
	if err != nil {
		return err
	}
	logged, err := s.home.stores.index.OfPredicate(ctx, intoto.PredicateTransition)
	if err != nil {
		return err
	}
	if err := gitcli.EndForwards(ctx, s.home.Repositories()); err != nil {
		return err
	}
	refs := map[[2]string]bool{}
	for _, row := range logged {
		t, err := s.home.readTransition(ctx, row.Bundle)
		if err != nil {
			return err
		}
		for _, name := range names {
			if t.Effect == hallmark.Allow && t.Repository == s.uri(name) {
				refs[[2]string{name, t.Ref}] = true
			}
		}
	}
	for _, name := range names {
		if err := sweepLocks(filepath.Join(s.home.Repositories(), name+".git")); err != nil {
			return err
		}
	}
	for r := range refs {
		err := s.settle(ctx, r[0], r[1], "")
		if code := hallmark.CodeOf(err); code == hallmark.CodeUpstreamUnreachable || code == hallmark.CodeUpstreamMoved {
			s.log.Error("the upstream can't be asked how a push ended; pushes to the reference are refused until it can", "repository", r[0], "ref", r[1], "error", err.Error())
			continue
		}
		if hallmark.CodeOf(err) == hallmark.CodeRefOutsideLog {
			s.log.Error("a reference was moved outside of the gate; pushes to it are refused", "repository", r[0], "ref", r[1], "error", err.Error())
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sweepLocks removes what killed git processes left: no other process than this
// server's works in the repository, and none of them lives at a start.
func sweepLocks(dir string) error {
	var locks []string
	for _, pattern := range []string{"*.lock", "objects/tmp_objdir-*", "objects/incoming-*"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return fmt.Errorf("looking for locks in %s: %w", dir, err)
		}
		locks = append(locks, found...)
	}
	err := filepath.WalkDir(filepath.Join(dir, "refs"), func(p string, _ os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(p, ".lock") {
			locks = append(locks, p)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("looking for locks in %s: %w", dir, err)
	}
	for _, l := range locks {
		if err := os.RemoveAll(l); err != nil {
			return fmt.Errorf("removing %s: %w", l, err)
		}
	}
	return nil
}
