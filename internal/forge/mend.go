// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package forge

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/source"
)

// mending collects the fields of one change.
type mending struct {
	body    map[string]any
	codes   []hallmark.Code
	is, new []string
}

// set changes a field, and says what it was.
func (m *mending) set(code hallmark.Code, field string, old, new any) {
	m.body[field] = new
	if fmt.Sprint(old) == fmt.Sprint(new) {
		return // it goes along, since the others need it
	}
	if !slices.Contains(m.codes, code) {
		m.codes = append(m.codes, code)
	}
	m.is, m.new = append(m.is, fmt.Sprintf("%s %v", field, old)), append(m.new, fmt.Sprintf("%s %v", field, new))
}

// want changes a switch that is not as it should be; fresh says that there is no
// rule yet.
func (m *mending) want(code hallmark.Code, field string, old *bool, want, fresh bool) {
	if fresh {
		old = nil
	}
	if old != nil && *old == want {
		return
	}
	is := any("unset")
	if old != nil {
		is = *old
	}
	m.set(code, field, is, want)
}

// repair is what was collected; nothing where nothing changes.
func (m *mending) repair(on, method, path string) ([]source.Repair, error) {
	if len(m.new) == 0 {
		return nil, nil
	}
	b, err := json.Marshal(m.body)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInternal, "encoding a change: %w", err)
	}
	return []source.Repair{{Codes: m.codes, On: on, Is: strings.Join(m.is, ", "), Becomes: strings.Join(m.new, ", "), Method: method, Path: path, Body: b}}, nil
}

func orFalse(v *bool) bool { return v != nil && *v }

func orZero(v *int) int {
	if v == nil {
		return 0
	}
	return *v
}

func orNone(v *[]string) []string {
	if v == nil {
		return []string{}
	}
	return *v
}

func subtract(all, some []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return slices.Contains(some, s) })
}
