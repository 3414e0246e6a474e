// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package gitcli reads git repositories through the git program, on a private
// bare copy. Configuration of the system, the user and the repository is never
// asked: hooks, filters, replace refs, lazy fetches and pagers are off, and what
// was read is hashed again.
package gitcli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// Config names a repository and a private directory that the copy is made in.
type Config struct {
	Repo    string // work tree or bare repository on this machine
	WorkDir string // made if needed; the caller removes it
	Ignore  string // absolute path whose changes don't make a work tree dirty: the result directory
}

// Repository is a private copy. It is safe for concurrent use.
type Repository struct {
	cfg    Config
	gitDir string // of the original
	dir    string // of the copy
	work   string // root of the original's work tree; empty when bare
}

// env is the whole environment of every git process.
func env() []string {
	return []string{
		"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "LC_ALL=C", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_ATTR_NOSYSTEM=1", "GIT_NO_REPLACE_OBJECTS=1", "GIT_NO_LAZY_FETCH=1", "GIT_TERMINAL_PROMPT=0", "GIT_OPTIONAL_LOCKS=0",
		"GIT_ALLOW_PROTOCOL=file", "GIT_PAGER=cat", "GIT_EDITOR=false", "GIT_ASKPASS=false",
	}
}

// git makes a command on the copy, whose configuration is ours.
func (r *Repository) git(ctx context.Context, args ...string) *exec.Cmd {
	return command(ctx, append([]string{"--git-dir=" + r.dir}, args...)...)
}

func command(ctx context.Context, args ...string) *exec.Cmd {
	// The caches of an object store (commit-graph, multi-pack-index) repeat what
	// the objects say, and nothing vouches for them: one that lies hides history.
	fixed := []string{"-c", "core.commitGraph=false", "-c", "core.multiPackIndex=false", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "protocol.ext.allow=never", "-c", "gc.auto=0",
		"-c", "core.attributesFile=/dev/null", "-c", "core.excludesFile=/dev/null", "-c", "safe.directory=*"}
	cmd := exec.CommandContext(ctx, "git", append(fixed, args...)...)
	cmd.Env = env()
	return cmd
}

func output(cmd *exec.Cmd) ([]byte, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("git: %w: %s", err, firstLine(stderr.String()))
	}
	return out, nil
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s
}

// Open copies the objects of a repository. Only files of its object store are
// read by a git process of ours; no git process ever runs with the repository's
// own configuration.
func Open(ctx context.Context, cfg Config) (*Repository, error) {
	r := &Repository{cfg: cfg, dir: filepath.Join(cfg.WorkDir, "copy.git")}
	if err := r.find(); err != nil {
		return nil, err
	}
	if _, err := output(command(ctx, "init", "-q", "--bare", "--template=", r.dir)); err != nil {
		return nil, fmt.Errorf("making a private copy: %w", err)
	}
	// The copy reads the original's objects in place. Object names are digests,
	// and whatever is used is hashed again.
	alternates, err := r.objectDirs()
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(r.dir, "objects", "info", "alternates"), []byte(strings.Join(alternates, "\n")+"\n"), 0o600); err != nil {
		return nil, fmt.Errorf("making a private copy: %w", err)
	}
	return r, nil
}

// find locates the git directory without asking git, whose answer could depend
// on configuration.
func (r *Repository) find() error {
	abs, err := filepath.Abs(r.cfg.Repo)
	if err != nil {
		return hallmark.Errorf(hallmark.KindInvalid, "resolving repository %s: %w", r.cfg.Repo, err)
	}
	if st, err := os.Stat(abs); err != nil {
		return hallmark.Errorf(hallmark.KindNotFound, "opening repository: %w", err)
	} else if !st.IsDir() {
		return hallmark.Errorf(hallmark.KindInvalid, "repository %s is not a directory", abs)
	}
	for dir := abs; ; dir = filepath.Dir(dir) {
		if isGitDir(dir) {
			r.gitDir = dir
			return nil
		}
		dot := filepath.Join(dir, ".git")
		st, err := os.Stat(dot)
		switch {
		case err == nil && st.IsDir() && isGitDir(dot):
			r.gitDir, r.work = dot, dir
			return nil
		case err == nil && st.Mode().IsRegular():
			b, err := os.ReadFile(dot)
			if err != nil {
				return hallmark.Errorf(hallmark.KindInvalid, "reading %s: %w", dot, err)
			}
			to, ok := strings.CutPrefix(strings.TrimSpace(string(b)), "gitdir: ")
			if !ok {
				return hallmark.Errorf(hallmark.KindInvalid, "%s is not a git link", dot)
			}
			if !filepath.IsAbs(to) {
				to = filepath.Join(dir, to)
			}
			r.gitDir, r.work = to, dir
			return nil
		}
		if dir == filepath.Dir(dir) {
			return hallmark.Errorf(hallmark.KindNotFound, "%s is not in a git repository", abs)
		}
	}
}

func isGitDir(dir string) bool {
	for _, name := range []string{"HEAD", "objects", "refs"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}

// common is the directory that holds objects and refs of a linked work tree.
func (r *Repository) common() string {
	b, err := os.ReadFile(filepath.Join(r.gitDir, "commondir"))
	if err != nil {
		return r.gitDir
	}
	to := strings.TrimSpace(string(b))
	if !filepath.IsAbs(to) {
		to = filepath.Join(r.gitDir, to)
	}
	return to
}

// objectDirs lists the object directory and its alternates.
func (r *Repository) objectDirs() ([]string, error) {
	out := []string{filepath.Join(r.common(), "objects")}
	b, err := os.ReadFile(filepath.Join(out[0], "info", "alternates"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading alternates: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if !filepath.IsAbs(line) {
			line = filepath.Join(out[0], line)
		}
		out = append(out, line)
	}
	for _, d := range out {
		if strings.ContainsAny(d, "\n\"") {
			return nil, hallmark.Errorf(hallmark.KindInvalid, "object directory %q has a name that can't be used", d)
		}
	}
	return out, nil
}

var (
	objectName = regexp.MustCompile(`^(?:[0-9a-f]{40}|[0-9a-f]{64})$`)
	refName    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._/+@=-]*$`)
)

// Resolve names the commit of a revision and the full ref it came from. Only
// object names, HEAD, branches, tags and full refs are understood: no revision
// expressions.
func (r *Repository) Resolve(rev string) (commit, ref string, err error) {
	if objectName.MatchString(rev) {
		return r.peel(rev, "")
	}
	if rev == "HEAD" {
		b, err := os.ReadFile(filepath.Join(r.gitDir, "HEAD"))
		if err != nil {
			return "", "", hallmark.Errorf(hallmark.KindInvalid, "reading HEAD: %w", err)
		}
		text := strings.TrimSpace(string(b))
		to, ok := strings.CutPrefix(text, "ref: ")
		if !ok {
			return r.peel(text, "")
		}
		rev = to
	}
	if !refName.MatchString(rev) || strings.Contains(rev, "..") || strings.Contains(rev, "//") || strings.HasSuffix(rev, ".lock") {
		return "", "", hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceRevisionUnknown, "revision %.100q: want a commit, a branch or a tag", rev)
	}
	refs, err := r.refs()
	if err != nil {
		return "", "", err
	}
	var found []string
	for _, name := range []string{rev, "refs/heads/" + rev, "refs/tags/" + rev, "refs/remotes/" + rev} {
		if _, ok := refs[name]; ok {
			found = append(found, name)
		}
	}
	switch len(found) {
	case 0:
		return "", "", hallmark.Coded(hallmark.KindNotFound, hallmark.CodeSourceRevisionUnknown, "there is no revision %s in %s", rev, r.cfg.Repo)
	case 1:
		return r.peel(refs[found[0]], found[0])
	}
	return "", "", hallmark.WithHint(
		hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceRevisionUnknown, "revision %s is ambiguous: %s", rev, strings.Join(found, ", ")),
		"name the full ref, such as "+found[0])
}

// refs reads loose and packed refs from their files.
func (r *Repository) refs() (map[string]string, error) {
	out := map[string]string{}
	root := r.common()
	b, err := os.ReadFile(filepath.Join(root, "packed-refs"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading packed refs: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if id, name, ok := strings.Cut(strings.TrimSpace(line), " "); ok && objectName.MatchString(id) {
			out[name] = id
		}
	}
	dir, err := os.OpenRoot(root)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading refs: %w", err)
	}
	defer dir.Close()
	err = fs.WalkDir(dir.FS(), "refs", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := dir.ReadFile(name)
		if id := strings.TrimSpace(string(b)); err == nil && objectName.MatchString(id) {
			out[name] = id
		}
		return err
	})
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading refs: %w", err)
	}
	return out, nil
}

// peel follows annotated tags to a commit.
func (r *Repository) peel(id, ref string) (string, string, error) {
	for range maxTagDepth {
		typ, body, err := r.Object(context.Background(), id)
		if err != nil {
			return "", "", hallmark.Coded(hallmark.KindNotFound, hallmark.CodeSourceRevisionUnknown, "there is no object %s in %s", id, r.cfg.Repo)
		}
		if typ == "commit" {
			return id, ref, nil
		}
		to, ok := tagTarget(Object{Type: typ, Data: body})
		if !ok {
			return "", "", hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceRevisionUnknown, "object %s is a %s, not a commit", id, typ)
		}
		id = to
	}
	return "", "", hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceRevisionUnknown, "tags of %s are nested too deeply", id)
}

// Object reads one object and checks that it hashes to its name.
func (r *Repository) Object(ctx context.Context, id string) (typ string, body []byte, err error) {
	if !objectName.MatchString(id) {
		return "", nil, hallmark.Errorf(hallmark.KindInvalid, "object name %.80q", id)
	}
	err = r.batch(ctx, []string{id}, func(o Object) error {
		typ, body = o.Type, o.Data
		return nil
	})
	return typ, body, err
}

// Incomplete says why a history can't be judged as a whole, or "".
func (r *Repository) Incomplete() string {
	for name, why := range map[string]string{
		"shallow": "the repository is a shallow clone", "info/grafts": "the repository has grafts",
	} {
		if st, err := os.Stat(filepath.Join(r.common(), name)); err == nil && st.Size() > 0 {
			return why
		}
	}
	if p, _ := filepath.Glob(filepath.Join(r.common(), "objects", "pack", "*.promisor")); len(p) > 0 {
		return "the repository is a partial clone"
	}
	return ""
}

// Dirty lists paths of the work tree that differ from the commit, ignored files
// aside. It runs on the copy with an index of its own, so that no filter or
// attribute of the repository's configuration is applied. Submodules are left
// out: git would look into each with the submodule's own configuration, whose
// filters are programs.
func (r *Repository) Dirty(ctx context.Context, commit string) ([]string, error) {
	if r.work == "" {
		return nil, nil
	}
	index := filepath.Join(r.cfg.WorkDir, "index")
	with := func(args ...string) *exec.Cmd {
		cmd := r.git(ctx, append([]string{"--work-tree=" + r.work}, args...)...)
		cmd.Env = append(cmd.Env, "GIT_INDEX_FILE="+index)
		cmd.Dir = r.work
		return cmd
	}
	if _, err := output(with("read-tree", commit)); err != nil {
		return nil, fmt.Errorf("reading the tree of %s: %w", commit, err)
	}
	out, err := output(with("-c", "core.autocrlf=false", "status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames", "--ignore-submodules=all"))
	if err != nil {
		return nil, fmt.Errorf("comparing the work tree: %w", err)
	}
	var dirty []string
	for e := range strings.SplitSeq(string(out), "\x00") {
		if len(e) < 4 || e[1] == ' ' {
			continue // staged in our own index against a HEAD that the copy has not
		}
		path := e[3:]
		if r.cfg.Ignore != "" {
			if rel, err := filepath.Rel(r.cfg.Ignore, filepath.Join(r.work, path)); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
				continue
			}
		}
		dirty = append(dirty, path)
	}
	return dirty, nil
}

// Reachable lists every object reachable from a commit with one path of each.
func (r *Repository) reachable(ctx context.Context, commit string) (ids []string, paths map[string]string, err error) {
	out, err := output(r.git(ctx, "rev-list", "--objects", "--end-of-options", commit))
	if err != nil {
		return nil, nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceHistoryIncomplete, "walking the history of %s: %w", commit, err)
	}
	paths = map[string]string{}
	for line := range strings.Lines(string(out)) {
		id, path, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		ids = append(ids, id)
		paths[id] = path
	}
	if err := r.addTags(ctx, &ids, paths); err != nil {
		return nil, nil, err
	}
	return ids, paths, nil
}

// addTags adds the annotated tags, nested ones too, of commits that are listed:
// their messages belong to the history.
func (r *Repository) addTags(ctx context.Context, ids *[]string, paths map[string]string) error {
	refs, err := r.refs()
	if err != nil {
		return err
	}
	names := map[string]string{} // object that may be a tag -> ref
	for ref, id := range refs {
		if _, listed := paths[id]; strings.HasPrefix(ref, "refs/tags/") && !listed {
			names[id] = ref
		}
	}
	target := map[string]string{}
	for range maxTagDepth {
		var ask []string
		for _, id := range sortedKeys(names) {
			if _, known := target[id]; !known {
				ask = append(ask, id)
			}
		}
		if len(ask) == 0 {
			break
		}
		err := r.batch(ctx, ask, func(o Object) error {
			target[o.ID] = ""
			if to, ok := tagTarget(o); ok {
				target[o.ID] = to
				if _, listed := paths[to]; !listed {
					names[to] = names[o.ID]
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("reading tags: %w", err)
		}
	}
	for _, id := range sortedKeys(target) {
		at := id
		for range maxTagDepth {
			at = target[at]
			if _, listed := paths[at]; listed {
				*ids = append(*ids, id)
				paths[id] = names[id]
				break
			}
		}
	}
	return nil
}

// maxTagDepth bounds tags of tags.
const maxTagDepth = 5

// tagTarget returns the object that an annotated tag names.
func tagTarget(o Object) (string, bool) {
	to, ok := strings.CutPrefix(string(o.Data), "object ")
	to, _, _ = strings.Cut(to, "\n")
	return to, ok && o.Type == "tag" && objectName.MatchString(to)
}

// Commits counts the commits reachable from one.
func (r *Repository) Commits(ctx context.Context, commit string) (int, error) {
	out, err := output(r.git(ctx, "rev-list", "--count", "--end-of-options", commit))
	if err != nil {
		return 0, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceHistoryIncomplete, "walking the history of %s: %w", commit, err)
	}
	return strconv.Atoi(strings.TrimSpace(string(out)))
}

// Object is one git object.
type Object struct {
	ID, Type, Path string
	Data           []byte
}

// Each calls fn for every object reachable from a commit, trees aside, and for
// the annotated tags of those commits. A missing
// object is an error: nothing is left out in silence.
func (r *Repository) Each(ctx context.Context, commit string, fn func(Object) error) error {
	ids, paths, err := r.reachable(ctx, commit)
	if err != nil {
		return err
	}
	return r.batch(ctx, ids, func(o Object) error {
		if o.Type == "tree" {
			return nil
		}
		o.Path = paths[o.ID]
		return fn(o)
	})
}

// maxObject bounds one object in memory.
const maxObject = 512 << 20

// batch reads objects in the order asked for, each exactly once, and hashes each
// again.
func (r *Repository) batch(ctx context.Context, ids []string, fn func(Object) error) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := r.git(ctx, "cat-file", "--batch", "--buffer")
	cmd.Stdin = strings.NewReader(strings.Join(ids, "\n") + "\n")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting git: %w", err)
	}
	in := bufio.NewReaderSize(out, 1<<20)
	for _, want := range ids {
		o, err := readObject(in, want)
		if err == nil {
			err = fn(o)
		}
		if err != nil {
			cancel()
			cmd.Wait()
			return err
		}
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		return hallmark.Errorf(hallmark.KindInternal, "git gave more objects than were asked for")
	}
	if err := cmd.Wait(); err != nil {
		return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceHistoryIncomplete, "reading objects: %w: %s", err, firstLine(stderr.String()))
	}
	return nil
}

func readObject(in *bufio.Reader, want string) (Object, error) {
	header, err := in.ReadString('\n')
	if err != nil {
		return Object{}, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceHistoryIncomplete, "reading object %s: %w", want, err)
	}
	f := strings.Fields(header)
	if len(f) != 3 || f[0] != want {
		return Object{}, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceHistoryIncomplete, "object %s is missing", want)
	}
	size, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil || size < 0 || size > maxObject {
		return Object{}, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceHistoryIncomplete, "object %s has size %s, more than can be read", want, f[2])
	}
	body := make([]byte, size+1)
	if _, err := io.ReadFull(in, body); err != nil {
		return Object{}, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceHistoryIncomplete, "reading object %s: %w", want, err)
	}
	o := Object{ID: want, Type: f[1], Data: body[:size]}
	if got := HashObject(o.Type, o.Data, len(want)); got != want {
		return Object{}, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceObjectInvalid, "object %s hashes to %s", want, got)
	}
	return o, nil
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
