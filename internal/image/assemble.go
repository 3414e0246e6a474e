// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/hallmark-sc/hallmark"
)

// Spec is an image that is to be made.
type Spec struct {
	Created    time.Time // of every file and of the configuration
	Variants   []Variant
	Index      bool // make an index, even of one variant
	Entrypoint []string
	Cmd        []string
	Env        map[string]string
	User       string
	Workdir    string
	Labels     map[string]string
}

// Variant is the image for one platform.
type Variant struct {
	Platform Platform
	Base     *Base // nil is scratch
	Files    []SpecFile
	// Ready is an image whose layers are made already, in place of Files and what
	// Spec says of the configuration.
	Ready *Ready
}

// Ready are the layers over a base, and the whole configuration.
type Ready struct {
	Layers []Layer // with their bytes where the others are kept
	Config v1.Config
}

// Base is an image that another is made from.
type Base struct {
	Ref   Ref
	Image *Image
	Tree  *Tree
}

// SpecFile is one file of an image that is made.
type SpecFile struct {
	Path string // absolute
	Mode uint32 // permission bits
	Data []byte
}

// Made is an image as a set of blobs.
type Made struct {
	Subject v1.Descriptor              // of the manifest, or of the index
	Blobs   map[hallmark.Digest][]byte // that were made
	Base    []hallmark.Digest          // layers of the bases, which lie where they were read
	Ready   []Layer                    // that were made before, each once
}

// Assemble makes an image. Equal specs give equal bytes: names are sorted, every
// time is Spec.Created, and files belong to user 0 and group 0.
func Assemble(s Spec) (*Made, error) {
	if len(s.Variants) == 0 || len(s.Variants) > 1 && !s.Index {
		return nil, hallmark.Errorf(hallmark.KindInternal, "assembling an image of %d variants", len(s.Variants))
	}
	out := &Made{Blobs: map[hallmark.Digest][]byte{}}
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}
	for _, v := range s.Variants {
		d, err := out.variant(s, v)
		if err != nil {
			return nil, fmt.Errorf("assembling the image for %s: %w", v.Platform, err)
		}
		out.Subject = d
		d.Platform = &v1.Platform{OS: v.Platform.OS, Architecture: v.Platform.Architecture, Variant: v.Platform.Variant}
		index.Manifests = append(index.Manifests, d)
	}
	if s.Index {
		var err error
		if out.Subject, err = out.document(types.OCIImageIndex, index); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (m *Made) add(t types.MediaType, b []byte) v1.Descriptor {
	d := hallmark.DigestOf(b)
	m.Blobs[d] = b
	return descriptor(t, d, int64(len(b)))
}

func (m *Made) document(t types.MediaType, v any) (v1.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("encoding %s: %w", t, err)
	}
	return m.add(t, b), nil
}

func (m *Made) variant(s Spec, v Variant) (v1.Descriptor, error) {
	config := v1.ConfigFile{
		OS: v.Platform.OS, Architecture: v.Platform.Architecture, Variant: v.Platform.Variant, Created: v1.Time{Time: s.Created.UTC().Truncate(time.Second)},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{}},
	}
	manifest := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: []v1.Descriptor{}}
	if v.Base != nil {
		config.Config = v.Base.Image.Config
		manifest.Annotations = map[string]string{
			"org.opencontainers.image.base.digest": string(v.Base.Ref.Digest), "org.opencontainers.image.base.name": v.Base.Ref.Name,
		}
		for _, l := range v.Base.Image.Layers {
			manifest.Layers = append(manifest.Layers, descriptor(ociLayer(types.MediaType(l.MediaType)), l.Digest, l.Size))
			config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, v1.Hash{Algorithm: "sha256", Hex: l.DiffID.Hex()})
			if !slices.Contains(m.Base, l.Digest) {
				m.Base = append(m.Base, l.Digest)
			}
		}
	}
	if r := v.Ready; r != nil {
		for _, l := range r.Layers {
			manifest.Layers = append(manifest.Layers, descriptor(types.MediaType(l.MediaType), l.Digest, l.Size))
			config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, v1.Hash{Algorithm: "sha256", Hex: l.DiffID.Hex()})
			if !slices.Contains(m.Ready, l) {
				m.Ready = append(m.Ready, l)
			}
		}
		config.Config = r.Config
		return m.finish(manifest, config)
	}
	plain, err := layerOf(s.Created, v)
	if err != nil {
		return v1.Descriptor{}, err
	}
	packed, err := compress(plain)
	if err != nil {
		return v1.Descriptor{}, err
	}
	manifest.Layers = append(manifest.Layers, m.add(types.OCILayer, packed))
	config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, v1.Hash{Algorithm: "sha256", Hex: hallmark.DigestOf(plain).Hex()})
	s.configure(&config.Config)
	return m.finish(manifest, config)
}

func (m *Made) finish(manifest v1.Manifest, config v1.ConfigFile) (v1.Descriptor, error) {
	var err error
	if manifest.Config, err = m.document(types.OCIConfigJSON, config); err != nil {
		return v1.Descriptor{}, err
	}
	return m.document(types.OCIManifestSchema1, manifest)
}

// ociLayer is OCI's name of a layer type, for the same bytes.
func ociLayer(t types.MediaType) types.MediaType {
	switch t {
	case types.DockerLayer:
		return types.OCILayer
	case types.DockerUncompressedLayer:
		return types.OCIUncompressedLayer
	}
	return t
}

// configure puts what a spec says over the configuration of the base. What only
// said something of the base's own making is dropped.
func (s Spec) configure(c *v1.Config) {
	c.Hostname, c.Domainname, c.Image, c.OnBuild = "", "", "", nil
	if s.Entrypoint != nil {
		c.Entrypoint, c.Cmd = s.Entrypoint, nil // a command of the base is none of another program's
	}
	if s.Cmd != nil {
		c.Cmd = s.Cmd
	}
	env := slices.Clone(c.Env)
	for _, k := range slices.Sorted(maps.Keys(s.Env)) {
		env = slices.DeleteFunc(env, func(e string) bool { return strings.HasPrefix(e, k+"=") })
		env = append(env, k+"="+s.Env[k])
	}
	if c.Env = env; len(env) == 0 {
		c.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	if s.User != "" {
		c.User = s.User
	}
	if s.Workdir != "" {
		c.WorkingDir = s.Workdir
	}
	if len(s.Labels) > 0 {
		labels := maps.Clone(c.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		maps.Copy(labels, s.Labels)
		c.Labels = labels
	}
}

// layerOf is the layer with the files of a variant.
func layerOf(created time.Time, v Variant) ([]byte, error) {
	base := newTree()
	if v.Base != nil {
		base = v.Base.Tree
	}
	headers, data := map[string]*tar.Header{}, map[string][]byte{}
	for _, f := range v.Files {
		at, missing, err := base.place(f.Path)
		if err != nil {
			return nil, err
		}
		if headers[at] != nil {
			return nil, invalid("%s stands twice in the image", f.Path)
		}
		for _, d := range missing {
			if h := headers[d]; h != nil && h.Typeflag != tar.TypeDir {
				return nil, invalid("%s is a file and a directory of the image", d)
			}
			headers[d] = &tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}
		}
		headers[at] = &tar.Header{Typeflag: tar.TypeReg, Name: at, Mode: int64(f.Mode & 0o777), Size: int64(len(f.Data))}
		data[at] = f.Data
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		h := headers[name]
		h.ModTime, h.Format = created.UTC().Truncate(time.Second), tar.FormatPAX
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("writing %s: %w", name, err)
		}
		if _, err := w.Write(data[name]); err != nil {
			return nil, fmt.Errorf("writing %s: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("writing a layer: %w", err)
	}
	return b.Bytes(), nil
}

// place says under which name a file is written over the tree, where no name
// leads through a symlink: readers of layers differ in what that means. missing
// are the directories that the tree does not have.
func (t *Tree) place(file string) (at string, missing []string, err error) {
	parts, err := clean(file)
	if err != nil || len(parts) == 0 {
		return "", nil, invalid("%q is no name of a file in an image", file)
	}
	dirs, name := parts[:len(parts)-1], parts[len(parts)-1]
	if at, missing, err = t.under(dirs); err != nil {
		return "", nil, fmt.Errorf("%s: %w", file, err)
	}
	at = path.Join(at, name)
	if n := t.lookup(strings.Split(at, "/")); n != nil && n.Type == Directory {
		return "", nil, invalid("%s is a directory of the base", file)
	}
	return at, missing, nil
}

// under is where a path of directories leads to; missing are those that the tree
// does not have.
func (t *Tree) under(dirs []string) (at string, missing []string, err error) {
	for i := range dirs {
		name := path.Join(at, dirs[i])
		e, ok := t.Find(name)
		switch {
		case !ok:
			if _, link := t.At(name); link {
				return "", nil, invalid("%s is a link that leads nowhere", name)
			}
			for _, d := range dirs[i:] {
				at = path.Join(at, d)
				missing = append(missing, at)
			}
			return at, missing, nil
		case e.Type != Directory:
			return "", nil, invalid("%s is no directory of the base", e.Path)
		}
		at = e.Path
	}
	return at, nil, nil
}

// packer is the one compressor of layers.
func packer(out io.Writer) (*gzip.Writer, error) {
	w, err := gzip.NewWriterLevel(out, gzip.BestCompression)
	if err != nil {
		return nil, fmt.Errorf("packing a layer: %w", err)
	}
	return w, nil
}

// compress packs a layer. The header says nothing of the machine or the time;
// registries and tools would pack an unpacked layer themselves, and so change
// the digest of the image on its way.
func compress(b []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := packer(&out)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(b); err != nil {
		return nil, fmt.Errorf("packing a layer: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("packing a layer: %w", err)
	}
	return out.Bytes(), nil
}
