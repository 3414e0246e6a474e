// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package intake

import (
	"archive/zip"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
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

// sums reads the go.sum of each module that is built and of the workspaces it is
// in: module, space, version → h1. One that lies elsewhere, with test data say,
// vouches for nothing.
func (p Plan) sums() (map[string]string, error) {
	counts := map[string]bool{}
	for _, m := range p.Go {
		counts[path.Join(m.Dir, "go.sum")] = true
	}
	used, err := p.workspaces()
	if err != nil {
		return nil, err
	}
	for dir := range used {
		counts[path.Join(dir, "go.sum")] = true
	}
	out := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(p.Files)) {
		b := p.Files[name]
		if dir, base := path.Split(name); !counts[name] && (base != "go.work.sum" || p.Files[dir+"go.work"] == nil || unbuilt(path.Dir(name))) {
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
	for _, name := range slices.Sorted(maps.Keys(all)) { // before any of them is opened
		if !all[name].IsRegular() || all[name].Perm() != fileMode {
			return nil, wrong("fetched %s has the mode %s: no module has such a file", name, all[name])
		}
	}
	var out []Dependency
	unpacked := map[string]bool{} // directories that were verified
	for _, name := range slices.Sorted(maps.Keys(all)) {
		at := strings.IndexByte(name, '@')
		rest, ok := strings.CutPrefix(name, "cache/download/")
		if !ok && !strings.HasPrefix(name, "cache/") && at >= 0 {
			continue // of an unpacked module; judged below
		}
		escaped, file, ok2 := strings.Cut(rest, "/@v/")
		ext := path.Ext(file)
		mod, err := module.UnescapePath(escaped)
		if !ok || !ok2 || err != nil {
			return nil, wrong("fetched %s belongs to no module", name)
		}
		escapedVersion := strings.TrimSuffix(file, ext)
		version, err := module.UnescapeVersion(escapedVersion)
		if err != nil {
			return nil, wrong("fetched %s: %w", name, err)
		}
		host := filepath.Join(cache, filepath.FromSlash(name))
		_, hasMod := all[strings.TrimSuffix(name, ext)+".mod"]
		_, hasZip := all[strings.TrimSuffix(name, ext)+".zip"]
		switch {
		case ext == ".mod":
			err = checkMod(sums, mod, version, host)
		case ext == ".zip":
			dir := escaped + "@" + escapedVersion
			var d Dependency
			d, err = checkZip(sums, mod, version, host, filepath.Join(cache, filepath.FromSlash(dir)))
			unpacked[dir] = true
			out = append(out, d)
		case ext == ".info" && hasMod:
			err = sameBytes(host, moduleInfo(version))
		case ext == ".ziphash" && hasZip: // compared with the archive's
		default:
			err = wrong("fetched %s belongs to no module", name)
		}
		if err != nil {
			return nil, err
		}
	}
	for name := range all {
		at := strings.IndexByte(name, '@')
		if strings.HasPrefix(name, "cache/") {
			continue
		}
		if end := strings.IndexByte(name[at:], '/'); end < 0 || !unpacked[name[:at+end]] {
			return nil, wrong("fetched %s belongs to no module that was verified", name)
		}
	}
	return out, nil
}

// moduleInfo is what the go command is told of a version beside go.mod and
// archive. go.sum says nothing of it, and the go command writes the version that
// stands here into programs, so it is not the registry's but ours.
func moduleInfo(version string) string {
	return `{"Version":"` + version + `","Time":"0001-01-01T00:00:00Z"}`
}

// sameBytes refuses a small file that holds anything but text.
func sameBytes(host, text string) error {
	f, err := os.Open(host)
	if err != nil {
		return fmt.Errorf("reading %s: %w", host, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(len(text))+2))
	if err != nil {
		return fmt.Errorf("reading %s: %w", host, err)
	}
	if strings.TrimSuffix(string(b), "\n") != text {
		return wrong("%s does not say %s", filepath.Base(host), text)
	}
	return nil
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
	if err := bounded(at); err != nil {
		return Dependency{}, wrong("the archive of %s@%s: %w", mod, version, err)
	}
	got, err := dirhash.HashZip(at, dirhash.Hash1)
	if err != nil {
		return Dependency{}, wrong("reading the archive of %s@%s: %w", mod, version, err)
	}
	if got != want {
		return Dependency{}, wrong("%s@%s has the hash %s, go.sum says %s", mod, version, got, want)
	}
	// The go command compares this note with go.sum instead of hashing again.
	if err := sameBytes(strings.TrimSuffix(at, ".zip")+".ziphash", want); err != nil {
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

// maxModule is what the go command itself unpacks at most.
const maxModule = 500 << 20

// bounded refuses an archive that would take for ever to read: a few bytes may
// stand for any number.
func bounded(at string) error {
	info, err := os.Stat(at)
	if err != nil {
		return err
	}
	if info.Size() > maxModule {
		return fmt.Errorf("%d bytes are more than a module has", info.Size())
	}
	z, err := zip.OpenReader(at)
	if err != nil {
		return err
	}
	defer z.Close()
	left := uint64(maxModule)
	for _, f := range z.File {
		if f.UncompressedSize64 > left {
			return fmt.Errorf("%s and the files before it have more than %d bytes", f.Name, maxModule)
		}
		left -= f.UncompressedSize64
	}
	return nil
}
