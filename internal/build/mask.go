// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net/url"
	"slices"
	"strings"
)

// mask replaces secrets in what is written through it, also where one is written
// in pieces. It belongs to one goroutine.
//
// It stops accidents and simple tricks: a value plain, reversed, in base64 at any
// alignment, in hexadecimal, escaped for URLs or quoted. A step that was given a
// secret can always print it in a way that nobody looks for.
type mask struct {
	out   io.Writer
	words [][]byte // longest first
	index [256][][]byte
	kept  []byte // the beginning of a word may stand here
}

const masked = "***"

// Masker hides secrets in what is written through it. Flush writes the end.
type Masker interface {
	io.Writer
	Flush() error
}

// NewMask returns the mask of these secrets, by name, before out.
func NewMask(out io.Writer, secrets map[string][]byte) Masker {
	m := &mask{out: out}
	for _, value := range secrets {
		for _, w := range Spellings(value) {
			m.words = append(m.words, []byte(w))
		}
	}
	slices.SortFunc(m.words, func(a, b []byte) int { return len(b) - len(a) })
	for _, w := range m.words {
		m.index[w[0]] = append(m.index[w[0]], w)
	}
	return m
}

// Spellings are the ways in which a secret is looked for where it must not be,
// each once and the longest first.
func Spellings(value []byte) []string {
	var out []string
	for _, w := range spellings(value) {
		// A piece that is too short would hide what is no secret.
		if len(w) >= MinSecret-2 {
			out = append(out, w)
		}
	}
	slices.Sort(out)
	out = slices.Compact(out)
	slices.SortStableFunc(out, func(a, b string) int { return len(b) - len(a) })
	return out
}

// spellings are all of them, in no order.
func spellings(value []byte) []string {
	var out []string
	trimmed := bytes.TrimSpace(value)
	forms := []string{string(value), string(trimmed), string(trimmed) + "\n", string(trimmed) + "\r\n"}
	// A value of several lines may be printed line by line.
	for line := range strings.Lines(string(trimmed)) {
		if line = strings.TrimSpace(line); len(line) >= MinSecret {
			forms = append(forms, line)
		}
	}
	for _, f := range forms {
		backwards := []byte(f)
		slices.Reverse(backwards)
		for _, v := range []string{f, string(backwards), strings.TrimSpace(string(backwards))} {
			out = append(out, strings.TrimSpace(v), hex.EncodeToString([]byte(v)), strings.ToUpper(hex.EncodeToString([]byte(v))),
				url.QueryEscape(v), url.PathEscape(v), escapeAll(v, strings.ToUpper), escapeAll(v, strings.ToLower), quoted(v))
			for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
				for shift := range 3 {
					out = append(out, aligned(enc, v, shift))
				}
			}
		}
	}
	return out
}

// aligned is what is sure to stand in the base64 of a text that has v after shift
// other bytes (modulo 3) and before any: the characters that depend on v alone.
func aligned(enc *base64.Encoding, v string, shift int) string {
	s := enc.EncodeToString(append(make([]byte, shift), v...))
	first := (shift*8 + 5) / 6
	last := (shift + len(v)) * 8 / 6
	if first >= last {
		return ""
	}
	return s[first:last]
}

// escapeAll is v with every byte that is no letter or digit as %XX.
func escapeAll(v string, hexCase func(string) string) string {
	var b strings.Builder
	for i := range len(v) {
		c := v[i]
		if c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' {
			b.WriteByte(c)
			continue
		}
		b.WriteString("%" + hexCase(hex.EncodeToString([]byte{c})))
	}
	return b.String()
}

// quoted is v as JSON and many languages write it, without the quotes.
func quoted(v string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\r", `\r`, "\t", `\t`).Replace(v)
}

func (m *mask) Write(p []byte) (int, error) {
	if len(m.words) == 0 {
		return m.out.Write(p)
	}
	m.kept = append(m.kept, p...)
	return len(p), m.drain(false)
}

// Flush writes what is kept; nothing may be written afterwards.
func (m *mask) Flush() error {
	return m.drain(true)
}

// drain replaces the words in what is kept and writes it, but for an end that may
// be the beginning of a word.
func (m *mask) drain(all bool) error {
	var out []byte
	i := 0
	for i < len(m.kept) {
		rest := m.kept[i:]
		n, partial := m.match(rest, all)
		if partial {
			break
		}
		if n > 0 {
			out = append(out, masked...)
			i += n
			continue
		}
		out = append(out, rest[0])
		i++
	}
	m.kept = append(m.kept[:0], m.kept[i:]...)
	_, err := m.out.Write(out)
	return err
}

// match returns how much of b is the longest word that b begins with; partial
// says that b, which is not all there is, ends before a longer word could be told. White space may stand
// anywhere inside: encoders wrap their lines and space their digits.
func (m *mask) match(b []byte, all bool) (n int, partial bool) {
	for _, w := range m.index[b[0]] {
		i, j := 0, 0
		for i < len(b) && j < len(w) && i <= mostSpread*len(w) {
			switch {
			case b[i] == w[j]:
				j++
			case !isSpace(b[i]):
				j = len(w) + 1 // another text
			}
			i++
		}
		if j == len(w) {
			return i, false
		}
		if j < len(w) && i == len(b) && !all {
			return 0, true
		}
	}
	return 0, false
}

// mostSpread bounds a word with white space in it, in words.
const mostSpread = 4

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\r' || c == '\t' }
