// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package conformance maps the requirements of NIST SP 800-204D, SLSA v1.2 and
// the SSDF (NIST SP 800-218) to the rule that enforces each, the evidence that
// shows it and the test that proves it, and says how each stands in the latest
// verdict.
//
// It judges verified evidence only and never verifies anything itself. It never
// calls a requirement satisfied on partial grounds: a rule that covers a part of
// a requirement leaves the row "not implemented" and says what is missing.
package conformance

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// Framework is a set of requirements.
type Framework int

// The frameworks.
const (
	NIST800204D Framework = iota + 1 // NIST SP 800-204D, N001–N125
	SLSA12                           // SLSA v1.2: build, source and verification rows
	SSDF11                           // NIST SP 800-218 (SSDF) v1.1, tasks
)

var frameworkNames = [...]string{"", "nist-800-204d", "slsa", "ssdf"}

// Frameworks lists every framework.
func Frameworks() []Framework { return []Framework{NIST800204D, SLSA12, SSDF11} }

// ParseFramework accepts the names that the command line takes.
func ParseFramework(s string) (Framework, error) {
	i := slices.Index(frameworkNames[:], s)
	if i <= 0 {
		err := hallmark.Errorf(hallmark.KindUsage, "unknown framework %.40q", s)
		return 0, hallmark.WithHint(err, "use one of "+strings.Join(frameworkNames[1:], ", "))
	}
	return Framework(i), nil
}

func (f Framework) String() string {
	if f <= 0 || int(f) >= len(frameworkNames) {
		return "unset"
	}
	return frameworkNames[f]
}

// Title is the framework's name for people.
func (f Framework) Title() string {
	switch f {
	case NIST800204D:
		return "NIST SP 800-204D, software supply chain security in CI/CD pipelines"
	case SLSA12:
		return "SLSA v1.2, build track, source track and verification"
	case SSDF11:
		return "NIST SP 800-218 v1.1, Secure Software Development Framework (SSDF)"
	}
	return "unset"
}

// Caveat is what every reader of a report must know before relying on it.
func (f Framework) Caveat() string {
	const caveat = "The rows of SP 800-204D were worked out from secondary texts of SP 800-204D " +
		"and must be compared with the standard before any claim of conformance."
	switch f {
	case SLSA12:
		return "The rows abbreviate SLSA v1.2 and must be compared with the specification. " + caveat
	case SSDF11:
		return "The tasks of SP 800-218 v1.1 are abbreviated in our own words, not quoted, " +
			"and must be compared with the standard. " + caveat
	case NIST800204D:
		return caveat
	}
	return caveat
}

// State is how a requirement stands. The zero value is none of them.
type State int

// The states, as the report prints them.
const (
	Satisfied      State = iota + 1 // implemented, and all its evidence is logged and says so
	NotSatisfied                    // there is evidence, and it says no, or the mode forbids it
	NoEvidence                      // implemented, but the log holds nothing for it
	NotImplemented                  // Hallmark does not do this, or only a part of it
	NotApplicable                   // no tool can show it, or an option that is not used
)

var stateNames = [...]string{"", "satisfied", "not satisfied", "no evidence", "not implemented", "not applicable"}

// States lists the states in the order of the summary.
func States() []State {
	return []State{Satisfied, NotSatisfied, NoEvidence, NotImplemented, NotApplicable}
}

func (s State) String() string {
	if s <= 0 || int(s) >= len(stateNames) {
		return "unset"
	}
	return stateNames[s]
}

// MarshalText refuses the zero value.
func (s State) MarshalText() ([]byte, error) {
	if s <= 0 || int(s) >= len(stateNames) {
		return nil, fmt.Errorf("state %d is not set", int(s))
	}
	return []byte(stateNames[s]), nil
}

// Requirement is one row of the table in code. Exactly one of Rule, Missing and
// NotApplicable is set: the row is implemented, not implemented, or nothing a
// tool can show.
type Requirement struct {
	ID      string   // N001, B01, PO.1.1
	Group   string   // heading it is printed under
	Section string   // where the source has it; for SLSA the level, for SSDF the practice
	Force   string   // M must, S should, P principle, O may, "proxy" for a testable stand-in; for SLSA the word
	Who     string   // who is bound by it; SLSA only
	Text    string   // the requirement
	Attacks []string // cases of the attack catalogue that test it

	Rule     string     // the rule or reason codes that enforce it
	Evidence []Selector // all must match
	Tests    []string   // "script/NAME" or "PACKAGE.TestName"
	Limit    string     // what a reader must know although the row is implemented

	Missing       string // what is missing, when it is not implemented
	NotApplicable string // why it does not apply

	TwoPersons bool // never satisfied under a single operator
	Hosted     bool // never satisfied by a builder on a person's own machine
}

// Requirements returns the rows of f in order. The caller owns the result.
func Requirements(f Framework) []Requirement {
	switch f {
	case NIST800204D:
		return nistRows()
	case SLSA12:
		return slsaRows()
	case SSDF11:
		return ssdfRows()
	}
	return nil
}
