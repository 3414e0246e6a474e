// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sast

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits on a SARIF file.
const (
	maxSARIF   = 64 << 20 // bytes
	maxDepth   = 64
	maxRuns    = 16
	maxResults = 100_000
	maxMessage = 1000 // characters of a message that are kept
)

// sarifLog is the part of a SARIF 2.1.0 file that is read. What a tool says more
// is its own affair; what it says here must be whole.
type sarifLog struct {
	Version            string            `json:"version"`
	Runs               []sarifRun        `json:"runs"`
	ExternalProperties []json.RawMessage `json:"inlineExternalProperties"`
}

type sarifRun struct {
	Tool struct {
		Driver     sarifComponent   `json:"driver"`
		Extensions []sarifComponent `json:"extensions"`
	} `json:"tool"`
	Invocations []sarifInvocation          `json:"invocations"`
	Artifacts   []struct{ Location place } `json:"artifacts"`
	Bases       map[string]place           `json:"originalUriBaseIds"`
	Results     *[]sarifResult             `json:"results"`
	External    map[string]json.RawMessage `json:"externalPropertyFileReferences"`
}

type sarifComponent struct {
	Name    string      `json:"name"`
	Version string      `json:"version"`
	Rules   []sarifRule `json:"rules"`
}

type sarifRule struct {
	ID      string `json:"id"`
	Default struct {
		Level string `json:"level"`
	} `json:"defaultConfiguration"`
	Relationships []struct {
		Target struct {
			ID        string `json:"id"`
			Component struct {
				Name string `json:"name"`
			} `json:"toolComponent"`
		} `json:"target"`
		Kinds []string `json:"kinds"`
	} `json:"relationships"`
	Properties struct {
		Tags []string `json:"tags"`
	} `json:"properties"`
}

type sarifInvocation struct {
	Successful    *bool               `json:"executionSuccessful"`
	Execution     []sarifNotification `json:"toolExecutionNotifications"`
	Configuration []sarifNotification `json:"toolConfigurationNotifications"`
}

type sarifNotification struct {
	Level   string `json:"level"`
	Message struct {
		Text string `json:"text"`
	} `json:"message"`
}

type sarifResult struct {
	RuleID    string `json:"ruleId"`
	RuleIndex *int   `json:"ruleIndex"`
	Rule      struct {
		ID    string `json:"id"`
		Index *int   `json:"index"`
	} `json:"rule"`
	Kind    string `json:"kind"`
	Level   string `json:"level"`
	Message struct {
		Text string `json:"text"`
	} `json:"message"`
	Locations []struct {
		Physical struct {
			Artifact place `json:"artifactLocation"`
			Region   struct {
				StartLine   int `json:"startLine"`
				StartColumn int `json:"startColumn"`
			} `json:"region"`
		} `json:"physicalLocation"`
	} `json:"locations"`
	Rank *float64 `json:"rank"`
}

// place is an artifactLocation.
type place struct {
	URI   string `json:"uri"`
	Base  string `json:"uriBaseId"`
	Index *int   `json:"index"`
}

// hit is one result of a tool, with its place below the root.
type hit struct {
	Rule, Level, Message, CWE, Path string
	Line, Column                    int
	Rank                            float64 // -1 when the tool gave none
}

// report is what a SARIF file says.
type report struct {
	Version string // of the tool, by its own words
	Hits    []hit
}

// readSARIF reads the output of a tool that was shown a tree at root. Anything
// that makes the results incomplete is an error: absent or null results, a run
// that was not successful, a notification of level error, properties kept in
// another file. Suppressions and baselines that the tool applied are not
// honoured: a result is a result.
func readSARIF(b []byte, tool, root string) (report, error) {
	var rep report
	if len(b) > maxSARIF {
		return rep, fmt.Errorf("%d bytes: the limit is %d", len(b), maxSARIF)
	}
	if err := checkJSON(b); err != nil {
		return rep, err
	}
	var l sarifLog
	if err := json.Unmarshal(b, &l); err != nil {
		return rep, err
	}
	switch {
	case l.Version != "2.1.0":
		return rep, fmt.Errorf("version %.20q: want 2.1.0", l.Version)
	case len(l.Runs) == 0 || len(l.Runs) > maxRuns:
		return rep, fmt.Errorf("%d runs: want 1 to %d", len(l.Runs), maxRuns)
	case len(l.ExternalProperties) > 0:
		return rep, errors.New("inline external properties are not read")
	}
	for i, run := range l.Runs {
		if err := run.complete(tool); err != nil {
			return rep, fmt.Errorf("run %d: %w", i, err)
		}
		rep.Version = run.Tool.Driver.Version
		if len(rep.Hits)+len(*run.Results) > maxResults {
			return rep, fmt.Errorf("more than %d results", maxResults)
		}
		for j, r := range *run.Results {
			switch r.Kind {
			case "pass", "notApplicable", "informational":
				continue
			case "", "fail", "open", "review":
			default:
				return rep, fmt.Errorf("result %d: kind %.40q", j, r.Kind)
			}
			h, err := run.hit(r, root)
			if err != nil {
				return rep, fmt.Errorf("result %d: %w", j, err)
			}
			rep.Hits = append(rep.Hits, h)
		}
	}
	return rep, nil
}

// complete says why a run did not do all of its work.
func (run *sarifRun) complete(tool string) error {
	if run.Tool.Driver.Name != tool {
		return fmt.Errorf("by the tool %.40q: want %s", run.Tool.Driver.Name, tool)
	}
	if v := run.Tool.Driver.Version; len(v) > 64 || strings.ContainsFunc(v, unicode.IsControl) {
		return fmt.Errorf("version of the tool %.40q", v)
	}
	if run.Results == nil {
		return errors.New("results is null or absent: the tool did not finish")
	}
	for kind := range run.External {
		// A taxonomy names weaknesses; everything else could hold results, rules or
		// notifications that we would not see.
		if kind != "taxonomies" && kind != "translations" {
			return fmt.Errorf("%.40s are in another file, which is not read", kind)
		}
	}
	for _, in := range run.Invocations {
		if in.Successful == nil || !*in.Successful {
			return errors.New("the tool says that its execution was not successful")
		}
		for _, n := range slices.Concat(in.Execution, in.Configuration) {
			switch n.Level {
			case "error":
				return fmt.Errorf("the tool reports an error: %s", plain(n.Message.Text))
			case "", "none", "note", "warning":
			default:
				return fmt.Errorf("notification of level %.40q", n.Level)
			}
		}
	}
	return nil
}

func (run *sarifRun) hit(r sarifResult, root string) (hit, error) {
	rule, err := run.rule(r)
	if err != nil {
		return hit{}, err
	}
	h := hit{Rule: rule.ID, Level: r.Level, Message: plain(r.Message.Text), CWE: rule.cwe(), Rank: -1}
	if h.Level == "" {
		h.Level = rule.Default.Level
	}
	switch h.Level {
	case "":
		h.Level = "warning"
	case "none", "note", "warning", "error":
	default:
		return hit{}, fmt.Errorf("level %.40q", h.Level)
	}
	if r.Rank != nil {
		if *r.Rank < 0 || *r.Rank > 100 {
			return hit{}, fmt.Errorf("rank %v", *r.Rank)
		}
		h.Rank = *r.Rank
	}
	if len(r.Locations) == 0 {
		return hit{}, errors.New("no location")
	}
	at := r.Locations[0].Physical
	h.Line, h.Column = at.Region.StartLine, at.Region.StartColumn
	if h.Line < 1 || h.Column < 0 {
		return hit{}, fmt.Errorf("line %d, column %d", h.Line, h.Column)
	}
	h.Path, err = run.path(at.Artifact, root)
	return h, err
}

var ruleName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,199}$`)

// rule finds the rule of a result; a result of a rule that the file does not
// describe has only its name.
func (run *sarifRun) rule(r sarifResult) (sarifRule, error) {
	id, index := r.RuleID, r.RuleIndex
	if id == "" {
		id = r.Rule.ID
	}
	if index == nil {
		index = r.Rule.Index
	}
	rules := run.Tool.Driver.Rules
	found := sarifRule{ID: id}
	switch {
	case index != nil && *index >= 0 && *index < len(rules) && (id == "" || rules[*index].ID == id):
		found = rules[*index]
	case id != "":
		for _, c := range append([]sarifComponent{run.Tool.Driver}, run.Tool.Extensions...) {
			if i := slices.IndexFunc(c.Rules, func(r sarifRule) bool { return r.ID == id }); i >= 0 {
				found = c.Rules[i]
				break
			}
		}
	}
	if !ruleName.MatchString(found.ID) {
		return found, fmt.Errorf("rule %.80q", found.ID)
	}
	return found, nil
}

var cweName = regexp.MustCompile(`(?i)^(?:external/cwe/)?cwe-0*([1-9][0-9]{0,5})$`)

// cwe is the first weakness that a rule is about, "" when it names none.
func (r sarifRule) cwe() string {
	for _, rel := range r.Relationships {
		m := cweName.FindStringSubmatch(rel.Target.ID)
		if m != nil && strings.EqualFold(rel.Target.Component.Name, "CWE") && !slices.Contains(rel.Kinds, "incomparable") {
			return "CWE-" + m[1]
		}
	}
	for _, tag := range r.Properties.Tags {
		if m := cweName.FindStringSubmatch(tag); m != nil {
			return "CWE-" + m[1]
		}
	}
	return ""
}

// path resolves a location to a path below root.
func (run *sarifRun) path(p place, root string) (string, error) {
	if p.URI == "" && p.Index != nil {
		if *p.Index < 0 || *p.Index >= len(run.Artifacts) {
			return "", fmt.Errorf("artifact %d of %d", *p.Index, len(run.Artifacts))
		}
		p = run.Artifacts[*p.Index].Location
	}
	base, below := root, ""
	for range 8 { // bases may rest on bases
		b, ok := run.Bases[p.Base]
		if p.Base == "" || !ok || b.URI == "" {
			break
		}
		dir, err := localPath(b.URI)
		if err != nil {
			return "", fmt.Errorf("base %.40q: %w", p.Base, err)
		}
		if path.IsAbs(dir) {
			base = dir
			break
		}
		below, p.Base = path.Join(dir, below), b.Base
	}
	file, err := localPath(p.URI)
	if err != nil {
		return "", err
	}
	if !path.IsAbs(file) {
		file = path.Join(base, below, file)
	}
	rel, ok := strings.CutPrefix(path.Clean(file), root+"/")
	if !ok || rel == "" {
		return "", fmt.Errorf("location %.200q is outside the tree", p.URI)
	}
	return rel, nil
}

// localPath returns the path of a relative or file: URI. Only paths that climb
// nowhere, on no other host, are taken.
func localPath(raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return "", fmt.Errorf("location %.200q is no URI", raw)
	}
	switch {
	case u.Scheme != "" && u.Scheme != "file", u.Opaque != "", u.Host != "" && u.Host != "localhost", u.User != nil, u.RawQuery != "", u.ForceQuery, u.Fragment != "":
		return "", fmt.Errorf("location %.200q is not a file", raw)
	case u.Path == "" || strings.ContainsAny(u.Path, "\\\x00") || slices.Contains(strings.Split(u.Path, "/"), ".."):
		return "", fmt.Errorf("location %.200q is not a path below the tree", raw)
	}
	return u.Path, nil
}

// plain is text of a tool for people: one line, no control characters, not long.
func plain(s string) string {
	s = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || !unicode.IsGraphic(r) {
			return ' '
		}
		return r
	}, s)), " ")
	if utf8.RuneCountInString(s) > maxMessage {
		s = string([]rune(s)[:maxMessage]) + "…"
	}
	return s
}

// checkJSON accepts one JSON value that reads one way only: no key twice in an
// object, also not in another case, no depth beyond the limit, nothing after it.
func checkJSON(b []byte) error {
	if !utf8.Valid(b) {
		return errors.New("not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	type level struct {
		keys  map[string]bool // nil for an array
		value bool            // a value comes next, not a key
	}
	var stack []level
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return errors.New("the document is not complete")
		}
		if err != nil {
			return err
		}
		top := len(stack) - 1
		switch d, _ := tok.(json.Delim); {
		case d == '}' || d == ']':
			stack = stack[:top]
		case d == '{' || d == '[':
			if top >= 0 {
				stack[top].value = false
			}
			if len(stack) == maxDepth {
				return fmt.Errorf("nested more than %d deep", maxDepth)
			}
			l := level{}
			if d == '{' {
				l.keys = map[string]bool{}
			}
			stack = append(stack, l)
		case top >= 0 && stack[top].keys != nil && !stack[top].value:
			key := strings.ToLower(strings.ToUpper(tok.(string)))
			if stack[top].keys[key] {
				return fmt.Errorf("key %.80q stands twice", tok)
			}
			stack[top].keys[key], stack[top].value = true, true
		case top >= 0:
			stack[top].value = false
		}
		if len(stack) == 0 {
			break
		}
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the document")
	}
	return nil
}
