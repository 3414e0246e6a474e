// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/gate"
	"github.com/hallmark-sc/hallmark/internal/gitgate"
	"github.com/hallmark-sc/hallmark/internal/sqlstore"
	"github.com/hallmark-sc/hallmark/intoto"
)

// RunView is how a run stands.
type RunView struct {
	Run        string            `json:"run"`
	Repository string            `json:"repository"`
	URI        string            `json:"uri"`
	Ref        string            `json:"ref,omitempty"`
	Revision   string            `json:"revision"`
	Change     string            `json:"change,omitempty"`
	Cause      string            `json:"cause"` // push, request or change
	Principal  string            `json:"principal"`
	Parameters map[string]string `json:"parameters,omitempty"`
	State      sqlstore.RunState `json:"state"`
	Attempt    int               `json:"attempt"`
	Queued     time.Time         `json:"queued"`
	Started    time.Time         `json:"started,omitzero"`
	Finished   time.Time         `json:"finished,omitzero"`
	Effect     string            `json:"effect,omitempty"` // of the verdict
	Code       string            `json:"code,omitempty"`   // why there is none
	Message    string            `json:"message,omitempty"`
}

func (s *Server) viewOf(r sqlstore.Run) RunView {
	return RunView{
		Run: r.ID, Repository: r.Repository, URI: s.uri(r.Repository), Ref: r.Ref, Revision: r.Revision, Change: r.Change, Cause: r.Cause, Principal: r.Principal, Parameters: r.Parameters,
		State: r.State, Attempt: r.Attempt, Queued: r.Queued, Started: r.Started, Finished: r.Finished, Effect: r.Effect, Code: r.Code, Message: r.Message,
	}
}

// runFor finds a run for somebody who may read its repository; to anybody else it
// is as if there were none.
func (s *Server) runFor(ctx context.Context, who gitgate.Caller, id string) (*rules, sqlstore.Run, error) {
	r, err := s.current()
	if err != nil {
		return nil, sqlstore.Run{}, err
	}
	run, ok, err := s.home.stores.index.RunOf(ctx, id)
	if err == nil && ok {
		ok, err = s.readable(r, who, run.Repository)
	}
	if err == nil && !ok {
		err = hallmark.WithHint(hallmark.Coded(hallmark.KindNotFound, hallmark.CodeRunUnknown, "there is no run %.40q", id), "hallmark runs list")
	}
	return r, run, err
}

// evidenceOf finds a run for somebody who may read its evidence.
func (s *Server) evidenceOf(ctx context.Context, who gitgate.Caller, id string) (sqlstore.Run, error) {
	r, run, err := s.runFor(ctx, who, id)
	if err != nil {
		return run, err
	}
	ruling := (&sourceGate{s}).may(r, who, access.EvidenceRead, run.Repository, "")
	d := hallmark.Decision{Effect: hallmark.Allow}
	if !ruling.Allowed {
		d = gate.Denied(ruling.Reason)
	}
	s.counters.count("evidence", d, nil)
	if !ruling.Allowed {
		return run, hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, ruling.Reason.Code, "%s", ruling.Reason.Message), ruling.Reason.Fix)
	}
	return run, nil
}

func (s *Server) runRoutes(mux *http.ServeMux) {
	with := func(pattern string, fn func(http.ResponseWriter, *http.Request, gitgate.Caller)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if who, ok := s.caller(w, r); ok {
				fn(w, r, who)
			}
		})
	}
	with("POST /api/v1/runs", func(w http.ResponseWriter, r *http.Request, who gitgate.Caller) {
		var q RunRequest
		if err := readJSON(w, r, &q); err != nil {
			s.answer(w, nil, err)
			return
		}
		id, d, err := s.request(r.Context(), who, q)
		s.counters.count("build", d, err)
		s.answer(w, RunAnswer{Run: id, Allowed: d.Allowed(), Reasons: d.Reasons}, err)
	})
	with("POST /api/v1/changes/{id}/run", func(w http.ResponseWriter, r *http.Request, who gitgate.Caller) {
		id, d, err := s.letRun(r.Context(), who, r.PathValue("id"))
		s.counters.count("change", d, err)
		s.answer(w, ChangeAnswer{Change: r.PathValue("id"), Run: id, Allowed: d.Allowed(), Reasons: d.Reasons}, err)
	})
	with("POST /api/v1/runs/{id}/cancel", func(w http.ResponseWriter, r *http.Request, who gitgate.Caller) {
		d, err := s.cancel(r.Context(), who, r.PathValue("id"))
		s.counters.count("build", d, err)
		s.answer(w, RunAnswer{Run: r.PathValue("id"), Allowed: d.Allowed(), Reasons: d.Reasons}, err)
	})
	with("GET /api/v1/runs", func(w http.ResponseWriter, r *http.Request, who gitgate.Caller) {
		out, err := s.listRuns(r.Context(), who, r.URL.Query().Get("repository"), sqlstore.RunState(r.URL.Query().Get("state")))
		s.answer(w, out, err)
	})
	with("GET /api/v1/runs/{id}", func(w http.ResponseWriter, r *http.Request, who gitgate.Caller) {
		_, run, err := s.runFor(r.Context(), who, r.PathValue("id"))
		s.answer(w, s.viewOf(run), err)
	})
	with("GET /api/v1/runs/{id}/events", s.streamEvents)
	with("GET /api/v1/runs/{id}/results", s.giveResults)
	with("GET /api/v1/runs/{id}/logs/{step}", s.giveLog)
}

func (s *Server) listRuns(ctx context.Context, who gitgate.Caller, repository string, state sqlstore.RunState) ([]RunView, error) {
	if state != "" && !slices.Contains(sqlstore.RunStates(), state) {
		return nil, hallmark.Errorf(hallmark.KindUsage, "state %.40q: want one of %v", state, sqlstore.RunStates())
	}
	r, err := s.current()
	if err != nil {
		return nil, err
	}
	runs, err := s.home.stores.index.Runs(ctx, repository, state)
	if err != nil {
		return nil, err
	}
	out, may := []RunView{}, map[string]bool{}
	for _, run := range runs {
		ok, asked := may[run.Repository]
		if !asked {
			if ok, err = s.readable(r, who, run.Repository); err != nil {
				return nil, err
			}
			may[run.Repository] = ok
		}
		if ok {
			out = append(out, s.viewOf(run))
		}
	}
	return out, nil
}

// streamEvents tells what is said of a run, one JSON object a line, until it ends.
func (s *Server) streamEvents(w http.ResponseWriter, r *http.Request, who gitgate.Caller) {
	run, err := s.evidenceOf(r.Context(), who, r.PathValue("id"))
	if err != nil {
		s.answer(w, nil, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	out := http.NewResponseController(w)
	for n := 0; ; {
		wait := s.builds.listen()
		// The state before the messages: at the end all of them are told.
		at, ok, err := s.home.stores.index.RunOf(r.Context(), run.ID)
		if err != nil || !ok {
			return
		}
		var messages [][]byte
		if messages, n, err = s.home.stores.index.RunEvents(r.Context(), run.ID, n); err != nil {
			return
		}
		for _, m := range messages {
			if _, err := w.Write(append(m, '\n')); err != nil {
				return
			}
		}
		if err := out.Flush(); err != nil || at.State.Ended() {
			return
		}
		select {
		case <-wait:
		case <-time.After(runIdle):
		case <-r.Context().Done():
			return
		case <-s.builds.ctx.Done():
			return
		}
	}
}

// ended finds a run that came to a verdict.
func (s *Server) ended(ctx context.Context, who gitgate.Caller, id string) (sqlstore.Run, error) {
	run, err := s.evidenceOf(ctx, who, id)
	if err != nil {
		return run, err
	}
	if run.State != sqlstore.RunDone {
		why := "is " + string(run.State)
		if run.Code != "" || run.Message != "" {
			why += ": " + run.Code + " " + run.Message
		}
		return run, hallmark.WithHint(hallmark.Coded(hallmark.KindNotFound, hallmark.CodeRunOpen, "run %s came to no verdict: it %s", id, why), "hallmark runs show "+id)
	}
	return run, nil
}

// giveResults gives the result directory of a run as a tar.
func (s *Server) giveResults(w http.ResponseWriter, r *http.Request, who gitgate.Caller) {
	run, err := s.ended(r.Context(), who, r.PathValue("id"))
	var dir *os.Root
	if err == nil {
		if dir, err = os.OpenRoot(s.home.results(run.ID)); err != nil {
			err = hallmark.Errorf(hallmark.KindNotFound, "the results of run %s are not kept here any more", run.ID)
		}
	}
	if err != nil {
		s.answer(w, nil, err)
		return
	}
	defer dir.Close()
	w.Header().Set("Content-Type", "application/x-tar")
	w.Header().Set("Cache-Control", "no-store")
	out := tar.NewWriter(w)
	err = fs.WalkDir(dir.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if !info.IsDir() && !info.Mode().IsRegular() {
			return fmt.Errorf("%s is neither file nor directory", name)
		}
		h := &tar.Header{Name: name, Mode: int64(info.Mode().Perm()), Typeflag: tar.TypeDir, Format: tar.FormatPAX}
		if info.IsDir() {
			return out.WriteHeader(h)
		}
		h.Typeflag, h.Size = tar.TypeReg, info.Size()
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		f, err := dir.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(out, f)
		return err
	})
	if err = errors.Join(err, out.Close()); err != nil {
		s.log.Warn("results were not given whole", "run", run.ID, "error", err.Error())
		panic(http.ErrAbortHandler) // a tar that ends well would be taken for whole
	}
}

// giveLog gives the log of a step, masked as the build kept it.
func (s *Server) giveLog(w http.ResponseWriter, r *http.Request, who gitgate.Caller) {
	run, err := s.ended(r.Context(), who, r.PathValue("id"))
	var b []byte
	if err == nil {
		b, err = s.stepLog(r.Context(), run.ID, r.PathValue("step"))
	}
	if err != nil {
		s.answer(w, nil, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if _, err := w.Write(b); err != nil {
		s.log.Debug("an answer was not taken", "error", err.Error())
	}
}

func (s *Server) stepLog(ctx context.Context, id, step string) ([]byte, error) {
	raw, err := readLimited(filepath.Join(s.home.results(id), "evidence.jsonl"), maxEvidence)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindNotFound, "the results of run %s are not kept here any more", id)
	}
	var names []string
	for _, line := range lines(raw) {
		st, err := s.home.verifier.Verify(line)
		if err != nil {
			return nil, fmt.Errorf("verifying evidence: %w", err)
		}
		if st.PredicateType() != intoto.PredicateLink {
			continue
		}
		link, err := intoto.DecodePredicate[intoto.Link](st.Statement())
		if err != nil {
			return nil, err
		}
		if link.Name != intoto.NameProcess {
			continue
		}
		var steps []attest.Step
		if raw, err := json.Marshal(link.Byproducts["steps"]); err != nil || json.Unmarshal(raw, &steps) != nil {
			return nil, hallmark.Errorf(hallmark.KindInvalid, "the steps of run %s can't be read", id)
		}
		for _, st := range steps {
			if st.Name == step {
				return s.home.stores.blobs.Get(ctx, st.Log)
			}
			names = append(names, st.Name)
		}
	}
	return nil, hallmark.Errorf(hallmark.KindNotFound, "run %s has no step %.60q, but %v", id, step, names)
}

// write gives what the builds came to, for Prometheus.
func (b *builds) write(ctx context.Context, w io.Writer) {
	b.mu.Lock()
	ended, seconds := maps.Clone(b.ended), b.seconds
	b.mu.Unlock()
	fmt.Fprint(w, "# HELP hallmark_runs_total Runs that ended, by result.\n# TYPE hallmark_runs_total counter\n")
	for _, result := range slices.Sorted(maps.Keys(ended)) {
		fmt.Fprintf(w, "hallmark_runs_total{result=%s} %d\n", strconv.Quote(result), ended[result])
	}
	fmt.Fprintf(w, "# HELP hallmark_run_seconds_total Time that runs took which ended.\n# TYPE hallmark_run_seconds_total counter\nhallmark_run_seconds_total %g\n", seconds)
	for _, g := range []struct {
		name, help string
		state      sqlstore.RunState
	}{{"hallmark_runs_queued", "Runs that wait.", sqlstore.RunQueued}, {"hallmark_runs_running", "Runs under way.", sqlstore.RunRunning}} {
		if n, err := b.s.home.stores.index.CountRuns(ctx, g.state); err == nil {
			fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s gauge\n%s %d\n", g.name, g.help, g.name, g.name, n)
		}
	}
}
