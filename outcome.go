// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package hallmark

import (
	"fmt"
	"slices"
)

// Outcome is how a check ended. Only Pass counts for a decision.
type Outcome int

// The four outcomes. There is no fifth, and the zero value is none of them.
const (
	Pass    Outcome = iota + 1 // it ran completely and found nothing that counts
	Fail                       // it ran and found something that counts
	Errored                    // it could not decide: no data, stale data, a crash, an incomplete read
	Skipped                    // it did not run
)

var outcomeNames = []string{"", "pass", "fail", "error", "skipped"}

func (o Outcome) String() string { return enumName(outcomeNames, int(o)) }

// MarshalText refuses the zero value: an outcome that was never set must not be
// written as if it meant something.
func (o Outcome) MarshalText() ([]byte, error) { return enumText("outcome", outcomeNames, int(o)) }

// UnmarshalText accepts the four names only.
func (o *Outcome) UnmarshalText(b []byte) error {
	i, err := enumParse("outcome", outcomeNames, string(b))
	*o = Outcome(i)
	return err
}

// Severity orders findings; higher is worse.
type Severity int

// The severities, in rising order.
const (
	SeverityInfo Severity = iota + 1
	SeverityLow
	SeverityMedium
	SeverityHigh
	SeverityCritical
)

var severityNames = []string{"", "info", "low", "medium", "high", "critical"}

func (s Severity) String() string { return enumName(severityNames, int(s)) }

// MarshalText refuses the zero value.
func (s Severity) MarshalText() ([]byte, error) {
	return enumText("severity", severityNames, int(s))
}

// UnmarshalText accepts the five names only.
func (s *Severity) UnmarshalText(b []byte) error {
	i, err := enumParse("severity", severityNames, string(b))
	*s = Severity(i)
	return err
}

// Confidence says how sure a scanner is of a finding.
type Confidence int

// The confidences, in rising order.
const (
	ConfidenceLow Confidence = iota + 1
	ConfidenceMedium
	ConfidenceHigh
)

var confidenceNames = []string{"", "low", "medium", "high"}

func (c Confidence) String() string { return enumName(confidenceNames, int(c)) }

// MarshalText refuses the zero value.
func (c Confidence) MarshalText() ([]byte, error) {
	return enumText("confidence", confidenceNames, int(c))
}

// UnmarshalText accepts the three names only.
func (c *Confidence) UnmarshalText(b []byte) error {
	i, err := enumParse("confidence", confidenceNames, string(b))
	*c = Confidence(i)
	return err
}

func enumName(names []string, i int) string {
	if i <= 0 || i >= len(names) {
		return "unset"
	}
	return names[i]
}

func enumText(what string, names []string, i int) ([]byte, error) {
	if i <= 0 || i >= len(names) {
		return nil, fmt.Errorf("%s %d is not set", what, i)
	}
	return []byte(names[i]), nil
}

func enumParse(what string, names []string, s string) (int, error) {
	i := slices.Index(names, s)
	if i <= 0 {
		return 0, Errorf(KindInvalid, "%s %.40q: want one of %v", what, s, names[1:])
	}
	return i, nil
}
