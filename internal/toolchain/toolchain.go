// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package toolchain says which package of the platform a file belongs to: a
// Debian package, an Alpine package or the Go distribution, by the databases of
// the root that builds see (SP 800-204D §5.1.1, components 1 and 3).
package toolchain

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/package-url/packageurl-go"
)

// Package is one package of a platform.
type Package struct {
	Name, Version, Arch string
	PURL                string
}

// Packages are the packages of one root. It is safe for concurrent use.
type Packages struct {
	owner map[string]int // clean absolute path to index
	list  []Package
	root  string
	files fs.FS  // below the root, while databases are read
	goDir string // GOROOT inside, or empty

	diversions map[string]diversion // by the name that gave way
	info       map[int]string       // of a Debian package: the name of its files in the database

	mu     sync.Mutex // guards what follows
	sums   map[string]sum
	loaded map[int]bool // packages whose sums were read
}

// Config names a root.
type Config struct {
	Root   string // directory on the host that builds see as /; "/" is the host itself
	GoRoot string // of the Go distribution, inside; empty when there is none
	Distro string // of the purls of deb packages: debian, ubuntu; empty: read from os-release
}

// New reads the package databases of a root. A root without one has no packages;
// one that can't be read is an error.
func New(cfg Config) (*Packages, error) {
	p := &Packages{owner: map[string]int{}, root: cfg.Root, goDir: cfg.GoRoot, diversions: map[string]diversion{}, info: map[int]string{}, sums: map[string]sum{}, loaded: map[int]bool{}}
	files, done, err := p.tree()
	if err != nil {
		return nil, err
	}
	p.files = files
	defer func() { p.files = nil; done() }()
	distro := cfg.Distro
	if distro == "" {
		distro = p.distro()
	}
	if err := p.dpkg(distro); err != nil {
		return nil, fmt.Errorf("reading the package database of %s: %w", cfg.Root, err)
	}
	if err := p.apk(); err != nil {
		return nil, fmt.Errorf("reading the package database of %s: %w", cfg.Root, err)
	}
	return p, p.golang()
}

// List is every package, by name.
func (p *Packages) List() []Package {
	out := slices.Clone(p.list)
	slices.SortFunc(out, func(a, b Package) int { return strings.Compare(a.PURL, b.PURL) })
	return out
}

func (p *Packages) open(name string) (fs.File, error) {
	return p.files.Open(strings.TrimPrefix(path.Clean(name), "/"))
}

func (p *Packages) read(name string) ([]byte, error) {
	return fs.ReadFile(p.files, strings.TrimPrefix(path.Clean(name), "/"))
}

func (p *Packages) distro() string {
	for _, name := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		b, err := p.read(name)
		if err != nil {
			continue
		}
		for l := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(l), "ID="); ok {
				return strings.Trim(v, `"`)
			}
		}
	}
	return "linux"
}

func (p *Packages) add(kind, distro string, k Package) int {
	k.PURL = packageurl.NewPackageURL(kind, distro, k.Name, k.Version, packageurl.QualifiersFromMap(map[string]string{"arch": k.Arch}), "").ToString()
	p.list = append(p.list, k)
	return len(p.list) - 1
}

func (p *Packages) dpkg(distro string) error {
	f, err := p.open("/var/lib/dpkg/status")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := p.readDiversions(); err != nil {
		return err
	}
	byName := map[string]int{} // name and name:arch
	return errors.Join(stanzas(f, func(field map[string]string) {
		if !strings.HasSuffix(field["Status"], " installed") {
			return
		}
		n := p.add("deb", distro, Package{Name: field["Package"], Version: field["Version"], Arch: field["Architecture"]})
		byName[field["Package"]], byName[field["Package"]+":"+field["Architecture"]] = n, n
		p.conffiles(field["Conffiles"], field["Package"])
	}), p.dpkgFiles(byName))
}

func (p *Packages) dpkgFiles(byName map[string]int) error {
	lists, err := fs.Glob(p.files, "var/lib/dpkg/info/*.list")
	if err != nil {
		return err
	}
	for _, l := range lists {
		base := strings.TrimSuffix(filepath.Base(l), ".list")
		n, ok := byName[base]
		if !ok {
			continue
		}
		p.info[n] = base
		pkg, _, _ := strings.Cut(base, ":")
		b, err := p.read(l)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			p.owner[p.divert(strings.TrimSuffix(line, "\n"), pkg)] = n
		}
	}
	return nil
}

// stanzas reads paragraphs of "Field: value" lines. A value of several lines has
// them all.
func stanzas(f io.Reader, fn func(map[string]string)) error {
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 16<<20)
	field, last := map[string]string{}, ""
	for sc.Scan() {
		line := sc.Text()
		if line == "" {
			fn(field)
			clear(field)
			continue
		}
		if line[0] == ' ' && last == "Conffiles" {
			field[last] += line + "\n"
		} else if k, v, ok := strings.Cut(line, ":"); ok && line[0] != ' ' {
			field[k], last = strings.TrimSpace(v), k
		}
	}
	if len(field) > 0 {
		fn(field)
	}
	return sc.Err()
}

// apk reads Alpine's database: P, V and A name a package, F a directory, R a file in
// it and Z the file's checksum.
func (p *Packages) apk() error {
	f, err := p.open("/lib/apk/db/installed")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var k Package
	dir, n, file := "", -1, ""
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		kind, v, _ := strings.Cut(sc.Text(), ":")
		switch kind {
		case "":
			k, n, file = Package{}, -1, ""
		case "P":
			k.Name = v
		case "V":
			k.Version = v
		case "A":
			k.Arch = v
		case "F":
			dir = v
		case "R":
			if n < 0 {
				n = p.add("apk", "alpine", k)
			}
			file = merged("/" + path.Join(dir, v))
			p.owner[file] = n
		case "Z":
			if s, ok := apkSum(v); ok && file != "" {
				s.conf = strings.HasPrefix(file, "/etc/") // what apk itself protects
				p.sums[file] = s
			}
		}
	}
	return sc.Err()
}

func (p *Packages) golang() error {
	if p.goDir == "" {
		return nil
	}
	b, err := p.read(path.Join(p.goDir, "VERSION"))
	if err != nil {
		return fmt.Errorf("reading the version of the Go distribution: %w", err)
	}
	version, _, _ := strings.Cut(string(b), "\n")
	version = strings.TrimPrefix(strings.TrimSpace(version), "go")
	p.list = append(p.list, Package{Name: "go", Version: version, PURL: packageurl.NewPackageURL("generic", "", "go", version, nil, "").ToString()})
	return nil
}

// merged gives a path the form it has where /bin, /sbin and /lib are links into
// /usr, whatever the package says.
func merged(p string) string {
	for _, d := range []string{"/bin/", "/sbin/", "/lib/", "/lib32/", "/lib64/", "/libx32/"} {
		if strings.HasPrefix(p, d) {
			return "/usr" + p
		}
	}
	return p
}

var compiled = regexp.MustCompile(`^(.*)/__pycache__/([^/]+)\.(cpython|pypy)-?[0-9]+[^/]*\.pyc$`)

// Owner is the package that has a file: by its absolute path inside, without
// links. Compiled Python belongs to whom the source belongs. Files that a
// platform makes when packages are installed, such as the cache of the dynamic
// linker, belong to the program that makes them.
func (p *Packages) Owner(name string) (Package, bool) {
	if p.goDir != "" && strings.HasPrefix(name, p.goDir+"/") {
		return p.list[len(p.list)-1], true
	}
	name = merged(path.Clean(name))
	if n, ok := p.owner[name]; ok {
		return p.list[n], true
	}
	if m := compiled.FindStringSubmatch(name); m != nil {
		if n, ok := p.owner[m[1]+"/"+m[2]+".py"]; ok {
			return p.list[n], true
		}
	}
	if maker, ok := generated(name); ok {
		if n, ok := p.owner[merged(maker)]; ok {
			return p.list[n], true
		}
	}
	return Package{}, false
}

// generated names the program that makes a file of the platform which no package
// carries.
func generated(name string) (maker string, ok bool) {
	for _, g := range []struct{ pattern, maker string }{
		{"/etc/ld.so.cache", "/sbin/ldconfig"},
		{"/usr/lib/*/gconv/gconv-modules.cache", "/usr/sbin/iconvconfig"},
		{"/usr/lib/locale/locale-archive", "/usr/bin/localedef"},
		{"/usr/lib/ssl/certs/*", "/usr/sbin/update-ca-certificates"},
		{"/etc/ssl/certs/*", "/usr/sbin/update-ca-certificates"},
		{"/usr/share/info/dir", "/usr/bin/install-info"},
		{"/usr/share/mime/*", "/usr/bin/update-mime-database"},
		{"/var/cache/fontconfig/*", "/usr/bin/fc-cache"},
	} {
		if match, err := path.Match(g.pattern, name); err == nil && match {
			return g.maker, true
		}
	}
	return "", false
}
