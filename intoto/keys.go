// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package intoto

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// exactKeys refuses every key of the object raw that is not in known.
func exactKeys(raw json.RawMessage, known ...string) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil || fields == nil {
		return unexpected("external parameters: want an object")
	}
	for key := range fields {
		if !slices.Contains(known, key) {
			return unexpected("external parameter %.100q is not known", key)
		}
	}
	return nil
}

// foldedKeys refuses keys that differ from a known one in case only.
// encoding/json would read them as that field, other readers would not.
func foldedKeys(fields map[string]json.RawMessage, known ...string) error {
	for key := range fields {
		for _, k := range known {
			if key != k && strings.EqualFold(key, k) {
				return malformed("key %.100q differs from %q in case only", key, k)
			}
		}
	}
	return nil
}

// exactCase refuses, at any depth, keys that encoding/json would read as a field
// of t although they differ from its name in case. Keys of maps and of what t
// does not name are free.
func exactCase(raw json.RawMessage, t reflect.Type) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return nil // decodes itself; RawMessage and time.Time
	}
	switch t.Kind() {
	case reflect.Struct:
		return exactCaseStruct(raw, t)
	case reflect.Map:
		var values map[string]json.RawMessage
		if t.Elem().Kind() == reflect.Interface || t.Elem().Kind() == reflect.String || json.Unmarshal(raw, &values) != nil {
			return nil // nothing to confuse, or not an object, which the decoder refuses
		}
		for _, v := range values {
			if err := exactCase(v, t.Elem()); err != nil {
				return err
			}
		}
	case reflect.Slice, reflect.Array:
		var values []json.RawMessage
		if t.Elem().Kind() == reflect.Interface || t.Elem().Kind() == reflect.String || json.Unmarshal(raw, &values) != nil {
			return nil
		}
		for _, v := range values {
			if err := exactCase(v, t.Elem()); err != nil {
				return err
			}
		}
	}
	return nil
}

func exactCaseStruct(raw json.RawMessage, t reflect.Type) error {
	var fields map[string]json.RawMessage
	if json.Unmarshal(raw, &fields) != nil {
		return nil // the decoder refuses it
	}
	var names []string
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			name = f.Name
		}
		if name == "-" || !f.IsExported() {
			continue
		}
		names = append(names, name)
		if v, ok := fields[name]; ok {
			if err := exactCase(v, f.Type); err != nil {
				return err
			}
		}
	}
	return foldedKeys(fields, names...)
}

func unexpected(format string, args ...any) error {
	return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeExternalParameters, format, args...)
}
