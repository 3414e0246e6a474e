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
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// RebuildConfig says what to build again, and in which home.
type RebuildConfig struct {
	Verify     VerifyConfig // the evidence and the roots it is under; Home rebuilds
	Passphrase []byte
	Repo       string // directory; empty: what the attested URI names, if that is a directory here
	Out        string // takes the rebuilt artifacts, the statement and the roots it is under
}

// Rebuilt is what came of it.
type Rebuilt struct {
	Reproduced bool
	Built      bool // a build was made; else only the reasons say why none was
	Artifacts  []RebuiltArtifact
	Reasons    []hallmark.Reason // why not
	// Explanations are differences of platform and tools between the two builds.
	Explanations []string
	Difference   *build.Difference // the first file, where event logs tell
	Statement    hallmark.Digest
	OwnRoots     hallmark.Digest // of the home that rebuilt
	Same         bool            // the home that rebuilt is the one that built
	Out          string
}

// RebuiltArtifact is one artifact as it was attested and as it was built again.
type RebuiltArtifact struct {
	Name     string          `json:"name"`
	Attested hallmark.Digest `json:"attested"`
	Rebuilt  hallmark.Digest `json:"rebuilt,omitempty"` // "": not built
}

// rebuildFile is the signed statement in the directory of a rebuild.
const rebuildFile = "rebuild.sigstore.json"

// Rebuild builds again from what verified provenance attests, in fresh sandboxes
// and without anything that an earlier build left, compares every artifact bit
// for bit, and signs what came of it.
func Rebuild(ctx context.Context, cfg RebuildConfig) (Rebuilt, error) {
	ev, err := openEvidence(cfg.Verify)
	if err != nil {
		return Rebuilt{}, err
	}
	was, err := ev.attested()
	if err != nil {
		return Rebuilt{}, err
	}
	if cfg.Repo == "" {
		if cfg.Repo, err = localRepository(was.external.Repository); err != nil {
			return Rebuilt{}, err
		}
	}
	h, err := OpenHome(cfg.Verify.Home, cfg.Passphrase)
	if err != nil {
		return Rebuilt{}, err
	}
	defer h.Close()
	pc, done, err := h.Pipeline(ctx, RunConfig{
		Home: cfg.Verify.Home, Repo: cfg.Repo, Out: cfg.Out, RepositoryURI: was.external.Repository, CommittedOnly: true, Parameters: was.external.Parameters,
	})
	if err != nil {
		return Rebuilt{}, err
	}
	r := rebuild{home: h, pc: pc, was: was, dir: ev.dir, events: func() ([]build.StepLog, error) {
		logs, _, err := custody{statements: was.all, blob: ev.traced}.events("sha256:" + was.artifacts[0].Digest.Hex())
		return logs, err
	}}
	res, err := r.run(ctx, cfg.Out)
	res.Same = ev.verifier.RootsDigest() == h.verifier.RootsDigest()
	return res, errors.Join(err, done())
}

// attestation is one verified provenance and what it says.
type attestation struct {
	bundle     hallmark.Digest
	external   intoto.ExternalParameters
	provenance intoto.Provenance
	artifacts  []hallmark.Artifact // at least one
	all        []verify.Statement  // of the evidence
}

// attested finds the provenance of the evidence. Each result directory is of one
// build.
func (ev *evidence) attested() (attestation, error) {
	all, err := ev.statements()
	if err != nil {
		return attestation{}, err
	}
	var found []verify.Statement
	for _, s := range all {
		if s.PredicateType() == intoto.PredicateProvenance {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		return attestation{}, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeEvidenceMissing, "the evidence holds %d provenance statements: want the one of a build that succeeded", len(found))
	}
	p, err := intoto.ParseProvenance(found[0].Statement())
	if err != nil {
		return attestation{}, err
	}
	out := attestation{bundle: found[0].BundleDigest(), external: p.BuildDefinition.ExternalParameters, provenance: p}
	for _, s := range found[0].Statement().Subject {
		out.artifacts = append(out.artifacts, hallmark.Artifact{Name: s.Name, Digest: hallmark.Digest("sha256:" + s.Digest["sha256"])})
	}
	for _, s := range all {
		out.all = append(out.all, s)
	}
	if len(out.artifacts) == 0 {
		return out, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeEvidenceMalformed, "the provenance names no artifact")
	}
	return out, nil
}

// localRepository is the directory that a file URI names.
func localRepository(uri string) (string, error) {
	u, err := url.Parse(uri)
	if err == nil && u.Scheme == "file" && u.Host == "" {
		if st, err := os.Stat(u.Path); err == nil && st.IsDir() {
			return u.Path, nil
		}
	}
	return "", hallmark.WithHint(hallmark.Errorf(hallmark.KindUsage, "the repository %s is not a directory here", uri), "clone it and name the directory with --repo DIR")
}

// rebuild is one rebuild on its way.
type rebuild struct {
	home *Home
	pc   pipeline.Config
	was  attestation
	dir  string // of the evidence
	// events are the event logs of the build that was attested.
	events func() ([]build.StepLog, error)
}

func (r *rebuild) run(ctx context.Context, out string) (Rebuilt, error) {
	res := Rebuilt{OwnRoots: r.home.verifier.RootsDigest(), Out: out}
	started := now()
	in, reasons, err := r.inputs(ctx)
	if err != nil {
		return res, err
	}
	var made pipeline.BuildOutput
	if len(reasons) == 0 {
		if made, err = r.pc.Builder.Build(ctx, in, filepath.Join(r.pc.WorkDir, "build")); err != nil {
			return res, fmt.Errorf("building again: %w", err)
		}
		reasons = made.Decision.Reasons
		if res.Built = made.Facts.BuilderID != ""; res.Built {
			res.Explanations = r.explain(made.Facts)
		}
	}
	res.Artifacts = r.compare(made.Facts.Artifacts)
	if len(reasons) == 0 {
		if reasons = r.differences(res); len(reasons) > 0 {
			if res.Difference, err = r.difference(ctx, made.Facts); err != nil {
				return res, err
			}
		}
	}
	res.Reasons = reasons
	res.Reproduced = len(reasons) == 0 && made.Decision.Allowed() && len(res.Artifacts) > 0
	signed, err := r.sign(ctx, in.Revision, res, pipelineTimes{started: started})
	if err != nil {
		return res, err
	}
	res.Statement = signed.Statement
	return res, r.write(ctx, out, signed, made)
}

// inputs gathers what the build was made from, and compares it with what was
// attested before anything runs.
func (r *rebuild) inputs(ctx context.Context) (pipeline.Input, []hallmark.Reason, error) {
	facts, err := r.pc.Source.Check(ctx, r.was.external.Revision)
	if err != nil {
		return pipeline.Input{}, nil, fmt.Errorf("checking source: %w", err)
	}
	rec := facts.Record()
	in := pipeline.Input{Revision: facts.Provenance.Revision}
	in.Revision.Ref = r.was.external.Ref // as it was asked for; the commit is what counts
	if rec.Outcome != hallmark.Pass {
		return in, rec.Reasons, nil // code that nobody vouched for is not run here either
	}
	if in.Export, err = r.pc.Source.Export(ctx, in.Revision, filepath.Join(r.pc.WorkDir, "source")); err != nil {
		return in, nil, fmt.Errorf("exporting revision %s: %w", in.Revision.Commit, err)
	}
	if in.DepsDir = filepath.Join(r.pc.WorkDir, "deps"); os.MkdirAll(in.DepsDir, 0o755) != nil {
		return in, nil, hallmark.Errorf(hallmark.KindInvalid, "making the dependency directory %s", in.DepsDir)
	}
	plan, err := r.pc.Resolver.Plan(ctx, in.Export)
	if err == nil && plan != "" {
		in.Dependencies, err = r.pc.Resolver.Fetch(ctx, in.Export, in.DepsDir)
	}
	if err != nil {
		return in, nil, fmt.Errorf("fetching dependencies: %w", err)
	}
	return in, r.other(in), nil
}

// other says which inputs are not those that were attested.
func (r *rebuild) other(in pipeline.Input) []hallmark.Reason {
	var out []hallmark.Reason
	add := func(field, format string, args ...any) {
		out = append(out, hallmark.Reason{Code: hallmark.CodeBuildNotReproduced, Check: intoto.CheckRebuild, Message: fmt.Sprintf(format, args...), Field: field,
			Fix: "find out which of the two is true: the inputs of the same commit are the same everywhere"})
	}
	ours := map[string]string{
		r.was.external.Pipeline.Path: hallmark.DigestOf(in.Export.Pipeline).Hex(), "git+" + in.Revision.Repository: in.Revision.Tree,
	}
	for _, d := range in.Dependencies.List {
		ours[d.Name] = d.Digests["sha256"]
	}
	for _, m := range r.was.provenance.BuildDefinition.ResolvedDependencies {
		key, digest := m.Name, m.Digest["sha256"]
		switch role, _ := m.Annotations["role"].(string); role {
		case "tool":
			continue // explanations, not inputs that have to be the same
		case attest.ImageToolchain.String(), attest.ImageBase.String(), "dockerfile":
			continue // by digest in files of the commit, or one of them
		case "source":
			key, digest = m.URI, m.Digest["gitTree"]
		}
		if have, ok := ours[key]; !ok {
			add("resolvedDependencies", "%s was attested as an input and is none here", key)
		} else if have != digest {
			add("resolvedDependencies", "the input %s is %s here, %s was attested", key, have, digest)
		}
		delete(ours, key)
	}
	for key := range ours {
		add("resolvedDependencies", "%s is an input here and was not attested", key)
	}
	slices.SortFunc(out, func(a, b hallmark.Reason) int { return strings.Compare(a.Message, b.Message) })
	return out
}

// explain compares platform and tools, which may be why bytes differ.
func (r *rebuild) explain(made attest.Build) []string {
	ours := map[string]string{}
	for _, t := range made.Tools {
		ours[t.Name] = t.Digest.Hex()
	}
	var out []string
	for _, m := range r.was.provenance.BuildDefinition.ResolvedDependencies {
		if role, _ := m.Annotations["role"].(string); role != "tool" {
			continue
		}
		version, _ := m.Annotations["version"].(string)
		switch have, ok := ours[m.Name]; {
		case !ok:
			out = append(out, fmt.Sprintf("this machine has no %s; the build had %s (sha256:%s)", m.Name, version, m.Digest["sha256"]))
		case have != m.Digest["sha256"]:
			out = append(out, fmt.Sprintf("%s is sha256:%s here; the build had %s (sha256:%s)", m.Name, have, version, m.Digest["sha256"]))
		}
	}
	platform, _ := r.was.provenance.BuildDefinition.InternalParameters["platform"].(map[string]any)
	for _, key := range []string{"image", "os", "kernel"} {
		if was, _ := platform[key].(string); was != made.Platform[key] {
			out = append(out, fmt.Sprintf("%s is %q here, it was %q", key, made.Platform[key], was))
		}
	}
	return out
}

func (r *rebuild) compare(made []hallmark.Artifact) []RebuiltArtifact {
	var out []RebuiltArtifact
	for _, a := range r.was.artifacts {
		x := RebuiltArtifact{Name: a.Name, Attested: a.Digest}
		if i := slices.IndexFunc(made, func(m hallmark.Artifact) bool { return m.Name == a.Name }); i >= 0 {
			x.Rebuilt = made[i].Digest
		}
		out = append(out, x)
	}
	return out
}

// differences are the reasons why a rebuild that ended well reproduced nothing.
func (r *rebuild) differences(res Rebuilt) []hallmark.Reason {
	var out []hallmark.Reason
	for _, a := range res.Artifacts {
		if a.Rebuilt == a.Attested {
			continue
		}
		msg := fmt.Sprintf("%s is %s built again, %s was attested", a.Name, a.Rebuilt, a.Attested)
		if a.Rebuilt == "" {
			msg = fmt.Sprintf("%s, which was attested, was not built again", a.Name)
		} else if at, ok := r.firstByte(a); ok {
			msg += fmt.Sprintf("; they differ from byte %d on", at)
		}
		out = append(out, hallmark.Reason{Code: hallmark.CodeBuildNotReproduced, Check: intoto.CheckRebuild, Message: msg, Field: "subject", Nearest: string(a.Rebuilt),
			Fix: "look at the first file that differs and the process that wrote it; times, random names, paths and the order of files are the usual causes"})
	}
	return out
}

// firstByte is where an artifact of the evidence and the rebuilt one part, when
// both are here.
func (r *rebuild) firstByte(a RebuiltArtifact) (int, bool) {
	was, err := readLimited(filepath.Join(r.dir, filepath.Base(a.Name)), maxEvidence)
	if err != nil || hallmark.DigestOf(was) != a.Attested {
		return 0, false
	}
	is, err := r.home.stores.blobs.Get(context.Background(), a.Rebuilt)
	if err != nil {
		return 0, false
	}
	for i := range min(len(was), len(is)) {
		if was[i] != is[i] {
			return i, true
		}
	}
	return min(len(was), len(is)), true
}
