// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"os/exec"
	"strings"
	"time"
)

// registries are what the first policy names: what was given as KIND=URL, and
// for a kind that was not given what the operator's own client is set to.
func registries(ctx context.Context, given []string) (map[string]string, error) {
	out := map[string]string{}
	for _, g := range given {
		kind, where, ok := strings.Cut(g, "=")
		if !ok || kind != "go" && kind != "npm" || out[kind] != "" {
			return nil, usagef("--registry %q: want go=URL or npm=URL, each once; URL may be none", g)
		}
		out[kind] = where
	}
	if out["go"] == "" {
		out["go"] = firstURL(strings.FieldsFunc(client(ctx, "go", "env", "GOPROXY"), func(r rune) bool { return r == ',' || r == '|' }))
	}
	if out["npm"] == "" {
		out["npm"] = firstURL([]string{client(ctx, "npm", "config", "get", "registry")})
	}
	return out, nil
}

// firstURL takes only what a policy accepts of what a client may be set to.
func firstURL(list []string) string {
	for _, s := range list {
		if strings.HasPrefix(s, "https://") && !strings.ContainsAny(s, "@?# ") {
			return strings.TrimSuffix(s, "/")
		}
	}
	return "none"
}

// client asks a client program for its setting, away from any project's files:
// it would read them in its directory and in those above, and only in the root
// can no other user put any. A client that is not here has none.
func client(ctx context.Context, name string, args ...string) string {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = "/"
	out, err := cmd.Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}
