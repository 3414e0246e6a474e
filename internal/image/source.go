// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/hallmark-sc/hallmark"
)

// Source is a place that an image can be imported from.
type Source interface {
	Blobs
	// Images are the digests of the images that the source names, in its order.
	Images() []hallmark.Digest
	Close() error
}

// OpenPath opens an OCI image layout (a directory, or an archive of one) or an
// archive that docker save wrote.
func OpenPath(name string) (Source, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindNotFound, "reading image: %w", err)
	}
	if st.IsDir() {
		root, err := os.OpenRoot(name)
		if err != nil {
			return nil, hallmark.Errorf(hallmark.KindInvalid, "reading image: %w", err)
		}
		return openLayout(&directory{root})
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading image: %w", err)
	}
	a, err := indexArchive(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	if _, ok := a.files["oci-layout"]; ok {
		return openLayout(a)
	}
	return openDocker(a)
}

// files are the files of a source by name.
type files interface {
	file(name string) (io.ReadCloser, error)
	Close() error
}

type directory struct{ root *os.Root }

func (d *directory) Close() error { return d.root.Close() }

func (d *directory) file(name string) (io.ReadCloser, error) {
	st, err := d.root.Stat(filepath.FromSlash(name))
	if err == nil && !st.Mode().IsRegular() {
		return nil, invalid("%s is no regular file", name)
	}
	f, err := d.root.Open(filepath.FromSlash(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hallmark.Coded(hallmark.KindNotFound, hallmark.CodeImageInvalid, "the image has no file %s", name)
	}
	return f, err
}

// archive is an uncompressed tar file whose members are read where they lie.
type archive struct {
	f     *os.File
	files map[string]span
	links map[string]string
}

type span struct{ at, size int64 }

// maxMembers bounds an archive of an image.
const maxMembers = 10_000

func indexArchive(f *os.File) (*archive, error) {
	a := &archive{f: f, files: map[string]span{}, links: map[string]string{}}
	t := tar.NewReader(f)
	for range maxMembers {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return a, nil
		}
		if err != nil {
			return nil, hallmark.WithHint(invalid("%s is no uncompressed archive of an image: %s", f.Name(), err), "unpack a compressed one first: gunzip FILE")
		}
		name := path.Clean(h.Name)
		if _, doubled := a.files[name]; doubled || a.links[name] != "" {
			return nil, hostile("%s holds %q twice", f.Name(), name)
		}
		switch h.Typeflag {
		case tar.TypeReg:
			at, err := f.Seek(0, io.SeekCurrent) // the reader takes no more than the header
			if err != nil {
				return nil, fmt.Errorf("reading %s: %w", f.Name(), err)
			}
			a.files[name] = span{at, h.Size}
		case tar.TypeSymlink: // docker save links equal layers
			a.links[name] = path.Join(path.Dir(name), h.Linkname)
		case tar.TypeDir, tar.TypeXGlobalHeader:
		default:
			return nil, hostile("%s holds %q, which is no regular file", f.Name(), name)
		}
	}
	return nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageTooLarge, "%s has more than %d members", f.Name(), maxMembers)
}

func (a *archive) Close() error { return a.f.Close() }

func (a *archive) file(name string) (io.ReadCloser, error) {
	name = path.Clean(name)
	if to, ok := a.links[name]; ok {
		name = to
	}
	s, ok := a.files[name]
	if !ok {
		return nil, hallmark.Coded(hallmark.KindNotFound, hallmark.CodeImageInvalid, "%s has no member %s", a.f.Name(), name)
	}
	return io.NopCloser(io.NewSectionReader(a.f, s.at, s.size)), nil
}

func small(f files, name string) ([]byte, error) {
	r, err := f.file(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err == nil && len(b) > maxManifest {
		err = hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageTooLarge, "%s has more than %d bytes", name, maxManifest)
	}
	return b, err
}

// layout is an OCI image layout (image-layout.md).
type layout struct {
	files
	images []hallmark.Digest
}

func openLayout(f files) (Source, error) {
	l := &layout{files: f}
	if err := l.read(); err != nil {
		f.Close()
		return nil, err
	}
	return l, nil
}

func (l *layout) read() error {
	b, err := small(l, "index.json")
	if err != nil {
		return err
	}
	m, err := v1.ParseIndexManifest(bytes.NewReader(b))
	if err != nil {
		return invalid("index.json can't be read: %s", err)
	}
	for _, x := range m.Manifests {
		if isEvidence(x) {
			continue
		}
		d, err := digestOf(x.Digest)
		if err != nil {
			return invalid("index.json: %s", err)
		}
		l.images = append(l.images, d)
	}
	return nil
}

func (l *layout) Images() []hallmark.Digest { return l.images }

func (l *layout) Open(d hallmark.Digest) (io.ReadCloser, error) {
	if err := d.Check(); err != nil {
		return nil, err
	}
	return l.file("blobs/sha256/" + d.Hex())
}

// docker is an archive of docker save: configuration and layers, and no manifest
// that would have a digest. The manifest that it gets here holds nothing but
// those, so that the same archive always has the same digest.
type docker struct {
	*archive
	image hallmark.Digest
	names map[hallmark.Digest]string
	made  map[hallmark.Digest][]byte
}

func openDocker(a *archive) (Source, error) {
	d := &docker{archive: a, names: map[hallmark.Digest]string{}, made: map[hallmark.Digest][]byte{}}
	if err := d.read(); err != nil {
		a.Close()
		return nil, err
	}
	return d, nil
}

func (d *docker) read() error {
	b, err := small(d, "manifest.json")
	if err != nil {
		return invalid("%s is neither an OCI layout nor an archive of docker save: %s", d.f.Name(), err)
	}
	var all []struct {
		Config   string
		Layers   []string
		RepoTags []string
	}
	if err := json.Unmarshal(b, &all); err != nil || len(all) != 1 {
		return invalid("%s: manifest.json names %d images: want an archive of one", d.f.Name(), len(all))
	}
	config, err := small(d, all[0].Config)
	if err != nil {
		return err
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: []v1.Descriptor{}}
	d.made[hallmark.DigestOf(config)] = config
	m.Config = descriptor(types.OCIConfigJSON, hallmark.DigestOf(config), int64(len(config)))
	for _, name := range all[0].Layers {
		r, err := d.file(name)
		if err != nil {
			return err
		}
		digest, size, err := hallmark.DigestFrom(r)
		if err != nil {
			return fmt.Errorf("reading %s: %w", d.f.Name(), err)
		}
		d.names[digest] = name
		m.Layers = append(m.Layers, descriptor(types.OCIUncompressedLayer, digest, size))
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encoding a manifest: %w", err)
	}
	d.image = hallmark.DigestOf(raw)
	d.made[d.image] = raw
	return nil
}

func (d *docker) Images() []hallmark.Digest { return []hallmark.Digest{d.image} }

func (d *docker) Open(digest hallmark.Digest) (io.ReadCloser, error) {
	if b, ok := d.made[digest]; ok {
		return io.NopCloser(bytes.NewReader(b)), nil
	}
	name, ok := d.names[digest]
	if !ok {
		return nil, hallmark.Coded(hallmark.KindNotFound, hallmark.CodeImageInvalid, "the archive holds no %s", digest)
	}
	return d.file(name)
}

func descriptor(t types.MediaType, d hallmark.Digest, size int64) v1.Descriptor {
	return v1.Descriptor{MediaType: t, Digest: v1.Hash{Algorithm: "sha256", Hex: d.Hex()}, Size: size}
}

const refAnnotation = "org.opencontainers.image.ref.name"

// fallbackTag is the tag under which registries that know no referrers keep
// what refers to a manifest (distribution-spec, "Referrers Tag Schema").
func fallbackTag(h v1.Hash) string { return h.Algorithm + "-" + h.Hex }

// isEvidence reports whether an entry of an index is about an image and none
// itself: a list of referrers, or an artifact of another kind. Writers put the
// type of an image's configuration where the type of an artifact stands.
func isEvidence(x v1.Descriptor) bool {
	other := x.ArtifactType != "" && x.ArtifactType != string(types.OCIConfigJSON) && x.ArtifactType != string(types.DockerConfigJSON)
	return other || strings.HasPrefix(x.Annotations[refAnnotation], "sha256-") && x.MediaType.IsIndex()
}
