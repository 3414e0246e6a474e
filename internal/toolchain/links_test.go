// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"os"
	"path/filepath"
	"testing"
)

// TestLinksOut: an image's database that is a link to a file of the host is not
// read: the host's files are neither told nor believed.
func TestLinksOut(t *testing.T) {
	dir := t.TempDir()
	host, root := filepath.Join(dir, "host"), filepath.Join(dir, "root")
	for _, d := range []string{filepath.Join(host, "info"), filepath.Join(root, "var/lib/dpkg"), filepath.Join(root, "etc")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	status := filepath.Join(host, "status")
	if err := os.WriteFile(status, []byte("Package: secret\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(host, "os-release"), []byte("ID=hostly\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(host, "os-release"), filepath.Join(root, "etc/os-release")); err != nil {
		t.Fatal(err)
	}
	if p, err := New(Config{Root: root}); err != nil || len(p.List()) != 0 {
		t.Errorf("without a database: %+v, %v", p, err)
	}
	for _, to := range []string{status, "../../../../host/status"} {
		at := filepath.Join(root, "var/lib/dpkg/status")
		os.Remove(at)
		if err := os.Symlink(to, at); err != nil {
			t.Fatal(err)
		}
		if p, err := New(Config{Root: root}); err == nil {
			t.Errorf("%s was read: %+v", to, p.List())
		}
	}
}
