// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package gitcli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
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
	in := bufio.NewReaderSize(out, 1<<20)
	for {
		o, err := readNext(in)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = fn(source.Object{ID: o.ID, Type: o.Type, Data: o.Data})
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

// readNext reads an object whose name is not known before; io.EOF is the end.
func readNext(in *bufio.Reader) (Object, error) {
	header, err := in.Peek(1)
	if err != nil {
		return Object{}, err
	}
	if header, err = in.Peek(64); err != nil && !errors.Is(err, io.EOF) {
		return Object{}, err
	}
	id, _, _ := strings.Cut(string(header), " ")
	if !objectName.MatchString(id) {
		return Object{}, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSourceObjectInvalid, "git named an object %.80q", id)
	}
	return readObject(in, id)
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
	return source.Object{ID: o.ID, Type: o.Type, Data: o.Data}, err
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
	err = readChanges(bufio.NewReaderSize(out, 1<<16), commits, fn)
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
func readChanges(in *bufio.Reader, commits []string, fn func(source.Entry) error) error {
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
			if !slices.Contains(commits, at) {
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
		if !ok || !objectName.MatchString(id) {
			return nil, hallmark.Errorf(hallmark.KindInternal, "git listed %.80q", line)
		}
		refs[name] = id
	}
	return refs, nil
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
