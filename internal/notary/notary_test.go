// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package notary

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/internal/sign/signtest"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/tlog"
	"github.com/hallmark-sc/hallmark/verify"
)

const (
	domain     = "a.hallmark.test"
	origin     = "log." + domain
	verifierID = "https://" + domain + "/verifier"
	repository = "https://" + domain + "/app.git"
)

// TestMain is also an asker of another user.
func TestMain(m *testing.M) {
	if socket := os.Getenv("NOTARY_ASK"); socket != "" {
		uid, _ := strconv.Atoi(os.Getenv("NOTARY_UID"))
		c, err := Dial(context.Background(), ClientConfig{Socket: socket, UID: uid, TrustDomain: domain})
		if err != nil {
			fmt.Print(hallmark.CodeOf(err))
			os.Exit(0)
		}
		fmt.Print("hello ", c.Facts().UID)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// keysOf are made once: they are most of the time of a test otherwise.
var keysOf = sync.OnceValues(func() (*sign.Keyring, error) {
	dir, err := os.MkdirTemp("", "notary-keys-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	return sign.Create(sign.Config{Dir: dir, TrustDomain: domain, Clock: time.Now})
})

// lab is a notary over real keys, a log in memory and a signed policy.
type lab struct {
	t        *testing.T
	socket   string
	keys     *sign.Keyring
	log      *signtest.Memory
	signer   *sign.Signer
	rules    Rules
	said     *syncBuffer
	warmed   chan struct{}
	revision hallmark.Revision
	started  time.Time
}

// syncBuffer is a log that is read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (l *lab) Sign(ctx context.Context, r sign.Request) (sign.Bundle, error) {
	return l.signer.Sign(ctx, r)
}
func (l *lab) Seal(purpose string, b []byte) ([]byte, error) { return l.keys.Seal(purpose, b) }
func (l *lab) Warm(context.Context)                          { l.warmed <- struct{}{} }
func (l *lab) Head(context.Context) (uint64, []byte, error)  { return uint64(l.log.Size()), nil, nil }
func (l *lab) InForce(context.Context) (Rules, error) {
	if l.rules.Engine == nil {
		return Rules{}, hallmark.Errorf(hallmark.KindInvalid, "no policy can be verified")
	}
	return l.rules, nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newLab starts a notary for a user.
func newLab(t *testing.T, uid int) *lab {
	t.Helper()
	keys, err := keysOf()
	must(t, err)
	l := &lab{t: t, keys: keys, said: &syncBuffer{}, warmed: make(chan struct{}, 8), started: time.Now().UTC().Truncate(time.Millisecond),
		revision: hallmark.Revision{Repository: repository, Ref: "refs/heads/main", Commit: strings.Repeat("a", 40), Tree: strings.Repeat("b", 40)}}
	cs, err := keys.CheckpointSigner(origin)
	must(t, err)
	key := keys.Checkpoint().Key.(ed25519.PublicKey)
	l.log, err = signtest.NewMemory(origin, cs, key)
	must(t, err)
	id, err := tlog.LogID(origin, key)
	must(t, err)
	trusted, err := keys.TrustedRoot(origin, id)
	must(t, err)
	roots := rootsOf(keys, trusted)
	b, err := roots.Encode()
	must(t, err)
	verifier, err := verify.New(verify.Config{Roots: b, Pin: hallmark.DigestOf(b), TrustedRoot: trusted})
	must(t, err)
	l.signer, err = sign.NewSigner(sign.SignerConfig{Keyring: keys, Log: l.log, TrustDomain: domain, Clock: time.Now})
	must(t, err)
	l.rules = l.lawOf(verifier)
	n, err := New(Config{For: uid, TrustDomain: domain, Origin: origin, VerifierID: verifierID, Signer: l, Law: l, Clock: time.Now,
		Log: slog.New(slog.NewJSONHandler(l.said, nil)),
		Levels: func(string, policy.Document, intoto.RefTransition) ([]string, error) {
			return []string{"SLSA_SOURCE_LEVEL_3"}, nil
		}})
	must(t, err)
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o755))
	}
	// A name that the kernel would not take as it is.
	l.socket = filepath.Join(dir, strings.Repeat("long", 30), "socket")
	must(t, os.Mkdir(filepath.Dir(l.socket), 0o755))
	listener, err := Listen(l.socket)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the notary ended with %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the notary does not end")
		}
	})
	return l
}

func rootsOf(keys *sign.Keyring, trusted []byte) verify.Roots {
	issuer, san := "https://"+domain, "spiffe://"+domain
	artifact, pol := keys.Artifact(), keys.Policy()
	cert := func(name string) *verify.Certificate { return &verify.Certificate{Issuer: issuer, SAN: san + name} }
	key := verify.Key{Hint: pol.Hint, PublicKey: pol.PEM}
	return verify.Roots{APIVersion: "hallmark/v1", Kind: "Roots", TrustDomain: domain, Mode: verify.ModeSingleOperator, Administrators: []string{"ada"},
		Policy: verify.PolicyRoots{Keys: []verify.Key{key}, Threshold: 1, MinimumVersion: 1},
		Signers: []verify.Signer{
			{Name: "observer", Certificate: cert("/observer"), PredicateTypes: []string{
				intoto.PredicateSource, intoto.PredicateTestResult, intoto.PredicateVulns, intoto.PredicateSCAI, intoto.PredicateLink, intoto.PredicateSPDX, intoto.PredicateCycloneDX}},
			{Name: "builder", Certificate: cert("/builder/local"), PredicateTypes: []string{intoto.PredicateProvenance}, BuilderIDs: []string{intoto.BuilderLocal}, MaxLevel: "SLSA_BUILD_LEVEL_1"},
			{Name: "server", Certificate: cert("/builder/server"), PredicateTypes: []string{intoto.PredicateProvenance}, BuilderIDs: []string{intoto.BuilderServer}, MaxLevel: "SLSA_BUILD_LEVEL_3"},
			{Name: "gate", Certificate: cert("/gate"), PredicateTypes: []string{intoto.PredicateTransition, intoto.PredicateReview, intoto.PredicateAccess}},
			{Name: "release", Key: &verify.Key{Hint: artifact.Hint, PublicKey: artifact.PEM}, PredicateTypes: []string{intoto.PredicateVSA}, VerifierIDs: []string{verifierID}},
			{Name: "policy", Key: &key, PredicateTypes: []string{intoto.PredicatePolicy, intoto.PredicateGenesis}},
		},
		Logs: []verify.Log{{Origin: origin, PublicKey: keys.Checkpoint().PEM}}, TrustedRoot: hallmark.DigestOf(trusted)}
}

// lawOf signs a policy that lets bob build main of the repository on the server.
func (l *lab) lawOf(v *verify.Verifier) Rules {
	l.t.Helper()
	doc := policy.Default(policy.Options{IssuedOn: time.Now().Add(-time.Hour)})
	doc.Parameters["build.builders"] = intoto.BuilderServer
	doc.Build.Rules = []policy.BuildRule{{
		Name: "main", Repositories: []string{repository}, Refs: []string{"refs/heads/main"}, Requesters: []string{"ssh:bob@example.org"},
		Platforms: []policy.BuildPlatform{{Builder: intoto.BuilderServer, Image: "host"}}, Tools: policy.BuildTools{Inventory: policy.ToolsRecorded, BuiltPrograms: "allow"}, Parameters: map[string]policy.BuildParameter{},
	}}
	raw, err := doc.Encode()
	must(l.t, err)
	st, err := attest.PolicyStatement(hallmark.DigestOf(raw), 1, "")
	must(l.t, err)
	payload, err := st.Marshal()
	must(l.t, err)
	b, err := l.signer.Sign(l.t.Context(), sign.Request{Identity: sign.Policy, Statement: payload})
	must(l.t, err)
	p, err := v.Policy(raw, [][]byte{b.JSON})
	must(l.t, err)
	if doc, err = policy.ParseDocument(raw); err != nil {
		l.t.Fatal(err)
	}
	engine, err := policy.New(p)
	must(l.t, err)
	return Rules{Policy: p, Document: doc, Engine: engine, Verifier: v}
}

// raw connects as whoever does not ask who answers: a server that was taken over.
func (l *lab) raw() *Conn {
	l.t.Helper()
	name, dir, err := short(l.socket)
	must(l.t, err)
	defer dir.Close()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: name, Net: "unix"})
	must(l.t, err)
	l.t.Cleanup(func() { c.Close() })
	return &Conn{c: c}
}

// conn is a connection that said hello.
func (l *lab) conn() *Conn {
	l.t.Helper()
	c := l.raw()
	l.hello(c)
	return c
}

func (l *lab) hello(c *Conn) {
	l.t.Helper()
	res, err := c.ask(l.t.Context(), request{Hello: &Hello{Version: Version, TrustDomain: domain}})
	must(l.t, err)
	c.facts = *res.Hello
}

// facts are a build by the server.
func (l *lab) facts() attest.Build {
	record := func(check string) hallmark.CheckRecord {
		return hallmark.CheckRecord{Check: check, Outcome: hallmark.Pass, Revision: l.revision, StartedOn: l.started, FinishedOn: l.started.Add(time.Second), Tool: hallmark.Tool{Name: "hallmark", Version: "test"}}
	}
	var held []attest.Guarantee
	for _, g := range []string{"namespaces", "no-new-privileges", "capabilities-dropped", "seccomp", "root-read-only", "proc-masked", "sysfs-absent", "devices-minimal",
		"kernel-settings-closed", "unprivileged-user", "no-network", "workspace-overlay", intoto.GuaranteeFresh, intoto.GuaranteeSigner} {
		held = append(held, attest.Guarantee{Name: g, Holds: true})
	}
	return attest.Build{
		Guarantees: held,
		Revision:   l.revision, Pipeline: intoto.PipelineRef{Path: ".hallmark/pipeline.yaml", Digest: hallmark.DigestOf([]byte("pipeline"))}, BuilderID: intoto.BuilderServer,
		Version: "test", StartedOn: l.started, FinishedOn: l.started.Add(time.Second), Artifacts: []hallmark.Artifact{{Name: "app", Digest: hallmark.DigestOf([]byte("app")), Size: 3, Mode: 0o755}},
		Platform: map[string]string{"kernel": "k", "image": "host"}, Manifest: hallmark.DigestOf([]byte("manifest")), Record: record("build"),
		Requester: &intoto.Requester{Principals: []string{"ssh:bob@example.org"}, Authentication: "token", User: "bob@example.org"},
		Rule:      &attest.Rule{Name: "main", BuiltPrograms: true},
		Steps:     []attest.Step{{Name: "build", Command: []string{"sh", "-c", "make"}, StartedOn: l.started, FinishedOn: l.started.Add(time.Second)}},
		Tools:     []attest.Tool{{Path: "/bin/sh", Tool: hallmark.Tool{Name: "sh", Version: "1", Digest: hallmark.DigestOf([]byte("sh"))}}},
	}
}

// observed are the statements about a build, by kind.
func (l *lab) observed(b attest.Build) map[string]intoto.Statement {
	l.t.Helper()
	out := map[string]intoto.Statement{}
	add := func(kind string) func(intoto.Statement, error) {
		return func(st intoto.Statement, err error) {
			l.t.Helper()
			must(l.t, err)
			out[kind] = st
		}
	}
	src, tests := b.Record, b.Record
	src.Check, tests.Check = "source", "tests"
	src.Outcome, src.Reasons, tests.Outcome, tests.Reasons = hallmark.Pass, nil, hallmark.Pass, nil
	add(kindSource)(attest.Source(intoto.SourceProvenance{Revision: b.Revision, Author: "a", Committer: "c", CommittedOn: l.started, Parents: []string{}, Check: &src}))
	add(kindProcess)(attest.Process(b))
	add(kindEnvironment)(attest.Environment(b))
	add(kindMaterials)(attest.Materials(b))
	add(kindArtifacts)(attest.Artifacts(b, nil))
	add(kindTests)(attest.TestResult(tests, nil, []string{"unit"}, nil))
	return out
}

func marshal(t *testing.T, st intoto.Statement) []byte {
	t.Helper()
	b, err := st.Marshal()
	must(t, err)
	return b
}

// observe has statements signed by the notary, and presents what it made.
func (l *lab) observe(c *Conn, list map[string]intoto.Statement) []attest.Observation {
	l.t.Helper()
	var out []attest.Observation
	for _, k := range kinds() {
		st, ok := list[k]
		if !ok {
			continue
		}
		b, err := c.Sign(l.t.Context(), "observer", marshal(l.t, st), nil, nil)
		if err != nil {
			l.t.Fatalf("%s: %v", k, err)
		}
		must(l.t, c.Present(l.t.Context(), b))
		out = append(out, attest.Observation{Statement: hallmark.DigestOf(intoto.PAE(intoto.PayloadType, marshal(l.t, st))), PredicateType: st.PredicateType})
	}
	return out
}

// provenance is of a build over observations, with a permit for it.
func (l *lab) provenance(b attest.Build, over []attest.Observation) ([]byte, *Permit) {
	l.t.Helper()
	b.Observations = over
	st, err := attest.Provenance(b)
	must(l.t, err)
	payload := marshal(l.t, st)
	return payload, &Permit{Statement: hallmark.DigestOf(intoto.PAE(intoto.PayloadType, payload)), Policy: l.rules.Policy.Digest(), Decision: hallmark.Decision{Effect: hallmark.Allow}}
}

func wantCode(t *testing.T, what string, err error, want hallmark.Code) {
	t.Helper()
	if hallmark.CodeOf(err) != want || err == nil {
		t.Errorf("%s: got %s (%v), want %s", what, hallmark.CodeOf(err), err, want)
	}
}

// TestProvenance: a server's build is signed, once, and nothing that differs from
// what the notary itself signed of it before.
func TestProvenance(t *testing.T) {
	l := newLab(t, os.Geteuid())
	c := l.conn()
	good := l.observe(c, l.observed(l.facts()))
	payload, permit := l.provenance(l.facts(), good)
	before := l.log.Size()

	refused := func(what string, want hallmark.Code, statement []byte, p *Permit) {
		t.Helper()
		l.hello(c)
		_, err := c.Sign(t.Context(), "server", statement, p, nil)
		wantCode(t, what, err, want)
	}
	edited := func(edit func(*Permit)) *Permit {
		p := *permit
		edit(&p)
		return &p
	}
	refused("no permit", hallmark.CodeSignerPermitMissing, payload, nil)
	refused("a permit for another statement", hallmark.CodeSignerPermitOther, payload, edited(func(p *Permit) { p.Statement = hallmark.DigestOf(payload) }))
	refused("a permit of another policy", hallmark.CodeSignerPolicy, payload, edited(func(p *Permit) { p.Policy = hallmark.DigestOf([]byte("other")) }))
	refused("a denial", hallmark.CodeBuildPolicy, payload, edited(func(p *Permit) { p.Decision.Effect = hallmark.Deny }))
	refused("no decision", hallmark.CodeSignerMessage, payload, edited(func(p *Permit) { p.Decision = hallmark.Decision{} }))
	refused("an allowance with a reason against it", hallmark.CodeBuildPolicy, payload, edited(func(p *Permit) { p.Decision.Reasons = []hallmark.Reason{{Code: "X"}} }))

	forged := func(what string, want hallmark.Code, edit func(*attest.Build)) {
		t.Helper()
		b := l.facts()
		edit(&b)
		p, permit := l.provenance(b, good)
		refused(what, want, p, permit)
	}
	forged("a local builder", hallmark.CodeSignerBuilder, func(b *attest.Build) { b.BuilderID = intoto.BuilderLocal })
	forged("another requester", hallmark.CodeBuildRequester, func(b *attest.Build) {
		b.Requester = &intoto.Requester{Principals: []string{"ssh:eve@example.org"}}
	})
	forged("another ref", hallmark.CodeBuildNotPermitted, func(b *attest.Build) { b.Revision.Ref = "refs/heads/evil" })
	forged("another repository", hallmark.CodeBuildNotPermitted, func(b *attest.Build) { b.Revision.Repository = "https://evil.example/app" })
	forged("a parameter", hallmark.CodeBuildParameter, func(b *attest.Build) { b.Parameters = map[string]string{"DEBUG": "1"} })
	forged("another image", hallmark.CodeBuildPlatform, func(b *attest.Build) { b.Platform["image"] = "sha256:" + strings.Repeat("1", 64) })
	other := hallmark.CodeSignerObservationOther
	forged("an artifact that nobody built", other, func(b *attest.Build) { b.Artifacts[0].Digest = hallmark.DigestOf([]byte("evil")) })
	forged("one artifact more", other, func(b *attest.Build) {
		b.Artifacts = append(b.Artifacts, hallmark.Artifact{Name: "evil", Digest: hallmark.DigestOf([]byte("evil"))})
	})
	forged("another commit", other, func(b *attest.Build) { b.Revision.Commit = strings.Repeat("c", 40) })
	forged("another pipeline", other, func(b *attest.Build) { b.Pipeline.Digest = hallmark.DigestOf([]byte("evil")) })
	forged("another time", other, func(b *attest.Build) { b.StartedOn = b.StartedOn.Add(time.Hour) })
	forged("another end", other, func(b *attest.Build) { b.FinishedOn = b.FinishedOn.Add(time.Hour) })
	forged("another tool", other, func(b *attest.Build) { b.Tools[0].Digest = hallmark.DigestOf([]byte("evil")) })
	forged("another kernel", other, func(b *attest.Build) { b.Platform["kernel"] = "evil" })

	for i, k := range kinds() { // each is needed
		rest := append(append([]attest.Observation{}, good[:i]...), good[i+1:]...)
		p, permit := l.provenance(l.facts(), rest)
		refused("without "+k, hallmark.CodeSignerObservationMissing, p, permit)
		p, permit = l.provenance(l.facts(), append(append([]attest.Observation{}, good...), good[i]))
		refused("twice "+k, other, p, permit)
	}
	p, notShown := l.provenance(l.facts(), append(append([]attest.Observation{}, good...), attest.Observation{Statement: hallmark.DigestOf([]byte("never signed")), PredicateType: intoto.PredicateVulns}))
	refused("one that nobody signed", hallmark.CodeSignerObservationMissing, p, notShown)
	if fresh := l.conn(); true { // of this connection, nothing was shown
		_, err := fresh.Sign(t.Context(), "server", payload, permit, nil)
		wantCode(t, "observations that were not shown", err, hallmark.CodeSignerObservationMissing)
	}
	if l.log.Size() != before {
		t.Errorf("%d entries were logged by what was refused", l.log.Size()-before)
	}

	l.hello(c)
	first := c.Facts().Challenge
	b, err := c.Sign(t.Context(), "server", payload, permit, nil)
	must(t, err)
	v, err := l.rules.Verifier.Verify(b)
	if err != nil || v.Signer() != "server" || v.BuilderID() != intoto.BuilderServer || v.MaxLevel() != "SLSA_BUILD_LEVEL_3" {
		t.Errorf("%v: signed by %q", err, v.Signer())
	}
	_, err = c.Sign(t.Context(), "server", payload, permit, nil)
	wantCode(t, "a permit again", err, hallmark.CodeSignerPermitUsed)
	again := l.conn()
	again.facts.Challenge = first
	for _, o := range l.observed(l.facts()) {
		b, err := again.Sign(t.Context(), "observer", marshal(t, o), nil, nil)
		must(t, err)
		must(t, again.Present(t.Context(), b))
	}
	_, err = again.Sign(t.Context(), "server", payload, permit, nil)
	wantCode(t, "a permit on another connection", err, hallmark.CodeSignerPermitUsed)
	for _, code := range []hallmark.Code{hallmark.CodeSignerPermitUsed, other, hallmark.CodeSignerPolicy} {
		if !strings.Contains(l.said.String(), string(code)) {
			t.Errorf("the notary's log does not say %s", code)
		}
	}
}

// TestObservationsOfAnotherBuild: what was truly signed, of another run or with
// another outcome, backs nothing.
func TestObservationsOfAnotherBuild(t *testing.T) {
	l := newLab(t, os.Geteuid())
	later := l.facts()
	later.StartedOn, later.FinishedOn = later.StartedOn.Add(time.Minute), later.FinishedOn.Add(time.Minute)
	later.Record.StartedOn, later.Record.FinishedOn = later.StartedOn, later.FinishedOn
	failed := l.facts()
	failed.Record.Outcome = hallmark.Fail
	failed.Record.Reasons = []hallmark.Reason{{Code: hallmark.CodeBuildStepFailed}}
	local := l.facts()
	local.BuilderID = intoto.BuilderLocal
	for _, tc := range []struct {
		name, kind string
		from       attest.Build
		want       hallmark.Code
	}{
		{"process of a later run", kindProcess, later, hallmark.CodeSignerObservationOther},
		{"environment of a later run", kindEnvironment, later, hallmark.CodeSignerObservationOther},
		{"materials of a later run", kindMaterials, later, hallmark.CodeSignerObservationOther},
		{"artifacts of a later run", kindArtifacts, later, hallmark.CodeSignerObservationOther},
		{"tests of a later run", kindTests, later, hallmark.CodeSignerObservationOther},
		{"a process that failed", kindProcess, failed, hallmark.CodeSignerObservationFailed},
	} {
		c := l.conn()
		list := l.observed(l.facts())
		list[tc.kind] = l.observed(tc.from)[tc.kind]
		p, permit := l.provenance(l.facts(), l.observe(c, list))
		_, err := c.Sign(t.Context(), "server", p, permit, nil)
		wantCode(t, tc.name, err, tc.want)
	}
	for _, k := range []string{kindSource, kindTests} {
		c := l.conn()
		list := l.observed(l.facts())
		rec := l.facts().Record
		rec.Check, rec.Outcome = k, hallmark.Errored
		var err error
		if k == kindTests {
			list[k], err = attest.TestResult(rec, nil, nil, nil)
		} else {
			list[k], err = attest.Source(intoto.SourceProvenance{Revision: l.revision, Author: "a", Committer: "c", Parents: []string{}, Check: &rec})
		}
		must(t, err)
		p, permit := l.provenance(l.facts(), l.observe(c, list))
		_, err = c.Sign(t.Context(), "server", p, permit, nil)
		wantCode(t, k+" that could not decide", err, hallmark.CodeSignerObservationFailed)
	}
	// What names a local builder is not even observed here.
	c := l.conn()
	for _, k := range []string{kindProcess, kindEnvironment, kindArtifacts} {
		_, err := c.Sign(t.Context(), "observer", marshal(t, l.observed(local)[k]), nil, nil)
		wantCode(t, k+" of a local builder", err, hallmark.CodeSignerBuilder)
	}
	// Nor does provenance itself count as an observation, or what another identity signed.
	list := l.observe(c, l.observed(l.facts()))
	p, permit := l.provenance(l.facts(), list)
	b, err := c.Sign(t.Context(), "server", p, permit, nil)
	must(t, err)
	must(t, c.Present(t.Context(), b))
	l.hello(c)
	p, permit = l.provenance(l.facts(), append(list, attest.Observation{Statement: permit.Statement, PredicateType: intoto.PredicateProvenance}))
	_, err = c.Sign(t.Context(), "server", p, permit, nil)
	wantCode(t, "provenance as an observation", err, hallmark.CodeSignerObservationMissing)
}

// TestIdentities: the notary signs for four identities, each its own predicates.
func TestIdentities(t *testing.T) {
	l := newLab(t, os.Geteuid())
	c := l.conn()
	st := marshal(t, l.observed(l.facts())[kindTests])
	for _, who := range []string{"policy", "builder", "wrapper", "", "Observer", "root"} {
		_, err := c.Sign(t.Context(), who, st, nil, nil)
		wantCode(t, who, err, hallmark.CodeSignerIdentity)
	}
	_, err := c.Sign(t.Context(), "gate", st, nil, nil)
	wantCode(t, "a gate's test result", err, hallmark.CodeSignerNotAuthorized)
	policyStatement, err := attest.PolicyStatement(hallmark.DigestOf([]byte("x")), 2, hallmark.DigestOf([]byte("y")))
	must(t, err)
	for _, who := range []string{"observer", "gate"} {
		_, err := c.Sign(t.Context(), who, marshal(t, policyStatement), nil, nil)
		wantCode(t, "a policy by the "+who, err, hallmark.CodeSignerNotAuthorized)
	}
	if _, err := c.Sign(t.Context(), "observer", []byte("{}"), nil, nil); err == nil {
		t.Error("no statement was signed")
	}
	seal, err := c.Seal(t.Context(), "saved results", []byte("x"))
	must(t, err)
	if own, err := l.keys.Seal("saved results", []byte("x")); err != nil || !bytes.Equal(own, seal) {
		t.Errorf("%x, %v", seal, err)
	}
	good := l.rules
	l.rules = Rules{}
	if _, err := l.raw().ask(t.Context(), request{Hello: &Hello{Version: Version, TrustDomain: domain}}); err == nil {
		t.Error("a notary without a policy says hello")
	}
	if _, err := c.Sign(t.Context(), "observer", st, nil, nil); err == nil {
		t.Error("a notary without a policy signs")
	}
	l.rules = good
	if _, err := l.conn().ask(t.Context(), request{Hello: &Hello{Version: Version, TrustDomain: domain, Warm: true}}); err != nil {
		t.Error(err)
	}
	<-l.warmed
}

// TestPeers: each side asks the kernel who the other is.
func TestPeers(t *testing.T) {
	other := newLab(t, os.Geteuid()+1)
	_, err := other.raw().ask(t.Context(), request{Hello: &Hello{Version: Version, TrustDomain: domain}})
	wantCode(t, "an asker of another user", err, hallmark.CodeSignerPeer)
	if !strings.Contains(other.said.String(), string(hallmark.CodeSignerPeer)) {
		t.Error("the notary's log does not say who asked")
	}
	l := newLab(t, os.Geteuid())
	_, err = Dial(t.Context(), ClientConfig{Socket: l.socket, UID: os.Geteuid(), TrustDomain: domain})
	wantCode(t, "a notary of our own user", err, hallmark.CodeSignerNotSeparate)
	_, err = Dial(t.Context(), ClientConfig{Socket: l.socket + "x", UID: os.Geteuid(), TrustDomain: domain})
	wantCode(t, "no notary", err, hallmark.CodeSignerUnreachable)
	if os.Geteuid() != 0 {
		return
	}
	const stranger = 47111
	mine := newLab(t, stranger)
	for _, tc := range []struct {
		socket string
		uid    int
		want   string
	}{
		{mine.socket, 0, "hello 0"},
		{mine.socket, 4, string(hallmark.CodeSignerPeer)}, // its keys are of another user
		{l.socket, 0, string(hallmark.CodeSignerPeer)},
	} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Dir = "/"
		cmd.Env = []string{"NOTARY_ASK=" + tc.socket, fmt.Sprintf("NOTARY_UID=%d", tc.uid)}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stranger, Gid: stranger}}
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != tc.want {
			t.Errorf("user %d asks %s: %v %q, want %q", stranger, tc.socket, err, out, tc.want)
		}
	}
}

// TestMessages: what is no message ends the connection and nothing else.
func TestMessages(t *testing.T) {
	l := newLab(t, os.Geteuid())
	frame := func(n int, body string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(n)), body...)
	}
	whole := func(body string) []byte { return frame(len(body), body) }
	for name, b := range map[string][]byte{
		"nothing in it":      whole("{}"),
		"two requests":       whole(`{"seal":{"purpose":"x","bytes":""},"hello":{"version":1,"trustDomain":"x"}}`),
		"an unknown field":   whole(`{"sign":{"identity":"observer","statement":"","key":"x"}}`),
		"an unknown request": whole(`{"export":{}}`),
		"no JSON":            whole("sign"),
		"two messages":       whole(`{"seal":{"purpose":"x","bytes":""}}{}`),
		"an empty one":       frame(0, ""),
		"a huge one":         frame(maxFrame+1, "x"),
		"a huge one, by all": frame(1<<32-1, "x"),
		"another version":    whole(`{"hello":{"version":2,"trustDomain":"` + domain + `"}}`),
		"another home":       whole(`{"hello":{"version":1,"trustDomain":"b.test"}}`),
	} {
		c := l.raw()
		if _, err := c.c.Write(b); err != nil {
			t.Fatal(err)
		}
		var res response
		size, err := readLength(c.c)
		if err == nil {
			err = readBody(c.c, size, &res)
		}
		if err != nil || res.Refused == nil || res.Refused.Code != hallmark.CodeSignerMessage {
			t.Errorf("%s: %v, %+v", name, err, res)
		}
		if _, err := c.c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: the connection goes on: %v", name, err)
		}
	}
	half := l.raw()
	if _, err := half.c.Write(frame(100, "{")); err != nil {
		t.Fatal(err)
	}
	half.c.CloseWrite()
	if b, err := io.ReadAll(half.c); err != nil || !bytes.Contains(b, []byte("SIGNER_MESSAGE_REFUSED")) {
		t.Errorf("half a message: %v %q", err, b)
	}
	l.conn() // it still answers
}

// TestListen: a socket that was left is replaced, and nothing else is.
func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	for range 2 {
		if _, err := Listen(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	must(t, os.WriteFile(path, []byte("x"), 0o600))
	if _, err := Listen(path); err == nil {
		t.Error("a file was replaced")
	}
}

// TestManyConnections: more askers than there is room for wait, and are answered.
func TestManyConnections(t *testing.T) {
	l := newLab(t, os.Geteuid())
	var open []*Conn
	for range maxConnections {
		open = append(open, l.conn())
	}
	late := l.raw()
	answered := make(chan error, 1)
	go func() {
		_, err := late.ask(context.Background(), request{Hello: &Hello{Version: Version, TrustDomain: domain}})
		answered <- err
	}()
	select {
	case err := <-answered:
		t.Fatalf("answered beyond the limit: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	open[0].Close()
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

func FuzzMessage(f *testing.F) {
	f.Add([]byte(`{"hello":{"version":1,"trustDomain":"x"}}`))
	f.Add([]byte(`{"sign":{"identity":"server","statement":"e30=","permit":{"statement":"","policy":"","decision":{"effect":"allow","checks":[]},"challenge":""}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var req request
		if len(b) == 0 || readBody(bytes.NewReader(b), uint32(len(b)), &req) != nil || req.check() != nil {
			return
		}
		var out bytes.Buffer
		if err := writeFrame(&out, req); err != nil {
			if req.Sign == nil { // a decision that was never set is not written
				t.Fatal(err)
			}
			return
		}
		size, err := readLength(&out)
		if err != nil {
			t.Fatal(err)
		}
		var again request
		if err := readBody(&out, size, &again); err != nil {
			t.Fatal(err)
		}
		x, _ := json.Marshal(req)
		y, _ := json.Marshal(again)
		if !bytes.Equal(x, y) {
			t.Fatalf("%s\n%s", x, y)
		}
	})
}
