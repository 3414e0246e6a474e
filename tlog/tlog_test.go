// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package tlog_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	rekornote "github.com/sigstore/rekor-tiles/v2/pkg/note"
	"github.com/sigstore/sigstore/pkg/signature"
	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/tlog"
)

const origin = "log.example.test"

type testLog struct {
	pub    ed25519.PublicKey
	signer note.Signer
}

func newLog(t testing.TB) testLog {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sv, err := signature.LoadED25519Signer(priv)
	if err != nil {
		t.Fatal(err)
	}
	s, err := rekornote.NewNoteSigner(context.Background(), origin, sv)
	if err != nil {
		t.Fatal(err)
	}
	return testLog{pub, s}
}

func (l testLog) checkpoint(t testing.TB, size uint64, root []byte, cosigners ...note.Signer) []byte {
	t.Helper()
	text := fmt.Sprintf("%s\n%d\n%s\n", origin, size, base64.StdEncoding.EncodeToString(root))
	b, err := note.Sign(&note.Note{Text: text}, append([]note.Signer{l.signer}, cosigners...)...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func witness(t testing.TB, name string) (note.Signer, string) {
	t.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := fnote.NewSignerForCosignatureV1(skey)
	if err != nil {
		t.Fatal(err)
	}
	return s, vkey
}

func TestCheckpoint(t *testing.T) {
	l, other := newLog(t), newLog(t)
	root := bytes.Repeat([]byte{7}, 32)
	raw := l.checkpoint(t, 42, root)
	cp, err := tlog.ParseCheckpoint(raw, origin, l.pub)
	if err != nil || cp.Origin != origin || cp.Size != 42 || !bytes.Equal(cp.Root, root) || cp.RootDigest() == "" {
		t.Fatalf("got %+v, %v", cp, err)
	}
	if tlog.Origin(raw) != origin {
		t.Error("wrong origin line")
	}
	for name, c := range map[string]struct {
		raw    []byte
		origin string
		key    ed25519.PublicKey
	}{
		"another key":    {raw, origin, other.pub},
		"another origin": {raw, "other.example.test", l.pub},
		"another size":   {bytes.Replace(raw, []byte("\n42\n"), []byte("\n43\n"), 1), origin, l.pub},
		"no signature":   {raw[:bytes.Index(raw, []byte("— "))], origin, l.pub},
		"short root":     {l.checkpoint(t, 42, root[:31]), origin, l.pub},
		"huge":           {append(bytes.Clone(raw), bytes.Repeat([]byte("x"), 1<<19)...), origin, l.pub},
		"no key":         {raw, origin, nil},
		"nothing":        {nil, origin, l.pub},
	} {
		if _, err := tlog.ParseCheckpoint(c.raw, c.origin, c.key); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	_, want, err := rekornote.KeyHash(origin, l.pub)
	id, err2 := tlog.LogID(origin, l.pub)
	if err != nil || err2 != nil || !bytes.Equal(id, want) || len(id) != 32 {
		t.Errorf("log id %x, want %x", id, want)
	}
}

func node(l, r []byte) []byte {
	s := sha256.Sum256(bytes.Join([][]byte{{1}, l, r}, nil))
	return s[:]
}

func TestProofs(t *testing.T) {
	a, b, c := tlog.LeafHash([]byte("a")), tlog.LeafHash([]byte("b")), tlog.LeafHash([]byte("c"))
	two := tlog.Checkpoint{Origin: origin, Size: 2, Root: node(a, b)}
	three := tlog.Checkpoint{Origin: origin, Size: 3, Root: node(node(a, b), c)}
	if err := tlog.VerifyInclusion(three, 1, b, [][]byte{a, c}); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"another leaf":  tlog.VerifyInclusion(three, 1, c, [][]byte{a, c}),
		"another index": tlog.VerifyInclusion(three, 0, b, [][]byte{a, c}),
		"outside":       tlog.VerifyInclusion(three, 3, b, [][]byte{a, c}),
		"no proof":      tlog.VerifyInclusion(three, 1, b, nil),
		"another tree":  tlog.VerifyInclusion(two, 1, b, [][]byte{a, c}),
		"empty tree":    tlog.VerifyInclusion(tlog.Checkpoint{Origin: origin}, 0, b, nil),
	} {
		if hallmark.CodeOf(err) != hallmark.CodeLogProofInvalid || hallmark.KindOf(err) != hallmark.KindDenied {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if err := tlog.VerifyConsistency(two, three, [][]byte{c}); err != nil {
		t.Error(err)
	}
	forked := tlog.Checkpoint{Origin: origin, Size: 2, Root: node(a, c)}
	if err := tlog.VerifyConsistency(forked, three, [][]byte{c}); hallmark.CodeOf(err) != hallmark.CodeLogProofInvalid {
		t.Errorf("fork: got %v", err)
	}
	if err := tlog.VerifyConsistency(two, forked, nil); hallmark.CodeOf(err) != hallmark.CodeLogSplitView {
		t.Errorf("split view: got %v", err)
	}
	if err := tlog.VerifyConsistency(three, two, [][]byte{c}); err == nil {
		t.Error("a log that shrank is consistent")
	}
	if err := tlog.VerifyConsistency(tlog.Checkpoint{Origin: "x", Size: 2, Root: two.Root}, three, [][]byte{c}); err == nil {
		t.Error("two logs are consistent")
	}
}

func TestQuorum(t *testing.T) {
	l := newLog(t)
	w1, k1 := witness(t, "w1.example")
	w2, k2 := witness(t, "w2.example")
	w3, k3 := witness(t, "w3.example")
	stranger, _ := witness(t, "w1.example") // the name of w1, another key
	head := "# who watches\nwitness a " + k1 + " https://w1.example/\nwitness b " + k2 + "\nwitness c " + k3 + "\n"
	root := bytes.Repeat([]byte{7}, 32)
	for _, tc := range []struct {
		name, policy string
		cosigners    []note.Signer
		ok           bool
	}{
		{"none configured", "", nil, true},
		{"quorum none", "quorum none", nil, true},
		{"one witness", head + "quorum a", []note.Signer{w1}, true},
		{"the other witness", head + "quorum a", []note.Signer{w2}, false},
		{"nobody", head + "quorum a", nil, false},
		{"same name, another key", head + "quorum a", []note.Signer{stranger}, false},
		{"2 of 3", head + "group g 2 a b c\nquorum g", []note.Signer{w1, w3}, true},
		{"1 for 2 of 3", head + "group g 2 a b c\nquorum g", []note.Signer{w1}, false},
		{"all", head + "group g all a b c\nquorum g", []note.Signer{w1, w2, w3}, true},
		{"not all", head + "group g all a b c\nquorum g", []note.Signer{w1, w2}, false},
		{"nested", head + "group in any b c\ngroup g all a in\nquorum g", []note.Signer{w1, w3}, true},
		{"nested, half", head + "group in any b c\ngroup g all a in\nquorum g", []note.Signer{w2, w3}, false},
	} {
		p, err := tlog.ParsePolicy(tc.policy)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		err = tlog.CheckQuorum(l.checkpoint(t, 1, root, tc.cosigners...), p)
		if (err == nil) != tc.ok || (err != nil && hallmark.CodeOf(err) != hallmark.CodeLogWitnessQuorum) {
			t.Errorf("%s: got %v", tc.name, err)
		}
	}
	// A cosignature cut from another checkpoint does not count.
	p, err := tlog.ParsePolicy(head + "quorum a")
	if err != nil {
		t.Fatal(err)
	}
	cosigned, bare := l.checkpoint(t, 1, root, w1), l.checkpoint(t, 2, root)
	lines := strings.Split(strings.TrimSpace(string(cosigned)), "\n")
	moved := append(bytes.Clone(bare), lines[len(lines)-1]+"\n"...)
	if err := tlog.CheckQuorum(moved, p); err == nil {
		t.Error("a cosignature of another checkpoint counts")
	}
}

func asCosignatureKey(t *testing.T, vkey string) string {
	t.Helper()
	v, err := fnote.VKeyToCosignatureV1(vkey)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestPolicyRefuses(t *testing.T) {
	_, k1 := witness(t, "w1.example")
	_, k2 := witness(t, "w2.example")
	head := "witness a " + k1 + "\nwitness b " + k2 + "\n"
	for name, p := range map[string]string{
		"no quorum":       head,
		"two quorums":     head + "quorum a\nquorum b",
		"unknown quorum":  head + "quorum c",
		"unknown keyword": head + "mirror a\nquorum a",
		"witness twice":   head + "witness a " + k2 + "\nquorum a",
		"key twice":       head + "witness c " + k1 + "\nquorum a",
		"key twice, written as a cosignature key": head + "witness c " + asCosignatureKey(t, k1) + "\nquorum a",
		"bad key":             "witness a key\nquorum a",
		"keyword as a name":   "witness any " + k1 + "\nquorum any",
		"threshold 0":         head + "group g 0 a b\nquorum g",
		"threshold too high":  head + "group g 3 a b\nquorum g",
		"threshold negative":  head + "group g -1 a b\nquorum g",
		"group without":       head + "group g any\nquorum g",
		"unknown member":      head + "group g any a x\nquorum g",
		"member twice":        head + "group g 2 a a\nquorum g",
		"member in two":       head + "group g any a b\ngroup h any a g\nquorum h",
		"comment only":        "# nothing",
		"log without a key":   "log\nquorum none",
		"quorum without name": head + "quorum",
	} {
		if _, err := tlog.ParsePolicy(p); hallmark.KindOf(err) != hallmark.KindInvalid {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func FuzzCheckpoint(f *testing.F) {
	l := newLog(f)
	w, k := witness(f, "w1.example")
	p, err := tlog.ParsePolicy("witness a " + k + "\nquorum a")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(l.checkpoint(f, 3, bytes.Repeat([]byte{7}, 32), w))
	f.Add([]byte("a\n1\nAA==\n\n— a AA==\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		cp, err := tlog.ParseCheckpoint(b, origin, l.pub)
		if err == nil && (cp.Origin != origin || len(cp.Root) != 32) {
			t.Errorf("accepted %+v", cp)
		}
		_ = tlog.CheckQuorum(b, p)
		_ = tlog.Origin(b)
	})
}

func FuzzParsePolicy(f *testing.F) {
	_, k := witness(f, "w1.example")
	f.Add("witness a " + k + " https://x.example/\ngroup g any a\nquorum g\n")
	f.Add("quorum none")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := tlog.ParsePolicy(text)
		if err == nil && p.Configured() && tlog.CheckQuorum([]byte("a\n1\nAA==\n\n"), p) == nil {
			t.Error("an unsigned checkpoint meets a quorum")
		}
	})
}
