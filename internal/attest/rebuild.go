// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

// Rebuild is what came of building again what a provenance attests.
type Rebuild struct {
	Artifacts  []hallmark.Artifact // as they were attested
	Provenance hallmark.Digest     // of the bundle that attests them
	Pipeline   intoto.PipelineRef
	Record     hallmark.CheckRecord // of the check rebuild; pass when every byte is the same
}

// Statement states a rebuild: a test result about the attested artifacts. Only one
// whose record is a pass has the property SLSA_BUILD_REPRODUCED among its passed
// tests.
func (r Rebuild) Statement() (intoto.Statement, error) {
	if len(r.Artifacts) == 0 || r.Record.Check != intoto.CheckRebuild {
		return intoto.Statement{}, hallmark.Errorf(hallmark.KindInternal, "stating a rebuild without artifacts or of the check %q", r.Record.Check)
	}
	var subjects []intoto.ResourceDescriptor
	for _, a := range r.Artifacts {
		subjects = append(subjects, intoto.SubjectOf(a))
	}
	t := intoto.TestResult{
		Result: "FAILED", Check: &r.Record,
		Configuration: []intoto.ResourceDescriptor{
			{Name: "provenance", URI: "hallmark:bundle", Digest: sha256Of(r.Provenance)},
			{Name: r.Pipeline.Path, Digest: sha256Of(r.Pipeline.Digest)},
		},
	}
	if r.Record.Outcome == hallmark.Pass {
		t.Result, t.PassedTests = "PASSED", []string{intoto.PropertyReproduced}
	} else {
		t.FailedTests = []string{intoto.PropertyReproduced}
	}
	return statement(intoto.PredicateTestResult, subjects, t)
}
