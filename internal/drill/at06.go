// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// at06 is "hostile commit content". What is refused leaves no object, and of a
// secret no trace in the home or in what the server says.
func at06() []Case {
	c := func(letter, does, control string, stops hallmark.Code, residual string, second hallmark.Code, variants ...variant) Case {
		return Case{Attack: "AT-06", Letter: letter, Does: does, Control: control, Stops: stops, Residual: residual,
			attack: hostedEach("open", weakness{code: stops, second: second}, stops, variants)}
	}
	const unknown = "secrets of a form that nobody knows"
	scanned := "every object of a push is scanned before it is kept"
	const alike = "a name that only a reader takes for another"
	return []Case{
		c("a", "a secret is added in one commit and removed in the next", scanned, hallmark.CodeSecretFound, unknown, "", variant{"", addedAndRemoved}),
		c("b", "a secret in the message of a commit, or of a tag", scanned, hallmark.CodeSecretFound, unknown, "",
			variant{"commit", func(ctx context.Context, t *try) (bool, error) {
				return t.pushesCommit(ctx, wrote{by: "alice@example.org", message: "use " + t.secret()})
			}},
			variant{"tag", func(ctx context.Context, t *try) (bool, error) {
				name := fmt.Sprint("s", t.n)
				object, err := t.annotated(ctx, t.main, "commit", name, "use "+t.secret())
				if err != nil {
					return false, err
				}
				return t.pushes(ctx, "alice@example.org", object, "refs/tags/"+name)
			}}),
		c("c", "a secret in a binary file, in base64, or packed", scanned, hallmark.CodeSecretFound, unknown, "",
			variant{"binary", inFile(func(s string) string { return "\x00\x01\x02\xff\xfe" + s + "\x00\x00\x03" })},
			variant{"base64", inFile(func(s string) string {
				return "data: " + base64.StdEncoding.EncodeToString([]byte("token = "+s+"\n")) + "\n"
			})},
			variant{"gzip", inFile(func(s string) string {
				var b bytes.Buffer
				z := gzip.NewWriter(&b)
				fmt.Fprintf(z, "token = %s\n", s)
				z.Close() //nolint:errcheck // it writes to memory
				return b.String()
			})}),
		c("d", "a secret as the name of a file, or in the name of an author", scanned, hallmark.CodeSecretFound, unknown, "",
			variant{"file", func(ctx context.Context, t *try) (bool, error) {
				return t.pushesCommit(ctx, wrote{by: "alice@example.org", files: map[string]string{t.secret(): "x\n"}})
			}},
			variant{"author", func(ctx context.Context, t *try) (bool, error) {
				return t.pushesCommit(ctx, wrote{by: "alice@example.org", called: t.secret()})
			}}),
		c("e", "file names with control characters, or that turn the direction of text", "names that deceive are refused", hallmark.CodeSourceName, alike, "",
			named("a\nb"), named("a\x1b[31mb"), named("invoice\u202efdp.exe"), named("a\u2066b")),
		c("f", "file names that some file system takes for .git", "names are compared as file systems do", hallmark.CodeSourceName, alike, "",
			named(".git"), named(".GIT"), named("git~1"), named(".g\u200cit"), named(".git."), named(".git "), named(".git::$INDEX_ALLOCATION")),
		c("g", "file names that a shell runs, or a program takes for an option", "names that scripts misread are refused", hallmark.CodeSourceName, "a script that quotes nothing and meets a name with a blank", "",
			named("a$(id)"), named("a`id`"), named("a;id"), named("-rf")),
		c("h", "two files that are one where case, or the way of writing accents, does not count", "names are compared as file systems do", hallmark.CodeSourceName, alike, "",
			named("Config", "config"), named("caf\u00e9", "cafe\u0301"), named("\u212aey", "key")),
		c("i", "a symbolic link out of the tree", "links lead to files of the tree only", hallmark.CodeSourceLinkEscapes, "a link that is good here and bad where the tree is copied to", "",
			variant{"absolute", linkTo("/etc/passwd")}, variant{"up", linkTo("../etc/passwd")}, variant{"second", linkTo("d/up/../../etc")},
			variant{"git", linkTo(".git/config")}, variant{"many", manyLinks}),
		c("j", "a submodule brings code that nobody looks at", "submodules are refused", hallmark.CodeSourceSubmodule, "code that a build fetches", "", variant{"", submodule}),
		c("k", "a commit is in the push that no reference would show", "every commit of a push is shown by it", hallmark.CodeCommitHidden, "a file that no commit names, after the scans", "", variant{"", hidden}),
		c("l", "a file of more than 100 MiB", "files have a largest size", hallmark.CodeSourceTooLarge, "many files", "", variant{"", huge}),
	}
}

// variant is one way of an attack.
type variant struct {
	name string
	do   func(context.Context, *try) (bool, error)
}

// hostedEach is an attack in several variants: each must work without the control
// and be stopped with it.
func hostedEach(kind string, weak weakness, stops hallmark.Code, variants []variant) func(context.Context, *ground, Control) (effect, error) {
	return func(ctx context.Context, g *ground, c Control) (effect, error) {
		var last effect
		for _, v := range variants {
			e, err := hosted(kind, weak, v.do)(ctx, g, c)
			if err != nil {
				return e, fmt.Errorf("%s: %w", v.name, err)
			}
			if e.done != (c == Off) || c == On && e.reason != stops {
				e.detail = fmt.Sprintf("%q: %s", v.name, e.detail)
				return e, nil
			}
			last = e
		}
		return last, nil
	}
}

// secret makes a credential, which must then stand nowhere.
func (t *try) secret() string {
	const letters = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz0123456789"
	var b [36]byte
	rand.Read(b[:]) //nolint:errcheck // it never fails
	for i := range b {
		b[i] = letters[int(b[i])%len(letters)]
	}
	s := "ghp" + "_" + string(b[:])
	t.leaks = append(t.leaks, string(b[:]))
	return s
}

func addedAndRemoved(ctx context.Context, t *try) (bool, error) {
	with, err := t.commit(ctx, wrote{by: "alice@example.org", message: "add", parents: []string{t.main}, files: map[string]string{"token.txt": t.secret() + "\n"}})
	if err != nil {
		return false, err
	}
	return t.pushesCommit(ctx, wrote{by: "alice@example.org", message: "remove", parents: []string{with}})
}

func inFile(hide func(string) string) func(context.Context, *try) (bool, error) {
	return func(ctx context.Context, t *try) (bool, error) {
		return t.pushesCommit(ctx, wrote{by: "alice@example.org", files: map[string]string{"f.bin": hide(t.secret())}})
	}
}

// treed pushes a commit with the given entries, and one file that is this run's.
func (t *try) treed(ctx context.Context, entries ...entry) (bool, error) {
	own, err := t.blob(ctx, fmt.Sprintln("run", t.n))
	if err != nil {
		return false, err
	}
	tree, err := t.rawTree(ctx, append(entries, entry{"100644", own, fmt.Sprint("run", t.n)})...)
	if err != nil {
		return false, err
	}
	return t.pushesCommit(ctx, wrote{by: "alice@example.org", tree: tree})
}

func named(names ...string) variant {
	return variant{names[0], func(ctx context.Context, t *try) (bool, error) {
		var entries []entry
		for _, n := range names {
			id, err := t.blob(ctx, "x\n")
			if err != nil {
				return false, err
			}
			entries = append(entries, entry{"100644", id, n})
		}
		return t.treed(ctx, entries...)
	}}
}

func linkTo(target string) func(context.Context, *try) (bool, error) {
	return func(ctx context.Context, t *try) (bool, error) {
		up, err := t.blob(ctx, "..")
		if err != nil {
			return false, err
		}
		dir, err := t.rawTree(ctx, entry{"120000", up, "up"})
		if err != nil {
			return false, err
		}
		id, err := t.blob(ctx, target)
		if err != nil {
			return false, err
		}
		return t.treed(ctx, entry{"120000", id, "link"}, entry{"40000", dir, "d"})
	}
}

// manyLinks hides one bad place of a link among a thousand good ones.
func manyLinks(ctx context.Context, t *try) (bool, error) {
	id, err := t.blob(ctx, "../x")
	if err != nil {
		return false, err
	}
	var good []entry
	for i := range 1100 {
		good = append(good, entry{"120000", id, fmt.Sprintf("l%04d", i)})
	}
	dir, err := t.rawTree(ctx, good...)
	if err != nil {
		return false, err
	}
	return t.treed(ctx, entry{"40000", dir, "a"}, entry{"120000", id, "z"})
}

func submodule(ctx context.Context, t *try) (bool, error) {
	file, err := t.blob(ctx, "[submodule \"lib\"]\n\tpath = lib\n\turl = https://example.org/lib.git\n")
	if err != nil {
		return false, err
	}
	return t.treed(ctx, entry{"100644", file, ".gitmodules"}, entry{"160000", strings.Repeat("1", 40), "lib"})
}

// hidden sends a commit beside those of the push: the client of an attacker packs
// what he likes. Whether it got in is whether the server has it.
func hidden(ctx context.Context, t *try) (bool, error) {
	secret, err := t.commit(ctx, wrote{by: "alice@example.org", message: "hidden", parents: []string{t.main}, files: map[string]string{"readme": fmt.Sprintln("hidden", t.n)}})
	if err != nil {
		return false, err
	}
	shown, err := t.commit(ctx, wrote{by: "alice@example.org", message: "shown", parents: []string{t.main}, files: map[string]string{"readme": fmt.Sprintln("shown", t.n)}})
	if err != nil {
		return false, err
	}
	list, err := t.git(ctx, "", "rev-list", "--objects", secret, shown, "^"+t.main)
	if err != nil {
		return false, err
	}
	if err := t.raw(ctx, "alice@example.org", list, update{strings.Repeat("0", 40), shown, t.target}); err != nil {
		return false, err
	}
	_, missing := git(ctx, repository{dir: t.bare}, "", "cat-file", "-e", secret)
	return missing == nil, nil
}

func huge(ctx context.Context, t *try) (bool, error) {
	id, err := t.git(ctx, strings.Repeat(fmt.Sprintln("line", t.n), 101<<20/8), "hash-object", "-w", "--stdin")
	if err != nil {
		return false, err
	}
	return t.treed(ctx, entry{"100644", id, "huge"})
}

var errNoAnswer = errors.New("the server did not answer")
