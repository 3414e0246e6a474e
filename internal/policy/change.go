// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// Change is one way in which a policy differs from another. One of From and To
// is empty where something was added or taken away.
type Change struct {
	Field string `json:"field"`
	From  string `json:"from"`
	To    string `json:"to"`
}

// Changes are all differences between two policies but those that every new
// version has (version, previous, issuedOn) and those that can't be (apiVersion,
// kind), in a stable order. Whoever signs decides on them, so nothing else may
// be left out.
func Changes(from, to Document) []Change {
	var out []Change
	add := func(field, a, b string) {
		if a != b {
			out = append(out, Change{Field: field, From: a, To: b})
		}
	}
	for _, key := range union(from.Parameters, to.Parameters) {
		add(key, from.Parameters[key], to.Parameters[key])
	}
	for _, l := range lineChanges(from.AllowedSigners, to.AllowedSigners) {
		add("allowedSigners", l[0], l[1])
	}
	for _, l := range lineChanges(from.OpenPGPKeys, to.OpenPGPKeys) {
		add(OpenPGPKeys, l[0], l[1])
	}
	for _, l := range lineChanges(from.X509Signers, to.X509Signers) {
		add(X509Signers, l[0], l[1])
	}
	rules, next := from.Build.Fields(), to.Build.Fields()
	for _, field := range union(rules, next) {
		add(field, rules[field], next[field])
	}
	may, will := from.Access.Fields(), to.Access.Fields()
	for _, field := range union(may, will) {
		add(field, may[field], will[field])
	}
	for _, name := range union(from.Modules, to.Modules) {
		if from.Modules[name] == to.Modules[name] {
			continue
		}
		a, b := moduleName(from.Modules, name), moduleName(to.Modules, name)
		add("module "+name, a, b)
	}
	return out
}

// Fields are the rules as whoever signs compares them: every value under the name
// of its rule, so that no line looks the same in one rule as in another.
func (b *BuildRules) Fields() map[string]string {
	out := map[string]string{}
	if b == nil {
		return out
	}
	var names []string
	for name, d := range b.Inventories {
		out["build.inventories."+name] = string(d)
	}
	for _, r := range b.Rules {
		names = append(names, r.Name)
		at := "build.rules." + r.Name + "."
		out[at+"repositories"], out[at+"refs"], out[at+"requesters"] = strings.Join(r.Repositories, ", "), strings.Join(r.Refs, ", "), strings.Join(r.Requesters, ", ")
		var platforms, digests []string
		for _, p := range r.Platforms {
			platforms = append(platforms, p.Builder+" on "+p.Image)
		}
		for _, d := range r.Tools.Digests {
			digests = append(digests, string(d))
		}
		out[at+"platforms"] = strings.Join(platforms, ", ")
		out[at+"tools.inventory"], out[at+"tools.digests"], out[at+"tools.builtPrograms"] = r.Tools.Inventory, strings.Join(digests, ", "), r.Tools.BuiltPrograms
		for name, p := range r.Parameters {
			out[at+"parameters."+name] = fmt.Sprintf("%q", p.Values)
			if p.Pattern != "" {
				out[at+"parameters."+name] = "/" + p.Pattern + "/"
			}
		}
	}
	out["build.rules"] = strings.Join(names, ", ") // their order counts too
	return out
}

// moduleName stands for the text of a module, which is too long to show.
func moduleName(modules map[string]string, name string) string {
	text, ok := modules[name]
	if !ok {
		return ""
	}
	return string(hallmark.DigestOf([]byte(text)))
}

func union(a, b map[string]string) []string {
	all := maps.Clone(a)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, b)
	return slices.Sorted(maps.Keys(all))
}

// lineChanges are the lines that were taken away and those that were added. What
// that does not tell, a new order or empty lines, shows as both whole texts.
func lineChanges(from, to string) [][2]string {
	if from == to {
		return nil
	}
	a, b := strings.Split(from, "\n"), strings.Split(to, "\n")
	gone, kept := without(a, b)
	added, same := without(b, a)
	if !slices.Equal(kept, same) {
		return [][2]string{{from, to}}
	}
	var out [][2]string
	for _, l := range gone {
		out = append(out, [2]string{l, ""})
	}
	for _, l := range added {
		out = append(out, [2]string{"", l})
	}
	if slices.Contains(gone, "") || slices.Contains(added, "") {
		return [][2]string{{from, to}}
	}
	return out
}

// without splits the lines of a into those that b has not and those that it has,
// counting lines that occur more than once.
func without(a, b []string) (rest, common []string) {
	count := map[string]int{}
	for _, l := range b {
		count[l]++
	}
	for _, l := range a {
		if count[l] > 0 {
			count[l]--
			common = append(common, l)
		} else {
			rest = append(rest, l)
		}
	}
	return rest, common
}
