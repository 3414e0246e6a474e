// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// councilLab is a home that ada and grace share.
type councilLab struct {
	t         *testing.T
	dir, home string
}

func newCouncilLab(t *testing.T) *councilLab {
	l := &councilLab{t: t, dir: t.TempDir()}
	l.home = filepath.Join(l.dir, "home")
	for _, name := range []string{"ada", "grace"} {
		if _, err := PolicyKey(name, l.key(name), nil); err != nil {
			t.Fatal(err)
		}
	}
	l.init()
	return l
}

func (l *councilLab) key(name string) string { return filepath.Join(l.dir, name+".key") }

func (l *councilLab) init() {
	l.t.Helper()
	if _, err := Init(l.t.Context(), InitConfig{Home: l.home, Threshold: 2,
		Administrators: []string{"ada=" + l.key("ada") + ".pub", "grace=" + l.key("grace") + ".pub"}}); err != nil {
		l.t.Fatal(err)
	}
}

func (l *councilLab) trySign(name string) (Signing, error) {
	l.t.Helper()
	p, err := PolicyReview(l.t.Context(), l.home)
	if err != nil {
		return Signing{}, err
	}
	return PolicySign(l.t.Context(), SignConfig{Home: l.home, Key: l.key(name), Digest: p.Digest})
}

func (l *councilLab) sign(name string) Signing {
	l.t.Helper()
	s, err := l.trySign(name)
	if err != nil {
		l.t.Fatalf("%s signs: %v", name, err)
	}
	return s
}

func (l *councilLab) set(change, value string) PolicyState {
	l.t.Helper()
	s, err := PolicySet(l.t.Context(), l.home, nil, [][2]string{{change, value}})
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

// inForce is the version that every other command sees.
func (l *councilLab) inForce() (int, error) {
	h, err := OpenHome(l.home, nil)
	if err != nil {
		return 0, err
	}
	defer h.Close()
	return h.policy.Version(), nil
}

// save and back keep the home of a moment, as a crash would leave it.
func (l *councilLab) save(name string) {
	l.t.Helper()
	if err := os.CopyFS(filepath.Join(l.dir, name), os.DirFS(l.home)); err != nil {
		l.t.Fatal(err)
	}
}

func (l *councilLab) back(name string) {
	l.t.Helper()
	if err := os.RemoveAll(l.home); err != nil {
		l.t.Fatal(err)
	}
	if err := os.CopyFS(l.home, os.DirFS(filepath.Join(l.dir, name))); err != nil {
		l.t.Fatal(err)
	}
	for _, dir := range []string{"keys", "pki"} { // CopyFS loosens modes
		files, err := os.ReadDir(filepath.Join(l.home, dir))
		if err != nil {
			l.t.Fatal(err)
		}
		for _, f := range files {
			if err := os.Chmod(filepath.Join(l.home, dir, f.Name()), 0o600); err != nil {
				l.t.Fatal(err)
			}
		}
	}
}

func (l *councilLab) take(from, name string) {
	l.t.Helper()
	b, err := os.ReadFile(filepath.Join(l.dir, from, name))
	if err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.home, name), b, 0o600); err != nil {
		l.t.Fatal(err)
	}
}

func (l *councilLab) entries() uint64 {
	l.t.Helper()
	rep, err := LogFsck(l.t.Context(), l.home, false)
	if err != nil || len(rep.Problems) > 0 {
		l.t.Fatalf("fsck: %v %v", rep.Problems, err)
	}
	return rep.Entries
}

const (
	policyFile  = "policy/policy.json"
	bundlesFile = "policy/policy.sigstore.jsonl"
	pendingFile = "policy/pending.json"
)

// TestAdoptionCrash takes a home through every moment at which adopting a policy
// can end: the old policy or the new one is in force, and the next change works.
func TestAdoptionCrash(t *testing.T) {
	l := newCouncilLab(t)
	l.sign("ada")
	l.sign("grace")
	l.set("build.cpus", "3")
	l.sign("grace")
	l.save("before") // version 1, and one signature of version 2
	if s := l.sign("ada"); !s.InForce {
		t.Fatalf("not in force: %+v", s)
	}
	l.save("after")
	for _, tc := range []struct {
		name  string
		base  string // the home at the crash: log, blobs and memory
		files []string
		from  []string // where each of the files comes from
		want  int      // the version in force
	}{
		{"before the signature was kept", "before", nil, nil, 1},
		{"after the last signature, before anything was written", "after", []string{policyFile, bundlesFile, pendingFile}, []string{"before", "before", "before"}, 1},
		{"between the two files", "after", []string{policyFile, pendingFile}, []string{"before", "before"}, 2},
		{"before the proposal was removed", "after", []string{pendingFile}, []string{"before"}, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l.back(tc.base)
			if err := os.RemoveAll(filepath.Join(l.home, "seen")); err != nil { // the floor rises last
				t.Fatal(err)
			}
			for i, f := range tc.files {
				l.take(tc.from[i], f)
			}
			if v, err := l.inForce(); err != nil || v != tc.want {
				t.Fatalf("version %d in force, %v; want %d", v, err, tc.want)
			}
			// Whoever comes next finishes what was begun, and goes on from there.
			if st := l.set("build.cpus", "4"); st.Pending == nil || tc.base == "after" && (st.Version != 2 || st.Pending.Version != 3) {
				t.Fatalf("after setting: %+v %+v", st, st.Pending)
			}
			l.sign("ada")
			if s := l.sign("grace"); !s.InForce {
				t.Fatalf("after both signed: %+v", s)
			}
			h, err := OpenHome(l.home, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			if h.document.Parameters["build.cpus"] != "4" {
				t.Errorf("build.cpus is %s", h.document.Parameters["build.cpus"])
			}
		})
	}
}

// TestInitHalfMade: an init that was killed goes on as it began, or not at all.
func TestInitHalfMade(t *testing.T) {
	l := newCouncilLab(t)
	before, err := os.ReadFile(filepath.Join(l.home, "roots.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"roots.json", pendingFile, "trusted_root.json"} {
		if err := os.Remove(filepath.Join(l.home, f)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Init(t.Context(), InitConfig{Home: l.home, SingleOperator: true}); hallmark.KindOf(err) != hallmark.KindUsage {
		t.Errorf("another mode: %v", err)
	}
	if _, err := Init(t.Context(), InitConfig{Home: l.home, Threshold: 2, Administrators: []string{"grace=" + l.key("grace") + ".pub", "ada=" + l.key("ada") + ".pub"}}); hallmark.KindOf(err) != hallmark.KindUsage {
		t.Errorf("another order: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(l.home, "roots.json")); err == nil {
		t.Fatal("a refused init made a home")
	}
	l.init()
	after, err := os.ReadFile(filepath.Join(l.home, "roots.json"))
	if err != nil || string(after) != string(before) {
		t.Errorf("the roots changed: %v", err)
	}
	l.sign("grace")
	if s := l.sign("ada"); !s.InForce {
		t.Errorf("not in force: %+v", s)
	}
}

// TestSettle: signatures that were logged before a crash count, without another.
func TestSettle(t *testing.T) {
	l := newCouncilLab(t)
	l.save("new")
	l.sign("ada")
	l.sign("grace")
	entries := l.entries()
	if err := os.Remove(filepath.Join(l.home, policyFile)); err != nil {
		t.Fatal(err)
	}
	if v, err := l.inForce(); v != 1 || err != nil { // a crash before the first document was written
		t.Fatalf("version %d, %v", v, err)
	}
	for _, f := range []string{bundlesFile, "genesis.sigstore.jsonl"} {
		if err := os.Remove(filepath.Join(l.home, f)); err != nil {
			t.Fatal(err)
		}
	}
	l.take("new", pendingFile)
	if _, err := l.inForce(); hallmark.CodeOf(err) != hallmark.CodeGenesisUnsigned {
		t.Fatalf("a home without its genesis: %v", err)
	}
	if s := l.sign("ada"); !s.InForce {
		t.Fatalf("not in force: %+v", s)
	}
	if v, err := l.inForce(); v != 1 || err != nil {
		t.Fatalf("version %d, %v", v, err)
	}
	if n := l.entries(); n != entries || n != 4 {
		t.Errorf("%d entries in the log, before %d: two of the genesis and two of the policy", n, entries)
	}
}

// TestAdoptRefuses: the one place where a policy comes into force checks again.
func TestAdoptRefuses(t *testing.T) {
	l := newCouncilLab(t)
	l.sign("ada")
	l.sign("grace")
	first, err := os.ReadFile(filepath.Join(l.home, policyFile))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := os.ReadFile(filepath.Join(l.home, bundlesFile))
	if err != nil {
		t.Fatal(err)
	}
	l.set("build.cpus", "3")
	l.sign("ada")
	pending, err := os.ReadFile(filepath.Join(l.home, pendingFile))
	if err != nil {
		t.Fatal(err)
	}
	h, err := readHome(l.home)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	p, err := h.proposal(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	one, err := h.approvals(t.Context(), p.approval)
	if err != nil || len(one) != 1 {
		t.Fatalf("%d approvals, %v", len(one), err)
	}
	for name, tc := range map[string]struct {
		document, bundles []byte
		code              hallmark.Code
	}{
		"1 of 2":          {pending, joined([]string{"ada"}, one), hallmark.CodePolicyUnsigned},
		"one twice":       {pending, joined([]string{"ada", "ada"}, one), hallmark.CodePolicyUnsigned},
		"of another":      {pending, signed, hallmark.CodePolicyUnsigned},
		"the one we have": {first, signed, hallmark.CodePolicyRollback},
	} {
		if err := h.adoptPolicy(tc.document, tc.bundles); hallmark.CodeOf(err) != tc.code {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestApprovals: an administrator can't sign in another's name, and a proposal
// that waits is no evidence of how policies are changed.
func TestApprovals(t *testing.T) {
	l := newCouncilLab(t)
	l.sign("ada")
	l.sign("grace")
	l.set("build.cpus", "3")
	l.sign("grace")
	h, err := OpenHome(l.home, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	ev, err := h.conformance(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n := map[string]int{}
	for _, it := range ev.Items {
		n[it.PredicateType]++
	}
	if ev.Mode != verify.ModeThreshold || n[intoto.PredicatePolicy] != 2 || n[intoto.PredicateGenesis] != 2 {
		t.Errorf("evidence of %d policy and %d genesis signatures in mode %s: want 2 and 2, without the one that waits", n[intoto.PredicatePolicy], n[intoto.PredicateGenesis], ev.Mode)
	}
	p, err := h.proposal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	key, err := sign.LoadPolicyKey(l.key("grace"), nil)
	if err != nil {
		t.Fatal(err)
	}
	signer := newSigner(h.Layout, h.id, h.keys, h.stores)
	signer.policyKey, signer.policyName = key, policySigner+"ada"
	st, err := p.approval(h.administrators()[0].hint)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := signer.sign(t.Context(), sign.Policy, st, nil); err != nil {
		t.Fatal(err)
	}
	if err := signer.close(); err != nil {
		t.Fatal(err)
	}
	if p, err = h.proposal(t.Context()); err != nil || len(p.Signed) != 1 || p.Signed[0] != "grace" {
		t.Errorf("signed by %v, %v: want grace only", p.Signed, err)
	}
	// What stands in ada's name and is not hers does not keep her from signing.
	if _, err := l.trySign("ada"); err != nil {
		t.Errorf("ada's place was taken: %v", err)
	}
	if v, err := l.inForce(); v != 2 || err != nil {
		t.Errorf("version %d in force, %v: want 2", v, err)
	}
	// Neither does it when index and policy are made again from log and blobs.
	if err := os.Remove(filepath.Join(l.home, bundlesFile)); err != nil {
		t.Fatal(err)
	}
	if rep, err := LogFsck(t.Context(), l.home, true); err != nil || !rep.Rebuilt || len(rep.Problems) > 0 {
		t.Errorf("rebuilding: %+v, %v", rep, err)
	}
	if v, err := l.inForce(); v != 2 || err != nil {
		t.Errorf("version %d in force after rebuilding, %v: want 2", v, err)
	}
}

// TestAdoptionFails: while the new policy can't be written the old one stays in
// force; the floor of versions does not rise before.
func TestAdoptionFails(t *testing.T) {
	l := newCouncilLab(t)
	l.sign("ada")
	l.sign("grace")
	l.set("build.cpus", "3")
	l.sign("ada")
	l.save("before")
	l.sign("grace")
	for _, f := range []string{policyFile, bundlesFile, pendingFile} {
		l.take("before", f)
	}
	if err := os.RemoveAll(filepath.Join(l.home, "seen")); err != nil {
		t.Fatal(err)
	}
	h, err := readHome(l.home)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	p, err := h.proposal(t.Context())
	if err != nil || p == nil || len(p.Signed) != 2 {
		t.Fatalf("%+v, %v", p, err)
	}
	// A document that a change before left behind is put right first: two crashes
	// in a row must not leave one that nothing names.
	document, err := os.ReadFile(filepath.Join(l.home, policyFile))
	if err != nil {
		t.Fatal(err)
	}
	inTheWay := filepath.Join(l.home, bundlesFile)
	if err := errors.Join(os.Remove(filepath.Join(l.home, policyFile)), os.Remove(inTheWay), os.Mkdir(inTheWay, 0o700)); err != nil {
		t.Fatal(err)
	}
	if done, err := h.settle(t.Context(), p); err == nil || done {
		t.Fatalf("settled: %v %v", done, err)
	}
	if b, err := os.ReadFile(filepath.Join(l.home, policyFile)); err != nil || string(b) != string(document) {
		t.Errorf("the document in force was not put right: %v", err)
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	l.take("before", bundlesFile)
	if v, err := l.inForce(); v != 1 || err != nil {
		t.Errorf("version %d in force, %v: want 1", v, err)
	}
}

// TestProposalRefused: what was not proposed here, for the policy in force, can't
// be signed, and is replaced.
func TestProposalRefused(t *testing.T) {
	l := newCouncilLab(t)
	l.sign("ada")
	l.sign("grace")
	l.set("build.cpus", "3")
	pending := filepath.Join(l.home, pendingFile)
	good, err := os.ReadFile(pending)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := policy.ParseDocument(good)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(edit func(*policy.Document)) []byte {
		d := doc
		edit(&d)
		b, err := d.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, b := range map[string][]byte{
		"after another policy": encode(func(d *policy.Document) { d.Previous = hallmark.DigestOf(nil) }),
		"a version ahead":      encode(func(d *policy.Document) { d.Version = 3 }),
		"a first version":      encode(func(d *policy.Document) { d.Version, d.Previous = 1, "" }),
		"in the future":        encode(func(d *policy.Document) { d.IssuedOn = now().Add(time.Hour) }),
		"no required checks": encode(func(d *policy.Document) {
			d.Parameters = maps.Clone(d.Parameters)
			d.Parameters["checks.required"] = ""
		}),
		"another form": append([]byte(" "), good...),
		"not JSON":     []byte("policy"),
	} {
		if err := os.WriteFile(pending, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := l.trySign("ada"); hallmark.CodeOf(err) != hallmark.CodePolicyProposal || hallmark.KindOf(err) != hallmark.KindDenied {
			t.Errorf("%s: %v", name, err)
		}
		if st, err := PolicyShow(t.Context(), l.home); err != nil || st.Version != 1 || st.Invalid == "" || st.Pending != nil {
			t.Errorf("%s: shown as %+v, %v", name, st, err)
		}
	}
	if st := l.set("build.cpus", "4"); st.Pending == nil || st.Pending.Version != 2 {
		t.Errorf("after setting: %+v", st)
	}
}

// TestPolicyLock: two changes at once don't lose one of them.
func TestPolicyLock(t *testing.T) {
	l := newCouncilLab(t)
	l.sign("ada")
	l.sign("grace")
	unlock, err := lockPolicy(t.Context(), Layout{l.home})
	if err != nil {
		t.Fatal(err)
	}
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := PolicySet(soon, l.home, nil, [][2]string{{"build.cpus", "3"}}); hallmark.KindOf(err) != hallmark.KindUnavailable {
		t.Errorf("while another changes it: %v", err)
	}
	unlock()
	l.set("build.cpus", "3")
}

// TestRestoreLeavesProposals: fsck --rebuild brings back what enough signed and
// nothing else.
func TestRestoreLeavesProposals(t *testing.T) {
	l := newCouncilLab(t)
	l.sign("ada")
	if rep, err := LogFsck(t.Context(), l.home, true); err != nil || len(rep.Problems) > 0 || !rep.Rebuilt {
		t.Fatalf("a home that waits: %+v %v", rep, err)
	}
	if _, err := l.inForce(); hallmark.CodeOf(err) != hallmark.CodeGenesisUnsigned {
		t.Fatalf("1 of 2 after a rebuild: %v", err)
	}
	l.sign("grace")
	l.set("build.cpus", "3")
	l.sign("grace")
	for _, f := range []string{policyFile, bundlesFile, pendingFile, "genesis.sigstore.jsonl", "index.sqlite"} {
		if err := os.Remove(filepath.Join(l.home, f)); err != nil {
			t.Fatal(err)
		}
	}
	if rep, err := LogFsck(t.Context(), l.home, true); err != nil || len(rep.Problems) > 0 {
		t.Fatalf("%+v %v", rep, err)
	}
	if v, err := l.inForce(); v != 1 || err != nil {
		t.Fatalf("version %d in force, %v: want 1", v, err)
	}
	if _, err := l.trySign("ada"); hallmark.CodeOf(err) != hallmark.CodePolicyNotPending {
		t.Errorf("the proposal that was lost: %v", err)
	}
}
