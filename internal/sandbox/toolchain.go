// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Toolchain is where the programs and libraries of a sandbox come from: the
// host's directories, or, where Root is set, an unpacked file system and nothing
// of the host's. Either is seen read-only.
type Toolchain struct {
	Root string // directory on the host
}

// mounts lists what a program sees of the toolchain of spec.
func (t Toolchain) mounts(spec Spec) ([]Mount, error) {
	var out []Mount
	if spec.Root != nil {
		return nil, nil // it holds its own programs
	}
	if t.Root == "" {
		for _, d := range toolchain() {
			out = append(out, Mount{Source: d, Target: d})
		}
		return out, nil
	}
	const most = 2000 // each is a mount
	own := ownNames(spec)
	entries, err := os.ReadDir(t.Root)
	if err != nil {
		return nil, fmt.Errorf("reading the toolchain: %w", err)
	}
	for _, e := range entries {
		switch {
		case slices.Contains(own, e.Name()):
		case e.Name() == "etc" && !e.IsDir():
			// The room writes its own files there: through a link they would be
			// written wherever it leads, on the host.
		case e.Name() == "etc":
			etc, err := os.ReadDir(filepath.Join(t.Root, "etc"))
			if err != nil {
				return nil, fmt.Errorf("reading the toolchain: %w", err)
			}
			for _, x := range etc {
				if _, ours := etcFiles()[x.Name()]; !ours {
					out = append(out, Mount{Source: filepath.Join(t.Root, "etc", x.Name()), Target: "/etc/" + x.Name()})
				}
			}
		default:
			out = append(out, Mount{Source: filepath.Join(t.Root, e.Name()), Target: "/" + e.Name()})
		}
	}
	if len(out) > most {
		return nil, fmt.Errorf("the toolchain has %d names in its root and /etc, more than %d", len(out), most)
	}
	return out, nil
}

// ownNames are the names in the root of a room that are not the toolchain's.
func ownNames(spec Spec) []string {
	own := []string{"dev", "proc", "sys", "tmp", ".hallmark"}
	targets := []string{}
	for _, m := range spec.Mounts {
		targets = append(targets, m.Target)
	}
	if spec.Gateway != "" {
		targets = append(targets, GatewayPath)
	}
	if spec.Workspace != nil {
		targets = append(targets, spec.Workspace.Target)
	}
	for _, t := range targets {
		name, _, _ := strings.Cut(strings.TrimPrefix(t, "/"), "/")
		own = append(own, name)
	}
	return own
}
