// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package build is the control plane of builds: it reads the pipeline
// definition, runs its steps through an engine, collects artifacts and judges
// the facts by the build policy (SP 800-204D §5.1.1, SLSA Build track).
//
// Nothing that a step writes is believed: exit, times, arguments, egress and
// digests are what the control plane saw.
package build

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/hallmark-sc/hallmark"
)

// Pipeline is a parsed .hallmark/pipeline.yaml.
type Pipeline struct {
	Steps     []Step
	Artifacts []string // slash-separated paths in the workspace
	Sources   []string // those of Artifacts that are archives of the source

	Toolchain  ImageRef // that steps run with; the zero value is the host's
	Images     []ImageArtifact
	Parameters []Parameter // by name
}

// Step is one command of a pipeline.
type Step struct {
	Name    string
	Run     string
	Env     map[string]string
	Timeout time.Duration // 0: the limit of the policy
	Secrets []string      // names
	// Regenerates are slash-separated paths in the workspace where the commit
	// holds what this step writes.
	Regenerates []string
}

// Test reports whether the step is a test: it is named "test" or begins with
// "test-" or "test ".
func (s Step) Test() bool {
	return s.Name == "test" || strings.HasPrefix(s.Name, "test-") || strings.HasPrefix(s.Name, "test ")
}

//go:embed pipeline.schema.json
var schema []byte

// Schema is the JSON Schema (draft 2020-12) of a pipeline definition.
func Schema() []byte { return bytes.Clone(schema) }

const (
	maxPipeline = 1 << 20 // bytes
	maxSteps    = 100
)

// parser reads yaml nodes, whose lines and columns every error names.
type parser struct {
	name string
	err  error
}

func (p *parser) fail(n *yaml.Node, code hallmark.Code, format string, args ...any) {
	if p.err == nil {
		p.err = hallmark.Coded(hallmark.KindInvalid, code, "%s:%d:%d: %s", p.name, n.Line, n.Column, fmt.Sprintf(format, args...))
	}
}

// ParsePipeline reads a definition strictly. Errors name file, line and column.
func ParsePipeline(name string, data []byte) (*Pipeline, error) {
	if len(data) > maxPipeline {
		return nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodePipelineInvalid, "%s: %d bytes, more than %d", name, len(data), maxPipeline)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	if err := dec.Decode(&doc); err != nil {
		return nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodePipelineInvalid, "%s: %s", name, yamlError(err))
	}
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodePipelineInvalid, "%s: more than one YAML document", name)
	}
	p := &parser{name: name}
	out := p.document(doc.Content[0])
	return out, p.err
}

func yamlError(err error) string {
	if errors.Is(err, io.EOF) {
		return "the file is empty"
	}
	return strings.TrimPrefix(err.Error(), "yaml: ")
}

// fields checks that n is a mapping with known keys, each once, and returns them.
func (p *parser) fields(n *yaml.Node, what string, known ...string) map[string]*yaml.Node {
	out := map[string]*yaml.Node{}
	if n.Kind != yaml.MappingNode || n.Anchor != "" {
		p.fail(n, hallmark.CodePipelineInvalid, "%s: want a mapping without anchors", what)
		return out
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		found := len(known) == 0
		for _, w := range known {
			found = found || k.Value == w
		}
		switch {
		case k.Kind != yaml.ScalarNode || !found:
			p.fail(k, hallmark.CodePipelineInvalid, "unknown key %q in %s; the keys are: %s", k.Value, what, strings.Join(known, ", "))
		case out[k.Value] != nil:
			p.fail(k, hallmark.CodePipelineInvalid, "key %q stands twice", k.Value)
		default:
			out[k.Value] = v
		}
	}
	return out
}

func (p *parser) text(n *yaml.Node, what string) string {
	if n == nil {
		return ""
	}
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" || n.Anchor != "" {
		p.fail(n, hallmark.CodePipelineInvalid, "%s: want a string", what)
		return ""
	}
	return n.Value
}

func (p *parser) list(n *yaml.Node, what string) []*yaml.Node {
	if n.Kind != yaml.SequenceNode || n.Anchor != "" || len(n.Content) == 0 {
		p.fail(n, hallmark.CodePipelineInvalid, "%s: want a list with at least one entry", what)
		return nil
	}
	return n.Content
}

func (p *parser) need(parent *yaml.Node, n *yaml.Node, key string) bool {
	if n == nil {
		p.fail(parent, hallmark.CodePipelineInvalid, "key %q is missing", key)
	}
	return n != nil
}

func (p *parser) document(n *yaml.Node) *Pipeline {
	top := p.fields(n, "the pipeline", "apiVersion", "kind", "build")
	for key, want := range map[string]string{"apiVersion": "hallmark/v1", "kind": "Pipeline"} {
		if p.need(n, top[key], key) && p.text(top[key], key) != want {
			p.fail(top[key], hallmark.CodePipelineInvalid, "%s: want %s", key, want)
		}
	}
	if !p.need(n, top["build"], "build") {
		return nil
	}
	b := p.fields(top["build"], "build", "image", "steps", "artifacts", "network", "parameters")
	out := &Pipeline{}
	if net := b["network"]; net != nil {
		switch p.text(net, "build.network") {
		case "none":
		case "packages":
			p.fail(net, hallmark.CodeNetworkUnavailable, "build.network: packages needs the package gateway, which this version has not; use none")
		default:
			p.fail(net, hallmark.CodePipelineInvalid, "build.network: want none")
		}
	}
	if b["image"] != nil {
		out.Toolchain = p.toolchain(b["image"])
	}
	if p.need(top["build"], b["steps"], "steps") {
		for i, s := range p.list(b["steps"], "build.steps") {
			out.Steps = append(out.Steps, p.step(s, i))
		}
		if len(out.Steps) > maxSteps {
			p.fail(b["steps"], hallmark.CodePipelineInvalid, "build.steps: more than %d", maxSteps)
		}
	}
	out.Parameters = p.parameters(b["parameters"])
	p.shadowed(top["build"], out.Parameters, out.Steps)
	if p.need(top["build"], b["artifacts"], "artifacts") {
		seen := map[string]bool{}
		for _, a := range p.list(b["artifacts"], "build.artifacts") {
			if a.Kind == yaml.MappingNode && names(a, "source") {
				out.Sources = append(out.Sources, p.sourceArtifact(a, seen))
				out.Artifacts = append(out.Artifacts, out.Sources[len(out.Sources)-1])
				continue
			}
			if a.Kind == yaml.MappingNode {
				out.Images = append(out.Images, p.imageArtifact(a, seen))
				continue
			}
			out.Artifacts = append(out.Artifacts, p.artifact(a, seen))
		}
		p.fixed(b["artifacts"], out)
	}
	return out
}

var stepName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$`)
var secretName = regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,63}$`)
var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func (p *parser) step(n *yaml.Node, i int) Step {
	f := p.fields(n, "a step", "name", "run", "env", "timeout", "secrets", "regenerates")
	s := Step{Name: fmt.Sprintf("step-%d", i+1)}
	if f["name"] != nil {
		if s.Name = p.text(f["name"], "name"); !stepName.MatchString(s.Name) {
			p.fail(f["name"], hallmark.CodePipelineInvalid, "name: want letters, digits, space, dot, underscore and hyphen")
		}
	}
	if p.need(n, f["run"], "run") {
		s.Run = p.text(f["run"], "run")
		if strings.TrimSpace(s.Run) == "" || strings.ContainsRune(s.Run, 0) {
			p.fail(f["run"], hallmark.CodePipelineInvalid, "run: want a command")
		}
		if strings.Contains(s.Run, "${{") {
			p.fail(f["run"], hallmark.CodePipelineInvalid, "run: ${{ }} is not expanded here: metadata never becomes part of a script")
		}
	}
	if f["env"] != nil {
		s.Env = map[string]string{}
		for k, v := range p.fields(f["env"], "env") {
			if !envName.MatchString(k) || strings.HasPrefix(k, "LD_") || strings.HasPrefix(k, secretPrefix) {
				p.fail(f["env"], hallmark.CodePipelineInvalid, "env: %q can't be set", k)
			}
			s.Env[k] = p.text(v, "env."+k)
		}
	}
	if f["secrets"] != nil {
		for _, v := range p.list(f["secrets"], "secrets") {
			name := p.text(v, "secrets")
			if !secretName.MatchString(name) || slices.Contains(s.Secrets, name) {
				p.fail(v, hallmark.CodePipelineInvalid, "secrets: %q: want a name of capital letters, digits and underscores, once", name)
			}
			s.Secrets = append(s.Secrets, name)
		}
	}
	if f["regenerates"] != nil {
		s.Regenerates = p.regenerates(f["regenerates"])
	}
	if f["timeout"] != nil {
		d, err := time.ParseDuration(p.text(f["timeout"], "timeout"))
		if err != nil || d <= 0 {
			p.fail(f["timeout"], hallmark.CodePipelineInvalid, "timeout: want a duration such as 10m")
		}
		s.Timeout = d
	}
	return s
}

// reserved are the names of a result directory's own files.
var reserved = []string{
	"evidence.jsonl", "verdict.json", "verdict.sigstore.json", "sbom.spdx.json", "sbom.cdx.json", "findings.sarif",
	"trusted_root.json", "roots.json", "release.pub", "policy", "trace", "verify.txt",
}

func (p *parser) artifact(n *yaml.Node, seen map[string]bool) string {
	a := p.text(n, "artifact")
	switch {
	case a == "" || path.IsAbs(a) || path.Clean(a) != a || a == "." || a == ".." || strings.HasPrefix(a, "../"):
		p.fail(n, hallmark.CodePipelineInvalid, "artifact %q: want a clean path inside the workspace", a)
		return a
	case strings.ContainsAny(a, "\\*?[") || strings.ContainsFunc(a, func(r rune) bool { return r < 0x20 || r == 0x7f }):
		p.fail(n, hallmark.CodePipelineInvalid, "artifact %q: patterns and control characters are not supported", a)
		return a
	}
	base := strings.ToLower(path.Base(a))
	if err := checkArtifactName(base); err != nil {
		p.fail(n, hallmark.CodePipelineArtifactName, "artifact %q: %s", a, err)
	}
	if seen[base] {
		p.fail(n, hallmark.CodePipelineArtifactName, "artifact %q: another artifact has this base name", a)
	}
	seen[base] = true
	return a
}

func checkArtifactName(base string) error {
	for _, r := range reserved {
		if base == r {
			return errors.New("the name is reserved for Hallmark's own files")
		}
	}
	if strings.HasSuffix(base, ".sigstore.json") {
		return errors.New("names that end in .sigstore.json are reserved for evidence")
	}
	if strings.HasPrefix(base, "-") || strings.HasPrefix(base, ".") {
		return errors.New("the name begins with a hyphen or a dot")
	}
	return nil
}
