// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package source judges one revision: what it is, who signed it, and whether its
// history is complete (SP 800-204D §5.1.4, SLSA Source track). The signature is
// verified over the raw bytes of the commit object, never over a re-encoding;
// author and committer are recorded as what they are, claims.
package source

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hallmark-sc/hallmark"
)

// Commit is a parsed commit object.
type Commit struct {
	Tree      string
	Parents   []string
	Author    string
	Committer string
	When      time.Time // the committer's claim
	Encoding  string    // of its message, as it claims; "" is UTF-8
	Signature []byte    // armored; nil when unsigned
	Signed    []byte    // the bytes the signature is over
}

// headerOrder is the order of the headers that every commit has; others follow.
var headerOrder = []string{"tree", "parent", "author", "committer"}

func isObjectName(s string) bool {
	return (len(s) == 40 || len(s) == 64) && strings.Trim(s, "0123456789abcdef") == ""
}

func malformed(format string, args ...any) error {
	return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceObjectInvalid, "commit object: "+format, args...)
}

// ParseCommit reads a raw commit object strictly: headers in git's order, each
// once, and cuts the signature out by bytes.
func ParseCommit(raw []byte) (Commit, error) {
	var c Commit
	if bytes.IndexByte(raw, 0) >= 0 {
		return c, malformed("it contains a NUL byte")
	}
	head, _, ok := bytes.Cut(raw, []byte("\n\n"))
	if !ok {
		return c, malformed("it has no end of headers")
	}
	seen := map[string]bool{}
	last := 0
	rest := head
	offset := 0
	for len(rest) > 0 {
		line, after, _ := bytes.Cut(rest, []byte{'\n'})
		value := append([]byte{}, line...)
		size := len(line) + 1
		for len(after) > 0 && after[0] == ' ' { // a folded value goes on
			more, next, _ := bytes.Cut(after, []byte{'\n'})
			value = append(append(value, '\n'), more[1:]...)
			size += len(more) + 1
			after = next
		}
		name, text, ok := strings.Cut(string(value), " ")
		if !ok || name == "" {
			return c, malformed("header %.40q has no value", name)
		}
		if seen[name] && name != "parent" && name != "mergetag" {
			return c, malformed("header %s stands twice", name)
		}
		seen[name] = true
		place := slices.Index(headerOrder, name)
		if place < 0 {
			place = len(headerOrder)
		}
		if place < last {
			return c, malformed("header %s is out of place", name)
		}
		last = place
		if err := c.header(name, text, raw, offset, size); err != nil {
			return c, err
		}
		offset += size
		rest = after
	}
	if c.Tree == "" || c.Author == "" || c.Committer == "" {
		return c, malformed("tree, author or committer is missing")
	}
	if c.Signed == nil {
		c.Signed = raw
	}
	return c, nil
}

func (c *Commit) header(name, text string, raw []byte, offset, size int) error {
	switch name {
	case "tree", "parent":
		if !isObjectName(text) {
			return malformed("%s %.80q is no object name", name, text)
		}
		if name == "tree" {
			c.Tree = text
		} else {
			c.Parents = append(c.Parents, text)
		}
	case "author", "committer":
		// With a second pair of brackets git and others disagree on the address.
		if strings.Count(text, "<") != 1 || strings.Count(text, ">") != 1 || strings.IndexByte(text, '<') > strings.IndexByte(text, '>') {
			return malformed("%s %.120q: want one NAME <ADDRESS>", name, text)
		}
		if !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
			return malformed("%s %.120q is not printable UTF-8", name, text)
		}
		if name == "author" {
			c.Author = text
			break
		}
		c.Committer = text
		f := strings.Fields(text[strings.LastIndexByte(text, '>')+1:])
		if len(f) < 1 {
			return malformed("the committer has no time")
		}
		sec, err := strconv.ParseInt(f[0], 10, 64)
		if err != nil {
			return malformed("the committer's time: %w", err)
		}
		c.When = time.Unix(sec, 0).UTC()
	case "encoding":
		c.Encoding = text
	case "gpgsig", "gpgsig-sha256":
		if c.Signature != nil {
			return malformed("it carries two signatures")
		}
		c.Signature = []byte(text + "\n")
		end := min(offset+size, len(raw))
		c.Signed = append(append([]byte{}, raw[:offset]...), raw[end:]...)
	}
	return nil
}

// Mail returns the address in an author or committer line.
func Mail(ident string) string {
	from, to := strings.LastIndexByte(ident, '<'), strings.LastIndexByte(ident, '>')
	if from < 0 || to < from {
		return ""
	}
	return ident[from+1 : to]
}
