// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"maps"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestChanges(t *testing.T) {
	old := Default(Options{IssuedOn: clock, AllowedSigners: "a\nb\nc\n"})
	for _, tc := range []struct {
		name string
		edit func(*Document)
		want []Change
	}{
		{"nothing", func(*Document) {}, nil},
		{"version and time", func(d *Document) { d.Version, d.Previous, d.IssuedOn = 2, "sha256:x", clock.AddDate(1, 0, 0) }, nil},
		{"a parameter", func(d *Document) { d.Parameters["build.cpus"] = "4" }, []Change{{"build.cpus", "2", "4"}}},
		{"a parameter gone", func(d *Document) { delete(d.Parameters, "build.cpus") }, []Change{{"build.cpus", "2", ""}}},
		{"signers", func(d *Document) { d.AllowedSigners = "a\nc\nd\n" }, []Change{{"allowedSigners", "b", ""}, {"allowedSigners", "", "d"}}},
		{"order of signers", func(d *Document) { d.AllowedSigners = "b\na\nc\n" }, []Change{{"allowedSigners", "a\nb\nc\n", "b\na\nc\n"}}},
		{"an empty line", func(d *Document) { d.AllowedSigners = "a\n\nb\nc\n" }, []Change{{"allowedSigners", "a\nb\nc\n", "a\n\nb\nc\n"}}},
		{"a signer twice", func(d *Document) { d.AllowedSigners = "a\nb\nc\na\n" }, []Change{{"allowedSigners", "", "a"}}},
		{"OpenPGP keys", func(d *Document) { d.OpenPGPKeys = "x\n" }, []Change{{"openpgpKeys", "", "x"}}},
		{"signers by certificate", func(d *Document) { d.X509Signers = "x\n" }, []Change{{"x509Signers", "", "x"}}},
		{"a rule", func(d *Document) { d.Modules["release.rego"] = "x" },
			[]Change{{"module release.rego", moduleName(old.Modules, "release.rego"), "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}}},
		{"a new module", func(d *Document) { d.Modules["x.rego"] = "x" },
			[]Change{{"module x.rego", "", "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}}},
		{"who may ask", func(d *Document) { d.Build.Rules[0].Requesters = []string{"uid:5"} }, []Change{{"build.rules.first.requesters", "operator, granted", "uid:5"}}},
		{"a rule more", func(d *Document) {
			more := d.Build.Rules[0]
			more.Name, more.Parameters = "more", map[string]BuildParameter{"MODE": {Values: []string{"a, b", "c"}}}
			d.Build.Rules = append(d.Build.Rules, more)
		}, []Change{
			{"build.rules", "first", "first, more"}, {"build.rules.more.parameters.MODE", "", `["a, b" "c"]`},
			{"build.rules.more.platforms", "", "https://hallmark-sc.github.io/builders/local on host, https://hallmark-sc.github.io/builders/server on host"}, {"build.rules.more.refs", "", "**"}, {"build.rules.more.repositories", "", "**"},
			{"build.rules.more.requesters", "", "operator, granted"}, {"build.rules.more.tools.builtPrograms", "", "allow"}, {"build.rules.more.tools.inventory", "", "recorded"},
		}},
		{"no rules", func(d *Document) { d.Build = nil }, []Change{
			{"build.rules", "first", ""}, {"build.rules.first.platforms", "https://hallmark-sc.github.io/builders/local on host, https://hallmark-sc.github.io/builders/server on host", ""}, {"build.rules.first.refs", "**", ""}, {"build.rules.first.repositories", "**", ""},
			{"build.rules.first.requesters", "operator, granted", ""}, {"build.rules.first.tools.builtPrograms", "allow", ""}, {"build.rules.first.tools.inventory", "recorded", ""},
		}},
	} {
		next := old
		next.Build = FirstBuildRules(nil)
		next.Parameters, next.Modules = maps.Clone(old.Parameters), maps.Clone(old.Modules)
		tc.edit(&next)
		if d := cmp.Diff(tc.want, Changes(old, next)); d != "" {
			t.Errorf("%s: %s", tc.name, d)
		}
	}
	if n := len(Changes(Document{}, old)); n != len(Table())+4+7 { // four and the seven of the first build rule
		t.Errorf("the first policy shows %d lines", n)
	}
	// Whoever adds a field to the document must show it to those who sign.
	var fields []string
	for _, f := range reflect.VisibleFields(reflect.TypeFor[Document]()) {
		fields = append(fields, f.Name)
	}
	if want := []string{"APIVersion", "Kind", "Version", "Previous", "IssuedOn", "Parameters", "AllowedSigners", "OpenPGPKeys", "X509Signers", "Modules", "Build", "Access"}; !slices.Equal(fields, want) {
		t.Errorf("Changes knows the fields %v, the document has %v", want, fields)
	}
}
