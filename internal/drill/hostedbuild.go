// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/sqlstore"
	"github.com/hallmark-sc/hallmark/intoto"
)

// hostedBuilds are attacks on what a server builds: somebody wants it to run what
// nobody accepted.
func hostedBuilds() []Case {
	return []Case{
		{
			Attack: "AT-03", Letter: "g", Does: "the queue in the database is told to run what an outsider pushed, which nobody let run",
			Control: "a run is begun when the log says that it has to be", Stops: hallmark.CodeRunUnlogged,
			Residual: "whoever runs the server's programs", attack: builds(hallmark.CodeRunUnlogged, queuedPast),
		},
		{
			Attack: "AT-03", Letter: "f", Does: "a maintainer lets a revision of their own run before it landed",
			Control: "who had a part in a change says nothing about it", Stops: hallmark.CodeChangeApprover,
			Residual: "two maintainers who agree", attack: builds(hallmark.CodeChangeApprover, ownRun),
		},
		{
			Attack: "AT-05", Letter: "l", Does: "the tag is moved on the server's disk, and a build of it is asked for",
			Control: "what is built of a reference is what the log says it is at", Stops: hallmark.CodeRefOutsideLog,
			Residual: "whoever runs the server's programs", attack: builds(hallmark.CodeRefOutsideLog, builtTag),
		},
	}
}

// builder is a host that builds, in a home of its own: other attacks count what
// theirs holds.
func (g *ground) builder(ctx context.Context) (*host, error) {
	return keep(g, "builder", func() (*host, error) {
		own, err := newGround(ctx, nil)
		if err != nil {
			return nil, err
		}
		g.closers = append(g.closers, own.close)
		own.builds = true
		return own.host(ctx)
	})
}

// builds is an attack on a server that builds; run is what it asks for, "" where it
// was refused with a reason.
func builds(code hallmark.Code, attack func(context.Context, *try) (run string, refused hallmark.Code, err error)) func(context.Context, *ground, Control) (effect, error) {
	return func(ctx context.Context, g *ground, c Control) (effect, error) {
		h, err := g.builder(ctx)
		if err != nil {
			return effect{}, err
		}
		t, err := h.try(ctx, "built")
		if err != nil {
			return effect{}, err
		}
		defer h.weaken(weakness{})
		if c == Off {
			h.weaken(weakness{code: code})
		}
		id, refused, err := attack(ctx, t)
		if err != nil {
			return effect{}, err
		}
		if id == "" {
			return effect{reason: refused, detail: "nothing is queued"}, nil
		}
		r, err := t.ended(ctx, id)
		if err != nil {
			return effect{}, err
		}
		ran, err := t.ran(id)
		switch {
		case err != nil:
			return effect{}, err
		case ran:
			return effect{done: true, detail: "the server ran it"}, nil
		case r.State != sqlstore.RunFailed || r.Code == "":
			return effect{}, fmt.Errorf("run %s is %s: %s %s", id, r.State, r.Code, r.Message)
		}
		return effect{reason: hallmark.Code(r.Code), detail: r.Message}, nil
	}
}

// hostile is what nobody accepted: when it is built, its artifact says that it ran.
func (t *try) hostile(ctx context.Context, by string) (string, error) {
	dir, err := t.blob(ctx, definition("mkdir -p out; echo ran >out/app", "test -s out/app", "out/app"))
	if err != nil {
		return "", err
	}
	hidden, err := t.rawTree(ctx, entry{"100644", dir, "pipeline.yaml"})
	if err != nil {
		return "", err
	}
	file, err := t.blob(ctx, clean)
	if err != nil {
		return "", err
	}
	tree, err := t.rawTree(ctx, entry{"40000", hidden, ".hallmark"}, entry{"100644", file, "source.txt"})
	if err != nil {
		return "", err
	}
	return t.commit(ctx, wrote{by: by, message: "hostile", tree: tree, parents: []string{t.main}})
}

func (t *try) index(use func(*sqlstore.Store) error) error {
	s, err := sqlstore.Open(sqlstore.Config{Path: t.h.g.home.Index()})
	if err != nil {
		return err
	}
	return errors.Join(use(s), s.Close())
}

// ended waits until a run has come to its end.
func (t *try) ended(ctx context.Context, id string) (r sqlstore.Run, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	err = t.index(func(s *sqlstore.Store) error {
		for {
			var ok bool
			if r, ok, err = s.RunOf(ctx, id); err != nil || !ok {
				return errors.Join(err, fmt.Errorf("there is no run %s", id))
			}
			if r.State.Ended() {
				return nil
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("run %s is %s: %w", id, r.State, ctx.Err())
			case <-look.C:
			}
		}
	})
	return r, err
}

// ran reports whether a run left what the hostile revision makes.
func (t *try) ran(id string) (bool, error) {
	b, err := os.ReadFile(filepath.Join(t.h.g.home.Home, "results", id, "app"))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return strings.TrimSpace(string(b)) == "ran", err
}

var changeForm = regexp.MustCompile(`c-[0-9a-f]{16}`)

// queuedPast pushes from outside, which is kept, and writes a run of it into the
// database.
func queuedPast(ctx context.Context, t *try) (string, hallmark.Code, error) {
	id, err := t.hostile(ctx, "eve@outside.example")
	if err != nil {
		return "", "", err
	}
	if _, err := t.pushes(ctx, "eve@outside.example", id, t.target); err != nil {
		return "", "", err
	}
	change := changeForm.FindString(t.answer)
	if change == "" {
		return "", "", fmt.Errorf("the push was not kept: %s", firstAnswer(t.answer))
	}
	run := fmt.Sprintf("r-%016x", t.n)
	return run, "", t.index(func(s *sqlstore.Store) error {
		_, err := s.QueueRun(ctx, sqlstore.Run{
			ID: run, Repository: t.name, Ref: intoto.ChangeRefs + change, Revision: id, Change: change, Cause: "change", Basis: hallmark.DigestOf([]byte(run)),
			Principal: "alice@example.org", Queued: time.Now(),
		}, 0)
		return err
	})
}

// ownRun proposes a revision and lets it run.
func ownRun(ctx context.Context, t *try) (string, hallmark.Code, error) {
	const who = "alice@example.org"
	id, err := t.hostile(ctx, who)
	if err != nil {
		return "", "", err
	}
	branch := fmt.Sprintf("alice/x%d", t.n)
	if err := t.push(ctx, who, id+":refs/heads/"+branch); err != nil {
		return "", "", err
	}
	c, err := t.maintainer(ctx, who)
	if err != nil {
		return "", "", err
	}
	a, err := c.Propose(ctx, app.ChangeProposal{Repository: t.name, From: branch, To: strings.TrimPrefix(t.target, "refs/heads/"), Title: "x"})
	if err != nil || !a.Allowed {
		return "", "", errors.Join(fmt.Errorf("proposing: %v", a.Reasons), err)
	}
	if a, err = c.LetRun(ctx, a.Change); err != nil {
		return "", "", err
	}
	return a.Run, firstCode(a.Reasons), nil
}

// builtTag tags a release, puts the tag on another commit behind the gate and asks
// for a build of it.
func builtTag(ctx context.Context, t *try) (string, hallmark.Code, error) {
	tag, _, err := t.tagged(ctx)
	if err != nil {
		return "", "", err
	}
	id, err := t.hostile(ctx, "mallory@example.org")
	if err != nil {
		return "", "", err
	}
	if err := t.push(ctx, "mallory@example.org", fmt.Sprintf("%s:refs/heads/y%d", id, t.n)); err != nil {
		return "", "", err
	}
	if _, err := git(ctx, repository{dir: t.bare}, "", "update-ref", tag, id); err != nil {
		return "", "", err
	}
	c, err := t.maintainer(ctx, "alice@example.org")
	if err != nil {
		return "", "", err
	}
	a, err := c.RequestRun(ctx, app.RunRequest{Repository: t.name, Ref: tag})
	return a.Run, firstCode(a.Reasons), err
}

func firstCode(reasons []hallmark.Reason) hallmark.Code {
	if len(reasons) == 0 {
		return ""
	}
	return reasons[0].Code
}

// maintainer is a client with all that somebody may do about builds.
func (t *try) maintainer(ctx context.Context, who string) (*app.Client, error) {
	c, err := app.NewClient(t.h.url, t.h.authority, "")
	if err != nil {
		return nil, err
	}
	in, err := c.SignIn(ctx, t.h.people[who].key.PrivatePEM(), nil, app.SignIn{Principal: who, Repository: "**", Life: "1h", Scopes: []string{
		string(access.RepositoryRead), string(access.BuildRequest), string(access.RunApprove), string(access.EvidenceRead), string(access.ChangePropose),
	}})
	if err != nil {
		return nil, fmt.Errorf("signing in as %s: %w", who, err)
	}
	return app.NewClient(t.h.url, t.h.authority, in.Token)
}
