// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// VerifyConfig says what to verify, with which evidence, under which roots.
type VerifyConfig struct {
	Home        string
	Artifact    string // path
	Evidence    string // result directory or evidence.jsonl
	TrustedRoot string
	Roots       hallmark.Digest // pin; empty means the home's roots
	At          time.Time       // zero means now
	State       string
	ResourceURI string
	Ref         string // expected branch or tag; empty expects none
	Levels      []string
	Reproduced  *Reproduction     // the rebuild that must have given the same bytes; nil asks for none
	Parameters  map[string]string // expected external parameters; nil expects what the policy permits
}

// Verified is the answer about one artifact.
type Verified struct {
	Artifact hallmark.Artifact
	Revision hallmark.Revision
	Decision hallmark.Decision
	Levels   []string
	Clock    time.Time
	Roots    hallmark.Digest
	Warnings []string
}

// evidence is an evidence folder under pinned roots.
type evidence struct {
	dir        string
	lines      [][]byte
	verifier   *verify.Verifier
	policyJSON []byte
	policySigs []byte
	warnings   []string
}

func deny(code hallmark.Code, format string, args ...any) hallmark.Decision {
	return hallmark.Decision{Effect: hallmark.Deny, Checks: []hallmark.CheckResult{}, Reasons: []hallmark.Reason{{Code: code, Message: fmt.Sprintf(format, args...)}}}
}

// denial turns an error that denies into a decision; other errors stay errors.
func denial(err error) (hallmark.Decision, bool) {
	if hallmark.KindOf(err) != hallmark.KindDenied {
		return hallmark.Decision{}, false
	}
	code := hallmark.CodeOf(err)
	if code == "" {
		code = hallmark.CodeEvidenceMalformed
	}
	return deny(code, "%s", err), true
}

// Verify decides again about an artifact. A denial is an answer, an error means
// that no answer could be given.
func Verify(ctx context.Context, cfg VerifyConfig) (Verified, error) {
	res := Verified{}
	var err error
	if res.Artifact, err = artifactAt(cfg.Artifact); err != nil && hallmark.CodeOf(err) != hallmark.CodeImageDigest {
		return res, err
	}
	other := err // the bytes of an image are not those that its digest names
	ev, err := openEvidence(cfg)
	if err != nil {
		return res, err
	}
	res.Warnings, res.Roots = ev.warnings, ev.verifier.RootsDigest()
	if other != nil {
		res.Decision = deny(hallmark.CodeImageDigest, "%s", other)
		return res, nil
	}
	if err := ev.judge(ctx, cfg, &res); err != nil {
		if dec, ok := denial(err); ok {
			res.Decision = dec
			return res, nil
		}
		return res, err
	}
	return res, nil
}

// openEvidence reads a folder and checks that its trust material is pinned.
func openEvidence(cfg VerifyConfig) (*evidence, error) {
	ev := &evidence{dir: cfg.Evidence}
	file := cfg.Evidence
	if file == "" {
		ev.dir = filepath.Dir(cfg.Artifact)
		file = ev.dir
	}
	if st, err := os.Stat(file); err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading evidence: %w", err)
	} else if st.IsDir() {
		file = filepath.Join(file, "evidence.jsonl")
	} else {
		ev.dir = filepath.Dir(file)
	}
	b, err := readLimited(file, maxEvidence)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading evidence: %w", err)
	}
	ev.lines = lines(b)
	roots, trusted, pin, err := ev.trust(cfg)
	if err != nil {
		return nil, err
	}
	vc := verify.Config{Roots: roots, Pin: pin, TrustedRoot: trusted}
	if m, err := memory(cfg.State); err != nil {
		ev.warnings = append(ev.warnings, "the largest checkpoint seen can't be remembered here: "+err.Error())
	} else {
		vc.Memory = m
	}
	if ev.verifier, err = verify.New(vc); err != nil {
		return nil, err
	}
	if cfg.Roots == "" { // the home's own roots: they count once its administrators signed them
		if err := checkGenesis(Layout{cfg.Home}, ev.verifier); err != nil {
			return nil, err
		}
	}
	if ev.policyJSON, err = readLimited(filepath.Join(ev.dir, "policy", "policy.json"), maxPolicyFile); err == nil {
		ev.policySigs, err = readLimited(filepath.Join(ev.dir, "policy", "policy.sigstore.jsonl"), maxPolicyFile)
	}
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading the policy in the evidence: %w", err)
	}
	return ev, nil
}

// trust finds roots and trusted root. What lies in the evidence counts only when
// its digest is the pinned one.
func (ev *evidence) trust(cfg VerifyConfig) (roots, trusted []byte, pin hallmark.Digest, err error) {
	unpinned := func(format string, args ...any) error {
		return hallmark.WithHint(hallmark.Coded(hallmark.KindUnpinned, hallmark.CodeTrustRootUnpinned, format, args...),
			"name the roots digest that the producer gave you by another way: --roots sha256:…")
	}
	home := Layout{cfg.Home}
	homeRoots, homeErr := readLimited(home.Roots(), maxTrustFile)
	if homeErr != nil && !errors.Is(homeErr, fs.ErrNotExist) && cfg.Roots == "" {
		return nil, nil, "", hallmark.Errorf(hallmark.KindInvalid, "reading home: %w", homeErr)
	}
	pin = cfg.Roots
	if pin == "" {
		if homeErr != nil {
			return nil, nil, "", unpinned("no roots are pinned: there is no home in %s and no --roots", cfg.Home)
		}
		pin = hallmark.DigestOf(homeRoots)
	}
	candidates := [][]byte{homeRoots}
	if b, err := readLimited(filepath.Join(ev.dir, "roots.json"), maxTrustFile); err == nil {
		candidates = append(candidates, b)
		if hallmark.DigestOf(b) != pin {
			return nil, nil, "", unpinned("the evidence was made under roots %s, the pinned roots are %s", hallmark.DigestOf(b), pin)
		}
	}
	for _, b := range candidates {
		if b != nil && hallmark.DigestOf(b) == pin {
			roots = b
		}
	}
	if roots == nil {
		return nil, nil, "", unpinned("neither the home nor the evidence holds roots with the digest %s", pin)
	}
	paths := []string{filepath.Join(ev.dir, "trusted_root.json"), home.TrustedRoot()}
	if cfg.TrustedRoot != "" {
		paths = []string{cfg.TrustedRoot}
	}
	for _, p := range paths {
		b, err := readLimited(p, maxTrustFile)
		if err == nil {
			return roots, b, pin, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, "", hallmark.Errorf(hallmark.KindInvalid, "reading trusted root: %w", err)
		}
	}
	return nil, nil, "", hallmark.Errorf(hallmark.KindInvalid, "there is no trusted_root.json: looked in %v", paths)
}

// memory remembers checkpoints for the user who verifies.
func memory(dir string) (verify.Memory, error) {
	if dir == "" {
		dir, _ = os.LookupEnv("XDG_STATE_HOME")
		if dir == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return nil, err
			}
			dir = filepath.Join(home, ".local", "state")
		}
		dir = filepath.Join(dir, "hallmark", "checkpoints")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return verify.NewFileMemory(dir)
}

// statements verifies every line; one that does not verify refuses the set.
func (ev *evidence) statements() (map[hallmark.Digest]verify.Statement, error) {
	out := map[hallmark.Digest]verify.Statement{}
	for i, l := range ev.lines {
		s, err := ev.verifier.Verify(l)
		if err != nil {
			if code := hallmark.CodeOf(err); code != "" && hallmark.KindOf(err) == hallmark.KindDenied {
				return nil, hallmark.Coded(hallmark.KindDenied, code, "evidence.jsonl:%d: %s", i+1, err)
			}
			return nil, fmt.Errorf("evidence.jsonl:%d: %w", i+1, err)
		}
		out[s.BundleDigest()] = s
	}
	return out, nil
}

// judge finds the summary of the artifact, decides again over exactly the inputs
// it lists, and checks what the caller expects.
func (ev *evidence) judge(ctx context.Context, cfg VerifyConfig, res *Verified) error {
	all, err := ev.statements()
	if err != nil {
		return err
	}
	vsa, summary, err := findVSA(all, res.Artifact.Digest)
	if err != nil {
		return err
	}
	inputs, err := inputsOf(all, summary)
	if err != nil {
		return err
	}
	pol, err := ev.verifier.Policy(ev.policyJSON, lines(ev.policySigs))
	if err != nil {
		return err
	}
	if summary.Policy.Digest["sha256"] != pol.Digest().Hex() {
		return hallmark.Coded(hallmark.KindDenied, hallmark.CodePolicyMismatch, "the summary was made under policy %s, the evidence holds %s", summary.Policy.Digest["sha256"], pol.Digest())
	}
	engine, err := policy.New(pol)
	if err != nil {
		return err
	}
	res.Clock = cfg.At
	if res.Clock.IsZero() {
		res.Clock = now()
	}
	rev, subjects := policy.ContentOf(inputs)
	res.Revision = rev
	for _, s := range append(slices.Clone(inputs), vsa) {
		if s.SignedAt().After(res.Clock) { // never earlier than what the evidence proves
			res.Clock = s.SignedAt()
		}
	}
	verdict, err := engine.Decide(ctx, policy.Request{
		Statements: inputs, Subjects: subjects, Revision: rev, ResourceURI: summary.ResourceURI, Clock: res.Clock,
		Roots: ev.verifier.Roots(), RootsDigest: ev.verifier.RootsDigest(),
	})
	if err != nil {
		return err
	}
	res.Decision, res.Levels = verdict.Decision, verdict.Levels
	if !res.Decision.Allowed() {
		return nil
	}
	if !slices.ContainsFunc(subjects, func(a hallmark.Artifact) bool { return a.Digest == res.Artifact.Digest }) {
		return hallmark.Coded(hallmark.KindDenied, hallmark.CodeNoEvidenceForArtifact, "no provenance names %s", res.Artifact.Digest)
	}
	if err := ofRef(inputs, cfg.Ref); err != nil {
		return err
	}
	if err := ofParameters(inputs, cfg.Parameters); err != nil {
		return err
	}
	if err := ev.reproduced(cfg, inputs, res.Artifact.Digest); err != nil {
		return err
	}
	if cfg.Reproduced != nil {
		res.Levels = append(slices.Clone(res.Levels), intoto.PropertyReproduced)
	}
	if err := ev.checkTrace(inputs); err != nil {
		return err
	}
	res.Warnings = ev.warnings
	levels := cfg.Levels
	if len(levels) == 0 {
		levels = []string{"SLSA_BUILD_LEVEL_1"} // the least that any allowed build reaches
	}
	return ev.verifier.VSA(vsa, verify.VSAExpectation{Artifact: res.Artifact.Digest, ResourceURI: orOwn(cfg.ResourceURI, summary.ResourceURI), Levels: levels, Ref: cfg.Ref})
}

// ofRef checks that the provenance was made from the expected branch or tag.
func ofRef(inputs []verify.Statement, want string) error {
	for _, s := range inputs {
		if want == "" || s.PredicateType() != intoto.PredicateProvenance {
			continue
		}
		p, err := intoto.ParseProvenance(s.Statement())
		if err != nil {
			return err
		}
		if ref := p.BuildDefinition.ExternalParameters.Ref; ref != want {
			return hallmark.Coded(hallmark.KindDenied, hallmark.CodeSourceRef, "built from %.200q: want %.200q", ref, want)
		}
	}
	return nil
}

func orOwn(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// findVSA finds the one summary that names the artifact.
func findVSA(all map[hallmark.Digest]verify.Statement, d hallmark.Digest) (verify.Statement, intoto.VSA, error) {
	var found []verify.Statement
	nearest := ""
	for _, s := range all {
		if s.PredicateType() != intoto.PredicateVSA {
			continue
		}
		for _, sub := range s.Statement().Subject {
			if sub.Digest["sha256"] == d.Hex() {
				found = append(found, s)
				break
			}
			if sub.Name != "" {
				nearest = fmt.Sprintf("; the evidence is about %s sha256:%s", sub.Name, sub.Digest["sha256"])
			}
		}
	}
	switch len(found) {
	case 0:
		return verify.Statement{}, intoto.VSA{}, hallmark.Coded(hallmark.KindDenied, hallmark.CodeNoEvidenceForArtifact, "no verification summary names %s%s", d, nearest)
	case 1:
		v, err := intoto.DecodePredicate[intoto.VSA](found[0].Statement())
		return found[0], v, err
	}
	return verify.Statement{}, intoto.VSA{}, hallmark.Coded(hallmark.KindDenied, hallmark.CodeEvidenceMalformed, "%d verification summaries name %s", len(found), d)
}

// inputsOf returns exactly the inputs that a summary lists; a missing one denies.
func inputsOf(all map[hallmark.Digest]verify.Statement, v intoto.VSA) ([]verify.Statement, error) {
	var out []verify.Statement
	for _, in := range v.InputAttestations {
		s, ok := all[hallmark.Digest("sha256:"+in.Digest["sha256"])]
		if !ok {
			return nil, hallmark.Coded(hallmark.KindDenied, hallmark.CodeEvidenceMissing, "the evidence lacks bundle sha256:%s, which the summary lists", in.Digest["sha256"])
		}
		out = append(out, s)
	}
	return out, nil
}

// Replayed is the answer of a replay.
type Replayed struct {
	Equal       bool
	Digest      hallmark.Digest
	Differences []string
}

// Replay computes a verdict again from its pinned inputs and compares the bytes.
func Replay(ctx context.Context, cfg VerifyConfig) (Replayed, error) {
	recordedJSON, err := readLimited(cfg.Artifact, maxPolicyFile)
	if err != nil {
		return Replayed{}, hallmark.Errorf(hallmark.KindInvalid, "reading verdict: %w", err)
	}
	recorded, err := policy.ParseVerdict(recordedJSON)
	if err != nil {
		return Replayed{}, err
	}
	ev, err := openEvidence(cfg)
	if err != nil {
		return Replayed{}, err
	}
	all, err := ev.statements()
	if err != nil {
		return Replayed{}, err
	}
	var inputs []verify.Statement
	for _, in := range recorded.Inputs {
		s, ok := all[in.Bundle]
		if !ok {
			return Replayed{}, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeEvidenceMissing, "the evidence lacks bundle %s, which the verdict lists", in.Bundle)
		}
		inputs = append(inputs, s)
	}
	confirmed, err := confirmClock(all, recordedJSON, recorded.Clock)
	if err != nil {
		return Replayed{}, err
	}
	pol, err := ev.verifier.Policy(ev.policyJSON, lines(ev.policySigs))
	if err != nil {
		return Replayed{}, err
	}
	engine, err := policy.New(pol)
	if err != nil {
		return Replayed{}, err
	}
	rev, subjects := policy.ContentOf(inputs)
	computed, err := engine.Decide(ctx, policy.Request{
		Statements: inputs, Subjects: subjects, Revision: rev, ResourceURI: recorded.ResourceURI, Clock: recorded.Clock,
		Roots: ev.verifier.Roots(), RootsDigest: ev.verifier.RootsDigest(),
	})
	if err != nil {
		return Replayed{}, err
	}
	b, err := computed.Encode()
	if err != nil {
		return Replayed{}, err
	}
	res := Replayed{Equal: string(b) == string(recordedJSON), Digest: hallmark.DigestOf(recordedJSON)}
	if res.Equal && !confirmed {
		// Anyone can compute a verdict over inputs and a clock of their choice.
		return res, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeEvidenceMissing, "no verification summary in the evidence names verdict %s: its inputs give these bytes, but nobody signed it", res.Digest)
	}
	if !res.Equal {
		diffs, err := policy.Compare(recorded, computed)
		if err != nil {
			return res, err
		}
		for _, d := range diffs {
			res.Differences = append(res.Differences, d.String())
		}
		if len(diffs) == 0 {
			res.Differences = []string{"the bytes are not in RFC 8785 form"}
		}
	}
	return res, nil
}

// confirmClock asks the summary of this very verdict for its trusted time, which
// must be within five minutes of the pinned clock, and reports whether there is
// such a summary. A verdict that none names is still compared, to say what
// differs from the one that was signed.
func confirmClock(all map[hallmark.Digest]verify.Statement, verdict []byte, clock time.Time) (bool, error) {
	confirmed := false
	for _, s := range all {
		if s.PredicateType() != intoto.PredicateVSA {
			continue
		}
		v, err := intoto.DecodePredicate[intoto.VSA](s.Statement())
		if err != nil || v.Verdict == nil || v.Verdict.Digest != hallmark.DigestOf(verdict) {
			continue
		}
		if off := s.SignedAt().Sub(clock).Abs(); off > 5*time.Minute {
			return false, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeVerdictDiffers, "the verdict's clock is %s away from the trusted time of its summary", off)
		}
		confirmed = true
	}
	return confirmed, nil
}
