// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// files is a tree in memory.
func files(tree map[string]string) func(context.Context, string, func(string, []byte) error) error {
	return func(_ context.Context, id string, each func(string, []byte) error) error {
		if id != treeID {
			return errors.New("another tree")
		}
		for name, data := range tree {
			if err := each(name, []byte(data)); err != nil {
				return err
			}
		}
		return nil
	}
}

const elf = "\x7fELF\x02\x01\x01\x00"

func TestMachineCode(t *testing.T) {
	pad := strings.Repeat("\x00", 64)
	for data, want := range map[string]string{
		elf: "ELF", "#!/bin/sh\nexit 0\n" + elf: "ELF", "\x7fELF" + elf: "ELF", "\x89PNG\r\n\x1a\n" + pad + elf: "ELF",
		"MZ\x90\x00" + pad: "PE", "\xcf\xfa\xed\xfe": "Mach-O", "\xca\xfe\xba\xbe\x00\x00\x00\x34": "Java class or Mach-O",
		"\x00asm\x01\x00\x00\x00": "WebAssembly", "!<arch>\nx.o": "archive of object files",
		"\xa7\x0d\r\n" + pad: "Python bytecode", "\x64\x86\x03\x00" + pad: "COFF", "BC\xc0\xde": "LLVM bitcode",
		"": "", "MZ is no program\n": "", "\x7fELF": "", "\x7fELF, the format": "", "package elf // \\x7fELF\n": "",
		"ab\r\ncd\r\nef\r\ngh\r\n": "", "\x1f\x8b\x08\x00": "", "\x89PNG\r\n\x1a\n": "", pad: "",
	} {
		if got := MachineCode([]byte(data)); got != want {
			t.Errorf("%.40q: %q, want %q", data, got, want)
		}
	}
}

// TestMachineCodeOfThisMachine: a real program, wherever it lies in a file.
func TestMachineCodeOfThisMachine(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if got := MachineCode(b); got != "ELF" {
		t.Errorf("this test is %q", got)
	}
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3 is not here")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.py"), []byte("x = 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "named.txt")
	if msg, err := exec.Command(python, "-c", "import py_compile, sys; py_compile.compile(sys.argv[1], cfile=sys.argv[2])", filepath.Join(dir, "a.py"), out).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, msg)
	}
	if b, err = os.ReadFile(out); err != nil || MachineCode(b) != "Python bytecode" {
		t.Errorf("compiled Python is %q, %v", MachineCode(b), err)
	}
}

func TestBinaries(t *testing.T) {
	const name = "testdata/sample.txt"
	approved := hallmark.DigestOf([]byte(elf))
	for what, tc := range map[string]struct {
		tree     map[string]string
		approved []hallmark.Digest
		outcome  hallmark.Outcome
	}{
		"text":            {map[string]string{"a.go": "package a\n"}, nil, hallmark.Pass},
		"binary":          {map[string]string{name: elf}, nil, hallmark.Fail},
		"approved":        {map[string]string{name: elf}, []hallmark.Digest{approved}, hallmark.Pass},
		"one more byte":   {map[string]string{name: elf + "\x00"}, []hallmark.Digest{approved}, hallmark.Fail},
		"another as well": {map[string]string{"a": elf, name: "\x00asm"}, []hallmark.Digest{approved}, hallmark.Fail},
	} {
		allow := func(_, _ []byte, _ time.Time) Verdict { return Verdict{Principals: []hallmark.Principal{dev}} }
		p, err := Check(t.Context(), Config{Repository: fake{raw: object("gpgsig "+armor, "m\n")}, Verify: allow, URI: "file:///r", Files: files(tc.tree), Binaries: tc.approved, Clock: time.Now}, "HEAD")
		if err != nil || p.Check.Outcome != tc.outcome {
			t.Errorf("%s: %+v %v", what, p.Check, err)
			continue
		}
		if tc.outcome == hallmark.Fail {
			r := p.Check.Reasons[0]
			if r.Code != hallmark.CodeSourceBinary || !strings.Contains(r.Message, name) || !strings.Contains(r.Fix, "hallmark policy set source.binaries=sha256:") || strings.Contains(r.Fix, string(approved)) != (what == "binary") {
				t.Errorf("%s: %+v", what, r)
			}
		}
	}
	unread := func(context.Context, string, func(string, []byte) error) error {
		return errors.New("a blob is missing")
	}
	allow := func(_, _ []byte, _ time.Time) Verdict { return Verdict{Principals: []hallmark.Principal{dev}} }
	p, err := Check(t.Context(), Config{Repository: fake{raw: object("gpgsig "+armor, "m\n")}, Verify: allow, Files: unread, Clock: time.Now}, "HEAD")
	if err != nil || p.Check.Outcome != hallmark.Errored || !strings.Contains(p.Check.Reasons[0].Message, "a blob is missing") {
		t.Errorf("a tree that can't be read: %+v %v", p.Check, err)
	}
	if _, err := Check(t.Context(), Config{Repository: fake{}, Clock: time.Now}, "HEAD"); hallmark.KindOf(err) != hallmark.KindInternal {
		t.Errorf("without a look into the tree: %v", err)
	}
}

func FuzzMachineCode(f *testing.F) {
	f.Add([]byte(elf))
	f.Add([]byte("MZ\x00"))
	f.Add([]byte("\xa7\x0d\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		// What stands before it hides no program.
		if MachineCode(append(data, elf...)) != "ELF" {
			t.Errorf("not found behind %.40q", data)
		}
		MachineCode(data)
	})
}
