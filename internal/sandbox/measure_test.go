// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"maps"
	"testing"
)

// TestGuaranteesFollowFacts: each fact that is not as it should be takes its
// guarantee away, and so does one that was not measured.
func TestGuaranteesFollowFacts(t *testing.T) {
	good := facts{Interfaces: []string{"lo"}, RootReadOnly: true, Masks: &masks{}, Status: map[string]string{
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapBnd": "0000000000000000", "CapAmb": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2", "Uid": "1000 1000 1000 1000", "Gid": "1000 1000 1000 1000"}}
	lost := func(f facts, shared ...string) (names []string) {
		for _, g := range f.guarantees(shared, self{UID: insideID, GID: insideID}) {
			if !g.Holds {
				names = append(names, g.Name)
			}
		}
		return names
	}
	if l := lost(good); len(l) > 0 {
		t.Fatalf("lost with good facts: %v", l)
	}
	if l := lost(facts{}); len(l) != 10 {
		t.Errorf("nothing measured, yet only these are lost: %v", l)
	}
	for key, bad := range map[string]string{"CapInh": "1", "CapPrm": "1", "CapEff": "1", "CapBnd": "1", "CapAmb": "1", "NoNewPrivs": "0", "Seccomp": "0", "Uid": "1000 0 0 1000", "Gid": "0 0 0 0"} {
		f := good
		f.Status = maps.Clone(good.Status)
		f.Status[key] = bad
		if l := lost(f); len(l) != 1 {
			t.Errorf("%s %s: lost %v", key, bad, l)
		}
	}
	for name, change := range map[string]func(*facts){
		"proc-masked":            func(f *facts) { f.Masks.Proc = []string{"kcore"} },
		"sysfs-absent":           func(f *facts) { f.Masks.Sys = true },
		"devices-minimal":        func(f *facts) { f.Masks.Devices = []string{"/dev/mem"} },
		"kernel-settings-closed": func(f *facts) { f.Masks.Settings = []string{"cgroup2"} },
		"memory-not-executable":  func(f *facts) { f.MemoryRuns = true },
	} {
		f := good
		f.Masks = &masks{}
		change(&f)
		if l := lost(f); len(l) != 1 || l[0] != name {
			t.Errorf("%s: lost %v", name, l)
		}
	}
	more := good
	more.Interfaces = []string{"lo", "eth0"}
	if l := lost(more); len(l) != 1 || l[0] != "no-network" {
		t.Errorf("a second interface: lost %v", l)
	}
	if l := lost(good, "net"); len(l) != 1 || l[0] != "namespaces" {
		t.Errorf("a shared namespace: lost %v", l)
	}
}
