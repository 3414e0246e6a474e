// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package gitcli

import (
	"context"
	"path"
)

// Files calls fn with each path of a tree and the bytes that the commit gives it,
// re-hashed, in no order. Links are passed over: they hold a path. So are
// submodules, with which a revision is refused on export.
func (r *Repository) Files(ctx context.Context, tree string, fn func(path string, data []byte) error) error {
	blobs := map[string][]string{}
	if err := r.listFiles(ctx, tree, "", 0, blobs); err != nil {
		return err
	}
	if len(blobs) == 0 {
		return nil
	}
	return r.batch(ctx, sortedKeys(blobs), func(o Object) error {
		for _, p := range blobs[o.ID] {
			if o.Type != "blob" {
				return bad("object %s at %q is a %s, not a file", o.ID, p, o.Type)
			}
			if err := fn(p, o.Data); err != nil {
				return err
			}
		}
		return nil
	})
}

func (r *Repository) listFiles(ctx context.Context, id, at string, depth int, blobs map[string][]string) error {
	if depth > 200 {
		return bad("the tree is nested too deeply at %q", at)
	}
	typ, body, err := r.Object(ctx, id)
	if err != nil {
		return err
	}
	if typ != "tree" {
		return bad("object %s at %q is a %s, not a tree", id, at, typ)
	}
	entries, err := parseTree(body, len(id))
	if err != nil {
		return bad("tree %s at %q: %w", id, at, err)
	}
	for _, e := range entries {
		p := path.Join(at, e.name)
		switch e.mode {
		case "40000":
			if err := r.listFiles(ctx, e.id, p, depth+1, blobs); err != nil {
				return err
			}
		case "120000", "160000":
		default:
			blobs[e.id] = append(blobs[e.id], p)
		}
	}
	return nil
}
