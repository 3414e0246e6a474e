// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package intake

import (
	"encoding/base64"
	"encoding/hex"
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
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"

	"github.com/hallmark-sc/hallmark"
)

// sums reads every go.sum of the plan: module, space, version → h1.
func (p Plan) sums() (map[string]string, error) {
	out := map[string]string{}
	for name, b := range p.Files {
		if base := path.Base(name); base != "go.sum" && base != "go.work.sum" {
			continue
		}
		n := 0
		for line := range strings.Lines(string(b)) {
			n++
			f := strings.Fields(line)
			if len(f) == 0 {
				continue
			}
			if len(f) != 3 {
				return nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeDependencyIntegrity, "%s:%d: want module, version and hash", name, n)
			}
			if !strings.HasPrefix(f[2], "h1:") {
				continue // a kind of hash that nobody here can check
			}
			key := f[0] + " " + f[1]
			if had, ok := out[key]; ok && had != f[2] {
				return nil, wrong("%s:%d: two hashes for %s", name, n, key)
			}
			out[key] = f[2]
		}
	}
	return out, nil
}

// verifyGo checks a module cache: each go.mod and zip has the hash of go.sum,
// each unpacked module has the files of its zip, and nothing else lies there.
func (p Plan) verifyGo(cache string) ([]Dependency, error) {
	sums, err := p.sums()
	if err != nil {
		return nil, err
	}
	all, err := files(cache)
	if err != nil {
		return nil, fmt.Errorf("listing fetched modules: %w", err)
	}
	var out []Dependency
	unpacked := map[string]bool{} // directories that were verified
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if all[name] != 0 {
			return nil, wrong("fetched %s is a link: no module has one", name)
		}
		rest, ok := strings.CutPrefix(name, "cache/download/")
		escaped, file, ok2 := strings.Cut(rest, "/@v/")
		if !ok || !ok2 {
			continue
		}
		ext := path.Ext(file)
		if ext != ".zip" && ext != ".mod" {
			continue
		}
		mod, err := module.UnescapePath(escaped)
		if err != nil {
			return nil, wrong("fetched %s: %w", name, err)
		}
		version, err := module.UnescapeVersion(strings.TrimSuffix(file, ext))
		if err != nil {
			return nil, wrong("fetched %s: %w", name, err)
		}
		at := filepath.Join(cache, filepath.FromSlash(name))
		if ext == ".mod" {
			if err := checkMod(sums, mod, version, at); err != nil {
				return nil, err
			}
			continue
		}
		dir := escaped + "@" + strings.TrimSuffix(file, ext)
		d, err := checkZip(sums, mod, version, at, filepath.Join(cache, filepath.FromSlash(dir)))
		if err != nil {
			return nil, err
		}
		unpacked[dir] = true
		out = append(out, d)
	}
	return out, nothingElse(cache, all, unpacked)
}

func missingSum(key string) error {
	return hallmark.WithHint(
		hallmark.Coded(hallmark.KindDenied, hallmark.CodeDependencyIntegrity, "go.sum has no hash for %s", key),
		"go mod tidy, and commit go.sum")
}

func checkMod(sums map[string]string, mod, version, at string) error {
	key := mod + " " + version + "/go.mod"
	want, ok := sums[key]
	if !ok {
		return missingSum(key)
	}
	got, err := dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) { return os.Open(at) })
	if err != nil {
		return fmt.Errorf("hashing %s: %w", at, err)
	}
	if got != want {
		return wrong("go.mod of %s@%s has the hash %s, go.sum says %s", mod, version, got, want)
	}
	return nil
}

// checkZip verifies an archive and what was unpacked from it.
func checkZip(sums map[string]string, mod, version, at, dir string) (Dependency, error) {
	key := mod + " " + version
	want, ok := sums[key]
	if !ok {
		return Dependency{}, missingSum(key)
	}
	got, err := dirhash.HashZip(at, dirhash.Hash1)
	if err != nil {
		return Dependency{}, wrong("reading the archive of %s@%s: %w", mod, version, err)
	}
	if got != want {
		return Dependency{}, wrong("%s@%s has the hash %s, go.sum says %s", mod, version, got, want)
	}
	// The go command compares this note with go.sum instead of hashing again.
	if note, err := os.ReadFile(strings.TrimSuffix(at, ".zip") + ".ziphash"); err != nil || strings.TrimSpace(string(note)) != want {
		return Dependency{}, wrong("the note of the archive's hash of %s@%s is missing or says something else", mod, version)
	}
	if unpacked, err := dirhash.HashDir(dir, mod+"@"+version, dirhash.Hash1); err != nil {
		return Dependency{}, wrong("hashing what %s@%s was unpacked to: %w", mod, version, err)
	} else if unpacked != want {
		return Dependency{}, wrong("%s@%s was unpacked to other files than its archive holds", mod, version)
	}
	f, err := os.Open(at)
	if err != nil {
		return Dependency{}, fmt.Errorf("reading the archive of %s@%s: %w", mod, version, err)
	}
	defer f.Close()
	sum, _, err := hallmark.DigestFrom(f)
	if err != nil {
		return Dependency{}, fmt.Errorf("hashing the archive of %s@%s: %w", mod, version, err)
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(want, "h1:"))
	if err != nil {
		return Dependency{}, wrong("go.sum: hash %s of %s can't be read", want, key)
	}
	namespace, name := path.Split(mod)
	return Dependency{ // as the inventory names it, without the v of the version
		PURL:    packageurl.NewPackageURL(packageurl.TypeGolang, strings.TrimSuffix(namespace, "/"), name, strings.TrimPrefix(version, "v"), nil, "").ToString(),
		Name:    mod + "@" + version,
		Digests: map[string]string{"sha256": sum.Hex(), "dirHash1": hex.EncodeToString(raw)},
	}, nil
}

// nothingElse refuses files outside verified modules; the go command's own notes
// about downloads are the exception.
func nothingElse(cache string, all map[string]fs.FileMode, unpacked map[string]bool) error {
	for name := range all {
		if strings.HasPrefix(name, "cache/") {
			switch path.Ext(name) {
			case ".mod", ".zip", ".info", ".lock", ".ziphash":
				continue
			}
			if b := path.Base(name); b == "list" || b == "lock" {
				continue
			}
			return wrong("fetched %s belongs to no module", name)
		}
		at := strings.IndexByte(name, '@')
		if at < 0 {
			return wrong("fetched %s belongs to no module", name)
		}
		end := strings.IndexByte(name[at:], '/')
		if end < 0 || !unpacked[name[:at+end]] {
			return wrong("fetched %s belongs to no module that was verified", name)
		}
	}
	return nil
}
