// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package gitcli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/source"
)

// Incoming is what a push brings: the objects in git's quarantine, and the store
// that they would go to. It is safe for concurrent use.
type Incoming struct {
	dir        string // of the bare repository
	quarantine string // object directory of the push; "" where nothing came
}

// NewIncoming names a bare repository of ours and, where a push brought any, the
// directory that git keeps its objects in until they are accepted.
func NewIncoming(dir, quarantine string) (*Incoming, error) {
	objects := filepath.Join(dir, "objects")
	if quarantine != "" && filepath.Dir(filepath.Clean(quarantine)) != objects {
		return nil, hallmark.Errorf(hallmark.KindInternal, "quarantine %.200q is not below %s", quarantine, objects)
	}
	return &Incoming{dir: dir, quarantine: quarantine}, nil
}

// both sees the quarantine and the store.
func (i *Incoming) both(ctx context.Context, args ...string) *exec.Cmd {
	cmd := command(ctx, append([]string{"--git-dir=" + i.dir}, args...)...)
	if i.quarantine != "" {
		cmd.Env = append(cmd.Env, "GIT_OBJECT_DIRECTORY="+i.quarantine, "GIT_ALTERNATE_OBJECT_DIRECTORIES="+filepath.Join(i.dir, "objects"))
	}
	return cmd
}

// Objects calls fn for every object that the push brought, trees too, whatever
// refers to it, each read whole and hashed. An object that is in the store
// already may be among them.
func (i *Incoming) Objects(ctx context.Context, fn func(source.Object) error) error {
	if i.quarantine == "" {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := command(ctx, "--git-dir="+i.dir, "cat-file", "--batch", "--batch-all-objects", "--unordered", "--buffer")
	cmd.Env = append(cmd.Env, "GIT_OBJECT_DIRECTORY="+i.quarantine)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("reading pushed objects: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting git: %w", err)
	}
	in := &stream{in: bufio.NewReaderSize(out, 1<<20)}
	for {
		o, err := in.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = fn(o)
		}
		if err != nil {
			cancel()
			cmd.Wait()
			return err
		}
	}
	if err := cmd.Wait(); err != nil {
		return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceObjectInvalid, "reading pushed objects: %w: %s", err, firstLine(stderr.String()))
	}
	return nil
}

// maxWhole is how large an object may be to be read whole; what is larger is
// hashed as it goes by.
const maxWhole = 128 << 20

// stream reads objects whose names are not known before, all into one buffer:
// memory does not grow with their number.
type stream struct {
	in  *bufio.Reader
	buf []byte
}

// next reads one object; io.EOF is the end.
func (s *stream) next() (source.Object, error) {
	var o source.Object
	if _, err := s.in.Peek(1); err != nil {
		return o, err
	}
	header, err := s.in.ReadString('\n')
	if err != nil {
		return o, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceObjectInvalid, "git named an object %.80q", header)
	}
	f := strings.Fields(header)
	if len(f) != 3 || !objectName.MatchString(f[0]) {
		return o, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceObjectInvalid, "git named an object %.80q", header)
	}
	o.ID, o.Type = f[0], f[1]
	if o.Size, err = strconv.ParseInt(f[2], 10, 64); err != nil || o.Size < 0 {
		return o, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceObjectInvalid, "object %s has size %.40q", o.ID, f[2])
	}
	h := newObjectHash(o.Type, o.Size, len(o.ID))
	if o.Size > maxWhole {
		_, err = io.CopyN(h, s.in, o.Size)
	} else {
		if int64(cap(s.buf)) < o.Size {
			s.buf = make([]byte, min(2*o.Size, maxWhole))
		}
		o.Data = s.buf[:o.Size]
		_, err = io.ReadFull(s.in, o.Data)
		h.Write(o.Data)
	}
	if err == nil {
		_, err = s.in.Discard(1)
	}
	if err != nil {
		return o, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceHistoryIncomplete, "reading object %s: %w", o.ID, noEOF(err))
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != o.ID {
		return o, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceObjectInvalid, "object %s hashes to %s", o.ID, got)
	}
	return o, nil
}

// noEOF makes an end in the middle an error that is not taken for the end.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Object reads one object of the push or the store.
func (i *Incoming) Object(ctx context.Context, id string) (source.Object, error) {
	if !objectName.MatchString(id) {
		return source.Object{}, hallmark.Errorf(hallmark.KindInvalid, "object name %.80q", id)
	}
	cmd := i.both(ctx, "cat-file", "--batch", "--buffer")
	cmd.Stdin = strings.NewReader(id + "\n")
	out, err := output(cmd)
	if err != nil {
		return source.Object{}, fmt.Errorf("reading object %s: %w", id, err)
	}
	o, err := readObject(bufio.NewReader(bytes.NewReader(out)), id)
	return source.Object{ID: o.ID, Type: o.Type, Size: int64(len(o.Data)), Data: o.Data}, err
}

// Commits lists the commits that are reachable from one and from none of the
// others, newest first. A name of zeros stands for nothing.
func (i *Incoming) Commits(ctx context.Context, from string, without []string) ([]string, error) {
	args := []string{"rev-list", "--stdin"}
	var in strings.Builder
	fmt.Fprintln(&in, from)
	for _, w := range without {
		if !zero(w) {
			fmt.Fprintln(&in, "^"+w)
		}
	}
	for _, id := range append([]string{from}, without...) {
		if !objectName.MatchString(id) {
			return nil, hallmark.Errorf(hallmark.KindInvalid, "object name %.80q", id)
		}
	}
	cmd := i.both(ctx, args...)
	cmd.Stdin = strings.NewReader(in.String())
	out, err := output(cmd)
	if err != nil {
		return nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceHistoryIncomplete, "listing commits of %s: %w", from, err)
	}
	return strings.Fields(string(out)), nil
}

// Changes calls fn for every path that a commit has otherwise than its parents,
// each parent by itself.
func (i *Incoming) Changes(ctx context.Context, commits []string, fn func(source.Entry) error) error {
	if len(commits) == 0 {
		return nil
	}
	cmd := i.both(ctx, "diff-tree", "--stdin", "-r", "-m", "-z", "--root", "--no-renames", "--raw", "--no-abbrev")
	cmd.Stdin = strings.NewReader(strings.Join(commits, "\n") + "\n")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("listing changes: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting git: %w", err)
	}
	asked := map[string]bool{}
	for _, c := range commits {
		asked[c] = true
	}
	err = readChanges(bufio.NewReaderSize(out, 1<<16), asked, fn)
	if err != nil {
		cmd.Process.Kill() // it may wait for somebody to read; its end is awaited below
	}
	if werr := cmd.Wait(); err == nil && werr != nil {
		err = hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceObjectInvalid, "listing changes: %w: %s", werr, firstLine(stderr.String()))
	}
	return err
}

// readChanges reads the raw form of diff-tree -z: a commit's name, then for each
// path ":MODE MODE ID ID STATUS" and the path.
func readChanges(in *bufio.Reader, asked map[string]bool, fn func(source.Entry) error) error {
	at := ""
	for {
		word, err := in.ReadString(0)
		if errors.Is(err, io.EOF) && word == "" {
			return nil
		}
		if err != nil {
			return hallmark.Errorf(hallmark.KindInternal, "git's list of changes ends early: %w", err)
		}
		word = strings.TrimSuffix(word, "\x00")
		raw, ok := strings.CutPrefix(word, ":")
		if !ok {
			at, _, _ = strings.Cut(strings.TrimSpace(word), " ")
			if !asked[at] {
				return hallmark.Errorf(hallmark.KindInternal, "git's list of changes names %.80q, which was not asked for", at)
			}
			continue
		}
		f := strings.Fields(raw)
		path, err := in.ReadString(0)
		if err != nil || len(f) != 5 || at == "" {
			return hallmark.Errorf(hallmark.KindInternal, "git's list of changes can't be read at %.80q", word)
		}
		if err := fn(source.Entry{Commit: at, Mode: f[1], ID: f[3], Path: strings.TrimSuffix(path, "\x00")}); err != nil {
			return err
		}
	}
}

// Descends reports whether a commit is a descendant of another, or it itself.
func (i *Incoming) Descends(ctx context.Context, commit, of string) (bool, error) {
	if !objectName.MatchString(commit) || !objectName.MatchString(of) {
		return false, hallmark.Errorf(hallmark.KindInvalid, "object names %.80q, %.80q", commit, of)
	}
	err := i.both(ctx, "merge-base", "--is-ancestor", of, commit).Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return true, nil
	case errors.As(err, &exit) && exit.ExitCode() == 1:
		return false, nil
	}
	return false, fmt.Errorf("comparing %s with %s: %w", commit, of, err)
}

// isObjectName is objectName for long lists.
func isObjectName(id string) bool {
	if len(id) != 40 && len(id) != 64 {
		return false
	}
	for i := range len(id) {
		if c := id[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func zero(id string) bool { return strings.Trim(id, "0") == "" }

// Value returns what a reference of a bare repository of ours points at; zeros
// when there is none.
func Value(ctx context.Context, dir, ref string) (string, error) {
	all, err := Refs(ctx, dir, ref)
	if err != nil {
		return "", err
	}
	if v, ok := all[ref]; ok {
		return v, nil
	}
	return strings.Repeat("0", 40), nil
}

// Refs lists references below the prefixes, or all.
func Refs(ctx context.Context, dir string, prefixes ...string) (map[string]string, error) {
	out, err := output(command(ctx, append([]string{"--git-dir=" + dir, "for-each-ref", "--format=%(objectname) %(refname)", "--"}, prefixes...)...))
	if err != nil {
		return nil, fmt.Errorf("listing references of %s: %w", dir, err)
	}
	refs := map[string]string{}
	for line := range strings.Lines(string(out)) {
		id, name, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || !isObjectName(id) {
			return nil, hallmark.Errorf(hallmark.KindInternal, "git listed %.80q", line)
		}
		refs[name] = id
	}
	return refs, nil
}

// First is the branch that a bare repository of ours begins with, or "".
func First(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, "HEAD"))
	if err != nil {
		return ""
	}
	ref, _ := strings.CutPrefix(strings.TrimSpace(string(b)), "ref: ")
	return ref
}

// Create makes a bare repository of ours; an existing one is an error.
func Create(ctx context.Context, dir, branch string) error {
	if _, err := output(command(ctx, "-c", "init.defaultBranch="+branch, "init", "-q", "--bare", "--template=", dir)); err != nil {
		return fmt.Errorf("making repository %s: %w", dir, err)
	}
	return nil
}

// Move moves a reference whose transition was logged, from a known value. The
// hooks of the gate are not asked again.
func Move(ctx context.Context, dir, ref, to, from string) error {
	if _, err := output(command(ctx, "--git-dir="+dir, "update-ref", "--no-deref", ref, to, from)); err != nil {
		return hallmark.Coded(hallmark.KindDenied, hallmark.CodeRefBusy, "moving %s: %w", ref, err)
	}
	return nil
}

// Held is a reference that git holds the lock of.
type Held struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	text *bytes.Buffer // what git said
}

// Hold locks a reference that is at from, to move it to another value: Commit
// moves it, Release lets it be. Nobody else can move it in between.
func Hold(ctx context.Context, dir, ref, to, from string) (*Held, error) {
	h := &Held{cmd: command(ctx, "--git-dir="+dir, "update-ref", "--no-deref", "--stdin"), text: &bytes.Buffer{}}
	h.cmd.Stderr = h.text
	var err error
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("holding %s: %w", ref, err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("holding %s: %w", ref, err)
	}
	h.out = bufio.NewReader(out)
	if err := h.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting git: %w", err)
	}
	err = errors.Join(h.say("start", "start: ok"), h.say(fmt.Sprintf("update %s %s %s\nprepare", ref, to, from), "prepare: ok"))
	if err != nil {
		h.Release()
		return nil, hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodeRefBusy, "%s is not at %s any more, or is being moved: %s", ref, from, firstLine(h.text.String())), "fetch, and try again")
	}
	return h, nil
}

func (h *Held) say(text, want string) error {
	if _, err := fmt.Fprintln(h.in, text); err != nil {
		return err
	}
	line, err := h.out.ReadString('\n')
	if err != nil || strings.TrimSpace(line) != want {
		return fmt.Errorf("git said %.80q: %w", line, errors.Join(err, errors.New("want "+want)))
	}
	return nil
}

// Commit moves the reference.
func (h *Held) Commit() error {
	err := h.say("commit", "commit: ok")
	h.in.Close()
	if werr := h.cmd.Wait(); err == nil {
		err = werr
	}
	if err != nil {
		return fmt.Errorf("moving a reference: %w: %s", err, firstLine(h.text.String()))
	}
	return nil
}

// Release lets the reference be; after Commit it does nothing.
func (h *Held) Release() {
	h.in.Close() // git gives the lock up when nothing more comes
	h.cmd.Wait()
}

// Pack writes what one commit shows and the others do not, whole: no object of
// it is a difference from one that is not in it.
func (i *Incoming) Pack(ctx context.Context, from string, without []string, w io.Writer) error {
	var in strings.Builder
	fmt.Fprintln(&in, from)
	for _, x := range without {
		if !zero(x) {
			fmt.Fprintln(&in, "^"+x)
		}
	}
	cmd := i.both(ctx, "pack-objects", "--revs", "--stdout", "-q")
	cmd.Stdin, cmd.Stdout = strings.NewReader(in.String()), w
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("packing %s: %w: %s", from, err, firstLine(stderr.String()))
	}
	return nil
}

// Unpack reads a pack into a directory beside the store, as git's own quarantine,
// or into the store itself where quarantine is "".
func (i *Incoming) Unpack(ctx context.Context, pack io.Reader) error {
	cmd := i.both(ctx, "index-pack", "--stdin", "--strict")
	cmd.Stdin = pack
	if _, err := output(cmd); err != nil {
		return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceObjectInvalid, "unpacking: %w", err)
	}
	return nil
}

// Diff is what accepting a commit would change, as text.
func (i *Incoming) Diff(ctx context.Context, from, to string, limit int) (string, error) {
	if !objectName.MatchString(to) || !objectName.MatchString(from) {
		return "", hallmark.Errorf(hallmark.KindInvalid, "object names %.80q, %.80q", from, to)
	}
	if zero(from) {
		from = emptyTree
	}
	// No attribute of a tree may say what is not to be shown.
	cmd := i.both(ctx, "-c", "attr.tree="+emptyTree, "diff-tree", "-r", "-p", "--stat", "--no-ext-diff", "--no-textconv", "--no-renames", from, to)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", fmt.Errorf("comparing: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("starting git: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(out, int64(limit)+1))
	if len(b) > limit {
		cmd.Process.Kill()
		cmd.Wait()
		return string(b[:limit]) + "\n… and more: fetch it to see all\n", nil
	}
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return "", fmt.Errorf("comparing %s with %s: %w", from, to, err)
	}
	return string(b), nil
}

// emptyTree is git's name of a tree without files (SHA-1).
const emptyTree = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"

// Heads reads branches and tags of any repository, from its files: of a clone
// what it knows of its remote "origin" stands for the branches, where it has one.
// No git process runs in it.
func Heads(_ context.Context, repo string) (map[string]string, error) {
	r := &Repository{cfg: Config{Repo: repo}}
	if err := r.find(); err != nil {
		return nil, err
	}
	all, err := r.refs()
	if err != nil {
		return nil, err
	}
	out, cloned := map[string]string{}, false
	for name := range all {
		cloned = cloned || r.work != "" && strings.HasPrefix(name, "refs/remotes/origin/")
	}
	for name, id := range all {
		branch, remote := strings.CutPrefix(name, "refs/remotes/origin/")
		switch {
		case cloned && remote && branch != "HEAD":
			out["refs/heads/"+branch] = id
		case strings.HasPrefix(name, "refs/tags/"), !cloned && strings.HasPrefix(name, "refs/heads/"):
			out[name] = id
		}
	}
	return out, nil
}

// Branches reads branches and tags of a repository, a clone's own ones, from its
// files.
func Branches(_ context.Context, repo string) (map[string]string, error) {
	r := &Repository{cfg: Config{Repo: repo}}
	if err := r.find(); err != nil {
		return nil, err
	}
	all, err := r.refs()
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for name, id := range all {
		if strings.HasPrefix(name, "refs/heads/") || strings.HasPrefix(name, "refs/tags/") {
			out[name] = id
		}
	}
	return out, nil
}

// PackAll writes everything that the named objects show as one pack.
func (r *Repository) PackAll(ctx context.Context, tips []string, w io.Writer) error {
	for _, t := range tips {
		if !objectName.MatchString(t) {
			return hallmark.Errorf(hallmark.KindInvalid, "object name %.80q", t)
		}
	}
	cmd := r.git(ctx, "pack-objects", "--revs", "--stdout", "-q")
	cmd.Stdin, cmd.Stdout = strings.NewReader(strings.Join(tips, "\n")+"\n"), w
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceHistoryIncomplete, "packing: %w: %s", err, firstLine(stderr.String()))
	}
	return nil
}
