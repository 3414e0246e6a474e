// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"sync"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/forge"
	"github.com/hallmark-sc/hallmark/internal/source"
)

// forwarded is the kind of repositories that are forwarded to a forge elsewhere.
const forwarded = "forwarded"

// elsewhere is a forge that is not ours: git's own http-backend, and of Gitea's
// interface as much as an audit reads. Its one rule is enforced by git.
type elsewhere struct {
	bare, url string

	mu    sync.Mutex
	rule  map[string]any // the protection of main
	force error          // why the last change of it could not be enforced
}

// elsewhere starts the forge of a ground, once.
func (g *ground) elsewhere(ctx context.Context) (*elsewhere, error) {
	return keep(g, "elsewhere", func() (*elsewhere, error) {
		root := g.path("elsewhere")
		e := &elsewhere{bare: g.path("elsewhere", "o", "app.git"), rule: map[string]any{
			"rule_name": "main", "enable_push": false, "enable_push_whitelist": true, "push_whitelist_usernames": []any{}, "push_whitelist_teams": []any{}, "push_whitelist_deploy_keys": false,
			"enable_force_push": false, "enable_force_push_allowlist": false, "enable_status_check": true, "status_check_contexts": []any{"ci"}, "required_approvals": 1, "block_on_rejected_reviews": true,
			"block_on_official_review_requests": true, "dismiss_stale_approvals": true, "ignore_stale_approvals": false, "require_signed_commits": true, "block_admin_merge_override": true, "unprotected_file_patterns": "",
		}}
		for _, args := range [][]string{{"init", "-q", "--bare", "-b", "main", e.bare}, {"--git-dir=" + e.bare, "config", "http.receivepack", "true"}} {
			if _, err := git(ctx, repository{dir: g.dir}, "", args...); err != nil {
				return nil, err
			}
		}
		program, err := exec.LookPath("git")
		if err != nil {
			return nil, hallmark.Errorf(hallmark.KindUnavailable, "looking for git: %w", err)
		}
		backend := &cgi.Handler{Path: program, Args: []string{"http-backend"}, Env: append(gitEnv(), "GIT_PROJECT_ROOT="+root, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=gate")}
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if path, ok := strings.CutPrefix(r.URL.Path, "/api/v1"); ok {
				e.answer(w, r, path)
				return
			}
			backend.ServeHTTP(w, r)
		}))
		g.closers = append(g.closers, func() error { s.Close(); return nil })
		e.url = s.URL + "/o/app.git"
		return e, nil
	})
}

// answer is what the forge says to programs.
func (e *elsewhere) answer(w http.ResponseWriter, r *http.Request, path string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if r.Method == http.MethodPatch && path == "/repos/o/app/branch_protections/main" {
		var change map[string]any
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&change); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		for k, v := range change {
			e.rule[k] = v
		}
		_, e.force = git(r.Context(), repository{dir: e.bare}, "", "config", "receive.denyNonFastForwards", fmt.Sprint(e.rule["enable_force_push"] != true))
	}
	of := map[string]any{
		"/version":                             map[string]any{"version": "drill"},
		"/repos/o/app":                         map[string]any{"private": true, "default_branch": "main", "permissions": map[string]any{"admin": true}},
		"/repos/o/app/branches/main":           map[string]any{"name": "main", "protected": true, "effective_branch_protection_name": "main"},
		"/repos/o/app/branch_protections":      []any{e.rule},
		"/repos/o/app/branch_protections/main": e.rule,
		"/repos/o/app/tag_protections":         []any{map[string]any{"id": 1, "name_pattern": "*", "whitelist_usernames": []any{}, "whitelist_teams": []any{}}},
		"/repos/o/app/collaborators":           []any{},
		"/repos/o/app/hooks":                   []any{},
		"/repos/o/app/keys":                    []any{},
	}
	body, ok := of[path]
	if !ok || e.force != nil {
		http.Error(w, `{"message":"no"}`, http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(body)
}

// administrator changes the rule, as somebody does who may.
func (e *elsewhere) administrator(ctx context.Context, body string) error {
	base := strings.TrimSuffix(e.url, "/o/app.git")
	r, err := http.NewRequestWithContext(ctx, http.MethodPatch, base+"/api/v1/repos/o/app/branch_protections/main", strings.NewReader(body))
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("the forge does not take the change: %s", answer.Status)
	}
	return nil
}

// at03forge is "administrator weakens a control, acts, restores it", at a forge that
// is not ours.
func at03forge() []Case {
	return []Case{{
		Attack: "AT-03", Letter: "e", Does: "an administrator of the forge switches the protection of main off, forces a push, and switches it on again",
		Control: "the settings of the forge are audited and mended", Stops: hallmark.CodeForgeForcePush,
		Residual: "who is faster than the next audit: hallmark source verify finds what moved", attack: forgeWeakened,
	}}
}

func forgeWeakened(ctx context.Context, g *ground, c Control) (effect, error) {
	h, err := g.host(ctx)
	if err != nil {
		return effect{}, err
	}
	t, err := h.try(ctx, forwarded)
	if err != nil {
		return effect{}, err
	}
	e, err := g.elsewhere(ctx)
	if err != nil {
		return effect{}, err
	}
	if err := e.administrator(ctx, `{"enable_force_push":true}`); err != nil {
		return effect{}, err
	}
	var found hallmark.Code
	if c == On {
		a, err := app.AuditForge(ctx, app.ForgeAuditConfig{
			Forge: forge.Config{URL: strings.TrimSuffix(e.url, ".git"), Kind: forge.Gitea}, Wanted: source.Wanted{Approvals: 1}, Mend: app.ForgeReport, Home: g.home.Home,
		})
		if err != nil {
			return effect{}, err
		}
		if all := a.Findings(); len(all) != 1 || len(a.Statements) != 1 {
			return effect{}, fmt.Errorf("the audit found %v, and logged %d statements", all, len(a.Statements))
		} else {
			found = all[0].Code
		}
		if a, err = app.AuditForge(ctx, app.ForgeAuditConfig{
			Forge: forge.Config{URL: strings.TrimSuffix(e.url, ".git"), Kind: forge.Gitea}, Wanted: source.Wanted{Approvals: 1}, Mend: app.ForgeFix, Home: g.home.Home,
		}); err != nil {
			return effect{}, err
		}
		if len(a.Findings()) > 0 || len(a.Left) > 0 {
			return effect{}, fmt.Errorf("after the repair: %v, %v", a.Findings(), a.Left)
		}
	}
	evil, err := t.commit(ctx, wrote{by: "mallory@example.org", message: "rewritten", files: map[string]string{"readme": fmt.Sprintln("rewritten", t.n)}})
	if err != nil {
		return effect{}, err
	}
	_, pushed := t.git(ctx, "", "push", "-q", "--force", e.url, evil+":refs/heads/main")
	if err := e.administrator(ctx, `{"enable_force_push":false}`); err != nil {
		return effect{}, err
	}
	at, err := git(ctx, repository{dir: e.bare}, "", "rev-parse", "refs/heads/main")
	if err != nil {
		return effect{}, err
	}
	_, restored := git(ctx, repository{dir: e.bare}, "", "update-ref", "refs/heads/main", t.main)
	if restored != nil {
		return effect{}, restored
	}
	switch {
	case at == evil && pushed == nil:
		return effect{done: true, detail: "the forge shows the rewritten history, and its settings look as before"}, nil
	case at != t.main || pushed == nil:
		return effect{}, fmt.Errorf("main is at %s after the push: %w", at, pushed)
	}
	return effect{reason: found, detail: "found, mended, and the push was refused"}, nil
}

// at04upstream is "rewrite history", at the forge that is forwarded to.
func at04upstream() []Case {
	return []Case{{
		Attack: "AT-04", Letter: "f", Does: "history is rewritten at the upstream, round the gate, and a good commit follows through it",
		Control: "the upstream is moved only from where the log says it is", Stops: hallmark.CodeUpstreamMoved,
		Residual: "who reads the upstream before anybody compares it with the log", attack: hosted(forwarded, weakness{code: hallmark.CodeUpstreamMoved}, func(ctx context.Context, t *try) (bool, error) {
			x, err := t.released(ctx)
			if err != nil {
				return false, err
			}
			evil, err := t.commit(ctx, wrote{by: "mallory@example.org", message: "instead", parents: []string{t.main}, files: map[string]string{"readme": fmt.Sprintln("instead", t.n)}})
			if err != nil {
				return false, err
			}
			if err := t.moveThere(ctx, evil, t.target); err != nil {
				return false, err
			}
			good, err := t.commit(ctx, wrote{by: "alice@example.org", message: "good", parents: []string{x}, files: map[string]string{"readme": fmt.Sprintln("good", t.n)}})
			if err != nil {
				return false, err
			}
			return t.pushes(ctx, "alice@example.org", good, t.target)
		}),
	}}
}

// at05upstream is "move a release tag", at the forge that is forwarded to.
func at05upstream() []Case {
	return []Case{{
		Attack: "AT-05", Letter: "k", Does: "the tag is moved at the upstream, round the gate",
		Control: "the references of the upstream are compared with the log", Stops: hallmark.CodeUpstreamMoved,
		Residual: "who takes the tag before anybody compares", attack: upstreamTagMoved,
	}}
}

func upstreamTagMoved(ctx context.Context, g *ground, c Control) (effect, error) {
	h, err := g.host(ctx)
	if err != nil {
		return effect{}, err
	}
	t, err := h.try(ctx, forwarded)
	if err != nil {
		return effect{}, err
	}
	tag, evil, err := t.tagged(ctx)
	if err != nil {
		return effect{}, err
	}
	was, err := git(ctx, repository{dir: t.there}, "", "rev-parse", tag)
	if err != nil {
		return effect{}, err
	}
	if err := t.moveThere(ctx, evil, tag); err != nil {
		return effect{}, err
	}
	only := ""
	if c == Off {
		only = t.bare
	}
	state, err := app.VerifySource(ctx, g.home.Home, t.name, only)
	if err != nil {
		return effect{}, err
	}
	if err := t.moveThere(ctx, was, tag); err != nil {
		return effect{}, err
	}
	i := slices.IndexFunc(state.Differences, func(d app.RefDifference) bool { return d.Ref == tag })
	if i < 0 {
		return effect{done: true, detail: "nothing differs, and the upstream gives the other commit"}, nil
	}
	d := state.Differences[i]
	if d.Where == "" || d.Is != evil || d.Logged != was {
		return effect{}, fmt.Errorf("what was found is %+v", d)
	}
	return effect{reason: d.Code, detail: d.Detail}, nil
}

// moveThere forces a reference of the forge, whose rule does not hold then.
func (t *try) moveThere(ctx context.Context, id, ref string) error {
	_, open := git(ctx, repository{dir: t.there}, "", "config", "receive.denyNonFastForwards", "false")
	_, moved := t.git(ctx, "", "push", "-q", "--force", t.there, id+":"+ref)
	return errors.Join(open, moved)
}
