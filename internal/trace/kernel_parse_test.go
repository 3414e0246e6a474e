// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestReadMounts(t *testing.T) {
	got, err := readMounts(strings.NewReader(`36 35 98:3 / /one rw,noatime master:1 - ext4 /dev/root rw
37 36 0:40 / /a\040b\134 ro,nosuid - overlay overlay rw
38 36 0:41 / /one ro - tmpfs tmpfs rw
`))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].path != `/a b\` || !got[0].readOnly || got[1].path != "/one" || got[1].kind != "tmpfs" || got[1].id != 38 {
		t.Errorf("mounts %+v", got)
	}
	for _, bad := range []string{"36 35 98:3 / /one rw\n", "x 35 98:3 / /one rw - ext4 a b\n", `36 35 98:3 / /o\9 rw - ext4 a b` + "\n"} {
		if _, err := readMounts(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func FuzzReadMounts(f *testing.F) {
	f.Add("36 35 98:3 / /one rw,noatime master:1 - ext4 /dev/root rw\n")
	f.Fuzz(func(t *testing.T, s string) { readMounts(strings.NewReader(s)) })
}

func FuzzParseNames(f *testing.F) {
	f.Add([]byte{24, 0, 0, 0, 3, 0, 24, 0})
	f.Fuzz(func(t *testing.T, b []byte) { parseNames(b, systemID{}) })
}

func TestOpenFlags(t *testing.T) {
	for line, want := range map[string][3]int{
		"running":              {0, 0, 1},
		"-1 0x7ffd 0x7f":       {0, 0, 1},
		"0 0x3 0x1 0x2 0 0 0":  {0, 0, 1},
		"garbage 1 2 3 4 5 6":  {0, 1, 0},
		"437 0x3 0x1 2 0 0 0 ": {0, 1, 0}, // openat2
	} {
		flags, opens, known := openFlags(line)
		if flags != want[0] || opens != (want[1] == 1) || known != (want[2] == 1) {
			t.Errorf("%q: %d %t %t", line, flags, opens, known)
		}
	}
}

func FuzzOpenFlags(f *testing.F) {
	f.Add("257 0xffffff9c 0x1 0x80000 0 0 0")
	f.Fuzz(func(t *testing.T, s string) { openFlags(s) })
}

// TestInventory: what is kept is found again, and a file that was cut, changed,
// opened to others or written under another boot is not believed.
func TestInventory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "digests")
	old := time.Now().Add(-time.Hour).UnixNano()
	id := identity{dev: 1, ino: 2, size: 3, mtime: 4, ctime: old}
	fresh := func() *inventory {
		v, err := openInventory(path)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	v := fresh()
	v.keep(id, digest{7}, time.Now())
	v.keep(identity{ino: 9, ctime: time.Now().UnixNano()}, digest{8}, time.Now())
	if err := v.save(); err != nil {
		t.Fatal(err)
	}
	v = fresh()
	if d, ok, _ := v.find(id); !ok || d != (digest{7}) || len(v.digests) != 1 {
		t.Errorf("kept %v", v.digests)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(what string, b []byte, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if v, err := openInventory(path); err == nil || len(v.digests) != 0 {
			t.Errorf("%s was believed: %v", what, v.digests)
		}
	}
	changed := []byte(string(whole))
	changed[len(inventoryHead)+bootLength+45]++
	refuse("a changed digest", changed, 0o600)
	refuse("a cut file", whole[:len(whole)-10], 0o600)
	refuse("an empty file", nil, 0o600)
	refuse("a file for others", whole, 0o644)
	if m, err := parseInventory(whole, strings.Repeat("0", bootLength)); err != nil || len(m) != 0 {
		t.Errorf("another boot: %v %v", m, err)
	}
}

func FuzzParseInventory(f *testing.F) {
	f.Add([]byte(inventoryHead))
	f.Fuzz(func(t *testing.T, b []byte) { parseInventory(b, strings.Repeat("0", bootLength)) })
}
