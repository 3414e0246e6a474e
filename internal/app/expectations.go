// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"maps"
	"slices"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// ofParameters checks that the builds were given exactly the expected external
// parameters (SLSA v1.2, verifying artifacts, step 2). nil expects what the build
// policy of the evidence permits, which the decision has asked already.
func ofParameters(inputs []verify.Statement, want map[string]string) error {
	for _, s := range inputs {
		if want == nil || s.PredicateType() != intoto.PredicateProvenance {
			continue
		}
		p, err := intoto.ParseProvenance(s.Statement())
		if err != nil {
			return err
		}
		given := p.BuildDefinition.ExternalParameters.Parameters
		for _, name := range slices.Sorted(maps.Keys(given)) {
			if v, ok := want[name]; !ok {
				return unexpectedParameter("the build was given the parameter %s=%.200q, which is not expected", name, given[name])
			} else if v != given[name] {
				return unexpectedParameter("the build was given %s=%.200q: want %.200q", name, given[name], v)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if _, ok := given[name]; !ok {
				return unexpectedParameter("the build was not given the parameter %s: want %.200q", name, want[name])
			}
		}
	}
	return nil
}

func unexpectedParameter(format string, args ...any) error {
	return hallmark.Coded(hallmark.KindDenied, hallmark.CodeExternalParameters, format, args...)
}
