// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package source

import "testing"

func TestStaysInside(t *testing.T) {
	for _, tt := range []struct {
		at, target string
		ok         bool
	}{
		{"link", "file", true}, {"d/link", "../file", true}, {"d/e/link", "../../file", true}, {"d/link", ".", true},
		{"link", "/etc/passwd", false}, {"link", "..", false}, {"d/link", "../../x", false}, {"link", "d/../../x", false}, {"link", "d/..", false}, {"link", "", false},
		{"link", ".git/config", false}, {"link", "d/.GIT/hooks", false}, {"link", "git~1/config", false}, {"link", ".gitignore", true},
	} {
		if got := StaysInside(tt.at, tt.target); got != tt.ok {
			t.Errorf("%q at %q: %t", tt.target, tt.at, got)
		}
	}
}

func TestDangerousName(t *testing.T) {
	for name, dangerous := range map[string]bool{
		"file.go": false, ".gitignore": false, "a b": false, "gitconfig": false, "caf\u00e9": false,
		".git": true, ".GIT": true, ".git.": true, ".git ": true, ".git . .": true, "git~1": true, "GIT~2": true, ".g\u200cit": true, ".git:x": true, ".git .:x": true,
		"-rf": true, "a\nb": true, "a\u202eb": true, "a$(x)": true, "": true, "..": true, "a/b": true, "a\\b": true, "\xff": true,
	} {
		if why := DangerousName(name); (why != "") != dangerous {
			t.Errorf("%q: %q", name, why)
		}
	}
}

// TestFold: names that some file system takes for one.
func TestFold(t *testing.T) {
	for _, pair := range [][2]string{{"A", "a"}, {"caf\u00e9", "cafe\u0301"}, {"\u212aey", "key"}, {"\u017f", "S"}} {
		if Fold(pair[0]) != Fold(pair[1]) {
			t.Errorf("%q and %q are told apart", pair[0], pair[1])
		}
	}
}

func TestTagName(t *testing.T) {
	for raw, want := range map[string]string{
		"object x\ntype commit\ntag v1\ntagger A <a> 1 +0000\n\nText\n": "v1", "object x\ntype commit\ntag v1\n\n": "v1",
		"object x\n\ntype commit\ntag v1\n": "", "object x\ntag v1\ntype commit\n\n": "", "": "",
	} {
		if got := tagName([]byte(raw)); got != want {
			t.Errorf("%q: %q", raw, got)
		}
	}
}
