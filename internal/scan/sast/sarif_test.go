// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sast

import (
	"encoding/json"
	"io/fs"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// TestReadSARIF reads what other emitters write than the ones we know.
func TestReadSARIF(t *testing.T) {
	const doc = `{"$schema":"s","version":"2.1.0","runs":[{
		"tool":{"driver":{"name":"T","version":"9","rules":[
			{"id":"A","defaultConfiguration":{"level":"error"},"properties":{"tags":["security","external/cwe/cwe-079"]}},
			{"id":"B","relationships":[{"target":{"id":"CWE-1","toolComponent":{"name":"CWE"}},"kinds":["incomparable"]},{"target":{"id":"CWE-2","toolComponent":{"name":"CWE"}}}]}]}},
		"originalUriBaseIds":{"ROOT":{"uri":"file:///source/"},"SUB":{"uri":"sub/","uriBaseId":"ROOT"}},
		"artifacts":[{"location":{"uri":"c.c","uriBaseId":"SUB"}}],
		"externalPropertyFileReferences":{"taxonomies":[{"location":{"uri":"https://example.org/cwe"}}]},
		"results":[
			{"ruleIndex":0,"message":{"text":"by index\u001b[31m"},"locations":[{"physicalLocation":{"artifactLocation":{"uri":"a%20b.c"},"region":{"startLine":1,"startColumn":4}}}]},
			{"rule":{"id":"B"},"kind":"open","rank":50,"message":{"text":"by reference"},"locations":[{"physicalLocation":{"artifactLocation":{"index":0},"region":{"startLine":2}}}]},
			{"ruleId":"C/D","level":"note","message":{"text":"x"},"locations":[{"physicalLocation":{"artifactLocation":{"uri":"file:///source/d.c"},"region":{"startLine":3}}}]},
			{"ruleId":"A","kind":"pass","message":{"text":"not a finding"}}
		]}]}`
	got, err := readSARIF([]byte(doc), "T", "/source")
	if err != nil {
		t.Fatal(err)
	}
	want := report{Version: "9", Hits: []hit{
		{Rule: "A", Level: "error", Message: "by index [31m", CWE: "CWE-79", Path: "a b.c", Line: 1, Column: 4, Rank: -1},
		{Rule: "B", Level: "warning", Message: "by reference", CWE: "CWE-2", Path: "sub/c.c", Line: 2, Rank: 50},
		{Rule: "C/D", Level: "note", Message: "x", Path: "d.c", Line: 3, Rank: -1},
	}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestReadSARIFRefuses(t *testing.T) {
	deep := strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth)
	result := strings.ReplaceAll(fakeResult, "CODE", "a.c")
	many := strings.Repeat("0,", maxResults) + "0"
	for name, c := range map[string][2]string{
		"too deep":          {`{"version":"2.1.0","x":` + deep + `}`, "deep"},
		"too large":         {strings.Repeat(" ", maxSARIF) + "{}", "limit"},
		"too many runs":     {`{"version":"2.1.0","runs":[` + strings.Repeat("{},", maxRuns) + `{}]}`, "17 runs"},
		"too many results":  {`{"version":"2.1.0","runs":[{` + fakeTool + `,"results":[` + strings.ReplaceAll(many, "0", "{}") + `]}]}`, "more than 100000 results"},
		"another version":   {`{"version":"2.2.0","runs":[{}]}`, "2.1.0"},
		"not UTF-8":         {"{\"version\":\"\xff\"}", "UTF-8"},
		"no object":         {`[]`, "cannot unmarshal"},
		"inline properties": {`{"version":"2.1.0","runs":[{}],"inlineExternalProperties":[{}]}`, "inline"},
		"null result":       {sarifOf("", "null"), `rule ""`},
		"no location":       {sarifOf("", `{"ruleId":"R","message":{"text":"m"}}`), "no location"},
		"unknown kind":      {sarifOf("", strings.Replace(result, `{`, `{"kind":"hidden",`, 1)), "kind"},
		"rank of nothing":   {sarifOf("", strings.Replace(result, `{`, `{"rank":101,`, 1)), "rank"},
		"absent artifact":   {sarifOf("", strings.Replace(result, `"uri":"a.c"`, `"index":7`, 1)), "artifact 7"},
		"base outside":      {sarifOf(`,"originalUriBaseIds":{"B":{"uri":"file:///etc/"}}`, strings.Replace(result, `"uri":"a.c"`, `"uri":"a.c","uriBaseId":"B"`, 1)), "outside"},
		"base climbs":       {sarifOf(`,"originalUriBaseIds":{"B":{"uri":"../etc/"}}`, strings.Replace(result, `"uri":"a.c"`, `"uri":"a.c","uriBaseId":"B"`, 1)), "base"},
		"the root itself":   {sarifOf("", strings.Replace(result, `"a.c"`, `"."`, 1)), "outside"},
		"web location":      {sarifOf("", strings.Replace(result, `"a.c"`, `"https://example.org/a.c"`, 1)), "not a file"},
		"query":             {sarifOf("", strings.Replace(result, `"a.c"`, `"a.c?x"`, 1)), "not a file"},
		"rule with spaces":  {sarifOf("", strings.Replace(result, `"R2"`, `"R 2"`, 1)), "rule"},
		"two keys, folded":  {`{"version":"2.1.0","runs":[],"run\u017f":[]}`, "twice"},
	} {
		_, err := readSARIF([]byte(c[0]), "Fake", "/source")
		if err == nil || !strings.Contains(err.Error(), c[1]) {
			t.Errorf("%s: error %v, want one about %q", name, err, c[1])
		}
	}
}

func FuzzReadSARIF(f *testing.F) {
	result := strings.ReplaceAll(fakeResult, "CODE", "a.c")
	f.Add([]byte(sarifOf("", result)))
	f.Add([]byte(sarifOf(`,"originalUriBaseIds":{"B":{"uri":"file:///source/x/"}},"artifacts":[{"location":{"uri":"y","uriBaseId":"B"}}]`, strings.Replace(result, `"uri":"a.c"`, `"index":0`, 1))))
	f.Add([]byte(sarifOf(`,"invocations":[{"executionSuccessful":true,"toolExecutionNotifications":[{"level":"note","message":{"text":"n"}}]}]`)))
	f.Add([]byte(sarifOf("", strings.Replace(result, "a.c", "file:///source/%2e%2e/a", 1))))
	f.Fuzz(func(t *testing.T, b []byte) {
		rep, err := readSARIF(b, "Fake", "/source")
		if err != nil {
			return
		}
		if !json.Valid(b) || !utf8.Valid(b) {
			t.Fatalf("accepted what is no JSON")
		}
		for _, h := range rep.Hits {
			if !fs.ValidPath(h.Path) || h.Path == "." || h.Line < 1 || strings.ContainsFunc(h.Message, unicode.IsControl) || h.Rule == "" {
				t.Fatalf("hit %+v", h)
			}
		}
	})
}

func TestUnifyText(t *testing.T) {
	for in, want := range map[string]string{
		"a\r\nb\rc\n":                         "a\nb\nc\n",
		"\xef\xbb\xbfint x;":                  "int x;",
		"caf\xe9":                             "café",
		"\xff\xfei\x00n\x00t\x00\r\x00\n\x00": "int\n",
		"\xfe\xff\x00i\x00n":                  "in",
		"":                                    "",
	} {
		if got := string(unifyText([]byte(in))); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}
