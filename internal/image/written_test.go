// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
)

// below is the tree that programs of these tests wrote over.
func below(t *testing.T) *Tree {
	t.Helper()
	tree := newTree()
	text := func(s string) (hallmark.Digest, int64) { return hallmark.DigestOf([]byte(s)), int64(len(s)) }
	d, n := text("old\n")
	err := tree.Apply([]Change{
		{Entry: Entry{Path: "bin", Type: Directory, Mode: 0o755}},
		{Entry: Entry{Path: "bin/su", Type: File, Mode: 0o755, Special: 0o4000, UID: 0, GID: 5, Digest: d, Size: n}},
		{Entry: Entry{Path: "dir", Type: Directory, Mode: 0o750, UID: 3, GID: 4}},
		{Entry: Entry{Path: "dir/file", Type: File, Mode: 0o644, UID: 7, GID: 8, Digest: d, Size: n}},
		{Entry: Entry{Path: "dir/gone", Type: File, Mode: 0o644, Digest: d, Size: n}},
		{Entry: Entry{Path: "link", Type: Symlink, Mode: 0o777, Target: "dir"}},
		{Entry: Entry{Path: "tmp", Type: Directory, Mode: 0o777, Special: 0o1000}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func put(t *testing.T, dir, name, text string, mode os.FileMode) {
	t.Helper()
	at := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(at, mode); err != nil {
		t.Fatal(err)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root makes devices and trusted attributes")
	}
}

func TestChangesAreALayer(t *testing.T) {
	needRoot(t)
	tree, up := below(t), tempDir(t)
	put(t, up, "dir/file", "new\n", 0o644)
	put(t, up, "bin/su", "old\n", 0o755) // touched, and the same
	put(t, up, "opt/a", "a\n", 0o400)
	put(t, up, "tmp/x", "x\n", 0o644)
	for _, err := range []error{
		os.Chmod(filepath.Join(up, "dir"), 0o750), os.Chmod(filepath.Join(up, "tmp"), os.ModeSticky|0o777),
		unix.Mknod(filepath.Join(up, "dir", "gone"), unix.S_IFCHR, 0), unix.Mknod(filepath.Join(up, "never"), unix.S_IFCHR, 0),
		os.Link(filepath.Join(up, "opt/a"), filepath.Join(up, "opt/b")), os.Symlink("/etc/shadow", filepath.Join(up, "out")),
		os.Symlink("../../../x", filepath.Join(up, "opt/up")), os.Symlink("dir", filepath.Join(up, "link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	changes, err := tree.Changes(t.Context(), Written{Dir: up, Attributes: "trusted.overlay.", UID: 70, GID: 71}, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	a, size := hallmark.DigestOf([]byte("a\n")), int64(2)
	want := []Change{
		{Entry: Entry{Path: "dir/file", Type: File, Mode: 0o644, UID: 7, GID: 8, Digest: hallmark.DigestOf([]byte("new\n")), Size: 4}},
		{Entry: Entry{Path: "dir/gone"}, Removed: true},
		{Entry: Entry{Path: "opt", Type: Directory, Mode: 0o755, UID: 70, GID: 71}},
		{Entry: Entry{Path: "opt/a", Type: File, Mode: 0o400, UID: 70, GID: 71, Digest: a, Size: size}},
		{Entry: Entry{Path: "opt/b", Type: File, Mode: 0o400, UID: 70, GID: 71, Digest: a, Size: size}, Link: "opt/a"},
		{Entry: Entry{Path: "opt/up", Type: Symlink, Mode: 0o777, UID: 70, GID: 71, Target: "../../../x"}},
		{Entry: Entry{Path: "out", Type: Symlink, Mode: 0o777, UID: 70, GID: 71, Target: "/etc/shadow"}},
		{Entry: Entry{Path: "tmp/x", Type: File, Mode: 0o644, UID: 70, GID: 71, Digest: hallmark.DigestOf([]byte("x\n")), Size: 2}},
	}
	if d := cmp.Diff(want, changes, cmpopts.IgnoreUnexported(Change{}, Entry{})); d != "" {
		t.Error(d)
	}
	var contents Contents
	for _, c := range changes {
		if c.Type == File && !c.Removed {
			contents.Put(c.Digest, up, c.Path)
		}
	}
	// The same layer each time, which the reader of strange images takes and which
	// comes to the same tree.
	var one, two bytes.Buffer
	l, err := WriteLayer(&one, time.Unix(1, 0), changes, &contents)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := WriteLayer(&two, time.Unix(1, 0), changes, &contents); err != nil || !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Errorf("two layers of the same changes differ, %v", err)
	}
	after := tree.Clone()
	if err := after.Add(t.Context(), memory{l.Digest: one.Bytes()}, l, Limits{}); err != nil {
		t.Fatal(err)
	}
	again, err := after.Changes(t.Context(), Written{Dir: up, Attributes: "trusted.overlay.", UID: 70, GID: 71}, Limits{})
	if err != nil || len(again) != 0 {
		t.Errorf("after the layer, still other: %+v, %v", again, err)
	}
	if _, ok := after.At("dir/gone"); ok {
		t.Error("a removed file is there")
	}
	if e, _ := after.At("bin/su"); e.Special != 0o4000 || e.GID != 5 {
		t.Errorf("a file that was not changed: %+v", e)
	}
	if _, ok := tree.At("out"); ok {
		t.Error("the tree below was changed")
	}
	// Names of one file get files of their own, with the same bytes.
	if err := Unlink(up, changes); err != nil {
		t.Fatal(err)
	}
	put(t, up, "opt/b", "other\n", 0o400)
	if b, err := os.ReadFile(filepath.Join(up, "opt/a")); err != nil || string(b) != "a\n" {
		t.Errorf("one name changes with the other: %q, %v", b, err)
	}
	// What became of a file after it was hashed is no part of a layer.
	put(t, up, "dir/file", "evil", 0o644)
	if _, err := WriteLayer(&bytes.Buffer{}, time.Unix(1, 0), changes, &contents); hallmark.CodeOf(err) != hallmark.CodeImageDigest {
		t.Errorf("other bytes were taken: %v", err)
	}
}

func TestOpaqueDirectoriesHide(t *testing.T) {
	needRoot(t)
	tree, up := below(t), tempDir(t)
	put(t, up, "dir/file", "old\n", 0o644) // the same bytes, but made anew
	if err := unix.Setxattr(filepath.Join(up, "dir"), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	changes, err := tree.Changes(t.Context(), Written{Dir: up, Attributes: "trusted.overlay."}, Limits{})
	if err != nil || len(changes) != 2 || !changes[0].Opaque || changes[1].Path != "dir/file" || changes[1].UID != 0 {
		t.Fatalf("%+v, %v", changes, err)
	}
	var contents Contents
	contents.Put(changes[1].Digest, up, "dir/file")
	var b bytes.Buffer
	l, err := WriteLayer(&b, time.Unix(1, 0), changes, &contents)
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Add(t.Context(), memory{l.Digest: b.Bytes()}, l, Limits{}); err != nil {
		t.Fatal(err)
	}
	if _, ok := tree.At("dir/gone"); ok {
		t.Error("what an opaque directory hides is there")
	}
	if e, ok := tree.At("dir/file"); !ok || e.UID != 0 {
		t.Errorf("what was made in it: %+v", e)
	}
}

func TestHostileWrites(t *testing.T) {
	needRoot(t)
	for name, make := range map[string]func(up string) error{
		"device":       func(up string) error { return unix.Mknod(up+"/x", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))) },
		"block device": func(up string) error { return unix.Mknod(up+"/x", unix.S_IFBLK|0o666, int(unix.Mkdev(7, 0))) },
		"block 0":      func(up string) error { return unix.Mknod(up+"/x", unix.S_IFBLK|0o666, 0) },
		"pipe":         func(up string) error { return unix.Mkfifo(up+"/x", 0o644) },
		"socket":       func(up string) error { return unix.Mknod(up+"/x", unix.S_IFSOCK|0o644, 0) },
		"set-user":     func(up string) error { put(t, up, "x", "x", os.ModeSetuid|0o755); return nil },
		"set-group":    func(up string) error { put(t, up, "x", "x", os.ModeSetgid|0o755); return nil },
		"sticky file":  func(up string) error { put(t, up, "x", "x", os.ModeSticky|0o755); return nil },
		"directory":    func(up string) error { return unix.Mkdir(up+"/x", 0o755) },
		"whiteout":     func(up string) error { put(t, up, ".wh.x", "", 0o644); return nil },
		"opaque name":  func(up string) error { put(t, up, "dir/.wh..wh..opq", "", 0o644); return nil },
		"whiteout dir": func(up string) error { return os.MkdirAll(up+"/.wh.x/y", 0o755) },
		"attribute": func(up string) error {
			put(t, up, "x", "", 0o644)
			return unix.Setxattr(up+"/x", "user.x", []byte("y"), 0)
		},
		"user's opaque": func(up string) error { return unix.Setxattr(up, "user.overlay.opaque", []byte("y"), 0) },
		"user's below": func(up string) error {
			put(t, up, "dir/x", "", 0o644)
			return unix.Setxattr(up+"/dir", "user.overlay.opaque", []byte("y"), 0)
		},
		"redirect": func(up string) error {
			put(t, up, "dir/x", "", 0o644)
			return unix.Setxattr(up+"/dir", "trusted.overlay.redirect", []byte("/etc"), 0)
		},
		"metacopy": func(up string) error {
			put(t, up, "dir/file", "", 0o644)
			return unix.Setxattr(up+"/dir/file", "trusted.overlay.metacopy", nil, 0)
		},
		"half opaque": func(up string) error {
			put(t, up, "dir/x", "", 0o644)
			return unix.Setxattr(up+"/dir", "trusted.overlay.opaque", []byte("x"), 0)
		},
		"capability": func(up string) error {
			put(t, up, "x", "", 0o755)
			return unix.Setxattr(up+"/x", "security.capability", []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0)
		},
		"mode of /": func(up string) error { return os.Chmod(up, 0o700) }, //nolint:gosec // of the test
		"deep":      func(up string) error { return os.MkdirAll(up+strings.Repeat("/d", maxDepth+1), 0o755) },
	} {
		up := tempDir(t)
		if err := make(up); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		changes, err := below(t).Changes(t.Context(), Written{Dir: up, Attributes: "trusted.overlay."}, Limits{})
		if name == "directory" { // an ordinary one
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if hallmark.CodeOf(err) != hallmark.CodeImageRunRefused {
			t.Errorf("%s: %+v, %v", name, changes, err)
		}
	}
	up := tempDir(t)
	put(t, up, "big", strings.Repeat("x", 100), 0o644)
	if _, err := below(t).Changes(t.Context(), Written{Dir: up, Attributes: "trusted.overlay."}, Limits{Bytes: 99}); hallmark.CodeOf(err) != hallmark.CodeImageTooLarge {
		t.Errorf("too many bytes: %v", err)
	}
	if _, err := below(t).Changes(t.Context(), Written{Dir: up, Attributes: "trusted.overlay."}, Limits{Entries: 1}); err != nil {
		t.Errorf("one name: %v", err)
	}
}

func TestCopyStaysInItsTrees(t *testing.T) {
	from, to := below(t), below(t)
	d, n := hallmark.DigestOf([]byte("t")), int64(1)
	if err := from.Apply([]Change{
		{Entry: Entry{Path: "out", Type: Symlink, Target: "/etc/shadow"}}, {Entry: Entry{Path: "climb", Type: Symlink, Target: "../../../dir"}},
		{Entry: Entry{Path: "set", Type: File, Mode: 0o755, Special: 0o4000, Digest: d, Size: n}},
	}); err != nil {
		t.Fatal(err)
	}
	if err := to.Apply([]Change{{Entry: Entry{Path: "away", Type: Symlink, Target: "/nowhere"}}, {Entry: Entry{Path: "up", Type: Symlink, Target: "../../../../dir"}}}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		q    CopyRequest
		want string // paths, or the beginning of an error
	}{
		"file":                  {CopyRequest{Sources: []string{"dir/file"}, Dest: "/a"}, "a"},
		"into a directory":      {CopyRequest{Sources: []string{"dir/file"}, Dest: "/dir"}, "dir/file"},
		"new directories":       {CopyRequest{Sources: []string{"dir/file"}, Dest: "/x/y/"}, "x x/y"},
		"into new":              {CopyRequest{Sources: []string{"dir/file"}, Dest: "/x/y", IsDir: true}, "x x/y x/y/file"},
		"directory":             {CopyRequest{Sources: []string{"dir"}, Dest: "/n"}, "n n/file n/gone"},
		"pattern":               {CopyRequest{Sources: []string{"dir/*"}, Dest: "/n", IsDir: true}, "n n/file n/gone"},
		"pattern of dirs":       {CopyRequest{Sources: []string{"d*r/f*"}, Dest: "/n"}, "n"},
		"everything":            {CopyRequest{Sources: []string{""}, Dest: "/n"}, "ERR /bin/su has set-user-ID"},
		"through a link":        {CopyRequest{Sources: []string{"dir/file"}, Dest: "/link/new"}, "dir/new"},
		"link that climbs":      {CopyRequest{Sources: []string{"dir/file"}, Dest: "/up/new"}, "dir/new"},
		"source that climbs":    {CopyRequest{Sources: []string{"climb/file"}, Dest: "/n"}, "n"},
		"source that leads out": {CopyRequest{Sources: []string{"out"}, Dest: "/n"}, "ERR there is no"},
		"no links asked":        {CopyRequest{Sources: []string{"dir/file"}, Dest: "/link/new", NoLinks: true}, "ERR /link/new leads through a link"},
		"no links needed":       {CopyRequest{Sources: []string{"dir/file"}, Dest: "/dir/new", NoLinks: true}, "dir/new"},
		"no links, new":         {CopyRequest{Sources: []string{"dir/file"}, Dest: "/q/new", NoLinks: true}, "q q/new"},
		"to nowhere":            {CopyRequest{Sources: []string{"dir/file"}, Dest: "/away/new"}, "ERR away is a link"},
		"onto a dead link":      {CopyRequest{Sources: []string{"dir/file"}, Dest: "/away"}, "ERR /away is a link that leads to no file"},
		"dir over a file":       {CopyRequest{Sources: []string{"dir"}, Dest: "/dir/file"}, "ERR /dir/file is a file"},
		"file as directory":     {CopyRequest{Sources: []string{"dir/file"}, Dest: "/dir/file/x"}, "ERR dir/file is no directory"},
		"set-user":              {CopyRequest{Sources: []string{"set"}, Dest: "/n"}, "ERR /set has set-user-ID"},
		"set-user, chmod":       {CopyRequest{Sources: []string{"set"}, Dest: "/n", Mode: 0o755}, "n"},
		"removal":               {CopyRequest{Sources: []string{"dir/file"}, Dest: "/.wh.dir"}, "ERR /.wh.dir: a name that begins"},
		"nothing":               {CopyRequest{Sources: []string{"none"}, Dest: "/n"}, "ERR there is no"},
		"no match":              {CopyRequest{Sources: []string{"z*"}, Dest: "/n"}, "ERR there is no"},
		"many into one":         {CopyRequest{Sources: []string{"dir/*"}, Dest: "/n"}, "ERR 2 files match"},
		"the root":              {CopyRequest{Inline: []Entry{{Path: "x", Type: File, Digest: d}}, Dest: "/"}, "x"},
	} {
		c.q.From = from
		got, err := to.Copy(c.q)
		var paths []string
		for _, x := range got {
			paths = append(paths, x.Path)
			if x.Special != 0 || strings.Contains(x.Path, "..") {
				t.Errorf("%s: %+v", name, x)
			}
		}
		if want, bad := strings.CutPrefix(c.want, "ERR "); bad {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, %v, want %s", name, paths, err, want)
			}
		} else if err != nil || c.want != "" && strings.Join(paths, " ") != c.want {
			t.Errorf("%s: %v, %v, want %s", name, paths, err, c.want)
		}
	}
}
