// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sast

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"go/types"
	"maps"
	"os"
	"slices"

	"golang.org/x/tools/go/packages"
)

// load reads the packages of a module with their syntax and types. What they
// import is read from source too, and of that the declarations alone: to have its
// types from the Go command instead means to compile every package of the
// standard library that is used, in a sandbox that has none of them yet, which
// took ten times as long.
//
// A package that could not be understood has errors; it and what imports it are
// ill-typed.
func load(dir string) ([]*packages.Package, error) {
	fset := token.NewFileSet()
	pkgs, err := packages.Load(&packages.Config{
		Mode: packages.NeedName | packages.NeedFiles | packages.NeedCompiledGoFiles | packages.NeedImports | packages.NeedDeps | packages.NeedTypesSizes | packages.NeedModule,
		Dir:  dir, Fset: fset,
		Env: append(os.Environ(), "CGO_ENABLED=0", "GOTOOLCHAIN=local", "GOFLAGS=-mod=readonly", "GOPROXY=off", "GOENV=off", "GOTELEMETRY=off"),
	}, "./...")
	if err != nil {
		return nil, err
	}
	whole := map[*packages.Package]bool{}
	for _, p := range pkgs {
		whole[p] = true
	}
	// Visited after what they import.
	packages.Visit(pkgs, nil, func(p *packages.Package) { understand(fset, p, whole[p]) })
	return pkgs, nil
}

// understand parses a package and finds its types; those of its imports are known.
func understand(fset *token.FileSet, p *packages.Package, whole bool) {
	p.Fset = fset
	if p.PkgPath == "unsafe" {
		p.Types = types.Unsafe
		return
	}
	wrong := func(kind packages.ErrorKind, pos, msg string) {
		p.Errors = append(p.Errors, packages.Error{Pos: pos, Msg: msg, Kind: kind})
	}
	mode := parser.AllErrors | parser.ParseComments
	if !whole {
		mode = parser.AllErrors | parser.SkipObjectResolution
	}
	var files []*ast.File
	for _, name := range p.CompiledGoFiles {
		f, err := parser.ParseFile(fset, name, nil, mode)
		var list scanner.ErrorList
		switch {
		case errors.As(err, &list):
			for _, e := range list {
				wrong(packages.ParseError, e.Pos.String(), e.Msg)
			}
		case err != nil:
			wrong(packages.ParseError, name+":1", err.Error())
		}
		if f != nil {
			files = append(files, f)
		}
	}
	conf := &types.Config{
		Importer: imports{p}, IgnoreFuncBodies: !whole, Sizes: p.TypesSizes,
		Error: func(err error) {
			pos := "-"
			var e types.Error
			if errors.As(err, &e) {
				pos, err = fset.Position(e.Pos).String(), errors.New(e.Msg)
			}
			wrong(packages.TypeError, pos, err.Error())
		},
	}
	if p.Module != nil && p.Module.GoVersion != "" {
		conf.GoVersion = "go" + p.Module.GoVersion
	}
	var info *types.Info
	if whole {
		info = &types.Info{
			Types: map[ast.Expr]types.TypeAndValue{}, Defs: map[*ast.Ident]types.Object{}, Uses: map[*ast.Ident]types.Object{},
			Implicits: map[ast.Node]types.Object{}, Instances: map[*ast.Ident]types.Instance{}, Scopes: map[ast.Node]*types.Scope{},
			Selections: map[*ast.SelectorExpr]*types.Selection{}, FileVersions: map[*ast.File]string{},
		}
		p.Syntax, p.TypesInfo = files, info
	}
	p.Types = types.NewPackage(p.PkgPath, p.Name)
	if err := types.NewChecker(conf, fset, p.Types, info).Files(files); err != nil && len(p.Errors) == 0 {
		wrong(packages.TypeError, "-", err.Error())
	}
	p.IllTyped = len(p.Errors) > 0 || illTyped(p) != nil
}

// illTyped is a package that p imports and that could not be understood, or nil.
func illTyped(p *packages.Package) *packages.Package {
	for _, path := range slices.Sorted(maps.Keys(p.Imports)) {
		if i := p.Imports[path]; i.IllTyped {
			return i
		}
	}
	return nil
}

// because says what makes a package without errors of its own ill-typed.
func because(p *packages.Package) string {
	for i := illTyped(p); i != nil; i = illTyped(i) {
		if len(i.Errors) > 0 {
			return fmt.Sprintf(": it imports %s: %s", i.PkgPath, firstLine(i.Errors[0].Msg))
		}
	}
	return ""
}

// imports finds what a package imports, by the paths in its files.
type imports struct{ of *packages.Package }

// Import implements types.Importer.
func (i imports) Import(path string) (*types.Package, error) {
	if path == "unsafe" {
		return types.Unsafe, nil
	}
	p := i.of.Imports[path]
	if p == nil || p.Types == nil {
		return nil, fmt.Errorf("the Go command did not say where %s is", path)
	}
	if p.Name == "" && len(p.Errors) > 0 {
		return nil, errors.New(p.Errors[0].Msg)
	}
	return p.Types, nil
}
