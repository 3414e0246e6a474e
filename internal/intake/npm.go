// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package intake

import (
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
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
	Bin              programs `json:"bin"`
}

// maxPackages bounds one lock file.
const maxPackages = 20000

func parseLock(name string, b []byte) (lock, error) {
	refuse := func(format string, args ...any) (lock, error) {
		return lock{}, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeDependencyUnavailable, "%s: %s", name, fmt.Sprintf(format, args...))
	}
	var doc struct {
		LockfileVersion int                        `json:"lockfileVersion"`
		Packages        map[string]json.RawMessage `json:"packages"`
	}
	if err := readOneWay(b, &doc, "lockfileVersion", "packages"); err != nil {
		return refuse("%s", err)
	}
	if doc.LockfileVersion != 2 && doc.LockfileVersion != 3 {
		return refuse("lockfileVersion %d: want 2 or 3, as npm 7 and later write it", doc.LockfileVersion)
	}
	if len(doc.Packages) > maxPackages {
		return refuse("%d packages are more than %d", len(doc.Packages), maxPackages)
	}
	l := lock{name: name, packages: map[string]lockEntry{}}
	for at, raw := range doc.Packages {
		if at != "" && (path.IsAbs(at) || path.Clean(at) != at || at == ".." || strings.HasPrefix(at, "../") || strings.ContainsAny(at, "\\\x00")) {
			return refuse("the place %q leaves the project", at)
		}
		var e lockEntry
		if err := readOneWay(raw, &e, entryFields()...); err != nil {
			return refuse("%q: %s", at, err)
		}
		if place(at) && !chain(at[strings.Index("/"+at, "/node_modules/"):]) || e.Name != "" && place(at) && !chain("node_modules/"+e.Name) {
			return refuse("%q (%q) is no place of a package", at, e.Name)
		}
		l.packages[at] = e
	}
	return l, nil
}

func entryFields() []string {
	return []string{"name", "version", "resolved", "integrity", "link", "inBundle", "hasInstallScript", "optional", "devOptional", "os", "cpu", "bin"}
}

// readOneWay reads an object that npm reads too: a key that stands twice, or in
// other letters than the field's, would be read as two different things.
func readOneWay(b []byte, v any, fields ...string) error {
	if err := intoto.CheckJSON(b, 1000); err != nil {
		return err
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(b, &keys); err != nil {
		return err
	}
	for k := range keys {
		for _, f := range fields {
			if k != f && strings.EqualFold(k, f) {
				return fmt.Errorf("key %q: want %q", k, f)
			}
		}
	}
	return json.Unmarshal(b, v)
}

// chain reports whether a path is node_modules/NAME, once or nested.
func chain(at string) bool {
	rest, ok := strings.CutPrefix(at, "node_modules/")
	if !ok {
		return false
	}
	if i := strings.Index(rest, "/node_modules/"); i >= 0 {
		if !chain(rest[i+1:]) {
			return false
		}
		rest = rest[:i]
	}
	if scoped, ok := strings.CutPrefix(rest, "@"); ok {
		scope, name, _ := strings.Cut(scoped, "/")
		return word(scope) && word(name)
	}
	return word(rest)
}

// word reports whether s may be a name or scope of a package. One that begins
// with a dot would be one of npm's own directories.
func word(s string) bool {
	return s != "" && s[0] != '.' && s != "node_modules" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~!*'()") == ""
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
