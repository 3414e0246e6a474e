// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/hallmark-sc/hallmark"
)

// sourceArtifact reads "source: NAME.tar.gz" in the list of artifacts.
func (p *parser) sourceArtifact(n *yaml.Node, seen map[string]bool) string {
	f := p.fields(n, "an artifact", "source")
	if !p.need(n, f["source"], "source") {
		return ""
	}
	a := p.artifact(f["source"], seen)
	if !strings.HasSuffix(a, ".tar") && !strings.HasSuffix(a, ".tar.gz") && !strings.HasSuffix(a, ".tgz") {
		p.fail(f["source"], hallmark.CodePipelineInvalid, "source %q: want a name that ends in .tar, .tar.gz or .tgz", a)
	}
	return a
}

// names tells which kind of artifact a mapping is.
func names(n *yaml.Node, key string) bool {
	return len(n.Content) > 0 && n.Content[0].Value == key
}

// SourceArchive compares an archive of the source with the commit's tree in dir:
// the same files, bytes, links and executables, below one directory or none, and
// nothing else before, between or behind them. nil says that it is the same.
func SourceArchive(dir, name string, data []byte) *hallmark.Reason {
	differs := func(format string, args ...any) *hallmark.Reason {
		return &hallmark.Reason{Code: hallmark.CodeSourceArchive, Check: "build", Message: "artifact " + name + ": " + fmt.Sprintf(format, args...),
			Fix: "let the archive hold the files of the commit and no others, or publish what is made from them as another artifact"}
	}
	want, err := treeFiles(dir)
	if err != nil {
		return differs("reading the source: %s", err)
	}
	got, err := archiveFiles(data, strings.HasSuffix(name, "gz"))
	if err != nil {
		return differs("%s", err)
	}
	why := difference(want, got)
	if why == "" {
		return nil
	}
	if short, ok := withoutTop(got); ok {
		if why = difference(want, short); why == "" {
			return nil
		}
	}
	return differs("%s", why)
}

// archived is what counts of a file: kind and mode, and bytes or target.
type archived struct {
	kind string // file, program or link
	data []byte
}

func treeFiles(dir string) (map[string]archived, error) {
	out := map[string]archived{}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if d.Type()&fs.ModeSymlink != 0 {
			to, err := root.Readlink(filepath.FromSlash(name))
			out[name] = archived{"link", []byte(to)}
			return err
		}
		b, err := root.ReadFile(filepath.FromSlash(name))
		out[name] = archived{kindOf(int64(info.Mode())), b}
		return err
	})
	return out, err
}

func kindOf(mode int64) string {
	if mode&0o100 != 0 {
		return "program"
	}
	return "file"
}

// maxArchived bounds an unpacked archive in memory.
const maxArchived = 1 << 30

// archiveFiles reads a tar archive by name of file.
func archiveFiles(data []byte, compressed bool) (map[string]archived, error) {
	var in io.Reader = bytes.NewReader(data)
	if compressed {
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, fmt.Errorf("it is no gzip file: %w", err)
		}
		in = z
	}
	in = &io.LimitedReader{R: in, N: maxArchived}
	t := tar.NewReader(in)
	out := map[string]archived{}
	left := int64(maxArchived)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("it is no tar archive: %w", err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader { // of git: names the commit
			continue
		}
		name := path.Clean(h.Name)
		if h.Typeflag == tar.TypeDir {
			if name != "." && !fs.ValidPath(name) {
				return nil, fmt.Errorf("%.200q leaves the archive", h.Name)
			}
			continue
		}
		if _, ok := out[name]; ok || !fs.ValidPath(name) || name == "." {
			return nil, fmt.Errorf("%.200q stands twice, or leaves the archive", h.Name)
		}
		switch h.Typeflag {
		case tar.TypeReg:
			// A sparse file takes no room in the archive, and any amount here.
			if left -= h.Size; left < 0 || sparse(h) {
				return nil, fmt.Errorf("%.200q is sparse, or it and those before it have more than %d bytes", h.Name, int64(maxArchived))
			}
			b, err := io.ReadAll(t)
			if err != nil {
				return nil, fmt.Errorf("reading %.200q: %w", h.Name, err)
			}
			out[name] = archived{kindOf(h.Mode), b}
		case tar.TypeSymlink:
			out[name] = archived{"link", []byte(h.Linkname)}
		default:
			return nil, fmt.Errorf("%.200q is neither file nor link", h.Name)
		}
	}
	// Some readers go on behind the end.
	rest, err := io.ReadAll(in)
	if err != nil || len(bytes.Trim(rest, "\x00")) > 0 {
		return nil, errors.Join(errors.New("there is something behind its end"), err)
	}
	return out, nil
}

func sparse(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// withoutTop takes away the one directory that everything is in.
func withoutTop(files map[string]archived) (map[string]archived, bool) {
	out, top := map[string]archived{}, ""
	for name, f := range files {
		dir, rest, ok := strings.Cut(name, "/")
		if !ok || top != "" && dir != top {
			return nil, false
		}
		top, out[rest] = dir, f
	}
	return out, top != ""
}

// difference names the first one, or "".
func difference(want, got map[string]archived) string {
	for _, name := range slices.Sorted(archivedNames(got)) {
		w, ok := want[name]
		switch g := got[name]; {
		case !ok:
			return name + " is not in the commit"
		case g.kind != w.kind:
			return fmt.Sprintf("%s is a %s, in the commit a %s", name, g.kind, w.kind)
		case !bytes.Equal(g.data, w.data):
			return name + " has other bytes than in the commit"
		}
	}
	for _, name := range slices.Sorted(archivedNames(want)) {
		if _, ok := got[name]; !ok {
			return name + " of the commit is missing"
		}
	}
	return ""
}

func archivedNames(m map[string]archived) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}
