// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/gittest"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// ground is where a drill takes place: a temporary directory with a throwaway
// home, one developer's key and the projects of the cases. It is used by one
// goroutine.
type ground struct {
	dir      string
	home     app.Layout
	dev      *gittest.Key
	roots    hallmark.Digest
	promises []string // guarantees that the policy asks of a build
	verifier *verify.Verifier
	outs     int
	secrets  []string       // NAME=FILE of a run
	kept     map[string]any // results that several cases look at
	closers  []func() error
	builds   bool     // its host builds
	lock     *os.File // held as long as the directory is in use
}

// dirPrefix begins the name of every directory of a drill.
const dirPrefix = "hallmark-drill-"

// makeDir makes the directory of a ground, after removing what killed drills
// left: a directory whose lock nobody holds.
func makeDir() (dir string, lock *os.File, err error) {
	left, _ := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*", "lock"))
	for _, name := range left {
		if f, err := os.Open(name); err == nil {
			if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
				durable.RemoveTree(filepath.Dir(name)) //nolint:errcheck // the next drill tries again
			}
			f.Close()
		}
	}
	if dir, err = os.MkdirTemp("", dirPrefix); err != nil {
		return "", nil, hallmark.Errorf(hallmark.KindInvalid, "making the throwaway home: %w", err)
	}
	if lock, err = os.Create(filepath.Join(dir, "lock")); err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("locking the throwaway home: %w", err), os.RemoveAll(dir))
	}
	return dir, lock, nil
}

func newGround(ctx context.Context, parameters [][2]string) (g *ground, err error) {
	dir, lock, err := makeDir()
	if err != nil {
		return nil, err
	}
	g = &ground{dir: dir, lock: lock, home: app.Layout{Home: filepath.Join(dir, "home")}, kept: map[string]any{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
		}
	}()
	if g.dev, err = gittest.NewKey("dev@example.org"); err != nil {
		return nil, fmt.Errorf("making a developer's key: %w", err)
	}
	allowed := filepath.Join(dir, "allowed_signers")
	if err := os.WriteFile(allowed, []byte(g.dev.AllowedSigner()+"\n"), 0o600); err != nil {
		return nil, fmt.Errorf("writing allowed signers: %w", err)
	}
	res, err := app.Init(ctx, app.InitConfig{Home: g.home.Home, AllowedSigners: allowed, SingleOperator: true})
	if err != nil {
		return nil, fmt.Errorf("making the throwaway home: %w", err)
	}
	g.roots = res.Roots
	// A file that an attacker put there is explained by nothing, and a build that
	// reads one fails: that control is drilled by itself, and would hide others.
	parameters = append(slices.Clone(parameters), [2]string{"build.unexplained", "record"})
	if _, err := app.PolicySet(ctx, g.home.Home, nil, parameters); err != nil {
		return nil, fmt.Errorf("taking over the policy's parameters: %w", err)
	}
	state, err := app.PolicyShow(ctx, g.home.Home)
	if err != nil {
		return nil, err
	}
	for _, p := range state.Parameters {
		if p.Key == "build.guarantees" {
			g.promises = strings.FieldsFunc(p.Value, func(r rune) bool { return r == ',' || r == ' ' })
		}
	}
	cfg, err := g.verifierConfig()
	if err != nil {
		return nil, err
	}
	g.verifier, err = verify.New(cfg)
	return g, err
}

// close removes everything, also directories that were made read-only.
func (g *ground) close() error {
	var errs []error
	for _, c := range g.closers {
		errs = append(errs, c())
	}
	return errors.Join(append(errs, durable.RemoveTree(g.dir), g.lock.Close())...)
}

func (g *ground) path(elem ...string) string {
	return filepath.Join(append([]string{g.dir}, elem...)...)
}

// plain is the first line of a message, without the name of the temporary directory.
func (g *ground) plain(message string) string {
	line, _, _ := strings.Cut(message, "\n")
	return strings.ReplaceAll(line, g.dir, "…")
}

// keep computes a value once for the cases that look at it.
func keep[T any](g *ground, name string, make func() (T, error)) (T, error) {
	if v, ok := g.kept[name].(T); ok {
		return v, nil
	}
	v, err := make()
	if err == nil {
		g.kept[name] = v
	}
	return v, err
}

// repository is a project of an attacker who may commit, or of his victim.
type repository struct {
	dir, commit, uri string
	parameters       map[string]string // that a build of it is given
}

// project makes a signed repository, once; files holds its content by path.
func (g *ground) project(name string, files map[string]string) (repository, error) {
	return g.projectWith(name, files, func(string) error { return nil })
}

// projectWith lets more happen to the directory before it is committed.
func (g *ground) projectWith(name string, files map[string]string, more func(dir string) error) (repository, error) {
	return keep(g, "project "+name, func() (repository, error) {
		dir := g.path("projects", name)
		for _, f := range slices.Sorted(keys(files)) {
			p := filepath.Join(dir, filepath.FromSlash(f))
			if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
				return repository{}, fmt.Errorf("writing project %s: %w", name, err)
			}
			if err := os.WriteFile(p, []byte(files[f]), 0o644); err != nil {
				return repository{}, fmt.Errorf("writing project %s: %w", name, err)
			}
		}
		if err := more(dir); err != nil {
			return repository{}, fmt.Errorf("writing project %s: %w", name, err)
		}
		id, err := gittest.CommitAll(dir, gittest.Options{Message: "Drill " + name, Name: "Dev", Mail: g.dev.Mail, Time: time.Now().Add(-time.Hour), Key: g.dev})
		if err != nil {
			return repository{}, hallmark.Errorf(hallmark.KindUnavailable, "committing project %s: %w", name, err)
		}
		return repository{dir: dir, commit: id, uri: (&url.URL{Scheme: "file", Path: dir}).String()}, nil
	})
}

func keys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// definition is a pipeline with one step, one test and its artifacts.
func definition(step, test string, artifacts ...string) string {
	text := fmt.Sprintf("apiVersion: hallmark/v1\nkind: Pipeline\nbuild:\n  steps:\n    - run: %q\n    - name: test\n      run: %q\n  artifacts:\n", step, test)
	for _, a := range artifacts {
		text += "    - " + a + "\n"
	}
	return text
}

// finished is a run that came to a verdict.
type finished struct {
	pipeline.Result
	g *ground
}

// freshBuilds keeps the results of scans between the two runs of a case, which
// are about the same revision, and never that of a build or of a look into its
// images: one with a control taken away must not pass for one with it in place.
type freshBuilds struct{ pipeline.Saves }

func (s freshBuilds) Saved(ctx context.Context, stage string, key hallmark.Digest) ([]byte, time.Time, bool, error) {
	if stage == "build" || stage == pipeline.ImageCheck {
		return nil, time.Time{}, false, nil
	}
	return s.Saves.Saved(ctx, stage, key)
}

// run takes the project from commit to verdict through the real pipeline, after
// change replaced what it wants; nil replaces nothing.
func (g *ground) run(ctx context.Context, r repository, change func(*pipeline.Config) error) (finished, error) {
	return g.runIn(ctx, g.home, r, change)
}

func (g *ground) runIn(ctx context.Context, home app.Layout, r repository, change func(*pipeline.Config) error) (f finished, err error) {
	h, err := app.OpenHome(home.Home, nil)
	if err != nil {
		return f, err
	}
	defer h.Close()
	g.outs++
	out := g.path("out", fmt.Sprint(g.outs))
	pc, done, err := h.Pipeline(ctx, app.RunConfig{Home: home.Home, Repo: r.dir, Out: out, CommittedOnly: true, Secrets: g.secrets, Parameters: r.parameters})
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, done()) }()
	pc.Saves = freshBuilds{pc.Saves}
	if change != nil {
		if err := change(&pc); err != nil {
			return f, err
		}
	}
	p, err := pipeline.New(pc)
	if err != nil {
		return f, err
	}
	res, err := p.Run(ctx, r.commit, out)
	return finished{Result: res, g: g}, err
}

// artifact returns the bytes of a published artifact; nil when there is none.
func (f finished) artifact(name string) []byte {
	b, err := os.ReadFile(filepath.Join(f.Out, name))
	if err != nil {
		return nil
	}
	return b
}

// provenance returns the published provenance of an artifact, verified; ok is
// false when there is none.
func (f finished) provenance(name string) (p intoto.Provenance, ok bool, err error) {
	b, err := os.ReadFile(filepath.Join(f.Out, name+".sigstore.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return p, false, nil
	}
	if err != nil {
		return p, false, err
	}
	s, err := f.g.verifier.Verify(b)
	if err != nil {
		return p, false, err
	}
	p, err = intoto.ParseProvenance(s.Statement())
	return p, err == nil, err
}

// denied returns nil when the verdict is a denial for this reason which also
// stands as evidence: signed and logged, and anyone with the pinned roots
// computes it again.
func (f finished) denied(ctx context.Context, code hallmark.Code) error {
	d := f.Verdict.Decision
	if d.Allowed() || !slices.ContainsFunc(d.Reasons, func(r hallmark.Reason) bool { return r.Code == code }) {
		return fmt.Errorf("want a denial for %s: %s", code, f.codes())
	}
	s, err := f.g.verifier.Verify(f.VSA.JSON)
	if err != nil {
		return fmt.Errorf("verifying the summary of the denial: %w", err)
	}
	v, err := intoto.DecodePredicate[intoto.VSA](s.Statement())
	if err != nil || v.VerificationResult != "FAILED" {
		return errors.Join(fmt.Errorf("the signed summary of the denial says %q", v.VerificationResult), err)
	}
	again, err := app.Replay(ctx, app.VerifyConfig{Home: f.g.home.Home, Artifact: filepath.Join(f.Out, "verdict.json"), Evidence: f.Out, State: f.g.path("states", "replay")})
	if err != nil || !again.Equal {
		return errors.Join(fmt.Errorf("the denial is not computed again: %q", again.Differences), err)
	}
	return nil
}

// codes lists the reasons of the verdict, for people.
func (f finished) codes() string {
	if f.Verdict.Decision.Allowed() {
		return "allowed"
	}
	var out []hallmark.Code
	for _, r := range f.Verdict.Decision.Reasons {
		if !slices.Contains(out, r.Code) {
			out = append(out, r.Code)
		}
	}
	text := fmt.Sprint("denied ", out)
	if rs := f.Verdict.Decision.Reasons; len(rs) > 0 {
		text += ": " + rs[0].Message
	}
	return text
}

// guaranteed reports whether the signed environment attestation says that a
// property of the isolation held. An attack that failed for another reason than
// the control was not stopped by it.
func (f finished) guaranteed(name string) error {
	for _, e := range f.Evidence {
		s, err := f.g.verifier.Verify(e.JSON)
		if err != nil {
			return err
		}
		if s.PredicateType() != intoto.PredicateSCAI {
			continue
		}
		p, err := intoto.DecodePredicate[intoto.SCAI](s.Statement())
		if err != nil {
			return err
		}
		for _, a := range p.Attributes {
			if p.Name == intoto.NameEnvironment && a.Attribute == "ISOLATION_GUARANTEE_HELD" && a.Conditions["guarantee"] == name {
				return nil
			}
		}
	}
	return fmt.Errorf("the environment attestation does not say that %s held", name)
}
