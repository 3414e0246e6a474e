// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/image"
)

// TestImagesFromRegistry imports an image and an index by digest, and refuses a
// registry that serves other bytes.
func TestImagesFromRegistry(t *testing.T) {
	alter := "" // path whose answer is changed
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if alter == "" || r.Method != http.MethodGet || !strings.Contains(r.URL.Path, alter) {
			inner.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		inner.ServeHTTP(rec, r)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		b := rec.Body.Bytes()
		b[len(b)/2] ^= 1
		w.WriteHeader(rec.Code)
		w.Write(b)
	}))
	defer server.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	img, err := random.Image(1024, 2)
	must(err)
	cf, err := img.ConfigFile()
	must(err)
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = runtime.GOOS, runtime.GOARCH
	img, err = mutate.ConfigFile(img, cf)
	must(err)
	idx := mutate.AppendManifests(mutate.IndexMediaType(mustIndex(t), "application/vnd.oci.image.index.v1+json"), mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}}})
	repo := strings.TrimPrefix(server.URL, "http://") + "/team/tools"
	one, err := img.Digest()
	must(err)
	many, err := idx.Digest()
	must(err)
	for d, push := range map[v1.Hash]func(name.Reference) error{
		one: func(r name.Reference) error { return remote.Write(r, img) }, many: func(r name.Reference) error { return remote.WriteIndex(r, idx) },
	} {
		ref, err := name.NewDigest(repo + "@" + d.String())
		must(err)
		must(push(ref))
	}
	layers, err := img.Layers()
	must(err)
	first, err := layers[0].Digest()
	must(err)
	fetch := func(digest string) error {
		t.Helper()
		src, err := OpenImages(t.Context(), ImageConfig{Ref: image.Ref{Name: repo, Digest: hallmark.Digest(digest)}})
		must(err)
		defer src.Close()
		s, err := image.NewStore(image.StoreConfig{Dir: filepath.Join(t.TempDir(), "images")})
		must(err)
		_, err = s.Import(t.Context(), src, hallmark.Digest(digest), []image.Platform{image.HostPlatform()})
		return err
	}
	for _, d := range []v1.Hash{one, many} {
		if err := fetch(d.String()); err != nil {
			t.Errorf("%s: %v", d, err)
		}
		for _, at := range []string{"/manifests/" + d.String(), "/blobs/" + first.String()} {
			alter = at
			if err := fetch(d.String()); err == nil {
				t.Errorf("%s: imported with %s altered", d, at)
			}
			alter = ""
		}
	}
	if err := fetch("sha256:" + strings.Repeat("0", 64)); hallmark.KindOf(err) != hallmark.KindNotFound {
		t.Errorf("nothing there: %v", err)
	}
}

func mustIndex(t *testing.T) v1.ImageIndex {
	t.Helper()
	idx, err := random.Index(16, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	return idx
}

// TestPlainRegistriesAreLocal: without TLS, credentials and names go to whoever is
// on the way, also in a private network.
func TestPlainRegistriesAreLocal(t *testing.T) {
	digest := hallmark.DigestOf(nil)
	for host, ok := range map[string]bool{"127.0.0.1:5000": true, "localhost:5000": true, "10.0.0.5:5000": false, "192.168.1.1:5000": false, "registry.example.org": true} {
		_, err := OpenImages(t.Context(), ImageConfig{Ref: image.Ref{Name: host + "/tools", Digest: digest}})
		if (err == nil) != ok {
			t.Errorf("%s: %v", host, err)
		}
	}
	if _, err := OpenImages(t.Context(), ImageConfig{Ref: image.Ref{Name: "debian", Digest: digest}}); hallmark.KindOf(err) != hallmark.KindUsage {
		t.Errorf("a name without a registry: %v", err)
	}
}
