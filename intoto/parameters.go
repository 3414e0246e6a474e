// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package intoto

import (
	"encoding/json"
	"reflect"
	"strings"
)

// givenParameters checks the form of external parameters: an object that is not
// empty, of texts by names of capitals, digits and underscore. Which of them are
// expected, and with which values, a policy or verifier says.
func givenParameters(raw json.RawMessage) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil || len(fields) == 0 {
		return unexpected("external parameter parameters: want an object that is not empty, or none")
	}
	for name, v := range fields {
		if name == "" || len(name) > 64 || strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" {
			return unexpected("external parameter %.100q: want a name of capitals, digits and underscore", name)
		}
		if len(v) == 0 || v[0] != '"' { // null would read as an empty text
			return unexpected("external parameter %s: want a text", name)
		}
	}
	return nil
}

// AttributeBuildRule names, in an environment attestation, the rule of the build
// policy that permitted the build; its target is the approved inventory of tools,
// if the rule has one.
const AttributeBuildRule = "BUILD_RULE"

// A rebuild is the check of its own name; one that passed has this property
// (SLSA v1.2, properties of verification summaries).
const (
	CheckForge         = "forge-settings"
	CheckRebuild       = "rebuild"
	PropertyReproduced = "SLSA_BUILD_REPRODUCED"
)

// Requester is who asked for a build: an internal parameter of provenance.
type Requester struct {
	Principals     []string `json:"principals"`     // all that the requester was shown to be, such as operator, uid:1000, ssh:alice@example.org
	Authentication string   `json:"authentication"` // how that was shown, for people
	User           string   `json:"user,omitempty"` // name of the user on the machine
}

// The internal parameters of provenance that are read again.
const (
	internalRequester = "requester"
	internalPlatform  = "platform"
)

// Requester returns who asked for the build; an empty one where the provenance
// does not say.
func (p Provenance) Requester() (Requester, error) {
	return internal[Requester](p, internalRequester)
}

// Image returns what the build's root file system was: host, or the digest of an
// image; "" where the provenance does not say.
func (p Provenance) Image() (string, error) {
	platform, err := internal[struct {
		Image string `json:"image"`
	}](p, internalPlatform)
	// The name before the digest is for readers; rules name the digest alone.
	return platform.Image[strings.LastIndexByte(platform.Image, '@')+1:], err
}

func internal[T any](p Provenance, name string) (T, error) {
	var t T
	v, ok := p.BuildDefinition.InternalParameters[name]
	if !ok {
		return t, nil
	}
	raw, err := json.Marshal(v)
	if err == nil {
		err = exactCase(raw, reflect.TypeFor[T]())
	}
	if err == nil {
		err = json.Unmarshal(raw, &t)
	}
	if err != nil {
		return *new(T), malformed("reading internal parameter %s: %w", name, err)
	}
	return t, nil
}
