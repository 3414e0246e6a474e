// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/gitcli"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
)

const (
	clean  = "reviewed\n"
	poison = "poisoned\n"
)

// at12 is "source swapped during the build" (SUNSPOT).
func at12() []Case {
	return []Case{
		{
			Attack: "AT-12", Letter: "a", Does: "a co-tenant of the host rewrites a file of the checkout while the step runs, and restores it",
			Control: "the build reads a private copy of the commit", Stops: hallmark.CodeSourceCopyPrivate,
			Residual: "a process with the control plane's own rights, which is case e", attack: swapCheckout,
		},
		{
			Attack: "AT-12", Letter: "b", Does: "a step writes through to the copy of the source, under its view of it, and tries to remount it",
			Control: "the copy is the read-only lower layer of an overlay", Stops: hallmark.CodeSandboxSourceReadOnly,
			Residual: "a step may change what later steps of the same build see; its command is in the process attestation", attack: writeThrough,
		},
		{
			Attack: "AT-12", Letter: "c", Does: "a replace ref in the repository stands another file in the place of the reviewed one",
			Control: "objects are read by the name that the signed commit gives them, and hashed again", Stops: hallmark.CodeSourceObjectsRehashed,
			Residual: "two objects of one SHA-1 name, where git's own detection of collisions fails", attack: replaceRef,
		},
		{
			Attack: "AT-12", Letter: "d", Does: "a smudge filter in the repository's configuration rewrites a file when it is checked out",
			Control: "no configuration of the repository is asked", Stops: hallmark.CodeSourceConfigUnasked,
			Residual: "a step of the pipeline definition that rewrites the file, which review has to see", attack: smudge,
		},
		{
			Attack: "AT-12", Letter: "e", Does: "a process with the control plane's rights swaps a file of the private copy while the step runs, and restores bytes and times",
			Control: "the copy is measured before and after the build, change times included", Stops: hallmark.CodeSourceChangedInside,
			Residual: "root who sets the clock back, or changes what the kernel says; all rebuilders compromised alike", attack: swapPrivate,
		},
		{
			Attack: "AT-12", Letter: "f", Does: "the committed pipeline definition is a link to a file of the host that nobody signed",
			Control: "links that leave the tree are not exported", Stops: hallmark.CodeSourceObjectInvalid,
			Residual: "links inside the tree, which lead to what was signed too", attack: linkedDefinition,
		},
		{
			Attack: "AT-12", Letter: "g", Does: "a builder that is compromised as a whole poisons a release and signs it",
			Control: "the consumer asks for a rebuild by an honest builder that gave the same bytes", Stops: hallmark.CodeBuildNotReproduced,
			Residual: "all rebuilders compromised alike; builds that are not reproducible can't be released so", attack: compromisedBuilder,
		},
		{
			Attack: "AT-12", Letter: "h", Does: "as in e, on a machine whose measuring of the copy was taken away",
			Control: "every file that a step reads is hashed as it is read, and belongs to the commit, a dependency or the toolchain", Stops: hallmark.CodeUnexplained,
			Residual: "a file of the toolchain that was swapped before the build and of which no package declares a digest, which an inventory of tools has to see", attack: swapTraced,
		},
	}
}

// copyStep copies the source into the artifact, after a pause that a pipe makes.
var copyStep = definition("mkdir -p out; echo "+mark+"; "+fill+"; cp source.txt out/app", "test -s out/app", "out/app")

// swapCheckout: the same co-tenant acts in both runs; the first build works in
// the checkout that he can write to.
func swapCheckout(ctx context.Context, g *ground, c Control) (effect, error) {
	r, err := g.project("swap", map[string]string{"source.txt": clean, pipeline.PipelineFile: copyStep})
	if err != nil {
		return effect{}, err
	}
	file := filepath.Join(r.dir, "source.txt")
	write := func(text string) func() error {
		return func() error { return os.WriteFile(file, []byte(text), 0o644) }
	}
	swapped := false
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		real := p.Engine
		p.Engine = func(place app.BuildPlace) build.Engine {
			if c == Off {
				place.Source = r.dir
				if err := sandbox.Give(r.dir, place.HostID); err != nil {
					return failing{err}
				}
			}
			return watched{Engine: real(place), after: write(clean), act: func() error { swapped = true; return write(poison)() }}
		}
	}))
	if err != nil {
		return effect{}, err
	}
	if !swapped {
		return effect{}, fmt.Errorf("the file was not swapped while the step ran: %s", f.codes())
	}
	return f.sourceEffect(hallmark.CodeSourceCopyPrivate)
}

// swapPrivate: without the control nobody looks at the copy while it is built.
func swapPrivate(ctx context.Context, g *ground, c Control) (effect, error) {
	return g.swapCopy(ctx, c == On, hallmark.CodeSourceChangedInside, "bytes and times were as before, the change time was not")
}

// swapTraced: nobody measures the copy in either run; what was read is on record.
func swapTraced(ctx context.Context, g *ground, c Control) (e effect, err error) {
	if c == On {
		if _, err := app.PolicySet(ctx, g.home.Home, nil, [][2]string{{"build.unexplained", "deny"}}); err != nil {
			return effect{}, err
		}
		defer func() {
			_, back := app.PolicySet(ctx, g.home.Home, nil, [][2]string{{"build.unexplained", "record"}})
			err = errors.Join(err, back)
		}()
	}
	return g.swapCopy(ctx, false, hallmark.CodeUnexplained, "what the step read is on record, and is not the commit's")
}

// swapCopy swaps a file of the private copy while the step runs, and puts bytes and
// times back.
func (g *ground) swapCopy(ctx context.Context, measured bool, stops hallmark.Code, detail string) (effect, error) {
	r, err := g.project("swap", map[string]string{"source.txt": clean, pipeline.PipelineFile: copyStep})
	if err != nil {
		return effect{}, err
	}
	swapped := false
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		real := p.Engine
		if !measured {
			p.Watch = func(string, hallmark.Digest) (func() (bool, error), error) {
				return func() (bool, error) { return false, nil }, nil
			}
		}
		p.Engine = func(place app.BuildPlace) build.Engine {
			file := filepath.Join(place.Source, "source.txt")
			st, err := os.Stat(file)
			if err != nil {
				return failing{err}
			}
			return watched{Engine: real(place), act: func() error {
				swapped = true
				return os.WriteFile(file, []byte(poison), 0o644)
			}, after: func() error {
				return errors.Join(os.WriteFile(file, []byte(clean), 0o644), os.Chtimes(file, st.ModTime(), st.ModTime()))
			}}
		}
	}))
	if err != nil {
		return effect{}, err
	}
	if !swapped {
		return effect{}, fmt.Errorf("the file was not swapped while the step ran: %s", f.codes())
	}
	if f.artifact("app") != nil {
		return f.sourceEffect("")
	}
	return effect{reason: stops, detail: detail}, f.denied(ctx, stops)
}

// sourceEffect compares the artifact with what the commit says.
func (f finished) sourceEffect(prevented hallmark.Code) (effect, error) {
	p, ok, err := f.provenance("app")
	if err != nil {
		return effect{}, err
	}
	if !ok || p.BuildDefinition.ExternalParameters.Revision != f.Revision.Commit {
		return effect{}, fmt.Errorf("the build has no provenance of the commit: %s", f.codes())
	}
	switch string(f.artifact("app")) {
	case poison:
		return effect{done: true, detail: "the poisoned byte is in the artifact, under provenance of the clean commit"}, nil
	case clean:
		return effect{reason: prevented, detail: "the artifact holds what the commit holds"}, nil
	}
	return effect{}, fmt.Errorf("the artifact is neither: %q", f.artifact("app"))
}

// failing is an engine that could not be made.
type failing struct{ err error }

func writeThrough(ctx context.Context, g *ground, c Control) (effect, error) {
	step := "for d in /.hallmark/lower . ; do mount -o remount,rw $d || :; umount $d || :; sh -c \"echo poisoned > $d/source.txt\" || :; done 2>/dev/null; mkdir -p out; cp source.txt out/app"
	r, err := g.project("write-through", map[string]string{"source.txt": clean, pipeline.PipelineFile: definition(step, "test -s out/app", "out/app")})
	if err != nil {
		return effect{}, err
	}
	var place app.BuildPlace
	var left, wrote []byte
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		real, collect := p.Engine, p.Collect
		p.Engine = func(at app.BuildPlace) build.Engine {
			place = at
			if c == On {
				return real(at)
			}
			return boxed{place: at, spec: func(s *sandbox.Spec) {
				s.Workspace = nil
				s.Mounts = append(s.Mounts, sandbox.Mount{Source: at.Source, Target: app.Workspace, Writable: true})
			}}
		}
		p.Collect = func(dir string, names []string) ([]build.Output, []hallmark.Reason) {
			left, err = os.ReadFile(filepath.Join(place.Source, "source.txt"))
			if c == Off {
				dir = place.Source
			}
			outputs, reasons := collect(dir, names)
			for _, o := range outputs {
				wrote = o.Data
			}
			return outputs, reasons
		}
	}))
	if err != nil {
		return effect{}, err
	}
	// That the step did write is seen in its output: it was not stopped by
	// accident, before it came to that.
	if string(wrote) != poison {
		return effect{}, fmt.Errorf("the step did not write: %s", f.codes())
	}
	if string(left) == poison {
		return effect{done: true, detail: "the copy that every other reader trusts holds the poisoned byte"}, nil
	}
	if string(left) != clean {
		return effect{}, fmt.Errorf("the copy of the source is neither: %q", left)
	}
	return effect{reason: hallmark.CodeSandboxSourceReadOnly, detail: "the step changed its own view only"}, f.guaranteed("capabilities-dropped")
}

// gitBuild builds what git itself checks out when the control is off.
func gitBuild(ctx context.Context, g *ground, r repository, c Control, prevented hallmark.Code) (effect, error) {
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		real := p.Engine
		p.Engine = func(place app.BuildPlace) build.Engine {
			if c == Off {
				g.outs++
				place.Source = g.path("checkout", fmt.Sprint(g.outs))
				if err := checkout(ctx, r, place.Source); err != nil {
					return failing{err}
				}
				if err := sandbox.Give(place.Source, place.HostID); err != nil {
					return failing{err}
				}
			}
			return real(place)
		}
	}))
	if err != nil {
		return effect{}, err
	}
	return f.sourceEffect(prevented)
}

// plainCheckout exports what git writes, links of any kind included.
type plainCheckout struct {
	pipeline.Source
	repo repository
}

func (s plainCheckout) Export(ctx context.Context, _ hallmark.Revision, dir string) (pipeline.Export, error) {
	if err := checkout(ctx, s.repo, dir); err != nil {
		return pipeline.Export{}, err
	}
	m, err := gitcli.Measure(dir)
	if err != nil {
		return pipeline.Export{}, err
	}
	e := pipeline.Export{Dir: dir, Files: m.Files, Manifest: m.Digest, CommitTime: time.Unix(0, 0)}
	e.Pipeline, err = os.ReadFile(filepath.Join(dir, filepath.FromSlash(pipeline.PipelineFile)))
	return e, err
}

func linkedDefinition(ctx context.Context, g *ground, c Control) (effect, error) {
	planted := g.path("planted")
	r, err := g.projectWith("linked", map[string]string{"source.txt": clean}, func(dir string) error {
		return errors.Join(os.Mkdir(planted, 0o755), os.Symlink(planted, filepath.Join(dir, filepath.Dir(pipeline.PipelineFile))))
	})
	if err != nil {
		return effect{}, err
	}
	unsigned := definition("mkdir -p out; echo poisoned > out/app", "test -s out/app", "out/app")
	if err := os.WriteFile(filepath.Join(planted, filepath.Base(pipeline.PipelineFile)), []byte(unsigned), 0o644); err != nil {
		return effect{}, err
	}
	f, err := g.run(ctx, r, func(pc *pipeline.Config) error {
		if c == On {
			return nil
		}
		pc.Source = plainCheckout{Source: pc.Source, repo: r}
		return compose(func(p *app.BuildParts) {
			real := p.Engine
			p.Engine = func(place app.BuildPlace) build.Engine {
				if err := sandbox.Give(place.Source, place.HostID); err != nil {
					return failing{err}
				}
				return real(place)
			}
		})(pc)
	})
	if hallmark.CodeOf(err) == hallmark.CodeSourceObjectInvalid {
		return effect{reason: hallmark.CodeSourceObjectInvalid, detail: err.Error()}, nil
	}
	if err != nil {
		return effect{}, err
	}
	return f.sourceEffect("")
}

func replaceRef(ctx context.Context, g *ground, c Control) (effect, error) {
	r, err := g.project("replace", map[string]string{"source.txt": clean, pipeline.PipelineFile: copyStep})
	if err != nil {
		return effect{}, err
	}
	good, err := git(ctx, r, clean, "hash-object", "--stdin")
	if err != nil {
		return effect{}, err
	}
	evil, err := git(ctx, r, poison, "hash-object", "-w", "--stdin")
	if err != nil {
		return effect{}, err
	}
	if _, err := git(ctx, r, "", "replace", "-f", good, evil); err != nil {
		return effect{}, err
	}
	return gitBuild(ctx, g, r, c, hallmark.CodeSourceObjectsRehashed)
}

func smudge(ctx context.Context, g *ground, c Control) (effect, error) {
	r, err := g.project("smudge", map[string]string{"source.txt": clean, ".gitattributes": "source.txt filter=drill\n", pipeline.PipelineFile: copyStep})
	if err != nil {
		return effect{}, err
	}
	for _, set := range [][2]string{{"filter.drill.smudge", "sed s/reviewed/poisoned/"}, {"filter.drill.clean", "sed s/poisoned/reviewed/"}} {
		if _, err := git(ctx, r, "", "config", set[0], set[1]); err != nil {
			return effect{}, err
		}
	}
	return gitBuild(ctx, g, r, c, hallmark.CodeSourceConfigUnasked)
}
