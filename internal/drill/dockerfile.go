// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/image"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
)

// This file holds what the cases about Dockerfiles share.

const (
	imageFile = "app.oci"
	// collectPrograms is a step that lays out the root of an image: a shell and a few
	// programs of the platform, with the libraries that they need.
	collectPrograms = `for p in bash cat ln mkdir chmod touch; do f=$(command -v $p); for l in $f $(ldd $f | grep -o '/[^ )]*'); do mkdir -p out/root$(dirname $l); cp -L $l out/root$l; done; done; mkdir -p out/root/bin; cp -L out/root$(command -v bash) out/root/bin/sh`
	// onPrograms begins a Dockerfile whose RUNs use them.
	onPrograms = "FROM scratch\nCOPY out/root /\nENV PATH=/usr/bin:/bin\n"
)

// imageOf is a pipeline whose artifact is the image of a Dockerfile.
func imageOf(step, more string) string {
	return fmt.Sprintf("apiVersion: hallmark/v1\nkind: Pipeline\nbuild:\n  steps:\n    - run: %q\n    - name: test\n      run: test -d out\n  artifacts:\n    - image: {name: app, dockerfile: Dockerfile%s}\n", "mkdir -p out; "+step, more)
}

// tree is the image that a run left, as a container would see it; nil when there
// is none.
func (f finished) tree(ctx context.Context) (*image.Tree, error) {
	dir := filepath.Join(f.Out, imageFile)
	if _, err := os.Stat(dir); err != nil {
		return nil, nil //nolint:nilerr,nilnil // there is no image
	}
	src, err := image.OpenPath(dir)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	for _, a := range f.Artifacts {
		if a.Name != imageFile {
			continue
		}
		img, err := image.Open(src, a.Digest, image.HostPlatform())
		if err != nil {
			return nil, err
		}
		return image.Flatten(ctx, src, img.Layers, image.Limits{})
	}
	return nil, fmt.Errorf("%s is no artifact of the run: %s", imageFile, f.codes())
}

// holds reports whether the image of a run has a file with these bytes.
func (f finished) holds(ctx context.Context, name, text string) (bool, error) {
	t, err := f.tree(ctx)
	if err != nil || t == nil {
		return false, err
	}
	e, ok := t.Find(name)
	return ok && e.Digest == hallmark.DigestOf([]byte(text)), nil
}

// rooted lacks the sandbox of a RUN: it is a process of the control plane's user
// in the root of its image, with the host's network, processes and devices, as
// builders that use no more than chroot run it.
type rooted struct{ unboxed }

// Run implements build.Engine.
func (e rooted) Run(ctx context.Context, c build.Command, out io.Writer) (build.CommandReport, error) {
	r := e.place.Root
	room, err := os.MkdirTemp(filepath.Dir(r.Scratch), "room-")
	if err != nil {
		return build.CommandReport{}, fmt.Errorf("making a room: %w", err)
	}
	how, options := "unshare -m --propagation private", ""
	if os.Geteuid() != 0 {
		how, options = "unshare -Urm", "userxattr,"
	}
	mounts := fmt.Sprintf("mount -t overlay overlay -o '%slowerdir=%s,upperdir=%s,workdir=%s' '%s'\n", options, strings.Join(r.Lowers, ":"), sandbox.Upper(r.Scratch), filepath.Join(r.Scratch, "work"), room) +
		fmt.Sprintf("for d in proc dev; do mount --rbind /$d '%s'/$d; done\n", room)
	var argv []string
	for _, a := range e.place.Argv {
		argv = append(argv, "'"+strings.ReplaceAll(a, "'", `'\''`)+"'")
	}
	in := unboxed{place: e.place, promises: e.promises, written: sandbox.Upper(r.Scratch), root: "/"}
	c.Env = append(slices.Clone(c.Env), "DRILL_ROOM="+mounts, "DRILL_STEP=chroot '"+room+"' "+strings.Join(argv, " ")+"; exit $?")
	c.Script = "PATH=$PATH:/usr/sbin:/sbin; exec " + how + ` sh -e -c 'eval "$DRILL_ROOM"; eval "$DRILL_STEP"'`
	rep, err := in.Run(ctx, c, out)
	return rep, errors.Join(err, os.Remove(room))
}

// withoutRoom runs RUNs without their sandbox, and steps in theirs.
func (g *ground) withoutRoom(c Control) func(*pipeline.Config) error {
	return compose(func(p *app.BuildParts) {
		real := p.Engine
		p.Engine = func(place app.BuildPlace) build.Engine {
			if c == Off && place.Root != nil {
				return rooted{unboxed{place: place, promises: g.promises}}
			}
			return real(place)
		}
	})
}

// archivedImage puts an image of one layer into the home, as docker save writes it,
// and returns its digest.
func (g *ground) archivedImage(ctx context.Context, name string, files map[string]string, config v1.Config) (hallmark.Digest, error) {
	return keep(g, "image "+name, func() (hallmark.Digest, error) {
		layer, err := archive(files)
		if err != nil {
			return "", err
		}
		host := image.HostPlatform()
		settings, err := json.Marshal(v1.ConfigFile{
			OS: host.OS, Architecture: host.Architecture, Config: config,
			RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{{Algorithm: "sha256", Hex: hallmark.DigestOf(layer).Hex()}}},
		})
		if err != nil {
			return "", err
		}
		list, err := json.Marshal([]map[string]any{{"Config": "config.json", "Layers": []string{"layer.tar"}}})
		if err != nil {
			return "", err
		}
		saved, err := archive(map[string]string{"manifest.json": string(list), "config.json": string(settings), "layer.tar": string(layer)})
		if err != nil {
			return "", err
		}
		file := g.path(name + ".tar")
		if err := os.WriteFile(file, saved, 0o600); err != nil {
			return "", err
		}
		all, err := app.ImportImage(ctx, app.ImportConfig{Home: g.home.Home, From: file})
		if err != nil || len(all) != 1 {
			return "", errors.Join(fmt.Errorf("importing the image %s", name), err)
		}
		return all[0].Digest, nil
	})
}

func archive(files map[string]string) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(keys(files)) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name])), Typeflag: tar.TypeReg}); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(w, files[name]); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

// imageCase runs a project whose image must be allowed and hold what the attacker
// wants, or be denied.
func (g *ground) imageCase(ctx context.Context, r repository, stops hallmark.Code, change func(*pipeline.Config) error, holds func(context.Context, finished) (bool, error)) (effect, error) {
	f, err := g.run(ctx, r, change)
	if err != nil {
		return effect{}, err
	}
	if !f.Verdict.Decision.Allowed() {
		return effect{reason: stops, detail: f.codes()}, f.denied(ctx, stops)
	}
	has, err := holds(ctx, f)
	if err != nil {
		return effect{}, err
	}
	_, signed, err := f.provenance(imageFile)
	if err != nil {
		return effect{}, err
	}
	if has && signed {
		return effect{done: true, detail: "the image holds it, under provenance of the reviewed commit"}, nil
	}
	return effect{}, fmt.Errorf("the image is allowed; it holds what it should not: %t, it has provenance: %t", has, signed)
}
