// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // git's object names; collisions are caught by git's own detection on copying
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hallmark-sc/hallmark"
)

// maxCommit bounds a commit object: no honest one comes near it.
const maxCommit = 8 << 20

// Commit is a parsed git commit object (gitformat-commit).
type Commit struct {
	ID        string
	Tree      string
	Parents   []string
	Author    Ident
	Committer Ident
	Signature []byte // armored, as the signer wrote it; nil when unsigned
	Payload   []byte // the bytes the signature covers: the object without its signature header
}

// Ident is an author or committer line. Nothing in it is authenticated.
type Ident struct {
	Name string
	Mail string
	Time time.Time
}

func (i Ident) String() string { return fmt.Sprintf("%s <%s>", i.Name, i.Mail) }

// ObjectID returns git's name of an object in the object format that names have
// hexDigits digits in.
func ObjectID(hexDigits int, objectType string, content []byte) (string, error) {
	header := objectType + " " + strconv.Itoa(len(content)) + "\x00"
	switch hexDigits {
	case 2 * sha1.Size:
		h := sha1.New() //nolint:gosec // as above
		h.Write([]byte(header))
		h.Write(content)
		return hex.EncodeToString(h.Sum(nil)), nil
	case 2 * sha256.Size:
		h := sha256.New()
		h.Write([]byte(header))
		h.Write(content)
		return hex.EncodeToString(h.Sum(nil)), nil
	}
	return "", objectError("an object name of %d digits", hexDigits)
}

func objectError(format string, args ...any) error {
	return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceObjectInvalid, format, args...)
}

// ParseCommit parses the raw bytes of commit id, after checking that they have
// that name. It accepts what git writes and refuses what two readers could read
// differently: doubled, misplaced or unknown signature headers, NUL bytes,
// identities that don't parse, text that is not UTF-8.
func ParseCommit(id string, raw []byte) (*Commit, error) {
	if len(raw) > maxCommit {
		return nil, objectError("commit %s: %d bytes", id, len(raw))
	}
	got, err := ObjectID(len(id), "commit", raw)
	if err != nil {
		return nil, err
	}
	if got != id {
		return nil, objectError("commit %s: its bytes have the name %s", id, got)
	}
	c := &Commit{ID: id}
	if err := c.parse(raw); err != nil {
		return nil, objectError("commit %s: %w", id, err)
	}
	return c, nil
}

// header is one header with its raw bytes, continuation lines included.
type header struct {
	key   string
	value string // continuation lines joined by line feeds
	raw   []byte
}

func (c *Commit) parse(raw []byte) error {
	if i := bytes.IndexByte(raw, 0); i >= 0 {
		return fmt.Errorf("a NUL byte at offset %d", i)
	}
	headers, body, err := splitHeaders(raw)
	if err != nil {
		return err
	}
	rest, err := c.parseFixed(headers)
	if err != nil {
		return err
	}
	signatureKey := "gpgsig"
	if len(c.ID) == 2*sha256.Size {
		signatureKey = "gpgsig-sha256"
	}
	seen := map[string]bool{}
	for _, h := range rest {
		switch h.key {
		case "tree", "parent", "author", "committer":
			return fmt.Errorf("header %s out of place", h.key)
		case "encoding":
			if !strings.EqualFold(h.value, "utf-8") && !strings.EqualFold(h.value, "utf8") {
				return fmt.Errorf("encoding %.40q: only UTF-8 is read", h.value)
			}
		case signatureKey:
			c.Signature = []byte(h.value + "\n")
		default:
			// Git leaves every header that begins so out of the signed bytes, so
			// anything could hide there.
			if strings.HasPrefix(h.key, "gpgsig") {
				return fmt.Errorf("header %.40q is not covered by the signature", h.key)
			}
		}
		if seen[h.key] && h.key != "mergetag" {
			return fmt.Errorf("header %.40q twice", h.key)
		}
		seen[h.key] = true
	}
	for _, h := range headers {
		if h.key != signatureKey {
			c.Payload = append(c.Payload, h.raw...)
		}
	}
	c.Payload = append(c.Payload, body...)
	return nil
}

// splitHeaders cuts raw at the first empty line; body begins with that line.
func splitHeaders(raw []byte) (headers []header, body []byte, err error) {
	for len(raw) > 0 && raw[0] != '\n' {
		end := bytes.IndexByte(raw, '\n')
		if end < 0 {
			return nil, nil, fmt.Errorf("a header line without an end")
		}
		line := raw[:end+1]
		raw = raw[end+1:]
		if line[0] == ' ' {
			if len(headers) == 0 {
				return nil, nil, fmt.Errorf("it begins with a continuation line")
			}
			h := &headers[len(headers)-1]
			h.raw = append(h.raw, line...)
			h.value += "\n" + string(line[1:end])
			continue
		}
		key, value, ok := strings.Cut(string(line[:end]), " ")
		if !ok || key == "" {
			return nil, nil, fmt.Errorf("header %.40q without a value", key)
		}
		headers = append(headers, header{key: key, value: value, raw: bytes.Clone(line)})
	}
	if len(raw) == 0 {
		return nil, nil, fmt.Errorf("no empty line after the headers")
	}
	return headers, raw, nil
}

// parseFixed reads the headers every commit has, in the order git writes them.
func (c *Commit) parseFixed(headers []header) (rest []header, err error) {
	next := func(key string) (string, bool) {
		if len(headers) == 0 || headers[0].key != key {
			return "", false
		}
		v := headers[0].value
		headers = headers[1:]
		return v, true
	}
	tree, ok := next("tree")
	if !ok || !isID(tree, len(c.ID)) {
		return nil, fmt.Errorf("no proper tree header")
	}
	c.Tree = tree
	for {
		parent, ok := next("parent")
		if !ok {
			break
		}
		if !isID(parent, len(c.ID)) {
			return nil, fmt.Errorf("parent %.80q is no object name", parent)
		}
		c.Parents = append(c.Parents, parent)
	}
	for _, who := range []struct {
		key string
		to  *Ident
	}{{"author", &c.Author}, {"committer", &c.Committer}} {
		v, ok := next(who.key)
		if !ok {
			return nil, fmt.Errorf("no %s header in its place", who.key)
		}
		if *who.to, err = parseIdent(v); err != nil {
			return nil, fmt.Errorf("%s: %w", who.key, err)
		}
	}
	return headers, nil
}

func isID(s string, digits int) bool {
	return len(s) == digits && strings.Trim(s, "0123456789abcdef") == ""
}

// parseIdent reads "NAME <MAIL> SECONDS ZONE".
func parseIdent(s string) (Ident, error) {
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return Ident{}, fmt.Errorf("%.80q is not printable UTF-8", s)
	}
	open, end := strings.IndexByte(s, '<'), strings.IndexByte(s, '>')
	if open < 0 || end < open || strings.Count(s, "<") != 1 || strings.Count(s, ">") != 1 {
		return Ident{}, fmt.Errorf("%.80q: want NAME <MAIL> SECONDS ZONE", s)
	}
	id := Ident{Name: strings.TrimSpace(s[:open]), Mail: s[open+1 : end]}
	seconds, zone, ok := strings.Cut(strings.TrimPrefix(s[end+1:], " "), " ")
	n, err := strconv.ParseInt(seconds, 10, 64)
	if !ok || err != nil || n < 0 || n > 253402300799 || strings.Trim(seconds, "0123456789") != "" {
		return Ident{}, fmt.Errorf("%.80q: no proper time", s)
	}
	if len(zone) != 5 || zone[0] != '+' && zone[0] != '-' || strings.Trim(zone[1:], "0123456789") != "" {
		return Ident{}, fmt.Errorf("%.80q: no proper time zone", s)
	}
	id.Time = time.Unix(n, 0).UTC()
	return id, nil
}
