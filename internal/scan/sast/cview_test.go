// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sast

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestCText(t *testing.T) {
	for in, want := range map[string]string{
		"a /* b\nc */ d // e\nf":           "a  \n d  \nf",
		"\"a\\\"/*\" 'x' '\\'' '\\n' L'é'": "\"a\\\"/*\" 'x' '\\'' '\\n' L'é'",
		"1'000'000 0x1'F ''":               "1000000 0x1F   ",
		"'it is long' x":                   " it is long  x",
		"don't \"never":                    "don t  never",
		"a\\\nb(c)":                        "ab\n(c)",
		"x \\\n  y \\  \nz":                "x \n  y \nz",
		"\"s\\\nt\" u":                     "\"st\"\n u",
		"R\"(a\"b'/*)\" c":                 "R (a b  *)  c",
		"u8R\"x(\n)\")x\" c":               "u8R x(\n) )x  c",
		"R\" (a":                           "R  (a",
		"#include <a/*b'c>\nd":             "#include <a *b c>\nd",
		" # /**/ import <x//y> z":          " #   import <x  y> z",
		"#if __has_include(<a//b>)":        "#if __has_include(<a  b>)",
		"a < b // c":                       "a < b  ",
		"1 //* x */ y\nz":                  "1   y\nz",
		"1 //* x\ny":                       "1  \ny",
		"/* a\n b":                         "  a\n b",
		"a/b/ *c":                          "a/b/ *c",
		"":                                 "",
		"\\\n":                             "\n",
		"\\":                               "\\",
	} {
		if got, err := cText([]byte(in)); err != nil || string(got) != want {
			t.Errorf("%q became %q, want %q (%v)", in, got, want, err)
		}
	}
	for _, in := range []string{"x ??/\ny", "R\"x(a)y\""} {
		if _, err := cText([]byte(in)); err == nil {
			t.Errorf("%q: no error", in)
		}
	}
}

// TestCTextIsLinear: the text is the attacker's, the process is ours.
func TestCTextIsLinear(t *testing.T) {
	for _, part := range []string{"'", "\"", "\\'", "\\\"", "'\\", "/*", "//*", "*/", "<", "#include<", "__has_include(<", "R\"(", "R\"()\"", "\\\n", " ", "1'", "'a", "'\\'", "/", "//\\\n", "\"\n'"} {
		for _, head := range []string{"", "#include ", "/*", "\"", "'", strings.Repeat(" ", 1<<18)} {
			start := time.Now()
			cText([]byte(head + strings.Repeat(part, (1<<18)/len(part))))
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("%q after %.10q: %s", part, head, d)
			}
		}
	}
}

// lost runs the lexer of a simple tool: where does it end, and does a literal
// cross a line?
func lost(b []byte) bool {
	var in byte
	for i := 0; i < len(b); i++ {
		c := b[i]
		switch {
		case in != 0 && c == '\n':
			return true
		case in != 0 && c == '\\':
			i++
		case in != 0 && c == in:
			in = 0
		case in != 0:
		case c == '/' && i+1 < len(b) && (b[i+1] == '/' || b[i+1] == '*'):
			return true
		case c == '"' || c == '\'':
			in = c
		}
	}
	return in != 0
}

func FuzzCText(f *testing.F) {
	for _, s := range []string{"a /* b */ 'c' \"d\\\n\" // e\n", "R\"x(\")x\"", "#include <a>\n1'0", "//* x */ y", "'\\''", "/", "\"a\\"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = unifyText(b)
		out, err := cText(b)
		if err != nil {
			return
		}
		if x, y := bytes.Count(b, []byte{'\n'}), bytes.Count(out, []byte{'\n'}); x != y {
			t.Fatalf("%d lines became %d: %q", x, y, out)
		}
		if lost(out) {
			t.Fatalf("a simple lexer loses its way in %q", out)
		}
	})
}
