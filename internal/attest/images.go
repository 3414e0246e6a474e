// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

// ImageRole says what an image was to a build.
type ImageRole int

// The roles of images.
const (
	ImageToolchain ImageRole = iota + 1 // the steps ran in it
	ImageBase                           // an artifact was made from it
)

func (r ImageRole) String() string {
	switch r {
	case ImageToolchain:
		return "toolchain-image"
	case ImageBase:
		return "base-image"
	}
	return "unset"
}

// Image is a container image that went into a build.
type Image struct {
	Role     ImageRole
	Name     string          // as the pipeline calls it
	Digest   hallmark.Digest // that the pipeline names, which every byte was compared with
	Manifest hallmark.Digest // of the image for the platform; the same unless Digest is an index
}

func (i Image) material() intoto.ResourceDescriptor {
	return intoto.ResourceDescriptor{
		Name: i.Name, URI: "oci:" + i.Name + "@" + string(i.Digest), Digest: sha256Of(i.Digest),
		Annotations: map[string]any{"role": i.Role.String(), "manifest": string(i.Manifest)},
	}
}

// ImageScan states what a scan of the images of a build found. Its subjects are
// the images, and the revision that they were made from.
func ImageScan(rec hallmark.CheckRecord, images []hallmark.Artifact) (intoto.Statement, error) {
	result := "FAILED"
	if rec.Outcome == hallmark.Pass {
		result = "PASSED"
	}
	configuration := []intoto.ResourceDescriptor{}
	for _, d := range rec.Data {
		configuration = append(configuration, intoto.ResourceDescriptor{Name: d.Name, Digest: sha256Of(d.Digest)})
	}
	var subjects []intoto.ResourceDescriptor
	for _, a := range images {
		subjects = append(subjects, intoto.SubjectOf(a))
	}
	subjects = append(subjects, subjectRevision(rec.Revision)...)
	return statement(intoto.PredicateTestResult, subjects, intoto.TestResult{Result: result, Configuration: configuration, Check: &rec})
}
