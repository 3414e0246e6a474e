// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/hallmark-sc/hallmark"
)

// ImageRef names a container image by digest. The zero value names none.
type ImageRef struct {
	Name   string
	Digest hallmark.Digest
}

func (r ImageRef) String() string {
	if r.Digest == "" {
		return "host"
	}
	return r.Name + "@" + string(r.Digest)
}

// ImageArtifact is an image that a build leaves: files of the workspace over a
// base or over nothing, or what a Dockerfile makes.
type ImageArtifact struct {
	Name       string
	Base       ImageRef // the zero value is scratch
	Files      []ImageFile
	Entrypoint []string
	Cmd        []string
	Env        map[string]string
	User       string
	Workdir    string
	Labels     map[string]string
	Platforms  []string // OS/ARCHITECTURE; empty is the platform that builds

	Dockerfile *Dockerfile // what the image is made by, in place of Base, Files and the rest
}

// Dockerfile is one that an image is made by.
type Dockerfile struct {
	Path    string // of the commit, slash-separated
	Context string // directory of the workspace; "." is all of it
	Target  string // stage; empty is the last
	Args    map[string]string
}

// Suffix ends the name of an image artifact in a result directory.
const Suffix = ".oci"

// File is the name of the artifact in a result directory.
func (i ImageArtifact) File() string { return i.Name + Suffix }

// ImageFile is a file of an image.
type ImageFile struct {
	From map[string]string // path in the workspace by platform; "" stands for every other
	To   string            // absolute path in the image
	Mode uint32            // permission bits; 0 takes those of the file
}

// Source is the path in the workspace for a platform.
func (f ImageFile) Source(platform string) (string, bool) {
	if p, ok := f.From[platform]; ok {
		return p, true
	}
	p, ok := f.From[""]
	return p, ok
}

var (
	imageName    = regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*$`)
	imageRefName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]*[a-z0-9])?((:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+)?$`)
	imageUser    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,31})?$`)
	platformName = regexp.MustCompile(`^[a-z0-9]+/[a-z0-9]+(/[a-z0-9]+)?$`)
)

func (p *parser) toolchain(n *yaml.Node) ImageRef {
	s := p.text(n, "build.image")
	if s == "host" {
		return ImageRef{}
	}
	return p.imageRef(n, "build.image", "host", s)
}

// imageRef reads NAME@sha256:DIGEST. A tag says nothing that stays true.
func (p *parser) imageRef(n *yaml.Node, what, none, s string) ImageRef {
	name, digest, at := strings.Cut(s, "@")
	d := hallmark.Digest(digest)
	switch {
	case !at:
		p.fail(n, hallmark.CodeImageNotByDigest, "%s: want %s or NAME@sha256:DIGEST: a tag may mean another image tomorrow", what, none)
	case d.Check() != nil:
		p.fail(n, hallmark.CodeImageNotByDigest, "%s: want %s or NAME@sha256:DIGEST with 64 lower-case hex digits", what, none)
	case len(name) > 255 || !imageRefName.MatchString(name):
		p.fail(n, hallmark.CodeImageNotByDigest, "%s: want %s or NAME@sha256:DIGEST, the name in lower case and without a tag", what, none)
	}
	return ImageRef{Name: name, Digest: d}
}

// imageArtifact reads "image: {…}" in the list of artifacts.
func (p *parser) imageArtifact(n *yaml.Node, seen map[string]bool) ImageArtifact {
	var out ImageArtifact
	top := p.fields(n, "an artifact", "image")
	if !p.need(n, top["image"], "image") {
		return out
	}
	in := top["image"]
	f := p.fields(in, "image", "name", "base", "files", "entrypoint", "cmd", "env", "user", "workdir", "labels", "platforms", "dockerfile", "context", "target", "args")
	if p.need(in, f["name"], "name") {
		out.Name = p.text(f["name"], "image.name")
		if len(out.Name) > 100 || !imageName.MatchString(out.Name) {
			p.fail(f["name"], hallmark.CodePipelineArtifactName, "image.name %q: want lower-case letters, digits, dots, underscores and hyphens", out.Name)
		}
		if seen[out.File()] {
			p.fail(f["name"], hallmark.CodePipelineArtifactName, "image %q: another artifact has the name %s", out.Name, out.File())
		}
		seen[out.File()] = true
	}
	if f["platforms"] != nil {
		for _, x := range p.list(f["platforms"], "image.platforms") {
			s := p.text(x, "image.platforms")
			if !platformName.MatchString(s) || slices.Contains(out.Platforms, s) {
				p.fail(x, hallmark.CodePipelineInvalid, "image.platforms: want each of OS/ARCHITECTURE once, such as linux/amd64")
			}
			out.Platforms = append(out.Platforms, s)
		}
	}
	if f["dockerfile"] != nil {
		out.Dockerfile = p.dockerfile(f)
		return out
	}
	for _, k := range []string{"context", "target", "args"} {
		if f[k] != nil {
			p.fail(f[k], hallmark.CodePipelineInvalid, "image.%s: there is no image.dockerfile", k)
		}
	}
	if p.need(in, f["base"], "base") {
		if s := p.text(f["base"], "image.base"); s != "scratch" {
			out.Base = p.imageRef(f["base"], "image.base", "scratch", s)
		}
	}
	if p.need(in, f["files"], "files") {
		out.Files = p.imageFiles(f["files"], out.Platforms)
	}
	p.imageConfig(f, &out)
	return out
}

var stageName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$`)

// dockerfile reads what says how a Dockerfile is built.
func (p *parser) dockerfile(f map[string]*yaml.Node) *Dockerfile {
	for _, k := range []string{"base", "files", "entrypoint", "cmd", "env", "user", "workdir", "labels"} {
		if f[k] != nil {
			p.fail(f[k], hallmark.CodePipelineInvalid, "image.%s: the Dockerfile says it", k)
		}
	}
	inside := func(n *yaml.Node, what string, dot bool) string {
		s := p.text(n, what)
		if s == "" || path.IsAbs(s) || path.Clean(s) != s || s == "." && !dot || s == ".." || strings.HasPrefix(s, "../") {
			p.fail(n, hallmark.CodePipelineInvalid, "%s %q: want a clean path inside the workspace", what, s)
		}
		return s
	}
	out := &Dockerfile{Path: inside(f["dockerfile"], "image.dockerfile", false), Context: ".", Args: map[string]string{}}
	if n := f["context"]; n != nil {
		out.Context = inside(n, "image.context", true)
	}
	if n := f["target"]; n != nil {
		if out.Target = p.text(n, "image.target"); !stageName.MatchString(out.Target) {
			p.fail(n, hallmark.CodePipelineInvalid, "image.target: want the name of a stage")
		}
	}
	if n := f["args"]; n != nil {
		for k, v := range p.fields(n, "image.args") {
			if !envName.MatchString(k) {
				p.fail(n, hallmark.CodePipelineInvalid, "image.args: %q is no name", k)
			}
			out.Args[k] = p.text(v, "image.args."+k)
		}
	}
	return out
}

func (p *parser) imageConfig(f map[string]*yaml.Node, out *ImageArtifact) {
	words := func(n *yaml.Node, what string) []string {
		if n == nil {
			return nil
		}
		var w []string
		for _, x := range p.list(n, what) {
			w = append(w, p.text(x, what))
		}
		return w
	}
	pairs := func(n *yaml.Node, what string) map[string]string {
		if n == nil {
			return nil
		}
		out := map[string]string{}
		for k, v := range p.fields(n, what) {
			if k == "" || strings.ContainsAny(k, "=\x00") {
				p.fail(n, hallmark.CodePipelineInvalid, "%s: %q is no name", what, k)
			}
			out[k] = p.text(v, what+"."+k)
		}
		return out
	}
	out.Entrypoint, out.Cmd = words(f["entrypoint"], "image.entrypoint"), words(f["cmd"], "image.cmd")
	out.Env, out.Labels = pairs(f["env"], "image.env"), pairs(f["labels"], "image.labels")
	if n := f["user"]; n != nil {
		if out.User = p.text(n, "image.user"); !imageUser.MatchString(out.User) {
			p.fail(n, hallmark.CodePipelineInvalid, "image.user: want a name or number, or USER:GROUP, quoted")
		}
	}
	if n := f["workdir"]; n != nil {
		if out.Workdir = p.text(n, "image.workdir"); !path.IsAbs(out.Workdir) || path.Clean(out.Workdir) != out.Workdir {
			p.fail(n, hallmark.CodePipelineInvalid, "image.workdir: want a clean absolute path")
		}
	}
}

func (p *parser) imageFiles(n *yaml.Node, platforms []string) []ImageFile {
	var out []ImageFile
	for _, x := range p.list(n, "image.files") {
		f := p.fields(x, "a file of an image", "from", "to", "mode")
		file := ImageFile{From: map[string]string{}}
		if p.need(x, f["from"], "from") {
			p.imageSource(f["from"], platforms, file.From)
		}
		if p.need(x, f["to"], "to") {
			file.To = p.text(f["to"], "to")
			if !path.IsAbs(file.To) || path.Clean(file.To) != file.To || file.To == "/" || strings.ContainsFunc(file.To, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
				p.fail(f["to"], hallmark.CodePipelineInvalid, "to %q: want a clean absolute path in the image", file.To)
			}
			if strings.HasPrefix(path.Base(file.To), ".wh.") {
				p.fail(f["to"], hallmark.CodePipelineInvalid, "to %q: a name that begins with .wh. removes a file of the base", file.To)
			}
			for _, o := range out {
				if o.To == file.To || strings.HasPrefix(o.To, file.To+"/") || strings.HasPrefix(file.To, o.To+"/") {
					p.fail(f["to"], hallmark.CodePipelineInvalid, "to %q: %s is another file of the image", file.To, o.To)
				}
			}
		}
		if m := f["mode"]; m != nil {
			v, err := strconv.ParseUint(p.text(m, "mode"), 8, 32)
			if err != nil || v == 0 || v > 0o777 {
				p.fail(m, hallmark.CodePipelineInvalid, `mode: want permission bits as a string, such as "0755"; set-user and set-group bits are not given`)
			}
			file.Mode = uint32(v)
		}
		out = append(out, file)
	}
	return out
}

// imageSource reads where a file comes from: one path, or one for each platform.
func (p *parser) imageSource(n *yaml.Node, platforms []string, to map[string]string) {
	one := func(n *yaml.Node, platform string) {
		s := p.text(n, "from")
		if s == "" || path.IsAbs(s) || path.Clean(s) != s || s == "." || s == ".." || strings.HasPrefix(s, "../") {
			p.fail(n, hallmark.CodePipelineInvalid, "from %q: want a clean path inside the workspace", s)
		}
		to[platform] = s
	}
	if n.Kind != yaml.MappingNode {
		one(n, "")
		return
	}
	if len(platforms) == 0 {
		p.fail(n, hallmark.CodePipelineInvalid, "from: a path for each platform needs image.platforms")
		return
	}
	f := p.fields(n, "from", platforms...)
	for _, platform := range platforms {
		if f[platform] == nil {
			p.fail(n, hallmark.CodePipelineInvalid, "from: there is no path for %s", platform)
			return
		}
		one(f[platform], platform)
	}
}

// PlatformList is the platforms of an image; where is the machine's own.
func (i ImageArtifact) PlatformList(where string) []string {
	if len(i.Platforms) == 0 {
		return []string{where}
	}
	return i.Platforms
}

// Sources are the files of the workspace that an image takes for a platform.
func (i ImageArtifact) Sources(platform string) ([]string, error) {
	var out []string
	for _, f := range i.Files {
		s, ok := f.Source(platform)
		if !ok {
			return nil, fmt.Errorf("image %s: there is no %s for %s", i.Name, f.To, platform)
		}
		out = append(out, s)
	}
	return out, nil
}
