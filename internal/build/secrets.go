// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// Secret is a value that a step reads from a file descriptor.
type Secret struct {
	Name  string
	Value []byte
}

// The bounds of a secret's value in bytes. A shorter one can't be masked in a
// log without masking what is none, and can be guessed; a longer one does not
// fit in a pipe.
const (
	MinSecret = 8
	MaxSecret = 32 << 10
)

const secretPrefix = "HALLMARK_SECRET_"

// SecretVariable is the environment variable that holds the number of a secret's
// file descriptor.
func SecretVariable(name string) string { return secretPrefix + name + "_FD" }

// CheckSecret refuses a secret that no step could be given.
func CheckSecret(name string, value []byte) error {
	if !secretName.MatchString(name) {
		return hallmark.Errorf(hallmark.KindUsage, "secret %q: want a name of capital letters, digits and underscores", name)
	}
	// What is masked is the value without the line end that editors add.
	if n := len(strings.TrimSpace(string(value))); n < MinSecret {
		return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSecretUnfit, "secret %s has %d bytes: one shorter than %d can be guessed, and can't be masked in logs", name, n, MinSecret)
	}
	if len(value) > MaxSecret {
		return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSecretUnfit, "secret %s has %d bytes, more than %d", name, len(value), MaxSecret)
	}
	return nil
}

// Needs lists the secrets that the steps of a pipeline name, each once.
func (p *Pipeline) Needs() []string {
	var out []string
	for _, s := range p.Steps {
		for _, name := range s.Secrets {
			if !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	return out
}

// JudgeSecrets decides whether a revision of ref may be given the secrets that
// its pipeline names. refs are those of the policy; none means that no build is
// given any, and a revision that no ref names is nobody's release.
func JudgeSecrets(p *Pipeline, ref string, refs []string) []hallmark.Reason {
	if len(p.Needs()) == 0 || ref != "" && slices.Contains(refs, ref) {
		return nil
	}
	who := "the revision " + ref
	if ref == "" {
		who = "a revision that no branch or tag names"
	}
	return []hallmark.Reason{{
		Code: hallmark.CodeSecretRefused, Check: "build", Message: fmt.Sprintf("%s asks for the secrets %s, which the policy gives to %s", who, strings.Join(p.Needs(), ", "), listOrNone(refs)),
		Fix: "build without secrets, or let this ref have them: hallmark policy set build.secrets=REF",
	}}
}

func listOrNone(refs []string) string {
	if len(refs) == 0 {
		return "none"
	}
	return strings.Join(refs, ", ")
}

// choose picks what a step names, and nothing else.
func choose(all map[string][]byte, s Step) ([]Secret, error) {
	var out []Secret
	for _, name := range s.Secrets {
		value, ok := all[name]
		if !ok {
			return nil, MissingSecret(name)
		}
		out = append(out, Secret{Name: name, Value: value})
	}
	return out, nil
}

// MissingSecret says that a pipeline names a secret that nobody supplied.
func MissingSecret(name string) error {
	return hallmark.WithHint(hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSecretMissing, "the pipeline names the secret %s, which was not supplied", name),
		"hallmark run --secret "+name+"=FILE, with the value in FILE")
}

// SecretName reports whether a step could name a secret so.
func SecretName(name string) bool { return secretName.MatchString(name) }
