// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/gitcli"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/scan"
	"github.com/hallmark-sc/hallmark/internal/trace"
	"github.com/hallmark-sc/hallmark/internal/upstream"
	"github.com/hallmark-sc/hallmark/verify"
)

// RunConfig is what one run is asked for.
type RunConfig struct {
	Home          string
	Passphrase    []byte
	Repo, Rev     string
	Out           string
	RepositoryURI string
	CommittedOnly bool
	Parameters    map[string]string // external parameters of the build
	Progress      func(pipeline.Event)
	Secrets       []string          // NAME=FILE; given to the steps that name them
	Alert         func(EgressAlert) // hears of attempts to leave while their step runs; may be nil
	platform      *buildPlatform    // nil is this machine, for whoever holds the home
}

// Run takes one revision from commit to verdict.
func Run(ctx context.Context, cfg RunConfig) (pipeline.Result, error) {
	h, err := OpenHome(cfg.Home, cfg.Passphrase)
	if err != nil {
		return pipeline.Result{}, err
	}
	defer h.Close()
	pc, done, err := h.Pipeline(ctx, cfg)
	if err != nil {
		return pipeline.Result{}, err
	}
	res, err := runPipeline(ctx, pc, cfg)
	return res, errors.Join(err, done())
}

func runPipeline(ctx context.Context, pc pipeline.Config, cfg RunConfig) (pipeline.Result, error) {
	out, err := filepath.Abs(cfg.Out)
	if err != nil {
		return pipeline.Result{}, hallmark.Errorf(hallmark.KindInvalid, "resolving %s: %w", cfg.Out, err)
	}
	p, err := pipeline.New(pc)
	if err != nil {
		return pipeline.Result{}, err
	}
	if err := pipeline.SweepOut(out); err != nil {
		return pipeline.Result{}, fmt.Errorf("sweeping beside %s: %w", out, err)
	}
	return p.Run(ctx, cfg.Rev, out)
}

// Pipeline wires a run of this home. The caller may replace ports before it
// runs, and calls done afterwards.
func (h *Home) Pipeline(ctx context.Context, cfg RunConfig) (pc pipeline.Config, done func() error, err error) {
	if err := sweepRuns(h.Runs()); err != nil {
		return pc, nil, err
	}
	sandbox.SweepGroups()
	tool, err := Tool()
	if err != nil {
		return pc, nil, err
	}
	work, lock, err := newRunDir(h.Runs())
	if err != nil {
		return pc, nil, err
	}
	on, end := h.platform(cfg)
	cleanup := func() error { return errors.Join(end(), durable.RemoveTree(work), lock.Close()) }
	defer func() {
		if err != nil {
			cleanup()
		}
	}()
	if on.pack != "" {
		if cfg.Repo, err = h.heldRepository(ctx, cfg.Repo, on.pack, work); err != nil {
			return pc, nil, err
		}
	}
	repo, uri, err := openRepository(ctx, cfg, work)
	if err != nil {
		return pc, nil, err
	}
	signers, err := signersOf(h.document)
	if err != nil {
		return pc, nil, err
	}
	engine, err := policy.New(h.policy)
	if err != nil {
		return pc, nil, err
	}
	box, err := sandbox.New(sandbox.Config{Clock: now})
	if err != nil {
		return pc, nil, err
	}
	gateway, err := upstream.New(upstream.Config{})
	if err != nil {
		return pc, nil, err
	}
	gifts, err := given(cfg)
	if err != nil {
		return pc, nil, err
	}
	room := &room{box: box, hostID: sandbox.HostID(), work: work, params: h.params}
	fingerprintKey, err := os.ReadFile(h.Fingerprints())
	if err != nil {
		return pc, nil, hallmark.Errorf(hallmark.KindInvalid, "reading the fingerprint key: %w", err)
	}
	if len(fingerprintKey) != 32 { // with a known key, a fingerprint confirms a guessed secret
		return pc, nil, hallmark.Errorf(hallmark.KindInvalid, "fingerprint key %s has %d bytes, not 32", h.Fingerprints(), len(fingerprintKey))
	}
	src := &sourcePort{repo: repo, signers: signers, uri: uri, committedOnly: cfg.CommittedOnly, tool: tool, room: room, pin: on.pin}
	var resolves pipeline.Resolver = &resolver{room: room, gateway: gateway}
	if on.offline {
		resolves = knownResolver{resolves}
	}
	sc := scanners{home: h, room: room, tool: tool, source: src, key: fingerprintKey}
	roots := h.verifier.Roots()
	pc = pipeline.Config{
		Source: src, Resolver: resolves, Scanners: sc.all(), ImageScanner: imageScanner{sc, h.stores.blobs}, Builder: &builder{home: h, room: room, tool: tool, stores: h.stores, parts: buildParts(room, h), given: gifts, on: on, order: order{requester: on.requester, parameters: cfg.Parameters}},
		Documents: documents{}, Signer: roleSigner{on.sign, on.identity}, Decider: &decider{verifier: h.verifier, engine: engine, roots: roots},
		Saves: sealedSaves{h.stores.index, h.seal}, Blobs: h.stores.blobs, Tool: tool, Policy: h.policy.Digest(),
		PolicyFiles: map[string][]byte{"policy.json": h.policyJSON, "policy.sigstore.jsonl": h.policyLines},
		TrustedRoot: h.trustedJSON, Roots: h.rootsJSON, VerifierID: h.id.verifierID(), WorkDir: work, DepsDir: h.Deps(),
		ReuseMaxAge: h.params.ReuseMaxAge, Clock: now, Progress: cfg.Progress,
		BuilderCert: pipeline.CertificateIdentity{Issuer: "https://" + h.id.trustDomain(), SAN: "spiffe://" + h.id.trustDomain() + on.san},
		ReleaseKey:  releaseKey(roots),
	}
	if err := os.MkdirAll(h.Deps(), 0o755); err != nil {
		return pc, nil, hallmark.Errorf(hallmark.KindInvalid, "making the dependency directory: %w", err)
	}
	return pc, cleanup, nil
}

func openRepository(ctx context.Context, cfg RunConfig, work string) (*gitcli.Repository, string, error) {
	out, err := filepath.Abs(cfg.Out)
	if err != nil {
		return nil, "", hallmark.Errorf(hallmark.KindInvalid, "resolving %s: %w", cfg.Out, err)
	}
	repo, err := gitcli.Open(ctx, gitcli.Config{Repo: cfg.Repo, WorkDir: work, Ignore: out})
	if err != nil {
		return nil, "", err
	}
	uri := cfg.RepositoryURI
	if uri == "" {
		abs, err := filepath.Abs(cfg.Repo)
		if err != nil {
			return nil, "", hallmark.Errorf(hallmark.KindInvalid, "resolving %s: %w", cfg.Repo, err)
		}
		uri = (&url.URL{Scheme: "file", Path: abs}).String()
	} else if u, err := url.Parse(uri); err != nil || u.Scheme == "" || strings.ContainsAny(uri, " \n") {
		return nil, "", hallmark.Errorf(hallmark.KindUsage, "--repository %q: want a URI", uri)
	}
	return repo, uri, nil
}

func releaseKey(r verify.Roots) []byte {
	for _, s := range r.Signers {
		if s.Name == "release" && s.Key != nil {
			return []byte(s.Key.PublicKey)
		}
	}
	return nil
}

// newRunDir makes the private directory of a run. It is locked as long as the
// returned file is open, so that what a killed run left can be told.
func newRunDir(runs string) (string, *os.File, error) {
	if err := durable.MakeDir(runs, 0o700); err != nil {
		return "", nil, hallmark.Errorf(hallmark.KindInvalid, "making the run directory: %w", err)
	}
	dir, lock, err := durable.TempDir(runs, strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return "", nil, hallmark.Errorf(hallmark.KindInvalid, "making the run directory: %w", err)
	}
	return dir, lock, nil
}

// sweepRuns removes what killed runs left.
func sweepRuns(runs string) error {
	if err := durable.SweepDirs(runs, "", durable.RemoveTree); err != nil {
		return fmt.Errorf("sweeping %s: %w", runs, err)
	}
	return nil
}

// room runs things in sandboxes for one run.
type room struct {
	box    *sandbox.Sandbox
	hostID int // of every sandbox of this run
	work   string
	params policy.Parameters
}

func (r *room) limits(wall time.Duration) sandbox.Limits {
	return sandbox.Limits{Memory: r.params.BuildMemory, Disk: r.params.BuildDisk, PIDs: r.params.BuildPIDs, CPUs: float64(r.params.BuildCPUs), Wall: wall}
}

// Run implements scan.Worker: our own binary under the worker's name, or an
// external program.
func (r *room) Run(ctx context.Context, job scan.Job) (scan.Report, error) {
	out, errs := &bounded{max: 300 << 20}, &bounded{max: 1 << 20}
	spec := sandbox.Spec{
		Argv: append([]string{scan.Alias}, job.Args...), Self: true, Dir: "/", Stdin: job.Stdin, Stdout: out, Stderr: errs, Limits: r.limits(job.Wall),
		Env: []string{"PATH=" + sandbox.Path(), "HOME=/tmp/home", "GOCACHE=/tmp/gocache", "GOMODCACHE=" + modCache, "TMPDIR=/tmp", "LANG=C.UTF-8", trace.QuickStart},
	}
	if len(job.Program) > 0 {
		spec.Argv, spec.Self, spec.Dir, spec.Env = job.Program, false, job.Dir, job.Env
	}
	if job.Memory > 0 {
		spec.Limits.Memory = min(spec.Limits.Memory, job.Memory)
	}
	for _, m := range job.Mounts {
		spec.Mounts = append(spec.Mounts, sandbox.Mount{Source: m.Source, Target: m.Target})
	}
	rep, err := r.box.RunAs(ctx, r.hostID, spec)
	if err != nil {
		return scan.Report{}, err
	}
	return scan.Report{Stdout: out.b, Stderr: errs.b, ExitCode: rep.ExitCode, LimitHit: limitOf(rep), Egress: len(rep.Egress)}, nil
}

// limitOf names the limit that ended a worker: hit, or gone.
func limitOf(rep sandbox.Report) string {
	if rep.LimitHit == "" && len(rep.Lost) > 0 {
		return "vanished " + strings.Join(rep.Lost, ", ")
	}
	return rep.LimitHit
}

// bounded keeps the beginning of what is written.
type bounded struct {
	b   []byte
	max int
}

func (w *bounded) Write(p []byte) (int, error) {
	if room := w.max - len(w.b); room > 0 {
		w.b = append(w.b, p[:min(room, len(p))]...)
	}
	return len(p), nil
}
