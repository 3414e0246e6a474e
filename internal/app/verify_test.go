// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// answer is the exit code of a verification and the code that explains it.
func answer(v Verified, err error) (int, hallmark.Code) {
	switch {
	case err != nil:
		return hallmark.ExitCode(err), hallmark.CodeOf(err)
	case v.Decision.Allowed():
		return 0, ""
	case len(v.Decision.Reasons) > 0:
		return 3, v.Decision.Reasons[0].Code
	}
	return 3, ""
}

// TestVerifyExits spoils one file of a result at a time.
func TestVerifyExits(t *testing.T) {
	other := newLab(t)
	otherHome := filepath.Join(t.TempDir(), "other")
	if _, err := Init(t.Context(), InitConfig{Home: otherHome, SingleOperator: true}); err != nil {
		t.Fatal(err)
	}
	noHome := func(c *VerifyConfig) { c.Home = filepath.Join(other.dir, "nowhere") }
	pinned := func(c *VerifyConfig) { noHome(c); c.Roots = other.roots }
	for _, tc := range []struct {
		name  string
		spoil func(l *lab)
		edit  func(*VerifyConfig)
		exit  int
		code  hallmark.Code
	}{
		{"nothing", nil, nil, 0, ""},
		{"nothing, pinned, without a home", nil, pinned, 0, ""},
		{"evidence by its folder only", nil, func(c *VerifyConfig) { c.Evidence = "" }, 0, ""},
		{"no home and no pin", nil, noHome, 1, hallmark.CodeTrustRootUnpinned},
		{"another pin", nil, func(c *VerifyConfig) { c.Roots = hallmark.DigestOf(nil) }, 1, hallmark.CodeTrustRootUnpinned},
		{"another home", nil, func(c *VerifyConfig) { c.Home = otherHome }, 1, hallmark.CodeTrustRootUnpinned},
		{"no artifact", func(l *lab) { l.remove("out/hello") }, nil, 1, ""},
		{"a folder as artifact", func(l *lab) { l.remove("out/hello"); l.write("out/hello/x", "") }, nil, 1, ""},
		{"another artifact", func(l *lab) { l.write("out/hello", "other") }, nil, 3, hallmark.CodeNoEvidenceForArtifact},
		{"an empty artifact", func(l *lab) { l.write("out/hello", "") }, nil, 3, hallmark.CodeNoEvidenceForArtifact},
		{"no evidence", func(l *lab) { l.remove("out/evidence.jsonl") }, nil, 1, ""},
		{"no folder", func(l *lab) { l.remove("out") }, nil, 1, ""},
		{"empty evidence", func(l *lab) { l.write("out/evidence.jsonl", "") }, nil, 3, hallmark.CodeNoEvidenceForArtifact},
		{"text as evidence", func(l *lab) { l.write("out/evidence.jsonl", "text\n") }, nil, 3, hallmark.CodeEvidenceMalformed},
		{"evidence cut in a line", func(l *lab) {
			e := l.read("out/evidence.jsonl")
			l.write("out/evidence.jsonl", e[:len(e)-100])
		}, nil, 3, hallmark.CodeEvidenceMalformed},
		{"no summary", func(l *lab) { l.dropLine(-1) }, nil, 3, hallmark.CodeNoEvidenceForArtifact},
		{"one input less", func(l *lab) { l.dropLine(3) }, nil, 3, hallmark.CodeEvidenceMissing},
		{"roots of another home", func(l *lab) { l.take(otherHome, "roots.json") }, nil, 1, hallmark.CodeTrustRootUnpinned},
		{"roots of another home, pinned", func(l *lab) { l.take(otherHome, "roots.json") }, pinned, 1, hallmark.CodeTrustRootUnpinned},
		{"no roots, but a home", func(l *lab) { l.remove("out/roots.json") }, nil, 0, ""},
		{"no roots and no home", func(l *lab) { l.remove("out/roots.json") }, pinned, 1, hallmark.CodeTrustRootUnpinned},
		{"no trusted root, but a home", func(l *lab) { l.remove("out/trusted_root.json") }, nil, 0, ""},
		{"no trusted root and no home", func(l *lab) { l.remove("out/trusted_root.json") }, pinned, 1, ""},
		{"trusted root of another home", func(l *lab) { l.take(otherHome, "trusted_root.json") }, nil, 1, hallmark.CodeTrustRootUnpinned},
		{"an empty trusted root", func(l *lab) { l.write("out/trusted_root.json", "") }, nil, 1, hallmark.CodeTrustRootUnpinned},
		{"a folder as trusted root", func(l *lab) { l.remove("out/trusted_root.json"); l.write("out/trusted_root.json/x", "") }, nil, 1, ""},
		{"a trusted root that is not there", nil, func(c *VerifyConfig) { c.TrustedRoot = "/nowhere/x" }, 1, ""},
		{"no policy", func(l *lab) { l.remove("out/policy/policy.json") }, nil, 1, ""},
		{"no policy signatures", func(l *lab) { l.remove("out/policy/policy.sigstore.jsonl") }, nil, 1, ""},
		{"empty policy signatures", func(l *lab) { l.write("out/policy/policy.sigstore.jsonl", "") }, nil, 3, hallmark.CodePolicyUnsigned},
		{"an edited policy", func(l *lab) {
			l.write("out/policy/policy.json", strings.Replace(l.read("out/policy/policy.json"), "source,secrets", "secrets", 1))
		}, nil, 3, hallmark.CodePolicyUnsigned},
		{"an older policy", func(l *lab) { l.firstPolicy() }, nil, 3, hallmark.CodePolicyMismatch},
		{"policy of another home", func(l *lab) {
			l.take(otherHome, "policy/policy.json")
			l.take(otherHome, "policy/policy.sigstore.jsonl")
		}, nil, 3, hallmark.CodePolicyUnsigned},
		{"no verdict, no inventories: they are for people", func(l *lab) {
			l.remove("out/verdict.json", "out/verdict.sigstore.json", "out/sbom.spdx.json", "out/sbom.cdx.json", "out/findings.sarif", "out/VERIFY.txt", "out/hello.sigstore.json")
		}, nil, 0, ""},
		{"another resource", nil, func(c *VerifyConfig) { c.ResourceURI = "git+https://example.org/other" }, 3, hallmark.CodeVSAResource},
		{"a higher level", nil, func(c *VerifyConfig) { c.Levels = []string{"SLSA_BUILD_LEVEL_3"} }, 3, hallmark.CodeVSALevel},
		{"long after", nil, func(c *VerifyConfig) { c.At = time.Now().AddDate(50, 0, 0) }, 3, hallmark.CodeScanStale},
		{"long before: never earlier than the evidence", nil, func(c *VerifyConfig) { c.At = time.Unix(1, 0) }, 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			if tc.spoil != nil {
				tc.spoil(l)
			}
			if exit, code := answer(l.verify(tc.edit)); exit != tc.exit || code != tc.code {
				_, err := l.verify(tc.edit)
				t.Errorf("exit %d, %q; want %d, %q: %v", exit, code, tc.exit, tc.code, err)
			}
		})
	}
}

// dropLine removes one line of evidence, counted from the end when negative.
func (l *lab) dropLine(n int) {
	l.t.Helper()
	all := strings.SplitAfter(strings.TrimSuffix(l.read("out/evidence.jsonl"), "\n"), "\n")
	if n < 0 {
		n += len(all)
	}
	l.write("out/evidence.jsonl", strings.Join(slices.Delete(all, n, n+1), ""))
}

// take copies a file of another home into the result.
func (l *lab) take(home, name string) {
	l.t.Helper()
	b, err := os.ReadFile(filepath.Join(home, name))
	if err != nil {
		l.t.Fatal(err)
	}
	l.write(filepath.Join("out", name), string(b))
}

// firstPolicy puts version 1 of the policy, as it was signed, into the result.
func (l *lab) firstPolicy() {
	l.t.Helper()
	h, err := readHome(l.home)
	if err != nil {
		l.t.Fatal(err)
	}
	defer h.Close()
	doc, err := h.stores.blobs.Get(l.t.Context(), h.document.Previous)
	if err != nil {
		l.t.Fatal(err)
	}
	st, err := attest.PolicyStatement(h.document.Previous, 1, "")
	if err != nil {
		l.t.Fatal(err)
	}
	payload, err := st.Marshal()
	if err != nil {
		l.t.Fatal(err)
	}
	d, ok, err := h.stores.index.BundleOf(l.t.Context(), hallmark.DigestOf(intoto.PAE(intoto.PayloadType, payload)))
	if err != nil || !ok {
		l.t.Fatalf("%v, %v", ok, err)
	}
	bundle, err := h.stores.blobs.Get(l.t.Context(), d)
	if err != nil {
		l.t.Fatal(err)
	}
	l.write("out/policy/policy.json", string(doc))
	l.write("out/policy/policy.sigstore.jsonl", string(bundle)+"\n")
}

// TestVerifyWithoutMemory: no place to remember is told, and stops nothing.
func TestVerifyWithoutMemory(t *testing.T) {
	l := newLab(t)
	l.write("file", "")
	v, err := l.verify(func(c *VerifyConfig) { c.State = filepath.Join(l.dir, "file", "state") })
	if err != nil || !v.Decision.Allowed() || len(v.Warnings) != 1 {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestReadLimited(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), 100), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := readLimited(path, 100); err != nil || len(b) != 100 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if b, err := readLimited(path, 99); hallmark.KindOf(err) != hallmark.KindInvalid || b != nil {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	// Evidence without an end is refused, not read until memory ends.
	l := newLab(t)
	l.remove("out/roots.json")
	if err := os.Symlink("/dev/zero", filepath.Join(l.out, "roots.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := l.verify(nil); err != nil { // the home's roots are the pinned ones
		t.Errorf("got %v", err)
	}
	l.remove("out/trusted_root.json")
	if err := os.Symlink("/dev/zero", filepath.Join(l.out, "trusted_root.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := l.verify(nil); hallmark.KindOf(err) != hallmark.KindInvalid {
		t.Errorf("got %v", err)
	}
}

func TestReplay(t *testing.T) {
	l := newLab(t)
	res, err := l.replay()
	if err != nil || !res.Equal {
		t.Fatalf("%+v, %v", res, err)
	}
	whole := l.read("out/verdict.json")
	for name, text := range map[string]string{"half": whole[:len(whole)/2], "empty": "", "white space": " " + whole, "more": whole + "{}"} {
		l.write("out/verdict.json", text)
		if res, err := l.replay(); err == nil && res.Equal {
			t.Errorf("%s: equal", name)
		}
	}
	l.write("out/verdict.json", strings.Replace(whole, `"effect":"allow"`, `"effect":"deny"`, 1))
	if res, err := l.replay(); err != nil || res.Equal || len(res.Differences) == 0 {
		t.Errorf("edited: %+v, %v", res, err)
	}
}

// forged is a verdict that the engine gives for a clock of our choice.
func (l *lab) forged(shift time.Duration) []byte {
	l.t.Helper()
	ev, err := openEvidence(VerifyConfig{Home: l.home, Artifact: filepath.Join(l.out, "verdict.json"), State: filepath.Join(l.dir, "state")})
	if err != nil {
		l.t.Fatal(err)
	}
	all, err := ev.statements()
	if err != nil {
		l.t.Fatal(err)
	}
	rec, err := policy.ParseVerdict([]byte(l.read("out/verdict.json")))
	if err != nil {
		l.t.Fatal(err)
	}
	var inputs []verify.Statement
	for _, in := range rec.Inputs {
		inputs = append(inputs, all[in.Bundle])
	}
	pol, err := ev.verifier.Policy(ev.policyJSON, lines(ev.policySigs))
	if err != nil {
		l.t.Fatal(err)
	}
	engine, err := policy.New(pol)
	if err != nil {
		l.t.Fatal(err)
	}
	rev, subjects := policy.ContentOf(inputs)
	v, err := engine.Decide(l.t.Context(), policy.Request{Statements: inputs, Subjects: subjects, Revision: rev, ResourceURI: rec.ResourceURI,
		Clock: rec.Clock.Add(shift), Roots: ev.verifier.Roots(), RootsDigest: ev.verifier.RootsDigest()})
	if err != nil {
		l.t.Fatal(err)
	}
	b, err := v.Encode()
	if err != nil {
		l.t.Fatal(err)
	}
	return b
}

// TestReplayOfAForgedVerdict: a verdict that anyone could have computed, and one
// whose clock its summary does not confirm, are not replayed as equal.
func TestReplayOfAForgedVerdict(t *testing.T) {
	l := newLab(t)
	b := l.forged(time.Hour)
	l.write("out/verdict.json", string(b))
	if res, err := l.replay(); hallmark.CodeOf(err) != hallmark.CodeEvidenceMissing || hallmark.ExitCode(err) != 1 {
		t.Errorf("nobody signed it: %+v, %v", res, err)
	}
	h, err := OpenHome(l.home, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	st, err := attest.VSA(attest.Summary{Subjects: []intoto.ResourceDescriptor{{Name: "x", Digest: map[string]string{"sha256": hallmark.DigestOf(b).Hex()}}},
		VerifierID: h.id.verifierID(), Time: now(), Policy: h.policy.Digest(), Verdict: hallmark.DigestOf(b), Allowed: true})
	if err != nil {
		t.Fatal(err)
	}
	signer := newSigner(h.Layout, h.id, h.keys, h.stores)
	signed, err := signer.sign(t.Context(), sign.Release, st, nil)
	if err != nil {
		t.Fatal(err)
	}
	signer.close()
	l.write("out/evidence.jsonl", l.read("out/evidence.jsonl")+string(signed.JSON)+"\n")
	if res, err := l.replay(); hallmark.CodeOf(err) != hallmark.CodeVerdictDiffers {
		t.Errorf("signed, with another clock: %+v, %v", res, err)
	}
}

// TestExplain: a subject is told its own story, from evidence and from the home.
func TestExplain(t *testing.T) {
	l := newLab(t)
	v, err := l.verify(nil)
	if err != nil {
		t.Fatal(err)
	}
	l.write("stranger", "another file")
	for _, evidence := range []string{l.out, ""} {
		explain := func(subject string) (Chain, error) {
			return Explain(t.Context(), VerifyConfig{Home: l.home, Artifact: subject, Evidence: evidence, State: filepath.Join(l.dir, "state")})
		}
		for _, subject := range []string{filepath.Join(l.out, "hello"), string(v.Artifact.Digest), v.Revision.Commit} {
			c, err := explain(subject)
			if err != nil || c.Missing || len(c.Links) != 13 {
				t.Errorf("evidence %q, %s: %d links, %v: %+v", evidence, subject, len(c.Links), err, c.Links)
			}
		}
		for _, subject := range []string{filepath.Join(l.dir, "stranger"), string(hallmark.DigestOf([]byte("x"))), strings.Repeat("0", 40)} {
			c, err := explain(subject)
			if err != nil || !c.Missing {
				t.Errorf("evidence %q, %s: nothing is missing: %v", evidence, subject, err)
			}
			for _, link := range c.Links {
				if link.State != "missing" {
					t.Errorf("evidence %q, %s was told of %s: %s", evidence, subject, link.Link, link.Detail)
				}
			}
		}
		for _, subject := range []string{"", "sha256:x", filepath.Join(l.dir, "nowhere"), l.dir} {
			if _, err := explain(subject); hallmark.KindOf(err) != hallmark.KindInvalid {
				t.Errorf("evidence %q, %q: %v", evidence, subject, err)
			}
		}
	}
}
