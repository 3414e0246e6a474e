// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sast

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// language of a file by its name. Data, markup and documentation have none.
func language(name string) string {
	ext := path.Ext(name)
	if ext == ".C" || ext == ".H" {
		return "C++"
	}
	switch strings.ToLower(ext) {
	case ".go":
		return "Go"
	case ".c", ".h":
		return "C"
	case ".cc", ".cp", ".cpp", ".cxx", ".c++", ".hpp", ".hh", ".hxx", ".h++", ".ipp", ".ixx", ".cppm", ".inl", ".tcc", ".tpp":
		return "C++"
	case ".java":
		return "Java"
	case ".js", ".mjs", ".cjs", ".jsx":
		return "JavaScript"
	case ".ts", ".tsx", ".mts", ".cts":
		return "TypeScript"
	case ".py":
		return "Python"
	case ".rb":
		return "Ruby"
	case ".rs":
		return "Rust"
	case ".php":
		return "PHP"
	case ".cs":
		return "C#"
	case ".kt", ".kts":
		return "Kotlin"
	case ".swift":
		return "Swift"
	case ".scala":
		return "Scala"
	case ".sh", ".bash", ".zsh", ".ksh":
		return "Shell"
	case ".pl", ".pm":
		return "Perl"
	case ".lua":
		return "Lua"
	}
	return ""
}

// tree is a source tree as it was read: paths by language.
type tree struct {
	files   map[string][]string // sorted
	modules []string            // directories of go.mod
}

// readTree sorts the files of a tree by language. A link whose name says another
// language than the file it leads to counts as a file of its own: a compiler goes
// by the name it is given.
func readTree(root *os.Root) (tree, error) {
	t := tree{files: map[string][]string{}}
	err := filepath.WalkDir(root.Name(), func(full string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		p, err := filepath.Rel(root.Name(), full)
		if err != nil {
			return err
		}
		p = filepath.ToSlash(p)
		switch {
		case d.Type().IsRegular():
			if d.Name() == "go.mod" {
				t.modules = append(t.modules, path.Dir(p))
			}
		case d.Type()&fs.ModeSymlink != 0:
			if st, err := root.Stat(p); err != nil || !st.Mode().IsRegular() || language(target(root, p)) == language(p) {
				return nil
			}
		default:
			return nil
		}
		if l := language(p); l != "" {
			t.files[l] = append(t.files[l], p)
		}
		return nil
	})
	if err != nil {
		return t, fmt.Errorf("sast: reading the source: %w", err)
	}
	for _, files := range t.files {
		slices.Sort(files)
	}
	return t, nil
}

// target is the file of the tree that a link leads to, "" if that is not plain.
func target(root *os.Root, p string) string {
	for range 40 {
		to, err := root.Readlink(p)
		if err != nil {
			return p
		}
		p = path.Join(path.Dir(p), to)
	}
	return ""
}
