// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// Origin is where a file that a build read came from.
type Origin string

// The origins. Whatever has none of the others is unexplained.
const (
	OriginSource      Origin = "source"      // the exported tree, byte for byte
	OriginDependency  Origin = "dependency"  // a package that was fetched and verified before
	OriginToolchain   Origin = "toolchain"   // a package of the platform
	OriginCache       Origin = "cache"       // the read-only cache that the control plane made
	OriginSandbox     Origin = "sandbox"     // written by the control plane for every sandbox
	OriginKernel      Origin = "kernel"      // /proc and devices: no content of its own
	OriginBuild       Origin = "build"       // written by the build itself before
	OriginUnexplained Origin = "unexplained" //
)

// Content says how the bytes of a file of the platform stand to what its package
// declares.
type Content string

// The words for it. A file that is altered is explained by no package.
const (
	ContentDeclared   Content = "declared"
	ContentUndeclared Content = "undeclared" // the package declares no digest of it
	ContentAltered    Content = "altered"
)

// Material is one version of a file that a build read, and where it came from.
type Material struct {
	Read
	Origin  Origin  `json:"origin"`
	Package string  `json:"package,omitempty"` // purl, of dependencies and toolchain
	Content Content `json:"content,omitempty"` // of files of the toolchain
	// Code says that it is compiled code of the platform: a program, a library, or
	// what a linker puts into one. What can't be looked at is taken for it.
	Code bool `json:"code,omitempty"`
	// Why says of an altered file what differs.
	Why string `json:"-"`
	// Cached says of an unexplained file that it lay in the control plane's cache.
	Cached bool `json:"-"`
}

// Inspection is what is known of the bytes of one file of the platform.
type Inspection struct {
	Content Content
	Package string // purl, where it is another than the owner of the name
	Code    bool
	Why     string
}

// Place is one part of a sandbox's file system whose content was there before
// the build.
type Place struct {
	Prefix string // absolute path of a directory or file inside
	Origin Origin
	// Owner names the package that has the file, by its path below Prefix; ok is
	// false when none has. Nil: there are no packages, and every file counts.
	Owner func(path string) (purl string, ok bool)
	// Holds says whether the file held this content when the build began ("" for
	// what has none); nil: its name is all that is known.
	Holds func(path string, d hallmark.Digest) bool
	// Inspect looks at the bytes that were read; nil: they are not looked at.
	Inspect func(path string, d hallmark.Digest) (Inspection, error)
}

// Origins say where files can come from.
type Origins struct {
	Workspace string                     // where the source is seen; nothing else was there
	Source    map[string]hallmark.Digest // of every regular file, by path below Workspace
	Places    []Place                    // the longest prefix counts
	// Empty are directories that held nothing when the build began: what is read
	// there was made by the build.
	Empty []string
	// Known says where a content came from that the control plane put into the room
	// itself, or that an earlier one left; nil knows nothing.
	Known func(d hallmark.Digest) (o Origin, purl string, ok bool)
}

// Explain finds the origin of everything that was read.
func (o Origins) Explain(s *Summary) ([]Material, error) {
	source := map[hallmark.Digest]bool{}
	for _, d := range o.Source {
		source[d] = true
	}
	var out []Material
	for _, r := range s.Reads() {
		m := Material{Read: *r}
		place, rest := (*Place)(nil), ""
		m.Origin, m.Package, place, rest = o.of(r, source)
		if err := m.inspect(place, rest); err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// inspect looks at what was read of the platform, as far as it is that. The bytes
// of a package are those that it declares; of what has other bytes, the name alone
// is the package's, and that explains nothing.
func (m *Material) inspect(place *Place, rest string) error {
	m.Cached = m.Origin == OriginUnexplained && place != nil && place.Origin == OriginCache
	if m.Digest == "" || place == nil || place.Inspect == nil || m.Origin != OriginToolchain && m.Origin != OriginUnexplained {
		return nil
	}
	got, err := place.Inspect(rest, m.Digest)
	if err != nil {
		return fmt.Errorf("comparing %q with what its package declares: %w", string(m.Path), err)
	}
	m.Code = got.Code
	if m.Origin != OriginToolchain {
		return nil
	}
	m.Content, m.Why = got.Content, got.Why
	if got.Package != "" {
		m.Package = got.Package
	}
	if m.Content == ContentAltered {
		m.Origin = OriginUnexplained
	}
	return nil
}

func (o Origins) of(r *Read, source map[hallmark.Digest]bool) (Origin, string, *Place, string) {
	rel, inside := "", false
	if o.Workspace != "" {
		rel, inside = below(string(r.Path), o.Workspace)
	}
	_, exported := o.Source[rel]
	if inside && r.Digest != "" && (o.Source[rel] == r.Digest || !exported && source[r.Digest]) {
		return OriginSource, "", nil, "" // under its own name, or one that the build gave it
	}
	var best *Place
	rest := ""
	for i, p := range o.Places {
		if rel, ok := below(string(r.Path), p.Prefix); ok && (best == nil || len(p.Prefix) > len(best.Prefix)) {
			best, rest = &o.Places[i], rel
		}
	}
	if best != nil && o.madeInside(string(r.Path), len(best.Prefix)) {
		best = nil // the room has a file system of its own over that part
	}
	if best != nil && !(best.Origin == OriginCache && r.after) && (best.Holds == nil || best.Holds(rest, r.Digest)) {
		if best.Owner == nil {
			return best.Origin, "", best, rest
		}
		if purl, ok := best.Owner(rest); ok {
			return best.Origin, purl, best, rest
		}
	}
	if o.Known != nil {
		if origin, purl, ok := o.Known(r.Digest); ok {
			return origin, purl, nil, ""
		}
	}
	// Where nothing was before, everything is the build's. Elsewhere content is its
	// own only if it was seen to write it before.
	for _, dir := range o.Empty {
		if _, ok := below(string(r.Path), dir); ok && (best == nil || len(best.Prefix) <= len(dir)) {
			return OriginBuild, "", nil, ""
		}
	}
	made := inside && !exported && (best == nil || len(best.Prefix) < len(o.Workspace))
	if r.after || made {
		return OriginBuild, "", nil, ""
	}
	return OriginUnexplained, "", best, rest
}

// madeInside reports whether a file lies in the workspace or in a directory that
// was empty, deeper than a place whose prefix is so long.
func (o Origins) madeInside(path string, than int) bool {
	for _, dir := range append(slices.Clone(o.Empty), o.Workspace) {
		if _, ok := below(path, dir); ok && dir != "" && len(dir) > than {
			return true
		}
	}
	return false
}

// below returns path relative to prefix, "" for prefix itself.
func below(path, prefix string) (string, bool) {
	if path == prefix {
		return "", true
	}
	return strings.CutPrefix(path, strings.TrimSuffix(prefix, "/")+"/")
}

// Group is what the files of one origin and package come to.
type Group struct {
	Origin  Origin          `json:"origin"`
	Package string          `json:"package,omitempty"`
	Files   int             `json:"files"`
	Bytes   int64           `json:"bytes"`
	Digest  hallmark.Digest `json:"digest"` // of the group's lines of the materials list
	// Undeclared is how many of them the package declares no digest of.
	Undeclared int `json:"undeclared,omitempty"`
}

// Materials is the list of everything that a build read.
type Materials struct {
	List        []byte // JSON lines of Material, by path and digest
	Digest      hallmark.Digest
	Files       int
	Groups      []Group // by origin and package; without the build's own files
	Unexplained []Material
}

// Collate writes the list of materials. What the build wrote itself is no
// material and is left out.
func Collate(all []Material) (Materials, error) {
	out := Materials{}
	type key struct {
		origin Origin
		purl   string
	}
	groups, lines := map[key]*Group{}, map[key]*bytes.Buffer{}
	var list bytes.Buffer
	for _, m := range all {
		if m.Origin == OriginBuild {
			continue
		}
		line, err := jsonLine(m)
		if err != nil {
			return out, err
		}
		list.Write(line)
		out.Files++
		k := key{m.Origin, m.Package}
		if groups[k] == nil {
			groups[k], lines[k] = &Group{Origin: m.Origin, Package: m.Package}, &bytes.Buffer{}
		}
		groups[k].Files++
		groups[k].Bytes += m.Size
		if m.Content == ContentUndeclared {
			groups[k].Undeclared++
		}
		lines[k].Write(line)
		if m.Origin == OriginUnexplained {
			out.Unexplained = append(out.Unexplained, m)
		}
	}
	for k, g := range groups {
		g.Digest = hallmark.DigestOf(lines[k].Bytes())
	}
	out.List, out.Digest = list.Bytes(), hallmark.DigestOf(list.Bytes())
	for _, k := range slices.SortedFunc(maps.Keys(groups), func(a, b key) int {
		return cmp.Or(cmp.Compare(a.origin, b.origin), cmp.Compare(a.purl, b.purl))
	}) {
		out.Groups = append(out.Groups, *groups[k])
	}
	return out, nil
}

// Product is one version of a file that a build wrote.
type Product struct {
	Write
	Left bool `json:"left"` // it was there when the build had ended
}

// Products writes the list of everything that a build wrote, JSON lines by path
// and digest: intermediate files too. left holds what was in the workspace at the
// end, by absolute path inside. A file that is left and whose content no process
// was seen to write or read is untraced.
func Products(s *Summary, left map[Raw]hallmark.Digest) (list []byte, count int, untraced []Raw, err error) {
	var out bytes.Buffer
	for _, w := range s.Writes() {
		line, err := jsonLine(Product{Write: *w, Left: left[w.Path] == w.Digest})
		if err != nil {
			return nil, 0, nil, err
		}
		out.Write(line)
		count++
	}
	known := map[hallmark.Digest]bool{}
	for _, r := range s.Reads() {
		known[r.Digest] = true
	}
	for p, d := range left {
		if !s.Wrote(d) && !known[d] {
			untraced = append(untraced, p)
		}
	}
	slices.Sort(untraced)
	return out.Bytes(), count, untraced, nil
}

func jsonLine(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("writing a list: %w", err)
	}
	return b.Bytes(), nil
}
