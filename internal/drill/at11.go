// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
)

// at11 is "one build influences another": the attacker's build comes first or at
// the same time, and the victim's output is what counts.
func at11() []Case {
	one := func(letter, does, control string, i influence) Case {
		return Case{
			Attack: "AT-11", Letter: letter, Does: does, Control: control, Stops: hallmark.CodeBuildNothingShared,
			Residual: "side channels of the hardware", attack: i.attack,
		}
	}
	return []Case{
		{
			Attack: "AT-11", Letter: "a", Does: "an earlier build points an entry of the Go build cache to other content, and a later one links it", Control: "each build has a cache of its own, over one of the toolchain that it can't write to",
			Stops: hallmark.CodeBuildNothingShared, Residual: "side channels of the hardware", attack: poisonedCache,
		},
		one("b", "an earlier build edits a file of the module cache, whose bytes go.sum vouched for", "each build sees only what was fetched for it, read-only", influence{
			name: "gomodcache", share: "/dependencies/go", plant: "chmod -R u+w $GOMODCACHE/example.com 2>/dev/null; sed -i s/reviewed/poisoned/ $GOMODCACHE/example.com/lib@v1.0.0/lib.go 2>/dev/null || :",
			use: "set -e; mkdir -p out; go build -o out/lib ./lib; if grep -q poisoned-word out/lib; then echo poisoned; else grep -q reviewed-word out/lib; echo reviewed; fi > out/app", tool: "go", module: true,
		}),
		one("c", "an earlier build changes the settings of the Go command (go env -w)", "each step has a home of its own, and the Go command reads no settings", influence{
			name: "goenv", share: "/tmp", plant: "mkdir -p /tmp/home; GOENV=/tmp/home/go-env go env -w GOOS=plan9",
			// The variable stands for a runner that lets the command read its settings.
			use: "mkdir -p out; [ ! -e /tmp/home/go-env ] || export GOENV=/tmp/home/go-env; go list -f '{{.GoFiles}}' ./lib | grep -q word_plan9.go && echo poisoned > out/app || echo reviewed > out/app", tool: "go",
			files: map[string]string{"go.mod": goMod, "lib/lib.go": "package lib\n", "lib/word_plan9.go": "package lib\n"},
		}),
		one("d", "an earlier build leaves a hook in ~/.gitconfig", "each step has a home of its own", influence{
			name: "gitconfig", share: "/tmp/home", plant: "mkdir -p /tmp/home/hooks; printf '#!/bin/sh\\necho poisoned > \"$OUT\"\\n' > /tmp/home/hooks/post-commit; chmod +x /tmp/home/hooks/post-commit; git config --global core.hooksPath /tmp/home/hooks",
			use: "mkdir -p out; echo reviewed > out/app; export OUT=$PWD/out/app; git init -q /tmp/repo; cd /tmp/repo; git -c user.name=a -c user.email=a@example.org commit -q --allow-empty -m x", tool: "git",
		}),
		one("e", "an earlier build leaves a program where PATH looks first", "programs are read-only, and nothing of a build stays", influence{
			name: "path", share: "/usr/local/bin", plant: "printf '#!/bin/sh\\necho poisoned\\n' > /usr/local/bin/rev && chmod +x /usr/local/bin/rev || :",
			use: "mkdir -p out; echo deweiver | rev > out/app", tool: "rev",
		}),
		{
			Attack: "AT-11", Letter: "f", Does: "an earlier build leaves a daemon that changes what a later one writes", Control: "the end of a step ends everything in its sandbox",
			Stops: hallmark.CodeBuildNothingShared, Residual: "side channels of the hardware", attack: leftDaemon,
		},
		{
			Attack: "AT-11", Letter: "g", Does: "a build that runs at the same time changes what another keeps in /tmp", Control: "each sandbox has its own /tmp",
			Stops: hallmark.CodeBuildNothingShared, Residual: "side channels of the hardware", attack: sharedTmp,
		},
		{
			Attack: "AT-11", Letter: "h", Does: "the toolchain cache of the home is changed on disk: an entry of the standard library names an output of the attacker's", Control: "what a build reads of the cache is what the cache held when it was made",
			Stops: hallmark.CodeCacheAltered, Residual: "whoever can write to all of the home, and changes the list too", attack: alteredCache,
		},
	}
}

func goLib(word string) string {
	return "package lib\n\n// Word is what the library is known by.\nfunc Word() string { return \"" + word + "-word-of-the-library\" }\n"
}

// influence is a build of the attacker before one of the victim's.
type influence struct {
	name, share string // what the two share without the control
	plant, use  string
	tool        string
	files       map[string]string
	module      bool // there is a module example.com/lib to depend on
}

func (i influence) attack(ctx context.Context, g *ground, c Control) (_ effect, err error) {
	if _, err := sandbox.Find(i.tool); err != nil {
		return effect{}, err
	}
	if i.module {
		proxy, sum, err := g.moduleProxy("example.com/lib", "v1.0.0", map[string]string{"go.mod": "module example.com/lib\n\ngo 1.21\n", "lib.go": goLib("reviewed")})
		if err != nil {
			return effect{}, err
		}
		back, err := g.parameter(ctx, "registries.go", proxy)
		if err != nil {
			return effect{}, err
		}
		defer func() { err = errors.Join(err, back()) }()
		i.files = map[string]string{
			"go.mod": "module example.com/app\n\ngo 1.21\n\nrequire example.com/lib v1.0.0\n", "go.sum": sum,
			"lib/lib.go": "package lib\n\nimport \"example.com/lib\"\n\n// Word is that of the library.\nfunc Word() string { return lib.Word() }\n",
		}
	}
	shared := g.path("shared", i.name)
	var change func(*pipeline.Config) error
	if c == Off {
		// One directory and one user for all builds, as on a runner of one's own.
		id := sandbox.HostID()
		if err := sandbox.NewScratch(shared, id); err != nil {
			return effect{}, err
		}
		change = compose(func(p *app.BuildParts) {
			p.Engine = func(place app.BuildPlace) build.Engine { return sharing(place, id, shared, i.share) }
		})
	}
	plant := map[string]string{"plant.txt": i.plant + "\n", "use.txt": i.use + "\n"}
	for name, text := range i.files {
		plant[name] = text
	}
	plant[pipeline.PipelineFile] = definition("sh plant.txt; mkdir -p out; echo planted > out/app", "test -s out/app", "out/app")
	attacker, err := g.project(i.name+"-attacker", plant)
	if err != nil {
		return effect{}, err
	}
	plant[pipeline.PipelineFile] = definition("sh use.txt", "test -s out/app", "out/app")
	victim, err := g.project(i.name+"-victim", plant)
	if err != nil {
		return effect{}, err
	}
	f, err := g.oneAfterOther(ctx, attacker, victim, change)
	if err != nil {
		return effect{}, err
	}
	return f.influenced()
}

// oneAfterOther returns the victim's build, after that of the attacker came to its
// end.
func (g *ground) oneAfterOther(ctx context.Context, attacker, victim repository, change func(*pipeline.Config) error) (finished, error) {
	first, err := g.run(ctx, attacker, change)
	if err != nil {
		return finished{}, err
	}
	if first.artifact("app") == nil {
		return finished{}, fmt.Errorf("the attacker's build did not come to its end: %s", first.codes())
	}
	return g.run(ctx, victim, change)
}

// influenced looks at the victim's output.
func (f finished) influenced() (effect, error) {
	switch string(f.artifact("app")) {
	case poison:
		return effect{done: true, detail: "the output of the later build is the attacker's"}, nil
	case clean:
		return effect{reason: hallmark.CodeBuildNothingShared, detail: "the output is that of a build alone"}, f.guaranteed("namespaces")
	}
	return effect{}, fmt.Errorf("the output is neither: %q, %s", f.artifact("app"), f.codes())
}

// sharing runs steps in the real sandbox with one directory that outlives them.
func sharing(place app.BuildPlace, id int, dir, target string) build.Engine {
	place.HostID = id
	for _, own := range []string{place.Source, place.Scratch} {
		if err := sandbox.Give(own, id); err != nil {
			return failing{err}
		}
	}
	// What is shared begins as what the first build was given there.
	began := ""
	var mounts []sandbox.Mount
	for _, m := range place.Mounts {
		if m.Target == target {
			began = m.Source
		} else {
			mounts = append(mounts, m)
		}
		if m.Writable {
			if err := sandbox.Give(m.Source, id); err != nil {
				return failing{err}
			}
		}
	}
	var layers []sandbox.Workspace
	for _, l := range place.Layers {
		if l.Target == target {
			began = l.Lower
			continue
		}
		if err := sandbox.Give(l.Scratch, id); err != nil {
			return failing{err}
		}
		layers = append(layers, l)
	}
	if err := beginWith(dir, began, id); err != nil {
		return failing{err}
	}
	place.Layers = layers
	place.Mounts = append(mounts, sandbox.Mount{Source: dir, Target: target, Writable: true})
	return boxed{place: place, spec: func(*sandbox.Spec) {}}
}

// beginWith fills a shared directory in which nothing is but what makes it a
// scratch directory.
func beginWith(dir, with string, id int) error {
	have, err := os.ReadDir(dir)
	if err != nil || with == "" {
		return err
	}
	for _, d := range have {
		if filepath.Join(dir, d.Name()) != sandbox.Upper(dir) && d.Name() != "work" {
			return nil // an earlier build did
		}
	}
	if err := os.CopyFS(dir, os.DirFS(with)); err != nil {
		return fmt.Errorf("filling a shared directory: %w", err)
	}
	return sandbox.Give(dir, id)
}

func leftDaemon(ctx context.Context, g *ground, c Control) (effect, error) {
	dir := g.path("daemon")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return effect{}, err
	}
	pids := filepath.Join(dir, "pid")
	// Without a sandbox both builds see the directory; inside, each makes one.
	at := "D='" + dir + "'; mkdir -p $D 2>/dev/null || { D=/tmp/d; mkdir -p $D; }\n"
	daemon := at + "echo $$ > $D/pid\ni=0; while [ $i -lt 600 ]; do [ ! -e $D/work ] || echo poisoned > $D/work; sleep 0.1; i=$((i+1)); done\n"
	use := at + "mkdir -p out; echo reviewed > $D/work; i=0; while [ $i -lt 50 ]; do if grep -q poisoned $D/work; then break; fi; sleep 0.1; i=$((i+1)); done; cp $D/work out/app; rm -f $D/work\n"
	files := map[string]string{"daemon.txt": daemon, "use.txt": use, pipeline.PipelineFile: definition("setsid sh daemon.txt </dev/null >/dev/null 2>&1 & mkdir -p out; echo planted > out/app", "test -s out/app", "out/app")}
	attacker, err := g.project("daemon-attacker", files)
	if err != nil {
		return effect{}, err
	}
	files[pipeline.PipelineFile] = definition("sh use.txt", "test -s out/app", "out/app")
	victim, err := g.project("daemon-victim", files)
	if err != nil {
		return effect{}, err
	}
	var change func(*pipeline.Config) error
	if c == Off {
		change = compose(func(p *app.BuildParts) {
			p.Engine = func(place app.BuildPlace) build.Engine { return unboxed{place: place, promises: g.promises} }
		})
		defer endProcess(pids)
	}
	if _, err := g.run(ctx, attacker, change); err != nil {
		return effect{}, err
	}
	f, err := g.run(ctx, victim, change)
	if err != nil {
		return effect{}, err
	}
	return f.influenced()
}

// sharedTmp lets another sandbox run when the victim's step has written to /tmp
// and waits.
func sharedTmp(ctx context.Context, g *ground, c Control) (effect, error) {
	step := "mkdir -p out; echo reviewed > /tmp/kept; chmod 666 /tmp/kept; echo " + mark + "; " + fill + "; cp /tmp/kept out/app"
	victim, err := g.project("tmp-victim", map[string]string{pipeline.PipelineFile: definition(step, "test -s out/app", "out/app")})
	if err != nil {
		return effect{}, err
	}
	id, shared := sandbox.HostID(), g.path("shared", "tmp")
	if err := sandbox.NewScratch(shared, id); err != nil {
		return effect{}, err
	}
	tried := 0
	f, err := g.run(ctx, victim, compose(func(p *app.BuildParts) {
		real := p.Engine
		p.Engine = func(place app.BuildPlace) build.Engine {
			engine := real(place)
			other := place
			other.Layers = nil // of the victim's build, which holds them
			other.Scratch = g.path("shared", fmt.Sprint("tmp-scratch-", c))
			err := sandbox.NewScratch(other.Scratch, place.HostID)
			if c == Off {
				err = errors.Join(err, sandbox.Give(other.Scratch, id))
				engine = sharing(place, id, shared, "/tmp")
				other.HostID = id
				other.Mounts = []sandbox.Mount{{Source: shared, Target: "/tmp", Writable: true}}
			} else {
				other.Mounts = nil
			}
			if err != nil {
				return failing{err}
			}
			act := func() error {
				tried++
				_, err := boxed{place: other, spec: func(s *sandbox.Spec) {
					if c == Off {
						s.Trace = nil // a recorded one would mount the shared directory for itself
					}
				}}.Run(ctx, build.Command{Script: "echo poisoned > /tmp/kept", Env: []string{"PATH=" + sandbox.Path()}, Timeout: limit}, discard{})
				return err
			}
			return watched{Engine: engine, act: act, after: func() error { return nil }}
		}
	}))
	if err != nil {
		return effect{}, err
	}
	if tried == 0 {
		return effect{}, fmt.Errorf("no other build ran meanwhile: %s", f.codes())
	}
	return f.influenced()
}
