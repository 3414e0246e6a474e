// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package intoto

import (
	"fmt"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// Type URIs. The first group is published by others; the second is ours, where
// no published type exists (docs/predicates/).
const (
	StatementType = "https://in-toto.io/Statement/v1"
	PayloadType   = "application/vnd.in-toto+json"

	PredicateProvenance = "https://slsa.dev/provenance/v1"
	PredicateVSA        = "https://slsa.dev/verification_summary/v1"
	PredicateTestResult = "https://in-toto.io/attestation/test-result/v0.1"
	PredicateVulns      = "https://in-toto.io/attestation/vulns/v0.2"
	PredicateSCAI       = "https://in-toto.io/attestation/scai/v0.3"
	PredicateLink       = "https://in-toto.io/attestation/link/v0.3"
	PredicateTrace      = "https://in-toto.io/attestation/runtime-trace/v0.1"
	PredicateSPDX       = "https://spdx.dev/Document"
	PredicateCycloneDX  = "https://cyclonedx.org/bom"

	PredicateSource  = "https://hallmark-sc.github.io/predicates/source-provenance/v0.1"
	PredicatePolicy  = "https://hallmark-sc.github.io/predicates/policy/v0.1"
	PredicateGenesis = "https://hallmark-sc.github.io/predicates/genesis/v0.1"

	// Of the gates: a reference that moved or was not let, what people said of a
	// change, and who asked for what.
	PredicateTransition = "https://hallmark-sc.github.io/predicates/ref-transition/v0.1"
	PredicateReview     = "https://hallmark-sc.github.io/predicates/change-review/v0.1"
	PredicateAccess     = "https://hallmark-sc.github.io/predicates/access-record/v0.1"

	// BuildTypePipeline is the buildType of a build described by
	// .hallmark/pipeline.yaml.
	BuildTypePipeline = "https://hallmark-sc.github.io/build-types/pipeline/v1"

	// BuilderLocal is the builder.id of a build on a person's own machine: at
	// most SLSA Build L1.
	BuilderLocal = "https://hallmark-sc.github.io/builders/local"

	// BuilderServer is the builder.id of a build that hallmark serve started, whose
	// statements a process signed that no build can reach.
	BuilderServer = "https://hallmark-sc.github.io/builders/server"

	// BuildTypeCommand is the buildType of one command of another CI system that
	// hallmark wrap ran; pipeline is the command then, its path the step's name.
	BuildTypeCommand = "https://hallmark-sc.github.io/build-types/command/v1"

	// BuilderWrap is the builder.id of a wrapped command: it was recorded, not
	// isolated, and ran beside the keys.
	BuilderWrap = "https://hallmark-sc.github.io/builders/wrap"
)

// Extension fields, named by URI as in-toto asks, inside predicates of published
// types. Ignoring one never turns a denial into an allowance: a test-result
// whose check record is not "pass" also says FAILED.
const (
	ExtensionCheck   = "https://hallmark-sc.github.io/ext/check/v0.1"   // hallmark.CheckRecord
	ExtensionVerdict = "https://hallmark-sc.github.io/ext/verdict/v0.1" // VerdictRef
)

// Names of link and SCAI statements, which share a predicate type: SP 800-204D
// §5.1.1 asks for these components of evidence.
const (
	NameProcess     = "process"
	NameMaterials   = "materials"
	NameEnvironment = "environment"
	NameArtifacts   = "artifacts"
)

// TestResult is https://in-toto.io/attestation/test-result/v0.1 with the check
// record. Result is PASSED exactly when Check.Outcome is pass.
type TestResult struct {
	Result        string                `json:"result"` // PASSED, WARNED or FAILED
	Configuration []ResourceDescriptor  `json:"configuration"`
	URL           string                `json:"url,omitempty"`
	PassedTests   []string              `json:"passedTests,omitempty"`
	WarnedTests   []string              `json:"warnedTests,omitempty"`
	FailedTests   []string              `json:"failedTests,omitempty"`
	Check         *hallmark.CheckRecord `json:"https://hallmark-sc.github.io/ext/check/v0.1"`
}

// Vulns is https://in-toto.io/attestation/vulns/v0.2 with the check record.
type Vulns struct {
	Scanner  VulnScanner           `json:"scanner"`
	Metadata VulnMetadata          `json:"metadata"`
	Check    *hallmark.CheckRecord `json:"https://hallmark-sc.github.io/ext/check/v0.1"`
}

// VulnScanner is the scanner of a Vulns predicate with its data and results.
type VulnScanner struct {
	URI     string       `json:"uri"`
	Version string       `json:"version"`
	DB      VulnDB       `json:"db"`
	Result  []VulnResult `json:"result"`
}

// VulnDB is the advisory data of a Vulns predicate.
type VulnDB struct {
	URI        string    `json:"uri"`
	Version    string    `json:"version"` // digest of the data
	LastUpdate time.Time `json:"lastUpdate,omitzero"`
}

// VulnResult is one advisory that matched.
type VulnResult struct {
	ID          string         `json:"id"`
	Severity    []VulnSeverity `json:"severity"`
	Annotations []any          `json:"annotations,omitempty"`
}

// VulnSeverity is one rating of an advisory.
type VulnSeverity struct {
	Method string `json:"method"` // such as "nvd" or "hallmark"
	Score  string `json:"score"`
}

// VulnMetadata is when the scan ran.
type VulnMetadata struct {
	ScanStartedOn  time.Time `json:"scanStartedOn"`
	ScanFinishedOn time.Time `json:"scanFinishedOn"`
}

// SourceProvenance says how a revision was found and who signed it.
type SourceProvenance struct {
	Revision    hallmark.Revision     `json:"revision"`
	Signer      *hallmark.Principal   `json:"signer,omitempty"` // absent when no allowed signature was found
	Author      string                `json:"author"`           // as the commit claims; not authenticated
	Committer   string                `json:"committer"`        // as the commit claims; not authenticated
	CommittedOn time.Time             `json:"committedOn"`      // as the commit claims
	Parents     []string              `json:"parents"`
	Commits     int                   `json:"commits"` // reachable from the revision
	Check       *hallmark.CheckRecord `json:"https://hallmark-sc.github.io/ext/check/v0.1"`
}

// SCAI is https://in-toto.io/attestation/scai/v0.3. Name tells environment and
// artifacts statements apart.
type SCAI struct {
	Attributes []SCAIAttribute     `json:"attributes"`
	Producer   *ResourceDescriptor `json:"producer,omitempty"`
	Name       string              `json:"https://hallmark-sc.github.io/ext/name/v0.1"`
}

// Attributes of a tool that was there, which the target names: in the approved
// inventory of the policy, or of a policy that has none.
const (
	AttributeTool         = "TOOL_PRESENT"
	AttributeToolApproved = "TOOL_APPROVED"
)

// AttributeInvocation names the run of a build that an environment or artifacts
// statement is about, in its condition "id"; links carry it as a byproduct.
const (
	AttributeInvocation = "BUILD_INVOCATION"
	ByproductInvocation = "invocation"
)

// StatementURI marks a descriptor of a statement: its digest is that of the
// statement's PAE, as in the log.
const StatementURI = "hallmark:statement"

// InvocationID names one run of one build.
func InvocationID(commit string, pipeline hallmark.Digest, startedOn time.Time) string {
	id := hallmark.DigestOf(fmt.Appendf(nil, "%s %s %s", commit, pipeline, startedOn.Format(time.RFC3339Nano)))
	return "urn:hallmark:build:" + id.Hex()[:32]
}

// SCAIAttribute is one claim about the subject or about Target.
type SCAIAttribute struct {
	Attribute  string              `json:"attribute"`
	Target     *ResourceDescriptor `json:"target,omitempty"`
	Conditions map[string]any      `json:"conditions,omitempty"`
	Evidence   *ResourceDescriptor `json:"evidence,omitempty"`
}

// Link is https://in-toto.io/attestation/link/v0.3; its subject is the products.
// The process statement carries the check record of the build.
type Link struct {
	Name        string                `json:"name"`
	Command     []string              `json:"command"`
	Materials   []ResourceDescriptor  `json:"materials"`
	Byproducts  map[string]any        `json:"byproducts"`
	Environment map[string]any        `json:"environment"`
	Check       *hallmark.CheckRecord `json:"https://hallmark-sc.github.io/ext/check/v0.1,omitempty"`
}

// RuntimeTrace is https://in-toto.io/attestation/runtime-trace/v0.1.
type RuntimeTrace struct {
	Monitor          TraceMonitor  `json:"monitor"`
	MonitoredProcess TraceProcess  `json:"monitoredProcess"`
	MonitorLog       TraceLog      `json:"monitorLog"`
	Metadata         TraceMetadata `json:"metadata"`
}

// TraceMonitor is what recorded; its policy says what.
type TraceMonitor struct {
	Type        string         `json:"type"` // URI
	TracePolicy map[string]any `json:"tracePolicy"`
}

// TraceProcess is what was recorded.
type TraceProcess struct {
	HostID string `json:"hostID"` // URI of the builder
	Type   string `json:"type"`   // URI of the kind of build
	Event  string `json:"event"`
}

// TraceLog is what was seen. Process and Network are the monitor's own shapes.
type TraceLog struct {
	Process    []any                `json:"process"`
	Network    []any                `json:"network"`
	FileAccess []ResourceDescriptor `json:"fileAccess"`
}

// TraceMetadata is when it was recorded.
type TraceMetadata struct {
	BuildStartedOn  time.Time `json:"buildStartedOn"`
	BuildFinishedOn time.Time `json:"buildFinishedOn"`
}

// Provenance is https://slsa.dev/provenance/v1.
type Provenance struct {
	BuildDefinition BuildDefinition `json:"buildDefinition"`
	RunDetails      RunDetails      `json:"runDetails"`
}

// BuildDefinition is what was asked for and what it resolved to.
type BuildDefinition struct {
	BuildType            string               `json:"buildType"`
	ExternalParameters   ExternalParameters   `json:"externalParameters"`
	InternalParameters   map[string]any       `json:"internalParameters,omitempty"`
	ResolvedDependencies []ResourceDescriptor `json:"resolvedDependencies"`
}

// ExternalParameters are all the ways to influence a build from outside; a
// verifier refuses any other field (SLSA verification, expectations).
type ExternalParameters struct {
	Repository string      `json:"repository"`
	Ref        string      `json:"ref,omitempty"`
	Revision   string      `json:"revision"` // commit
	Pipeline   PipelineRef `json:"pipeline"`
	// Parameters are those that the requester gave, by name; absent where none was.
	Parameters map[string]string `json:"parameters,omitempty"`
}

// PipelineRef names the pipeline definition that was used.
type PipelineRef struct {
	Path   string          `json:"path"`
	Digest hallmark.Digest `json:"digest"`
}

// RunDetails is who ran the build and when.
type RunDetails struct {
	Builder    Builder              `json:"builder"`
	Metadata   BuildMetadata        `json:"metadata"`
	Byproducts []ResourceDescriptor `json:"byproducts,omitempty"`
}

// Builder identifies the build platform and mode.
type Builder struct {
	ID      string            `json:"id"`
	Version map[string]string `json:"version,omitempty"`
}

// BuildMetadata is the build's identity and times.
type BuildMetadata struct {
	InvocationID string    `json:"invocationId"`
	StartedOn    time.Time `json:"startedOn"`
	FinishedOn   time.Time `json:"finishedOn"`
}

// VSA is https://slsa.dev/verification_summary/v1 with a reference to the
// verdict it summarizes.
type VSA struct {
	Verifier           VSAVerifier          `json:"verifier"`
	TimeVerified       time.Time            `json:"timeVerified"`
	ResourceURI        string               `json:"resourceUri"`
	Policy             ResourceDescriptor   `json:"policy"`
	InputAttestations  []ResourceDescriptor `json:"inputAttestations"`  // every bundle, by digest of its bytes
	VerificationResult string               `json:"verificationResult"` // PASSED or FAILED
	VerifiedLevels     []string             `json:"verifiedLevels"`
	SLSAVersion        string               `json:"slsaVersion"`
	Verdict            *VerdictRef          `json:"https://hallmark-sc.github.io/ext/verdict/v0.1,omitempty"` // none of a source
}

// OfSource reports whether a summary is of a revision that a reference showed (SLSA
// v1.2 Source track), and no verdict on what was built from one.
func (v VSA) OfSource() bool {
	return len(v.VerifiedLevels) > 0 && v.Verdict == nil && strings.HasPrefix(v.VerifiedLevels[0], "SLSA_SOURCE_LEVEL_")
}

// VSAVerifier identifies who verified.
type VSAVerifier struct {
	ID      string            `json:"id"`
	Version map[string]string `json:"version,omitempty"`
}

// VerdictRef binds a VSA to its verdict.json.
type VerdictRef struct {
	Digest hallmark.Digest `json:"digest"` // of verdict.json in RFC 8785 form
}
