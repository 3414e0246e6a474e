// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package forge

import (
	"encoding/json"
	"os"
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

// TestUnread: what a forge does not say, or not to this token, passes nothing.
func TestUnread(t *testing.T) {
	github := map[string]func(e *forgetest.Exchange){
		"FORGE_BRANCH_UNPROTECTED main": func(e *forgetest.Exchange) { // not found, and the token is no administrator's
			switch {
			case strings.HasSuffix(e.Path, "/protection"):
				e.Status, e.Answer = 404, map[string]any{"message": "Not Found"}
			case e.Path == "/api/v3/repos/octo/app":
				e.Answer.(map[string]any)["permissions"].(map[string]any)["admin"] = false
			}
		},
		"FORGE_ADMINISTRATOR_OVERRIDE main": func(e *forgetest.Exchange) {
			if strings.Contains(e.Path, "/rulesets/41") {
				delete(e.Answer.(map[string]any), "bypass_actors")
			}
		},
		"FORGE_TAG_UNPROTECTED tags": func(e *forgetest.Exchange) {
			if strings.Contains(e.Path, "/rulesets/42") {
				delete(e.Answer.(map[string]any), "bypass_actors")
			}
		},
		"FORGE_SECOND_FACTOR_OPTIONAL": func(e *forgetest.Exchange) {
			if e.Path == "/api/v3/orgs/octo" {
				e.Answer.(map[string]any)["two_factor_requirement_enabled"] = nil
			}
		},
		"FORGE_WEBHOOK_NOT_ENCRYPTED": func(e *forgetest.Exchange) {
			if strings.Contains(e.Path, "/hooks?") {
				e.Status, e.Answer = 403, map[string]any{"message": "Resource not accessible by personal access token"}
			}
		},
		"FORGE_DEPLOY_KEY_WRITES": func(e *forgetest.Exchange) {
			if strings.Contains(e.Path, "/keys?") {
				e.Status, e.Answer = 404, map[string]any{"message": "Not Found"}
			}
		},
		"FORGE_OUTSIDER_WRITES": func(e *forgetest.Exchange) {
			if strings.Contains(e.Path, "/collaborators?") {
				e.Status, e.Answer = 403, map[string]any{"message": "Must have push access to view repository collaborators."}
			}
		},
		"FORGE_WORKFLOW_TOKEN_WRITES": func(e *forgetest.Exchange) {
			if strings.HasSuffix(e.Path, "/workflow") {
				e.Answer = map[string]any{}
			}
		},
		"FORGE_WORKFLOW_RUNS_UNAPPROVED": func(e *forgetest.Exchange) {
			if strings.HasSuffix(e.Path, "-approval") {
				e.Status, e.Answer = 404, nil
			}
		},
	}
	gitea := map[string]func(e *forgetest.Exchange){
		"FORGE_FORCE_PUSH main":             lacking("enable_force_push"),
		"FORGE_DIRECT_PUSH main":            lacking("push_whitelist_teams"),
		"FORGE_REVIEW_MISSING main":         lacking("required_approvals"),
		"FORGE_ADMINISTRATOR_OVERRIDE main": lacking("block_admin_merge_override"),
		"FORGE_APPROVAL_OUTLIVES_PUSH main": lacking("ignore_stale_approvals"),
		"FORGE_CHECK_NOT_REQUIRED main":     lacking("enable_status_check"),
		"FORGE_REJECTION_IGNORED main":      lacking("block_on_rejected_reviews"),
		"FORGE_UNSIGNED_COMMITS main":       lacking("require_signed_commits"),
		"FORGE_OWNERS_NOT_ASKED main":       lacking("block_on_official_review_requests"),
		"FORGE_BRANCH_UNPROTECTED main":     lacking("protected"),
		"FORGE_VISIBILITY":                  lacking("private"),
		"FORGE_OUTSIDER_WRITES":             lacking("admin"),
	}
	gitlab := map[string]func(e *forgetest.Exchange){
		"FORGE_FORCE_PUSH main":                                           lacking("allow_force_push"),
		"FORGE_DIRECT_PUSH main":                                          lacking("push_access_levels"),
		"FORGE_OWNERS_NOT_ASKED main":                                     lacking("code_owner_approval_required"),
		"FORGE_CHECK_NOT_REQUIRED main":                                   lacking("only_allow_merge_if_pipeline_succeeds"),
		"FORGE_APPROVAL_OUTLIVES_PUSH main":                               lacking("reset_approvals_on_push"),
		"FORGE_WORKFLOW_TOKEN_WRITES":                                     lacking("ci_push_repository_for_job_token_allowed"),
		"FORGE_WORKFLOW_RUNS_UNAPPROVED":                                  lacking("ci_allow_fork_pipelines_to_run_in_parent_project"),
		"FORGE_SECOND_FACTOR_OPTIONAL":                                    lacking("require_two_factor_authentication"),
		"FORGE_WEBHOOK_TLS_NOT_VERIFIED hook 2 to https://ci.example.org": lacking("enable_ssl_verification"),
	}
	for file, cases := range map[string]map[string]func(e *forgetest.Exchange){"github-documented.json": github, "gitea-1.26.0.json": gitea, "gitlab-documented.json": gitlab} {
		for want, edit := range cases {
			b, err := os.ReadFile("testdata/" + file)
			if err != nil {
				t.Fatal(err)
			}
			var r forgetest.Recording
			if err := json.Unmarshal(b, &r); err != nil {
				t.Fatal(err)
			}
			last := 0 // the state after the repairs: all of it passes but for the edit
			for i := range r.Exchanges {
				if r.Exchanges[i].Method != "GET" {
					last = i + 1
				}
				edit(&r.Exchanges[i])
			}
			s := forgetest.Serve(r.Exchanges[last:])
			path, kind := map[string]string{"github-documented.json": "/octo/app", "gitea-1.26.0.json": "/gate/app", "gitlab-documented.json": "/group/sub/app"}[file], strings.Split(file, "-")[0]
			f, err := New(Config{URL: s.URL + path, Kind: kind, Token: testToken})
			if err != nil {
				t.Fatal(err)
			}
			if got := found(t, f, source.Wanted{Approvals: 1, Pushers: []string{"gate"}, Trusted: []string{"outsider"}}); !slices.Contains(got, "error "+want) {
				t.Errorf("%s without what says %s: %q", file, want, got)
			}
			s.Close()
		}
	}
}

// lacking takes a field out of every answer.
func lacking(field string) func(*forgetest.Exchange) {
	var strip func(v any)
	strip = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			delete(v, field)
			for _, x := range v {
				strip(x)
			}
		case []any:
			for _, x := range v {
				strip(x)
			}
		}
	}
	return func(e *forgetest.Exchange) { strip(e.Answer) }
}
