// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sast

import (
	"bytes"
	"unicode/utf16"
	"unicode/utf8"
)

// unifyText makes UTF-8 with line feeds of source text, so that no tool stops at
// an encoding: UTF-16 with a byte order mark is decoded, other text that is not
// UTF-8 is read as Latin-1. Lines keep their numbers.
func unifyText(b []byte) []byte {
	switch {
	case bytes.HasPrefix(b, []byte{0xff, 0xfe}):
		b = fromUTF16(b[2:], 0)
	case bytes.HasPrefix(b, []byte{0xfe, 0xff}):
		b = fromUTF16(b[2:], 1)
	case bytes.HasPrefix(b, []byte{0xef, 0xbb, 0xbf}):
		b = b[3:]
	}
	if !utf8.Valid(b) {
		out := make([]byte, 0, len(b)+len(b)/8)
		for _, c := range b {
			out = utf8.AppendRune(out, rune(c))
		}
		b = out
	}
	b = bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))
	return bytes.ReplaceAll(b, []byte("\r"), []byte("\n"))
}

// fromUTF16 decodes pairs of bytes; the byte at low is the lower one.
func fromUTF16(b []byte, low int) []byte {
	u := make([]uint16, 0, len(b)/2)
	for i := 0; i+1 < len(b); i += 2 {
		u = append(u, uint16(b[i+low])|uint16(b[i+1-low])<<8)
	}
	return []byte(string(utf16.Decode(u)))
}
