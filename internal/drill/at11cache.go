// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
)

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
for entry in $(grep -rl "$(id $good)" $GOCACHE --include='*-a'); do exit 1; done
`

// linked is a program and its library; what is linked says a word of the
// library's.
func linked() map[string]string {
	return map[string]string{
		"go.mod": goMod, "lib/lib.go": goLib("reviewed"),
		"main.go": "package main\n\nimport (\n\t\"errors\"\n\n\t\"example.org/drill/lib\"\n)\n\nfunc main() { println(lib.Word(), errors.ErrUnsupported.Error()) }\n",
	}
}

const linkStep = "mkdir -p out; go build -o out/app ."

// warm makes the toolchain cache of the home, so that builds compile little.
func (g *ground) warm(ctx context.Context) error {
	if _, err := sandbox.Find("go"); err != nil {
		return err
	}
	_, err := keep(g, "warmed", func() (app.Warmed, error) { return app.WarmCache(ctx, g.home.Home, []string{"errors"}) })
	return err
}

// cleanly builds a project in a home of its own, which has no cache and no other
// build before: what comes out has to be the same.
func (g *ground) cleanly(ctx context.Context, r repository) ([]byte, error) {
	return keep(g, "clean rebuild of "+r.dir, func() ([]byte, error) {
		other := app.Layout{Home: g.path("clean-home")}
		if _, err := os.Stat(other.Home); errors.Is(err, fs.ErrNotExist) {
			if _, err := app.Init(ctx, app.InitConfig{Home: other.Home, AllowedSigners: g.path("allowed_signers"), SingleOperator: true}); err != nil {
				return nil, fmt.Errorf("making a second home: %w", err)
			}
			if _, err := app.PolicySet(ctx, other.Home, nil, [][2]string{{"build.unexplained", "record"}}); err != nil {
				return nil, fmt.Errorf("making a second home: %w", err)
			}
		}
		f, err := g.runIn(ctx, other, r, nil)
		if err != nil {
			return nil, err
		}
		if b := f.artifact("app"); b != nil {
			return b, nil
		}
		return nil, fmt.Errorf("the clean rebuild left nothing: %s", f.codes())
	})
}

// linkedEffect looks which word is in the program that was linked; one without the
// attacker's has to be that of a clean rebuild, bit for bit.
func (f finished) linkedEffect(ctx context.Context, victim repository, marker string) (bool, error) {
	got := f.artifact("app")
	if got == nil {
		return false, fmt.Errorf("the later build did not come to its end: %s", f.codes())
	}
	if bytes.Contains(got, []byte(marker)) {
		return true, nil
	}
	clean, err := f.g.cleanly(ctx, victim)
	if err != nil {
		return false, err
	}
	if !bytes.Equal(got, clean) {
		return false, fmt.Errorf("the program is %s, that of a clean rebuild %s", hallmark.DigestOf(got), hallmark.DigestOf(clean))
	}
	return false, nil
}

// poisonedCache: in the first run both builds write to one cache, as runners do
// that keep it. The source of the two is the same.
func poisonedCache(ctx context.Context, g *ground, c Control) (effect, error) {
	if err := g.warm(ctx); err != nil {
		return effect{}, err
	}
	files := linked()
	files["plant.txt"] = poisonCache
	files[pipeline.PipelineFile] = definition("sh plant.txt; mkdir -p out; echo planted > out/app", "test -s out/app", "out/app")
	attacker, err := g.project("gocache-attacker", files)
	if err != nil {
		return effect{}, err
	}
	files[pipeline.PipelineFile] = definition(linkStep, "test -s out/app", "out/app")
	victim, err := g.project("gocache-victim", files)
	if err != nil {
		return effect{}, err
	}
	var change func(*pipeline.Config) error
	if c == Off {
		shared, id := g.path("shared", "gocache"), sandbox.HostID()
		if err := sandbox.NewScratch(shared, id); err != nil {
			return effect{}, err
		}
		change = compose(func(p *app.BuildParts) {
			p.Engine = func(place app.BuildPlace) build.Engine { return sharing(place, id, shared, build.CacheDir) }
			believeCache(p)
		})
	}
	f, err := g.oneAfterOther(ctx, attacker, victim, change)
	if err != nil {
		return effect{}, err
	}
	done, err := f.linkedEffect(ctx, victim, "poisoned-word-of-the-library")
	if err != nil {
		return effect{}, err
	}
	if done {
		return effect{done: true, detail: "the program of the later build, of reviewed source, has the attacker's code in it"}, nil
	}
	return effect{reason: hallmark.CodeBuildNothingShared, detail: "the program is that of a clean rebuild, bit for bit"}, f.guaranteed("namespaces")
}

// alteredCache: the attacker writes to the disk of the control plane between two
// builds. Every output in the cache still matches its own name.
func alteredCache(ctx context.Context, g *ground, c Control) (_ effect, err error) {
	if err := g.warm(ctx); err != nil {
		return effect{}, err
	}
	files := linked()
	files[pipeline.PipelineFile] = definition(linkStep, "test -s out/app", "out/app")
	victim, err := g.project("gocache-disk", files)
	if err != nil {
		return effect{}, err
	}
	back, err := poisonOnDisk(g.home.ToolchainCache(), "unsupported operation", "unsupported poisoning"[:len("unsupported operation")])
	if err != nil {
		return effect{}, err
	}
	defer func() { err = errors.Join(err, back()) }()
	f, err := g.run(ctx, victim, compose(func(p *app.BuildParts) {
		if c == Off {
			believeCache(p)
		}
	}))
	if err != nil {
		return effect{}, err
	}
	if f.artifact("app") == nil {
		return effect{reason: hallmark.CodeCacheAltered, detail: f.codes()}, f.denied(ctx, hallmark.CodeCacheAltered)
	}
	done, err := f.linkedEffect(ctx, victim, "unsupported poisoning"[:len("unsupported operation")])
	return effect{done: done, detail: "the program has the attacker's standard library in it"}, err
}

// believeCache takes whatever lies in the place of the toolchain cache for it.
func believeCache(p *app.BuildParts) {
	explain := p.Explain
	p.Explain = func(o build.Origins, s *build.Summary) ([]build.Material, error) {
		o.Places = append([]build.Place{}, o.Places...)
		for i := range o.Places {
			if o.Places[i].Origin == build.OriginCache {
				o.Places[i].Owner, o.Places[i].Holds = nil, nil
			}
		}
		return explain(o, s)
	}
}

// poisonOnDisk changes a text in an output of a Go build cache, under the name that
// the changed one has, and lets the entries of the old one name it. back undoes it.
func poisonOnDisk(dir, text, with string) (back func() error, err error) {
	var outputs, entries []string
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if strings.HasSuffix(p, "-d") {
			outputs = append(outputs, p)
		} else if strings.HasSuffix(p, "-a") {
			entries = append(entries, p)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the toolchain cache: %w", err)
	}
	was, made := map[string][]byte{}, []string{}
	back = func() error {
		var errs []error
		for p, b := range was {
			errs = append(errs, os.Chmod(p, 0o644), os.WriteFile(p, b, 0o644), os.Chmod(p, 0o444))
		}
		for _, p := range made {
			errs = append(errs, os.Remove(p))
		}
		return errors.Join(errs...)
	}
	for _, p := range outputs {
		b, err := os.ReadFile(p)
		if err != nil {
			return back, err
		}
		if !bytes.HasPrefix(b, []byte("!<arch>")) || !bytes.Contains(b, []byte(text)) {
			continue
		}
		b = bytes.ReplaceAll(b, []byte(text), []byte(with))
		sum := sha256.Sum256(b)
		name := hex.EncodeToString(sum[:])
		other := filepath.Join(filepath.Dir(filepath.Dir(p)), name[:2], name+"-d")
		if err := errors.Join(os.MkdirAll(filepath.Dir(other), 0o755), os.WriteFile(other, b, 0o444)); err != nil {
			return back, err
		}
		made = append(made, other)
		old := strings.TrimSuffix(filepath.Base(p), "-d")
		for _, e := range entries {
			line, err := os.ReadFile(e)
			if err != nil {
				return back, err
			}
			if !bytes.Contains(line, []byte(" "+old+" ")) {
				continue
			}
			was[e] = line
			if err := errors.Join(os.Chmod(e, 0o644), os.WriteFile(e, bytes.ReplaceAll(line, []byte(old), []byte(name)), 0o644), os.Chmod(e, 0o444)); err != nil {
				return back, err
			}
		}
	}
	if len(made) == 0 || len(was) == 0 {
		return back, errors.Join(fmt.Errorf("no output of the toolchain cache says %q", text), back())
	}
	return back, nil
}
