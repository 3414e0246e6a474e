// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// changeRules is how rules are changed.
const changeRules = "hallmark policy show --build > build.yaml, change %s, then: hallmark policy set --build build.yaml"

// Permit finds the rule that permits a build. Without one it returns the reason,
// which names the nearest rule and the first field in which the build differs
// from it; no rules at all permit nothing.
func (b *BuildRules) Permit(q BuildRequest) (BuildRule, *hallmark.Reason) {
	if b == nil {
		return BuildRule{}, &hallmark.Reason{
			Code: hallmark.CodeBuildPolicyMissing, Check: "build", Message: "the policy has no rules for builds, so nothing may be built",
			Missing: "the section build of the signed policy", Fix: "hallmark policy show --build > build.yaml writes first rules; look them over, then: hallmark policy set --build build.yaml",
		}
	}
	nearest, far := (*hallmark.Reason)(nil), -1
	for _, r := range b.Rules {
		how, reason := r.permits(q)
		if reason == nil {
			return r, nil
		}
		if how > far {
			nearest, far = reason, how
		}
	}
	if nearest == nil { // check refuses rules without a rule
		nearest = &hallmark.Reason{Code: hallmark.CodeBuildPolicyMissing, Check: "build", Message: "the policy has no rule for builds"}
	}
	return BuildRule{}, nearest
}

// permits compares field after field. Without a reason every one fits; else how
// many did before the one that does not.
func (r BuildRule) permits(q BuildRequest) (how int, reason *hallmark.Reason) {
	no := func(n int, code hallmark.Code, field, want, format string, args ...any) (int, *hallmark.Reason) {
		return n, &hallmark.Reason{
			Code: code, Check: "build", Message: fmt.Sprintf(format, args...) + fmt.Sprintf("; rule %s says %s", r.Name, want),
			Nearest: "rule " + r.Name, Field: field, Fix: fmt.Sprintf(changeRules, field+" of the rule "+r.Name),
		}
	}
	fits := func(patterns []string, s string) bool {
		return slices.ContainsFunc(patterns, func(p string) bool { return glob(p, s) })
	}
	ref := "the ref " + q.Ref
	if q.Ref == "" {
		ref = "a commit that no ref was named for"
	}
	switch {
	case !fits(r.Repositories, q.Repository):
		return no(0, hallmark.CodeBuildNotPermitted, "repositories", list(r.Repositories), "no rule permits a build of the repository %s", q.Repository)
	case !fits(r.Refs, q.Ref):
		return no(1, hallmark.CodeBuildNotPermitted, "refs", list(r.Refs), "no rule permits a build of %s of %s", ref, q.Repository)
	case !slices.ContainsFunc(q.Requesters, func(s string) bool { return slices.Contains(r.Requesters, s) }):
		return no(2, hallmark.CodeBuildRequester, "requesters", list(r.Requesters), "the build was asked for by %s", list(q.Requesters))
	case !slices.Contains(r.Platforms, BuildPlatform{Builder: q.Builder, Image: q.Image}):
		var want []string
		for _, p := range r.Platforms {
			want = append(want, p.Builder+" on "+p.Image)
		}
		return no(3, hallmark.CodeBuildPlatform, "platforms", list(want), "the platform is %s on %s", q.Builder, q.Image)
	}
	for _, name := range slices.Sorted(maps.Keys(q.Parameters)) {
		p, ok := r.Parameters[name]
		if !ok {
			return no(4, hallmark.CodeBuildParameter, "parameters", "the parameters are "+list(slices.Sorted(maps.Keys(r.Parameters))), "the parameter %.80s may not be given", name)
		}
		if !p.fits(q.Parameters[name]) {
			want := "/" + p.Pattern + "/"
			if p.Pattern == "" {
				want = list(p.Values)
			}
			return no(4, hallmark.CodeBuildParameter, "parameters."+name, want, "the parameter %s may not be %.200q", name, q.Parameters[name])
		}
	}
	return 5, nil
}

// list names up to ten things.
func list(s []string) string {
	if len(s) == 0 {
		return "none"
	}
	if len(s) > 10 {
		return strings.Join(s[:10], ", ") + fmt.Sprintf(" and %d more", len(s)-10)
	}
	return strings.Join(s, ", ")
}

// buildReasons asks the build policy again about every provenance: a builder that
// built what it should not have, and signed that, is not believed. No rule in
// Rego can take this away. Policies from before there were rules for builds say
// nothing of them.
func (e *Engine) buildReasons(facts []fact) []hallmark.Reason {
	if e.doc.Build == nil {
		return nil
	}
	var out []hallmark.Reason
	for _, f := range facts {
		if f.External == nil {
			continue
		}
		_, refused := e.doc.Build.Permit(BuildRequest{
			Repository: f.External.Repository, Ref: f.External.Ref, Requesters: f.Requesters, Builder: f.BuilderID, Image: f.Image, Parameters: f.External.Parameters,
		})
		if refused != nil {
			out = append(out, *refused)
		}
	}
	return out
}
