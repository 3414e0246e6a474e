// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package intoto

import (
	"encoding/json"
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

func unexpected(format string, args ...any) error {
	return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeExternalParameters, format, args...)
}
