// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// Starter writes a commented first pipeline definition for the project it finds:
// Go, Node, Python or C with make.
func Starter(fsys fs.FS) ([]byte, error) {
	has := func(name string) bool { _, err := fs.Stat(fsys, name); return err == nil }
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
		target, name := ".", goName(fsys)
		if dirs, err := fs.Glob(fsys, "cmd/*/main.go"); err == nil && len(dirs) > 0 {
			target, name = "./"+path.Dir(dirs[0]), path.Base(path.Dir(dirs[0]))
		}
		return text("Go", fmt.Sprintf("    - run: go build -trimpath -o out/%s %s\n%sgo test ./...\n", name, target, test), "out/"+name), nil
	case has("package.json"):
		return text("Node", "    # Dependencies are installed before, without install scripts.\n    - run: mkdir -p out && npm pack --ignore-scripts --pack-destination out && mv out/*.tgz out/package.tgz\n"+test+"npm test\n", "out/package.tgz"), nil
	case has("pyproject.toml"), has("setup.py"):
		return text("Python", "    - run: mkdir -p out && tar --sort=name --mtime=@$SOURCE_DATE_EPOCH --owner=0 --group=0 -czf out/source.tar.gz --exclude=./out .\n"+test+"python3 -m unittest discover\n", "out/source.tar.gz"), nil
	case has("Makefile"), has("makefile"), has("GNUmakefile"):
		return text("C or make", "    - run: make\n"+test+"make test\n", "CHANGE-ME"), nil
	}
	return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindNotFound, "no go.mod, package.json, pyproject.toml, setup.py or Makefile here"),
		"write .hallmark/pipeline.yaml by hand; hallmark schema pipeline describes it")
}

func goName(fsys fs.FS) string {
	b, err := fs.ReadFile(fsys, "go.mod")
	if err != nil {
		return "app"
	}
	for line := range strings.Lines(string(b)) {
		if m, ok := strings.CutPrefix(line, "module "); ok {
			return path.Base(strings.TrimSpace(m))
		}
	}
	return "app"
}
