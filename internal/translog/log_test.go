// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package translog_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pcommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	prekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	rekor "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"
	rnote "github.com/sigstore/rekor-tiles/v2/pkg/note"
	"github.com/sigstore/sigstore/pkg/signature"
	"golang.org/x/mod/sumdb/note"
	"k8s.io/klog/v2"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/sign/signtest"
	"github.com/hallmark-sc/hallmark/internal/translog"
	"github.com/hallmark-sc/hallmark/internal/translog/translogtest"
	"github.com/hallmark-sc/hallmark/tlog"
)

const origin = "log.example.test"

// TestMain is also the process that is killed while it appends.
func TestMain(m *testing.M) {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	if dir := os.Getenv("TRANSLOG_APPEND"); dir != "" {
		appendForever(dir)
	}
	os.Exit(m.Run())
}

// lab is a log's directory, guard, index and key.
type lab struct {
	t      testing.TB
	dir    string
	key    ed25519.PrivateKey
	signer note.Signer
	entry  *ecdsa.PrivateKey
	guard  *translog.FileGuard
	index  translog.Index
	known  translog.Head
	blobs  blobs
}

func newLab(t testing.TB) *lab {
	t.Helper()
	seed := sha256.Sum256([]byte("a key for tests"))
	dir := t.TempDir()
	l := &lab{t: t, dir: filepath.Join(dir, "log"), key: ed25519.NewKeyFromSeed(seed[:]), index: translogtest.NewMemory(),
		guard: translog.NewFileGuard(filepath.Join(dir, "guard", "head.json")), blobs: blobs{}}
	l.signer = noteSigner(t, l.key)
	var err error
	if l.entry, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	return l
}

func noteSigner(t testing.TB, key ed25519.PrivateKey) note.Signer {
	t.Helper()
	s, err := signature.LoadED25519Signer(key)
	if err != nil {
		t.Fatal(err)
	}
	n, err := rnote.NewNoteSigner(context.Background(), origin, s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (l *lab) config() translog.Config {
	return translog.Config{Dir: l.dir, Origin: origin, Signer: l.signer, PublicKey: l.key.Public(), Guard: l.guard, Index: l.index, Known: l.known}
}

func (l *lab) open() *translog.Log {
	l.t.Helper()
	log, err := translog.Open(l.t.Context(), l.config())
	if err != nil {
		l.t.Fatal(err)
	}
	return log
}

// refuses opens the log and wants a refusal.
func (l *lab) refuses(name string, code hallmark.Code) {
	l.t.Helper()
	log, err := translog.Open(l.t.Context(), l.config())
	if err == nil {
		log.Close()
	}
	if hallmark.CodeOf(err) != code || (hallmark.KindOf(err) != hallmark.KindDenied && hallmark.KindOf(err) != hallmark.KindInvalid) {
		l.t.Errorf("%s: opening: %v, want %s", name, err, code)
	}
	rep, err := l.reader().Fsck(l.t.Context(), l.guard, l.known, l.blobs)
	if err != nil || len(rep.Problems) == 0 || rep.Problems[0].Code != code {
		l.t.Errorf("%s: fsck: %+v, %v, want %s", name, rep, err, code)
	}
}

func (l *lab) reader() *translog.Reader {
	l.t.Helper()
	r, err := translog.OpenReader(l.dir, origin, l.key.Public())
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

type blobs map[hallmark.Digest]bool

func (b blobs) Get(_ context.Context, d hallmark.Digest) ([]byte, error) {
	if !b[d] {
		return nil, hallmark.Errorf(hallmark.KindNotFound, "no blob %s", d)
	}
	return nil, nil
}

// request is an entry about text.
func request(t testing.TB, key *ecdsa.PrivateKey, text string) *rekor.HashedRekordRequestV002 {
	sum := sha256.Sum256([]byte(text))
	sig, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return &rekor.HashedRekordRequestV002{Digest: sum[:], Signature: &rekor.Signature{Content: sig, Verifier: &rekor.Verifier{
		KeyDetails: pcommon.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256,
		Verifier:   &rekor.Verifier_PublicKey{PublicKey: &rekor.PublicKey{RawBytes: der}}}}}
}

// add appends entries about texts, together, and checks each proof.
func (l *lab) add(log *translog.Log, texts ...string) {
	l.t.Helper()
	var all sync.WaitGroup
	for _, text := range texts {
		l.blobs[hallmark.DigestOf([]byte(text))] = true
		all.Go(func() {
			e, err := log.Append(l.t.Context(), request(l.t, l.entry, text))
			if err != nil {
				l.t.Errorf("appending %s: %v", text, err)
				return
			}
			l.proved(e)
		})
	}
	all.Wait()
}

func (l *lab) proved(e *prekor.TransparencyLogEntry) {
	l.t.Helper()
	p := e.GetInclusionProof()
	cp, err := tlog.ParseCheckpoint([]byte(p.GetCheckpoint().GetEnvelope()), origin, l.key.Public().(ed25519.PublicKey))
	if err == nil {
		err = tlog.VerifyInclusion(cp, uint64(e.GetLogIndex()), tlog.LeafHash(e.GetCanonicalizedBody()), p.GetHashes())
	}
	if err != nil {
		l.t.Errorf("entry %d: %v", e.GetLogIndex(), err)
	}
}

func (l *lab) clean() {
	l.t.Helper()
	rep, err := l.reader().Fsck(l.t.Context(), l.guard, l.known, l.blobs)
	if err != nil || len(rep.Problems) > 0 {
		l.t.Errorf("fsck: %+v, %v", rep, err)
	}
	forgotten, invented, err := l.reader().CheckIndex(l.t.Context(), rep.Entries, l.index)
	if err != nil || len(invented) > 0 || forgotten > 0 {
		l.t.Errorf("index: %d, %+v, %v", forgotten, invented, err)
	}
}

func TestAppend(t *testing.T) {
	l := newLab(t)
	log := l.open()
	l.add(log, "a", "b", "c")
	// The same entry again is the same leaf, also after a restart.
	req := request(t, l.entry, "a")
	first, err := log.Append(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	log = l.open()
	again, err := log.Append(t.Context(), req)
	if err != nil || again.GetLogIndex() != first.GetLogIndex() {
		t.Errorf("again: index %d, %v; want %d", again.GetLogIndex(), err, first.GetLogIndex())
	}
	l.proved(again)
	if again.GetKindVersion().GetKind() != "hashedrekord" || again.GetKindVersion().GetVersion() != "0.0.2" {
		t.Errorf("kind %v", again.GetKindVersion())
	}
	// A signature that does not verify never enters.
	bad := request(t, l.entry, "b")
	bad.Signature.Content[9] ^= 1
	if _, err := log.Append(t.Context(), bad); hallmark.KindOf(err) != hallmark.KindInvalid {
		t.Errorf("a wrong signature: %v", err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := log.Append(t.Context(), req); err == nil {
		t.Error("appended to a closed log")
	}
	l.clean()
	for i := range uint64(4) {
		proved, err := l.reader().Prove(t.Context(), i)
		if err != nil || proved.GetLogIndex() != int64(i) {
			t.Fatalf("entry %d: %v", i, err)
		}
		l.proved(proved)
	}
	if _, err := l.reader().Prove(t.Context(), 4); hallmark.KindOf(err) != hallmark.KindNotFound {
		t.Errorf("entry beyond the log: %v", err)
	}
	if rep, err := l.reader().Fsck(t.Context(), l.guard, l.known, blobs{}); err != nil || len(rep.Problems) != 4 || rep.Problems[0].Code != hallmark.CodeEvidenceMissing {
		t.Errorf("fsck without blobs: %+v, %v", rep, err)
	}
}

func TestConfigIsComplete(t *testing.T) {
	l := newLab(t)
	for name, edit := range map[string]func(*translog.Config){
		"signer": func(c *translog.Config) { c.Signer = nil }, "key": func(c *translog.Config) { c.PublicKey = l.entry.Public() },
		"guard": func(c *translog.Config) { c.Guard = nil }, "index": func(c *translog.Config) { c.Index = nil },
	} {
		c := l.config()
		edit(&c)
		if _, err := translog.Open(t.Context(), c); err == nil {
			t.Errorf("opened without %s", name)
		}
	}
}

// edit changes one file of the log.
func edit(t *testing.T, path string, f func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(path), os.WriteFile(path, f(b), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// replaceDir makes to a copy of from.
func replaceDir(t *testing.T, from, to string) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(to), os.CopyFS(to, os.DirFS(from))); err != nil {
		t.Fatal(err)
	}
}

// TestRefuses opens a log after each thing that may have happened to it.
func TestRefuses(t *testing.T) {
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, otherLog, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		code hallmark.Code
		do   func(t *testing.T, l *lab, older, guard string)
	}{
		{"an older copy put back", hallmark.CodeLogTruncated, func(t *testing.T, l *lab, older, _ string) { replaceDir(t, older, l.dir) }},
		{"the log is gone", hallmark.CodeLogTruncated, func(t *testing.T, l *lab, _, _ string) { os.RemoveAll(l.dir) }},
		{"log and guard are gone", hallmark.CodeLogTruncated, func(t *testing.T, l *lab, _, guard string) {
			os.RemoveAll(l.dir)
			os.Remove(guard)
		}},
		{"older copies of log and guard", hallmark.CodeLogTruncated, func(t *testing.T, l *lab, older, guard string) {
			replaceDir(t, older, l.dir)
			os.Rename(filepath.Join(older, "guard.json"), guard)
		}},
		{"no checkpoint", hallmark.CodeLogTruncated, func(t *testing.T, l *lab, _, _ string) { os.Remove(filepath.Join(l.dir, "checkpoint")) }},
		{"no guard", hallmark.CodeLogForked, func(t *testing.T, l *lab, _, guard string) { os.Remove(guard) }},
		{"a damaged guard", hallmark.CodeLogForked, func(t *testing.T, l *lab, _, guard string) {
			edit(t, guard, func(b []byte) []byte { return b[:len(b)/2] })
		}},
		{"an empty guard", hallmark.CodeLogForked, func(t *testing.T, l *lab, _, guard string) {
			edit(t, guard, func([]byte) []byte { return nil })
		}},
		{"the guard of another log", hallmark.CodeLogForked, func(t *testing.T, l *lab, _, guard string) {
			edit(t, guard, func(b []byte) []byte { return []byte(strings.ReplaceAll(string(b), origin, "other.test")) })
		}},
		{"another root in the guard", hallmark.CodeLogForked, func(t *testing.T, l *lab, _, guard string) {
			edit(t, guard, func(b []byte) []byte {
				return fmt.Appendf(nil, `{"origin":%q,"size":5,"root":%q}`, origin, strings.Repeat("A", 43)+"=")
			})
		}},
		{"a guard far ahead", hallmark.CodeLogTruncated, func(t *testing.T, l *lab, _, guard string) {
			edit(t, guard, func(b []byte) []byte {
				return []byte(strings.Replace(string(b), `"size":5`, `"size":18446744073709551615`, 1))
			})
		}},
		{"a checkpoint of another key", hallmark.CodeLogForked, func(t *testing.T, l *lab, _, _ string) {
			edit(t, filepath.Join(l.dir, "checkpoint"), func(b []byte) []byte {
				text, _, _ := strings.Cut(string(b), "\n\n")
				signed, err := note.Sign(&note.Note{Text: text + "\n"}, noteSigner(t, otherLog))
				if err != nil {
					t.Fatal(err)
				}
				return signed
			})
		}},
		{"a published tree that is not the beginning of the signed one", hallmark.CodeLogForked, func(t *testing.T, l *lab, _, _ string) {
			edit(t, filepath.Join(l.dir, "checkpoint"), func([]byte) []byte {
				signed, err := note.Sign(&note.Note{Text: origin + "\n2\n" + strings.Repeat("A", 43) + "=\n"}, l.signer)
				if err != nil {
					t.Fatal(err)
				}
				return signed
			})
		}},
		{"a log that forked from a copy", hallmark.CodeLogForked, func(t *testing.T, l *lab, older, guard string) {
			// Another process appends other entries to a copy, with our key and a
			// guard of its own, and the copy is put in the log's place.
			fork := &lab{t: t, dir: older, key: l.key, signer: l.signer, entry: other, index: translogtest.NewMemory(), blobs: blobs{},
				guard: translog.NewFileGuard(filepath.Join(older, "guard.json"))}
			log := fork.open()
			fork.add(log, "x", "y", "z", "w")
			log.Close()
			replaceDir(t, older, l.dir)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			older, guard := filepath.Join(t.TempDir(), "older"), filepath.Join(filepath.Dir(l.dir), "guard", "head.json")
			log := l.open()
			l.add(log, "a", "b")
			log.Close()
			replaceDir(t, l.dir, older)
			b, err := os.ReadFile(guard)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(older, "guard.json"), b, 0o600); err != nil {
				t.Fatal(err)
			}
			log = l.open()
			l.add(log, "c", "d", "e")
			log.Close()
			h, err := l.guard.Head(t.Context(), origin)
			if err != nil || h == nil || h.Size != 5 {
				t.Fatalf("guard: %v, %v", h, err)
			}
			l.known = *h
			l.clean()
			tc.do(t, l, older, guard)
			l.refuses(tc.name, tc.code)
		})
	}
}

// TestGuardOneAhead is a crash between the guard and the checkpoint: the head is
// remembered, its tiles are there, its checkpoint is not.
func TestGuardOneAhead(t *testing.T) {
	l := newLab(t)
	log := l.open()
	l.add(log, "a")
	cp, err := os.ReadFile(filepath.Join(l.dir, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	l.add(log, "b", "c")
	log.Close()
	edit(t, filepath.Join(l.dir, "checkpoint"), func([]byte) []byte { return cp })
	log = l.open()
	l.add(log, "d")
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	l.clean()
}

// TestRememberedBeforeSeen: no checkpoint is published whose head the guard does
// not hold.
func TestRememberedBeforeSeen(t *testing.T) {
	l := newLab(t)
	var advanced atomic.Int64
	l.guard.Break(func(s durable.Step, _ string) error {
		if s != durable.Kept {
			return nil
		}
		h, err := l.guard.Head(context.Background(), origin)
		if err != nil || h == nil {
			t.Errorf("guard: %v, %v", h, err)
			return nil
		}
		advanced.Add(1)
		b, err := os.ReadFile(filepath.Join(l.dir, "checkpoint"))
		if err != nil {
			return nil
		}
		cp, err := tlog.ParseCheckpoint(b, origin, l.key.Public().(ed25519.PublicKey))
		if err != nil || (cp.Size >= h.Size && h.Size > 0) {
			t.Errorf("a checkpoint of %d was published before the guard held %d: %v", cp.Size, h.Size, err)
		}
		return nil
	})
	log := l.open()
	l.add(log, "a")
	l.add(log, "b")
	log.Close()
	if advanced.Load() < 3 {
		t.Errorf("the guard was asked %d times", advanced.Load())
	}
}

// TestRefusalReachesWhoWaits: a guard that refuses ends every Append under way
// and to come with its reason, not with silence.
func TestRefusalReachesWhoWaits(t *testing.T) {
	l := newLab(t)
	log := l.open()
	l.add(log, "a")
	if err := os.Remove(filepath.Join(filepath.Dir(l.dir), "guard", "head.json")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for range 2 {
		if _, err := log.Append(ctx, request(t, l.entry, "b")); hallmark.CodeOf(err) != hallmark.CodeLogForked || hallmark.KindOf(err) != hallmark.KindDenied {
			t.Errorf("got %v", err)
		}
	}
	if ctx.Err() != nil {
		t.Error("the refusal came only with the deadline")
	}
	if err := log.Close(); err != nil {
		t.Error(err)
	}
}

// TestGuardDiskFull: a guard that can't be written delays publication, loses
// nothing, and is named as the cause.
func TestGuardDiskFull(t *testing.T) {
	for _, step := range []durable.Step{durable.Created, durable.Written, durable.Synced, durable.Named, durable.Kept} {
		l := newLab(t)
		log := l.open()
		l.add(log, "a")
		full := errors.New("no space left on device")
		ctx, cancel := context.WithCancel(t.Context())
		var broken atomic.Bool
		broken.Store(true)
		failures := 0
		l.guard.Break(func(s durable.Step, _ string) error {
			if !broken.Load() || s != step {
				return nil
			}
			if failures++; failures == 2 {
				cancel() // the first failure was told by now
			}
			return full
		})
		_, err := log.Append(ctx, request(t, l.entry, "b"))
		cancel()
		// Once the new head has its name the guard has it, and a second try finds
		// nothing to write.
		if step < durable.Named && (hallmark.KindOf(err) != hallmark.KindUnavailable || !strings.Contains(err.Error(), full.Error())) {
			t.Errorf("step %d: got %v", step, err)
		}
		l.blobs[hallmark.DigestOf([]byte("b"))] = true
		broken.Store(false)
		l.add(log, "c")
		if err := log.Close(); err != nil {
			t.Error(err)
		}
		if rep, err := l.reader().Fsck(t.Context(), l.guard, l.known, l.blobs); err != nil || len(rep.Problems) > 0 || rep.Entries != 3 {
			t.Errorf("step %d: fsck: %+v, %v", step, rep, err)
		}
	}
}

func TestOneOpenerAtATime(t *testing.T) {
	l := newLab(t)
	log := l.open()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
	defer cancel()
	if _, err := translog.Open(ctx, l.config()); hallmark.KindOf(err) != hallmark.KindUnavailable {
		t.Errorf("a second opener: %v", err)
	}
	done := make(chan *translog.Log)
	go func() {
		second, err := translog.Open(t.Context(), l.config())
		if err != nil {
			t.Error(err)
		}
		done <- second
	}()
	l.add(log, "a")
	log.Close()
	second := <-done
	l.add(second, "b")
	second.Close()
	l.clean()
}

// TestWrongIndex: an index that invents is refused, not waited for or believed.
func TestWrongIndex(t *testing.T) {
	for name, at := range map[string]uint64{"beyond the log": 1000, "another place": 1} {
		l := newLab(t)
		log := l.open()
		l.add(log, "a", "b")
		req := request(t, l.entry, "c")
		l.index = wrongIndex{Index: l.index, at: at}
		log.Close()
		log = l.open()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if _, err := log.Append(ctx, req); hallmark.CodeOf(err) != hallmark.CodeLogIndexDiffers || hallmark.HintOf(err) == "" || ctx.Err() != nil {
			t.Errorf("%s: got %v", name, err)
		}
		cancel()
		log.Close()
		forgotten, invented, err := l.reader().CheckIndex(t.Context(), 2, l.index)
		if err != nil || len(invented) == 0 || invented[0].Code != hallmark.CodeLogIndexDiffers || forgotten > 0 {
			t.Errorf("%s: %d, %+v, %v", name, forgotten, invented, err)
		}
		if forgotten, invented, err := l.reader().CheckIndex(t.Context(), 2, translogtest.NewMemory()); err != nil || len(invented) > 0 || forgotten != 2 {
			t.Errorf("an empty index: %d, %+v, %v", forgotten, invented, err)
		}
	}
}

type wrongIndex struct {
	translog.Index
	at uint64
}

func (w wrongIndex) Leaf(context.Context, []byte) (uint64, bool, error) { return w.at, true, nil }

// TestAlteredEntry: fsck names the first entry that is not what was logged.
func TestAlteredEntry(t *testing.T) {
	l := newLab(t)
	log := l.open()
	l.add(log, "a", "b", "c")
	log.Close()
	var entries string
	filepath.WalkDir(filepath.Join(l.dir, "tile", "entries"), func(p string, d os.DirEntry, _ error) error {
		if strings.HasSuffix(p, "/3") {
			entries = p
		}
		return nil
	})
	for name, f := range map[string]func([]byte) []byte{
		"flipped": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"cut":     func(b []byte) []byte { return b[:len(b)/2] },
		"empty":   func([]byte) []byte { return nil },
		"huge length": func(b []byte) []byte {
			b[0], b[1] = 0xff, 0xff
			return b
		},
	} {
		whole, err := os.ReadFile(entries)
		if err != nil {
			t.Fatal(err)
		}
		edit(t, entries, f)
		rep, err := l.reader().Fsck(t.Context(), l.guard, l.known, l.blobs)
		if err != nil || len(rep.Problems) == 0 || rep.Problems[0].Code != hallmark.CodeLogEntryAltered {
			t.Errorf("%s: %+v, %v", name, rep, err)
		}
		edit(t, entries, func([]byte) []byte { return whole })
	}
	l.clean()
}

func TestContracts(t *testing.T) {
	t.Run("FileGuard", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "guard", "head.json")
		translogtest.Guard(t, func(*testing.T) translog.Guard { return translog.NewFileGuard(path) })
	})
	t.Run("Log", func(t *testing.T) {
		l := newLab(t)
		log := l.open()
		defer log.Close()
		signtest.Log(t, log, origin, l.key.Public().(ed25519.PublicKey))
	})
	t.Run("Memory", func(t *testing.T) {
		m := translogtest.NewMemory()
		translogtest.Index(t, func(*testing.T) translog.Index { return m })
	})
}

func FuzzStatementOf(f *testing.F) {
	f.Add([]byte(`{"apiVersion":"0.0.2","kind":"hashedrekord","spec":{"hashedRekordV002":{"data":{"digest":"` + strings.Repeat("A", 43) + `="}}}}`))
	f.Add([]byte(`{"kind":"hashedrekord"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := translog.StatementOf(b); err == nil && d.Check() != nil {
			t.Errorf("accepted %q", d)
		}
	})
}
