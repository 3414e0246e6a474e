// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/hallmark-sc/hallmark"
)

// Parameter is an external parameter that a pipeline declares. Every step has it
// as an environment variable; nothing is ever put into a script.
type Parameter struct {
	Name    string
	Default *string  // nil: it must be given
	Values  []string // it is one of these,
	Pattern string   // or the whole of this RE2 expression fits it
}

const (
	maxParameters = 50
	maxValue      = 4096 // bytes
)

var parameterName = regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,63}$`)

// steering are beginnings of names that change how programs are loaded, found or
// compiled: as a parameter they would do more than the pipeline says.
func steering() []string {
	return []string{"LD_", "GO", "CGO_", "GCC_", "COMPILER_PATH", "LIBRARY_PATH", "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "NODE_", "NPM_", "PYTHON", "PERL", "RUBY", "BASH_", "ENV", "IFS", "SHELL", "GIT_", "MAKE", "GNUMAKE", "JAVA_", "HALLMARK"}
}

func reservedName(name string) bool {
	for _, kv := range Environment("", time.Unix(0, 0), nil) {
		if k, _, _ := strings.Cut(kv, "="); k == name {
			return true
		}
	}
	return slices.ContainsFunc(steering(), func(p string) bool { return strings.HasPrefix(name, p) })
}

// parameters reads build.parameters, which may be absent.
func (p *parser) parameters(n *yaml.Node) []Parameter {
	if n == nil {
		return nil
	}
	fields := p.fields(n, "build.parameters")
	if len(fields) == 0 || len(fields) > maxParameters {
		p.fail(n, hallmark.CodePipelineInvalid, "build.parameters: want 1 to %d", maxParameters)
	}
	var out []Parameter
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		v := fields[name]
		if !parameterName.MatchString(name) {
			p.fail(v, hallmark.CodePipelineInvalid, "build.parameters: %.80q: want capitals, digits and underscore", name)
		} else if reservedName(name) {
			p.fail(v, hallmark.CodePipelineInvalid, "build.parameters: %s steers the platform or its tools and can't be a parameter", name)
		}
		out = append(out, p.parameter(name, v))
	}
	return out
}

func (p *parser) parameter(name string, n *yaml.Node) Parameter {
	out := Parameter{Name: name}
	at := "build.parameters." + name
	f := p.fields(n, at, "default", "values", "pattern")
	if (f["values"] == nil) == (f["pattern"] == nil) {
		p.fail(n, hallmark.CodePipelineInvalid, "%s: want one of values and pattern", at)
		return out
	}
	if f["pattern"] != nil {
		out.Pattern = p.text(f["pattern"], at+".pattern")
		if _, err := wholePattern(out.Pattern); err != nil || out.Pattern == "" {
			p.fail(f["pattern"], hallmark.CodePipelineInvalid, "%s.pattern: want a regular expression (RE2): %v", at, err)
		}
	} else {
		for _, v := range p.list(f["values"], at+".values") {
			out.Values = append(out.Values, p.text(v, at+".values"))
		}
	}
	if f["default"] != nil {
		d := p.text(f["default"], at+".default")
		if out.Default = &d; !out.fits(d) {
			p.fail(f["default"], hallmark.CodePipelineInvalid, "%s.default: %.80q is not in the range of the parameter itself", at, d)
		}
	}
	return out
}

// shadowed refuses a step that sets a parameter itself: what was given and
// recorded would not be what it sees.
func (p *parser) shadowed(n *yaml.Node, parameters []Parameter, steps []Step) {
	for _, s := range steps {
		for _, q := range parameters {
			if _, ok := s.Env[q.Name]; ok {
				p.fail(n, hallmark.CodePipelineInvalid, "step %s: env sets the parameter %s", s.Name, q.Name)
			}
		}
	}
}

// fixed refuses a build argument that is a parameter too: what was given and
// recorded would not be what a Dockerfile sees.
func (p *parser) fixed(n *yaml.Node, out *Pipeline) {
	for _, i := range out.Images {
		for _, q := range out.Parameters {
			if i.Dockerfile == nil {
				continue
			}
			if _, ok := i.Dockerfile.Args[q.Name]; ok {
				p.fail(n, hallmark.CodePipelineInvalid, "image %s: args sets the parameter %s", i.Name, q.Name)
			}
		}
	}
}

func wholePattern(s string) (*regexp.Regexp, error) {
	if len(s) > maxValue {
		return nil, fmt.Errorf("more than %d bytes", maxValue)
	}
	return regexp.Compile(`\A(?:` + s + `)\z`)
}

func (q Parameter) fits(v string) bool {
	if len(v) > maxValue || !utf8.ValidString(v) || strings.ContainsFunc(v, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		return false
	}
	if q.Pattern == "" {
		return slices.Contains(q.Values, v)
	}
	re, err := wholePattern(q.Pattern)
	return err == nil && re.MatchString(v)
}

// Resolve returns the value of every declared parameter, given or by default, as
// the steps see them, or what speaks against those that were given.
func (p *Pipeline) Resolve(given map[string]string) (map[string]string, []hallmark.Reason) {
	out := map[string]string{}
	var reasons []hallmark.Reason
	refuse := func(field, fix, format string, args ...any) {
		reasons = append(reasons, hallmark.Reason{Code: hallmark.CodeBuildParameter, Check: "build", Message: fmt.Sprintf(format, args...), Field: field, Fix: fix})
	}
	var declared []string
	for _, q := range p.Parameters {
		declared = append(declared, q.Name)
		v, ok := given[q.Name]
		switch {
		case ok && !q.fits(v):
			want := "/" + q.Pattern + "/"
			if q.Pattern == "" {
				want = strings.Join(q.Values, ", ")
			}
			refuse("build.parameters."+q.Name, "hallmark run --param "+q.Name+"=VALUE with a value that fits", "the parameter %s may not be %.200q; the pipeline says %s", q.Name, v, want)
		case ok:
			out[q.Name] = v
		case q.Default != nil:
			out[q.Name] = *q.Default
		default:
			refuse("build.parameters."+q.Name, "hallmark run --param "+q.Name+"=VALUE", "the parameter %s has no default and was not given", q.Name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !slices.Contains(declared, name) {
			refuse("build.parameters", "leave it out, or declare it in the pipeline", "the pipeline declares no parameter %.80q; it declares %s", name, cmp.Or(strings.Join(declared, ", "), "none"))
		}
	}
	return out, reasons
}
