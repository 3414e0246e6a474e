// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/durable"
)

// run is one revision on its way. Its fields are filled in the order of the
// stages and never changed afterwards.
type run struct {
	cfg Config
	ctx context.Context // of Run; a run lives no longer than its call

	source   SourceFacts
	export   Export
	deps     Dependencies
	depsDir  string
	depsFail *hallmark.Reason
	scans    []ScanOutput
	build    BuildOutput
	image    *ScanOutput // of the images of the build; nil when it left none
}

func (r *run) revision() hallmark.Revision { return r.source.Provenance.Revision }

// observe runs every stage that gathers facts. It returns an error only when no
// revision could be named or the machine failed; everything else is a record.
func (r *run) observe(rev string) error {
	start := r.begin("source")
	facts, err := r.cfg.Source.Check(r.ctx, rev)
	if err != nil {
		return fmt.Errorf("checking source: %w", err)
	}
	if rec := facts.Record(); rec.Check != "source" || rec.Outcome == 0 {
		return hallmark.Errorf(hallmark.KindInternal, "the source check returned a record of %q without an outcome", rec.Check)
	}
	r.source = facts
	r.end("source", start, facts.Record())

	if facts.Record().Outcome == hallmark.Errored {
		// The history or the objects can't be trusted to be complete: nothing
		// that reads them would mean anything.
		return r.skipAll("the source check could not decide")
	}
	dir := filepath.Join(r.cfg.WorkDir, "source")
	if r.export, err = r.cfg.Source.Export(r.ctx, r.revision(), dir); err != nil {
		return fmt.Errorf("exporting revision %s: %w", r.revision().Commit, err)
	}
	if err := r.resolve(); err != nil {
		return err
	}
	for _, s := range r.cfg.Scanners {
		if err := r.scan(s); err != nil {
			return err
		}
	}
	if err := r.runBuild(); err != nil {
		return err
	}
	return r.scanImages()
}

// resolve fetches dependencies into a directory that is named by all they depend
// on, so that revisions with equal lock files share it. The directory gets its
// name only when it is complete, and is hashed again before every use.
func (r *run) resolve() error {
	start := r.begin("resolve")
	plan, err := r.cfg.Resolver.Plan(r.ctx, r.export)
	if err == nil && plan == "" {
		r.resolved(start, Finished)
		return nil
	}
	if err != nil {
		return r.unresolved(start, err)
	}
	final := filepath.Join(r.cfg.DepsDir, plan.Hex()[:32])
	if _, err := os.Stat(final); err == nil {
		if r.deps, err = r.cfg.Resolver.Verify(r.ctx, r.export, final); err == nil {
			r.depsDir = final
			r.resolved(start, Reused)
			return nil
		}
		if hallmark.CodeOf(err) == hallmark.CodeDependencyVendor {
			return r.unresolved(start, err) // the fault of the revision, not of the directory
		}
		// Damaged or altered: it is not mended but fetched again.
		if err := durable.RemoveTree(final); err != nil {
			return fmt.Errorf("removing altered dependencies %s: %w", final, err)
		}
	}
	part := filepath.Join(r.cfg.WorkDir, "deps")
	if err := os.MkdirAll(part, 0o755); err != nil {
		return fmt.Errorf("making dependency directory: %w", err)
	}
	if r.deps, err = r.cfg.Resolver.Fetch(r.ctx, r.export, part); err != nil {
		return r.unresolved(start, err)
	}
	if err := os.Rename(part, final); errors.Is(err, fs.ErrExist) {
		// Another run was faster. What it left is believed no more than its worker.
		if r.deps, err = r.cfg.Resolver.Verify(r.ctx, r.export, final); err != nil {
			return fmt.Errorf("reading the dependencies of another run: %w", err)
		}
	} else if err != nil {
		return fmt.Errorf("keeping dependencies: %w", err)
	}
	r.depsDir = final
	r.resolved(start, Finished)
	return nil
}

func (r *run) resolved(start time.Time, state State) {
	r.cfg.Progress(Event{Stage: "resolve", State: state, Elapsed: r.cfg.Clock().Sub(start), Detail: count(len(r.deps.List), "dependency", "dependencies")})
}

// unresolved records that dependencies could not be had, which denies; what is
// no fault of the revision or a registry ends the run.
func (r *run) unresolved(start time.Time, err error) error {
	code := hallmark.CodeOf(err)
	if !strings.HasPrefix(string(code), "DEPENDENCY_") {
		return fmt.Errorf("fetching dependencies: %w", err)
	}
	r.deps = Dependencies{}
	r.depsFail = &hallmark.Reason{Code: code, Check: "build", Message: err.Error(), Fix: hallmark.HintOf(err)}
	r.cfg.Progress(Event{Stage: "resolve", State: Finished, Outcome: hallmark.Errored, Elapsed: r.cfg.Clock().Sub(start), Detail: string(code)})
	return nil
}

func (r *run) input() Input {
	in := Input{Revision: r.revision(), Export: r.export, DepsDir: r.depsDir, Dependencies: r.deps}
	for _, s := range r.scans {
		if len(s.Inventory) > 0 {
			in.Inventory = s.Inventory
		}
	}
	return in
}

func (r *run) scan(s Scanner) error {
	start := r.begin(s.Name())
	if r.depsFail != nil && s.Name() == "sast" {
		rec := r.blank("sast", hallmark.Errored, *r.depsFail)
		r.scans = append(r.scans, ScanOutput{Record: rec})
		r.end("sast", start, rec)
		return nil
	}
	fp, err := s.Fingerprint(r.ctx)
	if err != nil {
		return fmt.Errorf("reading rule data of %s: %w", s.Name(), err)
	}
	in := r.input()
	key := r.key(s.Name(), string(fp)+string(hallmark.DigestOf(in.Inventory)))
	var out ScanOutput
	if b, ok, err := r.saved(s.Name(), key); err != nil {
		return err
	} else if ok && json.Unmarshal(b, &out) == nil && r.reusable(out.Record, s.Name()) {
		r.scans = append(r.scans, out)
		r.cfg.Progress(Event{Stage: s.Name(), State: Reused, Outcome: out.Record.Outcome})
		return nil
	}
	if out, err = s.Scan(r.ctx, in); err != nil {
		return fmt.Errorf("running check %s: %w", s.Name(), err)
	}
	if out.Record.Check != s.Name() || out.Record.Outcome == 0 {
		return hallmark.Errorf(hallmark.KindInternal, "check %s returned a record of %q without an outcome", s.Name(), out.Record.Check)
	}
	// An errored result is never reused: its cause may be gone.
	if out.Record.Outcome == hallmark.Pass || out.Record.Outcome == hallmark.Fail {
		if err := r.save(s.Name(), key, out); err != nil {
			return err
		}
	}
	r.scans = append(r.scans, out)
	r.end(s.Name(), start, out.Record)
	return nil
}

// runBuild builds only a revision whose source check passed: code that nobody
// vouched for is scanned, never run.
func (r *run) runBuild() error {
	if rec := r.source.Record(); rec.Outcome != hallmark.Pass {
		return r.skipBuild("the source check did not pass")
	}
	if r.depsFail != nil {
		r.build = BuildOutput{Facts: attest.Build{Revision: r.revision(), Record: r.blank("build", hallmark.Errored, *r.depsFail)},
			Tests: r.blank("tests", hallmark.Skipped, notRun("tests", "dependencies could not be fetched"))}
		return nil
	}
	start := r.begin("build")
	fp, err := r.cfg.Builder.Fingerprint(r.ctx)
	if err != nil {
		return fmt.Errorf("reading the toolchain: %w", err)
	}
	key := r.key("build", string(fp))
	var out BuildOutput
	if b, ok, err := r.saved("build", key); err != nil {
		return err
	} else if ok && json.Unmarshal(b, &out) == nil && r.reusable(out.Facts.Record, "build") && r.blobsPresent(out) {
		r.build = out
		r.cfg.Progress(Event{Stage: "build", State: Reused, Outcome: out.Facts.Record.Outcome})
		return nil
	}
	out, err = r.cfg.Builder.Build(r.ctx, r.input(), filepath.Join(r.cfg.WorkDir, "build"))
	if err != nil {
		return fmt.Errorf("building: %w", err)
	}
	if rec := out.Facts.Record; rec.Check != "build" || rec.Outcome == 0 || out.Tests.Check != "tests" || out.Tests.Outcome == 0 {
		return hallmark.Errorf(hallmark.KindInternal, "the build returned records of %q and %q without an outcome", rec.Check, out.Tests.Check)
	}
	if o := out.Facts.Record.Outcome; o == hallmark.Pass || o == hallmark.Fail && !ofTheMachine(out.Facts.Record.Reasons) {
		if err := r.save("build", key, out); err != nil {
			return err
		}
	}
	r.build = out
	r.end("build", start, out.Facts.Record)
	return nil
}

// reusable reports whether a saved record may stand for a new one: it is of this
// check and this revision, and it decided. An errored one is made again: its
// cause may be gone.
func (r *run) reusable(rec hallmark.CheckRecord, check string) bool {
	return rec.Check == check && rec.Revision == r.revision() && (rec.Outcome == hallmark.Pass || rec.Outcome == hallmark.Fail)
}

// ofTheMachine reports whether a build failed for what the machine is or did, and
// not for what the revision says: once that is repaired it has to be built again.
func ofTheMachine(reasons []hallmark.Reason) bool {
	return slices.ContainsFunc(reasons, func(r hallmark.Reason) bool {
		switch r.Code {
		case hallmark.CodeToolchainAltered, hallmark.CodeCacheAltered, hallmark.CodeUnexplained, hallmark.CodeBuildTool, hallmark.CodeInputUnstable, hallmark.CodeSourceChangedInside,
			hallmark.CodeTraceIncomplete, hallmark.CodeBuildNotIsolated, hallmark.CodeBuildLimit:
			return true
		}
		return false
	})
}

// blobsPresent reports whether everything that a build left is still kept.
func (r *run) blobsPresent(out BuildOutput) bool {
	var all []hallmark.Digest
	for _, a := range out.Facts.Artifacts {
		all = append(all, a.Digest)
	}
	for _, s := range out.Facts.Steps {
		all = append(all, s.Log)
		if s.Events != "" {
			all = append(all, s.Events)
		}
	}
	for _, l := range []attest.List{out.Facts.Trace.Materials, out.Facts.Trace.Products} {
		if l.Digest != "" {
			all = append(all, l.Digest)
		}
	}
	for _, i := range out.Images {
		all = append(all, i.Blobs...)
	}
	return !slices.ContainsFunc(all, func(d hallmark.Digest) bool {
		_, err := r.cfg.Blobs.Get(r.ctx, d)
		return err != nil
	})
}

// skipAll records every later check as skipped. Skipped never counts as pass.
func (r *run) skipAll(why string) error {
	for _, s := range r.cfg.Scanners {
		rec := r.blank(s.Name(), hallmark.Skipped, notRun(s.Name(), why))
		r.scans = append(r.scans, ScanOutput{Record: rec})
		r.cfg.Progress(Event{Stage: s.Name(), State: Finished, Outcome: rec.Outcome, Detail: why})
	}
	return r.skipBuild(why)
}

func (r *run) skipBuild(why string) error {
	r.build = BuildOutput{
		Facts: attest.Build{Revision: r.revision(), Record: r.blank("build", hallmark.Skipped, notRun("build", why))},
		Tests: r.blank("tests", hallmark.Skipped, notRun("tests", why)),
	}
	r.cfg.Progress(Event{Stage: "build", State: Finished, Outcome: hallmark.Skipped, Detail: why})
	return nil
}

func notRun(check, why string) hallmark.Reason {
	return hallmark.Reason{Code: hallmark.CodeCheckNotRun, Check: check, Message: check + " did not run: " + why}
}

func (r *run) blank(check string, o hallmark.Outcome, why ...hallmark.Reason) hallmark.CheckRecord {
	// The times of the source check, so that a resumed run makes the same bytes.
	at := r.source.Record().FinishedOn
	rec := hallmark.CheckRecord{Check: check, Outcome: o, Revision: r.revision(), StartedOn: at, FinishedOn: at, Tool: r.cfg.Tool}
	for _, w := range why {
		w.Check = check
		rec.Reasons = append(rec.Reasons, w)
	}
	return rec
}

// depsDigest names the packages that later stages see.
func (r *run) depsDigest() hallmark.Digest {
	b, _ := json.Marshal(r.deps.List) // strings and maps of strings always encode
	return hallmark.DigestOf(b)
}

// key names everything a stage's result depends on.
func (r *run) key(stage, more string) hallmark.Digest {
	rev := r.revision()
	return hallmark.DigestOf(fmt.Appendf(nil, "v2\x00%s\x00%s\x00%s\x00%s\x00%s\x00%s\x00%s\x00%s\x00%s\x00%s\x00%s",
		stage, rev.Repository, rev.Ref, rev.Commit, rev.Tree, r.export.Manifest,
		hallmark.DigestOf(r.export.Pipeline), r.cfg.Policy, r.cfg.Tool.Digest, r.depsDigest(), more))
}

func (r *run) saved(stage string, key hallmark.Digest) ([]byte, bool, error) {
	b, at, ok, err := r.cfg.Saves.Saved(r.ctx, stage, key)
	if err != nil {
		return nil, false, fmt.Errorf("looking up saved stage %s: %w", stage, err)
	}
	age := r.cfg.Clock().Sub(at)
	if !ok || age < -time.Minute || age >= r.cfg.ReuseMaxAge {
		return nil, false, nil
	}
	return b, true, nil
}

func (r *run) save(stage string, key hallmark.Digest, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding result of %s: %w", stage, err)
	}
	if err := r.cfg.Saves.Save(r.ctx, stage, key, b, r.cfg.Clock()); err != nil {
		return fmt.Errorf("saving result of %s: %w", stage, err)
	}
	return nil
}

func (r *run) begin(stage string) time.Time {
	r.cfg.Progress(Event{Stage: stage, State: Started})
	return r.cfg.Clock()
}

func (r *run) end(stage string, start time.Time, rec hallmark.CheckRecord) {
	detail := ""
	if len(rec.Reasons) > 0 {
		detail = string(rec.Reasons[0].Code)
	}
	r.cfg.Progress(Event{Stage: stage, State: Finished, Outcome: rec.Outcome, Elapsed: r.cfg.Clock().Sub(start), Detail: detail})
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
