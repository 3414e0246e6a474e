// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// State says how the bytes of a file stand to what its package declares.
type State int

// The states. Altered is also what can't be compared because the file holds other
// bytes now than were used.
const (
	Declared   State = iota + 1 // they are what the package declares
	Undeclared                  // the package declares no digest of this file, or it is a configuration file that was changed
	Altered                     // they are not what the package declares
)

// sum is what a package declares of one file.
type sum struct {
	kind string // md5, sha1, sha256
	hex  string
	conf bool // a configuration file, which administrators may change
}

// Inspection is what is known of one file of the platform that was used.
type Inspection struct {
	State State
	Code  bool   // compiled code, or not known
	Why   string // of Altered: what differs
}

// Inspect compares the bytes that were used under a name, by their digest, with
// what the package that has the file declares. MD5, which Debian's packages
// declare, is no proof against whoever can make two files of one sum.
func (p *Packages) Inspect(name string, d hallmark.Digest, known *Contents) (Inspection, error) {
	want, ok, err := p.declared(name)
	if err != nil {
		return Inspection{}, err
	}
	c, err := known.Of(d, func() (fs.File, error) { return p.openFile(name) })
	if err != nil {
		if ok && want.kind == "sha256" && want.hex == d.Hex() {
			return Inspection{State: Declared, Code: true}, nil
		}
		// What is not there any more can't be vouched for, whatever is declared.
		return Inspection{State: Altered, Code: true, Why: err.Error()}, nil //nolint:nilerr // it is told
	}
	if !ok {
		return Inspection{State: Undeclared, Code: c.Code}, nil
	}
	got := d.Hex()
	switch want.kind {
	case "md5":
		got = hex.EncodeToString(c.MD5[:])
	case "sha1":
		got = hex.EncodeToString(c.SHA1[:])
	}
	switch {
	case got == want.hex:
		return Inspection{State: Declared, Code: c.Code}, nil
	case want.conf:
		return Inspection{State: Undeclared, Code: c.Code}, nil
	}
	return Inspection{State: Altered, Code: c.Code, Why: fmt.Sprintf("its %s is %s, declared is %s", want.kind, got, want.hex)}, nil
}

// declared finds what the package that has a file declares of it. Files that the
// platform makes, compiled Python among them, are declared by nobody.
func (p *Packages) declared(name string) (sum, bool, error) {
	name = merged(path.Clean(name))
	n, ok := p.owner[name]
	if !ok {
		return sum{}, false, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if base := p.info[n]; base != "" && !p.loaded[n] {
		if err := p.md5sums(base); err != nil {
			return sum{}, false, err
		}
		p.loaded[n] = true
	}
	s, ok := p.sums[name]
	return s, ok, nil
}

// md5sums reads what one Debian package declares; one that declares nothing has
// no such file.
func (p *Packages) md5sums(base string) error {
	files, done, err := p.tree()
	if err != nil {
		return err
	}
	defer done()
	name := "var/lib/dpkg/info/" + base + ".md5sums"
	b, err := fs.ReadFile(files, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading what package %s declares: %w", base, err)
	}
	pkg, _, _ := strings.Cut(base, ":")
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimSuffix(line, "\n")
		digest, file, ok := strings.Cut(line, "  ")
		if raw, err := hex.DecodeString(digest); !ok || err != nil || len(raw) != 16 || file == "" {
			return hallmark.Errorf(hallmark.KindInvalid, "reading what package %s declares: %s line %d: %.80q: want a sum and a name", base, name, n, line)
		}
		at := p.divert("/"+strings.TrimPrefix(file, "./"), pkg)
		if _, known := p.sums[at]; !known {
			p.sums[at] = sum{kind: "md5", hex: strings.ToLower(digest)}
		}
	}
	return nil
}

// conffiles takes the configuration files of a package with their sums, from the
// field of that name.
func (p *Packages) conffiles(field, pkg string) {
	for line := range strings.Lines(field) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		if raw, err := hex.DecodeString(f[1]); err == nil && len(raw) == 16 && strings.HasPrefix(f[0], "/") {
			p.sums[p.divert(f[0], pkg)] = sum{kind: "md5", hex: f[1], conf: true}
		}
	}
}

// apkSum reads the checksum of a file in Alpine's database: Q1 and a SHA-1, or Q2
// and a SHA-256, in base64.
func apkSum(v string) (sum, bool) {
	for prefix, kind := range map[string]string{"Q1": "sha1", "Q2": "sha256"} {
		rest, ok := strings.CutPrefix(v, prefix)
		if !ok {
			continue
		}
		raw, err := base64.StdEncoding.DecodeString(rest)
		if err != nil || kind == "sha1" && len(raw) != 20 || kind == "sha256" && len(raw) != 32 {
			return sum{}, false
		}
		return sum{kind: kind, hex: hex.EncodeToString(raw), conf: false}, true
	}
	return sum{}, false
}

// diversion is a file that gives way to that of another package.
type diversion struct{ to, by string }

// divert is where the file of a name that a package carries lies.
func (p *Packages) divert(name, pkg string) string {
	if d, ok := p.diversions[merged(name)]; ok && d.by != pkg {
		return d.to
	}
	return merged(name)
}

func (p *Packages) readDiversions() error {
	b, err := p.read("var/lib/dpkg/diversions")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	for ; len(lines) >= 3; lines = lines[3:] {
		p.diversions[merged(lines[0])] = diversion{to: merged(lines[1]), by: lines[2]}
	}
	return nil
}

// openFile opens a file of the root by its name inside.
func (p *Packages) openFile(name string) (fs.File, error) {
	files, done, err := p.tree()
	if err != nil {
		return nil, err
	}
	defer done()
	return files.Open(strings.TrimPrefix(path.Clean(name), "/"))
}

// tree is the file system of the root. A link of an image leads to a file of the
// image or nowhere, and never out of it to a file of the host's.
func (p *Packages) tree() (files fs.FS, done func(), err error) {
	if filepath.Clean(p.root) == "/" {
		return os.DirFS("/"), func() {}, nil
	}
	root, err := os.OpenRoot(p.root)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the package database of %s: %w", p.root, err)
	}
	return root.FS(), func() { root.Close() }, nil
}
