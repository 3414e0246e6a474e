// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// ParseTag reads a raw tag object strictly, as a commit that its tagger made:
// object, type, tag and tagger, each once and in this order, and the signature
// that the text ends with. The signature is over the bytes before it.
func ParseTag(raw []byte) (Commit, error) {
	bad := func(format string, args ...any) (Commit, error) {
		return Commit{}, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceObjectInvalid, "tag object: "+format, args...)
	}
	if bytes.IndexByte(raw, 0) >= 0 {
		return bad("it contains a NUL byte")
	}
	head, text, ok := bytes.Cut(raw, []byte("\n\n"))
	if !ok {
		return bad("it has no end of headers")
	}
	names := []string{"object", "type", "tag", "tagger"}
	lines := strings.Split(string(head), "\n")
	if len(lines) == len(names)-1 && strings.HasPrefix(lines[len(lines)-1], "tag ") {
		return Commit{}, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceTagger, "it names no tagger") // as git's own did once
	}
	if len(lines) != len(names) {
		return bad("want the headers %s and no other", strings.Join(names, ", "))
	}
	var c Commit
	for i, l := range lines {
		value, ok := strings.CutPrefix(l, names[i]+" ")
		if !ok || value == "" {
			return bad("header %d is %.80q, want %s", i+1, l, names[i])
		}
		if names[i] == "tagger" { // read as a committer is
			if err := c.header("committer", value, raw, 0, 0); err != nil {
				return bad("tagger: %w", err)
			}
		}
	}
	c.Author, c.Signed = c.Committer, raw
	at := signatureIn(text)
	if at < 0 {
		return c, nil
	}
	at += len(head) + 2
	c.Signature, c.Signed = raw[at:], raw[:at]
	return c, nil
}

// signatureIn is where the signature of a tag begins in its text, as git finds it:
// at the last line that can begin one; -1 is nowhere.
func signatureIn(text []byte) int {
	at := -1
	for i := 0; i < len(text); {
		for _, begin := range []string{"-----BEGIN SSH SIGNATURE-----", "-----BEGIN PGP SIGNATURE-----", "-----BEGIN PGP MESSAGE-----", "-----BEGIN SIGNED MESSAGE-----"} {
			if bytes.HasPrefix(text[i:], []byte(begin)) {
				at = i
			}
		}
		n := bytes.IndexByte(text[i:], '\n')
		if n < 0 {
			break
		}
		i += n + 1
	}
	return at
}

const signTagAs = "sign it as its tagger, with a key of your own: git tag -s; or make a plain tag, which claims nobody: git tag NAME COMMIT"

// tag judges a tag object as a commit is judged: whom it names as its tagger must
// have signed it.
func (j *pushJudge) tag(o Object) {
	if j.seen[o.ID] {
		return
	}
	j.seen[o.ID] = true
	c, err := ParseTag(o.Data)
	if err != nil {
		j.add(hallmark.CodeOf(err), "make the tag again with git", "tag object %s: %s", o.ID, err)
		return
	}
	if c.Signature == nil {
		j.add(hallmark.CodeSourceUnsigned, signTagAs, "tag object %s is not signed", o.ID)
		return
	}
	v := verify(Config{Verify: j.cfg.Verify, Clock: j.cfg.Clock}, c)
	if v.Code != "" {
		j.add(v.Code, fixOf(v.Code, signTagAs), "tag object %s: %s", o.ID, v.Message)
		return
	}
	mail := Mail(c.Committer)
	if !slices.ContainsFunc(v.Principals, func(p hallmark.Principal) bool { return p.Name == mail || j.cfg.Same(p.Name, mail) }) {
		j.add(hallmark.CodeSourceTagger, signTagAs, "tag object %s is signed with the key of %s, its tagger is %q", o.ID, v.Principals[0].Name, mail)
	}
}

// readable reports whether a text in an encoding says the same to who reads bytes
// and to who decodes it, as far as ASCII goes, in which secrets and commands are
// written.
func readable(encoding string) bool {
	e := strings.ToLower(strings.TrimSpace(encoding))
	if slices.Contains([]string{"utf-8", "utf8", "us-ascii", "ascii", "latin1", "latin-1", "koi8-r", "koi8-u", "euc-jp", "euc-kr"}, e) {
		return true
	}
	return slices.ContainsFunc([]string{"iso-8859-", "iso8859-", "windows-125", "cp125"}, func(p string) bool { return strings.HasPrefix(e, p) })
}
