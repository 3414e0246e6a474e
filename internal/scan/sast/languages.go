// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sast

import (
	"errors"
	"fmt"
	"io"
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
		l := language(p)
		if l == "" && d.Type().IsRegular() {
			if l, err = scriptLanguage(root, p); err != nil {
				return err
			}
		}
		if l != "" {
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

// scriptLanguage reads the language of a file from its #! line, "" if it has
// none. An interpreter that we do not know is a language of its own.
func scriptLanguage(root *os.Root, p string) (string, error) {
	f, err := root.Open(p)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var head [256]byte
	if _, err = io.ReadFull(f, head[:2]); err != nil || string(head[:2]) != "#!" {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = nil
		}
		return "", err
	}
	n, err := io.ReadFull(f, head[2:])
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", err
	}
	line, _, _ := strings.Cut(string(head[2:2+n]), "\n")
	return interpreted(line), nil
}

// interpreted is the language of what follows #!.
func interpreted(line string) string {
	words := strings.Fields(line)
	name := ""
	for i, w := range words {
		name = path.Base(w)
		// env runs the first word that is neither an option nor a variable.
		if i == 0 && name != "env" || i > 0 && !strings.HasPrefix(w, "-") && !strings.Contains(w, "=") {
			break
		}
	}
	switch name = strings.TrimRight(name, "0123456789.-"); name {
	case "sh", "bash", "dash", "ash", "zsh", "ksh", "mksh", "fish":
		return "Shell"
	case "python", "pypy":
		return "Python"
	case "node", "nodejs", "bun":
		return "JavaScript"
	case "deno", "ts-node", "tsx":
		return "TypeScript"
	case "ruby":
		return "Ruby"
	case "perl":
		return "Perl"
	case "php":
		return "PHP"
	case "lua", "luajit":
		return "Lua"
	case "scala":
		return "Scala"
	case "swift":
		return "Swift"
	case "kotlin":
		return "Kotlin"
	case "java":
		return "Java"
	}
	if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-_") != "" {
		return "script"
	}
	return "script of " + name
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

// ownGo reports whether a module has Go files of its own, in no module below it.
func (t tree) ownGo(module string) bool {
	below := func(m, file string) bool { return m == "." || strings.HasPrefix(file, m+"/") }
	return slices.ContainsFunc(t.files["Go"], func(f string) bool {
		return below(module, f) && !slices.ContainsFunc(t.modules, func(m string) bool {
			return m != module && below(module, m+"/") && below(m, f)
		})
	})
}
