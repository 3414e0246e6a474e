// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package gitgate

import (
	"bufio"
	"strings"
	"testing"
)

func FuzzRead(f *testing.F) {
	f.Add("pre-receive\n/q\na b refs/heads/x\nend\n")
	f.Add("end\n")
	f.Fuzz(func(t *testing.T, text string) {
		q, err := read(bufio.NewReader(strings.NewReader(text)))
		if err != nil {
			return
		}
		if q.hook == "" && !strings.HasPrefix(text, "\n") {
			t.Fatalf("no hook in %q", text)
		}
		for _, u := range q.updates {
			if strings.Contains(u.Old+u.New, " ") {
				t.Fatalf("update %+v", u)
			}
		}
	})
}

func TestCheckName(t *testing.T) {
	for name, good := range map[string]bool{
		"app": true, "team/app": true, "a.b-c_d": true, "": false, "..": false, "a/../b": false, "/a": false, "a.git": false, "a.git/b": false, "A": false,
		"a/b/c/d/e": false, "a b": false, "-x": false, "a\n": false, "a.lock": false, "a//b": false,
	} {
		if err := CheckName(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestPlain(t *testing.T) {
	if got := plain("a\x1b[31m\u202eb\nc"); got != "a?[31m?b?c" {
		t.Errorf("%q", got)
	}
	if got := plain(strings.Repeat("é", 10000) + "\xff"); len([]rune(got)) > maxSaid+2 || !strings.HasSuffix(got, " …") {
		t.Errorf("%d: %q", len(got), got)
	}
}
