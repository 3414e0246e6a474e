// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"bytes"
	"strings"
	"unicode/utf16"
)

// texts are the ways to read bytes as text: as they are, and, where there are
// zero bytes or a byte order mark, as the wide characters in them. None of the
// ways replaces another: a mark is two bytes that anybody can write.
func texts(b []byte) []string {
	out := []string{string(b)}
	switch {
	case bytes.HasPrefix(b, []byte{0xff, 0xfe}):
		out = append(out, fromUTF16(b[2:], 0))
	case bytes.HasPrefix(b, []byte{0xfe, 0xff}):
		out = append(out, fromUTF16(b[2:], 1))
	}
	if bytes.IndexByte(b, 0) < 0 {
		return out
	}
	for _, width := range []int{2, 4} {
		for offset := range width {
			if s := wide(b, width, offset); s != "" && (len(out) < 2 || s != out[1]) {
				out = append(out, s)
			}
		}
	}
	return out
}

// fromUTF16 decodes pairs of bytes; the byte at low is the lower one.
func fromUTF16(b []byte, low int) string {
	u := make([]uint16, 0, len(b)/2)
	for i := 0; i+1 < len(b); i += 2 {
		u = append(u, uint16(b[i+low])|uint16(b[i+1-low])<<8)
	}
	return string(utf16.Decode(u))
}

// minWide is how many wide characters in a row are text.
const minWide = 8

// wide returns the ASCII text that stands in bytes as characters of two or four
// bytes, from an offset on: a character and its zero bytes. With every offset
// below the width this finds both byte orders, and text in the middle of other
// data. What is no text becomes a space, so that lines keep their numbers.
func wide(b []byte, width, offset int) string {
	var out strings.Builder
	var run []byte
	found := false
	flush := func() {
		if len(run) >= minWide {
			found = true
			out.Write(run)
		} else {
			for range bytes.Count(run, []byte{'\n'}) {
				out.WriteByte('\n')
			}
		}
		if len(run) > 0 {
			out.WriteByte(' ')
		}
		run = run[:0]
	}
	for i := offset; i+width <= len(b); i += width {
		c := b[i]
		if b[i+1] == 0 && (width == 2 || b[i+2] == 0 && b[i+3] == 0) && (c >= ' ' && c < 0x7f || c == '\t' || c == '\r' || c == '\n') {
			run = append(run, c)
			continue
		}
		flush()
	}
	// The last character of the higher byte first ends without its zero bytes.
	if left := (len(b) - offset) % width; left > 0 && left < width && len(run) >= minWide {
		if c := b[len(b)-left]; c >= ' ' && c < 0x7f {
			run = append(run, c)
		}
	}
	flush()
	if !found {
		return ""
	}
	return out.String()
}

// exampleValue tells values that documentation uses: they say so, or they are
// mostly filler. A true credential may well have some equal digits in a row, and
// a block of key material is none of documentation whatever it says.
func exampleValue(s string) bool {
	if len(s) > 200 {
		return false
	}
	low := strings.ToLower(s)
	for _, w := range []string{"example", "xxxxxx", "changeme", "placeholder"} {
		if strings.Contains(low, w) {
			return true
		}
	}
	return 2*filler(low) >= len(low)
}

// filler counts the characters in runs of six or more that are equal or count up
// or down.
func filler(s string) int {
	const least = 6
	in := make([]bool, len(s))
	step := func(i int) int { return int(s[i]) - int(s[i-1]) }
	for i := 1; i < len(s); {
		end := i + 1
		for end < len(s) && step(end) == step(i) {
			end++
		}
		if d := step(i); d >= -1 && d <= 1 && end-i+1 >= least {
			for j := i - 1; j < end; j++ {
				in[j] = true
			}
		}
		i = end
	}
	n := 0
	for _, yes := range in {
		if yes {
			n++
		}
	}
	return n
}
