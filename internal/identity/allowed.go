// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package identity turns keys into principals. Today these are SSH keys: it
// reads OpenSSH's allowed_signers files (ssh-keygen(1), ALLOWED SIGNERS) and
// verifies SSHSIG signatures (OpenSSH PROTOCOL.sshsig) by them.
//
// It reads conservatively: what it does not understand completely it refuses,
// with file and line, so that no line means more to us than its author meant.
// It must never ask a repository's or a user's configuration who may sign.
package identity

import (
	"crypto/rsa"
	"encoding/base64"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-sc/hallmark"
)

// NamespaceGit is the SSHSIG namespace of git commits and tags.
const NamespaceGit = "git"

// minRSABits is the shortest RSA key that is accepted (NIST SP 800-131A).
const minRSABits = 2048

// maxAllowedSigners bounds a file; it travels inside the signed policy.
const maxAllowedSigners = 4 << 20

// AllowedSigners is a parsed allowed_signers file. It is immutable and safe for
// concurrent use; the zero value allows nobody.
type AllowedSigners struct {
	entries []entry
}

// entry is one line. The zero times mean "no bound".
type entry struct {
	principals  []string
	namespaces  []string // empty: any
	validAfter  time.Time
	validBefore time.Time
	key         ssh.PublicKey
	line        int
}

// ParseAllowedSigners reads an allowed_signers file; name stands in errors.
func ParseAllowedSigners(name string, data []byte) (*AllowedSigners, error) {
	if len(data) > maxAllowedSigners {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "%s: larger than %d bytes", name, maxAllowedSigners)
	}
	s := &AllowedSigners{}
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		e, err := parseEntry(line)
		if err != nil {
			return nil, hallmark.Errorf(hallmark.KindInvalid, "%s:%d: %w", name, n, err)
		}
		e.line = n
		s.entries = append(s.entries, e)
	}
	return s, nil
}

// Names returns the principals in the order of the file, each once.
func (s *AllowedSigners) Names() []string {
	var names []string
	for _, e := range s.entries {
		for _, p := range e.principals {
			if !slices.Contains(names, p) {
				names = append(names, p)
			}
		}
	}
	return names
}

func invalid(format string, args ...any) error {
	return hallmark.Errorf(hallmark.KindInvalid, format, args...)
}

// parseEntry reads "principals [options] keytype base64 [comment]".
func parseEntry(line string) (entry, error) {
	var e entry
	if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f || r == 0xfffd }) {
		return e, invalid("a control character or bytes that are not UTF-8")
	}
	principals, rest, err := nextField(line)
	if err != nil {
		return e, err
	}
	if e.principals, err = parsePrincipals(principals); err != nil {
		return e, err
	}
	field, after, err := nextField(rest)
	if err != nil {
		return e, err
	}
	if !isKeyType(field) {
		if err := e.parseOptions(field); err != nil {
			return e, err
		}
		if field, after, err = nextField(after); err != nil {
			return e, err
		}
	}
	e.key, err = parseKey(field, after)
	return e, err
}

// nextField cuts at the first blank outside double quotes. Quotes are kept.
func nextField(s string) (field, rest string, err error) {
	s = strings.TrimLeft(s, " \t")
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\':
			return "", "", invalid("backslashes are not supported")
		case s[i] == '"':
			quoted = !quoted
		case !quoted && (s[i] == ' ' || s[i] == '\t'):
			return s[:i], s[i:], nil
		}
	}
	if quoted {
		return "", "", invalid("a quotation mark is not closed")
	}
	return s, "", nil
}

func parsePrincipals(field string) ([]string, error) {
	if len(field) >= 2 && field[0] == '"' && field[len(field)-1] == '"' {
		field = field[1 : len(field)-1]
	}
	list := strings.Split(field, ",")
	for i, p := range list {
		switch {
		case p == "":
			return nil, invalid("an empty principal")
		case strings.ContainsAny(p, "*?"):
			return nil, invalid("principal %.80q: patterns are not supported; name each principal", p)
		case p[0] == '!':
			return nil, invalid("principal %.80q: negation is not supported", p)
		case strings.ContainsAny(p, "\" \t"):
			return nil, invalid("principal %.80q: a blank or quotation mark", p)
		case slices.Contains(list[:i], p):
			return nil, invalid("principal %.80q is listed twice", p)
		}
	}
	return list, nil
}

// parseOptions reads the options field. Options are case-insensitive in OpenSSH.
func (e *entry) parseOptions(field string) error {
	seen := map[string]bool{}
	for field != "" {
		option, rest := cutOption(field)
		field = rest
		name, value, hasValue := strings.Cut(option, "=")
		name = strings.ToLower(name)
		if seen[name] {
			return invalid("option %s is given twice", name)
		}
		seen[name] = true
		if name == "cert-authority" {
			return invalid("option cert-authority is not supported: list the keys themselves")
		}
		if name != "namespaces" && name != "valid-after" && name != "valid-before" {
			return invalid("unknown option or key type %.40q", name)
		}
		if !hasValue || len(value) < 3 || value[0] != '"' || value[len(value)-1] != '"' {
			return invalid("option %s: want %s=\"…\"", name, name)
		}
		value = value[1 : len(value)-1]
		var err error
		switch name {
		case "namespaces":
			e.namespaces, err = parseNamespaces(value)
		case "valid-after":
			e.validAfter, err = parseTime(value)
		case "valid-before":
			e.validBefore, err = parseTime(value)
		}
		if err != nil {
			return hallmark.Errorf(hallmark.KindInvalid, "option %s: %w", name, err)
		}
	}
	if !e.validAfter.IsZero() && !e.validBefore.IsZero() && !e.validAfter.Before(e.validBefore) {
		return invalid("valid-after is not before valid-before")
	}
	return nil
}

// cutOption cuts at the first comma outside quotes. A trailing comma leaves an
// empty option, which is then unknown.
func cutOption(s string) (option, rest string) {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '"':
			quoted = !quoted
		case s[i] == ',' && !quoted && i < len(s)-1:
			return s[:i], s[i+1:]
		}
	}
	return s, ""
}

func parseNamespaces(value string) ([]string, error) {
	list := strings.Split(value, ",")
	for _, ns := range list {
		if ns == "" || strings.ContainsAny(ns, "*?!\" \t") {
			return nil, invalid("namespace %.40q: name each namespace; patterns are not supported", ns)
		}
	}
	return list, nil
}

// parseTime reads OpenSSH's YYYYMMDD[HHMM[SS]]Z. OpenSSH reads a time without Z
// in the zone of the machine; that would make a verdict depend on where it is
// replayed, so Z is required.
func parseTime(value string) (time.Time, error) {
	digits, ok := strings.CutSuffix(value, "Z")
	if !ok {
		return time.Time{}, invalid("%.40q: end it with Z (UTC)", value)
	}
	layouts := map[int]string{8: "20060102", 12: "200601021504", 14: "20060102150405"}
	layout, ok := layouts[len(digits)]
	if !ok {
		return time.Time{}, invalid("%.40q: want YYYYMMDD[HHMM[SS]]Z", value)
	}
	t, err := time.Parse(layout, digits)
	if err != nil {
		return time.Time{}, invalid("%.40q: want YYYYMMDD[HHMM[SS]]Z", value)
	}
	return t, nil
}

func isKeyType(s string) bool {
	return strings.HasPrefix(s, "ssh-") || strings.HasPrefix(s, "ecdsa-") || strings.HasPrefix(s, "sk-")
}

// parseKey reads the key of type keyType from "base64 [comment]".
func parseKey(keyType, rest string) (ssh.PublicKey, error) {
	switch keyType {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521,
		ssh.KeyAlgoRSA, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
	case "":
		return nil, invalid("no key")
	case ssh.InsecureKeyAlgoDSA:
		return nil, invalid("DSA keys are too weak")
	default:
		return nil, invalid("key type %.60q is not supported", keyType)
	}
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return nil, invalid("no key after %s", keyType)
	}
	blob, err := base64.StdEncoding.Strict().DecodeString(fields[0])
	if err != nil {
		return nil, invalid("decoding key: %w", err)
	}
	key, err := ssh.ParsePublicKey(blob)
	if err != nil {
		return nil, invalid("parsing key: %w", err)
	}
	if key.Type() != keyType {
		return nil, invalid("the key is of type %.60q, the line says %s", key.Type(), keyType)
	}
	if err := checkStrength(key); err != nil {
		return nil, err
	}
	return key, nil
}

func checkStrength(key ssh.PublicKey) error {
	c, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return nil // security keys: their algorithms have one strength
	}
	if k, ok := c.CryptoPublicKey().(*rsa.PublicKey); ok && k.N.BitLen() < minRSABits {
		return invalid("RSA key of %d bits: want at least %d", k.N.BitLen(), minRSABits)
	}
	return nil
}
