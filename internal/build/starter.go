// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"fmt"
	goparser "go/parser"
	"go/token"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"

	"github.com/hallmark-sc/hallmark"
)

// sourceArchive is the artifact of a project that compiles to nothing.
const sourceArchive = "mkdir -p out && tar --sort=name --mtime=@$SOURCE_DATE_EPOCH --owner=0 --group=0 -czf out/source.tar.gz --exclude=./out ."

// Starter writes a commented first pipeline definition for the project it finds:
// Go, Node, Python or C with make.
func Starter(fsys fs.FS) ([]byte, error) {
	has := func(names ...string) bool {
		return slices.ContainsFunc(names, func(name string) bool { _, err := fs.Stat(fsys, name); return err == nil })
	}
	text := func(kind, steps, artifact string) []byte {
		return fmt.Appendf(nil, `# How Hallmark builds this %s project. Each step runs in a fresh sandbox over the
# same workspace: no network, no secret, nothing of the host but its toolchain.
# The schema for editors: hallmark schema pipeline
apiVersion: hallmark/v1
kind: Pipeline
build:
  steps:
%s  # Paths in the workspace; each becomes a file of the same base name in the results.
  artifacts: [%s]
`, kind, steps, artifact)
	}
	const test = "    # A step named test, or test-…, is a test: the policy asks for at least one.\n    - name: test\n      run: "
	switch {
	case has("go.mod"):
		target, name := goProgram(fsys)
		if target == "" {
			return text("Go", "    # A library: its source is what is released.\n    - run: go build ./... && "+sourceArchive+"\n"+test+"go test ./...\n", "out/source.tar.gz"), nil
		}
		return text("Go", fmt.Sprintf("    - run: go build -trimpath -o out/%s %s\n%sgo test ./...\n", name, target, test), "out/"+name), nil
	case has("package.json"):
		return text("Node", "    # Dependencies are installed before, without install scripts.\n    - run: mkdir -p out && npm pack --ignore-scripts --pack-destination out && mv out/*.tgz out/package.tgz\n"+test+"npm test\n", "out/package.tgz"), nil
	case has("pyproject.toml", "setup.py", "requirements.txt"):
		return text("Python", "    - run: "+sourceArchive+"\n"+test+"python3 -m unittest discover\n", "out/source.tar.gz"), nil
	case has("Makefile", "makefile", "GNUmakefile"):
		program, check := makeProgram(fsys)
		steps := "    - run: make\n" + test + "make " + check + "\n"
		if program == "" {
			steps, program = steps+"  # CHANGE-ME: the file that make writes.\n", "CHANGE-ME"
		}
		return text("C or make", steps, program), nil
	}
	return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindNotFound, "no go.mod, package.json, pyproject.toml, setup.py, requirements.txt or Makefile here"),
		"write .hallmark/pipeline.yaml by hand; hallmark schema pipeline describes it")
}

// plain is a path that means the same to a shell, to make and to YAML.
var plain = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._/-]*$`)

// goProgram finds a main package, below cmd first, and a name for its binary. A
// module without one is a library: no target.
func goProgram(fsys fs.FS) (target, name string) {
	for _, pattern := range []string{"cmd/*/*.go", "*.go"} {
		files, err := fs.Glob(fsys, pattern)
		if err != nil {
			continue
		}
		for _, f := range files {
			src, err := fs.ReadFile(fsys, f)
			if err != nil || strings.HasSuffix(f, "_test.go") {
				continue
			}
			file, err := goparser.ParseFile(token.NewFileSet(), f, src, goparser.PackageClauseOnly)
			if err != nil || file.Name.Name != "main" || strings.Contains(string(src), "//go:build ignore") {
				continue
			}
			if dir := path.Dir(f); dir != "." && plain.MatchString(dir) {
				return "./" + dir, path.Base(dir)
			} else if dir == "." {
				return ".", goName(fsys)
			}
		}
	}
	return "", ""
}

// goName is the name that the go command gives the binary of the root package:
// the module's last element, or the one before a major version.
func goName(fsys fs.FS) string {
	b, err := fs.ReadFile(fsys, "go.mod")
	if err != nil {
		return "app"
	}
	prefix, _, ok := module.SplitPathVersion(modfile.ModulePath(b))
	if name := path.Base(prefix); ok && plain.MatchString(name) {
		return name
	}
	return "app"
}

var (
	makeVariable = regexp.MustCompile(`^ *([A-Za-z_][A-Za-z0-9_]*) *(?:\?|:{0,2})= *([^#]*)`)
	makeRule     = regexp.MustCompile(`^([^\t:=#][^:=#]*)::?( [^#]*)?(#.*)?$`)
	makeUse      = regexp.MustCompile(`\$[({]([A-Za-z_][A-Za-z0-9_]*)[)}]`)
)

// makeProgram reads from a makefile which file its default goal writes, and the
// name of the goal that tests. It understands what a small makefile has (plain
// variables, rules, .PHONY); where that is not enough the program is "" and a
// person has to name it.
func makeProgram(fsys fs.FS) (program, check string) {
	var text []byte
	for _, name := range []string{"GNUmakefile", "makefile", "Makefile"} { // make's own order
		if b, err := fs.ReadFile(fsys, name); err == nil {
			text = b
			break
		}
	}
	vars, rules := map[string]string{}, map[string][]string{}
	expand := func(s string) string {
		return makeUse.ReplaceAllStringFunc(s, func(use string) string { return vars[makeUse.FindStringSubmatch(use)[1]] })
	}
	goal := ""
	for line := range strings.Lines(strings.ReplaceAll(string(text), "\\\n", " ")) {
		line = strings.TrimRight(line, "\r\n")
		if m := makeVariable.FindStringSubmatch(line); m != nil {
			vars[m[1]] = strings.TrimSpace(expand(m[2]))
		} else if m := makeRule.FindStringSubmatch(line); m != nil {
			for _, t := range strings.Fields(expand(m[1])) {
				rules[t] = append(rules[t], strings.Fields(expand(m[2]))...)
				if goal == "" && !strings.HasPrefix(t, ".") && !strings.Contains(t, "%") {
					goal = t
				}
			}
		}
	}
	if _, ok := rules["test"]; !ok && rules["check"] != nil {
		check = "check"
	} else {
		check = "test"
	}
	phony := func(t string) bool {
		return slices.Contains(rules[".PHONY"], t) || slices.Contains([]string{"all", "default", "build"}, t)
	}
	for range 4 { // all: build, build: program
		if goal == "" || !phony(goal) {
			break
		}
		next := ""
		if deps := rules[goal]; len(deps) > 0 {
			next = deps[0]
		}
		goal = next
	}
	if phony(goal) || !plain.MatchString(goal) || path.Clean(goal) != goal {
		goal = ""
	}
	return goal, check
}
