// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package intake

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/package-url/packageurl-go"

	"github.com/hallmark-sc/hallmark"
)

// unpacked keeps the archives of npm packages that came through the gateway,
// under their hash: what was installed is compared with them, now and whenever
// the directory is used again.
func (p Plan) unpacked(fetched []Fetched, dest string) error {
	if len(p.NPM) == 0 {
		return nil
	}
	wanted := map[string]bool{}
	for _, dir := range p.NPM {
		l, err := parseLock(lockPath(dir), p.Files[lockPath(dir)])
		if err != nil {
			return err
		}
		for _, at := range l.installed() {
			if sum, err := l.packages[at].sha512(); err == nil {
				wanted[hex.EncodeToString(sum)] = true
			}
		}
	}
	keep := filepath.Join(dest, "npm-packages")
	// Not MkdirAll: what the worker put there, a link to elsewhere perhaps, is
	// not where anything is kept.
	if err := os.Mkdir(keep, 0o755); errors.Is(err, fs.ErrExist) {
		return wrong("the worker left npm-packages, which is not its to make")
	} else if err != nil {
		return fmt.Errorf("keeping npm packages: %w", err)
	}
	for _, f := range fetched {
		sum := hex.EncodeToString(f.SHA512)
		if f.Registry != RegistryNPM || f.File == "" || f.Status != 200 || f.Problem != "" || !wanted[sum] {
			continue
		}
		at := filepath.Join(keep, sum+".tgz")
		if err := errors.Join(os.Rename(f.File, at), os.Chmod(at, fileMode)); err != nil {
			return fmt.Errorf("keeping npm packages: %w", err)
		}
	}
	return nil
}

// tree is a node_modules directory that is being verified.
type tree struct {
	lock              lock
	modules, archives string                       // host directories
	owner             map[string][]string          // files by the package they lie in
	all               map[string]fs.FileMode       // of modules
	programs          map[string]map[string]string // by place: name to file in the package
	executable        map[string]bool              // files that npm may mark so
	linked            map[string]bool              // files that a program's link leads to
}

// verifyNPM checks a node_modules directory: each package has the files of the
// archive that the lock file names by SHA-512, all of them and no other, and
// nothing else lies there but the links that npm makes.
func (p Plan) verifyNPM(dir, modules, archives string) ([]Dependency, error) {
	l, err := parseLock(lockPath(dir), p.Files[lockPath(dir)])
	if err != nil {
		return nil, err
	}
	all, err := files(modules)
	if err != nil {
		return nil, fmt.Errorf("listing fetched packages: %w", err)
	}
	t := tree{lock: l, modules: modules, archives: archives, owner: l.owners(all), all: all,
		programs: map[string]map[string]string{}, executable: map[string]bool{}, linked: map[string]bool{}}
	var out []Dependency
	for _, at := range l.installed() {
		e := l.packages[at]
		if e.InBundle {
			continue // verified with the package that brings it
		}
		// What lies in the place of a package for another platform is verified
		// too: npm leaves it out, but it is not npm that is believed.
		if len(t.owner[at]) == 0 {
			if !e.fits() || e.Optional || e.DevOptional {
				continue // npm leaves out optional packages that it can't use
			}
			return nil, hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeDependencyUnavailable, "%s: %s was not installed", l.name, at)
		}
		d, err := t.verify(e, at)
		if err != nil {
			return nil, err
		}
		delete(t.owner, at)
		out = append(out, d)
	}
	for at, names := range t.owner {
		return nil, wrong("fetched %s belongs to no package of the lock file (%s)", names[0], at)
	}
	if err := t.checkLinks(p, dir); err != nil {
		return nil, err
	}
	return out, t.checkModes()
}

// owner is the package that a path lies in: the longest place of the lock file.
// Bundled packages count to the package that brings them.
func (l lock) owner(file string) string {
	at := path.Dir(file)
	for at != "." {
		if e, ok := l.packages[at]; ok && place(at) && !e.Link && !e.InBundle {
			break
		}
		at = path.Dir(at)
	}
	return at
}

// owners groups regular files by the package they lie in.
func (l lock) owners(all map[string]fs.FileMode) map[string][]string {
	out := map[string][]string{}
	for name, mode := range all {
		if mode.IsRegular() {
			at := l.owner("node_modules/" + name)
			out[at] = append(out[at], "node_modules/"+name)
		}
	}
	return out
}

// verify compares installed files with the archive, both ways.
func (t *tree) verify(e lockEntry, at string) (Dependency, error) {
	name := e.packageName(at)
	what := name + "@" + e.Version
	held, d, err := t.open(e, what)
	if err != nil {
		return Dependency{}, err
	}
	if err := t.identify(e, at, held); err != nil {
		return Dependency{}, err
	}
	for _, file := range t.owner[at] {
		inside := strings.TrimPrefix(file, at+"/")
		f, err := os.Open(t.host(file))
		if err != nil {
			return Dependency{}, fmt.Errorf("reading %s: %w", file, err)
		}
		sum := sha256.New()
		_, err = io.Copy(sum, f)
		f.Close()
		if err != nil {
			return Dependency{}, fmt.Errorf("reading %s: %w", file, err)
		}
		want, ok := held.files[inside]
		if !ok || [sha256.Size]byte(sum.Sum(nil)) != want.sum {
			return Dependency{}, wrong("%s is not the file that the archive of %s holds", file, what)
		}
		if want.executable {
			t.executable[file], t.linked[file] = true, true
		}
	}
	for inside := range held.files {
		file := at + "/" + inside
		if t.lock.owner(file) != at {
			continue // in the place of another package, which lies there instead
		}
		if mode, ok := t.all[strings.TrimPrefix(file, "node_modules/")]; !ok || !mode.IsRegular() {
			return Dependency{}, wrong("%s is missing: the archive of %s holds it", file, what)
		}
	}
	namespace, base := path.Split(name)
	d.PURL = packageurl.NewPackageURL(packageurl.TypeNPM, strings.TrimSuffix(namespace, "/"), base, e.Version, nil, "").ToString()
	d.Name = what
	return d, nil
}

func (t *tree) host(file string) string {
	return filepath.Join(t.modules, filepath.FromSlash(strings.TrimPrefix(file, "node_modules/")))
}

// open finds the archive that the lock file names, and lists it.
func (t *tree) open(e lockEntry, what string) (packed, Dependency, error) {
	sum, err := e.sha512()
	if err != nil {
		return packed{}, Dependency{}, wrong("%s: %w", what, err)
	}
	f, err := os.Open(filepath.Join(t.archives, hex.EncodeToString(sum)+".tgz"))
	if errors.Is(err, fs.ErrNotExist) {
		return packed{}, Dependency{}, wrong("%s was installed from other bytes than the lock file names", what)
	}
	if err != nil {
		return packed{}, Dependency{}, fmt.Errorf("reading the archive of %s: %w", what, err)
	}
	defer f.Close()
	h256, h512 := sha256.New(), sha512.New()
	if _, err := io.Copy(io.MultiWriter(h256, h512), f); err != nil {
		return packed{}, Dependency{}, fmt.Errorf("reading the archive of %s: %w", what, err)
	}
	if !slices.Equal(h512.Sum(nil), sum) {
		return packed{}, Dependency{}, wrong("the archive of %s has other bytes than the lock file names", what)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return packed{}, Dependency{}, fmt.Errorf("reading the archive of %s: %w", what, err)
	}
	held, err := archive(f)
	if err != nil {
		return packed{}, Dependency{}, wrong("reading the archive of %s: %w", what, err)
	}
	return held, Dependency{Digests: map[string]string{"sha256": hex.EncodeToString(h256.Sum(nil)), "sha512": hex.EncodeToString(sum)}}, nil
}

// identify checks that the package and those it bundles are what the lock file
// calls them, since that is what advisories are looked up by, and that none has
// a script to run.
func (t *tree) identify(e lockEntry, at string, held packed) error {
	what := e.packageName(at) + "@" + e.Version
	for inside := range held.files {
		dir := bundle(inside)
		if dir == "" || t.lock.owner(at+"/"+inside) != at {
			continue
		}
		if _, ok := t.lock.packages[at+"/"+dir]; !ok || held.manifests[dir] == nil {
			return wrong("%s brings %s, which the lock file does not name", what, dir)
		}
	}
	for _, dir := range append([]string{""}, slices.Sorted(maps.Keys(held.manifests))...) {
		here := path.Join(at, dir)
		if t.lock.owner(here+"/package.json") != at {
			continue
		}
		e := t.lock.packages[here]
		m, err := readManifest(held.manifests[dir])
		if err != nil {
			return script("%s has a package.json that can't be read: %w", what, err)
		}
		if name := e.packageName(here); m.Name != name || plainVersion(m.Version) != plainVersion(e.Version) {
			return wrong("%s is called %s@%s in the lock file, and calls itself %.100s@%.100s", here, name, e.Version, m.Name, m.Version)
		}
		// A lock file may keep quiet about scripts; the package itself can't.
		if why := m.scripted(held, dir); why != "" {
			return script("%s@%s %s: packages are fetched without running anything", m.Name, e.Version, why)
		}
		t.programs[here] = m.programs(held, dir)
		for _, file := range t.programs[here] {
			t.executable[here+"/"+file] = true
		}
	}
	return nil
}

func script(format string, args ...any) error {
	return hallmark.WithHint(hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeDependencyScript, format, args...), "use a package that needs none")
}

// plainVersion leaves out what a registry leaves out of a version.
func plainVersion(v string) string {
	v, _, _ = strings.Cut(strings.TrimLeft(strings.TrimSpace(v), "v="), "+")
	return v
}

// checkLinks allows the links that npm makes: a program that a package declares
// under its own name in .bin, and the parts of the project that the lock file
// links. A tool can't be made to run another package's file.
func (t *tree) checkLinks(p Plan, dir string) error {
	for _, name := range slices.Sorted(maps.Keys(t.all)) {
		if t.all[name].IsRegular() {
			continue
		}
		to, err := os.Readlink(t.host("node_modules/" + name))
		if err != nil {
			return fmt.Errorf("reading a fetched link: %w", err)
		}
		at := "node_modules/" + name
		full := path.Join(path.Dir(at), to)
		switch e, known := t.lock.packages[at]; {
		case path.IsAbs(to) || path.Clean(to) != to || full == ".." || strings.HasPrefix(full, "../"):
			return wrong("fetched link %s leaves the project", name)
		case known && e.Link && full == path.Clean(e.Resolved):
		case path.Base(path.Dir(at)) == ".bin" && t.program(p, dir, at, full):
			t.linked[full] = true
		default:
			return wrong("fetched link %s leads to %s, which nothing declares", name, full)
		}
	}
	for at, e := range t.lock.packages {
		if _, ok := t.all[strings.TrimPrefix(at, "node_modules/")]; e.Link && chain(at) && !ok && !e.Optional && !e.DevOptional {
			return hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeDependencyUnavailable, "%s: %s was not installed", t.lock.name, at)
		}
	}
	for at, declared := range t.programs {
		if t.lock.packages[at].InBundle {
			continue
		}
		for name := range declared {
			if _, ok := t.lock.packages[at].Bin[name]; !ok {
				continue
			}
			link := strings.TrimPrefix(path.Join(at[:strings.LastIndex(at, "node_modules/")], "node_modules/.bin", name), "node_modules/")
			if _, ok := t.all[link]; !ok {
				return wrong("the program %s of %s has no link", name, at)
			}
		}
	}
	return nil
}

// program reports whether the package in whose place a path lies declares it as
// the program of a link in .bin.
func (t *tree) program(p Plan, dir, link, to string) bool {
	modules := path.Dir(path.Dir(link))
	rest, ok := strings.CutPrefix(to, modules+"/")
	if !ok {
		return false
	}
	n := 2
	if strings.HasPrefix(rest, "@") {
		n = 3
	}
	parts := strings.SplitN(rest, "/", n)
	if len(parts) < n {
		return false
	}
	at, file := path.Join(modules, path.Join(parts[:n-1]...)), parts[n-1]
	declared := t.programs[at]
	if e := t.lock.packages[at]; e.Link {
		m, err := readManifest(p.Files[path.Join(dir, e.Resolved, "package.json")])
		if err != nil {
			return false
		}
		declared = m.Bin
	}
	return declared[path.Base(link)] == file
}

// checkModes: a file may be executed when its archive says so or a program's
// link leads to it, and otherwise not.
func (t *tree) checkModes() error {
	for name, mode := range t.all {
		file := "node_modules/" + name
		if want := mode.Perm() == 0o755; mode.IsRegular() && (want && !t.executable[file] || !want && t.linked[file]) {
			return wrong("fetched %s has the mode %s, which its archive does not give it", name, mode)
		}
	}
	return nil
}
