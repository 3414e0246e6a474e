// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
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

// Limits on one decision. Each is far above what a run makes.
const (
	evalTimeout   = 10 * time.Second
	maxStatements = 4096
	maxInput      = 64 << 20 // bytes of the facts as JSON
)

// decisionRevision counts the changes to what this file adds to the rules. It
// is pinned with the capabilities, so that replay names the engine when a newer
// one decides otherwise.
const decisionRevision = 4

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
	raw, err := canonical(map[string]any{"builtins": builtins(), "decision": decisionRevision})
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
	for _, name := range slices.Sorted(maps.Keys(doc.Modules)) {
		opts = append(opts, rego.Module(name, doc.Modules[name]))
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

// Decide evaluates the policy. An error means that no decision could be made.
func (e *Engine) Decide(ctx context.Context, r Request) (Verdict, error) {
	if len(r.Statements) > maxStatements {
		return Verdict{}, hallmark.Errorf(hallmark.KindInvalid, "deciding over %d statements: the limit is %d", len(r.Statements), maxStatements)
	}
	inputs, facts := []Input{}, []fact{}
	seen := map[hallmark.Digest]bool{}
	for _, s := range r.Statements {
		if !s.Valid() {
			return Verdict{}, hallmark.Errorf(hallmark.KindInternal, "deciding over a statement that nobody verified")
		}
		if seen[s.BundleDigest()] {
			continue
		}
		seen[s.BundleDigest()] = true
		f, err := factOf(s)
		if err != nil {
			return Verdict{}, fmt.Errorf("reading statement %s: %w", s.Digest(), err)
		}
		facts = append(facts, f)
		inputs = append(inputs, Input{Statement: s.Digest(), Bundle: s.BundleDigest(), PredicateType: s.PredicateType()})
	}
	return e.decide(ctx, r, inputs, facts)
}

// decide makes the verdict out of facts. The order of inputs and facts leaves no
// trace in it.
func (e *Engine) decide(ctx context.Context, r Request, inputs []Input, facts []fact) (Verdict, error) {
	if y := r.Clock.UTC().Year(); y < 1970 || y > 2100 {
		return Verdict{}, hallmark.Errorf(hallmark.KindInternal, "deciding at %s: want a clock that was set", r.Clock.UTC().Format(time.RFC3339))
	}
	v := Verdict{
		APIVersion: "hallmark/v1", Kind: "Verdict", Clock: r.Clock.UTC().Truncate(time.Second), Subjects: append([]hallmark.Artifact{}, r.Subjects...), Revision: r.Revision,
		ResourceURI: r.ResourceURI, Roots: r.RootsDigest, TrustedRoot: r.Roots.TrustedRoot, Inputs: append([]Input{}, inputs...), Levels: []string{},
	}
	slices.SortFunc(v.Subjects, func(a, b hallmark.Artifact) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(string(a.Digest), string(b.Digest)))
	})
	slices.SortFunc(v.Inputs, func(a, b Input) int { return strings.Compare(string(a.Bundle), string(b.Bundle)) })
	facts = slices.Clone(facts)
	slices.SortStableFunc(facts, func(a, b fact) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	v.Policy.Digest, v.Policy.Version = e.policy.Digest(), e.policy.Version()
	v.Engine.Name, v.Engine.Version, v.Engine.Capabilities = "opa", opaversion.Version, e.caps
	reasons, allow, err := e.eval(ctx, v, facts)
	if err != nil {
		return Verdict{}, err
	}
	v.Decision = e.decision(v, facts, reasons, allow)
	v.Decision.Notes = e.notes(r, facts)
	if v.Decision.Allowed() {
		v.Levels = levels(facts, r.Revision)
	}
	return v, nil
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
	images := imagesIn(facts, v.Subjects)
	digests := []string{}
	for _, a := range images {
		digests = append(digests, a.Digest.Hex())
	}
	timed := []fact{}
	for _, f := range facts {
		timed = append(timed, f.withTimes())
	}
	input := map[string]any{
		"now": nanos(v.Clock), "subjects": subjects, "revision": v.Revision, "statements": timed, "required": e.required(images), "images": digests, "builders": e.params.Builders,
		"tools": append([]string{}, e.params.Tools...), "anyTool": e.params.AnyTool, "approvedImages": append([]string{}, e.params.Images...), "anyImage": e.params.AnyImage, "scansMaxAge": e.params.ScansMaxAge.Nanoseconds(), "advisoriesMaxAge": e.params.AdvisoriesMaxAge.Nanoseconds(),
		"thresholds":  map[string]int{"severity": int(e.params.Severity), "confidence": int(e.params.Confidence)},
		"severities":  map[string]int{"info": 1, "low": 2, "medium": 3, "high": 4, "critical": 5},
		"confidences": map[string]int{"low": 1, "medium": 2, "high": 3},
	}
	raw, err := json.Marshal(input)
	if err != nil {
		return nil, false, hallmark.Errorf(hallmark.KindInvalid, "encoding policy input: %w", err)
	}
	if len(raw) > maxInput {
		return nil, false, hallmark.Errorf(hallmark.KindInvalid, "policy input of %d bytes: the limit is %d", len(raw), maxInput)
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
// required check has records, each of them is a whole pass, and a provenance
// speaks for every artifact. A custom rule can deny more, never allow more.
func (e *Engine) decision(v Verdict, facts []fact, reasons []hallmark.Reason, allow bool) hallmark.Decision {
	reasons = append(append(reasons, e.buildReasons(facts)...), unlanded(v.Revision, facts)...)
	d := hallmark.Decision{Effect: hallmark.Deny, Checks: []hallmark.CheckResult{}, Reasons: reasons}
	for i, r := range d.Reasons {
		if r.Fix == "" {
			d.Reasons[i].Fix = Remedy(r.Code)
		}
	}
	slices.SortStableFunc(d.Reasons, func(a, b hallmark.Reason) int {
		return cmp.Or(order(a.Check)-order(b.Check), strings.Compare(string(a.Code), string(b.Code)), strings.Compare(a.Message, b.Message))
	})
	images := imagesIn(facts, v.Subjects)
	sound := len(e.params.Required) > 0
	for _, name := range e.required(images) {
		c := hallmark.CheckResult{Check: name}
		for _, f := range facts {
			if !f.records(name, v.Revision, v.Subjects, images) {
				continue
			}
			c.Evidence = append(c.Evidence, f.Digest)
			c.Outcome = worse(c.Outcome, f.Check.Outcome)
			sound = sound && f.Check.Outcome == hallmark.Pass && (f.Check.Coverage == nil || len(f.Check.Coverage.Missed) == 0)
		}
		if c.Outcome == 0 {
			c.Outcome = hallmark.Skipped
		}
		sound = sound && c.Outcome == hallmark.Pass
		for _, r := range d.Reasons {
			if r.Check == name {
				c.Reasons = append(c.Reasons, r)
			}
		}
		slices.Sort(c.Evidence)
		d.Checks = append(d.Checks, c)
	}
	backed := slices.ContainsFunc(facts, func(f fact) bool { return f.backs(v.Subjects, v.Revision, e.params.Builders) })
	if allow && sound && backed && len(reasons) == 0 {
		d.Effect = hallmark.Allow
	} else if len(d.Reasons) == 0 {
		d.Reasons = []hallmark.Reason{{
			Code: hallmark.CodePolicyUndefined, Message: "the rules give no reason, but they do not allow, or a required check or provenance is missing",
			Fix: "compare the rules of the policy with those of hallmark init",
		}}
	}
	return d
}

// worse is the outcome that weighs more: fail, then error, then skipped. An
// outcome that is none of the four weighs as an error.
func worse(a, b hallmark.Outcome) hallmark.Outcome {
	weight := func(o hallmark.Outcome) int {
		return slices.Index([]hallmark.Outcome{0, hallmark.Pass, hallmark.Skipped, hallmark.Errored, hallmark.Fail}, o)
	}
	if weight(b) <= 0 {
		b = hallmark.Errored
	}
	if weight(b) > weight(a) {
		return b
	}
	return a
}

// order puts reasons in the order of the checks.
func order(check string) int {
	if i := slices.Index(checkNames(), check); i >= 0 {
		return i
	}
	return len(checkNames())
}

// notes are what every reader of a verdict must know.
func (e *Engine) notes(r Request, facts []fact) []string {
	out := []string{}
	if r.Roots.Mode == verify.ModeSingleOperator {
		out = append(out, "a single operator administers this home: nothing here was agreed by two persons")
	}
	if r.Roots.Mode == verify.ModeThreshold && e.doc.Parameters["access.secondFactor"] == "none" {
		out = append(out, "the policy asks no second factor of its administrators: who has enough of their keys changes it")
	}
	for _, f := range facts {
		if f.BuilderID == intoto.BuilderLocal {
			out = append(out, "built by a local builder, a person's own machine: at most SLSA Build L1")
			break
		}
	}
	for _, f := range facts {
		if f.BuilderID == intoto.BuilderWrap {
			out = append(out, "built by a wrapped command of another system: it was recorded, not isolated, and could reach the keys of this home")
			break
		}
	}
	if e.params.EgressAllowed {
		out = append(out, "the policy records attempts of a build to leave its sandbox and does not refuse them")
	}
	if r.Roots.WitnessPolicy == "" {
		out = append(out, "no witness cosigns the log: its operator could show different trees to different readers")
	}
	return out
}
