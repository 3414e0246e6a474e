// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"
	"testing"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

// hostedFacts are the facts of a build of a server that had everything.
func hostedFacts(t *testing.T) (*Engine, Verdict, []fact, *fact, *fact) {
	e, v, facts := lab(t)
	var env, prov *fact
	for i := range facts {
		f := &facts[i]
		switch {
		case f.Name == intoto.NameEnvironment:
			env = f
			f.Producer = intoto.BuilderServer
			f.Held = []string{
				"namespaces", "no-new-privileges", "capabilities-dropped", "seccomp", "root-read-only", "no-network", "proc-masked", "sysfs-absent", "devices-minimal",
				"kernel-settings-closed", "memory-not-executable", "egress-recorded", "unprivileged-user", "workspace-overlay", intoto.GuaranteeFresh, intoto.GuaranteeSigner,
			}
		case f.PredicateType == intoto.PredicateProvenance:
			prov = f
			f.BuilderID, f.Signer, f.MaxLevel = intoto.BuilderServer, "server", buildL3
		}
	}
	return e, v, facts, env, prov
}

// TestLevelOfServer: a server's build is of level 3 where its environment shows all
// that it takes, and of less for each thing that is missing.
func TestLevelOfServer(t *testing.T) {
	_, v, facts, env, prov := hostedFacts(t)
	if got := levels(facts, v.Revision); !slices.Equal(got, []string{buildL3}) {
		t.Fatalf("with everything: %q", got)
	}
	held := env.Held
	without := func(names ...string) []string {
		return slices.DeleteFunc(slices.Clone(held), func(g string) bool { return slices.Contains(names, g) })
	}
	for _, c := range []struct {
		missing []string
		want    string
	}{
		{[]string{"namespaces"}, buildL2}, {[]string{"no-new-privileges"}, buildL2}, {[]string{"capabilities-dropped"}, buildL2}, {[]string{"seccomp"}, buildL2},
		{[]string{"root-read-only"}, buildL2}, {[]string{"proc-masked"}, buildL2}, {[]string{"sysfs-absent"}, buildL2}, {[]string{"devices-minimal"}, buildL2},
		{[]string{"kernel-settings-closed"}, buildL2}, {[]string{"unprivileged-user"}, buildL2},
		{[]string{"no-network"}, buildL3}, {[]string{"egress-recorded"}, buildL3}, {[]string{"no-network", "egress-recorded"}, buildL2},
		{[]string{intoto.GuaranteeFresh}, buildL2}, {[]string{"workspace-overlay"}, buildL2},
		{[]string{intoto.GuaranteeSigner}, buildL1}, {[]string{intoto.GuaranteeSigner, "seccomp"}, buildL1},
		{[]string{"memory-not-executable"}, buildL3}, {held, buildL1},
	} {
		env.Held = without(c.missing...)
		if got := levels(facts, v.Revision); !slices.Equal(got, []string{c.want}) {
			t.Errorf("without %v: %q, want %s", c.missing, got, c.want)
		}
	}
	env.Held = held
	for what, change := range map[string]func(f *fact){
		"signed by another":  func(f *fact) { f.Signer = "wrapper" },
		"of another builder": func(f *fact) { f.Producer = intoto.BuilderLocal },
		"of another commit":  func(f *fact) { f.Subjects = nil },
		"of another name":    func(f *fact) { f.Name = intoto.NameArtifacts },
	} {
		was := *env
		change(env)
		if got := levels(facts, v.Revision); !slices.Equal(got, []string{buildL1}) {
			t.Errorf("an environment %s: %q", what, got)
		}
		*env = was
	}
	// A second environment of the same revision that shows less.
	weak := *env
	weak.Held = without("seccomp")
	if got := levels(append(slices.Clone(facts), weak), v.Revision); !slices.Equal(got, []string{buildL2}) {
		t.Errorf("two environments: %q", got)
	}
	// Nobody gets above what their roots say.
	prov.MaxLevel = buildL1
	if got := levels(facts, v.Revision); !slices.Equal(got, []string{buildL1}) {
		t.Errorf("a signer that may reach level 1: %q", got)
	}
}

func TestHeldTwiceIsNotHeld(t *testing.T) {
	is := func(attribute, name string) intoto.SCAIAttribute {
		return intoto.SCAIAttribute{Attribute: attribute, Conditions: map[string]any{"guarantee": name}}
	}
	got := heldIn([]intoto.SCAIAttribute{is("ISOLATION_GUARANTEE_HELD", "a"), is("ISOLATION_GUARANTEE_HELD", "b"), is("ISOLATION_GUARANTEE_ABSENT", "b"), is("ISOLATION_GUARANTEE_HELD", ""), is("TOOL_PRESENT", "c")})
	if !slices.Equal(got, []string{"a"}) {
		t.Errorf("%q", got)
	}
}

// TestServerBuilds: provenance of a server is accepted by default, of its own
// identity alone.
func TestServerBuilds(t *testing.T) {
	e, v, facts, _, prov := hostedFacts(t)
	prov.Requesters = Requesters("ssh", "alice@example.org")
	if d := decide(t, e, v, facts); !d.Allowed() {
		t.Errorf("%+v", d.Reasons)
	}
	for what, change := range map[string]func(f *fact){
		"by the local builder's identity": func(f *fact) { f.Signer = "builder" },
		"local, by the server's identity": func(f *fact) { f.BuilderID = intoto.BuilderLocal },
	} {
		was := *prov
		change(prov)
		if d := decide(t, e, v, facts); d.Allowed() || !slices.ContainsFunc(d.Reasons, func(r hallmark.Reason) bool { return r.Code == hallmark.CodeSignerNotAuthorized }) {
			t.Errorf("%s: %+v", what, d.Reasons)
		}
		*prov = was
	}
}

// TestUnlanded: what was built from a change is never a release.
func TestUnlanded(t *testing.T) {
	e, v, facts, _, prov := hostedFacts(t)
	prov.External.Ref = intoto.ChangeRefs + "c-0123456789abcdef"
	d := decide(t, e, v, facts)
	if d.Allowed() || len(d.Reasons) != 1 || d.Reasons[0].Code != hallmark.CodeChangeNotLanded {
		t.Errorf("%+v", d.Reasons)
	}
	prov.External.Ref = "refs/heads/main"
	v.Revision.Ref = intoto.ChangeRefs + "c-0123456789abcdef"
	if d := decide(t, e, v, facts); d.Allowed() {
		t.Error("by its revision alone")
	}
}

func TestRequesters(t *testing.T) {
	for _, c := range []struct{ method, want string }{{"ssh", "ssh:a"}, {"operator", "token:a"}, {"uid", "token:a"}, {"oidc", "oidc:a"}} {
		got := Requesters(c.method, "a")
		if !slices.Equal(got, []string{RequesterGranted, c.want}) {
			t.Errorf("%s: %q", c.method, got)
		}
		for _, r := range got {
			if err := checkRequester(r); err != nil {
				t.Errorf("a rule can't name %s: %v", r, err)
			}
		}
	}
}
