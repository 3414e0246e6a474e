// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
)

const parameterized = `apiVersion: hallmark/v1
kind: Pipeline
build:
  parameters:
    MODE:
      values: [debug, release]
      default: debug
    VERSION:
      pattern: v[0-9]+
  steps:
    - run: make
  artifacts: [out/hello]
`

func TestResolve(t *testing.T) {
	p, err := ParsePipeline("p.yaml", []byte(parameterized))
	if err != nil {
		t.Fatal(err)
	}
	got, reasons := p.Resolve(map[string]string{"VERSION": "v2"})
	if d := cmp.Diff(map[string]string{"MODE": "debug", "VERSION": "v2"}, got); d != "" || len(reasons) > 0 {
		t.Errorf("%s %+v", d, reasons)
	}
	for name, given := range map[string]map[string]string{
		"none given": nil, "out of values": {"VERSION": "v1", "MODE": "fast"}, "more than the pattern": {"VERSION": "v1;id"}, "two lines": {"VERSION": "v1\nv2"},
		"undeclared": {"VERSION": "v1", "PATH": "/tmp"}, "of another case": {"VERSION": "v1", "mode": "debug"},
	} {
		if _, reasons := p.Resolve(given); len(reasons) != 1 || reasons[0].Code != hallmark.CodeBuildParameter || reasons[0].Fix == "" {
			t.Errorf("%s: %+v", name, reasons)
		}
	}
}

func TestParametersRefused(t *testing.T) {
	edit := func(from, to string) string { return strings.Replace(parameterized, from, to, 1) }
	for name, c := range map[string]struct{ text, at string }{
		"name":             {edit("MODE:", "mode:"), "p.yaml:6:7"},
		"platform's":       {edit("MODE:", "PATH:"), "p.yaml:6:7"},
		"loader":           {edit("MODE:", "LD_PRELOAD:"), "p.yaml:6:7"},
		"toolchain":        {edit("MODE:", "GOFLAGS:"), "p.yaml:6:7"},
		"no range":         {edit("      pattern: v[0-9]+\n", "      default: v1\n"), "p.yaml:9:7"},
		"two ranges":       {edit("      pattern: v[0-9]+\n", "      pattern: v\n      values: [v]\n"), "p.yaml:9:7"},
		"default outside":  {edit("default: debug", "default: fast"), "p.yaml:7:16"},
		"not a pattern":    {edit("v[0-9]+", "v[0-9"), "p.yaml:9:16"},
		"set by a step":    {edit("    - run: make\n", "    - run: make\n      env: {MODE: x}\n"), "p.yaml:4:3"},
		"unknown key":      {edit("default: debug", "standard: debug"), "p.yaml:7:7"},
		"none":             {edit("    MODE:\n      values: [debug, release]\n      default: debug\n    VERSION:\n      pattern: v[0-9]+\n", "    {}\n"), "p.yaml:5:5"},
		"a number as text": {edit("default: debug", "default: 1"), "p.yaml:7:16"},
	} {
		_, err := ParsePipeline("p.yaml", []byte(c.text))
		if err == nil || hallmark.CodeOf(err) != hallmark.CodePipelineInvalid || !strings.HasPrefix(err.Error(), c.at) {
			t.Errorf("%s: %v, want %s at %s", name, err, hallmark.CodePipelineInvalid, c.at)
		}
	}
}

func FuzzParseInventory(f *testing.F) {
	good, err := Inventory{APIVersion: "hallmark/v1", Kind: "ToolInventory", Platform: "p", Programs: []InventoryProgram{{"/usr/bin/cc", hallmark.DigestOf(nil)}, {"/usr/bin/\xff", hallmark.DigestOf(nil)}}, Libraries: []InventoryProgram{{"/usr/lib/a.so", hallmark.DigestOf(nil)}, {"/usr/lib/b.so", hallmark.DigestOf(nil)}}}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	if _, err := ParseInventory("good", good); err != nil {
		f.Fatal(err)
	}
	// An inventory that pins programs alone says nothing of libraries.
	if _, err := ParseInventory("old", bytes.Replace(good, good[bytes.Index(good, []byte(",\n \"libraries\"")):len(good)-3], nil, 1)); err == nil || !strings.Contains(err.Error(), "libraries") {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(bytes.Replace(good, []byte("/usr/bin/cc"), []byte("usr/bin/cc"), 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := ParseInventory("x", b)
		if err != nil {
			return
		}
		if again, err := i.Encode(); err != nil || !bytes.Equal(again, b) {
			t.Errorf("accepted %q, which is written as %q (%v)", b, again, err)
		}
	})
}
