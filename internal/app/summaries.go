// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"slices"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// summaries are the verification summaries of a home, and which bundles speak of
// wrapped commands.
type summaries struct {
	list    []summary
	wrapped map[hallmark.Digest]bool
}

type summary struct {
	digest hallmark.Digest // of the statement
	at     time.Time
	inputs []intoto.ResourceDescriptor
}

func (s *summaries) add(bundle hallmark.Digest, st verify.Statement) error {
	switch st.PredicateType() {
	case intoto.PredicateVSA:
		v, err := intoto.DecodePredicate[intoto.VSA](st.Statement())
		if err != nil {
			return err
		}
		if v.OfSource() {
			return nil // of a revision that a reference shows: no verdict on what was built
		}
		s.list = append(s.list, summary{digest: st.Digest(), at: st.SignedAt(), inputs: v.InputAttestations})
	case intoto.PredicateSCAI:
		p, err := intoto.DecodePredicate[intoto.SCAI](st.Statement())
		if err != nil {
			return err
		}
		if p.Producer != nil && p.Producer.URI == intoto.BuilderWrap {
			if s.wrapped == nil {
				s.wrapped = map[hallmark.Digest]bool{}
			}
			s.wrapped[bundle] = true
		}
	}
	return nil
}

// newest is the last summary over no wrapped command; the zero value if there is
// none.
func (s *summaries) newest() summary {
	var out summary
	for _, v := range s.list {
		if slices.ContainsFunc(v.inputs, func(in intoto.ResourceDescriptor) bool {
			return s.wrapped[hallmark.Digest("sha256:"+in.Digest["sha256"])]
		}) {
			continue
		}
		if !v.at.Before(out.at) {
			out = v
		}
	}
	return out
}
