// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package tlog

import (
	"encoding/base64"
	"slices"
	"strconv"
	"strings"

	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"github.com/hallmark-sc/hallmark"
)

// Policy is a witness policy (C2SP tlog-policy): which witnesses must have
// cosigned a checkpoint. The zero Policy asks for none.
type Policy struct {
	quorum    *component
	verifiers []note.Verifier
}

// component is a witness (verifier set) or a group of components.
type component struct {
	verifier  note.Verifier
	threshold int
	members   []*component
}

// Configured reports whether p asks for any cosignature.
func (p Policy) Configured() bool { return p.quorum != nil }

// Witnesses returns how many witnesses p names.
func (p Policy) Witnesses() int { return len(p.verifiers) }

// ParsePolicy reads the text of a witness policy. Empty text, and "quorum
// none", ask for no cosignature. A group whose threshold is 0, a component named
// twice, a key given to two witnesses and a policy without a quorum line are
// refused: each would make the quorum weaker than it reads.
func ParsePolicy(text string) (Policy, error) {
	if strings.TrimSpace(text) == "" {
		return Policy{}, nil
	}
	pp := policyParser{components: map[string]*component{}, parents: map[string]bool{}}
	for i, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if err := pp.line(fields); err != nil {
			return Policy{}, hallmark.Errorf(hallmark.KindInvalid, "witness policy line %d: %w", i+1, err)
		}
	}
	if !pp.hasQuorum {
		return Policy{}, hallmark.Errorf(hallmark.KindInvalid, "witness policy without a quorum line")
	}
	return Policy{quorum: pp.quorum, verifiers: pp.verifiers}, nil
}

type policyParser struct {
	components map[string]*component
	parents    map[string]bool // components that are members of a group already
	verifiers  []note.Verifier
	keys       []string
	quorum     *component
	hasQuorum  bool
}

func (pp *policyParser) line(fields []string) error {
	switch fields[0] {
	case "log":
		// Which logs are trusted is said by the pinned roots alone.
		if len(fields) < 2 || len(fields) > 3 {
			return hallmark.Errorf(hallmark.KindInvalid, "want: log VKEY [URL]")
		}
		return nil
	case "witness":
		return pp.witness(fields[1:])
	case "group":
		return pp.group(fields[1:])
	case "quorum":
		return pp.setQuorum(fields[1:])
	}
	return hallmark.Errorf(hallmark.KindInvalid, "unknown keyword %.40q", fields[0])
}

func (pp *policyParser) name(name string) error {
	if slices.Contains([]string{"log", "witness", "group", "quorum", "any", "all", "none"}, name) {
		return hallmark.Errorf(hallmark.KindInvalid, "%q is a keyword, not a name", name)
	}
	if _, ok := pp.components[name]; ok {
		return hallmark.Errorf(hallmark.KindInvalid, "component %.100q is defined twice", name)
	}
	return nil
}

func (pp *policyParser) witness(f []string) error {
	if len(f) < 2 || len(f) > 3 {
		return hallmark.Errorf(hallmark.KindInvalid, "want: witness NAME VKEY [URL]")
	}
	if err := pp.name(f[0]); err != nil {
		return err
	}
	v, err := fnote.NewVerifierForCosignatureV1(f[1])
	if err != nil {
		return hallmark.Errorf(hallmark.KindInvalid, "key of witness %.100q: %w", f[0], err)
	}
	// An Ed25519 cosignature does not bind the witness's name, and the same key
	// can be written as a plain or as a cosignature key, so the key material
	// itself is compared: one key must not count twice.
	key := keyMaterial(f[1])
	if key == "" || slices.Contains(pp.keys, key) {
		return hallmark.Errorf(hallmark.KindInvalid, "key of witness %.100q belongs to another witness too", f[0])
	}
	pp.keys = append(pp.keys, key)
	pp.verifiers = append(pp.verifiers, v)
	pp.components[f[0]] = &component{verifier: v}
	return nil
}

// keyMaterial is the key of a verifier key without its algorithm byte.
func keyMaterial(vkey string) string {
	parts := strings.SplitN(vkey, "+", 3) // base64 may hold a further "+"
	if len(parts) != 3 {
		return ""
	}
	b, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(b) < 2 {
		return ""
	}
	return string(b[1:])
}

func (pp *policyParser) group(f []string) error {
	if len(f) < 3 {
		return hallmark.Errorf(hallmark.KindInvalid, "want: group NAME any|all|N MEMBER…")
	}
	if err := pp.name(f[0]); err != nil {
		return err
	}
	g := &component{}
	for _, m := range f[2:] {
		c, ok := pp.components[m]
		if !ok {
			return hallmark.Errorf(hallmark.KindInvalid, "member %.100q of group %.100q is not defined before it", m, f[0])
		}
		if pp.parents[m] {
			return hallmark.Errorf(hallmark.KindInvalid, "member %.100q stands in two groups or twice in one", m)
		}
		pp.parents[m] = true
		g.members = append(g.members, c)
	}
	switch f[1] {
	case "any":
		g.threshold = 1
	case "all":
		g.threshold = len(g.members)
	default:
		n, err := strconv.Atoi(f[1])
		if err != nil || n < 1 || n > len(g.members) {
			return hallmark.Errorf(hallmark.KindInvalid, "threshold %.20q of group %.100q: want 1 to %d", f[1], f[0], len(g.members))
		}
		g.threshold = n
	}
	pp.components[f[0]] = g
	return nil
}

func (pp *policyParser) setQuorum(f []string) error {
	if len(f) != 1 {
		return hallmark.Errorf(hallmark.KindInvalid, "want: quorum NAME|none")
	}
	if pp.hasQuorum {
		return hallmark.Errorf(hallmark.KindInvalid, "second quorum line")
	}
	pp.hasQuorum = true
	if f[0] == "none" {
		return nil
	}
	c, ok := pp.components[f[0]]
	if !ok {
		return hallmark.Errorf(hallmark.KindInvalid, "quorum %.100q is not defined before it", f[0])
	}
	pp.quorum = c
	return nil
}

// CheckQuorum reports whether enough of the policy's witnesses cosigned the
// checkpoint note. The log's own signature is not looked at: open the checkpoint
// first.
func CheckQuorum(checkpointNote []byte, p Policy) error {
	if !p.Configured() {
		return nil
	}
	if len(checkpointNote) > maxNote {
		return invalid("checkpoint of %d bytes: the limit is %d", len(checkpointNote), maxNote)
	}
	signed := map[uint32]map[string]bool{}
	n, err := note.Open(checkpointNote, note.VerifierList(p.verifiers...))
	if err == nil {
		for _, s := range n.Sigs {
			if signed[s.Hash] == nil {
				signed[s.Hash] = map[string]bool{}
			}
			signed[s.Hash][s.Name] = true
		}
	}
	if !p.quorum.satisfied(signed) {
		return hallmark.Coded(hallmark.KindDenied, hallmark.CodeLogWitnessQuorum,
			"checkpoint of log %.100q: the quorum of the witness policy did not cosign it", Origin(checkpointNote))
	}
	return nil
}

func (c *component) satisfied(signed map[uint32]map[string]bool) bool {
	if c.verifier != nil {
		return signed[c.verifier.KeyHash()][c.verifier.Name()]
	}
	n := 0
	for _, m := range c.members {
		if m.satisfied(signed) {
			n++
		}
	}
	return c.threshold >= 1 && n >= c.threshold
}
