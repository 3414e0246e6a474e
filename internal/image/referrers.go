// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/hallmark-sc/hallmark"
)

// BundleType is the artifact type of a Sigstore bundle that refers to an image.
const BundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"

const (
	emptyType = "application/vnd.oci.empty.v1+json"
	// Under these annotations stock clients look for what is in a bundle, and
	// cosign for the image of a layout.
	contentAnnotation   = "dev.sigstore.bundle.content"
	predicateAnnotation = "dev.sigstore.bundle.predicateType"
	kindAnnotation      = "kind"
	kindImage           = "dev.cosignproject.cosign/image"
)

// Evidence is a bundle that is about an image.
type Evidence struct {
	PredicateType string
	Bundle        []byte
}

// Subject is what evidence is about: the descriptor of a manifest or an index.
type Subject struct {
	MediaType string          `json:"mediaType"`
	Digest    hallmark.Digest `json:"digest"`
	Size      int64           `json:"size"`
}

// SubjectOf is the subject of a made image.
func SubjectOf(d v1.Descriptor) Subject {
	return Subject{MediaType: string(d.MediaType), Digest: hallmark.Digest(d.Digest.String()), Size: d.Size}
}

// Attach makes what a layout holds beside the blobs of an image: oci-layout,
// index.json, and the evidence as manifests that refer to the image (OCI 1.1),
// also under the tag where registries without referrers keep them. The digest of
// the image stays as it was.
func Attach(name string, s Subject, evidence []Evidence) (map[string][]byte, error) {
	m := &Made{Blobs: map[hallmark.Digest][]byte{}}
	subject := descriptor(types.MediaType(s.MediaType), s.Digest, s.Size)
	list := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}
	for _, e := range evidence {
		manifest := v1.Manifest{
			SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: BundleType, Config: m.add(emptyType, []byte("{}")),
			Layers: []v1.Descriptor{m.add(BundleType, e.Bundle)}, Subject: &subject,
			Annotations: map[string]string{contentAnnotation: "dsse-envelope", predicateAnnotation: e.PredicateType},
		}
		d, err := m.document(types.OCIManifestSchema1, manifest)
		if err != nil {
			return nil, err
		}
		d.ArtifactType, d.Annotations = BundleType, manifest.Annotations
		list.Manifests = append(list.Manifests, d)
	}
	top := subject
	top.Annotations = map[string]string{refAnnotation: name, kindAnnotation: kindImage}
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{top}}
	if len(evidence) > 0 {
		d, err := m.document(types.OCIImageIndex, list)
		if err != nil {
			return nil, err
		}
		d.Annotations = map[string]string{refAnnotation: fallbackTag(subject.Digest)}
		index.Manifests = append(index.Manifests, d)
	}
	raw, err := json.Marshal(index)
	if err != nil {
		return nil, fmt.Errorf("encoding index.json: %w", err)
	}
	out := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json": raw}
	for d, b := range m.Blobs {
		out["blobs/sha256/"+d.Hex()] = b
	}
	return out, nil
}

// ReadSubject reads the image of a layout whole, compares every blob with its
// digest, and returns the digest that evidence about it names.
func ReadSubject(src Source, limits Limits) (hallmark.Digest, int64, error) {
	images := src.Images()
	if len(images) != 1 {
		return "", 0, invalid("the layout names %d images: want one", len(images))
	}
	total, err := readAll(src, images[0], limits.defaults(), 1)
	return images[0], total, err
}

// readAll reads a manifest and all that it names.
func readAll(src Blobs, d hallmark.Digest, limits Limits, depth int) (int64, error) {
	b, err := readSmall(src, d)
	if err != nil {
		return 0, err
	}
	doc, err := parseDocument(d, b)
	if err != nil {
		return 0, err
	}
	total := int64(len(b))
	if doc.index != nil {
		if depth == 0 || len(doc.index.Manifests) > 64 {
			return 0, invalid("index %s is nested or names too many images", d)
		}
		for _, x := range doc.index.Manifests {
			child, err := digestOf(x.Digest)
			if err != nil {
				return 0, invalid("index %s: %s", d, err)
			}
			n, err := readAll(src, child, limits, depth-1)
			if err != nil {
				return 0, err
			}
			total += n
		}
		return total, nil
	}
	if len(doc.manifest.Layers) > limits.Layers {
		return 0, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageTooLarge, "image %s has %d layers", d, len(doc.manifest.Layers))
	}
	for _, x := range append(slices.Clone(doc.manifest.Layers), doc.manifest.Config) {
		want, err := digestOf(x.Digest)
		if err != nil {
			return 0, invalid("manifest %s: %s", d, err)
		}
		n, err := readBlob(src, want, x.Size, limits.Bytes)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

func readBlob(src Blobs, want hallmark.Digest, size, most int64) (int64, error) {
	if size < 0 || size > most {
		return 0, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageTooLarge, "blob %s says that it has %d bytes", want, size)
	}
	r, err := src.Open(want)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	got, n, err := hallmark.DigestFrom(io.LimitReader(r, size+1))
	if err != nil {
		return 0, fmt.Errorf("reading blob %s: %w", want, err)
	}
	if got != want || n != size {
		return 0, altered(want, got)
	}
	return n, nil
}

// ReadBlob reads a blob whole and compares it with its digest.
func ReadBlob(blobs Blobs, d hallmark.Digest, most int64) ([]byte, error) {
	r, err := blobs.Open(d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, fmt.Errorf("reading blob %s: %w", d, err)
	}
	if int64(len(b)) > most {
		return nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageTooLarge, "blob %s has more than %d bytes", d, most)
	}
	if got := hallmark.DigestOf(b); got != d {
		return nil, altered(d, got)
	}
	return b, nil
}
