// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package scan is what all scanners share: how a keyless worker is run, how
// findings become an outcome, and how they are written as SARIF 2.1.0.
//
// A scanner runs in a sandbox, without keys, network or sight of the host. What
// it did not read, could not parse or was not allowed to finish makes the outcome
// error, never pass; and a planted canary that it did not find does too.
package scan

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/owenrumney/go-sarif/v3/pkg/report/v210/sarif"

	"github.com/hallmark-sc/hallmark"
)

// Alias is the name under which the binary is a worker.
const Alias = "hallmark-worker"

// Job is one run of a worker, or of an external program in its place.
type Job struct {
	Args   []string // the first names the scanner
	Stdin  io.Reader
	Mounts []Mount
	Memory int64 // at most; 0 is the limit of the policy
	Wall   time.Duration

	Program []string // path inside and arguments; runs instead of our own binary
	Dir     string   // working directory of Program
	Env     []string // of Program, complete
}

// Mount is a host directory or file that the worker sees, read-only.
type Mount struct{ Source, Target string }

// Report is what was seen of a worker.
type Report struct {
	Stdout, Stderr []byte
	ExitCode       int
	LimitHit       string
	Egress         int
}

// Worker runs our own binary as a keyless worker, or an external program, in a
// fresh sandbox without network. An error means that it could not be run; an exit
// code of -1, that a signal ended it. Output beyond what is kept is longer than
// any reader takes.
type Worker interface {
	Run(ctx context.Context, job Job) (Report, error)
}

// Output is what every worker prints: one JSON document.
type Output struct {
	Findings []hallmark.Finding `json:"findings"`
	Coverage hallmark.Coverage  `json:"coverage"`
	Canary   bool               `json:"canary"` // the planted fixture was found
	Extra    json.RawMessage    `json:"extra,omitempty"`
}

// DriverData begins the name of a data source that is an external tool:
// driver:NAME@VERSION, with the digest of its program.
const DriverData = "driver:"

// maxOutput bounds what a worker may print.
const maxOutput = 256 << 20

// Call runs a worker and reads its output. The reason is set when the output
// can't be relied on.
func Call(ctx context.Context, w Worker, job Job) (Output, *hallmark.Reason, error) {
	rep, err := w.Run(ctx, job)
	if err != nil {
		return Output{}, nil, fmt.Errorf("running worker %s: %w", job.Args[0], err)
	}
	incomplete := func(format string, args ...any) (Output, *hallmark.Reason, error) {
		return Output{}, &hallmark.Reason{
			Code: hallmark.CodeScanIncomplete, Message: job.Args[0] + ": " + fmt.Sprintf(format, args...), Fix: "run again; hallmark doctor says what this machine lacks",
		}, nil
	}
	switch {
	case rep.LimitHit != "":
		return incomplete("the worker hit its %s limit", rep.LimitHit)
	case rep.Egress > 0:
		return incomplete("the worker tried to reach the network %d times", rep.Egress)
	case rep.ExitCode != 0:
		return incomplete("the worker ended with exit code %d: %s", rep.ExitCode, tail(rep.Stderr))
	case len(rep.Stdout) > maxOutput:
		return incomplete("the worker printed %d bytes", len(rep.Stdout))
	}
	var out Output
	dec := json.NewDecoder(bytes.NewReader(rep.Stdout))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&out); err != nil {
		return incomplete("the worker's output can't be read: %s", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return incomplete("the worker printed more than one document")
	}
	if !out.Canary {
		return out, &hallmark.Reason{Code: hallmark.CodeScanCanary, Message: job.Args[0] + ": the scanner did not find the planted canary"}, nil
	}
	return out, nil, nil
}

func tail(b []byte) string {
	b = bytes.TrimSpace(b)
	if len(b) > 300 {
		b = b[len(b)-300:]
	}
	return string(b)
}

// Thresholds say from where on a finding counts.
type Thresholds struct {
	Severity   hallmark.Severity
	Confidence hallmark.Confidence
}

// Counts reports whether a finding counts.
func (t Thresholds) Counts(f hallmark.Finding) bool {
	return f.Severity >= t.Severity && f.Confidence >= t.Confidence
}

// maxReasons bounds the findings that a reason is written for.
const maxReasons = 10

// Judge completes a record from findings: error when something was missed, fail
// when a finding counts, else pass.
func Judge(rec *hallmark.CheckRecord, findings []hallmark.Finding, t Thresholds, code func(hallmark.Finding) hallmark.Code) {
	rec.Counts = counts(findings)
	if rec.Coverage != nil && len(rec.Coverage.Missed) > 0 {
		rec.Outcome = hallmark.Errored
		rec.Reasons = append(rec.Reasons, hallmark.Reason{
			Code: hallmark.CodeScanIncomplete, Check: rec.Check,
			Message: fmt.Sprintf("%d things could not be read, such as %s", len(rec.Coverage.Missed), rec.Coverage.Missed[0]),
		})
	}
	worst := slices.Clone(findings)
	slices.SortStableFunc(worst, func(a, b hallmark.Finding) int { return int(b.Severity) - int(a.Severity) })
	n := 0
	for _, f := range worst {
		if !t.Counts(f) {
			continue
		}
		if n++; n > maxReasons {
			continue
		}
		rec.Reasons = append(rec.Reasons, reasonOf(rec.Check, f, code(f)))
	}
	if n > maxReasons {
		rec.Reasons = append(rec.Reasons, hallmark.Reason{Code: code(worst[0]), Check: rec.Check, Message: fmt.Sprintf("and %d more findings; findings.sarif has all", n-maxReasons)})
	}
	if rec.Outcome != 0 {
		return
	}
	rec.Outcome = hallmark.Pass
	if n > 0 {
		rec.Outcome = hallmark.Fail
	}
}

func reasonOf(check string, f hallmark.Finding, code hallmark.Code) hallmark.Reason {
	at := f.Path
	if f.Line > 0 {
		at += fmt.Sprintf(":%d", f.Line)
	}
	if f.Component != "" {
		at = f.Component
	}
	r := hallmark.Reason{Code: code, Check: check, Message: fmt.Sprintf("%s (%s, %s confidence) in %s: %s", f.Rule, f.Severity, f.Confidence, at, f.Message)}
	if f.FixedIn != "" {
		r.Fix = "upgrade to " + f.FixedIn
	}
	return r
}

func counts(findings []hallmark.Finding) []hallmark.Count {
	m := map[hallmark.Count]int{}
	for _, f := range findings {
		m[hallmark.Count{Severity: f.Severity, Confidence: f.Confidence}]++
	}
	var out []hallmark.Count
	for k, n := range m {
		k.Count = n
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b hallmark.Count) int {
		if a.Severity != b.Severity {
			return int(b.Severity) - int(a.Severity)
		}
		return int(b.Confidence) - int(a.Confidence)
	})
	return out
}

// SARIF writes the findings of all checks: one run a check for what we found
// ourselves, and one for each external tool it used. A check that did not pass or
// fail is a run whose execution was not successful.
func SARIF(records []hallmark.CheckRecord, findings []hallmark.Finding) ([]byte, error) {
	report := sarif.NewReport()
	for _, rec := range records {
		if !slices.Contains([]string{"secrets", "sast", "sbom", "sca", "image"}, rec.Check) {
			continue
		}
		own := newRun("hallmark-"+rec.Check, rec)
		runs := map[string]*sarif.Run{}
		report.AddRun(own)
		for _, d := range rec.Data {
			if tool, ok := strings.CutPrefix(d.Name, DriverData); ok {
				name, version, _ := strings.Cut(tool, "@")
				runs[name] = newRun(name, rec)
				if version != "" {
					runs[name].Tool.Driver.WithVersion(version)
				}
				report.AddRun(runs[name])
			}
		}
		for _, f := range findings {
			if f.Check != rec.Check {
				continue
			}
			run := runs[f.Tool]
			if run == nil {
				run = own
			}
			addResult(run, f)
		}
	}
	var b bytes.Buffer
	if err := report.PrettyWrite(&b); err != nil {
		return nil, fmt.Errorf("encoding SARIF: %w", err)
	}
	return b.Bytes(), nil
}

func newRun(tool string, rec hallmark.CheckRecord) *sarif.Run {
	run := sarif.NewRunWithInformationURI(tool, "https://hallmark-sc.github.io/")
	run.AddInvocation(sarif.NewInvocation().WithExecutionSuccessful(rec.Outcome == hallmark.Pass || rec.Outcome == hallmark.Fail))
	run.Results = []*sarif.Result{}
	return run
}

func addResult(run *sarif.Run, f hallmark.Finding) {
	level := "note"
	switch {
	case f.Severity >= hallmark.SeverityHigh:
		level = "error"
	case f.Severity == hallmark.SeverityMedium:
		level = "warning"
	}
	run.AddRule(f.Rule)
	r := run.CreateResultForRule(f.Rule).WithLevel(level).WithMessage(sarif.NewTextMessage(f.Message))
	r.PartialFingerprints = map[string]string{"hallmark/v1": f.Fingerprint}
	if f.Path != "" {
		loc := sarif.NewPhysicalLocation().WithArtifactLocation(sarif.NewSimpleArtifactLocation(f.Path))
		if f.Line > 0 {
			loc.WithRegion(sarif.NewSimpleRegion(f.Line, f.Line))
		}
		r.AddLocation(sarif.NewLocationWithPhysicalLocation(loc))
	}
}
