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

// lastTransition reads what the log says of a reference: the last transition of it
// in the log's order, which is that of its chain, and which must be kept as
// evidence.
func (h *Home) lastTransition(ctx context.Context, uri, ref string) (lastTransition, error) {
	l, t, ok, err := h.lastLogged(ctx, uri, ref)
	if err != nil || !ok {
		return lastTransition{}, err
	}
	if err := h.evidence(ctx, l); err != nil {
		return lastTransition{}, err
	}
	out := lastTransition{Statement: l.digest, New: t.New, Old: t.Old, Void: t.Void}
	for {
		if strings.Trim(t.New, "0") != "" {
			out.Ever = t.New
			return out, nil
		}
		if t.Previous == "" {
			return out, nil
		}
		before, ok, err := h.loggedAs(ctx, t.Previous)
		if err != nil {
			return out, err
		}
		if !ok || before.at >= l.at {
			return out, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeEvidenceMissing, "the transition of %s before %s is not in the log", ref, l.digest)
		}
		l = before
		if t, err = intoto.DecodePredicate[intoto.RefTransition](l.statement); err != nil {
			return out, err
		}
	}
}

// lastLogged is the last transition of a reference, whether its bundle is kept or not.
func (h *Home) lastLogged(ctx context.Context, uri, ref string) (logged, intoto.RefTransition, bool, error) {
	var t intoto.RefTransition
	l, ok, err := h.newest(ctx, aboutKey, sumKey(intoto.SubjectOfRef(uri, ref)), func(l logged) (bool, error) {
		var ok bool
		var err error
		t, ok, err = moved(l)
		return ok && t.Repository == uri && t.Ref == ref, err
	})
	return l, t, ok, err
}

// moved reads a transition that was allowed; ok is false for anything else.
func moved(l logged) (t intoto.RefTransition, ok bool, err error) {
	if l.statement.PredicateType != intoto.PredicateTransition {
		return t, false, nil
	}
	t, err = intoto.DecodePredicate[intoto.RefTransition](l.statement)
	return t, err == nil && t.Effect == hallmark.Allow, err
}

func sumKey(d intoto.ResourceDescriptor) string { return "sha256:" + d.Digest["sha256"] }

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
	if err := gitcli.EndForwards(ctx, s.home.Repositories()); err != nil {
		return err
	}
	refs := map[[2]string]bool{}
	for _, name := range names {
		chain, err := s.home.logged(ctx, repositoryKey, s.uri(name))
		if err != nil {
			return err
		}
		for _, l := range chain {
			t, ok, err := moved(l)
			if err != nil {
				return err
			}
			refs[[2]string{name, t.Ref}] = refs[[2]string{name, t.Ref}] || ok
		}
		if err := s.mend(ctx, chain); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := sweepLocks(filepath.Join(s.home.Repositories(), name+".git")); err != nil {
			return err
		}
	}
	for r := range refs {
		err := s.settle(ctx, r[0], r[1], "")
		if code := hallmark.CodeOf(err); code == hallmark.CodeUpstreamUnreachable || code == hallmark.CodeUpstreamMoved || code == hallmark.CodeRefBusy {
			s.log.Error("a push to an upstream could not be settled; pushes to the reference are refused until it can be", "repository", r[0], "ref", r[1], "error", err.Error())
			continue
		}
		if hallmark.CodeOf(err) == hallmark.CodeRefOutsideLog {
			s.alerts.tell(Alert{Code: hallmark.CodeRefOutsideLog, On: now().UTC(), Gate: "start", Repository: r[0], Ref: r[1], Message: err.Error(), Remediation: "hallmark source verify --repository " + r[0], Document: remediation + "#ref_moved_outside_gate"})
			s.log.Error("a reference was moved outside of the gate; pushes to it are refused", "repository", r[0], "ref", r[1], "error", err.Error())
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mend signs anew what was logged, has its place in a chain, and whose bundle is
// not kept: the process that signed it was killed in between, or somebody took the
// bundle away. What was in the log is what is signed, and nothing else.
func (s *Server) mend(ctx context.Context, chain []logged) error {
	last, named := map[string]hallmark.Digest{}, map[hallmark.Digest]bool{}
	for _, l := range chain {
		t, ok, err := moved(l)
		if err != nil {
			return err
		}
		if ok {
			last[t.Ref], named[t.Previous] = l.digest, true
		}
	}
	for _, digest := range last {
		named[digest] = true
	}
	reviews, err := s.home.logged(ctx, kindKey, intoto.PredicateReview)
	if err != nil {
		return err
	}
	for _, l := range append(slices.Clone(chain), reviews...) {
		if l.statement.PredicateType == intoto.PredicateTransition && !named[l.digest] {
			continue
		}
		ok, err := s.home.present(ctx, l)
		if err != nil {
			return err
		}
		if ok {
			continue
		}
		payload, err := l.statement.Marshal()
		if err != nil {
			return err
		}
		if got := hallmark.DigestOf(intoto.PAE(intoto.PayloadType, payload)); got != l.digest {
			return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeEvidenceMissing, "entry %d of the log has no bundle, and can't be signed anew as it was", l.at)
		}
		if _, err := s.signer.sign(ctx, sign.Gate, l.statement, nil); err != nil {
			return err
		}
		s.log.Error("logged evidence had no bundle and was signed anew: a process was killed, or somebody took it away", "entry", l.at, "statement", l.digest)
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
