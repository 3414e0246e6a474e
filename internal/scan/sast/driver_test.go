// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sast

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/scan"
)

func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case sandbox.Alias:
		os.Exit(sandbox.Main())
	case scan.Alias:
		if err := WorkerMain(os.Args[2:], os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// boxed is a scan.Worker over real sandboxes.
type boxed struct{ box *sandbox.Sandbox }

func (w boxed) Run(ctx context.Context, job scan.Job) (scan.Report, error) {
	var out, errs bytes.Buffer
	spec := sandbox.Spec{
		Argv: append([]string{scan.Alias}, job.Args...), Self: true, Dir: "/", Stdin: job.Stdin, Stdout: &out, Stderr: &errs,
		Env:    []string{"PATH=" + sandbox.Path(), "HOME=/tmp/home", "GOCACHE=/tmp/gocache", "TMPDIR=/tmp", "LANG=C.UTF-8"},
		Limits: sandbox.Limits{Wall: job.Wall, Memory: job.Memory},
	}
	if len(job.Program) > 0 {
		spec.Argv, spec.Self, spec.Dir, spec.Env = job.Program, false, job.Dir, job.Env
	}
	for _, m := range job.Mounts {
		spec.Mounts = append(spec.Mounts, sandbox.Mount{Source: m.Source, Target: m.Target})
	}
	rep, err := w.box.Run(ctx, spec)
	return scan.Report{Stdout: out.Bytes(), Stderr: errs.Bytes(), ExitCode: rep.ExitCode, LimitHit: rep.LimitHit, Egress: len(rep.Egress)}, err
}

func config(t *testing.T, e External) Config {
	t.Helper()
	box, err := sandbox.New(sandbox.Config{Clock: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	e.WorkDir = t.TempDir()
	if e.Find == nil {
		e.Find = sandbox.Find
	}
	return Config{
		Worker: boxed{box}, Thresholds: scan.Thresholds{Severity: hallmark.SeverityHigh, Confidence: hallmark.ConfidenceMedium},
		Uncovered: hallmark.SeverityMedium, Clock: time.Now, Wall: time.Minute, External: e,
	}
}

// write makes a source tree; a file name and its text by turns.
func write(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		p := filepath.Join(dir, files[i])
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(files[i+1]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func run(t *testing.T, cfg Config, dir string) (hallmark.CheckRecord, []hallmark.Finding) {
	t.Helper()
	rec, findings, err := Scan(t.Context(), cfg, hallmark.Revision{}, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(cfg.External.WorkDir)
	if err != nil || len(left) > 0 {
		t.Errorf("left in the work directory: %v %v", left, err)
	}
	return rec, findings
}

// real pins the flawfinder of this machine.
func real(t *testing.T) External {
	t.Helper()
	in, err := flawfinder().Inspect(sandbox.Find)
	if err != nil {
		t.Skipf("%v: %s", err, flawfinder().Install)
	}
	return External{Pins: map[string]hallmark.Digest{"flawfinder": in.Digest}}
}

const cleanC = "#include <stdio.h>\nint main(void) { puts(\"hello\"); return 0; }\n"

func TestFlawfinderFindsWhatItKnows(t *testing.T) {
	e := real(t)
	cfg := config(t, e)
	dir := write(t,
		"src/copy.c", "#include <string.h>\nvoid f(char *d, const char *s) {\n\tstrcpy(d, s); /* Flawfinder: ignore */\n}\n",
		"-rf.c", "#include <stdio.h>\nchar b[9];\nvoid g(void) { gets(b); }\n",
		".hidden/x.cc", "#include <cstdlib>\nvoid h(const char *s) { system(s); }\n",
		"latin.c", "/* caf\xe9 */\nvoid k(char *d, const char *s) { strcat(d, s); }\n",
		"c23.h", "enum { N = 1'000 };\nvoid m(char *d, const char *s);\n#define M(d, s) strcpy(d, s)\n",
	)
	rec, findings := run(t, cfg, dir)
	if rec.Outcome != hallmark.Fail {
		t.Fatalf("outcome %s, reasons %+v", rec.Outcome, rec.Reasons)
	}
	var got []string
	for _, f := range findings {
		if f.Tool != "flawfinder" || f.Check != "sast" {
			t.Errorf("finding %+v", f)
		}
		if cfg.Thresholds.Counts(f) {
			got = append(got, fmt.Sprintf("%s:%d %s %s %s", f.Path, f.Line, f.Rule, f.CWE, f.Severity))
		}
	}
	want := []string{
		"-rf.c:3 FF1014 CWE-120 critical",
		".hidden/x.cc:2 FF1044 CWE-78 high",
		"c23.h:3 FF1001 CWE-120 high",
		"latin.c:2 FF1005 CWE-120 high",
		"src/copy.c:3 FF1001 CWE-120 high",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if len(rec.Data) != 4 || rec.Data[1].Name != "sarif:flawfinder" || !strings.HasPrefix(rec.Data[2].Name, "driver:flawfinder@2.") || rec.Data[2].Digest != e.Pins["flawfinder"] ||
		!strings.HasPrefix(rec.Data[3].Name, "interpreter:python3") {
		t.Errorf("data %+v", rec.Data)
	}
	for _, r := range rec.Reasons {
		if r.Code != hallmark.CodeSASTFinding {
			t.Errorf("reason %+v", r)
		}
	}
}

func TestFlawfinderPassesCleanCode(t *testing.T) {
	dir := write(t, "main.c", cleanC)
	rec, findings := run(t, config(t, real(t)), dir)
	if rec.Outcome != hallmark.Pass || len(findings) != 0 {
		t.Errorf("outcome %s, reasons %+v, findings %+v", rec.Outcome, rec.Reasons, findings)
	}
	// Without it the language is a finding.
	rec, findings = run(t, config(t, External{}), dir)
	if rec.Outcome != hallmark.Pass || len(findings) != 1 || findings[0].Rule != string(hallmark.CodeSASTUncovered) {
		t.Errorf("outcome %s, findings %+v", rec.Outcome, findings)
	}
}

// TestFlawfinderIsNotLedAround: code that a compiler sees, between text that makes
// a simple lexer lose its way. Each call is on line 3 or 4.
func TestFlawfinderIsNotLedAround(t *testing.T) {
	for name, text := range map[string]string{
		"a quote in a disabled section": "#if 0\ndon't\n#endif\nCALL\n#if 0\ncan't\n#endif\n",
		"a quote in an error":           "#ifdef X\n#error \"no\n#endif\nCALL\n#error no\"\n",
		"a comment that goes on":        "// \\\n/*\nCALL\n// */\n",
		"the end of a comment, split":   "/* *\\\n/\nCALL\n/* */\n",
		"a comment in a file name":      "#include <a/*b>\n\nCALL\n/* */\n",
		"a name in two lines":           "\n\nstr\\\ncpy(d, s);\n",
		"division by a comment":         "\n\nx = 1 //**/ CALL\n",
		"a raw string":                  "const char *r = R\"(\" /* )\";\n\nCALL\nint e = ' '; /* \" */\n",
		"a number with a quote":         "#define E(x)\n\nE(0'a') CALL 'b';\n",
		"no raw string to C89":          "#define R\n\nR\"x(\" ; CALL \")x\"\n",
		"an escape before the end":      "char a = '\\\\'; char b = '\"';\n\nCALL // \"\n",
		"a comment without end":         "x = y/ *z;\n\nCALL\n/* \n",
	} {
		text = strings.ReplaceAll(text, "CALL", "strcpy(d, s);")
		_, findings := run(t, config(t, real(t)), write(t, "x.c", text))
		found := false
		for _, f := range findings {
			found = found || f.Rule == "FF1001" && f.Line >= 3 && f.Line <= 4
		}
		if !found {
			c, err := cText([]byte(text))
			t.Errorf("%s: not found; findings %+v; the tool sees\n%s %v", name, findings, c, err)
		}
	}
}

// TestBlameNamesTheFile: one file of many makes the tool complain.
func TestBlameNamesTheFile(t *testing.T) {
	files := []string{"bad/d.c", "poison\n"}
	for i := range 9 {
		files = append(files, fmt.Sprintf("good%d.c", i), cleanC)
	}
	script := printer(sarifOf("", fakeCanary)) + "if grep -q poison \"$@\"; then echo 'lost it' >&2; fi\n"
	rec, _ := run(t, fakeConfig(t, script), write(t, files...))
	if rec.Outcome != hallmark.Errored || len(rec.Reasons) != 1 || rec.Reasons[0].Code != hallmark.CodeScanIncomplete ||
		!strings.Contains(rec.Reasons[0].Message, "lost it, at bad/d.c") || !strings.Contains(rec.Reasons[0].Fix, "bad/d.c") {
		t.Errorf("outcome %s, reasons %+v", rec.Outcome, rec.Reasons)
	}
}

func TestFingerprintsSurviveMovedLines(t *testing.T) {
	cfg := config(t, real(t))
	prints := func(text string) []string {
		_, findings := run(t, cfg, write(t, "a.c", text))
		var out []string
		for _, f := range findings {
			out = append(out, f.Fingerprint)
		}
		slices.Sort(out)
		return out
	}
	two := "void f(char *d, char *s) {\n\tstrcpy(d, s);\n\tstrcpy(d, s);\n}\n"
	before, after := prints(two), prints("\n\n/* moved */\n"+strings.ReplaceAll(two, "\t", "    "))
	if d := cmp.Diff(before, after); d != "" || len(before) != 2 || before[0] == before[1] {
		t.Errorf("%v %s", before, d)
	}
}

func TestFingerprintFollowsPrograms(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "fake")
	e := External{Find: func(string) (string, error) { return program, nil }, drivers: []Driver{fake()}}
	seen := map[hallmark.Digest]string{}
	note := func(what string) {
		t.Helper()
		d, err := Fingerprint(e)
		if err != nil {
			t.Fatal(err)
		}
		if seen[d] != "" {
			t.Errorf("%s has the fingerprint of %s", what, seen[d])
		}
		seen[d] = what
	}
	put := func(s string) {
		if err := os.WriteFile(program, []byte(s), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put("one")
	note("no driver")
	e.Pins = map[string]hallmark.Digest{"fake": hallmark.DigestOf([]byte("one"))}
	note("a driver")
	put("two")
	note("a changed program")
	e.Pins = map[string]hallmark.Digest{"fake": hallmark.DigestOf([]byte("two"))}
	note("a changed pin")
}

// fake is a driver whose program a test writes.
func fake() Driver {
	return Driver{
		Name: "fake", Tool: "Fake", Program: "fake", Install: "install fake", Args: []string{ArgFiles}, Languages: []string{"C"}, Extension: ".c",
		Exits: []int{0}, Wall: time.Minute, canaryText: "canary\n", canaryRule: "R1", canaryLine: 1,
		grade: func(h hit) (hallmark.Severity, hallmark.Confidence, bool) {
			return hallmark.SeverityHigh, hallmark.ConfidenceHigh, h.Level == "error"
		},
	}
}

// printer is a program that prints a SARIF file in which CANARY stands for the
// canary, and CODE for the first file.
func printer(sarif string) string {
	return "#!/bin/sh\nset -e\nfirst=$1\nfor last; do :; done\nsed -e \"s,CANARY,$last,;s,CODE,$first,\" <<'END'\n" + sarif + "\nEND\n"
}

const (
	fakeTool   = `"tool":{"driver":{"name":"Fake","version":"1"}}`
	fakeCanary = `{"ruleId":"R1","level":"error","message":{"text":"m"},"locations":[{"physicalLocation":{"artifactLocation":{"uri":"CANARY"},"region":{"startLine":1}}}]}`
	fakeResult = `{"ruleId":"R2","level":"error","message":{"text":"m"},"locations":[{"physicalLocation":{"artifactLocation":{"uri":"CODE"},"region":{"startLine":2}}}]}`
)

func sarifOf(more string, results ...string) string {
	return `{"version":"2.1.0","runs":[{` + fakeTool + more + `,"results":[` + strings.Join(results, ",") + `]}]}`
}

// TestDriverFaults: whatever goes wrong with a tool, the check is an error that
// says so, never a pass.
func TestDriverFaults(t *testing.T) {
	whole := sarifOf("", fakeCanary)
	replaced := func(old, by string) string {
		return printer(strings.Replace(sarifOf("", fakeCanary, fakeResult), old, by, 1))
	}
	for name, c := range map[string]struct {
		script string
		code   hallmark.Code
		text   string
	}{
		"crash":                 {"#!/bin/sh\nkill -SEGV $$\n", hallmark.CodeScanIncomplete, "exit code -1"},
		"unknown exit code":     {printer(whole) + "exit 3\n", hallmark.CodeScanIncomplete, "exit code 3"},
		"no interpreter":        {"#!/nonexistent\n", hallmark.CodeScanIncomplete, "exit code 127"},
		"timeout":               {"#!/bin/sh\nsleep 60\n", hallmark.CodeScanIncomplete, "wall limit"},
		"complaint":             {printer(whole) + "echo warning: lost >&2\n", hallmark.CodeScanIncomplete, "lost"},
		"nothing":               {"#!/bin/sh\n", hallmark.CodeScanIncomplete, "printed nothing"},
		"truncated":             {printer(whole[:len(whole)-3]), hallmark.CodeScanIncomplete, "not complete"},
		"two documents":         {printer(whole + whole), hallmark.CodeScanIncomplete, "follows"},
		"no JSON":               {printer("<html>"), hallmark.CodeScanIncomplete, "invalid character"},
		"null results":          {printer(`{"version":"2.1.0","runs":[{` + fakeTool + `,"results":null}]}`), hallmark.CodeScanIncomplete, "null or absent"},
		"absent results":        {printer(`{"version":"2.1.0","runs":[{` + fakeTool + `}]}`), hallmark.CodeScanIncomplete, "null or absent"},
		"no runs":               {printer(`{"version":"2.1.0","runs":[]}`), hallmark.CodeScanIncomplete, "0 runs"},
		"not successful":        {printer(sarifOf(`,"invocations":[{"executionSuccessful":false}]`, fakeCanary)), hallmark.CodeScanIncomplete, "not successful"},
		"success not said":      {printer(sarifOf(`,"invocations":[{"exitCode":0}]`, fakeCanary)), hallmark.CodeScanIncomplete, "not successful"},
		"execution error":       {printer(sarifOf(`,"invocations":[{"executionSuccessful":true,"toolExecutionNotifications":[{"level":"error","message":{"text":"lost a file"}}]}]`, fakeCanary)), hallmark.CodeScanIncomplete, "lost a file"},
		"configuration error":   {printer(sarifOf(`,"invocations":[{"executionSuccessful":true,"toolConfigurationNotifications":[{"level":"error","message":{"text":"no rules"}}]}]`, fakeCanary)), hallmark.CodeScanIncomplete, "no rules"},
		"results elsewhere":     {printer(sarifOf(`,"externalPropertyFileReferences":{"results":[{"location":{"uri":"r.sarif"}}]}`, fakeCanary)), hallmark.CodeScanIncomplete, "another file"},
		"another tool":          {replaced(`"name":"Fake"`, `"name":"Other"`), hallmark.CodeScanIncomplete, "Other"},
		"climbing":              {replaced("CODE", "../../etc/passwd"), hallmark.CodeScanIncomplete, "below the tree"},
		"climbing, escaped":     {replaced("CODE", "%2e%2e/%2E./etc/passwd"), hallmark.CodeScanIncomplete, "below the tree"},
		"outside":               {replaced("CODE", "file:///etc/passwd"), hallmark.CodeScanIncomplete, "outside the tree"},
		"other host":            {replaced("CODE", "file://host/source/000001.c"), hallmark.CodeScanIncomplete, "not a file"},
		"unknown file":          {replaced("CODE", "000009.c"), hallmark.CodeScanIncomplete, "no file of the source"},
		"line beyond the end":   {replaced(`"startLine":2`, `"startLine":99`), hallmark.CodeScanIncomplete, "line 99"},
		"no line":               {replaced(`"startLine":2`, `"startLine":0`), hallmark.CodeScanIncomplete, "line 0"},
		"unknown level":         {replaced(`"level":"error"`, `"level":"fatal"`), hallmark.CodeScanIncomplete, "fatal"},
		"level not of the tool": {replaced(`"level":"error"`, `"level":"note"`), hallmark.CodeScanIncomplete, "does not have"},
		"key twice":             {replaced(`"ruleId":"R2"`, `"ruleId":"R2","RuleID":"R3"`), hallmark.CodeScanIncomplete, "twice"},
		"canary missed":         {printer(sarifOf("", fakeResult)), hallmark.CodeScanCanary, "canary"},
		"canary elsewhere":      {replaced(`"startLine":1`, `"startLine":2`), hallmark.CodeScanCanary, "canary"},
		"canary by other rule":  {replaced(`"ruleId":"R1"`, `"ruleId":"R9"`), hallmark.CodeScanCanary, "canary"},
		"egress":                {"#!/usr/bin/python3 -IS\nimport socket\ns = socket.socket()\ntry:\n s.connect(('192.0.2.1', 80))\nexcept OSError:\n pass\n", hallmark.CodeScanIncomplete, "network"},
	} {
		t.Run(name, func(t *testing.T) {
			rec, _ := run(t, fakeConfig(t, c.script), write(t, "a.c", "one\ntwo\n"))
			if rec.Outcome != hallmark.Errored || len(rec.Reasons) != 1 || rec.Reasons[0].Code != c.code || !strings.Contains(rec.Reasons[0].Message, c.text) || rec.Reasons[0].Check != "sast" {
				t.Errorf("outcome %s, reasons %+v", rec.Outcome, rec.Reasons)
			}
		})
	}
}

func fakeConfig(t *testing.T, script string) Config {
	t.Helper()
	program := filepath.Join(t.TempDir(), "fake")
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	cfg := config(t, External{
		Pins: map[string]hallmark.Digest{"fake": hallmark.DigestOf([]byte(script))}, drivers: []Driver{fake()},
		Find: func(string) (string, error) { return program, nil },
	})
	if strings.Contains(script, "sleep") {
		cfg.External.drivers[0].Wall = 300 * time.Millisecond
	}
	return cfg
}

// TestDriverWorks: the same fake tool without a fault, and what it may see.
func TestDriverWorks(t *testing.T) {
	suppressed := strings.Replace(fakeResult, `"ruleId"`, `"suppressions":[{"kind":"inSource","status":"accepted"}],"baselineState":"absent","ruleId"`, 1)
	look := `
test "$PWD" = /tmp && test "$HOME" = /tmp && test -z "$(ls -A /tmp)"
test "$(env | cut -d= -f1 | grep -v -e '^_$' -e SHLVL | sort | tr '\n' ' ')" = "HOME LANG PATH PWD TMPDIR "
test ! -w /source && test ! -w "$1" && test ! -e /home && test ! -e /root
`
	script := strings.Replace(printer(sarifOf(`,"invocations":[{"executionSuccessful":true}]`, suppressed, fakeCanary)), "set -e\n", "set -e\n"+look, 1)
	rec, findings := run(t, fakeConfig(t, script), write(t, "dir/a.c", "one\ntwo\n"))
	if rec.Outcome != hallmark.Fail || len(findings) != 1 {
		t.Fatalf("outcome %s, reasons %+v, findings %+v", rec.Outcome, rec.Reasons, findings)
	}
	if f := findings[0]; f.Path != "dir/a.c" || f.Line != 2 || f.Rule != "R2" || f.Tool != "fake" {
		t.Errorf("finding %+v", f)
	}
}

func TestDriverProgramIsPinned(t *testing.T) {
	dir := write(t, "a.c", cleanC)
	good := printer(sarifOf("", fakeCanary))

	cfg := fakeConfig(t, good)
	cfg.External.Pins["fake"] = hallmark.DigestOf([]byte("another"))
	rec, _ := run(t, cfg, dir)
	if rec.Outcome != hallmark.Errored || rec.Reasons[0].Code != hallmark.CodeSASTDriverDigest ||
		!strings.Contains(rec.Reasons[0].Fix, "hallmark policy set sast.drivers=fake="+string(hallmark.DigestOf([]byte(good)))) {
		t.Errorf("another digest: outcome %s, reasons %+v", rec.Outcome, rec.Reasons)
	}

	cfg = fakeConfig(t, good)
	cfg.External.Find = func(string) (string, error) {
		return "", hallmark.Errorf(hallmark.KindNotFound, "fake is not installed")
	}
	rec, _ = run(t, cfg, write(t, "README", "no C here"))
	if rec.Outcome != hallmark.Errored || rec.Reasons[0].Code != hallmark.CodeSASTDriver || !strings.Contains(rec.Reasons[0].Fix, "install fake, or hallmark policy set sast.drivers=none") {
		t.Errorf("not installed: outcome %s, reasons %+v", rec.Outcome, rec.Reasons)
	}

	cfg = fakeConfig(t, good)
	cfg.External.Pins["other"] = cfg.External.Pins["fake"]
	rec, _ = run(t, cfg, dir)
	if rec.Outcome != hallmark.Errored || rec.Reasons[0].Code != hallmark.CodeSASTDriver || !strings.Contains(rec.Reasons[0].Fix, "sast.drivers=fake=sha256:") {
		t.Errorf("unknown driver: outcome %s, reasons %+v", rec.Outcome, rec.Reasons)
	}
}

// TestDriverReadsLargeTreesInBatches: every batch has its canary and is told
// apart.
func TestDriverReadsLargeTreesInBatches(t *testing.T) {
	var files []string
	for i := range maxBatchFiles + 1 {
		files = append(files, fmt.Sprintf("d%02d/f%04d.c", i%40, i), "one\ntwo\n")
	}
	rec, findings := run(t, fakeConfig(t, printer(sarifOf("", fakeResult, fakeCanary))), write(t, files...))
	if rec.Outcome != hallmark.Fail || len(findings) != 2 || len(rec.Data) != 4 {
		t.Fatalf("outcome %s, data %+v, findings %+v", rec.Outcome, rec.Data, findings)
	}
	rec, _ = run(t, fakeConfig(t, printer(sarifOf("", fakeCanary))), write(t, "big.c", strings.Repeat("x", maxFileBytes+1)))
	if rec.Outcome != hallmark.Errored || !strings.Contains(rec.Reasons[0].Message, "big.c") {
		t.Errorf("a file that is too large: outcome %s, reasons %+v", rec.Outcome, rec.Reasons)
	}
}
