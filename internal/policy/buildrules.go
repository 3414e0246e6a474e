// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

// BuildRules are the build policy (SP 800-204D §5.1.1, task 1): who may have what
// built, from which refs, where, with which tools, and which parameters there
// are. What no rule permits is not built.
type BuildRules struct {
	Inventories map[string]hallmark.Digest `json:"inventories" yaml:"inventories"` // of tools, by name: digests of files of hallmark policy tools
	Rules       []BuildRule                `json:"rules" yaml:"rules"`
}

// BuildRule permits the builds that every one of its fields fits.
type BuildRule struct {
	Name         string                    `json:"name" yaml:"name"`
	Repositories []string                  `json:"repositories" yaml:"repositories"` // patterns of URIs
	Refs         []string                  `json:"refs" yaml:"refs"`                 // patterns; only ** fits a commit that was named without a ref
	Requesters   []string                  `json:"requesters" yaml:"requesters"`
	Platforms    []BuildPlatform           `json:"platforms" yaml:"platforms"`
	Tools        BuildTools                `json:"tools" yaml:"tools"`
	Parameters   map[string]BuildParameter `json:"parameters" yaml:"parameters"` // that may be given, by name
}

// BuildPlatform is where a build may happen.
type BuildPlatform struct {
	Builder string `json:"builder" yaml:"builder"` // its id
	Image   string `json:"image" yaml:"image"`     // digest of the root file system's image; host: the machine's own
}

// BuildTools are the programs that a build may run.
type BuildTools struct {
	// Inventory names the approved inventory: path and digest of each program.
	// "recorded": programs of the platform are only recorded.
	Inventory string `json:"inventory" yaml:"inventory"`
	// Digests are of programs that may run from any path, beside the inventory.
	Digests []hallmark.Digest `json:"digests" yaml:"digests"`
	// BuiltPrograms says whether a build may run what it wrote itself: allow or
	// deny.
	BuiltPrograms string `json:"builtPrograms" yaml:"builtPrograms"`
}

// BuildParameter is what one external parameter may be: one of Values, or what
// the whole of Pattern (RE2) fits. Exactly one of them is set.
type BuildParameter struct {
	Values  []string `json:"values,omitempty" yaml:"values,omitempty"`
	Pattern string   `json:"pattern,omitempty" yaml:"pattern,omitempty"`
}

// The words of build rules.
const (
	ToolsRecorded     = "recorded"
	ImageHost         = "host"
	RequesterOperator = "operator" // who holds the keys of the home
	RequesterGranted  = "granted"  // whoever a server let ask by a grant in force
	anything          = "**"
)

// BuildRequest is one build that somebody asks for, or that was made.
type BuildRequest struct {
	Repository, Ref string
	Requesters      []string // every principal that the requester was shown to be
	Builder, Image  string
	Parameters      map[string]string // that were given
}

// FirstBuildRules are the rules of a new home: whoever holds its keys, or may ask
// its server, builds these repositories (patterns; none means any) on this machine,
// without parameters.
func FirstBuildRules(repositories []string) *BuildRules {
	if len(repositories) == 0 {
		repositories = []string{anything}
	}
	return &BuildRules{
		Inventories: map[string]hallmark.Digest{},
		Rules: []BuildRule{{
			Name: "first", Repositories: repositories, Refs: []string{anything}, Requesters: []string{RequesterOperator, RequesterGranted},
			Platforms:  []BuildPlatform{{Builder: intoto.BuilderLocal, Image: ImageHost}, {Builder: intoto.BuilderServer, Image: ImageHost}},
			Tools:      BuildTools{Inventory: ToolsRecorded, Digests: []hallmark.Digest{}, BuiltPrograms: "allow"},
			Parameters: map[string]BuildParameter{},
		}},
	}
}

// Limits on build rules.
const (
	maxBuildRules = 200
	maxEntries    = 500 // of one list
	maxPattern    = 2000
	maxValue      = 4096
)

// goType is how the YAML library names what it was reading into.
var goType = regexp.MustCompile(` (in|into) (type )?\*?(policy|hallmark|map)[.\[][A-Za-z.\[\]]+`)

// ParseBuildRules reads a file of build rules, YAML or JSON, strictly. Errors name
// the file and the line or the field. Lists and maps that are left out are empty,
// which check refuses where that would mean nothing. The digests of inventories
// stand in the file or are given, which wins.
func ParseBuildRules(name string, data []byte, inventories map[string]hallmark.Digest) (*BuildRules, error) {
	bad := func(format string, args ...any) error {
		return hallmark.WithHint(hallmark.Errorf(hallmark.KindInvalid, name+": "+format, args...), "hallmark policy show --build prints rules in the right form")
	}
	if len(data) > 1<<20 {
		return nil, bad("%d bytes, more than %d", len(data), 1<<20)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	var b BuildRules
	err := dec.Decode(&b)
	if errors.Is(err, io.EOF) {
		return nil, bad("the file is empty")
	}
	if err != nil {
		text := strings.ReplaceAll(strings.TrimPrefix(err.Error(), "yaml: "), "unmarshal errors:\n  ", "")
		return nil, bad("%s", strings.ReplaceAll(goType.ReplaceAllString(text, ""), "\n  ", "; "))
	}
	if err := dec.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return nil, bad("more than one YAML document")
	}
	b.whole()
	maps.Copy(b.Inventories, inventories)
	if err := b.check(); err != nil {
		return nil, bad("%s", err)
	}
	return &b, nil
}

// whole makes lists and maps that were left out empty ones, as policy.json has
// them.
func (b *BuildRules) whole() {
	if b.Inventories == nil {
		b.Inventories = map[string]hallmark.Digest{}
	}
	for i := range b.Rules {
		r := &b.Rules[i]
		if r.Tools.Digests == nil {
			r.Tools.Digests = []hallmark.Digest{}
		}
		if r.Parameters == nil {
			r.Parameters = map[string]BuildParameter{}
		}
		for name, p := range r.Parameters {
			if len(p.Values) == 0 {
				p.Values = nil
			}
			r.Parameters[name] = p
		}
	}
}

// YAML writes rules as people edit them.
func (b *BuildRules) YAML() ([]byte, error) {
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	err := enc.Encode(b)
	return out.Bytes(), errors.Join(err, enc.Close())
}

var (
	ruleName      = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	parameterName = regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,63}$`)
)

func (b *BuildRules) check() error {
	if len(b.Rules) == 0 || len(b.Rules) > maxBuildRules {
		return fmt.Errorf("rules: want 1 to %d", maxBuildRules)
	}
	for _, name := range slices.Sorted(maps.Keys(b.Inventories)) {
		if !ruleName.MatchString(name) || name == ToolsRecorded {
			return fmt.Errorf("inventories: %.80q can't be a name", name)
		}
		if b.Inventories[name].Check() != nil {
			return fmt.Errorf("inventories.%s: want the digest of a file of hallmark policy tools", name)
		}
	}
	seen := map[string]bool{}
	for i, r := range b.Rules {
		if !ruleName.MatchString(r.Name) || seen[r.Name] {
			return fmt.Errorf("rules[%d].name: %.80q: want letters, digits, dot, hyphen and underscore, each name once", i, r.Name)
		}
		seen[r.Name] = true
		if err := r.check(b.Inventories); err != nil {
			return fmt.Errorf("rules[%d] (%s): %w", i, r.Name, err)
		}
	}
	return nil
}

func (r BuildRule) check(inventories map[string]hallmark.Digest) error {
	for _, l := range []struct {
		field string
		list  []string
		check func(string) error
	}{{"repositories", r.Repositories, checkGlob}, {"refs", r.Refs, checkGlob}, {"requesters", r.Requesters, checkRequester}} {
		if len(l.list) == 0 || len(l.list) > maxEntries {
			return fmt.Errorf("%s: want a list of 1 to %d", l.field, maxEntries)
		}
		for i, s := range l.list {
			if err := l.check(s); err != nil {
				return fmt.Errorf("%s[%d]: %.120q: %w", l.field, i, s, err)
			}
			if slices.Contains(l.list[:i], s) {
				return fmt.Errorf("%s[%d]: %.120q stands twice", l.field, i, s)
			}
		}
	}
	if len(r.Platforms) == 0 || len(r.Platforms) > maxEntries {
		return fmt.Errorf("platforms: want a list of 1 to %d", maxEntries)
	}
	for i, p := range r.Platforms {
		if p.Builder == "" || strings.ContainsAny(p.Builder, " ,*\n") {
			return fmt.Errorf("platforms[%d].builder: want the id of a builder, such as %s", i, intoto.BuilderLocal)
		}
		if p.Image != ImageHost && hallmark.Digest(p.Image).Check() != nil {
			return fmt.Errorf("platforms[%d].image: %.80q: want %s, or sha256:… of an image", i, p.Image, ImageHost)
		}
	}
	if err := r.Tools.check(inventories); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(r.Parameters)) {
		if !parameterName.MatchString(name) {
			return fmt.Errorf("parameters: %.80q: want capitals, digits and underscore", name)
		}
		if err := r.Parameters[name].check(); err != nil {
			return fmt.Errorf("parameters.%s: %w", name, err)
		}
	}
	return nil
}

func (t BuildTools) check(inventories map[string]hallmark.Digest) error {
	if _, ok := inventories[t.Inventory]; !ok && t.Inventory != ToolsRecorded {
		return fmt.Errorf("tools.inventory: %.80q: want a name of inventories, or %s", t.Inventory, ToolsRecorded)
	}
	if len(t.Digests) > maxEntries {
		return fmt.Errorf("tools.digests: more than %d", maxEntries)
	}
	if t.Inventory == ToolsRecorded && len(t.Digests) > 0 {
		return fmt.Errorf("tools.digests: these add to an inventory; with %s every program may run", ToolsRecorded)
	}
	for i, d := range t.Digests {
		if d.Check() != nil || slices.Contains(t.Digests[:i], d) {
			return fmt.Errorf("tools.digests[%d]: %.80q: want sha256:…, each once", i, d)
		}
	}
	if t.BuiltPrograms != "allow" && t.BuiltPrograms != "deny" {
		return fmt.Errorf("tools.builtPrograms: %.40q: want allow or deny", t.BuiltPrograms)
	}
	return nil
}

func (p BuildParameter) check() error {
	if (len(p.Values) > 0) == (p.Pattern != "") || len(p.Values) > maxEntries {
		return errors.New("want values, a list that is not empty, or a pattern")
	}
	for i, v := range p.Values {
		if err := CheckParameterValue(v); err != nil {
			return fmt.Errorf("values[%d]: %w", i, err)
		}
		if slices.Contains(p.Values[:i], v) {
			return fmt.Errorf("values[%d]: %.80q stands twice", i, v)
		}
	}
	if p.Pattern != "" {
		if _, err := wholePattern(p.Pattern); err != nil {
			return fmt.Errorf("pattern: %w", err)
		}
	}
	return nil
}

// CheckParameterValue refuses what no parameter can be.
func CheckParameterValue(v string) error {
	if len(v) > maxValue || !utf8.ValidString(v) || strings.ContainsFunc(v, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		return fmt.Errorf("want up to %d bytes of UTF-8 without control characters", maxValue)
	}
	return nil
}

func wholePattern(p string) (*regexp.Regexp, error) {
	if len(p) > maxPattern {
		return nil, fmt.Errorf("more than %d bytes", maxPattern)
	}
	return regexp.Compile(`\A(?:` + p + `)\z`)
}

func (p BuildParameter) fits(v string) bool {
	if CheckParameterValue(v) != nil {
		return false
	}
	if p.Pattern == "" {
		return slices.Contains(p.Values, v)
	}
	re, err := wholePattern(p.Pattern)
	return err == nil && re.MatchString(v)
}

func checkRequester(s string) error {
	if s == RequesterOperator || s == RequesterGranted {
		return nil
	}
	kind, who, _ := strings.Cut(s, ":")
	_, err := strconv.ParseUint(who, 10, 32)
	if kind == "uid" && err == nil && (who == "0" || who[0] != '0') || slices.Contains(signedIn(), kind) && who != "" && !strings.ContainsAny(who, " ,*\n") {
		return nil
	}
	return fmt.Errorf("want %s, %s, uid:NUMBER or ssh:PRINCIPAL", RequesterOperator, RequesterGranted)
}

// signedIn are the ways in which a server knows somebody; token is one that was
// handed out.
func signedIn() []string { return []string{"ssh", "token", "oidc", "spiffe"} }

// Requesters are the principals of somebody whom a server let ask for a build.
func Requesters(method, name string) []string {
	if !slices.Contains(signedIn(), method) {
		method = "token"
	}
	return []string{RequesterGranted, method + ":" + name}
}

func checkGlob(s string) error {
	if s == "" || len(s) > maxPattern || strings.ContainsFunc(s, func(r rune) bool { return r <= 0x20 || r == 0x7f }) || strings.Contains(s, "***") {
		return errors.New("want a pattern: * stands for any text without a slash, ** for any text")
	}
	return nil
}

// glob reports whether a pattern fits the whole of s. Nothing but ** fits "".
func glob(pattern, s string) bool {
	if s == "" {
		return pattern == anything
	}
	var re strings.Builder
	re.WriteString(`\A(?s:`)
	for len(pattern) > 0 {
		switch {
		case strings.HasPrefix(pattern, anything):
			re.WriteString(`.*`)
			pattern = pattern[2:]
		case pattern[0] == '*':
			re.WriteString(`[^/]*`)
			pattern = pattern[1:]
		default:
			n := strings.IndexByte(pattern, '*')
			if n < 0 {
				n = len(pattern)
			}
			re.WriteString(regexp.QuoteMeta(pattern[:n]))
			pattern = pattern[n:]
		}
	}
	re.WriteString(`)\z`)
	m, err := regexp.Compile(re.String())
	return err == nil && m.MatchString(s)
}
