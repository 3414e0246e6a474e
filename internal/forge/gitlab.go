// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package forge

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/source"
)

// gitlab is a project at GitLab.
type gitlab struct {
	c    *client
	repo repository
	// As last read.
	posture  source.Posture
	rules    []gitlabRule
	hookURLs map[string]string // whole, by number
	reset    *bool
}

type gitlabLevel struct {
	Level  *int   `json:"access_level"`
	Text   string `json:"access_level_description"`
	User   *int64 `json:"user_id"`
	Group  *int64 `json:"group_id"`
	Deploy *int64 `json:"deploy_key_id"`
}

// String names who a level is of, as --pusher takes it; "" is nobody.
func (l gitlabLevel) String() string {
	switch {
	case l.User != nil && *l.User != 0:
		return "user:" + strconv.FormatInt(*l.User, 10)
	case l.Group != nil && *l.Group != 0:
		return "group:" + strconv.FormatInt(*l.Group, 10)
	case l.Deploy != nil && *l.Deploy != 0:
		return "deploy-key:" + strconv.FormatInt(*l.Deploy, 10)
	case l.Level != nil && *l.Level == 0:
		return ""
	}
	return "all " + firstOf(l.Text, "levels")
}

func levels(all []gitlabLevel) []string {
	out := []string{}
	for _, l := range all {
		if s := l.String(); s != "" {
			out = append(out, s)
		}
	}
	return out
}

type gitlabRule struct {
	Name   string         `json:"name"`
	Push   *[]gitlabLevel `json:"push_access_levels"`
	Force  *bool          `json:"allow_force_push"`
	Owners *bool          `json:"code_owner_approval_required"`
}

// fits reports whether a rule is for a branch: "*" in its name stands for anything.
func fits(rule, branch string) bool {
	form, err := regexp.Compile("^" + strings.ReplaceAll(regexp.QuoteMeta(rule), `\*`, ".*") + "$")
	return err == nil && form.MatchString(branch)
}

func (g *gitlab) path(rest string) string { return "/projects/" + url.PathEscape(g.repo.path) + rest }

type gitlabProject struct {
	Visibility *string
	Branch     *string `json:"default_branch"`
	Namespace  struct {
		ID   int64
		Kind string
	}
	Pipelines *bool `json:"only_allow_merge_if_pipeline_succeeds"`
	JobPushes *bool `json:"ci_push_repository_for_job_token_allowed"`
	Forks     *bool `json:"ci_allow_fork_pipelines_to_run_in_parent_project"`
}

// Read implements source.Forge.
func (g *gitlab) Read(ctx context.Context) (source.Posture, error) {
	p := source.Posture{Forge: GitLab, Repository: g.repo.page, Page: g.repo.page + "/-/settings"}
	full, err := get[gitlabProject](ctx, g.c, g.path(""))
	if err != nil {
		return p, fmt.Errorf("reading the project: %w", err)
	}
	if full.Branch == nil || *full.Branch == "" {
		return p, hallmark.Errorf(hallmark.KindUnavailable, "the forge names no default branch")
	}
	p.Visibility = told(full.Visibility, "visibility")
	p.Workflow.TokenWrites = told(full.JobPushes, "ci_push_repository_for_job_token_allowed")
	p.Workflow.Unapproved = told(full.Forks, "ci_allow_fork_pipelines_to_run_in_parent_project")
	p.TwoFactor = source.Absent[bool]("the owner is a person")
	if full.Namespace.Kind == "group" {
		group, err := get[struct {
			TwoFactor *bool `json:"require_two_factor_authentication"`
		}](ctx, g.c, "/groups/"+strconv.FormatInt(full.Namespace.ID, 10))
		two, err := seen(group.TwoFactor, err)
		if err != nil {
			return p, err
		}
		p.TwoFactor = source.Unread[bool](firstOf(two.Why, "the answer has no require_two_factor_authentication"))
		if two.Read && two.Value != nil {
			p.TwoFactor = source.Told(*two.Value)
		}
	}
	if err := g.branches(ctx, &p, full); err != nil {
		return p, err
	}
	type tag struct {
		Name   string         `json:"name"`
		Create *[]gitlabLevel `json:"create_access_levels"`
	}
	tags, err := all[tag](ctx, g.c, g.path("/protected_tags"), "per_page")
	known, err := seen(source.TagGuard{All: slices.ContainsFunc(tags, func(t tag) bool { return t.Name == "*" }), Movers: []string{}}, err)
	if err != nil {
		return p, fmt.Errorf("reading protected tags: %w", err)
	}
	p.Tags = known
	if err := g.around(ctx, &p, full); err != nil {
		return p, err
	}
	g.posture = p
	return p, nil
}

func (g *gitlab) branches(ctx context.Context, p *source.Posture, full gitlabProject) error {
	rules, err := all[gitlabRule](ctx, g.c, g.path("/protected_branches"), "per_page")
	known, err := seen(rules, err)
	if err != nil {
		return fmt.Errorf("reading protected branches: %w", err)
	}
	g.rules = rules
	approvals, stale, err := g.approvals(ctx)
	if err != nil {
		return err
	}
	signing, err := get[*struct {
		Signed *bool `json:"reject_unsigned_commits"`
	}](ctx, g.c, g.path("/push_rule"))
	push, err := seen(signing, err)
	if err != nil {
		return err
	}
	unsigned := source.Unread[bool](firstOf(push.Why, "the answer has no reject_unsigned_commits"))
	if push.Read {
		unsigned = source.Told(push.Value == nil || push.Value.Signed == nil || !*push.Value.Signed) // null: there is no push rule
	}
	checks := source.Unread[[]string]("the answer has no only_allow_merge_if_pipeline_succeeds")
	if full.Pipelines != nil {
		checks = source.Told([]string{})
		if *full.Pipelines {
			checks = source.Told([]string{"pipeline"})
		}
	}
	names := append([]string{*full.Branch}, g.repo.branches...)
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			continue
		}
		if !known.Read {
			p.Branches = append(p.Branches, unread(name, source.Unread[bool](known.Why), known.Why))
			continue
		}
		b := source.BranchGuard{Name: name, Approvals: approvals, Stale: stale, Unsigned: unsigned, Checks: checks, Protected: source.Told(false),
			Rejected: source.Absent[bool]("GitLab knows no rejection that stops a change"), Override: source.Absent[[]string]("no setting: who may unprotect a branch may go round its protection")}
		b.ForcePush, b.Pushers, b.Deletable, b.Owners = source.Told([]string{source.Everybody}), source.Told([]string{source.Everybody}), source.Told(true), source.Told(false)
		// Where several rules fit a branch, the most permissive one holds.
		for _, r := range rules {
			if !fits(r.Name, name) {
				continue
			}
			if !b.Protected.Value {
				b.ForcePush, b.Pushers = source.Told([]string{}), source.Told([]string{})
			}
			b.Protected, b.Deletable = source.Told(true), source.Told(false)
			switch {
			case r.Push == nil:
				b.Pushers = source.Unread[[]string]("the answer has no push_access_levels")
			case b.Pushers.Read:
				b.Pushers.Value = append(b.Pushers.Value, subtract(levels(*r.Push), b.Pushers.Value)...)
			}
			switch {
			case r.Force == nil:
				b.ForcePush = source.Unread[[]string]("the answer has no allow_force_push")
			case *r.Force && b.ForcePush.Read:
				b.ForcePush = source.Told([]string{"who may push"})
			}
			b.Owners = told(r.Owners, "code_owner_approval_required")
		}
		p.Branches = append(p.Branches, b)
	}
	return nil
}

// approvals reads what the whole project requires. A GitLab without that feature
// answers "not found", as it does to who may not see it.
func (g *gitlab) approvals(ctx context.Context) (source.Known[int], source.Known[bool], error) {
	conf, err := get[struct {
		Reset *bool `json:"reset_approvals_on_push"`
	}](ctx, g.c, g.path("/approvals"))
	reset, err := seen(conf.Reset, err)
	if err != nil {
		return source.Known[int]{}, source.Known[bool]{}, err
	}
	stale := source.Unread[bool](firstOf(reset.Why, "the answer has no reset_approvals_on_push"))
	if reset.Read && reset.Value != nil {
		stale = source.Told(!*reset.Value)
		g.reset = reset.Value
	}
	type rule struct {
		Type     string `json:"rule_type"`
		Required int    `json:"approvals_required"`
		All      bool   `json:"applies_to_all_protected_branches"`
		Branches []struct{ Name string }
	}
	rules, err := all[rule](ctx, g.c, g.path("/approval_rules"), "per_page")
	most := 0
	for _, r := range rules {
		if r.All || len(r.Branches) == 0 { // one for other branches counts for nothing here
			most = max(most, r.Required)
		}
	}
	n, err := seen(most, err)
	return n, stale, err
}

// around reads what is not about references.
func (g *gitlab) around(ctx context.Context, p *source.Posture, full gitlabProject) error {
	type member struct {
		ID       int64
		Username string
		Level    int `json:"access_level"`
	}
	direct, err := all[member](ctx, g.c, g.path("/members"), "per_page")
	inside := map[int64]bool{}
	if err == nil && full.Namespace.Kind == "group" {
		var of []member
		of, err = all[member](ctx, g.c, "/groups/"+strconv.FormatInt(full.Namespace.ID, 10)+"/members/all", "per_page")
		for _, m := range of {
			inside[m.ID] = true
		}
	}
	people := []source.Collaborator{}
	for _, m := range direct {
		if inside[m.ID] || full.Namespace.Kind == "user" && m.Username == g.repo.owner {
			continue
		}
		people = append(people, source.Collaborator{Name: m.Username, Permission: "level " + strconv.Itoa(m.Level), Writes: m.Level >= 30})
	}
	if p.Outsiders, err = seen(people, err); err != nil {
		return fmt.Errorf("reading members: %w", err)
	}
	type hook struct {
		ID     int64
		URL    string
		Verify *bool `json:"enable_ssl_verification"`
	}
	hooks, err := all[hook](ctx, g.c, g.path("/hooks"), "per_page")
	sent := []source.Webhook{}
	g.hookURLs = map[string]string{}
	for _, h := range hooks {
		id := strconv.FormatInt(h.ID, 10)
		g.hookURLs[id] = h.URL
		sent = append(sent, source.Webhook{ID: id, URL: plainURL(h.URL), Verify: told(h.Verify, "enable_ssl_verification"), Secret: source.Absent[bool]("GitLab tells nobody")})
	}
	if p.Hooks, err = seen(sent, err); err != nil {
		return fmt.Errorf("reading webhooks: %w", err)
	}
	type key struct {
		ID     int64
		Title  string
		Pushes *bool `json:"can_push"`
	}
	keys, err := all[key](ctx, g.c, g.path("/deploy_keys"), "per_page")
	held := []source.DeployKey{}
	for _, k := range keys {
		held = append(held, source.DeployKey{ID: strconv.FormatInt(k.ID, 10), Title: k.Title, Writes: k.Pushes == nil || *k.Pushes})
	}
	p.DeployKeys, err = seen(held, err)
	return err
}

// Repairs implements source.Forge.
func (g *gitlab) Repairs(w source.Wanted) ([]source.Repair, error) {
	var out []source.Repair
	mend := func(code hallmark.Code, on, field string, is, to any, method, where string, also map[string]any) error {
		m := mending{body: map[string]any{}}
		for k, v := range also {
			m.body[k] = v
		}
		m.set(code, field, is, to)
		more, err := m.repair(on, method, g.path(where))
		out = append(out, more...)
		return err
	}
	p := g.posture
	for i, b := range p.Branches {
		var err error
		switch {
		case !b.Protected.Read:
		case !b.Protected.Value:
			err = mend(hallmark.CodeForgeUnprotected, b.Name, "push_access_level", "everybody who may write", 0, http.MethodPost, "/protected_branches",
				map[string]any{"name": b.Name, "merge_access_level": 40, "unprotect_access_level": 40, "allow_force_push": false})
		case b.ForcePush.Read && len(b.ForcePush.Value) > 0:
			for _, r := range g.rules {
				if fits(r.Name, b.Name) && r.Force != nil && *r.Force && err == nil {
					err = mend(hallmark.CodeForgeForcePush, r.Name, "allow_force_push", true, false, http.MethodPatch, "/protected_branches/"+url.PathEscape(r.Name), nil)
				}
			}
		}
		if err == nil && i == 0 && b.Checks.Read && len(b.Checks.Value) == 0 {
			err = mend(hallmark.CodeForgeChecks, b.Name, "only_allow_merge_if_pipeline_succeeds", false, true, http.MethodPut, "", nil)
		}
		if err == nil && i == 0 && g.reset != nil && !*g.reset {
			err = mend(hallmark.CodeForgeStale, b.Name, "reset_approvals_on_push", false, true, http.MethodPost, "/approvals", nil)
		}
		if err != nil {
			return nil, err
		}
	}
	if p.Tags.Read && !p.Tags.Value.All {
		if err := mend(hallmark.CodeForgeTags, "tags", "name", "none", "*", http.MethodPost, "/protected_tags", map[string]any{"create_access_level": 40}); err != nil {
			return nil, err
		}
	}
	for _, s := range []struct {
		code  hallmark.Code
		field string
		is    source.Known[bool]
	}{{hallmark.CodeForgeWorkflowToken, "ci_push_repository_for_job_token_allowed", p.Workflow.TokenWrites}, {hallmark.CodeForgeWorkflowRuns, "ci_allow_fork_pipelines_to_run_in_parent_project", p.Workflow.Unapproved}} {
		if s.is.Read && s.is.Value {
			if err := mend(s.code, "", s.field, true, false, http.MethodPut, "", nil); err != nil {
				return nil, err
			}
		}
	}
	for _, k := range p.DeployKeys.Value {
		if k.Writes {
			if err := mend(hallmark.CodeForgeDeployKey, "key "+k.Title, "can_push", true, false, http.MethodPut, "/deploy_keys/"+k.ID, nil); err != nil {
				return nil, err
			}
		}
	}
	for _, h := range p.Hooks.Value {
		// The interface wants the URL again, which may hold a secret: that is sent back
		// to where it came from, and is in no plan.
		if raw := g.hookURLs[h.ID]; h.Verify.Read && !h.Verify.Value && !strings.ContainsAny(raw, "{}") && plainURL(raw) == raw {
			if err := mend(hallmark.CodeForgeHookTLS, "hook "+h.ID, "enable_ssl_verification", false, true, http.MethodPut, "/hooks/"+h.ID, map[string]any{"url": raw}); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// Apply implements source.Forge.
func (g *gitlab) Apply(ctx context.Context, r source.Repair) error {
	return g.c.send(ctx, r.Method, r.Path, r.Body)
}
