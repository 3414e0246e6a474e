// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/dockerfile"
	"github.com/hallmark-sc/hallmark/internal/gitcli"
	"github.com/hallmark-sc/hallmark/internal/image"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/trace"
)

// Workspace is where the steps of a build see their copy of the source.
const Workspace = "/workspace"

// BuildPlace is where one build happens.
type BuildPlace struct {
	Source  string // private read-only copy of the revision
	Scratch string // takes what the steps write
	// Trace is how the next step is recorded.
	Trace  func() *sandbox.Trace
	Mounts []sandbox.Mount
	Layers []sandbox.Workspace
	// Toolchain is what the steps run with.
	Toolchain sandbox.Toolchain
	HostID    int // user on the host of the steps
	Limits    func(wall time.Duration) sandbox.Limits
	// Root is set for an instruction of a Dockerfile: what it runs, where, and
	// in which file system; the workspace is not there then.
	Root *sandbox.Root
	Argv []string
	Dir  string
}

// Spec is how a step runs in this place.
func (p BuildPlace) Spec(c build.Command, out io.Writer) sandbox.Spec {
	s := sandbox.Spec{
		Argv: []string{"sh", "-e", "-c", c.Script}, Env: slices.Clone(c.Env), Dir: Workspace, Stdout: out, Stderr: out,
		Limits: p.Limits(c.Timeout), Mounts: slices.Clone(p.Mounts), Layers: slices.Clone(p.Layers),
		Workspace: &sandbox.Workspace{Lower: p.Source, Scratch: p.Scratch, Target: Workspace}, Trace: p.Trace(), Toolchain: p.Toolchain,
	}
	if p.Root != nil {
		s = sandbox.Spec{Argv: slices.Clone(p.Argv), Env: slices.Clone(c.Env), Dir: p.Dir, Stdout: out, Stderr: out, Limits: p.Limits(c.Timeout), Root: p.Root, Trace: p.Trace()}
	}
	for i, secret := range c.Secrets {
		s.Secrets = append(s.Secrets, secret.Value)
		s.Env = append(s.Env, fmt.Sprintf("%s=%d", build.SecretVariable(secret.Name), 3+i))
	}
	if s.Trace != nil {
		s.Trace.Hidden = hiddenIn(c.Hidden)
	}
	if c.Alert != nil {
		s.OnEgress = func(e sandbox.Egress) { c.Alert(egressOf(e)) }
	}
	return s
}

// hiddenIn are secrets as a record must not tell them, the longest
// spelling first: a shorter one may be part of it.
func hiddenIn(secrets []build.Secret) []trace.Hidden {
	var out []trace.Hidden
	for _, s := range secrets {
		for _, w := range build.Spellings(s.Value) {
			out = append(out, trace.Hidden{Name: s.Name, Value: []byte(w)})
		}
	}
	slices.SortStableFunc(out, func(a, b trace.Hidden) int { return len(b.Value) - len(a.Value) })
	return out
}

// recordIn returns how the steps of one build are recorded: each with an event log
// of its own in dir, by the best engine there is. The digests of the platform's
// files are kept for the next build.
func recordIn(dir, digests string) func() *sandbox.Trace {
	step := 0
	return func() *sandbox.Trace {
		step++
		return &sandbox.Trace{Engine: trace.Best, Log: filepath.Join(dir, fmt.Sprintf("step-%d.jsonl", step)), Digests: digests}
	}
}

func egressOf(e sandbox.Egress) build.Egress {
	return build.Egress{Time: e.Time, PID: e.PID, Process: e.Process, Program: e.Program, Address: e.Address, Name: e.Name}
}

// StepReport is what the sandbox saw of a step, as a build is judged by it.
func StepReport(rep sandbox.Report) build.CommandReport {
	r := build.CommandReport{ExitCode: rep.ExitCode, Signal: rep.Signal, LimitHit: rep.LimitHit, Lost: rep.Lost, StartedOn: rep.StartedOn, FinishedOn: rep.FinishedOn}
	if rep.Trace != nil {
		r.Trace = *rep.Trace
	}
	for _, e := range rep.Egress {
		r.Egress = append(r.Egress, egressOf(e))
	}
	for _, g := range rep.Guarantees {
		r.Guarantees = append(r.Guarantees, build.Guarantee{Name: g.Name, Holds: g.Holds, Detail: g.Detail})
	}
	return r
}

// BuildParts are what a builder is put together from: what runs its steps, what
// watches the source meanwhile, what collects artifacts, and the build policy.
// The type holds no rule, and a builder with a missing part is refused.
type BuildParts struct {
	Engine func(BuildPlace) build.Engine
	// Watch begins to watch the copy of the source, which has this manifest;
	// changed is asked once, when the steps have ended.
	Watch   func(dir string, manifest hallmark.Digest) (changed func() (bool, error), err error)
	Collect func(dir string, names []string) ([]build.Output, []hallmark.Reason)
	// Regenerated compares what a step wrote with what the commit has there.
	Regenerated func(source, written string, paths []string) []hallmark.Reason
	// SourceArchive compares an archive of the source with the commit.
	SourceArchive func(source, name string, data []byte) *hallmark.Reason
	Authorize     func(build.Policy, build.Facts) hallmark.Decision
	// Explain finds the origin of everything that a build read.
	Explain func(build.Origins, *build.Summary) ([]build.Material, error)
	// Permit is the build policy: asked before anything runs, and by Authorize.
	Permit build.Permit
	// Secrets judges whether a revision may have what its steps name; Mask hides
	// what they were given in what they print.
	Secrets func(p *build.Pipeline, ref string, refs []string) []hallmark.Reason
	Mask    func(out io.Writer, secrets map[string][]byte) build.Masker
	// Images are the parts that make images of Dockerfiles.
	Images ImageParts
}

// ImageParts are what Dockerfiles are built with.
type ImageParts struct {
	// Parse finds stages and images, Evaluate judges every instruction of a stage
	// over the configuration of its base.
	Parse    func(dockerfile.Config) (*dockerfile.Plan, error)
	Evaluate func(p *dockerfile.Plan, stage int, base v1.Config) (dockerfile.Result, error)
	// Open finds an image of the home by its digest.
	Open func(image.Blobs, hallmark.Digest, image.Platform) (*image.Image, error)
	// Written judges what a RUN wrote over a tree, Copied says what a COPY lays
	// over it.
	Written func(context.Context, *image.Tree, image.Written) ([]image.Change, error)
	Copied  func(*image.Tree, image.CopyRequest) ([]image.Change, error)
}

func imageParts() ImageParts {
	return ImageParts{
		Parse: dockerfile.Parse, Evaluate: (*dockerfile.Plan).Evaluate, Open: image.Open,
		Written: func(ctx context.Context, t *image.Tree, w image.Written) ([]image.Change, error) {
			return t.Changes(ctx, w, image.Limits{})
		},
		Copied: (*image.Tree).Copy,
	}
}

func (p ImageParts) whole() bool {
	return p.Parse != nil && p.Evaluate != nil && p.Open != nil && p.Written != nil && p.Copied != nil
}

func buildParts(r *room, h *Home) BuildParts {
	return BuildParts{
		Permit: h.permit,
		Engine: func(p BuildPlace) build.Engine { return &engine{room: r, place: p} },
		Watch:  watchSource, Collect: build.Collect, Regenerated: build.Regenerated, SourceArchive: build.SourceArchive, Authorize: build.Authorize, Explain: build.Origins.Explain,
		Secrets: build.JudgeSecrets, Mask: build.NewMask, Images: imageParts(),
	}
}

// ComposeBuilder returns a builder like b, which Home.Pipeline made, after
// change had its way with the parts. Only code that is linked in can call it: no
// flag, variable or file leads here. b itself stays as it is.
func ComposeBuilder(b pipeline.Builder, change func(*BuildParts)) (pipeline.Builder, error) {
	old, ok := b.(*builder)
	if !ok {
		return nil, hallmark.Errorf(hallmark.KindInternal, "composing a builder: it was not made by a home")
	}
	made := *old
	change(&made.parts)
	if made.parts.Engine == nil || made.parts.Watch == nil || made.parts.Collect == nil || made.parts.Regenerated == nil || made.parts.SourceArchive == nil || made.parts.Authorize == nil || made.parts.Explain == nil || made.parts.Permit == nil || made.parts.Secrets == nil || made.parts.Mask == nil || !made.parts.Images.whole() {
		return nil, hallmark.Errorf(hallmark.KindInternal, "composing a builder: a part is missing")
	}
	return &made, nil
}

// watchSource tells whether the copy of the source was the exported tree when the
// build began, and stayed it. Whoever has our own rights can change a file and
// put its bytes and times back, but not the time of that change, which the kernel
// writes.
func watchSource(dir string, manifest hallmark.Digest) (func() (bool, error), error) {
	before, err := stamps(dir)
	if err != nil {
		return nil, err
	}
	same := func() (bool, error) {
		m, err := gitcli.Measure(dir)
		return m.Digest == manifest, err
	}
	whole, err := same()
	if err != nil {
		return nil, err
	}
	return func() (bool, error) {
		after, err := stamps(dir)
		if err != nil || !whole || !maps.Equal(before, after) {
			return true, err
		}
		still, err := same()
		return !still, err
	}, nil
}

// stamp is what the kernel says of one file, and only the kernel can set.
type stamp struct {
	device, inode uint64
	changed       syscall.Timespec
}

func stamps(dir string) (map[string]stamp, error) {
	out := map[string]stamp{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return hallmark.Errorf(hallmark.KindInternal, "no status of %s", p)
		}
		out[p] = stamp{device: st.Dev, inode: st.Ino, changed: st.Ctim}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking at the source copy %s: %w", dir, err)
	}
	return out, nil
}
