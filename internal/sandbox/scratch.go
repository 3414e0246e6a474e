// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// NewScratch makes the scratch directory of a workspace for the program's user
// on the host.
func NewScratch(dir string, hostID int) error {
	for _, d := range []string{dir, filepath.Join(dir, "upper"), filepath.Join(dir, "work")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("making scratch directory: %w", err)
		}
		if err := os.Chown(d, hostID, hostGID(hostID)); err != nil {
			return fmt.Errorf("giving away scratch directory: %w", err)
		}
	}
	return nil
}

// Give gives a tree to the program's user on the host, so that a program may
// change its copy of a file: the file itself stays as it is under the overlay.
func Give(dir string, hostID int) error {
	if os.Geteuid() != 0 {
		return nil
	}
	if err := chown(dir, hostID, hostGID(hostID)); err != nil {
		return fmt.Errorf("giving away %s: %w", dir, err)
	}
	return nil
}

// Take makes a tree that a program wrote ours again: owned by us, and writable
// by nobody else. It is called when no process of the sandbox is left.
func Take(dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	if err := chown(dir, 0, 0); err != nil {
		return fmt.Errorf("taking back %s: %w", dir, err)
	}
	return nil
}

// chown changes the owner of everything below dir, and of nothing that a link in
// it leads to.
func chown(dir string, uid, gid int) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return root.Lchown(p, uid, gid)
	})
}

// Upper is where a scratch directory holds what was written.
func Upper(dir string) string { return filepath.Join(dir, "upper") }
