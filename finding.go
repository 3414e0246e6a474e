// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package hallmark

import "time"

// Finding is one thing a scanner saw. It never contains a secret: Message and
// Snippet are redacted before they leave the scanner.
type Finding struct {
	Check       string     `json:"check"` // secrets, sast, sca, …
	Tool        string     `json:"tool"`
	Rule        string     `json:"rule"`
	Severity    Severity   `json:"severity"`
	Confidence  Confidence `json:"confidence"`
	Message     string     `json:"message"`
	Path        string     `json:"path,omitempty"` // slash-separated, relative to the revision's root
	Line        int        `json:"line,omitempty"` // from 1
	Column      int        `json:"column,omitempty"`
	Commit      string     `json:"commit,omitempty"`    // first commit that carries it, for history scans
	Object      string     `json:"object,omitempty"`    // git object name of the blob or message
	Component   string     `json:"component,omitempty"` // purl, for dependencies
	Aliases     []string   `json:"aliases,omitempty"`   // other names of the same advisory
	FixedIn     string     `json:"fixedIn,omitempty"`
	CWE         string     `json:"cwe,omitempty"`
	Fingerprint string     `json:"fingerprint"` // stable across runs; opaque
}

// Count is a number of findings of one severity and confidence.
type Count struct {
	Severity   Severity   `json:"severity"`
	Confidence Confidence `json:"confidence"`
	Count      int        `json:"count"`
}

// DataSource is rule or advisory data a check worked from.
type DataSource struct {
	Name    string    `json:"name"` // osv:Go, gitleaks-rules, …
	Digest  Digest    `json:"digest"`
	Newest  time.Time `json:"newest,omitzero"` // newest record by the data's own dates
	Records int       `json:"records,omitempty"`
}

// Coverage says what a check looked at and what it had to leave out. A check
// with anything in Missed can't pass.
type Coverage struct {
	Scanned    int            `json:"scanned"` // objects, files or components read
	Bytes      int64          `json:"bytes,omitempty"`
	Missed     []string       `json:"missed,omitempty"`     // what should have been read and was not, and why
	Languages  map[string]int `json:"languages,omitempty"`  // files by language
	Ecosystems map[string]int `json:"ecosystems,omitempty"` // components by ecosystem
}

// CheckRecord is what one check did, as the control plane saw it. It stands in
// the signed statement of the check under intoto.ExtensionCheck and is what
// policy reads.
type CheckRecord struct {
	Check      string       `json:"check"` // source, secrets, sast, sbom, sca, build, tests, image
	Outcome    Outcome      `json:"outcome"`
	Revision   Revision     `json:"revision"`
	StartedOn  time.Time    `json:"startedOn"`
	FinishedOn time.Time    `json:"finishedOn"`
	Tool       Tool         `json:"tool"`
	Data       []DataSource `json:"data,omitempty"`
	Counts     []Count      `json:"counts,omitempty"`
	Coverage   *Coverage    `json:"coverage,omitempty"`
	Reasons    []Reason     `json:"reasons,omitempty"` // why it is not pass; empty when it is
	Report     Digest       `json:"report,omitempty"`  // of the full report (SARIF), kept as a blob
}
