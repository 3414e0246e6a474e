// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"testing"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/source"
)

// TestAlike: no push holds two references that could be taken for one another, nor
// one reference twice: of two moves of it only one would be logged.
func TestAlike(t *testing.T) {
	for _, tt := range []struct {
		refs []string
		want int
	}{
		{[]string{"refs/heads/a", "refs/heads/b", "refs/tags/c"}, 0},
		{[]string{"refs/heads/a", "refs/heads/a"}, 1},
		{[]string{"refs/heads/v1", "refs/tags/v1"}, 1},
		{[]string{"refs/heads/Main", "refs/heads/main", "refs/tags/MAIN"}, 2},
	} {
		var updates []source.Update
		for _, r := range tt.refs {
			updates = append(updates, source.Update{Ref: r})
		}
		if got := alike(updates); len(got) != tt.want {
			t.Errorf("%q: %v", tt.refs, got)
		}
	}
}

func TestRefName(t *testing.T) {
	for ref, good := range map[string]bool{
		"refs/heads/main": true, "refs/heads/feature/x-1": true, "refs/tags/v1.0.0": true, "refs/heads/a@b": true,
		"HEAD": false, "refs/heads/HEAD": false, "refs/heads/FETCH_HEAD": false, "refs/heads/refs/heads/main": false, "refs/heads/tags/v1": false, "refs/heads/-rf": false, "refs/heads/a/-x": false,
		"refs/notes/commits": false, "refs/replace/x": false, "refs/heads/a\nb": false, "refs/heads/a\x1b[0m": false, "refs/heads/deadbeef": false, "refs/heads/a..b": false, "refs/heads/a.lock": false, "refs/heads/$(id)": false,
	} {
		if why := refName(ref); (why == "") != good {
			t.Errorf("%q: %q", ref, why)
		}
	}
}

// TestByChange: a rule that wants checks or owners is not met by a push.
func TestByChange(t *testing.T) {
	for _, tt := range []struct {
		rule access.RefRule
		want bool
	}{
		{access.RefRule{Approvals: "0"}, false}, {access.RefRule{Approvals: "1"}, true}, {access.RefRule{}, true},
		{access.RefRule{Approvals: "0", Checks: []string{"tests"}}, true}, {access.RefRule{Approvals: "0", Owners: []access.PathOwner{{}}}, true},
	} {
		if got := byChange(tt.rule); got != tt.want {
			t.Errorf("%+v: %t", tt.rule, got)
		}
	}
}

// TestWithheld: beside a secret nothing of the push's own words is told.
func TestWithheld(t *testing.T) {
	in := []hallmark.Reason{{Code: hallmark.CodeSourceName, Check: "source", Message: "text"}, {Code: hallmark.CodeSourceName, Check: "source", Message: "text"}, {Code: hallmark.CodeRefName, Check: "access", Message: "name"}}
	out := withheld(in)
	if len(out) != 2 || out[0].Message == "text" || out[1].Message != "name" {
		t.Errorf("%+v", out)
	}
}
