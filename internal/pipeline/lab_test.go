// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/pipeline/pipelinetest"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/internal/sign/signtest"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/tlog"
	"github.com/hallmark-sc/hallmark/verify"
)

const (
	domain     = "p.hallmark.test"
	origin     = "log." + domain
	verifierID = "https://v.test"
)

// keysOnce makes the keys of every lab of this process: making them durably
// takes longer than a run.
var keysOnce = sync.OnceValues(func() (*sign.Keyring, error) {
	dir := os.Getenv("PIPELINE_DIR") // of a run that will be killed: the test reads its keys
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "pipeline-keys-"); err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
	}
	return keysIn(dir)
})

func keysIn(dir string) (*sign.Keyring, error) {
	return sign.Create(sign.Config{Dir: filepath.Join(dir, "home"), TrustDomain: domain, Clock: func() time.Time { return time.Now().Add(-2 * time.Hour) }})
}

var errFault = errors.New("a fault of the test")

// lab is a pipeline over ports that do what a test says. Signatures, log and
// verification are real; scanners, builder and policy are not.
type lab struct {
	t     testing.TB
	dir   string
	out   string
	store *pipelinetest.Memory
	now   time.Time

	keys     *sign.Keyring
	signer   *sign.Signer
	verifier *verify.Verifier
	roots    []byte
	trusted  []byte

	mu     sync.Mutex
	calls  []string          // every call of a port, in order
	counts map[string]int    // calls by name
	fault  string            // "name n": the n-th call of name fails
	signed map[string]string // bundles by statement
	roles  []pipeline.Role   // of everything that was signed

	// What the ports answer.
	source   hallmark.CheckRecord
	revision hallmark.Revision
	export   pipeline.Export
	deps     pipeline.Dependencies
	depsErr  error

	onFetch    func() // while packages are fetched
	alteredErr error  // of packages that were fetched before
	scans      map[string]hallmark.Outcome
	rules      map[string]string
	build      func() (pipeline.BuildOutput, error)
	edit       func(*pipeline.Config)
	savesEdit  func(stage string, b []byte, at time.Time) ([]byte, time.Time)
	onDisk     func(step durable.Step, path string) error
}

func newLab(t testing.TB, dir string) *lab {
	t.Helper()
	l := &lab{t: t, dir: dir, out: filepath.Join(dir, "results", "out"), store: pipelinetest.NewMemory(), now: time.Now().Add(-time.Hour).UTC(), signed: map[string]string{}, counts: map[string]int{}}
	l.revision = hallmark.Revision{Repository: "file:///r", Ref: "refs/heads/main", Commit: strings.Repeat("a", 40), Tree: strings.Repeat("b", 40)}
	l.source = l.record("source", hallmark.Pass)
	l.export = pipeline.Export{Dir: filepath.Join(dir, "export"), Files: 1, Manifest: hallmark.DigestOf([]byte("manifest")), Pipeline: []byte("definition")}
	l.scans = map[string]hallmark.Outcome{"secrets": hallmark.Pass, "sast": hallmark.Pass, "sbom": hallmark.Pass, "sca": hallmark.Pass}
	l.rules = map[string]string{}
	l.build = l.goodBuild
	keys, err := keysOnce()
	if err != nil {
		t.Fatal(err)
	}
	l.trust(keys)
	return l
}

func (l *lab) trust(keys *sign.Keyring) {
	l.t.Helper()
	must := func(err error) {
		l.t.Helper()
		if err != nil {
			l.t.Fatal(err)
		}
	}
	l.keys = keys
	cs, err := l.keys.CheckpointSigner(origin)
	must(err)
	key := l.keys.Checkpoint().Key.(ed25519.PublicKey)
	log, err := signtest.NewMemory(origin, cs, key)
	must(err)
	id, err := tlog.LogID(origin, key)
	must(err)
	l.trusted, err = l.keys.TrustedRoot(origin, id)
	must(err)
	issuer, san := "https://"+domain, "spiffe://"+domain
	artifact, policy := l.keys.Artifact(), l.keys.Policy()
	r := verify.Roots{APIVersion: "hallmark/v1", Kind: "Roots", TrustDomain: domain, Mode: verify.ModeSingleOperator, Administrators: []string{"ada"},
		Policy: verify.PolicyRoots{Keys: []verify.Key{{Hint: policy.Hint, PublicKey: policy.PEM}}, Threshold: 1, MinimumVersion: 1},
		Signers: []verify.Signer{
			{Name: "observer", Certificate: &verify.Certificate{Issuer: issuer, SAN: san + "/observer"}, PredicateTypes: []string{
				intoto.PredicateSource, intoto.PredicateTestResult, intoto.PredicateVulns, intoto.PredicateSCAI, intoto.PredicateLink, intoto.PredicateSPDX, intoto.PredicateCycloneDX}},
			{Name: "builder", Certificate: &verify.Certificate{Issuer: issuer, SAN: san + "/builder/local"}, PredicateTypes: []string{intoto.PredicateProvenance}, BuilderIDs: []string{intoto.BuilderLocal}, MaxLevel: "SLSA_BUILD_LEVEL_1"},
			{Name: "release", Key: &verify.Key{Hint: artifact.Hint, PublicKey: artifact.PEM}, PredicateTypes: []string{intoto.PredicateVSA}, VerifierIDs: []string{verifierID}},
		},
		Logs: []verify.Log{{Origin: origin, PublicKey: l.keys.Checkpoint().PEM}}, TrustedRoot: hallmark.DigestOf(l.trusted)}
	l.roots, err = r.Encode()
	must(err)
	l.verifier, err = verify.New(verify.Config{Roots: l.roots, Pin: hallmark.DigestOf(l.roots), TrustedRoot: l.trusted})
	must(err)
	l.signer, err = sign.NewSigner(sign.SignerConfig{Keyring: l.keys, Log: log, TrustDomain: domain, Clock: func() time.Time { return l.now },
		Existing: func(_ context.Context, d hallmark.Digest) ([]byte, bool, error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			b, ok := l.signed[string(d)]
			return []byte(b), ok, nil
		}})
	must(err)
}

func (l *lab) record(check string, o hallmark.Outcome) hallmark.CheckRecord {
	return hallmark.CheckRecord{Check: check, Outcome: o, Revision: l.revision, StartedOn: l.now, FinishedOn: l.now, Tool: hallmark.Tool{Name: "hallmark", Version: "test"}}
}

func (l *lab) goodBuild() (pipeline.BuildOutput, error) {
	var artifacts []hallmark.Artifact
	for _, name := range []string{"app", "app.conf"} {
		d, err := l.store.Put(context.Background(), []byte("bytes of "+name))
		if err != nil {
			return pipeline.BuildOutput{}, err
		}
		artifacts = append(artifacts, hallmark.Artifact{Name: name, Digest: d, Size: int64(len("bytes of " + name)), Mode: 0o4755})
	}
	log, err := l.store.Put(context.Background(), []byte("log"))
	if err != nil {
		return pipeline.BuildOutput{}, err
	}
	return pipeline.BuildOutput{
		Facts: attest.Build{Revision: l.revision, Pipeline: intoto.PipelineRef{Path: pipeline.PipelineFile, Digest: hallmark.DigestOf(l.export.Pipeline)}, BuilderID: intoto.BuilderLocal,
			StartedOn: l.now, FinishedOn: l.now, Artifacts: artifacts, Steps: []attest.Step{{Name: "build", Log: log}}, Record: l.record("build", hallmark.Pass)},
		Tests: l.record("tests", hallmark.Pass), Passed: []string{"test"}, Decision: hallmark.Decision{Effect: hallmark.Allow},
	}, nil
}

// hit notes a call and fails it if the test says so.
func (l *lab) hit(name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[name]++
	call := fmt.Sprintf("%s %d", name, l.counts[name])
	l.calls = append(l.calls, call)
	if call == l.fault {
		return errFault
	}
	return nil
}

func (l *lab) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls, l.counts, l.fault, l.roles = nil, map[string]int{}, "", nil
}

func (l *lab) called(name string) bool { return l.counts[name] > 0 }

type sourcePort struct{ *lab }

func (l sourcePort) Check(context.Context, string) (pipeline.SourceFacts, error) {
	rec := l.source
	return pipeline.SourceFacts{Provenance: intoto.SourceProvenance{Revision: l.revision, Check: &rec}}, l.hit("source.check")
}
func (l sourcePort) Export(context.Context, hallmark.Revision, string) (pipeline.Export, error) {
	return l.export, l.hit("source.export")
}

type resolverPort struct{ *lab }

func (l resolverPort) Plan(context.Context, pipeline.Export) (hallmark.Digest, error) {
	return hallmark.DigestOf(fmt.Append(nil, l.deps.List)), l.hit("resolver.plan")
}

func (l resolverPort) Verify(context.Context, pipeline.Export, string) (pipeline.Dependencies, error) {
	return l.deps, errors.Join(l.hit("resolver.verify"), l.alteredErr)
}

func (l resolverPort) Fetch(_ context.Context, _ pipeline.Export, dest string) (pipeline.Dependencies, error) {
	if l.onFetch != nil {
		l.onFetch()
	}
	return l.deps, errors.Join(l.hit("resolver.fetch"), l.depsErr)
}

type scannerPort struct {
	*lab
	name string
}

func (l scannerPort) Name() string { return l.name }
func (l scannerPort) Fingerprint(context.Context) (hallmark.Digest, error) {
	return hallmark.DigestOf([]byte(l.name + l.rules[l.name])), l.hit(l.name + ".fingerprint")
}
func (l scannerPort) Scan(context.Context, pipeline.Input) (pipeline.ScanOutput, error) {
	out := pipeline.ScanOutput{Record: l.record(l.name, l.scans[l.name])}
	if l.name == "sbom" {
		out.Inventory = []byte("inventory")
	}
	return out, l.hit(l.name + ".scan")
}

type builderPort struct{ *lab }

func (l builderPort) Fingerprint(context.Context) (hallmark.Digest, error) {
	return hallmark.DigestOf([]byte("tools" + l.rules["build"])), l.hit("builder.fingerprint")
}
func (l builderPort) Build(context.Context, pipeline.Input, string) (pipeline.BuildOutput, error) {
	if err := l.hit("builder.build"); err != nil {
		return pipeline.BuildOutput{}, err
	}
	return l.build()
}

type documentsPort struct{ *lab }

func (l documentsPort) Render([]byte, hallmark.Revision, []hallmark.Artifact, time.Time) ([]byte, []byte, error) {
	return []byte(`{"spdx":1}`), []byte(`{"cdx":1}`), l.hit("documents.render")
}
func (l documentsPort) SARIF([]hallmark.CheckRecord, []hallmark.Finding) ([]byte, error) {
	return []byte(`{"sarif":1}`), l.hit("documents.sarif")
}

type signerPort struct{ *lab }

func (l signerPort) Sign(ctx context.Context, role pipeline.Role, st intoto.Statement, permit *pipeline.Permit) (pipeline.Signed, error) {
	names := map[pipeline.Role]string{pipeline.Observer: "observer", pipeline.Platform: "platform", pipeline.Release: "release"}
	if err := l.hit("signer." + names[role]); err != nil {
		return pipeline.Signed{}, err
	}
	payload, err := st.Marshal()
	if err != nil {
		return pipeline.Signed{}, err
	}
	var p *sign.Permit
	if permit != nil {
		p = &sign.Permit{Statement: permit.Statement, BuildPolicy: permit.Policy, Decision: permit.Decision}
	}
	b, err := l.signer.Sign(ctx, sign.Request{Identity: map[pipeline.Role]sign.Identity{pipeline.Observer: sign.Observer, pipeline.Platform: sign.Builder, pipeline.Release: sign.Release}[role], Statement: payload, Permit: p})
	if err != nil {
		return pipeline.Signed{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.signed[string(b.Statement)] = string(b.JSON)
	l.roles = append(l.roles, role)
	return pipeline.Signed{JSON: b.JSON, Statement: b.Statement, Digest: b.Digest}, nil
}

type deciderPort struct{ *lab }

func (l deciderPort) Verify(bundle []byte) (verify.Statement, error) {
	if err := l.hit("decider.verify"); err != nil {
		return verify.Statement{}, err
	}
	return l.verifier.Verify(bundle)
}

func (l deciderPort) Decide(_ context.Context, req pipeline.DecideRequest) (pipeline.Verdict, error) {
	v := pipeline.Verdict{Decision: hallmark.Decision{Effect: hallmark.Allow}, Clock: req.Clock, Levels: []string{"SLSA_BUILD_LEVEL_1"}}
	for _, s := range req.Statements {
		rec, err := intoto.CheckOf(s.Statement())
		if err != nil {
			return v, err
		}
		if rec != nil && rec.Outcome != hallmark.Pass {
			v.Decision.Effect = hallmark.Deny
		}
	}
	v.JSON = fmt.Appendf(nil, `{"effect":%q,"inputs":%d}`, v.Decision.Effect, len(req.Statements))
	return v, l.hit("decider.decide")
}

type savesPort struct{ *lab }

func (l savesPort) Save(ctx context.Context, stage string, key hallmark.Digest, b []byte, at time.Time) error {
	if err := l.hit("saves.save"); err != nil {
		return err
	}
	return l.store.Save(ctx, stage, key, b, at)
}
func (l savesPort) Saved(ctx context.Context, stage string, key hallmark.Digest) ([]byte, time.Time, bool, error) {
	if err := l.hit("saves.saved"); err != nil {
		return nil, time.Time{}, false, err
	}
	b, at, ok, err := l.store.Saved(ctx, stage, key)
	if ok && l.savesEdit != nil {
		b, at = l.savesEdit(stage, b, at)
	}
	return b, at, ok, err
}

type blobsPort struct{ *lab }

func (l blobsPort) Put(ctx context.Context, b []byte) (hallmark.Digest, error) {
	if err := l.hit("blobs.put"); err != nil {
		return "", err
	}
	return l.store.Put(ctx, b)
}
func (l blobsPort) Get(ctx context.Context, d hallmark.Digest) ([]byte, error) {
	if err := l.hit("blobs.get"); err != nil {
		return nil, err
	}
	return l.store.Get(ctx, d)
}

func (l *lab) config() pipeline.Config {
	work := filepath.Join(l.dir, "work")
	os.RemoveAll(work)
	cfg := pipeline.Config{
		Source: sourcePort{l}, Resolver: resolverPort{l}, Builder: builderPort{l}, Documents: documentsPort{l}, Signer: signerPort{l}, Decider: deciderPort{l},
		Scanners: []pipeline.Scanner{scannerPort{l, "secrets"}, scannerPort{l, "sast"}, scannerPort{l, "sbom"}, scannerPort{l, "sca"}},
		Saves:    savesPort{l}, Blobs: blobsPort{l}, Tool: hallmark.Tool{Name: "hallmark", Digest: hallmark.DigestOf([]byte("binary"))}, Policy: hallmark.DigestOf([]byte("policy")),
		PolicyFiles: map[string][]byte{"policy.json": []byte("{}")}, TrustedRoot: l.trusted, Roots: l.roots, VerifierID: verifierID, WorkDir: work, DepsDir: filepath.Join(l.dir, "deps"),
		ReuseMaxAge: time.Hour, Clock: func() time.Time { return l.now }, BuilderCert: pipeline.CertificateIdentity{Issuer: "https://" + domain, SAN: "spiffe://" + domain + "/builder/local"},
		ReleaseKey: []byte(l.keys.Artifact().PEM),
		Disk: durable.Disk{After: func(step durable.Step, path string) error {
			if l.onDisk != nil {
				return l.onDisk(step, path)
			}
			return l.hit("disk")
		}},
	}
	if l.edit != nil {
		l.edit(&cfg)
	}
	return cfg
}

func (l *lab) run() (pipeline.Result, error) {
	l.t.Helper()
	if err := os.MkdirAll(filepath.Join(l.dir, "deps"), 0o755); err != nil {
		l.t.Fatal(err)
	}
	p, err := pipeline.New(l.config())
	if err != nil {
		l.t.Fatal(err)
	}
	return p.Run(context.Background(), "HEAD", l.out)
}

func (l *lab) must() pipeline.Result {
	l.t.Helper()
	res, err := l.run()
	if err != nil {
		l.t.Fatal(err)
	}
	return res
}

// tree is everything in a directory, by name, with mode and content.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		b, err := os.ReadFile(p)
		rel, _ := filepath.Rel(dir, p)
		out[rel] = fmt.Sprintf("%s %s", info.Mode(), b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// whole checks that a directory is a complete result that belongs together.
func (l *lab) whole(dir string) {
	l.t.Helper()
	files := tree(l.t, dir)
	want := []string{"VERIFY.txt", "app", "app.conf", "app.conf.sigstore.json", "app.sigstore.json", "evidence.jsonl", "findings.sarif", "policy/policy.json",
		"release.pub", "roots.json", "sbom.cdx.json", "sbom.spdx.json", "trusted_root.json", "verdict.json", "verdict.sigstore.json"}
	if got := slices.Sorted(maps.Keys(files)); !slices.Equal(got, want) {
		l.t.Errorf("%s holds %v\nwant %v", dir, got, want)
		return
	}
	if !strings.HasPrefix(files["app"], "-rwxr-xr-x bytes of app") {
		l.t.Errorf("app: %q", files["app"])
	}
	var verdict string
	evidence, err := os.ReadFile(filepath.Join(dir, "evidence.jsonl"))
	if err != nil {
		l.t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(evidence)) {
		s, err := l.verifier.Verify([]byte(strings.TrimSuffix(line, "\n")))
		if err != nil {
			l.t.Errorf("line %d of evidence: %v", n+1, err)
			continue
		}
		n++
		if s.PredicateType() == intoto.PredicateVSA {
			v, err := intoto.DecodePredicate[intoto.VSA](s.Statement())
			if err != nil || len(v.InputAttestations) != strings.Count(string(evidence), "\n")-1 {
				l.t.Errorf("the summary lists %d inputs of %d: %v", len(v.InputAttestations), strings.Count(string(evidence), "\n")-1, err)
			}
			verdict = string(v.Verdict.Digest)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "verdict.json"))
	if err != nil || verdict != string(hallmark.DigestOf(b)) {
		l.t.Errorf("the summary is of verdict %s: %v", verdict, err)
	}
	if !json.Valid(b) {
		l.t.Errorf("verdict: %s", b)
	}
}
