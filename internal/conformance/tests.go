// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"slices"
	"strings"
)

// TestRef names a test that backs rows. It is either a script of the command,
// cmd/hallmark/testdata/script/NAME.txtar, or a Go test of a package.
type TestRef struct {
	Ref     string   // as rows write it: "script/NAME" or "PACKAGE.TestName"
	Script  string   // NAME of a script, or ""
	Package string   // directory of the Go test's package, from the module root, or ""
	Func    string   // name of the Go test, or ""
	Rows    []string // ids of the rows it backs, in order
}

// Tests lists every test that a row names, sorted, each once.
func Tests() []TestRef {
	rows := map[string][]string{}
	for _, f := range Frameworks() {
		for _, req := range Requirements(f) {
			for _, ref := range req.Tests {
				rows[ref] = append(rows[ref], req.ID)
			}
		}
	}
	refs := make([]TestRef, 0, len(rows))
	for ref, ids := range rows {
		refs = append(refs, parseTestRef(ref, ids))
	}
	slices.SortFunc(refs, func(a, b TestRef) int { return strings.Compare(a.Ref, b.Ref) })
	return refs
}

// parseTestRef splits a reference. One that is neither a script nor a Go test
// has neither, which a test refuses.
func parseTestRef(ref string, rows []string) TestRef {
	t := TestRef{Ref: ref, Rows: rows}
	if name, ok := strings.CutPrefix(ref, "script/"); ok {
		t.Script = name
		return t
	}
	if i := strings.LastIndex(ref, ".Test"); i > 0 {
		t.Package, t.Func = ref[:i], ref[i+1:]
	}
	return t
}
