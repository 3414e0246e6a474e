// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package intake

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// Job is one run of the worker.
type Job struct {
	Args      []string // the first is JobName
	Stdin     []byte
	Manifests string // host directory, seen read-only at ManifestsDir
	Out       string // host directory, seen writable at OutDir
	Socket    string // host path of the gateway's socket, seen at SocketPath
	Wall      time.Duration
}

// Report is what was seen of the worker.
type Report struct {
	Stdout, Stderr []byte
	ExitCode       int
	LimitHit       string
	Egress         []string // addresses it tried besides the gateway
}

// Worker runs our own binary as a keyless worker in a fresh sandbox, whose only
// way out is the socket. When Fetch returns, the files in Out belong to us and
// no process of the worker is left. An error means that it could not be run.
type Worker interface {
	Fetch(ctx context.Context, job Job) (Report, error)
}

// Fetched is one answer that the gateway passed on.
type Fetched struct {
	Registry Registry
	Path     string // escaped, without the registry's own prefix
	Status   int
	Size     int64
	SHA256   hallmark.Digest
	SHA512   []byte
	File     string // the bytes, kept beside the socket; only of npm packages
	Problem  string // why the registry could not be asked or believed
}

// Gateway asks registries on behalf of a worker: GET only, no header of the
// worker's but what content negotiation needs, no redirect to another host, TLS
// unless the registry is on this machine's loopback.
type Gateway interface {
	// Open serves on a new Unix socket at the path until the session is closed.
	// Spool is a private directory for the bytes of npm packages.
	Open(ctx context.Context, socket, spool string, registries map[Registry]string) (Session, error)
}

// Session is an open gateway.
type Session interface {
	// Close ends the service and returns every answer, in no order.
	Close() ([]Fetched, error)
}

// Where the worker finds things.
const (
	JobName      = "intake"
	ManifestsDir = "/manifests"
	OutDir       = "/out"
	SocketPath   = "/gateway.sock"

	// GoPrefix is the first path element of what the gateway asks the Go
	// registry for; all else is npm's, whose client puts paths at the root. No
	// npm package may have such a name.
	GoPrefix = ".go"
)

// Config is what fetching needs. Registries are those of the signed policy; one
// that is missing is asked for nothing.
type Config struct {
	Worker     Worker
	Gateway    Gateway
	Registries map[Registry]string
	WorkDir    string // private, emptied by the caller
	Wall       time.Duration
}

// Dependency is one package as the control plane verified it.
type Dependency struct {
	PURL, Name string
	Digests    map[string]string // in-toto DigestSet
}

// Tree is a directory that builds see, by its path below the fetched directory.
type Tree struct {
	Host   string
	Module string // "" for the Go module cache, else the directory whose node_modules it is
}

// Result is a fetched and verified set of packages.
type Result struct {
	Dependencies []Dependency
	Trees        []Tree
}

// Fetch fills dest with what the plan names and verifies it. Errors carry a
// DEPENDENCY_ code when the revision or a registry caused them.
func Fetch(ctx context.Context, cfg Config, plan Plan, dest string) (Result, error) {
	if plan.Empty() {
		return Result{}, nil
	}
	registries := map[Registry]string{}
	for _, r := range plan.Registries() {
		where := cfg.Registries[r]
		if where == "" {
			return Result{}, hallmark.WithHint(
				hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeDependencyUnavailable, "the revision names %s packages, and the policy names no registry for them", r),
				fmt.Sprintf("hallmark policy set registries.%s=URL", r))
		}
		registries[r] = where
	}
	if err := plan.check(); err != nil {
		return Result{}, err
	}
	for _, d := range []string{"manifests", "spool"} {
		if err := os.MkdirAll(filepath.Join(cfg.WorkDir, d), 0o755); err != nil {
			return Result{}, fmt.Errorf("making the intake directory: %w", err)
		}
	}
	manifests := filepath.Join(cfg.WorkDir, "manifests")
	if err := plan.write(manifests); err != nil {
		return Result{}, err
	}
	socket := filepath.Join(cfg.WorkDir, "s")
	session, err := cfg.Gateway.Open(ctx, socket, filepath.Join(cfg.WorkDir, "spool"), registries)
	if err != nil {
		return Result{}, fmt.Errorf("opening the gateway: %w", err)
	}
	order, err := json.Marshal(workOrder{Go: plan.Go, NPM: plan.NPM})
	if err != nil {
		session.Close()
		return Result{}, err
	}
	rep, err := cfg.Worker.Fetch(ctx, Job{Args: []string{JobName}, Stdin: order, Manifests: manifests, Out: dest, Socket: socket, Wall: cfg.Wall})
	fetched, cerr := session.Close()
	if err != nil {
		return Result{}, fmt.Errorf("running the intake worker: %w", err)
	}
	if cerr != nil {
		return Result{}, fmt.Errorf("closing the gateway: %w", cerr)
	}
	if err := judge(rep, fetched); err != nil {
		return Result{}, err
	}
	if err := plan.settle(dest); err != nil {
		return Result{}, err
	}
	if err := plan.unpacked(fetched, dest); err != nil {
		return Result{}, err
	}
	return Verify(plan, dest)
}

// check refuses what no registry could serve, before anything is asked.
func (p Plan) check() error {
	for _, dir := range p.NPM {
		l, err := parseLock(filepath.ToSlash(filepath.Join(dir, "package-lock.json")), p.Files[lockPath(dir)])
		if err != nil {
			return err
		}
		if err := l.check(); err != nil {
			return err
		}
	}
	return nil
}

// judge reads how the worker ended.
func judge(rep Report, fetched []Fetched) error {
	if rep.ExitCode == 0 && rep.LimitHit == "" && len(rep.Egress) == 0 {
		return nil
	}
	var problems []string
	for _, f := range fetched {
		if f.Problem != "" || f.Status >= 400 {
			problems = append(problems, strings.TrimSpace(fmt.Sprintf("%s %s: %s", f.Registry, f.Path, orStatus(f))))
		}
	}
	slices.Sort(problems)
	problems = slices.Compact(problems)
	said := string(bytes.TrimSpace(rep.Stderr))
	if i := max(0, len(said)-600); i > 0 {
		said = "…" + said[i:]
	}
	code := hallmark.CodeDependencyUnavailable
	if strings.Contains(said, "SECURITY ERROR") || strings.Contains(said, "checksum mismatch") || strings.Contains(said, "EINTEGRITY") {
		code = hallmark.CodeDependencyIntegrity
	}
	switch {
	case len(rep.Egress) > 0:
		return hallmark.Coded(hallmark.KindUnavailable, code, "fetching dependencies: the worker tried to reach %s", strings.Join(rep.Egress, ", "))
	case rep.LimitHit != "":
		return hallmark.Coded(hallmark.KindUnavailable, code, "fetching dependencies: the %s limit was hit", rep.LimitHit)
	case len(problems) > 0:
		more := ""
		if len(problems) > 3 {
			more = fmt.Sprintf(" and %d more", len(problems)-3)
		}
		return hallmark.WithHint(hallmark.Coded(hallmark.KindUnavailable, code, "fetching dependencies: %s%s", strings.Join(problems[:min(3, len(problems))], "; "), more),
			"see that the registry of the policy has them: hallmark policy show")
	}
	return hallmark.Coded(hallmark.KindUnavailable, code, "fetching dependencies: %s", said)
}

func orStatus(f Fetched) string {
	if f.Problem != "" {
		return f.Problem
	}
	return fmt.Sprintf("the registry answered %d", f.Status)
}

// Verify compares what lies in dest with the lock files of the plan, byte by
// byte, and names it. Nothing else may lie there.
func Verify(plan Plan, dest string) (Result, error) {
	var out Result
	if err := plan.layout(dest); err != nil {
		return Result{}, err
	}
	if len(plan.Go) > 0 {
		deps, err := plan.verifyGo(filepath.Join(dest, "go"))
		if err != nil {
			return Result{}, err
		}
		out.Dependencies = append(out.Dependencies, deps...)
		out.Trees = append(out.Trees, Tree{Host: "go"})
	}
	for i, dir := range plan.NPM {
		host := npmHost(i)
		deps, err := plan.verifyNPM(dir, filepath.Join(dest, filepath.FromSlash(host)), filepath.Join(dest, "npm-packages"))
		if err != nil {
			return Result{}, err
		}
		out.Dependencies = append(out.Dependencies, deps...)
		out.Trees = append(out.Trees, Tree{Host: host, Module: dir})
	}
	slices.SortFunc(out.Dependencies, func(a, b Dependency) int { return strings.Compare(a.PURL, b.PURL) })
	out.Dependencies = slices.CompactFunc(out.Dependencies, func(a, b Dependency) bool { return a.PURL == b.PURL && a.Digests["sha512"] == b.Digests["sha512"] })
	return out, nil
}

func npmHost(i int) string { return fmt.Sprintf("npm/%d/node_modules", i) }

func lockPath(dir string) string {
	if dir == "." {
		return "package-lock.json"
	}
	return dir + "/package-lock.json"
}
