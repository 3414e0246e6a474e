// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
)

const canary = "s3cr3t/Canary+42%é\"x"

func masking(t *testing.T, secrets map[string][]byte, pieces ...string) string {
	t.Helper()
	var out bytes.Buffer
	m := newMask(&out, secrets)
	for _, p := range pieces {
		if _, err := m.Write([]byte(p)); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.flush(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// printed are the ways in which a careless or a simple-minded tool prints a value.
func printed() map[string]string {
	reversed := []byte(canary)
	slices.Reverse(reversed)
	wrap := func(s string, n int) string {
		var b strings.Builder
		for c := range slices.Chunk([]byte(s), n) {
			b.Write(c)
			b.WriteByte('\n')
		}
		return b.String()
	}
	var spaced strings.Builder
	for i := range len(canary) {
		fmt.Fprintf(&spaced, " %02x", canary[i])
	}
	out := map[string]string{
		"plain": canary, "reversed": string(reversed), "hex": hex.EncodeToString([]byte(canary)), "HEX": strings.ToUpper(hex.EncodeToString([]byte(canary))),
		"query": url.QueryEscape(canary), "path": url.PathEscape(canary), "wrapped base64": wrap(base64.StdEncoding.EncodeToString([]byte(canary)), 7),
		"od": spaced.String(), "json": `s3cr3t/Canary+42%é\"x`, "reversed base64": base64.StdEncoding.EncodeToString(reversed), "reversed hex": hex.EncodeToString(reversed),
		"with newline base64": base64.StdEncoding.EncodeToString([]byte(canary + "\n")),
	}
	for shift := range 3 {
		for name, enc := range map[string]*base64.Encoding{"std": base64.StdEncoding, "url": base64.URLEncoding, "raw": base64.RawStdEncoding} {
			out[fmt.Sprint("base64 ", name, shift)] = enc.EncodeToString([]byte("abc"[:shift] + canary + "tail"))
		}
	}
	return out
}

// TestMaskHidesSpellings: in every spelling, in one piece and byte by byte. What
// is left of a base64 text are the characters that other bytes have a part in.
func TestMaskHidesSpellings(t *testing.T) {
	for name, text := range printed() {
		for _, value := range []string{canary, canary + "\n"} {
			secrets := map[string][]byte{"A": []byte(value)}
			line := "before " + text + " after"
			whole := masking(t, secrets, line)
			var bytewise []string
			for i := range len(line) {
				bytewise = append(bytewise, line[i:i+1])
			}
			if split := masking(t, secrets, bytewise...); split != whole {
				t.Errorf("%s: %q in pieces, %q in one", name, split, whole)
			}
			if !strings.Contains(whole, masked) || len(whole) > len("before *** after")+12 || !strings.HasPrefix(whole, "before ") || !strings.HasSuffix(whole, " after") {
				t.Errorf("%s: %q became %q", name, text, whole)
			}
		}
	}
}

func TestMaskLeavesTheRest(t *testing.T) {
	secrets := map[string][]byte{"A": []byte(canary), "B": []byte("another-secret")}
	for _, text := range []string{"", "s", "s3cr3t/Canary+4", "s3cr3t/Canary+43 s3cr3t/", strings.Repeat("s3cr3t/", 1000), "anothe\n\n\n" + strings.Repeat(" ", 5000) + "r-secret"} {
		if got := masking(t, secrets, text[:len(text)/2], text[len(text)/2:]); got != text {
			t.Errorf("%.80q became %.80q", text, got)
		}
	}
	if got := masking(t, secrets, "x"+canary+canary+"another-secrety"); got != "x********* y" && got != "x*********y" {
		t.Errorf("two in a row: %q", got)
	}
	if got := masking(t, nil, "nothing to hide"); got != "nothing to hide" {
		t.Error(got)
	}
	lines := "-----BEGIN KEY-----\nfirst-line-of-it\nsecond-line-of-it\n"
	if got := masking(t, map[string][]byte{"K": []byte(lines)}, "a first-line-of-it b"); got != "a *** b" {
		t.Errorf("one line of several: %q", got)
	}
}

func FuzzMask(f *testing.F) {
	f.Add("before "+canary+" after", 3)
	f.Add(strings.Repeat("s3", 40), 1)
	f.Fuzz(func(t *testing.T, text string, at int) {
		secrets := map[string][]byte{"A": []byte(canary)}
		at = min(max(at, 0), len(text))
		got := masking(t, secrets, text[:at], text[at:])
		if got != masking(t, secrets, text) {
			t.Errorf("%q: the place of the cut shows", text)
		}
		if strings.Contains(got, canary) {
			t.Errorf("%q: the value is left", text)
		}
	})
}
