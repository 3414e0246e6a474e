// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/hallmark-sc/hallmark"
)

// TestStarter: the starter names the artifact and the test of each kind of
// project, parses, and says so where a person has to finish it.
func TestStarter(t *testing.T) {
	tree := func(pairs ...string) fstest.MapFS {
		m := fstest.MapFS{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1])}
		}
		return m
	}
	const gomod = "// a comment\nmodule example.org/app/v2 // another\n\ngo 1.26\n"
	for name, c := range map[string]struct {
		tree fstest.MapFS
		want []string
	}{
		"go, major version": {tree("go.mod", gomod, "main.go", "package main\n"), []string{"go build -trimpath -o out/app .\n", "artifacts: [out/app]"}},
		"go, below cmd":     {tree("go.mod", gomod, "x.go", "package x\n", "cmd/tool/tool.go", "package main\n"), []string{"-o out/tool ./cmd/tool\n", "artifacts: [out/tool]"}},
		"go, library":       {tree("go.mod", gomod, "x.go", "package x\n", "gen.go", "//go:build ignore\n\npackage main\n"), []string{"go build ./...", "artifacts: [out/source.tar.gz]"}},
		"node":              {tree("package.json", "{}"), []string{"npm pack", "npm test", "artifacts: [out/package.tgz]"}},
		"python":            {tree("requirements.txt", ""), []string{"unittest discover", "artifacts: [out/source.tar.gz]"}},
		"make, all":         {tree("Makefile", "CC ?= cc\nBIN := bin/hello\n.PHONY: all test\nall: $(BIN)\n$(BIN): a.c\n\t$(CC) -o $@ $<\ntest:\n\ttrue\n"), []string{"run: make\n", "make test\n", "artifacts: [bin/hello]"}},
		"make, first goal":  {tree("makefile", "hello: hello.o \\\n  util.o\n%.o: %.c\ncheck: hello\n"), []string{"make check\n", "artifacts: [hello]"}},
		"make, order":       {tree("Makefile", "b:\n", "GNUmakefile", "a: b\n"), []string{"artifacts: [a]"}},
		"make, unclear":     {tree("Makefile", "all:\n\tcc -o hello hello.c\n"), []string{"# CHANGE-ME", "artifacts: [CHANGE-ME]"}},
		"make, unplain":     {tree("Makefile", "all: ../x\n"), []string{"artifacts: [CHANGE-ME]"}},
	} {
		b, err := Starter(c.tree)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(string(b), want) {
				t.Errorf("%s: no %q in\n%s", name, want, b)
			}
		}
		if _, err := ParsePipeline("p.yaml", b); err != nil {
			t.Errorf("%s: the starter can't be read: %v\n%s", name, err, b)
		}
	}
	if _, err := Starter(tree("README", "")); hallmark.KindOf(err) != hallmark.KindNotFound {
		t.Errorf("a project of no known kind: %v", err)
	}
}
