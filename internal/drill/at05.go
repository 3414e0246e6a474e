// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// at05 is "move a release tag to malicious code". Each case begins with a release
// that is tagged, and ends with a name that shows another commit.
func at05() []Case {
	immutable := weakness{code: hallmark.CodeTagImmutable}
	name := weakness{code: hallmark.CodeRefName}
	const other = "a new tag with a name that people take for newer"
	return []Case{
		{
			Attack: "AT-05", Letter: "a", Does: "a forced push moves the tag",
			Control: "tags never move", Stops: hallmark.CodeTagImmutable,
			Residual: other, attack: hosted("open", immutable, func(ctx context.Context, t *try) (bool, error) {
				tag, evil, err := t.tagged(ctx)
				if err != nil {
					return false, err
				}
				return t.pushes(ctx, "alice@example.org", evil, tag, "--force")
			}),
		},
		{
			Attack: "AT-05", Letter: "b", Does: "the tag is deleted and made again at another commit",
			Control: "tags are never deleted and never come back as another", Stops: hallmark.CodeTagImmutable,
			Residual: other, attack: hosted("open", immutable, func(ctx context.Context, t *try) (bool, error) {
				tag, evil, err := t.tagged(ctx)
				if err != nil {
					return false, err
				}
				t.ref = tag
				if ok, err := t.attack(ctx, t.h.people["alice@example.org"].token, ":"+tag); err != nil || !ok {
					return false, err
				}
				return t.pushes(ctx, "alice@example.org", evil, tag)
			}),
		},
		{
			Attack: "AT-05", Letter: "c", Does: "a branch is named like the tag",
			Control: "no name is both a branch and a tag", Stops: hallmark.CodeRefName,
			Residual: "names that only look alike to a reader", attack: hosted("open", name, func(ctx context.Context, t *try) (bool, error) {
				tag, evil, err := t.tagged(ctx)
				if err != nil {
					return false, err
				}
				return t.pushes(ctx, "alice@example.org", evil, strings.Replace(tag, "tags", "heads", 1))
			}),
		},
		{
			Attack: "AT-05", Letter: "d", Does: "an annotated tag of the same name takes the place of a lightweight one",
			Control: "tags never move, whatever they are made of", Stops: hallmark.CodeTagImmutable,
			Residual: other, attack: hosted("open", immutable, func(ctx context.Context, t *try) (bool, error) {
				tag, evil, err := t.tagged(ctx)
				if err != nil {
					return false, err
				}
				object, err := t.annotated(ctx, evil, "commit", strings.TrimPrefix(tag, "refs/tags/"), "release")
				if err != nil {
					return false, err
				}
				return t.pushes(ctx, "alice@example.org", object, tag, "--force")
			}),
		},
		{
			Attack: "AT-05", Letter: "e", Does: "the tag object of an old release is pushed under the name of a new one",
			Control: "a tag object bears the name of its reference", Stops: hallmark.CodeSourceObjectInvalid,
			Residual: other, attack: hosted("open", weakness{code: hallmark.CodeSourceObjectInvalid, second: hallmark.CodeCommitHidden}, func(ctx context.Context, t *try) (bool, error) {
				object, err := t.annotated(ctx, t.main, "commit", fmt.Sprint("v1.", t.n), "release")
				if err != nil {
					return false, err
				}
				return t.pushes(ctx, "alice@example.org", object, fmt.Sprint("refs/tags/v2.", t.n))
			}),
		},
		{
			Attack: "AT-05", Letter: "f", Does: "tag and branch of one name come in one push",
			Control: "no name is both a branch and a tag, also within a push", Stops: hallmark.CodeRefName,
			Residual: "names that only look alike to a reader", attack: hosted("open", name, func(ctx context.Context, t *try) (bool, error) {
				_, evil, err := t.tagged(ctx)
				if err != nil {
					return false, err
				}
				both := fmt.Sprint("w", t.n)
				return t.pushes(ctx, "alice@example.org", evil, "refs/heads/"+both, t.main+":refs/tags/"+both)
			}),
		},
		{
			Attack: "AT-05", Letter: "g", Does: "the tag is removed on the server's disk and pushed again at another commit",
			Control: "a reference is moved only from where the log says it is", Stops: hallmark.CodeRefOutsideLog,
			Residual: "the name can't be used any more", attack: hosted("open", weakness{code: hallmark.CodeRefOutsideLog}, func(ctx context.Context, t *try) (bool, error) {
				tag, evil, err := t.tagged(ctx)
				if err != nil {
					return false, err
				}
				if _, err := git(ctx, repository{dir: t.bare}, "", "update-ref", "-d", tag); err != nil {
					return false, err
				}
				t.h.also(hallmark.CodeTagImmutable) // which knows it too
				return t.pushes(ctx, "alice@example.org", evil, tag)
			}),
		},
		{
			Attack: "AT-05", Letter: "h", Does: "a tag shows a bare file, which no history and no review was about",
			Control: "a tag shows a commit", Stops: hallmark.CodeSourceObjectInvalid,
			Residual: other, attack: hosted("open", weakness{code: hallmark.CodeSourceObjectInvalid}, func(ctx context.Context, t *try) (bool, error) {
				blob, err := t.blob(ctx, fmt.Sprintln("#!/bin/sh", t.n))
				if err != nil {
					return false, err
				}
				tag := fmt.Sprint("install", t.n)
				object, err := t.annotated(ctx, blob, "blob", tag, "run it")
				if err != nil {
					return false, err
				}
				return t.pushes(ctx, "alice@example.org", object, "refs/tags/"+tag)
			}),
		},
		{
			Attack: "AT-05", Letter: "i", Does: "a release tag in somebody else's name, without a signature",
			Control: "a tag object is signed by its tagger", Stops: hallmark.CodeSourceUnsigned,
			Residual: stolenKey, attack: hosted("open", weakness{code: hallmark.CodeSourceUnsigned}, func(ctx context.Context, t *try) (bool, error) {
				return t.forgedTag(ctx, "")
			}),
		},
		{
			Attack: "AT-05", Letter: "j", Does: "a release tag in somebody else's name, signed with one's own key",
			Control: "a tag object is signed by its tagger", Stops: hallmark.CodeSourceTagger,
			Residual: stolenKey, attack: hosted("open", weakness{code: hallmark.CodeSourceTagger}, func(ctx context.Context, t *try) (bool, error) {
				return t.forgedTag(ctx, "bob@example.org")
			}),
		},
	}
}

const stolenKey = "the tagger's key, stolen"

// forgedTag has bob push a release tag in alice's name.
func (t *try) forgedTag(ctx context.Context, signer string) (bool, error) {
	tag := fmt.Sprint("forged", t.n)
	object, err := t.annotatedBy(ctx, signer, t.main, "commit", tag, "release")
	if err != nil {
		return false, err
	}
	return t.pushes(ctx, "bob@example.org", object, "refs/tags/"+tag)
}

// tagged releases main's first commit under a lightweight tag, and makes a commit
// to put in its place.
func (t *try) tagged(ctx context.Context) (tag, evil string, err error) {
	tag = fmt.Sprint("refs/tags/v", t.n)
	if err := t.push(ctx, "alice@example.org", t.main+":"+tag); err != nil {
		return "", "", err
	}
	evil, err = t.commit(ctx, wrote{by: "alice@example.org", message: fmt.Sprint("evil ", t.n), parents: []string{t.main}, files: map[string]string{"readme": fmt.Sprintln("evil", t.n)}})
	return tag, evil, err
}

// annotated makes a tag object of alice's, with her signature.
func (t *try) annotated(ctx context.Context, object, kind, name, message string) (string, error) {
	return t.annotatedBy(ctx, "alice@example.org", object, kind, name, message)
}

// annotatedBy makes a tag object whose tagger is alice, with somebody's signature;
// "" is nobody's.
func (t *try) annotatedBy(ctx context.Context, signer, object, kind, name, message string) (string, error) {
	raw := fmt.Sprintf("object %s\ntype %s\ntag %s\ntagger Alice <alice@example.org> %d +0000\n\n%s %d\n", object, kind, name, time.Now().Add(-time.Minute).Unix(), message, t.n)
	if signer == "" {
		return t.object(ctx, "tag", raw)
	}
	signed, err := t.h.people[signer].key.SignedTag(raw)
	if err != nil {
		return "", err
	}
	return t.object(ctx, "tag", string(signed))
}
