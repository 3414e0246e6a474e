// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/dockerfile"
	"github.com/hallmark-sc/hallmark/internal/image"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
)

// at10image is "takes secrets along" in a layer of an image.
func at10image() []Case {
	return []Case{{
		Attack: "AT-10", Letter: "f", Does: "a token that came as a build argument stays in a layer, below one that removes it", Control: "every file of every layer is searched for secrets before the image leaves",
		Stops: hallmark.CodeSecretFound, Residual: "a secret in a form that no rule knows", attack: layerSecret,
	}}
}

// at13image is "compromised base image".
func at13image() []Case {
	return []Case{
		{
			Attack: "AT-13", Letter: "h", Does: "the base image is swapped for another under its digest", Control: "every blob of an image is compared with its digest as it is read",
			Stops: hallmark.CodeImageDigest, Residual: "a base that was bad when its digest was written down", attack: swappedBase,
		},
		{
			Attack: "AT-13", Letter: "i", Does: "the tag that a Dockerfile begins with is moved to another image", Control: "images are named by digest",
			Stops: hallmark.CodeImageNotByDigest, Residual: "whoever is told the wrong digest by the publisher", attack: movedTag,
		},
		{
			Attack: "AT-13", Letter: "j", Does: "the base image has an ONBUILD trigger that copies what the Dockerfile leaves out", Control: "every instruction stands in the Dockerfile",
			Stops: hallmark.CodeImageDockerfile, Residual: "what the base brings along itself", attack: trigger,
		},
	}
}

// at14image is "forge what a build made": what readers of the image get is not
// what its instructions made.
func at14image() []Case {
	return []Case{
		{
			Attack: "AT-14", Letter: "j", Does: "a RUN makes a file whose name stands for a removal, so that another file is gone for readers of the image", Control: "what a RUN wrote is judged before it becomes a layer",
			Stops: hallmark.CodeImageRunRefused, Residual: "a RUN that removes the file itself: its line says so", attack: forgedRemoval,
		},
		{
			Attack: "AT-14", Letter: "k", Does: "a RUN leaves a link to a directory of the host in the way of a later COPY", Control: "links of an image lead to names of the image",
			Stops: hallmark.CodeImageDockerfileInvalid, Residual: "none known", attack: copyThroughLink,
		},
	}
}

// unseeing passes whatever the images of a build hold.
type unseeing struct{ pipeline.ImageScanner }

// ScanImages implements pipeline.ImageScanner.
func (s unseeing) ScanImages(ctx context.Context, in pipeline.Input, images []pipeline.ImageOutput) (pipeline.ScanOutput, error) {
	out, err := s.ImageScanner.ScanImages(ctx, in, images)
	out.Record.Outcome, out.Record.Reasons, out.Record.Counts, out.Findings = hallmark.Pass, nil, nil, nil
	return out, err
}

// layerSecret: the pieces of the token stand in the pipeline, where no rule takes
// them for one.
func layerSecret(ctx context.Context, g *ground, c Control) (effect, error) {
	const kind, first, second = "ghp_", "16C7e42F292c6912E7", "710c838347Ae178B4a"
	r, err := g.project("layer-secret", map[string]string{
		"Dockerfile":          onPrograms + "ARG A\nARG B\nARG C\nRUN echo \"token=$A$B$C\" > /settings\nRUN echo > /settings\n",
		pipeline.PipelineFile: imageOf(collectPrograms, fmt.Sprintf(", args: {A: %s, B: %s, C: %s}", kind, first, second)),
	})
	if err != nil {
		return effect{}, err
	}
	return g.imageCase(ctx, r, hallmark.CodeSecretFound, func(pc *pipeline.Config) error {
		if c == Off {
			pc.ImageScanner = unseeing{pc.ImageScanner}
		}
		return nil
	}, func(ctx context.Context, f finished) (bool, error) {
		return f.inLayers(ctx, "settings", "token="+kind+first+second+"\n")
	})
}

// inLayers reports whether any layer of the image has the file with this text.
func (f finished) inLayers(ctx context.Context, name, text string) (bool, error) {
	src, err := image.OpenPath(filepath.Join(f.Out, imageFile))
	if err != nil {
		return false, err
	}
	defer src.Close()
	found := false
	for _, a := range f.Artifacts {
		img, err := image.Open(src, a.Digest, image.HostPlatform())
		if err != nil {
			return false, err
		}
		err = image.Files(ctx, src, img.Layers, image.Limits{}, func(file image.LayerFile, r io.Reader) error {
			if file.Path != name {
				return nil
			}
			b, err := io.ReadAll(io.LimitReader(r, 1<<16))
			found = found || string(b) == text
			return err
		})
		if err != nil {
			return false, err
		}
	}
	return found, nil
}

// onBase is a project whose image is one file over a base.
func (g *ground) onBase(name, from string) (repository, error) {
	return g.project(name, map[string]string{
		"Dockerfile": "FROM " + from + "\nCOPY app.txt /app\n", "app.txt": "app\n", "internal.txt": "not for the image\n",
		pipeline.PipelineFile: imageOf("true", ""),
	})
}

func goodAndBad(ctx context.Context, g *ground) (good, bad hallmark.Digest, err error) {
	good, err = g.archivedImage(ctx, "good", map[string]string{"marker": clean}, v1.Config{})
	if err != nil {
		return "", "", err
	}
	bad, err = g.archivedImage(ctx, "bad", map[string]string{"marker": poison}, v1.Config{})
	return good, bad, err
}

func poisonedMarker(ctx context.Context, f finished) (bool, error) {
	return f.holds(ctx, "marker", poison)
}

// swappedBase: who can write to the home puts another manifest in the place of the
// one that the Dockerfile names.
func swappedBase(ctx context.Context, g *ground, c Control) (e effect, err error) {
	good, bad, err := goodAndBad(ctx, g)
	if err != nil {
		return effect{}, err
	}
	r, err := g.onBase("swapped-base", "example.org/base@"+string(good))
	if err != nil {
		return effect{}, err
	}
	at := func(d hallmark.Digest) string { return filepath.Join(g.home.Images(), "blobs", "sha256", d.Hex()) }
	was, err1 := os.ReadFile(at(good))
	other, err2 := os.ReadFile(at(bad))
	if err := errors.Join(err1, err2, replace(at(good), other)); err != nil {
		return effect{}, err
	}
	defer func() { err = errors.Join(err, replace(at(good), was)) }()
	return g.imageCase(ctx, r, hallmark.CodeImageDigest, compose(func(p *app.BuildParts) {
		if c == Off {
			p.Images.Open = openUncompared
		}
	}), poisonedMarker)
}

// replace writes another file in the place of one that may be read-only.
func replace(name string, b []byte) error {
	return errors.Join(os.Remove(name), os.WriteFile(name, b, 0o644))
}

// openUncompared takes whatever lies under a digest for the image of that digest.
func openUncompared(blobs image.Blobs, d hallmark.Digest, p image.Platform) (*image.Image, error) {
	r, err := blobs.Open(d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	img, err := image.Open(blobs, hallmark.DigestOf(b), p)
	if err != nil {
		return nil, err
	}
	img.Digest, img.Manifest = d, d
	return img, nil
}

// movedTag: without the control, a tag means what the registry says at the time.
func movedTag(ctx context.Context, g *ground, c Control) (effect, error) {
	_, bad, err := goodAndBad(ctx, g)
	if err != nil {
		return effect{}, err
	}
	const tag = "example.org/base:1"
	r, err := g.onBase("moved-tag", tag)
	if err != nil {
		return effect{}, err
	}
	return g.imageCase(ctx, r, hallmark.CodeImageNotByDigest, compose(func(p *app.BuildParts) {
		if c == Off {
			real := p.Images.Parse
			p.Images.Parse = func(cfg dockerfile.Config) (*dockerfile.Plan, error) {
				cfg.Text = []byte(strings.Replace(string(cfg.Text), tag, "example.org/base@"+string(bad), 1))
				return real(cfg)
			}
		}
	}), poisonedMarker)
}

// trigger: without the control, triggers are carried out after FROM, as other
// builders do.
func trigger(ctx context.Context, g *ground, c Control) (effect, error) {
	const hidden = "COPY . /srv/"
	base, err := g.archivedImage(ctx, "triggers", map[string]string{"marker": clean}, v1.Config{OnBuild: []string{hidden}})
	if err != nil {
		return effect{}, err
	}
	from := "example.org/base@" + string(base)
	r, err := g.onBase("trigger", from)
	if err != nil {
		return effect{}, err
	}
	return g.imageCase(ctx, r, hallmark.CodeImageDockerfile, compose(func(p *app.BuildParts) {
		if c == Off {
			parse, evaluate := p.Images.Parse, p.Images.Evaluate
			p.Images.Parse = func(cfg dockerfile.Config) (*dockerfile.Plan, error) {
				cfg.Text = []byte(strings.Replace(string(cfg.Text), from+"\n", from+"\n"+hidden+"\n", 1))
				return parse(cfg)
			}
			p.Images.Evaluate = func(plan *dockerfile.Plan, stage int, config v1.Config) (dockerfile.Result, error) {
				config.OnBuild = nil
				return evaluate(plan, stage, config)
			}
		}
	}), func(ctx context.Context, f finished) (bool, error) {
		return f.holds(ctx, "srv/internal.txt", "not for the image\n")
	})
}

// forgedRemoval: the file is there for every RUN and test of the build, and gone in
// the image.
func forgedRemoval(ctx context.Context, g *ground, c Control) (effect, error) {
	r, err := g.project("removal", map[string]string{
		"Dockerfile": onPrograms + "COPY rules.txt /rules\nRUN echo > /.wh.rules\n", "rules.txt": clean,
		pipeline.PipelineFile: imageOf(collectPrograms, ""),
	})
	if err != nil {
		return effect{}, err
	}
	return g.imageCase(ctx, r, hallmark.CodeImageRunRefused, compose(func(p *app.BuildParts) {
		if c == Off {
			real := p.Images.Written
			p.Images.Written = func(ctx context.Context, t *image.Tree, w image.Written) ([]image.Change, error) {
				return withRemovals(ctx, t, w, real)
			}
		}
	}), func(ctx context.Context, f finished) (bool, error) {
		t, err := f.tree(ctx)
		if err != nil || t == nil {
			return false, err
		}
		_, there := t.Find("rules")
		return !there, nil
	})
}

// copyThroughLink: without the control a COPY goes where the link leads on the
// host, as it does for a builder that writes into an unpacked root.
func copyThroughLink(ctx context.Context, g *ground, c Control) (effect, error) {
	victim := g.path("copied")
	if err := os.MkdirAll(victim, 0o755); err != nil {
		return effect{}, err
	}
	r, err := g.project("copy-link", map[string]string{
		"Dockerfile": onPrograms + "RUN ln -s '" + victim + "' /data\nCOPY file.txt /data/file.txt\n", "file.txt": poison,
		pipeline.PipelineFile: imageOf(collectPrograms, ""),
	})
	if err != nil {
		return effect{}, err
	}
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		if c == Off {
			real := p.Images.Copied
			p.Images.Copied = func(t *image.Tree, q image.CopyRequest) ([]image.Change, error) {
				link, ok := t.At(strings.TrimPrefix(filepath.Dir(q.Dest), "/"))
				if !ok || link.Type != image.Symlink {
					return real(t, q)
				}
				return nil, os.WriteFile(filepath.Join(link.Target, filepath.Base(q.Dest)), []byte(poison), 0o600)
			}
		}
	}))
	if err != nil {
		return effect{}, err
	}
	left, err := os.ReadDir(victim)
	if err != nil {
		return effect{}, err
	}
	if len(left) > 0 {
		return effect{done: true, detail: "a file of the host was written by a COPY"}, os.RemoveAll(victim)
	}
	return effect{reason: hallmark.CodeImageDockerfileInvalid, detail: f.codes()}, f.denied(ctx, hallmark.CodeImageDockerfileInvalid)
}
