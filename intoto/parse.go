// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package intoto

import (
	"bytes"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/hallmark-sc/hallmark"
)

// Limits on what Parse reads. Both are far above what Hallmark writes.
const (
	MaxSize  = 16 << 20 // bytes of a statement
	MaxDepth = 128      // nesting of objects and arrays
)

// maxSubjects bounds the work that one statement can cause.
const maxSubjects = 1 << 14

// digestLengths returns how many hex digits a digest of a strong algorithm may
// have, and nil for any other algorithm. Git object names are accepted as names
// of revisions; commit signatures are checked over the object itself.
func digestLengths(algorithm string) []int {
	switch algorithm {
	case "sha256", "dirHash1":
		return []int{64}
	case "sha384":
		return []int{96}
	case "sha512":
		return []int{128}
	case "gitCommit", "gitTree":
		return []int{40, 64}
	}
	return nil
}

// Parse reads an in-toto Statement v1 strictly. It refuses another _type,
// duplicate or case-folded keys, trailing data, no subject, a subject without a
// strong digest, an empty predicate type and a predicate that is no object.
// Fields of the statement that it does not know are ignored, as in-toto asks.
func Parse(b []byte) (Statement, error) {
	if len(b) > MaxSize {
		return Statement{}, malformed("statement of %d bytes: the limit is %d", len(b), MaxSize)
	}
	if err := CheckJSON(b, MaxDepth); err != nil {
		return Statement{}, malformed("reading statement: %w", err)
	}
	// Decoding through a map keeps encoding/json from matching keys that differ
	// in case only: "Subject" must not be read as "subject".
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil || fields == nil {
		return Statement{}, malformed("reading statement: want a JSON object")
	}
	var s Statement
	for _, f := range []struct {
		name string
		into any
	}{{"_type", &s.Type}, {"predicateType", &s.PredicateType}, {"subject", &s.Subject}} {
		raw, ok := fields[f.name]
		if !ok {
			return Statement{}, malformed("statement without %s", f.name)
		}
		if err := json.Unmarshal(raw, f.into); err != nil {
			return Statement{}, malformed("reading %s of statement: %w", f.name, err)
		}
	}
	s.Predicate = bytes.Clone(fields["predicate"])
	if err := exactSubjectKeys(fields["subject"]); err != nil {
		return Statement{}, err
	}
	if err := s.Check(); err != nil {
		return Statement{}, err
	}
	return s, nil
}

// Check reports whether s is a statement that Parse would accept.
func (s Statement) Check() error {
	if s.Type != StatementType {
		return malformed("statement type %.100q: want %s", s.Type, StatementType)
	}
	u, err := url.Parse(s.PredicateType)
	if err != nil || u.Scheme == "" {
		return hallmark.Coded(hallmark.KindInvalid, hallmark.CodePredicateType, "predicate type %.100q: want a URI", s.PredicateType)
	}
	if len(s.Subject) == 0 {
		return malformed("statement without subject")
	}
	if len(s.Subject) > maxSubjects {
		return malformed("statement with %d subjects: the limit is %d", len(s.Subject), maxSubjects)
	}
	for i, d := range s.Subject {
		if err := checkSubject(d); err != nil {
			return malformed("subject %d: %w", i, err)
		}
	}
	if p := bytes.TrimLeft(s.Predicate, " \t\r\n"); len(p) == 0 || p[0] != '{' {
		return malformed("predicate of statement: want a JSON object")
	}
	return nil
}

func checkSubject(d ResourceDescriptor) error {
	strong := 0
	for alg, value := range d.Digest {
		lengths := digestLengths(alg)
		if lengths == nil {
			continue // weak or unknown: carries no weight, does no harm
		}
		if !slices.Contains(lengths, len(value)) || strings.Trim(value, "0123456789abcdef") != "" {
			return malformed("digest %s:%.140q: want lower-case hex digits of its length", alg, value)
		}
		strong++
	}
	if strong == 0 {
		return malformed("no strong digest (want sha256, sha384, sha512, gitCommit, gitTree or dirHash1)")
	}
	return nil
}

// exactSubjectKeys refuses keys that encoding/json would fold into a field of a
// subject, such as "Digest": another reader would see another subject.
func exactSubjectKeys(raw json.RawMessage) error {
	var subjects []map[string]json.RawMessage
	if err := json.Unmarshal(raw, &subjects); err != nil {
		return malformed("reading subject of statement: %w", err)
	}
	for i, s := range subjects {
		if err := foldedKeys(s, "name", "uri", "digest", "mediaType", "annotations"); err != nil {
			return malformed("subject %d: %w", i, err)
		}
	}
	return nil
}

// Marshal encodes s. Equal statements give equal bytes.
func (s Statement) Marshal() ([]byte, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return nil, malformed("encoding statement: %w", err)
	}
	b := bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
	if len(b) > MaxSize {
		return nil, malformed("statement of %d bytes: the limit is %d", len(b), MaxSize)
	}
	return b, nil
}

// PAE is DSSE's pre-authentication encoding: the bytes that are signed, and
// whose SHA-256 is the statement's digest in the log.
func PAE(payloadType string, payload []byte) []byte { return dsse.PAE(payloadType, payload) }

// CheckJSON reports whether b is exactly one JSON value, in valid UTF-8, nested
// at most depth levels deep and without a key that occurs twice in one object.
// encoding/json keeps the last of two equal keys and other readers the first,
// so that one signed text could mean two things.
func CheckJSON(b []byte, depth int) error {
	if !utf8.Valid(b) {
		return malformed("JSON is not valid UTF-8")
	}
	if !json.Valid(b) {
		return malformed("not a single JSON value")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	// One entry for each open container; nil for an array.
	var open []map[string]struct{}
	wantKey := false
	for {
		tok, err := dec.Token()
		if err != nil {
			return nil // json.Valid accepted the text: this is its end
		}
		if delim, ok := tok.(json.Delim); ok {
			switch delim {
			case '{':
				open = append(open, map[string]struct{}{})
			case '[':
				open = append(open, nil)
			default:
				open = open[:len(open)-1]
			}
			if len(open) > depth {
				return malformed("JSON nested more than %d levels deep", depth)
			}
			wantKey = len(open) > 0 && open[len(open)-1] != nil
			continue
		}
		if len(open) == 0 || open[len(open)-1] == nil {
			continue
		}
		if !wantKey {
			wantKey = true
			continue
		}
		key, _ := tok.(string)
		seen := open[len(open)-1]
		if _, twice := seen[key]; twice {
			return malformed("JSON key %.100q occurs twice in one object", key)
		}
		seen[key] = struct{}{}
		wantKey = false
	}
}

func malformed(format string, args ...any) error {
	return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeEvidenceMalformed, format, args...)
}
