// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package access_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
)

var day = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func key(t *testing.T) string {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k)))
}

func grant(id, who string, role access.Role) access.Grant {
	return access.Grant{ID: id, Principal: who, Role: role, Repositories: []string{"app"}, Refs: []string{"**"}, Paths: []string{"**"}, Owner: "alice@example.org", Reason: "it is her work", NotBefore: day.Add(-time.Hour)}
}

func section(t *testing.T) *access.Section {
	t.Helper()
	s := &access.Section{
		Principals: []access.Principal{
			{Name: "alice@example.org", Kind: access.Person, Aliases: []string{"alice@home.example"}, SSHKeys: []string{key(t)}},
			{Name: "eve@outside.example", Kind: access.Person, Outside: true, SSHKeys: []string{key(t)}},
			{Name: "robot", Kind: access.Robot, Owner: "alice@example.org"},
		},
		Grants: []access.Grant{grant("g-1", "alice@example.org", access.Developer), grant("g-2", "eve@outside.example", access.Developer), grant("g-3", "eve@outside.example", access.Outsider)},
		Refs: []access.RefRule{
			{Name: "main", Repositories: []string{"**"}, Refs: []string{"refs/heads/main"}, History: access.Descend, Approvals: "1"},
			{Name: "rest", Repositories: []string{"app"}, Refs: []string{"refs/heads/*"}, History: access.Rewrite, Approvals: "0"},
		},
	}
	s.Whole()
	return s
}

func TestRule(t *testing.T) {
	s := section(t)
	ending := grant("g-4", "robot", access.Builder)
	ending.NotAfter = day
	s.Grants = append(s.Grants, ending)
	b, err := access.NewBook(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		who        string
		permission access.Permission
		repository string
		at         time.Time
		grant      string // "" is refused
		nearest    string
	}{
		{"alice@example.org", access.RefPush, "app", day, "g-1", ""},
		{"alice@home.example", access.RefPush, "app", day, "", ""}, // an alias is for commits, not to ask with
		{"alice@example.org", access.RefPush, "other", day, "", "g-1 is for app"},
		{"alice@example.org", access.RefTag, "app", day, "", "does not have ref.tag"},
		{"alice@example.org", access.RefPush, "app", day.Add(-2 * time.Hour), "", "in force from"},
		{"eve@outside.example", access.RefPush, "app", day, "", "outside collaborator"}, // whatever was granted
		{"eve@outside.example", access.ChangePropose, "app", day, "g-2", ""},
		{"robot", access.SourceCheckOut, "app", day.Add(-time.Minute), "g-4", ""},
		{"robot", access.SourceCheckOut, "app", day, "", "in force from"},
		{"nobody", access.RepositoryRead, "app", day, "", ""},
		{"", access.RepositoryRead, "app", day, "", ""},
	} {
		r := b.Rule(access.Request{Principal: tc.who, Permission: tc.permission, Repository: tc.repository, Ref: "refs/heads/x", At: tc.at})
		if r.Allowed != (tc.grant != "") || r.Grant != tc.grant {
			t.Errorf("%s %s: %+v", tc.who, tc.permission, r)
		}
		if !r.Allowed && (r.Reason.Code == "" || !strings.Contains(r.Reason.Nearest, tc.nearest)) {
			t.Errorf("%s %s: reason %+v, want nearest %q", tc.who, tc.permission, r.Reason, tc.nearest)
		}
	}
	s.Grants[0].Paths = []string{"docs/**"}
	for path, want := range map[string]bool{"docs/a": true, "docs": false, "docsx/a": false, "src/a": false} {
		r := b.Rule(access.Request{Principal: "alice@example.org", Permission: access.RefPush, Repository: "app", Ref: "refs/heads/x", Path: path, At: day})
		if r.Allowed != want || !want && !strings.Contains(r.Reason.Nearest, "g-1 is for paths docs/**") {
			t.Errorf("path %q: %+v", path, r)
		}
	}
	every := access.Request{Principal: "alice@example.org", Permission: access.RefPush, Repository: "app", Ref: "refs/heads/x", EveryPath: true, At: day}
	if b.Rule(every).Allowed {
		t.Error("a grant for some paths is one for every path")
	}
	if (access.Ruling{}).Allowed {
		t.Error("a zero ruling allows")
	}
	empty, err := access.NewBook(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range access.Permissions() {
		if empty.Rule(access.Request{Principal: "alice@example.org", Permission: p, At: day}).Allowed {
			t.Errorf("a policy without a section allows %s", p)
		}
	}
}

// TestNoRoleHasAll: whoever administers lands nothing by it.
func TestNoRoleHasAll(t *testing.T) {
	for _, r := range access.Roles() {
		if slices.Contains(r.Permissions, access.AccessAdminister) && (slices.Contains(r.Permissions, access.RefPush) || slices.Contains(r.Permissions, access.ChangeApprove)) {
			t.Errorf("role %s changes rules and lands things", r.Role)
		}
		if len(r.Permissions) == len(access.Permissions()) {
			t.Errorf("role %s has every permission", r.Role)
		}
	}
}

func TestProtection(t *testing.T) {
	b, err := access.NewBook(section(t))
	if err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]string{"refs/heads/main": "main", "refs/heads/x": "rest", "refs/heads/x/y": "", "refs/tags/v1": "", "": ""} {
		r, ok := b.Protection("app", ref)
		if ok != (want != "") || r.Name != want {
			t.Errorf("%s: rule %q", ref, r.Name)
		}
	}
	if n := (access.RefRule{}).Needed(); n == 0 {
		t.Error("a rule that can't be read needs no approval")
	}
}

func TestCheckRefuses(t *testing.T) {
	for want, edit := range map[string]func(*access.Section){
		"a credential belongs to one principal": func(s *access.Section) { s.Principals[1].SSHKeys = s.Principals[0].SSHKeys },
		"that nobody else has":                  func(s *access.Section) { s.Principals[1].Aliases = []string{"Alice@Home.example"} },
		"there is no principal":                 func(s *access.Section) { s.Grants[0].Principal = "alice@home.example" },
		"role":                                  func(s *access.Section) { s.Grants[0].Role = "root" },
		"owner":                                 func(s *access.Section) { s.Grants[0].Owner = "robot" },
		"reason":                                func(s *access.Section) { s.Grants[0].Reason = " " },
		"ends before it begins":                 func(s *access.Section) { s.Grants[0].NotAfter = day.Add(-2 * time.Hour) },
		"want 1 to":                             func(s *access.Section) { s.Grants[0].Repositories = nil },
		"paths":                                 func(s *access.Section) { s.Grants[0].Paths = []string{} },
		"history":                               func(s *access.Section) { s.Refs[0].History = "" },
		"approvals":                             func(s *access.Section) { s.Refs[0].Approvals = "" },
		"could be rewritten":                    func(s *access.Section) { s.Refs[1].Approvals = "1" },
		"ORG_SOURCE_":                           func(s *access.Section) { s.Refs[0].Properties = []string{"SLSA_SOURCE_LEVEL_4"} },
		"no person":                             func(s *access.Section) { s.Principals[2].Owner = "" },
		"kind":                                  func(s *access.Section) { s.Principals[0].Kind = "" },
		"SPIFFE":                                func(s *access.Section) { s.Principals[2].Kind = access.Workload },
	} {
		s := section(t)
		edit(s)
		if err := s.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	b, err := json.Marshal(access.Section{Principals: []access.Principal{{Name: "a", Kind: "person"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"refs":[{"name":"x","refs":["*/*"]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := access.Parse("x", b)
		if err != nil {
			return
		}
		book, err := access.NewBook(s)
		if err != nil {
			t.Fatalf("what was read can't be used: %v", err)
		}
		if book.Rule(access.Request{Principal: "", Permission: access.RefPush, At: day}).Allowed {
			t.Fatal("nobody is allowed something")
		}
	})
}

func FuzzMatches(f *testing.F) {
	f.Add("refs/heads/*", "refs/heads/x")
	f.Add("a*b**", "axxb/c")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if strings.Count(pattern, "*") > 6 || len(name) > 200 {
			return
		}
		if access.Matches([]string{pattern}, name) && !strings.Contains(pattern, "*") && pattern != name {
			t.Fatalf("%q fits %q", pattern, name)
		}
		if access.Matches(nil, name) {
			t.Fatal("no pattern fits something")
		}
	})
}

func TestToken(t *testing.T) {
	good := access.Token{Principal: "a", Method: "ssh", Scopes: []access.Permission{access.RepositoryRead}, Repository: "app*", IssuedAt: day, ExpiresAt: day.Add(time.Hour)}
	tok, secret, err := access.NewToken(good)
	if err != nil || tok.Digest != hallmark.DigestOf([]byte(secret)) || !strings.HasPrefix(secret, access.TokenPrefix) || strings.Contains(secret, tok.ID[2:]) {
		t.Fatalf("%+v, %v", tok, err)
	}
	if !tok.Covers(access.RepositoryRead, "app1") || tok.Covers(access.RepositoryRead, "x") || tok.Covers(access.RefPush, "app1") {
		t.Error("a token covers something else than it says")
	}
	for name, edit := range map[string]func(*access.Token){
		"no scope": func(t *access.Token) { t.Scopes = nil }, "no end": func(t *access.Token) { t.ExpiresAt = time.Time{} },
		"too long": func(t *access.Token) { t.ExpiresAt = day.Add(access.MaxTokenLife + time.Second) }, "nobody": func(t *access.Token) { t.Principal = "" },
		"everywhere":                    func(t *access.Token) { t.Repository = "" },
		"a pattern that takes for ever": func(t *access.Token) { t.Repository = strings.Repeat("*a", 30) + "b" },
	} {
		bad := good
		edit(&bad)
		if _, _, err := access.NewToken(bad); err == nil {
			t.Errorf("%s: made", name)
		}
	}
}
