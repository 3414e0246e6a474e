// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package forge

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// Limits on what a forge may answer.
const (
	maxAnswer  = 8 << 20
	maxPages   = 200
	perPage    = 50
	maxTries   = 4
	longestNap = time.Minute
)

// client speaks with one interface and nobody else.
type client struct {
	base *url.URL
	auth [2]string
	http *http.Client
	wait func(context.Context, time.Duration) error
}

func newClient(base string, auth [2]string, cfg Config) (*client, error) {
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || u.User != nil {
		return nil, hallmark.Errorf(hallmark.KindUsage, "forge: the interface has no URL")
	}
	if err := encrypted(u); err != nil {
		return nil, err
	}
	roots, err := pool(cfg.Authority)
	if err != nil {
		return nil, err
	}
	if strings.ContainsFunc(cfg.Token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return nil, hallmark.Errorf(hallmark.KindUsage, "forge: the token is no single word")
	}
	c := &client{base: u, auth: auth, wait: cfg.Wait, http: &http.Client{
		Timeout:   time.Minute,
		Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, TLSHandshakeTimeout: 20 * time.Second, MaxIdleConnsPerHost: 2},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if r.URL.Scheme != u.Scheme || r.URL.Host != u.Host {
				return fmt.Errorf("it leads to %s://%s", r.URL.Scheme, r.URL.Host)
			}
			if len(via) > 5 {
				return errors.New("it leads in circles")
			}
			return nil
		},
	}}
	if c.wait == nil {
		c.wait = func(ctx context.Context, d time.Duration) error {
			t := time.NewTimer(d)
			defer t.Stop()
			select {
			case <-t.C:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return c, nil
}

// status is an answer that is none.
type status struct {
	code         int
	method, path string
	said         string
}

func (s *status) Error() string {
	return fmt.Sprintf("%s %s: %d %s%s", s.method, s.path, s.code, http.StatusText(s.code), s.said)
}

func statusOf(err error) int {
	var s *status
	if errors.As(err, &s) {
		return s.code
	}
	return 0
}

// do asks once more where the forge limits how often it may be asked. The answer is
// read whole.
func (c *client) do(ctx context.Context, method, path string, body []byte) ([]byte, http.Header, error) {
	for try := 1; ; try++ {
		b, head, err := c.once(ctx, method, path, body)
		nap, limited := limit(statusOf(err), head)
		if !limited {
			return b, head, err
		}
		if try == maxTries || nap > longestNap {
			return nil, nil, hallmark.WithHint(hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeForgeUnknown, "%s answers no more questions for %s", c.base.Host, nap.Round(time.Second)), "ask again after that")
		}
		if err := c.wait(ctx, nap); err != nil {
			return nil, nil, fmt.Errorf("waiting for %s: %w", c.base.Host, err)
		}
	}
}

// limit reads how long a forge wants to be left alone.
func limit(code int, head http.Header) (time.Duration, bool) {
	after, err := strconv.Atoi(head.Get("Retry-After"))
	told := err == nil && after >= 0
	spent := head.Get("X-Ratelimit-Remaining") == "0"
	if code != http.StatusTooManyRequests && (code != http.StatusForbidden || !told && !spent) {
		return 0, false
	}
	if told {
		return time.Duration(after) * time.Second, true
	}
	if reset, err := strconv.ParseInt(head.Get("X-Ratelimit-Reset"), 10, 64); err == nil {
		return max(time.Second, time.Until(time.Unix(reset, 0))), true
	}
	return 5 * time.Second, true
}

func (c *client) once(ctx context.Context, method, path string, body []byte) ([]byte, http.Header, error) {
	r, err := http.NewRequestWithContext(ctx, method, c.base.String()+path, bytes.NewReader(body))
	if err != nil {
		return nil, nil, hallmark.Errorf(hallmark.KindInternal, "asking %s: %w", c.base.Host, err)
	}
	if name := c.auth[0]; !strings.HasSuffix(c.auth[1], " ") && c.auth[1] != "" {
		r.Header.Set(name, c.auth[1])
	}
	r.Header.Set("Accept", "application/json")
	r.Header.Set("User-Agent", "hallmark")
	if len(body) > 0 {
		r.Header.Set("Content-Type", "application/json")
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return nil, nil, hallmark.Errorf(hallmark.KindUnavailable, "asking %s: %w", c.base.Host, err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	if err != nil {
		return nil, nil, hallmark.Errorf(hallmark.KindUnavailable, "reading the answer to %s %s: %w", method, path, err)
	}
	if len(b) > maxAnswer {
		return nil, nil, hallmark.Errorf(hallmark.KindUnavailable, "the answer to %s %s is larger than %d bytes", method, path, maxAnswer)
	}
	if answer.StatusCode/100 != 2 {
		var text struct{ Message any }
		said := ""
		if json.Unmarshal(b, &text) == nil && text.Message != nil {
			said = fmt.Sprintf(" (%.200v)", text.Message)
		}
		return nil, answer.Header, &status{answer.StatusCode, method, path, said}
	}
	return b, answer.Header, nil
}

// get reads one object.
func get[T any](ctx context.Context, c *client, path string) (T, error) {
	var v T
	b, _, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return v, hallmark.Errorf(hallmark.KindUnavailable, "reading the answer to GET %s: %w", path, err)
	}
	return v, nil
}

// all reads a list to its end. The pages are followed where the forge says what
// comes next; a page that is full is followed too, and where the forge told the
// total, so many must have come.
func all[T any](ctx context.Context, c *client, path, size string) ([]T, error) {
	join := "?"
	if strings.Contains(path, "?") {
		join = "&"
	}
	var out []T
	first := path + join + size + "=" + strconv.Itoa(perPage)
	next := first
	for page := 1; ; page++ {
		if page > maxPages {
			return nil, hallmark.Errorf(hallmark.KindUnavailable, "GET %s: more than %d pages", path, maxPages)
		}
		b, head, err := c.do(ctx, http.MethodGet, next, nil)
		if err != nil {
			return nil, err
		}
		var list []T
		if err := json.Unmarshal(b, &list); err != nil || list == nil {
			return nil, hallmark.Errorf(hallmark.KindUnavailable, "the answer to GET %s is no list: %v", next, err)
		}
		out = append(out, list...)
		link, err := c.next(head)
		if err != nil {
			return nil, err
		}
		total, terr := strconv.Atoi(firstOf(head.Get("X-Total-Count"), head.Get("X-Total")))
		switch {
		case link != "":
			next = link
		case terr == nil && len(out) < total && len(list) > 0:
			next = first + "&page=" + strconv.Itoa(page+1)
		case terr == nil && len(out) != total:
			return nil, hallmark.Errorf(hallmark.KindUnavailable, "GET %s: %d of %d entries came", path, len(out), total)
		case terr != nil && len(list) >= perPage && head.Get("Link") == "":
			next = first + "&page=" + strconv.Itoa(page+1)
		default:
			return out, nil
		}
	}
}

// next is what a Link header calls the next page, as a path below the base.
func (c *client) next(head http.Header) (string, error) {
	for l := range strings.SplitSeq(strings.Join(head.Values("Link"), ","), ",") {
		target, params, _ := strings.Cut(l, ";")
		if !strings.Contains(params, `rel="next"`) {
			continue
		}
		u, err := c.base.Parse(strings.Trim(strings.TrimSpace(target), "<>"))
		if err != nil || u.Scheme != c.base.Scheme || u.Host != c.base.Host || !strings.HasPrefix(u.EscapedPath(), c.base.EscapedPath()) {
			return "", hallmark.Errorf(hallmark.KindUnavailable, "the next page of %s is somewhere else", c.base.Host)
		}
		return strings.TrimPrefix(u.EscapedPath(), c.base.EscapedPath()) + "?" + u.RawQuery, nil
	}
	return "", nil
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// send carries out a change.
func (c *client) send(ctx context.Context, method, path string, body []byte) error {
	_, _, err := c.do(ctx, method, path, body)
	if code := statusOf(err); code == http.StatusForbidden || code == http.StatusUnauthorized || code == http.StatusNotFound {
		return hallmark.WithHint(hallmark.Errorf(hallmark.KindDenied, "the forge does not let this token: %w", err), "give a token of an administrator of the repository")
	}
	return err
}
