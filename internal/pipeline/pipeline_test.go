// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/pipeline/pipelinetest"
)

// TestMain is also the run that dies while it writes its results.
func TestMain(m *testing.M) {
	if dir := os.Getenv("PIPELINE_DIR"); dir != "" {
		die, _ := strconv.Atoi(os.Getenv("PIPELINE_DIE_AT"))
		l := newLab(dead{}, dir)
		n := 0
		l.onDisk = func(durable.Step, string) error {
			if n++; n == die {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
			return nil
		}
		if _, err := l.run(); err != nil {
			panic(err)
		}
		os.Exit(7) // no step was left to die at
	}
	os.Exit(m.Run())
}

// dead lets the lab run outside a test.
type dead struct{ testing.TB }

func (dead) Helper()           {}
func (dead) Fatal(args ...any) { panic(args) }

func TestRun(t *testing.T) {
	l := newLab(t, t.TempDir())
	res := l.must()
	if !res.Verdict.Decision.Allowed() || len(res.Artifacts) != 2 || len(res.Records) != 7 {
		t.Errorf("got %+v", res)
	}
	l.whole(l.out)
	// Provenance and summary once each, everything else by the observer.
	slices.Sort(l.roles)
	if n := len(l.roles); n != 14 || l.roles[n-1] != pipeline.Release || l.roles[n-2] != pipeline.Platform || l.roles[n-3] != pipeline.Observer {
		t.Errorf("signed by %v", l.roles)
	}
	if i := slices.Index(l.calls, "signer.release 1"); slices.Contains(l.calls[i:], "decider.decide 1") {
		t.Error("the summary was signed before the decision")
	}
}

// TestEveryFault makes every call of every port fail in turn (the first and the
// last where a port is called in a loop), over an earlier result: no verdict comes of it, out is the earlier result or a whole new one,
// nothing half-written is left, and the next run goes through.
func TestEveryFault(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the pipeline a hundred times; go test without -short does")
	}
	probe := newLab(t, t.TempDir())
	probe.must()
	var calls []string
	for _, name := range slices.Sorted(maps.Keys(probe.counts)) {
		calls = append(calls, name+" 1")
		if n := probe.counts[name]; n > 1 {
			calls = append(calls, fmt.Sprintf("%s %d", name, n))
		}
	}
	// The summary is verified like every other bundle before anybody sees it.
	after := probe.calls[slices.Index(probe.calls, "signer.release 1")+1]
	if !strings.HasPrefix(after, "decider.verify") {
		t.Errorf("after the summary was signed: %s", after)
	}
	calls = append(calls, after)
	if len(probe.counts) < 24 {
		t.Fatalf("only %d kinds of call: %v", len(probe.counts), calls)
	}
	l := newLab(t, t.TempDir())
	l.must()
	for _, call := range calls {
		before := tree(t, l.out)
		l.store = pipelinetest.NewMemory() // nothing saved
		if err := os.RemoveAll(filepath.Join(l.dir, "deps")); err != nil {
			t.Fatal(err)
		}
		l.reset()
		l.now = l.now.Add(time.Millisecond)
		l.source.FinishedOn = l.now // so that the new result differs
		l.fault = call
		_, err := l.run()
		if !errors.Is(err, errFault) && (err == nil || !strings.Contains(err.Error(), errFault.Error())) {
			t.Errorf("%s failed, and the run ended with %v", call, err)
		}
		name, _, _ := strings.Cut(call, " ")
		if name != "disk" && !maps.Equal(tree(t, l.out), before) {
			t.Errorf("%s failed, and out was changed", call)
		} else if name == "disk" && !maps.Equal(tree(t, l.out), before) {
			l.whole(l.out)
		}
		decided := name == "signer.release" || name == "disk" || slices.Contains(l.calls, "decider.decide 1")
		if !decided && slices.Contains(l.roles, pipeline.Release) {
			t.Errorf("%s failed, and a summary was signed", call)
		}
		stage, _, _ := strings.Cut(name, ".")
		if n := l.store.Saves(stage); (strings.HasSuffix(name, ".scan") || name == "builder.build") && n > 0 {
			t.Errorf("%s failed, and a result was saved", call)
		}
		if left, _ := filepath.Glob(filepath.Join(filepath.Dir(l.out), ".*")); len(left) > 0 {
			t.Errorf("%s failed and left %v", call, left)
		}
		l.reset()
		if _, err := l.run(); err != nil {
			t.Errorf("after %s had failed: %v", call, err)
		}
		l.whole(l.out)
	}
}

// TestKilledWhileWriting kills a run at every step of writing its results: out
// is absent or whole, and the sweep of the next run leaves nothing else.
func TestKilledWhileWriting(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the pipeline many times; go test without -short does")
	}
	dir := t.TempDir()
	out := filepath.Join(dir, "results", "out")
	for die := 1; ; die++ {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "PIPELINE_DIR="+dir, "PIPELINE_DIE_AT="+strconv.Itoa(die))
		b, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Fatalf("step %d: %v\n%s", die, err, b)
		}
		l := newLab(t, dir)
		keys, err := keysIn(dir) // of the run that died
		if err != nil {
			t.Fatal(err)
		}
		l.trust(keys)
		if exit.ExitCode() == 7 {
			if die < 15 {
				t.Fatalf("only %d steps", die)
			}
			l.whole(out)
			return
		}
		if exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("step %d: %v\n%s", die, err, b)
		}
		if _, err := os.Stat(out); err == nil {
			l.whole(out)
		}
		if err := pipeline.SweepOut(out); err != nil {
			t.Fatal(err)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "results", ".*")); len(left) > 0 {
			t.Errorf("step %d left %v", die, left)
		}
		if die%2 == 0 { // every other time over an earlier result
			os.RemoveAll(out)
		}
	}
}

func TestSweepLeavesTheLiving(t *testing.T) {
	// A name that a pattern would read otherwise.
	dir := filepath.Join(t.TempDir(), "a[b]*?")
	l := newLab(t, dir)
	l.onDisk = func(durable.Step, string) error {
		// Another run, with another home, writes its results beside these.
		return pipeline.SweepOut(filepath.Join(filepath.Dir(l.out), "other"))
	}
	l.must()
	l.whole(l.out)
	dead := filepath.Join(filepath.Dir(l.out), ".hallmark-part-dead")
	if err := os.MkdirAll(filepath.Join(dead, "policy"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := pipeline.SweepOut(l.out); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what a dead run left is still there: %v", err)
	}
	l.whole(l.out)
}

// TestResume: a second run over the same inputs does no stage again and says the
// same.
func TestResume(t *testing.T) {
	l := newLab(t, t.TempDir())
	l.must()
	first, err := os.ReadFile(filepath.Join(l.out, "evidence.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	l.reset()
	var reused []string
	l.edit = func(c *pipeline.Config) {
		c.Progress = func(e pipeline.Event) {
			if e.State == pipeline.Reused {
				reused = append(reused, e.Stage)
			}
		}
	}
	l.must()
	if want := []string{"resolve", "secrets", "sast", "sbom", "sca", "build"}; !slices.Equal(reused, want) {
		t.Errorf("reused %v", reused)
	}
	for _, port := range []string{"secrets.scan", "sast.scan", "sbom.scan", "sca.scan", "builder.build"} {
		if l.called(port) {
			t.Errorf("%s ran again", port)
		}
	}
	second, err := os.ReadFile(filepath.Join(l.out, "evidence.jsonl"))
	if err != nil || string(first) != string(second) {
		t.Errorf("the evidence differs: %v", err)
	}
}

// TestNotReused changes one thing at a time: what depends on it is made again.
func TestNotReused(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the pipeline many times; go test without -short does")
	}
	all := []string{"secrets.scan", "sast.scan", "sbom.scan", "sca.scan", "builder.build"}
	digest := func(s string) hallmark.Digest { return hallmark.DigestOf([]byte(s)) }
	replace := func(stage, old, new string) func(*lab) {
		return func(l *lab) {
			l.savesEdit = func(s string, b []byte, at time.Time) ([]byte, time.Time) {
				if s == stage {
					changed := strings.Replace(string(b), old, new, 1)
					if changed == string(b) {
						t.Errorf("%s: nothing to replace in %s", stage, b)
					}
					b = []byte(changed)
				}
				return b, at
			}
		}
	}
	rev := func(edit func(*hallmark.Revision)) func(*lab) {
		return func(l *lab) {
			edit(&l.revision)
			l.source.Revision = l.revision
		}
	}
	for name, tc := range map[string]struct {
		change func(l *lab)
		again  []string
	}{
		"nothing":    {func(*lab) {}, nil},
		"commit":     {rev(func(r *hallmark.Revision) { r.Commit = strings.Repeat("c", 40) }), all},
		"tree":       {rev(func(r *hallmark.Revision) { r.Tree = strings.Repeat("c", 40) }), all},
		"ref":        {rev(func(r *hallmark.Revision) { r.Ref = "refs/heads/other" }), all},
		"repository": {rev(func(r *hallmark.Revision) { r.Repository = "file:///other" }), all},
		"manifest":   {func(l *lab) { l.export.Manifest = digest("other") }, all},
		"definition": {func(l *lab) { l.export.Pipeline = []byte("other") }, all},
		"policy":     {func(l *lab) { l.edit = func(c *pipeline.Config) { c.Policy = digest("other") } }, all},
		"binary":     {func(l *lab) { l.edit = func(c *pipeline.Config) { c.Tool.Digest = digest("other") } }, all},
		"rules":      {func(l *lab) { l.rules["secrets"] = "new" }, []string{"secrets.scan"}},
		"advisories": {func(l *lab) { l.rules["sca"] = "new" }, []string{"sca.scan"}},
		"toolchain":  {func(l *lab) { l.rules["build"] = "new" }, []string{"builder.build"}},
		"dependencies": {func(l *lab) {
			l.deps.List = []attest.Dependency{{PURL: "pkg:golang/x@v1", Digests: map[string]string{"sha256": digest("x").Hex()}}}
		}, all},
		"just fresh":      {func(l *lab) { l.now = l.now.Add(time.Hour - time.Nanosecond) }, nil},
		"too old":         {func(l *lab) { l.now = l.now.Add(time.Hour) }, all},
		"from the future": {func(l *lab) { l.now = l.now.Add(-time.Minute - time.Nanosecond) }, all},
		"reuse is off":    {func(l *lab) { l.edit = func(c *pipeline.Config) { c.ReuseMaxAge = 0 } }, all},
		"half a result": {func(l *lab) {
			l.savesEdit = func(_ string, b []byte, at time.Time) ([]byte, time.Time) { return b[:len(b)/2], at }
		}, all},
		"another check":    {replace("sast", `"check":"sast"`, `"check":"sbom"`), []string{"sast.scan"}},
		"another revision": {replace("sast", strings.Repeat("a", 40), strings.Repeat("d", 40)), []string{"sast.scan"}},
		"an errored scan":  {replace("sast", `"outcome":"pass"`, `"outcome":"error"`), []string{"sast.scan"}},
		"a skipped scan":   {replace("sast", `"outcome":"pass"`, `"outcome":"skipped"`), []string{"sast.scan"}},
		"no outcome":       {replace("sast", `"outcome":"pass",`, ``), []string{"sast.scan"}},
		"an errored build": {replace("build", `"outcome":"pass"`, `"outcome":"error"`), []string{"builder.build"}},
		"a build elsewhere": {replace("build", `"check":"build","outcome":"pass","revision":{"repository":"file:///r"`,
			`"check":"build","outcome":"pass","revision":{"repository":"file:///x"`), []string{"builder.build"}},
		"a lost artifact": {replace("build", digest("bytes of app").Hex(), digest("gone").Hex()), []string{"builder.build"}},
		"a lost log":      {replace("build", digest("log").Hex(), digest("gone").Hex()), []string{"builder.build"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, t.TempDir())
			l.now = l.now.Add(10 * time.Minute) // so that it can be set back
			l.must()
			l.reset()
			tc.change(l)
			l.must()
			for _, port := range all {
				if got, want := l.called(port), slices.Contains(tc.again, port); got != want {
					t.Errorf("%s ran again: %v, want %v", port, got, want)
				}
			}
			l.whole(l.out)
		})
	}
}

// TestErrorsAreNotSaved: a result that did not decide is made again next time.
func TestErrorsAreNotSaved(t *testing.T) {
	for _, o := range []hallmark.Outcome{hallmark.Errored, hallmark.Skipped} {
		l := newLab(t, t.TempDir())
		l.scans["secrets"] = o
		l.build = func() (pipeline.BuildOutput, error) {
			out, err := l.goodBuild()
			out.Facts.Record.Outcome, out.Facts.Artifacts, out.Decision = o, nil, hallmark.Decision{Effect: hallmark.Deny}
			return out, err
		}
		res := l.must()
		if res.Verdict.Decision.Allowed() || l.store.Saves("secrets") != 0 || l.store.Saves("build") != 0 || l.store.Saves("sast") != 1 {
			t.Errorf("%s: allowed %v, saved %d scans and %d builds", o, res.Verdict.Decision.Allowed(), l.store.Saves("secrets"), l.store.Saves("build"))
		}
		if slices.Contains(l.roles, pipeline.Platform) {
			t.Errorf("%s: provenance of a build that did not pass", o)
		}
		l.reset()
		l.scans["secrets"], l.build = hallmark.Pass, l.goodBuild
		if res := l.must(); !res.Verdict.Decision.Allowed() || !l.called("secrets.scan") || !l.called("builder.build") {
			t.Errorf("%s: not made again", o)
		}
	}
}

// TestNoVerdictWithoutOutcome: a port that says nothing is an error, not a pass.
func TestNoVerdictWithoutOutcome(t *testing.T) {
	for name, edit := range map[string]func(l *lab){
		"source":        func(l *lab) { l.source.Outcome = 0 },
		"another check": func(l *lab) { l.source.Check = "sast" },
		"scan":          func(l *lab) { l.scans["sast"] = 0 },
		"build": func(l *lab) {
			l.build = func() (pipeline.BuildOutput, error) {
				out, err := l.goodBuild()
				out.Facts.Record.Outcome = 0
				return out, err
			}
		},
		"tests": func(l *lab) {
			l.build = func() (pipeline.BuildOutput, error) {
				out, err := l.goodBuild()
				out.Tests = hallmark.CheckRecord{}
				return out, err
			}
		},
	} {
		l := newLab(t, t.TempDir())
		edit(l)
		if _, err := l.run(); hallmark.KindOf(err) != hallmark.KindInternal || err == nil || len(l.roles) > 0 {
			t.Errorf("%s: got %v, signed %v", name, err, l.roles)
		}
	}
}

// TestSourceGate: nothing of a revision runs unless the source check passed, and
// nothing reads one whose objects can't be trusted.
func TestSourceGate(t *testing.T) {
	for _, tc := range []struct {
		outcome hallmark.Outcome
		scanned bool
	}{{hallmark.Fail, true}, {hallmark.Errored, false}, {hallmark.Skipped, true}} {
		l := newLab(t, t.TempDir())
		l.source.Outcome = tc.outcome
		res := l.must()
		if res.Verdict.Decision.Allowed() || l.called("builder.build") || l.called("builder.fingerprint") || l.called("secrets.scan") != tc.scanned || l.called("source.export") != tc.scanned {
			t.Errorf("%s: allowed %v, calls %v", tc.outcome, res.Verdict.Decision.Allowed(), l.calls)
		}
		for _, r := range res.Records[1:] {
			if r.Outcome == hallmark.Pass && !tc.scanned {
				t.Errorf("%s: check %s passed", tc.outcome, r.Check)
			}
		}
		if slices.Contains(l.roles, pipeline.Platform) || len(res.Artifacts) > 0 {
			t.Errorf("%s: provenance or artifacts", tc.outcome)
		}
		if _, err := os.Stat(filepath.Join(l.out, "verdict.json")); err != nil {
			t.Errorf("%s: a denial leaves its evidence too: %v", tc.outcome, err)
		}
	}
}

func TestDependenciesThatCantBeHad(t *testing.T) {
	for _, code := range []hallmark.Code{hallmark.CodeDependencyUnavailable, hallmark.CodeDependencyIntegrity} {
		l := newLab(t, t.TempDir())
		l.depsErr = hallmark.Coded(hallmark.KindUnavailable, code, "no")
		res := l.must()
		if res.Verdict.Decision.Allowed() || l.called("builder.build") || l.called("sast.scan") || l.store.Saves("resolve") > 0 {
			t.Errorf("%s: allowed %v, calls %v", code, res.Verdict.Decision.Allowed(), l.calls)
		}
	}
	l := newLab(t, t.TempDir())
	l.depsErr = errors.New("the machine broke")
	if _, err := l.run(); err == nil || len(l.roles) > 0 {
		t.Errorf("got %v", err)
	}
}

// TestAlteredDependencies: packages that were fetched before are hashed again at
// each use; altered ones are fetched anew, into a directory without the old files.
func TestAlteredDependencies(t *testing.T) {
	l := newLab(t, t.TempDir())
	l.must()
	kept, err := filepath.Glob(filepath.Join(l.dir, "deps", "*"))
	if err != nil || len(kept) != 1 || !l.called("resolver.fetch") || l.called("resolver.verify") {
		t.Fatalf("%v %v, calls %v", kept, err, l.calls)
	}
	altered := filepath.Join(kept[0], "altered")
	if err := os.WriteFile(altered, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	l.reset()
	l.must()
	if !l.called("resolver.verify") || l.called("resolver.fetch") {
		t.Errorf("calls %v", l.calls)
	}
	l.reset()
	l.alteredErr = hallmark.Coded(hallmark.KindDenied, hallmark.CodeDependencyIntegrity, "other bytes")
	l.must()
	if _, err := os.Stat(altered); !errors.Is(err, os.ErrNotExist) || !l.called("resolver.fetch") {
		t.Errorf("%v, calls %v", err, l.calls)
	}
}

// TestPermitNeedsADecision: provenance exists only when the build policy allowed
// it, whatever the record says.
func TestPermitNeedsADecision(t *testing.T) {
	for _, d := range []hallmark.Decision{{}, {Effect: hallmark.Deny}, {Effect: hallmark.Allow, Reasons: []hallmark.Reason{{Code: "X"}}}} {
		l := newLab(t, t.TempDir())
		l.build = func() (pipeline.BuildOutput, error) {
			out, err := l.goodBuild()
			out.Decision = d
			return out, err
		}
		if _, err := l.run(); (err != nil) != (d.Effect == 0) {
			t.Errorf("decision %+v: %v", d, err)
		}
		if slices.Contains(l.roles, pipeline.Platform) {
			t.Errorf("decision %+v: provenance was signed", d)
		}
	}
}

// TestArtifactNames: no artifact takes the place of evidence or leads out of the
// result, whatever a builder says.
func TestArtifactNames(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the pipeline many times; go test without -short does")
	}
	for _, name := range []string{"VERIFY.txt", "verdict.json", "evidence.jsonl", "roots.json", "policy", "app.sigstore.json", "app", "../escaped", "a/b", "/etc/x", "policy/policy.json", ".", "..", "", "a\x00b", "findings.sarif"} {
		l := newLab(t, t.TempDir())
		l.must()
		kept := tree(t, l.out)
		l.store = pipelinetest.NewMemory()
		l.build = func() (pipeline.BuildOutput, error) {
			out, err := l.goodBuild()
			bad := out.Facts.Artifacts[0]
			bad.Name = name
			// Before and after the artifact whose evidence it may name.
			out.Facts.Artifacts = append([]hallmark.Artifact{bad}, out.Facts.Artifacts...)
			return out, err
		}
		_, err := l.run()
		if hallmark.CodeOf(err) != hallmark.CodePipelineArtifactName {
			t.Errorf("%q: got %v", name, err)
		}
		if !maps.Equal(kept, tree(t, l.out)) {
			t.Errorf("%q: out was changed", name)
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(l.out), "escaped")); err == nil {
			t.Errorf("%q: written outside", name)
		}
	}
}

// TestOutIsNotOurs: a directory that holds something else is never replaced, also
// when it appears while the run is under way.
func TestOutIsNotOurs(t *testing.T) {
	foreign := func(l *lab) {
		if err := errors.Join(os.MkdirAll(l.out, 0o755), os.WriteFile(filepath.Join(l.out, "thesis.tex"), []byte("years"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for name, when := range map[string]func(l *lab){
		"before": foreign,
		"meanwhile": func(l *lab) {
			l.build = func() (pipeline.BuildOutput, error) { foreign(l); return l.goodBuild() }
		},
	} {
		l := newLab(t, t.TempDir())
		when(l)
		if _, err := l.run(); hallmark.KindOf(err) != hallmark.KindInvalid {
			t.Errorf("%s: got %v", name, err)
		}
		if b, err := os.ReadFile(filepath.Join(l.out, "thesis.tex")); err != nil || string(b) != "years" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if name == "before" && len(l.calls) > 0 {
			t.Errorf("%s: the run began: %v", name, l.calls)
		}
	}
	l := newLab(t, t.TempDir())
	if err := errors.Join(os.MkdirAll(filepath.Dir(l.out), 0o755), os.WriteFile(l.out, []byte("a file"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.run(); err == nil {
		t.Error("a file was replaced")
	}
	// An empty directory is taken.
	l = newLab(t, t.TempDir())
	if err := os.MkdirAll(l.out, 0o755); err != nil {
		t.Fatal(err)
	}
	l.must()
	l.whole(l.out)
}

func TestConfigIsComplete(t *testing.T) {
	l := newLab(t, t.TempDir())
	for name, edit := range map[string]func(*pipeline.Config){
		"source": func(c *pipeline.Config) { c.Source = nil }, "resolver": func(c *pipeline.Config) { c.Resolver = nil }, "scanners": func(c *pipeline.Config) { c.Scanners = nil },
		"builder": func(c *pipeline.Config) { c.Builder = nil }, "documents": func(c *pipeline.Config) { c.Documents = nil }, "signer": func(c *pipeline.Config) { c.Signer = nil },
		"decider": func(c *pipeline.Config) { c.Decider = nil }, "saves": func(c *pipeline.Config) { c.Saves = nil }, "blobs": func(c *pipeline.Config) { c.Blobs = nil },
		"clock": func(c *pipeline.Config) { c.Clock = nil }, "policy": func(c *pipeline.Config) { c.Policy = "" }, "work": func(c *pipeline.Config) { c.WorkDir = "" },
		"deps": func(c *pipeline.Config) { c.DepsDir = "" }, "tool": func(c *pipeline.Config) { c.Tool = hallmark.Tool{} }, "policy files": func(c *pipeline.Config) { c.PolicyFiles = nil },
		"trusted root": func(c *pipeline.Config) { c.TrustedRoot = nil }, "roots": func(c *pipeline.Config) { c.Roots = nil }, "verifier": func(c *pipeline.Config) { c.VerifierID = "" },
		"certificate": func(c *pipeline.Config) { c.BuilderCert = pipeline.CertificateIdentity{} }, "release key": func(c *pipeline.Config) { c.ReleaseKey = nil },
	} {
		c := l.config()
		edit(&c)
		if _, err := pipeline.New(c); err == nil {
			t.Errorf("a pipeline without %s", name)
		}
	}
	if _, err := pipeline.New(l.config()); err != nil {
		t.Error(err)
	}
}

// TestDependenciesOfTwoRuns: a run that finds the directory made by another in
// the meantime uses that one, after hashing it, and not its own.
func TestDependenciesOfTwoRuns(t *testing.T) {
	l := newLab(t, t.TempDir())
	l.must()
	kept, err := filepath.Glob(filepath.Join(l.dir, "deps", "*"))
	if err != nil || len(kept) != 1 {
		t.Fatal(kept, err)
	}
	for name, altered := range map[string]error{"whole": nil, "altered": errors.New("altered")} {
		if err := os.RemoveAll(kept[0]); err != nil {
			t.Fatal(err)
		}
		l := newLab(t, l.dir)
		l.onFetch = func() {
			l.alteredErr = altered
			if err := os.MkdirAll(filepath.Join(kept[0], "other"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		_, err := l.run()
		if !l.called("resolver.verify") || (err == nil) != (altered == nil) {
			t.Errorf("%s: %v, calls %v", name, err, l.calls)
		}
	}
}
