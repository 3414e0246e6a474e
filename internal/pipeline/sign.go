// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/intoto"
)

// signing is one statement on its way to the signer.
type signing struct {
	role      Role
	statement intoto.Statement
	permit    *Permit
}

// sign makes every statement of the run and signs them, observations together, so
// that one checkpoint covers many, whatever they say. Provenance exists only when
// the build policy allowed it: it names the observations by digest and so comes
// after them, and a signer that believes nobody can look whether it signed them.
func (r *run) sign() ([]Signed, error) {
	start := r.begin("attest")
	todo, err := r.statements()
	if err != nil {
		return nil, fmt.Errorf("assembling statements: %w", err)
	}
	signed, err := r.signAll(todo)
	if err != nil {
		return nil, err
	}
	for i, s := range todo {
		r.build.Facts.Observations = append(r.build.Facts.Observations, attest.Observation{Statement: signed[i].Statement, PredicateType: s.statement.PredicateType})
	}
	prov, err := r.provenance()
	if err != nil {
		return nil, fmt.Errorf("assembling provenance: %w", err)
	}
	last, err := r.signAll(prov)
	if err != nil {
		return nil, err
	}
	signed = append(signed, last...)
	r.cfg.Progress(Event{Stage: "attest", State: Finished, Elapsed: r.cfg.Clock().Sub(start), Detail: count(len(signed), "statement", "statements")})
	return signed, nil
}

func (r *run) signAll(todo []signing) ([]Signed, error) {
	signed := make([]Signed, len(todo))
	group, ctx := errgroup.WithContext(r.ctx)
	for i, s := range todo {
		group.Go(func() error {
			out, err := r.cfg.Signer.Sign(ctx, s.role, s.statement, s.permit)
			if err != nil {
				return fmt.Errorf("signing %s: %w", s.statement.PredicateType, err)
			}
			signed[i] = out
			return nil
		})
	}
	return signed, group.Wait()
}

func (r *run) statements() ([]signing, error) {
	var out []signing
	add := func(st intoto.Statement, err error) error {
		if err == nil {
			out = append(out, signing{role: Observer, statement: st})
		}
		return err
	}
	if err := add(attest.Source(r.source.Provenance)); err != nil {
		return nil, err
	}
	for _, s := range r.scans {
		var err error
		if s.Record.Check == "sca" {
			err = add(attest.Vulns(s.Record, s.Findings))
		} else {
			err = add(attest.TestResult(s.Record, nil, nil, nil))
		}
		if err != nil {
			return nil, err
		}
	}
	if r.image != nil {
		if err := add(attest.ImageScan(r.image.Record, r.build.imageArtifacts())); err != nil {
			return nil, err
		}
	}
	if err := add(attest.TestResult(r.build.Tests, nil, r.build.Passed, r.build.Failed)); err != nil {
		return nil, err
	}
	b := r.build.Facts
	if err := add(attest.Process(b)); err != nil {
		return nil, err
	}
	if b.BuilderID == "" { // no build started: there was no environment and nothing went in
		return out, nil
	}
	intermediate, err := r.documents(add)
	if err != nil {
		return nil, err
	}
	if err := add(attest.Environment(b)); err != nil {
		return nil, err
	}
	if b.Trace.Engine != "" {
		if err := add(attest.RuntimeTrace(b)); err != nil {
			return nil, err
		}
	}
	if err := add(attest.Materials(b)); err != nil {
		return nil, err
	}
	return out, add(attest.Artifacts(b, intermediate))
}

// provenance makes the provenance statement and its permit, if the build policy
// allows one. A failed build has signed failure evidence and no provenance.
func (r *run) provenance() ([]signing, error) {
	if r.build.Facts.BuilderID == "" || !r.build.Decision.Allowed() || r.build.Facts.Record.Outcome != hallmark.Pass {
		return nil, nil
	}
	st, err := attest.Provenance(r.build.Facts)
	if err != nil {
		return nil, err
	}
	payload, err := st.Marshal()
	if err != nil {
		return nil, err
	}
	pae := hallmark.DigestOf(intoto.PAE(intoto.PayloadType, payload))
	return []signing{{role: Platform, statement: st, permit: &Permit{Statement: pae, Policy: r.cfg.Policy, Decision: r.build.Decision}}}, nil
}

// documents renders the inventories and the findings, adds the statements of the
// inventories, and returns descriptors of these intermediate artifacts.
func (r *run) documents(add func(intoto.Statement, error) error) ([]intoto.ResourceDescriptor, error) {
	docs, err := r.render()
	if err != nil {
		return nil, err
	}
	var out []intoto.ResourceDescriptor
	for _, d := range docs {
		if d.predicate != "" && d.bytes != nil {
			if err := add(attest.Inventory(d.predicate, attest.Products(r.build.Facts), d.bytes)); err != nil {
				return nil, err
			}
		}
		digest, err := r.cfg.Blobs.Put(r.ctx, d.bytes)
		if err != nil {
			return nil, fmt.Errorf("keeping %s: %w", d.name, err)
		}
		out = append(out, intoto.ResourceDescriptor{Name: d.name, MediaType: d.media, Digest: map[string]string{"sha256": digest.Hex()}})
	}
	return out, nil
}

type document struct {
	name, media, predicate string
	bytes                  []byte
}

// render makes the reports of a run. An inventory that was not made gives an
// empty document of its format, and no statement.
func (r *run) render() ([]document, error) {
	var findings []hallmark.Finding
	records := r.records()
	var inventory []byte
	for _, s := range r.scans {
		findings = append(findings, s.Findings...)
		if len(s.Inventory) > 0 {
			inventory = s.Inventory
		}
	}
	if r.image != nil {
		findings = append(findings, r.image.Findings...)
		if len(r.image.Inventory) > 0 {
			inventory = r.image.Inventory
		}
	}
	at := r.source.Record().FinishedOn
	sarif, err := r.cfg.Documents.SARIF(records, findings)
	if err != nil {
		return nil, fmt.Errorf("rendering findings: %w", err)
	}
	spdx, cdx, err := r.cfg.Documents.Render(inventory, r.revision(), r.build.Facts.Artifacts, at)
	if err != nil {
		return nil, fmt.Errorf("rendering the inventory: %w", err)
	}
	out := []document{
		{"findings.sarif", "application/sarif+json", "", sarif},
		{"sbom.spdx.json", "application/spdx+json", intoto.PredicateSPDX, spdx},
		{"sbom.cdx.json", "application/vnd.cyclonedx+json", intoto.PredicateCycloneDX, cdx},
	}
	if inventory == nil {
		out[1].predicate, out[2].predicate = "", ""
	}
	return out, nil
}

func (r *run) records() []hallmark.CheckRecord {
	out := []hallmark.CheckRecord{r.source.Record()}
	for _, s := range r.scans {
		out = append(out, s.Record)
	}
	out = append(out, r.build.Facts.Record, r.build.Tests)
	if r.image != nil {
		out = append(out, r.image.Record)
	}
	return out
}
