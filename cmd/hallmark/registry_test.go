// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/mod/sumdb/dirhash"
)

// registry is a Go module proxy and an npm registry on loopback, whose packages
// are made at run time.
type registry struct {
	server *httptest.Server
	mu     sync.Mutex
	files  map[string][]byte // by path
	asked  []string
}

func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, q.URL.Path)
	b, ok := r.files[q.URL.Path]
	if !ok {
		http.NotFound(w, q)
		return
	}
	w.Write(b)
}

func (r *registry) put(name string, b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.files[name] = b
}

type registryKey struct{}

// startRegistry gives a script its own registry at $REGISTRY, and an address at
// $ELSEWHERE that nothing may ever reach.
func startRegistry(env *testscript.Env) {
	r := &registry{files: map[string][]byte{}}
	r.server = httptest.NewServer(r)
	env.Defer(r.server.Close)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.asked = append(r.asked, "ELSEWHERE"+q.URL.Path)
	}))
	env.Defer(elsewhere.Close)
	env.Values[registryKey{}] = r
	env.Setenv("REGISTRY", r.server.URL)
	env.Setenv("ELSEWHERE", elsewhere.URL)
}

// registry go MODULE VERSION TEXT DIR   publishes a module of one file, and appends its hashes to DIR/go.sum
// registry npm NAME VERSION FILE LOCK   publishes a package with the package.json FILE, and replaces INTEGRITY in LOCK
// registry asked PATTERN                fails unless a path with PATTERN was asked for (! reverses)
func cmdRegistry(ts *testscript.TestScript, neg bool, args []string) {
	r := ts.Value(registryKey{}).(*registry)
	switch args[0] {
	case "go":
		r.publishModule(ts, args[1], args[2], args[3], args[4])
	case "npm":
		r.publishPackage(ts, args[1], args[2], args[3], args[4])
	case "asked":
		r.mu.Lock()
		defer r.mu.Unlock()
		if strings.Contains(strings.Join(r.asked, "\n"), args[1]) == neg {
			ts.Fatalf("asked for:\n%s", strings.Join(r.asked, "\n"))
		}
	default:
		ts.Fatalf("registry %s", args[0])
	}
}

func (r *registry) publishModule(ts *testscript.TestScript, mod, version, text, dir string) {
	gomod := []byte("module " + mod + "\n\ngo 1.21\n")
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, data := range map[string][]byte{"go.mod": gomod, "file.go": []byte("package " + path.Base(mod) + "\n\n// Text is what was published.\nconst Text = " + fmt.Sprintf("%q", text) + "\n")} {
		w, err := z.Create(mod + "@" + version + "/" + name)
		ts.Check(err)
		_, err = w.Write(data)
		ts.Check(err)
	}
	ts.Check(z.Close())
	at := "/" + mod + "/@v/" + version
	r.put(at+".info", []byte(`{"Version":"`+version+`","Time":"2026-01-01T00:00:00Z"}`))
	r.put(at+".mod", gomod)
	r.put(at+".zip", b.Bytes())
	if dir == "-" {
		return
	}
	file := ts.MkAbs("module.zip")
	ts.Check(os.WriteFile(file, b.Bytes(), 0o644))
	sum, err := dirhash.HashZip(file, dirhash.Hash1)
	ts.Check(err)
	modsum, err := dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(gomod)), nil })
	ts.Check(err)
	f, err := os.OpenFile(ts.MkAbs(dir+"/go.sum"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	ts.Check(err)
	fmt.Fprintf(f, "%s %s %s\n%s %s/go.mod %s\n", mod, version, sum, mod, version, modsum)
	ts.Check(f.Close())
}

func (r *registry) publishPackage(ts *testscript.TestScript, name, version, file, lock string) {
	manifest, err := os.ReadFile(ts.MkAbs(file))
	ts.Check(err)
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for n, data := range map[string][]byte{"package.json": manifest, "index.js": []byte("module.exports = '" + name + " " + version + "'\n")} {
		ts.Check(w.WriteHeader(&tar.Header{Name: "package/" + n, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data))}))
		_, err := w.Write(data)
		ts.Check(err)
	}
	ts.Check(w.Close())
	ts.Check(z.Close())
	sum := sha512.Sum512(b.Bytes())
	integrity := "sha512-" + base64.StdEncoding.EncodeToString(sum[:])
	tarball := "/" + name + "/-/" + path.Base(name) + "-" + version + ".tgz"
	r.put(tarball, b.Bytes())
	doc, err := json.Marshal(map[string]any{"name": name, "dist-tags": map[string]string{"latest": version}, "versions": map[string]any{version: map[string]any{
		"name": name, "version": version, "dist": map[string]string{"tarball": r.server.URL + tarball, "integrity": integrity}}}})
	ts.Check(err)
	r.put("/"+name, doc)
	if lock == "-" {
		return
	}
	text := strings.ReplaceAll(ts.ReadFile(lock), "INTEGRITY", integrity)
	ts.Check(os.WriteFile(ts.MkAbs(lock), []byte(text), 0o644))
}
