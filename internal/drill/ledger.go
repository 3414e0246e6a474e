// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/blob"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/internal/sqlstore"
	"github.com/hallmark-sc/hallmark/internal/translog"
	"github.com/hallmark-sc/hallmark/tlog"
	"github.com/hallmark-sc/hallmark/verify"
)

// ledger signs and logs in one home, with a guard of the caller's choice.
type ledger struct {
	index  *sqlstore.Store
	blobs  *blob.Store
	log    *translog.Log
	signer *sign.Signer
	keys   *sign.Keyring
}

// rootsOf reads the roots of a home that the drill made.
func rootsOf(home string) (*verify.Roots, error) {
	b, err := os.ReadFile(app.Layout{Home: home}.Roots())
	if err != nil {
		return nil, err
	}
	return verify.ParseRoots(b)
}

// openLedger opens a home for signing; a nil guard is the home's own.
func openLedger(ctx context.Context, home string, guard translog.Guard) (*ledger, error) {
	l := &ledger{}
	if err := l.open(ctx, home, guard); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

func (l *ledger) open(ctx context.Context, home string, guard translog.Guard) error {
	layout := app.Layout{Home: home}
	roots, err := rootsOf(home)
	if err != nil {
		return err
	}
	origin := roots.Logs[0].Origin
	if guard == nil {
		guard = translog.NewFileGuard(filepath.Join(layout.Guard(), origin+".json"))
	}
	if l.blobs, err = blob.New(blob.Config{Dir: layout.Blobs()}); err != nil {
		return err
	}
	if l.index, err = sqlstore.Open(sqlstore.Config{Path: layout.Index()}); err != nil {
		return err
	}
	if l.keys, err = sign.Load(sign.Config{Dir: home, TrustDomain: roots.TrustDomain, Clock: clock}); err != nil {
		return err
	}
	checkpoint, err := l.keys.CheckpointSigner(origin)
	if err != nil {
		return err
	}
	if l.log, err = translog.Open(ctx, translog.Config{
		Dir: layout.Log(), Origin: origin, Signer: checkpoint, PublicKey: l.keys.Checkpoint().Key, Guard: guard, Index: l.index,
	}); err != nil {
		return err
	}
	l.signer, err = sign.NewSigner(sign.SignerConfig{Keyring: l.keys, Log: l.log, TrustDomain: roots.TrustDomain, Clock: clock})
	return err
}

func (l *ledger) close() error {
	var errs []error
	if l.log != nil {
		errs = append(errs, l.log.Close())
	}
	if l.index != nil {
		errs = append(errs, l.index.Close())
	}
	return errors.Join(errs...)
}

// observe signs, logs and keeps a test result that says what.
func (l *ledger) observe(ctx context.Context, what string) (sign.Bundle, error) {
	name := hallmark.DigestOf([]byte(what)).Hex()[:40]
	rec := hallmark.CheckRecord{Check: "tests", Outcome: hallmark.Pass, Revision: hallmark.Revision{Repository: "file:///" + what, Commit: name, Tree: name}, StartedOn: clock(), FinishedOn: clock()}
	st, err := attest.TestResult(rec, nil, nil, nil)
	if err != nil {
		return sign.Bundle{}, err
	}
	payload, err := st.Marshal()
	if err != nil {
		return sign.Bundle{}, err
	}
	b, err := l.signer.Sign(ctx, sign.Request{Identity: sign.Observer, Statement: payload})
	if err != nil {
		return b, err
	}
	for _, bytes := range [][]byte{b.PAE, b.JSON} {
		if _, err := l.blobs.Put(ctx, bytes); err != nil {
			return b, err
		}
	}
	return b, l.index.PutStatement(ctx, sqlstore.Row{Statement: b.Statement, Bundle: b.Digest, Predicate: st.PredicateType, Signer: "observer", At: clock(), Subjects: []string{"gitCommit:" + name}})
}

// forgetful is a guard without a memory: what the log shows is what was signed.
type forgetful struct{ home string }

func (f *forgetful) Head(_ context.Context, origin string) (*translog.Head, error) {
	cp, err := checkpointOf(f.home)
	if err != nil {
		return nil, err
	}
	return &translog.Head{Origin: origin, Size: cp.Size, Root: cp.Root}, nil
}

func (f *forgetful) Advance(ctx context.Context, origin string, step func(old *translog.Head) (translog.Head, error)) error {
	old, err := f.Head(ctx, origin)
	if err != nil {
		return err
	}
	_, err = step(old)
	return err
}

func checkpointOf(home string) (tlog.Checkpoint, error) {
	roots, err := rootsOf(home)
	if err != nil {
		return tlog.Checkpoint{}, err
	}
	key, err := roots.Logs[0].Key()
	if err != nil {
		return tlog.Checkpoint{}, err
	}
	raw, err := os.ReadFile(filepath.Join(app.Layout{Home: home}.Log(), "checkpoint"))
	if err != nil {
		return tlog.Checkpoint{}, err
	}
	return tlog.ParseCheckpoint(raw, roots.Logs[0].Origin, key)
}

// check is one check of a simple auditor or of a simple consumer.
type check int

// The checks of the auditor.
const (
	treeCheck    check = iota + 1 // the entries make up the signed tree
	headCheck                     // the tree is not smaller than the one remembered
	payloadCheck                  // every payload is there
)

// audit is the smallest audit of a log that makes each check in its own right.
// It makes all but one; 0 leaves out none.
func audit(ctx context.Context, home string, without check) error {
	layout := app.Layout{Home: home}
	cp, err := checkpointOf(home)
	if err != nil {
		return err
	}
	roots, err := rootsOf(home)
	if err != nil {
		return err
	}
	key, err := roots.Logs[0].Key()
	if err != nil {
		return err
	}
	if without != headCheck {
		head, err := translog.NewFileGuard(filepath.Join(layout.Guard(), cp.Origin+".json")).Head(ctx, cp.Origin)
		if err != nil {
			return err
		}
		if head == nil || cp.Size < head.Size {
			return fmt.Errorf("the log has %d entries, which is less than was remembered", cp.Size)
		}
	}
	r, err := translog.OpenReader(layout.Log(), cp.Origin, key)
	if err != nil {
		return err
	}
	blobs, err := blob.New(blob.Config{Dir: layout.Blobs()})
	if err != nil {
		return err
	}
	tree := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	err = r.Entries(ctx, cp.Size, func(i uint64, body []byte) error {
		if err := tree.Append(tlog.LeafHash(body), nil); err != nil {
			return err
		}
		d, err := translog.StatementOf(body)
		if err != nil || without == payloadCheck {
			return err
		}
		if _, err := blobs.Get(ctx, d); err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		return nil
	})
	if err != nil || without == treeCheck {
		return err
	}
	root, err := tree.GetRootHash(nil)
	if err != nil {
		return err
	}
	if !bytes.Equal(root, cp.Root) {
		return errors.New("the entries make up another tree")
	}
	return nil
}

func base64Of(d hallmark.Digest) []byte {
	raw, err := hex.DecodeString(d.Hex())
	if err != nil {
		return nil
	}
	return []byte(base64.StdEncoding.EncodeToString(raw))
}

// copyHome copies a home, with the modes of its files.
func (g *ground) copyHome(home string) (string, error) {
	g.outs++
	to := g.path("homes", fmt.Sprint(g.outs))
	return to, copyTree(home, to)
}

// copyTree copies directories and regular files with their permissions.
func copyTree(from, to string) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	src, err := os.OpenRoot(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenRoot(to)
	if err != nil {
		return err
	}
	defer dst.Close()
	return fs.WalkDir(src.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case p == ".":
			return nil
		case d.IsDir():
			return dst.Mkdir(p, info.Mode().Perm()|0o700)
		case !d.Type().IsRegular():
			return fmt.Errorf("copying %s: not a regular file", p)
		}
		b, err := src.ReadFile(p)
		if err != nil {
			return err
		}
		return dst.WriteFile(p, b, info.Mode().Perm())
	})
}

// verifierConfig is what a verifier of the throwaway home trusts.
func (g *ground) verifierConfig() (verify.Config, error) {
	roots, err := os.ReadFile(g.home.Roots())
	if err != nil {
		return verify.Config{}, err
	}
	trusted, err := os.ReadFile(g.home.TrustedRoot())
	return verify.Config{Roots: roots, Pin: g.roots, TrustedRoot: trusted}, err
}
