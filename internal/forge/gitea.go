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

// gitea is a repository at Gitea or Forgejo.
type gitea struct {
	c    *client
	repo repository
	// As last read.
	rules  []giteaRule
	tags   []giteaTags
	guards []giteaBranch
	people []source.Collaborator
	full   giteaRepository
}

type giteaRepository struct {
	Private     *bool   `json:"private"`
	Internal    *bool   `json:"internal"`
	Branch      *string `json:"default_branch"`
	HTML        string  `json:"html_url"`
	Actions     *bool   `json:"has_actions"`
	Permissions *struct {
		Admin bool `json:"admin"`
	} `json:"permissions"`
}

type giteaBranch struct {
	Name      string  `json:"name"`
	Protected *bool   `json:"protected"`
	Rule      *string `json:"effective_branch_protection_name"`
}

// giteaRule is a branch protection. Absent fields are not false.
type giteaRule struct {
	Name       string    `json:"rule_name"`
	Push       *bool     `json:"enable_push"`
	PushListed *bool     `json:"enable_push_whitelist"`
	PushUsers  *[]string `json:"push_whitelist_usernames"`
	PushTeams  *[]string `json:"push_whitelist_teams"`
	PushKeys   *bool     `json:"push_whitelist_deploy_keys"`

	Force       *bool     `json:"enable_force_push"`
	ForceListed *bool     `json:"enable_force_push_allowlist"`
	ForceUsers  *[]string `json:"force_push_allowlist_usernames"`
	ForceTeams  *[]string `json:"force_push_allowlist_teams"`
	ForceKeys   *bool     `json:"force_push_allowlist_deploy_keys"`

	Checking  *bool     `json:"enable_status_check"`
	Checks    *[]string `json:"status_check_contexts"`
	Approvals *int      `json:"required_approvals"`
	Rejected  *bool     `json:"block_on_rejected_reviews"`
	Requested *bool     `json:"block_on_official_review_requests"`
	Dismiss   *bool     `json:"dismiss_stale_approvals"`
	Ignore    *bool     `json:"ignore_stale_approvals"`
	Signed    *bool     `json:"require_signed_commits"`
	NoAdmin   *bool     `json:"block_admin_merge_override"`
	Open      *string   `json:"unprotected_file_patterns"`
}

type giteaTags struct {
	ID      int64     `json:"id"`
	Pattern string    `json:"name_pattern"`
	Users   *[]string `json:"whitelist_usernames"`
	Teams   *[]string `json:"whitelist_teams"`
}

func (g *gitea) path(rest string) string {
	return "/repos/" + url.PathEscape(g.repo.owner) + "/" + url.PathEscape(g.repo.name) + rest
}

// Read implements source.Forge.
func (g *gitea) Read(ctx context.Context) (source.Posture, error) {
	p := source.Posture{Forge: Gitea, Repository: g.repo.page, Page: g.repo.page + "/settings"}
	version, err := get[struct{ Version string }](ctx, g.c, "/version")
	if err != nil {
		return p, fmt.Errorf("asking for the version of the forge: %w", err)
	}
	p.Version = version.Version
	if g.full, err = get[giteaRepository](ctx, g.c, g.path("")); err != nil {
		return p, fmt.Errorf("reading the repository: %w", err)
	}
	if g.full.Branch == nil || *g.full.Branch == "" {
		return p, hallmark.Errorf(hallmark.KindUnavailable, "the forge names no default branch")
	}
	p.Visibility = source.Unread[string]("the answer has no private")
	if g.full.Private != nil {
		p.Visibility = source.Told("public")
		if *g.full.Private {
			p.Visibility = source.Told("private")
		}
		if g.full.Internal != nil && *g.full.Internal && p.Visibility.Value == "public" {
			p.Visibility = source.Told("internal")
		}
	}
	p.TwoFactor = source.Absent[bool]("Gitea tells nobody; it is the server's own setting (security.TWO_FACTOR_AUTH)")
	p.Workflow.TokenWrites = source.Absent[bool]("Gitea's interface tells nobody")
	p.Workflow.Unapproved = source.Absent[bool]("no setting: Gitea holds first runs from outside for a member's approval")
	if err := g.branches(ctx, &p); err != nil {
		return p, err
	}
	tags, err := g.readTags(ctx)
	if p.Tags, err = seen(tags, err); err != nil {
		return p, err
	}
	g.people, err = g.outsiders(ctx)
	if p.Outsiders, err = seen(g.people, err); err != nil {
		return p, err
	}
	if g.full.Permissions == nil || !g.full.Permissions.Admin { // a list that may be shortened
		p.Outsiders, g.people = source.Unread[[]source.Collaborator]("the token is not an administrator's"), nil
	}
	type hook struct {
		ID     int64             `json:"id"`
		Config map[string]string `json:"config"`
	}
	hooks, err := all[hook](ctx, g.c, g.path("/hooks"), "limit")
	var found []source.Webhook
	for _, h := range hooks {
		found = append(found, source.Webhook{ID: strconv.FormatInt(h.ID, 10), URL: plainURL(h.Config["url"]),
			Verify: source.Absent[bool]("the server's own setting (webhook.SKIP_TLS_VERIFY)"), Secret: source.Absent[bool]("Gitea tells nobody")})
	}
	if p.Hooks, err = seen(found, err); err != nil {
		return p, err
	}
	type key struct {
		ID     int64  `json:"id"`
		Title  string `json:"title"`
		Reader *bool  `json:"read_only"`
	}
	keys, err := all[key](ctx, g.c, g.path("/keys"), "limit")
	var held []source.DeployKey
	for _, k := range keys {
		held = append(held, source.DeployKey{ID: strconv.FormatInt(k.ID, 10), Title: k.Title, Writes: k.Reader == nil || !*k.Reader})
	}
	p.DeployKeys, err = seen(held, err)
	return p, err
}

func (g *gitea) branches(ctx context.Context, p *source.Posture) error {
	rules, err := all[giteaRule](ctx, g.c, g.path("/branch_protections"), "limit")
	known, err := seen(rules, err)
	if err != nil {
		return fmt.Errorf("reading branch protections: %w", err)
	}
	g.rules, g.guards = rules, nil
	names := append([]string{*g.full.Branch}, g.repo.branches...)
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			continue
		}
		b, err := get[giteaBranch](ctx, g.c, g.path("/branches/"+escapePath(name)))
		switch {
		case statusOf(err) == http.StatusNotFound && i == 0: // an empty repository
			b = giteaBranch{Name: name, Rule: g.byName(name)}
			no := b.Rule != nil
			b.Protected = &no
		case err != nil:
			return fmt.Errorf("reading branch %s: %w", name, err)
		}
		g.guards = append(g.guards, b)
		guard := source.BranchGuard{Name: name, Protected: told(b.Protected, "protected")}
		switch r := g.rule(b); {
		case b.Protected == nil:
		case !*b.Protected:
			open(&guard)
		case !known.Read || r == nil:
			// The rule is there and can't be seen: nothing else of it was read.
			why := firstOf(known.Why, "the rule of the branch was not told")
			guard = unread(name, guard.Protected, why)
		default:
			r.tell(&guard)
		}
		p.Branches = append(p.Branches, guard)
	}
	return nil
}

func (g *gitea) byName(name string) *string {
	if i := slices.IndexFunc(g.rules, func(r giteaRule) bool { return r.Name == name }); i >= 0 {
		return &g.rules[i].Name
	}
	return nil
}

// rule is the one that Gitea says is in force for a branch.
func (g *gitea) rule(b giteaBranch) *giteaRule {
	if b.Rule == nil {
		return nil
	}
	i := slices.IndexFunc(g.rules, func(r giteaRule) bool { return r.Name == *b.Rule })
	if i < 0 {
		return nil
	}
	return &g.rules[i]
}

// open is a branch that nothing protects.
func open(b *source.BranchGuard) {
	b.ForcePush, b.Pushers, b.Override = source.Told([]string{source.Everybody}), source.Told([]string{source.Everybody}), source.Told([]string{source.Everybody})
	b.Deletable, b.Stale, b.Rejected, b.Unsigned = source.Told(true), source.Told(true), source.Told(true), source.Told(true)
	b.Owners, b.Approvals, b.Checks = source.Told(false), source.Told(0), source.Told([]string{})
}

// unread is a branch of which nothing but that was told.
func unread(name string, protected source.Known[bool], why string) source.BranchGuard {
	who, no := source.Unread[[]string](why), source.Unread[bool](why)
	return source.BranchGuard{Name: name, Protected: protected, ForcePush: who, Pushers: who, Override: who, Checks: who, Deletable: no, Stale: no, Rejected: no, Unsigned: no, Owners: no, Approvals: source.Unread[int](why)}
}

// tell reads a rule. Gitea lets nobody delete a protected branch.
func (r *giteaRule) tell(b *source.BranchGuard) {
	b.Deletable = source.Told(false)
	b.Pushers = allowed(r.Push, r.PushListed, r.PushUsers, r.PushTeams, r.PushKeys, "enable_push")
	b.ForcePush = allowed(r.Force, r.ForceListed, r.ForceUsers, r.ForceTeams, r.ForceKeys, "enable_force_push")
	if r.Open == nil || *r.Open != "" { // whoever may write pushes these files
		b.Pushers = source.Told([]string{source.Everybody})
	}
	b.Approvals = told(r.Approvals, "required_approvals")
	switch {
	case r.Dismiss == nil || r.Ignore == nil:
		b.Stale = source.Unread[bool]("the answer has no dismiss_stale_approvals")
	default:
		b.Stale = source.Told(!*r.Dismiss && !*r.Ignore)
	}
	b.Owners = told(r.Requested, "block_on_official_review_requests")
	b.Rejected = not(r.Rejected, "block_on_rejected_reviews")
	b.Unsigned = not(r.Signed, "require_signed_commits")
	b.Checks = source.Unread[[]string]("the answer has no enable_status_check")
	if r.Checking != nil {
		b.Checks = source.Told([]string{})
		if *r.Checking && r.Checks != nil {
			b.Checks = source.Told(*r.Checks)
		}
	}
	b.Override = source.Unread[[]string]("the answer has no block_admin_merge_override")
	if r.NoAdmin != nil {
		b.Override = source.Told([]string{"administrators"})
		if *r.NoAdmin {
			b.Override = source.Told([]string{})
		}
	}
}

func not(v *bool, field string) source.Known[bool] {
	k := told(v, field)
	k.Value = k.Read && !k.Value
	return k
}

// allowed is who may, of a switch with an optional list.
func allowed(on, listed *bool, users, teams *[]string, keys *bool, field string) source.Known[[]string] {
	switch {
	case on == nil || listed == nil:
		return source.Unread[[]string]("the answer has no " + field)
	case !*on:
		return source.Told([]string{})
	case !*listed:
		return source.Told([]string{source.Everybody})
	case users == nil || teams == nil || keys == nil:
		return source.Unread[[]string]("the answer lacks the list of " + field)
	}
	out := append([]string{}, *users...)
	for _, t := range *teams {
		out = append(out, "team "+t)
	}
	if *keys {
		out = append(out, "deploy keys")
	}
	return source.Told(out)
}

func (g *gitea) readTags(ctx context.Context) (source.TagGuard, error) {
	var err error
	if g.tags, err = all[giteaTags](ctx, g.c, g.path("/tag_protections"), "limit"); err != nil {
		return source.TagGuard{}, err
	}
	out := source.TagGuard{Movers: []string{}}
	for _, t := range g.tags {
		if t.Users == nil || t.Teams == nil {
			out.Movers = append(out.Movers, source.Everybody)
			continue
		}
		out.All = out.All || anyTag(t.Pattern)
		out.Movers = append(out.Movers, *t.Users...)
		for _, team := range *t.Teams {
			out.Movers = append(out.Movers, "team "+team)
		}
	}
	return out, nil
}

func anyTag(pattern string) bool {
	return slices.Contains([]string{"*", "**", "/.*/", "/^.*$/"}, pattern)
}

// outsiders are the collaborators who are no members of the owner; a person has no
// members.
func (g *gitea) outsiders(ctx context.Context) ([]source.Collaborator, error) {
	_, err := get[struct{ Username string }](ctx, g.c, "/orgs/"+url.PathEscape(g.repo.owner))
	organization := err == nil
	if err != nil && statusOf(err) != http.StatusNotFound {
		return nil, err
	}
	people, err := all[struct{ Login string }](ctx, g.c, g.path("/collaborators"), "limit")
	if err != nil {
		return nil, err
	}
	out := []source.Collaborator{}
	for _, who := range people {
		if organization {
			_, _, err := g.c.do(ctx, http.MethodGet, "/orgs/"+url.PathEscape(g.repo.owner)+"/members/"+url.PathEscape(who.Login), nil)
			if err == nil {
				continue
			}
			if statusOf(err) != http.StatusNotFound {
				return nil, err
			}
		}
		p, err := get[struct{ Permission string }](ctx, g.c, g.path("/collaborators/"+url.PathEscape(who.Login)+"/permission"))
		if err != nil {
			return nil, err
		}
		out = append(out, source.Collaborator{Name: who.Login, Permission: p.Permission, Writes: p.Permission != "read" && p.Permission != "none"})
	}
	return out, nil
}

// plainURL is a URL without what could be a secret in it.
func plainURL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return "(not a URL)"
	}
	path := u.EscapedPath()
	if len(path) > 1 {
		path = "/…"
	}
	return u.Scheme + "://" + u.Host + path
}

// escapePath keeps the slashes of a branch's name, as Gitea's routes want it.
func escapePath(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}

// Repairs implements source.Forge.
func (g *gitea) Repairs(w source.Wanted) ([]source.Repair, error) {
	var out []source.Repair
	for i, b := range g.guards {
		r := g.rule(b)
		if b.Protected != nil && *b.Protected && r == nil {
			continue // it can't be seen, so it can't be mended
		}
		if r != nil && slices.ContainsFunc(g.guards[:i], func(o giteaBranch) bool { return o.Rule != nil && *o.Rule == r.Name }) {
			continue
		}
		fix, err := g.mendBranch(b.Name, r, w)
		if err != nil {
			return nil, err
		}
		out = append(out, fix...)
	}
	tags, err := g.mendTags(w)
	if err != nil {
		return nil, err
	}
	out = append(out, tags...)
	for _, c := range g.people {
		if !c.Writes || slices.Contains(w.Trusted, c.Name) || slices.Contains(w.Pushers, c.Name) {
			continue
		}
		out = append(out, source.Repair{Codes: []hallmark.Code{hallmark.CodeForgeOutsider}, On: c.Name, Is: c.Permission, Becomes: "read",
			Method: http.MethodPut, Path: g.path("/collaborators/" + url.PathEscape(c.Name)), Body: json.RawMessage(`{"permission":"read"}`)})
	}
	return out, nil
}

// mendBranch makes a rule what is wanted, or a new one. A field that is stricter
// already is not among the changes.
func (g *gitea) mendBranch(branch string, r *giteaRule, w source.Wanted) ([]source.Repair, error) {
	m := mending{body: map[string]any{}}
	old := giteaRule{}
	if r != nil {
		old = *r
	}
	// A new rule lets the gate's account push, and nobody else; of an old one
	// accounts are taken away only.
	users := []string{}
	for _, u := range w.Pushers {
		if r == nil || old.PushUsers != nil && slices.Contains(*old.PushUsers, u) || pushesAnyway(old) {
			users = append(users, u)
		}
	}
	now := allowed(old.Push, old.PushListed, old.PushUsers, old.PushTeams, old.PushKeys, "")
	if r == nil || len(subtract(now.Value, w.Pushers)) > 0 || !now.Read {
		m.set(hallmark.CodeForgeDirectPush, "enable_push", orFalse(old.Push), len(users) > 0)
		m.set(hallmark.CodeForgeDirectPush, "enable_push_whitelist", orFalse(old.PushListed), true)
		m.set(hallmark.CodeForgeDirectPush, "push_whitelist_usernames", orNone(old.PushUsers), users)
		m.set(hallmark.CodeForgeDirectPush, "push_whitelist_teams", orNone(old.PushTeams), []string{})
		m.set(hallmark.CodeForgeDirectPush, "push_whitelist_deploy_keys", orFalse(old.PushKeys), false)
	}
	if old.Open != nil && *old.Open != "" {
		m.set(hallmark.CodeForgeDirectPush, "unprotected_file_patterns", *old.Open, "")
	}
	m.want(hallmark.CodeForgeForcePush, "enable_force_push", old.Force, false, r == nil)
	m.want(hallmark.CodeForgeRejected, "block_on_rejected_reviews", old.Rejected, true, r == nil)
	m.want(hallmark.CodeForgeOwners, "block_on_official_review_requests", old.Requested, true, r == nil)
	if old.Ignore == nil || !*old.Ignore {
		m.want(hallmark.CodeForgeStale, "dismiss_stale_approvals", old.Dismiss, true, r == nil)
	}
	m.want(hallmark.CodeForgeOverride, "block_admin_merge_override", old.NoAdmin, true, r == nil)
	if !w.Unsigned {
		m.want(hallmark.CodeForgeUnsigned, "require_signed_commits", old.Signed, true, r == nil)
	}
	if n := max(1, w.Approvals); old.Approvals == nil || *old.Approvals < n {
		m.set(hallmark.CodeForgeReview, "required_approvals", orZero(old.Approvals), n)
	}
	if len(w.Checks) > 0 {
		have := orNone(old.Checks)
		if more := subtract(w.Checks, have); len(more) > 0 || !orFalse(old.Checking) {
			m.set(hallmark.CodeForgeChecks, "enable_status_check", orFalse(old.Checking), true)
			m.set(hallmark.CodeForgeChecks, "status_check_contexts", have, slices.Concat(have, more))
		}
	}
	if r == nil {
		m.body["rule_name"] = branch
		m.codes = append([]hallmark.Code{hallmark.CodeForgeUnprotected, hallmark.CodeForgeDeletion}, m.codes...)
		return m.repair(branch, http.MethodPost, g.path("/branch_protections"))
	}
	return m.repair(r.Name, http.MethodPatch, g.path("/branch_protections/"+url.PathEscape(r.Name)))
}

// pushesAnyway reports whether a rule lets everybody who may write push.
func pushesAnyway(r giteaRule) bool { return orFalse(r.Push) && !orFalse(r.PushListed) }

func (g *gitea) mendTags(w source.Wanted) ([]source.Repair, error) {
	var out []source.Repair
	covered := false
	for _, t := range g.tags {
		covered = covered || anyTag(t.Pattern)
		users, teams := orNone(t.Users), orNone(t.Teams)
		keep := slices.DeleteFunc(slices.Clone(users), func(u string) bool { return !slices.Contains(w.Pushers, u) })
		if len(keep) == len(users) && len(teams) == 0 {
			continue
		}
		m := mending{body: map[string]any{}}
		m.set(hallmark.CodeForgeTags, "whitelist_usernames", users, keep)
		m.set(hallmark.CodeForgeTags, "whitelist_teams", teams, []string{})
		fix, err := m.repair("tags "+t.Pattern, http.MethodPatch, g.path("/tag_protections/"+strconv.FormatInt(t.ID, 10)))
		if err != nil {
			return nil, err
		}
		out = append(out, fix...)
	}
	if covered {
		return out, nil
	}
	m := mending{body: map[string]any{}}
	m.set(hallmark.CodeForgeTags, "name_pattern", "none", "*")
	m.set(hallmark.CodeForgeTags, "whitelist_usernames", []string{}, append([]string{}, w.Pushers...))
	m.body["whitelist_teams"] = []string{}
	fix, err := m.repair("tags", http.MethodPost, g.path("/tag_protections"))
	return append(out, fix...), err
}

// Apply implements source.Forge.
func (g *gitea) Apply(ctx context.Context, r source.Repair) error {
	return g.c.send(ctx, r.Method, r.Path, r.Body)
}
