// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
)

// compromisedBuilder: builder A is compromised as a whole, down to the watch over
// its own source copy, and signs what it likes. Builder B is honest. In both runs
// a consumer verifies what A released; with the control he asks for a rebuild
// that gave the same bytes.
func compromisedBuilder(ctx context.Context, g *ground, c Control) (effect, error) {
	r, err := g.project("swap", map[string]string{"source.txt": clean, pipeline.PipelineFile: copyStep})
	if err != nil {
		return effect{}, err
	}
	f, err := keep(g, "released by a compromised builder", func() (finished, error) { return g.run(ctx, r, compose(poisoning)) })
	if err != nil {
		return effect{}, err
	}
	artifact := filepath.Join(f.Out, "app")
	if string(f.artifact("app")) != poison {
		return effect{}, fmt.Errorf("the compromised builder released something else: %s", f.codes())
	}
	ask := app.VerifyConfig{Home: g.home.Home, Artifact: artifact, Evidence: f.Out, State: g.path("states", "rebuild")}
	detail := ""
	if c == On {
		ask.Reproduced = &app.Reproduction{}
		res, err := app.Rebuild(ctx, app.RebuildConfig{Verify: app.VerifyConfig{Home: g.home.Home, Evidence: f.Out, State: g.path("states", "rebuild")}, Out: filepath.Join(f.Out, "rebuild")})
		if err != nil {
			return effect{}, err
		}
		if !res.Built || res.Reproduced || res.Difference == nil {
			return effect{}, fmt.Errorf("the honest builder made %+v", res)
		}
		d := res.Difference.First
		if !strings.HasSuffix(string(d.Path), "/out/app") || !strings.HasSuffix(string(d.Program), "/cp") {
			return effect{}, fmt.Errorf("the first difference is %+v", res.Difference)
		}
		detail = fmt.Sprintf("the honest builder's %s differs first, which %s wrote", d.Path, d.Program)
	}
	got, err := app.Verify(ctx, ask)
	if err != nil {
		return effect{}, err
	}
	if got.Decision.Allowed() {
		return effect{done: true, detail: "the consumer accepts the poisoned artifact, under provenance of the clean commit"}, nil
	}
	for _, reason := range got.Decision.Reasons {
		if reason.Code == hallmark.CodeBuildNotReproduced {
			return effect{reason: reason.Code, detail: detail}, nil
		}
	}
	return effect{}, fmt.Errorf("the consumer refuses for another reason: %+v", got.Decision.Reasons)
}

// poisoning is a builder that swaps the source while it is compiled, does not
// watch its copy, and believes nothing that speaks against it.
func poisoning(p *app.BuildParts) {
	p.Watch = func(string, hallmark.Digest) (func() (bool, error), error) {
		return func() (bool, error) { return false, nil }, nil
	}
	p.Authorize = func(build.Policy, build.Facts) hallmark.Decision {
		return hallmark.Decision{Effect: hallmark.Allow}
	}
	real := p.Engine
	p.Engine = func(place app.BuildPlace) build.Engine {
		file := filepath.Join(place.Source, "source.txt")
		st, err := os.Stat(file)
		if err != nil {
			return failing{err}
		}
		return watched{Engine: real(place), act: func() error { return os.WriteFile(file, []byte(poison), 0o644) }, after: func() error {
			return errors.Join(os.WriteFile(file, []byte(clean), 0o644), os.Chtimes(file, st.ModTime(), st.ModTime()))
		}}
	}
}
