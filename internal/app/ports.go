// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/gitcli"
	"github.com/hallmark-sc/hallmark/internal/identity"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/sbom"
	"github.com/hallmark-sc/hallmark/internal/scan"
	"github.com/hallmark-sc/hallmark/internal/scan/sast"
	"github.com/hallmark-sc/hallmark/internal/scan/secrets"
	"github.com/hallmark-sc/hallmark/internal/scan/vuln"
	"github.com/hallmark-sc/hallmark/internal/source"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// sourcePort is pipeline.Source over a private copy of a git repository.
type sourcePort struct {
	repo          *gitcli.Repository
	signers       *identity.Signers
	uri           string
	committedOnly bool
	tool          hallmark.Tool
	room          *room
	when          time.Time // of the checked commit
	pin           *pinned   // nil: the revision is what the repository says it is
}

// pinned is a revision that was decided of elsewhere: this commit, as of this
// reference, wherever that is by now.
type pinned struct{ commit, ref string }

type pinnedRepository struct {
	*gitcli.Repository
	pinned
}

func (p pinnedRepository) Resolve(rev string) (commit, ref string, err error) {
	if rev != p.commit {
		return "", "", hallmark.Errorf(hallmark.KindInternal, "revision %.80q was not decided of", rev)
	}
	return p.commit, p.ref, nil
}

func (s *sourcePort) Check(ctx context.Context, rev string) (pipeline.SourceFacts, error) {
	var repo source.Repository = s.repo
	if s.pin != nil {
		repo = pinnedRepository{s.repo, *s.pin}
	}
	p, err := source.Check(ctx, source.Config{
		Repository: repo, URI: s.uri, CommittedOnly: s.committedOnly, Clock: now, Tool: s.tool,
		Files: s.repo.Files, Binaries: s.room.params.Binaries,
		Verify: func(sig, signed []byte, at time.Time) source.Verdict { return verdictOn(s.signers, sig, signed, at) },
	}, rev)
	s.when = p.CommittedOn
	return pipeline.SourceFacts{Provenance: p, CommitTime: p.CommittedOn}, err
}

func (s *sourcePort) Export(ctx context.Context, rev hallmark.Revision, dir string) (pipeline.Export, error) {
	m, err := s.repo.Export(ctx, rev.Tree, dir, s.when)
	if err != nil {
		return pipeline.Export{}, err
	}
	if err := sandbox.Give(dir, s.room.hostID); err != nil {
		return pipeline.Export{}, err
	}
	e := pipeline.Export{Dir: dir, Files: m.Files, Manifest: m.Digest, CommitTime: s.when}
	file := filepath.Join(dir, filepath.FromSlash(pipeline.PipelineFile))
	if st, err := os.Lstat(file); err != nil {
		return e, hallmark.WithHint(hallmark.Coded(hallmark.KindInvalid, hallmark.CodePipelineMissing, "the revision has no %s", pipeline.PipelineFile),
			"write a first one with hallmark init --repo, and commit it")
	} else if !st.Mode().IsRegular() {
		return e, hallmark.Coded(hallmark.KindInvalid, hallmark.CodePipelineInvalid, "%s is not a regular file", pipeline.PipelineFile)
	}
	if e.Pipeline, err = os.ReadFile(file); err != nil {
		return e, fmt.Errorf("reading %s: %w", pipeline.PipelineFile, err)
	}
	// A definition that can't be read is an error of the caller's: it is told
	// before anything else is done.
	if _, err = build.ParsePipeline(pipeline.PipelineFile, e.Pipeline); err != nil && hallmark.HintOf(err) == "" {
		err = hallmark.WithHint(err, "hallmark schema pipeline describes the file")
	}
	return e, err
}

// objects streams a history to the secrets scanner.
type objects struct{ repo *gitcli.Repository }

func (o objects) Each(ctx context.Context, commit string, fn func(secrets.Object) error) error {
	return o.repo.Each(ctx, commit, func(g gitcli.Object) error {
		return fn(secrets.Object{ID: g.ID, Type: g.Type, Path: g.Path, Data: g.Data})
	})
}

// scanners makes the ports of the four scans.
type scanners struct {
	home   *Home
	room   *room
	tool   hallmark.Tool
	source *sourcePort
	key    []byte
}

// scanWall bounds one scan.
const scanWall = 20 * time.Minute

// scannerPort is one check.
type scannerPort struct {
	name        string
	fingerprint func() (hallmark.Digest, error)
	scan        func(ctx context.Context, in pipeline.Input) (pipeline.ScanOutput, error)
}

func (s scannerPort) Name() string { return s.name }
func (s scannerPort) Fingerprint(context.Context) (hallmark.Digest, error) {
	return s.fingerprint()
}
func (s scannerPort) Scan(ctx context.Context, in pipeline.Input) (pipeline.ScanOutput, error) {
	return s.scan(ctx, in)
}

func (s scanners) all() []pipeline.Scanner {
	p := s.home.params
	t := scan.Thresholds{Severity: p.Severity, Confidence: p.Confidence}
	external := sast.External{Pins: p.Drivers, Find: sandbox.Find, WorkDir: s.room.work}
	wrap := func(rec hallmark.CheckRecord, f []hallmark.Finding, err error) (pipeline.ScanOutput, error) {
		return pipeline.ScanOutput{Record: rec, Findings: f}, err
	}
	fixed := func(d hallmark.Digest) func() (hallmark.Digest, error) {
		return func() (hallmark.Digest, error) { return d, nil }
	}
	return []pipeline.Scanner{
		scannerPort{"secrets", fixed(secrets.RuleDigest()), func(ctx context.Context, in pipeline.Input) (pipeline.ScanOutput, error) {
			return wrap(secrets.Scan(ctx, secrets.Config{Worker: s.room, Key: s.key, Thresholds: t, Clock: now, Tool: s.tool, Wall: scanWall}, in.Revision, objects{s.source.repo}))
		}},
		scannerPort{"sast", func() (hallmark.Digest, error) { return sast.Fingerprint(external) }, func(ctx context.Context, in pipeline.Input) (pipeline.ScanOutput, error) {
			var mounts []scan.Mount
			for _, m := range in.Dependencies.Mounts {
				if strings.HasPrefix(m.Target, Workspace+"/") {
					continue // of the build's workspace, which a scanner has not
				}
				mounts = append(mounts, scan.Mount{Source: filepath.Join(in.DepsDir, m.Host), Target: m.Target})
			}
			return wrap(sast.Scan(ctx, sast.Config{Worker: s.room, Thresholds: t, Uncovered: p.Uncovered, Clock: now, Tool: s.tool, Wall: scanWall, External: external}, in.Revision, in.Export.Dir, mounts))
		}},
		scannerPort{"sbom", fixed(hallmark.DigestOf([]byte("sbom-readers-v3 " + goToolchain()))), s.inventory},
		scannerPort{"sca", func() (hallmark.Digest, error) { return vuln.Fingerprint(s.home.Advisories()) }, func(ctx context.Context, in pipeline.Input) (pipeline.ScanOutput, error) {
			if err := os.MkdirAll(s.home.Advisories(), 0o755); err != nil {
				return pipeline.ScanOutput{}, fmt.Errorf("making the advisory store: %w", err)
			}
			return wrap(vuln.Scan(ctx, vuln.Config{Worker: s.room, Store: s.home.Advisories(), MaxAge: p.AdvisoriesMaxAge, Thresholds: t, Clock: now, Tool: s.tool, Wall: scanWall}, in.Revision, in.Inventory))
		}},
	}
}

// inventory runs the sbom check.
func (s scanners) inventory(ctx context.Context, in pipeline.Input) (pipeline.ScanOutput, error) {
	rec := hallmark.CheckRecord{Check: "sbom", Revision: in.Revision, StartedOn: now(), Tool: s.tool}
	out, reason, err := scan.Call(ctx, s.room, scan.Job{Args: []string{sbom.JobName, s.home.goVersion(ctx, in.Export.Pipeline)}, Mounts: []scan.Mount{{Source: in.Export.Dir, Target: "/source"}}, Wall: scanWall})
	if err != nil {
		return pipeline.ScanOutput{}, err
	}
	rec.FinishedOn = now()
	rec.Coverage = &out.Coverage
	if reason != nil {
		reason.Check = "sbom"
		rec.Outcome, rec.Reasons = hallmark.Errored, []hallmark.Reason{*reason}
		return pipeline.ScanOutput{Record: rec}, nil
	}
	rec.Outcome = hallmark.Pass
	if len(out.Coverage.Missed) > 0 {
		rec.Outcome = hallmark.Errored
		rec.Reasons = []hallmark.Reason{{Code: hallmark.CodeSBOMIncomplete, Check: "sbom", Message: "the inventory is not complete: " + strings.Join(out.Coverage.Missed, "; "),
			Fix: "name the dependencies in a go.mod, package-lock.json or requirements.txt, and leave out manifests that can't be read"}}
	}
	var inv sbom.Inventory
	if err := json.Unmarshal(out.Extra, &inv); err != nil {
		return pipeline.ScanOutput{}, fmt.Errorf("reading the inventory: %w", err)
	}
	fetched, err := components(in.Dependencies.List)
	if err != nil {
		return pipeline.ScanOutput{}, err
	}
	inv.Add(fetched)
	rec.Coverage.Ecosystems = inv.Ecosystems()
	b, err := json.Marshal(inv)
	return pipeline.ScanOutput{Record: rec, Inventory: b}, err
}

// components are the fetched packages as the inventory names them: what a build
// sees has to be looked up in advisories, whichever manifest led to it.
func components(list []attest.Dependency) ([]sbom.Component, error) {
	var out []sbom.Component
	for _, d := range list {
		at := strings.LastIndexByte(d.Name, '@')
		if at <= 0 {
			return nil, hallmark.Errorf(hallmark.KindInternal, "dependency %q has no version", d.Name)
		}
		c := sbom.Component{Name: d.Name[:at], Version: d.Name[at+1:], PURL: d.PURL, Location: "fetched"}
		switch {
		case strings.HasPrefix(d.PURL, "pkg:golang/"):
			c.Ecosystem, c.Version = "Go", strings.TrimPrefix(c.Version, "v")
		case strings.HasPrefix(d.PURL, "pkg:npm/"):
			c.Ecosystem = "npm"
		default:
			return nil, hallmark.Errorf(hallmark.KindInternal, "dependency %q is of no known ecosystem", d.PURL)
		}
		out = append(out, c)
	}
	return out, nil
}

// documents implements pipeline.Documents.
type documents struct{}

func (documents) Render(inventory []byte, rev hallmark.Revision, artifacts []hallmark.Artifact, at time.Time) ([]byte, []byte, error) {
	var inv sbom.Inventory
	if inventory != nil {
		if err := json.Unmarshal(inventory, &inv); err != nil {
			return nil, nil, fmt.Errorf("reading the inventory: %w", err)
		}
	}
	spdx, err := sbom.SPDX(inv, rev, artifacts, at)
	if err != nil {
		return nil, nil, err
	}
	cdx, err := sbom.CycloneDX(inv, rev, artifacts, at)
	return spdx, cdx, err
}

func (documents) SARIF(records []hallmark.CheckRecord, findings []hallmark.Finding) ([]byte, error) {
	return scan.SARIF(records, findings)
}

// decider implements pipeline.Decider.
type decider struct {
	verifier *verify.Verifier
	engine   *policy.Engine
	roots    verify.Roots
}

func (d *decider) Verify(bundle []byte) (verify.Statement, error) { return d.verifier.Verify(bundle) }

func (d *decider) Decide(ctx context.Context, req pipeline.DecideRequest) (pipeline.Verdict, error) {
	v, err := d.engine.Decide(ctx, policy.Request{
		Statements: req.Statements, Subjects: req.Subjects, Revision: req.Revision, ResourceURI: req.ResourceURI, Clock: req.Clock,
		Roots: d.roots, RootsDigest: d.verifier.RootsDigest(),
	})
	if err != nil {
		return pipeline.Verdict{}, err
	}
	b, err := v.Encode()
	return pipeline.Verdict{JSON: b, Decision: v.Decision, Levels: v.Levels, Clock: v.Clock}, err
}

// builder implements pipeline.Builder.
type builder struct {
	home   *Home
	room   *room
	tool   hallmark.Tool
	stores *stores
	parts  BuildParts
	given  givenToBuild
	order  order
	on     buildPlatform
	fresh  bool          // nothing was in the place of the build before
	tools  []attest.Tool // of this machine, as Fingerprint read them: a result is saved under these
}

func (b *builder) Fingerprint(context.Context) (hallmark.Digest, error) {
	tools, err := inventoryTools()
	if err != nil {
		return "", err
	}
	b.tools = tools
	return b.fingerprint(tools)
}

// engine runs steps in sandboxes over one workspace.
type engine struct {
	room  *room
	place BuildPlace
}

func (e *engine) Run(ctx context.Context, c build.Command, out io.Writer) (build.CommandReport, error) {
	rep, err := e.room.box.RunAs(ctx, e.place.HostID, e.place.Spec(c, out))
	if err != nil {
		return build.CommandReport{}, err
	}
	return StepReport(rep), nil
}

func (b *builder) Build(ctx context.Context, in pipeline.Input, workDir string) (pipeline.BuildOutput, error) {
	def, err := build.ParsePipeline(pipeline.PipelineFile, in.Export.Pipeline)
	if err != nil {
		return pipeline.BuildOutput{}, err
	}
	values, reasons := b.allow(in.Revision, def)
	if len(reasons) > 0 {
		return b.refuse(in.Revision, reasons), nil
	}
	recipes, err := b.recipes(in, def, values)
	if err == nil {
		err = b.home.approved(def)
	}
	var kit kit
	if err == nil {
		kit, err = b.home.toolkit(ctx, def, b.tools)
	}
	if refused := new(refusedError); errors.As(err, &refused) {
		return b.refuse(in.Revision, []hallmark.Reason{refused.reason}), nil
	}
	if imageFault(err) {
		return b.withoutImage(in, err), nil
	}
	if err != nil {
		return pipeline.BuildOutput{}, err
	}
	for i, name := range toolNames(kit.tools) {
		kit.tools[i].Approved = slices.Contains(b.home.params.Tools, name)
	}
	if reasons := b.parts.Secrets(def, in.Revision.Ref, b.home.params.SecretRefs); len(reasons) > 0 {
		return b.refuse(in.Revision, reasons), nil
	}
	for _, name := range def.Needs() {
		if _, ok := b.given.secrets[name]; !ok {
			return pipeline.BuildOutput{}, build.MissingSecret(name)
		}
	}
	if b.fresh, err = untouched(workDir); err != nil {
		return pipeline.BuildOutput{}, err
	}
	scratch := filepath.Join(workDir, "scratch")
	if err := sandbox.NewScratch(scratch, b.room.hostID); err != nil {
		return pipeline.BuildOutput{}, err
	}
	cache := filepath.Join(workDir, "cache")
	if err := sandbox.NewScratch(cache, b.room.hostID); err != nil {
		return pipeline.BuildOutput{}, err
	}
	traces := filepath.Join(workDir, "traces")
	if err := os.MkdirAll(traces, 0o700); err != nil {
		return pipeline.BuildOutput{}, fmt.Errorf("making the directory of traces: %w", err)
	}
	place := BuildPlace{
		Source: in.Export.Dir, Scratch: scratch, HostID: b.room.hostID, Limits: b.room.limits, Toolchain: kit.chain,
		Trace: recordIn(traces, b.home.Digests()),
	}
	release := func() {}
	if kit.tree == nil { // what this machine's toolchain compiled is nothing of an image's
		if kit.cache, release, err = b.home.warmedCache(ctx); err != nil {
			return pipeline.BuildOutput{}, err
		}
	}
	defer release()
	if warmed := kit.cache.dir; warmed != "" {
		if err := layDirectories(warmed, sandbox.Upper(cache), b.room.hostID); err != nil {
			return pipeline.BuildOutput{}, err
		}
		place.Layers = []sandbox.Workspace{{Lower: warmed, Scratch: cache, Target: build.CacheDir}}
	} else {
		place.Mounts = []sandbox.Mount{{Source: cache, Target: build.CacheDir, Writable: true}}
	}
	for _, m := range in.Dependencies.Mounts {
		place.Mounts = append(place.Mounts, sandbox.Mount{Source: filepath.Join(in.DepsDir, m.Host), Target: m.Target})
	}
	eng := b.parts.Engine(place)
	changed, err := b.parts.Watch(in.Export.Dir, in.Export.Manifest)
	if err != nil {
		return pipeline.BuildOutput{}, err
	}
	res, err := build.Run(ctx, eng, def, build.Given{Env: kit.environment(in, values), Timeout: b.home.params.BuildTimeout, Secrets: b.given.secrets, Alert: b.given.alert, Mask: b.parts.Mask, Regenerated: func(paths []string) []hallmark.Reason {
		return b.parts.Regenerated(in.Export.Dir, sandbox.Upper(scratch), paths)
	}}, now)
	if err != nil {
		return pipeline.BuildOutput{}, err
	}
	var cooked cooked
	if ended(res, def) {
		if cooked, err = b.cook(ctx, in, def, recipes, place, workDir); err != nil {
			return pipeline.BuildOutput{}, err
		}
	}
	swapped, err := changed()
	if err != nil {
		return pipeline.BuildOutput{}, err
	}
	out, err := b.conclude(ctx, in, def, res, kit, scratch, swapped, cooked)
	if err == nil && kit.cache.dir != "" {
		out.Facts.Platform["toolchainCache"], out.Facts.Platform["toolchainCacheContents"] = filepath.Base(kit.cache.dir), string(kit.cache.list)
	}
	return out, err
}

// ended reports whether every step of a pipeline ended well.
func ended(res build.Result, def *build.Pipeline) bool {
	return len(res.Steps) == len(def.Steps) && res.Steps[len(res.Steps)-1].Good()
}

// conclude collects artifacts, keeps them and judges the facts.
func (b *builder) conclude(ctx context.Context, in pipeline.Input, def *build.Pipeline, res build.Result, kit kit, scratch string, swapped bool, cooked cooked) (pipeline.BuildOutput, error) {
	finished := ended(res, def)
	if len(cooked.steps) > 0 {
		res.Steps, res.FinishedOn = append(res.Steps, cooked.steps...), now()
		res.Guarantees = cooked.combined(res.Guarantees)
		kit.tools = append(kit.tools, cooked.tools...)
	}
	reasons, testReasons := res.Reasons(b.home.params.EgressAllowed)
	reasons = append(reasons, cooked.reasons...)
	f := attest.Build{
		Revision: in.Revision, Pipeline: intoto.PipelineRef{Path: pipeline.PipelineFile, Digest: hallmark.DigestOf(in.Export.Pipeline)},
		BuilderID: b.on.builder, Version: b.tool.Version, StartedOn: res.StartedOn, FinishedOn: res.FinishedOn,
		Dependencies: in.Dependencies.List, Tools: kit.tools, Images: kit.images, Platform: platform(), Files: in.Export.Files, Manifest: in.Export.Manifest,
		Parameters: b.order.parameters, Requester: &b.order.requester, Rule: b.rule(in.Revision, def), Recipes: cooked.files,
	}
	f.Platform["image"] = kit.ref.String()
	out := pipeline.BuildOutput{}
	if finished {
		outputs, bad := b.parts.Collect(sandbox.Upper(scratch), def.Artifacts)
		images, more, err := b.assemble(ctx, in, def, sandbox.Upper(scratch))
		if err != nil {
			return out, err
		}
		bad = append(append(bad, more...), b.archives(in, def, outputs)...)
		images = append(images, cooked.images...)
		reasons = append(reasons, bad...)
		if len(bad) == 0 && len(reasons) == 0 {
			for _, o := range outputs {
				d, err := b.stores.blobs.Put(ctx, o.Data)
				if err != nil {
					return out, fmt.Errorf("keeping artifact %s: %w", o.Name, err)
				}
				f.Artifacts = append(f.Artifacts, hallmark.Artifact{Name: o.Name, Digest: d, Size: int64(len(o.Data)), Mode: o.Mode})
			}
			out.Images = addImages(&f, images)
		}
	}
	traced, err := b.traced(ctx, in, kit, res, scratch, cooked)
	if err != nil {
		return out, err
	}
	f.Trace = traced.trace
	for i, s := range res.Steps {
		d, err := b.stores.blobs.Put(ctx, s.Log)
		if err != nil {
			return out, fmt.Errorf("keeping the log of step %s: %w", s.Name, err)
		}
		r := s.Report
		f.Steps = append(f.Steps, attest.Step{Name: s.Name, Test: s.Test(), Command: s.Command, ExitCode: r.ExitCode, Signal: r.Signal, LimitHit: r.LimitHit, Lost: r.Lost, Secrets: s.Secrets, StartedOn: r.StartedOn, FinishedOn: r.FinishedOn, Log: d, Events: traced.logs[i]})
		for _, e := range r.Egress {
			f.Egress = append(f.Egress, attest.Egress{Step: s.Name, Time: e.Time, PID: e.PID, Process: e.Process, Program: e.Program, Address: e.Address, Name: e.Name})
		}
		if s.Test() && s.Good() {
			out.Passed = append(out.Passed, s.Name)
		} else if s.Test() {
			out.Failed = append(out.Failed, s.Name)
		}
	}
	for _, g := range res.Guarantees {
		f.Guarantees = append(f.Guarantees, attest.Guarantee{Name: g.Name, Holds: g.Holds, Detail: g.Detail})
	}
	f.Guarantees = append(f.Guarantees, b.platformGuarantees()...)
	out.Decision = b.parts.Authorize(
		b.buildPolicy(),
		build.Facts{Request: b.request(in.Revision, def), BuilderID: f.BuilderID, Defined: slices.Concat(def.Steps, cooked.defined), Rooms: traced.rooms, Tools: toolNames(kit.tools), Steps: res.Steps, Guarantees: res.Guarantees, TraceWhole: traced.trace.Whole, Executed: traced.programs, Loaded: traced.loaded, Written: traced.written, Brought: traced.brought, Artifacts: len(f.Artifacts), SourceChanged: swapped, Reasons: append(reasons, traced.reasons...)})
	f.Record = hallmark.CheckRecord{Check: "build", Outcome: hallmark.Pass, Revision: in.Revision, StartedOn: res.StartedOn, FinishedOn: res.FinishedOn, Tool: b.tool}
	if !out.Decision.Allowed() {
		f.Record.Outcome, f.Record.Reasons = hallmark.Fail, out.Decision.Reasons
		f.Artifacts, out.Images = nil, nil
	}
	out.Tests = b.testsRecord(f, def, testReasons, out)
	out.Facts = f
	return out, nil
}

func (b *builder) testsRecord(f attest.Build, def *build.Pipeline, reasons []hallmark.Reason, out pipeline.BuildOutput) hallmark.CheckRecord {
	rec := hallmark.CheckRecord{Check: "tests", Outcome: hallmark.Pass, Revision: f.Revision, StartedOn: f.StartedOn, FinishedOn: f.FinishedOn, Tool: b.tool, Reasons: reasons}
	declared := 0
	for _, s := range def.Steps {
		if s.Test() {
			declared++
		}
	}
	switch {
	case len(reasons) > 0:
		rec.Outcome = hallmark.Fail
	case declared == 0:
		rec.Outcome = hallmark.Skipped
		rec.Reasons = []hallmark.Reason{{Code: hallmark.CodeCheckNotRun, Check: "tests", Message: "the pipeline has no test step", Fix: "add a step named test to " + pipeline.PipelineFile}}
	case len(out.Passed) < declared:
		rec.Outcome = hallmark.Skipped
		rec.Reasons = []hallmark.Reason{{Code: hallmark.CodeCheckNotRun, Check: "tests", Message: "a step failed before every test ran"}}
	}
	return rec
}

// toolPrograms are the programs that an inventory looks for.
func toolPrograms() []string {
	return []string{"sh", "go", "gcc", "cc", "g++", "ld", "make", "node", "npm", "python3", "git", "tar"}
}

// inventoryTools lists the programs of the toolchain that are here.
func inventoryTools() ([]attest.Tool, error) {
	var out []attest.Tool
	for _, name := range toolPrograms() {
		for _, dir := range strings.Split(sandbox.Path(), ":") {
			p, err := filepath.EvalSymlinks(filepath.Join(dir, name))
			if err != nil {
				continue
			}
			f, err := os.Open(p)
			if err != nil {
				return nil, fmt.Errorf("reading tool %s: %w", p, err)
			}
			d, _, err := hallmark.DigestFrom(f)
			f.Close()
			if err != nil {
				return nil, fmt.Errorf("reading tool %s: %w", p, err)
			}
			out = append(out, attest.Tool{Path: p, Tool: hallmark.Tool{Name: name, Version: toolVersion(name, p), Digest: d}})
			break
		}
	}
	return out, nil
}

// toolNames names tools as a policy approves them.
func toolNames(tools []attest.Tool) []string {
	var out []string
	for _, t := range tools {
		out = append(out, t.Name+"="+t.Digest.Hex())
	}
	return out
}

// toolVersion reads the version that lies beside a tool; the digest is what
// identifies it.
func toolVersion(name, path string) string {
	if name == "go" {
		if b, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(path)), "VERSION")); err == nil {
			v, _, _ := strings.Cut(string(b), "\n")
			return v
		}
	}
	return filepath.Base(path)
}

// goToolchain is the version of the Go toolchain that builds, such as 1.26.3, or
// "" where there is none.
func goToolchain() string {
	p, err := sandbox.Find("go")
	if err != nil {
		return ""
	}
	if p, err = filepath.EvalSymlinks(p); err != nil {
		return ""
	}
	v, ok := strings.CutPrefix(toolVersion("go", p), "go")
	if !ok {
		return ""
	}
	return v
}

func platform() map[string]string {
	out := map[string]string{}
	for key, file := range map[string]string{"kernel": "/proc/sys/kernel/osrelease", "os": "/etc/os-release"} {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		v := strings.TrimSpace(string(b))
		if key == "os" {
			for line := range strings.Lines(v) {
				if name, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
					v = strings.Trim(name, `"`)
				}
			}
		}
		out[key] = v
	}
	return out
}
