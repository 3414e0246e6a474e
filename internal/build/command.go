// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"fmt"

	"github.com/hallmark-sc/hallmark"
)

// CommandFacts are what was seen of one command of another CI system, which ran as
// it is.
type CommandFacts struct {
	Report    CommandReport
	Artifacts []Output
	Missing   []hallmark.Reason // why an artifact that was asked for is not among them
	Summary   *Summary          // of its trace
	// Of the git work tree that it ran in.
	Commit  string // "": there is none
	Differs string // a path that was not what the commit says when it began; "": none
	Moved   string // what of the source changed while it ran; "": nothing
}

// JudgeCommand says what speaks against a command: how it ended, what was not seen
// of it, and artifacts that are not its work.
func JudgeCommand(f CommandFacts) []hallmark.Reason {
	var out []hallmark.Reason
	add := func(code hallmark.Code, fix, format string, args ...any) {
		out = append(out, hallmark.Reason{Code: code, Check: "build", Message: fmt.Sprintf(format, args...), Fix: fix})
	}
	if r := f.Report; r.Signal != "" {
		add(hallmark.CodeBuildStepFailed, "run it yourself and mend it", "the command was ended by %s", r.Signal)
	} else if r.ExitCode != 0 {
		add(hallmark.CodeBuildStepFailed, "run it yourself and mend it", "the command failed with exit code %d", r.ExitCode)
	}
	if t := f.Report.Trace; !t.Whole() {
		why := t.Failure
		if why == "" {
			why = "it has no trace"
		}
		add(hallmark.CodeTraceIncomplete, "run it again; nothing counts that was not seen whole", "%s", why)
		return out // of what it wrote nothing is known
	}
	if len(out) > 0 {
		return out // a command that failed need not have made anything
	}
	out = append(out, f.Missing...)
	for _, a := range f.Artifacts {
		if !f.Summary.Wrote(hallmark.DigestOf(a.Data)) {
			add(hallmark.CodeProductUntraced, "let the command write it; what was there before is not its work", "artifact %s holds what no process of the command wrote", a.Name)
		}
	}
	return out
}

// AuthorizeCommand decides whether provenance of a wrapped command is signed: it
// says that these artifacts were built from this revision.
func AuthorizeCommand(f CommandFacts) hallmark.Decision {
	reasons := JudgeCommand(f)
	add := func(code hallmark.Code, fix, format string, args ...any) {
		reasons = append(reasons, hallmark.Reason{Code: code, Check: "build", Message: fmt.Sprintf(format, args...), Fix: fix})
	}
	switch {
	case f.Commit == "":
		add(hallmark.CodeSourceRevisionUnknown, "run it in a git work tree", "the command did not run in a git work tree that has a commit")
	case f.Differs != "":
		add(hallmark.CodeSourceTreeDirty, "commit or remove what differs", "the work tree differs from commit %s: %s", f.Commit, f.Differs)
	case f.Moved != "":
		add(hallmark.CodeSourceChangedInside, "let the command leave the source as it is", "the source changed while the command ran: %s", f.Moved)
	}
	if len(f.Artifacts) == 0 && len(reasons) == 0 {
		add(hallmark.CodePipelineArtifact, "name what it builds with --artifact", "no artifact was named")
	}
	if len(reasons) > 0 {
		return hallmark.Decision{Effect: hallmark.Deny, Reasons: reasons}
	}
	return hallmark.Decision{Effect: hallmark.Allow}
}
