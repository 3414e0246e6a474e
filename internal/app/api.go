// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/gitgate"
	"github.com/hallmark-sc/hallmark/intoto"
)

// ChangeProposal is what a client says of a change that it proposes.
type ChangeProposal struct {
	Repository string `json:"repository"`
	From       string `json:"from"` // branch
	To         string `json:"to"`   // branch
	Title      string `json:"title"`
}

// ChangeAnswer is the gate's answer to what somebody wants of a change.
type ChangeAnswer struct {
	Change  string            `json:"change"`
	Run     string            `json:"run,omitempty"` // that was queued
	Allowed bool              `json:"allowed"`
	Reasons []hallmark.Reason `json:"reasons"`
}

// ChangeView is how a change stands.
type ChangeView struct {
	Change     string             `json:"change"`
	Repository string             `json:"repository"`
	Target     string             `json:"target"`
	Revision   string             `json:"revision"`
	Base       string             `json:"base"`
	Title      string             `json:"title"`
	Held       bool               `json:"held"` // a push from outside, kept apart
	Commits    []intoto.RefCommit `json:"commits"`
	Paths      []string           `json:"paths"`
	Parties    []string           `json:"parties"`
	Approvers  []string           `json:"approvers"`
	Needed     int                `json:"needed"`
	Missing    []hallmark.Reason  `json:"missing"` // why it can't land yet
	Diff       string             `json:"diff"`    // what accepting it changes
}

// maxDiff bounds how much of a difference is shown.
const maxDiff = 1 << 20

// caller authenticates an API request and answers it when that fails.
func (s *Server) caller(w http.ResponseWriter, r *http.Request) (gitgate.Caller, bool) {
	who, err := (&sourceGate{s}).Authenticate(r.Context(), r)
	if err != nil {
		s.answer(w, nil, err)
		return who, false
	}
	return who, true
}

func (s *Server) changeRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST /api/v1/changes", func(w http.ResponseWriter, r *http.Request) {
		who, ok := s.caller(w, r)
		if !ok {
			return
		}
		var p ChangeProposal
		if err := readJSON(w, r, &p); err != nil {
			s.answer(w, nil, err)
			return
		}
		id, d, err := s.propose(r.Context(), who, p.Repository, p.From, p.To, p.Title)
		s.counters.count("change", d, err)
		s.answer(w, ChangeAnswer{Change: id, Allowed: d.Allowed(), Reasons: d.Reasons}, err)
	})
	act := func(pattern string, fn func(context.Context, gitgate.Caller, string) (hallmark.Decision, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			who, ok := s.caller(w, r)
			if !ok {
				return
			}
			id := r.PathValue("id")
			d, err := fn(r.Context(), who, id)
			s.counters.count("change", d, err)
			if err == nil && !d.Allowed() {
				s.alerts.denied("change", who.Name, "", id, d.Reasons)
			}
			s.answer(w, ChangeAnswer{Change: id, Allowed: d.Allowed(), Reasons: d.Reasons}, err)
		})
	}
	act("POST /api/v1/changes/{id}/approve", s.approve)
	act("POST /api/v1/changes/{id}/merge", s.merge)
	mux.HandleFunc("GET /api/v1/changes/{id}", func(w http.ResponseWriter, r *http.Request) {
		who, ok := s.caller(w, r)
		if !ok {
			return
		}
		v, err := s.showChange(r.Context(), who, r.PathValue("id"))
		s.answer(w, v, err)
	})
}

// showChange shows a reviewer the result of accepting a change.
func (s *Server) showChange(ctx context.Context, who gitgate.Caller, id string) (ChangeView, error) {
	r, err := s.current()
	if err != nil {
		return ChangeView{}, err
	}
	c, err := s.change(ctx, id)
	if err != nil {
		return ChangeView{}, err
	}
	if ruling := (&sourceGate{s}).may(r, who, access.RepositoryRead, c.name, ""); !ruling.Allowed {
		// As for a change that does not exist: who may not read is told nothing.
		return ChangeView{}, hallmark.Coded(hallmark.KindNotFound, hallmark.CodeChangeUnknown, "there is no change %.40q", id)
	}
	in, done, err := s.objects(ctx, c)
	if err != nil {
		return ChangeView{}, err
	}
	defer done()
	st, err := s.judge(ctx, r, c, in)
	if err != nil {
		return ChangeView{}, err
	}
	if err := s.requiredChecks(ctx, c, &st); err != nil {
		return ChangeView{}, err
	}
	v := ChangeView{
		Change: c.ID, Repository: c.name, Target: c.Target, Revision: c.Revision, Base: st.Base, Title: c.proposals[0].Title, Held: c.pack != "",
		Paths: st.Facts.Paths, Parties: st.Parties, Approvers: st.Approvers, Needed: st.Needed, Missing: st.Reasons, Commits: []intoto.RefCommit{},
	}
	for _, pc := range st.Facts.Commits {
		v.Commits = append(v.Commits, intoto.RefCommit(pc))
	}
	if v.Diff, err = in.Diff(ctx, st.Base, c.Revision, maxDiff); err != nil {
		return v, err
	}
	return v, nil
}

// health says whether the server can decide at all, and nothing else: nobody has
// to be known for it.
func (s *Server) health(w http.ResponseWriter, r *http.Request) {
	if _, err := s.current(); err != nil {
		s.log.Error("the policy in force can't be read", "error", err.Error())
		s.answer(w, nil, hallmark.Errorf(hallmark.KindUnavailable, "the policy in force can't be read"))
		return
	}
	s.answer(w, map[string]any{"status": "ok"}, nil)
}

// serveMetrics answers on an address of this machine alone, until stop is called.
func (s *Server) serveMetrics(ctx context.Context) (stop func(), err error) {
	if s.file.Metrics == "none" {
		return func() {}, nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.file.Metrics)
	if err != nil {
		return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindUnavailable, "listening on %s: %w", s.file.Metrics, err), "name another address: metrics in the configuration")
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.health)
	mux.HandleFunc("GET /metrics", s.metrics)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}
	go srv.Serve(l) //nolint:errcheck // it ends with Close
	s.log.Info("metrics", "url", "http://"+l.Addr().String()+"/metrics")
	return func() { srv.Close() }, nil
}

// metrics are in the text format of Prometheus.
func (s *Server) metrics(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	rules := s.rules()
	fmt.Fprintf(w, "# HELP hallmark_policy_version Version of the policy in force.\n# TYPE hallmark_policy_version gauge\nhallmark_policy_version %d\n", rules.version)
	s.counters.write(w)
	pushing, waiting := s.git.Load()
	fmt.Fprintf(w, "# HELP hallmark_pushes Pushes under way.\n# TYPE hallmark_pushes gauge\nhallmark_pushes %d\n# HELP hallmark_pushes_waiting Pushes that wait for their turn.\n# TYPE hallmark_pushes_waiting gauge\nhallmark_pushes_waiting %d\n", pushing, waiting)
	s.builds.write(r.Context(), w)
	s.alerts.write(w)
}
