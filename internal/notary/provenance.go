// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package notary

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

func denied(code hallmark.Code, format string, args ...any) error {
	return hallmark.Coded(hallmark.KindDenied, code, format, args...)
}

// observation looks at a statement that the observer is to sign: where it names a
// builder, that is the server. What a person's machine did is signed there.
func observation(st intoto.Statement) error {
	builder := ""
	switch st.PredicateType {
	case intoto.PredicateSCAI:
		p, err := intoto.DecodePredicate[intoto.SCAI](st)
		if err != nil {
			return err
		}
		if p.Producer != nil {
			builder = p.Producer.URI
		}
	case intoto.PredicateLink:
		p, err := intoto.DecodePredicate[intoto.Link](st)
		if err != nil {
			return err
		}
		// A build that was refused before it started has no builder.
		if b, ok := p.Environment["builder"]; ok {
			if builder, ok = b.(string); !ok {
				return denied(hallmark.CodeSignerBuilder, "the builder is no text")
			}
		}
	case intoto.PredicateTrace:
		p, err := intoto.DecodePredicate[intoto.RuntimeTrace](st)
		if err != nil {
			return err
		}
		builder = p.MonitoredProcess.HostID
	}
	if builder != "" && builder != intoto.BuilderServer {
		return denied(hallmark.CodeSignerBuilder, "it names the builder %.200q: the signer of a server signs for %s", builder, intoto.BuilderServer)
	}
	return nil
}

// provenance judges provenance and the permit for it. The challenge is used up by
// asking, whatever the answer.
func (s *session) provenance(st intoto.Statement, digest hallmark.Digest, p *Permit, rules Rules) (*sign.Permit, error) {
	challenge := s.challenge
	s.challenge = ""
	switch {
	case p == nil:
		return nil, denied(hallmark.CodeSignerPermitMissing, "provenance without a permit of the build policy")
	case p.Statement != digest:
		return nil, denied(hallmark.CodeSignerPermitOther, "the permit is for statement %s", p.Statement)
	case challenge == "" || p.Challenge != challenge:
		return nil, denied(hallmark.CodeSignerPermitUsed, "the permit does not answer this connection's challenge: it was used before, or made for another connection")
	case p.Policy != rules.Policy.Digest():
		return nil, hallmark.WithHint(denied(hallmark.CodeSignerPolicy, "the permit is of policy %s, in force is %s", p.Policy, rules.Policy.Digest()), "build again under the policy in force")
	case !p.Decision.Allowed():
		return nil, denied(hallmark.CodeBuildPolicy, "the decision in the permit does not allow")
	}
	prov, err := intoto.ParseProvenance(st)
	if err != nil {
		return nil, err
	}
	if id := prov.RunDetails.Builder.ID; id != intoto.BuilderServer || prov.BuildDefinition.BuildType != intoto.BuildTypePipeline {
		return nil, denied(hallmark.CodeSignerBuilder, "builder.id %.200q, build type %.200q: the signer of a server signs for %s, %s", id, prov.BuildDefinition.BuildType, intoto.BuilderServer, intoto.BuildTypePipeline)
	}
	if err := permitted(prov, rules.Document); err != nil {
		return nil, err
	}
	if err := s.observed(st, prov); err != nil {
		return nil, err
	}
	return &sign.Permit{Statement: p.Statement, BuildPolicy: p.Policy, Decision: p.Decision}, nil
}

// permitted asks the build policy again, with what the provenance says.
func permitted(prov intoto.Provenance, doc policy.Document) error {
	requester, err := prov.Requester()
	if err != nil {
		return err
	}
	image, err := prov.Image()
	if err != nil {
		return err
	}
	ext := prov.BuildDefinition.ExternalParameters
	_, refused := doc.Build.Permit(policy.BuildRequest{
		Repository: ext.Repository, Ref: ext.Ref, Requesters: requester.Principals, Builder: prov.RunDetails.Builder.ID, Image: image, Parameters: ext.Parameters,
	})
	if refused != nil {
		return hallmark.WithHint(denied(refused.Code, "%s", refused.Message), refused.Fix)
	}
	return nil
}

// Kinds of observations that every build has.
const (
	kindSource      = "source"
	kindProcess     = "process"
	kindEnvironment = "environment"
	kindMaterials   = "materials"
	kindArtifacts   = "artifacts"
	kindTests       = "tests"
)

func kinds() []string {
	return []string{kindSource, kindProcess, kindEnvironment, kindMaterials, kindArtifacts, kindTests}
}

// kindOf tells what an observation is of; "" for those that not every build has.
func kindOf(st intoto.Statement) (string, error) {
	switch st.PredicateType {
	case intoto.PredicateSource:
		return kindSource, nil
	case intoto.PredicateLink:
		p, err := intoto.DecodePredicate[intoto.Link](st)
		return map[string]string{intoto.NameProcess: kindProcess, intoto.NameMaterials: kindMaterials}[p.Name], err
	case intoto.PredicateSCAI:
		p, err := intoto.DecodePredicate[intoto.SCAI](st)
		return map[string]string{intoto.NameEnvironment: kindEnvironment, intoto.NameArtifacts: kindArtifacts}[p.Name], err
	case intoto.PredicateTestResult:
		rec, err := intoto.CheckOf(st)
		if err == nil && rec != nil && rec.Check == "tests" {
			return kindTests, nil
		}
		return "", err
	}
	return "", nil
}

// observed holds provenance against the observations that it names: each was
// signed before by the observer of this home and is in the log, every kind is
// there once, and all are of this invocation, revision and these artifacts.
func (s *session) observed(st intoto.Statement, prov intoto.Provenance) error {
	byStatement := map[hallmark.Digest]verify.Statement{}
	for _, b := range s.bundles {
		byStatement[b.Digest()] = b
	}
	o := observations{st: st, prov: prov}
	found := map[string]bool{}
	for _, d := range prov.RunDetails.Byproducts {
		digest := hallmark.Digest("sha256:" + d.Digest["sha256"])
		b, ok := byStatement[digest]
		if d.URI != intoto.StatementURI || !ok {
			return denied(hallmark.CodeSignerObservationMissing, "it rests on %.100q %s, and no such observation was shown", d.Name, digest)
		}
		if b.Signer() != "observer" {
			return denied(hallmark.CodeSignerObservationMissing, "it rests on %s, which %s signed and not the observer", digest, b.Signer())
		}
		kind, err := kindOf(b.Statement())
		if err != nil {
			return err
		}
		if kind != "" && found[kind] {
			return denied(hallmark.CodeSignerObservationOther, "it rests on two observations of the kind %s", kind)
		}
		found[kind] = true
		if err := o.check(kind, b); err != nil {
			return fmt.Errorf("observation %s: %w", digest, err)
		}
	}
	for _, k := range kinds() {
		if !found[k] {
			return denied(hallmark.CodeSignerObservationMissing, "it names no observation of the kind %s", k)
		}
	}
	id := prov.RunDetails.Metadata
	ext := prov.BuildDefinition.ExternalParameters
	if id.InvocationID != intoto.InvocationID(ext.Revision, ext.Pipeline.Digest, id.StartedOn) {
		return denied(hallmark.CodeSignerObservationOther, "the invocation %.100q is not that of its revision, pipeline and start", id.InvocationID)
	}
	return nil
}

// observations compares them with one provenance.
type observations struct {
	st   intoto.Statement
	prov intoto.Provenance
}

func (o observations) check(kind string, b verify.Statement) error {
	other := func(format string, args ...any) error {
		return denied(hallmark.CodeSignerObservationOther, "%s", kind+": "+fmt.Sprintf(format, args...))
	}
	st := b.Statement()
	ext, meta := o.prov.BuildDefinition.ExternalParameters, o.prov.RunDetails.Metadata
	rec, err := intoto.CheckOf(st)
	if err != nil {
		return err
	}
	if rec != nil && (rec.Revision.Commit != ext.Revision || rec.Revision.Repository != ext.Repository || rec.Revision.Ref != ext.Ref) {
		return other("it is of revision %s of %s", rec.Revision.Commit, rec.Revision.Repository)
	}
	if !o.about(st) {
		return other("its subjects are neither the revision nor the artifacts")
	}
	switch kind {
	case kindSource:
		p, err := intoto.DecodePredicate[intoto.SourceProvenance](st)
		if err != nil {
			return err
		}
		if p.Revision.Commit != ext.Revision || p.Revision.Repository != ext.Repository || p.Revision.Ref != ext.Ref {
			return other("it is of revision %s of %s", p.Revision.Commit, p.Revision.Repository)
		}
		return passed(kind, rec, false)
	case kindTests:
		if err := passed(kind, rec, true); err != nil {
			return err
		}
		if !rec.StartedOn.Equal(meta.StartedOn) || !rec.FinishedOn.Equal(meta.FinishedOn) {
			return other("it is of another invocation")
		}
	case kindProcess, kindMaterials:
		p, err := intoto.DecodePredicate[intoto.Link](st)
		if err != nil {
			return err
		}
		if p.Byproducts[intoto.ByproductInvocation] != meta.InvocationID {
			return other("it is of the invocation %.100v, and the provenance of %.100s", p.Byproducts[intoto.ByproductInvocation], meta.InvocationID)
		}
		return o.link(kind, p, rec, other)
	case kindEnvironment, kindArtifacts:
		p, err := intoto.DecodePredicate[intoto.SCAI](st)
		if err != nil {
			return err
		}
		a := attribute(p, intoto.AttributeInvocation)
		if a == nil || a.Conditions["id"] != meta.InvocationID {
			return other("it is not of the invocation %.100s", meta.InvocationID)
		}
		if p.Producer == nil || p.Producer.URI != intoto.BuilderServer {
			return denied(hallmark.CodeSignerBuilder, "%s: it is of another builder", kind)
		}
		if kind == kindEnvironment {
			return o.environment(p, other)
		}
		return o.artifacts(p, other)
	}
	return nil
}

// passed wants a record that passed. A pipeline may have no tests: whether that is
// enough says the release policy.
func passed(kind string, rec *hallmark.CheckRecord, mayLack bool) error {
	switch {
	case rec == nil:
		return denied(hallmark.CodeSignerObservationMissing, "%s: there is no record of the check", kind)
	case rec.Outcome == hallmark.Pass, mayLack && rec.Outcome == hallmark.Skipped:
		return nil
	}
	return denied(hallmark.CodeSignerObservationFailed, "%s: the check ended with %s", kind, rec.Outcome)
}

func (o observations) link(kind string, p intoto.Link, rec *hallmark.CheckRecord, other func(string, ...any) error) error {
	if kind == kindMaterials {
		deps := o.prov.BuildDefinition.ResolvedDependencies
		if len(p.Materials) < len(deps) || !equal(p.Materials[:len(deps)], deps) {
			return other("the dependencies of the provenance are not those that went in")
		}
		return nil
	}
	meta := o.prov.RunDetails.Metadata
	if p.Environment["builder"] != intoto.BuilderServer {
		return denied(hallmark.CodeSignerBuilder, "process: it is of another builder")
	}
	if err := passed(kind, rec, false); err != nil {
		return err
	}
	if rec.Check != "build" || !rec.StartedOn.Equal(meta.StartedOn) || !rec.FinishedOn.Equal(meta.FinishedOn) {
		return other("it is of another invocation")
	}
	return nil
}

// environment compares platform and requester.
func (o observations) environment(p intoto.SCAI, other func(string, ...any) error) error {
	in := o.prov.BuildDefinition.InternalParameters
	platform := attribute(p, "BUILD_PLATFORM")
	if platform == nil || !equal(platform.Conditions, in["platform"]) {
		return other("the platform of the provenance is not the one that was seen")
	}
	requester := attribute(p, "BUILD_REQUESTER")
	said, ok := in["requester"].(map[string]any)
	if requester == nil || !ok || !equal(requester.Conditions["principals"], said["principals"]) {
		return other("the requester of the provenance is not the one that was seen")
	}
	return nil
}

// artifacts compares the artifacts with the subjects.
func (o observations) artifacts(p intoto.SCAI, other func(string, ...any) error) error {
	var final []intoto.ResourceDescriptor
	for _, a := range p.Attributes {
		if a.Attribute == "FINAL_ARTIFACT" && a.Target != nil {
			final = append(final, *a.Target)
		}
	}
	if !equal(sorted(final), sorted(o.st.Subject)) {
		return other("the subjects of the provenance are not the artifacts that were left")
	}
	return nil
}

// about reports whether a statement is of the revision, or of artifacts of the
// provenance and nothing else.
func (o observations) about(st intoto.Statement) bool {
	commit := o.prov.BuildDefinition.ExternalParameters.Revision
	own := map[string]bool{}
	for _, s := range o.st.Subject {
		own[s.Name+"\x00"+s.Digest["sha256"]] = s.Digest["sha256"] != ""
	}
	for _, s := range st.Subject {
		if s.Digest["gitCommit"] != commit && !own[s.Name+"\x00"+s.Digest["sha256"]] {
			return false
		}
	}
	return len(st.Subject) > 0
}

func attribute(p intoto.SCAI, name string) *intoto.SCAIAttribute {
	if i := slices.IndexFunc(p.Attributes, func(a intoto.SCAIAttribute) bool { return a.Attribute == name }); i >= 0 {
		return &p.Attributes[i]
	}
	return nil
}

func sorted(list []intoto.ResourceDescriptor) []intoto.ResourceDescriptor {
	return slices.SortedFunc(slices.Values(list), func(a, b intoto.ResourceDescriptor) int {
		return strings.Compare(a.Name+"\x00"+a.Digest["sha256"], b.Name+"\x00"+b.Digest["sha256"])
	})
}

// equal compares two values as JSON, whatever types they were read into.
func equal(a, b any) bool {
	x, xerr := json.Marshal(a)
	y, yerr := json.Marshal(b)
	return xerr == nil && yerr == nil && bytes.Equal(x, y)
}
