// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// Request is one build as it was asked for.
type Request struct {
	Repository, Ref string
	Requesters      []string          // every principal that the requester was shown to be
	Builder, Image  string            // where it happens: the builder's id, and host or the digest of an image
	Parameters      map[string]string // that were given
}

// Rule is what the build policy permits of one request. The zero value permits
// no program.
type Rule struct {
	Name      string
	Inventory hallmark.Digest              // of the approved inventory; "" where tools are only recorded
	AnyTool   bool                         // programs of the platform are only recorded
	Programs  map[string][]hallmark.Digest // approved: path to digests
	Libraries map[string][]hallmark.Digest // approved to be loaded beside the programs
	Digests   []hallmark.Digest            // approved at any path
	Built     bool                         // the build may run what it wrote itself
}

// Permit finds the rule of the signed build policy that permits a request, or
// says why none does. It is asked before the sandbox starts and again over the
// facts of the build.
type Permit func(Request) (Rule, *hallmark.Reason)

// Policy is what the build policy asks for, from the signed policy.
type Policy struct {
	Permit        Permit // nil permits nothing
	Builders      []string
	EgressAllowed bool
	Guarantees    []string // that must hold
	AnyTool       bool     // tools of the machine are only recorded
	Tools         []string // approved, NAME=HEX
}

// Executable is a program that a step ran, as the trace tells it.
type Executable struct {
	Path   string // absolute, inside the sandbox
	Digest hallmark.Digest
	Step   string
	Made   bool // it lay where only the platform's programs are, but was put there by the build
}

// Room is one more place that programs of a build ran in, beside that of its
// steps: an image that instructions of a Dockerfile run in.
type Room struct {
	Request  Request
	Executed []Executable
	Loaded   []Executable // compiled code of the image that was read
}

// Facts are what the build policy judges.
type Facts struct {
	Request       Request
	BuilderID     string
	Defined       []Step // by the pipeline, in order
	Steps         []StepResult
	Guarantees    []Guarantee
	Tools         []string // of the machine, NAME=HEX
	TraceWhole    bool     // every step's trace tells everything
	Executed      []Executable
	Loaded        []Executable // compiled code of the platform that was read, executed or not
	Rooms         []Room
	Written       []hallmark.Digest // of files that the steps closed after they could write to them
	Brought       []hallmark.Digest // of files of source and dependencies that were read
	Artifacts     int
	SourceChanged bool
	Reasons       []hallmark.Reason // found before
}

// writable are the places inside a sandbox that a build can write to; programs
// anywhere else are the platform's.
func writable() []string { return []string{"/workspace", CacheDir, "/tmp", "/dev/shm"} }

func inWritable(path string) bool {
	return slices.ContainsFunc(writable(), func(d string) bool { return strings.HasPrefix(path, d+"/") })
}

// permitted judges request, trace and programs.
func (p Policy) permitted(f Facts) []hallmark.Reason {
	if p.Permit == nil {
		return []hallmark.Reason{{Code: hallmark.CodeBuildPolicyMissing, Check: "build", Message: "the build was authorized by no policy"}}
	}
	rule, refused := p.Permit(f.Request)
	if refused != nil {
		return []hallmark.Reason{*refused}
	}
	if f.Request.Builder != f.BuilderID {
		return []hallmark.Reason{{Code: hallmark.CodeBuildPlatform, Check: "build", Message: fmt.Sprintf("the build was permitted on %s and made by %s", f.Request.Builder, f.BuilderID)}}
	}
	// What ran is known from the agent's record alone: without one nothing counts,
	// whatever the rule says of programs.
	if !f.TraceWhole {
		if slices.ContainsFunc(f.Reasons, func(r hallmark.Reason) bool { return r.Code == hallmark.CodeTraceIncomplete }) {
			return nil // it has been said, with the cause
		}
		return []hallmark.Reason{{
			Code: hallmark.CodeTraceIncomplete, Check: "build", Message: "nothing recorded the whole build, so what it ran is not known", Nearest: "rule " + rule.Name, Field: "tools",
			Fix: "hallmark doctor says whether a tracing agent can attach here; build where one can",
		}}
	}
	out := append(rule.programs(f.Executed, f.Written, f.Brought), rule.libraries(f.Loaded, f.Executed)...)
	for _, r := range f.Rooms {
		rule, refused := p.Permit(r.Request)
		if refused != nil {
			return append(out, *refused)
		}
		out = append(out, rule.programs(r.Executed, f.Written, f.Brought)...)
		out = append(out, rule.libraries(r.Loaded, r.Executed)...)
	}
	return out
}

// programs judges what was executed. A program in a writable place came with
// source or dependencies, which are materials, or the build made it: by writing
// it, or in a way that is no writing, such as to cut the end off a file.
func (r Rule) programs(executed []Executable, written, brought []hallmark.Digest) []hallmark.Reason {
	var out []hallmark.Reason
	seen := map[Executable]bool{}
	came := map[hallmark.Digest]bool{}
	for _, d := range brought {
		came[d] = true
	}
	for _, d := range written {
		came[d] = false
	}
	for _, x := range executed {
		made := x.Made || inWritable(x.Path)
		switch first := !seen[x]; {
		case !first:
			continue
		case made && !came[x.Digest]:
			if !r.Built {
				out = append(out, r.refuse(hallmark.CodeBuildBuiltProgram, x, "tools.builtPrograms", "which the build wrote itself"))
			}
		case !r.Built && isLoader(x.Path) && !slices.Contains(r.Digests, x.Digest):
			out = append(out, r.refuse(hallmark.CodeBuildBuiltProgram, x, "tools.builtPrograms", "a loader, which runs whatever program it is told to, one that the build wrote too"))
		case made, r.AnyTool, slices.Contains(r.Digests, x.Digest):
		case len(r.Programs[x.Path]) == 0:
			out = append(out, r.refuse(hallmark.CodeBuildTool, x, "tools.inventory", "which the inventory does not list"))
		case !slices.Contains(r.Programs[x.Path], x.Digest):
			out = append(out, r.refuse(hallmark.CodeBuildTool, x, "tools.inventory", "which the inventory lists as "+string(r.Programs[x.Path][0])))
		}
		seen[x] = true
	}
	slices.SortStableFunc(out, func(a, b hallmark.Reason) int { return cmp.Compare(a.Message, b.Message) })
	return out
}

// libraries judges compiled code of the platform that was read and not executed.
// The record does not tell a file that is mapped as code from one that is read, so
// all of it counts as loaded. What came with source and dependencies, or was built,
// lies in other places and is a material.
func (r Rule) libraries(loaded, executed []Executable) []hallmark.Reason {
	if r.AnyTool {
		return nil
	}
	type file struct {
		path   string
		digest hallmark.Digest
	}
	judged := map[file]bool{}
	for _, x := range executed {
		judged[file{x.Path, x.Digest}] = true
	}
	var out []hallmark.Reason
	for _, x := range loaded {
		f := file{x.Path, x.Digest}
		if judged[f] || inWritable(x.Path) {
			continue
		}
		judged[f] = true
		listed := append(slices.Clone(r.Libraries[x.Path]), r.Programs[x.Path]...)
		switch {
		case slices.Contains(listed, x.Digest), slices.Contains(r.Digests, x.Digest):
		case len(listed) == 0:
			out = append(out, r.refuse(hallmark.CodeBuildTool, x, "tools.inventory", "a library which the inventory does not list"))
		default:
			out = append(out, r.refuse(hallmark.CodeBuildTool, x, "tools.inventory", "a library which the inventory lists as "+string(listed[0])))
		}
	}
	slices.SortStableFunc(out, func(a, b hallmark.Reason) int { return cmp.Compare(a.Message, b.Message) })
	return out
}

// isLoader reports whether a program is the dynamic loader: the kernel starts it
// beside every program, which is no execution of it.
func isLoader(at string) bool {
	name := path.Base(at)
	return (strings.HasPrefix(name, "ld-") || strings.HasPrefix(name, "ld.so") || strings.HasPrefix(name, "ld64.so")) && strings.Contains(name, ".so")
}

func (r Rule) refuse(code hallmark.Code, x Executable, field, why string) hallmark.Reason {
	fix := "find out who changed it; if it is wanted, approve an inventory that lists it: hallmark policy tools --out FILE, then hallmark policy set --build RULES --inventory NAME=FILE"
	if code == hallmark.CodeBuildBuiltProgram {
		fix = "run what it wrote in a pipeline of its own, or have an administrator set builtPrograms: allow in the rule"
	}
	did := "ran"
	if strings.HasPrefix(why, "a library") {
		did = "loaded"
	}
	return hallmark.Reason{
		Code: code, Check: "build", Message: fmt.Sprintf("step %s %s %q %s, %s", x.Step, did, x.Path, x.Digest, why),
		Nearest: "rule " + r.Name, Field: field, Fix: fix,
	}
}

// Authorize applies the build policy to facts. Provenance is signed only with an
// allowing answer.
func Authorize(p Policy, f Facts) hallmark.Decision {
	reasons := append(slices.Clone(f.Reasons), p.permitted(f)...)
	add := func(code hallmark.Code, format string, args ...any) {
		reasons = append(reasons, hallmark.Reason{Code: code, Check: "build", Message: fmt.Sprintf(format, args...)})
	}
	if !slices.Contains(p.Builders, f.BuilderID) {
		add(hallmark.CodeBuilderNotTrusted, "builder %s is not in build.builders", f.BuilderID)
	}
	for _, want := range p.Guarantees {
		i := slices.IndexFunc(f.Guarantees, func(g Guarantee) bool { return g.Name == want })
		if i < 0 || !f.Guarantees[i].Holds {
			add(hallmark.CodeBuildNotIsolated, "the guarantee %s did not hold", want)
		}
	}
	for _, t := range f.Tools {
		if !p.AnyTool && !slices.Contains(p.Tools, t) {
			add(hallmark.CodeBuildTool, "this machine has the tool %s, which build.tools does not approve", t)
		}
	}
	if len(f.Reasons) == 0 && !slices.EqualFunc(f.Defined, f.Steps, func(d Step, s StepResult) bool { return d.Name == s.Name && d.Run == s.Run }) {
		add(hallmark.CodeBuildPolicy, "other steps ran than the pipeline defines")
	}
	if f.SourceChanged {
		add(hallmark.CodeSourceChangedInside, "the source copy changed while it was built")
	}
	if len(f.Reasons) == 0 && (len(f.Steps) == 0 || f.Artifacts == 0) { // else a reason says why there is none
		add(hallmark.CodePipelineArtifact, "the build left no artifact")
	}
	for _, s := range f.Steps {
		if !s.Good() && len(f.Reasons) == 0 {
			add(hallmark.CodeBuildStepFailed, "step %s failed", s.Name)
		}
		if len(s.Report.Egress) > 0 && !p.EgressAllowed && len(f.Reasons) == 0 {
			add(hallmark.CodeBuildEgress, "step %s tried to leave the sandbox", s.Name)
		}
	}
	if len(reasons) > 0 {
		return hallmark.Decision{Effect: hallmark.Deny, Reasons: reasons}
	}
	return hallmark.Decision{Effect: hallmark.Allow}
}
