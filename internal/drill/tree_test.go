// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
)

// TestAttackTree: docs/attack-tree.md is what the catalogue says. A leaf has cases
// or says why not.
func TestAttackTree(t *testing.T) {
	var b strings.Builder
	if err := TreeTable(&b, nil); err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../docs/attack-tree.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(doc), "<!-- generated: hallmark drill --table -->\n\n")
	if diff := cmp.Diff(b.String(), table); diff != "" {
		t.Errorf("docs/attack-tree.md: put there what hallmark drill --table prints\n%s", diff)
	}
	for _, l := range AttackTree() {
		if (len(l.Cases) == 0) != (l.Without != "") {
			t.Errorf("%s: want cases, or why there are none", l.Attack)
		}
	}
}

func TestResults(t *testing.T) {
	var lines strings.Builder
	for _, c := range []string{"AT-02 c", "AT-02 i", "AT-02 d"} {
		for _, control := range []string{"off", "on"} {
			ok := "true"
			if c == "AT-02 d" && control == "on" {
				ok = "false"
			}
			attack, letter, _ := strings.Cut(c, " ")
			lines.WriteString(`{"drill":"` + attack + `","case":"` + letter + `","control":"` + control + `","outcome":"stopped","reason":"","ok":` + ok + "}\n")
		}
	}
	results, err := ReadResults(strings.NewReader(lines.String()))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := TreeTable(&b, results); err != nil {
		t.Fatal(err)
	}
	for attack, want := range map[string]string{
		"A workflow approves its own change":       "| stopped, and succeeds without the control |",
		"Sneak bad code in after the approval":     "| AT-02 d **not ok** |",
		"Poison the cache of builds":               "AT-11 a not run",
		"Fool the reviewer with a huge difference": "| **none** |  | not drilled |",
		"Get enough false approvals":               "AT-02 k not run",
	} {
		_, rest, _ := strings.Cut(b.String(), "| "+attack+" |")
		if row, _, _ := strings.Cut(rest, "\n"); !strings.Contains(row, want) {
			t.Errorf("%s: %s", attack, row)
		}
	}
	for _, bad := range []string{"{}\n", "no\n", `{"drill":"AT-02","case":"c","control":"maybe","ok":true}`, `{"drill":"AT-02","case":"c","control":"on"}`} {
		if _, err := ReadResults(strings.NewReader(bad)); hallmark.KindOf(err) != hallmark.KindInvalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
	// Half of a case is none.
	if half, err := ReadResults(strings.NewReader(`{"drill":"AT-02","case":"d","control":"on","ok":true}`)); err != nil || resultOf(Leaf{Cases: []string{"AT-02 d"}}, half) != "AT-02 d **not ok**" {
		t.Errorf("%v, %v", half, err)
	}
}
