// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package translog is the append-only transparency log of a home: Tessera with
// the POSIX driver, entries of the Rekor v2 kind hashedrekord 0.0.2, Ed25519
// checkpoints (C2SP tlog-checkpoint), and a fork guard whose memory lies outside
// the log's directory.
//
// Only digests, signatures and public keys enter the log. An entry counts when a
// published checkpoint covers it, never before.
package translog

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cyberphone/json-canonicalization/go/src/webpki.org/jsoncanonicalizer"
	pcommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	prekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	rekor "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"
	rnote "github.com/sigstore/rekor-tiles/v2/pkg/note"
	"github.com/sigstore/rekor-tiles/v2/pkg/types/hashedrekord"
	"github.com/sigstore/sigstore/pkg/signature"
	flog "github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/durable"
)

// Index remembers which leaf stands where, so that an entry is never logged
// twice. It is a cache of the log: Leaf may forget, but must not invent. The
// first position of a leaf is kept; two leaves in one position are an error.
type Index interface {
	Leaf(ctx context.Context, leafHash []byte) (index uint64, ok bool, err error)
	PutLeaf(ctx context.Context, leafHash []byte, index uint64, statement hallmark.Digest) error
}

// Config is what a log needs.
type Config struct {
	Dir       string
	Origin    string
	Signer    note.Signer // of checkpoints
	PublicKey crypto.PublicKey
	Guard     Guard
	Index     Index
	// Known is the newest head that the caller saw by another way than this
	// directory and the guard, such as in a bundle that it verified: losing log
	// and guard together is noticed. The zero value says that none was seen.
	Known Head
	// Settle is called when nothing is written any more and the log is still held,
	// as by root who gives what it wrote to the log's owner. Optional.
	Settle func() error
}

// Log is an open log. It is safe for concurrent use; one process at a time.
type Log struct {
	cfg      Config
	lock     *os.File
	appender *tessera.Appender
	reader   tessera.LogReader
	await    *tessera.PublicationAwaiter
	shutdown func(context.Context) error
	cancel   context.CancelFunc
	id       []byte
	verifier note.Verifier
	registry *signature.AlgorithmRegistryConfig

	// alive ends with the cause for which no checkpoint will be signed any more.
	alive  context.Context
	freeze context.CancelCauseFunc

	mu      sync.Mutex
	trouble error // why the newest checkpoint was not signed; guarded by mu
}

const (
	checkpointInterval = 100 * time.Millisecond // Tessera's minimum on POSIX
	publishTimeout     = time.Minute            // after which an entry is not waited for
)

// Open opens the log for appending, waiting for another process that holds it
// until ctx ends. It refuses a log that is behind what the guard remembers.
func Open(ctx context.Context, cfg Config) (*Log, error) {
	pub, ok := cfg.PublicKey.(ed25519.PublicKey)
	if !ok || cfg.Signer == nil || cfg.Guard == nil || cfg.Index == nil {
		return nil, hallmark.Errorf(hallmark.KindInternal, "log without signer, Ed25519 key, guard or index")
	}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "making log directory: %w", err)
	}
	l := &Log{cfg: cfg}
	var err error
	if l.verifier, l.id, err = keyOf(cfg.Origin, pub); err != nil {
		return nil, err
	}
	l.registry, err = signature.NewAlgorithmRegistryConfig([]pcommon.PublicKeyDetails{pcommon.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256})
	if err != nil {
		return nil, fmt.Errorf("making algorithm registry: %w", err)
	}
	if l.lock, err = durable.Lock(ctx, filepath.Clean(cfg.Dir)+".lock"); err != nil {
		return nil, hallmark.Errorf(hallmark.KindUnavailable, "opening the log: %w", err)
	}
	if err := l.start(); err != nil {
		if cfg.Settle != nil {
			err = errors.Join(err, cfg.Settle())
		}
		l.lock.Close()
		return nil, err
	}
	return l, nil
}

func (l *Log) start() error {
	r, err := OpenReader(l.cfg.Dir, l.cfg.Origin, l.cfg.PublicKey)
	if err != nil {
		return err
	}
	if err := r.checkGuard(context.Background(), l.cfg.Guard, l.cfg.Known); err != nil {
		return err
	}
	// The appender outlives the context of whoever opened the log, and ends with
	// Close: Tessera's own shutdown leaves its publisher running.
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	driver, err := posix.New(ctx, posix.Config{Path: l.cfg.Dir})
	if err != nil {
		cancel()
		return fmt.Errorf("opening log storage %s: %w", l.cfg.Dir, err)
	}
	signer := &guardedSigner{Signer: l.cfg.Signer, guard: l.cfg.Guard, reader: r, origin: l.cfg.Origin, told: l.signed}
	l.alive, l.freeze = context.WithCancelCause(ctx)
	opts := tessera.NewAppendOptions().WithCheckpointSigner(signer).WithCheckpointInterval(checkpointInterval).WithBatching(256, 10*time.Millisecond)
	l.appender, l.shutdown, l.reader, err = tessera.NewAppender(ctx, driver, opts)
	if err != nil {
		cancel()
		return fmt.Errorf("starting log %s: %w", l.cfg.Dir, err)
	}
	l.await = tessera.NewPublicationAwaiter(ctx, l.reader.ReadCheckpoint, 10*time.Millisecond)
	return nil
}

// Close ends the appender and lets another process have the log.
func (l *Log) Close() error {
	var err error
	if context.Cause(l.alive) == nil { // else nothing will be published any more: there is nothing to wait for
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		err = l.shutdown(ctx)
	}
	l.cancel()
	if l.cfg.Settle != nil {
		err = errors.Join(err, l.cfg.Settle())
	}
	return errors.Join(err, l.lock.Close())
}

func keyOf(origin string, pub ed25519.PublicKey) (note.Verifier, []byte, error) {
	sv, err := signature.LoadED25519Verifier(pub)
	if err != nil {
		return nil, nil, fmt.Errorf("loading checkpoint key: %w", err)
	}
	v, err := rnote.NewNoteVerifier(origin, sv)
	if err != nil {
		return nil, nil, fmt.Errorf("making checkpoint verifier: %w", err)
	}
	_, id, err := rnote.KeyHash(origin, pub)
	if err != nil {
		return nil, nil, fmt.Errorf("computing log id: %w", err)
	}
	return v, id, nil
}

// LogID returns the full 32-byte log id of an origin and key.
func LogID(origin string, pub ed25519.PublicKey) ([]byte, error) {
	_, id, err := keyOf(origin, pub)
	return id, err
}

// Append logs an entry and returns when a published checkpoint covers it. The
// same entry again gives the same leaf with a proof of now. When the guard
// refuses a checkpoint, every Append under way and to come fails with its reason.
func (l *Log) Append(ctx context.Context, req *rekor.HashedRekordRequestV002) (*prekor.TransparencyLogEntry, error) {
	entry, err := hashedrekord.ToLogEntry(req, l.registry)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "assembling log entry: %w", err)
	}
	raw, err := protojson.Marshal(entry)
	if err != nil {
		return nil, fmt.Errorf("encoding log entry: %w", err)
	}
	body, err := jsoncanonicalizer.Transform(raw)
	if err != nil {
		return nil, fmt.Errorf("canonicalizing log entry: %w", err)
	}
	te := tessera.NewEntry(body)
	leaf := te.LeafHash()
	index, cp, known, err := l.publish(ctx, te)
	if err != nil {
		return nil, err
	}
	out, err := l.prove(ctx, index.Index, cp, body, leaf)
	if err != nil && known {
		return nil, indexDiffers(index.Index)
	}
	if err != nil {
		return nil, err
	}
	var sum [32]byte
	copy(sum[:], req.GetDigest())
	if err := l.cfg.Index.PutLeaf(ctx, leaf, index.Index, hallmark.DigestFromSum(sum)); err != nil {
		return nil, hallmark.WithHint(fmt.Errorf("indexing leaf %d: %w", index.Index, err), "hallmark log fsck --rebuild makes the index again")
	}
	out.KindVersion = &prekor.KindVersion{Kind: entry.GetKind(), Version: entry.GetApiVersion()}
	return out, nil
}

// publish adds an entry, or finds it in the index, and waits for a checkpoint
// that covers it. It gives up when no checkpoint can come.
func (l *Log) publish(ctx context.Context, e *tessera.Entry) (at tessera.Index, cp []byte, known bool, err error) {
	if err := context.Cause(l.alive); err != nil {
		return at, nil, false, fmt.Errorf("publishing log entry: %w", err)
	}
	n, known, err := l.cfg.Index.Leaf(ctx, e.LeafHash())
	if err != nil {
		return at, nil, false, fmt.Errorf("looking up leaf: %w", err)
	}
	future := func() (tessera.Index, error) { return tessera.Index{Index: n}, nil }
	if !known {
		future = l.appender.Add(ctx, e)
	} else if size, err := l.reader.IntegratedSize(ctx); err != nil || n >= size {
		return at, nil, true, indexDiffers(n) // its checkpoint would never come
	}
	wait, stop := context.WithTimeout(ctx, publishTimeout)
	defer stop()
	defer context.AfterFunc(l.alive, stop)()
	at, cp, err = l.await.Await(wait, future)
	if err == nil {
		return at, cp, known, nil
	}
	if cause := context.Cause(l.alive); cause != nil {
		err = cause
	} else if t := l.lastTrouble(); t != nil {
		err = errors.Join(err, t)
	}
	if hallmark.KindOf(err) == hallmark.KindInternal {
		err = hallmark.Errorf(hallmark.KindUnavailable, "publishing log entry: %w", err)
	}
	return at, nil, known, err
}

func indexDiffers(at uint64) error {
	return hallmark.WithHint(
		hallmark.Coded(hallmark.KindInvalid, hallmark.CodeLogIndexDiffers, "the index says that an entry stands at %d of the log, and it does not", at),
		"hallmark log fsck --rebuild")
}

// signed notes how the signing of a checkpoint ended. A denial is final: every
// tree that grows from this one would be denied as well.
func (l *Log) signed(err error) {
	l.mu.Lock()
	l.trouble = err
	l.mu.Unlock()
	if err != nil && hallmark.KindOf(err) == hallmark.KindDenied {
		l.freeze(err)
	}
}

func (l *Log) lastTrouble() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.trouble
}

func (l *Log) prove(ctx context.Context, index uint64, cpRaw, body, leaf []byte) (*prekor.TransparencyLogEntry, error) {
	return proveEntry(ctx, l.reader.ReadTile, l.cfg.Origin, l.verifier, l.id, index, cpRaw, body, leaf)
}

func proveEntry(ctx context.Context, tiles client.TileFetcherFunc, origin string, v note.Verifier, id []byte, index uint64, cpRaw, body, leaf []byte) (*prekor.TransparencyLogEntry, error) {
	cp, _, _, err := flog.ParseCheckpoint(cpRaw, origin, v)
	if err != nil {
		return nil, hallmark.Coded(hallmark.KindDenied, hallmark.CodeLogProofInvalid, "reading checkpoint: %w", err)
	}
	builder, err := client.NewProofBuilder(ctx, cp.Size, tiles)
	if err != nil {
		return nil, fmt.Errorf("reading tiles: %w", err)
	}
	hashes, err := builder.InclusionProof(ctx, index)
	if err != nil {
		return nil, fmt.Errorf("proving inclusion of %d: %w", index, err)
	}
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, index, cp.Size, leaf, hashes, cp.Hash); err != nil {
		return nil, hallmark.Coded(hallmark.KindDenied, hallmark.CodeLogEntryAltered, "entry %d is not in the tree of the checkpoint: %w", index, err)
	}
	return &prekor.TransparencyLogEntry{
		LogIndex: signed(index), LogId: &pcommon.LogId{KeyId: id}, KindVersion: &prekor.KindVersion{Kind: "hashedrekord", Version: "0.0.2"},
		InclusionProof: &prekor.InclusionProof{
			LogIndex: signed(index), RootHash: cp.Hash, TreeSize: signed(cp.Size), Hashes: hashes,
			Checkpoint: &prekor.Checkpoint{Envelope: string(cpRaw)},
		},
		CanonicalizedBody: body,
	}, nil
}

// signed is a position as Sigstore's messages and our reports write it; -1 is one
// that no log has.
func signed(position uint64) int64 {
	if position > math.MaxInt64 {
		return -1
	}
	return int64(position)
}
