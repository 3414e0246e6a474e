// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const root = "../.."

// The tables have the rows they should, each in exactly one of three shapes.
func TestTables(t *testing.T) {
	for f, want := range map[Framework]int{NIST800204D: 125, SLSA12: 59, SSDF11: 42} {
		seen := map[string]bool{}
		heading := map[string]int{}
		for i, r := range Requirements(f) {
			if seen[r.ID] {
				t.Errorf("%s stands twice", r.ID)
			}
			seen[r.ID] = true
			shapes := 0
			for _, s := range []string{r.Rule, r.Missing, r.NotApplicable} {
				if s != "" {
					shapes++
				}
			}
			if shapes != 1 || r.Text == "" || r.Group == "" {
				t.Errorf("%s: want text, group and one of rule, missing, not applicable", r.ID)
			}
			if backed := len(r.Evidence) > 0 && len(r.Tests) > 0; (r.Rule != "") != backed {
				t.Errorf("%s: a rule needs evidence and a test, and only a rule has them", r.ID)
			}
			if last, ok := heading[r.Group]; ok && last != i-1 {
				t.Errorf("%s: group %q is split", r.ID, r.Group)
			}
			heading[r.Group] = i
		}
		if len(seen) != want {
			t.Errorf("%s has %d rows, want %d", f, len(seen), want)
		}
	}
}

// Rows about two persons, or about who owns the builder, can't be satisfied by
// one person on their own machine, now or once they are implemented.
func TestGuardedRows(t *testing.T) {
	rows := map[string]Requirement{}
	for _, f := range Frameworks() {
		for _, r := range Requirements(f) {
			rows[r.ID] = r
		}
	}
	for _, id := range strings.Fields("N009 N017 N026 N075 N086 S16 S22 S23 S24 S25 V11") {
		if !rows[id].TwoPersons {
			t.Errorf("%s is not marked as a row about two persons", id)
		}
	}
	for _, id := range strings.Fields("N005 N051 N058 B06 B08") {
		if !rows[id].Hosted {
			t.Errorf("%s is not marked as a row about a hosted builder", id)
		}
	}
}

// specRows reads a table of the specification: id and the columns that stand in
// the code too.
func specRows(t *testing.T, name string) [][]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "..", "shared", "spec", name))
	if os.IsNotExist(err) {
		t.Skipf("no specification tables beside the project: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	var rows [][]string
	for _, line := range strings.Split(strings.TrimRight(string(b), "\n"), "\n")[1:] {
		cols := append(strings.Split(line, "\t"), "")
		rows = append(rows, cols[:6])
	}
	return rows
}

func TestSpecification(t *testing.T) {
	var want, got [][]string
	for _, c := range specRows(t, "nist-800-204d.tsv") {
		want = append(want, []string{c[0], c[1], c[2], c[4], c[5]})
	}
	for _, r := range Requirements(NIST800204D) {
		got = append(got, []string{r.ID, r.Section, r.Force, r.Text, strings.Join(r.Attacks, ", ")})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("SP 800-204D rows differ from the specification (-want +got):\n%s", diff)
	}
	want, got = nil, nil
	want = append(want, specRows(t, "slsa-1.2.tsv")...)
	for _, r := range Requirements(SLSA12) {
		got = append(got, []string{r.ID, r.Section, r.Who, r.Force, r.Text, strings.Join(r.Attacks, ", ")})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("SLSA rows differ from the specification (-want +got):\n%s", diff)
	}
}

// Every test that a row names exists.
func TestNamedTestsExist(t *testing.T) {
	scripts := filepath.Join(root, "cmd", "hallmark", "testdata", "script")
	for _, ref := range Tests() {
		switch {
		case ref.Script != "":
			if _, err := os.Stat(filepath.Join(scripts, ref.Script+".txtar")); err != nil {
				t.Errorf("rows %v name a script that is not there: %v", ref.Rows, err)
			}
		case ref.Func != "":
			if !hasTest(t, filepath.Join(root, filepath.FromSlash(ref.Package)), ref.Func) {
				t.Errorf("rows %v name the test %s, which is not there", ref.Rows, ref.Ref)
			}
		default:
			t.Errorf("rows %v name %q, which is neither a script nor a test", ref.Rows, ref.Ref)
		}
	}
}

func hasTest(t *testing.T, dir, name string) bool {
	t.Helper()
	files, err := fs.Glob(os.DirFS(dir), "*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("\nfunc "+name+"(")) {
			return true
		}
	}
	return false
}

func TestJSONForm(t *testing.T) {
	var buf bytes.Buffer
	for _, ev := range []Evidence{{}, full("single-operator", serverBuilder)} {
		buf.Reset()
		if err := WriteJSON(&buf, Evaluate(NIST800204D, ev)); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(buf.String(), "\n"), "\n")
		if len(lines) != 125 {
			t.Fatalf("%d lines", len(lines))
		}
		form := regexp.MustCompile(`^\{"id":"N\d{3}","state":"(satisfied|not satisfied|not implemented|not applicable|no evidence)",` +
			`"rule":".*","evidence":\[("sha256:[0-9a-f]{64}",?)*\],"test":"[^"]*"\}$`)
		for _, l := range lines {
			if !form.MatchString(l) || !json.Valid([]byte(l)) {
				t.Errorf("bad line %s", l)
			}
		}
	}
}

func TestTextAndHTML(t *testing.T) {
	for _, f := range Frameworks() {
		rows := Evaluate(f, full("single-operator", serverBuilder))
		rows[0].Why = `<script>alert(1)</script>`
		var text, html bytes.Buffer
		if err := WriteText(&text, f, rows); err != nil {
			t.Fatal(err)
		}
		if err := WriteHTML(&html, f, rows); err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			if !strings.Contains(text.String(), "\n  "+r.ID+" ") || !strings.Contains(html.String(), `id="`+r.ID+`"`) {
				t.Errorf("%s is not in the reports", r.ID)
			}
		}
		for name, out := range map[string]string{"text": text.String(), "html": html.String()} {
			flat := strings.Join(strings.Fields(out), " ")
			if !strings.Contains(flat, "secondary texts of SP 800-204D and must be compared with the standard before any claim of conformance") {
				t.Errorf("%s of %s lacks the caveat", name, f)
			}
		}
		if s := html.String(); strings.Contains(s, "<script") || strings.Contains(s, "src=") || strings.Contains(s, "http://") {
			t.Errorf("the HTML of %s is not self-contained", f)
		}
	}
}

func TestParseFramework(t *testing.T) {
	for _, f := range Frameworks() {
		if got, err := ParseFramework(f.String()); err != nil || got != f {
			t.Errorf("ParseFramework(%q) = %v, %v", f, got, err)
		}
	}
	for _, s := range []string{"", "unset", "cis"} {
		if _, err := ParseFramework(s); err == nil {
			t.Errorf("%q was taken for a framework", s)
		}
	}
}

func TestSummaryCountsEveryRow(t *testing.T) {
	n := 0
	counts := Summary(Evaluate(NIST800204D, full("single-operator", serverBuilder)))
	for _, c := range counts {
		n += c.N
	}
	if n != 125 || !slices.IsSortedFunc(counts, func(a, b Count) int { return int(a.State - b.State) }) {
		t.Errorf("summary %v", counts)
	}
}

// Every test that a row names passed in this very run of all tests: a test that
// was skipped or renamed proves nothing. $HALLMARK_TEST_EVENTS is what
// go test -json wrote; scripts/test sets it after the tests have run.
func TestNamedTestsRan(t *testing.T) {
	file := os.Getenv("HALLMARK_TEST_EVENTS")
	if file == "" {
		t.Skip("HALLMARK_TEST_EVENTS names no record of tests: scripts/test has one")
	}
	passed := passedTests(t, file)
	const module = "github.com/hallmark-sc/hallmark/"
	for _, ref := range Tests() {
		name := module + ref.Package + "." + ref.Func
		if ref.Script != "" {
			name = module + "cmd/hallmark.TestScript/" + ref.Script
		}
		if !passed[name] {
			t.Errorf("rows %v rest on %s, which did not run to a pass", ref.Rows, ref.Ref)
		}
	}
}

// passedTests reads the events of go test -json.
func passedTests(t *testing.T, file string) map[string]bool {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	passed := map[string]bool{}
	for dec := json.NewDecoder(f); dec.More(); {
		var e struct{ Action, Package, Test string }
		if err := dec.Decode(&e); err != nil {
			t.Fatalf("reading %s: %v", file, err)
		}
		if e.Test != "" && e.Action == "pass" {
			passed[e.Package+"."+e.Test] = true
		}
	}
	return passed
}
