// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestServerSchema: the schema has exactly the fields that are read, and its
// defaults are those that hold.
func TestServerSchema(t *testing.T) {
	type schema struct {
		Properties map[string]json.RawMessage `json:"properties"`
		Additional *bool                      `json:"additionalProperties"`
		Default    any                        `json:"default"`
	}
	var compare func(path string, raw []byte, v reflect.Value)
	compare = func(path string, raw []byte, v reflect.Value) {
		var s schema
		if err := json.Unmarshal(raw, &s); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if v.Kind() != reflect.Struct {
			if want, err := json.Marshal(v.Interface()); err != nil || s.Default != nil && toJSON(t, s.Default) != string(want) {
				t.Errorf("%s: the default is %v, the schema says %v", path, string(want), s.Default)
			}
			return
		}
		if s.Additional == nil || *s.Additional {
			t.Errorf("%s: takes anything", path)
		}
		var fields []string
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
			if name == "" {
				continue
			}
			fields = append(fields, name)
			compare(path+"."+name, s.Properties[name], v.Field(i))
		}
		slices.Sort(fields)
		if d := cmp.Diff(fields, slices.Sorted(maps.Keys(s.Properties))); d != "" {
			t.Errorf("%s: %s", path, d)
		}
	}
	compare("", ServerSchema(), reflect.ValueOf(DefaultServerFile()))
}

func toJSON(t *testing.T, v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
