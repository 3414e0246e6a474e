// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"fmt"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/app"
)

// at01 is "stolen write credential: push under somebody else's name".
func at01() []Case {
	const stolen = "a thief who has the developer's signing key too, on a branch that takes pushes"
	ignore := func(c hallmark.Code) weakness { return weakness{code: c} }
	return []Case{
		{
			Attack: "AT-01", Letter: "a", Does: "a developer's stolen credential pushes straight to the protected branch",
			Control: "protected references move by approved changes only", Stops: hallmark.CodeRefNeedsChange,
			Residual: "two stolen credentials, one of a reviewer", attack: hosted("reviewed", ignore(hallmark.CodeRefNeedsChange), func(ctx context.Context, t *try) (bool, error) {
				return t.pushesCommit(ctx, wrote{by: "mallory@example.org", message: "evil"})
			}),
		},
		{
			Attack: "AT-01", Letter: "b", Does: "a commit in Alice's name that nobody signed",
			Control: "every commit of a push is signed", Stops: hallmark.CodeSourceUnsigned,
			Residual: stolen, attack: hosted("open", ignore(hallmark.CodeSourceUnsigned), func(ctx context.Context, t *try) (bool, error) {
				return t.pushesCommit(ctx, wrote{by: "mallory@example.org", author: "alice@example.org", committer: "alice@example.org", unsigned: true})
			}),
		},
		{
			Attack: "AT-01", Letter: "c", Does: "a commit in Alice's name, signed with the pusher's own key",
			Control: "whoever signs is the author", Stops: hallmark.CodeSourceAuthor,
			Residual: stolen, attack: hosted("open", ignore(hallmark.CodeSourceAuthor), func(ctx context.Context, t *try) (bool, error) {
				return t.pushesCommit(ctx, wrote{by: "mallory@example.org", author: "alice@example.org"})
			}),
		},
		{
			Attack: "AT-01", Letter: "d", Does: "a token that was withdrawn",
			Control: "tokens are looked up at each use", Stops: hallmark.CodeAccessCredential,
			Residual: "what was done before it was withdrawn", attack: hosted("open", ignore(hallmark.CodeAccessCredential), func(ctx context.Context, t *try) (bool, error) {
				i, err := t.h.issue(ctx, "mallory@example.org", time.Hour, access.RepositoryRead, access.RefPush)
				if err != nil {
					return false, err
				}
				if err := app.RevokeToken(ctx, t.h.g.home.Home, i.ID, nil); err != nil {
					return false, err
				}
				return t.pushesWith(ctx, i.Token)
			}),
		},
		{
			Attack: "AT-01", Letter: "e", Does: "GIT_COMMITTER_* says Alice, the signature is the pusher's own and good",
			Control: "whoever signs is the committer", Stops: hallmark.CodeSourceSignerNotAuthor,
			Residual: stolen, attack: hosted("open", ignore(hallmark.CodeSourceSignerNotAuthor), func(ctx context.Context, t *try) (bool, error) {
				return t.pushesCommit(ctx, wrote{by: "mallory@example.org", committer: "alice@example.org"})
			}),
		},
		{
			Attack: "AT-01", Letter: "f", Does: "a token that expired",
			Control: "tokens end", Stops: hallmark.CodeAccessCredential,
			Residual: "use of it before it ends: 30 days at most", attack: hosted("open", ignore(hallmark.CodeAccessCredential), func(ctx context.Context, t *try) (bool, error) {
				// It is good from the full second on, for a nanosecond.
				i, err := t.h.issue(ctx, "mallory@example.org", 1, access.RepositoryRead, access.RefPush)
				if err != nil {
					return false, err
				}
				return t.pushesWith(ctx, i.Token)
			}),
		},
		{
			Attack: "AT-01", Letter: "g", Does: "a token that was made for reading",
			Control: "a token gives its scopes only", Stops: hallmark.CodeAccessScope,
			Residual: "reading", attack: hosted("open", ignore(hallmark.CodeAccessScope), func(ctx context.Context, t *try) (bool, error) {
				token, err := t.h.token(ctx, "mallory@example.org", time.Hour, access.RepositoryRead)
				if err != nil {
					return false, err
				}
				t.logged = true
				return t.pushesWith(ctx, token)
			}),
		},
		{
			Attack: "AT-01", Letter: "h", Does: "the token of somebody whose grant was taken away",
			Control: "grants are looked up at each use", Stops: hallmark.CodeAccessDenied,
			Residual: "what was done before", attack: hosted("open", ignore(hallmark.CodeAccessDenied), leaver(true, func(s *access.Section, name string) {
				deleteGrants(s, name, access.Developer)
			})),
		},
		{
			Attack: "AT-01", Letter: "i", Does: "the token of somebody who is gone from the policy",
			Control: "a token is somebody's whom the policy names", Stops: hallmark.CodeAccessPrincipal,
			Residual: "what was done before", attack: hosted("open", ignore(hallmark.CodeAccessPrincipal), leaver(false, func(s *access.Section, name string) {
				removePrincipal(s, name)
			})),
		},
		{
			Attack: "AT-01", Letter: "j", Does: "a commit of Bob's retired key, dated back to when it was good",
			Control: "a key is allowed both when the commit says and now", Stops: hallmark.CodeSourceSignerNotAllowed,
			Residual: "a key that is stolen and not yet retired", attack: hosted("open", ignore(hallmark.CodeSourceSignerNotAllowed), func(ctx context.Context, t *try) (bool, error) {
				return t.pushesCommit(ctx, wrote{by: "bob@example.org", key: t.h.people["retired@example.org"].key, at: time.Date(2023, 6, 1, 0, 0, 0, 0, time.UTC)})
			}),
		},
		{
			Attack: "AT-01", Letter: "k", Does: "a merge brings a commit that nobody signed in by its third parent",
			Control: "every commit of a push is signed, by whatever parent it is reached", Stops: hallmark.CodeSourceUnsigned,
			Residual: stolen, attack: hosted("open", ignore(hallmark.CodeSourceUnsigned), func(ctx context.Context, t *try) (bool, error) {
				var parents []string
				for _, w := range []wrote{{by: "mallory@example.org", message: "two"}, {by: "alice@example.org", message: "three", unsigned: true}} {
					w.parents = []string{t.main}
					id, err := t.commit(ctx, w)
					if err != nil {
						return false, err
					}
					parents = append(parents, id)
				}
				return t.pushesCommit(ctx, wrote{by: "mallory@example.org", message: "octopus", parents: append([]string{t.main}, parents...)})
			}),
		},
		{
			Attack: "AT-01", Letter: "l", Does: "a commit with two signatures, of which one is good",
			Control: "a commit is read strictly", Stops: hallmark.CodeSourceObjectInvalid,
			Residual: "none known", attack: hosted("open", ignore(hallmark.CodeSourceObjectInvalid), func(ctx context.Context, t *try) (bool, error) {
				return t.pushesCommit(ctx, wrote{by: "mallory@example.org", headers: "gpgsig-sha256 -----BEGIN SSH SIGNATURE-----\n AAAA\n -----END SSH SIGNATURE-----\n"})
			}),
		},
	}
}

// pushesCommit makes a commit on main's first and pushes it to the protected reference.
func (t *try) pushesCommit(ctx context.Context, w wrote) (bool, error) {
	if w.parents == nil {
		w.parents = []string{t.main}
	}
	if w.message == "" {
		w.message = "change"
	}
	if w.files == nil && w.tree == "" {
		w.files = map[string]string{"readme": fmt.Sprintln("changed", t.n)}
	}
	id, err := t.commit(ctx, w)
	if err != nil {
		return false, err
	}
	return t.pushes(ctx, w.by, id, t.target)
}

// pushesWith pushes an own, good commit of mallory's with a token. Who asks is
// unknown, so there is no reference yet to log a refusal of.
func (t *try) pushesWith(ctx context.Context, token string) (bool, error) {
	t.apart = !t.logged
	id, err := t.commit(ctx, wrote{by: "mallory@example.org", parents: []string{t.main}, message: "mine", files: map[string]string{"readme": "mine\n"}})
	if err != nil {
		return false, err
	}
	if _, err := t.attack(ctx, token, id+":"+t.target); err != nil {
		return false, err
	}
	at, err := t.at(ctx, t.target)
	return at == id, err
}

// leaver takes something from mallory's entry in the policy, and uses her token.
func leaver(known bool, change func(*access.Section, string)) func(context.Context, *try) (bool, error) {
	return func(ctx context.Context, t *try) (done bool, err error) {
		const name = "mallory@example.org"
		t.logged = known
		before, err := app.Access(t.h.g.home.Home)
		if err != nil {
			return false, err
		}
		after, err := app.Access(t.h.g.home.Home)
		if err != nil {
			return false, err
		}
		change(after.Section, name)
		if err := t.h.govern(ctx, *after.Section, ""); err != nil {
			return false, err
		}
		done, err = t.pushesWith(ctx, t.h.people[name].token)
		if gerr := t.h.govern(ctx, *before.Section, ""); gerr != nil {
			return done, fmt.Errorf("putting the grant back: %w", gerr)
		}
		return done, err
	}
}

func deleteGrants(s *access.Section, name string, role access.Role) {
	var kept []access.Grant
	for _, g := range s.Grants {
		if g.Principal != name {
			kept = append(kept, g)
		} else if g.Role == role { // she may still read
			g.Role = access.Reader
			kept = append(kept, g)
		}
	}
	s.Grants = kept
}

func removePrincipal(s *access.Section, name string) {
	if err := (app.PrincipalChange{Name: name, Remove: true}).Apply(s); err != nil {
		s.Principals = nil // an empty section is refused by whoever reads it
	}
}
