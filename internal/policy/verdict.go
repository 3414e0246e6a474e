// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
)

const maxVerdict = 16 << 20 // bytes of verdict.json

// Input is one statement that a verdict rests on.
type Input struct {
	Statement     hallmark.Digest `json:"statement"`
	Bundle        hallmark.Digest `json:"bundle"`
	PredicateType string          `json:"predicateType"`
}

// Verdict is a decision with everything it depends on.
type Verdict struct {
	APIVersion  string              `json:"apiVersion"`
	Kind        string              `json:"kind"`
	Clock       time.Time           `json:"clock"`
	Subjects    []hallmark.Artifact `json:"subjects"`
	Revision    hallmark.Revision   `json:"revision"`
	ResourceURI string              `json:"resourceUri"`
	Inputs      []Input             `json:"inputs"`
	Policy      struct {
		Digest  hallmark.Digest `json:"digest"`
		Version int             `json:"version"`
	} `json:"policy"`
	Roots       hallmark.Digest `json:"roots"`
	TrustedRoot hallmark.Digest `json:"trustedRoot"`
	Engine      struct {
		Name         string          `json:"name"`
		Version      string          `json:"version"`
		Capabilities hallmark.Digest `json:"capabilities"`
	} `json:"engine"`
	Decision hallmark.Decision `json:"decision"`
	Levels   []string          `json:"levels"`
}

// Encode returns the RFC 8785 form, the bytes that replay compares.
func (v Verdict) Encode() ([]byte, error) { return canonical(v) }

// ParseVerdict reads verdict.json strictly: what Encode would not write is
// refused, but for white space and the order of keys.
func ParseVerdict(b []byte) (Verdict, error) {
	var v Verdict
	if err := decodeExact(b, maxVerdict, &v); err != nil {
		return Verdict{}, hallmark.Errorf(hallmark.KindInvalid, "reading verdict: %w", err)
	}
	if v.APIVersion != "hallmark/v1" || v.Kind != "Verdict" {
		return Verdict{}, hallmark.Errorf(hallmark.KindInvalid, "reading verdict: not a verdict of version hallmark/v1")
	}
	return v, nil
}

// Difference is one field in which two verdicts differ. Field is a JSON pointer
// (RFC 6901); an absent value is empty.
type Difference struct {
	Field, Recorded, Computed string
}

func (d Difference) String() string {
	show := func(s string) string {
		if s == "" {
			return "nothing"
		}
		return s
	}
	return fmt.Sprintf("%s: recorded %s, computed %s", d.Field, show(d.Recorded), show(d.Computed))
}

// Compare lists the fields in which two verdicts differ. The pinned inputs come
// first: a difference there explains all that follow.
func Compare(recorded, computed Verdict) ([]Difference, error) {
	tree := func(v Verdict) (any, error) {
		b, err := v.Encode()
		if err != nil {
			return nil, err
		}
		var t any
		return t, json.Unmarshal(b, &t)
	}
	a, err := tree(recorded)
	if err != nil {
		return nil, err
	}
	b, err := tree(computed)
	if err != nil {
		return nil, err
	}
	out := diff("", a, b)
	rank := func(d Difference) int {
		field, _, _ := strings.Cut(strings.TrimPrefix(d.Field, "/"), "/")
		if i := slices.Index([]string{"engine", "policy", "roots", "trustedRoot", "inputs", "clock", "revision", "subjects"}, field); i >= 0 {
			return i
		}
		return 100
	}
	slices.SortStableFunc(out, func(x, y Difference) int { return rank(x) - rank(y) })
	return out, nil
}

func diff(at string, a, b any) []Difference {
	switch x := a.(type) {
	case map[string]any:
		if y, ok := b.(map[string]any); ok {
			return diffObjects(at, x, y)
		}
	case []any:
		if y, ok := b.([]any); ok {
			var out []Difference
			for i := range max(len(x), len(y)) {
				out = append(out, diff(at+"/"+strconv.Itoa(i), element(x, i), element(y, i))...)
			}
			return out
		}
	}
	recorded, computed := text(a), text(b)
	if recorded == computed {
		return nil
	}
	return []Difference{{Field: at, Recorded: recorded, Computed: computed}}
}

func diffObjects(at string, x, y map[string]any) []Difference {
	keys := slices.Collect(maps.Keys(x))
	for k := range y {
		if _, ok := x[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	var out []Difference
	for _, k := range keys {
		var left, right any = absent{}, absent{}
		if v, ok := x[k]; ok {
			left = v
		}
		if v, ok := y[k]; ok {
			right = v
		}
		out = append(out, diff(at+"/"+strings.NewReplacer("~", "~0", "/", "~1").Replace(k), left, right)...)
	}
	return out
}

// absent stands for a value that is not there, which is not null.
type absent struct{}

func element(list []any, i int) any {
	if i < len(list) {
		return list[i]
	}
	return absent{}
}

func text(v any) string {
	if _, ok := v.(absent); ok {
		return ""
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Sprintf("%v", v)
	}
	return strings.TrimSuffix(buf.String(), "\n")
}
