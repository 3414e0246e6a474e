// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sast

import (
	"fmt"
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// leftOut is a finding for what the Go engine did not analyse although it is Go:
// the go command leaves files out by tags, platform and cgo, and a build that
// asks for them builds what nobody looked at. To analyse each module once more
// for each platform and tag would multiply the time, so it is told instead. Tests
// are not part of what is built.
//
// Directories that the go command passes over (vendor, testdata, and names that
// begin with a dot or an underscore) are one finding each.
func leftOut(root *os.Root, t tree, analysed map[string]bool, uncovered hallmark.Severity) []hallmark.Finding {
	var out []hallmark.Finding
	add := func(p string, line int, severity hallmark.Severity, why string) {
		out = append(out, hallmark.Finding{
			Check: "sast", Tool: "hallmark", Rule: string(hallmark.CodeSASTLeftOut), Severity: severity, Confidence: hallmark.ConfidenceHigh,
			Message: "not analysed: " + why, Path: p, Line: line,
			Fingerprint: string(hallmark.DigestOf([]byte("left out " + p))),
		})
	}
	passed := map[string]int{}
	for _, p := range t.files["Go"] {
		if analysed[p] || strings.HasSuffix(p, "_test.go") {
			continue
		}
		if dir := passedOver(p); dir != "" {
			passed[dir]++
			continue
		}
		line, why := reasonLeftOut(root, t, p)
		add(p, line, uncovered, why)
	}
	for _, dir := range slices.Sorted(maps.Keys(passed)) {
		severity, why := min(hallmark.SeverityLow, uncovered), "the go command passes this directory over"
		if path.Base(dir) == "vendor" {
			severity, why = uncovered, "these are copies of dependencies"
		}
		add(dir, 0, severity, fmt.Sprintf("%d Go files: %s", passed[dir], why))
	}
	return out
}

// passedOver is the directory above a file that "./..." does not match, or the
// file itself if the go command ignores its name, "" when there is none.
func passedOver(p string) string {
	parts := strings.Split(p, "/")
	for i, part := range parts {
		last := i == len(parts)-1
		if strings.HasPrefix(part, ".") || strings.HasPrefix(part, "_") || !last && (part == "vendor" || part == "testdata") {
			return path.Join(parts[:i+1]...)
		}
	}
	return ""
}

// reasonLeftOut says why a file is in no package that was loaded.
func reasonLeftOut(root *os.Root, t tree, p string) (line int, why string) {
	if !slices.ContainsFunc(t.modules, func(m string) bool { return m == "." || strings.HasPrefix(p, m+"/") }) {
		return 0, "it is in no module"
	}
	f, err := root.Open(p)
	if err != nil {
		return 0, "it can't be read"
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFileBytes))
	if err != nil {
		return 0, "it can't be read"
	}
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, p, b, parser.ImportsOnly|parser.ParseComments)
	if err != nil {
		return 0, "it can't be parsed"
	}
	if c := buildLine(file); c != nil {
		return fset.Position(c.Pos()).Line, "the build constraint " + plain(strings.TrimPrefix(c.Text, "//")) + " does not hold here"
	}
	for _, i := range file.Imports {
		if i.Path.Value == `"C"` {
			return fset.Position(i.Pos()).Line, "it uses cgo"
		}
	}
	return 0, "by its name it is for another platform, or its package was not loaded"
}

// buildLine finds the build constraint before the package clause.
func buildLine(file *ast.File) *ast.Comment {
	for _, g := range file.Comments {
		for _, c := range g.List {
			if c.Pos() < file.Package && (constraint.IsGoBuild(c.Text) || constraint.IsPlusBuild(c.Text)) {
				return c
			}
		}
	}
	return nil
}
