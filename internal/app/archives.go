// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"path"
	"slices"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
)

// archives says which archives of the source hold something else. Base names of
// artifacts are unique.
func (b *builder) archives(in pipeline.Input, def *build.Pipeline, outputs []build.Output) []hallmark.Reason {
	var out []hallmark.Reason
	for _, o := range outputs {
		if !slices.ContainsFunc(def.Sources, func(s string) bool { return path.Base(s) == o.Name }) {
			continue
		}
		if r := b.parts.SourceArchive(in.Export.Dir, o.Name, o.Data); r != nil {
			out = append(out, *r)
		}
	}
	return out
}
