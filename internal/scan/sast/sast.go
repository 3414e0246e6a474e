// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package sast is static analysis: an embedded engine for Go, drivers for
// external tools that speak SARIF, and an honest finding for every other language
// it sees and can't analyse (SP 800-204D §5.1.4: a language without a SAST tool is
// a finding).
//
// Suppressions inside the analysed code are not honoured. A package that does
// not load was not analysed, which makes the outcome error.
package sast

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/types"
	"io"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/securego/gosec/v2"
	"github.com/securego/gosec/v2/analyzers"
	"github.com/securego/gosec/v2/issue"
	"github.com/securego/gosec/v2/rules"
	"golang.org/x/tools/go/analysis/passes/buildssa"
	"golang.org/x/tools/go/packages"
	"golang.org/x/tools/go/ssa"
	"golang.org/x/tools/go/ssa/ssautil"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/scan"
)

// JobName names the worker job.
const JobName = "sast"

// Where the worker finds the source.
const sourceDir = "/source"

// Config is what a scan needs.
type Config struct {
	Worker     scan.Worker
	Thresholds scan.Thresholds
	Uncovered  hallmark.Severity // of a language without an engine
	Clock      func() time.Time
	Tool       hallmark.Tool
	Memory     int64
	Wall       time.Duration
	External   External
}

// RuleDigest names the rule set of this binary.
func RuleDigest() hallmark.Digest { return hallmark.DigestOf([]byte("gosec v2.30.0 rules v2")) }

// Scan analyses the exported source of a revision. Mounts bring the fetched
// dependencies.
func Scan(ctx context.Context, cfg Config, rev hallmark.Revision, dir string, mounts []scan.Mount) (hallmark.CheckRecord, []hallmark.Finding, error) {
	rec := hallmark.CheckRecord{
		Check: "sast", Revision: rev, StartedOn: cfg.Clock(), Tool: cfg.Tool,
		Data: []hallmark.DataSource{{Name: "gosec-rules", Digest: RuleDigest()}},
	}
	var covered []string
	drivers, _ := cfg.External.enabled()
	for _, d := range drivers {
		covered = append(covered, d.Languages...)
	}
	mounts = append(slices.Clone(mounts), scan.Mount{Source: dir, Target: sourceDir})
	out, reason, err := scan.Call(ctx, cfg.Worker, scan.Job{Args: []string{JobName, strconv.Itoa(int(cfg.Uncovered)), strings.Join(covered, ",")}, Mounts: mounts, Memory: cfg.Memory, Wall: cfg.Wall})
	if err != nil {
		return rec, nil, err
	}
	rec.Coverage = &out.Coverage
	if reason != nil {
		rec.FinishedOn = cfg.Clock()
		reason.Check = "sast"
		rec.Outcome, rec.Reasons = hallmark.Errored, []hallmark.Reason{*reason}
		return rec, nil, nil
	}
	if err := external(ctx, cfg, dir, covered, &rec, &out); err != nil {
		return rec, nil, err
	}
	rec.FinishedOn = cfg.Clock()
	scan.Judge(&rec, out.Findings, cfg.Thresholds, func(f hallmark.Finding) hallmark.Code {
		switch code := hallmark.Code(f.Rule); code {
		case hallmark.CodeSASTUncovered, hallmark.CodeSASTLeftOut:
			return code
		}
		return hallmark.CodeSASTFinding
	})
	return rec, out.Findings, nil
}

// external adds what the enabled drivers did.
func external(ctx context.Context, cfg Config, dir string, covered []string, rec *hallmark.CheckRecord, out *scan.Output) error {
	if len(cfg.External.Pins) == 0 {
		return nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("opening the source: %w", err)
	}
	defer root.Close()
	t, err := readTree(root)
	if err != nil {
		return err
	}
	did, err := cfg.External.drive(ctx, cfg, root, t)
	if err != nil {
		return err
	}
	for _, l := range covered {
		// The worker left these languages to the drivers: both must mean the same files.
		if a, b := out.Coverage.Languages[l], len(t.files[l]); a != b {
			did.missed = append(did.missed, fmt.Sprintf("%d of %d files of %s", a-b, a, l))
		}
	}
	out.Findings = append(out.Findings, did.findings...)
	sortFindings(out.Findings)
	out.Coverage.Missed = append(out.Coverage.Missed, did.missed...)
	rec.Data = append(rec.Data, did.data...)
	for _, why := range did.reasons {
		why.Check = "sast"
		rec.Outcome, rec.Reasons = hallmark.Errored, append(rec.Reasons, why)
	}
	return nil
}

// WorkerMain is the worker: the source is at /source, one JSON document goes out.
func WorkerMain(args []string, stdout io.Writer) error {
	if len(args) != 2 {
		return fmt.Errorf("sast: want the severity of an uncovered language, and the languages that others cover")
	}
	sev, err := strconv.Atoi(args[0])
	if err != nil {
		return fmt.Errorf("sast: severity %q", args[0])
	}
	out := scan.Output{Findings: []hallmark.Finding{}}
	if err := analyse(sourceDir, hallmark.Severity(sev), strings.Split(args[1], ","), &out); err != nil {
		return err
	}
	// The engine is tried only where it is needed: its fixture has to be compiled.
	out.Canary = out.Coverage.Languages["Go"] == 0
	if !out.Canary {
		if out.Canary, err = canary(); err != nil {
			return err
		}
	}
	return json.NewEncoder(stdout).Encode(out)
}

// canary analyses a planted program whose fault must be found.
func canary() (bool, error) {
	dir, err := os.MkdirTemp("", "canary")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	for name, text := range map[string]string{
		"go.mod":  "module canary\n\ngo 1.21\n",
		"main.go": "package main\n\nfunc main() { var n int64 = -1; println(uint8(f(n))) }\n\nfunc f(n int64) int64 { return n }\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return false, err
		}
	}
	findings, _, _, err := golang(dir, ".")
	return len(findings) > 0, err
}

func analyse(dir string, uncovered hallmark.Severity, covered []string, out *scan.Output) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("sast: opening the source: %w", err)
	}
	defer root.Close()
	t, err := readTree(root)
	if err != nil {
		return err
	}
	langs := map[string]int{}
	for l, files := range t.files {
		langs[l] = len(files)
		out.Coverage.Scanned += len(files)
	}
	out.Coverage.Languages = langs
	for l, n := range langs {
		if l == "Go" || slices.Contains(covered, l) {
			continue
		}
		out.Findings = append(out.Findings, hallmark.Finding{
			Check: "sast", Tool: "hallmark", Rule: string(hallmark.CodeSASTUncovered), Severity: uncovered, Confidence: hallmark.ConfidenceHigh,
			Message:     fmt.Sprintf("%d files of %s: no engine analyses this language here", n, l),
			Fingerprint: string(hallmark.DigestOf([]byte("uncovered " + l))),
		})
	}
	if langs["Go"] > 0 && len(t.modules) == 0 {
		out.Coverage.Missed = append(out.Coverage.Missed, "Go files without a go.mod")
	}
	analysed := map[string]bool{}
	for _, rel := range t.modules {
		if slices.Contains(strings.Split(rel, "/"), "testdata") {
			continue // the go command ignores it too
		}
		if !t.ownGo(rel) {
			continue // it only pins tools, and holds no code
		}
		findings, files, missed, err := golang(filepath.Join(dir, filepath.FromSlash(rel)), rel)
		if err != nil {
			return err
		}
		out.Findings = append(out.Findings, findings...)
		out.Coverage.Missed = append(out.Coverage.Missed, missed...)
		for _, f := range files {
			analysed[f] = true
		}
	}
	if len(out.Coverage.Missed) == 0 { // else it is an error anyway, and most of this follows from it
		out.Findings = append(out.Findings, leftOut(root, t, analysed, uncovered)...)
	}
	sortFindings(out.Findings)
	return nil
}

func sortFindings(all []hallmark.Finding) {
	slices.SortFunc(all, func(a, b hallmark.Finding) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Fingerprint, b.Fingerprint))
	})
}

// golang runs the Go engine over one module and says which files it analysed.
// Tests are not analysed: they are not part of what is built.
func golang(dir, rel string) (findings []hallmark.Finding, files, missed []string, err error) {
	defer func() {
		// The engine has crashed on odd code before; a crash is no result.
		if r := recover(); r != nil {
			missed = append(missed, fmt.Sprintf("module %s: the engine crashed: %v", rel, r))
		}
	}()
	pkgs, err := load(dir)
	if err != nil {
		return nil, nil, []string{fmt.Sprintf("module %s: %s", rel, err)}, nil
	}
	if len(pkgs) == 0 {
		missed = append(missed, fmt.Sprintf("module %s: no package", rel))
	}
	for _, p := range pkgs {
		for _, e := range p.Errors {
			missed = append(missed, fmt.Sprintf("package %s: %s", p.PkgPath, firstLine(e.Msg)))
		}
	}
	prog, built := ssautil.Packages(pkgs, ssa.BuilderMode(0))
	prog.Build()
	a := gosec.NewAnalyzer(gosec.NewConfig(), false, false, true, 1, log.New(io.Discard, "", 0))
	a.LoadRules(rules.Generate(false).RulesInfo())
	a.LoadAnalyzers(analyzers.Generate(false).AnalyzersInfo())
	for i, p := range pkgs {
		if len(p.Errors) > 0 {
			continue
		}
		a.CheckRules(p)
		if built[i] == nil {
			missed = append(missed, fmt.Sprintf("package %s: no SSA form%s", p.PkgPath, because(p)))
			continue
		}
		a.CheckAnalyzersWithSSA(p, &buildssa.SSA{Pkg: built[i], SrcFuncs: functions(prog, p)})
		for _, f := range p.CompiledGoFiles {
			if inside, err := filepath.Rel(dir, f); err == nil {
				files = append(files, filepath.ToSlash(filepath.Join(rel, inside)))
			}
		}
	}
	issues, _, _ := a.Report()
	return convert(issues, dir, rel), files, missed, nil
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// functions lists the declared functions of a package with those inside them.
func functions(prog *ssa.Program, p *packages.Package) []*ssa.Function {
	var out []*ssa.Function
	var add func(*ssa.Function)
	add = func(f *ssa.Function) {
		out = append(out, f)
		for _, in := range f.AnonFuncs {
			add(in)
		}
	}
	for _, file := range p.Syntax {
		for _, d := range file.Decls {
			fd, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if obj, ok := p.TypesInfo.Defs[fd.Name].(*types.Func); ok {
				if fn := prog.FuncValue(obj); fn != nil {
					add(fn)
				}
			}
		}
	}
	return out
}

// convert makes findings of issues, each rule once a line.
func convert(issues []*issue.Issue, dir, rel string) []hallmark.Finding {
	seen := map[string]bool{}
	var out []hallmark.Finding
	for _, i := range issues {
		file, err := filepath.Rel(dir, i.File)
		if err != nil {
			file = filepath.Base(i.File)
		}
		file = filepath.ToSlash(filepath.Join(rel, file))
		lineText, _, _ := strings.Cut(i.Line, "-")
		line, _ := strconv.Atoi(lineText)
		key := fmt.Sprintf("%s\x00%s\x00%d", i.RuleID, file, line)
		if seen[key] {
			continue
		}
		seen[key] = true
		f := hallmark.Finding{
			Check: "sast", Tool: "gosec", Rule: i.RuleID, Message: i.What, Path: file, Line: line,
			Severity: hallmark.SeverityLow, Confidence: hallmark.ConfidenceLow,
			Fingerprint: string(hallmark.DigestOf([]byte(i.RuleID + "\x00" + file + "\x00" + strings.TrimSpace(i.Code)))),
		}
		switch i.Severity {
		case issue.High:
			f.Severity = hallmark.SeverityHigh
		case issue.Medium:
			f.Severity = hallmark.SeverityMedium
		case issue.Low:
		}
		switch i.Confidence {
		case issue.High:
			f.Confidence = hallmark.ConfidenceHigh
		case issue.Medium:
			f.Confidence = hallmark.ConfidenceMedium
		case issue.Low:
		}
		if i.Cwe != nil {
			f.CWE = "CWE-" + i.Cwe.ID
		}
		out = append(out, f)
	}
	return out
}
