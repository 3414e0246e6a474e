// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package attest assembles in-toto statements from facts that the control plane
// observed itself: the environment, process, materials and artifacts
// attestations of NIST SP 800-204D §5.1.1, SLSA provenance v1, test results,
// vulnerability reports, inventories and verification summaries.
//
// Nothing a tenant wrote enters a statement as a fact. The package neither
// signs nor reads files, and its functions are pure: the same facts give the
// same bytes, so a resumed run finds the statement it signed before.
package attest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

// Build is what the control plane saw of one build.
type Build struct {
	Revision     hallmark.Revision
	Pipeline     intoto.PipelineRef
	BuilderID    string
	Version      string // of the build platform
	StartedOn    time.Time
	FinishedOn   time.Time
	Steps        []Step
	Egress       []Egress
	Artifacts    []hallmark.Artifact
	Dependencies []Dependency
	Tools        []Tool
	Images       []Image           // that went in: of the steps, and bases of artifacts
	Recipes      []Recipe          // Dockerfiles that artifacts were made by
	Platform     map[string]string // kernel, operating system, architecture, workspace mode
	Guarantees   []Guarantee
	Files        int             // files of the source tree
	Manifest     hallmark.Digest // of the manifest of the source tree
	Record       hallmark.CheckRecord
	Command      *Command          // nil for a build of a pipeline
	Parameters   map[string]string // external ones that were given
	Requester    *intoto.Requester
	Rule         *Rule // of the build policy, that permitted the build
	Trace        Trace
	// Observations are the digests of the statements about this build that were
	// signed before its provenance, which names them. No part of a saved result.
	Observations []Observation `json:"-"`
}

// Observation is a statement that provenance rests on.
type Observation struct {
	Statement     hallmark.Digest // of its PAE, as in the log
	PredicateType string
}

// Recipe is a Dockerfile of the revision.
type Recipe struct {
	Path   string
	Digest hallmark.Digest
}

// Rule is the rule of the build policy that permitted a build.
type Rule struct {
	Name          string
	Inventory     hallmark.Digest // approved; "" where programs are only recorded
	BuiltPrograms bool            // may run
}

// Step is one executed command.
type Step struct {
	Name       string          `json:"name"`
	Test       bool            `json:"test"`
	Command    []string        `json:"command"`
	ExitCode   int             `json:"exitCode"`
	Signal     string          `json:"signal,omitempty"`
	LimitHit   string          `json:"limitHit,omitempty"`
	Lost       []string        `json:"limitsLost,omitempty"` // limits that vanished while it ran
	Secrets    []string        `json:"secrets,omitempty"`    // names of those it was given
	StartedOn  time.Time       `json:"startedOn"`
	FinishedOn time.Time       `json:"finishedOn"`
	Log        hallmark.Digest `json:"log"`
	// Events is the canonical event log of the step; "" when it has none.
	Events hallmark.Digest `json:"events,omitempty"`
}

// Egress is one attempt to reach an address outside the sandbox's loopback.
type Egress struct {
	Step    string    `json:"step"`
	Time    time.Time `json:"time"`
	PID     int       `json:"pid,omitempty"`     // on the host
	Process string    `json:"process"`           // the name that the process gave itself
	Program string    `json:"program,omitempty"` // path of its executable
	Address string    `json:"address"`
	Name    string    `json:"name,omitempty"` // from a DNS question
}

// Dependency is one third-party package that was fetched before the build.
type Dependency struct {
	PURL    string
	Name    string
	Digests map[string]string // in-toto DigestSet: sha256, dirHash1
}

// Tool is one program of the toolchain inventory.
type Tool struct {
	Path     string
	Approved bool // the policy has an inventory, and it is in it
	hallmark.Tool
}

// Guarantee is one property of the isolation and whether it held.
type Guarantee struct {
	Name   string `json:"name"`
	Holds  bool   `json:"holds"`
	Detail string `json:"detail,omitempty"`
}

// Source states how a revision was found and who signed it.
func Source(p intoto.SourceProvenance) (intoto.Statement, error) {
	return statement(intoto.PredicateSource, subjectRevision(p.Revision), p)
}

// TestResult states the result of a check that has no predicate type of its own:
// secrets, sast, sbom and tests. The result is PASSED only for pass.
func TestResult(rec hallmark.CheckRecord, configuration []intoto.ResourceDescriptor, passed, failed []string) (intoto.Statement, error) {
	result := "FAILED"
	if rec.Outcome == hallmark.Pass {
		result = "PASSED"
	}
	configuration = slices.Clone(configuration)
	for _, d := range rec.Data {
		configuration = append(configuration, intoto.ResourceDescriptor{Name: d.Name, Digest: sha256Of(d.Digest)})
	}
	if configuration == nil {
		configuration = []intoto.ResourceDescriptor{}
	}
	return statement(intoto.PredicateTestResult, subjectRevision(rec.Revision), intoto.TestResult{
		Result: result, Configuration: configuration, PassedTests: passed, FailedTests: failed, Check: &rec,
	})
}

// Vulns states the advisories that matched the inventory of a revision.
func Vulns(rec hallmark.CheckRecord, findings []hallmark.Finding) (intoto.Statement, error) {
	v := intoto.Vulns{
		Scanner: intoto.VulnScanner{
			URI: "https://hallmark-sc.github.io/scanners/vuln", Version: rec.Tool.Version, Result: []intoto.VulnResult{},
		},
		Metadata: intoto.VulnMetadata{ScanStartedOn: rec.StartedOn, ScanFinishedOn: rec.FinishedOn},
		Check:    &rec,
	}
	var names, digests []string
	for _, d := range rec.Data {
		names, digests = append(names, d.Name), append(digests, string(d.Digest))
		if d.Newest.After(v.Scanner.DB.LastUpdate) {
			v.Scanner.DB.LastUpdate = d.Newest
		}
	}
	v.Scanner.DB.URI, v.Scanner.DB.Version = strings.Join(names, " "), strings.Join(digests, " ")
	for _, f := range findings {
		v.Scanner.Result = append(v.Scanner.Result, intoto.VulnResult{
			ID:          f.Rule,
			Severity:    []intoto.VulnSeverity{{Method: "hallmark", Score: f.Severity.String()}},
			Annotations: []any{map[string]any{"component": f.Component, "fixedIn": f.FixedIn, "aliases": f.Aliases}},
		})
	}
	return statement(intoto.PredicateVulns, subjectRevision(rec.Revision), v)
}

// Inventory wraps an SPDX or CycloneDX document as the predicate of its type.
func Inventory(predicateType string, subjects []intoto.ResourceDescriptor, document []byte) (intoto.Statement, error) {
	if predicateType != intoto.PredicateSPDX && predicateType != intoto.PredicateCycloneDX {
		return intoto.Statement{}, hallmark.Errorf(hallmark.KindInternal, "predicate type %s is not an inventory", predicateType)
	}
	return statement(predicateType, subjects, json.RawMessage(document))
}

// Environment states the inventory of the system at the time of the build and
// each isolation guarantee that held or did not (SP 800-204D §5.1.1, component 1).
func Environment(b Build) (intoto.Statement, error) {
	s := intoto.SCAI{Name: intoto.NameEnvironment, Producer: &intoto.ResourceDescriptor{URI: b.BuilderID}, Attributes: []intoto.SCAIAttribute{}}
	platform := map[string]any{}
	for k, v := range b.Platform {
		platform[k] = v
	}
	s.Attributes = append(s.Attributes, intoto.SCAIAttribute{Attribute: "BUILD_PLATFORM", Conditions: platform})
	if r := b.Requester; r != nil {
		s.Attributes = append(s.Attributes, intoto.SCAIAttribute{Attribute: "BUILD_REQUESTER", Conditions: map[string]any{"principals": r.Principals, "authentication": r.Authentication, "user": r.User}})
	}
	if r := b.Rule; r != nil {
		a := intoto.SCAIAttribute{Attribute: intoto.AttributeBuildRule, Conditions: map[string]any{"rule": r.Name, "builtPrograms": r.BuiltPrograms}}
		if r.Inventory != "" {
			a.Target = &intoto.ResourceDescriptor{Name: "inventory", Digest: sha256Of(r.Inventory)}
		}
		s.Attributes = append(s.Attributes, a)
	}
	s.Attributes = append(s.Attributes, b.invocationAttribute())
	for _, t := range b.Tools {
		s.Attributes = append(s.Attributes, intoto.SCAIAttribute{
			Attribute: toolAttribute(t),
			Target:    &intoto.ResourceDescriptor{Name: t.Name, URI: "file://" + t.Path, Digest: sha256Of(t.Digest)},
			Conditions: map[string]any{
				"version": t.Version,
			},
		})
	}
	for _, g := range b.Guarantees {
		name := "ISOLATION_GUARANTEE_HELD"
		if !g.Holds {
			name = "ISOLATION_GUARANTEE_ABSENT"
		}
		s.Attributes = append(s.Attributes, intoto.SCAIAttribute{
			Attribute: name, Conditions: map[string]any{"guarantee": g.Name, "detail": g.Detail},
		})
	}
	s.Attributes = append(s.Attributes, b.Trace.environment()...)
	s.Attributes = append(s.Attributes, b.Command.environment()...)
	return statement(intoto.PredicateSCAI, b.sources(), s)
}

func toolAttribute(t Tool) string {
	if t.Approved {
		return intoto.AttributeToolApproved
	}
	return intoto.AttributeTool
}

// Process states the programs that transformed and tested the sources, with
// their arguments, exit and times (component 2), and every attempted egress. It
// carries the check record of the build, so a failed build has evidence too.
func Process(b Build) (intoto.Statement, error) {
	steps := b.Steps
	if steps == nil {
		steps = []Step{}
	}
	egress := b.Egress
	if egress == nil {
		egress = []Egress{}
	}
	rec := b.Record
	by := map[string]any{
		"steps": steps, "egress": egress, "startedOn": b.StartedOn, "finishedOn": b.FinishedOn, "programs": b.Trace.programs(),
		intoto.ByproductInvocation: b.Invocation(),
	}
	b.Command.process(by, b.Pipeline)
	return statement(intoto.PredicateLink, b.products(), intoto.Link{
		Name: intoto.NameProcess, Command: b.Command.argv(), Materials: b.sourceMaterial(), Byproducts: by,
		Environment: map[string]any{"builder": b.BuilderID},
		Check:       &rec,
	})
}

// Materials states what went in: source tree, pipeline definition, dependencies
// and toolchain, each with digests (component 3).
func Materials(b Build) (intoto.Statement, error) {
	return statement(intoto.PredicateLink, b.products(), intoto.Link{
		Name: intoto.NameMaterials, Command: []string{}, Materials: append(b.materials(), b.Trace.materials()...),
		Byproducts:  b.materialsFacts(),
		Environment: map[string]any{},
	})
}

// Artifacts states every product, intermediate ones included: a SARIF report or
// a step's log is an artifact too (component 4).
func Artifacts(b Build, intermediate []intoto.ResourceDescriptor) (intoto.Statement, error) {
	s := intoto.SCAI{Name: intoto.NameArtifacts, Producer: &intoto.ResourceDescriptor{URI: b.BuilderID}, Attributes: []intoto.SCAIAttribute{}}
	for _, a := range b.Artifacts {
		d := intoto.SubjectOf(a)
		s.Attributes = append(s.Attributes, intoto.SCAIAttribute{
			Attribute: "FINAL_ARTIFACT", Target: &d, Conditions: map[string]any{"size": a.Size, "mode": a.Mode},
		})
	}
	for _, d := range append(slices.Clone(intermediate), b.Trace.products()...) {
		s.Attributes = append(s.Attributes, intoto.SCAIAttribute{Attribute: "INTERMEDIATE_ARTIFACT", Target: &d})
	}
	for _, st := range b.Steps {
		if st.Log != "" {
			s.Attributes = append(s.Attributes, intoto.SCAIAttribute{
				Attribute: "STEP_LOG", Target: &intoto.ResourceDescriptor{Name: "log of " + st.Name, Digest: sha256Of(st.Log)},
			})
		}
		if st.Events != "" {
			s.Attributes = append(s.Attributes, intoto.SCAIAttribute{
				Attribute: "STEP_EVENTS", Target: &intoto.ResourceDescriptor{Name: "events of " + st.Name, Digest: sha256Of(st.Events)},
			})
		}
	}
	s.Attributes = append(s.Attributes, b.invocationAttribute())
	return statement(intoto.PredicateSCAI, b.products(), s)
}

// Invocation names one run of one build. Process, environment, materials and
// artifacts carry it beside the provenance, so that what was seen of one run can't
// be taken for another's.
func (b Build) Invocation() string {
	return intoto.InvocationID(b.Revision.Commit, b.Pipeline.Digest, b.StartedOn)
}

func (b Build) invocationAttribute() intoto.SCAIAttribute {
	return intoto.SCAIAttribute{Attribute: intoto.AttributeInvocation, Conditions: map[string]any{"id": b.Invocation()}}
}

// observations are what provenance rests on, as its byproducts.
func (b Build) observations() []intoto.ResourceDescriptor {
	var out []intoto.ResourceDescriptor
	for _, o := range b.Observations {
		out = append(out, intoto.ResourceDescriptor{Name: o.PredicateType, URI: intoto.StatementURI, Digest: sha256Of(o.Statement)})
	}
	return out
}

// Provenance states SLSA provenance v1. The caller must have an allowing
// decision of the build policy; the signer asks for it again as a permit.
func Provenance(b Build) (intoto.Statement, error) {
	if len(b.Artifacts) == 0 {
		return intoto.Statement{}, hallmark.Errorf(hallmark.KindInternal, "provenance without an artifact")
	}
	return statement(intoto.PredicateProvenance, b.products(), intoto.Provenance{
		BuildDefinition: intoto.BuildDefinition{
			BuildType: b.buildType(),
			ExternalParameters: intoto.ExternalParameters{
				Repository: b.Revision.Repository, Ref: b.Revision.Ref, Revision: b.Revision.Commit, Pipeline: b.Pipeline, Parameters: b.Parameters,
			},
			InternalParameters:   b.internal(),
			ResolvedDependencies: b.materials(),
		},
		RunDetails: intoto.RunDetails{
			Builder: intoto.Builder{ID: b.BuilderID, Version: map[string]string{"hallmark": b.Version}},
			Metadata: intoto.BuildMetadata{
				InvocationID: b.Invocation(), StartedOn: b.StartedOn, FinishedOn: b.FinishedOn,
			},
			Byproducts: b.observations(),
		},
	})
}

// internal are the parameters that the platform set, and who asked.
func (b Build) internal() map[string]any {
	out := map[string]any{"platform": b.Platform}
	if b.Requester != nil {
		out["requester"] = b.Requester
	}
	if b.Trace.Hermetic { // said only when it was observed
		out["hermetic"] = "observed"
	}
	return out
}

// Summary is what a VSA says.
type Summary struct {
	Subjects    []intoto.ResourceDescriptor
	VerifierID  string
	Version     string
	Time        time.Time
	ResourceURI string
	Policy      hallmark.Digest
	Inputs      []hallmark.Digest // bundle digests
	Allowed     bool
	Levels      []string
	Verdict     hallmark.Digest
}

// VSA states a verification summary: PASSED only when the decision allows.
func VSA(s Summary) (intoto.Statement, error) {
	v := intoto.VSA{
		Verifier:     intoto.VSAVerifier{ID: s.VerifierID, Version: map[string]string{"hallmark": s.Version}},
		TimeVerified: s.Time, ResourceURI: s.ResourceURI,
		Policy:             intoto.ResourceDescriptor{URI: "hallmark:policy", Digest: sha256Of(s.Policy)},
		InputAttestations:  []intoto.ResourceDescriptor{},
		VerificationResult: "FAILED", VerifiedLevels: []string{}, SLSAVersion: "1.2",
		Verdict: &intoto.VerdictRef{Digest: s.Verdict},
	}
	if s.Allowed {
		v.VerificationResult = "PASSED"
		v.VerifiedLevels = append(v.VerifiedLevels, s.Levels...)
	}
	for _, d := range s.Inputs {
		v.InputAttestations = append(v.InputAttestations, intoto.ResourceDescriptor{URI: "hallmark:bundle", Digest: sha256Of(d)})
	}
	return statement(intoto.PredicateVSA, s.Subjects, v)
}

// Genesis states the first facts of a log: who administers the home, in which
// mode, and the digests of the roots and of the first policy.
type Genesis struct {
	Mode           string          `json:"mode"`
	Administrators []string        `json:"administrators"`
	PolicyKeys     []PolicyKey     `json:"policyKeys"`
	Threshold      int             `json:"threshold"`
	TrustDomain    string          `json:"trustDomain"`
	Policy         hallmark.Digest `json:"policy"` // the first one
	Roots          hallmark.Digest `json:"roots"`
	TrustedRoot    hallmark.Digest `json:"trustedRoot"`
	CreatedOn      time.Time       `json:"createdOn"`
	// Signer is the hint of the key that signs, where there are several.
	Signer string `json:"signer,omitempty"`
}

// PolicyKey is a key that may sign policies, and whose it is.
type PolicyKey struct {
	Administrator string `json:"administrator"`
	Hint          string `json:"hint"`
	PublicKey     string `json:"publicKey"`
}

// GenesisStatement makes log entry 0; its subjects are the roots and the
// trusted root.
func GenesisStatement(g Genesis) (intoto.Statement, error) {
	return statement(intoto.PredicateGenesis, []intoto.ResourceDescriptor{
		{Name: "roots.json", Digest: sha256Of(g.Roots)}, {Name: "trusted_root.json", Digest: sha256Of(g.TrustedRoot)},
	}, g)
}

// PolicyApproval is PolicyStatement as one of several administrators signs it:
// it names the key, by its hint.
func PolicyApproval(document hallmark.Digest, version int, previous hallmark.Digest, signer string) (intoto.Statement, error) {
	return statement(intoto.PredicatePolicy, []intoto.ResourceDescriptor{{Name: "policy.json", Digest: sha256Of(document)}},
		map[string]any{"version": version, "previous": string(previous), "signer": signer})
}

// PolicyStatement binds a policy document's digest to its version.
func PolicyStatement(document hallmark.Digest, version int, previous hallmark.Digest) (intoto.Statement, error) {
	return statement(intoto.PredicatePolicy, []intoto.ResourceDescriptor{{Name: "policy.json", Digest: sha256Of(document)}},
		map[string]any{"version": version, "previous": string(previous)})
}

// products are the subjects of build statements: the artifacts, or the revision
// when the build failed before there were any.
func (b Build) products() []intoto.ResourceDescriptor {
	if len(b.Artifacts) == 0 {
		return b.sources()
	}
	var out []intoto.ResourceDescriptor
	for _, a := range b.Artifacts {
		out = append(out, intoto.SubjectOf(a))
	}
	return out
}

func (b Build) materials() []intoto.ResourceDescriptor {
	out := append(b.sourceMaterial(), intoto.ResourceDescriptor{
		Name: b.Pipeline.Path, Digest: sha256Of(b.Pipeline.Digest), Annotations: map[string]any{"role": b.Command.role()},
	})
	for _, d := range b.Dependencies {
		out = append(out, intoto.ResourceDescriptor{Name: d.Name, URI: d.PURL, Digest: d.Digests, Annotations: map[string]any{"role": "dependency"}})
	}
	for _, r := range b.Recipes {
		out = append(out, intoto.ResourceDescriptor{Name: r.Path, Digest: sha256Of(r.Digest), Annotations: map[string]any{"role": "dockerfile"}})
	}
	for _, i := range b.Images {
		out = append(out, i.material())
	}
	for _, t := range b.Tools {
		out = append(out, intoto.ResourceDescriptor{
			Name: t.Name, URI: "file://" + t.Path, Digest: sha256Of(t.Digest),
			Annotations: map[string]any{"role": "tool", "version": t.Version},
		})
	}
	return out
}

func revisionMaterial(r hallmark.Revision) intoto.ResourceDescriptor {
	d := intoto.SubjectOfRevision(r)
	d.URI = "git+" + r.Repository
	d.Annotations = map[string]any{"role": "source"}
	return d
}

func subjectRevision(r hallmark.Revision) []intoto.ResourceDescriptor {
	return []intoto.ResourceDescriptor{intoto.SubjectOfRevision(r)}
}

func sha256Of(d hallmark.Digest) map[string]string {
	if d == "" {
		return nil
	}
	return map[string]string{"sha256": d.Hex()}
}

func statement(predicateType string, subjects []intoto.ResourceDescriptor, predicate any) (intoto.Statement, error) {
	raw, err := json.Marshal(predicate)
	if err != nil {
		return intoto.Statement{}, fmt.Errorf("encoding predicate %s: %w", predicateType, err)
	}
	if len(subjects) == 0 {
		return intoto.Statement{}, hallmark.Errorf(hallmark.KindInternal, "statement %s without a subject", predicateType)
	}
	return intoto.Statement{Type: intoto.StatementType, Subject: slices.Clone(subjects), PredicateType: predicateType, Predicate: raw}, nil
}

// Products are the subjects of statements about a build: its artifacts, or the
// revision when there are none.
func Products(b Build) []intoto.ResourceDescriptor { return b.products() }
