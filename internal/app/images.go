// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/image"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/upstream"
)

// Images is where a home keeps the images that were imported.
func (l Layout) Images() string { return l.path("images") }

// ImportConfig says which image is imported.
type ImportConfig struct {
	Home      string
	From      string // path of a layout or an archive, or NAME@sha256:DIGEST of a registry
	Digest    string // of one of several images of a layout; empty when there is one
	Platforms []string
}

// Imported is one image of one platform.
type Imported struct {
	Digest   hallmark.Digest `json:"digest"` // that pipelines name
	Manifest hallmark.Digest `json:"manifest"`
	Platform string          `json:"platform"`
	Layers   int             `json:"layers"`
}

// ImportImage puts an image into the home, from where runs take it by digest.
func ImportImage(ctx context.Context, cfg ImportConfig) ([]Imported, error) {
	if err := checkHome(cfg.Home); err != nil {
		return nil, err
	}
	platforms, err := platformsOf(cfg.Platforms)
	if err != nil {
		return nil, err
	}
	store, err := image.NewStore(image.StoreConfig{Dir: Layout{cfg.Home}.Images()})
	if err != nil {
		return nil, err
	}
	src, err := openImages(ctx, cfg.From)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	d, err := pick(src, cfg)
	if err != nil {
		return nil, err
	}
	all, err := store.Import(ctx, src, d, platforms)
	if err != nil {
		return nil, fmt.Errorf("importing %s: %w", cfg.From, err)
	}
	var out []Imported
	for _, i := range all {
		out = append(out, Imported{Digest: d, Manifest: i.Manifest, Platform: i.Platform.String(), Layers: len(i.Layers)})
	}
	return out, nil
}

func platformsOf(names []string) ([]image.Platform, error) {
	if len(names) == 0 {
		return []image.Platform{image.HostPlatform()}, nil
	}
	var out []image.Platform
	for _, n := range names {
		p, err := image.ParsePlatform(n)
		if err != nil {
			return nil, hallmark.Errorf(hallmark.KindUsage, "--platform: %w", err)
		}
		out = append(out, p)
	}
	return out, nil
}

// openImages opens a path that exists, or else a registry.
func openImages(ctx context.Context, from string) (image.Source, error) {
	if _, err := os.Stat(from); err == nil {
		return image.OpenPath(from)
	}
	ref, err := image.ParseRef(from)
	if err != nil {
		return nil, hallmark.WithHint(err, "name a path that exists, or an image of a registry by its digest")
	}
	return upstream.OpenImages(ctx, upstream.ImageConfig{Ref: ref})
}

func pick(src image.Source, cfg ImportConfig) (hallmark.Digest, error) {
	images := src.Images()
	if cfg.Digest != "" {
		d, err := hallmark.ParseDigest(cfg.Digest)
		if err != nil {
			return "", hallmark.Errorf(hallmark.KindUsage, "--digest: %w", err)
		}
		return d, nil // what it names is compared with it
	}
	if len(images) != 1 {
		return "", hallmark.WithHint(hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageInvalid, "%s names %d images: %s", cfg.From, len(images), images),
			"choose one with --digest sha256:…")
	}
	return images[0], nil
}

// kit is what the steps of a build run with.
type kit struct {
	chain  sandbox.Toolchain
	tree   *image.Tree // of the image; nil: the host's
	tools  []attest.Tool
	path   string            // PATH inside
	env    map[string]string // of the image
	images []attest.Image
	ref    build.ImageRef
	cache  warmed // what the build's cache begins with
}

// imageFault is a fault of an image that a pipeline names: it denies. Others are
// the machine's.
func imageFault(err error) bool {
	return hallmark.CodeOf(err) == hallmark.CodeBuildImage || strings.HasPrefix(string(hallmark.CodeOf(err)), "IMAGE_")
}

// approved checks the images that a pipeline names against the policy, before
// anything of them is read or run.
func (h *Home) approved(def *build.Pipeline) error {
	if h.params.AnyImage {
		return nil
	}
	want := map[string]string{"host": "host"}
	if def.Toolchain.Digest != "" {
		want = map[string]string{string(def.Toolchain.Digest): def.Toolchain.String()}
	}
	for _, a := range def.Images {
		if a.Base.Digest != "" {
			want[string(a.Base.Digest)] = a.Base.String()
		}
	}
	for _, d := range slices.Sorted(maps.Keys(want)) {
		if !slices.Contains(h.params.Images, d) {
			return hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodeBuildImage, "the pipeline names %s, which build.images does not approve", want[d]),
				"use an approved image, or hallmark policy set build.images=LIST")
		}
	}
	return nil
}

// toolkit finds the toolchain that a pipeline names; here are the tools of this
// machine, where the caller has read them already.
func (h *Home) toolkit(ctx context.Context, def *build.Pipeline, here []attest.Tool) (kit, error) {
	k := kit{path: sandbox.Path(), ref: def.Toolchain}
	if def.Toolchain.Digest == "" {
		if here != nil {
			k.tools = slices.Clone(here)
			return k, nil
		}
		var err error
		k.tools, err = inventoryTools()
		return k, err
	}
	img, root, err := h.image(ctx, def.Toolchain, image.HostPlatform())
	if err != nil {
		return k, fmt.Errorf("reading build.image: %w", err)
	}
	k.chain, k.tree = sandbox.Toolchain{Root: root.Dir}, root.Tree
	k.path, k.env = defaultPath, map[string]string{}
	for _, e := range img.Config.Env {
		name, value, _ := strings.Cut(e, "=")
		if name == "PATH" {
			k.path = value
		} else if !strings.HasPrefix(name, "LD_") {
			k.env[name] = value
		}
	}
	k.images = []attest.Image{{Role: attest.ImageToolchain, Name: def.Toolchain.Name, Digest: img.Digest, Manifest: img.Manifest}}
	k.tools = imageTools(root, k.path)
	if !slices.ContainsFunc(k.tools, func(t attest.Tool) bool { return t.Name == "sh" }) {
		return k, hallmark.WithHint(hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageInvalid, "reading build.image: %s has no sh in its PATH, and steps are commands of a shell", def.Toolchain),
			"name an image with a shell; as base of an artifact none is needed")
	}
	return k, nil
}

// defaultPath is what a container without PATH gets.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is the environment of every step: the image's own variables, under
// those of the build, and the external parameters.
func (k kit) environment(in pipeline.Input, parameters map[string]string) []string {
	own := build.Environment(k.path, in.Export.CommitTime, map[string]string{"GOMODCACHE": modCache})
	names := map[string]bool{}
	for _, e := range own {
		name, _, _ := strings.Cut(e, "=")
		names[name] = true
	}
	extra := maps.Clone(k.env)
	maps.DeleteFunc(extra, func(name, _ string) bool { return names[name] })
	if extra == nil {
		extra = map[string]string{}
	}
	extra["GOMODCACHE"] = modCache
	maps.Copy(extra, parameters)
	return build.Environment(k.path, in.Export.CommitTime, extra)
}

// image opens an image of the home and its unpacked tree.
func (h *Home) image(ctx context.Context, ref build.ImageRef, p image.Platform) (*image.Image, image.Root, error) {
	store, err := image.NewStore(image.StoreConfig{Dir: h.Images()})
	if err != nil {
		return nil, image.Root{}, err
	}
	img, err := image.Open(store, ref.Digest, p)
	if err == nil {
		var root image.Root
		if root, err = store.Root(ctx, img); err == nil {
			return img, root, nil
		}
	}
	return nil, image.Root{}, notImported(fmt.Errorf("image %s for %s: %w", ref, p, err), ref.String(), p)
}

// imageTools is inventoryTools for the programs of an image: what its layers say,
// which the unpacked tree was compared with.
func imageTools(root image.Root, searchPath string) []attest.Tool {
	var out []attest.Tool
	for _, name := range toolPrograms() {
		for dir := range strings.SplitSeq(searchPath, ":") {
			e, ok := root.Tree.Find(path.Join(dir, name))
			if !ok || e.Type != image.File || e.Mode&0o111 == 0 {
				continue
			}
			version := path.Base(e.Path)
			if name == "go" {
				version = goVersionIn(root, e.Path)
			}
			out = append(out, attest.Tool{Path: "/" + e.Path, Tool: hallmark.Tool{Name: name, Version: version, Digest: e.Digest}})
			break
		}
	}
	return out
}

// goVersionIn reads the version that lies beside a Go toolchain.
func goVersionIn(root image.Root, program string) string {
	e, ok := root.Tree.Find(path.Join(path.Dir(path.Dir(program)), "VERSION"))
	if !ok || e.Type != image.File || e.Size > 1<<16 {
		return path.Base(program)
	}
	b, err := os.ReadFile(filepath.Join(root.Dir, filepath.FromSlash(e.Path)))
	if err != nil || hallmark.DigestOf(b) != e.Digest {
		return path.Base(program)
	}
	v, _, _ := strings.Cut(string(b), "\n")
	return v
}

// goVersion is the version of the Go toolchain that builds a revision.
func (h *Home) goVersion(ctx context.Context, definition []byte) string {
	def, err := build.ParsePipeline(pipeline.PipelineFile, definition)
	if err != nil || def.Toolchain.Digest == "" {
		return goToolchain()
	}
	k, err := h.toolkit(ctx, def, nil)
	if err != nil {
		return "" // the build says what is wrong with the image
	}
	for _, t := range k.tools {
		if v, ok := strings.CutPrefix(t.Version, "go"); ok && t.Name == "go" {
			return v
		}
	}
	return ""
}

// withoutImage is the result of a build whose image can't be used: nothing ran.
func (b *builder) withoutImage(in pipeline.Input, cause error) pipeline.BuildOutput {
	at := now()
	rec := func(check string, o hallmark.Outcome, r hallmark.Reason) hallmark.CheckRecord {
		r.Check = check
		return hallmark.CheckRecord{Check: check, Outcome: o, Revision: in.Revision, StartedOn: at, FinishedOn: at, Tool: b.tool, Reasons: []hallmark.Reason{r}}
	}
	why := hallmark.Reason{Code: hallmark.CodeOf(cause), Message: cause.Error(), Fix: hallmark.HintOf(cause)}
	return pipeline.BuildOutput{
		Facts: attest.Build{Revision: in.Revision, Record: rec("build", hallmark.Errored, why)},
		Tests: rec("tests", hallmark.Skipped, hallmark.Reason{Code: hallmark.CodeCheckNotRun, Message: "tests did not run: an image that the pipeline names can't be used"}),
	}
}

// blobsOf reads the blobs of an image that was built where the home keeps bytes.
type blobsOf struct {
	ctx  context.Context // of the call that reads
	keep pipeline.Blobs
}

func (b blobsOf) Open(d hallmark.Digest) (io.ReadCloser, error) {
	raw, err := b.keep.Get(b.ctx, d)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(strings.NewReader(string(raw))), nil
}

// artifactAt names an artifact by its bytes: a file, or an OCI layout, every blob
// of whose image is read.
func artifactAt(name string) (hallmark.Artifact, error) {
	st, err := os.Stat(name)
	if err != nil {
		return hallmark.Artifact{}, hallmark.Errorf(hallmark.KindInvalid, "reading artifact: %w", err)
	}
	if _, err := os.Stat(filepath.Join(name, "index.json")); err != nil && st.IsDir() {
		return hallmark.Artifact{}, hallmark.Errorf(hallmark.KindInvalid, "reading artifact: %s is a directory, and no image layout", name)
	}
	if st.IsDir() {
		if _, err := os.Stat(filepath.Join(name, "oci-layout")); err != nil {
			return hallmark.Artifact{}, hallmark.Errorf(hallmark.KindInvalid, "reading artifact %s: it is a directory and no image layout", name)
		}
		src, err := image.OpenPath(name)
		if err != nil {
			return hallmark.Artifact{}, fmt.Errorf("reading artifact %s: %w", name, err)
		}
		defer src.Close()
		d, size, err := image.ReadSubject(src, image.Limits{})
		if err != nil {
			err = fmt.Errorf("reading artifact %s: %w", name, err)
		}
		return hallmark.Artifact{Name: filepath.Base(name), Digest: d, Size: size}, err
	}
	f, err := os.Open(name)
	if err != nil {
		return hallmark.Artifact{}, hallmark.Errorf(hallmark.KindInvalid, "reading artifact: %w", err)
	}
	defer f.Close()
	d, size, err := hallmark.DigestFrom(f)
	if err != nil {
		return hallmark.Artifact{}, hallmark.Errorf(hallmark.KindInvalid, "reading artifact %s: %w", name, err)
	}
	return hallmark.Artifact{Name: filepath.Base(name), Digest: d, Size: size}, nil
}

// ImageTools are the tools of an image as build.tools approves them, NAME=sha256:HEX.
func ImageTools(ctx context.Context, home, ref string) ([]string, error) {
	if err := checkHome(home); err != nil {
		return nil, err
	}
	r, err := image.ParseRef(ref)
	if err != nil {
		return nil, err
	}
	h := &Home{Layout: Layout{home}}
	k, err := h.toolkit(ctx, &build.Pipeline{Toolchain: build.ImageRef{Name: r.Name, Digest: r.Digest}}, nil)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, t := range k.tools {
		out = append(out, t.Name+"="+string(t.Digest))
	}
	return out, nil
}
