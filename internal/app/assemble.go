// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/image"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
)

// maxImageFiles bounds the files of all platforms of one image, in bytes.
const maxImageFiles = 4 << 30

// assembled is an image artifact and what it was made from.
type assembled struct {
	output pipeline.ImageOutput
	bases  []attest.Image
}

// assemble makes the image artifacts of a build from what its steps wrote. The
// files are taken as artifacts are: no link, no device, no second name.
func (b *builder) assemble(ctx context.Context, in pipeline.Input, def *build.Pipeline, upper string) ([]assembled, []hallmark.Reason, error) {
	var out []assembled
	var reasons []hallmark.Reason
	for _, a := range def.Images {
		if a.Dockerfile != nil {
			continue
		}
		one, bad, err := b.assembleOne(ctx, in, a, upper)
		if code := hallmark.CodeOf(err); imageFault(err) {
			bad = append(bad, hallmark.Reason{Code: code, Check: "build", Message: fmt.Sprintf("image %s: %s", a.Name, err), Fix: hallmark.HintOf(err)})
		} else if err != nil {
			return nil, nil, fmt.Errorf("assembling image %s: %w", a.Name, err)
		}
		reasons = append(reasons, bad...)
		if len(bad) == 0 {
			out = append(out, one)
		}
	}
	return out, reasons, nil
}

func (b *builder) assembleOne(ctx context.Context, in pipeline.Input, a build.ImageArtifact, upper string) (assembled, []hallmark.Reason, error) {
	spec := image.Spec{
		Created: in.Export.CommitTime, Index: len(a.Platforms) > 0, Entrypoint: a.Entrypoint, Cmd: a.Cmd,
		Env: a.Env, User: a.User, Workdir: a.Workdir, Labels: a.Labels,
	}
	out := assembled{}
	var platforms []string
	total := int64(0)
	for _, name := range a.PlatformList(image.HostPlatform().String()) {
		p, err := image.ParsePlatform(name)
		if err != nil {
			return out, nil, err
		}
		v := image.Variant{Platform: p}
		if a.Base.Digest != "" {
			img, root, err := b.home.image(ctx, a.Base, p)
			if err != nil {
				return out, nil, err
			}
			v.Base = &image.Base{Ref: image.Ref{Name: a.Base.Name, Digest: a.Base.Digest}, Image: img, Tree: root.Tree}
			out.bases = append(out.bases, attest.Image{Role: attest.ImageBase, Name: a.Base.Name, Digest: img.Digest, Manifest: img.Manifest})
		}
		files, bad, err := b.imageFiles(a, name, upper)
		if err != nil || len(bad) > 0 {
			return out, bad, err
		}
		for _, f := range files {
			if total += int64(len(f.Data)); total > maxImageFiles {
				return out, nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageTooLarge, "the files have more than %d bytes", int64(maxImageFiles))
			}
		}
		v.Files = files
		spec.Variants = append(spec.Variants, v)
		platforms = append(platforms, name)
	}
	made, err := image.Assemble(spec)
	if err != nil {
		return out, nil, err
	}
	out.output = pipeline.ImageOutput{File: a.File(), Name: a.Name, Subject: image.SubjectOf(made.Subject), Platforms: platforms}
	out.output.Blobs, out.output.Size, err = b.keepImage(ctx, made)
	return out, nil, err
}

func (b *builder) imageFiles(a build.ImageArtifact, platform, upper string) ([]image.SpecFile, []hallmark.Reason, error) {
	sources, err := a.Sources(platform)
	if err != nil {
		return nil, nil, err
	}
	var out []image.SpecFile
	var reasons []hallmark.Reason
	for i, from := range sources {
		got, bad := b.parts.Collect(upper, []string{from})
		reasons = append(reasons, bad...)
		if len(bad) > 0 || len(got) != 1 {
			continue
		}
		mode := a.Files[i].Mode
		if mode == 0 {
			mode = got[0].Mode
		}
		out = append(out, image.SpecFile{Path: a.Files[i].To, Mode: mode, Data: got[0].Data})
	}
	if len(reasons) == 0 && len(out) != len(sources) {
		return nil, nil, hallmark.Errorf(hallmark.KindInternal, "collecting the files of image %s: some are missing", a.Name)
	}
	return out, reasons, nil
}

// keepImage keeps all blobs of an image where artifacts are kept, those of its
// bases too: an image is whole, whatever happens to what was imported.
func (b *builder) keepImage(ctx context.Context, made *image.Made) ([]hallmark.Digest, int64, error) {
	var total int64
	keep := func(d hallmark.Digest, raw []byte) error {
		total += int64(len(raw))
		got, err := b.stores.blobs.Put(ctx, raw)
		if err == nil && got != d {
			err = hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageDigest, "blob %s has the bytes of %s", d, got)
		}
		return err
	}
	all := slices.Sorted(maps.Keys(made.Blobs))
	for _, d := range all {
		if err := keep(d, made.Blobs[d]); err != nil {
			return nil, 0, fmt.Errorf("keeping image data: %w", err)
		}
	}
	for _, l := range made.Ready {
		if !slices.Contains(all, l.Digest) {
			all, total = append(all, l.Digest), total+l.Size
		}
	}
	if len(made.Base) == 0 {
		return all, total, nil
	}
	store, err := image.NewStore(image.StoreConfig{Dir: b.home.Images()})
	if err != nil {
		return nil, 0, err
	}
	for _, d := range made.Base {
		raw, err := image.ReadBlob(store, d, maxImageFiles)
		if err != nil {
			return nil, 0, err
		}
		if err := keep(d, raw); err != nil {
			return nil, 0, fmt.Errorf("keeping image data: %w", err)
		}
	}
	return append(all, made.Base...), total, nil
}

// addImages adds image artifacts to the facts of a build.
func addImages(f *attest.Build, images []assembled) []pipeline.ImageOutput {
	var out []pipeline.ImageOutput
	for _, i := range images {
		out = append(out, i.output)
		f.Artifacts = append(f.Artifacts, i.output.Artifact())
		f.Images = append(f.Images, i.bases...)
	}
	return out
}
