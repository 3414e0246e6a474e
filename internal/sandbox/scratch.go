// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"
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
	err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, hostID, hostGID(hostID))
	})
	if err != nil {
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
	err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, 0, 0)
	})
	if err != nil {
		return fmt.Errorf("taking back %s: %w", dir, err)
	}
	return nil
}

// Upper is where a scratch directory holds what was written.
func Upper(dir string) string { return filepath.Join(dir, "upper") }
