// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// Why is what a build did with one file.
type Why struct {
	Type     string      `json:"type"` // "why"
	File     string      `json:"file"`
	Artifact string      `json:"artifact"` // digest
	Versions []build.Hop `json:"versions"` // of the file, that the build saw
	Readers  []build.Hop `json:"readers"`
	Way      []build.Hop `json:"way"` // from the file to the artifact; empty: none is known
	// Certain says that every hop of the way was told by the kernel: it goes
	// through files alone.
	Certain bool `json:"certain"`
}

// ExplainFile answers which process of the build of an artifact read a file, and
// what it fed. file is a path inside the sandbox, relative ones below the
// workspace, or a digest.
func ExplainFile(ctx context.Context, cfg VerifyConfig, file string) (Why, error) {
	key, err := subjectKey(cfg.Artifact)
	if err != nil {
		return Why{}, err
	}
	artifact, err := hallmark.ParseDigest(key)
	if err != nil {
		return Why{}, hallmark.Errorf(hallmark.KindUsage, "%s names a commit: a file fed an artifact, so name the artifact", cfg.Artifact)
	}
	cust, err := openCustody(ctx, cfg, key)
	if err != nil {
		return Why{}, err
	}
	defer cust.close()
	logs, dir, err := cust.events(key)
	if err != nil {
		return Why{}, err
	}
	flow, err := build.NewFlow(logs)
	if err != nil {
		return Why{}, err
	}
	w := Why{Type: "why", File: file, Artifact: string(artifact), Versions: []build.Hop{}, Readers: []build.Hop{}, Way: []build.Hop{}, Certain: true}
	name, digest := build.Raw(""), hallmark.Digest("")
	if d, err := hallmark.ParseDigest(file); err == nil {
		digest = d
	} else if path.IsAbs(file) {
		name = build.Raw(path.Clean(file))
	} else {
		name = build.Raw(path.Join(dir, file))
	}
	w.Versions = append(w.Versions, flow.Find(name, digest)...)
	w.Readers = append(w.Readers, flow.Readers(name, digest)...)
	w.Way = append(w.Way, flow.Way(name, digest, artifact)...)
	for _, h := range w.Way {
		w.Certain = w.Certain && h.Kind != build.HopParent && h.Kind != build.HopChild
	}
	return w, nil
}

// events are the event logs of the build that made a subject, by the digests of
// its verified runtime trace, and the directory that relative names are below.
func (c custody) events(key string) (out []build.StepLog, dir string, err error) {
	alg, value, _ := strings.Cut(key, ":")
	for _, s := range c.statements {
		if s.PredicateType() != intoto.PredicateTrace {
			continue
		}
		named := false
		for _, r := range s.Statement().Subject {
			named = named || r.Digest[alg] == value
		}
		t, err := intoto.DecodePredicate[intoto.RuntimeTrace](s.Statement())
		if err != nil {
			return nil, "", err
		}
		if !named {
			continue
		}
		out, dir = nil, Workspace // of several builds of the same bytes, the last
		var raw build.Raw         // of a wrapped command
		if d, ok := t.Monitor.TracePolicy["directory"].(string); ok && raw.UnmarshalText([]byte(d)) == nil {
			dir = string(raw)
		}
		for _, f := range t.MonitorLog.FileAccess {
			step, ok := strings.CutPrefix(f.Name, "events of ")
			if !ok {
				continue
			}
			b, err := c.blob(hallmark.Digest("sha256:" + f.Digest["sha256"]))
			if err != nil {
				return nil, "", err
			}
			out = append(out, build.StepLog{Step: step, Log: bytes.NewReader(b)})
		}
	}
	if out == nil {
		return nil, "", hallmark.Errorf(hallmark.KindNotFound, "no trace of the build of %s is in the evidence", key)
	}
	return out, dir, nil
}

// traceDir is where a result directory has event logs and lists of files.
const traceDir = "trace"

// maxTrace bounds one file of it.
const maxTrace = 1 << 30

// traced finds a log or list by its digest: the names in the directory say
// nothing.
func (ev *evidence) traced(want hallmark.Digest) ([]byte, error) {
	dir := filepath.Join(ev.dir, traceDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindNotFound, "reading the trace in the evidence: %w", err)
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		if d, err := digestOf(name); err != nil || d != want {
			if err != nil {
				return nil, err
			}
			continue
		}
		b, err := readLimited(name, maxTrace)
		if err != nil {
			return nil, hallmark.Errorf(hallmark.KindInvalid, "reading the trace in the evidence: %w", err)
		}
		if hallmark.DigestOf(b) == want {
			return b, nil
		}
	}
	return nil, hallmark.Errorf(hallmark.KindNotFound, "%s holds no file with the digest %s, which the signed trace names", dir, want)
}

// checkTrace compares the event logs and lists of files that lie with the
// evidence with the digests that were signed. One that is not at hand is a
// warning, since nothing is decided by it; one that is no signed one refuses.
func (ev *evidence) checkTrace(inputs []verify.Statement) error {
	named := map[hallmark.Digest]string{}
	for _, s := range inputs {
		if s.PredicateType() != intoto.PredicateTrace {
			continue
		}
		t, err := intoto.DecodePredicate[intoto.RuntimeTrace](s.Statement())
		if err != nil {
			return err
		}
		for _, f := range t.MonitorLog.FileAccess {
			named[hallmark.Digest("sha256:"+f.Digest["sha256"])] = f.Name
		}
	}
	dir := filepath.Join(ev.dir, traceDir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return hallmark.Errorf(hallmark.KindInvalid, "reading the trace in the evidence: %w", err)
	}
	for _, e := range entries {
		d, err := digestOf(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		if _, ok := named[d]; !ok {
			return hallmark.Coded(hallmark.KindDenied, hallmark.CodeTraceAltered, "%s has the digest %s, which no signed statement names", filepath.Join(traceDir, e.Name()), d)
		}
		delete(named, d)
	}
	for _, name := range slices.Sorted(maps.Values(named)) {
		ev.warnings = append(ev.warnings, name+" is not with the evidence; its digest is signed")
	}
	return nil
}

// openRegular opens a file that somebody else put there: neither a link, nor what
// never ends, such as a pipe or a device.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, hallmark.Errorf(hallmark.KindInvalid, "%s is not a regular file", path)
	}
	return f, nil
}

func digestOf(path string) (hallmark.Digest, error) {
	f, err := openRegular(path)
	if err != nil {
		return "", hallmark.Errorf(hallmark.KindInvalid, "reading the trace in the evidence: %w", err)
	}
	defer f.Close()
	d, _, err := hallmark.DigestFrom(f)
	if err != nil {
		return "", hallmark.Errorf(hallmark.KindInvalid, "reading %s: %w", path, err)
	}
	return d, nil
}
