// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package hallmark

// Code is a stable reason code: upper case with underscores, never reused for
// another meaning. Scripts may match on it.
type Code string

// Reason says why something is not allowed and what would change that.
type Reason struct {
	Code    Code   `json:"code"`
	Check   string `json:"check,omitempty"`   // the check it belongs to
	Message string `json:"message"`           // one sentence, no secret
	Missing string `json:"missing,omitempty"` // the evidence that is missing
	Nearest string `json:"nearest,omitempty"` // the nearest evidence that exists
	Field   string `json:"field,omitempty"`   // the field in which the nearest differs
	Fix     string `json:"fix,omitempty"`     // the command or change that would supply it
}

// Effect is what a decision allows.
type Effect int

// The two effects. The zero value is neither, and every reader must treat it as
// Deny.
const (
	Allow Effect = iota + 1
	Deny
)

var effectNames = []string{"", "allow", "deny"}

func (e Effect) String() string { return enumName(effectNames, int(e)) }

// MarshalText refuses the zero value.
func (e Effect) MarshalText() ([]byte, error) { return enumText("effect", effectNames, int(e)) }

// UnmarshalText accepts "allow" and "deny" only.
func (e *Effect) UnmarshalText(b []byte) error {
	i, err := enumParse("effect", effectNames, string(b))
	*e = Effect(i)
	return err
}

// CheckResult is how one required check stands in a decision.
type CheckResult struct {
	Check    string   `json:"check"`
	Outcome  Outcome  `json:"outcome"`
	Evidence []Digest `json:"evidence,omitempty"` // statement digests it rests on
	Reasons  []Reason `json:"reasons,omitempty"`
}

// Decision is the answer of a gate. A denial is a value, not an error; an error
// means that no decision could be made, and denies.
type Decision struct {
	Effect  Effect        `json:"effect"`
	Checks  []CheckResult `json:"checks"`
	Reasons []Reason      `json:"reasons,omitempty"` // all reasons of a denial
	Notes   []string      `json:"notes,omitempty"`   // what every reader must know: single operator, builder mode
}

// Allowed reports whether d allows. A zero Decision does not.
func (d Decision) Allowed() bool { return d.Effect == Allow && len(d.Reasons) == 0 }
