// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/user"
	"strconv"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/intoto"
)

// order is what one run asks of the builder beside the revision.
type order struct {
	requester  intoto.Requester
	parameters map[string]string // that were given
}

// localRequester is who asks for a build of a local home. Whoever opened the home
// holds its keys, which OpenHome compared with the pinned roots: that is the
// authentication, and it tells no person from another who can read the same
// files. The user is what the kernel says of this process.
func localRequester() intoto.Requester {
	r := intoto.Requester{
		Principals:     []string{policy.RequesterOperator, "uid:" + strconv.Itoa(os.Getuid())},
		Authentication: "possession of the home's keys; the user id is the kernel's word",
	}
	if u, err := user.Current(); err == nil {
		r.User = u.Username
	}
	return r
}

// request is the build as the build policy judges it.
func (b *builder) request(rev hallmark.Revision, def *build.Pipeline) build.Request {
	image := policy.ImageHost
	if d := def.Toolchain.Digest; d != "" {
		image = string(d)
	}
	return build.Request{
		Repository: rev.Repository, Ref: rev.Ref, Requesters: b.order.requester.Principals,
		Builder: b.on.builder, Image: image, Parameters: b.order.parameters,
	}
}

// allow asks the build policy before anything of the revision runs. It returns
// the values that the steps see, or why the build does not start.
func (b *builder) allow(rev hallmark.Revision, def *build.Pipeline) (map[string]string, []hallmark.Reason) {
	_, refused := b.parts.Permit(b.request(rev, def))
	values, reasons := def.Resolve(b.order.parameters)
	if refused != nil {
		reasons = append([]hallmark.Reason{*refused}, reasons...)
	}
	return values, reasons
}

// rule is what the environment attestation says of the rule that permitted the
// build.
func (b *builder) rule(rev hallmark.Revision, def *build.Pipeline) *attest.Rule {
	r, refused := b.parts.Permit(b.request(rev, def))
	if refused != nil {
		return nil
	}
	return &attest.Rule{Name: r.Name, Inventory: r.Inventory, BuiltPrograms: r.Built}
}

// refuse records a build that did not start.
func (b *builder) refuse(rev hallmark.Revision, reasons []hallmark.Reason) pipeline.BuildOutput {
	at := now()
	rec := hallmark.CheckRecord{Check: "build", Outcome: hallmark.Fail, Revision: rev, StartedOn: at, FinishedOn: at, Tool: b.tool, Reasons: reasons}
	tests := rec
	tests.Check, tests.Outcome = "tests", hallmark.Skipped
	tests.Reasons = []hallmark.Reason{{Code: hallmark.CodeCheckNotRun, Check: "tests", Message: "tests did not run: the build was refused"}}
	return pipeline.BuildOutput{
		Facts: attest.Build{Revision: rev, Record: rec, Requester: &b.order.requester}, Tests: tests,
		Decision: hallmark.Decision{Effect: hallmark.Deny, Reasons: reasons},
	}
}

// permit asks the signed policy of the home.
func (h *Home) permit(q build.Request) (build.Rule, *hallmark.Reason) {
	r, refused := h.document.Build.Permit(policy.BuildRequest(q))
	if refused != nil {
		return build.Rule{}, refused
	}
	rule := build.Rule{Name: r.Name, Digests: r.Tools.Digests, Built: r.Tools.BuiltPrograms == "allow"}
	if r.Tools.Inventory == policy.ToolsRecorded {
		rule.AnyTool = true
		return rule, nil
	}
	rule.Inventory = h.document.Build.Inventories[r.Tools.Inventory]
	inv, err := h.inventory(rule.Inventory)
	if err != nil {
		return build.Rule{}, &hallmark.Reason{
			Code: hallmark.CodeBuildInventory, Check: "build", Message: fmt.Sprintf("the inventory %s of the rule %s: %s", r.Tools.Inventory, r.Name, err), Nearest: "rule " + r.Name, Field: "tools.inventory",
			Fix: "hallmark policy set --build RULES --inventory " + r.Tools.Inventory + "=FILE",
		}
	}
	rule.Programs, rule.Libraries = byPath(inv.Programs), byPath(inv.Libraries)
	return rule, nil
}

func byPath(list []build.InventoryProgram) map[string][]hallmark.Digest {
	out := map[string][]hallmark.Digest{}
	for _, p := range list {
		out[string(p.Path)] = append(out[string(p.Path)], p.Digest)
	}
	return out
}

// inventory reads an inventory that the policy names; the digest in the signed
// policy is what makes its bytes good.
func (h *Home) inventory(d hallmark.Digest) (build.Inventory, error) {
	raw, err := h.stores.blobs.Get(context.Background(), d)
	if err != nil {
		return build.Inventory{}, err
	}
	return build.ParseInventory(string(d), raw)
}

// buildPolicy is what the signed policy says of builds.
func (b *builder) buildPolicy() build.Policy {
	p := b.home.params
	return build.Policy{
		Permit: b.parts.Permit, Builders: p.Builders, EgressAllowed: p.EgressAllowed, Guarantees: p.Guarantees, AnyTool: p.AnyTool, Tools: p.Tools,
	}
}

// fingerprint names all that a saved build depends on beside the revision.
func (b *builder) fingerprint(tools []attest.Tool) (hallmark.Digest, error) {
	raw, err := json.Marshal(map[string]any{"tools": tools, "parameters": b.order.parameters, "requester": b.order.requester, "platform": platform(), "builder": b.on.builder, "separateSigner": b.on.separate})
	return hallmark.DigestOf(raw), err
}
