// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package intake

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/package-url/packageurl-go"

	"github.com/hallmark-sc/hallmark"
)

// lock is a package-lock.json of version 2 or 3.
type lock struct {
	name     string
	packages map[string]lockEntry
}

// lockEntry is one package of a lock file, by its place in node_modules.
type lockEntry struct {
	Name             string   `json:"name"` // only when it is not the place's
	Version          string   `json:"version"`
	Resolved         string   `json:"resolved"`
	Integrity        string   `json:"integrity"`
	Link             bool     `json:"link"`
	InBundle         bool     `json:"inBundle"`
	HasInstallScript bool     `json:"hasInstallScript"`
	Optional         bool     `json:"optional"`
	DevOptional      bool     `json:"devOptional"`
	OS               []string `json:"os"`
	CPU              []string `json:"cpu"`
}

// maxPackages bounds one lock file.
const maxPackages = 20000

func parseLock(name string, b []byte) (lock, error) {
	var doc struct {
		LockfileVersion int                  `json:"lockfileVersion"`
		Packages        map[string]lockEntry `json:"packages"`
		Dependencies    json.RawMessage      `json:"dependencies"`
	}
	refuse := func(format string, args ...any) (lock, error) {
		return lock{}, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeDependencyUnavailable, "%s: %s", name, fmt.Sprintf(format, args...))
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return refuse("%s", err)
	}
	if doc.LockfileVersion != 2 && doc.LockfileVersion != 3 {
		return refuse("lockfileVersion %d: want 2 or 3, as npm 7 and later write it", doc.LockfileVersion)
	}
	if len(doc.Packages) > maxPackages {
		return refuse("%d packages are more than %d", len(doc.Packages), maxPackages)
	}
	for at := range doc.Packages {
		if at != "" && (path.IsAbs(at) || path.Clean(at) != at || at == ".." || strings.HasPrefix(at, "../") || strings.ContainsAny(at, "\\\x00")) {
			return refuse("the place %q leaves the project", at)
		}
	}
	return lock{name: name, packages: doc.Packages}, nil
}

// place reports whether an entry is a package in node_modules, not a part of the
// project itself.
func place(at string) bool {
	return strings.HasPrefix(at, "node_modules/") || strings.Contains(at, "/node_modules/")
}

// installed are the places of packages that come from a registry, in order.
func (l lock) installed() []string {
	var out []string
	for _, at := range slices.Sorted(maps.Keys(l.packages)) {
		if e := l.packages[at]; place(at) && !e.Link {
			out = append(out, at)
		}
	}
	return out
}

// packageName is the registry's name of the package at a place.
func (e lockEntry) packageName(at string) string {
	if e.Name != "" {
		return e.Name
	}
	return at[strings.LastIndex(at, "node_modules/")+len("node_modules/"):]
}

// fits reports whether a package is installed on this platform.
func (e lockEntry) fits() bool {
	return allows(e.OS, "linux") && allows(e.CPU, map[string]string{"amd64": "x64", "arm64": "arm64", "386": "ia32"}[runtime.GOARCH])
}

// allows reads npm's lists: names, or exclusions that begin with "!".
func allows(list []string, have string) bool {
	if len(list) == 0 {
		return true
	}
	if slices.Contains(list, "!"+have) {
		return false
	}
	return slices.Contains(list, have) || !slices.ContainsFunc(list, func(s string) bool { return !strings.HasPrefix(s, "!") })
}

// check refuses what a registry can't serve or what would have to run code.
func (l lock) check() error {
	for _, at := range l.installed() {
		e := l.packages[at]
		name := e.packageName(at)
		if e.InBundle { // its bytes are inside another package
			continue
		}
		u, err := url.Parse(e.Resolved)
		switch {
		case e.Integrity == "":
			return hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodeDependencyIntegrity, "%s: %s has no integrity", l.name, at),
				"npm install --package-lock-only, and commit the lock file")
		case e.Resolved == "": // the registry says where it is, the integrity what it is
		case err != nil || u.Scheme != "https" && u.Scheme != "http" || !strings.HasSuffix(u.Path, ".tgz") || !strings.Contains(u.Path, "/"+path.Base(name)+"/-/"):
			return hallmark.WithHint(hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeDependencyUnavailable, "%s: %s comes from %.120q, which is no registry's address of %s", l.name, at, e.Resolved, name),
				"depend on a published version of it")
		}
		if e.HasInstallScript && e.fits() {
			return hallmark.WithHint(hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeDependencyScript, "%s: %s@%s runs an install script: packages are fetched without running any", l.name, name, e.Version),
				"use a package that needs none")
		}
		if _, err := e.sha512(); err != nil {
			return hallmark.Coded(hallmark.KindDenied, hallmark.CodeDependencyIntegrity, "%s: %s: %w", l.name, at, err)
		}
	}
	return nil
}

// sha512 is the strongest hash of the entry, which has to be there.
func (e lockEntry) sha512() ([]byte, error) {
	for _, h := range strings.Fields(e.Integrity) {
		if v, ok := strings.CutPrefix(h, "sha512-"); ok {
			v, _, _ = strings.Cut(v, "?")
			sum, err := base64.StdEncoding.DecodeString(v)
			if err != nil || len(sum) != sha512.Size {
				return nil, fmt.Errorf("integrity %.120q can't be read", h)
			}
			return sum, nil
		}
	}
	return nil, fmt.Errorf("integrity %.120q has no SHA-512", e.Integrity)
}

// unpacked keeps the archives of npm packages that came through the gateway,
// under their hash: what was installed is compared with them, now and whenever
// the directory is used again.
func (p Plan) unpacked(fetched []Fetched, dest string) error {
	if len(p.NPM) == 0 {
		return nil
	}
	keep := filepath.Join(dest, "npm-packages")
	if err := os.MkdirAll(keep, 0o755); err != nil {
		return fmt.Errorf("keeping npm packages: %w", err)
	}
	for _, f := range fetched {
		if f.Registry != RegistryNPM || f.File == "" || f.Status != 200 || f.Problem != "" {
			continue
		}
		if err := os.Rename(f.File, filepath.Join(keep, hex.EncodeToString(f.SHA512)+".tgz")); err != nil {
			return fmt.Errorf("keeping npm packages: %w", err)
		}
	}
	return nil
}

// verifyNPM checks a node_modules directory: each package has the files of the
// archive that the lock file names by SHA-512, and nothing else lies there but
// links that stay inside the project.
func (p Plan) verifyNPM(dir, modules, archives string) ([]Dependency, error) {
	l, err := parseLock(lockPath(dir), p.Files[lockPath(dir)])
	if err != nil {
		return nil, err
	}
	all, err := files(modules)
	if err != nil {
		return nil, fmt.Errorf("listing fetched packages: %w", err)
	}
	owner := l.owners(all)
	var out []Dependency
	for _, at := range l.installed() {
		e := l.packages[at]
		if !e.fits() || e.InBundle {
			continue
		}
		mine := owner[at]
		if len(mine) == 0 {
			if e.Optional || e.DevOptional {
				continue // npm leaves out optional packages that it can't use
			}
			return nil, hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeDependencyUnavailable, "%s: %s was not installed", l.name, at)
		}
		d, err := e.verify(at, mine, modules, archives)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	for _, at := range l.installed() {
		delete(owner, at)
	}
	for at, names := range owner {
		return nil, wrong("fetched %s belongs to no package of the lock file (%s)", names[0], at)
	}
	return out, checkLinks(all, modules)
}

// owners groups regular files by the package they lie in: the longest place of
// the lock file. Bundled packages count to the package that brings them.
func (l lock) owners(all map[string]fs.FileMode) map[string][]string {
	out := map[string][]string{}
	for name, typ := range all {
		if typ == fs.ModeSymlink || name == ".package-lock.json" {
			continue
		}
		at := path.Dir("node_modules/" + name)
		for at != "." {
			if e, ok := l.packages[at]; ok && place(at) && !e.Link && !e.InBundle {
				break
			}
			at = path.Dir(at)
		}
		out[at] = append(out[at], "node_modules/"+name)
	}
	return out
}

// verify compares installed files with the archive.
func (e lockEntry) verify(at string, installed []string, modules, archives string) (Dependency, error) {
	sum, err := e.sha512()
	if err != nil {
		return Dependency{}, wrong("%s: %w", at, err)
	}
	name := e.packageName(at)
	b, err := os.ReadFile(filepath.Join(archives, hex.EncodeToString(sum)+".tgz"))
	if errors.Is(err, fs.ErrNotExist) {
		return Dependency{}, wrong("%s@%s was installed from other bytes than the lock file names", name, e.Version)
	}
	if err != nil {
		return Dependency{}, fmt.Errorf("reading the archive of %s: %w", name, err)
	}
	if got := sha512.Sum512(b); !bytes.Equal(got[:], sum) {
		return Dependency{}, wrong("the archive of %s@%s has other bytes than the lock file names", name, e.Version)
	}
	held, manifest, err := archive(b)
	if err != nil {
		return Dependency{}, wrong("reading the archive of %s@%s: %w", name, e.Version, err)
	}
	// A lock file may keep quiet about scripts; the package itself can't.
	if why := scripted(held, manifest); why != "" {
		return Dependency{}, hallmark.WithHint(
			hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeDependencyScript, "%s@%s %s: packages are fetched without running anything", name, e.Version, why),
			"use a package that needs none")
	}
	for _, file := range installed {
		inside := strings.TrimPrefix(file, at+"/")
		f, err := os.ReadFile(filepath.Join(modules, filepath.FromSlash(strings.TrimPrefix(file, "node_modules/"))))
		if err != nil {
			return Dependency{}, fmt.Errorf("reading %s: %w", file, err)
		}
		if want, ok := held[inside]; !ok || sha256.Sum256(f) != want {
			return Dependency{}, wrong("%s is not the file that the archive of %s@%s holds", file, name, e.Version)
		}
	}
	namespace, base := path.Split(name)
	tgz := sha256.Sum256(b)
	return Dependency{
		PURL:    packageurl.NewPackageURL(packageurl.TypeNPM, strings.TrimSuffix(namespace, "/"), base, e.Version, nil, "").ToString(),
		Name:    name + "@" + e.Version,
		Digests: map[string]string{"sha256": hex.EncodeToString(tgz[:]), "sha512": hex.EncodeToString(sum)},
	}, nil
}

// Limits of one archive.
const (
	maxUnpacked = 2 << 30
	maxEntries  = 200_000
)

// archive lists the regular files of an npm package, without their first path
// element, and returns its package.json. A doubled name keeps the last, as
// unpacking does.
func archive(b []byte) (held map[string][sha256.Size]byte, manifest []byte, err error) {
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, nil, err
	}
	out := map[string][sha256.Size]byte{}
	in := tar.NewReader(io.LimitReader(z, maxUnpacked))
	for n := 0; ; n++ {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return out, manifest, nil
		}
		if err != nil {
			return nil, nil, err
		}
		if n > maxEntries {
			return nil, nil, fmt.Errorf("more than %d entries", maxEntries)
		}
		_, name, ok := strings.Cut(path.Clean(strings.TrimPrefix(h.Name, "/")), "/")
		if h.Typeflag != tar.TypeReg || !ok {
			continue
		}
		sum := sha256.New()
		var text bytes.Buffer
		to := io.Writer(sum)
		if name == "package.json" {
			if h.Size > maxManifest {
				return nil, nil, fmt.Errorf("a package.json of %d bytes", h.Size)
			}
			to = io.MultiWriter(sum, &text)
		}
		if _, err := io.Copy(to, in); err != nil {
			return nil, nil, err
		}
		if name == "package.json" {
			manifest = text.Bytes()
		}
		out[name] = [sha256.Size]byte(sum.Sum(nil))
	}
}

// scripted says what of a package npm would run when it is installed.
func scripted(held map[string][sha256.Size]byte, manifest []byte) string {
	var m struct {
		Scripts map[string]json.RawMessage `json:"scripts"`
	}
	if err := json.Unmarshal(manifest, &m); err != nil {
		return "has a package.json that can't be read"
	}
	for _, s := range []string{"preinstall", "install", "postinstall"} {
		if _, ok := m.Scripts[s]; ok {
			return "runs an install script (" + s + ")"
		}
	}
	if _, ok := held["binding.gyp"]; ok {
		return "compiles code when it is installed (binding.gyp)"
	}
	return ""
}

// checkLinks allows the links that npm makes: programs in .bin, and parts of the
// project in node_modules. They are relative, and none leaves the project.
func checkLinks(all map[string]fs.FileMode, modules string) error {
	for name, typ := range all {
		if typ != fs.ModeSymlink {
			continue
		}
		to, err := os.Readlink(filepath.Join(modules, filepath.FromSlash(name)))
		if err != nil {
			return fmt.Errorf("reading a fetched link: %w", err)
		}
		full := path.Join(path.Dir("node_modules/"+name), filepath.ToSlash(to))
		if path.IsAbs(to) || full == ".." || strings.HasPrefix(full, "../") {
			return wrong("fetched link %s leaves the project", name)
		}
	}
	return nil
}
