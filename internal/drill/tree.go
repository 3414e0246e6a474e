// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// Leaf is one attack of the reference attack tree (F. Proulx, BoostSecurity, "SLSA
// dip — At the Source of the problem!"), in our words, with the cases that drill
// it. No cases: nobody drills it here, and Without says why.
type Leaf struct {
	Tree, Attack, Mitigation string
	Cases                    []string // "AT-NN x"
	Without                  string
}

// AttackTree is the reference attack tree.
func AttackTree() []Leaf {
	const (
		source  = "source"
		ci      = "CI"
		account = "accounts of a forge are not ours; a stolen token gives what its grants and scopes give"
	)
	return []Leaf{
		{source, "Compromise the account of a member", "two-factor authentication", []string{"AT-01 a", "AT-01 d", "AT-01 f", "AT-01 g", "AT-01 h"}, ""},
		{source, "Compromise an application of the forge", "install only what is needed and trusted", nil, account},
		{source, "Steal a key with write access", "keys under a passphrase", []string{"AT-01 b", "AT-01 c", "AT-01 j"}, ""},
		{source, "The target branch has no protection", "protection of branches", []string{"AT-01 a"}, ""},
		{source, "Forge a second valid identity", "one membership for each identity", []string{"AT-02 b"}, ""},
		{source, "Abuse the permission of the CI to approve", "take it away", []string{"AT-02 c", "AT-02 i"}, ""},
		{source, "Get enough false approvals", "review by two persons", []string{"AT-02 a", "AT-02 e", "AT-02 f", "AT-02 k", "AT-02 l"}, ""},
		{source, "Sneak bad code in after the approval", "dismiss stale approvals", []string{"AT-02 d"}, ""},
		{source, "Add evil commits to a good change and approve it oneself", "approval of the last push by somebody else", []string{"AT-02 g", "AT-02 h"}, ""},
		{source, "Go round the protection as an administrator", "hold administrators to it", []string{"AT-03 b", "AT-03 c", "AT-04 c"}, ""},
		{source, "Weaken a setting and restore it", "settings as code", []string{"AT-03 a", "AT-03 c", "AT-03 d"}, ""},
		{source, "Push a release tag to the remote", "protection of tags", []string{"AT-05 a", "AT-05 b", "AT-05 d", "AT-05 g", "AT-05 i", "AT-05 j"}, ""},
		{source, "Force a push, or delete a branch, to remove evidence", "protection of branches, settings as code", []string{"AT-04 a", "AT-04 b", "AT-04 d"}, ""},
		{source, "Fool the reviewer with a huge difference", "small changes, careful review", nil, "what a reviewer sees in a change is the reviewer's judgement"},
		{source, "Fool the reviewer with an evil dependency", "only trusted dependencies", nil, "intake of packages is not drilled yet (AT-21)"},
		{ci, "Injection through what an outsider writes", "static analysis of workflows", []string{"AT-07 a", "AT-09 a", "AT-09 b"}, ""},
		{ci, "Abuse of a job's token and secrets", "least privilege, no risky checkout", []string{"AT-08 a", "AT-08 g", "AT-08 n", "AT-10 c"}, ""},
		{ci, "Have a maintainer accept a change of the pipeline", "review by two persons, a list of allowed actions", []string{"AT-07 a", "AT-07 b", "AT-07 c"}, ""},
		{ci, "Poison the cache of builds", "no cache where it matters", []string{"AT-11 a", "AT-11 b", "AT-11 h"}, ""},
		{ci, "Take the secrets of a repository out", "secrets for named branches, no egress", []string{"AT-10 a", "AT-10 c", "AT-10 d"}, ""},
		{ci, "Secrets in logs", "mask them", []string{"AT-10 b"}, ""},
		{ci, "A workflow approves its own change", "limit the permissions of workflows", []string{"AT-02 c", "AT-02 i"}, ""},
		{ci, "Make a new repository to get at the organization's secrets", "limit the privileges of members", nil, "there are no secrets of an organization here: a build is given those that the policy names for its reference"},
		{ci, "Compromise the machine that runs builds", "a fresh machine for each build", []string{"AT-08 s", "AT-11 e", "AT-11 f", "AT-12 e"}, ""},
	}
}

// Ran is the result of one case: whether each of its runs was as it should be.
type Ran struct{ Runs, OK int }

// ReadResults reads what a drill printed with --json: by case, as "AT-NN x". Lines
// that are no result are refused.
func ReadResults(r io.Reader) (map[string]Ran, error) {
	out := map[string]Ran{}
	in := bufio.NewScanner(r)
	in.Buffer(nil, 1<<20)
	for n := 1; in.Scan(); n++ {
		var l struct {
			Drill   string `json:"drill"`
			Case    string `json:"case"`
			Control string `json:"control"`
			OK      *bool  `json:"ok"`
		}
		if err := json.Unmarshal(in.Bytes(), &l); err != nil || l.Drill == "" || l.Case == "" || l.OK == nil || l.Control != Off.String() && l.Control != On.String() {
			return nil, hallmark.Errorf(hallmark.KindInvalid, "line %d of the results is no result of a drill: want what hallmark drill --json prints", n)
		}
		c := out[l.Drill+" "+l.Case]
		c.Runs++
		if *l.OK {
			c.OK++
		}
		out[l.Drill+" "+l.Case] = c
	}
	if err := in.Err(); err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading the results: %w", err)
	}
	return out, nil
}

// TreeTable writes the reference attack tree as a Markdown table: attack, what the
// tree advises, the control here, its drill and, where results are given, how that
// ended. A leaf without a drill says so.
func TreeTable(w io.Writer, results map[string]Ran) error {
	var b strings.Builder
	head := []string{"attack", "the tree advises", "control here", "drill", "stopped with"}
	if results != nil {
		head = append(head, "result")
	}
	cases := Catalogue()
	tree := ""
	for _, l := range AttackTree() {
		if l.Tree != tree {
			tree = l.Tree
			fmt.Fprintf(&b, "\n## The tree of %s\n\n| %s |\n|%s\n", map[string]string{"source": "the source", "CI": "CI"}[tree], strings.Join(head, " | "), strings.Repeat("---|", len(head)))
		}
		var controls, names, stops []string
		for _, name := range l.Cases {
			i := slices.IndexFunc(cases, func(c Case) bool { return c.Attack+" "+c.Letter == name })
			if i < 0 {
				return hallmark.Errorf(hallmark.KindInternal, "attack tree: there is no case %s", name)
			}
			names = append(names, name)
			if !slices.Contains(controls, cases[i].Control) {
				controls = append(controls, cases[i].Control)
			}
			if code := "`" + string(cases[i].Stops) + "`"; !slices.Contains(stops, code) {
				stops = append(stops, code)
			}
		}
		row := []string{l.Attack, l.Mitigation, strings.Join(controls, "; "), strings.Join(names, ", "), strings.Join(stops, ", ")}
		if len(l.Cases) == 0 {
			row[2], row[3], row[4] = l.Without, "**none**", ""
		}
		if results != nil {
			row = append(row, resultOf(l, results))
		}
		fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
	}
	_, err := io.WriteString(w, strings.TrimPrefix(b.String(), "\n"))
	return err
}

// resultOf is how the cases of a leaf ended. What did not run, in both its runs,
// did not pass.
func resultOf(l Leaf, results map[string]Ran) string {
	if len(l.Cases) == 0 {
		return "not drilled"
	}
	var bad []string
	for _, name := range l.Cases {
		switch r := results[name]; {
		case r.Runs == 0:
			bad = append(bad, name+" not run")
		case r.Runs != 2 || r.OK != 2:
			bad = append(bad, name+" **not ok**")
		}
	}
	if len(bad) > 0 {
		return strings.Join(bad, ", ")
	}
	return "stopped, and succeeds without the control"
}
