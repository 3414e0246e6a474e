// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/intoto"
)

// at14 is "forge provenance or steal the signing key from inside a build".
func at14() []Case {
	return append([]Case{
		{
			Attack: "AT-14", Letter: "a", Does: "a step reads the key file of the home",
			Control: "the home is not in the room, and its user is not the step's", Stops: hallmark.CodeSandboxHostUnseen,
			Residual: "a kernel escape; whoever reads the home outside of a build", attack: readKey,
		},
		{
			Attack: "AT-14", Letter: "b", Does: "a step reads memory and environment of the control plane through /proc",
			Control: "the sandbox: own processes only", Stops: hallmark.CodeSandboxProcessUnseen,
			Residual: "a kernel escape; side channels of the hardware", attack: readMemory,
		},
		{
			Attack: "AT-14", Letter: "c", Does: "a step leaves its own provenance.json beside its artifact",
			Control: "every field of provenance is what the control plane saw", Stops: hallmark.CodeProvenanceOwnFacts,
			Residual: "a consumer who reads that file as provenance without a signature", attack: dropProvenance,
		},
		{
			Attack: "AT-14", Letter: "d", Does: "a build fails after it wrote its output, and wants provenance for it",
			Control: "the build policy decides before anything signs", Stops: hallmark.CodeBuildStepFailed,
			Residual: "a step that hides its own failure: its script says so", attack: failedBuild,
		},
		{
			Attack: "AT-14", Letter: "e", Does: "a failing test writes its own exit status, to the first process and to a file",
			Control: "the exit status is what the kernel told the control plane", Stops: hallmark.CodeTestFailed,
			Residual: "a test that tests nothing and exits with 0", attack: ownStatus,
		},
		{
			Attack: "AT-14", Letter: "f", Does: "repository and step declare a trusted repository as their origin",
			Control: "the repository in evidence is the one that was opened", Stops: hallmark.CodeVSAResource,
			Residual: "whoever starts the run names another with --repository: the operator", attack: otherRepository,
		},
		{
			Attack: "AT-14", Letter: "g", Does: "a step connects to sockets of the host: loopback, abstract, by path",
			Control: "the sandbox: own network and files only", Stops: hallmark.CodeSandboxNetworkClosed,
			Residual: "covert channels through the output itself", attack: hostSockets,
		},
		{
			Attack: "AT-14", Letter: "h", Does: "a step leaves a link to the key file as its artifact",
			Control: "artifacts are regular files of the build with one name", Stops: hallmark.CodePipelineArtifactName,
			Residual: "none known", attack: linkToKey,
		},
		{
			Attack: "AT-14", Letter: "i", Does: "the signer is asked for provenance of an artifact that nobody built",
			Control: "provenance needs a permit of the build policy for this very statement", Stops: hallmark.CodeBuildPolicy,
			Residual: "code inside the control plane that makes itself a permit", attack: noPermit,
		},
	}, at14signer()...)
}

const (
	trustedRepository = "https://example.org/trusted/app"
	none              = "none"
)

// spy is one project that tries everything that can be tried from a step. Each
// attempt leaves what it got in a file of its own, and "none" when it got nothing.
type spy struct {
	repository
	key       []byte // of the home; what the attacker is after
	keyFile   string
	canary    []byte // in the memory of this process
	environ   string // digest of this process's environment
	listeners *listeners
	word      string // that is sent to the listeners
}

func (g *ground) spy() (*spy, error) {
	return keep(g, "spy", func() (*spy, error) {
		s := &spy{keyFile: filepath.Join(g.home.Home, "keys", "artifact.pem"), word: "drill-canary"}
		var err error
		if s.key, err = os.ReadFile(s.keyFile); err != nil {
			return nil, fmt.Errorf("reading the throwaway key: %w", err)
		}
		environ, err := os.ReadFile("/proc/self/environ")
		if err != nil {
			return nil, fmt.Errorf("reading our own environment: %w", err)
		}
		sum := sha256.Sum256(environ)
		s.environ = hex.EncodeToString(sum[:])
		// The heap doesn't move: the address stays good as long as s is kept.
		s.canary = bytes.Repeat([]byte("hallmark-drill-canary-"), 2)
		if s.listeners, err = g.listen(); err != nil {
			return nil, err
		}
		s.repository, err = g.project("spy", map[string]string{
			"probe.txt": s.script(), pipeline.PipelineFile: definition("sh probe.txt", "test -s out/key", "out/key", "out/memory", "out/environ", "out/sockets", "out/provenance.json"),
		})
		return s, err
	})
}

func (s *spy) script() string {
	address := uintptr(unsafe.Pointer(&s.canary[0]))
	forged := fmt.Sprintf(`{"buildDefinition":{"buildType":%q,"externalParameters":{"repository":%q,"revision":%q,"pipeline":{"path":%q,"digest":%q}},"internalParameters":{},"resolvedDependencies":[]},"runDetails":{"builder":{"id":%q},"metadata":{"invocationId":"forged"}}}`,
		intoto.BuildTypePipeline, trustedRepository, strings.Repeat("0", 40), pipeline.PipelineFile, hallmark.DigestOf(nil), intoto.BuilderLocal)
	send := func(socket, to string) string {
		return fmt.Sprintf(`perl -MSocket -e 'socket(S, %s, SOCK_STREAM, 0) && connect(S, %s) && syswrite(S, "%s\n") && exit 0; exit 1' && echo sent`, socket, to, s.word)
	}
	return strings.Join([]string{
		"mkdir -p out .git",
		fmt.Sprintf("cat '%s' > out/key || echo none > out/key", s.keyFile),
		fmt.Sprintf("dd if=/proc/%d/mem of=out/memory bs=%d count=1 skip=%d iflag=skip_bytes || echo none > out/memory", os.Getpid(), len(s.canary), address),
		fmt.Sprintf("cat /proc/%d/environ | sha256sum > out/environ", os.Getpid()),
		"if perl -MSocket -e 1; then {",
		send("PF_INET", fmt.Sprintf(`pack_sockaddr_in(%d, inet_aton("127.0.0.1"))`, s.listeners.port)) + " || echo none",
		send("PF_UNIX", fmt.Sprintf(`pack_sockaddr_un("%s")`, s.listeners.path)) + " || echo none",
		send("PF_UNIX", fmt.Sprintf(`pack_sockaddr_un("\0%s")`, s.listeners.abstract)) + " || echo none",
		"} > out/sockets; else echo no perl > out/sockets; fi",
		"printf '%s' '" + forged + "' > out/provenance.json; cp out/provenance.json out/key.sigstore.json",
		"printf '[remote \"origin\"]\\n\\turl = " + trustedRepository + "\\n' > .git/config",
	}, "\n") + "\n"
}

// spied is a run of the spy with what the listeners heard of it.
type spied struct {
	finished
	heard int
}

// runSpy runs the spy once for all cases that look at the same composition.
func (g *ground) runSpy(ctx context.Context, name string, change func(*pipeline.Config) error) (*spy, spied, error) {
	s, err := g.spy()
	if err != nil {
		return nil, spied{}, err
	}
	f, err := keep(g, name, func() (f spied, err error) {
		before, err := s.listeners.heard()
		if err != nil {
			return f, err
		}
		if f.finished, err = g.run(ctx, s.repository, change); err != nil {
			return f, err
		}
		after, err := s.listeners.heard()
		f.heard = after - before
		return f, err
	})
	if err == nil && f.artifact("key") == nil {
		err = fmt.Errorf("the build left nothing: %s", f.codes())
	}
	return s, f, err
}

// boxedSpy runs the spy with every control in place.
func (g *ground) boxedSpy(ctx context.Context) (*spy, spied, error) {
	return g.runSpy(ctx, "boxed spy", nil)
}

// unboxedSpy runs the spy without a sandbox.
func (g *ground) unboxedSpy(ctx context.Context) (*spy, spied, error) {
	return g.runSpy(ctx, "unboxed spy", compose(func(p *app.BuildParts) {
		p.Engine = func(place app.BuildPlace) build.Engine { return unboxed{place: place, promises: g.promises} }
	}))
}

// readKey: without the control, the home is mounted and the step has its user.
func readKey(ctx context.Context, g *ground, c Control) (effect, error) {
	s, f, err := g.boxedSpy(ctx)
	if c == Off && err == nil {
		f.finished, err = g.run(ctx, s.repository, compose(func(p *app.BuildParts) {
			p.Engine = func(place app.BuildPlace) build.Engine {
				// Everything of the place must belong to the user that the step now has.
				place.HostID = os.Geteuid()
				for _, dir := range []string{place.Source, place.Scratch} {
					if err := sandbox.Give(dir, place.HostID); err != nil {
						return failing{err}
					}
				}
				return boxed{place: place, spec: func(spec *sandbox.Spec) {
					spec.Mounts = append(spec.Mounts, sandbox.Mount{Source: g.home.Home, Target: g.home.Home})
				}}
			}
		}))
	}
	if err != nil {
		return effect{}, err
	}
	got := f.artifact("key")
	switch {
	case bytes.Equal(got, s.key):
		return effect{done: true, detail: "the private key is in the artifact"}, nil
	case strings.TrimSpace(string(got)) == none:
		return effect{reason: hallmark.CodeSandboxHostUnseen, detail: "no such file in the room"}, f.guaranteed("namespaces")
	}
	return effect{}, fmt.Errorf("the step read something else: %.40q", got)
}

func readMemory(ctx context.Context, g *ground, c Control) (effect, error) {
	run := g.boxedSpy
	if c == Off {
		run = g.unboxedSpy
	}
	s, f, err := run(ctx)
	if err != nil {
		return effect{}, err
	}
	memory := bytes.Equal(f.artifact("memory"), s.canary)
	environ := strings.HasPrefix(string(f.artifact("environ")), s.environ)
	if memory || environ {
		return effect{done: true, detail: fmt.Sprintf("read of the control plane: memory %t, environment %t", memory, environ)}, nil
	}
	return effect{reason: hallmark.CodeSandboxProcessUnseen, detail: "no such process in the room"}, f.guaranteed("namespaces")
}

// tenantsWord signs as provenance what the build left in provenance.json.
type tenantsWord struct {
	pipeline.Signer
	blobs pipeline.Blobs
}

func (s tenantsWord) Sign(ctx context.Context, role pipeline.Role, st intoto.Statement, permit *pipeline.Permit) (pipeline.Signed, error) {
	if role != pipeline.Platform {
		return s.Signer.Sign(ctx, role, st, permit)
	}
	for _, sub := range st.Subject {
		if sub.Name != "provenance.json" {
			continue
		}
		b, err := s.blobs.Get(ctx, hallmark.Digest("sha256:"+sub.Digest["sha256"]))
		if err != nil {
			return pipeline.Signed{}, err
		}
		st.Predicate = b
	}
	return permissive{s.Signer}.Sign(ctx, role, st, permit)
}

func dropProvenance(ctx context.Context, g *ground, c Control) (effect, error) {
	s, f, err := g.boxedSpy(ctx)
	if c == Off && err == nil {
		f.finished, err = g.run(ctx, s.repository, func(pc *pipeline.Config) error {
			pc.Signer = tenantsWord{Signer: pc.Signer, blobs: pc.Blobs}
			return nil
		})
	}
	if err != nil {
		return effect{}, err
	}
	p, ok, err := f.provenance("key")
	if err != nil || !ok {
		return effect{}, errors.Join(fmt.Errorf("there is no provenance to look at: %s", f.codes()), err)
	}
	dropped := f.artifact("provenance.json")
	if !bytes.Contains(dropped, []byte(trustedRepository)) {
		return effect{}, fmt.Errorf("the step left no provenance of its own: %.40q", dropped)
	}
	switch p.BuildDefinition.ExternalParameters.Repository {
	case trustedRepository:
		return effect{done: true, detail: "signed provenance names a repository that the build chose"}, nil
	case s.uri:
		return effect{reason: hallmark.CodeProvenanceOwnFacts, detail: "the forged file is an ordinary artifact"}, nil
	}
	return effect{}, fmt.Errorf("the provenance names neither: %q", p.BuildDefinition.ExternalParameters.Repository)
}

// heedless gives provenance to whatever a build left, whatever became of it.
type heedless struct {
	pipeline.Builder
	blobs pipeline.Blobs
}

func (b heedless) Build(ctx context.Context, in pipeline.Input, workDir string) (pipeline.BuildOutput, error) {
	out, err := b.Builder.Build(ctx, in, workDir)
	if err != nil {
		return out, err
	}
	def, err := build.ParsePipeline(pipeline.PipelineFile, in.Export.Pipeline)
	if err != nil {
		return out, err
	}
	files, bad := build.Collect(sandbox.Upper(filepath.Join(workDir, "scratch")), def.Artifacts)
	if len(bad) > 0 {
		return out, fmt.Errorf("the build left no output: %s", bad[0].Message)
	}
	for _, o := range files {
		d, err := b.blobs.Put(ctx, o.Data)
		if err != nil {
			return out, err
		}
		out.Facts.Artifacts = append(out.Facts.Artifacts, hallmark.Artifact{Name: o.Name, Digest: d, Size: int64(len(o.Data)), Mode: o.Mode})
	}
	out.Decision = hallmark.Decision{Effect: hallmark.Allow}
	out.Facts.Record.Outcome, out.Facts.Record.Reasons = hallmark.Pass, nil
	return out, nil
}

func failedBuild(ctx context.Context, g *ground, c Control) (effect, error) {
	r, err := g.project("fails", map[string]string{pipeline.PipelineFile: definition("mkdir -p out; echo half > out/app; exit 9", "test -s out/app", "out/app")})
	if err != nil {
		return effect{}, err
	}
	f, err := g.run(ctx, r, func(pc *pipeline.Config) error {
		if c == Off {
			pc.Builder = heedless{Builder: pc.Builder, blobs: pc.Blobs}
		}
		return nil
	})
	if err != nil {
		return effect{}, err
	}
	p, ok, err := f.provenance("app")
	if err != nil {
		return effect{}, err
	}
	if ok && p.BuildDefinition.ExternalParameters.Revision == r.commit {
		return effect{done: true, detail: "signed provenance for the output of a build that failed"}, nil
	}
	for _, e := range f.Evidence {
		if s, err := g.verifier.Verify(e.JSON); err != nil || s.PredicateType() == intoto.PredicateProvenance {
			return effect{}, errors.Join(errors.New("the evidence holds provenance after all, or does not verify"), err)
		}
	}
	return effect{reason: hallmark.CodeBuildStepFailed, detail: "signed evidence of the failure, and no provenance"}, f.denied(ctx, hallmark.CodeBuildStepFailed)
}

func ownStatus(ctx context.Context, g *ground, c Control) (effect, error) {
	test := `echo 0 > exit-status; for fd in 3 4 5 6; do for pid in 1 $PPID; do { echo '{"Exited":true,"Code":0}' > /proc/$pid/fd/$fd; } 2>/dev/null || :; done; done; exit 7`
	r, err := g.project("status", map[string]string{pipeline.PipelineFile: definition("mkdir -p out; echo app > out/app", test, "out/app")})
	if err != nil {
		return effect{}, err
	}
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		real := p.Engine
		p.Engine = func(place app.BuildPlace) build.Engine {
			if c == On {
				return real(place)
			}
			return believing{Engine: real(place), place: place}
		}
	}))
	if err != nil {
		return effect{}, err
	}
	for _, rec := range f.Records {
		if rec.Check == "tests" && rec.Outcome == hallmark.Pass && f.artifact("app") != nil {
			return effect{done: true, detail: "a failing test counts as passed"}, nil
		}
	}
	return effect{reason: hallmark.CodeTestFailed, detail: "exit code 7, as the kernel said"}, f.denied(ctx, hallmark.CodeTestFailed)
}

// declared takes the repository's name from what its own configuration says.
type declared struct {
	pipeline.Source
	repo repository
}

func (s declared) Check(ctx context.Context, rev string) (pipeline.SourceFacts, error) {
	f, err := s.Source.Check(ctx, rev)
	if err != nil {
		return f, err
	}
	remote, err := git(ctx, s.repo, "", "config", "remote.origin.url")
	if err != nil {
		return f, err
	}
	f.Provenance.Revision.Repository = remote
	if f.Provenance.Check != nil {
		f.Provenance.Check.Revision.Repository = remote
	}
	return f, nil
}

func otherRepository(ctx context.Context, g *ground, c Control) (effect, error) {
	s, err := g.spy()
	if err != nil {
		return effect{}, err
	}
	if _, err := git(ctx, s.repository, "", "config", "remote.origin.url", trustedRepository); err != nil {
		return effect{}, err
	}
	_, f, err := g.boxedSpy(ctx)
	if c == Off && err == nil {
		f.finished, err = g.run(ctx, s.repository, func(pc *pipeline.Config) error {
			pc.Source = declared{Source: pc.Source, repo: s.repository}
			return nil
		})
	}
	if err != nil {
		return effect{}, err
	}
	v, err := app.Verify(ctx, app.VerifyConfig{
		Home: g.home.Home, Artifact: filepath.Join(f.Out, "key"), Evidence: f.Out, State: g.path("state"), ResourceURI: "git+" + trustedRepository,
	})
	if err != nil {
		return effect{}, err
	}
	if v.Decision.Allowed() {
		return effect{done: true, detail: "the artifact passes as one of the trusted repository"}, nil
	}
	return effect{reason: v.Decision.Reasons[0].Code, detail: v.Decision.Reasons[0].Message}, nil
}

func hostSockets(ctx context.Context, g *ground, c Control) (effect, error) {
	run := g.boxedSpy
	if c == Off {
		run = g.unboxedSpy
	}
	_, f, err := run(ctx)
	if err != nil {
		return effect{}, err
	}
	got := strings.Fields(string(f.artifact("sockets")))
	if len(got) != 3 {
		return effect{}, hallmark.Errorf(hallmark.KindUnavailable, "the step could not try: %q (it needs perl)", got)
	}
	n := f.heard
	if n == 3 {
		return effect{done: true, detail: "the word arrived by loopback, by path and by abstract name"}, nil
	}
	if n != 0 || strings.Join(got, " ") != "none none none" {
		return effect{}, fmt.Errorf("%d of 3 listeners heard the step, which says %q", n, got)
	}
	return effect{reason: hallmark.CodeSandboxNetworkClosed, detail: "0 connections"}, f.guaranteed("no-network")
}

func linkToKey(ctx context.Context, g *ground, c Control) (effect, error) {
	s, err := g.spy()
	if err != nil {
		return effect{}, err
	}
	r, err := g.project("link", map[string]string{pipeline.PipelineFile: definition("mkdir -p out; ln -s "+s.keyFile+" out/app", "test -L out/app", "out/app")})
	if err != nil {
		return effect{}, err
	}
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		if c == Off {
			p.Collect = follow
		}
	}))
	if err != nil {
		return effect{}, err
	}
	if bytes.Equal(f.artifact("app"), s.key) {
		return effect{done: true, detail: "the private key is the artifact"}, nil
	}
	if f.artifact("app") != nil {
		return effect{}, fmt.Errorf("something was collected, and it is not the key: %s", f.codes())
	}
	return effect{reason: hallmark.CodePipelineArtifactName, detail: "nothing was collected"}, f.denied(ctx, hallmark.CodePipelineArtifactName)
}

// follow collects whatever the names lead to.
func follow(dir string, names []string) (out []build.Output, reasons []hallmark.Reason) {
	for _, n := range names {
		b, err := os.ReadFile(filepath.Join(dir, n))
		if err != nil {
			return nil, []hallmark.Reason{{Code: hallmark.CodePipelineArtifact, Check: "build", Message: err.Error()}}
		}
		out = append(out, build.Output{Name: filepath.Base(n), Data: b, Mode: 0o644})
	}
	return out, nil
}

// permissive makes a permit for whatever it is asked to sign.
type permissive struct{ pipeline.Signer }

func (s permissive) Sign(ctx context.Context, role pipeline.Role, st intoto.Statement, permit *pipeline.Permit) (pipeline.Signed, error) {
	if role == pipeline.Platform {
		payload, err := st.Marshal()
		if err != nil {
			return pipeline.Signed{}, err
		}
		permit = &pipeline.Permit{
			Statement: hallmark.DigestOf(intoto.PAE(intoto.PayloadType, payload)), Policy: hallmark.DigestOf(nil),
			Decision: hallmark.Decision{Effect: hallmark.Allow},
		}
	}
	return s.Signer.Sign(ctx, role, st, permit)
}

func noPermit(ctx context.Context, g *ground, c Control) (effect, error) {
	h, err := app.OpenHome(g.home.Home, nil)
	if err != nil {
		return effect{}, err
	}
	defer h.Close()
	s, err := g.spy()
	if err != nil {
		return effect{}, err
	}
	pc, done, err := h.Pipeline(ctx, app.RunConfig{Home: g.home.Home, Repo: s.dir, Out: g.path("out", "permit"), CommittedOnly: true})
	if err != nil {
		return effect{}, err
	}
	defer done()
	signer := pc.Signer
	if c == Off {
		signer = permissive{signer}
	}
	never := hallmark.Artifact{Name: "never-built", Digest: hallmark.DigestOf([]byte(c.String())), Size: 3}
	st, err := attest.Provenance(attest.Build{
		Revision: hallmark.Revision{Repository: trustedRepository, Commit: s.commit, Tree: s.commit}, BuilderID: intoto.BuilderLocal,
		Pipeline: intoto.PipelineRef{Path: pipeline.PipelineFile, Digest: hallmark.DigestOf(nil)}, StartedOn: time.Now(), FinishedOn: time.Now(),
		Artifacts: []hallmark.Artifact{never}, Manifest: hallmark.DigestOf(nil),
	})
	if err != nil {
		return effect{}, err
	}
	signed, err := signer.Sign(ctx, pipeline.Platform, st, nil)
	if err != nil {
		if hallmark.KindOf(err) == hallmark.KindDenied {
			return effect{reason: hallmark.CodeOf(err), detail: err.Error()}, nil
		}
		return effect{}, err
	}
	v, err := g.verifier.Verify(signed.JSON)
	if err != nil {
		return effect{}, err
	}
	return effect{done: v.Signer() == "builder", detail: "provenance of an artifact that nobody built verifies"}, nil
}
