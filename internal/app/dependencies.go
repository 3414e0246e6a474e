// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/modfile"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
)

// fetchDependencies knows so far only revisions that need nothing fetched: it
// refuses the others instead of building without what they name.
func fetchDependencies(_ context.Context, _ *room, dir, _ string) (pipeline.Dependencies, error) {
	none := pipeline.Dependencies{}
	needs := ""
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == "vendor" || d.Name() == "node_modules") {
			return fs.SkipDir
		}
		if d.Type().IsRegular() && needsFetching(p) && needs == "" {
			needs, _ = filepath.Rel(dir, p)
		}
		return nil
	})
	if err != nil {
		return none, err
	}
	if needs != "" {
		return none, hallmark.WithHint(
			hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeDependencyUnavailable, "%s names dependencies, and this version can't fetch any yet", needs),
			"build a revision without third-party dependencies")
	}
	return none, nil
}

func needsFetching(p string) bool {
	b, err := os.ReadFile(p)
	if err != nil {
		return true
	}
	switch filepath.Base(p) {
	case "go.mod":
		f, err := modfile.ParseLax(p, b, nil)
		return err != nil || len(f.Require) > 0
	case "package-lock.json":
		var l struct {
			Packages map[string]json.RawMessage `json:"packages"`
		}
		if json.Unmarshal(b, &l) != nil {
			return true
		}
		for name := range l.Packages {
			if strings.Contains(name, "node_modules/") {
				return true
			}
		}
	}
	return false
}
