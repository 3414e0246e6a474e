// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/json"
	"slices"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// Item is what the report needs to know of one verified statement.
type Item struct {
	Digest        hallmark.Digest  // of the statement: what the log leaf carries
	PredicateType string           //
	Name          string           // of a link or SCAI statement, which share a type
	Check         string           // the check whose record the statement carries; may be empty
	Outcome       hallmark.Outcome // of that check, or of a VSA; fail where isolation was incomplete; else unset
	BuilderID     string           // of SLSA provenance
	Restricted    bool             // the build ran under a rule with an approved inventory
	Approved      bool             // every tool of an environment is in the policy's inventory
	InLog         bool             // its digest resolves in the log
}

// Evidence is what a report rests on: the statements of the latest verdict and
// those that stand for themselves (policy, genesis). The zero value is a home
// without any.
type Evidence struct {
	// Mode is the mode of the pinned roots: "threshold" or "single-operator".
	// Anything but "threshold" counts as a single operator.
	Mode string

	// Inputs are the statements that the latest verdict lists. While one of them
	// is not among Items and in the log, no row is satisfied: else erasing the
	// record of a failed check would improve the report.
	Inputs []hallmark.Digest

	// Summary is the VSA of the latest verdict. Other VSAs don't count.
	Summary hallmark.Digest

	// Items are verified statements, each once. What is neither an input, nor
	// the summary, nor a policy or genesis statement is ignored.
	Items []Item
}

// ModeThreshold is the mode of roots under which two-person rows can be
// satisfied.
const ModeThreshold = verify.ModeThreshold

// ItemOf reads what the report needs from a verified statement; inLog says
// whether its digest resolves in the log of the home.
func ItemOf(s verify.Statement, inLog bool) (Item, error) {
	if !s.Valid() {
		return Item{}, hallmark.Errorf(hallmark.KindInternal, "reporting on a statement that nobody verified")
	}
	return NewItem(s.Digest(), s.Statement(), inLog)
}

// NewItem reads what the report needs from the statement st, which the caller
// has verified; digest is the statement's and inLog says whether it resolves in
// the log. Fields the report does not need are not looked at.
func NewItem(digest hallmark.Digest, st intoto.Statement, inLog bool) (Item, error) {
	it := Item{Digest: digest, PredicateType: st.PredicateType, InLog: inLog}
	if err := digest.Check(); err != nil {
		return Item{}, err
	}
	var err error
	switch st.PredicateType {
	case intoto.PredicateSource, intoto.PredicateTestResult, intoto.PredicateVulns:
		err = it.readCheck(st.Predicate, true)
	case intoto.PredicateLink:
		var link struct {
			Name string `json:"name"`
		}
		if err = json.Unmarshal(st.Predicate, &link); err == nil {
			it.Name = link.Name
			err = it.readCheck(st.Predicate, false)
		}
	case intoto.PredicateTrace:
		var t intoto.RuntimeTrace
		err = json.Unmarshal(st.Predicate, &t)
		if whole, ok := t.Monitor.TracePolicy["whole"].(bool); !ok || !whole {
			it.Outcome = hallmark.Fail
		}
	case intoto.PredicateSCAI:
		var scai intoto.SCAI
		err = json.Unmarshal(st.Predicate, &scai)
		it.Name, it.Approved, it.Restricted = scai.Name, approved(scai.Attributes), slices.ContainsFunc(scai.Attributes, restricted)
		if slices.ContainsFunc(scai.Attributes, guaranteeAbsent) {
			it.Outcome = hallmark.Fail
		}
	case intoto.PredicateProvenance:
		var p intoto.Provenance
		err = json.Unmarshal(st.Predicate, &p)
		it.BuilderID = p.RunDetails.Builder.ID
	case intoto.PredicateVSA:
		var v intoto.VSA
		err = json.Unmarshal(st.Predicate, &v)
		if v.OfSource() {
			it.Name = nameSourceSummary
		}
		it.Outcome = hallmark.Fail
		if v.VerificationResult == "PASSED" {
			it.Outcome = hallmark.Pass
		}
	}
	if err != nil {
		return Item{}, hallmark.Errorf(hallmark.KindInvalid, "reading statement %s for the report: %w", digest, err)
	}
	return it, nil
}

// approved reports whether there are tools and each is of the approved inventory.
func approved(all []intoto.SCAIAttribute) bool {
	is := func(name string) func(intoto.SCAIAttribute) bool {
		return func(a intoto.SCAIAttribute) bool { return a.Attribute == name }
	}
	return slices.ContainsFunc(all, is(intoto.AttributeToolApproved)) && !slices.ContainsFunc(all, is(intoto.AttributeTool))
}

// restricted reports whether a says that the rule of the build names an inventory.
func restricted(a intoto.SCAIAttribute) bool {
	return a.Attribute == intoto.AttributeBuildRule && a.Target != nil && a.Target.Digest["sha256"] != ""
}

// guaranteeAbsent reports whether a says that an isolation guarantee did not
// hold; the name is that of the environment attestation (docs/predicates).
func guaranteeAbsent(a intoto.SCAIAttribute) bool { return a.Attribute == "ISOLATION_GUARANTEE_ABSENT" }

// readCheck reads the check record of a predicate. A record that must be there
// and is not counts as an errored check, so that it can't satisfy anything.
func (it *Item) readCheck(predicate []byte, required bool) error {
	var p struct {
		Check *hallmark.CheckRecord `json:"https://hallmark-sc.github.io/ext/check/v0.1"`
	}
	if err := json.Unmarshal(predicate, &p); err != nil {
		return err
	}
	switch {
	case p.Check != nil:
		it.Check, it.Outcome = p.Check.Check, p.Check.Outcome
	case required:
		it.Outcome = hallmark.Errored
	}
	return nil
}

// Selector names a kind of statement that must exist.
type Selector struct {
	PredicateType string
	Name          string // of the statement, where several kinds share a type
	Check         string // the check; its outcome must be pass
	Restricted    bool   // the rule of the build must have an approved inventory
	Approved      bool   // every tool must be of the approved inventory
	AnyResult     bool   // the result is not what the row is about (a denial is logged too)
}

func (s Selector) matches(it Item) bool {
	if it.Name == nameSourceSummary && s.Name != nameSourceSummary {
		return false // no verdict on what was built
	}
	return it.PredicateType == s.PredicateType &&
		(s.Name == "" || it.Name == s.Name) &&
		(s.Check == "" || it.Check == s.Check)
}

// holds reports whether it, which matches s, says what the row needs.
func (s Selector) holds(it Item) bool {
	switch {
	case s.Restricted:
		return it.Restricted && it.Outcome != hallmark.Fail
	case s.Approved:
		return it.Approved && it.Outcome != hallmark.Fail
	case s.AnyResult:
		return true
	case s.Check != "":
		return it.Outcome == hallmark.Pass
	default:
		return it.Outcome == hallmark.Pass || it.Outcome == 0
	}
}

func (s Selector) String() string {
	switch {
	case s.Check != "":
		return "check " + s.Check
	case s.Name != "":
		return s.Name + " attestation"
	}
	return s.PredicateType
}

// The vocabulary of the tables.

func source() Selector  { return Selector{PredicateType: intoto.PredicateSource, Check: "source"} }
func secrets() Selector { return Selector{PredicateType: intoto.PredicateTestResult, Check: "secrets"} }
func sast() Selector    { return Selector{PredicateType: intoto.PredicateTestResult, Check: "sast"} }
func sbom() Selector    { return Selector{PredicateType: intoto.PredicateTestResult, Check: "sbom"} }
func tests() Selector   { return Selector{PredicateType: intoto.PredicateTestResult, Check: "tests"} }
func sca() Selector     { return Selector{PredicateType: intoto.PredicateVulns, Check: "sca"} }
func imageScan() Selector {
	return Selector{PredicateType: intoto.PredicateTestResult, Check: "image"}
}
func build() Selector {
	return Selector{PredicateType: intoto.PredicateLink, Name: intoto.NameProcess, Check: "build"}
}
func materials() Selector {
	return Selector{PredicateType: intoto.PredicateLink, Name: intoto.NameMaterials}
}

// environment is the inventory, whatever it says of the isolation; isolated is
// the same statement without a guarantee that did not hold.
func environment() Selector {
	sel := isolated()
	sel.AnyResult = true
	return sel
}
func isolated() Selector {
	return Selector{PredicateType: intoto.PredicateSCAI, Name: intoto.NameEnvironment}
}

// approvedTools is the environment of a policy that approves an inventory.
func approvedTools() Selector {
	sel := isolated()
	sel.Approved = true
	return sel
}

// restrictedTools is the environment of a build under a rule that has an approved
// inventory: what it ran was compared with it.
func restrictedTools() Selector {
	sel := isolated()
	sel.Restricted = true
	return sel
}

// traced is the record of a build that was seen whole.
func traced() Selector { return Selector{PredicateType: intoto.PredicateTrace} }
func artifacts() Selector {
	return Selector{PredicateType: intoto.PredicateSCAI, Name: intoto.NameArtifacts}
}
func provenance() Selector { return Selector{PredicateType: intoto.PredicateProvenance} }
func spdx() Selector       { return Selector{PredicateType: intoto.PredicateSPDX} }
func cycloneDX() Selector  { return Selector{PredicateType: intoto.PredicateCycloneDX} }
func policy() Selector     { return Selector{PredicateType: intoto.PredicatePolicy} }

// transition is what the source gate answered to an update of a reference, review
// what somebody said of a change.
func transition() Selector { return Selector{PredicateType: intoto.PredicateTransition} }
func review() Selector     { return Selector{PredicateType: intoto.PredicateReview} }
func access() Selector     { return Selector{PredicateType: intoto.PredicateAccess} }

// nameSourceSummary is how the report tells the verification summary of a revision
// (SLSA Source track) from the verdict on what was built from it.
const nameSourceSummary = "source summary"

// sourceSummary is the summary of a revision that a reference showed.
func sourceSummary() Selector {
	return Selector{PredicateType: intoto.PredicateVSA, Name: nameSourceSummary}
}

// forgeAudit is what was read of a repository at another forge, whatever it was.
func forgeAudit() Selector {
	return Selector{PredicateType: intoto.PredicateTestResult, Check: intoto.CheckForge, AnyResult: true}
}
func genesis() Selector { return Selector{PredicateType: intoto.PredicateGenesis} }

// decision is the VSA of the latest verdict, PASSED or FAILED: for rows about
// how decisions are made. passed must be PASSED.
func decision() Selector { return Selector{PredicateType: intoto.PredicateVSA, AnyResult: true} }
func passed() Selector   { return Selector{PredicateType: intoto.PredicateVSA} }
