// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

const rulesText = `rules:
  - name: release
    repositories: ["https://example.org/*", "file:///srv/**"]
    refs: [refs/heads/main, refs/tags/v*]
    requesters: [operator, "uid:1000"]
    platforms: [{builder: "https://hallmark-sc.github.io/builders/local", image: host}]
    tools: {inventory: recorded, builtPrograms: deny}
    parameters:
      MODE: {values: [debug, release]}
      VERSION: {pattern: "v[0-9]+"}
  - name: any-commit
    repositories: [https://example.org/app]
    refs: ["**"]
    requesters: ["ssh:alice@example.org"]
    platforms: [{builder: "https://hallmark-sc.github.io/builders/local", image: host}]
    tools: {inventory: recorded, builtPrograms: allow}
`

func TestPermit(t *testing.T) {
	rules, err := ParseBuildRules("b.yaml", []byte(rulesText), nil)
	if err != nil {
		t.Fatal(err)
	}
	good := BuildRequest{Repository: "https://example.org/app", Ref: "refs/tags/v1", Requesters: []string{"uid:5", "operator"}, Builder: intoto.BuilderLocal, Image: "host", Parameters: map[string]string{"MODE": "debug", "VERSION": "v12"}}
	for name, c := range map[string]struct {
		edit  func(*BuildRequest)
		code  hallmark.Code // "": permitted
		rule  string        // that permits or is nearest
		field string
	}{
		"as it is":            {func(*BuildRequest) {}, "", "release", ""},
		"the other rule":      {func(q *BuildRequest) { q.Ref, q.Requesters, q.Parameters = "", []string{"ssh:alice@example.org"}, nil }, "", "any-commit", ""},
		"deep":                {func(q *BuildRequest) { q.Repository = "file:///srv/a/b/c" }, "", "release", ""},
		"a fork":              {func(q *BuildRequest) { q.Repository = "https://example.org/evil/app" }, hallmark.CodeBuildNotPermitted, "release", "repositories"},
		"a longer name":       {func(q *BuildRequest) { q.Repository = "xhttps://example.org/app" }, hallmark.CodeBuildNotPermitted, "release", "repositories"},
		"a branch":            {func(q *BuildRequest) { q.Ref = "refs/heads/main2" }, hallmark.CodeBuildRequester, "any-commit", "requesters"},
		"a branch like a tag": {func(q *BuildRequest) { q.Ref, q.Repository = "refs/tags/v1/x", "https://example.org/b" }, hallmark.CodeBuildNotPermitted, "release", "refs"},
		"a line break":        {func(q *BuildRequest) { q.Ref, q.Repository = "refs/heads/main\nx", "https://example.org/b" }, hallmark.CodeBuildNotPermitted, "release", "refs"},
		"no ref":              {func(q *BuildRequest) { q.Ref, q.Repository = "", "https://example.org/b" }, hallmark.CodeBuildNotPermitted, "release", "refs"},
		"nobody":              {func(q *BuildRequest) { q.Requesters = nil }, hallmark.CodeBuildRequester, "release", "requesters"},
		"somebody":            {func(q *BuildRequest) { q.Requesters = []string{"uid:100"} }, hallmark.CodeBuildRequester, "release", "requesters"},
		"elsewhere":           {func(q *BuildRequest) { q.Image = "" }, hallmark.CodeBuildPlatform, "release", "platforms"},
		"another builder":     {func(q *BuildRequest) { q.Builder += "x" }, hallmark.CodeBuildPlatform, "release", "platforms"},
		"unknown":             {func(q *BuildRequest) { q.Parameters = map[string]string{"mode": "debug"} }, hallmark.CodeBuildParameter, "release", "parameters"},
		"out of range":        {func(q *BuildRequest) { q.Parameters = map[string]string{"MODE": "debug "} }, hallmark.CodeBuildParameter, "release", "parameters.MODE"},
		"more than it":        {func(q *BuildRequest) { q.Parameters = map[string]string{"VERSION": "v1x"} }, hallmark.CodeBuildParameter, "release", "parameters.VERSION"},
		"two lines":           {func(q *BuildRequest) { q.Parameters = map[string]string{"VERSION": "v1\nv2"} }, hallmark.CodeBuildParameter, "release", "parameters.VERSION"},
	} {
		q := good
		c.edit(&q)
		r, reason := rules.Permit(q)
		switch {
		case c.code == "" && (reason != nil || r.Name != c.rule):
			t.Errorf("%s: %s, %+v", name, r.Name, reason)
		case c.code != "" && (reason == nil || reason.Code != c.code || reason.Nearest != "rule "+c.rule || reason.Field != c.field || !strings.Contains(reason.Fix, "policy set --build")):
			t.Errorf("%s: %+v", name, reason)
		}
	}
	for _, none := range []*BuildRules{nil, {}} {
		if _, reason := none.Permit(good); reason == nil || reason.Code != hallmark.CodeBuildPolicyMissing {
			t.Errorf("no rules: %+v", reason)
		}
	}
}

// TestParseBuildRulesRefuses: every error names the file and the field or line.
func TestParseBuildRulesRefuses(t *testing.T) {
	edit := func(from, to string) string {
		out := strings.Replace(rulesText, from, to, 1)
		if out == rulesText {
			t.Fatalf("no %q", from)
		}
		return out
	}
	for name, c := range map[string]struct{ text, want string }{
		"empty":              {"", "b.yaml: the file is empty"},
		"two documents":      {rulesText + "---\nrules: []\n", "b.yaml: more than one"},
		"unknown field":      {edit("    refs:", "    branches:"), "b.yaml: line 4: field branches not found"},
		"doubled field":      {edit("    refs:", "    name: x\n    refs:"), "b.yaml: line 4: mapping key"},
		"no rule":            {"rules: []\n", "b.yaml: rules: "},
		"name":               {edit("name: release", "name: a b"), "rules[0].name"},
		"doubled name":       {edit("name: any-commit", "name: release"), "rules[1].name"},
		"no refs":            {edit("    refs: [refs/heads/main, refs/tags/v*]\n", ""), "rules[0] (release): refs: "},
		"empty pattern":      {edit("refs/heads/main,", `"",`), "refs[0]: "},
		"three stars":        {edit("https://example.org/*", "https://***"), "repositories[0]: "},
		"doubled":            {edit("refs/tags/v*]", "refs/heads/main]"), "refs[1]: "},
		"requester":          {edit("[operator,", "[root,"), "requesters[0]: "},
		"uid":                {edit("uid:1000", "uid:01"), "requesters[1]: "},
		"any requester":      {edit("ssh:alice@example.org", "ssh:*"), "requesters[0]: "},
		"image":              {edit("image: host", "image: debian"), "platforms[0].image: "},
		"builder":            {edit(`builder: "https://hallmark-sc.github.io/builders/local"`, `builder: ""`), "platforms[0].builder: "},
		"inventory":          {edit("inventory: recorded", "inventory: mine"), "tools.inventory: "},
		"no tools":           {edit("    tools: {inventory: recorded, builtPrograms: deny}\n", ""), "tools.inventory: "},
		"built programs":     {edit(", builtPrograms: deny", ""), "tools.builtPrograms: "},
		"digests of nothing": {edit("inventory: recorded,", `inventory: recorded, digests: ["sha256:0000000000000000000000000000000000000000000000000000000000000000"],`), "tools.digests: "},
		"parameter name":     {edit("MODE:", "mode:"), "parameters: "},
		"both":               {edit("VERSION: {", "VERSION: {values: [a], "), "parameters.VERSION: "},
		"pattern":            {edit("v[0-9]+", "v[0-9"), "parameters.VERSION: pattern: "},
		"digest":             {"inventories: {a: x}\n" + rulesText, "inventories.a: "},
		"reserved":           {"inventories: {recorded: \"sha256:0000000000000000000000000000000000000000000000000000000000000000\"}\n" + rulesText, "inventories: "},
	} {
		_, err := ParseBuildRules("b.yaml", []byte(c.text), nil)
		if err == nil || !strings.HasPrefix(err.Error(), "b.yaml: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

// FuzzParseBuildRules: what is accepted is written and read again as the same,
// also as a part of the signed document.
func FuzzParseBuildRules(f *testing.F) {
	f.Add([]byte(rulesText))
	f.Add([]byte(`{"rules": [{"name": "x"}]}`))
	f.Add([]byte("rules: &a [*a]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		rules, err := ParseBuildRules("b.yaml", b, nil)
		if err != nil {
			return
		}
		text, err := rules.YAML()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseBuildRules("again", text, nil)
		if err != nil || !cmp.Equal(rules, again) {
			t.Fatalf("%v\n%s", err, cmp.Diff(rules, again))
		}
		d := Default(Options{IssuedOn: clock})
		d.Build = rules
		raw, err := d.Encode()
		if err != nil {
			t.Fatal(err)
		}
		read, err := ParseDocument(raw)
		if err != nil {
			t.Fatalf("%v\n%s", err, raw)
		}
		if out, err := read.Encode(); err != nil || !bytes.Equal(out, raw) {
			t.Fatalf("%v\n%s\n%s", err, raw, out)
		}
		rules.Permit(BuildRequest{Repository: "r", Parameters: map[string]string{"A": "b"}})
	})
}
