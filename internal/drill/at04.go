// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/policy"
)

// at03source is "administrator weakens a control, acts, restores it", at the
// source gate.
func at03source() []Case {
	outside := weakness{code: hallmark.CodeRefOutsideLog}
	return []Case{
		{
			Attack: "AT-03", Letter: "b", Does: "the policy in force is edited in place, so that nothing needs an approval any more",
			Control: "the policy is verified each time that it is read", Stops: hallmark.CodePolicyUnsigned,
			Residual: "a threshold of administrators", attack: policyEdited,
		},
		{
			Attack: "AT-03", Letter: "c", Does: "the hooks are gone round on the server for one commit that nobody signed; everything is put back, and a good commit follows",
			Control: "a reference is moved only from where the log says it is", Stops: hallmark.CodeRefOutsideLog,
			Residual: "whoever runs the server's programs", attack: hosted("open", outside, func(ctx context.Context, t *try) (bool, error) {
				evil, err := t.sneaked(ctx, t.target, wrote{by: "alice@example.org", unsigned: true, message: "evil", parents: []string{t.main}})
				if err != nil {
					return false, err
				}
				return t.overMoved(ctx, evil)
			}),
		},
		{
			Attack: "AT-03", Letter: "d", Does: "a branch is put on a commit that nobody signed, behind the gate, so that a push of it to the protected one brings nothing new; then the branch is gone",
			Control: "only branches that are where the log says vouch for their history", Stops: hallmark.CodeSourceUnsigned,
			Residual: "whoever runs the server's programs", attack: hosted("open", weakness{code: hallmark.CodeSourceUnsigned}, func(ctx context.Context, t *try) (bool, error) {
				evil, err := t.sneaked(ctx, t.branch(), wrote{by: "mallory@example.org", unsigned: true, message: "evil", parents: []string{t.main}})
				if err != nil {
					return false, err
				}
				done, err := t.pushes(ctx, "mallory@example.org", evil, t.target)
				_, gone := git(ctx, repository{dir: t.bare}, "", "update-ref", "-d", t.branch())
				return done, errors.Join(err, gone)
			}),
		},
	}
}

// sneaked puts a commit on a reference of the server without the gate.
func (t *try) sneaked(ctx context.Context, ref string, w wrote) (string, error) {
	w.files = map[string]string{"readme": fmt.Sprintln(w.message, t.n)}
	id, err := t.commit(ctx, w)
	if err != nil {
		return "", err
	}
	_, first := t.git(ctx, "", "update-ref", "refs/evil/it", id)
	_, then := git(ctx, repository{dir: t.bare}, "", "fetch", "-q", t.dir, "refs/evil/it:"+ref)
	return id, errors.Join(first, then)
}

// overMoved pushes a good commit on top of what was put on the reference outside
// of the gate; where that is refused, the audit must have found it too.
func (t *try) overMoved(ctx context.Context, at string) (bool, error) {
	state, err := app.VerifySource(ctx, t.h.g.home.Home, t.name, "")
	if err != nil {
		return false, err
	}
	if !slices.ContainsFunc(state.Differences, func(d app.RefDifference) bool { return d.Ref == t.target && d.Is == at }) {
		return false, fmt.Errorf("the audit did not find that %s moved", t.target)
	}
	good, err := t.commit(ctx, wrote{by: "alice@example.org", message: fmt.Sprint("good ", t.n), parents: []string{at}, files: map[string]string{"readme": fmt.Sprintln("good", t.n)}})
	if err != nil {
		return false, err
	}
	done, err := t.pushes(ctx, "alice@example.org", good, t.target)
	_, clean := git(ctx, repository{dir: t.bare}, "", "update-ref", "-d", t.target)
	return done, errors.Join(err, clean)
}

func policyEdited(ctx context.Context, g *ground, c Control) (e effect, err error) {
	h, err := g.host(ctx)
	if err != nil {
		return effect{}, err
	}
	file := g.home.Policy()
	if c == Off { // another server of the same home, which believes the file
		other := *h
		if err := other.serve(app.GateParts{Beside: true, Document: func() ([]byte, error) { return os.ReadFile(file) }}); err != nil {
			return effect{}, err
		}
		h = &other
	}
	t, err := h.try(ctx, "reviewed")
	if err != nil {
		return effect{}, err
	}
	before, err := os.ReadFile(file)
	if err != nil {
		return effect{}, err
	}
	doc, err := policy.ParseDocument(before)
	if err != nil {
		return effect{}, err
	}
	for i := range doc.Access.Refs {
		doc.Access.Refs[i].Approvals = "0"
	}
	edited, err := doc.Encode()
	if err != nil {
		return effect{}, err
	}
	write := func(b []byte, at time.Time) error { // and servers look again
		return errors.Join(os.WriteFile(file, b, 0o600), os.Chtimes(g.home.PolicyBundles(), at, at))
	}
	if err := write(edited, time.Now().Add(-time.Hour)); err != nil {
		return effect{}, err
	}
	defer func() { err = errors.Join(err, write(before, time.Now())) }()
	t.apart = true
	done, err := t.pushesCommit(ctx, wrote{by: "mallory@example.org", message: "evil"})
	switch {
	case err != nil:
		return effect{}, err
	case done:
		return effect{done: true, detail: "it landed without an approval"}, nil
	}
	return t.stopped(ctx)
}

// at04 is "rewrite history to hide the malicious commit". In each case X is the
// commit to hide, on the protected reference.
func at04() []Case {
	const disk = "whoever has the server's disk: found, and lost where no clone has it"
	return []Case{
		{
			Attack: "AT-04", Letter: "a", Does: "a forced push takes the commit out of the branch",
			Control: "protected branches go forward only", Stops: hallmark.CodeRefNotDescendant,
			Residual: disk, attack: hosted("open", weakness{code: hallmark.CodeRefNotDescendant}, func(ctx context.Context, t *try) (bool, error) {
				if _, err := t.released(ctx); err != nil {
					return false, err
				}
				return t.rewrites(ctx, "--force")
			}),
		},
		{
			Attack: "AT-04", Letter: "b", Does: "the branch is deleted, to be made again without the commit",
			Control: "protected branches are never deleted", Stops: hallmark.CodeRefDelete,
			Residual: disk, attack: hosted("open", weakness{code: hallmark.CodeRefDelete}, func(ctx context.Context, t *try) (bool, error) {
				if _, err := t.released(ctx); err != nil {
					return false, err
				}
				if ok, err := t.attack(ctx, t.h.people["alice@example.org"].token, ":"+t.target); err != nil || !ok {
					return false, err
				}
				return t.rewrites(ctx)
			}),
		},
		{
			Attack: "AT-04", Letter: "c", Does: "git update-ref on the server puts the branch back, and a good commit follows",
			Control: "a reference is moved only from where the log says it is", Stops: hallmark.CodeRefOutsideLog,
			Residual: "views that differ from client to client need a witness of references", attack: hosted("open", weakness{code: hallmark.CodeRefOutsideLog}, func(ctx context.Context, t *try) (bool, error) {
				if _, err := t.released(ctx); err != nil {
					return false, err
				}
				if _, err := git(ctx, repository{dir: t.bare}, "", "update-ref", t.target, t.main); err != nil {
					return false, err
				}
				return t.overMoved(ctx, t.main)
			}),
		},
		{
			Attack: "AT-04", Letter: "d", Does: "a forced push, and then git gc --prune=now on the server",
			Control: "protected branches go forward only, and so keep what they showed", Stops: hallmark.CodeRefNotDescendant,
			Residual: disk, attack: hosted("pruned", weakness{code: hallmark.CodeRefNotDescendant}, func(ctx context.Context, t *try) (bool, error) {
				x, err := t.released(ctx)
				if err != nil {
					return false, err
				}
				if _, err := t.rewrites(ctx, "--force"); err != nil {
					return false, err
				}
				if _, err := git(ctx, repository{dir: t.bare}, "", "gc", "-q", "--prune=now"); err != nil {
					return false, err
				}
				if t.objects, err = stored(t.bare); err != nil { // gc packs them anew
					return false, err
				}
				_, gone := git(ctx, repository{dir: t.bare}, "", "cat-file", "-e", x)
				return gone != nil, nil
			}),
		},
		{
			Attack: "AT-04", Letter: "e", Does: "a replacement (refs/replace) shows readers another commit in the place of one",
			Control: "only branches and tags are taken", Stops: hallmark.CodeRefName,
			Residual: "a replacement in the reader's own clone", attack: hosted("open", weakness{code: hallmark.CodeRefName}, func(ctx context.Context, t *try) (bool, error) {
				x, err := t.released(ctx)
				if err != nil {
					return false, err
				}
				id, err := t.commit(ctx, wrote{by: "alice@example.org", message: fmt.Sprint("another ", t.n), parents: []string{t.main}, files: map[string]string{"readme": fmt.Sprintln("another", t.n)}})
				if err != nil {
					return false, err
				}
				return t.pushes(ctx, "alice@example.org", id, "refs/replace/"+x)
			}),
		},
	}
}

// released lands the commit to hide.
func (t *try) released(ctx context.Context) (string, error) {
	x, err := t.commit(ctx, wrote{by: "alice@example.org", message: fmt.Sprint("X ", t.n), parents: []string{t.main}, files: map[string]string{"readme": fmt.Sprintln("X", t.n)}})
	if err != nil {
		return "", err
	}
	return x, t.push(ctx, "alice@example.org", x+":"+t.target)
}

// rewrites pushes a history without X.
func (t *try) rewrites(ctx context.Context, args ...string) (bool, error) {
	id, err := t.commit(ctx, wrote{by: "alice@example.org", message: fmt.Sprint("instead ", t.n), parents: []string{t.main}, files: map[string]string{"readme": fmt.Sprintln("instead", t.n)}})
	if err != nil {
		return false, err
	}
	return t.pushes(ctx, "alice@example.org", id, t.target, args...)
}
