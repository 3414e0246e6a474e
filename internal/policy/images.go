// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
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

// parseImages reads the approved images; anything is true where they are only
// recorded.
func parseImages(s string) (approved []string, anything bool, err error) {
	if s == "recorded" {
		return nil, true, nil
	}
	if err := nonEmpty(s); err != nil {
		return nil, false, err
	}
	for _, w := range splitList(s) {
		if w != "host" && hallmark.Digest(w).Check() != nil {
			return nil, false, fmt.Errorf("%.120q: want recorded, or a list of sha256:HEX and host", w)
		}
		approved = append(approved, w)
	}
	return approved, false, nil
}

// imagesOf reads from a statement of materials or of the environment which images
// a build was made in and from.
func imagesOf(materials []intoto.ResourceDescriptor) []string {
	out := []string{}
	for _, m := range materials {
		if role, _ := m.Annotations["role"].(string); role == "toolchain-image" || role == "base-image" {
			out = append(out, "sha256:"+m.Digest["sha256"])
		}
	}
	return out
}

// hostImage is what an environment says when its steps ran in no image.
func hostImage(a intoto.SCAIAttribute) bool {
	image, _ := a.Conditions["image"].(string)
	return a.Attribute == "BUILD_PLATFORM" && image == "host"
}
