// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/hallmark-sc/hallmark"
)

// WriteJSON writes one object a row, in the form fixed for scripts:
// {"id":…,"state":…,"rule":…,"evidence":[…],"test":…}. The caveat is not among
// them: the command prints it on stderr.
func WriteJSON(w io.Writer, rows []Row) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for _, r := range rows {
		line := struct {
			ID       string            `json:"id"`
			State    State             `json:"state"`
			Rule     string            `json:"rule"`
			Evidence []hallmark.Digest `json:"evidence"`
			Test     string            `json:"test"`
		}{r.ID, r.State, r.Rule, r.Digests, r.Test()}
		if line.Evidence == nil {
			line.Evidence = []hallmark.Digest{} // an array for every reader, never null
		}
		if err := enc.Encode(line); err != nil {
			return fmt.Errorf("writing row %s: %w", r.ID, err)
		}
	}
	return nil
}

// textWidth is the column at which the text report wraps.
const textWidth = 100

// WriteText writes the report for a terminal: caveat, counts, and the rows
// under their headings.
func WriteText(w io.Writer, f Framework, rows []Row) error {
	bw := bufio.NewWriter(w) // keeps the first error for Flush
	fmt.Fprintf(bw, "%s: %d requirements\n\n", f.Title(), len(rows))
	wrap(bw, "", "", f.Caveat())
	fmt.Fprintln(bw)
	for _, c := range Summary(rows) {
		fmt.Fprintf(bw, "  %-16s %4d\n", c.State, c.N)
	}
	for _, g := range groups(rows) {
		fmt.Fprintf(bw, "\n%s (%d of %d satisfied)\n", g.Name, g.Satisfied, len(g.Rows))
		for _, r := range g.Rows {
			writeTextRow(bw, r)
		}
	}
	if err := bw.Flush(); err != nil {
		return fmt.Errorf("writing report: %w", err)
	}
	return nil
}

func writeTextRow(w io.Writer, r Row) {
	const indent = "          "
	fmt.Fprintf(w, "\n  %-7s %s%s\n", r.ID, r.State, forceNote(r))
	wrap(w, indent, indent, r.Text)
	for _, p := range r.details() {
		wrap(w, indent+p.Label+": ", indent+"  ", p.Text)
	}
}

func forceNote(r Row) string {
	if r.Force == "" || r.Force == "–" {
		return ""
	}
	return " (" + r.Force + ")"
}

// detail is one labelled line of a row.
type detail struct{ Label, Text string }

// details are what a row says beside its requirement and state, in the order
// the text and HTML reports print them.
func (r Row) details() []detail {
	digests := make([]string, len(r.Digests))
	for i, d := range r.Digests {
		digests[i] = d.String()
	}
	all := []detail{
		{"why", r.Why},
		{"rule", r.Rule},
		{"limit", r.Limit},
		{"evidence", strings.Join(digests, " ")},
		{"test", r.Test()},
		{"attacks", strings.Join(r.Attacks, ", ")},
		{"missing", r.Missing},
		{"reason", r.NotApplicable},
	}
	kept := all[:0]
	for _, d := range all {
		if d.Text != "" {
			kept = append(kept, d)
		}
	}
	return kept
}

// group is the rows under one heading.
type group struct {
	Name      string
	Satisfied int
	Rows      []Row
}

// groups splits rows at each change of heading; rows of a group follow one
// another in the tables.
func groups(rows []Row) []group {
	var gs []group
	for _, r := range rows {
		if len(gs) == 0 || gs[len(gs)-1].Name != r.Group {
			gs = append(gs, group{Name: r.Group})
		}
		g := &gs[len(gs)-1]
		g.Rows = append(g.Rows, r)
		if r.State == Satisfied {
			g.Satisfied++
		}
	}
	return gs
}

// wrap prints text in lines of at most textWidth columns, the first after
// first and the others after rest. A word that is longer stays whole.
func wrap(w io.Writer, first, rest, text string) {
	line, empty := first, true
	for _, word := range strings.Fields(text) {
		if !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > textWidth {
			fmt.Fprintln(w, line)
			line, empty = rest, true
		}
		if !empty {
			line += " "
		}
		line += word
		empty = false
	}
	fmt.Fprintln(w, line)
}
