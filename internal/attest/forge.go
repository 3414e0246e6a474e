// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

// ForgeSettings states how a repository at a forge is set up, held against what is
// wanted. The subject is the repository, by the digest of its URL; passed and failed
// are settings, each as CODE and what it is of. What was not read is among neither,
// and then the record is no pass.
func ForgeSettings(rec hallmark.CheckRecord, passed, failed []string) (intoto.Statement, error) {
	if rec.Check != intoto.CheckForge || rec.Revision.Repository == "" || rec.Report == "" {
		return intoto.Statement{}, hallmark.Errorf(hallmark.KindInternal, "stating settings of %q by the check %q", rec.Revision.Repository, rec.Check)
	}
	result := "FAILED"
	if rec.Outcome == hallmark.Pass {
		result = "PASSED"
	}
	return statement(intoto.PredicateTestResult, []intoto.ResourceDescriptor{SubjectOfForge(rec.Revision.Repository)}, intoto.TestResult{
		Result: result, Configuration: []intoto.ResourceDescriptor{{Name: "settings", URI: "hallmark:blob", Digest: sha256Of(rec.Report)}},
		PassedTests: passed, FailedTests: failed, Check: &rec,
	})
}

// SubjectOfForge names a repository at a forge as a subject.
func SubjectOfForge(url string) intoto.ResourceDescriptor {
	return intoto.ResourceDescriptor{Name: url, URI: "git+" + url, Digest: sha256Of(hallmark.DigestOf([]byte("forge\x00" + url)))}
}
