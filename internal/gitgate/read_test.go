// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package gitgate

import (
	"bufio"
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"
)

func FuzzRead(f *testing.F) {
	f.Add("pre-receive 7\n/q\nu a b refs/heads/x\nend\n")
	f.Add("pre-receive 7\n/q\nu a b refs/heads/x\nu end\nu reference-transaction 8\nend\n")
	f.Add("end\n")
	f.Fuzz(func(t *testing.T, text string) {
		q, err := read(bufio.NewReader(strings.NewReader(text)))
		if err != nil {
			return
		}
		if q.hook == "" && !strings.HasPrefix(text, "\n") && !strings.HasPrefix(text, " ") {
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

// TestAnnounced: what a push asks for is read before git sees it, and the request
// stays whole.
func TestAnnounced(t *testing.T) {
	zero, one := strings.Repeat("0", 40), strings.Repeat("1", 40)
	for name, tt := range map[string]struct {
		request string
		refs    []string
		bad     bool
	}{
		"one":             {packet(zero+" "+one+" refs/heads/a\x00 report-status\n") + "0000PACK", []string{"refs/heads/a"}, false},
		"two, and grafts": {packet("shallow "+one) + packet(zero+" "+one+" refs/heads/a\x00 x") + packet(zero+" "+one+" refs/heads/b") + "0000", []string{"refs/heads/a", "refs/heads/b"}, false},
		"lines in a name": {packet(zero+" "+one+" refs/heads/a\nend\nreference-transaction\n\x00 x") + "0000", []string{"refs/heads/a\nend\nreference-transaction"}, false},
		"nothing":         {"0000", nil, false},
		"certificate":     {packet("push-cert\x00 x") + "0000", nil, true},
		"cut off":         {packet(zero + " " + one + " refs/heads/a")[:30], nil, true},
		"no flush":        {packet(zero + " " + one + " refs/heads/a"), nil, true},
		"no length":       {"zzzz", nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			p := &Push{}
			body, err := announced(p, strings.NewReader(tt.request))
			if (err != nil) != tt.bad {
				t.Fatalf("error %v", err)
			}
			if err != nil {
				return
			}
			var refs []string
			for _, u := range p.Announced {
				refs = append(refs, u.Ref)
			}
			if !slices.Equal(refs, tt.refs) {
				t.Errorf("references %q", refs)
			}
			if b, err := io.ReadAll(body); err != nil || string(b) != tt.request {
				t.Errorf("the request became %q, %v", b, err)
			}
		})
	}
}

func FuzzAnnounced(f *testing.F) {
	f.Add([]byte(packet(strings.Repeat("0", 40)+" "+strings.Repeat("1", 40)+" refs/heads/a\x00 x") + "0000"))
	f.Fuzz(func(t *testing.T, request []byte) {
		body, err := announced(&Push{}, bytes.NewReader(request))
		if err != nil {
			return
		}
		if b, err := io.ReadAll(body); err != nil || !bytes.Equal(b, request) {
			t.Fatalf("%q became %q, %v", request, b, err)
		}
	})
}
