// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"
	"testing"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

// wrappedLab is the evidence of a wrapped command under a policy that trusts it
// and asks for its record only.
func wrappedLab(t *testing.T) (*Engine, Verdict, []fact) {
	t.Helper()
	e, v, facts := lab(t)
	platforms := &e.doc.Build.Rules[0].Platforms
	*platforms = append(slices.Clone(*platforms), BuildPlatform{Builder: intoto.BuilderWrap, Image: ImageHost})
	e.params.Required, e.params.Builders = []string{"build"}, []string{intoto.BuilderLocal, intoto.BuilderWrap}
	facts = slices.DeleteFunc(facts, func(f fact) bool {
		return f.PredicateType == intoto.PredicateSPDX || f.PredicateType == intoto.PredicateCycloneDX || f.Check != nil && f.Check.Check != "build"
	})
	p := &facts[len(facts)-1]
	p.Signer, p.BuilderID, p.BuildType = "wrapper", intoto.BuilderWrap, intoto.BuildTypeCommand
	return e, v, facts
}

// TestWrapped: a wrapped command counts where the policy names its builder, and
// only with the signer and the build type of its own.
func TestWrapped(t *testing.T) {
	e, v, facts := wrappedLab(t)
	if d := decide(t, e, v, facts); !d.Allowed() {
		t.Fatalf("%+v", d.Reasons)
	}
	for i, f := range facts {
		if d := decide(t, e, v, slices.Delete(slices.Clone(facts), i, i+1)); d.Allowed() {
			t.Errorf("allowed without %s %s", f.PredicateType, f.Name)
		}
	}
	for name, c := range map[string]struct {
		change func(e *Engine, p *fact)
		code   hallmark.Code
	}{
		"default builders":      {func(e *Engine, _ *fact) { e.params.Builders = []string{intoto.BuilderLocal} }, hallmark.CodeBuilderNotTrusted},
		"no platform of a rule": {func(e *Engine, _ *fact) { e.doc.Build = FirstBuildRules(nil) }, hallmark.CodeBuildPlatform},
		"an inventory wanted":   {func(e *Engine, _ *fact) { e.params.Required = []string{"build", "sbom"} }, hallmark.CodeEvidenceMissing},
		"by the builder":        {func(_ *Engine, p *fact) { p.Signer = "builder" }, hallmark.CodeSignerNotAuthorized},
		"as a pipeline":         {func(_ *Engine, p *fact) { p.BuildType = intoto.BuildTypePipeline }, hallmark.CodeExternalParameters},
		"as the local builder": {func(_ *Engine, p *fact) {
			p.BuilderID, p.BuildType = intoto.BuilderLocal, intoto.BuildTypePipeline
		}, hallmark.CodeSignerNotAuthorized},
		"a pipeline as a command": {func(_ *Engine, p *fact) { p.Signer, p.BuilderID = "builder", intoto.BuilderLocal }, hallmark.CodeExternalParameters},
		"a pipeline without inventory": {func(_ *Engine, p *fact) {
			p.Signer, p.BuilderID, p.BuildType = "builder", intoto.BuilderLocal, intoto.BuildTypePipeline
		}, hallmark.CodeEvidenceMissing},
	} {
		e, v, facts := wrappedLab(t)
		c.change(e, &facts[len(facts)-1])
		d := decide(t, e, v, facts)
		if d.Allowed() || !slices.ContainsFunc(d.Reasons, func(r hallmark.Reason) bool { return r.Code == c.code }) {
			t.Errorf("%s: want %s, got %s %+v", name, c.code, d.Effect, d.Reasons)
		}
	}
}

// TestWrappedBesideABuild: the provenance of a wrapped command does not do away
// with the inventory of a build.
func TestWrappedBesideABuild(t *testing.T) {
	e, v, facts := wrappedLab(t)
	_, _, built := lab(t)
	own := built[len(built)-1]
	own.Digest = hallmark.DigestOf([]byte("built"))
	if d := decide(t, e, v, append(facts, own)); d.Allowed() {
		t.Error("allowed without the inventory of the build")
	}
}

// TestBacksIsItsOwnRule: rules that allow blindly can't make a builder of a
// wrapped command.
func TestBacksIsItsOwnRule(t *testing.T) {
	e, v, facts := wrappedLab(t)
	p := &facts[len(facts)-1]
	for _, change := range []func(){
		func() { p.Signer = "builder" },
		func() { p.BuildType = intoto.BuildTypePipeline },
		func() { p.BuilderID = intoto.BuilderLocal },
	} {
		keep := *p
		change()
		if d := e.decision(v, facts, nil, true); d.Allowed() {
			t.Errorf("allowed with %s %s %s", p.Signer, p.BuilderID, p.BuildType)
		}
		*p = keep
	}
	if d := e.decision(v, facts, nil, true); !d.Allowed() {
		t.Errorf("%+v", d)
	}
}
