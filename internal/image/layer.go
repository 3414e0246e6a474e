// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/hallmark-sc/hallmark"
)

// reader reads one layer: compressed bytes against the layer's digest,
// uncompressed ones against its diff id, both bounded.
type reader struct {
	layer  Layer
	file   io.Closer
	raw    *hashing // bytes that are kept
	plain  *hashing // the archive
	closer func()
}

// hashing hashes and counts what is read through it.
type hashing struct {
	r    io.Reader
	h    hash.Hash
	n    int64
	left *int64 // may be shared; below zero ends the reading
}

var errTooLarge = hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageTooLarge, "the layers unpack to more than is allowed")

func (h *hashing) Read(b []byte) (int, error) {
	n, err := h.r.Read(b)
	h.h.Write(b[:n])
	h.n += int64(n)
	if *h.left -= int64(n); *h.left < 0 {
		return 0, errTooLarge
	}
	return n, err
}

func (h *hashing) digest() hallmark.Digest {
	var sum [sha256.Size]byte
	copy(sum[:], h.h.Sum(nil))
	return hallmark.DigestFromSum(sum)
}

// openLayer begins to read a layer; left bounds the uncompressed bytes.
func openLayer(blobs Blobs, l Layer, left *int64) (*reader, error) {
	f, err := blobs.Open(l.Digest)
	if err != nil {
		return nil, err
	}
	size := l.Size
	r := &reader{layer: l, file: f, closer: func() {}}
	r.raw = &hashing{r: f, h: sha256.New(), left: &size}
	in := bufio.NewReaderSize(r.raw, 1<<16)
	plain := io.Reader(in)
	magic, _ := in.Peek(4) // a layer that is shorter fails below
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(in)
		if err != nil {
			defer f.Close()
			return nil, r.fault(err)
		}
		plain = z
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
		if err != nil {
			defer f.Close()
			return nil, r.fault(err)
		}
		plain, r.closer = z, z.Close
	}
	r.plain = &hashing{r: plain, h: sha256.New(), left: left}
	return r, nil
}

func (r *reader) Close() {
	r.closer()
	r.file.Close()
}

// finish reads to the end and compares both digests. Bytes after the archive
// would be seen by some readers and not by others.
func (r *reader) finish() error {
	buf := make([]byte, 1<<16)
	for {
		n, err := r.plain.Read(buf)
		for _, b := range buf[:n] {
			if b != 0 {
				return hostile("layer %s has bytes after its end", r.layer.Digest)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return r.fault(err)
		}
	}
	if _, err := io.Copy(io.Discard, r.raw); err != nil {
		return r.fault(err)
	}
	if got := r.raw.digest(); got != r.layer.Digest || r.raw.n != r.layer.Size {
		return altered(r.layer.Digest, got)
	}
	if got := r.plain.digest(); got != r.layer.DiffID {
		return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageDigest, "layer %s unpacks to %s, the configuration says %s", r.layer.Digest, got, r.layer.DiffID)
	}
	return nil
}

// fault explains an error of reading. Bytes that are not the layer's own are
// named first: whatever they do to a reader follows from that.
func (r *reader) fault(err error) error {
	if _, copied := io.Copy(io.Discard, r.raw); copied == nil {
		if got := r.raw.digest(); got != r.layer.Digest {
			return altered(r.layer.Digest, got)
		}
	} else if errors.Is(copied, errTooLarge) { // longer than the manifest says
		return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageDigest, "layer %s is longer than its manifest says", r.layer.Digest)
	}
	if hallmark.CodeOf(err) != "" {
		return err
	}
	return invalid("layer %s can't be read: %s", r.layer.Digest, err)
}

// budget counts what is still allowed of all layers.
type budget struct {
	entries int
	bytes   int64
}

// each calls fn for every entry of a layer, in its order, and then compares the
// digests: what fn saw counts only when each returned nil.
func each(ctx context.Context, blobs Blobs, l Layer, b *budget, fn func(n int, h *tar.Header, r io.Reader) error) error {
	r, err := openLayer(blobs, l, &b.bytes)
	if err != nil {
		return err
	}
	defer r.Close()
	t := tar.NewReader(r.plain)
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return r.finish()
		}
		if err != nil {
			return r.fault(err)
		}
		if b.entries--; b.entries < 0 {
			return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageTooLarge, "the layers have more entries than are allowed")
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := fn(n, h, t); err != nil {
			return r.fault(err)
		}
	}
}

// Flatten reads all layers and returns the tree they come to.
func Flatten(ctx context.Context, blobs Blobs, layers []Layer, limits Limits) (*Tree, error) {
	limits = limits.defaults()
	if len(layers) > limits.Layers {
		return nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageTooLarge, "%d layers, more than %d", len(layers), limits.Layers)
	}
	b := &budget{entries: limits.Entries, bytes: limits.Bytes}
	t := newTree()
	for i, l := range layers {
		err := each(ctx, blobs, l, b, func(n int, h *tar.Header, r io.Reader) error { return t.apply(position{i, n}, h, r) })
		if err != nil {
			return nil, fmt.Errorf("reading layer %d: %w", i+1, err)
		}
	}
	t.layers = len(layers)
	return t, nil
}

// Add puts one more layer over the tree.
func (t *Tree) Add(ctx context.Context, blobs Blobs, l Layer, limits Limits) error {
	limits = limits.defaults()
	if t.layers >= limits.Layers {
		return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeImageTooLarge, "more than %d layers", limits.Layers)
	}
	b := &budget{entries: limits.Entries, bytes: limits.Bytes}
	at := t.layers
	t.layers++
	return each(ctx, blobs, l, b, func(n int, h *tar.Header, r io.Reader) error { return t.apply(position{at, n}, h, r) })
}

const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// apply puts one entry of a layer into the tree.
func (t *Tree) apply(at position, h *tar.Header, r io.Reader) error {
	parts, err := clean(h.Name)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		if h.Typeflag != tar.TypeDir {
			return hostile("entry %.200q stands for the root and is no directory", h.Name)
		}
		t.root.Mode, t.root.UID, t.root.GID, t.root.Special = permissions(h.Mode), h.Uid, h.Gid, uint32(h.Mode)&0o7000 //nolint:gosec // masked
		return nil
	}
	name := parts[len(parts)-1]
	if slices.ContainsFunc(parts[:len(parts)-1], func(p string) bool { return strings.HasPrefix(p, whiteout) }) {
		return nil // of AUFS's own bookkeeping, such as .wh..wh.plnk
	}
	dir, err := t.directory(parts[:len(parts)-1], at.layer)
	if err != nil {
		return err
	}
	if strings.HasPrefix(name, whiteout) {
		return dir.whiteout(name, at.layer)
	}
	e, keep, err := t.entry(parts, h, r, at)
	if err != nil || !keep {
		return err
	}
	return t.put(dir, name, e, at.layer)
}

// whiteout removes what a layer says that is gone.
func (d *node) whiteout(name string, layer int) error {
	gone := strings.TrimPrefix(name, whiteout)
	switch {
	case name == opaque:
		for c := range d.children {
			d.remove(c, layer)
		}
	case strings.HasPrefix(gone, whiteout): // AUFS
	case gone == "" || gone == "." || gone == "..":
		return hostile("whiteout %q of no name", path.Join(d.Path, name))
	default:
		d.remove(gone, layer)
	}
	return nil
}

// permissions drops the bits that would give a program the rights of another.
func permissions(mode int64) uint32 { return uint32(mode) & 0o777 }

// entry reads one entry; keep is false for one that no tree holds.
func (t *Tree) entry(parts []string, h *tar.Header, r io.Reader, at position) (e Entry, keep bool, err error) {
	e = Entry{Mode: permissions(h.Mode), UID: h.Uid, GID: h.Gid, Special: uint32(h.Mode) & 0o7000} //nolint:gosec // masked
	switch h.Typeflag {
	case tar.TypeDir:
		e.Type = Directory
	case tar.TypeReg, tar.TypeGNUSparse:
		e.Type, e.source = File, at
		if e.Digest, e.Size, err = hallmark.DigestFrom(r); err != nil {
			return e, false, err
		}
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxPath || strings.ContainsRune(h.Linkname, 0) {
			return e, false, hostile("link %.200q leads nowhere", h.Name)
		}
		e.Type, e.Mode, e.Target = Symlink, 0o777, h.Linkname
	case tar.TypeLink:
		return t.hardLink(h)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		if parts[0] == "dev" { // every sandbox has its own /dev
			return e, false, nil
		}
		return e, false, hostile("entry %.200q is a device or a pipe", h.Name)
	default:
		return e, false, hostile("entry %.200q has the unknown type %q", h.Name, string(h.Typeflag))
	}
	return e, true, nil
}

// hardLink gives a file of the tree another name. The first name is taken as it
// stands: through a symlink it could lead to another file than it seems to.
func (t *Tree) hardLink(h *tar.Header) (Entry, bool, error) {
	parts, err := clean(h.Linkname)
	if err != nil {
		return Entry{}, false, err
	}
	if len(parts) == 0 {
		return Entry{}, false, hostile("hard link %.200q to the root", h.Name)
	}
	old := t.lookup(parts)
	if old == nil || old.Type == Directory {
		return Entry{}, false, hostile("hard link %.200q to %.200q, which is no file of the image", h.Name, h.Linkname)
	}
	return old.Entry, true, nil
}

// LayerFile is one file of one layer, also of one that a later layer hides.
type LayerFile struct {
	Layer hallmark.Digest
	Path  string
	Size  int64
}

// Files calls fn for every file of every layer. What fn saw counts only when
// Files returned nil: the digests are compared at the end of each layer.
func Files(ctx context.Context, blobs Blobs, layers []Layer, limits Limits, fn func(f LayerFile, r io.Reader) error) error {
	limits = limits.defaults()
	b := &budget{entries: limits.Entries, bytes: limits.Bytes}
	for i, l := range layers {
		err := each(ctx, blobs, l, b, func(_ int, h *tar.Header, r io.Reader) error {
			if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeGNUSparse {
				return nil
			}
			return fn(LayerFile{Layer: l.Digest, Path: path.Clean(h.Name), Size: h.Size}, r)
		})
		if err != nil {
			return fmt.Errorf("reading layer %d: %w", i+1, err)
		}
	}
	return nil
}
