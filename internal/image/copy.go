// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// CopyRequest asks for files of one tree in another.
type CopyRequest struct {
	From    *Tree
	Sources []string // clean, relative; patterns of path.Match
	Inline  []Entry  // files of no tree, under the names that they get
	Dest    string   // clean and absolute
	IsDir   bool     // Dest is said to be a directory
	Owner   *[2]int  // user and group; nil keeps those of From
	Mode    uint32   // 0 keeps
	NoLinks bool     // Dest must not lead through a link of the tree
}

// Copy says what has to be laid over t, sorted by path. Links in the way to a
// source or to Dest are followed inside of their trees; links below a source are
// copied as they are.
func (t *Tree) Copy(q CopyRequest) ([]Change, error) {
	c := &copying{CopyRequest: q, to: t, out: map[string]Change{}}
	if q.NoLinks {
		if at, _, err := t.under(strings.Split(strings.TrimPrefix(path.Dir(q.Dest), "/"), "/")); err != nil || path.Join("/", at) != path.Dir(q.Dest) && !missingBelow(t, q.Dest) {
			return nil, invalid("%s leads through a link", q.Dest)
		}
	}
	type source struct {
		name string
		e    *node
	}
	var all []source
	for _, pattern := range q.Sources {
		found, err := q.From.match(pattern)
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			all = append(all, source{path.Base("/" + f), q.From.node(f)})
		}
	}
	for _, e := range q.Inline {
		all = append(all, source{e.Path, &node{Entry: e}})
	}
	into := q.IsDir || len(all) > 1
	if e, ok := t.Find(strings.TrimPrefix(q.Dest, "/")); ok && e.Type == Directory {
		into = true
	}
	if into && len(all) > 1 && !q.IsDir {
		return nil, invalid("%d files match: the last path has to end with a slash", len(all))
	}
	for _, s := range all {
		var err error
		switch {
		case s.e == nil:
			err = hallmark.Errorf(hallmark.KindInternal, "copying %s: it is gone", s.name)
		case s.e.Type == Directory:
			err = c.directory(s.e, q.Dest)
		case into:
			err = c.file(s.e.Entry, path.Join(q.Dest, s.name))
		default:
			err = c.file(s.e.Entry, q.Dest)
		}
		if err != nil {
			return nil, err
		}
	}
	return c.sorted(), nil
}

func (c *copying) sorted() []Change {
	var out []Change
	for _, x := range c.out {
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	return out
}

// missingBelow reports whether the first name of a path that a tree does not have
// is reached through no link.
func missingBelow(t *Tree, name string) bool {
	at := ""
	for p := range strings.SplitSeq(strings.TrimPrefix(path.Dir(name), "/"), "/") {
		at = path.Join(at, p)
		e, ok := t.At(at)
		if !ok {
			return true
		}
		if e.Type != Directory {
			return false
		}
	}
	return true
}

// node finds the file or directory that a path leads to.
func (t *Tree) node(name string) *node {
	e, ok := t.Find(name)
	if !ok {
		return nil
	}
	if e.Path == "" {
		return t.root
	}
	return t.lookup(strings.Split(e.Path, "/"))
}

// match finds the names that a pattern stands for, at least one.
func (t *Tree) match(pattern string) ([]string, error) {
	found := []string{""}
	if pattern == "" || pattern == "." {
		return found, nil
	}
	for part := range strings.SplitSeq(pattern, "/") {
		var next []string
		for _, dir := range found {
			if !strings.ContainsAny(part, "*?[\\") {
				if _, ok := t.Find(path.Join(dir, part)); ok {
					next = append(next, path.Join(dir, part))
				}
				continue
			}
			n := t.node(dir)
			if n == nil || n.Type != Directory {
				continue
			}
			for name := range n.children {
				ok, err := path.Match(part, name)
				if err != nil {
					return nil, invalid("%q: %s", pattern, err)
				}
				if _, leads := t.Find(path.Join(dir, name)); ok && leads {
					next = append(next, path.Join(dir, name))
				}
			}
		}
		slices.Sort(next)
		found = next
	}
	if len(found) == 0 {
		return nil, hallmark.Coded(hallmark.KindNotFound, hallmark.CodeImageInvalid, "there is no %q", pattern)
	}
	return found, nil
}

// copying is a copy on its way.
type copying struct {
	CopyRequest
	to  *Tree
	out map[string]Change
}

func (c *copying) owned(e Entry) Entry {
	if c.Owner != nil {
		e.UID, e.GID = c.Owner[0], c.Owner[1]
	}
	if c.Mode != 0 && e.Type != Symlink {
		e.Mode = c.Mode
	}
	return e
}

// place finds where a name leads to, and makes the directories in the way.
func (c *copying) place(name string) (string, error) {
	parts := strings.Split(strings.TrimPrefix(path.Clean(name), "/"), "/")
	if parts[0] == "" {
		return "", nil
	}
	at, err := c.parent(parts[:len(parts)-1])
	return path.Join(at, parts[len(parts)-1]), err
}

func (c *copying) parent(dirs []string) (string, error) {
	at, missing, err := c.to.under(dirs)
	if err != nil {
		return "", err
	}
	for _, d := range missing {
		if old, ok := c.out[d]; ok {
			if old.Type != Directory {
				return "", invalid("/%s is copied as a file and as a directory", d)
			}
			continue
		}
		e := Entry{Path: d, Type: Directory, Mode: 0o755}
		if c.Owner != nil {
			e.UID, e.GID = c.Owner[0], c.Owner[1]
		}
		c.out[d] = Change{Entry: e}
	}
	return at, nil
}

func (c *copying) file(e Entry, dest string) error {
	if e.Special&0o6000 != 0 && c.Mode == 0 && e.Type == File {
		return invalid("/%s has set-user-ID or set-group-ID bits, which are not copied: say --chmod", e.Path)
	}
	if strings.HasPrefix(path.Base(dest), whiteout) {
		return invalid("%s: a name that begins with .wh. stands for a removal in a layer", dest)
	}
	at, err := c.place(dest)
	if err != nil {
		return err
	}
	if at == "" {
		return invalid("a file can't be the root")
	}
	if old, ok := c.to.At(at); ok && old.Type == Directory {
		return invalid("/%s is a directory, and a file would take its place", at)
	}
	if old, ok := c.to.At(at); ok && old.Type == Symlink && e.Type == File {
		// Written through a link, as a program would.
		to, found := c.to.Find(at)
		if !found || to.Type != File {
			return invalid("/%s is a link that leads to no file", at)
		}
		at = to.Path
	}
	if old, ok := c.out[at]; ok && old.Type == Directory {
		return invalid("/%s is copied as a file and as a directory", at)
	}
	e = c.owned(e)
	e.Path, e.Special = at, 0
	c.out[at] = Change{Entry: e}
	return nil
}

func (c *copying) directory(n *node, dest string) error {
	at, err := c.place(dest)
	if err != nil {
		return err
	}
	if at != "" {
		switch to, ok := c.to.Find(at); {
		case ok && to.Type == Directory:
			at = to.Path
		case ok:
			return invalid("/%s is a file, and a directory would take its place", at)
		default:
			if _, link := c.to.At(at); link {
				return invalid("/%s is a link that leads nowhere", at)
			}
			if old, ok := c.out[at]; ok && old.Type != Directory {
				return invalid("/%s is copied as a file and as a directory", at)
			} else if !ok {
				e := c.owned(n.Entry)
				e.Path, e.Special = at, e.Special&0o3000
				if n.Path == "" && c.Owner == nil {
					e.UID, e.GID = 0, 0
				}
				c.out[at] = Change{Entry: e}
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(n.children)) { // what is refused is the same each time
		child := n.children[name]
		to := path.Join("/", at, name)
		if child.Type == Directory {
			err = c.directory(child, to)
		} else {
			err = c.file(child.Entry, to)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
