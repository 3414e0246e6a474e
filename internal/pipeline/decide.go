// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// decide reads the bundles back through the verifier, as anybody would, and
// signs what the release policy says about them.
func (r *run) decide(evidence []Signed) (Result, error) {
	start := r.begin("decide")
	var statements []verify.Statement
	var inputs []hallmark.Digest
	for _, e := range evidence {
		st, err := r.cfg.Decider.Verify(e.JSON)
		if err != nil {
			return Result{}, fmt.Errorf("verifying our own bundle %s: %w", e.Digest, err)
		}
		statements = append(statements, st)
		inputs = append(inputs, e.Digest)
	}
	rev := r.revision()
	resource := ResourceURI(rev)
	verdict, err := r.cfg.Decider.Decide(r.ctx, DecideRequest{
		Statements: statements, Subjects: r.build.Facts.Artifacts, Revision: rev, ResourceURI: resource, Clock: r.cfg.Clock(),
	})
	if err != nil {
		return Result{}, fmt.Errorf("deciding: %w", err)
	}
	digest, err := r.cfg.Blobs.Put(r.ctx, verdict.JSON)
	if err != nil {
		return Result{}, fmt.Errorf("keeping the verdict: %w", err)
	}
	st, err := attest.VSA(attest.Summary{
		Subjects: r.vsaSubjects(), VerifierID: r.cfg.VerifierID, Version: r.cfg.Tool.Version, Time: verdict.Clock,
		ResourceURI: resource, Policy: r.cfg.Policy, Inputs: inputs,
		Allowed: verdict.Decision.Allowed(), Levels: verdict.Levels, Verdict: digest,
	})
	if err != nil {
		return Result{}, fmt.Errorf("assembling the verification summary: %w", err)
	}
	vsa, err := r.cfg.Signer.Sign(r.ctx, Release, st, nil)
	if err != nil {
		return Result{}, fmt.Errorf("signing the verification summary: %w", err)
	}
	// Nobody else could use a summary that we can't verify ourselves.
	if _, err := r.cfg.Decider.Verify(vsa.JSON); err != nil {
		return Result{}, fmt.Errorf("verifying our own summary %s: %w", vsa.Digest, err)
	}
	outcome := hallmark.Fail
	if verdict.Decision.Allowed() {
		outcome = hallmark.Pass
	}
	r.cfg.Progress(Event{Stage: "decide", State: Finished, Outcome: outcome, Elapsed: r.cfg.Clock().Sub(start)})
	return Result{Revision: rev, Verdict: verdict, VSA: vsa, Artifacts: r.build.Facts.Artifacts, Evidence: evidence, Records: r.records()}, nil
}

// vsaSubjects are the artifacts and, always, the revision: a denied revision
// without artifacts has a summary too.
func (r *run) vsaSubjects() []intoto.ResourceDescriptor {
	var out []intoto.ResourceDescriptor
	for _, a := range r.build.Facts.Artifacts {
		out = append(out, intoto.SubjectOf(a))
	}
	rev := intoto.SubjectOfRevision(r.revision())
	if ref := r.revision().Ref; ref != "" {
		rev.Annotations = map[string]any{"sourceRefs": []string{ref}}
	}
	return append(out, rev)
}

// ResourceURI is the resourceUri of a verification summary: the repository
// without the revision, so that an expectation can be written down once.
func ResourceURI(r hallmark.Revision) string {
	if strings.HasPrefix(r.Repository, "git+") {
		return r.Repository
	}
	return "git+" + r.Repository
}
