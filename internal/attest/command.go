// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"encoding/json"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

// Command is one command of another CI system that was run as it is and
// recorded. The pipeline of its Build names it: the step, and the digest of
// Canonical.
type Command struct {
	Argv []string `json:"argv"` // text that is no UTF-8 is quoted
	Dir  string   `json:"directory"`
	// Variables are the names of its environment variables. Their values are told
	// to nobody: they hold credentials.
	Variables []string `json:"-"`
	// WorkTree is the git work tree that it ran in, or nil.
	WorkTree *WorkTree `json:"-"`
}

// WorkTree is a git work tree before a command ran. A dirty one is not what its
// commit says, and what was built from it is no build of a revision.
type WorkTree struct {
	Commit  string `json:"commit"`
	Tree    string `json:"tree"`
	Dirty   bool   `json:"dirty"`
	Differs string `json:"differs,omitempty"` // one path that does
}

// Canonical is the command as its digest is computed.
func (c Command) Canonical() ([]byte, error) { return json.Marshal(c) }

func (c *Command) argv() []string {
	if c == nil {
		return []string{}
	}
	return c.Argv
}

func (c *Command) role() string {
	if c == nil {
		return "pipeline"
	}
	return "command"
}

// environment is what the environment statement says of a wrapped command.
func (c *Command) environment() []intoto.SCAIAttribute {
	if c == nil {
		return nil
	}
	return []intoto.SCAIAttribute{{Attribute: "ENVIRONMENT_VARIABLES", Conditions: map[string]any{"names": c.Variables, "values": "not recorded"}}}
}

func (c *Command) process(by map[string]any, p intoto.PipelineRef) {
	if c == nil {
		by["pipeline"] = p
		return
	}
	by["command"], by["directory"] = p, c.Dir
	if c.WorkTree != nil {
		by["workTree"] = c.WorkTree
	}
}

func (b Build) buildType() string {
	if b.Command != nil {
		return intoto.BuildTypeCommand
	}
	return intoto.BuildTypePipeline
}

// sources are the subjects of what is said before there are products: the
// revision or, where there is none, the command.
func (b Build) sources() []intoto.ResourceDescriptor {
	if b.Command != nil && b.Revision.Commit == "" {
		return []intoto.ResourceDescriptor{{Name: "command " + b.Pipeline.Path, Digest: sha256Of(b.Pipeline.Digest)}}
	}
	return subjectRevision(b.Revision)
}

// Sources are the subjects of statements about a build without products.
func Sources(b Build) []intoto.ResourceDescriptor { return b.sources() }

func (b Build) sourceMaterial() []intoto.ResourceDescriptor {
	if b.Command != nil && b.Revision == (hallmark.Revision{}) {
		return []intoto.ResourceDescriptor{}
	}
	return []intoto.ResourceDescriptor{revisionMaterial(b.Revision)}
}
