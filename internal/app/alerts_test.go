// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
)

func TestAlerts(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	secret := []hallmark.Reason{{Code: hallmark.CodeSecretFound, Message: "a token in f, line 1", Fix: "revoke it"}, {Code: hallmark.CodeSecretFound, Message: "and more"}, {Code: hallmark.CodeSourceUnsigned}}
	for name, tc := range map[string]struct {
		answers []int // in order; the last for all that follow
		codes   []string
		posts   int32
		metric  string
	}{
		"told once a code":             {[]int{204}, nil, 1, `{result="sent"} 1`},
		"one that fails is told again": {[]int{500, 503, 200}, nil, 3, `{result="sent"} 1`},
		"one that is lost is counted":  {[]int{500}, nil, alertTries, `{result="lost"} 1`},
		"no other place is gone to":    {[]int{302}, nil, alertTries, `{result="lost"} 1`},
		"other codes":                  {[]int{200}, []string{"SOURCE_COMMIT_UNSIGNED"}, 1, `{result="sent"} 1`},
		"nobody asked":                 {[]int{200}, []string{"TAG_IMMUTABLE"}, 0, `{result="sent"} 0`},
	} {
		t.Run(name, func(t *testing.T) {
			var posts, elsewhere atomic.Int32
			var got Alert
			mux := http.NewServeMux()
			mux.HandleFunc("/elsewhere", func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) })
			mux.HandleFunc("POST /hook", func(w http.ResponseWriter, r *http.Request) {
				n := int(posts.Add(1))
				b, err := io.ReadAll(r.Body)
				m := hmac.New(sha256.New, []byte("0123456789abcdef"))
				m.Write(b)
				if err != nil || r.Header.Get("Hallmark-Signature") != "sha256="+hex.EncodeToString(m.Sum(nil)) || json.Unmarshal(b, &got) != nil {
					t.Errorf("%s: %s, %v", b, r.Header.Get("Hallmark-Signature"), err)
				}
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(tc.answers[min(n, len(tc.answers))-1])
			})
			srv := httptest.NewServer(mux)
			defer srv.Close()
			a, err := newAlerter([]ServerAlert{{URL: srv.URL + "/hook", Secret: key, Codes: tc.codes}}, "example.org/log", slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			a.pause = func(context.Context, time.Duration) {}
			a.denied("push", "alice", "app", "refs/heads/main", secret)
			a.close()
			a.denied("push", "alice", "app", "refs/heads/main", nil)
			var text bytes.Buffer
			a.write(&text)
			if posts.Load() != tc.posts || elsewhere.Load() != 0 || !strings.Contains(text.String(), "hallmark_alerts_total"+tc.metric) {
				t.Errorf("%d posts, %d elsewhere:\n%s", posts.Load(), elsewhere.Load(), text.String())
			}
			if tc.codes == nil && (got.Code != hallmark.CodeSecretFound || got.Message != "a token in f, line 1" || got.Document != "docs/remediation.md#secret_found" || got.Origin != "example.org/log") {
				t.Errorf("%+v", got)
			}
		})
	}
}

// What comes when the server ends, or more than can wait, is counted as lost.
func TestAlertsLost(t *testing.T) {
	a, err := newAlerter([]ServerAlert{{URL: "http://127.0.0.1:1/"}}, "o", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	a.pause = func(context.Context, time.Duration) {}
	a.close()
	a.tell(Alert{Code: hallmark.CodeSecretFound})
	if a.sent["lost"] != 1 {
		t.Errorf("%v", a.sent)
	}
}

func TestCheckAlert(t *testing.T) {
	for url, want := range map[string]string{
		"https://example.org/hook": "", "http://127.0.0.1:9/": "", "http://[::1]:9/": "", "http://localhost:9/": "",
		"http://example.org/": "url", "https://a:b@example.org/": "url", "ftp://example.org/": "url", "": "url", "https://": "url", "http://127.0.0.1.example.org/": "url",
	} {
		if field, _ := checkAlert(ServerAlert{URL: url}); field != want {
			t.Errorf("%s: %q", url, field)
		}
	}
	if field, why := checkAlert(ServerAlert{URL: "https://x/", Codes: []string{"SECRET_FUOND"}}); field != "codes" || !strings.Contains(why, "SECRET_FOUND") {
		t.Error(field, why)
	}
	doc, err := os.ReadFile("../../docs/remediation.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range defaultAlerts() {
		if !strings.Contains(string(doc), "\n## "+string(c)+"\n") {
			t.Errorf("docs/remediation.md says nothing of %s", c)
		}
	}
}
