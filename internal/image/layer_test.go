// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/hallmark-sc/hallmark"
)

// memory holds blobs under the digest that they are asked for.
type memory map[hallmark.Digest][]byte

func (m memory) Open(d hallmark.Digest) (io.ReadCloser, error) {
	b, ok := m[d]
	if !ok {
		return nil, hallmark.Errorf(hallmark.KindNotFound, "no blob %s", d)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func archiveOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		body := h.Uname // where the table keeps the content
		h.Uname = ""
		if h.Typeflag == 0 || h.Typeflag == tar.TypeReg {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(body))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(body)[:h.Size]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (m memory) layer(plain, packed []byte) Layer {
	d := hallmark.DigestOf(packed)
	m[d] = packed
	return Layer{Digest: d, DiffID: hallmark.DigestOf(plain), Size: int64(len(packed))}
}

// flatten flattens layers, each a list of entries.
func flatten(t testing.TB, layers ...[]tar.Header) (*Tree, memory, []Layer, error) {
	t.Helper()
	m := memory{}
	var ls []Layer
	for _, l := range layers {
		b := archiveOf(t, l...)
		ls = append(ls, m.layer(b, b))
	}
	tree, err := Flatten(t.Context(), m, ls, Limits{})
	return tree, m, ls, err
}

func file(name, text string) tar.Header { return tar.Header{Name: name, Uname: text} }
func dir(name string) tar.Header        { return tar.Header{Name: name, Typeflag: tar.TypeDir} }
func symlink(name, to string) tar.Header {
	return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}
}
func hard(name, to string) tar.Header {
	return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeLink}
}

// show lists a tree as "path=content".
func show(t *Tree) string {
	var out []string
	for _, e := range t.Entries() {
		switch e.Type {
		case Directory:
			out = append(out, e.Path+"/")
		case Symlink:
			out = append(out, e.Path+"->"+e.Target)
		case File:
			out = append(out, fmt.Sprintf("%s=%d", e.Path, e.Size))
		}
	}
	return strings.Join(out, " ")
}

func TestFlattenLayers(t *testing.T) {
	for name, c := range map[string]struct {
		layers [][]tar.Header
		want   string
	}{
		"later layer wins":              {[][]tar.Header{{file("a", "1")}, {file("a", "22")}}, "a=2"},
		"whiteout":                      {[][]tar.Header{{file("d/a", "1"), file("d/b", "1")}, {file("d/.wh.a", "")}}, "d/ d/b=1"},
		"whiteout of a directory":       {[][]tar.Header{{file("d/a", "1")}, {file(".wh.d", "")}}, ""},
		"whiteout spares its own layer": {[][]tar.Header{{file("d/a", "1")}, {file("d/n", "1"), file(".wh.d", "")}}, "d/ d/n=1"},
		"opaque":                        {[][]tar.Header{{file("d/a", "1"), file("d/e/f", "1")}, {file("d/new", "1"), file("d/.wh..wh..opq", "")}}, "d/ d/new=1"},
		"whiteout then new":             {[][]tar.Header{{file("a", "1")}, {file(".wh.a", ""), file("a", "333")}}, "a=3"},
		"file over directory":           {[][]tar.Header{{file("d/a", "1")}, {file("d", "22")}}, "d=2"},
		"directory over link":           {[][]tar.Header{{symlink("d", "/etc")}, {dir("d")}}, "d/"},
		"through a link, inside":        {[][]tar.Header{{dir("usr/lib"), symlink("lib", "usr/lib")}, {file("lib/x", "1")}}, "lib->usr/lib usr/ usr/lib/ usr/lib/x=1"},
		"through an absolute link":      {[][]tar.Header{{symlink("lib", "/usr/lib")}, {file("lib/x", "1")}}, "lib->/usr/lib usr/ usr/lib/ usr/lib/x=1"},
		"link that climbs":              {[][]tar.Header{{symlink("lib", "../../../../etc")}, {file("lib/passwd", "1")}}, "etc/ etc/passwd=1 lib->../../../../etc"},
		"hard link":                     {[][]tar.Header{{file("a", "11"), hard("b", "a")}}, "a=2 b=2"},
		"hard link keeps its bytes":     {[][]tar.Header{{file("a", "11"), hard("b", "a")}, {file("a", "1")}}, "a=1 b=2"},
		"absolute name":                 {[][]tar.Header{{file("/etc/x", "1")}}, "etc/ etc/x=1"},
		"dot":                           {[][]tar.Header{{dir("./"), file("./x", "1")}}, "x=1"},
		"doubled directory":             {[][]tar.Header{{dir("d"), file("d/a", "1"), dir("d")}}, "d/ d/a=1"},
		"cases differ":                  {[][]tar.Header{{file("A", "1"), file("a", "22")}}, "A=1 a=2"},
		"devices of /dev":               {[][]tar.Header{{{Name: "dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, {Name: "dev/initctl", Typeflag: tar.TypeFifo}}}, "dev/"},
		"bookkeeping of AUFS":           {[][]tar.Header{{file(".wh..wh.plnk/1.2", "x"), file(".wh..wh.aufs", ""), file("a", "1")}}, "a=1"},
	} {
		tree, m, ls, err := flatten(t, c.layers...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := show(tree); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		dir := t.TempDir()
		if err := errors.Join(tree.Unpack(t.Context(), m, ls, dir), tree.Verify(t.Context(), dir)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestHostileLayers are the attacks that an archive can hold. Each is refused
// before anything is written.
func TestHostileLayers(t *testing.T) {
	deep := strings.Repeat("d/", maxDepth+1) + "x"
	for name, layers := range map[string][][]tar.Header{
		"climbs":                       {{file("../evil", "1")}},
		"climbs in the middle":         {{file("a/../../evil", "1")}},
		"climbs and comes back":        {{file("a/../b", "1")}},
		"directory climbs":             {{dir("..")}},
		"whiteout climbs":              {{file("../.wh.etc", "")}},
		"whiteout of no name":          {{file("d/.wh.", "")}},
		"whiteout of the parent":       {{file("d/.wh...", "")}},
		"whiteout of itself":           {{file("d/.wh..", "")}},
		"hard link out":                {{hard("a", "../../etc/passwd")}},
		"hard link to the host":        {{hard("a", "/etc/passwd")}},
		"hard link to nothing":         {{hard("a", "none")}},
		"hard link to the root":        {{hard("a", "/")}},
		"hard link to a directory":     {{dir("d"), hard("a", "d")}},
		"hard link to itself":          {{hard("a", "a")}},
		"hard link through a link":     {{symlink("l", "/etc"), hard("a", "l/passwd")}},
		"device":                       {{{Name: "sda", Typeflag: tar.TypeBlock, Devmajor: 8}}},
		"character device":             {{{Name: "etc/mem", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1}}},
		"pipe":                         {{{Name: "run/p", Typeflag: tar.TypeFifo}}},
		"twice in one layer":           {{file("a", "good"), file("a", "evil")}},
		"twice by another spelling":    {{file("a", "good"), file("./a", "evil")}},
		"twice through a link":         {{dir("d"), symlink("l", "d"), file("d/a", "good"), file("l/a", "evil")}},
		"file, then link of this name": {{file("a", "1"), symlink("a", "/etc/passwd")}},
		"link, then file through it":   {{symlink("a", "/etc/passwd"), file("a/x", "1"), file("a", "1")}},
		"below a file":                 {{file("a", "1"), file("a/b", "1")}},
		"link loop":                    {{symlink("a", "b"), symlink("b", "a"), file("a/x", "1")}},
		"link that grows":              {{symlink("a", "a/a/a/a"), file("a/x", "1")}},
		"link to nowhere":              {{symlink("a", "")}},
		"too deep":                     {{file(deep, "1")}},
		"long name":                    {{file(strings.Repeat("n", maxName+1), "1")}},
		"file for the root":            {{file(".", "1")}},
		"link for the root":            {{symlink("./", "/etc")}},
	} {
		if tree, _, _, err := flatten(t, layers...); hallmark.CodeOf(err) != hallmark.CodeImageHostile {
			t.Errorf("%s: %v, tree %v", name, err, tree != nil)
		}
	}
}

// TestModesLoseWhatGivesRights: no set-user, set-group or sticky bit comes out,
// and nothing that is unpacked can be written.
func TestModesLoseWhatGivesRights(t *testing.T) {
	h := file("su", "x")
	h.Mode = 0o6777
	secret := file("d/shadow", "x")
	secret.Mode = 0o100
	d := dir("d")
	d.Mode = 0o1777
	tree, m, ls, err := flatten(t, []tar.Header{h, d, secret})
	if err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	if err := tree.Unpack(t.Context(), m, ls, out); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{"su": 0o555, "d/shadow": 0o500, "d": 0o555 | os.ModeDir} {
		if st, err := os.Lstat(filepath.Join(out, name)); err != nil || st.Mode() != want {
			t.Errorf("%s: %v, %v, want %v", name, st.Mode(), err, want)
		}
	}
}

// TestEachByteIsCompared: whatever stands in place of a layer, its digests say
// that it is another.
func TestEachByteIsCompared(t *testing.T) {
	plain := archiveOf(t, file("a", strings.Repeat("text ", 200)))
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	w.Close()
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for kind, packed := range map[string][]byte{"gzip": z.Bytes(), "zstd": e.EncodeAll(plain, nil), "plain": plain} {
		m := memory{}
		l := m.layer(plain, packed)
		if _, err := Flatten(t.Context(), m, []Layer{l}, Limits{}); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		for i := 0; i < len(packed); i += 1 + len(packed)/200 {
			bad := bytes.Clone(packed)
			bad[i] ^= 1
			m[l.Digest] = bad
			if _, err := Flatten(t.Context(), m, []Layer{l}, Limits{}); hallmark.CodeOf(err) != hallmark.CodeImageDigest {
				t.Fatalf("%s: bit of byte %d: %v", kind, i, err)
			}
		}
		for name, bad := range map[string][]byte{"cut off": packed[:len(packed)-1], "longer": append(bytes.Clone(packed), 0), "empty": nil} {
			m[l.Digest] = bad
			if _, err := Flatten(t.Context(), m, []Layer{l}, Limits{}); hallmark.CodeOf(err) != hallmark.CodeImageDigest {
				t.Errorf("%s, %s: %v", kind, name, err)
			}
		}
		// The digest is right, the configuration says another archive.
		m[l.Digest] = packed
		l.DiffID = hallmark.DigestOf([]byte("another"))
		if _, err := Flatten(t.Context(), m, []Layer{l}, Limits{}); hallmark.CodeOf(err) != hallmark.CodeImageDigest {
			t.Errorf("%s: another diff id: %v", kind, err)
		}
	}
}

// TestHiddenBytes: what stands after the end of an archive is seen by some
// readers only.
func TestHiddenBytes(t *testing.T) {
	m := memory{}
	plain := append(archiveOf(t, file("a", "1")), archiveOf(t, file("hidden", "1"))...)
	if _, err := Flatten(t.Context(), m, []Layer{m.layer(plain, plain)}, Limits{}); hallmark.CodeOf(err) != hallmark.CodeImageHostile {
		t.Errorf("two archives in one: %v", err)
	}
}

// TestBombs: what unpacks to more than is allowed ends there.
func TestBombs(t *testing.T) {
	m := memory{}
	plain := archiveOf(t, file("zeros", strings.Repeat("\x00", 8<<20)))
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	w.Close()
	l := m.layer(plain, z.Bytes())
	for name, limits := range map[string]Limits{"bytes": {Bytes: 1 << 20}, "entries": {Entries: 1}, "layers": {Layers: 1}} {
		layers := []Layer{l, l}
		if _, err := Flatten(t.Context(), m, layers, limits); hallmark.CodeOf(err) != hallmark.CodeImageTooLarge {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A sparse file that says to hold terabytes takes none of the disk: it is
	// counted byte by byte, as any reader would see it.
	if _, err := Flatten(t.Context(), m, []Layer{l}, Limits{Bytes: int64(len(plain)) - 1}); hallmark.CodeOf(err) != hallmark.CodeImageTooLarge {
		t.Errorf("one byte too many: %v", err)
	}
}

// TestVerifyFindsWhatChanged: after unpacking, any change is seen.
func TestVerifyFindsWhatChanged(t *testing.T) {
	tree, m, ls, err := flatten(t, []tar.Header{dir("d"), file("d/a", "text"), file("d/b", "text"), symlink("l", "d/a")})
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(dir string) error{
		"byte": func(dir string) error {
			return errors.Join(os.Chmod(dir+"/d/a", 0o755), os.WriteFile(dir+"/d/a", []byte("tExt"), 0), os.Chmod(dir+"/d/a", 0o555))
		},
		"mode":         func(dir string) error { return os.Chmod(dir+"/d/a", 0o557) },
		"set-user bit": func(dir string) error { return os.Chmod(dir+"/d/a", 0o555|os.ModeSetuid) },
		"added":        func(dir string) error { return os.WriteFile(dir+"/new", nil, 0o444) },
		"removed":      func(dir string) error { return os.Remove(dir + "/l") },
		"link": func(dir string) error {
			return errors.Join(os.Remove(dir+"/l"), os.Symlink("/etc/passwd", dir+"/l"))
		},
		"file by link": func(dir string) error {
			return errors.Join(os.Chmod(dir+"/d", 0o755), os.Remove(dir+"/d/a"), os.Symlink("b", dir+"/d/a"), os.Chmod(dir+"/d", 0o555))
		},
	} {
		dir := t.TempDir()
		if err := errors.Join(tree.Unpack(t.Context(), m, ls, dir), tree.Verify(t.Context(), dir), change(dir)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := tree.Verify(t.Context(), dir); !errors.Is(err, ErrAltered) {
			t.Errorf("%s: %v", name, err)
		}
		os.Chmod(dir+"/d", 0o755)
	}
}

func TestFindFollowsLinksInside(t *testing.T) {
	tree, _, _, err := flatten(t, []tar.Header{file("usr/bin/gcc-12", "x"), symlink("usr/bin/cc", "/etc/alternatives/cc"), symlink("etc/alternatives/cc", "../../../../usr/bin/gcc-12"), symlink("bin", "usr/bin"), symlink("loop", "loop")})
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := tree.Find("/bin/cc"); !ok || e.Path != "usr/bin/gcc-12" {
		t.Errorf("found %+v, %v", e, ok)
	}
	for _, p := range []string{"/bin/none", "loop", "/usr/bin/gcc-12/x"} {
		if e, ok := tree.Find(p); ok {
			t.Errorf("%s: found %+v", p, e)
		}
	}
}

// FuzzFlatten: whatever a layer holds, no tree has a name that leads out, and
// what was read can be unpacked as it was read.
func FuzzFlatten(f *testing.F) {
	f.Add(archiveOf(f, file("a", "1"), symlink("b", "/a"), hard("c", "a")), archiveOf(f, file(".wh.a", ""), file("b/x", "1")))
	f.Add(archiveOf(f, dir("d"), file("d/x", "1")), archiveOf(f, file("d/.wh..wh..opq", "")))
	f.Add(archiveOf(f, symlink("a", "../..")), archiveOf(f, file("a/etc/passwd", "1")))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		m := memory{}
		ls := []Layer{m.layer(one, one), m.layer(two, two)}
		tree, err := Flatten(t.Context(), m, ls, Limits{Entries: 1000, Bytes: 1 << 20})
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, e := range tree.Entries() {
			if !filepath.IsLocal(e.Path) || seen[e.Path] || e.Mode&^0o777 != 0 {
				t.Fatalf("entry %+v", e)
			}
			seen[e.Path] = true
		}
		dir := t.TempDir()
		err = tree.Unpack(t.Context(), m, ls, dir)
		if err == nil {
			err = tree.Verify(t.Context(), dir)
		}
		if err != nil {
			t.Fatalf("unpacking what was read: %v", err)
		}
		filepath.WalkDir(dir, func(p string, d os.DirEntry, _ error) error {
			if d.IsDir() {
				return os.Chmod(p, 0o755)
			}
			return nil
		})
	})
}

func TestEntriesAreSorted(t *testing.T) {
	tree, _, _, err := flatten(t, []tar.Header{file("b/c", "1"), file("a", "1")})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("a=1 b/ b/c=1", show(tree)); diff != "" {
		t.Error(diff)
	}
}
