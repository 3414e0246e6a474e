// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
)

// This file holds the parts that lack a control. Each is like the real part but
// for the one thing that its comment names.

// compose changes the parts of the builder of a run.
func compose(change func(*app.BuildParts)) func(*pipeline.Config) error {
	return func(pc *pipeline.Config) error {
		b, err := app.ComposeBuilder(pc.Builder, change)
		pc.Builder = b
		return err
	}
}

// boxed runs steps in the real sandbox, in a room that spec furnished.
type boxed struct {
	place app.BuildPlace
	spec  func(*sandbox.Spec)
}

func (e boxed) Run(ctx context.Context, c build.Command, out io.Writer) (build.CommandReport, error) {
	box, err := sandbox.New(sandbox.Config{Clock: clock})
	if err != nil {
		return build.CommandReport{}, err
	}
	spec := e.place.Spec(c, out)
	e.spec(&spec)
	rep, err := box.RunAs(ctx, e.place.HostID, spec)
	if err != nil {
		return build.CommandReport{}, err
	}
	return app.StepReport(rep), nil
}

func clock() time.Time { return time.Now().UTC() }

// unboxed lacks the sandbox: steps are processes of the control plane's user on
// the host, as on a runner of one's own. It declares the guarantees that the
// policy asks for instead of measuring them.
type unboxed struct {
	place    app.BuildPlace
	promises []string
	// written is what an instruction of a Dockerfile writes to, and root its name
	// inside; "" for a step, whose source is copied to where it writes.
	written, root string
}

func (e unboxed) Run(ctx context.Context, c build.Command, out io.Writer) (build.CommandReport, error) {
	dir, inside := e.written, e.root
	if dir == "" {
		dir, inside = sandbox.Upper(e.place.Scratch), app.Workspace
		if err := os.CopyFS(dir, os.DirFS(e.place.Source)); err != nil && !errors.Is(err, os.ErrExist) {
			return build.CommandReport{}, fmt.Errorf("copying the source: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-e", "-c", c.Script)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, e.environment(c), out, out
	// A secret is a variable here, as on most runners.
	for _, s := range c.Secrets {
		cmd.Env = append(cmd.Env, s.Name+"="+string(s.Value))
	}
	r := build.CommandReport{StartedOn: clock()}
	var exit *exec.ExitError
	if err := cmd.Run(); errors.As(err, &exit) {
		r.ExitCode = exit.ExitCode()
	} else if err != nil {
		return r, fmt.Errorf("running a step: %w", err)
	}
	r.FinishedOn = clock()
	for _, name := range e.promises {
		r.Guarantees = append(r.Guarantees, build.Guarantee{Name: name, Holds: true, Detail: "declared"})
	}
	var err error
	r.Trace, err = e.declared(dir, inside)
	return r, err
}

// declared is a record that nobody made: one process, which wrote what lies there
// now.
func (e unboxed) declared(dir, inside string) (build.Trace, error) {
	events := []build.Event{{Kind: build.EventFork, Child: 1}}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		events = append(events, build.Event{Kind: build.EventWrite, Process: 1, Path: build.Raw(path.Join(inside, rel)), Digest: hallmark.DigestOf(b), Size: int64(len(b))})
		return err
	})
	var log bytes.Buffer
	for i, ev := range append(events, build.Event{Kind: build.EventExit, Process: 1}) {
		ev.Seq = int64(i + 1)
		log.Write(ev.Encode())
	}
	t := build.Trace{Engine: "declared", Log: e.place.Trace().Log, Digest: hallmark.DigestOf(log.Bytes()), Events: int64(len(events) + 1)}
	if err := errors.Join(err, os.WriteFile(t.Log, log.Bytes(), 0o600)); err != nil {
		return build.Trace{}, fmt.Errorf("declaring a record: %w", err)
	}
	return t, nil
}

// environment is that of the command, with the directories of a sandbox replaced
// by ones that go with the build.
func (e unboxed) environment(c build.Command) []string {
	home := filepath.Join(filepath.Dir(e.place.Scratch), "home")
	env := []string{}
	for _, v := range c.Env {
		k, _, _ := strings.Cut(v, "=")
		switch k {
		case "HOME":
			v = k + "=" + home
		case "GOCACHE":
			v = k + "=" + filepath.Join(home, "go-cache")
		case "TMPDIR":
			v = k + "=" + os.TempDir()
		}
		env = append(env, v)
	}
	return env
}

// believing is an engine that takes the exit status from a file which the step
// wrote, where there is one.
type believing struct {
	build.Engine
	place app.BuildPlace
}

func (e believing) Run(ctx context.Context, c build.Command, out io.Writer) (build.CommandReport, error) {
	r, err := e.Engine.Run(ctx, c, out)
	if err != nil {
		return r, err
	}
	b, err := os.ReadFile(filepath.Join(sandbox.Upper(e.place.Scratch), "exit-status"))
	if errors.Is(err, os.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, fmt.Errorf("reading the step's own status: %w", err)
	}
	r.ExitCode, err = strconv.Atoi(strings.TrimSpace(string(b)))
	return r, err
}

// watched calls act in the middle of a step: when the step wrote the mark. The
// step then writes more than its pipe can take, so that it can't go on before
// act has returned.
type watched struct {
	build.Engine
	act, after func() error
}

const (
	mark = "compiling"
	// fill blocks on the pipe: 64 KiB of the kernel and the copier's 32 KiB.
	fill = "head -c 262144 /dev/zero | tr '\\0' '.'"
)

func (e watched) Run(ctx context.Context, c build.Command, out io.Writer) (build.CommandReport, error) {
	w := &tripwire{out: out, act: e.act}
	r, err := e.Engine.Run(ctx, c, w)
	if w.tripped {
		err = errors.Join(err, w.err, e.after())
	}
	return r, err
}

// tripwire belongs to the one goroutine that copies a step's output.
type tripwire struct {
	out     io.Writer
	act     func() error
	tripped bool
	err     error
}

func (w *tripwire) Write(p []byte) (int, error) {
	if !w.tripped && bytes.Contains(p, []byte(mark)) {
		w.tripped = true
		w.err = w.act()
	}
	return w.out.Write(p)
}

// checkout lets git itself write the commit, with replace refs and with the
// configuration of the repository, as a runner that clones and builds does.
func checkout(ctx context.Context, r repository, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "git", "--git-dir="+filepath.Join(r.dir, ".git"), "--work-tree="+dir, "checkout", "-f", r.commit, "--", ".")
	cmd.Env = gitEnv()
	if out, err := cmd.CombinedOutput(); err != nil {
		return hallmark.Errorf(hallmark.KindUnavailable, "checking out %s: %w: %s", r.commit, err, out)
	}
	return nil
}

// git runs git in a project of the drill, as the attacker does.
func git(ctx context.Context, r repository, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", append([]string{"-C", r.dir}, args...)...)
	cmd.Env, cmd.Stdin = gitEnv(), strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", hallmark.Errorf(hallmark.KindUnavailable, "git %s: %w: %s", args[0], err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

func gitEnv() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null"}
}

// Run implements build.Engine.
func (e failing) Run(context.Context, build.Command, io.Writer) (build.CommandReport, error) {
	return build.CommandReport{}, e.err
}

// Run implements build.Engine.
func (e hearing) Run(ctx context.Context, c build.Command, out io.Writer) (build.CommandReport, error) {
	c.Alert = func(a build.Egress) { *e.heard = append(*e.heard, a) }
	r, err := e.Engine.Run(ctx, c, out)
	if e.deaf {
		r.Egress = nil
	}
	return r, err
}

// aftermath looks around when a step is over.
type aftermath struct {
	build.Engine
	look func() error
}

// Run implements build.Engine.
func (e aftermath) Run(ctx context.Context, c build.Command, out io.Writer) (build.CommandReport, error) {
	r, err := e.Engine.Run(ctx, c, out)
	return r, errors.Join(err, e.look())
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// endProcess ends the process whose number a file holds: one that a case without
// its control left.
func endProcess(file string) {
	b, err := os.ReadFile(file)
	if err != nil {
		return
	}
	if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && pid > 1 {
		syscall.Kill(pid, syscall.SIGKILL)
	}
}
