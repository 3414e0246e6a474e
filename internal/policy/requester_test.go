// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strings"
	"testing"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

// TestRequesterWhoCantAsk: a rule for somebody whom no build can have is refused,
// by its field.
func TestRequesterWhoCantAsk(t *testing.T) {
	known := func(name string) bool { return name == "alice@example.org" }
	for name, tt := range map[string]struct {
		requesters []string
		builders   []string
		want       string
	}{
		"operator":             {[]string{"operator", "uid:7"}, []string{intoto.BuilderLocal}, ""},
		"both platforms":       {[]string{"operator", "ssh:alice@example.org"}, []string{intoto.BuilderServer, intoto.BuilderLocal}, ""},
		"principal":            {[]string{"ssh:alice@example.org"}, []string{intoto.BuilderServer}, ""},
		"unknown principal":    {[]string{"operator", "ssh:alice@example.com"}, []string{intoto.BuilderLocal}, `requesters[1]: "ssh:alice@example.com"`},
		"operator at a server": {[]string{"operator"}, []string{intoto.BuilderServer}, `requesters[0]: "operator"`},
		"user at a server":     {[]string{"ssh:alice@example.org", "uid:7"}, []string{intoto.BuilderServer}, `requesters[1]: "uid:7"`},
	} {
		t.Run(name, func(t *testing.T) {
			rules := FirstBuildRules(nil)
			rules.Rules[0].Requesters, rules.Rules[0].Platforms = tt.requesters, nil
			for _, b := range tt.builders {
				rules.Rules[0].Platforms = append(rules.Rules[0].Platforms, BuildPlatform{Builder: b, Image: ImageHost})
			}
			if err := rules.check(); err != nil {
				t.Fatal(err)
			}
			err := rules.CheckRequesters(known)
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), "rules[0] (first): "+tt.want) || hallmark.HintOf(err) == ""):
				t.Errorf("%v, want %s", err, tt.want)
			}
		})
	}
}
