// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"bytes"
	"compress/gzip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func stream(t testing.TB, objects ...Object) []byte {
	var b bytes.Buffer
	w := NewFrameWriter(&b)
	for _, o := range objects {
		if err := w.Write(o); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestFrames(t *testing.T) {
	want := []Object{{"a", "blob", "dir/a\nb \"c\"", []byte("one\ntwo")}, {"b", "commit", "", []byte{}}, {"c", "blob", "x", []byte{0, 1, 255}}}
	b := stream(t, want...)
	var got []Object
	if n, err := ReadFrames(bytes.NewReader(b), func(o Object) error { got = append(got, o); return nil }); err != nil || n != 3 {
		t.Fatal(n, err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	// A stream that was cut off anywhere is no whole one.
	for i := range b {
		if _, err := ReadFrames(bytes.NewReader(b[:i]), func(Object) error { return nil }); err == nil {
			t.Errorf("accepted the first %d of %d bytes", i, len(b))
		}
	}
}

func FuzzReadFrames(f *testing.F) {
	f.Add(stream(f, Object{"a", "blob", "p", []byte("x")}))
	f.Add([]byte("end 0\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		if got, err := ReadFrames(bytes.NewReader(b), func(Object) error { n++; return nil }); err == nil && got != n {
			t.Errorf("%d objects, %d said", n, got)
		}
	})
}

// TestPlaces hides a token in each place that a history has.
func TestPlaces(t *testing.T) {
	det, err := newDetector([]byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	token := "ghp_" + "9jX2kQv7mB4nR8sT1wY6zA3cE5gH0dLpUfVo"
	utf16 := []byte{0xff, 0xfe}
	for _, c := range []byte("token = " + token + "\n") {
		utf16 = append(utf16, c, 0)
	}
	squeeze := func(b []byte) []byte {
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		if _, err := z.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	zipped := squeeze([]byte("token = " + token + "\n"))
	deep := zipped
	for range maxNesting {
		deep = squeeze(deep)
	}
	if found, missed := det.object(Object{"1", "blob", "deep.gz", deep}); len(found) > 0 || len(missed) == 0 {
		t.Errorf("an archive that was not unpacked to its end passes: %v", found)
	}
	for name, o := range map[string]Object{
		"gzip":            {"1", "blob", "a.gz", zipped},
		"gzip in gzip":    {"1", "blob", "a.gz", squeeze(squeeze(zipped))},
		"truncated gzip":  {"1", "blob", "a.gz", zipped[:len(zipped)-6]},
		"plain":           {"1", "blob", "a.txt", []byte("token = " + token)},
		"binary":          {"1", "blob", "a.bin", []byte("\x00\x01" + token + "\x00")},
		"allow comment":   {"1", "blob", "a.txt", []byte("token = " + token + " # gitleaks:allow")},
		"node_modules":    {"1", "blob", "node_modules/a.js", []byte("t='" + token + "'")},
		"contains false":  {"1", "blob", "a.txt", []byte("token = " + strings.Replace(token, "9jX2k", "false", 1))},
		"commit message":  {"1", "commit", "", []byte("tree x\n\n" + token + "\n")},
		"path":            {"1", "blob", "dir/" + token, []byte("x")},
		"utf-16":          {"1", "blob", "a.txt", utf16},
		"url credentials": {"1", "blob", "a.txt", []byte("x = postgres://" + "admin:correcthorse42" + "@db.internal.net/x")},
	} {
		if found, missed := det.object(o); len(found) == 0 || len(missed) > 0 {
			t.Errorf("%s: nothing found (%v)", name, missed)
		}
	}
	if found, _ := det.object(Object{"1", "blob", "a.txt", []byte("package main\n\nfunc main() {}\n")}); len(found) > 0 {
		t.Errorf("found %+v in nothing", found)
	}
}
