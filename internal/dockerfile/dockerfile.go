// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package dockerfile turns a Dockerfile into a plan: which images it is made
// from, and what has to be done in which order. Whatever can't be done here as it
// stands is refused with its line; nothing is left out silently. The package
// reads no file, runs nothing and opens no socket.
package dockerfile

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"github.com/hallmark-sc/hallmark"
)

// Config is a Dockerfile and what it is built for.
type Config struct {
	Name   string // of the file, in errors
	Text   []byte
	Target string // stage that is the result; empty is the last
	// Platform is what the image is for, BuildPlatform what this machine runs:
	// OS/ARCHITECTURE[/VARIANT].
	Platform, BuildPlatform string
	// Fixed are build arguments that the pipeline file says; Parameters are its
	// external parameters, which an ARG of the same name gets.
	Fixed, Parameters map[string]string
}

// Image is an image of the home, by digest.
type Image struct {
	Name     string
	Digest   hallmark.Digest
	Platform string
}

func (i Image) String() string { return i.Name + "@" + string(i.Digest) }

// Base is what a stage begins with: exactly one of an image, an earlier stage or
// nothing.
type Base struct {
	Image *Image
	Stage int // number in Plan.Stages, where Image is nil and Empty false
	Empty bool
}

// Stage is one stage that the result needs.
type Stage struct {
	Name string // as the Dockerfile has it, or its number
	Line int
	Base Base
	// Platform is that of the base, or of the image where there is none.
	Platform string
	Runs     bool // has a RUN

	commands []instructions.Command
}

// Plan is what a Dockerfile asks for. The last stage is the result.
type Plan struct {
	Stages []Stage
	Images []Image // that are copied from, each once
	Name   string

	cfg  Config
	args map[string]string // ARG before the first FROM
	used map[string]bool   // build arguments that an ARG declares
	from []map[instructions.Command]Base
	lex  rune
}

const (
	maxText   = 1 << 20
	maxStages = 50
	maxSteps  = 500
)

// where begins an error: every refusal names file and line.
func (p *Plan) where(line int) string { return p.Name + ":" + strconv.Itoa(line) }

func (p *Plan) refuse(line int, format string, args ...any) error {
	return hallmark.WithHint(hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageDockerfile, "%s: %s", p.where(line), fmt.Sprintf(format, args...)),
		"docs/design/image.md says which instructions are built; take the line out, or do it in a step of the pipeline and COPY the result")
}

func (p *Plan) invalid(line int, format string, args ...any) error {
	return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageDockerfileInvalid, "%s: %s", p.where(line), fmt.Sprintf(format, args...))
}

func lineOf(at []parser.Range) int {
	if len(at) == 0 {
		return 1
	}
	return at[0].Start.Line
}

// Parse reads a Dockerfile and finds its stages and images. Instructions are
// judged by Evaluate, which needs the configurations of the images.
func Parse(cfg Config) (*Plan, error) {
	p := &Plan{Name: cfg.Name, cfg: cfg, args: map[string]string{}, used: map[string]bool{}}
	if len(cfg.Text) > maxText {
		return nil, p.invalid(1, "the file has %d bytes, more than %d", len(cfg.Text), maxText)
	}
	if bytes.ContainsRune(cfg.Text, 0) {
		return nil, p.invalid(1, "the file holds a zero byte")
	}
	for _, key := range []string{"syntax", "check"} {
		if v, _, at, ok := parser.ParseDirective(key, cfg.Text); ok {
			return nil, p.refuse(lineOf(at), "# %s=%.100s: no other frontend reads a Dockerfile here, and no comment changes how it is read", key, v)
		}
	}
	ast, err := parser.Parse(bytes.NewReader(cfg.Text))
	if err != nil {
		return nil, p.parseError(err)
	}
	p.lex = ast.EscapeToken
	for _, n := range ast.AST.Children {
		if strings.EqualFold(n.Value, "onbuild") || strings.EqualFold(n.Value, "maintainer") {
			return nil, p.refuse(n.StartLine, "%s is not supported", strings.ToUpper(n.Value))
		}
		for _, f := range n.Flags {
			if err := p.flag(n, f); err != nil {
				return nil, err
			}
		}
	}
	stages, meta, err := instructions.Parse(ast.AST, nil)
	if err != nil {
		return nil, p.parseError(err)
	}
	if len(stages) == 0 {
		return nil, p.invalid(1, "there is no FROM")
	}
	if len(stages) > maxStages {
		return nil, p.refuse(lineOf(stages[maxStages].Location), "more than %d stages", maxStages)
	}
	if err := p.metaArgs(meta); err != nil {
		return nil, err
	}
	return p, p.stages(stages)
}

// flag refuses the flags of instructions that change where or with which rights
// something is done, before their values are read.
func (p *Plan) flag(n *parser.Node, flag string) error {
	name, value, _ := strings.Cut(strings.TrimLeft(flag, "-"), "=")
	word := strings.ToLower(n.Value)
	known := map[string][]string{
		"from": {"platform"}, "copy": {"from", "chown", "chmod", "link"}, "add": {"chown", "chmod", "link"},
		"healthcheck": {"interval", "timeout", "start-period", "retries"},
	}
	switch {
	case slices.Contains(known[word], name):
		return nil
	case word == "run" && name == "network" && value == "none", word == "run" && name == "security" && value == "sandbox":
		return nil // what every RUN has here
	case word == "run" && name == "network":
		return p.refuse(n.StartLine, "RUN --network=%.40s: a build reaches no network", value)
	case word == "run" && name == "security":
		return p.refuse(n.StartLine, "RUN --security=%.40s: every RUN is in the sandbox", value)
	case word == "run" && name == "mount":
		return p.refuse(n.StartLine, "RUN --mount=%.80s: nothing is mounted into a RUN; COPY what it needs", value)
	}
	return p.refuse(n.StartLine, "%s --%.40s is not supported", strings.ToUpper(n.Value), name)
}

// parseError gives an error of the parser the line that it knows.
func (p *Plan) parseError(err error) error {
	line := 1
	var at *parser.LocationError
	if errors.As(err, &at) && len(at.Locations) > 0 {
		line = max(1, lineOf(at.Locations[0]))
	}
	text := err.Error()
	if i := strings.Index(text, "dockerfile parse error on line "); i >= 0 {
		if _, rest, ok := strings.Cut(text[i:], ": "); ok {
			text = rest
		}
	}
	var unknown *instructions.UnknownInstructionError
	if errors.As(err, &unknown) {
		return p.refuse(cmp.Or(unknown.Line, line), "unknown instruction %.40q", unknown.Instruction)
	}
	return p.invalid(line, "%s", strings.ReplaceAll(text, "\n", " "))
}

// environment is where words find their variables.
type environment map[string]string

func (e environment) Get(name string) (string, bool) {
	v, ok := e[name]
	return v, ok
}

// Keys implements shell.EnvGetter.
func (e environment) Keys() []string { return slices.Sorted(maps.Keys(e)) }

func (p *Plan) expand(line int, word string, env environment) (string, error) {
	out, _, err := shell.NewLex(p.lex).ProcessWord(word, env)
	if err != nil {
		return "", p.invalid(line, "%s", err)
	}
	return out, nil
}

// platformArgs are the arguments that every Dockerfile may ask for.
func (p *Plan) platformArgs() map[string]string {
	out := map[string]string{}
	for prefix, s := range map[string]string{"TARGET": p.cfg.Platform, "BUILD": p.cfg.BuildPlatform} {
		f := append(strings.Split(s, "/"), "", "", "")
		out[prefix+"PLATFORM"], out[prefix+"OS"], out[prefix+"ARCH"], out[prefix+"VARIANT"] = s, f[0], f[1], f[2]
	}
	return out
}

// given is the value of a build argument that comes from outside of the file.
func (p *Plan) given(name string) (string, bool) {
	p.used[name] = true
	if v, ok := p.cfg.Fixed[name]; ok {
		return v, true
	}
	v, ok := p.cfg.Parameters[name]
	return v, ok
}

func (p *Plan) metaArgs(meta []instructions.ArgCommand) error {
	for name, v := range p.platformArgs() {
		p.args[name] = v
	}
	for _, c := range meta {
		line := lineOf(c.Location())
		for _, a := range c.Args {
			if v, ok := p.given(a.Key); ok {
				p.args[a.Key] = v
				continue
			}
			if a.Value == nil {
				continue
			}
			v, err := p.expand(line, *a.Value, p.args)
			if err != nil {
				return err
			}
			p.args[a.Key] = v
		}
	}
	return nil
}

var platformName = regexp.MustCompile(`^[a-z0-9]+/[a-z0-9]+(/[a-z0-9]+)?$`)

// stages finds the base of every stage and keeps those that the result needs.
func (p *Plan) stages(all []instructions.Stage) error {
	target := len(all) - 1
	if p.cfg.Target != "" {
		i, ok := instructions.HasStage(all, p.cfg.Target)
		if n, err := strconv.Atoi(p.cfg.Target); !ok && err == nil && n >= 0 && n < len(all) {
			i, ok = n, true
		}
		if !ok {
			return p.invalid(1, "there is no stage %.80q to build", p.cfg.Target)
		}
		target = i
	}
	steps := 0
	made := make([]Stage, len(all))
	from := make([]map[instructions.Command]Base, len(all))
	needs := make([][]int, len(all))
	for i, s := range all {
		if steps += len(s.Commands); steps > maxSteps {
			return p.refuse(lineOf(s.Location), "more than %d instructions", maxSteps)
		}
		made[i] = Stage{Name: cmp.Or(s.Name, strconv.Itoa(i)), Line: lineOf(s.Location), Platform: p.cfg.Platform, commands: s.Commands}
		if j, ok := instructions.HasStage(all[:i], s.Name); ok && s.Name != "" {
			return p.invalid(made[i].Line, "the stage %.80q stands twice, first in line %d", s.Name, made[j].Line)
		}
		if err := p.base(&made[i], s, all[:i], made); err != nil {
			return err
		}
		if b := made[i].Base; b.Image == nil && !b.Empty {
			needs[i] = append(needs[i], b.Stage)
		}
		from[i] = map[instructions.Command]Base{}
		for _, c := range s.Commands {
			switch c := c.(type) {
			case *instructions.RunCommand:
				made[i].Runs = true
			case *instructions.CopyCommand:
				b, err := p.copiedFrom(c, all[:i])
				if err != nil {
					return err
				}
				from[i][c] = b
				if c.From != "" && b.Image == nil {
					needs[i] = append(needs[i], b.Stage)
				}
			}
		}
	}
	p.keep(made, from, needs, target)
	return p.unused()
}

// base finds what a stage begins with.
func (p *Plan) base(out *Stage, s instructions.Stage, before []instructions.Stage, made []Stage) error {
	name, err := p.expand(out.Line, s.BaseName, p.args)
	if err != nil {
		return err
	}
	if s.Platform != "" {
		if out.Platform, err = p.expand(out.Line, s.Platform, p.args); err != nil {
			return err
		}
		if !platformName.MatchString(out.Platform) {
			return p.invalid(out.Line, "FROM --platform=%.80s: want OS/ARCHITECTURE, such as linux/amd64", out.Platform)
		}
	}
	if j, ok := instructions.HasStage(before, name); ok {
		if s.Platform != "" && out.Platform != made[j].Platform {
			return p.refuse(out.Line, "FROM --platform=%s: the stage %s is for %s", out.Platform, name, made[j].Platform)
		}
		out.Base, out.Platform = Base{Stage: j}, made[j].Platform
		return nil
	}
	if name == "scratch" {
		out.Base = Base{Empty: true}
		return nil
	}
	img, err := p.image(out.Line, "FROM", name)
	if err != nil {
		return err
	}
	img.Platform = out.Platform
	out.Base = Base{Image: &img}
	return nil
}

var imageRefName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]*[a-z0-9])?((:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+)?$`)

// image reads NAME@sha256:DIGEST.
func (p *Plan) image(line int, what, s string) (Image, error) {
	name, digest, at := strings.Cut(s, "@")
	d := hallmark.Digest(digest)
	if !at || d.Check() != nil || len(name) > 255 || !imageRefName.MatchString(name) {
		return Image{}, hallmark.WithHint(hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageNotByDigest,
			"%s: %s %.200q: want scratch, an earlier stage or NAME@sha256:DIGEST without a tag, which may mean another image tomorrow", p.where(line), what, s),
			"name the image by the digest that its publisher gives for it")
	}
	return Image{Name: name, Digest: d}, nil
}

// copiedFrom finds what a COPY takes its files from; without --from, the context.
func (p *Plan) copiedFrom(c *instructions.CopyCommand, before []instructions.Stage) (Base, error) {
	if c.From == "" {
		return Base{}, nil
	}
	line := lineOf(c.Location())
	if n, err := strconv.Atoi(c.From); err == nil {
		if n < 0 || n >= len(before) {
			return Base{}, p.invalid(line, "COPY --from=%s: there is no such stage before", c.From)
		}
		return Base{Stage: n}, nil
	}
	if j, ok := instructions.HasStage(before, c.From); ok {
		return Base{Stage: j}, nil
	}
	if strings.Contains(c.From, "$") {
		return Base{}, p.refuse(line, "COPY --from=%.80s: variables are not expanded there", c.From)
	}
	img, err := p.image(line, "COPY --from", c.From)
	img.Platform = p.cfg.Platform
	return Base{Image: &img}, err
}

// keep keeps the stages that the target is made from, under new numbers.
func (p *Plan) keep(made []Stage, from []map[instructions.Command]Base, needs [][]int, target int) {
	wanted := map[int]bool{}
	var want func(int)
	want = func(i int) {
		if !wanted[i] {
			wanted[i] = true
			for _, j := range needs[i] {
				want(j)
			}
		}
	}
	want(target)
	number := map[int]int{}
	for i, s := range made {
		for _, c := range s.commands { // an argument counts as declared in a stage that is left out too
			if a, ok := c.(*instructions.ArgCommand); ok {
				for _, kv := range a.Args {
					p.used[kv.Key] = true
				}
			}
		}
		if !wanted[i] {
			continue
		}
		number[i] = len(p.Stages)
		if s.Base.Image == nil && !s.Base.Empty {
			s.Base.Stage = number[s.Base.Stage]
		}
		for c, b := range from[i] {
			if b.Image == nil {
				b.Stage = number[b.Stage]
				from[i][c] = b
			} else if !slices.Contains(p.Images, *b.Image) {
				p.Images = append(p.Images, *b.Image)
			}
		}
		p.Stages, p.from = append(p.Stages, s), append(p.from, from[i])
	}
	slices.SortFunc(p.Images, func(a, b Image) int { return strings.Compare(a.String(), b.String()) })
}

// unused refuses a build argument that nothing asks for.
func (p *Plan) unused() error {
	for _, name := range slices.Sorted(maps.Keys(p.cfg.Fixed)) {
		if !p.used[name] {
			return p.invalid(1, "the pipeline sets the build argument %s, which no ARG declares", name)
		}
	}
	return nil
}

// Bases are the images that stages begin with, in their order; runs says whether
// programs of it are run.
func (p *Plan) Bases() (all []Image, runs map[Image]bool) {
	runs = map[Image]bool{}
	root := make([]*Image, len(p.Stages))
	for i, s := range p.Stages {
		root[i] = s.Base.Image
		if s.Base.Image == nil && !s.Base.Empty {
			root[i] = root[s.Base.Stage]
		}
		if root[i] == nil {
			continue
		}
		if !slices.Contains(all, *root[i]) {
			all = append(all, *root[i])
		}
		if s.Runs {
			runs[*root[i]] = true
		}
	}
	return all, runs
}
