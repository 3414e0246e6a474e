// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"github.com/google/go-cmp/cmp"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hallmark-sc/hallmark"
)

const good = `apiVersion: hallmark/v1
kind: Pipeline
build:
  steps:
    - run: make
    - name: test
      run: make test
  artifacts: [out/hello]
`

func TestParsePipeline(t *testing.T) {
	p, err := ParsePipeline("p.yaml", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Steps) != 2 || p.Steps[0].Test() || !p.Steps[1].Test() || p.Artifacts[0] != "out/hello" {
		t.Errorf("parsed %+v", p)
	}
}

// TestParsePipelineRefuses names file, line and column of each mistake.
func TestParsePipelineRefuses(t *testing.T) {
	edit := func(from, to string) string { return strings.Replace(good, from, to, 1) }
	for name, c := range map[string]struct {
		text, at string
		code     hallmark.Code
	}{
		"unknown key":    {edit("kind: Pipeline", "kind: Pipeline\nmore: 1"), "p.yaml:3:1", hallmark.CodePipelineInvalid},
		"doubled key":    {edit("    - run: make\n", "    - run: make\n      run: make\n"), "p.yaml:6:7", hallmark.CodePipelineInvalid},
		"wrong type":     {edit("run: make\n", "run: 5\n"), "p.yaml:5:12", hallmark.CodePipelineInvalid},
		"no steps":       {edit("  steps:\n    - run: make\n    - name: test\n      run: make test\n", "  steps: []\n"), "p.yaml:4:10", hallmark.CodePipelineInvalid},
		"leaves":         {edit("out/hello", "../hello"), "p.yaml:8:15", hallmark.CodePipelineInvalid},
		"absolute":       {edit("out/hello", "/etc/passwd"), "p.yaml:8:15", hallmark.CodePipelineInvalid},
		"reserved":       {edit("out/hello", "out/evidence.jsonl"), "p.yaml:8:15", hallmark.CodePipelineArtifactName},
		"reserved case":  {edit("out/hello", "out/VERIFY.txt"), "p.yaml:8:15", hallmark.CodePipelineArtifactName},
		"bundle name":    {edit("out/hello", "out/hello.sigstore.json"), "p.yaml:8:15", hallmark.CodePipelineArtifactName},
		"doubled name":   {edit("[out/hello]", "[out/hello, b/hello]"), "p.yaml:8:26", hallmark.CodePipelineArtifactName},
		"network":        {edit("build:\n", "build:\n  network: packages\n"), "p.yaml:4:12", hallmark.CodeNetworkUnavailable},
		"interpolation":  {edit("run: make\n", "run: echo ${{ branch }}\n"), "p.yaml:5:12", hallmark.CodePipelineInvalid},
		"anchor":         {edit("build:\n", "build: &x\n"), "p.yaml:3:8", hallmark.CodePipelineInvalid},
		"two documents":  {good + "---\na: 1\n", "p.yaml", hallmark.CodePipelineInvalid},
		"empty":          {"", "p.yaml", hallmark.CodePipelineInvalid},
		"preload":        {edit("      run: make test\n", "      run: make test\n      env: {LD_PRELOAD: x}\n"), "p.yaml:8:12", hallmark.CodePipelineInvalid},
		"not a duration": {edit("      run: make test\n", "      run: make test\n      timeout: soon\n"), "p.yaml:8:16", hallmark.CodePipelineInvalid},
	} {
		_, err := ParsePipeline("p.yaml", []byte(c.text))
		if err == nil || hallmark.CodeOf(err) != c.code || !strings.HasPrefix(err.Error(), c.at) {
			t.Errorf("%s: %v (%s), want %s at %s", name, err, hallmark.CodeOf(err), c.code, c.at)
		}
	}
}

func FuzzParsePipeline(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("- \x00"))
	f.Add([]byte(withImage))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParsePipeline("p.yaml", b)
		if err == nil && (len(p.Steps) == 0 || len(p.Artifacts)+len(p.Images) == 0) {
			t.Errorf("accepted a pipeline without steps or artifacts")
		}
	})
}

// TestCollectRefuses takes regular files with one name, and nothing else.
func TestCollectRefuses(t *testing.T) {
	dir := t.TempDir()
	write := func(name string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("good")
	write("twice")
	if err := os.Link(filepath.Join(dir, "twice"), filepath.Join(dir, "again")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", filepath.Join(dir, "etc")); err != nil {
		t.Fatal(err)
	}
	out, reasons := Collect(dir, []string{"good"})
	if len(reasons) > 0 || len(out) != 1 || string(out[0].Data) != "good" || out[0].Mode != 0o755 {
		t.Errorf("collected %+v, %+v", out, reasons)
	}
	for name, code := range map[string]hallmark.Code{
		"link": hallmark.CodePipelineArtifactName, "twice": hallmark.CodePipelineArtifactName, "etc/passwd": hallmark.CodePipelineArtifactName,
		"none": hallmark.CodePipelineArtifact, ".": hallmark.CodePipelineArtifactName,
	} {
		if out, reasons := Collect(dir, []string{name}); len(out) > 0 || len(reasons) != 1 || reasons[0].Code != code {
			t.Errorf("%s: %+v, %+v", name, out, reasons)
		}
	}
}

// TestAuthorize: every fact that speaks against a build denies on its own.
func TestAuthorize(t *testing.T) {
	cc, lib, other := hallmark.DigestOf([]byte("cc")), hallmark.DigestOf([]byte("lib")), hallmark.DigestOf([]byte("other"))
	p := Policy{Builders: []string{"b"}, Guarantees: []string{"no-network"}, Permit: func(q Request) (Rule, *hallmark.Reason) {
		if q.Repository != "r" {
			return Rule{}, &hallmark.Reason{Code: hallmark.CodeBuildNotPermitted}
		}
		return Rule{Programs: map[string][]hallmark.Digest{"/usr/bin/cc": {cc}}, Libraries: map[string][]hallmark.Digest{"/usr/lib/libc.so": {lib}}}, nil
	}}
	p.Tools = []string{"cc=aa"}
	base := Facts{Request: Request{Repository: "r", Builder: "b"}, TraceWhole: true, Executed: []Executable{{Path: "/usr/bin/cc", Digest: cc, Step: "x"}, {Path: "/workspace/configure", Digest: other, Step: "x"}}, Loaded: []Executable{{Path: "/usr/bin/cc", Digest: cc, Step: "x"}, {Path: "/usr/lib/libc.so", Digest: lib, Step: "x"}, {Path: "/workspace/own.so", Digest: other, Step: "x"}}, Brought: []hallmark.Digest{other}, BuilderID: "b", Tools: []string{"cc=aa"}, Defined: []Step{{Name: "x"}}, Steps: []StepResult{{Step: Step{Name: "x"}}}, Guarantees: []Guarantee{{Name: "no-network", Holds: true}}, Artifacts: 1}
	if d := Authorize(p, base); !d.Allowed() {
		t.Fatalf("a good build: %+v", d)
	}
	for name, change := range map[string]func(*Facts){
		"builder":     func(f *Facts) { f.BuilderID = "other" },
		"request":     func(f *Facts) { f.Request.Repository = "fork" },
		"untraced":    func(f *Facts) { f.TraceWhole = false },
		"unlisted":    func(f *Facts) { f.Executed = []Executable{{Path: "/usr/bin/ld", Digest: cc, Step: "x"}} },
		"wrapped":     func(f *Facts) { f.Executed = []Executable{{Path: "/usr/bin/cc", Digest: other, Step: "x"}} },
		"library":     func(f *Facts) { f.Loaded = []Executable{{Path: "/usr/lib/libc.so", Digest: other, Step: "x"}} },
		"plug-in":     func(f *Facts) { f.Loaded = []Executable{{Path: "/usr/lib/plug.so", Digest: lib, Step: "x"}} },
		"from memory": func(f *Facts) { f.Executed = []Executable{{Path: "/memfd:x (deleted)", Digest: other, Step: "x"}} },
		"built":       func(f *Facts) { f.Written = []hallmark.Digest{other} },
		"cut short":   func(f *Facts) { f.Brought = nil }, // no writing of these bytes was seen, and nobody brought them
		"unnamed":     func(f *Facts) { f.Executed = []Executable{{Path: "", Digest: other, Step: "x"}} },
		"beside":      func(f *Facts) { f.Executed = []Executable{{Path: "/workspace-2/x", Digest: other, Step: "x"}} },
		"guarantee":   func(f *Facts) { f.Guarantees = []Guarantee{{Name: "no-network"}} },
		"absent":      func(f *Facts) { f.Guarantees = nil },
		"tool":        func(f *Facts) { f.Tools = []string{"cc=aa", "ld=bb"} },
		"order":       func(f *Facts) { f.Defined = []Step{{Name: "y"}} },
		"fewer":       func(f *Facts) { f.Defined = []Step{{Name: "x"}, {Name: "y"}} },
		"other run":   func(f *Facts) { f.Defined = []Step{{Name: "x", Run: "z"}} },
		"changed":     func(f *Facts) { f.SourceChanged = true },
		"artifact":    func(f *Facts) { f.Artifacts = 0 },
		"steps":       func(f *Facts) { f.Steps = nil },
		"failed":      func(f *Facts) { f.Steps = []StepResult{{Report: CommandReport{ExitCode: 1}}} },
		"egress":      func(f *Facts) { f.Steps = []StepResult{{Report: CommandReport{Egress: []Egress{{Address: "x"}}}}} },
		"reasons":     func(f *Facts) { f.Reasons = []hallmark.Reason{{Code: "X"}} },
	} {
		f := base
		change(&f)
		if d := Authorize(p, f); d.Allowed() || len(d.Reasons) == 0 {
			t.Errorf("%s: %+v", name, d)
		}
	}
	var none Policy
	none.Builders, none.AnyTool = []string{"b"}, true
	if d := Authorize(none, base); d.Allowed() {
		t.Error("a policy without rules allowed a build")
	}
	// Nor does a rule that restricts no program pass over a missing trace.
	p.Permit = func(Request) (Rule, *hallmark.Reason) { return Rule{AnyTool: true, Built: true}, nil }
	if d := Authorize(p, base); !d.Allowed() {
		t.Errorf("any tool: %+v", d)
	}
	base.TraceWhole = false
	if d := Authorize(p, base); d.Allowed() {
		t.Error("an untraced build was allowed")
	}
}

// TestLibrariesNamed: a refusal names path, digest and what was approved; a program
// that is only read is no library; and a rule that records tools asks of none.
func TestLibrariesNamed(t *testing.T) {
	lib, other := hallmark.DigestOf([]byte("lib")), hallmark.DigestOf([]byte("other"))
	r := Rule{Name: "release", Programs: map[string][]hallmark.Digest{"/usr/bin/ld": {lib}}, Libraries: map[string][]hallmark.Digest{"/usr/lib/p.so": {lib}}, Digests: []hallmark.Digest{hallmark.DigestOf(nil)}}
	loaded := []Executable{
		{Path: "/usr/lib/p.so", Digest: other, Step: "a"}, {Path: "/usr/lib/p.so", Digest: other, Step: "b"}, {Path: "/usr/lib/q.so", Digest: lib, Step: "a"}, {Path: "/usr/bin/ld", Digest: lib, Step: "a"}, {Path: "/usr/bin/ran", Digest: other, Step: "a"}, {Path: "/opt/beside.so", Digest: hallmark.DigestOf(nil), Step: "a"}, {Path: "/tmp/built.so", Digest: other, Step: "a"},
	}
	var got []string
	for _, reason := range r.libraries(loaded, []Executable{{Path: "/usr/bin/ran", Digest: other, Step: "a"}}) {
		got = append(got, string(reason.Code)+" "+reason.Field+" "+reason.Message)
	}
	if d := cmp.Diff([]string{
		"BUILD_TOOL_NOT_APPROVED tools.inventory step a loaded \"/usr/lib/p.so\" " + string(other) + ", a library which the inventory lists as " + string(lib),
		"BUILD_TOOL_NOT_APPROVED tools.inventory step a loaded \"/usr/lib/q.so\" " + string(lib) + ", a library which the inventory does not list",
	}, got); d != "" {
		t.Error(d)
	}
	r.AnyTool = true
	if got := r.libraries(loaded, nil); got != nil {
		t.Errorf("%+v", got)
	}
}

// TestProgramsNamed: a refusal names path, digest and what was approved.
func TestProgramsNamed(t *testing.T) {
	cc, wrapped := hallmark.DigestOf([]byte("cc")), hallmark.DigestOf([]byte("wrapped"))
	r := Rule{Name: "release", Programs: map[string][]hallmark.Digest{"/usr/bin/cc": {cc}}}
	got := r.programs([]Executable{{Path: "/usr/bin/cc", Digest: wrapped, Step: "compile"}, {Path: "/usr/bin/cc", Digest: wrapped, Step: "compile"}, {Path: "/usr/bin/cc", Digest: cc, Step: "compile"}}, nil, nil)
	if len(got) != 1 || got[0].Code != hallmark.CodeBuildTool || got[0].Nearest != "rule release" {
		t.Fatalf("%+v", got)
	}
	for _, want := range []string{"/usr/bin/cc", string(wrapped), string(cc), "step compile"} {
		if !strings.Contains(got[0].Message, want) {
			t.Errorf("%s: no %s", got[0].Message, want)
		}
	}
	if got := (Rule{Digests: []hallmark.Digest{wrapped}}).programs([]Executable{{Path: "/opt/x", Digest: wrapped, Step: "s"}}, nil, nil); len(got) != 0 {
		t.Errorf("a program approved by digest: %+v", got)
	}
	if got := (Rule{}).programs([]Executable{{Path: "/tmp/a.out", Digest: wrapped, Step: "s"}}, []hallmark.Digest{wrapped}, nil); len(got) != 1 || got[0].Code != hallmark.CodeBuildBuiltProgram {
		t.Errorf("a built program: %+v", got)
	}
	loader := []Executable{{Path: "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", Digest: wrapped, Step: "s"}}
	if got := (Rule{AnyTool: true}).programs(loader, nil, nil); len(got) != 1 || got[0].Code != hallmark.CodeBuildBuiltProgram {
		t.Errorf("a loader, which runs what was built: %+v", got)
	}
	if got := (Rule{AnyTool: true, Digests: []hallmark.Digest{wrapped}}).programs(loader, nil, nil); len(got) != 0 {
		t.Errorf("a loader that is approved: %+v", got)
	}
	if got := (Rule{Built: true}).programs([]Executable{{Path: "/tmp/a.out", Digest: wrapped, Step: "s"}}, []hallmark.Digest{wrapped}, nil); len(got) != 0 {
		t.Errorf("a built program that may run: %+v", got)
	}
}
