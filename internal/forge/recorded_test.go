// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package forge

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/forge/forgetest"
	"github.com/hallmark-sc/hallmark/internal/source"
)

// TestRecorded audits and mends a repository at each kind of forge by recorded
// answers: what is found before, which changes are made, and what is left.
func TestRecorded(t *testing.T) {
	for _, tc := range []struct {
		file, kind, path string
		wanted           source.Wanted
		before, after    []string
	}{
		{"gitea-1.26.0.json", Gitea, "/gate/app", source.Wanted{Approvals: 1, Pushers: []string{"gate"}, Trusted: []string{"outsider"}, Unsigned: true, Checks: []string{"ci"}},
			[]string{
				"fail FORGE_ADMINISTRATOR_OVERRIDE main", "fail FORGE_APPROVAL_OUTLIVES_PUSH main", "fail FORGE_BRANCH_DELETION main", "fail FORGE_BRANCH_UNPROTECTED main", "fail FORGE_CHECK_NOT_REQUIRED main",
				"fail FORGE_DEPLOY_KEY_WRITES key deploy", "fail FORGE_DIRECT_PUSH main", "fail FORGE_FORCE_PUSH main", "fail FORGE_OWNERS_NOT_ASKED main", "fail FORGE_REJECTION_IGNORED main", "fail FORGE_REVIEW_MISSING main",
				"fail FORGE_TAG_UNPROTECTED tags", "fail FORGE_WEBHOOK_NOT_ENCRYPTED hook 1 to http://127.0.0.1:1/…",
			},
			[]string{"fail FORGE_DEPLOY_KEY_WRITES key deploy", "fail FORGE_WEBHOOK_NOT_ENCRYPTED hook 1 to http://127.0.0.1:1/…"}},
		{"github-documented.json", GitHub, "/octo/app", source.Wanted{Approvals: 1, Checks: []string{"ci"}},
			[]string{
				"fail FORGE_ADMINISTRATOR_OVERRIDE main", "fail FORGE_APPROVAL_OUTLIVES_PUSH main", "fail FORGE_DEPLOY_KEY_WRITES key deploy", "fail FORGE_DIRECT_PUSH main", "fail FORGE_FORCE_PUSH main", "fail FORGE_OUTSIDER_WRITES mona",
				"fail FORGE_OWNERS_NOT_ASKED main", "fail FORGE_TAG_UNPROTECTED tags", "fail FORGE_UNSIGNED_COMMITS main", "fail FORGE_WEBHOOK_TLS_NOT_VERIFIED hook 12 to https://ci.example.org/…",
				"fail FORGE_WORKFLOW_RUNS_UNAPPROVED", "fail FORGE_WORKFLOW_TOKEN_WRITES",
			},
			[]string{"fail FORGE_DEPLOY_KEY_WRITES key deploy"}},
		{"gitlab-documented.json", GitLab, "/group/sub/app", source.Wanted{Approvals: 1},
			[]string{
				"fail FORGE_APPROVAL_OUTLIVES_PUSH main", "fail FORGE_CHECK_NOT_REQUIRED main", "fail FORGE_DEPLOY_KEY_WRITES key deploy", "fail FORGE_FORCE_PUSH main", "fail FORGE_OUTSIDER_WRITES guest", "fail FORGE_TAG_UNPROTECTED tags",
				"fail FORGE_WEBHOOK_TLS_NOT_VERIFIED hook 2 to https://ci.example.org", "fail FORGE_WORKFLOW_RUNS_UNAPPROVED", "fail FORGE_WORKFLOW_TOKEN_WRITES",
			},
			[]string{"fail FORGE_OUTSIDER_WRITES guest"}},
	} {
		t.Run(tc.kind, func(t *testing.T) {
			s, err := forgetest.Replay("testdata/" + tc.file)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			f, err := New(Config{URL: s.URL + tc.path, Kind: tc.kind, Token: testToken})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.before, found(t, f, tc.wanted)); diff != "" {
				t.Errorf("before (-want +got):\n%s", diff)
			}
			repairs, err := f.Repairs(tc.wanted)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range repairs {
				if err := f.Apply(t.Context(), r); err != nil {
					t.Errorf("%s %s %s: %v", r.Method, r.Path, r.Body, err)
				}
			}
			if diff := cmp.Diff(tc.after, found(t, f, tc.wanted)); diff != "" {
				t.Errorf("after (-want +got):\n%s", diff)
			}
			if again, err := f.Repairs(tc.wanted); err != nil || len(again) > 0 {
				t.Errorf("there is more to mend: %+v, %v", again, err)
			}
		})
	}
}

// found are the findings, sorted.
func found(t *testing.T, f source.Forge, w source.Wanted) []string {
	t.Helper()
	p, err := f.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, a := range p.Judge(w) {
		if a.Outcome == hallmark.Fail || a.Outcome == hallmark.Errored {
			out = append(out, strings.TrimSpace(a.Outcome.String()+" "+string(a.Code)+" "+a.On))
		}
	}
	slices.Sort(out)
	return out
}
