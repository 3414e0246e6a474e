// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// differs A B FIELD… decodes two provenance bundles and fails unless they differ
// in exactly these fields, written as paths whose list indices are left out.
func cmdDiffers(ts *testscript.TestScript, _ bool, args []string) {
	read := func(name string) map[string]string {
		b, err := os.ReadFile(ts.MkAbs(name))
		ts.Check(err)
		var statement any
		ts.Check(json.Unmarshal(payloadOf(ts, string(b)), &statement))
		out := map[string]string{}
		flatten("", statement, out)
		return out
	}
	a, b := read(args[0]), read(args[1])
	differing := map[string]bool{}
	for _, at := range slices.Collect(maps.Keys(a)) {
		if a[at] != b[at] {
			differing[withoutIndices(at)] = true
		}
	}
	for at := range b {
		if _, ok := a[at]; !ok {
			differing[withoutIndices(at)] = true
		}
	}
	if got, want := slices.Sorted(maps.Keys(differing)), slices.Sorted(slices.Values(args[2:])); !slices.Equal(got, want) {
		ts.Fatalf("they differ in %q, want %q", got, want)
	}
}

func flatten(at string, v any, out map[string]string) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			flatten(at+"/"+k, e, out)
		}
	case []any:
		for i, e := range v {
			flatten(fmt.Sprintf("%s/%d", at, i), e, out)
		}
	default:
		out[at] = fmt.Sprint(v)
	}
}

func withoutIndices(at string) string {
	var out []string
	for p := range strings.SplitSeq(at, "/") {
		if strings.Trim(p, "0123456789") != "" {
			out = append(out, p)
		}
	}
	return strings.Join(out, ".")
}
