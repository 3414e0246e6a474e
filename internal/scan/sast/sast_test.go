// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sast

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
)

// TestLeftOutFilesAreFindings: no file of Go is passed over without a word.
func TestLeftOutFilesAreFindings(t *testing.T) {
	const body = "package main\n\nfunc init() {}\n"
	dir := write(t,
		"app/go.mod", "module example.org/app\n\ngo 1.21\n",
		"app/main.go", "package main\n\nfunc main() {}\n",
		"app/main_test.go", body,
		"app/x_windows.go", body,
		"app/tag.go", "// Text.\n\n//go:build evil\n\n"+body,
		"app/old.go", "// +build !linux\n\n"+body,
		"app/gen.go", "//go:build ignore\n\npackage main\n\nfunc main() {}\n",
		"app/c.go", "package main\n\nimport \"C\"\n",
		"app/only/a_plan9.go", "package only\n",
		"app/testdata/bad.go", body, "app/testdata/sub/worse.go", body,
		"app/_off/x.go", body, "app/.x.go", body,
		"app/vendor/example.org/dep/d.go", "package dep\n",
		"app/vendor/modules.txt", "",
		"tool.go", body,
	)
	rec, findings := run(t, config(t, External{}), dir)
	if rec.Outcome != hallmark.Pass {
		t.Fatalf("outcome %s, reasons %+v", rec.Outcome, rec.Reasons)
	}
	var got []string
	for _, f := range findings {
		if f.Rule != string(hallmark.CodeSASTLeftOut) || f.Confidence != hallmark.ConfidenceHigh {
			t.Errorf("finding %+v", f)
		}
		got = append(got, fmt.Sprintf("%s:%d %s %s", f.Path, f.Line, f.Severity, strings.TrimPrefix(f.Message, "not analysed: ")))
	}
	want := []string{
		"app/.x.go:0 low 1 Go files: the go command passes this directory over",
		"app/_off:0 low 1 Go files: the go command passes this directory over",
		"app/c.go:3 medium it uses cgo",
		"app/gen.go:1 medium the build constraint go:build ignore does not hold here",
		"app/old.go:1 medium the build constraint +build !linux does not hold here",
		"app/only/a_plan9.go:0 medium by its name it is for another platform, or its package was not loaded",
		"app/tag.go:3 medium the build constraint go:build evil does not hold here",
		"app/testdata:0 low 2 Go files: the go command passes this directory over",
		"app/vendor:0 medium 1 Go files: these are copies of dependencies",
		"app/x_windows.go:0 medium by its name it is for another platform, or its package was not loaded",
		"tool.go:0 medium it is in no module",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// TestLeftOutFilesCanDeny: whoever builds with tags can make them count.
func TestLeftOutFilesCanDeny(t *testing.T) {
	cfg := config(t, External{})
	cfg.Uncovered = hallmark.SeverityHigh
	rec, _ := run(t, cfg, write(t, "go.mod", "module m\n\ngo 1.21\n", "m.go", "package m\n", "n.go", "//go:build evil\n\npackage m\n"))
	if rec.Outcome != hallmark.Fail || len(rec.Reasons) != 1 || rec.Reasons[0].Code != hallmark.CodeSASTLeftOut || !strings.Contains(rec.Reasons[0].Message, "n.go:1") {
		t.Errorf("outcome %s, reasons %+v", rec.Outcome, rec.Reasons)
	}
}

func TestReadTree(t *testing.T) {
	dir := write(t,
		"a.c", "", "b.txt", "int x;", "deploy", "#!/bin/sh\n", "run.data", "#! /usr/bin/env -S FOO=1 python3.11 -I\n", "odd", "#!/opt/qrlang\n",
		"none", "#", "empty", "", "sub/go.mod", "module m\n", "sub/x.go", "package x\n", "weird", "#!", "awk", "#!/usr/bin/awk -f\n", "UPPER.C", "",
	)
	for link, to := range map[string]string{"code.c": "b.txt", "same.c": "a.c", "away.c": "/etc/passwd", "dir.c": "sub", "gone.c": "nothing"} {
		if err := os.Symlink(to, dir+"/"+link); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	got, err := readTree(root)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		"C": {"a.c", "code.c"}, "C++": {"UPPER.C"}, "Shell": {"deploy"}, "Python": {"run.data"}, "Go": {"sub/x.go"},
		"script of qrlang": {"odd"}, "script of awk": {"awk"}, "script": {"weird"},
	}
	if d := cmp.Diff(want, got.files); d != "" || len(got.modules) != 1 || got.modules[0] != "sub" {
		t.Errorf("%s modules %v", d, got.modules)
	}
}
