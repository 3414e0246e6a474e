// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"fmt"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/policy"
)

// at15 is "right platform, wrong inputs", as far as the build itself goes: every
// commit is well signed, every step is the pipeline's.
func at15() []Case {
	rules := "the rules of the signed build policy, asked before the sandbox starts"
	return []Case{
		{
			Attack: "AT-15", Letter: "a", Does: "an operator has a fork built by the platform",
			Control: rules, Stops: hallmark.CodeBuildNotPermitted,
			Residual: "whoever starts the run names the repository: a local home can't tell a copy from its origin", attack: wrongBuild(nil, func(r *policy.BuildRule, _ repository) { r.Repositories = []string{"https://example.org/official"} }, ""),
		},
		{
			Attack: "AT-15", Letter: "b", Does: "a branch that nobody reviewed is built",
			Control: rules, Stops: hallmark.CodeBuildNotPermitted,
			Residual: "a branch of the right name in a repository whose refs nobody guards", attack: wrongBuild(nil, func(r *policy.BuildRule, at repository) {
				r.Repositories, r.Refs = []string{at.uri}, []string{"refs/heads/main"}
			}, "refs/heads/feature"),
		},
		{
			Attack: "AT-15", Letter: "c", Does: "a parameter that the pipeline knows and nobody permitted turns a check off",
			Control: rules, Stops: hallmark.CodeBuildParameter,
			Residual: "a value that the policy permits", attack: wrongBuild(map[string]string{"CHECKS": "off"}, func(r *policy.BuildRule, _ repository) {
				r.Parameters = map[string]policy.BuildParameter{"CHECKS": {Values: []string{"on"}}}
			}, ""),
		},
		{
			Attack: "AT-15", Letter: "d", Does: "somebody who may use the machine asks for a release build",
			Control: rules, Stops: hallmark.CodeBuildRequester,
			Residual: "who holds the home's keys is the operator", attack: wrongBuild(nil, func(r *policy.BuildRule, _ repository) { r.Requesters = []string{"uid:4000000000"} }, ""),
		},
		{
			Attack: "AT-15", Letter: "e", Does: "a build happens off the platform that the policy names",
			Control: rules, Stops: hallmark.CodeBuildPlatform,
			Residual: "none in the platform's own word: a builder that lies about itself is another builder", attack: wrongBuild(nil, func(r *policy.BuildRule, _ repository) {
				r.Platforms = []policy.BuildPlatform{{Builder: r.Platforms[0].Builder, Image: string(hallmark.DigestOf([]byte("image")))}}
			}, ""),
		},
	}
}

// wrongBuild asks for a build that the rule, which change makes, does not permit.
// Without the control every request is permitted; the effect is provenance that
// the builder signed.
func wrongBuild(given map[string]string, change func(*policy.BuildRule, repository), rev string) func(context.Context, *ground, Control) (effect, error) {
	return func(ctx context.Context, g *ground, c Control) (effect, error) {
		r, err := g.project("wrong-inputs", map[string]string{"source.txt": clean, pipeline.PipelineFile: parameterized})
		if err != nil {
			return effect{}, err
		}
		rules := policy.FirstBuildRules(nil)
		change(&rules.Rules[0], r)
		if err := g.rule(ctx, rules, nil); err != nil {
			return effect{}, err
		}
		if rev != "" {
			if _, err := git(ctx, r, "", "update-ref", rev, r.commit); err != nil {
				return effect{}, err
			}
			r.commit = rev
		}
		r.parameters = given
		ran := false
		f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
			if c == Off {
				p.Permit = func(build.Request) (build.Rule, *hallmark.Reason) {
					return build.Rule{Name: "none", AnyTool: true, Built: true}, nil
				}
			}
			real := p.Engine
			p.Engine = func(place app.BuildPlace) build.Engine { ran = true; return real(place) }
		}))
		if err != nil {
			return effect{}, err
		}
		_, ok, err := f.provenance("app")
		if err != nil {
			return effect{}, err
		}
		if ok && ran {
			return effect{done: true, detail: "the builder signed provenance of it"}, nil
		}
		if ok || ran {
			return effect{}, fmt.Errorf("a sandbox started: %s", f.codes())
		}
		for _, reason := range f.Verdict.Decision.Reasons {
			if reason.Check == "build" && reason.Field != "" && reason.Nearest != "" && reason.Fix != "" {
				return effect{reason: reason.Code, detail: reason.Message}, f.denied(ctx, reason.Code)
			}
		}
		return effect{}, fmt.Errorf("want a reason with the nearest rule and what would mend it: %s", f.codes())
	}
}

const parameterized = `apiVersion: hallmark/v1
kind: Pipeline
build:
  parameters:
    CHECKS:
      values: ["on", "off"]
      default: "on"
  steps:
    - run: mkdir -p out; cp source.txt out/app; if test $CHECKS = on; then echo checked >> out/app; fi
    - name: test
      run: test -s out/app
  artifacts:
    - out/app
`
