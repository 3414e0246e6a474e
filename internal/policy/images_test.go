// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

const ociManifest = "application/vnd.oci.image.manifest.v1+json"

// imageLab is lab with an image beside the artifact, and its record.
func imageLab(t *testing.T) (*Engine, Verdict, []fact) {
	t.Helper()
	e, v, facts := lab(t)
	img := hallmark.Artifact{Name: "app.oci", Digest: hallmark.DigestOf([]byte("image")), Size: 5, MediaType: ociManifest}
	v.Subjects = append(v.Subjects, img)
	for i := range facts {
		if slices.ContainsFunc(facts[i].Subjects, func(s intoto.ResourceDescriptor) bool { return s.Name == "app" }) {
			facts[i].Subjects = append(slices.Clone(facts[i].Subjects), intoto.SubjectOf(img))
		}
	}
	record := *facts[1].Check
	record.Check = "image"
	record.Data = []hallmark.DataSource{{Name: "secret-rules"}, {Name: "osv:Debian", Newest: clock.Add(-time.Hour)}}
	return e, v, append(facts, fact{
		Digest: hallmark.DigestOf([]byte("scan")), PredicateType: intoto.PredicateTestResult, Signer: "observer", SignedAt: clock, Result: "PASSED",
		Subjects: []intoto.ResourceDescriptor{intoto.SubjectOf(img), intoto.SubjectOfRevision(v.Revision)}, Check: &record,
	})
}

// TestImagesAreScanned: with an image among the artifacts, nothing is allowed
// without a pass of the scan that is about this very image.
func TestImagesAreScanned(t *testing.T) {
	e, v, facts := imageLab(t)
	if d := decide(t, e, v, facts); !d.Allowed() || !slices.ContainsFunc(d.Checks, func(c hallmark.CheckResult) bool { return c.Check == "image" }) {
		t.Fatalf("%+v", d)
	}
	last := len(facts) - 1
	for name, c := range map[string]struct {
		change func(f *fact)
		code   hallmark.Code
	}{
		"failed":        {func(f *fact) { f.Check.Outcome = hallmark.Fail }, hallmark.CodeCheckFailed},
		"errored":       {func(f *fact) { f.Check.Outcome = hallmark.Errored }, hallmark.CodeCheckError},
		"skipped":       {func(f *fact) { f.Check.Outcome = hallmark.Skipped }, hallmark.CodeCheckNotRun},
		"another image": {func(f *fact) { f.Subjects[0].Digest = map[string]string{"sha256": hallmark.DigestOf(nil).Hex()} }, hallmark.CodeEvidenceMissing},
		"no image":      {func(f *fact) { f.Subjects = f.Subjects[1:] }, hallmark.CodeEvidenceMissing},
		"another check": {func(f *fact) { f.Check.Check = "secrets" }, hallmark.CodeEvidenceMissing},
		"builder":       {func(f *fact) { f.Signer = "builder" }, hallmark.CodeEvidenceMissing},
		"another type":  {func(f *fact) { f.PredicateType = intoto.PredicateVulns }, hallmark.CodeEvidenceMissing},
		"another tree":  {func(f *fact) { f.Check.Revision.Tree = "c" }, hallmark.CodeEvidenceMissing},
		"old":           {func(f *fact) { f.Check.FinishedOn = clock.AddDate(0, -2, 0) }, hallmark.CodeScanStale},
		"old data":      {func(f *fact) { f.Check.Data[1].Newest = clock.AddDate(0, -2, 0) }, hallmark.CodeScanDataStale},
		"undated data":  {func(f *fact) { f.Check.Data[1].Newest = time.Time{} }, hallmark.CodeScanDataStale},
		"left out":      {func(f *fact) { f.Check.Coverage = &hallmark.Coverage{Missed: []string{"a layer"}} }, hallmark.CodeScanIncomplete},
		"not passed":    {func(f *fact) { f.Result = "FAILED" }, hallmark.CodeEvidenceMalformed},
	} {
		e, v, facts := imageLab(t)
		c.change(&facts[last])
		d := decide(t, e, v, facts)
		if d.Allowed() || !slices.ContainsFunc(d.Reasons, func(r hallmark.Reason) bool { return r.Code == c.code }) {
			t.Errorf("%s: want %s, got %s %+v", name, c.code, d.Effect, d.Reasons)
		}
	}
	for i := range facts {
		if d := decide(t, e, v, slices.Delete(slices.Clone(facts), i, i+1)); d.Allowed() {
			t.Errorf("allowed without statement %d", i)
		}
	}
}

// TestRulesCantForgetImages: a policy whose rules know no images still denies
// where the record is missing.
func TestRulesCantForgetImages(t *testing.T) {
	e, v, facts := imageLab(t)
	if d := e.decision(v, facts[:len(facts)-1], nil, true); d.Allowed() {
		t.Errorf("allowed by rules that ask for nothing: %+v", d)
	}
	if d := e.decision(v, facts, nil, true); !d.Allowed() {
		t.Errorf("%+v", d)
	}
}

func TestParseImages(t *testing.T) {
	digest := string(hallmark.DigestOf(nil))
	for _, good := range []string{"recorded", "host", digest, "host," + digest} {
		if _, _, err := parseImages(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "any", "host,", "host,host", "debian@" + digest, "sha256:00"} {
		if _, _, err := parseImages(bad); err == nil {
			t.Errorf("%s: accepted", bad)
		}
	}
}
