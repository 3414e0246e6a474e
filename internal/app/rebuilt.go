// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/image"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

type pipelineTimes struct{ started time.Time }

// difference finds the first file that differs and who wrote it, when the event
// logs of both builds are here. What it finds explains; that artifacts differ is
// known without it.
func (r *rebuild) difference(ctx context.Context, made attest.Build) (*build.Difference, error) {
	attested, err := r.events()
	if hallmark.KindOf(err) == hallmark.KindNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var was, is []io.Reader
	for _, l := range attested {
		was = append(was, l.Log)
	}
	for _, s := range made.Steps {
		if s.Events == "" {
			return nil, nil
		}
		b, err := r.home.stores.blobs.Get(ctx, s.Events)
		if err != nil {
			return nil, fmt.Errorf("reading the event log of step %s: %w", s.Name, err)
		}
		is = append(is, bytes.NewReader(b))
	}
	return build.FirstDifference(was, is)
}

// sign states what came of a rebuild as an observation of this home.
func (r *rebuild) sign(ctx context.Context, rev hallmark.Revision, res Rebuilt, t pipelineTimes) (pipeline.Signed, error) {
	rec := hallmark.CheckRecord{Check: intoto.CheckRebuild, Outcome: hallmark.Fail, Revision: rev, StartedOn: t.started, FinishedOn: now(), Tool: r.pc.Tool, Reasons: res.Reasons}
	switch {
	case res.Reproduced:
		rec.Outcome = hallmark.Pass
	case !res.Built: // nothing speaks against the build that was attested
		rec.Outcome = hallmark.Errored
	}
	st, err := attest.Rebuild{Artifacts: r.was.artifacts, Provenance: r.was.bundle, Pipeline: r.was.external.Pipeline, Record: rec}.Statement()
	if err != nil {
		return pipeline.Signed{}, err
	}
	signed, err := r.pc.Signer.Sign(ctx, pipeline.Observer, st, nil)
	if err != nil {
		return signed, fmt.Errorf("signing the rebuild: %w", err)
	}
	return signed, nil
}

// write leaves what a verifier of this home needs, and the artifacts, in out. A
// directory that holds anything but an earlier rebuild is left alone.
func (r *rebuild) write(ctx context.Context, out string, signed pipeline.Signed, made pipeline.BuildOutput) error {
	if entries, err := os.ReadDir(out); err == nil && len(entries) > 0 {
		if _, err := os.Stat(filepath.Join(out, rebuildFile)); err != nil {
			return hallmark.WithHint(hallmark.Errorf(hallmark.KindInvalid, "directory %s is not empty and holds no earlier rebuild", out), "name another directory with --out")
		}
		if err := durable.RemoveTree(out); err != nil {
			return fmt.Errorf("removing an earlier rebuild: %w", err)
		}
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return hallmark.Errorf(hallmark.KindInvalid, "making %s: %w", out, err)
	}
	for _, i := range made.Images {
		if err := r.writeImage(ctx, filepath.Join(out, filepath.Base(i.File)), i); err != nil {
			return fmt.Errorf("writing artifact %s: %w", i.File, err)
		}
	}
	for _, a := range made.Facts.Artifacts {
		if a.Image() {
			continue
		}
		b, err := r.home.stores.blobs.Get(ctx, a.Digest)
		if err != nil {
			return fmt.Errorf("reading artifact %s: %w", a.Name, err)
		}
		if err := writeDurable(filepath.Join(out, filepath.Base(a.Name)), b, os.FileMode(a.Mode)); err != nil {
			return fmt.Errorf("writing artifact %s: %w", a.Name, err)
		}
	}
	for name, b := range map[string][]byte{"roots.json": r.home.rootsJSON, "trusted_root.json": r.home.trustedJSON, rebuildFile: append(signed.JSON, '\n')} {
		if err := writeDurable(filepath.Join(out, name), b, 0o644); err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
	}
	return nil
}

// writeImage writes the layout of an image that was built again.
func (r *rebuild) writeImage(ctx context.Context, dir string, i pipeline.ImageOutput) error {
	files, err := image.Attach(i.Name, i.Subject, nil)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return hallmark.Errorf(hallmark.KindInvalid, "making %s: %w", dir, err)
	}
	for _, d := range i.Blobs {
		if files["blobs/sha256/"+d.Hex()], err = r.home.stores.blobs.Get(ctx, d); err != nil {
			return err
		}
	}
	for name, b := range files {
		if err := writeDurable(filepath.Join(dir, filepath.FromSlash(name)), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Reproduction says which rebuild a verifier asks for.
type Reproduction struct {
	Dir   string          // of a rebuild; empty: rebuild in the evidence
	Roots hallmark.Digest // of the home that rebuilt; empty: the same as of the evidence
}

// reproduced checks that a rebuild of exactly this provenance passed, signed by
// the observer of a home whose roots are pinned.
func (ev *evidence) reproduced(cfg VerifyConfig, inputs []verify.Statement, artifact hallmark.Digest) error {
	want := cfg.Reproduced
	if want == nil {
		return nil
	}
	no := func(format string, args ...any) error {
		return hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodeBuildNotReproduced, format, args...), "hallmark rebuild EVIDENCE, in a home of somebody else")
	}
	dir := want.Dir
	if dir == "" {
		dir = filepath.Join(ev.dir, intoto.CheckRebuild)
	}
	raw, err := readLimited(filepath.Join(dir, rebuildFile), maxTrustFile)
	if err != nil {
		return no("no rebuild is shown: %s", err)
	}
	judge := ev.verifier
	if want.Roots != "" && want.Roots != ev.verifier.RootsDigest() {
		if judge, err = rebuilderOf(dir, want.Roots); err != nil {
			return err
		}
	}
	s, err := judge.Verify(bytes.TrimSpace(raw))
	if err != nil {
		return fmt.Errorf("verifying the rebuild in %s: %w", dir, err)
	}
	return passedRebuild(s, inputs, artifact, no)
}

// rebuilderOf makes a verifier for the home that rebuilt, whose roots are pinned.
func rebuilderOf(dir string, pin hallmark.Digest) (*verify.Verifier, error) {
	roots, err := readLimited(filepath.Join(dir, "roots.json"), maxTrustFile)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading the roots of the rebuild: %w", err)
	}
	trusted, err := readLimited(filepath.Join(dir, "trusted_root.json"), maxTrustFile)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading the trusted root of the rebuild: %w", err)
	}
	return verify.New(verify.Config{Roots: roots, Pin: pin, TrustedRoot: trusted})
}

func passedRebuild(s verify.Statement, inputs []verify.Statement, artifact hallmark.Digest, no func(string, ...any) error) error {
	if s.PredicateType() != intoto.PredicateTestResult || s.Signer() != "observer" {
		return no("the statement is a %.100s of %s, not a rebuild", s.PredicateType(), s.Signer())
	}
	t, err := intoto.DecodePredicate[intoto.TestResult](s.Statement())
	if err != nil {
		return err
	}
	of := slices.ContainsFunc(inputs, func(p verify.Statement) bool {
		return p.PredicateType() == intoto.PredicateProvenance && slices.ContainsFunc(t.Configuration, func(d intoto.ResourceDescriptor) bool {
			return d.Name == "provenance" && d.Digest["sha256"] == p.BundleDigest().Hex()
		})
	})
	names := slices.ContainsFunc(s.Statement().Subject, func(d intoto.ResourceDescriptor) bool { return d.Digest["sha256"] == artifact.Hex() })
	switch {
	case t.Check == nil || t.Check.Check != intoto.CheckRebuild || !of || !names:
		return no("the rebuild is of another build or another artifact")
	case t.Result != "PASSED" || t.Check.Outcome != hallmark.Pass || len(t.Check.Reasons) > 0 || !slices.Contains(t.PassedTests, intoto.PropertyReproduced):
		why := "it did not pass"
		if len(t.Check.Reasons) > 0 {
			why = t.Check.Reasons[0].Message
		}
		return no("the rebuild gave something else: %s", why)
	}
	return nil
}
