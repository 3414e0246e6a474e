// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package forge

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/source"
)

// github is a repository at GitHub. A branch is protected by its own protection and
// by rule sets, and the stricter of both holds; what is mended is a rule set of our
// own, so that nothing that is there gets weaker.
type github struct {
	c    *client
	repo repository
	// As last read.
	branches []githubBranch
	posture  source.Posture
	sets     []githubSet
}

// ourRules is the name of the rule sets that repairs make.
const ourRules = "hallmark"

type githubBranch struct {
	name    string
	classic *githubProtection
	rules   []githubRule
	bypass  source.Known[[]string]
}

type githubSwitch struct {
	Enabled *bool `json:"enabled"`
}

type githubActors struct {
	Users []struct{ Login string }
	Teams []struct{ Slug string }
	Apps  []struct{ Slug string }
}

func (a *githubActors) names() []string {
	out := []string{}
	if a == nil {
		return out
	}
	for _, u := range a.Users {
		out = append(out, u.Login)
	}
	for _, t := range a.Teams {
		out = append(out, "team "+t.Slug)
	}
	for _, p := range a.Apps {
		out = append(out, "app "+p.Slug)
	}
	return out
}

// githubProtection is a branch's own protection.
type githubProtection struct {
	Checks *struct {
		Contexts []string
		Checks   []struct{ Context string }
	} `json:"required_status_checks"`
	Reviews *struct {
		Approvals *int          `json:"required_approving_review_count"`
		Dismiss   *bool         `json:"dismiss_stale_reviews"`
		Owners    *bool         `json:"require_code_owner_reviews"`
		Bypass    *githubActors `json:"bypass_pull_request_allowances"`
	} `json:"required_pull_request_reviews"`
	Admins       *githubSwitch `json:"enforce_admins"`
	Restrictions *githubActors `json:"restrictions"`
	Force        *githubSwitch `json:"allow_force_pushes"`
	Deletions    *githubSwitch `json:"allow_deletions"`
	Signatures   *githubSwitch `json:"required_signatures"`
}

type githubRule struct {
	Type       string `json:"type"`
	Source     string `json:"ruleset_source_type,omitempty"`
	Set        int64  `json:"ruleset_id,omitempty"`
	Parameters *struct {
		Approvals *int  `json:"required_approving_review_count,omitempty"`
		Dismiss   *bool `json:"dismiss_stale_reviews_on_push,omitempty"`
		Owners    *bool `json:"require_code_owner_review,omitempty"`
		Checks    []struct {
			Context string `json:"context"`
		} `json:"required_status_checks,omitempty"`
	} `json:"parameters,omitempty"`
}

type githubSet struct {
	ID          int64          `json:"id"`
	Name        string         `json:"name"`
	Target      string         `json:"target"`
	Source      string         `json:"source_type"`
	Enforcement string         `json:"enforcement"`
	Bypass      *[]githubActor `json:"bypass_actors"`
	Conditions  *struct {
		Ref *struct{ Include, Exclude []string } `json:"ref_name"`
	} `json:"conditions"`
	Rules []githubRule `json:"rules"`
}

type githubActor struct {
	ID   *int64 `json:"actor_id"`
	Type string `json:"actor_type"`
	Mode string `json:"bypass_mode"`
}

// String names an actor as --pusher takes it, such as Integration:5.
func (a githubActor) String() string {
	if a.ID == nil {
		return a.Type
	}
	return a.Type + ":" + strconv.FormatInt(*a.ID, 10)
}

func (g *github) path(rest string) string {
	return "/repos/" + url.PathEscape(g.repo.owner) + "/" + url.PathEscape(g.repo.name) + rest
}

// Read implements source.Forge.
func (g *github) Read(ctx context.Context) (source.Posture, error) {
	p := source.Posture{Forge: GitHub, Repository: g.repo.page, Page: g.repo.page + "/settings"}
	full, err := get[struct {
		Visibility  *string
		Branch      *string `json:"default_branch"`
		Owner       struct{ Type string }
		Permissions *struct{ Admin bool }
	}](ctx, g.c, g.path(""))
	if err != nil {
		return p, fmt.Errorf("reading the repository: %w", err)
	}
	if full.Branch == nil || *full.Branch == "" {
		return p, hallmark.Errorf(hallmark.KindUnavailable, "the forge names no default branch")
	}
	admin := full.Permissions != nil && full.Permissions.Admin
	p.Visibility = told(full.Visibility, "visibility")
	p.TwoFactor = source.Absent[bool]("the owner is a person")
	if full.Owner.Type == "Organization" {
		org, err := get[struct {
			TwoFactor *bool `json:"two_factor_requirement_enabled"`
		}](ctx, g.c, "/orgs/"+url.PathEscape(g.repo.owner))
		if err != nil {
			return p, fmt.Errorf("reading the organization: %w", err)
		}
		p.TwoFactor = told(org.TwoFactor, "two_factor_requirement_enabled; owners of the organization see it")
	}
	g.branches, g.sets = nil, nil
	names := append([]string{*full.Branch}, g.repo.branches...)
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			continue
		}
		guard, err := g.branch(ctx, name, admin)
		if err != nil {
			return p, err
		}
		p.Branches = append(p.Branches, guard)
	}
	tags, err := g.tags(ctx, admin)
	if err != nil {
		return p, err
	}
	p.Tags = tags
	if err := g.around(ctx, &p); err != nil {
		return p, err
	}
	g.posture = p
	return p, nil
}

// branch reads both kinds of protection. Only an administrator is told that there is
// none: to anybody else "not found" says nothing.
func (g *github) branch(ctx context.Context, name string, admin bool) (source.BranchGuard, error) {
	b := githubBranch{name: name}
	classic, err := get[githubProtection](ctx, g.c, g.path("/branches/"+url.PathEscape(name)+"/protection"))
	code := statusOf(err)
	switch {
	case err == nil:
		b.classic = &classic
	case code == http.StatusNotFound && admin:
	case code == http.StatusNotFound || code == http.StatusForbidden:
		return unread(name, source.Unread[bool](err.Error()), err.Error()), nil
	default:
		return source.BranchGuard{}, fmt.Errorf("reading the protection of %s: %w", name, err)
	}
	if b.rules, err = all[githubRule](ctx, g.c, g.path("/rules/branches/"+url.PathEscape(name)), "per_page"); err != nil {
		if code := statusOf(err); code == http.StatusNotFound || code == http.StatusForbidden {
			return unread(name, source.Unread[bool](err.Error()), err.Error()), nil
		}
		return source.BranchGuard{}, fmt.Errorf("reading the rules of %s: %w", name, err)
	}
	b.bypass = source.Told([]string{})
	seen := map[int64]bool{}
	for _, r := range b.rules {
		if seen[r.Set] {
			continue
		}
		seen[r.Set] = true
		set, err := get[githubSet](ctx, g.c, g.path("/rulesets/"+strconv.FormatInt(r.Set, 10)+"?includes_parents=true"))
		switch code := statusOf(err); {
		case code == http.StatusNotFound || code == http.StatusForbidden:
			b.bypass = source.Unread[[]string](err.Error())
		case err != nil:
			return source.BranchGuard{}, fmt.Errorf("reading rule set %d: %w", r.Set, err)
		case set.Bypass == nil:
			b.bypass = source.Unread[[]string](fmt.Sprintf("who may bypass rule set %s is not told", set.Name))
		case b.bypass.Read:
			for _, a := range *set.Bypass {
				b.bypass.Value = append(b.bypass.Value, a.String())
			}
		}
	}
	g.branches = append(g.branches, b)
	return b.guard(), nil
}

// strength is what one layer of protection, or both together, come to.
type strength struct {
	force, deletion, direct bool // forbidden
	stale, owners, signed   bool // asked for
	approvals               int
	checks                  []string
}

func (s strength) and(o strength) strength {
	out := strength{s.force || o.force, s.deletion || o.deletion, s.direct || o.direct, s.stale || o.stale, s.owners || o.owners, s.signed || o.signed, max(s.approvals, o.approvals), slices.Clone(s.checks)}
	out.checks = append(out.checks, subtract(o.checks, s.checks)...)
	return out
}

func (s strength) covers(o strength) bool {
	return (s.force || !o.force) && (s.deletion || !o.deletion) && (s.direct || !o.direct) && (s.stale || !o.stale) && (s.owners || !o.owners) && (s.signed || !o.signed) &&
		s.approvals >= o.approvals && len(subtract(o.checks, s.checks)) == 0
}

func off(s *githubSwitch) bool { return s != nil && s.Enabled != nil && !*s.Enabled }
func on(s *githubSwitch) bool  { return s != nil && s.Enabled != nil && *s.Enabled }

func (p *githubProtection) strength() strength {
	if p == nil {
		return strength{}
	}
	s := strength{force: off(p.Force), deletion: off(p.Deletions), signed: on(p.Signatures)}
	if r := p.Reviews; r != nil {
		s.direct, s.stale, s.owners, s.approvals = true, orFalse(r.Dismiss), orFalse(r.Owners), orZero(r.Approvals)
	}
	if c := p.Checks; c != nil {
		s.checks = slices.Clone(c.Contexts)
		for _, k := range c.Checks {
			if !slices.Contains(s.checks, k.Context) {
				s.checks = append(s.checks, k.Context)
			}
		}
	}
	return s
}

func strengthOf(rules []githubRule) strength {
	var s strength
	for _, r := range rules {
		switch r.Type {
		case "non_fast_forward":
			s.force = true
		case "deletion":
			s.deletion = true
		case "required_signatures":
			s.signed = true
		case "pull_request":
			s.direct = true
			if p := r.Parameters; p != nil {
				s = s.and(strength{approvals: orZero(p.Approvals), stale: orFalse(p.Dismiss), owners: orFalse(p.Owners)})
			}
		case "required_status_checks":
			if p := r.Parameters; p != nil {
				for _, c := range p.Checks {
					s = s.and(strength{checks: []string{c.Context}})
				}
			}
		}
	}
	return s
}

func (b githubBranch) guard() source.BranchGuard {
	own, rules := b.classic.strength(), strengthOf(b.rules)
	s := own.and(rules)
	g := source.BranchGuard{Name: b.name, Protected: source.Told(b.classic != nil || len(b.rules) > 0)}
	if !g.Protected.Value {
		open(&g)
		return g
	}
	who := func(forbidden bool) source.Known[[]string] {
		if forbidden {
			return source.Told([]string{})
		}
		return source.Told([]string{source.Everybody})
	}
	g.ForcePush, g.Deletable, g.Pushers = who(s.force), source.Told(!s.deletion), who(s.direct)
	if c := b.classic; c != nil && !rules.direct {
		if c.Reviews != nil {
			g.Pushers = source.Told(c.Reviews.Bypass.names())
		} else if c.Restrictions != nil {
			g.Pushers = source.Told(c.Restrictions.names())
		}
	}
	g.Approvals, g.Stale, g.Owners, g.Unsigned = source.Told(s.approvals), source.Told(!s.stale), source.Told(s.owners), source.Told(!s.signed)
	g.Checks = source.Told(append([]string{}, s.checks...))
	g.Rejected = source.Told(s.approvals == 0) // where approvals are required, a requested change blocks
	g.Override = b.bypass
	// Administrators go round a branch's own protection unless it says otherwise;
	// where the rules alone ask for as much, that gains them nothing.
	if b.classic != nil && !on(b.classic.Admins) && !rules.covers(own) && g.Override.Read {
		g.Override.Value = append([]string{"administrators"}, g.Override.Value...)
	}
	return g
}

func (g *github) tags(ctx context.Context, admin bool) (source.Known[source.TagGuard], error) {
	list, err := all[githubSet](ctx, g.c, g.path("/rulesets?includes_parents=true"), "per_page")
	if code := statusOf(err); code == http.StatusNotFound || code == http.StatusForbidden {
		return source.Unread[source.TagGuard](err.Error()), nil
	}
	if err != nil {
		return source.Known[source.TagGuard]{}, fmt.Errorf("reading rule sets: %w", err)
	}
	out := source.TagGuard{Movers: []string{}}
	for _, l := range list {
		set, err := get[githubSet](ctx, g.c, g.path("/rulesets/"+strconv.FormatInt(l.ID, 10)+"?includes_parents=true"))
		if err != nil {
			return seen(out, err)
		}
		if set.Source == "Repository" || set.Source == "" {
			g.sets = append(g.sets, set)
		}
		has := func(kind string) bool {
			return slices.ContainsFunc(set.Rules, func(r githubRule) bool { return r.Type == kind })
		}
		if set.Target != "tag" || set.Enforcement != "active" || set.Conditions == nil || set.Conditions.Ref == nil || !has("update") || !has("deletion") {
			continue
		}
		if !slices.Contains(set.Conditions.Ref.Include, "~ALL") || len(set.Conditions.Ref.Exclude) > 0 {
			continue
		}
		if set.Bypass == nil {
			return source.Unread[source.TagGuard]("who may bypass rule set " + set.Name + " is not told"), nil
		}
		out.All = true
		out.Movers = out.Movers[:0]
		for _, a := range *set.Bypass {
			out.Movers = append(out.Movers, a.String())
		}
		if len(out.Movers) == 0 {
			break // one that nobody bypasses is enough
		}
	}
	if !out.All && !admin {
		return source.Unread[source.TagGuard]("no rule set for all tags is told"), nil
	}
	return source.Told(out), nil
}

// around reads what is not about references.
func (g *github) around(ctx context.Context, p *source.Posture) error {
	type person struct {
		Login       string
		Role        string `json:"role_name"`
		Permissions map[string]bool
	}
	people, err := all[person](ctx, g.c, g.path("/collaborators?affiliation=outside"), "per_page")
	found := []source.Collaborator{}
	for _, c := range people {
		found = append(found, source.Collaborator{Name: c.Login, Permission: c.Role, Writes: c.Permissions == nil || c.Permissions["push"] || c.Permissions["maintain"] || c.Permissions["admin"]})
	}
	if p.Outsiders, err = seen(found, err); err != nil {
		return err
	}
	type hook struct {
		ID     int64
		Config struct {
			URL      string
			Insecure any `json:"insecure_ssl"` // "0", "1", or a number
			Secret   *string
		}
	}
	hooks, err := all[hook](ctx, g.c, g.path("/hooks"), "per_page")
	sent := []source.Webhook{}
	for _, h := range hooks {
		insecure := fmt.Sprint(h.Config.Insecure)
		w := source.Webhook{ID: strconv.FormatInt(h.ID, 10), URL: plainURL(h.Config.URL), Secret: source.Told(h.Config.Secret != nil && *h.Config.Secret != ""), Verify: source.Unread[bool]("insecure_ssl says " + insecure)}
		if insecure == "0" || insecure == "1" {
			w.Verify = source.Told(insecure == "0")
		}
		sent = append(sent, w)
	}
	if p.Hooks, err = seen(sent, err); err != nil {
		return err
	}
	type key struct {
		ID     int64
		Title  string
		Reader *bool `json:"read_only"`
	}
	keys, err := all[key](ctx, g.c, g.path("/keys"), "per_page")
	held := []source.DeployKey{}
	for _, k := range keys {
		held = append(held, source.DeployKey{ID: strconv.FormatInt(k.ID, 10), Title: k.Title, Writes: k.Reader == nil || !*k.Reader})
	}
	if p.DeployKeys, err = seen(held, err); err != nil {
		return err
	}
	work, err := get[struct {
		Default *string `json:"default_workflow_permissions"`
	}](ctx, g.c, g.path("/actions/permissions/workflow"))
	perm, err := seen(work.Default, err)
	if err != nil {
		return err
	}
	p.Workflow.TokenWrites = source.Unread[bool](firstOf(perm.Why, "the answer has no default_workflow_permissions"))
	if perm.Read && perm.Value != nil {
		p.Workflow.TokenWrites = source.Told(*perm.Value != "read")
	}
	runs, err := get[struct {
		Policy *string `json:"approval_policy"`
	}](ctx, g.c, g.path("/actions/permissions/fork-pr-contributor-approval"))
	policy, err := seen(runs.Policy, err)
	if err != nil {
		return err
	}
	p.Workflow.Unapproved = source.Unread[bool](firstOf(policy.Why, "the answer has no approval_policy"))
	if policy.Read && policy.Value != nil {
		p.Workflow.Unapproved = source.Told(*policy.Value != "all_external_contributors")
	}
	return nil
}

// Repairs implements source.Forge.
func (g *github) Repairs(w source.Wanted) ([]source.Repair, error) {
	var out []source.Repair
	add := func(more []source.Repair, err error) error {
		out = append(out, more...)
		return err
	}
	actors, err := bypass(w.Pushers)
	if err != nil {
		return nil, err
	}
	for i, b := range g.branches {
		name := ourRules
		ref := "~DEFAULT_BRANCH"
		if i > 0 {
			name, ref = ourRules+" "+b.name, "refs/heads/"+b.name
		}
		want := strength{force: true, deletion: true, direct: true, stale: true, owners: true, signed: !w.Unsigned, approvals: max(1, w.Approvals), checks: w.Checks}
		have := b.classic.strength().and(strengthOf(b.rules))
		override := b.guard().Override
		if have.covers(want) && override.Read && len(subtract(override.Value, append([]string{"administrators"}, w.Pushers...))) == 0 && !slices.Contains(override.Value, "administrators") {
			continue
		}
		want = want.and(have)
		rules := []any{
			map[string]any{"type": "deletion"}, map[string]any{"type": "non_fast_forward"},
			map[string]any{"type": "pull_request", "parameters": map[string]any{"required_approving_review_count": want.approvals, "dismiss_stale_reviews_on_push": true, "require_code_owner_review": true, "require_last_push_approval": true, "required_review_thread_resolution": true}},
		}
		codes := []hallmark.Code{hallmark.CodeForgeUnprotected, hallmark.CodeForgeForcePush, hallmark.CodeForgeDeletion, hallmark.CodeForgeDirectPush, hallmark.CodeForgeReview, hallmark.CodeForgeStale, hallmark.CodeForgeOwners, hallmark.CodeForgeRejected, hallmark.CodeForgeOverride}
		if want.signed {
			rules, codes = append(rules, map[string]any{"type": "required_signatures"}), append(codes, hallmark.CodeForgeUnsigned)
		}
		if len(want.checks) > 0 {
			var checks []any
			for _, c := range want.checks {
				checks = append(checks, map[string]any{"context": c})
			}
			rules, codes = append(rules, map[string]any{"type": "required_status_checks", "parameters": map[string]any{"required_status_checks": checks, "strict_required_status_checks_policy": true}}), append(codes, hallmark.CodeForgeChecks)
		}
		if err := add(g.set(name, "branch", ref, rules, actors, codes, b.name)); err != nil {
			return nil, err
		}
	}
	if t := g.posture.Tags; t.Read && (!t.Value.All || len(subtract(t.Value.Movers, w.Pushers)) > 0) {
		rules := []any{map[string]any{"type": "deletion"}, map[string]any{"type": "update"}, map[string]any{"type": "non_fast_forward"}}
		if err := add(g.set(ourRules+" tags", "tag", "~ALL", rules, nil, []hallmark.Code{hallmark.CodeForgeTags}, "tags")); err != nil {
			return nil, err
		}
	}
	simple := func(code hallmark.Code, on, field, is, to, method, path string, body map[string]any) error {
		m := mending{body: body}
		m.set(code, field, is, to)
		return add(m.repair(on, method, g.path(path)))
	}
	if v := g.posture.Workflow.TokenWrites; v.Read && v.Value {
		if err := simple(hallmark.CodeForgeWorkflowToken, "", "default_workflow_permissions", "write", "read", http.MethodPut, "/actions/permissions/workflow", map[string]any{}); err != nil {
			return nil, err
		}
	}
	if v := g.posture.Workflow.Unapproved; v.Read && v.Value {
		if err := simple(hallmark.CodeForgeWorkflowRuns, "", "approval_policy", "less", "all_external_contributors", http.MethodPut, "/actions/permissions/fork-pr-contributor-approval", map[string]any{}); err != nil {
			return nil, err
		}
	}
	for _, h := range g.posture.Hooks.Value {
		if h.Verify.Read && !h.Verify.Value {
			if err := simple(hallmark.CodeForgeHookTLS, "hook "+h.ID, "insecure_ssl", "1", "0", http.MethodPatch, "/hooks/"+h.ID+"/config", map[string]any{}); err != nil {
				return nil, err
			}
		}
	}
	for _, c := range g.posture.Outsiders.Value {
		if c.Writes && !slices.Contains(w.Trusted, c.Name) && !slices.Contains(w.Pushers, c.Name) {
			if err := simple(hallmark.CodeForgeOutsider, c.Name, "permission", c.Permission, "pull", http.MethodPut, "/collaborators/"+url.PathEscape(c.Name), map[string]any{}); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// set is a rule set of ours, new or in the place of the one of that name.
func (g *github) set(name, target, ref string, rules, actors []any, codes []hallmark.Code, on string) ([]source.Repair, error) {
	if actors == nil {
		actors = []any{}
	}
	body := map[string]any{
		"name": name, "target": target, "enforcement": "active", "bypass_actors": actors, "rules": rules,
		"conditions": map[string]any{"ref_name": map[string]any{"include": []string{ref}, "exclude": []string{}}},
	}
	b, err := json.Marshal(body)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInternal, "encoding a change: %w", err)
	}
	var kinds []string
	for _, r := range rules {
		kinds = append(kinds, fmt.Sprint(r.(map[string]any)["type"]))
	}
	out := source.Repair{Codes: codes, On: on, Is: "no rule set " + name, Becomes: "rule set " + name + ": " + strings.Join(kinds, ", "), Method: http.MethodPost, Path: g.path("/rulesets"), Body: b}
	if i := slices.IndexFunc(g.sets, func(s githubSet) bool { return s.Name == name && s.Target == target }); i >= 0 {
		out.Is, out.Method, out.Path = "rule set "+name+", "+g.sets[i].Enforcement, http.MethodPut, g.path("/rulesets/"+strconv.FormatInt(g.sets[i].ID, 10))
	}
	return []source.Repair{out}, nil
}

// bypass are the accounts that may push, as rule sets name them: TYPE:ID.
func bypass(pushers []string) ([]any, error) {
	out := []any{}
	for _, p := range pushers {
		kind, id, ok := strings.Cut(p, ":")
		n, err := strconv.ParseInt(id, 10, 64)
		if !ok || err != nil {
			return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindUsage, "GitHub's rule sets know %.80q by its kind and number", p), "--pusher Integration:NUMBER, of the app that the gate forwards with")
		}
		out = append(out, map[string]any{"actor_id": n, "actor_type": kind, "bypass_mode": "always"})
	}
	return out, nil
}

// Apply implements source.Forge.
func (g *github) Apply(ctx context.Context, r source.Repair) error {
	return g.c.send(ctx, r.Method, r.Path, r.Body)
}
