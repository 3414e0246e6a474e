// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
)

// TestOlderPolicyBuildsNothing: under a signed policy from before there were rules
// for builds no sandbox starts, the reason says how to go on, and what was built
// before still verifies.
func TestOlderPolicyBuildsNothing(t *testing.T) {
	l := newLab(t)
	h, err := OpenHome(l.home, nil)
	if err != nil {
		t.Fatal(err)
	}
	h.document.Build = nil
	doc, bundles, err := h.nextPolicy(t.Context(), nil)
	if err == nil {
		err = h.adoptPolicy(doc, bundles)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	from, err := model()
	if err != nil {
		t.Fatal(err)
	}
	run := func(out string) pipeline.Result {
		t.Helper()
		res, err := Run(t.Context(), RunConfig{Home: l.home, Repo: filepath.Join(from, "repo"), Rev: "HEAD", Out: filepath.Join(l.dir, out), Progress: func(pipeline.Event) {}})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	d := run("older").Verdict.Decision
	i := slices.IndexFunc(d.Reasons, func(r hallmark.Reason) bool { return r.Code == hallmark.CodeBuildPolicyMissing })
	if d.Allowed() || i < 0 || !strings.Contains(d.Reasons[i].Fix, "hallmark policy set --build") {
		t.Fatalf("%+v", d)
	}
	if v, err := l.verify(nil); err != nil || !v.Decision.Allowed() {
		t.Errorf("what was built before: %+v, %v", v, err)
	}
	// What the reason says mends it.
	text, inForce, err := BuildRules(l.home)
	if err != nil || inForce {
		t.Fatalf("in force %v, %v", inForce, err)
	}
	l.write("build.yaml", string(text))
	change, err := ReadBuild(t.Context(), l.home, filepath.Join(l.dir, "build.yaml"), nil)
	if err == nil {
		_, err = PolicySet(t.Context(), l.home, nil, [][2]string{change})
	}
	if err != nil {
		t.Fatal(err)
	}
	if d := run("newer").Verdict.Decision; !d.Allowed() {
		t.Errorf("with rules: %+v", d.Reasons)
	}
}
