// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package pipeline drives one revision from source check to verdict: source,
// resolve, checks, build, attest, sign and log, decide. It is the only package
// that knows this order.
//
// Each stage is a saved step: its result is durable before the next stage
// starts, so a killed run resumes. A saved result is believed only under the key
// of everything it depends on (revision, pipeline definition, signed policy,
// rule and advisory data, toolchain, our own binary) and only while it is fresh.
// The package holds no keys, runs no programs and decides nothing: it calls
// ports, which internal/app wires.
package pipeline

import (
	"context"
	"fmt"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// PipelineFile is where a repository keeps its pipeline definition.
const PipelineFile = ".hallmark/pipeline.yaml"

// Source reads one repository. Implementations work on a private copy and ask no
// configuration of the repository or its user.
type Source interface {
	// Check resolves rev and judges it. A revision that can't be named at all is
	// an error; one that fails or can't be judged is a record that says so.
	Check(ctx context.Context, rev string) (SourceFacts, error)
	// Export writes the tree of the checked revision into dir, read-only, from
	// objects that were re-hashed.
	Export(ctx context.Context, rev hallmark.Revision, dir string) (Export, error)
}

// SourceFacts are the result of the source stage.
type SourceFacts struct {
	Provenance intoto.SourceProvenance `json:"provenance"`
	CommitTime time.Time               `json:"commitTime"`
}

// Record returns the check record of the source stage.
func (f SourceFacts) Record() hallmark.CheckRecord {
	if f.Provenance.Check == nil {
		return hallmark.CheckRecord{}
	}
	return *f.Provenance.Check
}

// Export is a private read-only copy of a revision's tree.
type Export struct {
	Dir        string
	Files      int
	Manifest   hallmark.Digest // of the list of paths, modes and digests
	Pipeline   []byte          // of PipelineFile; nil when the revision has none
	CommitTime time.Time
}

// Resolver fetches dependencies before the build, without keys, from the named
// registries only.
type Resolver interface {
	// Plan names all that Fetch depends on: manifests, lock files, registries.
	// "" means that nothing has to be fetched.
	Plan(ctx context.Context, export Export) (hallmark.Digest, error)
	// Fetch fills dest and returns what it fetched and verified. Errors that the
	// revision or a registry caused carry a DEPENDENCY_ code.
	Fetch(ctx context.Context, export Export, dest string) (Dependencies, error)
	// Verify hashes everything in dest, which an earlier Fetch filled, again.
	Verify(ctx context.Context, export Export, dest string) (Dependencies, error)
}

// Dependencies are what was fetched, and where it lies for the sandbox.
type Dependencies struct {
	List   []attest.Dependency `json:"list"`
	Mounts []Mount             `json:"mounts"`        // read-only in every sandbox that asks
	Env    map[string]string   `json:"env,omitempty"` // such as GOMODCACHE
}

// Mount is a directory of ours that a sandbox sees under another name. Host
// paths are relative to the dependency directory.
type Mount struct {
	Host   string `json:"host"`
	Target string `json:"target"`
}

// Input is what a scanner may look at.
type Input struct {
	Revision     hallmark.Revision
	Export       Export
	DepsDir      string
	Dependencies Dependencies
	Inventory    []byte // JSON of the inventory stage; nil before it
}

// ScanOutput is the result of one scanner.
type ScanOutput struct {
	Record    hallmark.CheckRecord `json:"record"`
	Findings  []hallmark.Finding   `json:"findings"`
	Inventory []byte               `json:"inventory,omitempty"` // of the sbom check
}

// Scanner is one of the checks that read the revision without running it.
type Scanner interface {
	Name() string
	// Fingerprint names the rule and advisory data the scanner would use now;
	// a saved result made from other data is not reused.
	Fingerprint(ctx context.Context) (hallmark.Digest, error)
	// Scan never returns an error for something the revision caused: that is a
	// record with the outcome error.
	Scan(ctx context.Context, in Input) (ScanOutput, error)
}

// Builder runs the pipeline definition of a revision in ephemeral sandboxes.
type Builder interface {
	// Fingerprint names the toolchain and limits.
	Fingerprint(ctx context.Context) (hallmark.Digest, error)
	// Build returns facts, also of a build that failed. Artifact and log bytes
	// are durable blobs when it returns.
	Build(ctx context.Context, in Input, workDir string) (BuildOutput, error)
}

// BuildOutput is the result of the build stage.
type BuildOutput struct {
	Facts    attest.Build         `json:"facts"` // Facts.Record is the record of the check "build"
	Tests    hallmark.CheckRecord `json:"tests"`
	Passed   []string             `json:"passed,omitempty"` // names of test steps
	Failed   []string             `json:"failed,omitempty"`
	Decision hallmark.Decision    `json:"decision"` // of the build policy
	Images   []ImageOutput        `json:"images,omitempty"`
}

// Documents renders an inventory as SPDX 2.3 and CycloneDX 1.6.
type Documents interface {
	Render(inventory []byte, rev hallmark.Revision, artifacts []hallmark.Artifact, at time.Time) (spdx, cyclonedx []byte, err error)
	SARIF(records []hallmark.CheckRecord, findings []hallmark.Finding) ([]byte, error)
}

// Role names who signs a statement.
type Role int

// The roles of a local run.
const (
	Observer Role = iota + 1 // observations: always signed, with their result
	Platform                 // provenance: only with a permit
	Release                  // the verification summary
)

// Permit lets the platform sign one provenance statement: it is bound to the
// statement's digest and carries the decision of the build policy.
type Permit struct {
	Statement hallmark.Digest
	Policy    hallmark.Digest
	Decision  hallmark.Decision
}

// Signed is a published bundle.
type Signed struct {
	JSON      []byte
	Statement hallmark.Digest // of the PAE: the digest in the log
	Digest    hallmark.Digest // of JSON
}

// Signer signs, time-stamps and logs. When Sign returns, the bundle is durable,
// covered by a published checkpoint and found in the index; signing the same
// statement again returns the bundle made before.
type Signer interface {
	Sign(ctx context.Context, role Role, statement intoto.Statement, permit *Permit) (Signed, error)
}

// Decider turns bundles into verified statements and decides over them under
// the signed policy.
type Decider interface {
	Verify(bundle []byte) (verify.Statement, error)
	Decide(ctx context.Context, req DecideRequest) (Verdict, error)
}

// DecideRequest is what a decision is about.
type DecideRequest struct {
	Statements  []verify.Statement
	Subjects    []hallmark.Artifact
	Revision    hallmark.Revision
	ResourceURI string
	Clock       time.Time
}

// Verdict is a decision with its canonical bytes.
type Verdict struct {
	JSON     []byte // RFC 8785
	Decision hallmark.Decision
	Levels   []string
	Clock    time.Time
}

// Saves keeps results of stages. Losing one costs time only; a result that was
// half-written must never be returned.
type Saves interface {
	Save(ctx context.Context, stage string, key hallmark.Digest, result []byte, at time.Time) error
	Saved(ctx context.Context, stage string, key hallmark.Digest) (result []byte, at time.Time, ok bool, err error)
}

// Blobs keeps bytes under their digest; durable when Put returns.
type Blobs interface {
	Put(ctx context.Context, b []byte) (hallmark.Digest, error)
	Get(ctx context.Context, d hallmark.Digest) ([]byte, error)
}

// Event is one step of progress, for people and for --json.
type Event struct {
	Stage   string           // source, resolve, secrets, sast, sbom, sca, build, attest, decide
	State   State            //
	Outcome hallmark.Outcome // set when a check finished
	Elapsed time.Duration    // set when finished
	Detail  string
}

// State is where a stage stands.
type State int

// The states of a stage.
const (
	Started State = iota + 1
	Finished
	Reused
)

func (s State) String() string {
	switch s {
	case Started:
		return "started"
	case Finished:
		return "finished"
	case Reused:
		return "reused"
	}
	return "unset"
}

// Config is what a pipeline needs; every field is required but ReuseMaxAge,
// whose zero value reuses nothing, Progress and Disk.
type Config struct {
	Source   Source
	Resolver Resolver
	Scanners []Scanner // secrets, sast, sbom, sca: in this order, sbom before sca
	Builder  Builder
	// ImageScanner is needed by builds that leave an image.
	ImageScanner ImageScanner
	Documents    Documents
	Signer       Signer
	Decider      Decider
	Saves        Saves
	Blobs        Blobs
	Tool         hallmark.Tool   // our own binary
	Policy       hallmark.Digest // of the signed policy document
	PolicyFiles  map[string][]byte
	TrustedRoot  []byte
	Roots        []byte
	VerifierID   string
	WorkDir      string // private; emptied by the caller when the run ends
	DepsDir      string // dependency directories by key, kept between runs
	ReuseMaxAge  time.Duration
	Clock        func() time.Time
	Progress     func(Event)
	BuilderCert  CertificateIdentity
	ReleaseKey   []byte // PEM of the key that signs verification summaries
	Disk         durable.Disk
}

// CertificateIdentity is the identity in a short-lived certificate.
type CertificateIdentity struct {
	Issuer string
	SAN    string
}

// Pipeline runs revisions. It holds no state between runs.
type Pipeline struct{ cfg Config }

// New checks the configuration.
func New(cfg Config) (*Pipeline, error) {
	for name, missing := range map[string]bool{
		"source": cfg.Source == nil, "resolver": cfg.Resolver == nil, "builder": cfg.Builder == nil,
		"documents": cfg.Documents == nil, "signer": cfg.Signer == nil, "decider": cfg.Decider == nil,
		"saves": cfg.Saves == nil, "blobs": cfg.Blobs == nil, "clock": cfg.Clock == nil,
		"policy": cfg.Policy == "", "work directory": cfg.WorkDir == "", "dependency directory": cfg.DepsDir == "",
		"tool digest": cfg.Tool.Digest == "", "scanners": len(cfg.Scanners) == 0, "policy file": len(cfg.PolicyFiles) == 0,
		"trusted root": len(cfg.TrustedRoot) == 0, "roots": len(cfg.Roots) == 0, "verifier id": cfg.VerifierID == "",
		"builder identity": cfg.BuilderCert.Issuer == "" || cfg.BuilderCert.SAN == "", "release key": len(cfg.ReleaseKey) == 0,
	} {
		if missing {
			return nil, hallmark.Errorf(hallmark.KindInternal, "pipeline without a %s", name)
		}
	}
	if cfg.Progress == nil {
		cfg.Progress = func(Event) {}
	}
	return &Pipeline{cfg: cfg}, nil
}

// Result is a finished run: a verdict, allowing or not, with everything that
// belongs beside it.
type Result struct {
	Revision  hallmark.Revision
	Verdict   Verdict
	VSA       Signed
	Artifacts []hallmark.Artifact
	Evidence  []Signed
	Records   []hallmark.CheckRecord
	Out       string
}

// Run takes rev from commit to verdict and leaves artifacts and evidence in out.
// A denial is a Result; an error means that no verdict could be made.
func (p *Pipeline) Run(ctx context.Context, rev, out string) (Result, error) {
	r := &run{cfg: p.cfg, ctx: ctx}
	if err := CheckOut(out); err != nil {
		return Result{}, err
	}
	if err := r.observe(rev); err != nil {
		return Result{}, err
	}
	evidence, err := r.sign()
	if err != nil {
		return Result{}, err
	}
	res, err := r.decide(evidence)
	if err != nil {
		return Result{}, err
	}
	res.Out = out
	if err := r.write(res, out); err != nil {
		return Result{}, fmt.Errorf("writing results to %s: %w", out, err)
	}
	return res, nil
}
