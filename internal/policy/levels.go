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

// Build levels (SLSA v1.2, Build track).
const (
	buildL1 = "SLSA_BUILD_LEVEL_1"
	buildL2 = "SLSA_BUILD_LEVEL_2"
	buildL3 = "SLSA_BUILD_LEVEL_3"
)

// forL3 are the properties that a build of level 3 had; of each list one
// guarantee is enough.
func forL3() map[string][][]string {
	return map[string][][]string{
		"isolated": {
			{"namespaces"}, {"no-new-privileges"}, {"capabilities-dropped"}, {"seccomp"}, {"root-read-only", "root-overlay"}, {"proc-masked"}, {"sysfs-absent"},
			{"devices-minimal"}, {"kernel-settings-closed"}, {"unprivileged-user"},
		},
		"network": {{"no-network", "egress-recorded"}},
		"fresh":   {{intoto.GuaranteeFresh}, {"workspace-overlay", "root-overlay"}},
	}
}

// levels is the lowest level that any provenance supports: a stronger one beside
// a weaker one proves nothing about the artifact in hand.
func levels(facts []fact, rev hallmark.Revision) []string {
	lowest := ""
	for _, f := range facts {
		if f.PredicateType != intoto.PredicateProvenance {
			continue
		}
		if l := f.level(facts, rev); lowest == "" || l < lowest {
			lowest = l
		}
	}
	if lowest == "" {
		return []string{}
	}
	return []string{lowest}
}

// level is what a provenance supports: at most what its signer may reach, and of
// that what the attested environment of its build shows. Without a signer of its
// own no build is more than one on a person's machine.
func (f fact) level(facts []fact, rev hallmark.Revision) string {
	if f.MaxLevel <= buildL1 {
		return f.MaxLevel
	}
	seen, level := false, f.MaxLevel
	for _, e := range facts {
		if e.Name != intoto.NameEnvironment || e.PredicateType != intoto.PredicateSCAI || !e.concerns(rev) {
			continue
		}
		if e.Signer != "observer" || e.Producer != f.BuilderID || !slices.Contains(e.Held, intoto.GuaranteeSigner) {
			return buildL1
		}
		seen = true
		for _, property := range forL3() {
			for _, any := range property {
				if !slices.ContainsFunc(any, func(g string) bool { return slices.Contains(e.Held, g) }) {
					level = min(level, buildL2)
				}
			}
		}
	}
	if !seen {
		return buildL1
	}
	return level
}

func (f fact) concerns(rev hallmark.Revision) bool {
	return slices.ContainsFunc(f.Subjects, func(s intoto.ResourceDescriptor) bool { return s.Digest["gitCommit"] == rev.Commit })
}

// heldIn are the guarantees that an environment says held; one that it says both
// of did not.
func heldIn(attributes []intoto.SCAIAttribute) []string {
	var held, absent []string
	for _, a := range attributes {
		name, _ := a.Conditions["guarantee"].(string)
		switch a.Attribute {
		case "ISOLATION_GUARANTEE_HELD":
			held = append(held, name)
		case "ISOLATION_GUARANTEE_ABSENT":
			absent = append(absent, name)
		}
	}
	return slices.DeleteFunc(held, func(g string) bool { return g == "" || slices.Contains(absent, g) })
}

// unlanded refuses what was built from a change that has not landed. It was built
// so that its checks could run, and no rule can make a release of it.
func unlanded(rev hallmark.Revision, facts []fact) []hallmark.Reason {
	ref := rev.Ref
	for _, f := range facts {
		if f.External != nil && strings.HasPrefix(f.External.Ref, intoto.ChangeRefs) {
			ref = f.External.Ref
		}
	}
	if !strings.HasPrefix(ref, intoto.ChangeRefs) {
		return nil
	}
	return []hallmark.Reason{{
		Code: hallmark.CodeChangeNotLanded, Message: fmt.Sprintf("it was built from the change %s, before that landed", strings.TrimPrefix(ref, intoto.ChangeRefs)),
		Fix: "hallmark change merge " + strings.TrimPrefix(ref, intoto.ChangeRefs) + "; the server builds what landed",
	}}
}
