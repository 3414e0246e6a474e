// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/trace"
	"github.com/hallmark-sc/hallmark/verify"
)

// wrapperName is the signer of provenance of wrapped commands, as roots name it.
const wrapperName = "wrapper"

// WrapConfig is one command of another CI system to run and record.
type WrapConfig struct {
	Home                  string
	Passphrase            []byte
	Out                   string
	Artifacts             []string // paths of what it builds
	Step                  string   // its name in evidence; "": that of the program
	RepositoryURI         string
	Argv                  []string
	Stdin, Stdout, Stderr *os.File
}

// Wrapped is what came of a command that ran. Its evidence is written.
type Wrapped struct {
	ExitCode int    // as a shell gives it: 128 and the number for a signal
	Out      string // directory of the evidence
	Bundles  int
	// Reasons speak against the command or its record; NoProvenance says why there
	// is no provenance, or is empty.
	Reasons      []hallmark.Reason
	NoProvenance []hallmark.Reason
	Whole        bool
}

var stepName = regexp.MustCompile(`^[A-Za-z0-9._+-]{1,64}$`)

// wrapping is one command between start and evidence.
type wrapping struct {
	cfg     WrapConfig
	home    *Home
	tool    hallmark.Tool
	dir     string // that it runs in
	out     string
	program string
	work    string // private directory
	source  workTree
	command attest.Command
	digest  hallmark.Digest // of the command
}

// Wrap runs a command as the caller would have, records it, and writes evidence of
// whatever it did. An error means that it did not run, or that its evidence could
// not be written.
func Wrap(ctx context.Context, cfg WrapConfig) (Wrapped, error) {
	h, err := OpenHome(cfg.Home, cfg.Passphrase)
	if err != nil {
		return Wrapped{}, err
	}
	defer h.Close()
	if err := h.mayWrap(); err != nil {
		return Wrapped{}, err
	}
	w := &wrapping{cfg: cfg, home: h}
	if err := w.prepare(); err != nil {
		return Wrapped{}, err
	}
	if err := sweepRuns(h.Runs()); err != nil {
		return Wrapped{}, err
	}
	work, lock, err := newRunDir(h.Runs())
	if err != nil {
		return Wrapped{}, err
	}
	defer lock.Close()
	defer durable.RemoveTree(work)
	w.work = work
	if w.source, err = w.readSource(ctx); err != nil {
		return Wrapped{}, err
	}
	if err := sandbox.HideMemory(); err != nil {
		return Wrapped{}, err
	}
	rep, err := sandbox.Wrap(ctx, now, sandbox.WrapSpec{
		Path: w.program, Argv: cfg.Argv, Env: w.environment(), Stdin: cfg.Stdin, Stdout: cfg.Stdout, Stderr: cfg.Stderr,
		Log: filepath.Join(work, "events.jsonl"), Hidden: w.hidden(),
	})
	if err != nil {
		return Wrapped{}, err
	}
	// What asked the command to end is no reason to lose its evidence.
	return w.conclude(context.WithoutCancel(ctx), rep)
}

// mayWrap finds the identity that signs provenance of wrapped commands in the
// roots, which never change.
func (h *Home) mayWrap() error {
	if slices.ContainsFunc(h.verifier.Roots().Signers, func(s verify.Signer) bool { return s.Name == wrapperName && s.Certificate != nil }) {
		return nil
	}
	return hallmark.WithHint(hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSignerNotAuthorized, "the roots of %s name no signer for wrapped commands: the home is older than hallmark wrap, and roots never change, since everyone who verifies pins them", h.Home),
		"make another home: hallmark init --home DIR")
}

// prepare looks at everything that can be wrong before anything runs.
func (w *wrapping) prepare() error {
	var err error
	if w.dir, err = os.Getwd(); err != nil {
		return hallmark.Errorf(hallmark.KindInvalid, "finding the current directory: %w", err)
	}
	if w.dir, err = filepath.EvalSymlinks(w.dir); err != nil {
		return hallmark.Errorf(hallmark.KindInvalid, "finding the current directory: %w", err)
	}
	if w.out, err = filepath.Abs(w.cfg.Out); err != nil {
		return hallmark.Errorf(hallmark.KindInvalid, "resolving %s: %w", w.cfg.Out, err)
	}
	if err := pipeline.CheckOut(w.out); err != nil {
		return err
	}
	if err := pipeline.SweepOut(w.out); err != nil {
		return fmt.Errorf("sweeping beside %s: %w", w.out, err)
	}
	if w.program, err = sandbox.FindProgram(w.cfg.Argv[0]); err != nil {
		return err
	}
	if w.cfg.Step == "" {
		w.cfg.Step = filepath.Base(w.program)
	}
	if !stepName.MatchString(w.cfg.Step) {
		return hallmark.WithHint(hallmark.Errorf(hallmark.KindUsage, "step %.80q: want up to 64 letters, digits, . _ + or -", w.cfg.Step), "name it with --step NAME")
	}
	names := map[string]pipeline.File{"evidence.jsonl": {}, "verdict.json": {}, "verdict.sigstore.json": {}, "trusted_root.json": {}, "roots.json": {}, "release.pub": {}}
	for i, a := range w.cfg.Artifacts {
		if filepath.IsAbs(a) {
			if a, err = filepath.Rel(w.dir, a); err != nil {
				return hallmark.Errorf(hallmark.KindUsage, "--artifact %s: %w", w.cfg.Artifacts[i], err)
			}
		}
		if a = filepath.Clean(a); !filepath.IsLocal(a) || a == "." {
			return hallmark.Errorf(hallmark.KindUsage, "--artifact %s: want a file below the current directory", w.cfg.Artifacts[i])
		}
		w.cfg.Artifacts[i] = filepath.ToSlash(a)
		if err := addArtifact(names, build.Output{Name: filepath.Base(a)}, []byte{}); err != nil {
			return err
		}
	}
	if w.tool, err = Tool(); err != nil {
		return err
	}
	return w.describe()
}

// describe is the command as evidence names it.
func (w *wrapping) describe() error {
	w.command = attest.Command{Dir: text(build.Raw(w.dir)), Variables: []string{}}
	for _, a := range w.cfg.Argv {
		w.command.Argv = append(w.command.Argv, text(build.Raw(trace.Hide(a, w.hidden()))))
	}
	for _, e := range w.environment() {
		name, _, _ := strings.Cut(e, "=")
		w.command.Variables = append(w.command.Variables, text(build.Raw(name)))
	}
	slices.Sort(w.command.Variables)
	b, err := w.command.Canonical()
	if err != nil {
		return fmt.Errorf("describing the command: %w", err)
	}
	w.digest = hallmark.DigestOf(b)
	return nil
}

// environment is ours without what opens our keys.
func (w *wrapping) environment() []string {
	return slices.DeleteFunc(os.Environ(), func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		return name == "HALLMARK_PASSPHRASE" || name == "HALLMARK_PASSPHRASE_FILE"
	})
}

// secretName is what variables of credentials are called.
var secretName = regexp.MustCompile(`(?i)token|secret|passw|passphrase|credential|api_?key|access_?key|private_?key|auth|cookie|_pat$|_key$`)

// hidden are the values of variables that look like credentials, the longest
// first: a shell puts them into arguments.
func (w *wrapping) hidden() []trace.Hidden {
	const shortest = 6 // what is shorter would be found everywhere
	var out []trace.Hidden
	for _, e := range w.environment() {
		if name, value, _ := strings.Cut(e, "="); secretName.MatchString(name) && len(value) >= shortest {
			out = append(out, trace.Hidden{Name: text(build.Raw(name)), Value: []byte(value), Argument: filepath.IsAbs(value)})
		}
	}
	slices.SortFunc(out, func(a, b trace.Hidden) int { return len(b.Value) - len(a.Value) })
	return out
}

// conclude makes the evidence of a command that ran.
func (w *wrapping) conclude(ctx context.Context, rep sandbox.Report) (Wrapped, error) {
	f := build.CommandFacts{
		Report: build.CommandReport{ExitCode: rep.ExitCode, Signal: rep.Signal, StartedOn: rep.StartedOn, FinishedOn: rep.FinishedOn, Trace: *rep.Trace},
		Commit: w.source.rev.Commit, Differs: w.source.differs,
	}
	var err error
	if f.Moved, err = w.source.moved(ctx); err != nil {
		return Wrapped{}, err
	}
	if len(w.cfg.Artifacts) > 0 {
		f.Artifacts, f.Missing = build.Collect(w.dir, w.cfg.Artifacts)
	}
	ev := &wrapEvidence{wrapping: w, facts: &f}
	res, err := ev.make(ctx, rep)
	res.ExitCode, res.Out, res.Whole = rep.ExitCode, w.cfg.Out, rep.Trace.Whole()
	if rep.Signal != "" {
		res.ExitCode = 128 + sandbox.SignalNumber(rep.Signal)
	}
	if err != nil {
		return res, err
	}
	// Its exit code alone would hide these from whoever called.
	for _, r := range res.Reasons {
		if r.Code != hallmark.CodeBuildStepFailed {
			return res, hallmark.WithHint(hallmark.Coded(hallmark.KindUnavailable, r.Code, "%s", r.Message), r.Fix)
		}
	}
	return res, nil
}

var errNoWorkTree = errors.New("not in a work tree with a commit")
