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

// CheckRequesters refuses rules that name a requester whom no build can have, so
// that a rule which permits nobody is not taken for one that does. It is asked when
// rules are put in force, not of rules that are: what they named may be gone by
// then. known tells the principals of the access section.
func (b *BuildRules) CheckRequesters(known func(principal string) bool) error {
	for i, r := range b.Rules {
		served := !slices.ContainsFunc(r.Platforms, func(p BuildPlatform) bool { return p.Builder != intoto.BuilderServer })
		for j, q := range r.Requesters {
			where := fmt.Sprintf("rules[%d] (%s): requesters[%d]: %.120q", i, r.Name, j, q)
			kind, name, named := strings.Cut(q, ":")
			switch {
			case kind == RequesterOperator || kind == "uid":
				if served {
					return hallmark.WithHint(hallmark.Errorf(hallmark.KindInvalid, "%s: every platform of the rule is %s, which nobody of this machine asks by itself", where, intoto.BuilderServer),
						"name principals of the server, or a platform that is not one")
				}
			case named && !known(name):
				return hallmark.WithHint(hallmark.Errorf(hallmark.KindInvalid, "%s: the policy knows no principal %.80s, so nobody can be it", where, name),
					"hallmark access principal "+name+" … first, or take it out of the rule")
			}
		}
	}
	return nil
}
