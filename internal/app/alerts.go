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
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// ServerAlert is where a server tells of what somebody should look at now.
type ServerAlert struct {
	URL    string   `yaml:"url"`    // https, or http to this machine
	Secret string   `yaml:"secret"` // file with the key of the code in Hallmark-Signature
	Codes  []string `yaml:"codes"`  // reason codes; empty: those of defaultAlerts
}

// defaultAlerts are what nobody should have to look for in a log.
func defaultAlerts() []hallmark.Code {
	return []hallmark.Code{hallmark.CodeSecretFound, hallmark.CodeBuildEgress, hallmark.CodeRefOutsideLog, hallmark.CodeLogIndexDiffers, hallmark.CodeTagImmutable}
}

// alertable are the codes that a receiver may ask for.
func alertable() []hallmark.Code {
	return append(defaultAlerts(),
		hallmark.CodeAccessCredential, hallmark.CodeAccessDenied, hallmark.CodeAccessScope, hallmark.CodeAccessPrincipal,
		hallmark.CodeSourceUnsigned, hallmark.CodeSourceSignerNotAllowed, hallmark.CodeRefNotDescendant, hallmark.CodeRefDelete, hallmark.CodeRefNeedsChange, hallmark.CodeChangeApprover)
}

// Alert is the body of the request, JSON. It never holds a secret: messages of
// secrets name places.
type Alert struct {
	Code        hallmark.Code `json:"code"`
	On          time.Time     `json:"on"`
	Gate        string        `json:"gate"`
	Principal   string        `json:"principal"`
	Repository  string        `json:"repository"`
	Ref         string        `json:"ref"`
	Message     string        `json:"message"`
	Remediation string        `json:"remediation"` // what to do
	Document    string        `json:"document"`    // where it is written down
	Origin      string        `json:"origin"`      // of the log that holds the evidence
}

// remediation is where the documentation says what to do about a code.
const remediation = "docs/remediation.md"

// alerter sends alerts. A receiver that does not answer costs no decision: what
// happened is in the log, and that an alert was lost is counted and told.
type alerter struct {
	targets []alertTarget
	origin  string
	log     *slog.Logger
	client  *http.Client
	pause   func(ctx context.Context, d time.Duration)

	queue chan queued
	stop  context.CancelFunc
	done  sync.WaitGroup

	mu   sync.Mutex
	sent map[string]int // "sent", "lost"
}

type alertTarget struct {
	url   string
	key   []byte
	codes []hallmark.Code
}

type queued struct {
	to   alertTarget
	body []byte
	code hallmark.Code
}

// Limits on alerts.
const (
	maxQueuedAlerts = 1000
	alertTries      = 4
	alertTime       = 10 * time.Second
)

func newAlerter(cfg []ServerAlert, origin string, log *slog.Logger) (*alerter, error) {
	a := &alerter{origin: origin, log: log, sent: map[string]int{}, queue: make(chan queued, maxQueuedAlerts), pause: func(ctx context.Context, d time.Duration) {
		select {
		case <-ctx.Done():
		case <-time.After(d):
		}
	}}
	a.client = &http.Client{Timeout: alertTime, Transport: &http.Transport{Proxy: nil, IdleConnTimeout: time.Minute}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for i, c := range cfg {
		t := alertTarget{url: c.URL, codes: defaultAlerts()}
		if len(c.Codes) > 0 {
			t.codes = nil
			for _, code := range c.Codes {
				t.codes = append(t.codes, hallmark.Code(code))
			}
		}
		if c.Secret != "" {
			b, err := readLimited(c.Secret, 1<<12)
			if err != nil {
				return nil, hallmark.Errorf(hallmark.KindInvalid, "reading alerts.%d.secret: %w", i, err)
			}
			if t.key = bytes.TrimSpace(b); len(t.key) < 16 {
				return nil, hallmark.Errorf(hallmark.KindInvalid, "alerts.%d.secret: %s holds less than 16 bytes", i, c.Secret)
			}
		}
		a.targets = append(a.targets, t)
	}
	ctx, stop := context.WithCancel(context.Background())
	a.stop = stop
	queue := a.queue
	a.done.Go(func() {
		for q := range queue {
			a.deliver(ctx, q)
		}
	})
	return a, nil
}

// checkAlert says what is wrong with a receiver.
func checkAlert(c ServerAlert) (field, why string) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && !(u.Scheme == "http" && loopback(u.Hostname())) {
		return "url", fmt.Sprintf("%.200q: want https://HOST/…, or http:// to this machine", c.URL)
	}
	for _, code := range c.Codes {
		if !slices.Contains(alertable(), hallmark.Code(code)) {
			return "codes", fmt.Sprintf("%.60q: want some of %v", code, alertable())
		}
	}
	return "", ""
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// denied tells of a decision against somebody, once for each code.
func (a *alerter) denied(gate, principal, repository, ref string, reasons []hallmark.Reason) {
	told := map[hallmark.Code]bool{}
	for _, r := range reasons {
		if !told[r.Code] {
			told[r.Code] = true
			a.tell(Alert{Code: r.Code, On: now().UTC(), Gate: gate, Principal: principal, Repository: repository, Ref: ref, Message: r.Message, Remediation: r.Fix, Document: remediation + "#" + strings.ToLower(string(r.Code))})
		}
	}
}

// tell queues an alert for whoever wants to hear of its code, and never waits.
func (a *alerter) tell(alert Alert) {
	alert.Origin = a.origin
	if slices.Contains(defaultAlerts(), alert.Code) {
		a.log.Warn("alert", "code", alert.Code, "gate", alert.Gate, "principal", alert.Principal, "repository", alert.Repository, "ref", alert.Ref)
	}
	body, err := json.Marshal(alert)
	if err != nil {
		a.log.Error("an alert could not be written", "code", alert.Code, "error", err.Error())
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range a.targets {
		if !slices.Contains(t.codes, alert.Code) {
			continue
		}
		select {
		case a.queue <- queued{t, body, alert.Code}:
			continue
		default:
		}
		a.sent["lost"]++
		a.log.Error("an alert is lost: too many wait, or the server ends", "code", alert.Code)
	}
}

func (a *alerter) count(what string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sent[what]++
}

func (a *alerter) deliver(ctx context.Context, q queued) {
	var err error
	for try := range alertTries {
		if try > 0 {
			a.pause(ctx, time.Second<<(2*try)) // 4, 16, 64 s
		}
		if err = a.post(ctx, q); err == nil {
			a.count("sent")
			return
		}
		if ctx.Err() != nil {
			break
		}
	}
	a.count("lost")
	a.log.Error("an alert is lost", "code", q.code, "error", err.Error())
}

func (a *alerter) post(ctx context.Context, q queued) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, q.to.url, bytes.NewReader(q.body))
	if err != nil {
		return fmt.Errorf("making an alert: %w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "hallmark")
	if q.to.key != nil {
		m := hmac.New(sha256.New, q.to.key)
		m.Write(q.body)
		r.Header.Set("Hallmark-Signature", "sha256="+hex.EncodeToString(m.Sum(nil)))
	}
	res, err := a.client.Do(r)
	if err != nil {
		return fmt.Errorf("sending an alert: %w", err)
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(res.Body, 1<<16)); err != nil {
		return fmt.Errorf("sending an alert: %w", err)
	}
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("sending an alert: it was answered %s", res.Status)
	}
	return nil
}

func (a *alerter) write(w io.Writer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	fmt.Fprintf(w, "# HELP hallmark_alerts_total Alerts to receivers, sent and lost.\n# TYPE hallmark_alerts_total counter\nhallmark_alerts_total{result=\"sent\"} %d\nhallmark_alerts_total{result=\"lost\"} %d\n", a.sent["sent"], a.sent["lost"])
}

// close gives what waits a moment, and ends.
func (a *alerter) close() {
	a.mu.Lock()
	waiting := a.queue
	a.queue = nil // takes nothing any more
	close(waiting)
	a.mu.Unlock()
	t := time.AfterFunc(alertTime, a.stop)
	a.done.Wait()
	t.Stop()
	a.stop()
}
