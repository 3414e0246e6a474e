// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package forge

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/source"
)

const testToken = "t0ken-that-nobody-may-see"

func testClient(t *testing.T, h http.HandlerFunc) (*client, *[]time.Duration) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	naps := &[]time.Duration{}
	c, err := newClient(s.URL+"/api", [2]string{"Authorization", "token " + testToken}, Config{Token: testToken, Wait: func(_ context.Context, d time.Duration) error {
		*naps = append(*naps, d)
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	return c, naps
}

// TestPages reads lists of every length to their end, however the forge says what
// comes next; a page that is missing is an error.
func TestPages(t *testing.T) {
	for name, tell := range map[string]func(w http.ResponseWriter, r *http.Request, page, total int){
		"link": func(w http.ResponseWriter, r *http.Request, page, total int) {
			if page*perPage < total {
				w.Header().Set("Link", fmt.Sprintf(`<http://%s%s?limit=%d&page=%d>; rel="next", <http://%s/x>; rel="last"`, r.Host, r.URL.Path, perPage, page+1, r.Host))
			}
		},
		"total": func(w http.ResponseWriter, _ *http.Request, _, total int) {
			w.Header().Set("X-Total-Count", fmt.Sprint(total))
		},
		"nothing": func(http.ResponseWriter, *http.Request, int, int) {},
	} {
		for _, total := range []int{0, 1, perPage - 1, perPage, perPage + 1, 2 * perPage, 3*perPage + 7} {
			c, _ := testClient(t, func(w http.ResponseWriter, r *http.Request) {
				page := 1
				fmt.Sscan(r.URL.Query().Get("page"), &page)
				tell(w, r, page, total)
				list := []int{}
				for i := (page - 1) * perPage; i < min(total, page*perPage); i++ {
					list = append(list, i)
				}
				json.NewEncoder(w).Encode(list)
			})
			got, err := all[int](t.Context(), c, "/list", "limit")
			if err != nil || len(got) != total {
				t.Errorf("%s, %d entries: %d came, %v", name, total, len(got), err)
			}
		}
	}
	for name, h := range map[string]http.HandlerFunc{
		"fewer than were told": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Total-Count", "5")
			fmt.Fprint(w, "[1,2]")
			w.Header().Set("X-Total-Count", "5")
		},
		"the next page is somewhere else": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", `<https://elsewhere.example/api/list?page=2>; rel="next"`)
			fmt.Fprint(w, "[1]")
		},
		"no end": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", `<http://`+r.Host+`/api/list?page=2>; rel="next"`)
			fmt.Fprint(w, "[1]")
		},
		"no list": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"message":"hello"}`) },
		"null":    func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `null`) },
		"a second page that fails": func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("page") != "" {
				http.Error(w, "no", http.StatusInternalServerError)
				return
			}
			w.Header().Set("X-Total-Count", "3")
			fmt.Fprint(w, "[1]")
		},
	} {
		n := 0
		c, _ := testClient(t, func(w http.ResponseWriter, r *http.Request) {
			if n++; name == "fewer than were told" && n > 1 {
				w.Header().Set("X-Total-Count", "5")
				fmt.Fprint(w, "[]")
				return
			}
			h(w, r)
		})
		if got, err := all[int](t.Context(), c, "/list", "limit"); err == nil {
			t.Errorf("%s: read as %v", name, got)
		} else if strings.Contains(err.Error(), testToken) {
			t.Errorf("%s: the token is in %v", name, err)
		}
	}
}

// TestNowhereElse: no other host is given the token, and none is asked at all.
func TestNowhereElse(t *testing.T) {
	asked := false
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	defer other.Close()
	c, _ := testClient(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL+"/x", http.StatusFound) })
	_, err := get[map[string]any](t.Context(), c, "/x")
	if err == nil || asked || strings.Contains(err.Error(), testToken) {
		t.Errorf("a redirect to another host: %v, asked %v", err, asked)
	}
	for _, bad := range []string{"http://git.example.org/o/n", "ftp://h/o/n", "https://u:p@h/o/n", "https://h/o", "https://h/o/n?x=1", "https://h/o/../n", "h/o/n", "https://unknown.example/o/n"} {
		if _, err := New(Config{URL: bad, Token: testToken}); err == nil {
			t.Errorf("%s was taken", bad)
		} else if strings.Contains(err.Error(), "u:p") || hallmark.KindOf(err) != hallmark.KindUsage {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestLimits waits where a forge says for how long, and gives up in time.
func TestLimits(t *testing.T) {
	n := 0
	c, naps := testClient(t, func(w http.ResponseWriter, _ *http.Request) {
		if n++; n < 3 {
			w.Header().Set("Retry-After", "7")
			http.Error(w, "slow down", http.StatusTooManyRequests)
			return
		}
		fmt.Fprint(w, `{}`)
	})
	if _, err := get[map[string]any](t.Context(), c, "/x"); err != nil || len(*naps) != 2 || (*naps)[0] != 7*time.Second {
		t.Errorf("after two limits: %v, waited %v", err, *naps)
	}
	for name, h := range map[string]http.HandlerFunc{
		"for ever": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", http.StatusTooManyRequests) },
		"too long": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			http.Error(w, "", http.StatusTooManyRequests)
		},
		"spent": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-RateLimit-Remaining", "0")
			w.Header().Set("X-RateLimit-Reset", fmt.Sprint(time.Now().Add(time.Hour).Unix()))
			http.Error(w, "", http.StatusForbidden)
		},
		"too large": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"x":"`+strings.Repeat("a", maxAnswer)+`"}`)
		},
		"no JSON": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") },
	} {
		c, _ := testClient(t, h)
		_, err := get[map[string]any](t.Context(), c, "/x")
		if hallmark.KindOf(err) != hallmark.KindUnavailable {
			t.Errorf("%s: %v", name, err)
		}
		// A limit is no answer: it must not be taken for "the token may not see it".
		if k, err := seen(0, err); err == nil {
			t.Errorf("%s: taken for %+v", name, k)
		}
	}
}

// FuzzAnswers: whatever a forge says, reading it ends, and what it did not say passes
// nothing.
func FuzzAnswers(f *testing.F) {
	for _, s := range []string{`{}`, `[]`, `null`, `[null]`, `{"default_branch":"main"}`, `{"default_branch":"main","permissions":{"admin":true},"protected":true}`, `[{"type":"pull_request"}]`, `{"default_branch":"main","owner":{"type":"Organization"},"namespace":{"kind":"group"}}`, `"`} {
		f.Add(s, `[{}]`)
	}
	f.Fuzz(func(t *testing.T, object, list string) {
		for _, kind := range []string{Gitea, GitHub, GitLab} {
			c, _ := testClient(t, func(w http.ResponseWriter, r *http.Request) {
				text := object
				if strings.ContainsAny(r.URL.RawQuery, "=") {
					text = list
				}
				fmt.Fprint(w, text)
			})
			repo := repository{owner: "o", name: "n", path: "o/n", page: "https://h/o/n"}
			var forge source.Forge
			switch kind {
			case Gitea:
				forge = &gitea{c: c, repo: repo}
			case GitHub:
				forge = &github{c: c, repo: repo}
			case GitLab:
				forge = &gitlab{c: c, repo: repo}
			}
			p, err := forge.Read(t.Context())
			if err != nil {
				continue
			}
			if _, err := forge.Repairs(source.Wanted{Approvals: 1}); err != nil {
				t.Errorf("%s: repairs: %v", kind, err)
			}
			for _, a := range p.Judge(source.Wanted{Approvals: 1}) {
				if _, err := a.Outcome.MarshalText(); err != nil {
					t.Errorf("%s: %+v", kind, a)
				}
			}
		}
	})
}
