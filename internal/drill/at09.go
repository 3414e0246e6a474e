// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

// at07 is "poisoned pipeline execution by an outside contributor", as far as it is
// the source gate that stops it: nothing of a stranger's lands, shows or runs
// before maintainers agreed to exactly that revision.
func at07() []Case {
	const blind = "a maintainer who agrees without reading"
	return []Case{
		{
			Attack: "AT-07", Letter: "a", Does: "an outside collaborator pushes a changed pipeline",
			Control: "what comes from outside is held", Stops: hallmark.CodeChangeHeld,
			Residual: blind, attack: hosted("open", weakness{code: hallmark.CodeAccessDenied}, func(ctx context.Context, t *try) (bool, error) {
				return t.pushesCommit(ctx, wrote{by: eve, message: "evil", files: map[string]string{".hallmark.yaml": fmt.Sprintln("evil", t.n)}})
			}),
		},
		{
			Attack: "AT-07", Letter: "b", Does: "revision A is approved, revision B is pushed after it and landed",
			Control: "an approval is of one revision", Stops: hallmark.CodeChangeNotApproved,
			Residual: blind, attack: hosted("open", weakness{changeID: func(repository, target, _ string) string { return intoto.ChangeID(repository, target, "any") }}, func(ctx context.Context, t *try) (bool, error) {
				a, id, err := t.holds(ctx, wrote{by: eve, message: "A", parents: []string{t.main}})
				if err := errors.Join(err, t.agreed(ctx, "bob@example.org", id), t.agreed(ctx, "carol@example.org", id)); err != nil {
					return false, err
				}
				b, id, err := t.holds(ctx, wrote{by: eve, message: "B", parents: []string{a}})
				return t.landed(ctx, b, err, id)
			}),
		},
		{
			Attack: "AT-07", Letter: "c", Does: "one maintainer lands what came from outside, where a branch wants no approval",
			Control: "what comes from outside needs two trusted persons", Stops: hallmark.CodeChangeNotApproved,
			Residual: "two maintainers who agree without reading", attack: hosted("open", weakness{code: hallmark.CodeChangeNotApproved}, func(ctx context.Context, t *try) (bool, error) {
				a, id, err := t.holds(ctx, wrote{by: eve, message: "A", parents: []string{t.main}})
				if err := errors.Join(err, t.agreed(ctx, "bob@example.org", id)); err != nil {
					return false, err
				}
				return t.landed(ctx, a, nil, id)
			}),
		},
	}
}

const eve = "eve@outside.example"

var changeName = regexp.MustCompile(`change (c-[0-9a-f]{16})`)

// holds pushes from outside; the answer names the change that it is kept as.
func (t *try) holds(ctx context.Context, w wrote) (rev, change string, err error) {
	w.files = map[string]string{"readme": fmt.Sprintln(w.message, t.n)}
	if rev, err = t.commit(ctx, w); err != nil {
		return "", "", err
	}
	t.answer = ""
	if _, err := t.pushes(ctx, w.by, rev, t.target); err != nil {
		return "", "", err
	}
	m := changeName.FindStringSubmatch(t.answer)
	if m == nil {
		return "", "", fmt.Errorf("the push was not held: %s", firstAnswer(t.answer))
	}
	t.answer = ""
	return rev, m[1], nil
}

// at09 is "injection through untrusted metadata", as far as it is the source gate
// that keeps names out of scripts.
func at09() []Case {
	ref := func(prefix string, names ...string) (out []variant) {
		for _, n := range names {
			out = append(out, variant{n, func(ctx context.Context, t *try) (bool, error) {
				id, err := t.commit(ctx, wrote{by: "alice@example.org", message: "ref", parents: []string{t.main}, files: map[string]string{"readme": fmt.Sprintln("ref", t.n)}})
				if err != nil {
					return false, err
				}
				return t.pushes(ctx, "alice@example.org", id, prefix+fmt.Sprintf(n, t.n))
			}})
		}
		return out
	}
	each := func(variants ...variant) func(context.Context, *ground, Control) (effect, error) {
		return hostedEach("open", weakness{code: hallmark.CodeRefName}, hallmark.CodeRefName, variants)
	}
	const blank = "a third party's tool that evaluates its arguments"
	return []Case{
		{
			Attack: "AT-09", Letter: "a", Does: "a branch or tag whose name a shell runs",
			Control: "names of references have no character that a shell takes for its own", Stops: hallmark.CodeRefName,
			Residual: blank, attack: each(append(ref("refs/heads/", "a%d$(id)", "a%d`id`", "a%d';id;'", "a%d|id", "a%d&id", "a%d{{.}}"), ref("refs/tags/", "t%d$(id)")...)...),
		},
		{
			Attack: "AT-09", Letter: "b", Does: "a branch whose name is an option of a program",
			Control: "no part of a reference's name begins with a dash", Stops: hallmark.CodeRefName,
			Residual: blank, attack: each(ref("refs/heads/", "-rf%d", "w/-x%d")...),
		},
		{
			Attack: "AT-09", Letter: "c", Does: "a branch whose name git takes for another reference or a commit",
			Control: "names that git could read in two ways are refused", Stops: hallmark.CodeRefName,
			Residual: "names that only look alike to a reader", attack: each(ref("refs/heads/", "refs/heads/x%d", "tags/v%d", "deadbeef%04d")...),
		},
		{
			Attack: "AT-09", Letter: "d", Does: "a name with characters that turn the direction of text",
			Control: "names of references are letters, digits and a few signs", Stops: hallmark.CodeRefName,
			Residual: "names that only look alike to a reader", attack: each(ref("refs/heads/", "a%d\u202eb", "a%d\u200bb")...),
		},
	}
}

// update is one line of a push that no stock client would send.
type update struct{ old, new, ref string }

// raw speaks git's protocol itself, with a pack of the listed objects.
func (t *try) raw(ctx context.Context, who, objects string, updates ...update) error {
	var err error
	if t.objects, err = stored(t.bare); err != nil {
		return err
	}
	t.ref = updates[0].ref
	cmd := exec.CommandContext(ctx, "git", "-C", t.dir, "pack-objects", "-q", "--stdout")
	cmd.Env, cmd.Stdin = gitEnv(), strings.NewReader(objects+"\n")
	pack, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("packing: %w", err)
	}
	var body bytes.Buffer
	for i, u := range updates {
		line := u.old + " " + u.new + " " + u.ref
		if i == 0 {
			line += "\x00 report-status side-band-64k"
		}
		fmt.Fprintf(&body, "%04x%s", len(line)+4, line)
	}
	body.WriteString("0000")
	body.Write(pack)
	authority, err := os.ReadFile(t.h.authority)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}}}
	defer client.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, t.remote()+"/git-receive-pack", &body)
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/x-git-receive-pack-request")
	r.Header.Set("Authorization", "Bearer "+t.h.people[who].token)
	res, err := client.Do(r)
	if err != nil {
		return errors.Join(errNoAnswer, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	t.answer += string(b)
	return err
}
