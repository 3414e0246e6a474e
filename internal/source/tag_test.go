// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package source_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/source"
)

const (
	tagHead  = "object 0000000000000000000000000000000000000001\ntype commit\ntag v1\ntagger A <a@example.org> 7 +0000\n\n"
	tagArmor = "-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n"
)

func TestParseTag(t *testing.T) {
	for name, tt := range map[string]struct {
		raw, signature string
		bad            bool
	}{
		"signed":                      {tagHead + "text\n" + tagArmor, tagArmor, false},
		"unsigned":                    {tagHead + "text\n", "", false},
		"the last one counts":         {tagHead + tagArmor + "more\n" + tagArmor, tagArmor, false},
		"what follows is of it":       {tagHead + tagArmor + "more\n", tagArmor + "more\n", false},
		"not at the start of a line":  {tagHead + "x" + tagArmor, "", false},
		"no tagger":                   {strings.Replace(tagHead, "tagger A <a@example.org> 7 +0000\n", "", 1), "", true},
		"two taggers":                 {strings.Replace(tagHead, "tagger", "tagger B <b@example.org> 7 +0000\ntagger", 1), "", true},
		"a signature among the heads": {strings.Replace(tagHead, "\n\n", "\ngpgsig x\n\n", 1), "", true},
		"out of order":                {"type commit\nobject 1\ntag v1\ntagger A <a@example.org> 7 +0000\n\n", "", true},
		"two addresses":               {strings.Replace(tagHead, "<a@example.org>", "<b@example.org> <a@example.org>", 1), "", true},
		"no time":                     {strings.Replace(tagHead, " 7 +0000", "", 1), "", true},
		"a NUL byte":                  {tagHead + "\x00", "", true},
		"no text":                     {strings.TrimSuffix(tagHead, "\n"), "", true},
	} {
		c, err := source.ParseTag([]byte(tt.raw))
		if (err != nil) != tt.bad {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err != nil {
			continue
		}
		if string(c.Signature) != tt.signature || string(c.Signed)+string(c.Signature) != tt.raw || source.Mail(c.Committer) != "a@example.org" || c.When.Unix() != 7 {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

func FuzzParseTag(f *testing.F) {
	f.Add([]byte(tagHead + "text\n" + tagArmor))
	f.Add([]byte("object x\n\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := source.ParseTag(raw)
		if err == nil && string(c.Signed)+string(c.Signature) != string(raw) {
			t.Fatalf("%q is not whole", raw)
		}
	})
}

// tagged is a push of a tag object, or of a commit with a header of its own.
type tagged struct {
	incoming
	raw    string
	header string
}

func (g tagged) Object(_ context.Context, name string) (source.Object, error) {
	if name == id(0) {
		return source.Object{ID: name, Type: "commit", Data: []byte("tree " + id(500) + "\nauthor A <a@example.org> 1 +0000\ncommitter A <a@example.org> 1 +0000\n" + g.header + "\nm\n")}, nil
	}
	return source.Object{ID: name, Type: "tag", Data: []byte(g.raw)}, nil
}

func (g tagged) Commits(context.Context, string, []string) ([]string, error) {
	if g.header != "" {
		return []string{id(0)}, nil
	}
	return nil, nil
}

// TestTagger: a tag object is judged as a commit is.
func TestTagger(t *testing.T) {
	by := func(who ...string) func([]byte, []byte, time.Time) source.Verdict {
		var v source.Verdict
		for _, w := range who {
			v.Principals = append(v.Principals, hallmark.Principal{Name: w})
		}
		return func([]byte, []byte, time.Time) source.Verdict { return v }
	}
	head := strings.Replace(tagHead, "0000000000000000000000000000000000000001", id(0), 1)
	for name, tt := range map[string]struct {
		raw    string
		verify func([]byte, []byte, time.Time) source.Verdict
		want   []hallmark.Code
	}{
		"its tagger":    {head + tagArmor, by("a@example.org"), nil},
		"not signed":    {head + "m\n", by("a@example.org"), []hallmark.Code{hallmark.CodeSourceUnsigned}},
		"somebody else": {head + tagArmor, by("b@example.org"), []hallmark.Code{hallmark.CodeSourceTagger}},
		"another kind": {head + "-----BEGIN PGP SIGNATURE-----\nx\n", func([]byte, []byte, time.Time) source.Verdict {
			return source.Verdict{Code: hallmark.CodeSourceSignatureFormat}
		}, []hallmark.Code{hallmark.CodeSourceSignatureFormat}},
		"nobody's signature": {head + tagArmor, func([]byte, []byte, time.Time) source.Verdict {
			return source.Verdict{Code: hallmark.CodeSourceSignatureInvalid}
		}, []hallmark.Code{hallmark.CodeSourceSignatureInvalid}},
		"no tagger": {strings.Replace(head, "tagger A <a@example.org> 7 +0000\n", "", 1) + tagArmor, by("a@example.org"), []hallmark.Code{hallmark.CodeSourceTagger}},
	} {
		cfg := source.PushConfig{Incoming: tagged{raw: tt.raw}, Clock: time.Now, MaxFile: 1, MaxReason: 3, Same: func(string, string) bool { return false }, Verify: tt.verify}
		facts, err := source.JudgePush(t.Context(), cfg, []source.Update{{Ref: "refs/tags/v1", Old: strings.Repeat("0", 40), New: id(7)}})
		if err != nil || !slices.Equal(codes(facts), tt.want) {
			t.Errorf("%s: %v, %v", name, codes(facts), err)
		}
	}
}

// TestEncoding: a text that says something else once it is decoded is refused.
func TestEncoding(t *testing.T) {
	for encoding, bad := range map[string]bool{"ISO-8859-1": false, "utf-8": false, "windows-1252": false, "UTF-7": true, "UTF-16": true, "IBM037": true, "ISO-2022-JP": true, "iso": true} {
		cfg := source.PushConfig{Incoming: tagged{header: "encoding " + encoding + "\n"}, Clock: time.Now, MaxFile: 1, MaxReason: 3, Same: func(string, string) bool { return false },
			Verify: func([]byte, []byte, time.Time) source.Verdict { return source.Verdict{} }}
		facts, err := source.JudgePush(t.Context(), cfg, []source.Update{{Ref: "refs/heads/x", Old: strings.Repeat("0", 40), New: id(0)}})
		if err != nil || slices.Contains(codes(facts), hallmark.CodeSourceEncoding) != bad {
			t.Errorf("%s: %v, %v", encoding, codes(facts), err)
		}
	}
}
