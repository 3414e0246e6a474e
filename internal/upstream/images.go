// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/image"
)

// ImageConfig is what a source of images needs. A nil Transport is the library's,
// which asks the machine's proxy settings.
type ImageConfig struct {
	Ref       image.Ref
	Transport http.RoundTripper
}

// images implements image.Source over a registry. Nothing that it returns is
// compared here: whoever imports it compares every byte with its digest.
type images struct {
	ref  name.Digest
	opts []remote.Option

	mu        sync.Mutex
	manifests map[hallmark.Digest]bool // what is asked for as a manifest
}

// OpenImages opens a registry at the one image that is wanted. Credentials are
// those of the operator's own client (docker login), if there are any.
func OpenImages(ctx context.Context, cfg ImageConfig) (image.Source, error) {
	ref, err := name.NewDigest(cfg.Ref.String(), name.StrictValidation)
	if err != nil {
		return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindUsage, "image %s: %s", cfg.Ref, err), "name the registry and the repository whole, such as docker.io/library/debian@sha256:…")
	}
	host := ref.Context().Registry
	if host.Scheme() == "http" && !loopback(host.RegistryStr()) {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "registry %s: want https; plain http is for registries on this machine", host)
	}
	opts := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithUserAgent("hallmark")}
	if cfg.Transport != nil {
		opts = append(opts, remote.WithTransport(cfg.Transport))
	}
	return &images{ref: ref, opts: opts, manifests: map[hallmark.Digest]bool{cfg.Ref.Digest: true}}, nil
}

func loopback(hostport string) bool {
	if u, err := netip.ParseAddrPort(hostport); err == nil {
		return u.Addr().IsLoopback()
	}
	ip, err := netip.ParseAddr(hostport)
	return err == nil && ip.IsLoopback() || hostport == "localhost" || len(hostport) > 10 && hostport[:10] == "localhost:"
}

func (i *images) Close() error { return nil }

func (i *images) Images() []hallmark.Digest {
	return []hallmark.Digest{hallmark.Digest(i.ref.DigestStr())}
}

// Open implements image.Blobs.
func (i *images) Open(d hallmark.Digest) (io.ReadCloser, error) {
	ref := i.ref.Context().Digest(string(d))
	i.mu.Lock()
	manifest := i.manifests[d]
	i.mu.Unlock()
	if manifest {
		m, err := remote.Get(ref, i.opts...)
		if err != nil {
			return nil, unavailable(ref, err)
		}
		if list, err := v1.ParseIndexManifest(bytes.NewReader(m.Manifest)); err == nil {
			i.mu.Lock()
			for _, x := range list.Manifests {
				i.manifests[hallmark.Digest(x.Digest.String())] = true
			}
			i.mu.Unlock()
		}
		return io.NopCloser(bytes.NewReader(m.Manifest)), nil
	}
	l, err := remote.Layer(ref, i.opts...)
	if err != nil {
		return nil, unavailable(ref, err)
	}
	r, err := l.Compressed()
	if err != nil {
		return nil, unavailable(ref, err)
	}
	return r, nil
}

func unavailable(ref name.Digest, err error) error {
	kind, why := hallmark.KindUnavailable, err.Error()
	var t *transport.Error
	if errors.As(err, &t) && t.StatusCode == http.StatusNotFound {
		kind = hallmark.KindNotFound
	}
	return hallmark.Errorf(kind, "fetching %s: %s", ref, why)
}
