// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// imagesIn are the images among what statements are about. The statements of the
// control plane say which subjects are images; the provenance, without which
// nothing is allowed, names them all.
func imagesIn(facts []fact, subjects []hallmark.Artifact) []hallmark.Artifact {
	var out []hallmark.Artifact
	add := func(a hallmark.Artifact) {
		if !slices.ContainsFunc(out, func(b hallmark.Artifact) bool { return a.Digest == b.Digest }) {
			out = append(out, a)
		}
	}
	for _, a := range subjects {
		if a.Image() {
			add(a)
		}
	}
	for _, f := range facts {
		for _, s := range f.Subjects {
			if hallmark.ImageType(s.MediaType) {
				add(hallmark.Artifact{Name: s.Name, Digest: hallmark.Digest("sha256:" + s.Digest["sha256"]), MediaType: s.MediaType})
			}
		}
	}
	slices.SortFunc(out, func(a, b hallmark.Artifact) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return out
}

// required are the checks that must pass: those of every build, and those of
// builds that leave an image.
func (e *Engine) required(images []hallmark.Artifact) []string {
	out := slices.Clone(e.params.Required)
	if len(images) == 0 || len(out) == 0 { // no required check allows nothing, with or without images
		return out
	}
	for _, c := range e.params.ImageRequired {
		if !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}
