// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/intoto"
)

// at17 is "tamper or substitute in the registry or in transit": one case for
// each refusal. The attacker serves the folder; where he also had something odd
// signed, the case says so.
func at17() []Case {
	const good = "strict parsing: one meaning for one text"
	return []Case{
		delivery("a", "one byte of the artifact is flipped", "the artifact is compared by its digest", hallmark.CodeNoEvidenceForArtifact,
			"no verification summary names", "none: the digest is of every byte", digestCheck, flipByte),
		delivery("b", "the artifact comes with the evidence of another artifact of its name", "the artifact is compared by its digest", hallmark.CodeNoEvidenceForArtifact,
			"no verification summary names", "none: the digest is of every byte", digestCheck, otherEvidence),
		delivery("c", "another package is served whole, with its own valid evidence", "the consumer's expectation: the resource", hallmark.CodeVSAResource,
			"verification summary is about", "a consumer who expects nothing: verify without --resource", resourceCheck, otherPackage),
		delivery("d", "the payload of a signed summary names another artifact", "the payload is what was signed and logged", hallmark.CodeSignatureInvalid,
			"the signature does not fit the payload", "whoever holds the key signs the other payload", signatureCheck, editPayload),
		delivery("e", "a statement signed as another type of payload is passed off as a statement", "the payload type is signed, and compared", hallmark.CodePayloadType,
			`payload type "text/plain"`, "none known", typeCheck, forged(insider{key: "artifact", typ: "text/plain", log: true}, evilSubject)),
		delivery("f", "a signed statement has its subject twice: good for one reader, evil for another", good, hallmark.CodeEvidenceMalformed,
			`"subject" occurs twice`, "other readers of the bundle, who parse loosely", keysCheck, forged(insider{key: "artifact", log: true}, twoSubjects)),
		delivery("g", "a signature of nobody stands beside the good one", "a bundle has exactly one signature", hallmark.CodeEvidenceMalformed,
			"with 2 signatures", "none known", singleCheck, secondSignature),
		delivery("h", "a signed subject has only SHA-1 and MD5 digests", "weak digests carry no weight", hallmark.CodeEvidenceMalformed,
			"no strong digest", "git object names, which may be SHA-1, name revisions; commit signatures are checked over the object itself", strongCheck, forged(insider{key: "artifact", log: true}, weakSubject)),
		delivery("i", "a signed statement has no subject, so that nothing differs", "a statement has a subject", hallmark.CodeEvidenceMalformed,
			"statement without subject", "none known", subjectCheck, forged(insider{key: "artifact", log: true}, noSubject)),
		delivery("j", "a signed payload of 17 MiB", "payloads are bounded", hallmark.CodeEvidenceMalformed,
			"the limit is", "many payloads of the allowed size", sizeCheck, forged(insider{key: "artifact", log: true}, hugePayload)),
		delivery("k", "a summary that was never logged carries the log proof of another bundle", "the log entry is that of this bundle", hallmark.CodeLogProofInvalid,
			"not that of this bundle", "a stolen key whose use is logged: monitors see it, verifiers don't", leafCheck, otherProof),
		delivery("l", "a line of the evidence is left out", "a summary lists its inputs by digest", hallmark.CodeEvidenceMissing,
			"which the summary lists", "the whole folder withheld", inputsCheck, dropLine),
		delivery("m", "a whole folder with its own roots, policy, keys and log", "roots are pinned by another way than the evidence", hallmark.CodeTrustRootUnpinned,
			"the pinned roots are", "a pin that came the same way as the folder", pinCheck, ownRoots),
		delivery("n", "the policy key signs a verification summary", "each predicate type has its signers", hallmark.CodeSignerNotAuthorized,
			"signer policy may not sign", "the release key, in the wrong hands", signerCheck, forged(insider{key: "policy", log: true}, evilSubject)),
		delivery("o", "an old release under an older policy is served again", "no policy is older than one seen before", hallmark.CodePolicyRollback,
			"was pinned or seen before", "a consumer who sees the package for the first time; an old release under a policy that did not change", floorCheck, oldPolicy),
	}
}

// box is one delivery: what a registry serves.
type box struct {
	dir      string
	artifact string
	resource string // that the consumer expects
	state    string // of a consumer who has seen things before
	floor    int    // newest policy version in that state
}

// delivery is a case whose attacker serves a folder. A simple consumer who makes
// every check but one must take it, one who makes all must not; then verify has
// the word, which must take the untouched folder too. Since several refusals
// share a code, its message has to hold because.
func delivery(letter, does, control string, stops hallmark.Code, because, residual string, missing check, serve func(context.Context, *ground, *box) error) Case {
	return Case{
		Attack: "AT-17", Letter: letter, Does: does, Control: control, Stops: stops, Residual: residual,
		attack: func(ctx context.Context, g *ground, c Control) (effect, error) {
			f, err := g.release(ctx)
			if err != nil {
				return effect{}, err
			}
			// Both runs look at the same folder.
			b, err := keep(g, "delivery "+letter, func() (*box, error) {
				g.outs++
				b := &box{dir: g.path("served", fmt.Sprint(g.outs)), artifact: "app", resource: pipeline.ResourceURI(f.Revision), state: g.path("states", fmt.Sprint(g.outs))}
				if err := copyTree(f.Out, b.dir); err != nil {
					return b, err
				}
				return b, serve(ctx, g, b)
			})
			if err != nil {
				return effect{}, fmt.Errorf("preparing the delivery: %w", err)
			}
			if c == Off {
				return b.naive(g, missing)
			}
			e, err := b.verify(ctx, g)
			if err == nil && !e.done && !strings.Contains(e.detail, because) {
				err = fmt.Errorf("refused for something else: %s %s", e.reason, e.detail)
			}
			return e, err
		},
	}
}

func (b *box) naive(g *ground, missing check) (effect, error) {
	take := func(without check) error {
		return consumer{without: without, pin: g.roots, resource: b.resource, floor: b.floor}.accept(b.dir, b.artifact)
	}
	if err := take(0); err == nil {
		return effect{}, errors.New("a consumer with every check takes it: there is nothing to see")
	}
	if err := take(missing); err != nil {
		return effect{detail: err.Error()}, nil
	}
	return effect{done: true, detail: "a consumer without this one check takes the artifact"}, nil
}

func (b *box) verify(ctx context.Context, g *ground) (effect, error) {
	v, err := app.Verify(ctx, app.VerifyConfig{
		Home: g.home.Home, Artifact: filepath.Join(b.dir, b.artifact), Evidence: b.dir, State: b.state, ResourceURI: b.resource,
	})
	switch {
	case hallmark.KindOf(err) == hallmark.KindUnpinned:
		return effect{reason: hallmark.CodeOf(err), detail: err.Error()}, nil
	case err != nil:
		return effect{}, err
	case v.Decision.Allowed():
		return effect{done: true, detail: "verify allows the artifact"}, nil
	}
	r := v.Decision.Reasons[0]
	return effect{reason: r.Code, detail: r.Message}, nil
}

const (
	goodBytes = "release one\n"
	evilBytes = "release won\n"
)

func releaseFiles(content string) map[string]string {
	return map[string]string{"app.txt": content, pipeline.PipelineFile: definition("mkdir -p out; cp app.txt out/app", "test -s out/app", "out/app")}
}

// release is a good release, which verifier and simple consumer take.
func (g *ground) release(ctx context.Context) (finished, error) {
	return keep(g, "release", func() (finished, error) {
		f, err := g.releaseOf(ctx, "release", goodBytes, g.home)
		if err != nil {
			return f, err
		}
		b := &box{dir: f.Out, artifact: "app", resource: pipeline.ResourceURI(f.Revision), state: g.path("states", "good")}
		e, err := b.verify(ctx, g)
		if err != nil || !e.done {
			return f, errors.Join(fmt.Errorf("the good release is not allowed: %s %s", e.reason, e.detail), err)
		}
		if err := (consumer{pin: g.roots, resource: b.resource}).accept(b.dir, b.artifact); err != nil {
			return f, fmt.Errorf("the simple consumer does not take the good release: %w", err)
		}
		return f, nil
	})
}

func (g *ground) releaseOf(ctx context.Context, name, content string, home app.Layout) (finished, error) {
	r, err := g.project(name, releaseFiles(content))
	if err != nil {
		return finished{}, err
	}
	f, err := g.runIn(ctx, home, r, nil)
	if err == nil && !f.Verdict.Decision.Allowed() {
		err = hallmark.Errorf(hallmark.KindUnavailable, "this policy can't allow the smallest release there is: %s", f.codes())
	}
	return f, err
}

func (b *box) write(name string, content []byte) error {
	return os.WriteFile(filepath.Join(b.dir, name), content, 0o644)
}

func flipByte(_ context.Context, _ *ground, b *box) error {
	return b.write(b.artifact, []byte(evilBytes))
}

func otherEvidence(ctx context.Context, g *ground, b *box) error {
	f, err := g.other(ctx)
	if err != nil {
		return err
	}
	b.resource = pipeline.ResourceURI(f.Revision)
	if err := errors.Join(durable.RemoveTree(b.dir), copyTree(f.Out, b.dir)); err != nil {
		return err
	}
	return b.write(b.artifact, []byte(goodBytes))
}

func otherPackage(ctx context.Context, g *ground, b *box) error {
	f, err := g.other(ctx)
	if err != nil {
		return err
	}
	return errors.Join(durable.RemoveTree(b.dir), copyTree(f.Out, b.dir))
}

func (g *ground) other(ctx context.Context) (finished, error) {
	return keep(g, "other", func() (finished, error) { return g.releaseOf(ctx, "other", "another package\n", g.home) })
}

// lines returns the lines of the evidence and the index of the summary.
func (b *box) lines() (lines [][]byte, summary int, err error) {
	raw, err := os.ReadFile(filepath.Join(b.dir, "evidence.jsonl"))
	if err != nil {
		return nil, 0, err
	}
	lines = bytes.Split(bytes.TrimSuffix(raw, []byte("\n")), []byte("\n"))
	summary = slices.IndexFunc(lines, func(l []byte) bool {
		p, err := payloadOf(l)
		return err == nil && bytes.Contains(p, []byte(`"predicateType":"`+intoto.PredicateVSA+`"`))
	})
	if summary < 0 {
		return nil, 0, errors.New("the evidence holds no summary")
	}
	return lines, summary, nil
}

func (b *box) setLines(lines [][]byte) error {
	return b.write("evidence.jsonl", append(bytes.Join(lines, []byte("\n")), '\n'))
}

func payloadOf(line []byte) ([]byte, error) {
	var w wire
	err := json.Unmarshal(line, &w)
	return w.Envelope.Payload, err
}

// edit changes the JSON of the summary's bundle.
func (b *box) edit(change func(bundle map[string]any) error) error {
	lines, at, err := b.lines()
	if err != nil {
		return err
	}
	var bundle map[string]any
	if err := json.Unmarshal(lines[at], &bundle); err != nil {
		return err
	}
	if err := change(bundle); err != nil {
		return err
	}
	if lines[at], err = json.Marshal(bundle); err != nil {
		return err
	}
	return b.setLines(lines)
}

func editPayload(_ context.Context, _ *ground, b *box) error {
	err := b.edit(func(bundle map[string]any) error {
		env := bundle["dsseEnvelope"].(map[string]any)
		payload, err := base64.StdEncoding.DecodeString(env["payload"].(string))
		if err != nil {
			return err
		}
		other, err := evilSubject(payload)
		env["payload"] = base64.StdEncoding.EncodeToString(other)
		return err
	})
	return errors.Join(err, b.write(b.artifact, []byte(evilBytes)))
}

func secondSignature(_ context.Context, _ *ground, b *box) error {
	return b.edit(func(bundle map[string]any) error {
		env := bundle["dsseEnvelope"].(map[string]any)
		env["signatures"] = append([]any{map[string]any{"sig": base64.StdEncoding.EncodeToString([]byte("of nobody"))}}, env["signatures"].([]any)...)
		return nil
	})
}

func dropLine(_ context.Context, _ *ground, b *box) error {
	lines, at, err := b.lines()
	if err != nil {
		return err
	}
	drop := 0
	if at == 0 {
		drop = 1
	}
	return b.setLines(slices.Delete(lines, drop, drop+1))
}

// forged replaces the summary by another that an insider signed, and the
// artifact by the one that it speaks for.
func forged(i insider, say func(payload []byte) ([]byte, error)) func(context.Context, *ground, *box) error {
	return func(ctx context.Context, g *ground, b *box) error {
		lines, at, err := b.lines()
		if err != nil {
			return err
		}
		payload, err := payloadOf(lines[at])
		if err != nil {
			return err
		}
		if payload, err = say(payload); err != nil {
			return err
		}
		i.home = g.home.Home
		if lines[at], err = i.sign(ctx, payload); err != nil {
			return fmt.Errorf("signing as an insider: %w", err)
		}
		return errors.Join(b.setLines(lines), b.write(b.artifact, []byte(evilBytes)))
	}
}

// evilSubject makes the statement speak for the evil artifact.
func evilSubject(payload []byte) ([]byte, error) {
	good, evil := hallmark.DigestOf([]byte(goodBytes)).Hex(), hallmark.DigestOf([]byte(evilBytes)).Hex()
	out := bytes.Replace(payload, []byte(good), []byte(evil), 1)
	if bytes.Equal(out, payload) {
		return nil, errors.New("the summary does not name the artifact")
	}
	return out, nil
}

// twoSubjects adds a second subject key; encoding/json takes the last.
func twoSubjects(payload []byte) ([]byte, error) {
	subject := fmt.Sprintf(`,"subject":[{"name":"app","digest":{"sha256":%q}}]}`, hallmark.DigestOf([]byte(evilBytes)).Hex())
	return append(bytes.TrimSuffix(bytes.TrimSpace(payload), []byte("}")), subject...), nil
}

// withSubject replaces the subject.
func withSubject(payload []byte, subject any, more map[string]any) ([]byte, error) {
	var st map[string]any
	if err := json.Unmarshal(payload, &st); err != nil {
		return nil, err
	}
	st["subject"] = subject
	for k, v := range more {
		st[k] = v
	}
	return json.Marshal(st)
}

func weakSubject(payload []byte) ([]byte, error) {
	return withSubject(payload, []any{map[string]any{"name": "app", "digest": weakDigests([]byte(evilBytes))}}, nil)
}

func noSubject(payload []byte) ([]byte, error) { return withSubject(payload, []any{}, nil) }

func hugePayload(payload []byte) ([]byte, error) {
	subject := []any{map[string]any{"name": "app", "digest": map[string]any{"sha256": hallmark.DigestOf([]byte(evilBytes)).Hex()}}}
	return withSubject(payload, subject, map[string]any{"padding": string(bytes.Repeat([]byte("."), 17<<20))})
}

// otherProof signs without logging and borrows the log entry of a logged bundle.
func otherProof(ctx context.Context, g *ground, b *box) error {
	lines, at, err := b.lines()
	if err != nil {
		return err
	}
	var logged map[string]any
	if err := json.Unmarshal(lines[at], &logged); err != nil {
		return err
	}
	if err := forged(insider{key: "artifact"}, evilSubject)(ctx, g, b); err != nil {
		return err
	}
	return b.edit(func(bundle map[string]any) error {
		bundle["verificationMaterial"].(map[string]any)["tlogEntries"] = logged["verificationMaterial"].(map[string]any)["tlogEntries"]
		return nil
	})
}

// ownRoots is a release from a home of the attacker's own.
func ownRoots(ctx context.Context, g *ground, b *box) error {
	home := app.Layout{Home: g.path("attacker")}
	if _, err := app.Init(ctx, app.InitConfig{Home: home.Home, AllowedSigners: g.path("allowed_signers"), SingleOperator: true}); err != nil {
		return fmt.Errorf("making the attacker's home: %w", err)
	}
	f, err := g.releaseOf(ctx, "evil", evilBytes, home)
	if err != nil {
		return err
	}
	b.resource = pipeline.ResourceURI(f.Revision)
	return errors.Join(durable.RemoveTree(b.dir), copyTree(f.Out, b.dir))
}

// oldPolicy lets the consumer see a release under a newer policy first.
func oldPolicy(ctx context.Context, g *ground, b *box) error {
	copied, err := g.copyHome(g.home.Home)
	if err != nil {
		return err
	}
	state, err := app.PolicySet(ctx, copied, nil, [][2]string{{"scans.maxAge", "29d"}})
	if err != nil {
		return err
	}
	f, err := g.releaseOf(ctx, "newer", "release two\n", app.Layout{Home: copied})
	if err != nil {
		return err
	}
	newer := &box{dir: f.Out, artifact: "app", resource: pipeline.ResourceURI(f.Revision), state: b.state}
	e, err := newer.verify(ctx, g)
	if err != nil || !e.done {
		return errors.Join(fmt.Errorf("the newer release is not allowed: %s %s", e.reason, e.detail), err)
	}
	b.floor = state.Version
	return nil
}
