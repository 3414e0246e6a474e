// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package verify_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

func TestRoots(t *testing.T) {
	tr := newTrust()
	b := must(tr.roots.Encode())
	r, err := verify.ParseRoots(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&tr.roots, r); d != "" {
		t.Error(d)
	}
	if must(r.Digest()) != hallmark.DigestOf(b) {
		t.Error("the roots digest is not that of the RFC 8785 bytes")
	}
	for name, edit := range map[string]func(*verify.Roots){
		"kind":                func(r *verify.Roots) { r.Kind = "Policy" },
		"trust domain":        func(r *verify.Roots) { r.TrustDomain = "a/b" },
		"mode":                func(r *verify.Roots) { r.Mode = "other" },
		"one administrator":   func(r *verify.Roots) { r.Mode = verify.ModeThreshold },
		"same administrators": func(r *verify.Roots) { r.Mode, r.Administrators = verify.ModeThreshold, []string{"ada", "ada"} },
		"an administrator without a key": func(r *verify.Roots) {
			r.Mode, r.Administrators, r.Policy.Threshold = verify.ModeThreshold, []string{"ada", "grace", "joan"}, 2
			r.Policy.Keys = append(r.Policy.Keys, keyOf(tr.pol2))
		},
		"threshold of one": func(r *verify.Roots) {
			r.Mode, r.Administrators = verify.ModeThreshold, []string{"ada", "grace"}
			r.Policy.Keys = append(r.Policy.Keys, keyOf(tr.pol2))
		},
		"no administrator":      func(r *verify.Roots) { r.Administrators = nil },
		"no policy key":         func(r *verify.Roots) { r.Policy.Keys = nil },
		"policy key twice":      func(r *verify.Roots) { r.Policy.Keys = append(r.Policy.Keys, r.Policy.Keys[0]) },
		"threshold 0":           func(r *verify.Roots) { r.Policy.Threshold = 0 },
		"threshold above keys":  func(r *verify.Roots) { r.Policy.Threshold = 2 },
		"minimum version 0":     func(r *verify.Roots) { r.Policy.MinimumVersion = 0 },
		"no signer":             func(r *verify.Roots) { r.Signers = nil },
		"signer name twice":     func(r *verify.Roots) { r.Signers[0].Name = r.Signers[1].Name },
		"signer identity twice": func(r *verify.Roots) { r.Signers[0].Certificate = r.Signers[1].Certificate },
		"key and certificate":   func(r *verify.Roots) { r.Signers[2].Certificate = r.Signers[1].Certificate },
		"neither":               func(r *verify.Roots) { r.Signers[0].Certificate = nil },
		"no predicate type":     func(r *verify.Roots) { r.Signers[0].PredicateTypes = nil },
		"no builder id":         func(r *verify.Roots) { r.Signers[1].BuilderIDs = nil },
		"no level":              func(r *verify.Roots) { r.Signers[1].MaxLevel = "" },
		"unknown level":         func(r *verify.Roots) { r.Signers[1].MaxLevel = "SLSA_BUILD_LEVEL_9" },
		"no verifier id":        func(r *verify.Roots) { r.Signers[2].VerifierIDs = nil },
		"hint of another key":   func(r *verify.Roots) { k := *r.Signers[2].Key; k.Hint = r.Policy.Keys[0].Hint; r.Signers[2].Key = &k },
		"key is not a key":      func(r *verify.Roots) { k := *r.Signers[2].Key; k.PublicKey = "key"; r.Signers[2].Key = &k },
		"no log":                func(r *verify.Roots) { r.Logs = nil },
		"log key not Ed25519":   func(r *verify.Roots) { r.Logs[0].PublicKey = r.Policy.Keys[0].PublicKey },
		"log origin":            func(r *verify.Roots) { r.Logs[0].Origin = "a b" },
		"witness policy":        func(r *verify.Roots) { r.WitnessPolicy = "quorum w" },
		"trusted root":          func(r *verify.Roots) { r.TrustedRoot = "" },
	} {
		r := tr.makeRoots()
		edit(&r)
		if _, err := r.Encode(); hallmark.KindOf(err) != hallmark.KindInvalid {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for name, b := range map[string][]byte{
		"unknown field":   bytes.Replace(b, []byte(`"kind"`), []byte(`"extra":1,"kind"`), 1),
		"duplicate key":   bytes.Replace(b, []byte(`"threshold":1`), []byte(`"threshold":1,"threshold":1`), 1),
		"folded key":      bytes.Replace(b, []byte(`"threshold"`), []byte(`"Threshold"`), 1),
		"missing field":   bytes.Replace(b, []byte(`,"witnessPolicy":""`), nil, 1),
		"trailing data":   append(bytes.Clone(b), '1'),
		"null":            []byte("null"),
		"null in a field": bytes.Replace(b, []byte(`"witnessPolicy":""`), []byte(`"witnessPolicy":null`), 1),
	} {
		if bytes.Equal(b, must(tr.roots.Encode())) {
			t.Fatalf("%s: nothing was changed", name)
		}
		if _, err := verify.ParseRoots(b); hallmark.KindOf(err) != hallmark.KindInvalid {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func FuzzParseRoots(f *testing.F) {
	tr := newTrust()
	f.Add(must(tr.roots.Encode()))
	f.Add([]byte(`{"apiVersion":"hallmark/v1","kind":"Roots"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := verify.ParseRoots(b)
		if err != nil {
			return
		}
		if _, err := verify.ParseRoots(must(r.Encode())); err != nil {
			t.Errorf("what was written can't be read: %v", err)
		}
	})
}

func TestFileMemory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "memory")
	m := must(verify.NewFileMemory(dir))
	root := func(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }
	if size, r, err := m.Largest("log"); size != 0 || r != nil || err != nil {
		t.Errorf("empty memory: %d %x %v", size, r, err)
	}
	for _, c := range []struct {
		size uint64
		root byte
		code hallmark.Code
	}{{5, 1, ""}, {5, 1, ""}, {3, 9, ""}, {5, 2, hallmark.CodeLogSplitView}, {7, 3, ""}} {
		if err := m.Remember("log", c.size, root(c.root)); hallmark.CodeOf(err) != c.code {
			t.Errorf("size %d: %v", c.size, err)
		}
	}
	again := must(verify.NewFileMemory(dir)) // kept
	if size, r, err := again.Largest("log"); size != 7 || !bytes.Equal(r, root(3)) || err != nil {
		t.Errorf("after a restart: %d %x %v", size, r, err)
	}
	// Another process raised it meanwhile: the stale cache must not lower it.
	if err := again.Remember("log", 9, root(4)); err != nil {
		t.Fatal(err)
	}
	if err := m.Remember("log", 9, root(5)); hallmark.CodeOf(err) != hallmark.CodeLogSplitView {
		t.Errorf("a fork beside another process: %v", err)
	}
	files := must(filepath.Glob(filepath.Join(dir, "log-*.json")))
	if info := must(os.Stat(files[0])); len(files) != 1 || info.Mode().Perm() != 0o600 {
		t.Errorf("files %v, mode %v", files, info.Mode())
	}
	if left := must(filepath.Glob(filepath.Join(dir, ".tmp-*"))); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	// Damage is an error, never an empty memory.
	if err := os.WriteFile(files[0], []byte(`{"size":`), 0o600); err != nil {
		t.Fatal(err)
	}
	damaged := must(verify.NewFileMemory(dir))
	if _, _, err := damaged.Largest("log"); err == nil {
		t.Error("a damaged memory reads as an empty one")
	}
	if err := damaged.Remember("log", 10, root(1)); err == nil {
		t.Error("a damaged memory was overwritten")
	}
}

// TestMemoryLost checks that a checkpoint that can't be kept denies.
func TestMemoryLost(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Log("running as root: the directory is removed instead of made read-only")
	}
	tr := newTrust()
	dir := filepath.Join(t.TempDir(), "memory")
	v := tr.verifier(t, must(verify.NewFileMemory(dir)), nil)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	_, err := v.Verify(tr.sign(order{san: observerSAN, payload: testResult()}))
	if hallmark.KindOf(err) != hallmark.KindDenied {
		t.Errorf("got %v", err)
	}
	doc := policyDocument(1)
	_, err = v.Policy(doc, [][]byte{tr.signPolicy(tr.pol, doc, 1)})
	if hallmark.KindOf(err) != hallmark.KindDenied {
		t.Errorf("got %v", err)
	}
}

// TestNoForbiddenImport reads this package's own files: it must open no socket
// and start no process itself, and ask no clock.
func TestNoForbiddenImport(t *testing.T) {
	for _, name := range must(filepath.Glob("*.go")) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		src := string(must(os.ReadFile(name)))
		for _, bad := range []string{`"net"`, `"net/http"`, `"os/exec"`, "time.Now("} {
			if strings.Contains(src, bad) {
				t.Errorf("%s: %s", name, bad)
			}
		}
	}
}

// TestUnknownPredicateExtension is V10: an extension that is ignored never turns
// a refusal into an acceptance.
func TestUnknownPredicateExtension(t *testing.T) {
	tr := newTrust()
	v := tr.verifier(t, nil, nil)
	payload := bytes.Replace(vsa(func(v *intoto.VSA) { v.VerificationResult = "FAILED" }), []byte(`"predicate":{`), []byte(`"predicate":{"x":"PASSED","VerificationResult":"PASSED",`), 1)
	s, err := v.Verify(tr.sign(order{key: tr.release, payload: payload}))
	if err != nil {
		return // refused outright: as good
	}
	err = v.VSA(s, verify.VSAExpectation{Artifact: artifact, ResourceURI: "pkg:generic/app", Levels: []string{"SLSA_BUILD_LEVEL_1"}})
	if hallmark.CodeOf(err) != hallmark.CodeVSANotPassed {
		t.Errorf("got %v", err)
	}
}
