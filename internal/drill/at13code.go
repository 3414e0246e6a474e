// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
)

// oneByte returns a file of the platform in which the last byte of a text is
// another one; the text stands in it once or more.
func oneByte(file, text string, last byte) ([]byte, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindUnavailable, "reading a file of the platform: %w", err)
	}
	n := bytes.Index(b, []byte(text))
	if n < 0 {
		return nil, hallmark.Errorf(hallmark.KindUnavailable, "%s does not say %q", file, text)
	}
	b[n+len(text)-1] = last
	return b, nil
}

// alteredTool: the policy refuses what no package explains in both runs; in the
// first, the name of a file is enough to be explained.
func alteredTool(ctx context.Context, g *ground, c Control) (e effect, err error) {
	const tool = "/usr/bin/printf"
	altered, err := oneByte(tool, "missing operand", 't')
	if err != nil {
		return effect{}, err
	}
	dir, err := g.tool("printf", altered)
	if err != nil {
		return effect{}, err
	}
	if err := g.rule(ctx, policy.FirstBuildRules(nil), nil, [2]string{"build.unexplained", "deny"}); err != nil {
		return effect{}, err
	}
	defer func() {
		_, back := app.PolicySet(ctx, g.home.Home, nil, [][2]string{{"build.unexplained", "record"}})
		err = errors.Join(err, back)
		for _, built := range []string{"allow", "deny"} {
			delete(g.kept, "rules with builtPrograms "+built)
		}
	}()
	r, err := g.project("altered", map[string]string{pipeline.PipelineFile: definition("mkdir -p out; if "+tool+" 2>&1 | grep -q operant; then echo poisoned; else echo reviewed; fi > out/app", "test -s out/app", "out/app")})
	if err != nil {
		return effect{}, err
	}
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		if c == Off {
			explain := p.Explain
			p.Explain = func(o build.Origins, s *build.Summary) ([]build.Material, error) {
				o.Places = append([]build.Place{}, o.Places...)
				for i := range o.Places {
					o.Places[i].Inspect = nil
				}
				return explain(o, s)
			}
		}
		onPlatform(p, sandbox.Mount{Source: dir + "/printf", Target: tool})
	}))
	if err != nil {
		return effect{}, err
	}
	return f.toolEffect(ctx, hallmark.CodeToolchainAltered, tool, string(hallmark.DigestOf(altered)))
}

// changedLibc is the C library of the platform with another last letter in what
// it says of a file that is not there.
func changedLibc() (file string, changed []byte, err error) {
	for _, pattern := range []string{"/usr/lib/*/libc.so.6", "/usr/lib64/libc.so.6", "/usr/lib/libc.so.6", "/lib/ld-musl-*.so.1"} {
		found, _ := filepath.Glob(pattern)
		for _, f := range found {
			if f, err = filepath.EvalSymlinks(f); err != nil {
				continue
			}
			if changed, err = oneByte(f, "No such file or directory", 'z'); err == nil {
				return f, changed, nil
			}
		}
	}
	return "", nil, errors.Join(hallmark.Errorf(hallmark.KindUnavailable, "finding the C library of the platform"), err)
}

const askLibc = "cat /nonexistent 2>&1 | grep -q directorz; then echo poisoned; else echo reviewed; fi > out/app"

func swappedLibrary(ctx context.Context, g *ground, c Control) (effect, error) {
	return library(ctx, g, c, "swapped", "mkdir -p out; if "+askLibc, func(file, dir string) sandbox.Mount {
		return sandbox.Mount{Source: filepath.Join(dir, filepath.Base(file)), Target: file}
	})
}

func unlistedLibrary(ctx context.Context, g *ground, c Control) (effect, error) {
	return library(ctx, g, c, "beside", "mkdir -p out; if LD_LIBRARY_PATH=/opt/drill "+askLibc, func(_, dir string) sandbox.Mount {
		return sandbox.Mount{Source: dir, Target: "/opt/drill"}
	})
}

// library has a step run with a changed C library, which lies where place says.
func library(ctx context.Context, g *ground, c Control, name, step string, place func(file, dir string) sandbox.Mount) (effect, error) {
	if err := g.approve(ctx, "allow"); err != nil {
		return effect{}, err
	}
	file, changed, err := changedLibc()
	if err != nil {
		return effect{}, err
	}
	dir, err := g.tool(filepath.Base(file), changed)
	if err != nil {
		return effect{}, err
	}
	r, err := g.project("library-"+name, map[string]string{pipeline.PipelineFile: definition(step, "test -s out/app", "out/app")})
	if err != nil {
		return effect{}, err
	}
	m := place(file, dir)
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		if c == Off {
			anyTool(p)
		}
		onPlatform(p, m)
	}))
	if err != nil {
		return effect{}, err
	}
	at := m.Target
	if at != file {
		at = filepath.Join(m.Target, filepath.Base(file))
	}
	return f.toolEffect(ctx, hallmark.CodeBuildTool, "loaded", at, string(hallmark.DigestOf(changed)))
}

// toolServer gives whoever connects the bytes of a tool.
type toolServer struct {
	l    net.Listener
	mu   sync.Mutex
	tool []byte
}

func (g *ground) serveTool() (*toolServer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindUnavailable, "serving a tool: %w", err)
	}
	s := &toolServer{l: l}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			conn.SetDeadline(time.Now().Add(10 * time.Second)) //nolint:errcheck // the reader hears of it
			conn.Write(s.tool)                                 //nolint:errcheck // the reader hears of it
			s.mu.Unlock()
			conn.Close()
		}
	}()
	g.closers = append(g.closers, func() error { err := l.Close(); <-done; return err })
	return s, nil
}

func (s *toolServer) give(tool []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tool = tool
}

func (s *toolServer) fetch(ctx context.Context) ([]byte, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", s.l.Addr().String())
	if err != nil {
		return nil, fmt.Errorf("getting a tool: %w", err)
	}
	defer conn.Close()
	b, err := io.ReadAll(conn)
	if err != nil {
		return nil, fmt.Errorf("getting a tool: %w", err)
	}
	return b, nil
}
