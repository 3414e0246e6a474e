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
		one("a", "an earlier build points an entry of the Go build cache to other content", "each build has a cache of its own", influence{
			name: "gocache", share: "/cache", plant: poisonCache, use: "mkdir -p out; go build -o out/lib ./lib; if grep -q poisoned out/lib; then echo poisoned; else echo reviewed; fi > out/app", tool: "go",
			files: map[string]string{"go.mod": goMod, "lib/lib.go": goLib("reviewed")},
		}),
		one("b", "an earlier build edits a file of the module cache", "each build sees only what was fetched for it, read-only", influence{
			name: "gomodcache", share: "/dependencies/go", plant: "mkdir -p $GOMODCACHE/example.org/dep@v1.0.0 || exit 0; cd $GOMODCACHE/example.org/dep@v1.0.0; printf 'module example.org/dep\\n' > go.mod; " + writeGo("dep.go", "dep", "poisoned"),
			use: "mkdir -p out; cp $GOMODCACHE/example.org/dep@v1.0.0/dep.go dep.go 2>/dev/null || " + writeGo("dep.go", "dep", "reviewed") + "; grep -o -e poisoned -e reviewed dep.go > out/app", tool: "go",
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
	}
}

func goLib(word string) string {
	return "package lib\n\n// Word is what the library is known by.\nfunc Word() string { return \"" + word + "-word-of-the-library\" }\n"
}

func writeGo(file, pkg, word string) string {
	return "printf 'package " + pkg + "\\nconst Word = \"" + word + "\"\\n' > " + file
}

// poisonCache compiles the library twice, once changed, and lets the entry of the
// reviewed source name the output of the changed one. The content of each output
// still matches its own name.
const poisonCache = `export_of() { go list -export -f '{{.Export}}' ./lib; }
good=$(export_of)
sed -i s/reviewed/poisoned/ lib/lib.go
bad=$(export_of)
sed -i s/poisoned/reviewed/ lib/lib.go
id() { basename "$1" -d; }
for entry in $(grep -rl "$(id $good)" $GOCACHE --include='*-a'); do
  printf 'v1 %s %s %20d %20d\n' $(basename $entry -a) $(id $bad) $(stat -c %s $bad) $(date +%s)000000000 > $entry
done
for entry in $(grep -rl "$(id $good)" $GOCACHE --include='*-a'); do exit 1; done`

// influence is a build of the attacker before one of the victim's.
type influence struct {
	name, share string // what the two share without the control
	plant, use  string
	tool        string
	files       map[string]string
}

func (i influence) attack(ctx context.Context, g *ground, c Control) (effect, error) {
	if _, err := sandbox.Find(i.tool); err != nil {
		return effect{}, err
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
	first, err := g.run(ctx, attacker, change)
	if err != nil {
		return effect{}, err
	}
	if first.artifact("app") == nil {
		return effect{}, fmt.Errorf("the attacker's build did not come to its end: %s", first.codes())
	}
	f, err := g.run(ctx, victim, change)
	if err != nil {
		return effect{}, err
	}
	return f.influenced()
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
	var mounts []sandbox.Mount
	for _, m := range place.Mounts {
		if m.Target != target {
			mounts = append(mounts, m)
		}
		if m.Writable {
			if err := sandbox.Give(m.Source, id); err != nil {
				return failing{err}
			}
		}
	}
	place.Mounts = append(mounts, sandbox.Mount{Source: dir, Target: target, Writable: true})
	return boxed{place: place, spec: func(*sandbox.Spec) {}}
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
