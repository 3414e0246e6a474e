// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package hallmark

// Artifact is one output of a build: bytes under a base name, or a container
// image, whose digest is that of its manifest or index.
type Artifact struct {
	Name   string `json:"name"`
	Digest Digest `json:"digest"`
	Size   int64  `json:"size"`           // bytes
	Mode   uint32 `json:"mode,omitempty"` // permission bits, 0o755 for a program

	MediaType string `json:"mediaType,omitempty"` // of an image: that of its manifest or index
}

// Image reports whether the artifact is a container image (OCI image-spec,
// media-types.md).
func (a Artifact) Image() bool { return ImageType(a.MediaType) }

// ImageType reports whether a media type is that of an image's manifest or of an
// index of images.
func ImageType(mediaType string) bool {
	switch mediaType {
	case "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json":
		return true
	}
	return false
}

// Revision is one immutable state of a source repository.
type Revision struct {
	Repository string `json:"repository"`    // URI: the canonical locator, or file:// of a local one
	Ref        string `json:"ref,omitempty"` // fully qualified; empty when the commit was named directly
	Commit     string `json:"commit"`        // git object name, 40 or 64 hex digits
	Tree       string `json:"tree"`          // git object name of its tree
}

// Principal is a person, robot or workload that can be named in evidence.
type Principal struct {
	Name   string `json:"name"`             // as the signed policy names it, often a mail address
	Key    string `json:"key,omitempty"`    // fingerprint of the key it proved, such as SHA256:…
	Method string `json:"method,omitempty"` // how it was authenticated: ssh, openpgp, x509, local
}

// Tool is a program or library that did a part of the work.
type Tool struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Digest  Digest `json:"digest,omitempty"` // of the binary that ran
}
