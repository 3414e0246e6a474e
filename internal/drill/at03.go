// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"fmt"
	"slices"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
)

// at03 is "administrator weakens a control, acts, restores it": here the agent
// that watches builds.
func at03() []Case {
	return []Case{
		{
			Attack: "AT-03", Letter: "a", Does: "whoever runs the platform takes the tracing agent away, and builds",
			Control: "the build policy counts no build that was not seen whole", Stops: hallmark.CodeTraceIncomplete,
			Residual: "an agent that was replaced by one that lies: the platform's own binary", attack: withoutAgent,
		},
	}
}

func withoutAgent(ctx context.Context, g *ground, c Control) (effect, error) {
	r, err := g.project("unseen", map[string]string{"source.txt": clean, pipeline.PipelineFile: definition("mkdir -p out; cp source.txt out/app", "test -s out/app", "out/app")})
	if err != nil {
		return effect{}, err
	}
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		p.Engine = func(place app.BuildPlace) build.Engine {
			return boxed{place: place, spec: func(s *sandbox.Spec) { s.Trace = nil }}
		}
		real := p.Authorize
		if c == Off {
			p.Authorize = func(pol build.Policy, f build.Facts) hallmark.Decision {
				f.TraceWhole = true
				f.Reasons = slices.DeleteFunc(slices.Clone(f.Reasons), func(r hallmark.Reason) bool { return r.Code == hallmark.CodeTraceIncomplete })
				return real(pol, f)
			}
		}
	}))
	if err != nil {
		return effect{}, err
	}
	_, ok, err := f.provenance("app")
	switch {
	case err != nil:
		return effect{}, err
	case ok:
		return effect{done: true, detail: "the builder signed provenance of a build that nobody saw"}, nil
	case f.artifact("app") != nil:
		return effect{}, fmt.Errorf("an artifact without provenance: %s", f.codes())
	}
	return effect{reason: hallmark.CodeTraceIncomplete, detail: "the build ran and counts for nothing"}, f.denied(ctx, hallmark.CodeTraceIncomplete)
}
