// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/translog"
	"github.com/hallmark-sc/hallmark/intoto"
)

// journal is what the log says, found by what it is about. It is made from the
// entries of the log in their order (the entry names a statement, whose bytes are
// a blob under that digest) and from nothing else: rows that somebody takes out
// of the index or puts into it change no list, and a statement whose bytes are
// gone is an error, never a shorter list. Each look-up reads on to the newest
// checkpoint, so what was logged before it was asked is in it.
//
// Keys are cut to eight bytes: they tell where to look, and what stands there is
// compared with what was asked for.
type journal struct {
	mu         sync.Mutex
	follow     *translog.Follower
	statements [][sha256.Size]byte // by position
	keys       map[uint64][]uint32 // positions
	pending    [][sha256.Size]byte // read from the log, and not looked at yet
	verified   sync.Map            // statements whose bundle was verified in this process
	hides      func(hallmark.Digest) bool
}

// logged is one statement in the log, as the bytes under its digest have it.
type logged struct {
	at        uint64
	digest    hallmark.Digest
	statement intoto.Statement
}

// Kinds of keys. Those of statements about a revision tell apart what is asked for
// from what only is about the same one: evidence of a build is large.
const (
	aboutKey      = "about"      // a subject, as algorithm:value, of a statement of the gates
	checkKey      = "check"      // a commit that a check record, or provenance, is about
	repositoryKey = "repository" // a repository, of transitions that were allowed
	kindKey       = "kind"       // a predicate type
	statementKey  = "statement"  // a digest
)

func keyOf(kind, value string) uint64 {
	sum := sha256.Sum256([]byte(kind + "\x00" + value))
	return binary.BigEndian.Uint64(sum[:8])
}

// keysOf are the keys under which a statement is found.
func keysOf(st intoto.Statement) [][2]string {
	out := [][2]string{{kindKey, st.PredicateType}}
	switch st.PredicateType {
	case intoto.PredicateTransition, intoto.PredicateReview, intoto.PredicateAccess:
		for _, s := range st.Subject {
			for alg, v := range s.Digest {
				out = append(out, [2]string{aboutKey, alg + ":" + v})
			}
		}
	}
	switch st.PredicateType {
	case intoto.PredicateTransition:
		var t struct {
			Repository string          `json:"repository"`
			Effect     hallmark.Effect `json:"effect"`
		}
		if json.Unmarshal(st.Predicate, &t) == nil && t.Effect == hallmark.Allow {
			out = append(out, [2]string{repositoryKey, t.Repository})
		}
	case intoto.PredicateProvenance:
		var p struct {
			BuildDefinition struct {
				ExternalParameters struct {
					Revision string `json:"revision"`
				} `json:"externalParameters"`
			} `json:"buildDefinition"`
		}
		if json.Unmarshal(st.Predicate, &p) == nil && p.BuildDefinition.ExternalParameters.Revision != "" {
			out = append(out, [2]string{checkKey, p.BuildDefinition.ExternalParameters.Revision})
		}
	}
	if bytes.Contains(st.Predicate, []byte(intoto.ExtensionCheck)) {
		if rec, err := intoto.CheckOf(st); err == nil && rec != nil && rec.Revision.Commit != "" {
			out = append(out, [2]string{checkKey, rec.Revision.Commit})
		}
	}
	return out
}

// catchUp reads what was logged since. The caller holds the lock.
func (j *journal) catchUp(ctx context.Context, h *Home) error {
	if j.follow == nil {
		r, err := h.reader()
		if err != nil {
			return err
		}
		known, err := knownHead(h.Layout, h.id)
		if err != nil {
			return err
		}
		if err := r.Check(ctx, h.guard(), known); err != nil {
			return fmt.Errorf("reading the log: %w", err)
		}
		j.follow, j.keys = r.Follow(known.Size), map[uint64][]uint32{}
	}
	var fresh [][sha256.Size]byte
	_, err := j.follow.Next(ctx, func(i uint64, body []byte) error {
		d, err := translog.StatementOf(body)
		if err != nil {
			return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeLogEntryAltered, "entry %d: %w", i, err)
		}
		raw, err := hex.DecodeString(d.Hex())
		if err != nil {
			return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeLogEntryAltered, "entry %d: %w", i, err)
		}
		fresh = append(fresh, [sha256.Size]byte(raw))
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading the log: %w", err)
	}
	// What was read and could not be looked at, since bytes of it were missing, is
	// tried again each time: until then nothing can be said of anything.
	j.pending = append(j.pending, fresh...)
	keys := make([][]uint64, len(j.pending))
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(runtime.GOMAXPROCS(0))
	for part := range slices.Chunk(seq(len(j.pending)), 64) {
		work.Go(func() error {
			for _, i := range part {
				st, ok, err := h.said(ctx, hallmark.DigestFromSum(j.pending[i]))
				if err != nil {
					return fmt.Errorf("reading entry %d of the log: %w", len(j.statements)+i, err)
				}
				if ok {
					for _, k := range keysOf(st) {
						keys[i] = append(keys[i], keyOf(k[0], k[1]))
					}
				}
			}
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		return err
	}
	for i, d := range j.pending {
		at := uint32(len(j.statements))
		j.statements = append(j.statements, d)
		for _, k := range append(keys[i], keyOf(statementKey, string(hallmark.DigestFromSum(d)))) {
			if l := j.keys[k]; len(l) == 0 || l[len(l)-1] != at {
				j.keys[k] = append(l, at)
			}
		}
	}
	j.pending = nil
	return nil
}

func seq(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// find returns the positions at which a key may be, and what stands there, each
// statement once and at its first place: one that was signed anew stands there
// again.
func (j *journal) find(ctx context.Context, h *Home, key uint64) ([]uint32, []hallmark.Digest, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.catchUp(ctx, h); err != nil {
		return nil, nil, err
	}
	var at []uint32
	var digests []hallmark.Digest
	for _, p := range j.keys[key] {
		d := hallmark.DigestFromSum(j.statements[p])
		if j.hides != nil && j.hides(d) {
			continue
		}
		if own := j.keys[keyOf(statementKey, string(d))]; !slices.ContainsFunc(own, func(q uint32) bool { return q < p && j.statements[q] == j.statements[p] }) {
			at, digests = append(at, p), append(digests, d)
		}
	}
	return at, digests, nil
}

// logged returns every statement in the log with a key, in its order.
func (h *Home) logged(ctx context.Context, kind, value string) ([]logged, error) {
	at, digests, err := h.journal.find(ctx, h, keyOf(kind, value))
	if err != nil {
		return nil, err
	}
	var out []logged
	for i, d := range digests {
		l, err := h.loggedAt(ctx, at[i], d)
		if err != nil {
			return nil, err
		}
		if slices.Contains(keysOf(l.statement), [2]string{kind, value}) {
			out = append(out, l)
		}
	}
	return out, nil
}

// newest returns the last statement with a key that fits; ok is false when there
// is none.
func (h *Home) newest(ctx context.Context, kind, value string, fits func(logged) (bool, error)) (logged, bool, error) {
	at, digests, err := h.journal.find(ctx, h, keyOf(kind, value))
	if err != nil {
		return logged{}, false, err
	}
	for i, d := range slices.Backward(digests) {
		l, err := h.loggedAt(ctx, at[i], d)
		if err != nil {
			return logged{}, false, err
		}
		if !slices.Contains(keysOf(l.statement), [2]string{kind, value}) {
			continue
		}
		if ok, err := fits(l); ok || err != nil {
			return l, ok, err
		}
	}
	return logged{}, false, nil
}

// loggedAs returns a statement by its digest; ok is false when it is not in the log.
func (h *Home) loggedAs(ctx context.Context, d hallmark.Digest) (logged, bool, error) {
	at, digests, err := h.journal.find(ctx, h, keyOf(statementKey, string(d)))
	if err != nil {
		return logged{}, false, err
	}
	i := slices.Index(digests, d)
	if i < 0 {
		return logged{}, false, nil
	}
	l, err := h.loggedAt(ctx, at[i], d)
	return l, err == nil, err
}

func (h *Home) loggedAt(ctx context.Context, at uint32, d hallmark.Digest) (logged, error) {
	st, ok, err := h.said(ctx, d)
	if err == nil && !ok {
		err = hallmark.Coded(hallmark.KindInvalid, hallmark.CodeEvidenceMalformed, "%s is no statement", d)
	}
	if err != nil {
		return logged{}, fmt.Errorf("reading entry %d of the log: %w", at, err)
	}
	return logged{at: uint64(at), digest: d, statement: st}, nil
}

// unkeptFor is how long a statement may be in the log before its bundle is kept:
// whoever signed it is about to.
const unkeptFor = 2 * time.Second

// kept reports whether the bundle of a statement is kept and verifies: what speaks
// for somebody must be evidence that can be shown. What speaks against them
// counts without.
func (h *Home) kept(ctx context.Context, l logged) (bool, error) {
	if _, ok := h.journal.verified.Load(l.digest); ok {
		return true, nil
	}
	bundle, ok, err := h.stores.index.BundleOf(ctx, l.digest)
	if err != nil || !ok {
		return false, err
	}
	b, err := h.stores.blobs.Get(ctx, bundle)
	if hallmark.KindOf(err) == hallmark.KindNotFound || hallmark.CodeOf(err) == hallmark.CodeEvidenceMalformed {
		return false, nil // gone, or not what was kept
	}
	if err != nil {
		return false, fmt.Errorf("reading evidence: %w", err)
	}
	v, err := h.verifier.Verify(b)
	if err != nil {
		return false, fmt.Errorf("verifying evidence: %w", err)
	}
	if v.Digest() != l.digest {
		return false, hallmark.WithHint(hallmark.Coded(hallmark.KindInvalid, hallmark.CodeLogIndexDiffers, "the index gives %s for %s", v.Digest(), l.digest), "hallmark log fsck --rebuild")
	}
	h.journal.verified.Store(l.digest, true)
	return true, nil
}

// present reports whether the index names a bundle of a statement that is kept,
// whatever is in it.
func (h *Home) present(ctx context.Context, l logged) (bool, error) {
	bundle, ok, err := h.stores.index.BundleOf(ctx, l.digest)
	if err != nil || !ok {
		return false, err
	}
	_, err = h.stores.blobs.Get(ctx, bundle)
	if hallmark.KindOf(err) == hallmark.KindNotFound || hallmark.CodeOf(err) == hallmark.CodeEvidenceMalformed {
		return false, nil
	}
	return err == nil, err
}

// evidence wants the bundle of a statement, and waits a moment for it.
func (h *Home) evidence(ctx context.Context, l logged) error {
	for end := now().Add(unkeptFor); ; {
		ok, err := h.kept(ctx, l)
		if ok || err != nil {
			return err
		}
		if now().After(end) {
			return hallmark.WithHint(hallmark.Coded(hallmark.KindInvalid, hallmark.CodeEvidenceMissing, "entry %d of the log is a %s of which no bundle is kept: whoever signed it was stopped, or somebody took it away", l.at, l.statement.PredicateType),
				"hallmark log fsck --rebuild finds what the index lost; hallmark serve signs it anew when it starts")
		}
		select {
		case <-ctx.Done():
			return hallmark.Errorf(hallmark.KindUnavailable, "waiting for evidence: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// said is the statement that a log entry is about: its bytes were kept before it
// was logged. ok is false for bytes that are none. Where they are gone, the bundle
// has them too.
func (h *Home) said(ctx context.Context, d hallmark.Digest) (st intoto.Statement, ok bool, err error) {
	pae, err := h.stores.blobs.Get(ctx, d)
	if err != nil {
		if pae = h.fromBundle(ctx, d); pae == nil {
			return st, false, hallmark.WithHint(hallmark.Coded(hallmark.KindInvalid, hallmark.CodeEvidenceMissing, "the bytes of a logged statement are gone or altered: %w", err),
				"put the blob back from a copy of "+h.Blobs()+"; hallmark log fsck lists what is missing")
		}
		if _, err := h.stores.blobs.Put(ctx, pae); err != nil {
			return st, false, fmt.Errorf("keeping a statement: %w", err)
		}
	}
	head := intoto.PAE(intoto.PayloadType, nil) // ends in the length of nothing
	head = head[:len(head)-len("0 ")]
	if !bytes.HasPrefix(pae, head) {
		return st, false, nil
	}
	rest := pae[len(head):]
	payload := rest[bytes.IndexByte(rest, ' ')+1:]
	if !bytes.Equal(intoto.PAE(intoto.PayloadType, payload), pae) || json.Unmarshal(payload, &st) != nil {
		return intoto.Statement{}, false, nil
	}
	return st, true, nil
}

// fromBundle is what a statement's digest is of, out of the bundle that the index
// names; nil when there is none.
func (h *Home) fromBundle(ctx context.Context, d hallmark.Digest) []byte {
	bundle, ok, err := h.stores.index.BundleOf(ctx, d)
	if err != nil || !ok {
		return nil
	}
	b, err := h.stores.blobs.Get(ctx, bundle)
	if err != nil {
		return nil
	}
	v, err := h.verifier.Verify(b)
	if err != nil || v.Digest() != d {
		return nil
	}
	return intoto.PAE(intoto.PayloadType, v.Payload())
}
