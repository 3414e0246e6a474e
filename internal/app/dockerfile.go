// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/dockerfile"
	"github.com/hallmark-sc/hallmark/internal/image"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/toolchain"
)

// recipe is a Dockerfile for one platform, judged whole before anything runs.
type recipe struct {
	def      *build.Pipeline
	artifact build.ImageArtifact
	platform string
	digest   hallmark.Digest // of the Dockerfile
	plan     *dockerfile.Plan
	stages   []dockerfile.Result
	images   map[dockerfile.Image]*image.Image // that it begins with or copies from
}

// step names an instruction as evidence does.
func (r recipe) step(line int) string {
	name := "image " + r.artifact.Name
	if len(r.artifact.Platforms) > 0 {
		name += " for " + strings.ReplaceAll(r.platform, "/", "-")
	}
	return fmt.Sprintf("%s line %d", name, line)
}

// steps are the commands that it runs, in their order.
func (r recipe) steps() []build.Step {
	var out []build.Step
	for _, s := range r.stages {
		for _, a := range s.Actions {
			if a.Run != nil {
				out = append(out, build.Step{Name: r.step(a.Line), Run: strings.Join(a.Run.Argv, " ")})
			}
		}
	}
	return out
}

// recipes reads the Dockerfiles that a pipeline names. Their images have to be
// approved, and in the home.
func (b *builder) recipes(in pipeline.Input, def *build.Pipeline, parameters map[string]string) ([]recipe, error) {
	var out []recipe
	for _, a := range def.Images {
		if a.Dockerfile == nil {
			continue
		}
		text, err := readCommitted(in.Export.Dir, a.Dockerfile.Path)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", a.Name, err)
		}
		for _, platform := range a.PlatformList(image.HostPlatform().String()) {
			r := recipe{def: def, artifact: a, platform: platform, digest: hallmark.DigestOf(text), images: map[dockerfile.Image]*image.Image{}}
			r.plan, err = b.parts.Images.Parse(dockerfile.Config{
				Name: a.Dockerfile.Path, Text: text, Target: a.Dockerfile.Target, Platform: platform, BuildPlatform: image.HostPlatform().String(),
				Fixed: a.Dockerfile.Args, Parameters: parameters,
			})
			if err == nil {
				err = b.evaluate(&r, b.request(in.Revision, def))
			}
			if err != nil {
				return nil, fmt.Errorf("image %s: %w", a.Name, err)
			}
			out = append(out, r)
		}
	}
	return out, nil
}

// maxDockerfile bounds a Dockerfile.
const maxDockerfile = 1 << 20

// readCommitted reads a regular file of the exported commit.
func readCommitted(dir, name string) ([]byte, error) {
	bad := func(why string) error {
		return hallmark.WithHint(hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageDockerfileInvalid, "%s: %s", name, why),
			"commit the Dockerfile: it is judged before anything runs, so no step can write it")
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	defer root.Close()
	for at := path.Dir(name); at != "."; at = path.Dir(at) {
		if st, err := root.Lstat(filepath.FromSlash(at)); err != nil || !st.IsDir() {
			return nil, bad("the commit has no directory " + at)
		}
	}
	st, err := root.Lstat(filepath.FromSlash(name))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !st.Mode().IsRegular() {
		return nil, bad("the commit has no such regular file")
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if st.Size() > maxDockerfile {
		return nil, bad("it has more than 1 MiB")
	}
	f, err := root.OpenFile(filepath.FromSlash(name), os.O_RDONLY|syscall.O_NONBLOCK, 0) // a root follows links inside of it, whatever it is told
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	defer f.Close()
	if now, err := f.Stat(); err != nil || !os.SameFile(st, now) {
		return nil, bad("it changed while it was read")
	}
	return io.ReadAll(io.LimitReader(f, maxDockerfile))
}

// refusedError is what the build policy says against a Dockerfile.
type refusedError struct{ reason hallmark.Reason }

func (e *refusedError) Error() string { return e.reason.Message }

// evaluate opens the images of a Dockerfile and judges every instruction.
func (b *builder) evaluate(r *recipe, q build.Request) error {
	bases, runs := r.plan.Bases()
	for _, i := range append(bases, r.plan.Images...) {
		if err := b.home.approvedImage(build.ImageRef{Name: i.Name, Digest: i.Digest}); err != nil {
			return err
		}
		if runs[i] {
			q.Image = string(i.Digest)
			if _, refused := b.parts.Permit(q); refused != nil {
				why := *refused
				why.Message = fmt.Sprintf("image %s: %s: RUN in %s: %s", r.artifact.Name, r.plan.Name, i, why.Message)
				return &refusedError{why}
			}
		}
		p, err := image.ParsePlatform(i.Platform)
		if err != nil {
			return err
		}
		store, err := image.NewStore(image.StoreConfig{Dir: b.home.Images()})
		if err != nil {
			return err
		}
		if r.images[i], err = b.parts.Images.Open(store, i.Digest, p); err != nil {
			return notImported(fmt.Errorf("image %s for %s: %w", i, p, err), i.String(), p)
		}
	}
	for n, s := range r.plan.Stages {
		var config v1.Config
		switch {
		case s.Base.Image != nil:
			config = r.images[*s.Base.Image].Config
		case !s.Base.Empty:
			config = r.stages[s.Base.Stage].Config
		}
		got, err := b.parts.Images.Evaluate(r.plan, n, config)
		if err != nil {
			return err
		}
		r.stages = append(r.stages, got)
	}
	return nil
}

// notImported says how an image gets into the home.
func notImported(err error, ref string, p image.Platform) error {
	if hallmark.CodeOf(err) == hallmark.CodeImageNotImported {
		return hallmark.WithHint(err, fmt.Sprintf("hallmark image import %s --platform %s, or a path of an OCI layout or a docker archive in its place", ref, p))
	}
	return err
}

// approvedImage checks one image against the policy.
func (h *Home) approvedImage(ref build.ImageRef) error {
	if h.params.AnyImage || slices.Contains(h.params.Images, string(ref.Digest)) {
		return nil
	}
	return hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodeBuildImage, "a Dockerfile names %s, which build.images does not approve", ref),
		"use an approved image, or hallmark policy set build.images=LIST")
}

// cooked is what the Dockerfiles of a build came to.
type cooked struct {
	steps     []build.StepResult
	defined   []build.Step
	rooms     []*stageRoom // of stages in which something ran
	images    []assembled
	reasons   []hallmark.Reason
	files     []attest.Recipe
	tools     []attest.Tool
	guarantee []build.Guarantee
	origins   map[hallmark.Digest]known
}

// combined are the guarantees of steps and of instructions: each has to hold for
// both. What an instruction has in place of a read-only root is told beside it.
func (c cooked) combined(steps []build.Guarantee) []build.Guarantee {
	if len(c.steps) == 0 {
		return steps
	}
	more := slices.Clone(c.guarantee)
	own := slices.IndexFunc(more, func(g build.Guarantee) bool { return g.Name == sandbox.GuaranteeRootOverlay })
	if own < 0 {
		return build.MergeGuarantees(steps, more)
	}
	overlay := more[own]
	more[own].Name = "root-read-only"
	out := build.MergeGuarantees(slices.Clone(steps), more)
	for i, g := range out {
		if g.Name == "root-read-only" && g.Holds {
			out[i].Detail += "; instructions of a Dockerfile write to an overlay over a copy of their image"
		}
	}
	return append(out, overlay)
}

// roomPart explains what a stage of a Dockerfile read.
func (b *builder) roomPart(in pipeline.Input, r *stageRoom, sum *build.Summary, origins map[hallmark.Digest]known, contents *toolchain.Contents) (part, error) {
	places, err := r.kit.places(contents)
	if err != nil {
		return part{}, err
	}
	_, files := sandbox.RootPoints()
	for _, f := range files {
		places = append(places, build.Place{Prefix: "/" + f, Origin: build.OriginSandbox})
	}
	o := build.Origins{Places: places, Empty: []string{"/dev/shm"}, Known: func(d hallmark.Digest) (build.Origin, string, bool) {
		if d == "" {
			return build.OriginBuild, "", true // has no content that could have come from anywhere
		}
		k, ok := origins[d]
		return k.origin, k.purl, ok
	}}
	q := b.request(in.Revision, r.recipe.def)
	if r.image != "" {
		q.Image = r.image
	}
	materials, err := b.parts.Explain(o, sum)
	return part{sum: sum, materials: materials, left: r.left, request: q}, err
}

// executed are the programs that ran in a stage: the image's own where they still
// are what its layers say, else what the build put there.
func (r *stageRoom) executed(sum *build.Summary) []build.Executable {
	all := sum.Programs()
	for i, x := range all {
		all[i].Made = !r.kit.imageHolds(strings.TrimPrefix(x.Path, "/"), x.Digest)
	}
	return all
}

// cook builds every Dockerfile of a pipeline, when its steps have ended well.
func (b *builder) cook(ctx context.Context, in pipeline.Input, def *build.Pipeline, all []recipe, place BuildPlace, workDir string) (cooked, error) {
	var out cooked
	for _, r := range all {
		out.defined = append(out.defined, r.steps()...)
		if f := (attest.Recipe{Path: r.artifact.Dockerfile.Path, Digest: r.digest}); !slices.Contains(out.files, f) {
			out.files = append(out.files, f)
		}
	}
	if len(all) == 0 {
		return out, nil
	}
	k := &kitchen{b: b, in: in, place: place, dir: filepath.Join(workDir, "images"), contents: &image.Contents{}, origins: map[hallmark.Digest]known{}, layers: map[hallmark.Digest]string{}}
	out.origins = k.origins
	if err := os.MkdirAll(k.dir, 0o755); err != nil {
		return out, fmt.Errorf("making a directory for images: %w", err)
	}
	if err := k.readWorkspace(ctx); err != nil {
		return out, k.outcome(&out, "the workspace", err)
	}
	for _, a := range def.Images {
		var spec image.Spec
		one := assembled{}
		for _, r := range all {
			if r.artifact.Name != a.Name {
				continue
			}
			v, err := k.make(ctx, &out, r)
			if err != nil {
				return out, k.outcome(&out, "image "+a.Name, err)
			}
			if v == nil { // a step of it failed, which has been said
				return out, nil
			}
			spec.Created, spec.Index = in.Export.CommitTime, len(a.Platforms) > 0
			spec.Variants = append(spec.Variants, *v)
			one.output.Platforms = append(one.output.Platforms, r.platform)
			one.bases = append(one.bases, k.basesOf(r)...)
		}
		if len(spec.Variants) == 0 {
			continue
		}
		made, err := image.Assemble(spec)
		if err != nil {
			return out, fmt.Errorf("assembling image %s: %w", a.Name, err)
		}
		one.output.File, one.output.Name, one.output.Subject = a.File(), a.Name, image.SubjectOf(made.Subject)
		if one.output.Blobs, one.output.Size, err = b.keepImage(ctx, made); err != nil {
			return out, err
		}
		out.images = append(out.images, one)
	}
	return out, nil
}

// outcome makes a reason of a fault of an image; other errors are the machine's.
func (k *kitchen) outcome(out *cooked, what string, err error) error {
	if !imageFault(err) {
		return fmt.Errorf("building %s: %w", what, err)
	}
	out.reasons = append(out.reasons, hallmark.Reason{Code: hallmark.CodeOf(err), Check: "build", Message: what + ": " + err.Error(), Fix: hallmark.HintOf(err)})
	return nil
}

// basesOf are the images that went into one, as materials.
func (k *kitchen) basesOf(r recipe) []attest.Image {
	var out []attest.Image
	bases, _ := r.plan.Bases()
	for _, i := range append(bases, r.plan.Images...) {
		img := attest.Image{Role: attest.ImageBase, Name: i.Name, Digest: r.images[i].Digest, Manifest: r.images[i].Manifest}
		if !slices.Contains(out, img) {
			out = append(out, img)
		}
	}
	return out
}
