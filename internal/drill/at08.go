// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
)

// at08 is "indirect poisoned pipeline execution": the pipeline file stays as it
// is, and something that it runs does the work.
func at08() []Case {
	const unseen = "the sandbox: own files, processes and network only"
	by := func(letter, does string, c carrier) Case {
		return Case{
			Attack: "AT-08", Letter: letter, Does: does + " reads keys, memory and environment of the control plane and speaks to its sockets",
			Control: unseen, Stops: hallmark.CodeSandboxHostUnseen, Residual: "what it writes into the output itself, which review and scans have to find", attack: c.attack,
		}
	}
	probe := func(letter, does, control, name string, stops hallmark.Code, guarantee string) Case {
		return Case{
			Attack: "AT-08", Letter: letter, Does: does, Control: control, Stops: stops, Residual: "a fault in the kernel",
			attack: func(ctx context.Context, g *ground, c Control) (effect, error) {
				return reach(ctx, g, c, name, stops, guarantee)
			},
		}
	}
	return []Case{
		by("a", "a Makefile", carrier{"make", map[string]string{"Makefile": "all:\n\tsh probe.txt\n"}, "make"}),
		by("b", "a go:generate line", carrier{"go generate", map[string]string{"go.mod": goMod, "gen.go": "package gen\n\n//go:generate sh probe.txt\n"}, "go generate ./..."}),
		by("c", "a TestMain", carrier{"go test", map[string]string{"go.mod": goMod, "gen.go": "package gen\n", "gen_test.go": testMain}, "go test -vet=off -gcflags='all=-N -l' ."}), // compiled cold: in the plainest way
		by("d", "an npm script", carrier{"npm run", map[string]string{"package.json": `{"name":"a","version":"1.0.0","scripts":{"build":"sh probe.txt"}}`}, "npm run build"}),
		by("e", "a setup.py", carrier{"setup.py", map[string]string{"setup.py": "import subprocess\nsubprocess.run(['sh', 'probe.txt'])\n"}, "python3 setup.py"}),
		by("f", "the configuration of a tool, which names a module to load,", carrier{"npmrc", map[string]string{
			"package.json": `{"name":"a","version":"1.0.0","scripts":{"lint":"node lint.js"}}`, "lint.js": "console.log('clean')\n",
			".npmrc": "node-options=--require ./rules.js\n", "rules.js": "if (!require('fs').existsSync('out')) require('child_process').execFileSync('sh', ['probe.txt'])\n",
		}, "npm run lint"}),
		probe("g", "a step reads ~/.ssh of whoever runs the builder", unseen, "ssh", hallmark.CodeSandboxHostUnseen, "namespaces"),
		probe("h", "a step traces another process", "the system call filter", "ptrace", hallmark.CodeSandboxCallsClosed, "seccomp"),
		probe("i", "a step makes a user namespace, in which it may mount, and mounts", "the system call filter", "userns", hallmark.CodeSandboxCallsClosed, "seccomp"),
		probe("j", "a step asks for a keyring of the kernel", "the system call filter", "keyring", hallmark.CodeSandboxCallsClosed, "seccomp"),
		probe("k", "a step looks for devices of the machine", "five devices that hold nothing", "devices", hallmark.CodeSandboxMachineUnseen, "devices-minimal"),
		probe("l", "a step reaches for core_pattern, which names a program that the kernel runs", "/proc shows what is listed", "core_pattern", hallmark.CodeSandboxMachineUnseen, "kernel-settings-closed"),
		probe("m", "a step reaches for control groups and their release_agent", "there is no control group file system", "cgroup", hallmark.CodeSandboxMachineUnseen, "sysfs-absent"),
		{
			Attack: "AT-08", Letter: "n", Does: "a step asks the cloud's metadata address for credentials", Control: "an attempt to leave fails the build",
			Stops: hallmark.CodeBuildEgress, Residual: "none: the address is not reached in either run", attack: metadata,
		},
		{
			Attack: "AT-08", Letter: "o", Does: "a step starts processes without end", Control: "a limit of processes for the tree",
			Stops: hallmark.CodeSandboxLimitHeld, Residual: "a build within its limits takes what they allow", attack: forkBomb,
		},
		{
			Attack: "AT-08", Letter: "p", Does: "a step fills the disk through every place that it can write to, each below the limit of a file", Control: "what is written is bounded in sum, while the step runs",
			Stops: hallmark.CodeBuildLimit, Residual: "what is written between two looks", attack: fillDisk,
		},
		{
			Attack: "AT-08", Letter: "q", Does: "a step starts a daemon of its own session and waits for its time to run out", Control: "the end of a step ends everything in its sandbox",
			Stops: hallmark.CodeBuildLimit, Residual: "none known", attack: daemonize,
		},
		{
			Attack: "AT-08", Letter: "r", Does: "the output is a second name of another file", Control: "artifacts are regular files of the build with one name",
			Stops: hallmark.CodePipelineArtifactName, Residual: "none known", attack: hardLink,
		},
		{
			Attack: "AT-08", Letter: "s", Does: "a step makes read-only tools writable or mounts its own over them, by every call that can, in its own or in a new user namespace",
			Control: "the system call filter and the loss of every privilege", Stops: hallmark.CodeSandboxCallsClosed, Residual: "a fault in the kernel", attack: remountTools,
		},
	}
}

const goMod = "module example.org/drill\n\ngo 1.21\n"

const testMain = `package gen

import (
	"os"
	"syscall"
	"testing"
)

func TestMain(m *testing.M) {
	pid, err := syscall.ForkExec("/bin/sh", []string{"sh", "probe.txt"}, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err == nil {
		syscall.Wait4(pid, nil, 0, nil)
	}
	m.Run()
}
`

// carrier is what runs the probe without a word in the pipeline.
type carrier struct {
	name  string
	files map[string]string
	step  string
}

func (k carrier) attack(ctx context.Context, g *ground, c Control) (effect, error) {
	s, err := g.spy()
	if err != nil {
		return effect{}, err
	}
	tool, _, _ := strings.Cut(k.step, " ")
	if _, err := sandbox.Find(tool); err != nil {
		return effect{}, err
	}
	files := map[string]string{"probe.txt": s.script(), pipeline.PipelineFile: definition(k.step, "test -s out/key", "out/key", "out/memory", "out/environ", "out/sockets")}
	for name, text := range k.files {
		files[name] = text
	}
	r, err := g.project(k.name, files)
	if err != nil {
		return effect{}, err
	}
	before, err := s.listeners.heard()
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
	after, err := s.listeners.heard()
	if err != nil {
		return effect{}, err
	}
	if f.artifact("key") == nil {
		return effect{}, fmt.Errorf("the payload did not run: %s", f.codes())
	}
	got := map[string]bool{
		"key": bytes.Equal(f.artifact("key"), s.key), "memory": bytes.Equal(f.artifact("memory"), s.canary),
		"environment": strings.HasPrefix(string(f.artifact("environ")), s.environ), "sockets": after > before,
	}
	for name, has := range got {
		if has {
			return effect{done: true, detail: fmt.Sprintf("the payload had the %s of the control plane, among %v", name, got)}, nil
		}
	}
	if s := strings.Fields(string(f.artifact("sockets"))); strings.Join(s, " ") != "none none none" || strings.TrimSpace(string(f.artifact("key"))) != none {
		return effect{}, fmt.Errorf("the payload got something else: %q", s)
	}
	return effect{reason: hallmark.CodeSandboxHostUnseen, detail: "every probe came back with nothing"}, errors.Join(f.guaranteed("namespaces"), f.guaranteed("no-network"))
}

// reach is one project whose step tries several things; each case looks at one.
func reach(ctx context.Context, g *ground, c Control, name string, stops hallmark.Code, guarantee string) (effect, error) {
	names := []string{"ssh", "ptrace", "userns", "keyring", "devices", "core_pattern", "cgroup"}
	key := g.path("operator", ".ssh", "id_ed25519")
	if err := os.MkdirAll(filepath.Dir(key), 0o700); err != nil {
		return effect{}, err
	}
	if err := os.WriteFile(key, []byte("drill-ssh-canary\n"), 0o600); err != nil {
		return effect{}, err
	}
	var script strings.Builder
	script.WriteString("mkdir -p out\nperl -e 1 || exit 1\nunshare --version >/dev/null || exit 1\n")
	for n, try := range map[string]string{
		"ssh":          "grep -q drill-ssh-canary '" + key + "'",
		"ptrace":       fmt.Sprintf(`perl -e 'my $p = fork; if (!$p) { sleep 20; exit } my $r = syscall(%d, 16, $p, 0, 0); kill 9, $p; exit($r != 0)'`, unix.SYS_PTRACE),
		"userns":       "unshare -Urm sh -c 'mount -t tmpfs x /mnt || mount -t tmpfs x /tmp'",
		"keyring":      fmt.Sprintf(`perl -e 'exit(syscall(%d, 0, -3, 1) <= 0)'`, unix.SYS_KEYCTL),
		"devices":      "ls -d /dev/kmsg /dev/mem /dev/fuse /dev/kvm /dev/loop* /dev/ptmx /dev/console 2>/dev/null | grep -q .",
		"core_pattern": "grep -q . /proc/sys/kernel/core_pattern",
		"cgroup":       "find /sys/fs/cgroup -maxdepth 3 -name release_agent -o -maxdepth 3 -name cgroup.procs | grep -q .",
	} {
		fmt.Fprintf(&script, "if %s; then echo got >out/%s; else echo none >out/%[2]s; fi\n", try, n)
	}
	var artifacts []string
	for _, n := range names {
		artifacts = append(artifacts, "out/"+n)
	}
	r, err := g.project("reach", map[string]string{"probe.txt": script.String(), pipeline.PipelineFile: definition("sh probe.txt", "test -s out/ssh", artifacts...)})
	if err != nil {
		return effect{}, err
	}
	f, err := keep(g, "reach "+c.String(), func() (finished, error) {
		return g.run(ctx, r, compose(func(p *app.BuildParts) {
			if c == Off {
				p.Engine = func(place app.BuildPlace) build.Engine { return unboxed{place: place, promises: g.promises} }
			}
		}))
	})
	if err != nil {
		return effect{}, err
	}
	switch strings.TrimSpace(string(f.artifact(name))) {
	case "got":
		return effect{done: true, detail: "reached " + name}, nil
	case none:
		return effect{reason: stops, detail: "nothing was reached"}, f.guaranteed(guarantee)
	}
	return effect{}, fmt.Errorf("the step left nothing for %s: %s", name, f.codes())
}

// metadata: an attempt is all that can be seen here; a builder that only records
// it lets the build pass.
func metadata(ctx context.Context, g *ground, c Control) (effect, error) {
	return egress(ctx, g, c, "metadata", `timeout 5 bash -c 'exec 3<>/dev/tcp/169.254.169.254/80' 2>/dev/null || :`, "169.254.169.254:80")
}

func egress(ctx context.Context, g *ground, c Control, name, try, address string) (effect, error) {
	r, err := g.project(name, map[string]string{pipeline.PipelineFile: definition("mkdir -p out; "+try+"; echo app > out/app", "test -s out/app", "out/app")})
	if err != nil {
		return effect{}, err
	}
	var told []build.Egress
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		engine := p.Engine
		p.Engine = func(place app.BuildPlace) build.Engine {
			return hearing{Engine: engine(place), heard: &told, deaf: c == Off}
		}
	}))
	if err != nil {
		return effect{}, err
	}
	if len(told) == 0 || told[0].Address != address {
		return effect{}, fmt.Errorf("the step did not try: told of %+v", told)
	}
	if f.artifact("app") != nil {
		return effect{done: true, detail: "the build passes, whatever it tried"}, nil
	}
	return effect{reason: hallmark.CodeBuildEgress, detail: fmt.Sprintf("told while it ran: %s tried %s", told[0].Program, told[0].Address)}, f.denied(ctx, hallmark.CodeBuildEgress)
}

// hearing keeps what is told of a step while it runs; deaf leaves it out of what
// the step is judged by.
type hearing struct {
	build.Engine
	heard *[]build.Egress
	deaf  bool
}

func forkBomb(ctx context.Context, g *ground, c Control) (effect, error) {
	const most, allowed = 400, 100
	step := fmt.Sprintf(`mkdir -p out; perl -e 'my $n = 0; while ($n < %d) { my $p = fork; last unless defined $p; if (!$p) { sleep 60; exit } $n++; push @p, $p } kill 9, @p; print "$n\n"' > out/app`, most)
	r, err := g.project("bomb", map[string]string{pipeline.PipelineFile: definition(step, "test -s out/app", "out/app")})
	if err != nil {
		return effect{}, err
	}
	f, err := g.run(ctx, r, limited(c, func(l *sandbox.Limits) { l.PIDs = allowed }, func(l *sandbox.Limits) { l.PIDs = 4 * most }))
	if err != nil {
		return effect{}, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(f.artifact("app"))))
	if err != nil {
		return effect{}, fmt.Errorf("the step did not count: %s", f.codes())
	}
	if n == most {
		return effect{done: true, detail: fmt.Sprintf("%d processes at once", n)}, nil
	}
	if n > allowed {
		return effect{}, fmt.Errorf("%d processes, more than %d", n, allowed)
	}
	return effect{reason: hallmark.CodeSandboxLimitHeld, detail: fmt.Sprintf("no more than %d processes", n)}, f.guaranteed("pids-limit")
}

// limited runs steps in the real engine under other limits.
func limited(c Control, on, off func(*sandbox.Limits)) func(*pipeline.Config) error {
	return compose(func(p *app.BuildParts) {
		engine := p.Engine
		p.Engine = func(place app.BuildPlace) build.Engine {
			limits := place.Limits
			place.Limits = func(wall time.Duration) sandbox.Limits {
				l := limits(wall)
				if c == On {
					on(&l)
				} else {
					off(&l)
				}
				return l
			}
			return engine(place)
		}
	})
}

func fillDisk(ctx context.Context, g *ground, c Control) (effect, error) {
	const limit = 32 << 20
	step := "mkdir -p out; for d in . /tmp /cache; do head -c 14M /dev/zero > $d/fill; done; sleep 1; echo app > out/app"
	r, err := g.project("fill", map[string]string{pipeline.PipelineFile: definition(step, "test -s out/app", "out/app")})
	if err != nil {
		return effect{}, err
	}
	f, err := g.run(ctx, r, limited(c, func(l *sandbox.Limits) { l.Disk = limit }, func(l *sandbox.Limits) { l.Disk = 64 * limit }))
	if err != nil {
		return effect{}, err
	}
	if f.artifact("app") != nil {
		return effect{done: true, detail: "42 MiB in three places"}, nil
	}
	return effect{reason: hallmark.CodeBuildLimit, detail: "ended while it ran"}, f.denied(ctx, hallmark.CodeBuildLimit)
}

func daemonize(ctx context.Context, g *ground, c Control) (effect, error) {
	// A time that no other drill on this machine sleeps for.
	seconds, err := keep(g, "daemon seconds", func() (string, error) { return strconv.Itoa(1000 + rand.IntN(1<<30)), nil })
	if err != nil {
		return effect{}, err
	}
	text := strings.Replace(definition("setsid sh daemon.txt </dev/null >/dev/null 2>&1 & exec sleep "+seconds, "true", "out/app"), "    - name: test", "      timeout: 5s\n    - name: test", 1)
	r, err := g.project("daemon", map[string]string{"daemon.txt": "mkdir -p out; echo $$ > out/pid; exec sleep " + seconds + "\n", pipeline.PipelineFile: text})
	if err != nil {
		return effect{}, err
	}
	alive := false
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		engine := p.Engine
		p.Engine = func(place app.BuildPlace) build.Engine {
			e := engine(place)
			if c == Off {
				e = unboxed{place: place, promises: g.promises}
			}
			return aftermath{Engine: e, look: func() error {
				b, err := os.ReadFile(filepath.Join(sandbox.Upper(place.Scratch), "out", "pid"))
				if err != nil {
					return fmt.Errorf("the daemon did not start: %w", err)
				}
				pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
				if err != nil {
					return err
				}
				if c == Off { // the number is one of ours only without a sandbox
					alive = syscall.Kill(pid, 0) == nil
					syscall.Kill(pid, syscall.SIGKILL)
				}
				return nil
			}}
		}
	}))
	if err != nil {
		return effect{}, err
	}
	if alive {
		return effect{done: true, detail: "a process of the step is still there when the step is over"}, nil
	}
	if left := running("sleep\x00" + seconds + "\x00"); left > 0 {
		return effect{}, fmt.Errorf("%d processes of the step are left", left)
	}
	return effect{reason: hallmark.CodeBuildLimit, detail: "nothing of the step is left"}, f.denied(ctx, hallmark.CodeBuildLimit)
}

// running counts processes of this machine with a command line.
func running(line string) int {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	n := 0
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && string(b) == line {
			n++
		}
	}
	return n
}

func hardLink(ctx context.Context, g *ground, c Control) (effect, error) {
	r, err := g.project("hardlink", map[string]string{pipeline.PipelineFile: definition("mkdir -p out; echo app > other; ln other out/app", "test -s out/app", "out/app")})
	if err != nil {
		return effect{}, err
	}
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		if c == Off {
			p.Collect = follow
		}
	}))
	if err != nil {
		return effect{}, err
	}
	if f.artifact("app") != nil {
		return effect{done: true, detail: "a file that has another name was collected"}, nil
	}
	return effect{reason: hallmark.CodePipelineArtifactName, detail: "nothing was collected"}, f.denied(ctx, hallmark.CodePipelineArtifactName)
}
