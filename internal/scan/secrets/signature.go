// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"regexp"
)

// piece is text to scan. A match in noise is probably none: the base64 of a
// signature is random text, which looks like a credential sooner or later.
type piece struct {
	text  string
	noise bool
}

var armorBegin = regexp.MustCompile(`-----BEGIN (SSH SIGNATURE|PGP SIGNATURE|SIGNED MESSAGE)-----$`)

// apart takes the signatures of a commit or tag apart: what a person can write in
// one (lines around it, armor headers, the decoded bytes) is text like any other,
// and only the base64 lines of a signature that is one, to its last byte, are
// noise. A block that is none stays as it is, and is decoded if it can be.
func apart(b []byte) []piece {
	var rest, noise [][]byte
	var out []piece
	read := func(b []byte) {
		for _, t := range texts(b) {
			out = append(out, piece{text: t})
		}
	}
	lines := bytes.Split(b, []byte("\n"))
	for i := 0; i < len(lines); i++ {
		rest = append(rest, lines[i])
		m := armorBegin.FindSubmatch(lines[i])
		if m == nil {
			continue
		}
		head, body, end := block(lines[i+1:], string(m[1]))
		raw, err := base64.StdEncoding.DecodeString(string(bytes.Join(body, nil)))
		if end == 0 || err != nil {
			continue
		}
		read(raw)
		if !isSignature(string(m[1]), raw) {
			continue
		}
		rest = append(rest, head...)
		noise = append(noise, body...)
		i += end
	}
	read(bytes.Join(rest, []byte("\n")))
	if noise != nil {
		out = append(out, piece{string(bytes.Join(noise, []byte("\n"))), true})
	}
	return out
}

var (
	armorHeader = regexp.MustCompile(`^[A-Za-z][A-Za-z-]*: `)
	base64Line  = regexp.MustCompile(`^[A-Za-z0-9+/]{1,76}={0,2}$`)
	armorSum    = regexp.MustCompile(`^=[A-Za-z0-9+/]{4}$`)
)

// block splits the lines after the first one of an armored block into headers,
// which PGP ends with an empty line, and base64. end is how many lines there are
// with the last one, 0 when the block is not of this form.
func block(lines [][]byte, label string) (head, body [][]byte, end int) {
	inHead := true
	for i, l := range lines {
		l = bytes.TrimLeft(l, " ") // of commit headers, one for each nesting
		switch {
		case string(l) == "-----END "+label+"-----":
			return head, body, i + 1
		case base64Line.Match(l):
			inHead = false
			body = append(body, l)
		case inHead && (len(l) == 0 || armorHeader.Match(l)):
			head = append(head, l)
		case armorSum.Match(l) && label == "PGP SIGNATURE":
			body = append(body, nil) // the check sum: four characters of no interest
		default:
			return nil, nil, 0
		}
	}
	return nil, nil, 0
}

// isSignature reports whether bytes are signatures of a kind and nothing else.
func isSignature(label string, b []byte) bool {
	switch label {
	case "SSH SIGNATURE":
		b, ok := bytes.CutPrefix(b, []byte("SSHSIG\x00\x00\x00\x01"))
		for range 5 { // key, namespace, reserved, hash, signature
			if !ok || len(b) < 4 {
				return false
			}
			n := int64(binary.BigEndian.Uint32(b))
			if b = b[4:]; n > int64(len(b)) {
				return false
			}
			b = b[n:]
		}
		return ok && len(b) == 0
	case "PGP SIGNATURE":
		for len(b) > 0 {
			n := packet(b)
			if n == 0 {
				return false
			}
			b = b[n:]
		}
		return true
	case "SIGNED MESSAGE": // CMS, whose length may be open
		return bytes.HasPrefix(b, []byte{0x30, 0x80}) && bytes.HasSuffix(b, []byte{0, 0}) ||
			bytes.HasPrefix(b, []byte{0x30, 0x82}) && len(b) > 4 && int(binary.BigEndian.Uint16(b[2:])) == len(b)-4
	}
	return false
}

// packet is the length of the OpenPGP signature packet that bytes begin with, 0
// if they do not.
func packet(b []byte) int {
	n, head := 0, 0
	switch {
	case len(b) > 2 && b[0] == 0x88:
		n, head = int(b[1]), 2
	case len(b) > 3 && b[0] == 0x89:
		n, head = int(binary.BigEndian.Uint16(b[1:])), 3
	case len(b) > 2 && b[0] == 0xc2 && b[1] < 192:
		n, head = int(b[1]), 2
	case len(b) > 3 && b[0] == 0xc2 && b[1] < 224:
		n, head = (int(b[1])-192)<<8+int(b[2])+192, 3
	}
	if n == 0 || head+n > len(b) {
		return 0
	}
	return head + n
}
