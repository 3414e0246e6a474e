// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package intoto

import (
	"encoding/json"
	"reflect"

	"github.com/hallmark-sc/hallmark"
)

// DecodePredicate reads the predicate of s into T. Unknown fields are ignored,
// as in-toto asks, but a field that differs from a known one in case only is
// refused. Use ParseProvenance for provenance, whose external parameters
// admit no unknown field.
func DecodePredicate[T any](s Statement) (T, error) {
	var t T
	if err := exactCase(s.Predicate, reflect.TypeFor[T]()); err != nil {
		return t, malformed("reading predicate %.100s: %w", s.PredicateType, err)
	}
	if err := json.Unmarshal(s.Predicate, &t); err != nil {
		return *new(T), malformed("reading predicate %.100s: %w", s.PredicateType, err)
	}
	return t, nil
}

// ParseProvenance reads SLSA provenance. An external parameter that it does not
// know is refused: it could have influenced the build in a way that no
// expectation covers.
func ParseProvenance(s Statement) (Provenance, error) {
	if s.PredicateType != PredicateProvenance {
		return Provenance{}, hallmark.Coded(hallmark.KindInvalid, hallmark.CodePredicateType,
			"predicate type %.100q: want %s", s.PredicateType, PredicateProvenance)
	}
	p, err := DecodePredicate[Provenance](s)
	if err != nil {
		return Provenance{}, err
	}
	raw, err := externalParameters(s.Predicate)
	if err != nil {
		return Provenance{}, err
	}
	if err := exactKeys(raw, "repository", "ref", "revision", "pipeline", "parameters"); err != nil {
		return Provenance{}, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return Provenance{}, unexpected("reading external parameters: %w", err)
	}
	if pipeline, ok := fields["pipeline"]; ok {
		if err := exactKeys(pipeline, "path", "digest"); err != nil {
			return Provenance{}, err
		}
	}
	if given, ok := fields["parameters"]; ok {
		if err := givenParameters(given); err != nil {
			return Provenance{}, err
		}
	}
	ext := p.BuildDefinition.ExternalParameters
	switch {
	case p.BuildDefinition.BuildType == "":
		return Provenance{}, malformed("provenance without buildType")
	case p.RunDetails.Builder.ID == "":
		return Provenance{}, malformed("provenance without builder.id")
	case ext.Repository == "" || ext.Revision == "":
		return Provenance{}, unexpected("external parameters without repository or revision")
	}
	return p, nil
}

// externalParameters returns the one object under these names; that no other
// spelling of them occurs, DecodePredicate has checked.
func externalParameters(predicate json.RawMessage) (json.RawMessage, error) {
	var p struct {
		BuildDefinition struct {
			ExternalParameters json.RawMessage `json:"externalParameters"`
		} `json:"buildDefinition"`
	}
	if err := json.Unmarshal(predicate, &p); err != nil {
		return nil, malformed("reading provenance: %w", err)
	}
	return p.BuildDefinition.ExternalParameters, nil
}

// CheckOf returns the check record that the predicate of s carries, or nil if
// it carries none.
func CheckOf(s Statement) (*hallmark.CheckRecord, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(s.Predicate, &fields); err != nil {
		return nil, malformed("reading predicate %.100s: %w", s.PredicateType, err)
	}
	raw, ok := fields[ExtensionCheck]
	if !ok || string(raw) == "null" {
		return nil, nil
	}
	// A record that says nothing about its outcome would leave the zero value,
	// which every reader must treat as not passed; a wrong name is an error.
	var c hallmark.CheckRecord
	if err := exactCase(raw, reflect.TypeFor[hallmark.CheckRecord]()); err != nil {
		return nil, malformed("reading check record of %.100s: %w", s.PredicateType, err)
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, malformed("reading check record of %.100s: %w", s.PredicateType, err)
	}
	if c.Check == "" || c.Outcome == 0 {
		return nil, malformed("check record of %.100s: want check and outcome", s.PredicateType)
	}
	return &c, nil
}
