// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOverlayOfManyLayers: both ways to mount one give the same, with as many
// layers as a root may have; paths hold what separates options.
func TestOverlayOfManyLayers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("an ordinary user's overlays are mounted inside")
	}
	for name, mount := range map[string]func(lowers []string, upper, work string) (int, error){"as it comes": overlay, "as before Linux 6.5": detachedBefore} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			upper, work := filepath.Join(dir, "up,per:"), filepath.Join(dir, "work")
			if err := errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755)); err != nil {
				t.Fatal(err)
			}
			var lowers []string
			for i := range maxLowers {
				l := filepath.Join(dir, "lo,wer:"+strconv.Itoa(i))
				if err := errors.Join(os.Mkdir(l, 0o755), os.WriteFile(filepath.Join(l, "same"), []byte(strconv.Itoa(i)), 0o644), os.WriteFile(filepath.Join(l, strconv.Itoa(i)), nil, 0o644)); err != nil {
					t.Fatal(err)
				}
				lowers = append(lowers, l)
			}
			fd, err := mount(lowers, upper, work)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			top, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			f := os.NewFile(uintptr(top), "mount") //nolint:gosec // a descriptor
			defer f.Close()
			names, err := f.Readdirnames(-1)
			if err != nil || len(names) != maxLowers+1 {
				t.Errorf("%d names, %v", len(names), err)
			}
			b := make([]byte, 8)
			same, err := unix.Openat(fd, "same", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(same)
			if n, err := unix.Read(same, b); err != nil || string(b[:n]) != "0" {
				t.Errorf("the uppermost says %q, %v", b[:n], err)
			}
			var st unix.Statfs_t
			if err := unix.Fstatfs(fd, &st); err != nil || st.Flags&unix.ST_NOSUID == 0 || st.Flags&unix.ST_NODEV == 0 {
				t.Errorf("flags %x, %v", st.Flags, err)
			}
		})
	}
}
