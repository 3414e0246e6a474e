// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	opaversion "github.com/open-policy-agent/opa/v1/version"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// evalTimeout bounds one decision.
const evalTimeout = 10 * time.Second

// builtins are all that a policy may call: no clock, no randomness, no network,
// no environment, so that a decision depends on its input alone.
func builtins() []string {
	return []string{
		"eq", "equal", "neq", "assign", "gt", "gte", "lt", "lte", "plus", "minus", "mul", "div", "rem", "abs", "count", "sum", "max", "min", "sort", "and", "or",
		"internal.member_2", "internal.member_3", "internal.print", "concat", "contains", "endswith", "startswith", "format_int", "indexof", "lower", "upper",
		"replace", "split", "sprintf", "substring", "trim", "trim_prefix", "trim_suffix", "object.get", "object.keys", "object.union", "object.remove",
		"array.concat", "array.slice", "to_number", "is_string", "is_number", "is_array", "is_object", "is_boolean", "is_null", "is_set", "type_name", "time.parse_rfc3339_ns", "time.parse_duration_ns",
	}
}

func capabilities() (*ast.Capabilities, hallmark.Digest, error) {
	all := ast.CapabilitiesForThisVersion()
	c := &ast.Capabilities{Features: all.Features, FutureKeywords: all.FutureKeywords, AllowNet: []string{}}
	for _, b := range all.Builtins {
		if slices.Contains(builtins(), b.Name) {
			c.Builtins = append(c.Builtins, b)
		}
	}
	raw, err := canonical(builtins())
	return c, hallmark.DigestOf(raw), err
}

// Engine decides under one verified policy. It is safe for concurrent use.
type Engine struct {
	policy verify.Policy
	doc    Document
	params Parameters
	query  rego.PreparedEvalQuery
	caps   hallmark.Digest
}

// New compiles a verified policy.
func New(p verify.Policy) (*Engine, error) {
	if !p.Valid() {
		return nil, hallmark.Errorf(hallmark.KindInternal, "deciding needs a verified policy")
	}
	doc, err := ParseDocument(p.Document())
	if err != nil {
		return nil, err
	}
	e, err := compile(doc)
	if err != nil {
		return nil, err
	}
	e.policy = p
	return e, nil
}

// compile prepares the rules of a document.
func compile(doc Document) (*Engine, error) {
	e := &Engine{doc: doc}
	var err error
	if e.params, err = doc.Typed(); err != nil {
		return nil, err
	}
	var caps *ast.Capabilities
	if caps, e.caps, err = capabilities(); err != nil {
		return nil, err
	}
	opts := []func(*rego.Rego){rego.Query("data.hallmark.release.decision"), rego.Capabilities(caps), rego.Strict(true), rego.StrictBuiltinErrors(true), rego.SetRegoVersion(ast.RegoV1)}
	for name, text := range doc.Modules {
		opts = append(opts, rego.Module(name, text))
	}
	if e.query, err = rego.New(opts...).PrepareForEval(context.Background()); err != nil {
		return nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodePolicyUndefined, "compiling the policy: %w", err)
	}
	return e, nil
}

// Request is what a decision is about. Every statement was verified.
type Request struct {
	Statements  []verify.Statement
	Subjects    []hallmark.Artifact
	Revision    hallmark.Revision
	ResourceURI string
	Clock       time.Time
	Roots       verify.Roots
	RootsDigest hallmark.Digest
}

// Input is one statement that a verdict rests on.
type Input struct {
	Statement     hallmark.Digest `json:"statement"`
	Bundle        hallmark.Digest `json:"bundle"`
	PredicateType string          `json:"predicateType"`
}

// Verdict is a decision with everything it depends on.
type Verdict struct {
	APIVersion  string              `json:"apiVersion"`
	Kind        string              `json:"kind"`
	Clock       time.Time           `json:"clock"`
	Subjects    []hallmark.Artifact `json:"subjects"`
	Revision    hallmark.Revision   `json:"revision"`
	ResourceURI string              `json:"resourceUri"`
	Inputs      []Input             `json:"inputs"`
	Policy      struct {
		Digest  hallmark.Digest `json:"digest"`
		Version int             `json:"version"`
	} `json:"policy"`
	Roots       hallmark.Digest `json:"roots"`
	TrustedRoot hallmark.Digest `json:"trustedRoot"`
	Engine      struct {
		Name         string          `json:"name"`
		Version      string          `json:"version"`
		Capabilities hallmark.Digest `json:"capabilities"`
	} `json:"engine"`
	Decision hallmark.Decision `json:"decision"`
	Levels   []string          `json:"levels"`
}

// Encode returns the RFC 8785 form, the bytes that replay compares.
func (v Verdict) Encode() ([]byte, error) { return canonical(v) }

// ParseVerdict reads verdict.json strictly.
func ParseVerdict(b []byte) (Verdict, error) {
	var v Verdict
	if err := intoto.CheckJSON(b, 32); err != nil {
		return v, hallmark.Errorf(hallmark.KindInvalid, "reading verdict: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		return v, hallmark.Errorf(hallmark.KindInvalid, "reading verdict: %w", err)
	}
	if v.APIVersion != "hallmark/v1" || v.Kind != "Verdict" {
		return v, hallmark.Errorf(hallmark.KindInvalid, "reading verdict: not a verdict of version hallmark/v1")
	}
	return v, nil
}

// Decide evaluates the policy. An error means that no decision could be made.
func (e *Engine) Decide(ctx context.Context, r Request) (Verdict, error) {
	v := Verdict{
		APIVersion: "hallmark/v1", Kind: "Verdict", Clock: r.Clock.UTC().Truncate(time.Second), Subjects: slices.Clone(r.Subjects), Revision: r.Revision,
		ResourceURI: r.ResourceURI, Roots: r.RootsDigest, TrustedRoot: r.Roots.TrustedRoot, Inputs: []Input{}, Levels: []string{},
	}
	if v.Subjects == nil {
		v.Subjects = []hallmark.Artifact{}
	}
	slices.SortFunc(v.Subjects, func(a, b hallmark.Artifact) int { return strings.Compare(a.Name, b.Name) })
	v.Policy.Digest, v.Policy.Version = e.policy.Digest(), e.policy.Version()
	v.Engine.Name, v.Engine.Version, v.Engine.Capabilities = "opa", opaversion.Version, e.caps
	statements := slices.Clone(r.Statements)
	slices.SortFunc(statements, func(a, b verify.Statement) int {
		return strings.Compare(string(a.BundleDigest()), string(b.BundleDigest()))
	})
	var facts []fact
	for _, s := range statements {
		if !s.Valid() {
			return v, hallmark.Errorf(hallmark.KindInternal, "deciding over a statement that nobody verified")
		}
		f, err := factOf(s)
		if err != nil {
			return v, err
		}
		facts = append(facts, f)
		v.Inputs = append(v.Inputs, Input{Statement: s.Digest(), Bundle: s.BundleDigest(), PredicateType: s.PredicateType()})
		if s.MaxLevel() != "" && !slices.Contains(v.Levels, s.MaxLevel()) {
			v.Levels = append(v.Levels, s.MaxLevel())
		}
	}
	reasons, allow, err := e.eval(ctx, v, facts)
	if err != nil {
		return v, err
	}
	v.Decision = e.decision(v, facts, reasons, allow)
	v.Decision.Notes = notes(r, facts)
	if !v.Decision.Allowed() {
		v.Levels = []string{}
	}
	return v, nil
}

// fact is a verified statement as the rules see it.
type fact struct {
	Digest        hallmark.Digest             `json:"digest"`
	PredicateType string                      `json:"predicateType"`
	Signer        string                      `json:"signer"`
	SignedAt      time.Time                   `json:"signedAt"`
	Subjects      []intoto.ResourceDescriptor `json:"subjects"`
	Name          string                      `json:"name"`
	Check         *hallmark.CheckRecord       `json:"check"`
	BuilderID     string                      `json:"builderId,omitempty"`
	BuildType     string                      `json:"buildType,omitempty"`
	External      *intoto.ExternalParameters  `json:"external,omitempty"`
	StartedOn     time.Time                   `json:"startedOn,omitzero"`
	FinishedOn    time.Time                   `json:"finishedOn,omitzero"`
}

func factOf(s verify.Statement) (fact, error) {
	st := s.Statement()
	f := fact{Digest: s.Digest(), PredicateType: s.PredicateType(), Signer: s.Signer(), SignedAt: s.SignedAt().UTC(), Subjects: st.Subject, BuilderID: s.BuilderID()}
	var err error
	if f.Check, err = intoto.CheckOf(st); err != nil {
		return f, err
	}
	switch st.PredicateType {
	case intoto.PredicateLink:
		l, err := intoto.DecodePredicate[intoto.Link](st)
		if err != nil {
			return f, err
		}
		f.Name = l.Name
	case intoto.PredicateSCAI:
		l, err := intoto.DecodePredicate[intoto.SCAI](st)
		if err != nil {
			return f, err
		}
		f.Name = l.Name
	case intoto.PredicateProvenance:
		p, err := intoto.ParseProvenance(st)
		if err != nil {
			return f, err
		}
		f.BuildType, f.External = p.BuildDefinition.BuildType, &p.BuildDefinition.ExternalParameters
		f.StartedOn, f.FinishedOn = p.RunDetails.Metadata.StartedOn, p.RunDetails.Metadata.FinishedOn
	}
	return f, nil
}

// eval runs the rules. Undefined is a denial.
func (e *Engine) eval(ctx context.Context, v Verdict, facts []fact) ([]hallmark.Reason, bool, error) {
	type subject struct {
		Name   string `json:"name"`
		SHA256 string `json:"sha256"`
	}
	subjects := []subject{}
	for _, a := range v.Subjects {
		subjects = append(subjects, subject{a.Name, a.Digest.Hex()})
	}
	if facts == nil {
		facts = []fact{}
	}
	input := map[string]any{
		"now": v.Clock.UnixNano(), "subjects": subjects, "revision": v.Revision, "statements": facts, "required": e.params.Required, "builders": e.params.Builders,
		"scansMaxAge": e.params.ScansMaxAge.Nanoseconds(), "advisoriesMaxAge": e.params.AdvisoriesMaxAge.Nanoseconds(),
		"thresholds":  map[string]int{"severity": int(e.params.Severity), "confidence": int(e.params.Confidence)},
		"severities":  map[string]int{"info": 1, "low": 2, "medium": 3, "high": 4, "critical": 5},
		"confidences": map[string]int{"low": 1, "medium": 2, "high": 3},
	}
	raw, err := json.Marshal(input)
	if err != nil {
		return nil, false, fmt.Errorf("encoding policy input: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var doc any
	if err := dec.Decode(&doc); err != nil {
		return nil, false, fmt.Errorf("encoding policy input: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, evalTimeout)
	defer cancel()
	rs, err := e.query.Eval(ctx, rego.EvalInput(doc))
	if err != nil {
		return nil, false, fmt.Errorf("evaluating the policy: %w", err)
	}
	undefined := []hallmark.Reason{{Code: hallmark.CodePolicyUndefined, Message: "the policy gives no decision: undefined denies"}}
	if len(rs) != 1 || len(rs[0].Expressions) != 1 {
		return undefined, false, nil
	}
	b, err := json.Marshal(rs[0].Expressions[0].Value)
	if err != nil {
		return nil, false, fmt.Errorf("reading the policy's answer: %w", err)
	}
	var answer struct {
		Allow   *bool             `json:"allow"`
		Reasons []hallmark.Reason `json:"reasons"`
	}
	if err := json.Unmarshal(b, &answer); err != nil || answer.Allow == nil {
		return undefined, false, nil
	}
	return answer.Reasons, *answer.Allow, nil
}

// decision combines the rules' answer with what no rule may change: every
// required check has a record and each of them is a pass, and provenance exists.
func (e *Engine) decision(v Verdict, facts []fact, reasons []hallmark.Reason, allow bool) hallmark.Decision {
	d := hallmark.Decision{Effect: hallmark.Deny, Checks: []hallmark.CheckResult{}, Reasons: reasons}
	sound := len(e.params.Required) > 0 && len(v.Subjects) > 0
	for _, name := range e.params.Required {
		c := hallmark.CheckResult{Check: name}
		for _, f := range facts {
			if f.Check == nil || f.Check.Check != name || f.Check.Revision != v.Revision {
				continue
			}
			c.Evidence = append(c.Evidence, f.Digest)
			if c.Outcome == 0 || c.Outcome == hallmark.Pass {
				c.Outcome = f.Check.Outcome
			}
		}
		if c.Outcome == 0 {
			c.Outcome = hallmark.Skipped
		}
		sound = sound && c.Outcome == hallmark.Pass
		for _, r := range reasons {
			if r.Check == name {
				c.Reasons = append(c.Reasons, r)
			}
		}
		slices.Sort(c.Evidence)
		d.Checks = append(d.Checks, c)
	}
	provenance := slices.ContainsFunc(facts, func(f fact) bool { return f.PredicateType == intoto.PredicateProvenance })
	slices.SortStableFunc(d.Reasons, func(a, b hallmark.Reason) int {
		return strings.Compare(fmt.Sprint(order(a.Check), a.Code, a.Message), fmt.Sprint(order(b.Check), b.Code, b.Message))
	})
	if allow && sound && provenance && len(reasons) == 0 {
		d.Effect = hallmark.Allow
	} else if len(d.Reasons) == 0 {
		d.Reasons = []hallmark.Reason{{Code: hallmark.CodePolicyUndefined, Message: "the rules allow, but a required check or provenance is missing"}}
	}
	return d
}

// order puts reasons in the order of the checks.
func order(check string) int {
	if i := slices.Index(checkNames(), check); i >= 0 {
		return i
	}
	return len(checkNames())
}

// notes are what every reader of a verdict must know.
func notes(r Request, facts []fact) []string {
	out := []string{}
	if r.Roots.Mode == "single-operator" {
		out = append(out, "a single operator administers this home: nothing here was agreed by two persons")
	}
	for _, f := range facts {
		if f.BuilderID == intoto.BuilderLocal {
			out = append(out, "built by a local builder, a person's own machine: at most SLSA Build L1")
			break
		}
	}
	if r.Roots.WitnessPolicy == "" {
		out = append(out, "no witness cosigns the log: its operator could show different trees to different readers")
	}
	return out
}

// Difference is one field in which two verdicts differ.
type Difference struct {
	Field, Recorded, Computed string
}

func (d Difference) String() string {
	return fmt.Sprintf("%s: recorded %s, computed %s", d.Field, d.Recorded, d.Computed)
}

// Compare lists the fields in which two verdicts differ, by JSON pointer.
func Compare(recorded, computed Verdict) ([]Difference, error) {
	tree := func(v Verdict) (any, error) {
		b, err := v.Encode()
		if err != nil {
			return nil, err
		}
		var t any
		return t, json.Unmarshal(b, &t)
	}
	a, err := tree(recorded)
	if err != nil {
		return nil, err
	}
	b, err := tree(computed)
	if err != nil {
		return nil, err
	}
	return diff("", a, b), nil
}

func diff(at string, a, b any) []Difference {
	if am, ok := a.(map[string]any); ok {
		if bm, ok := b.(map[string]any); ok {
			keys := map[string]bool{}
			for k := range am {
				keys[k] = true
			}
			for k := range bm {
				keys[k] = true
			}
			var names []string
			for k := range keys {
				names = append(names, k)
			}
			slices.Sort(names)
			var out []Difference
			for _, k := range names {
				out = append(out, diff(at+"/"+k, am[k], bm[k])...)
			}
			return out
		}
	}
	aj, _ := json.Marshal(a)
	bj, _ := json.Marshal(b)
	if bytes.Equal(aj, bj) {
		return nil
	}
	return []Difference{{Field: at, Recorded: string(aj), Computed: string(bj)}}
}
