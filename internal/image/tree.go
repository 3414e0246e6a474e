// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// Type is the type of an entry of a tree.
type Type int

// The types that a tree can hold: no device, socket or pipe.
const (
	Directory Type = iota + 1
	File
	Symlink
)

// Entry is one name of a tree.
type Entry struct {
	Path   string // slash-separated, clean, relative to the root
	Type   Type
	Mode   uint32 // permission bits; no set-user, set-group or sticky bit
	Size   int64  // of a file
	Digest hallmark.Digest
	Target string // of a symlink, as it stands in the layer
	// What no unpacked tree has, and a layer over this one keeps: owner, group, and
	// set-user, set-group and sticky bits.
	UID, GID int
	Special  uint32

	source position // where the bytes of a file are
}

// position is an entry of a layer.
type position struct{ layer, entry int }

// Tree is what the layers of an image come to, one over the other.
type Tree struct {
	root   *node
	layers int // that were read
}

// node is a name in a tree.
type node struct {
	Entry
	layer    int // that put it there
	children map[string]*node
}

func newTree() *Tree {
	return &Tree{root: &node{Entry: Entry{Type: Directory, Mode: 0o755}, layer: -1, children: map[string]*node{}}}
}

const (
	maxPath  = 4096
	maxName  = 255
	maxDepth = 128
	maxLinks = 40 // symlinks that one path may lead through, as in the kernel
)

// clean splits a name of a layer. A leading slash or "./" means the root of the
// image; a name that would lead out of it is refused.
func clean(name string) ([]string, error) {
	if name == "" || len(name) > maxPath || strings.ContainsRune(name, 0) {
		return nil, hostile("entry %.200q has no usable name", name)
	}
	var parts []string
	for p := range strings.SplitSeq(name, "/") {
		switch {
		case p == "" || p == ".":
		case p == "..":
			return nil, hostile("entry %.200q leads out of the image", name)
		case len(p) > maxName:
			return nil, hostile("entry %.200q has a name of %d bytes", name, len(p))
		default:
			parts = append(parts, p)
		}
	}
	if len(parts) > maxDepth {
		return nil, hostile("entry %.200q lies %d directories deep", name, len(parts))
	}
	return parts, nil
}

func hostile(format string, args ...any) error {
	return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageHostile, format, args...)
}

// directory finds or makes the directory that a path of directories leads to,
// through symlinks of the tree, which never lead out of it.
func (t *Tree) directory(parts []string, layer int) (*node, error) {
	links := 0
	at := []*node{t.root}
	todo := slices.Clone(parts)
	for len(todo) > 0 {
		p := todo[0]
		todo = todo[1:]
		here := at[len(at)-1]
		switch p {
		case "", ".":
			continue
		case "..": // only of symlinks; at the root it stays there
			at = at[:max(1, len(at)-1)]
			continue
		}
		if len(at) > maxDepth {
			return nil, hostile("entry %.200q lies too deep", strings.Join(parts, "/"))
		}
		next := here.children[p]
		switch {
		case next == nil:
			next = &node{Entry: Entry{Path: path.Join(here.Path, p), Type: Directory, Mode: 0o755}, layer: layer, children: map[string]*node{}}
			here.children[p] = next
		case next.Type == Symlink:
			if links++; links > maxLinks {
				return nil, hostile("entry %.200q leads through too many links", strings.Join(parts, "/"))
			}
			if path.IsAbs(next.Target) {
				at = at[:1]
			}
			todo = append(strings.Split(next.Target, "/"), todo...)
			if len(todo) > maxPath {
				return nil, hostile("entry %.200q leads through too many links", strings.Join(parts, "/"))
			}
			continue
		case next.Type != Directory:
			return nil, hostile("entry %.200q lies in %q, which is no directory", strings.Join(parts, "/"), next.Path)
		}
		at = append(at, next)
	}
	return at[len(at)-1], nil
}

// put adds an entry of a layer under a name of a directory.
func (t *Tree) put(dir *node, name string, e Entry, layer int) error {
	e.Path = path.Join(dir.Path, name)
	old := dir.children[name]
	if old != nil && old.Type == Directory && e.Type == Directory {
		old.Mode, old.UID, old.GID, old.Special, old.layer = e.Mode, e.UID, e.GID, e.Special, layer
		return nil
	}
	if old != nil && old.layer == layer {
		// Readers differ in which of the two they take.
		return hostile("entry %.200q stands twice in one layer", e.Path)
	}
	n := &node{Entry: e, layer: layer}
	if e.Type == Directory {
		n.children = map[string]*node{}
	}
	dir.children[name] = n
	return nil
}

// remove takes away what layers below put under a name; what the same layer put
// there stays, with the directories it lies in (OCI image-spec, layer.md).
func (d *node) remove(name string, layer int) {
	n := d.children[name]
	if n == nil {
		return
	}
	for c := range n.children {
		n.remove(c, layer)
	}
	if n.layer < layer && len(n.children) == 0 {
		delete(d.children, name)
	}
}

// lookup finds a name as it stands: a symlink is not followed.
func (t *Tree) lookup(parts []string) *node {
	n := t.root
	for _, p := range parts {
		if n = n.children[p]; n == nil {
			return nil
		}
	}
	return n
}

// Find returns the file or directory that a path leads to, through symlinks as a
// process would go whose root is the tree.
func (t *Tree) Find(name string) (Entry, bool) {
	at := []*node{t.root}
	todo := strings.Split(name, "/")
	for links := 0; len(todo) > 0; {
		p := todo[0]
		todo = todo[1:]
		switch p {
		case "", ".":
			continue
		case "..":
			at = at[:max(1, len(at)-1)]
			continue
		}
		next := at[len(at)-1].children[p]
		if next == nil {
			return Entry{}, false
		}
		if next.Type == Symlink {
			if links++; links > maxLinks || len(todo) > maxPath {
				return Entry{}, false
			}
			if path.IsAbs(next.Target) {
				at = at[:1]
			}
			todo = append(strings.Split(next.Target, "/"), todo...)
			continue
		}
		at = append(at, next)
	}
	return at[len(at)-1].Entry, true
}

// Clone returns a tree that can be changed by itself.
func (t *Tree) Clone() *Tree {
	var clone func(*node) *node
	clone = func(n *node) *node {
		out := *n
		if n.children != nil {
			out.children = make(map[string]*node, len(n.children))
		}
		for name, c := range n.children {
			out.children[name] = clone(c)
		}
		return &out
	}
	return &Tree{root: clone(t.root), layers: t.layers}
}

// NewTree returns the tree of no layers.
func NewTree() *Tree { return newTree() }

// At finds a name as it stands, without following a link.
func (t *Tree) At(name string) (Entry, bool) {
	parts, err := clean(name)
	if err != nil {
		return Entry{}, false
	}
	n := t.lookup(parts)
	if n == nil {
		return Entry{}, false
	}
	return n.Entry, true
}

// Entries are all names of the tree but the root, in the order of their paths:
// a directory before what lies in it.
func (t *Tree) Entries() []Entry {
	var out []Entry
	var walk func(*node)
	walk = func(n *node) {
		for _, c := range n.children {
			out = append(out, c.Entry)
			walk(c)
		}
	}
	walk(t.root)
	slices.SortFunc(out, func(a, b Entry) int { return cmp.Compare(a.Path, b.Path) })
	return out
}
