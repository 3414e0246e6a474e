// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// Command is one step as an engine runs it: a fresh, isolated environment over
// the same workspace.
type Command struct {
	Script  string
	Env     []string
	Timeout time.Duration
	// Secrets are given by file descriptors 3, 4, … in this order; the number of
	// each is in the variable SecretVariable(Name). No file or variable ever holds
	// a value.
	Secrets []Secret
	Hidden  []Secret     // every secret of the build: no record may tell them, whichever step had them
	Alert   func(Egress) // hears of each attempt before the call that made it returns; may be nil
}

// CommandReport is what an engine saw.
type CommandReport struct {
	ExitCode   int
	Signal     string
	LimitHit   string
	Lost       []string // limits that vanished while it ran
	StartedOn  time.Time
	FinishedOn time.Time
	Egress     []Egress
	Guarantees []Guarantee
	Trace      Trace // the zero value is no trace
}

// Egress is one refused attempt to reach an outside address.
type Egress struct {
	Time    time.Time
	PID     int    // on the host
	Process string // the name that the process gave itself
	Program string // path of its executable, by the kernel
	Address string
	Name    string
}

// Guarantee is one property of the isolation.
type Guarantee struct {
	Name   string
	Holds  bool
	Detail string
}

// Engine runs commands. Each call gets an environment of its own, which holds
// nothing of the host or of an earlier call but the workspace; output goes to
// out. An error means that the command could not be run as asked.
type Engine interface {
	Run(ctx context.Context, c Command, out io.Writer) (CommandReport, error)
}

// maxLog bounds the kept log of one step.
const maxLog = 4 << 20

// Result is what a build was seen to do.
type Result struct {
	StartedOn, FinishedOn time.Time
	Steps                 []StepResult
	Guarantees            []Guarantee
}

// StepResult is one executed step.
type StepResult struct {
	Step
	Command []string
	Report  CommandReport
	Log     []byte // the first 4 MiB
	// Differs says what the step regenerated to other bytes than the commit has.
	Differs []hallmark.Reason
}

// Good reports whether the step ended as it should.
func (s StepResult) Good() bool {
	return s.Report.ExitCode == 0 && s.Report.Signal == "" && s.Report.LimitHit == "" && len(s.Report.Lost) == 0
}

// CacheDir is a directory that the steps of one build share, like the workspace;
// no other build ever sees it.
const CacheDir = "/cache"

// Environment is the whole environment of every step; base is the engine's PATH.
func Environment(path string, commitTime time.Time, extra map[string]string) []string {
	env := map[string]string{
		"PATH": path, "HOME": "/tmp/home", "TMPDIR": "/tmp", "LANG": "C.UTF-8", "TZ": "UTC", "CI": "true",
		"SOURCE_DATE_EPOCH": fmt.Sprint(commitTime.Unix()),
		// The toolchain is what the platform has, and asks nobody for another.
		"GOTOOLCHAIN": "local", "GOPROXY": "off", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOCACHE": CacheDir + "/go", "GOENV": "off", "GOTELEMETRY": "off",
	}
	maps.Copy(env, extra)
	var out []string
	for _, k := range slices.Sorted(maps.Keys(env)) {
		out = append(out, k+"="+env[k])
	}
	return out
}

// Given is what the steps of a build get beside their scripts.
type Given struct {
	Env     []string
	Timeout time.Duration     // of a step
	Secrets map[string][]byte // by name; a step gets those that it names
	Alert   func(step string, e Egress)
	Mask    func(out io.Writer, secrets map[string][]byte) Masker // nil is NewMask
	// Regenerated compares paths of the workspace with the commit; needed by
	// pipelines with a step that regenerates any.
	Regenerated func(paths []string) []hallmark.Reason
}

// Run runs the steps in order and stops at the first that fails. An error means
// that a step could not be run at all, or names a secret that was not given.
func Run(ctx context.Context, engine Engine, p *Pipeline, given Given, clock func() time.Time) (Result, error) {
	r := Result{StartedOn: clock()}
	for _, s := range p.Steps {
		c := Command{Script: s.Run, Env: given.Env, Timeout: given.Timeout, Alert: func(Egress) {}}
		if given.Alert != nil {
			c.Alert = func(e Egress) { given.Alert(s.Name, given.hide(e)) }
		}
		for _, name := range slices.Sorted(maps.Keys(given.Secrets)) {
			c.Hidden = append(c.Hidden, Secret{Name: name, Value: given.Secrets[name]})
		}
		var err error
		if c.Secrets, err = choose(given.Secrets, s); err != nil {
			return r, err
		}
		for _, k := range slices.Sorted(maps.Keys(s.Env)) {
			c.Env = append(slices.Clip(c.Env), k+"="+s.Env[k])
		}
		if s.Timeout > 0 && s.Timeout < c.Timeout {
			c.Timeout = s.Timeout
		}
		log := &head{max: maxLog}
		// A step may print what an earlier one had, so all are masked in all.
		masked := given.mask(log)
		rep, err := engine.Run(ctx, c, masked)
		err = errors.Join(err, masked.Flush())
		if err != nil {
			return r, fmt.Errorf("running step %s: %w", s.Name, err)
		}
		for i, e := range rep.Egress {
			rep.Egress[i] = given.hide(e)
		}
		r.Steps = append(r.Steps, StepResult{Step: s, Command: []string{"sh", "-e", "-c", s.Run}, Report: rep, Log: log.b})
		r.Guarantees = MergeGuarantees(r.Guarantees, rep.Guarantees)
		last := &r.Steps[len(r.Steps)-1]
		if !last.Good() {
			break
		}
		if len(s.Regenerates) > 0 {
			if given.Regenerated == nil {
				return r, hallmark.Errorf(hallmark.KindInternal, "step %s regenerates files, and nobody compares them", s.Name)
			}
			last.Differs = given.Regenerated(s.Regenerates)
		}
	}
	r.FinishedOn = clock()
	return r, nil
}

func (g Given) mask(out io.Writer) Masker {
	if g.Mask == nil {
		return NewMask(out, g.Secrets)
	}
	return g.Mask(out, g.Secrets)
}

// hide masks what a step says by where it tries to go: a name that it looks up may
// hold a secret.
func (g Given) hide(e Egress) Egress {
	if len(g.Secrets) == 0 {
		return e
	}
	for _, text := range []*string{&e.Process, &e.Program, &e.Address, &e.Name} {
		var out strings.Builder
		m := g.mask(&out)
		if _, err := io.WriteString(m, *text); err != nil || m.Flush() != nil {
			*text = masked
			continue
		}
		*text = out.String()
	}
	return e
}

// MergeGuarantees keeps a guarantee only if it held in every step.
func MergeGuarantees(all, more []Guarantee) []Guarantee {
	if all == nil {
		return slices.Clone(more)
	}
	for i := range all {
		j := slices.IndexFunc(more, func(g Guarantee) bool { return g.Name == all[i].Name })
		if j < 0 || !more[j].Holds {
			all[i].Holds = false
		}
	}
	return all
}

// head keeps the beginning of what is written and drops the rest.
type head struct {
	b   []byte
	max int
}

func (h *head) Write(p []byte) (int, error) {
	if room := h.max - len(h.b); room > 0 {
		h.b = append(h.b, p[:min(room, len(p))]...)
	}
	return len(p), nil
}

// Reasons judges the steps: what speaks against the checks build and tests.
func (r Result) Reasons(egressAllowed bool) (build, tests []hallmark.Reason) {
	for _, s := range r.Steps {
		for i, e := range s.Report.Egress {
			if egressAllowed || i >= 5 {
				break
			}
			to := e.Address
			if e.Program != "" && path.Base(e.Program) != e.Process {
				e.Process += " (" + e.Program + ")"
			}
			if e.Name != "" {
				to += " (asking for " + e.Name + ")"
			}
			build = append(build, hallmark.Reason{
				Code: hallmark.CodeBuildEgress, Check: "build", Message: fmt.Sprintf("step %s: %s tried to reach %s", s.Name, e.Process, to),
				Fix: "declare what the build needs as a dependency, so that it is fetched before; a build reaches no network",
			})
		}
		for _, d := range s.Differs {
			d.Message = "step " + s.Name + ": " + d.Message
			build = append(build, d)
		}
		if s.Good() {
			continue
		}
		if len(s.Report.Lost) > 0 {
			build = append(build, hallmark.Reason{
				Code: hallmark.CodeBuildNotIsolated, Check: "build", Message: fmt.Sprintf("step %s was ended: its limits of %s vanished while it ran", s.Name, strings.Join(s.Report.Lost, ", ")),
				Fix: "find out who removes or changes control groups of this machine",
			})
		}
		if s.Report.LimitHit != "" {
			build = append(build, hallmark.Reason{
				Code: hallmark.CodeBuildLimit, Check: "build", Message: fmt.Sprintf("step %s hit the %s limit", s.Name, s.Report.LimitHit),
				Fix: "make the step need less, or raise the limit: hallmark policy set build.timeout=… (build.memory, build.disk)",
			})
		}
		how := fmt.Sprintf("exit code %d", s.Report.ExitCode)
		if s.Report.Signal != "" {
			how = s.Report.Signal
		}
		msg := fmt.Sprintf("step %s failed with %s: %s", s.Name, how, lastLines(s.Log))
		build = append(build, hallmark.Reason{Code: hallmark.CodeBuildStepFailed, Check: "build", Message: msg, Fix: "run the step's command yourself; its log is kept as a blob named in the process statement"})
		if s.Test() {
			tests = append(tests, hallmark.Reason{Code: hallmark.CodeTestFailed, Check: "tests", Message: msg, Fix: "mend the test or the code and commit"})
		}
	}
	return build, tests
}

// lastLines is the end of a log on one line: up to five lines of it.
func lastLines(log []byte) string {
	const lines, most = 5, 500
	var out []string
	for l := range strings.Lines(string(log[max(0, len(log)-8192):])) {
		if l = strings.TrimSpace(l); l != "" {
			out = append(out, l)
		}
	}
	if len(out) == 0 {
		return "no output"
	}
	text := strings.Join(out[max(0, len(out)-lines):], " | ")
	if len(text) > most {
		text = "…" + strings.ToValidUTF8(text[len(text)-most:], "")
	}
	return text
}

// Output is one collected artifact.
type Output struct {
	Name string
	Data []byte
	Mode uint32
}

// maxArtifact bounds one artifact in memory.
const maxArtifact = 2 << 30

// Collect reads artifacts from the directory that holds what the build wrote. A
// link, a device, a second name of the same file or a directory is refused: it
// may stand for a file that is not the build's.
func Collect(dir string, names []string) ([]Output, []hallmark.Reason) {
	var out []Output
	var reasons []hallmark.Reason
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, []hallmark.Reason{{Code: hallmark.CodePipelineArtifact, Check: "build", Message: "the build left no workspace: " + err.Error()}}
	}
	defer root.Close()
	for _, name := range names {
		o, reason := collect(root, name)
		if reason != nil {
			reasons = append(reasons, *reason)
			continue
		}
		out = append(out, o)
	}
	return out, reasons
}

func collect(root *os.Root, name string) (Output, *hallmark.Reason) {
	refuse := func(code hallmark.Code, format string, args ...any) (Output, *hallmark.Reason) {
		return Output{}, &hallmark.Reason{Code: code, Check: "build", Message: "artifact " + name + ": " + fmt.Sprintf(format, args...), Fix: "let a step write a regular file there, or correct build.artifacts"}
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if st, err := root.Lstat(dir); err == nil && !st.IsDir() {
			return refuse(hallmark.CodePipelineArtifactName, "%s is not a directory of the build", dir)
		}
	}
	st, err := root.Lstat(filepath.FromSlash(name))
	if errors.Is(err, fs.ErrNotExist) {
		return refuse(hallmark.CodePipelineArtifact, "the build did not write it")
	}
	if err != nil {
		return refuse(hallmark.CodePipelineArtifactName, "%s", err)
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !st.Mode().IsRegular() || !ok || sys.Nlink != 1 {
		return refuse(hallmark.CodePipelineArtifactName, "not a regular file with one name")
	}
	if st.Size() > maxArtifact {
		return refuse(hallmark.CodeBuildLimit, "%d bytes, more than %d", st.Size(), maxArtifact)
	}
	f, err := root.OpenFile(filepath.FromSlash(name), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return refuse(hallmark.CodePipelineArtifactName, "%s", err)
	}
	defer f.Close()
	if now, err := f.Stat(); err != nil || !os.SameFile(st, now) {
		return refuse(hallmark.CodePipelineArtifactName, "it changed while it was read")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxArtifact))
	if err != nil {
		return refuse(hallmark.CodePipelineArtifact, "%s", err)
	}
	mode := uint32(0o644)
	if st.Mode()&0o100 != 0 {
		mode = 0o755
	}
	return Output{Name: path.Base(name), Data: b, Mode: mode}, nil
}
