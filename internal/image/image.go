// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package image reads and makes container images (OCI image specification 1.1)
// without a daemon: it keeps what was imported under its digest, flattens layers
// to the tree that a container would see, unpacks that tree, and assembles
// reproducible images with their evidence as referrers.
//
// Nothing in an image is believed: every blob is compared with its digest while
// it is read, and what one reader of a layer could see otherwise than another
// is refused. The package opens no socket and starts no process.
package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/hallmark-sc/hallmark"
)

// Limits bound what an image may hold; every zero value means the default
// beside it. No limit can be switched off.
type Limits struct {
	Layers  int   // 256
	Entries int   // of all layers: 1,000,000
	Bytes   int64 // of all layers, uncompressed: 16 GiB
}

func (l Limits) defaults() Limits {
	if l.Layers <= 0 {
		l.Layers = 256
	}
	if l.Entries <= 0 {
		l.Entries = 1_000_000
	}
	if l.Bytes <= 0 {
		l.Bytes = 16 << 30
	}
	return l
}

// maxManifest bounds a manifest, an index or a configuration.
const maxManifest = 8 << 20

// Ref names an image: by digest only, since a tag says nothing that stays true.
// The name is for people and for registries.
type Ref struct {
	Name   string
	Digest hallmark.Digest
}

func (r Ref) String() string { return r.Name + "@" + string(r.Digest) }

var refName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]*[a-z0-9])?((:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+)?$`)

// ParseRef reads NAME@sha256:DIGEST.
func ParseRef(s string) (Ref, error) {
	name, digest, ok := strings.Cut(s, "@")
	if !ok {
		return Ref{}, hallmark.WithHint(hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageNotByDigest, "image %.200q: want NAME@sha256:DIGEST: a tag may mean another image tomorrow", s),
			"name the image by the digest that its publisher gives for it")
	}
	d, err := hallmark.ParseDigest(digest)
	if err != nil {
		return Ref{}, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageNotByDigest, "image %.200q: %w", s, err)
	}
	if len(name) > 255 || !refName.MatchString(name) {
		return Ref{}, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageNotByDigest, "image %.200q: want NAME@sha256:DIGEST, a name in lower case and no tag", s)
	}
	return Ref{Name: name, Digest: d}, nil
}

// Platform is an operating system and an architecture, as OCI names them.
type Platform struct {
	OS, Architecture, Variant string
}

// HostPlatform is what this machine runs.
func HostPlatform() Platform { return Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH} }

func (p Platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// ParsePlatform reads OS/ARCHITECTURE[/VARIANT].
func ParsePlatform(s string) (Platform, error) {
	f := strings.Split(s, "/")
	for _, w := range f {
		if w == "" || strings.Trim(w, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
			f = nil
		}
	}
	switch len(f) {
	case 2:
		return Platform{OS: f[0], Architecture: f[1]}, nil
	case 3:
		return Platform{OS: f[0], Architecture: f[1], Variant: f[2]}, nil
	}
	return Platform{}, hallmark.Errorf(hallmark.KindInvalid, "platform %.80q: want OS/ARCHITECTURE, such as linux/amd64", s)
}

func (p Platform) fits(q *v1.Platform) bool {
	return q != nil && q.OS == p.OS && q.Architecture == p.Architecture && (p.Variant == "" || q.Variant == p.Variant)
}

// Blobs are what images are read from.
type Blobs interface {
	// Open returns the bytes that are kept under a digest. They need not be the
	// right ones: whoever reads compares. A missing blob is a KindNotFound error.
	Open(d hallmark.Digest) (io.ReadCloser, error)
}

// Layer is one layer of an image.
type Layer struct {
	Digest    hallmark.Digest // of the bytes that are kept
	DiffID    hallmark.Digest // of the uncompressed archive
	Size      int64
	MediaType string
}

// Image is one image of one platform, as its manifest and configuration say.
type Image struct {
	Digest   hallmark.Digest // that was asked for: of the manifest, or of an index that names it
	Manifest hallmark.Digest
	Platform Platform
	Layers   []Layer
	Config   v1.Config

	manifestJSON, configJSON []byte
	config                   hallmark.Digest
}

// ConfigJSON is the configuration as it is kept.
func (i *Image) ConfigJSON() []byte { return bytes.Clone(i.configJSON) }

// Env returns a variable of the configuration.
func (i *Image) Env(name string) string {
	for _, e := range i.Config.Env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v
		}
	}
	return ""
}

func invalid(format string, args ...any) error {
	return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageInvalid, format, args...)
}

// readSmall reads a document and compares it with its digest.
func readSmall(blobs Blobs, d hallmark.Digest) ([]byte, error) {
	r, err := blobs.Open(d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("reading blob %s: %w", d, err)
	}
	if len(b) > maxManifest {
		return nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageTooLarge, "document %s has more than %d bytes", d, maxManifest)
	}
	if got := hallmark.DigestOf(b); got != d {
		return nil, altered(d, got)
	}
	return b, nil
}

func altered(want, got hallmark.Digest) error {
	return hallmark.WithHint(hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageDigest, "blob %s has the bytes of %s", want, got),
		"find out who changed it; hallmark image import puts the image into the home again")
}

// document is a manifest or an index, told apart by what it holds: its media type
// is a claim (CVE-2021-41190).
type document struct {
	index    *v1.IndexManifest
	manifest *v1.Manifest
}

func parseDocument(d hallmark.Digest, b []byte) (document, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(b, &keys); err != nil {
		return document{}, invalid("manifest %s can't be read: %s", d, err)
	}
	_, manifests := keys["manifests"]
	_, layers := keys["layers"]
	_, config := keys["config"]
	switch {
	case manifests && (layers || config):
		return document{}, invalid("manifest %s is a manifest and an index at once", d)
	case manifests:
		m, err := v1.ParseIndexManifest(bytes.NewReader(b))
		if err != nil {
			return document{}, invalid("index %s can't be read: %s", d, err)
		}
		if m.MediaType != "" && !m.MediaType.IsIndex() {
			return document{}, invalid("index %s calls itself %.100q", d, m.MediaType)
		}
		return document{index: m}, nil
	case layers && config:
		m, err := v1.ParseManifest(bytes.NewReader(b))
		if err != nil {
			return document{}, invalid("manifest %s can't be read: %s", d, err)
		}
		if m.MediaType != "" && !m.MediaType.IsImage() {
			return document{}, invalid("manifest %s calls itself %.100q", d, m.MediaType)
		}
		return document{manifest: m}, nil
	}
	return document{}, invalid("manifest %s is neither a manifest nor an index of images", d)
}

func digestOf(h v1.Hash) (hallmark.Digest, error) { return hallmark.ParseDigest(h.String()) }

// Open reads manifest and configuration of the image that a digest names; of an
// index, the one image for the platform.
func Open(blobs Blobs, d hallmark.Digest, p Platform) (*Image, error) {
	b, err := readSmall(blobs, d)
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(d, b)
	if err != nil {
		return nil, err
	}
	img := &Image{Digest: d, Manifest: d, Platform: p}
	if doc.index != nil {
		if img.Manifest, err = choose(d, doc.index, p); err != nil {
			return nil, err
		}
		if b, err = readSmall(blobs, img.Manifest); err != nil {
			return nil, err
		}
		if doc, err = parseDocument(img.Manifest, b); err != nil {
			return nil, err
		}
		if doc.manifest == nil {
			return nil, invalid("index %s names another index, %s", d, img.Manifest)
		}
	}
	img.manifestJSON = b
	return img, img.read(blobs, doc.manifest)
}

func choose(d hallmark.Digest, m *v1.IndexManifest, p Platform) (hallmark.Digest, error) {
	var found []v1.Descriptor
	for _, x := range m.Manifests {
		if p.fits(x.Platform) {
			found = append(found, x)
		}
	}
	if len(found) != 1 {
		return "", invalid("index %s has %d images for %s: want one", d, len(found), p)
	}
	return digestOf(found[0].Digest)
}

// read fills an image from its manifest.
func (i *Image) read(blobs Blobs, m *v1.Manifest) error {
	var err error
	if i.config, err = digestOf(m.Config.Digest); err != nil {
		return invalid("manifest %s: config: %s", i.Manifest, err)
	}
	if i.configJSON, err = readSmall(blobs, i.config); err != nil {
		return err
	}
	var c v1.ConfigFile
	if err := json.Unmarshal(i.configJSON, &c); err != nil {
		return invalid("configuration %s can't be read: %s", i.config, err)
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) || c.RootFS.Type != "layers" {
		return invalid("image %s has %d layers, its configuration names %d", i.Manifest, len(m.Layers), len(c.RootFS.DiffIDs))
	}
	if c.OS != i.Platform.OS || c.Architecture != i.Platform.Architecture {
		return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageInvalid, "image %s is for %.40s/%.40s, wanted is %s", i.Manifest, c.OS, c.Architecture, i.Platform)
	}
	i.Config = c.Config
	for n, l := range m.Layers {
		if !knownLayer(l.MediaType) {
			return invalid("image %s: layer %d is %.100q, which can't be read", i.Manifest, n+1, l.MediaType)
		}
		d, err := digestOf(l.Digest)
		if err != nil {
			return invalid("image %s: layer %d: %s", i.Manifest, n+1, err)
		}
		diff, err := digestOf(c.RootFS.DiffIDs[n])
		if err != nil {
			return invalid("image %s: layer %d: %s", i.Manifest, n+1, err)
		}
		i.Layers = append(i.Layers, Layer{Digest: d, DiffID: diff, Size: l.Size, MediaType: string(l.MediaType)})
	}
	return nil
}

// knownLayer leaves out layers that are fetched from elsewhere ("foreign" ones):
// their bytes are not kept with the image.
func knownLayer(t types.MediaType) bool {
	switch t {
	case types.OCILayer, types.OCILayerZStd, types.OCIUncompressedLayer, types.DockerLayer, types.DockerUncompressedLayer:
		return true
	}
	return false
}
