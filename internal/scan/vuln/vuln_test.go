// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package vuln

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/sbom"
)

func TestBaseScore(t *testing.T) {
	for vector, want := range map[string]float64{
		"CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H": 9.8,
		"CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:N/I:N/A:H": 7.5,
		"CVSS:3.1/AV:N/AC:H/PR:N/UI:R/S:C/C:H/I:N/A:N": 6.1,
		"CVSS:3.0/AV:N/AC:L/PR:L/UI:N/S:C/C:H/I:H/A:H": 9.9,
		"CVSS:3.1/AV:L/AC:L/PR:N/UI:N/S:U/C:N/I:N/A:N": 0,
	} {
		if got, ok := baseScore(vector); !ok || got != want {
			t.Errorf("%s: %v, want %v", vector, got, want)
		}
	}
	if _, ok := baseScore("CVSS:3.1/AV:X"); ok {
		t.Error("a vector without metrics has a score")
	}
}

// TestMatch: the fixed version is free, the one before is not, and an ecosystem
// without data is said to lack it.
func TestMatch(t *testing.T) {
	dir := t.TempDir()
	if _, err := Sync(dir, "../../../testdata/osv"); err != nil {
		t.Fatal(err)
	}
	find := func(eco, name, version string) (string, hallmark.Severity) {
		out, err := match(dir, sbom.Inventory{Components: []sbom.Component{{Name: name, Version: version, Ecosystem: eco, PURL: "pkg:x/" + name}}})
		if err != nil {
			t.Fatal(err)
		}
		if len(out.Findings) == 0 {
			return string(out.Extra), 0
		}
		return out.Findings[0].Rule + " " + out.Findings[0].FixedIn, out.Findings[0].Severity
	}
	if got, sev := find("npm", "minimist", "1.2.5"); got != "HALLMARK-2026-0003 1.2.6" || sev != hallmark.SeverityCritical {
		t.Error(got, sev)
	}
	if got, sev := find("npm", "minimist", "1.2.6"); sev != 0 {
		t.Error(got)
	}
	if got, _ := find("Go", "golang.org/x/text", "0.3.7"); got != "HALLMARK-2026-0001 0.3.8" {
		t.Error(got)
	}
	if got, sev := find("PyPI", "Requests", "2.30.0"); sev != hallmark.SeverityMedium {
		t.Error(got, sev)
	}
	if got, sev := find("PyPI", "requests", "not a version !"); sev == hallmark.SeverityCritical {
		t.Error(got, sev)
	}
	if got, _ := find("CRAN", "x", "1"); got != `{"data":null,"lacking":["CRAN"]}` {
		t.Error(got)
	}
}

// TestEventsInAnyOrder: OSV asks for no order of events.
func TestEventsInAnyOrder(t *testing.T) {
	for _, events := range []string{
		`{"introduced":"0"},{"fixed":"1.0.0"},{"introduced":"2.0.0"},{"fixed":"3.0.0"}`,
		`{"introduced":"2.0.0"},{"fixed":"3.0.0"},{"introduced":"0"},{"fixed":"1.0.0"}`,
		`{"fixed":"3.0.0"},{"fixed":"1.0.0"},{"introduced":"2.0.0"},{"introduced":"0"}`,
	} {
		a, err := ParseAdvisory([]byte(`{"id":"A","affected":[{"package":{"ecosystem":"npm","name":"x"},"ranges":[{"type":"SEMVER","events":[` + events + `]}]}]}`))
		if err != nil {
			t.Fatal(err)
		}
		for version, want := range map[string]bool{"0.9.0": true, "1.0.0": false, "1.5.0": false, "2.0.0": true, "2.5.0": true, "3.0.0": false} {
			if hit, _, err := affects(a.Affected[0], sbom.Component{Name: "x", Version: version, Ecosystem: "npm"}); hit != want || err != nil {
				t.Errorf("%s in %s: %v %v", version, events, hit, err)
			}
		}
	}
}

// TestNoVersionIsNoPass: what can't be placed is a finding for review.
func TestNoVersionIsNoPass(t *testing.T) {
	for _, eco := range []string{"npm", "PyPI", "Go"} {
		a, err := ParseAdvisory([]byte(`{"id":"A","affected":[{"package":{"ecosystem":"` + eco + `","name":"x"},"ranges":[{"type":"ECOSYSTEM","events":[{"introduced":"1.0.0"},{"fixed":"2.0.0"}]}]}]}`))
		if err != nil {
			t.Fatal(err)
		}
		for _, version := range []string{"", "(devel)", "git+ssh://x", "latest", "file:../x"} {
			got := judge(a, sbom.Component{Name: "x", Version: version, Ecosystem: eco})
			if len(got) != 1 || got[0].Severity != hallmark.SeverityMedium {
				t.Errorf("%s %q: %+v", eco, version, got)
			}
		}
	}
}

// TestSyncKeepsOldData: an export that can't be read replaces nothing.
func TestSyncKeepsOldData(t *testing.T) {
	dir, export := t.TempDir(), t.TempDir()
	if _, err := Sync(dir, "../../../testdata/osv"); err != nil {
		t.Fatal(err)
	}
	before, err := Fingerprint(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"a.json": `{"id":"A","affected":[{"package":{"ecosystem":"npm","name":"x"}}]}`, "b.json": `{broken`} {
		if err := os.WriteFile(filepath.Join(export, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Sync(dir, export); err == nil {
		t.Error("a broken export was taken")
	}
	if after, err := Fingerprint(dir); err != nil || after != before {
		t.Errorf("the data changed: %v", err)
	}
}

func FuzzParseAdvisory(f *testing.F) {
	f.Add([]byte(`{"id":"A","affected":[{"package":{"ecosystem":"npm","name":"x"},"ranges":[{"type":"SEMVER","events":[{"introduced":"0"},{"fixed":"1"}]}]}]}`))
	f.Fuzz(func(_ *testing.T, b []byte) {
		a, err := ParseAdvisory(b)
		if err != nil {
			return
		}
		for _, eco := range []string{"npm", "Go", "PyPI"} {
			judge(a, sbom.Component{Name: "x", Version: "1.0.0", Ecosystem: eco})
		}
		severity(a)
	})
}
