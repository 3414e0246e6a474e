// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
)

// at22 is "what is built or shipped is not what was reviewed" (xz).
func at22() []Case {
	return []Case{
		{
			Attack: "AT-22", Letter: "a", Does: "a compiled program lies among the test data, and a step runs it", Control: "the tree is searched for compiled code, by content",
			Stops: hallmark.CodeSourceBinary, Residual: "a program that is compressed or encoded, as that of xz was, or one in a language that is read as text", attack: hiddenProgram,
		},
		{
			Attack: "AT-22", Letter: "b", Does: "a file under vendor/ is edited; go.mod and go.sum are as they were", Control: "vendored files are compared with the modules that go.sum vouches for",
			Stops: hallmark.CodeDependencyVendor, Residual: "a module that was malicious when go.sum was written", attack: editedVendor,
		},
		{
			Attack: "AT-22", Letter: "c", Does: "a committed generated file is not what its generator makes", Control: "what a step regenerates is compared with the commit",
			Stops: hallmark.CodeSourceGenerated, Residual: "a generated file that the pipeline does not name, and a generator that only copies what was committed", attack: editedGenerated,
		},
		{
			Attack: "AT-22", Letter: "d", Does: "the source archive of a release holds a file that is not in git", Control: "an archive of the source is compared with the commit",
			Stops: hallmark.CodeSourceArchive, Residual: "an archive that the pipeline declares as any other artifact", attack: stuffedArchive,
		},
	}
}

// unsearched is a source whose check does not mind what it found in the tree.
type unsearched struct{ pipeline.Source }

func (s unsearched) Check(ctx context.Context, rev string) (pipeline.SourceFacts, error) {
	f, err := s.Source.Check(ctx, rev)
	if c := f.Provenance.Check; err == nil && c != nil && c.Outcome == hallmark.Fail {
		c.Reasons = slices.DeleteFunc(c.Reasons, func(r hallmark.Reason) bool { return r.Code == hallmark.CodeSourceBinary })
		if len(c.Reasons) == 0 {
			c.Outcome, c.Reasons = hallmark.Pass, nil
		}
	}
	return f, err
}

func hiddenProgram(ctx context.Context, g *ground, c Control) (effect, error) {
	echo, err := exec.LookPath("echo")
	if err != nil {
		return effect{}, hallmark.Errorf(hallmark.KindUnavailable, "finding a program to hide: %w", err)
	}
	program, err := os.ReadFile(echo)
	if err != nil {
		return effect{}, err
	}
	step := "mkdir -p out; cp testdata/sample.lzma out/echo; chmod +x out/echo; out/echo poisoned > out/app"
	r, err := g.project("hidden-program", map[string]string{"testdata/sample.lzma": string(program), "source.txt": clean, pipeline.PipelineFile: definition(step, "test -s out/app", "out/app")})
	if err != nil {
		return effect{}, err
	}
	f, err := g.run(ctx, r, func(pc *pipeline.Config) error {
		if c == Off {
			pc.Source = unsearched{pc.Source}
		}
		return nil
	})
	if err != nil {
		return effect{}, err
	}
	return f.unlessDenied(ctx, hallmark.CodeSourceBinary, "the program of the test data is not run")
}

// unlessDenied looks for the poisoned byte in a release.
func (f finished) unlessDenied(ctx context.Context, stops hallmark.Code, detail string) (effect, error) {
	if f.artifact("app") != nil {
		return f.sourceEffect("")
	}
	return effect{reason: stops, detail: detail}, f.denied(ctx, stops)
}

// unvendored is a resolver that has no sight of vendored files.
type unvendored struct {
	pipeline.Resolver
	dir string // for a copy of the source without them
}

func (r unvendored) without(e pipeline.Export) (pipeline.Export, error) {
	if _, err := os.Stat(r.dir); errors.Is(err, os.ErrNotExist) {
		if err := os.CopyFS(r.dir, os.DirFS(e.Dir)); err != nil {
			return e, fmt.Errorf("copying the source: %w", err)
		}
		if err := os.RemoveAll(filepath.Join(r.dir, "vendor")); err != nil {
			return e, err
		}
	}
	e.Dir = r.dir
	return e, nil
}

// Plan implements pipeline.Resolver.
func (r unvendored) Plan(ctx context.Context, e pipeline.Export) (hallmark.Digest, error) {
	e, err := r.without(e)
	if err != nil {
		return "", err
	}
	return r.Resolver.Plan(ctx, e)
}

// Fetch implements pipeline.Resolver.
func (r unvendored) Fetch(ctx context.Context, e pipeline.Export, dest string) (pipeline.Dependencies, error) {
	e, err := r.without(e)
	if err != nil {
		return pipeline.Dependencies{}, err
	}
	return r.Resolver.Fetch(ctx, e, dest)
}

// Verify implements pipeline.Resolver.
func (r unvendored) Verify(ctx context.Context, e pipeline.Export, dest string) (pipeline.Dependencies, error) {
	e, err := r.without(e)
	if err != nil {
		return pipeline.Dependencies{}, err
	}
	return r.Resolver.Verify(ctx, e, dest)
}

func editedVendor(ctx context.Context, g *ground, c Control) (_ effect, err error) {
	lib := map[string]string{"go.mod": "module example.com/lib\n\ngo 1.21\n", "lib.go": "package lib\n", "data.txt": clean}
	proxy, sum, err := g.moduleProxy("example.com/lib", "v1.0.0", lib)
	if err != nil {
		return effect{}, err
	}
	back, err := g.parameter(ctx, "registries.go", proxy)
	if err != nil {
		return effect{}, err
	}
	defer func() { err = errors.Join(err, back()) }()
	r, err := g.project("edited-vendor", map[string]string{
		"go.mod": "module example.com/app\n\ngo 1.21\n\nrequire example.com/lib v1.0.0\n", "go.sum": sum,
		"app.go":             "package app\n\nimport _ \"example.com/lib\"\n",
		"vendor/modules.txt": "# example.com/lib v1.0.0\n## explicit; go 1.21\nexample.com/lib\n", "vendor/example.com/lib/lib.go": lib["lib.go"],
		"vendor/example.com/lib/data.txt": poison,
		pipeline.PipelineFile:             definition("mkdir -p out; cp vendor/example.com/lib/data.txt out/app", "test -s out/app", "out/app"),
	})
	if err != nil {
		return effect{}, err
	}
	f, err := g.run(ctx, r, func(pc *pipeline.Config) error {
		if c == Off {
			g.outs++
			pc.Resolver = unvendored{Resolver: pc.Resolver, dir: g.path("unvendored", fmt.Sprint(g.outs))}
		}
		return nil
	})
	if err != nil {
		return effect{}, err
	}
	return f.unlessDenied(ctx, hallmark.CodeDependencyVendor, "the module that go.sum vouches for has another file")
}

func editedGenerated(ctx context.Context, g *ground, c Control) (effect, error) {
	def := "apiVersion: hallmark/v1\nkind: Pipeline\nbuild:\n  steps:\n    - run: mkdir -p out; cp generated.txt out/app\n" +
		"    - name: generate\n      run: sed s/template/reviewed/ template.txt > generated.txt\n      regenerates: [generated.txt]\n    - name: test\n      run: test -s out/app\n  artifacts: [out/app]\n"
	r, err := g.project("edited-generated", map[string]string{"template.txt": "template\n", "generated.txt": poison, pipeline.PipelineFile: def})
	if err != nil {
		return effect{}, err
	}
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		if c == Off {
			p.Regenerated = func(string, string, []string) []hallmark.Reason { return nil }
		}
	}))
	if err != nil {
		return effect{}, err
	}
	return f.unlessDenied(ctx, hallmark.CodeSourceGenerated, "the generator makes another file")
}

func stuffedArchive(ctx context.Context, g *ground, c Control) (effect, error) {
	const step = "mkdir -p out /tmp/app; cp -r source.txt .hallmark /tmp/app; echo poisoned > /tmp/app/build-to-host.m4; tar -C /tmp -cf out/app.tar app"
	def := definition(step, "test -s out/app.tar", "source: out/app.tar")
	r, err := g.project("stuffed-archive", map[string]string{"source.txt": clean, pipeline.PipelineFile: def})
	if err != nil {
		return effect{}, err
	}
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		if c == Off {
			p.SourceArchive = func(string, string, []byte) *hallmark.Reason { return nil }
		}
	}))
	if err != nil {
		return effect{}, err
	}
	b := f.artifact("app.tar")
	if b == nil {
		return effect{reason: hallmark.CodeSourceArchive, detail: "the archive is not published"}, f.denied(ctx, hallmark.CodeSourceArchive)
	}
	p, ok, err := f.provenance("app.tar")
	if err != nil || !ok || p.BuildDefinition.ExternalParameters.Revision != f.Revision.Commit || !bytes.Contains(b, []byte(poison)) {
		return effect{}, errors.Join(fmt.Errorf("no poisoned archive under provenance of the commit: %s", f.codes()), err)
	}
	return effect{done: true, detail: "the file is in the archive, under provenance of a commit without it"}, nil
}
