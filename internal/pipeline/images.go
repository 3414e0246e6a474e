// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/image"
	"github.com/hallmark-sc/hallmark/intoto"
	"github.com/hallmark-sc/hallmark/verify"
)

// ImageCheck is the check of the images of a build.
const ImageCheck = "image"

// ImageOutput is an image that a build left: the artifact of the name File has
// the digest of its manifest or index, and its blobs are kept like artifacts.
type ImageOutput struct {
	File      string            `json:"file"` // directory in the results
	Name      string            `json:"name"`
	Subject   image.Subject     `json:"subject"`
	Platforms []string          `json:"platforms"`
	Blobs     []hallmark.Digest `json:"blobs"` // all of them, in the order they are written
	Size      int64             `json:"size"`  // of all blobs
}

// Artifact is the image as evidence names it.
func (o ImageOutput) Artifact() hallmark.Artifact {
	return hallmark.Artifact{Name: o.File, Digest: o.Subject.Digest, Size: o.Size, MediaType: o.Subject.MediaType}
}

// ImageScanner looks into the images of a build before anything leaves it.
type ImageScanner interface {
	// Fingerprint names the rule and advisory data that it would use now.
	Fingerprint(ctx context.Context) (hallmark.Digest, error)
	// ScanImages returns a record of ImageCheck. What an image caused is never an
	// error but a record that says so. The inventory is that of the input with
	// what is in the images.
	ScanImages(ctx context.Context, in Input, images []ImageOutput) (ScanOutput, error)
}

// scanImages looks into the images of a build, if it left any.
func (r *run) scanImages() error {
	if len(r.build.Images) == 0 {
		return nil
	}
	s := r.cfg.ImageScanner
	if s == nil {
		return hallmark.Errorf(hallmark.KindInternal, "pipeline without a scanner of images, and the build left one")
	}
	start := r.begin(ImageCheck)
	fp, err := s.Fingerprint(r.ctx)
	if err != nil {
		return fmt.Errorf("reading rule data of %s: %w", ImageCheck, err)
	}
	in := r.input()
	key := r.key(ImageCheck, string(fp)+string(hallmark.DigestOf(in.Inventory))+fmt.Sprint(r.build.Images))
	var out ScanOutput
	if b, ok, err := r.saved(ImageCheck, key); err != nil {
		return err
	} else if ok && json.Unmarshal(b, &out) == nil && r.reusable(out.Record, ImageCheck) {
		r.image = &out
		r.cfg.Progress(Event{Stage: ImageCheck, State: Reused, Outcome: out.Record.Outcome})
		return nil
	}
	if out, err = s.ScanImages(r.ctx, in, r.build.Images); err != nil {
		return fmt.Errorf("running check %s: %w", ImageCheck, err)
	}
	if out.Record.Check != ImageCheck || out.Record.Outcome == 0 {
		return hallmark.Errorf(hallmark.KindInternal, "check %s returned a record of %q without an outcome", ImageCheck, out.Record.Check)
	}
	if out.Record.Outcome == hallmark.Pass || out.Record.Outcome == hallmark.Fail {
		if err := r.save(ImageCheck, key, out); err != nil {
			return err
		}
	}
	r.image = &out
	r.end(ImageCheck, start, out.Record)
	return nil
}

// artifacts of the images of a build.
func (o BuildOutput) imageArtifacts() []hallmark.Artifact {
	var out []hallmark.Artifact
	for _, i := range o.Images {
		out = append(out, i.Artifact())
	}
	return out
}

// image finds the image that an artifact is.
func (r *run) imageOf(a hallmark.Artifact) (ImageOutput, bool) {
	i := slices.IndexFunc(r.build.Images, func(o ImageOutput) bool { return o.File == a.Name })
	if i < 0 {
		return ImageOutput{}, false
	}
	return r.build.Images[i], true
}

// travels are the predicate types of the statements that go with an image:
// consumers ask a registry for these.
func travels(s verify.Statement) bool {
	switch s.PredicateType() {
	case intoto.PredicateProvenance, intoto.PredicateSPDX, intoto.PredicateCycloneDX, intoto.PredicateVSA, intoto.PredicateTestResult:
		return true
	}
	return false
}

// layout are the files of an image artifact: an OCI layout with the evidence
// about it, which is known only now and leaves the image's digest as it is.
func (r *run) layout(o ImageOutput, evidence []Signed) (map[string]File, error) {
	var about []image.Evidence
	for _, e := range evidence {
		st, err := r.cfg.Decider.Verify(e.JSON)
		if err != nil {
			return nil, err
		}
		named := slices.ContainsFunc(st.Statement().Subject, func(d intoto.ResourceDescriptor) bool { return d.Digest["sha256"] == o.Subject.Digest.Hex() })
		if named && travels(st) {
			about = append(about, image.Evidence{PredicateType: st.PredicateType(), Bundle: e.JSON})
		}
	}
	files, err := image.Attach(o.Name, o.Subject, about)
	if err != nil {
		return nil, err
	}
	out := map[string]File{}
	for name, b := range files {
		out[name] = File{Bytes: b, Mode: 0o644}
	}
	for _, d := range o.Blobs {
		out["blobs/sha256/"+d.Hex()] = File{Blob: d, Mode: 0o644}
	}
	return out, nil
}

// imageInstructions are the commands that check an image: by its digest, in the
// layout as it lies there, with nothing but the folder.
func (r *run) imageInstructions(b *bytes.Buffer, name string, provenance bool) {
	const local = "cosign verify-attestation --local-image --trusted-root trusted_root.json"
	if provenance {
		fmt.Fprintf(b, "%s --type slsaprovenance1 --certificate-identity %s --certificate-oidc-issuer %s %s\n", local, shellQuote(r.cfg.BuilderCert.SAN), shellQuote(r.cfg.BuilderCert.Issuer), name)
	}
	fmt.Fprintf(b, "%s --key release.pub --type %s %s\n", local, intoto.PredicateVSA, name)
}
