// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/gittest"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sqlstore"
	"github.com/hallmark-sc/hallmark/intoto"
)

// host is a real server of the throwaway home, with repositories that the stock
// git client pushes to over HTTPS.
type host struct {
	g              *ground
	url, authority string
	log            string // file
	people         map[string]*person

	mu    *sync.Mutex
	weak  weakness
	tries *int // repositories and references made
}

// weakness is what is taken away from the gates of a host.
type weakness struct {
	code     hallmark.Code // reasons of this code count for nothing
	second   hallmark.Code // and of this one, which would stop it as well
	changeID func(repository, target, revision string) string
	forgets  bool // what has no row in the index stands in no list
}

type person struct {
	name, token string
	key         *gittest.Key
}

// section is who may do what on a host: references m* and dev* of reviewed
// repositories move by approved changes only.
func (h *host) section() (access.Section, error) {
	s := access.Section{Refs: []access.RefRule{
		{Name: "first", Repositories: []string{"**"}, Refs: []string{"refs/heads/main"}, History: access.Descend, Approvals: "0"},
		{Name: "reviewed", Repositories: []string{"reviewed/**", "fork/**"}, Refs: []string{"refs/heads/m*", "refs/heads/dev*"}, History: access.Descend, Approvals: "1"},
		{Name: "protected", Repositories: []string{"**"}, Refs: []string{"refs/heads/m*"}, History: access.Descend, Approvals: "0"},
		{Name: "tags", Repositories: []string{"**"}, Refs: []string{"refs/tags/**"}, History: access.Descend, Approvals: "0"},
		{Name: "branches", Repositories: []string{"**"}, Refs: []string{"refs/heads/**"}, History: access.Rewrite, Approvals: "0"},
		{Name: "rest", Repositories: []string{"**"}, Refs: []string{"refs/**"}, History: access.Rewrite, Approvals: "0"},
	}}
	roles := map[string][]access.Role{
		"alice@example.org":   {access.Developer, access.Reviewer, access.ReleaseManager},
		"bob@example.org":     {access.Developer, access.Reviewer, access.ReleaseManager},
		"carol@example.org":   {access.Developer, access.Reviewer},
		"mallory@example.org": {access.Developer},
		"eve@outside.example": {access.Outsider},
		"robot@example.org":   {access.Developer, access.Reviewer},
	}
	for _, name := range slices.Sorted(maps.Keys(roles)) {
		p := access.Principal{Name: name, Kind: access.Person, SSHKeys: []string{h.people[name].key.Authorized()}, Outside: strings.HasSuffix(name, "@outside.example")}
		switch name {
		case "robot@example.org":
			p.Kind, p.Owner = access.Robot, "alice@example.org"
		case "alice@example.org":
			p.Aliases = []string{"alice@home.example"}
			p.SSHKeys = append(p.SSHKeys, h.people["alice@home.example"].key.Authorized())
		}
		s.Principals = append(s.Principals, p)
		for i, role := range roles[name] {
			id, change, err := app.GrantRole(access.Grant{Principal: name, Role: role, Owner: "alice@example.org", Repositories: []string{"**"}, Reason: fmt.Sprintf("drill %d", i)})
			if err != nil || id == "" {
				return s, fmt.Errorf("granting a role: %w", err)
			}
			if err := change(&s); err != nil {
				return s, err
			}
		}
	}
	return s, nil
}

// host starts the server of a ground, once.
func (g *ground) host(ctx context.Context) (*host, error) {
	return keep(g, "host", func() (*host, error) {
		h := &host{g: g, mu: &sync.Mutex{}, tries: new(int), people: map[string]*person{}, log: g.path("serve.log")}
		var allowed strings.Builder
		for _, mail := range []string{"alice@example.org", "alice@home.example", "bob@example.org", "carol@example.org", "mallory@example.org", "eve@outside.example", "robot@example.org", "retired@example.org"} {
			key, err := gittest.NewKey(mail)
			if err != nil {
				return nil, fmt.Errorf("making a person's key: %w", err)
			}
			h.people[mail] = &person{name: mail, key: key}
			line := key.AllowedSigner()
			if mail == "retired@example.org" { // a key of bob's until some time ago
				line = strings.Replace(line, mail+" ", `bob@example.org valid-before="20240101Z",`, 1)
			}
			fmt.Fprintln(&allowed, line)
		}
		section, err := h.section()
		if err != nil {
			return nil, err
		}
		if err := h.govern(ctx, section, allowed.String()); err != nil {
			return nil, err
		}
		if err := h.serve(app.GateParts{Ignores: h.ignores, ChangeID: h.changeID, Hides: h.hides}); err != nil {
			return nil, err
		}
		for _, p := range section.Principals {
			if err := h.signIn(ctx, h.people[p.Name]); err != nil {
				return nil, err
			}
		}
		return h, nil
	})
}

// signIn gives somebody a token by their key: one that is handed out approves
// nothing.
func (h *host) signIn(ctx context.Context, p *person) error {
	c, err := app.NewClient(h.url, h.authority, "")
	if err != nil {
		return err
	}
	t, err := c.SignIn(ctx, p.key.PrivatePEM(), nil, app.SignIn{Principal: p.name, Repository: "**", Life: "1h", Scopes: []string{
		string(access.RepositoryRead), string(access.RefPush), string(access.RefTag), string(access.ChangePropose), string(access.ChangeApprove), string(access.ChangeMerge),
	}})
	if err != nil {
		return fmt.Errorf("signing in as %s: %w", p.name, err)
	}
	p.token = t.Token
	return nil
}

// govern puts who may do what into force.
func (h *host) govern(ctx context.Context, s access.Section, allowed string) error {
	s.Whole()
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	changes := [][2]string{{policy.AccessSection, string(text)}}
	if allowed != "" {
		changes = append(changes, [2]string{policy.AllowedSigners, allowed})
	}
	_, err = app.PolicySet(ctx, h.g.home.Home, nil, changes)
	return err
}

func (h *host) token(ctx context.Context, who string, life time.Duration, scopes ...access.Permission) (string, error) {
	t, err := h.issue(ctx, who, life, scopes...)
	return t.Token, err
}

func (h *host) issue(ctx context.Context, who string, life time.Duration, scopes ...access.Permission) (app.Issued, error) {
	var text []string
	for _, s := range scopes {
		text = append(text, string(s))
	}
	return app.IssueToken(ctx, h.g.home.Home, nil, who, text, "**", life)
}

// serve runs the server until the ground is closed.
func (h *host) serve(parts app.GateParts) error {
	log, err := os.OpenFile(h.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	file := app.DefaultServerFile()
	file.Listen, file.Builds.Enabled = "127.0.0.1:0", h.g.builds
	if err := file.Check("drill"); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background()) // it outlives the case that starts it
	ended, ready := make(chan error, 1), make(chan struct{})
	go func() {
		ended <- app.Serve(ctx, app.ServeConfig{
			Home: h.g.home.Home, Config: file, Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})), Parts: parts,
			Ready: func(url, authority string) {
				h.url, h.authority = url, authority
				close(ready)
			},
		})
	}()
	select {
	case err := <-ended:
		stop()
		return errors.Join(err, log.Close())
	case <-ready:
	}
	h.g.closers = append(h.g.closers, func() error {
		stop()
		return errors.Join(<-ended, log.Close())
	})
	return nil
}

func (h *host) weaken(w weakness) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.weak = w
}

// also takes away a second control that stops the attack, where the first was.
func (h *host) also(code hallmark.Code) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.weak.code != "" {
		h.weak.second = code
	}
}

func (h *host) ignores(r hallmark.Reason) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.weak.code != "" && (r.Code == h.weak.code || r.Code == h.weak.second)
}

func (h *host) changeID(repository, target, revision string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.weak.changeID != nil {
		return h.weak.changeID(repository, target, revision)
	}
	return intoto.ChangeID(repository, target, revision)
}

// hides is a server that lists what the index lists.
func (h *host) hides(d hallmark.Digest) bool {
	h.mu.Lock()
	forgets := h.weak.forgets
	h.mu.Unlock()
	if !forgets {
		return false
	}
	index, err := sqlstore.Open(sqlstore.Config{Path: h.g.home.Index()})
	if err != nil {
		return false
	}
	defer index.Close()
	_, ok, err := index.BundleOf(context.Background(), d)
	return err == nil && !ok
}

// forget takes the transitions of a revision out of the index and, if it says so,
// their bytes and bundles out of the blobs; back puts these back.
func (h *host) forget(ctx context.Context, rev string, bytes bool) (back func() error, err error) {
	index, err := sqlstore.Open(sqlstore.Config{Path: h.g.home.Index()})
	if err != nil {
		return nil, err
	}
	defer index.Close()
	rows, err := index.Statements(ctx, "gitCommit:"+rev)
	if err != nil {
		return nil, err
	}
	kept := map[string][]byte{}
	n := 0
	for _, r := range rows {
		if r.Predicate != intoto.PredicateTransition {
			continue
		}
		n++
		if err := index.Forget(ctx, r.Statement); err != nil {
			return nil, err
		}
		for _, d := range []hallmark.Digest{r.Statement, r.Bundle} {
			if !bytes {
				break
			}
			path := filepath.Join(h.g.home.Blobs(), "sha256", d.Hex()[:2], d.Hex())
			if kept[path], err = os.ReadFile(path); err != nil {
				return nil, err
			}
			if err := os.Remove(path); err != nil {
				return nil, err
			}
		}
	}
	if n == 0 {
		return nil, fmt.Errorf("no transition of %s is in the index", rev)
	}
	return func() error {
		var errs []error
		for path, b := range kept {
			errs = append(errs, os.WriteFile(path, b, 0o400))
		}
		return errors.Join(errs...)
	}, nil
}

// try is one run of an attack, in a repository of its own.
type try struct {
	h       *host
	name    string        // of the repository
	bare    string        // it, on the server
	there   string        // and at the forge that it is forwarded to, if it is
	dir     string        // the attacker's clone
	main    string        // its first commit, on main
	answer  string        // to what was hostile
	said    hallmark.Code // of a change that was refused
	n       int
	target  string // the protected reference of this try
	ref     string // that the hostile push was about
	leaks   []string
	objects []string
	// undecided is why nothing could be decided, where that is what stops the attack.
	undecided hallmark.Code
	apart     bool // refused before there is a reference to log a refusal of
	logged    bool // refused with who asks known
}

// hosted is an attack on the gates. It returns whether the attacker has what he
// wanted; else the answer must give the reason, and so must the log.
func hosted(kind string, weak weakness, attack func(context.Context, *try) (bool, error)) func(context.Context, *ground, Control) (effect, error) {
	return func(ctx context.Context, g *ground, c Control) (effect, error) {
		h, err := g.host(ctx)
		if err != nil {
			return effect{}, err
		}
		t, err := h.try(ctx, kind)
		if err != nil {
			return effect{}, err
		}
		defer h.weaken(weakness{})
		if c == Off {
			h.weaken(weak)
		}
		done, err := attack(ctx, t)
		switch {
		case err != nil:
			return effect{}, err
		case done:
			return effect{done: true, detail: "the server has it"}, nil
		}
		return t.stopped(ctx)
	}
}

// try gives an attack a protected reference that is not there yet, in a
// repository that the attacks of a kind share.
func (h *host) try(ctx context.Context, kind string) (*try, error) {
	*h.tries++
	first, err := keep(h.g, "repository "+kind, func() (try, error) { return h.repository(ctx, kind) })
	if err != nil {
		return nil, err
	}
	first.h, first.n, first.ref = h, *h.tries, fmt.Sprintf("refs/heads/m%d", *h.tries)
	first.target = first.ref
	return &first, nil
}

// repository makes one with a first commit on main.
func (h *host) repository(ctx context.Context, kind string) (try, error) {
	t := try{h: h, name: kind + "/app", bare: filepath.Join(h.g.home.Repositories(), kind, "app.git"), dir: h.g.path("clones", kind)}
	var upstream app.UpstreamConfig
	if kind == forwarded {
		elsewhere, err := h.g.elsewhere(ctx)
		if err != nil {
			return t, err
		}
		t.there, upstream.URL = elsewhere.bare, elsewhere.url
	}
	if _, err := app.CreateRepository(ctx, h.g.home.Home, t.name, "main", upstream, nil); err != nil {
		return t, err
	}
	if err := os.MkdirAll(t.dir, 0o755); err != nil {
		return t, err
	}
	if _, err := t.git(ctx, "", "init", "-q", "-b", "main"); err != nil {
		return t, err
	}
	var err error
	if t.main, err = t.commit(ctx, wrote{by: "mallory@example.org", message: "first", files: map[string]string{"readme": "hello\n"}}); err != nil {
		return t, err
	}
	return t, t.push(ctx, "mallory@example.org", t.main+":refs/heads/main")
}

// git runs git in the clone.
func (t *try) git(ctx context.Context, stdin string, args ...string) (string, error) {
	return git(ctx, repository{dir: t.dir}, stdin, args...)
}

// wrote is a commit that somebody makes: by their name and key, unless it says
// other ones.
type wrote struct {
	by                string
	author, committer string // mail addresses
	called            string // the author's name
	unsigned          bool
	key               *gittest.Key
	parents           []string
	message           string
	files             map[string]string // regular files of the root
	tree              string            // instead of files
	headers           string            // more of them, after the committer
	at                time.Time
}

func (t *try) commit(ctx context.Context, w wrote) (string, error) {
	var err error
	if w.tree == "" {
		var listing strings.Builder
		for _, name := range slices.Sorted(maps.Keys(w.files)) {
			id, err := t.blob(ctx, w.files[name])
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&listing, "100644 blob %s\t%s\n", id, name)
		}
		if w.tree, err = t.git(ctx, listing.String(), "mktree"); err != nil {
			return "", err
		}
	}
	if w.at.IsZero() {
		w.at = time.Now().Add(-time.Minute)
	}
	for _, p := range []*string{&w.author, &w.committer} {
		if *p == "" {
			*p = w.by
		}
	}
	if w.called == "" {
		w.called = "Somebody"
	}
	var head strings.Builder
	fmt.Fprintf(&head, "tree %s\n", w.tree)
	for _, p := range w.parents {
		fmt.Fprintf(&head, "parent %s\n", p)
	}
	fmt.Fprintf(&head, "author %s <%s> %d +0000\ncommitter Somebody <%s> %d +0000\n%s", w.called, w.author, w.at.Unix(), w.committer, w.at.Unix(), w.headers)
	// No object of a run is one of another's, which the server would have already.
	w.message = fmt.Sprintf("%s\n\nrun %d", w.message, t.n)
	raw := []byte(head.String() + "\n" + w.message + "\n")
	if !w.unsigned {
		if w.key == nil {
			w.key = t.h.people[w.by].key
		}
		if raw, err = w.key.Signed(head.String(), "\n"+w.message+"\n"); err != nil {
			return "", err
		}
	}
	return t.object(ctx, "commit", string(raw))
}

func (t *try) blob(ctx context.Context, content string) (string, error) {
	return t.object(ctx, "blob", content)
}

// object writes any bytes as an object, whatever git thinks of them.
func (t *try) object(ctx context.Context, kind, raw string) (string, error) {
	return t.git(ctx, raw, "hash-object", "-t", kind, "-w", "--literally", "--stdin")
}

// entry is one line of a tree.
type entry struct{ mode, id, name string }

// rawTree writes a tree that git would not make.
func (t *try) rawTree(ctx context.Context, entries ...entry) (string, error) {
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(sortName(a), sortName(b)) })
	var b bytes.Buffer
	for _, e := range entries {
		id, err := hex.DecodeString(e.id)
		if err != nil {
			return "", fmt.Errorf("object name %q: %w", e.id, err)
		}
		b.WriteString(e.mode + " " + e.name + "\x00")
		b.Write(id)
	}
	return t.object(ctx, "tree", b.String())
}

func sortName(e entry) string {
	if e.mode == "40000" {
		return e.name + "/"
	}
	return e.name
}

// client runs the stock git client against the server in somebody's name.
func (t *try) client(ctx context.Context, token string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", append([]string{"-C", t.dir, "-c", "http.sslCAInfo=" + t.h.authority, "-c", "http.extraHeader=Authorization: Bearer " + token, "-c", "push.gpgSign=false"}, args...)...)
	cmd.Env = append(gitEnv(), "GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=true", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (t *try) remote() string { return t.h.url + "/" + t.name + ".git" }

// push is one that must land.
func (t *try) push(ctx context.Context, who string, specs ...string) error {
	out, err := t.client(ctx, t.h.people[who].token, append([]string{"push", "-q", t.remote()}, specs...)...)
	if err != nil {
		return fmt.Errorf("a push that is nobody's attack: %w: %s", err, strings.ReplaceAll(strings.TrimSpace(out), "\n", "; "))
	}
	return nil
}

// attack is a push that must not land. It reports whether git says that it did.
func (t *try) attack(ctx context.Context, token string, args ...string) (bool, error) {
	var err error
	if t.objects, err = stored(t.bare); err != nil {
		return false, err
	}
	out, err := t.client(ctx, token, append([]string{"push", t.remote()}, args...)...)
	t.answer += out
	return err == nil, ctx.Err()
}

// pushes is an attack in somebody's name; done is that a reference of the server
// shows what was pushed.
func (t *try) pushes(ctx context.Context, who, id, ref string, args ...string) (bool, error) {
	t.ref = ref
	if _, err := t.attack(ctx, t.h.people[who].token, append(args, id+":"+ref)...); err != nil {
		return false, err
	}
	at, err := t.at(ctx, ref)
	return at == id, err
}

// at is where a reference of the server is; "" when there is none.
func (t *try) at(ctx context.Context, ref string) (string, error) {
	out, err := git(ctx, repository{dir: t.bare}, "", "for-each-ref", "--format=%(objectname) %(refname)")
	for line := range strings.Lines(out) {
		if id, name, _ := strings.Cut(strings.TrimSpace(line), " "); name == ref {
			return id, err
		}
	}
	return "", err
}

// stored lists the files that hold objects, and what a push left half done.
func stored(bare string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(filepath.Join(bare, "objects"), func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, p)
		}
		return err
	})
	return out, err
}

// stopped wants the reason in the answer and in the log, nothing of the push on
// the server, and what must not be told told nowhere.
func (t *try) stopped(ctx context.Context) (effect, error) {
	now, err := stored(t.bare)
	if err != nil {
		return effect{}, err
	}
	if !slices.Equal(now, t.objects) {
		return effect{}, fmt.Errorf("objects of what was refused stayed: %d files before, %d after", len(t.objects), len(now))
	}
	if err := t.silent(); err != nil {
		return effect{}, err
	}
	if t.undecided != "" {
		return effect{reason: t.undecided, detail: t.answer}, nil
	}
	if t.said != "" {
		// The refusal to land it is evidence of the reference.
		if refused, err := app.RefusedUpdates(ctx, t.h.g.home.Home, t.name, t.ref); err != nil || len(refused) == 0 {
			return effect{}, errors.Join(fmt.Errorf("no refusal of %s is in the log", t.ref), err)
		}
		return effect{reason: t.said, detail: t.answer}, nil
	}
	var codes []hallmark.Code
	if !t.apart {
		refused, err := app.RefusedUpdates(ctx, t.h.g.home.Home, t.name, t.ref)
		if err != nil {
			return effect{}, err
		}
		if len(refused) == 0 {
			return effect{}, fmt.Errorf("no refusal of %s is in the log: %s", t.ref, firstAnswer(t.answer))
		}
		for _, r := range refused[len(refused)-1].Reasons {
			codes = append(codes, r.Code)
		}
	}
	for line := range strings.Lines(t.answer) {
		_, said, _ := strings.Cut(line, "hallmark: ")
		if t.apart {
			said = strings.TrimSpace(line)
		}
		code, _, _ := strings.Cut(strings.TrimPrefix(said, "remote: "), ":")
		if t.apart && code != "" && strings.ToUpper(code) == code && strings.Contains(code, "_") || slices.Contains(codes, hallmark.Code(code)) {
			return effect{reason: hallmark.Code(code), detail: strings.TrimSpace(said)}, nil
		}
	}
	return effect{}, fmt.Errorf("the log says %v and the answer %s", codes, firstAnswer(t.answer))
}

func firstAnswer(s string) string {
	return strings.ReplaceAll(strings.TrimSpace(s), "\n", "; ")
}

// encodings are how a text stands in a file: as it is, or inside of base64, as
// evidence has its payload, beginning at any of its three places.
func encodings(text string) [][]byte {
	out := [][]byte{[]byte(text)}
	for skip := range 3 {
		whole := (len(text) - skip) / 3 * 3
		out = append(out, []byte(base64.StdEncoding.EncodeToString([]byte(text[skip:skip+whole]))))
	}
	return out
}

// silent looks for what must be nowhere: in the home (database, log, evidence),
// in what the server logged and in what it answered.
func (t *try) silent() error {
	for _, leak := range t.leaks {
		if strings.Contains(t.answer, leak) {
			return errors.New("the answer repeats the secret")
		}
		for _, root := range []string{t.h.g.home.Home, t.h.log} {
			err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
				if err != nil || !d.Type().IsRegular() {
					return err
				}
				b, err := os.ReadFile(p)
				if err == nil && slices.ContainsFunc(encodings(leak), func(e []byte) bool { return bytes.Contains(b, e) }) {
					err = fmt.Errorf("the secret stands in %s", strings.TrimPrefix(p, t.h.g.dir))
				}
				return err
			})
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}
