// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// ContentOf reads revision and artifacts out of verified inputs. Without a source
// statement the revision is that of the record of the build: a wrapped command has
// no other.
func ContentOf(inputs []verify.Statement) (hallmark.Revision, []hallmark.Artifact) {
	var rev, built hallmark.Revision
	var subjects []hallmark.Artifact
	for _, s := range inputs {
		st := s.Statement()
		switch s.PredicateType() {
		case intoto.PredicateSource:
			if p, err := intoto.DecodePredicate[intoto.SourceProvenance](st); err == nil {
				rev = p.Revision
			}
		case intoto.PredicateLink:
			if rec, err := intoto.CheckOf(st); err == nil && rec != nil && rec.Check == "build" {
				built = rec.Revision
			}
		case intoto.PredicateSCAI:
			sc, err := intoto.DecodePredicate[intoto.SCAI](st)
			if err != nil || sc.Name != intoto.NameArtifacts {
				continue
			}
			for _, a := range sc.Attributes {
				if a.Attribute == "FINAL_ARTIFACT" && a.Target != nil {
					size, _ := a.Conditions["size"].(float64)
					mode, _ := a.Conditions["mode"].(float64)
					subjects = append(subjects, hallmark.Artifact{Name: a.Target.Name, Digest: hallmark.Digest("sha256:" + a.Target.Digest["sha256"]), MediaType: a.Target.MediaType, Size: int64(size), Mode: uint32(mode)})
				}
			}
		}
	}
	if rev == (hallmark.Revision{}) {
		rev = built
	}
	return rev, subjects
}
