// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/blob"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/internal/sqlstore"
	"github.com/hallmark-sc/hallmark/internal/translog"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// stores are the two places a home keeps things in: blobs, which with the log
// are the truth, and the index, which is made from them.
type stores struct {
	blobs *blob.Store
	index *sqlstore.Store
}

func openStores(l Layout) (*stores, error) {
	blobs, err := blob.New(blob.Config{Dir: l.Blobs(), Disk: durable.Disk{Inherit: true}})
	if err != nil {
		return nil, fmt.Errorf("opening blobs: %w", err)
	}
	index, err := sqlstore.Open(sqlstore.Config{Path: l.Index()})
	if err != nil {
		return nil, fmt.Errorf("opening the index: %w", err)
	}
	return &stores{blobs: blobs, index: index}, nil
}

func (s *stores) close() error { return s.index.Close() }

// logSigner signs statements into bundles and keeps them. It opens the log when
// the first statement comes, since one process at a time may hold it, and
// closes it with the run.
type logSigner struct {
	layout Layout
	id     identityFile
	keys   *sign.Keyring
	stores *stores
	// An administrator's key for policies and the name that the roots give it;
	// set before the first statement, where the home has none of its own.
	policyKey  *sign.PolicyKey
	policyName string
	memory     string // directory of the checkpoints seen

	once   sync.Once
	log    *translog.Log
	signer *sign.Signer
	err    error
}

func newSigner(l Layout, id identityFile, keys *sign.Keyring, st *stores) *logSigner {
	return &logSigner{layout: l, id: id, keys: keys, stores: st, memory: l.Memory()}
}

func (s *logSigner) open(ctx context.Context) error {
	s.once.Do(func() {
		if err := os.MkdirAll(s.layout.Guard(), 0o700); err != nil {
			s.err = hallmark.Errorf(hallmark.KindInternal, "making the guard directory: %w", err)
			return
		}
		checkpoint, err := s.keys.CheckpointSigner(s.id.origin())
		if err != nil {
			s.err = err
			return
		}
		known, err := headSeen(s.memory, s.id)
		if err != nil {
			s.err = err
			return
		}
		s.log, s.err = translog.Open(ctx, translog.Config{
			Dir: s.layout.Log(), Origin: s.id.origin(), Signer: checkpoint, PublicKey: s.keys.Checkpoint().Key,
			Guard: translog.NewFileGuard(guardPath(s.layout, s.id)), Index: s.stores.index, Known: known,
			Settle: func() error { return giveLogBack(s.layout) },
		})
		if s.err != nil {
			return
		}
		s.signer, s.err = sign.NewSigner(sign.SignerConfig{
			Keyring: s.keys, Log: s.log, TrustDomain: s.id.trustDomain(), Clock: now, Existing: s.existing, PolicyKey: s.policyKey,
		})
	})
	return s.err
}

func guardPath(l Layout, id identityFile) string {
	return filepath.Join(l.Guard(), id.origin()+".json")
}

// knownHead is the largest checkpoint that the home saw in a bundle it verified.
// Opening a home verifies its policy's bundle, so a home that was made knows one.
func knownHead(l Layout, id identityFile) (translog.Head, error) { return headSeen(l.Memory(), id) }

func headSeen(dir string, id identityFile) (translog.Head, error) {
	memory, err := verify.NewFileMemory(dir)
	if err != nil {
		return translog.Head{}, fmt.Errorf("opening the memory of checkpoints: %w", err)
	}
	size, root, err := memory.Largest(id.origin())
	if err != nil {
		return translog.Head{}, fmt.Errorf("reading the largest checkpoint seen: %w", err)
	}
	return translog.Head{Origin: id.origin(), Size: size, Root: root}, nil
}

// existing finds the bundle that was made for a statement before. One whose
// bytes were lost or altered is as good as none: the statement is signed anew,
// with a second entry in the log.
func (s *logSigner) existing(ctx context.Context, statement hallmark.Digest) ([]byte, bool, error) {
	digest, ok, err := s.stores.index.BundleOf(ctx, statement)
	if err != nil || !ok {
		return nil, false, err
	}
	b, err := s.stores.blobs.Get(ctx, digest)
	switch {
	case hallmark.KindOf(err) == hallmark.KindNotFound, hallmark.CodeOf(err) == hallmark.CodeEvidenceMalformed:
		return nil, false, nil
	case err != nil:
		return nil, false, fmt.Errorf("reading bundle %s: %w", digest, err)
	}
	return b, true, nil
}

// sign makes a bundle and keeps it: payload first, so that no leaf of the log
// stands for bytes that nobody has.
func (s *logSigner) sign(ctx context.Context, who sign.Identity, st intoto.Statement, permit *sign.Permit) (sign.Bundle, error) {
	if err := s.open(ctx); err != nil {
		return sign.Bundle{}, fmt.Errorf("opening the log: %w", err)
	}
	payload, err := st.Marshal()
	if err != nil {
		return sign.Bundle{}, err
	}
	if _, err := s.stores.blobs.Put(ctx, intoto.PAE(intoto.PayloadType, payload)); err != nil {
		return sign.Bundle{}, fmt.Errorf("keeping a statement: %w", err)
	}
	b, err := s.signer.Sign(ctx, sign.Request{Identity: who, Statement: payload, Permit: permit})
	if err != nil {
		return sign.Bundle{}, err
	}
	if _, err := s.stores.blobs.Put(ctx, b.JSON); err != nil {
		return sign.Bundle{}, fmt.Errorf("keeping a bundle: %w", err)
	}
	name := signerName(who)
	if who == sign.Policy && s.policyName != "" {
		name = s.policyName
	}
	if err := s.stores.index.PutStatement(ctx, rowOf(st, b, name, b.SignedAt)); err != nil {
		return sign.Bundle{}, fmt.Errorf("indexing a bundle: %w", err)
	}
	return b, nil
}

// Sign implements pipeline.Signer.
func (s *logSigner) Sign(ctx context.Context, role pipeline.Role, st intoto.Statement, permit *pipeline.Permit) (pipeline.Signed, error) {
	who, ok := map[pipeline.Role]sign.Identity{
		pipeline.Observer: sign.Observer, pipeline.Platform: sign.Builder, pipeline.Release: sign.Release,
	}[role]
	if !ok {
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

func (s *logSigner) close() error {
	if s.log == nil {
		return nil
	}
	return s.log.Close()
}

func signerName(who sign.Identity) string {
	return map[sign.Identity]string{sign.Observer: "observer", sign.Builder: "builder", sign.Release: "release", sign.Policy: "policy", sign.Wrapper: wrapperName, sign.Gate: gateName, sign.Server: serverName}[who]
}

// rowOf is what the index holds of a bundle.
func rowOf(st intoto.Statement, b sign.Bundle, signer string, at time.Time) sqlstore.Row {
	r := sqlstore.Row{Statement: b.Statement, Bundle: b.Digest, Predicate: st.PredicateType, Signer: signer, At: at}
	for _, s := range st.Subject {
		for alg, v := range s.Digest {
			r.Subjects = append(r.Subjects, alg+":"+v)
		}
	}
	return r
}
