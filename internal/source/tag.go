// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// Tag is a parsed tag object.
type Tag struct {
	Name      string
	Tagger    string // "" in very old ones
	Signature []byte // armored; nil when unsigned
	Signed    []byte // the bytes the signature is over
}

// signatureLines begin a signature in the text of a tag, as git looks for them.
func signatureLines() []string {
	return []string{"-----BEGIN SSH SIGNATURE-----", "-----BEGIN PGP SIGNATURE-----", "-----BEGIN PGP MESSAGE-----", "-----BEGIN SIGNED MESSAGE-----"}
}

// ParseTag reads a raw tag object and cuts its signature off by bytes: as git
// does, at the last line that begins one.
func ParseTag(raw []byte) (Tag, error) {
	var t Tag
	bad := func(format string, args ...any) (Tag, error) {
		return t, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceObjectInvalid, "tag object: "+format, args...)
	}
	if bytes.IndexByte(raw, 0) >= 0 {
		return bad("it contains a NUL byte")
	}
	head, _, ok := bytes.Cut(raw, []byte("\n\n"))
	if !ok {
		return bad("it has no end of headers")
	}
	seen := map[string]bool{}
	for line := range strings.SplitSeq(string(head), "\n") {
		name, value, _ := strings.Cut(line, " ")
		if seen[name] {
			return bad("header %.40q stands twice", name)
		}
		seen[name] = true
		switch name {
		case "object", "type":
		case "tag":
			t.Name = value
		case "tagger":
			t.Tagger = value
		default: // a signature in a header would be one that nobody looked at
			return bad("header %.40q is not known", name)
		}
	}
	at := -1
	for offset := len(head) + 2; offset < len(raw); {
		line, _, _ := bytes.Cut(raw[offset:], []byte{'\n'})
		if slices.Contains(signatureLines(), string(line)) {
			at = offset
		}
		offset += len(line) + 1
	}
	if at < 0 {
		t.Signed = raw
		return t, nil
	}
	t.Signed, t.Signature = raw[:at], raw[at:]
	return t, nil
}

const tagFix = "make it again under your own name: git tag -d NAME, then git tag -s NAME"

// tag judges the signature of a tag that has one: it must be its tagger's. One
// without is vouched for by whoever pushes it, which the log says.
func (j *pushJudge) tag(o Object) {
	t, err := ParseTag(o.Data)
	if err != nil {
		j.add(hallmark.CodeSourceObjectInvalid, "make the tag again with git", "tag %s: %s", o.ID, err)
		return
	}
	if t.Signature == nil {
		return
	}
	v := verify(Config{Verify: j.cfg.Verify, Clock: j.cfg.Clock}, Commit{Signature: t.Signature, Signed: t.Signed, When: j.cfg.Clock()})
	if v.Code != "" {
		j.add(v.Code, fixOf(v.Code, tagFix), "tag %s: %s", o.ID, v.Message)
		return
	}
	mail := Mail(t.Tagger)
	if !slices.ContainsFunc(v.Principals, func(p hallmark.Principal) bool { return p.Name == mail || j.cfg.Same(p.Name, mail) }) {
		j.add(hallmark.CodeSourceSignerNotAuthor, tagFix, "tag %s is signed with the key of %s, its tagger is %q", o.ID, v.Principals[0].Name, mail)
	}
}
