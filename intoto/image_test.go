// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package intoto_test

import (
	"testing"

	"github.com/hallmark-sc/hallmark/intoto"
)

// TestProvenanceImage: rules name digests, and provenance has the name too.
func TestProvenanceImage(t *testing.T) {
	for given, want := range map[string]string{"host": "host", "example.org/tools@sha256:ab": "sha256:ab", "sha256:ab": "sha256:ab", "": ""} {
		var p intoto.Provenance
		p.BuildDefinition.InternalParameters = map[string]any{"platform": map[string]any{"image": given}}
		if got, err := p.Image(); err != nil || got != want {
			t.Errorf("%q is %q, %v", given, got, err)
		}
	}
}
