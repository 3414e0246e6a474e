// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/internal/toolchain"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// wrapEvidence makes the evidence of one command that ran.
type wrapEvidence struct {
	*wrapping
	facts  *build.CommandFacts
	build  attest.Build
	signer *logSigner
	signed []sign.Bundle
}

// make traces, states, signs, decides and publishes.
func (e *wrapEvidence) make(ctx context.Context, rep sandbox.Report) (Wrapped, error) {
	var res Wrapped
	if err := e.describeBuild(ctx, rep); err != nil {
		return res, err
	}
	res.Reasons = build.JudgeCommand(*e.facts)
	e.build.Record = hallmark.CheckRecord{Check: "build", Outcome: hallmark.Pass, Revision: e.build.Revision, StartedOn: rep.StartedOn, FinishedOn: rep.FinishedOn, Tool: e.tool}
	if len(res.Reasons) > 0 {
		e.build.Record.Outcome, e.build.Record.Reasons = hallmark.Fail, res.Reasons
		e.facts.Artifacts = nil
	}
	for _, a := range e.facts.Artifacts {
		d, err := e.home.stores.blobs.Put(ctx, a.Data)
		if err != nil {
			return res, fmt.Errorf("keeping artifact %s: %w", a.Name, err)
		}
		e.build.Artifacts = append(e.build.Artifacts, hallmark.Artifact{Name: a.Name, Digest: d, Size: int64(len(a.Data)), Mode: a.Mode})
	}
	e.signer = newSigner(e.home.Layout, e.home.id, e.home.keys, e.home.stores)
	provenance, reasons, err := e.sign(ctx)
	if err == nil {
		res.NoProvenance = reasons
		res.Bundles, err = e.publish(ctx, provenance)
	}
	return res, errors.Join(err, e.signer.close())
}

// describeBuild gathers the facts of all statements.
func (e *wrapEvidence) describeBuild(ctx context.Context, rep sandbox.Report) error {
	tools, err := inventoryTools()
	if err != nil {
		return err
	}
	for i, name := range toolNames(tools) {
		tools[i].Approved = slices.Contains(e.home.params.Tools, name)
	}
	requester := localRequester()
	b := attest.Build{
		Requester: &requester,
		Pipeline:  intoto.PipelineRef{Path: e.cfg.Step, Digest: e.digest}, BuilderID: intoto.BuilderWrap, Version: e.tool.Version,
		StartedOn: rep.StartedOn, FinishedOn: rep.FinishedOn, Tools: tools, Platform: platform(),
		Files: e.source.count, Manifest: e.source.digest, Command: &e.command,
	}
	b.Platform["image"] = policy.ImageHost
	e.command.WorkTree, b.Revision = e.source.describe()
	tr, log, err := e.trace(ctx, rep)
	if err != nil {
		return err
	}
	b.Trace = tr.trace
	b.Steps = []attest.Step{{
		Name: e.cfg.Step, Command: e.command.Argv, ExitCode: rep.ExitCode, Signal: rep.Signal, StartedOn: rep.StartedOn, FinishedOn: rep.FinishedOn, Events: log,
	}}
	for _, x := range rep.Egress {
		b.Egress = append(b.Egress, attest.Egress{Step: e.cfg.Step, Time: x.Time, Process: x.Process, Address: x.Address, Name: x.Name})
	}
	for _, g := range rep.Guarantees {
		b.Guarantees = append(b.Guarantees, attest.Guarantee{Name: g.Name, Holds: g.Holds, Detail: g.Detail})
	}
	e.build = b
	return nil
}

// trace keeps the event log and says where everything that was read came from. A
// wrapped build is never called hermetic: it had a network.
func (e *wrapEvidence) trace(ctx context.Context, rep sandbox.Report) (traced, hallmark.Digest, error) {
	var out traced
	sum := build.NewSummary()
	e.facts.Summary = sum
	t := *rep.Trace
	log := hallmark.Digest("")
	if t.Log != "" {
		var err error
		if log, err = e.home.stores.keepLog(ctx, e.cfg.Step, t, sum); err != nil {
			return out, "", err
		}
	}
	out.trace.Engine, out.trace.Attribution, out.trace.Whole = t.Engine, t.Attribution, t.Whole()
	describeProcesses(&out.trace, sum)
	known, err := toolchain.OpenContents(e.home.Contents())
	if err != nil {
		return out, "", err
	}
	origins, err := e.source.origins(known)
	if err != nil {
		return out, "", err
	}
	explained, err := origins.Explain(sum)
	if err = errors.Join(err, known.Save()); err != nil {
		return out, "", err
	}
	all := onHost(explained, sum, rep.StartedOn)
	if err := out.materials(ctx, e.home.stores, []part{{sum: sum, materials: all}}, true); err != nil {
		return out, "", err
	}
	left, err := leftOf(sum)
	if err != nil {
		return out, "", err
	}
	list, n, _, err := build.Products(sum, left)
	if err != nil {
		return out, "", err
	}
	d, err := e.home.stores.blobs.Put(ctx, list)
	if err != nil {
		return out, "", fmt.Errorf("keeping the list of products: %w", err)
	}
	out.trace.Products = attest.List{Digest: d, Files: n}
	return out, log, nil
}

// leftOf hashes what is still there of the files that a command wrote.
func leftOf(sum *build.Summary) (map[build.Raw]hallmark.Digest, error) {
	out := map[build.Raw]hallmark.Digest{}
	for _, w := range sum.Writes() {
		if _, ok := out[w.Path]; ok || !strings.HasPrefix(string(w.Path), "/") {
			continue
		}
		f, err := os.OpenFile(string(w.Path), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			continue // it is gone, or no longer what was written
		}
		st, err := f.Stat()
		if err == nil && st.Mode().IsRegular() {
			out[w.Path], _, err = hallmark.DigestFrom(f)
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("reading what the command wrote: %w", err)
		}
	}
	return out, nil
}

// sign signs every statement; provenance only where it may be given, else the
// reasons say why not.
func (e *wrapEvidence) sign(ctx context.Context) (provenance []byte, why []hallmark.Reason, err error) {
	makers := []func(attest.Build) (intoto.Statement, error){attest.Process, attest.Environment, attest.RuntimeTrace, attest.Materials,
		func(b attest.Build) (intoto.Statement, error) { return attest.Artifacts(b, nil) }}
	for _, of := range makers {
		st, err := of(e.build)
		if err != nil {
			return nil, nil, err
		}
		b, err := e.signer.sign(ctx, sign.Observer, st, nil)
		if err != nil {
			return nil, nil, fmt.Errorf("signing %s: %w", st.PredicateType, err)
		}
		e.signed = append(e.signed, b)
	}
	d := build.AuthorizeCommand(*e.facts)
	if !d.Allowed() {
		return nil, d.Reasons, nil
	}
	st, err := attest.Provenance(e.build)
	if err != nil {
		return nil, nil, err
	}
	payload, err := st.Marshal()
	if err != nil {
		return nil, nil, err
	}
	permit := &sign.Permit{Statement: hallmark.DigestOf(intoto.PAE(intoto.PayloadType, payload)), BuildPolicy: e.home.policy.Digest(), Decision: d}
	b, err := e.signer.sign(ctx, sign.Wrapper, st, permit)
	if err != nil {
		return nil, nil, fmt.Errorf("signing provenance: %w", err)
	}
	e.signed = append(e.signed, b)
	return b.JSON, nil, nil
}

// decide asks the signed policy, which by default trusts no wrapped command, and
// signs its answer: what verifies the evidence decides over these statements, and
// one that was taken away is missed.
func (e *wrapEvidence) decide(ctx context.Context) (pipeline.Verdict, sign.Bundle, error) {
	engine, err := policy.New(e.home.policy)
	if err != nil {
		return pipeline.Verdict{}, sign.Bundle{}, err
	}
	dec := &decider{verifier: e.home.verifier, engine: engine, roots: e.home.verifier.Roots()}
	var statements []verify.Statement
	var inputs []hallmark.Digest
	for _, b := range e.signed {
		s, err := dec.Verify(b.JSON)
		if err != nil {
			return pipeline.Verdict{}, sign.Bundle{}, fmt.Errorf("verifying our own bundle %s: %w", b.Digest, err)
		}
		statements, inputs = append(statements, s), append(inputs, b.Digest)
	}
	resource := "hallmark:command:" + e.digest.Hex()
	if e.build.Revision.Commit != "" {
		resource = pipeline.ResourceURI(e.build.Revision)
	}
	v, err := dec.Decide(ctx, pipeline.DecideRequest{Statements: statements, Subjects: e.build.Artifacts, Revision: e.build.Revision, ResourceURI: resource, Clock: now()})
	if err != nil {
		return v, sign.Bundle{}, fmt.Errorf("deciding: %w", err)
	}
	digest, err := e.home.stores.blobs.Put(ctx, v.JSON)
	if err != nil {
		return v, sign.Bundle{}, fmt.Errorf("keeping the verdict: %w", err)
	}
	subjects := attest.Sources(e.build)
	if len(e.build.Artifacts) > 0 {
		subjects = append(attest.Products(e.build), subjects...)
	}
	st, err := attest.VSA(attest.Summary{
		Subjects: subjects, VerifierID: e.home.id.verifierID(), Version: e.tool.Version, Time: v.Clock, ResourceURI: resource,
		Policy: e.home.policy.Digest(), Inputs: inputs, Allowed: v.Decision.Allowed(), Levels: v.Levels, Verdict: digest,
	})
	if err != nil {
		return v, sign.Bundle{}, err
	}
	vsa, err := e.signer.sign(ctx, sign.Release, st, nil)
	if err != nil {
		return v, sign.Bundle{}, fmt.Errorf("signing the verification summary: %w", err)
	}
	return v, vsa, nil
}

// publish writes the result directory and returns how many bundles it has.
func (e *wrapEvidence) publish(ctx context.Context, provenance []byte) (int, error) {
	verdict, vsa, err := e.decide(ctx)
	if err != nil {
		return 0, err
	}
	var lines bytes.Buffer
	for _, b := range append(slices.Clone(e.signed), vsa) {
		lines.Write(b.JSON)
		lines.WriteByte('\n')
	}
	files := map[string]pipeline.File{}
	for name, b := range map[string][]byte{
		"evidence.jsonl": lines.Bytes(), "verdict.json": verdict.JSON, "verdict.sigstore.json": vsa.JSON, "trusted_root.json": e.home.trustedJSON,
		"roots.json": e.home.rootsJSON, "release.pub": releaseKey(e.home.verifier.Roots()),
		"policy/policy.json": e.home.policyJSON, "policy/policy.sigstore.jsonl": e.home.policyLines,
	} {
		files[name] = pipeline.File{Bytes: b, Mode: 0o644}
	}
	t := e.build.Trace
	for name, d := range map[string]hallmark.Digest{"materials.jsonl": t.Materials.Digest, "products.jsonl": t.Products.Digest, "events-1.jsonl": e.build.Steps[0].Events} {
		if d == "" {
			continue
		}
		files[traceDir+"/"+name] = pipeline.File{Blob: d, Mode: 0o644}
	}
	for _, a := range e.facts.Artifacts {
		if err := addArtifact(files, a, provenance); err != nil {
			return 0, err
		}
	}
	if err := pipeline.Publish(files, e.out, durable.Disk{}, func(d hallmark.Digest) ([]byte, error) { return e.home.stores.blobs.Get(ctx, d) }); err != nil {
		return 0, fmt.Errorf("writing evidence: %w", err)
	}
	return len(e.signed) + 1, nil
}

// addArtifact puts an artifact and its provenance beside the evidence.
func addArtifact(files map[string]pipeline.File, a build.Output, provenance []byte) error {
	put := func(name string, f pipeline.File) error {
		if _, taken := files[name]; taken || name == "policy" || name == traceDir {
			return hallmark.Coded(hallmark.KindInvalid, hallmark.CodePipelineArtifactName, "artifact name %q is reserved or doubled", name)
		}
		files[name] = f
		return nil
	}
	if err := put(a.Name, pipeline.File{Bytes: a.Data, Mode: os.FileMode(a.Mode)&0o755 | 0o600}); err != nil {
		return err
	}
	if provenance == nil {
		return nil
	}
	return put(a.Name+".sigstore.json", pipeline.File{Bytes: provenance, Mode: 0o644})
}
