// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sast

import (
	"bytes"
	"errors"
	"regexp"
)

// cText rewrites C or C++ so that a simple lexer sees every token that a compiler
// may see, on its own line. Such a lexer loses its way at a quote without a
// partner (in a disabled section, in a raw string, in #error), at a comment that a
// compiler does not see as one, and at words that go on in the next line: by
// accident it then reads nothing to the end of the file, by intent it is led
// around a call.
//
// Comments go; lines that a backslash joins are joined inside tokens; a quote that
// nothing closes on its line becomes a space, and so do the quotes of what is no
// plain character constant. Where standards differ the text is taken for code:
// too much is read rather than too little.
func cText(b []byte) ([]byte, error) {
	if bytes.Contains(b, []byte("??/")) {
		return nil, errors.New("it holds the trigraph ??/, which is a backslash to some compilers only")
	}
	l := &cLexer{in: b, out: make([]byte, 0, len(b)+1)}
	for l.skipSplices(); l.at < len(l.in) && l.err == nil; l.skipSplices() {
		l.step()
	}
	l.flush()
	return l.out, l.err
}

type cLexer struct {
	in       []byte
	at       int // in in; never on a splice
	out      []byte
	held     int  // line feeds of splices inside a token, owed to out
	line     int  // where the logical line begins in out, without the space before it
	open     int  // no string that begins before here ends on its line
	unclosed bool // no comment ends after here
	err      error
}

// skipSplices goes on to the next character that is not a backslash before the
// end of a line.
func (l *cLexer) skipSplices() {
	for l.at < len(l.in) && l.in[l.at] == '\\' {
		end := l.at + 1
		for end < len(l.in) && (l.in[end] == ' ' || l.in[end] == '\t' || l.in[end] == '\v' || l.in[end] == '\f') {
			end++
		}
		if end == len(l.in) || l.in[end] != '\n' {
			return
		}
		l.at = end + 1
		l.held++
	}
}

// next moves by one character.
func (l *cLexer) next() {
	l.at++
	l.skipSplices()
}

// peek returns the character, or 0 at the end.
func (l *cLexer) peek() byte {
	if l.at < len(l.in) {
		return l.in[l.at]
	}
	return 0
}

func (l *cLexer) put(c ...byte) { l.out = append(l.out, c...) }

// flush pays the line feeds that are owed; between tokens only.
func (l *cLexer) flush() {
	for ; l.held > 0; l.held-- {
		l.put('\n')
	}
}

func wordByte(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c == '_' || c == '$' || c >= 0x80
}

// step reads one token.
func (l *cLexer) step() {
	l.flush()
	c := l.peek()
	switch {
	case c == '\n':
		l.next0()
		l.put('\n')
		l.line = len(l.out)
	case c >= '0' && c <= '9':
		l.number()
	case wordByte(c):
		l.word()
	case c == '"' || c == '\'':
		l.quoted(c)
	case c == '<' && l.headerFollows():
		l.header()
	case c == '/':
		l.slash()
	default:
		l.next()
		l.put(c)
	}
}

// next0 moves over a line feed: what follows belongs to the next line, a splice
// there too.
func (l *cLexer) next0() { l.at++ }

// number drops the separators of digits, which look like quotes.
func (l *cLexer) number() {
	for l.at < len(l.in) {
		c := l.peek()
		if c == '\'' {
			save := *l
			l.next()
			if !wordByte(l.peek()) {
				*l = save
				return
			}
			continue
		}
		if !wordByte(c) && c != '.' {
			return
		}
		l.next()
		l.put(c)
	}
}

func (l *cLexer) word() {
	start := len(l.out)
	for l.at < len(l.in) && wordByte(l.peek()) {
		c := l.peek()
		l.next()
		l.put(c)
	}
	if l.peek() == '"' && l.at < len(l.in) {
		switch string(l.out[start:]) {
		case "R", "LR", "uR", "UR", "u8R":
			l.raw()
		}
	}
}

var rawBegin = regexp.MustCompile(`^"([^ ()\\\t\v\f\n"]{0,16})\(`)

// raw reads a raw string, whose text is kept as code without quotes and comments:
// to some compilers it is no raw string.
func (l *cLexer) raw() {
	m := rawBegin.FindSubmatch(l.in[l.at:min(len(l.in), l.at+20)])
	if m == nil {
		return
	}
	rest := l.in[l.at+len(m[0]) : min(len(l.in), l.at+maxString)]
	end := bytes.Index(rest, append(append([]byte{')'}, m[1]...), '"'))
	if end < 0 {
		l.err = errors.New("a raw string in it does not end")
		return
	}
	l.flush()
	end += l.at + len(m[0]) + len(m[1]) + 2
	for _, c := range l.in[l.at:end] {
		if c == '"' || c == '\'' || c == '/' || c == '\\' {
			c = ' '
		}
		l.put(c)
	}
	l.at = end
}

// Lengths of the longest string, and of the longest character constant.
const (
	maxString   = 1 << 20
	maxConstant = 64
)

// quoted reads a string or character constant that ends on its line.
func (l *cLexer) quoted(q byte) {
	longest := maxString
	if q == '\'' {
		longest = maxConstant
	}
	save, start := *l, len(l.out)
	l.put(q)
	// What was looked for in vain from before here is not looked for again: the
	// time stays linear.
	ok := q == '\'' || l.at >= l.open
	for l.next(); ok; {
		c := l.peek()
		if l.at >= len(l.in) || c == '\n' || len(l.out)-start > longest {
			ok = false
			break
		}
		l.next()
		l.put(c)
		if c == q {
			break
		}
		if c == '\\' && l.at < len(l.in) && l.peek() != '\n' {
			c = l.peek()
			l.next()
			l.put(c)
		}
	}
	if ok && (q == '"' || constant.Match(l.out[start+1:len(l.out)-1])) {
		return
	}
	end := l.at
	*l = save
	if q == '"' {
		l.open = max(end, l.open)
	}
	l.out = append(l.out[:start], ' ')
	l.next()
}

var constant = regexp.MustCompile(`^(?s:.|[A-Za-z0-9_ .-]{2,4}|(?:\\(?:[^\n]|[0-7]{2,3}|x[0-9A-Fa-f]+|[uU][0-9A-Fa-f]+|[uUxN]\{[^{}()'"]*\})){1,4})$`)

// headerFollows reports whether a file name in angle brackets comes next.
func (l *cLexer) headerFollows() bool {
	for l.line < len(l.out) && space(l.out[l.line]) {
		l.line++
	}
	b := trim(l.out[l.line:])
	if in, ok := bytes.CutSuffix(b, []byte("(")); ok {
		in = trim(in)
		return bytes.HasSuffix(in, []byte("__has_include")) || bytes.HasSuffix(in, []byte("__has_include_next")) || bytes.HasSuffix(in, []byte("__has_embed"))
	}
	for _, word := range []string{"include", "include_next", "import", "embed"} {
		if before, ok := bytes.CutSuffix(b, []byte(word)); ok {
			if before = trim(before); string(before) == "#" || string(before) == "%:" {
				return true
			}
		}
	}
	return false
}

func space(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }

// trim cuts the space from the end.
func trim(b []byte) []byte {
	for len(b) > 0 && space(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b
}

// header reads a file name, in which nothing begins a comment or string.
func (l *cLexer) header() {
	for l.at < len(l.in) && l.peek() != '\n' {
		c := l.peek()
		l.next()
		switch c {
		case '"', '\'', '/', '\\':
			l.put(' ')
		default:
			l.put(c)
		}
		if c == '>' {
			return
		}
	}
}

// slash reads a comment, or a slash.
func (l *cLexer) slash() {
	l.next()
	switch {
	case l.at < len(l.in) && l.peek() == '/':
		l.put(' ')
		l.next()
		l.lineComment()
	case l.at < len(l.in) && l.peek() == '*' && !l.unclosed:
		save := *l
		l.put(' ')
		l.next()
		if !l.blockComment(false) {
			*l = save
			l.unclosed = true
			l.put(' ')
			l.next()
		}
	default:
		l.put('/')
	}
}

// lineComment skips a comment to the end of the line. To C89, //* is a division
// and a comment that may end on the line: what follows is code.
func (l *cLexer) lineComment() {
	if l.peek() == '*' {
		save := *l
		l.next()
		if l.blockComment(true) {
			return
		}
		*l = save
	}
	for l.at < len(l.in) && l.peek() != '\n' {
		l.next()
	}
}

// blockComment skips to the end of a comment, leaving its line feeds; on the same
// line only if so asked.
func (l *cLexer) blockComment(sameLine bool) bool {
	for l.at < len(l.in) {
		c := l.peek()
		if c == '\n' {
			if sameLine {
				return false
			}
			l.flush()
			l.put('\n')
			l.next0()
			l.skipSplices()
			continue
		}
		l.next()
		if c == '*' && l.at < len(l.in) && l.peek() == '/' {
			l.next()
			return true
		}
	}
	return false
}
