// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/pipeline/pipelinetest"
	"github.com/hallmark-sc/hallmark/internal/sign"
)

// tree is every file of a directory but SQLite's own, with mode and content.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.Contains(p, "index.sqlite") {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		b, err := os.ReadFile(p)
		out[p] = fmt.Sprintf("%s %s", info.Mode(), hallmark.DigestOf(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestInitTwiceChangesNothing(t *testing.T) {
	l := newLab(t)
	before := tree(t, l.home)
	for _, cfg := range []InitConfig{
		{Home: l.home, SingleOperator: true}, {Home: l.home}, {Home: l.home, SingleOperator: true, Administrators: []string{"mallory"}, Passphrase: []byte("x")},
	} {
		res, err := Init(t.Context(), cfg)
		if err != nil || res.Created || res.Roots != l.roots {
			t.Errorf("again: %+v, %v", res, err)
		}
	}
	if d := cmp.Diff(before, tree(t, l.home)); d != "" {
		t.Errorf("init again changed\n%s", d)
	}
}

// TestInitGoesOn removes what an init that was killed had not written yet: the
// next one ends with the same home.
func TestInitGoesOn(t *testing.T) {
	files := []string{"roots.json", "policy/policy.sigstore.jsonl", "policy/policy.json", "signing_config.v0.2.json", "trusted_root.json", "keys/fingerprint.key"}
	home := filepath.Join(t.TempDir(), "home")
	first, err := Init(t.Context(), InitConfig{Home: home, SingleOperator: true})
	if err != nil || !first.Created {
		t.Fatal(err)
	}
	if res, err := LogFsck(t.Context(), home, false); err != nil || len(res.Problems) > 0 || res.Entries != 2 {
		t.Errorf("a new home: %+v, %v", res, err)
	}
	for n := range files {
		for _, f := range files[:n+1] {
			if err := os.Remove(filepath.Join(home, f)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := OpenHome(home, nil); hallmark.KindOf(err) != hallmark.KindNotFound {
			t.Errorf("a home without roots: %v", err)
		}
		res, err := Init(t.Context(), InitConfig{Home: home, SingleOperator: true})
		if err != nil || !res.Created || res.Roots != first.Roots {
			t.Errorf("without %v: %+v, %v", files[:n+1], res, err)
		}
		if rep, err := LogFsck(t.Context(), home, false); err != nil || len(rep.Problems) > 0 || rep.Entries != 2 {
			t.Errorf("without %v: the log has %+v, %v", files[:n+1], rep, err)
		}
	}
}

// TestReadHomeRefuses swaps each file of a home for that of another.
func TestReadHomeRefuses(t *testing.T) {
	other := filepath.Join(t.TempDir(), "other")
	if _, err := Init(t.Context(), InitConfig{Home: other, SingleOperator: true}); err != nil {
		t.Fatal(err)
	}
	files := func(names ...string) []string { return names }
	for name, tc := range map[string]struct {
		swap []string
		open bool // refused only when opened with its keys
	}{
		"roots":         {files("roots.json"), false},
		"trusted root":  {files("trusted_root.json"), false},
		"policy":        {files("policy/policy.json"), false},
		"signatures":    {files("policy/policy.sigstore.jsonl"), false},
		"whole policy":  {files("policy"), false},
		"identity":      {files("home.json"), false},
		"all but keys":  {files("roots.json", "trusted_root.json", "policy", "home.json"), true},
		"keys":          {files("keys", "pki"), true},
		"artifact key":  {files("keys/artifact.pem"), true},
		"checkpoint":    {files("keys/checkpoint.pem"), true},
		"roots and all": {files("roots.json", "trusted_root.json"), false},
	} {
		l := newLab(t)
		for _, f := range tc.swap {
			l.remove(filepath.Join("home", f))
			copyDir(t, filepath.Join(other, f), filepath.Join(l.home, f))
		}
		h, err := readHome(l.home)
		if err == nil {
			h.Close()
		}
		if (err == nil) != tc.open {
			t.Errorf("%s: reading: %v", name, err)
		}
		if h, err := OpenHome(l.home, nil); err == nil {
			h.Close()
			t.Errorf("%s: opened with keys", name)
		}
	}
	for _, f := range files("trusted_root.json", "policy/policy.sigstore.jsonl", "home.json", "keys/artifact.pem", "pki/tsa.pem") {
		for what, spoil := range map[string]func(path string) error{
			"missing": os.Remove, "empty": func(p string) error { return os.Truncate(p, 0) },
			"half": func(p string) error { st, _ := os.Stat(p); return os.Truncate(p, st.Size()/2) },
		} {
			l := newLab(t)
			if err := spoil(filepath.Join(l.home, f)); err != nil {
				t.Fatal(err)
			}
			if h, err := OpenHome(l.home, nil); err == nil {
				h.Close()
				t.Errorf("%s %s: opened", what, f)
			}
		}
	}
	l := newLab(t)
	if h, err := OpenHome(l.home, nil); err != nil {
		t.Errorf("the home itself: %v", err)
	} else {
		h.Close()
	}
	for _, text := range []string{"", "short", strings.Repeat("x", 31), strings.Repeat("x", 33)} {
		l.write("home/keys/fingerprint.key", text)
		if _, err := l.run(); hallmark.KindOf(err) != hallmark.KindInvalid || !strings.Contains(err.Error(), "fingerprint") {
			t.Errorf("fingerprint key of %d bytes: %v", len(text), err)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(l.home, "runs")); len(left) > 0 {
		t.Errorf("a run that did not begin left %v", left)
	}
}

func (l *lab) run() (pipeline.Result, error) {
	return Run(l.t.Context(), RunConfig{Home: l.home, Repo: filepath.Join(made, "repo"), Rev: "HEAD", Out: l.out, Progress: func(pipeline.Event) {}})
}

// TestErasedLog: whatever of log and guard is taken away, nothing is signed into
// a log that begins anew, and fsck says so.
func TestErasedLog(t *testing.T) {
	for _, gone := range [][]string{{"home/log"}, {"home/guard"}, {"home/log", "home/guard"}, {"home/log", "home/guard", "home/index.sqlite", "home/seen"}} {
		l := newLab(t)
		l.remove(gone...)
		rep, err := LogFsck(t.Context(), l.home, true)
		if err != nil || len(rep.Problems) == 0 || rep.Rebuilt {
			t.Errorf("without %v: fsck: %+v, %v", gone, rep, err)
		}
		if _, err := PolicySet(t.Context(), l.home, nil, [][2]string{{"scans.maxAge", "1d"}}); hallmark.KindOf(err) != hallmark.KindDenied {
			t.Errorf("without %v: signing: %v", gone, err)
		}
		if h, err := readHome(l.home); err != nil {
			t.Errorf("without %v: %v", gone, err)
		} else {
			if h.policy.Version() != 2 {
				t.Errorf("without %v: policy version %d", gone, h.policy.Version())
			}
			h.Close()
		}
	}
}

// TestIndexRebuilt: an index that is lost, behind or damaged is made again, and
// says the same as before.
func TestIndexRebuilt(t *testing.T) {
	l := newLab(t)
	rows := func() []string {
		t.Helper()
		h, err := readHome(l.home)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		all, err := h.stores.index.Statements(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, r := range all {
			at, ok, err := h.stores.index.LeafOf(t.Context(), r.Statement)
			out = append(out, fmt.Sprintf("%+v at %d %v %v", r, at, ok, err))
		}
		return out
	}
	before := rows()
	if len(before) < 16 {
		t.Fatalf("%d statements", len(before))
	}
	older := filepath.Join(t.TempDir(), "index.sqlite")
	fresh := filepath.Join(t.TempDir(), "home")
	if _, err := Init(t.Context(), InitConfig{Home: fresh, SingleOperator: true}); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(fresh, "index.sqlite"), older); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(){
		"lost":            func() {},
		"of another home": func() { copyDir(t, older, filepath.Join(l.home, "index.sqlite")) },
	} {
		l.remove("home/index.sqlite", "home/index.sqlite-wal", "home/index.sqlite-shm")
		spoil()
		rep, err := LogFsck(t.Context(), l.home, false)
		if err != nil || len(rep.Problems) > 0 || rep.Unindexed != int(rep.Entries) || rep.Rebuilt {
			t.Errorf("%s: %+v, %v", name, rep, err)
		}
		rep, err = LogFsck(t.Context(), l.home, true)
		if err != nil || len(rep.Problems) > 0 || rep.Unindexed > 0 || !rep.Rebuilt {
			t.Errorf("%s: rebuilding: %+v, %v", name, rep, err)
		}
		if d := cmp.Diff(before, rows()); d != "" {
			t.Errorf("%s: the rebuilt index differs\n%s", name, d)
		}
	}
	// One that can't be opened says how to get there.
	l.write("home/index.sqlite", "no database at all, but text of some length")
	if _, err := LogFsck(t.Context(), l.home, true); hallmark.KindOf(err) != hallmark.KindInvalid || !strings.Contains(hallmark.HintOf(err), "log fsck --rebuild") {
		t.Errorf("a damaged index: %v, hint %q", err, hallmark.HintOf(err))
	}
}

// TestLostBundle: a statement whose bundle was lost or altered is signed anew,
// and the index names the new one.
func TestLostBundle(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"lost": os.Remove,
		"altered": func(p string) error {
			return errors.Join(os.Chmod(p, 0o600), os.WriteFile(p, []byte("{}"), 0o600))
		},
	} {
		l := newLab(t)
		h, err := OpenHome(l.home, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		st, err := attest.PolicyStatement(h.policy.Digest(), h.policy.Version(), h.document.Previous)
		if err != nil {
			t.Fatal(err)
		}
		signer := newSigner(h.Layout, h.id, h.keys, h.stores)
		first, err := signer.sign(t.Context(), sign.Policy, st, nil)
		if err != nil || first.LogIndex != 2 {
			t.Fatalf("the policy's own statement was signed again, at %d: %v", first.LogIndex, err)
		}
		path := filepath.Join(h.Blobs(), "sha256", first.Digest.Hex()[:2], first.Digest.Hex())
		if err := spoil(path); err != nil {
			t.Fatal(err)
		}
		second, err := signer.sign(t.Context(), sign.Policy, st, nil)
		if err != nil || second.Digest == first.Digest || second.Statement != first.Statement || second.LogIndex <= first.LogIndex {
			t.Errorf("%s: %d after %d, %v", name, second.LogIndex, first.LogIndex, err)
		}
		if err := signer.close(); err != nil {
			t.Error(err)
		}
		if d, ok, err := h.stores.index.BundleOf(t.Context(), first.Statement); err != nil || !ok || d != second.Digest {
			t.Errorf("%s: the index names %s, %v", name, d, err)
		}
		// The altered blob is told, and does not stop the rebuilding.
		rep, err := LogFsck(t.Context(), l.home, true)
		if err != nil || !rep.Rebuilt || (name == "altered") != (len(rep.Problems) == 1 && rep.Problems[0].Code == hallmark.CodeEvidenceMalformed) {
			t.Errorf("%s: fsck: %+v, %v", name, rep, err)
		}
	}
}

// dieWhileChanging changes the policy and dies at a step of its n-th write.
func dieWhileChanging(home string) int {
	n, _ := strconv.Atoi(os.Getenv("APP_POLICY_DIE"))
	ctx := context.Background()
	h, err := OpenHome(home, nil)
	if err != nil {
		panic(err)
	}
	doc, bundles, err := h.nextPolicy(ctx, [][2]string{{"scans.maxAge", "1d"}})
	if err != nil {
		panic(err)
	}
	step := 0
	disk := durable.Disk{After: func(durable.Step, string) error {
		if step++; step == n {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	}}
	if n == 0 {
		syscall.Kill(os.Getpid(), syscall.SIGKILL) // signed, and nothing written
		select {}
	}
	if err := writePolicy(disk, h.Layout, doc, bundles); err != nil {
		panic(err)
	}
	return 7 // it should have died
}

// TestKilledWhileChangingThePolicy: at every step the home opens, with the old
// version or the new one, and the change can be made again.
func TestKilledWhileChangingThePolicy(t *testing.T) {
	versions := ""
	for n := 0; n <= 10; n++ {
		l := newLab(t)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "APP_POLICY_HOME="+l.home, "APP_POLICY_DIE="+strconv.Itoa(n))
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("step %d: not killed: %v\n%s", n, err, out)
		}
		state, err := PolicyShow(t.Context(), l.home)
		if err != nil {
			t.Errorf("step %d: the home does not open: %v", n, err)
			continue
		}
		versions += strconv.Itoa(state.Version)
		next, err := PolicySet(t.Context(), l.home, nil, [][2]string{{"scans.maxAge", "2d"}})
		if err != nil || next.Version != state.Version+1 {
			t.Errorf("step %d: changing it again: version %d after %d, %v", n, next.Version, state.Version, err)
		}
		state, err = PolicyShow(t.Context(), l.home)
		if err != nil || state.Version != next.Version || state.Digest != next.Digest {
			t.Errorf("step %d: version %d is in force, %v", n, state.Version, err)
		}
		if left, _ := filepath.Glob(filepath.Join(l.home, "policy", ".part-*")); len(left) > 0 {
			t.Errorf("step %d left %v", n, left)
		}
		if rep, err := LogFsck(t.Context(), l.home, false); err != nil || len(rep.Problems) > 0 {
			t.Errorf("step %d: fsck: %+v, %v", n, rep, err)
		}
		if v, err := l.verify(nil); err != nil || !v.Decision.Allowed() {
			t.Errorf("step %d: what was allowed before: %+v, %v", n, v.Decision, err)
		}
	}
	if versions != "22223333333" { // the signatures' name is the switch
		t.Errorf("versions after each step: %s", versions)
	}
}

// TestPolicyRollback: an older signed policy put back is refused.
func TestPolicyRollback(t *testing.T) {
	l := newLab(t)
	copyDir(t, filepath.Join(l.home, "policy"), filepath.Join(l.dir, "older"))
	if _, err := PolicySet(t.Context(), l.home, nil, [][2]string{{"scans.maxAge", "1d"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := PolicyShow(t.Context(), l.home); err != nil {
		t.Fatal(err)
	}
	l.remove("home/policy")
	copyDir(t, filepath.Join(l.dir, "older"), filepath.Join(l.home, "policy"))
	if _, err := PolicyShow(t.Context(), l.home); hallmark.CodeOf(err) != hallmark.CodePolicyRollback {
		t.Errorf("got %v", err)
	}
}

// TestPolicySetTogether: changes that are made at the same time are all made.
func TestPolicySetTogether(t *testing.T) {
	l := newLab(t)
	changes := [][2]string{{"scans.maxAge", "11d"}, {"reuse.maxAge", "12h"}, {"build.pids", "77"}, {"build.cpus", "3"}}
	var all sync.WaitGroup
	for _, c := range changes {
		all.Go(func() {
			if _, err := PolicySet(t.Context(), l.home, nil, [][2]string{c}); err != nil {
				t.Error(err)
			}
		})
	}
	for range 4 { // readers see one version or another, never a mixture
		all.Go(func() {
			for range 10 {
				if _, err := PolicyShow(t.Context(), l.home); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	state, err := PolicyShow(t.Context(), l.home)
	if err != nil || state.Version != 2+len(changes) {
		t.Fatalf("version %d, %v", state.Version, err)
	}
	for _, c := range changes {
		for _, p := range state.Parameters {
			if p.Key == c[0] && p.Value != c[1] {
				t.Errorf("%s is %s: a change was lost", p.Key, p.Value)
			}
		}
	}
	if _, err := PolicySet(t.Context(), l.home, nil, [][2]string{{"no.such", "1"}}); hallmark.KindOf(err) != hallmark.KindUsage {
		t.Errorf("got %v", err)
	}
	if _, err := PolicySet(t.Context(), filepath.Join(l.dir, "nowhere"), nil, changes); hallmark.KindOf(err) != hallmark.KindNotFound {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(l.dir, "nowhere")); err == nil {
		t.Error("a home was made by changing its policy")
	}
}

// TestSealedSaves: a saved result counts only with the seal of this home.
func TestSealedSaves(t *testing.T) {
	l := newLab(t)
	h, err := OpenHome(l.home, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	under := pipelinetest.NewMemory()
	sealed := sealedSaves{under, h.keys.Seal}
	pipelinetest.Saves(t, func(*testing.T) pipeline.Saves { return sealedSaves{pipelinetestFor(t, h), h.keys.Seal} })

	ctx, key, at := t.Context(), hallmark.DigestOf([]byte("key")), time.Unix(1700000000, 0)
	put := func(stage string, key hallmark.Digest, b []byte, at time.Time) {
		t.Helper()
		if err := under.Save(ctx, stage, key, b, at); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(name, stage string, key hallmark.Digest) {
		t.Helper()
		if b, _, ok, err := sealed.Saved(ctx, stage, key); ok || err != nil || b != nil {
			t.Errorf("%s: believed %q, %v", name, b, err)
		}
	}
	if err := sealed.Save(ctx, "build", key, []byte(`{"outcome":"fail"}`), at); err != nil {
		t.Fatal(err)
	}
	raw, _, _, err := under.Saved(ctx, "build", key)
	if err != nil {
		t.Fatal(err)
	}
	put("build", key, []byte(`{"outcome":"pass"}`), at)
	refused("no seal", "build", key)
	put("build", key, append(raw[:32:32], `{"outcome":"pass"}`...), at)
	refused("another result", "build", key)
	put("build", key, raw, at.Add(time.Hour))
	refused("another time", "build", key)
	put("sast", key, raw, at)
	refused("another stage", "sast", key)
	other := hallmark.DigestOf([]byte("other"))
	put("build", other, raw, at)
	refused("another key", "build", other)
	put("build", key, nil, at)
	refused("nothing", "build", key)
	put("build", key, raw, at)
	if b, got, ok, err := sealed.Saved(ctx, "build", key); err != nil || !ok || string(b) != `{"outcome":"fail"}` || !got.Equal(at) {
		t.Errorf("its own: %q, %v, %v", b, ok, err)
	}
}

// pipelinetestFor is the index of the home: the contract over both together.
func pipelinetestFor(_ *testing.T, h *Home) pipeline.Saves { return h.stores.index }

// TestSweepRuns: the directory of a living run stays, whatever its name says.
func TestSweepRuns(t *testing.T) {
	runs := filepath.Join(t.TempDir(), "runs")
	if err := sweepRuns(runs); err != nil {
		t.Fatal(err)
	}
	living, lock, err := newRunDir(runs)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	dead := filepath.Join(runs, strconv.Itoa(os.Getpid())+"-dead")
	readOnly := filepath.Join(dead, "source", "deep")
	if err := errors.Join(os.MkdirAll(readOnly, 0o755), os.WriteFile(filepath.Join(readOnly, "x"), nil, 0o444), os.Chmod(readOnly, 0o555)); err != nil {
		t.Fatal(err)
	}
	if err := sweepRuns(runs); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(living); err != nil {
		t.Errorf("the directory of a living run was swept: %v", err)
	}
	if _, err := os.Stat(dead); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory of a dead run is still there: %v", err)
	}
}
