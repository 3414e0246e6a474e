// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"path"
	"strings"
)

// Apply puts changes, sorted by path, over the tree. The bytes of files are where
// the changes were read.
func (t *Tree) Apply(changes []Change) error {
	at := t.layers
	t.layers++
	for _, c := range changes {
		parts, err := clean(c.Path)
		if err != nil {
			return err
		}
		name := parts[len(parts)-1]
		dir := t.root
		for _, p := range parts[:len(parts)-1] {
			next := dir.children[p]
			if next == nil || next.Type != Directory { // its own change comes first, and there is none
				next = &node{Entry: Entry{Path: path.Join(dir.Path, p), Type: Directory, Mode: 0o755}, layer: at, children: map[string]*node{}}
				dir.children[p] = next
			}
			dir = next
		}
		if c.Removed {
			delete(dir.children, name)
			continue
		}
		old := dir.children[name]
		n := &node{Entry: c.Entry, layer: at}
		if c.Type == Directory {
			n.children = map[string]*node{}
			if old != nil && old.Type == Directory && !c.Opaque {
				n.children = old.children
			}
		}
		dir.children[name] = n
	}
	return nil
}

// Sub returns a directory of the tree as a tree of its own; nothing in it leads out
// of it any more. No part of the name may be a link.
func (t *Tree) Sub(name string) (*Tree, bool) {
	parts := strings.Split(name, "/")
	if name == "." {
		parts = nil
	}
	n := t.lookup(parts)
	if n == nil || n.Type != Directory {
		return nil, false
	}
	out := newTree()
	out.root.children = n.children
	out = out.Clone()
	out.rename(out.root, "")
	return out, true
}

func (t *Tree) rename(n *node, at string) {
	n.Path = at
	for name, c := range n.children {
		t.rename(c, path.Join(at, name))
	}
}

// Keep removes every name that keep does not want; a directory stays as long as
// something in it does. It may change the entries that stay.
func (t *Tree) Keep(keep func(e *Entry) (bool, error)) error {
	var walk func(*node) (bool, error)
	walk = func(n *node) (bool, error) {
		some := false
		for name, c := range n.children {
			inner := false
			if c.Type == Directory {
				var err error
				if inner, err = walk(c); err != nil {
					return false, err
				}
			}
			own, err := keep(&c.Entry)
			if err != nil {
				return false, err
			}
			if !own && !inner {
				delete(n.children, name)
				continue
			}
			some = true
		}
		return some, nil
	}
	_, err := walk(t.root)
	return err
}

// Match finds the names that a pattern stands for, at least one.
func (t *Tree) Match(pattern string) ([]string, error) { return t.match(pattern) }

// MakeDirectory says what has to be laid over t for a directory to be there.
func (t *Tree) MakeDirectory(name string, uid, gid int) ([]Change, error) {
	c := &copying{CopyRequest: CopyRequest{Owner: &[2]int{uid, gid}}, to: t, out: map[string]Change{}}
	parts := strings.Split(strings.TrimPrefix(path.Clean(name), "/"), "/")
	if parts[0] == "" {
		return nil, nil
	}
	if _, err := c.parent(parts); err != nil {
		return nil, err
	}
	return c.sorted(), nil
}
