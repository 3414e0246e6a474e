// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bufio"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"
)

//go:embed report.gohtml
var reportTemplate string

// page is what report.gohtml reads.
type page struct {
	Title, Name, Caveat string
	Total               int
	Counts              []Count
	Groups              []group
}

// WriteHTML writes the report as one HTML file that needs nothing else: no
// script, no font, no image, no network.
func WriteHTML(w io.Writer, f Framework, rows []Row) error {
	t, err := template.New("report").Funcs(template.FuncMap{
		"class":   func(s State) string { return strings.ReplaceAll(s.String(), " ", "-") },
		"details": Row.details,
	}).Parse(reportTemplate)
	if err != nil {
		return fmt.Errorf("parsing report template: %w", err)
	}
	bw := bufio.NewWriter(w)
	p := page{
		Title: f.Title(), Name: f.String(), Caveat: f.Caveat(),
		Total: len(rows), Counts: Summary(rows), Groups: groups(rows),
	}
	if err := t.Execute(bw, p); err != nil {
		return fmt.Errorf("writing report: %w", err)
	}
	if err := bw.Flush(); err != nil {
		return fmt.Errorf("writing report: %w", err)
	}
	return nil
}
