// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
)

// at13 is "compromised toolchain or base image".
func at13() []Case {
	return []Case{
		{
			Attack: "AT-13", Letter: "a", Does: "a tool of the platform is replaced by a script that adds a byte",
			Control: "the approved inventory of tools, of which every program that ran must be", Stops: hallmark.CodeBuildTool,
			Residual: "an inventory that was bad when it was approved", attack: wrappedTool,
		},
		{
			Attack: "AT-13", Letter: "b", Does: "a tool that nobody approved lies on the platform, and a step runs it",
			Control: "the approved inventory of tools, of which every program that ran must be", Stops: hallmark.CodeBuildTool,
			Residual: "what an approved tool, such as an interpreter, is told to do", attack: unlistedTool,
		},
		{
			Attack: "AT-13", Letter: "c", Does: "a step runs a program that it wrote itself a moment before",
			Control: "builtPrograms: deny in the rule of the build", Stops: hallmark.CodeBuildBuiltProgram,
			Residual: "scripts and byte code for an approved interpreter", attack: builtTool,
		},
		{
			Attack: "AT-13", Letter: "d", Does: "go.mod asks for another toolchain, which lies in the way",
			Control: "GOTOOLCHAIN=local: the toolchain is the platform's", Stops: hallmark.CodeBuildStepFailed,
			Residual: "a step that sets another GOTOOLCHAIN itself, which the pipeline definition shows and the inventory stops", attack: toolchainLine,
		},
		{
			Attack: "AT-13", Letter: "e", Does: "one byte of a program of the platform is changed",
			Control: "files of the platform hold the bytes that their packages declare", Stops: hallmark.CodeToolchainAltered,
			Residual: "files of which no package declares a digest, which are listed; whoever makes two files of one MD5, or rewrites the package database too", attack: alteredTool,
		},
		{
			Attack: "AT-13", Letter: "f", Does: "a library that every program of the platform loads is swapped",
			Control: "the approved inventory of tools, of which every library that is read must be", Stops: hallmark.CodeBuildTool,
			Residual: "an inventory that was bad when it was approved; code that is no compiled code, such as modules of an interpreter", attack: swappedLibrary,
		},
		{
			Attack: "AT-13", Letter: "g", Does: "an approved program is made to load a library that nobody approved",
			Control: "the approved inventory of tools, of which every library that is read must be", Stops: hallmark.CodeBuildTool,
			Residual: "a library that the build itself wrote", attack: unlistedLibrary,
		},
	}
}

const replacedTool = "/usr/bin/tr"

// approve gives the home an inventory of the machine's tools and more, and rules
// that hold builds to it; the files that the drill needs are not of packages.
func (g *ground) approve(ctx context.Context, built string, more ...build.InventoryProgram) error {
	_, err := keep(g, "rules with builtPrograms "+built, func() (bool, error) {
		file, err := keep(g, "inventory", func() (string, error) {
			inv, err := app.ToolInventory(ctx)
			if err != nil {
				return "", err
			}
			inv.Programs = append(inv.Programs, more...)
			slices.SortFunc(inv.Programs, func(a, b build.InventoryProgram) int { return strings.Compare(string(a.Path), string(b.Path)) })
			raw, err := inv.Encode()
			if err != nil {
				return "", err
			}
			return g.path("tools.json"), os.WriteFile(g.path("tools.json"), raw, 0o600)
		})
		if err != nil {
			return false, err
		}
		rules := policy.FirstBuildRules(nil)
		rules.Rules[0].Tools = policy.BuildTools{Inventory: "drill", BuiltPrograms: built}
		return true, g.rule(ctx, rules, []string{"drill=" + file}, [2]string{"build.unexplained", "record"})
	})
	return err
}

// rule puts other build rules in force.
func (g *ground) rule(ctx context.Context, rules *policy.BuildRules, inventories []string, more ...[2]string) error {
	text, err := rules.YAML()
	if err != nil {
		return err
	}
	file := g.path("rules.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return err
	}
	change, err := app.ReadBuild(ctx, g.home.Home, file, inventories)
	if err != nil {
		return err
	}
	_, err = app.PolicySet(ctx, g.home.Home, nil, append(more, change))
	return err
}

// anyTool is the build policy without its inventory.
func anyTool(p *app.BuildParts) {
	real := p.Permit
	p.Permit = func(q build.Request) (build.Rule, *hallmark.Reason) {
		r, refused := real(q)
		return build.Rule{Name: r.Name, AnyTool: true, Built: true}, refused
	}
}

// onPlatform shows every step more of the platform.
func onPlatform(p *app.BuildParts, mounts ...sandbox.Mount) {
	real := p.Engine
	p.Engine = func(place app.BuildPlace) build.Engine {
		place.Mounts = append(slices.Clone(place.Mounts), mounts...)
		return real(place)
	}
}

// tool writes a file of the attacker's platform.
func (g *ground) tool(name string, content []byte) (string, error) {
	dir := g.path("platform")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return dir, os.WriteFile(g.path("platform", name), content, 0o755)
}

// toolEffect looks whether the attacker's byte is in an artifact with provenance.
func (f finished) toolEffect(ctx context.Context, stopped hallmark.Code, named ...string) (effect, error) {
	_, ok, err := f.provenance("app")
	if err != nil {
		return effect{}, err
	}
	if ok && strings.Contains(string(f.artifact("app")), strings.TrimSpace(poison)) {
		return effect{done: true, detail: "the artifact holds what the tool put there, under provenance of the reviewed commit"}, nil
	}
	if ok {
		return effect{}, fmt.Errorf("the tool did nothing: %q", f.artifact("app"))
	}
	for _, r := range f.Verdict.Decision.Reasons {
		said := r.Code == stopped
		for _, n := range named {
			said = said && strings.Contains(r.Message, n)
		}
		if said {
			return effect{reason: stopped, detail: r.Message}, f.denied(ctx, stopped)
		}
	}
	return effect{}, fmt.Errorf("want a denial for %s that names %q: %s", stopped, named, f.codes())
}

func wrappedTool(ctx context.Context, g *ground, c Control) (effect, error) {
	if err := g.approve(ctx, "allow"); err != nil {
		return effect{}, err
	}
	wrapper := []byte("#!/bin/sh\n/usr/bin/cat\necho poisoned\n")
	dir, err := g.tool("tr", wrapper)
	if err != nil {
		return effect{}, err
	}
	r, err := g.project("wrapped", map[string]string{"source.txt": clean, pipeline.PipelineFile: definition("mkdir -p out; tr a a < source.txt > out/app", "test -s out/app", "out/app")})
	if err != nil {
		return effect{}, err
	}
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		if c == Off {
			anyTool(p)
		}
		onPlatform(p, sandbox.Mount{Source: dir + "/tr", Target: replacedTool})
	}))
	if err != nil {
		return effect{}, err
	}
	return f.toolEffect(ctx, hallmark.CodeBuildTool, replacedTool, string(hallmark.DigestOf(wrapper)))
}

func unlistedTool(ctx context.Context, g *ground, c Control) (effect, error) {
	if err := g.approve(ctx, "allow"); err != nil {
		return effect{}, err
	}
	program, err := os.ReadFile("/usr/bin/printf")
	if err != nil {
		return effect{}, hallmark.Errorf(hallmark.KindUnavailable, "reading a program: %w", err)
	}
	program = append(program, 0) // another digest, the same behaviour
	dir, err := g.tool("helper", program)
	if err != nil {
		return effect{}, err
	}
	r, err := g.project("unlisted", map[string]string{"source.txt": clean, pipeline.PipelineFile: definition("mkdir -p out; /opt/drill/helper poisoned > out/app", "test -s out/app", "out/app")})
	if err != nil {
		return effect{}, err
	}
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		if c == Off {
			anyTool(p)
		}
		onPlatform(p, sandbox.Mount{Source: dir, Target: "/opt/drill"})
	}))
	if err != nil {
		return effect{}, err
	}
	return f.toolEffect(ctx, hallmark.CodeBuildTool, "/opt/drill/helper", string(hallmark.DigestOf(program)))
}

func builtTool(ctx context.Context, g *ground, c Control) (effect, error) {
	if err := g.approve(ctx, "deny"); err != nil {
		return effect{}, err
	}
	step := "mkdir -p out; (cat /usr/bin/printf; printf x) > own; chmod 755 own; ./own poisoned > out/app"
	r, err := g.project("built", map[string]string{"source.txt": clean, pipeline.PipelineFile: definition(step, "test -s out/app", "out/app")})
	if err != nil {
		return effect{}, err
	}
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		if c == Off {
			anyTool(p)
		}
	}))
	if err != nil {
		return effect{}, err
	}
	return f.toolEffect(ctx, hallmark.CodeBuildBuiltProgram, "/own")
}

// withEnv changes the environment of every step.
type withEnv struct {
	build.Engine
	set map[string]string
}

func (e withEnv) Run(ctx context.Context, c build.Command, out io.Writer) (build.CommandReport, error) {
	c.Env = slices.Clone(c.Env)
	for i, kv := range c.Env {
		k, v, _ := strings.Cut(kv, "=")
		if to, ok := e.set[k]; ok {
			c.Env[i] = k + "=" + strings.ReplaceAll(to, "$"+k, v)
		}
	}
	return e.Engine.Run(ctx, c, out)
}

// toolchainLine: in both runs the other toolchain lies in PATH, as one that was
// fetched or installed before does, and programs are not restricted.
func toolchainLine(ctx context.Context, g *ground, c Control) (effect, error) {
	if err := g.approve(ctx, "deny"); err != nil {
		return effect{}, err
	}
	dir, err := g.tool("go1.99.0", []byte("#!/bin/sh\nmkdir -p out\necho poisoned > out/app\n"))
	if err != nil {
		return effect{}, err
	}
	if _, err := sandbox.Find("go"); err != nil {
		return effect{}, hallmark.Errorf(hallmark.KindUnavailable, "the case needs Go: %w", err)
	}
	r, err := g.project("toolchain", map[string]string{
		"main.go": "package main\n\nfunc main() {}\n", "go.mod": "module example.org/app\n\ngo 1.99.0\n",
		pipeline.PipelineFile: definition("mkdir -p out; go build -o out/app .", "test -s out/app", "out/app"),
	})
	if err != nil {
		return effect{}, err
	}
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		anyTool(p)
		onPlatform(p, sandbox.Mount{Source: dir, Target: "/opt/drill"})
		set := map[string]string{"PATH": "/opt/drill:$PATH"}
		if c == Off {
			set["GOTOOLCHAIN"] = "path"
		}
		real := p.Engine
		p.Engine = func(place app.BuildPlace) build.Engine { return withEnv{real(place), set} }
	}))
	if err != nil {
		return effect{}, err
	}
	return f.toolEffect(ctx, hallmark.CodeBuildStepFailed, "1.99.0", "GOTOOLCHAIN=local")
}
