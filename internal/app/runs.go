// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/ledger"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/internal/sqlstore"
	"github.com/hallmark-sc/hallmark/intoto"
)

// Why a run was queued.
const (
	causePush    = "push"    // a transition opened the obligation
	causeRequest = "request" // somebody asked
	causeChange  = "change"  // a maintainer let a change run
)

// Leases are short and prolonged, so that what a dead worker held is soon somebody
// else's.
const (
	runLease   = 45 * time.Second
	runRenewal = 10 * time.Second
	runTries   = 3 // workers that may die with a run before it is given up
	runIdle    = 5 * time.Second
)

// buildsAs is the platform of this server, for somebody.
func (s *Server) buildsAs(who intoto.Requester) buildPlatform {
	p := buildPlatform{builder: s.builderID(), hosted: true, requester: who, sign: s.signer.sign}
	switch p.builder {
	case intoto.BuilderServer:
		p.identity, p.san, p.separate = sign.Server, "/builder/server", true
	case intoto.BuilderLocal:
		p.identity, p.san = sign.Builder, "/builder/local"
	}
	return p
}

// builds are the workers of a server.
type builds struct {
	s      *Server
	worker string // name of the server's run directory, locked while it lives
	wake   chan struct{}
	ctx    context.Context
	stop   context.CancelFunc
	done   sync.WaitGroup

	mu      sync.Mutex
	said    chan struct{} // closed when an event was kept, and replaced
	missed  bool          // an obligation found its principal's queue full
	seconds float64       // of runs that ended
	ended   map[string]int
}

func newBuilds(ctx context.Context, s *Server) *builds {
	b := &builds{s: s, worker: filepath.Base(s.work), wake: make(chan struct{}, 1), said: make(chan struct{}), ended: map[string]int{}}
	b.ctx, b.stop = context.WithCancel(ctx)
	return b
}

// start gives back what dead workers held, queues what has to be built and was not,
// and begins to work.
func (b *builds) start() error {
	if !b.s.file.Builds.Enabled {
		return nil
	}
	if err := b.reclaim(); err != nil {
		return err
	}
	if err := b.owed(); err != nil {
		return err
	}
	for range b.s.file.Builds.Workers {
		b.done.Go(b.work)
	}
	return nil
}

// close ends the workers; what they had is given back.
func (b *builds) close() {
	b.stop()
	b.done.Wait()
}

func (b *builds) nudge() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// reclaim queues again what nobody works at any more. A worker that died is told by
// its directory, which the sweep at the start of a server removed.
func (b *builds) reclaim() error {
	again, lost, err := b.s.home.stores.index.ReclaimRuns(b.ctx, now(), func(worker string) bool {
		_, err := os.Stat(filepath.Join(b.s.home.Runs(), filepath.Base(worker)))
		return worker == "" || errors.Is(err, os.ErrNotExist)
	}, runTries)
	for _, r := range again {
		b.s.log.Warn("a run is queued again: who had it is gone", "run", r.ID, "repository", r.Repository, "revision", r.Revision, "attempt", r.Attempt)
		b.say(r.ID, map[string]any{"type": "run", "run": r.ID, "state": sqlstore.RunQueued, "attempt": r.Attempt})
	}
	for _, r := range lost {
		b.s.log.Error("a run is lost", "run", r.ID, "repository", r.Repository, "revision", r.Revision, "attempts", r.Attempt)
		b.count("lost", 0)
		b.say(r.ID, map[string]any{"type": "run", "run": r.ID, "state": sqlstore.RunLost, "code": hallmark.CodeRunLost})
	}
	return err
}

// work is one worker.
func (b *builds) work() {
	for b.ctx.Err() == nil {
		r, ok, err := b.s.home.stores.index.LeaseRun(b.ctx, b.worker, now().Add(runLease))
		if err != nil && b.ctx.Err() == nil {
			b.s.log.Error("no run could be leased", "error", err.Error())
		}
		if ok {
			b.run(r)
			continue
		}
		select {
		case <-b.ctx.Done():
		case <-b.wake:
		case <-time.After(runIdle):
			if err := b.reclaim(); err != nil && b.ctx.Err() == nil {
				b.s.log.Error("runs of dead workers could not be reclaimed", "error", err.Error())
			}
			b.mu.Lock()
			missed := b.missed
			b.missed = false
			b.mu.Unlock()
			if missed {
				if err := b.owed(); err != nil && b.ctx.Err() == nil {
					b.s.log.Error("what has to be built could not be read", "error", err.Error())
				}
			}
		}
	}
}

// run takes one leased run to its end.
func (b *builds) run(r sqlstore.Run) {
	index, began := b.s.home.stores.index, now()
	ctx, cancel := context.WithCancelCause(b.ctx)
	defer cancel(nil)
	// What has to be written when the server ends is written all the same.
	last := context.WithoutCancel(b.ctx)
	log := b.s.log.With("run", r.ID, "repository", r.Repository, "ref", r.Ref, "revision", r.Revision, "principal", r.Principal, "attempt", r.Attempt)
	held, err := index.StartRun(last, r.ID, r.Fence, began)
	if err != nil || !held {
		log.Warn("a lease was lost before the run began")
		return
	}
	log.Info("run begins")
	b.say(r.ID, map[string]any{"type": "run", "run": r.ID, "state": sqlstore.RunRunning, "attempt": r.Attempt})
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		b.renew(ctx, cancel, r)
	}()
	end, err := b.build(ctx, r)
	why := context.Cause(ctx)
	cancel(nil)
	<-renewed
	switch {
	case errors.Is(why, errLeaseLost):
		log.Warn("the run was given to somebody else")
		return
	case b.ctx.Err() != nil && err != nil: // at the end of the server
		if _, err := index.ReturnRun(last, r.ID, r.Fence); err != nil {
			log.Error("a lease could not be given back", "error", err.Error())
		}
		log.Info("run is given back")
		return
	case errors.Is(why, errCancelled):
		end = sqlstore.RunEnd{State: sqlstore.RunFailed, Code: string(hallmark.CodeRunCancelled), Message: why.Error()}
	case err != nil:
		end = sqlstore.RunEnd{State: sqlstore.RunFailed, Code: string(hallmark.CodeOf(err)), Message: err.Error()}
		if hint := hallmark.HintOf(err); hint != "" {
			end.Message += " (" + hint + ")"
		}
	}
	// The event goes before the state: who sees the end has seen all events.
	b.say(r.ID, endMessage(r.ID, end))
	if held, err := index.EndRun(last, r.ID, r.Fence, end, now()); err != nil || !held {
		log.Error("the end of a run was not kept", "held", held, "error", fmt.Sprint(err))
		return
	}
	result := end.Effect
	if result == "" {
		result = "failed"
	}
	b.count(result, now().Sub(began))
	b.notify()
	log.Info("run ended", "state", end.State, "effect", end.Effect, "code", end.Code, "seconds", now().Sub(began).Seconds())
}

func endMessage(id string, e sqlstore.RunEnd) map[string]any {
	m := map[string]any{"type": "run", "run": id, "state": e.State}
	for k, v := range map[string]string{"effect": e.Effect, "code": e.Code, "message": e.Message} {
		if v != "" {
			m[k] = v
		}
	}
	return m
}

var (
	errLeaseLost = errors.New("somebody else has the run")
	errCancelled = errors.New("the run was cancelled")
)

// renew keeps a lease while its run goes on, and ends the run when it is no longer
// ours or wanted.
func (b *builds) renew(ctx context.Context, cancel context.CancelCauseFunc, r sqlstore.Run) {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	until := r.LeasedTo
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		if until.Sub(now()) < runLease-runRenewal {
			until = now().Add(runLease)
		}
		held, cancelled, err := b.s.home.stores.index.RenewRun(ctx, r.ID, r.Fence, until)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && now().Before(until):
			continue
		case err != nil || !held:
			cancel(errLeaseLost)
			return
		case cancelled:
			cancel(errCancelled)
			return
		}
	}
}

// results is where a run leaves its result directory.
func (h *Home) results(id string) string {
	if !runForm.MatchString(id) { // of a row that nobody of ours wrote
		id = "none"
	}
	return h.path("results", id)
}

var runForm = regexp.MustCompile(`^r-[0-9a-f]{16}$`)

// build makes a verdict, unless an earlier attempt came to one.
func (b *builds) build(ctx context.Context, r sqlstore.Run) (sqlstore.RunEnd, error) {
	s := b.s
	out := s.home.results(r.ID)
	// The directory gets its name when it is whole, after everything was signed.
	if v, err := recordedVerdict(out); err == nil {
		return sqlstore.RunEnd{State: sqlstore.RunDone, Effect: v.Decision.Effect.String()}, nil
	}
	on, err := s.basis(ctx, r)
	if code := hallmark.CodeOf(err); err != nil && s.parts.ignores(hallmark.Reason{Code: code, Check: "run"}) {
		on, err = s.unfounded(ctx, r)
	}
	if err != nil {
		return sqlstore.RunEnd{}, err
	}
	h, err := s.runHome()
	if err != nil {
		return sqlstore.RunEnd{}, err
	}
	defer h.Close()
	cfg := RunConfig{
		Home: h.Home, Repo: s.dir(r.Repository), Rev: r.Revision, Out: out, RepositoryURI: s.uri(r.Repository), CommittedOnly: true, Parameters: r.Parameters, platform: &on,
		Progress: func(e pipeline.Event) { b.say(r.ID, StageMessage(e)) },
		Alert:    func(a EgressAlert) { b.say(r.ID, AlertMessage(a)) },
	}
	if r.Cause != causeChange {
		for _, secret := range s.file.Builds.Secrets {
			if access.Matches(secret.Repositories, r.Repository) {
				cfg.Secrets = append(cfg.Secrets, secret.Name+"="+secret.File)
			}
		}
	}
	pc, done, err := h.Pipeline(ctx, cfg)
	if err != nil {
		return sqlstore.RunEnd{}, err
	}
	res, err := runPipeline(ctx, pc, cfg)
	if err := errors.Join(err, done()); err != nil {
		return sqlstore.RunEnd{}, err
	}
	d := res.Verdict.Decision
	b.say(r.ID, map[string]any{"type": "verdict", "effect": d.Effect, "revision": res.Revision, "artifacts": res.Artifacts, "decision": d, "levels": res.Verdict.Levels, "vsa": res.VSA.Statement})
	return sqlstore.RunEnd{State: sqlstore.RunDone, Effect: d.Effect.String()}, nil
}

func recordedVerdict(out string) (policy.Verdict, error) {
	b, err := readLimited(filepath.Join(out, "verdict.json"), maxPolicyFile)
	if err != nil {
		return policy.Verdict{}, err
	}
	return policy.ParseVerdict(b)
}

// runHome is the home as a run sees it, with the policy that is in force when it
// begins: the server reads another one meanwhile.
func (s *Server) runHome() (*Home, error) {
	h, err := readHome(s.home.Home)
	if err != nil {
		return nil, err
	}
	h.keys, h.remote = s.home.keys, s.home.remote
	return h, nil
}

// basis reads in the log what the queue says of a run: that it has to be, of which
// revision and reference, and for whom. Who can write to the database makes no
// build by that, and changes none.
func (s *Server) basis(ctx context.Context, r sqlstore.Run) (buildPlatform, error) {
	differs := func(format string, args ...any) (buildPlatform, error) {
		return buildPlatform{}, hallmark.Coded(hallmark.KindDenied, hallmark.CodeRunUnlogged, "run %s: %s", r.ID, fmt.Sprintf(format, args...))
	}
	l, ok, err := s.home.loggedAs(ctx, r.Basis)
	if err != nil {
		return buildPlatform{}, err
	}
	if !ok {
		return differs("the log has no statement %.80q", r.Basis)
	}
	if err := s.home.evidence(ctx, l); err != nil {
		return buildPlatform{}, err
	}
	var actor hallmark.Principal
	var grant string
	on := buildPlatform{pin: &pinned{commit: r.Revision, ref: r.Ref}}
	switch r.Cause {
	case causePush:
		t, ok, err := moved(l)
		if err != nil {
			return on, err
		}
		if !ok || !owesBuild(t) || t.Repository != s.uri(r.Repository) || t.Ref != r.Ref || t.New != r.Revision || len(r.Parameters) > 0 {
			return differs("no transition of %s asks for a build of %s", r.Ref, r.Revision)
		}
		if void, err := s.home.voided(ctx, t.Repository, t.Ref, l.digest); err != nil || void {
			if err != nil {
				return on, err
			}
			return differs("the transition of %s to %s did not happen", r.Ref, r.Revision)
		}
		actor, grant = t.Actor, t.Grant
	case causeRequest:
		if l.statement.PredicateType != intoto.PredicateAccess {
			return differs("nobody asked for it")
		}
		a, err := intoto.DecodePredicate[intoto.AccessRecord](l.statement)
		if err != nil {
			return on, err
		}
		want, err := requestDetails(r)
		if err != nil {
			return on, err
		}
		if a.Action != requestAction || a.Effect != hallmark.Allow || a.Resource != "run:"+r.ID || !maps.Equal(a.Details, want) {
			return differs("nobody asked for it so")
		}
		actor, grant = a.Actor, a.Grant
	case causeChange:
		c, review, err := s.mayRun(ctx, r.Change, l)
		if err != nil {
			return on, err
		}
		if c.name != r.Repository || c.Revision != r.Revision || r.Ref != intoto.ChangeRefs+c.ID || len(r.Parameters) > 0 {
			return differs("the change %s is of something else", r.Change)
		}
		actor, grant = review.Actor, review.Grant
		on.offline, on.pack = true, c.pack
	default:
		return differs("unknown cause %.40q", r.Cause)
	}
	as := s.buildsAs(intoto.Requester{
		Principals:     policy.Requesters(actor.Method, actor.Name),
		Authentication: fmt.Sprintf("signed in to the server (%s), token %s; grant %s", actor.Method, actor.Key, grant),
		User:           actor.Name,
	})
	as.pin, as.offline, as.pack = on.pin, on.offline, on.pack
	return as, nil
}

// unfounded is the platform of a run that the log does not ask for, for drills.
func (s *Server) unfounded(ctx context.Context, r sqlstore.Run) (buildPlatform, error) {
	on := s.buildsAs(intoto.Requester{Principals: policy.Requesters("ssh", r.Principal), Authentication: "none", User: r.Principal})
	on.pin = &pinned{commit: r.Revision, ref: r.Ref}
	if r.Change == "" {
		return on, nil
	}
	c, err := s.change(ctx, r.Change)
	on.offline, on.pack = true, c.pack
	return on, err
}

// say keeps a message about a run and wakes who listens.
func (b *builds) say(run string, message map[string]any) {
	raw, err := json.Marshal(message)
	if err == nil {
		err = b.s.home.stores.index.AddRunEvent(context.WithoutCancel(b.ctx), run, raw)
	}
	if err != nil {
		b.s.log.Error("what was said of a run was not kept", "run", run, "error", err.Error())
		return
	}
	b.notify()
}

func (b *builds) notify() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.said)
	b.said = make(chan struct{})
}

func (b *builds) listen() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.said
}

func (b *builds) count(result string, took time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended[result]++
	b.seconds += took.Seconds()
}

// StageMessage is an event of a pipeline as it is told to programs.
func StageMessage(e pipeline.Event) map[string]any {
	m := map[string]any{"type": "stage", "stage": e.Stage, "state": e.State.String()}
	if e.Outcome != 0 {
		m["outcome"] = e.Outcome
	}
	if e.State == pipeline.Finished {
		m["seconds"] = e.Elapsed.Seconds()
	}
	if e.Detail != "" {
		m["detail"] = e.Detail
	}
	return m
}

// AlertMessage is an attempt to leave a sandbox as it is told to programs.
func AlertMessage(a EgressAlert) map[string]any {
	return map[string]any{"type": "alert", "code": hallmark.CodeBuildEgress, "step": a.Step, "time": a.Time, "pid": a.PID, "process": a.Process, "program": a.Program, "address": a.Address, "name": a.Name}
}

// owesBuild reports whether a transition has the server build its revision: that of
// a branch which, as the log says, goes forward only. Whatever else a reference
// shows is built when somebody asks.
func owesBuild(t intoto.RefTransition) bool {
	return t.Effect == hallmark.Allow && !t.Void && strings.HasPrefix(t.Ref, "refs/heads/") && strings.Trim(t.New, "0") != "" && slices.Contains(t.Obligations, ledger.Build) &&
		slices.ContainsFunc(t.Controls, func(c intoto.RefControl) bool { return c.Name == controlDescend })
}
