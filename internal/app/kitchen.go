// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/dockerfile"
	"github.com/hallmark-sc/hallmark/internal/image"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
)

// kitchen is where the Dockerfiles of one build are built. Every layer is a
// directory that lies under the next ones, and a packed archive; the tree in
// memory, which is read back from the archives, says what is in an image.
type kitchen struct {
	b         *builder
	in        pipeline.Input
	place     BuildPlace
	dir       string
	count     int // directories that were made
	workspace *image.Tree
	contents  *image.Contents
	origins   map[hallmark.Digest]known
	layers    map[hallmark.Digest]string // files of packed layers
}

// known is where a content came from.
type known struct {
	origin build.Origin
	purl   string
}

// stageRoom is a stage on its way, and afterwards what it was.
type stageRoom struct {
	recipe recipe
	image  string // digest of the base that it begins with; "" is none
	tree   *image.Tree
	lowers []string // uppermost first
	layers []image.Layer
	base   *image.Base
	kit    kit                           // of the base
	steps  []build.StepResult            // that ran in it
	before map[hallmark.Digest]bool      // contents that were there without a program of this stage writing them
	left   map[build.Raw]hallmark.Digest // that programs left, and nobody else
}

// Open implements image.Blobs over the layers that were packed here.
func (k *kitchen) Open(d hallmark.Digest) (io.ReadCloser, error) {
	name, ok := k.layers[d]
	if !ok {
		return nil, hallmark.Errorf(hallmark.KindInternal, "no layer %s was made", d)
	}
	return os.Open(name)
}

// newDir makes a directory for a layer.
func (k *kitchen) newDir(what string) (string, error) {
	k.count++
	dir := filepath.Join(k.dir, fmt.Sprintf("%s-%d", what, k.count))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", fmt.Errorf("making a layer: %w", err)
	}
	return dir, os.Chmod(dir, 0o755) //nolint:gosec // the program's user looks in; its parents are closed
}

// readWorkspace reads what the commit and the steps left in the workspace.
func (k *kitchen) readWorkspace(ctx context.Context) error {
	k.workspace = image.NewTree()
	for _, w := range []image.Written{{Dir: k.in.Export.Dir, Attributes: "none", Part: true}, {Dir: sandbox.Upper(k.place.Scratch), Attributes: sandbox.OverlayAttributes(), Part: true}} {
		changes, err := k.workspace.Changes(ctx, w, image.Limits{})
		if err != nil {
			return err
		}
		for _, c := range changes {
			if c.Type != image.File || c.Removed {
				continue
			}
			k.contents.Put(c.Digest, w.Dir, c.Path)
			if _, ok := k.origins[c.Digest]; !ok {
				k.origins[c.Digest] = known{origin: build.OriginBuild}
				if w.Dir == k.in.Export.Dir {
					k.origins[c.Digest] = known{origin: build.OriginSource}
				}
			}
		}
		if err := k.workspace.Apply(changes); err != nil {
			return err
		}
	}
	return nil
}

// context is the tree that COPY takes from: what .dockerignore leaves, owned by
// root and with the modes that git knows.
func (k *kitchen) context(r recipe) (*image.Tree, error) {
	d := r.artifact.Dockerfile
	bad := func(format string, args ...any) error {
		return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageDockerfileInvalid, format, args...)
	}
	t, ok := k.workspace.Sub(d.Context)
	if !ok {
		return nil, bad("image.context: the workspace has no directory %s", d.Context)
	}
	ignore, err := k.read(k.workspace, d.Path+".dockerignore")
	if err == nil && ignore == nil {
		ignore, err = k.read(t, ".dockerignore")
	}
	if err != nil {
		return nil, err
	}
	patterns, err := ignorefile.ReadAll(bytes.NewReader(ignore))
	if err != nil {
		return nil, bad(".dockerignore: %s", err)
	}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, bad(".dockerignore: %s", err)
	}
	return t, t.Keep(func(e *image.Entry) (bool, error) {
		ignored, err := m.MatchesOrParentMatches(e.Path)
		if err != nil {
			return false, bad(".dockerignore: %s", err)
		}
		e.UID, e.GID, e.Special = 0, 0, 0
		switch {
		case e.Type == image.Directory || e.Type == image.File && e.Mode&0o100 != 0:
			e.Mode = 0o755
		case e.Type == image.File:
			e.Mode = 0o644
		}
		return !ignored, nil
	})
}

// maxSmall bounds what is read of a tree into memory: user data bases and lists.
const maxSmall = 4 << 20

// read reads a small file of a tree; nil: there is none.
func (k *kitchen) read(t *image.Tree, name string) ([]byte, error) {
	e, ok := t.Find(name)
	if !ok || e.Type != image.File {
		return nil, nil
	}
	if e.Size > maxSmall {
		return nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageTooLarge, "%s has %d bytes", name, e.Size)
	}
	f, err := k.contents.Open(e.Digest)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxSmall+1))
	if err == nil && hallmark.DigestOf(raw) != e.Digest {
		err = hallmark.Errorf(hallmark.KindUnavailable, "%s changed while it was read", name)
	}
	if raw == nil {
		raw = []byte{}
	}
	return raw, err
}

// make builds the stages of a recipe. Without an error and a variant a step of it
// did not end well.
func (k *kitchen) make(ctx context.Context, out *cooked, r recipe) (*image.Variant, error) {
	platform, err := image.ParsePlatform(r.platform)
	if err != nil {
		return nil, err
	}
	files, err := k.context(r)
	if err != nil {
		return nil, err
	}
	var stages []*stageRoom
	for n, s := range r.plan.Stages {
		room, err := k.begin(ctx, r, s, stages)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", r.plan.Name, s.Line, err)
		}
		stages = append(stages, room)
		if s.Runs {
			out.rooms = append(out.rooms, room)
			for _, t := range room.kit.tools {
				if !slices.Contains(out.tools, t) {
					out.tools = append(out.tools, t)
				}
			}
		}
		for _, a := range r.stages[n].Actions {
			good, err := k.act(ctx, out, room, a, files, stages)
			if err != nil {
				return nil, located(err, r.plan.Name, a.Line)
			}
			if !good {
				return nil, nil
			}
		}
	}
	last := stages[len(stages)-1]
	return &image.Variant{Platform: platform, Base: last.base, Ready: &image.Ready{Layers: last.layers, Config: r.stages[len(stages)-1].Config}}, nil
}

// located names the line that caused an error. What an image or a context can't
// give is a fault of the Dockerfile.
func located(err error, name string, line int) error {
	code, kind, hint := hallmark.CodeOf(err), hallmark.KindOf(err), hallmark.HintOf(err)
	if code == hallmark.CodeImageInvalid {
		code = hallmark.CodeImageDockerfileInvalid
	}
	if code == "" {
		return fmt.Errorf("%s:%d: %w", name, line, err)
	}
	err = hallmark.Coded(kind, code, "%s:%d: %s", name, line, err)
	if hint != "" {
		err = hallmark.WithHint(err, hint)
	}
	return err
}

// begin makes the room that a stage begins with.
func (k *kitchen) begin(ctx context.Context, r recipe, s dockerfile.Stage, before []*stageRoom) (*stageRoom, error) {
	switch {
	case s.Base.Empty:
		dir, err := k.newDir("empty")
		if err == nil {
			err = sandbox.Give(dir, k.place.HostID)
		}
		return &stageRoom{recipe: r, tree: image.NewTree(), lowers: []string{dir}, kit: kit{tree: image.NewTree(), chain: sandbox.Toolchain{Root: dir}}, before: map[hallmark.Digest]bool{}, left: map[build.Raw]hallmark.Digest{}}, err
	case s.Base.Image == nil:
		old := before[s.Base.Stage]
		room := &stageRoom{
			recipe: r, image: old.image, tree: old.tree.Clone(), lowers: slices.Clone(old.lowers), layers: slices.Clone(old.layers), base: old.base, kit: old.kit,
			before: map[hallmark.Digest]bool{}, left: map[build.Raw]hallmark.Digest{},
		}
		for _, e := range room.tree.Entries() {
			room.before[e.Digest] = true
		}
		return room, nil
	}
	return k.fromImage(ctx, r, *s.Base.Image)
}

// fromImage unpacks an image for a stage of its own: with the modes that its layers
// say, and given to the user of the sandbox, who has one number alone.
func (k *kitchen) fromImage(ctx context.Context, r recipe, i dockerfile.Image) (*stageRoom, error) {
	img := r.images[i]
	store, err := image.NewStore(image.StoreConfig{Dir: k.b.home.Images()})
	if err != nil {
		return nil, err
	}
	tree, err := image.Flatten(ctx, store, img.Layers, store.Limits())
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", i, err)
	}
	dir, err := k.newDir("base")
	if err != nil {
		return nil, err
	}
	if err := tree.UnpackAsIs(ctx, store, img.Layers, dir); err != nil {
		return nil, fmt.Errorf("image %s: %w", i, err)
	}
	if err := sandbox.Give(dir, k.place.HostID); err != nil {
		return nil, err
	}
	ref := build.ImageRef{Name: i.Name, Digest: i.Digest}
	room := &stageRoom{
		recipe: r, image: string(i.Digest), tree: tree.Clone(), lowers: []string{dir}, before: map[hallmark.Digest]bool{}, left: map[build.Raw]hallmark.Digest{},
		base: &image.Base{Ref: image.Ref{Name: i.Name, Digest: i.Digest}, Image: img, Tree: tree},
		kit:  kit{chain: sandbox.Toolchain{Root: dir}, tree: tree, ref: ref},
	}
	searchPath := cmp.Or(img.Env("PATH"), defaultPath)
	room.kit.tools = imageTools(image.Root{Dir: dir, Tree: tree}, searchPath)
	purl := imagePURL(ref)
	for _, e := range tree.Entries() {
		if e.Type != image.File {
			continue
		}
		room.before[e.Digest] = true
		k.contents.Put(e.Digest, dir, e.Path)
		if _, ok := k.origins[e.Digest]; !ok {
			k.origins[e.Digest] = known{build.OriginToolchain, purl}
		}
	}
	return room, nil
}

// act does one thing. good is false for a command that failed.
func (k *kitchen) act(ctx context.Context, out *cooked, room *stageRoom, a dockerfile.Action, files *image.Tree, stages []*stageRoom) (good bool, err error) {
	switch {
	case a.Run != nil:
		return k.run(ctx, out, room, a)
	case a.Directory != "":
		who, err := k.user(room.tree, a.User)
		if err != nil {
			return false, err
		}
		changes, err := room.tree.MakeDirectory(a.Directory, who.uid, who.gid)
		if err != nil {
			return false, err
		}
		return true, k.lay(ctx, room, changes)
	}
	changes, err := k.copied(ctx, room, *a.Copy, files, stages)
	if err != nil {
		return false, err
	}
	return true, k.lay(ctx, room, changes)
}

// copied says what a COPY or ADD lays over a stage.
func (k *kitchen) copied(ctx context.Context, room *stageRoom, c dockerfile.Copy, files *image.Tree, stages []*stageRoom) ([]image.Change, error) {
	q := image.CopyRequest{From: files, Sources: c.Sources, Dest: c.Dest, IsDir: c.IsDir, Mode: c.Mode, NoLinks: c.Link}
	switch {
	case c.Context:
	case c.From.Image != nil:
		other, err := k.fromImage(ctx, room.recipe, *c.From.Image)
		if err != nil {
			return nil, err
		}
		q.From = other.tree
	default:
		q.From = stages[c.From.Stage].tree
	}
	if c.Owner != "" {
		who, err := k.user(room.tree, c.Owner)
		if err != nil {
			return nil, err
		}
		q.Owner = &[2]int{who.uid, who.gid}
	}
	for _, f := range c.Inline {
		d := k.contents.PutBytes([]byte(f.Data))
		k.origins[d] = known{origin: build.OriginSource} // it stands in the Dockerfile
		q.Inline = append(q.Inline, image.Entry{Path: f.Name, Type: image.File, Mode: 0o644, Size: int64(len(f.Data)), Digest: d})
	}
	if c.Add {
		if err := k.noArchives(q); err != nil {
			return nil, err
		}
	}
	return k.b.parts.Images.Copied(room.tree, q)
}

// noArchives refuses what ADD would unpack.
func (k *kitchen) noArchives(q image.CopyRequest) error {
	for _, s := range q.Sources {
		names, err := q.From.Match(s)
		if err != nil {
			return err
		}
		for _, name := range names {
			e, ok := q.From.Find(name)
			if !ok || e.Type != image.File {
				continue
			}
			f, err := k.contents.Open(e.Digest)
			if err != nil {
				return err
			}
			head := make([]byte, 512)
			n, err := io.ReadFull(bufio.NewReader(f), head)
			f.Close()
			if err != nil && n == 0 && e.Size > 0 {
				return fmt.Errorf("reading %s: %w", name, err)
			}
			if archive(head[:n]) {
				return hallmark.WithHint(hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageDockerfile, "ADD %s: archives are not unpacked", name),
					"COPY the archive and unpack it in a RUN, or unpack it in a step of the pipeline")
			}
		}
	}
	return nil
}

// archive reports whether a file begins as one that ADD unpacks.
func archive(head []byte) bool {
	for _, magic := range []string{"\x1f\x8b", "BZh", "\xfd7zXZ\x00", "\x28\xb5\x2f\xfd"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return true
		}
	}
	return len(head) >= 262 && string(head[257:262]) == "ustar"
}

// lay puts changes over a stage: as a directory, and as a layer.
func (k *kitchen) lay(ctx context.Context, room *stageRoom, changes []image.Change) error {
	if len(changes) == 0 {
		return nil
	}
	if err := k.pack(ctx, room, changes); err != nil {
		return err
	}
	dir, err := k.newDir("copied")
	if err != nil {
		return err
	}
	if err := image.Lay(dir, changes, room.tree, k.contents); err != nil {
		return err
	}
	if err := sandbox.Give(dir, k.place.HostID); err != nil {
		return err
	}
	for _, c := range changes {
		if c.Type == image.File {
			room.before[c.Digest] = true
		}
	}
	room.lowers = slices.Insert(room.lowers, 0, dir)
	return nil
}

// pack makes a layer of changes, keeps it, and reads it back into the tree as every
// reader of the image will.
func (k *kitchen) pack(ctx context.Context, room *stageRoom, changes []image.Change) error {
	k.count++
	name := filepath.Join(k.dir, fmt.Sprintf("layer-%d.tar.gz", k.count))
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("making a layer: %w", err)
	}
	defer f.Close()
	l, err := image.WriteLayer(f, k.in.Export.CommitTime, changes, k.contents)
	if err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("making a layer: %w", err)
	}
	d, _, err := k.b.stores.blobs.PutFrom(ctx, f)
	if err != nil {
		return fmt.Errorf("keeping a layer: %w", err)
	}
	if d != l.Digest {
		return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageDigest, "the layer %s was kept as %s", l.Digest, d)
	}
	k.layers[d] = name
	if err := room.tree.Add(ctx, k, l, image.Limits{}); err != nil {
		return err
	}
	room.layers = append(room.layers, l)
	return nil
}

// run runs a command in a fresh sandbox over the stage, and makes a layer of what
// it wrote.
func (k *kitchen) run(ctx context.Context, out *cooked, room *stageRoom, a dockerfile.Action) (bool, error) {
	who, err := k.user(room.tree, a.User)
	if err != nil {
		return false, err
	}
	points, err := k.points(room.tree)
	if err != nil {
		return false, err
	}
	scratch, err := k.newDir("run")
	if err == nil {
		err = errors.Join(sandbox.NewScratch(scratch, k.place.HostID), os.Chmod(sandbox.Upper(scratch), 0o755)) //nolint:gosec // it is the root that the program sees
	}
	if err != nil {
		return false, err
	}
	place := k.place
	place.Argv, place.Dir = a.Run.Argv, a.Run.Dir
	place.Root = &sandbox.Root{Lowers: append([]string{points}, room.lowers...), Scratch: scratch, UID: who.uid, GID: who.gid}
	step := build.Step{Name: room.recipe.step(a.Line), Run: strings.Join(a.Run.Argv, " ")}
	given := build.Given{
		Env: k.environment(a.Run.Env, who), Timeout: k.b.home.params.BuildTimeout, Secrets: k.b.given.secrets, Alert: k.b.given.alert, Mask: k.b.parts.Mask,
	}
	res, err := build.Run(ctx, k.b.parts.Engine(place), &build.Pipeline{Steps: []build.Step{step}}, given, now)
	if err != nil {
		return false, err
	}
	s := res.Steps[0]
	s.Command = slices.Clone(a.Run.Argv)
	out.steps, room.steps = append(out.steps, s), append(room.steps, s)
	out.guarantee = build.MergeGuarantees(out.guarantee, res.Guarantees)
	if !s.Good() {
		return false, nil
	}
	return true, k.written(ctx, room, scratch, who)
}

// written makes a layer of what a command wrote.
func (k *kitchen) written(ctx context.Context, room *stageRoom, scratch string, who account) error {
	upper := sandbox.Upper(scratch)
	changes, err := k.b.parts.Images.Written(ctx, room.tree, image.Written{Dir: upper, Attributes: sandbox.OverlayAttributes(), UID: who.uid, GID: who.gid})
	if err != nil {
		return err
	}
	if len(changes) == 0 {
		return nil
	}
	for _, c := range changes {
		if c.Type != image.File || c.Removed {
			continue
		}
		k.contents.Put(c.Digest, upper, c.Path)
		if _, ok := k.origins[c.Digest]; !ok {
			k.origins[c.Digest] = known{origin: build.OriginBuild}
		}
		if !room.before[c.Digest] {
			room.left[build.Raw("/"+c.Path)] = c.Digest
		}
	}
	if err := image.Unlink(upper, changes); err != nil {
		return err
	}
	if err := k.pack(ctx, room, changes); err != nil {
		return err
	}
	room.lowers = slices.Insert(room.lowers, 0, upper)
	return nil
}

// points makes the directory of names that the sandbox lays its own things over.
func (k *kitchen) points(t *image.Tree) (string, error) {
	dir, err := k.newDir("points")
	if err != nil {
		return "", err
	}
	dirs, files := sandbox.RootPoints()
	modes := map[string]os.FileMode{}
	for _, name := range dirs {
		modes[name] = 0o755
		if e, ok := t.At(name); ok {
			if e.Type != image.Directory {
				return "", hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageDockerfileInvalid, "/%s of the image is no directory, so that nothing can run in it", name)
			}
			modes[name] = os.FileMode(e.Mode)
		}
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return "", err
		}
	}
	for _, name := range files {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			return "", err
		}
	}
	for name, mode := range modes {
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			return "", err
		}
	}
	return dir, sandbox.Give(dir, k.place.HostID)
}

// environment is that of the image, and the two things that a RUN is told.
func (k *kitchen) environment(env []string, who account) []string {
	has := func(name string) bool {
		return slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
	}
	out := slices.Clone(env)
	if !has("HOME") {
		out = append(out, "HOME="+who.home)
	}
	if !has("SOURCE_DATE_EPOCH") {
		out = append(out, "SOURCE_DATE_EPOCH="+strconv.FormatInt(k.in.Export.CommitTime.Unix(), 10))
	}
	return out
}

// account is a user as an image has it.
type account struct {
	uid, gid int
	home     string
}

// user finds USER[:GROUP] in the user data base of an image.
func (k *kitchen) user(t *image.Tree, s string) (account, error) {
	bad := func(format string, args ...any) (account, error) {
		return account{}, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageDockerfileInvalid, format, args...)
	}
	passwd, err := k.read(t, "etc/passwd")
	if err != nil {
		return account{}, err
	}
	groups, err := k.read(t, "etc/group")
	if err != nil {
		return account{}, err
	}
	name, group, named := strings.Cut(cmp.Or(s, "0"), ":")
	out := account{home: "/"}
	uid, uerr := number(name)
	out.uid = uid
	found := false
	for line := range strings.Lines(string(passwd)) {
		f := strings.Split(strings.TrimRight(line, "\n"), ":")
		if len(f) < 7 {
			continue
		}
		u, err1 := number(f[2])
		g, err2 := number(f[3])
		if err1 != nil || err2 != nil || f[0] != name && (uerr != nil || u != uid) {
			continue
		}
		out, found = account{uid: u, gid: g, home: cmp.Or(f[5], "/")}, true
		break
	}
	if !found && uerr != nil {
		return bad("the image has no user %.80q in /etc/passwd", name)
	}
	if !found && out.uid == 0 {
		out.home = "/root"
	}
	if !path.IsAbs(out.home) {
		out.home = "/"
	}
	if !named {
		return out, nil
	}
	gid, err := number(group)
	if err == nil {
		out.gid = gid
		return out, nil
	}
	for line := range strings.Lines(string(groups)) {
		f := strings.Split(strings.TrimRight(line, "\n"), ":")
		if len(f) < 3 || f[0] != group {
			continue
		}
		if out.gid, err = number(f[2]); err == nil {
			return out, nil
		}
	}
	return bad("the image has no group %.80q in /etc/group", group)
}

// number reads a user or group number.
func number(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	return int(n), err //nolint:gosec // of 31 bits
}
