// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/intake"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/scan"
	"github.com/hallmark-sc/hallmark/internal/trace"
)

// fetchWall bounds the fetching of all dependencies of a revision.
const fetchWall = 20 * time.Minute

// modCache is where fetched Go modules are seen in a sandbox.
const modCache = "/dependencies/go"

// resolver implements pipeline.Resolver.
type resolver struct {
	room    *room
	gateway intake.Gateway
}

func (r *resolver) registries() map[intake.Registry]string {
	out := map[intake.Registry]string{}
	for kind, where := range r.room.params.Registries {
		out[intake.Registry(kind)] = where
	}
	return out
}

func (r *resolver) Plan(_ context.Context, export pipeline.Export) (hallmark.Digest, error) {
	plan, err := intake.ReadPlan(export.Dir)
	if err != nil {
		return "", err
	}
	if plan.Empty() {
		return "", intake.CheckVendor(plan, export.Dir, "")
	}
	digest, err := plan.Digest()
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(map[string]any{"layout": 2, "plan": digest, "registries": r.registries()})
	return hallmark.DigestOf(b), err
}

func (r *resolver) Fetch(ctx context.Context, export pipeline.Export, dest string) (pipeline.Dependencies, error) {
	plan, err := intake.ReadPlan(export.Dir)
	if err != nil {
		return pipeline.Dependencies{}, err
	}
	work := filepath.Join(r.room.work, "intake")
	if err := os.MkdirAll(work, 0o700); err != nil {
		return pipeline.Dependencies{}, fmt.Errorf("making the intake directory: %w", err)
	}
	res, err := intake.Fetch(ctx, intake.Config{Worker: r.room, Gateway: r.gateway, Registries: r.registries(), WorkDir: work, Wall: fetchWall}, plan, dest)
	if err != nil {
		return pipeline.Dependencies{}, err
	}
	if err := intake.CheckVendor(plan, export.Dir, dest); err != nil {
		return pipeline.Dependencies{}, err
	}
	return dependencies(res), durable.RemoveTree(work)
}

func (r *resolver) Verify(_ context.Context, export pipeline.Export, dest string) (pipeline.Dependencies, error) {
	plan, err := intake.ReadPlan(export.Dir)
	if err != nil {
		return pipeline.Dependencies{}, err
	}
	res, err := intake.Verify(plan, dest)
	if err != nil {
		return pipeline.Dependencies{}, err
	}
	// The directory belongs to lock files, a vendor directory to this revision.
	return dependencies(res), intake.CheckVendor(plan, export.Dir, dest)
}

func dependencies(res intake.Result) pipeline.Dependencies {
	var out pipeline.Dependencies
	for _, d := range res.Dependencies {
		out.List = append(out.List, attest.Dependency{PURL: d.PURL, Name: d.Name, Digests: d.Digests})
	}
	for _, t := range res.Trees {
		target := modCache
		if t.Module != "" {
			target = path.Join(Workspace, t.Module, "node_modules")
		}
		out.Mounts = append(out.Mounts, pipeline.Mount{Host: t.Host, Target: target})
	}
	return out
}

// Fetch implements intake.Worker.
func (r *room) Fetch(ctx context.Context, job intake.Job) (intake.Report, error) {
	if err := sandbox.Give(job.Out, r.hostID); err != nil {
		return intake.Report{}, err
	}
	out, errs := &bounded{max: 1 << 20}, &bounded{max: 4 << 20}
	rep, err := r.box.RunAs(ctx, r.hostID, sandbox.Spec{
		Argv: append([]string{scan.Alias}, job.Args...), Self: true, Dir: "/", Stdin: bytes.NewReader(job.Stdin), Stdout: out, Stderr: errs, Limits: r.limits(job.Wall),
		Env: []string{"PATH=" + sandbox.Path(), "HOME=/tmp/home", "TMPDIR=/tmp", "LANG=C.UTF-8", trace.QuickStart},
		Mounts: []sandbox.Mount{
			{Source: job.Manifests, Target: intake.ManifestsDir},
			{Source: job.Out, Target: intake.OutDir, Writable: true},
			{Source: job.Socket, Target: intake.SocketPath, Writable: true},
		},
	})
	if err != nil {
		return intake.Report{}, err
	}
	if err := sandbox.Take(job.Out); err != nil {
		return intake.Report{}, err
	}
	report := intake.Report{Stdout: out.b, Stderr: errs.b, ExitCode: rep.ExitCode, LimitHit: limitOf(rep)}
	for _, e := range rep.Egress {
		report.Egress = append(report.Egress, e.Address)
	}
	return report, nil
}
