// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package scan

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
)

// TestSARIFNamesTools: an external tool has a run of its own, also when it found
// nothing; a check that errored is a run that was not successful.
func TestSARIFNamesTools(t *testing.T) {
	records := []hallmark.CheckRecord{
		{Check: "secrets", Outcome: hallmark.Errored},
		{Check: "sast", Outcome: hallmark.Fail, Data: []hallmark.DataSource{{Name: "gosec-rules"}, {Name: DriverData + "lint@2.0"}, {Name: DriverData + "quiet@"}}},
		{Check: "tests", Outcome: hallmark.Pass},
	}
	findings := []hallmark.Finding{
		{Check: "sast", Tool: "lint", Rule: "L1", Path: "a.c", Line: 3, Severity: hallmark.SeverityHigh, Fingerprint: "f"},
		{Check: "sast", Tool: "gosec", Rule: "G1", Path: "a.go", Severity: hallmark.SeverityMedium},
		{Check: "sast", Tool: "hallmark", Rule: "H1", Severity: hallmark.SeverityLow},
	}
	b, err := SARIF(records, findings)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Runs []struct {
			Tool struct {
				Driver struct{ Name, Version string }
			}
			Invocations []struct{ ExecutionSuccessful bool }
			Results     *[]struct{ RuleID, Level string }
		}
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range doc.Runs {
		if r.Results == nil {
			t.Fatalf("results of %s are null", r.Tool.Driver.Name)
		}
		s := fmt.Sprint(r.Tool.Driver.Name, " ", r.Tool.Driver.Version, " ", r.Invocations[0].ExecutionSuccessful)
		for _, x := range *r.Results {
			s += " " + x.RuleID + ":" + x.Level
		}
		got = append(got, strings.TrimSpace(s))
	}
	want := []string{"hallmark-secrets  false", "hallmark-sast  true G1:warning H1:note", "lint 2.0 true L1:error", "quiet  true"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
