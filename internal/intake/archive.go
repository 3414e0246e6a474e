// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package intake

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// Limits of one archive.
const (
	maxUnpacked     = 2 << 30
	maxEntries      = 200_000
	maxOwnManifests = 16 << 20 // bytes of all package.json of one archive
)

// packed is what an npm archive unpacks to.
type packed struct {
	files     map[string]packedFile
	manifests map[string][]byte // package.json by directory: "", and those of bundled packages
}

type packedFile struct {
	sum        [sha256.Size]byte
	executable bool
}

// archive lists the regular files of an npm package as npm unpacks them: without
// the first path element and without links, the last of two equal names, and
// .gitignore as .npmignore.
func archive(r io.Reader) (packed, error) {
	out := packed{files: map[string]packedFile{}, manifests: map[string][]byte{}}
	z, err := gzip.NewReader(r)
	if err != nil {
		return out, err
	}
	limited := &io.LimitedReader{R: z, N: maxUnpacked}
	in := tar.NewReader(limited)
	left := int64(maxOwnManifests)
	for n := 0; ; n++ {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		if n > maxEntries || limited.N <= 0 {
			return out, fmt.Errorf("more than %d entries or %d bytes", maxEntries, maxUnpacked)
		}
		_, name, ok := strings.Cut(h.Name, "/")
		if h.Typeflag != tar.TypeReg || !ok || slices.Contains(strings.Split(name, "/"), "..") {
			continue
		}
		name = path.Clean(strings.TrimLeft(name, "/"))
		if dir, base := path.Split(name); base == ".gitignore" {
			if _, ok := out.files[dir+".npmignore"]; ok {
				continue
			}
			name = dir + ".npmignore"
		}
		sum := sha256.New()
		var text bytes.Buffer
		to := io.Writer(sum)
		dir := strings.TrimSuffix(strings.TrimSuffix(name, "package.json"), "/")
		isManifest := path.Base(name) == "package.json" && (dir == "" || chain(dir))
		if isManifest {
			if left -= h.Size; left < 0 {
				return out, fmt.Errorf("more than %d bytes of package.json", maxOwnManifests)
			}
			to = io.MultiWriter(sum, &text)
		}
		if _, err := io.Copy(to, in); err != nil {
			return out, err
		}
		if isManifest {
			out.manifests[dir] = text.Bytes()
		}
		out.files[name] = packedFile{sum: [sha256.Size]byte(sum.Sum(nil)), executable: h.Mode&0o111 != 0}
	}
}

// bundle is the directory of the bundled package that a file of an archive lies
// in, "" when it lies in none.
func bundle(file string) string {
	dir, rest := "", file
	for strings.HasPrefix(rest, "node_modules/") {
		n := 3
		if strings.HasPrefix(rest, "node_modules/@") {
			n = 4
		}
		parts := strings.SplitN(rest, "/", n)
		if len(parts) < n {
			return path.Join(dir, rest)
		}
		dir, rest = path.Join(dir, path.Join(parts[:n-1]...)), parts[n-1]
	}
	return dir
}

// programs are the commands of a package.json: a name to a file. JSON has two
// forms of it, and the short one needs the package's name.
type programs map[string]string

// UnmarshalJSON reads the long form; all else is none here.
func (p *programs) UnmarshalJSON(b []byte) error {
	var raw map[string]any
	*p = programs{}
	if json.Unmarshal(b, &raw) != nil {
		return nil
	}
	for name, file := range raw {
		if s, ok := file.(string); ok {
			p.add(name, s)
		}
	}
	return nil
}

func (p programs) add(name, file string) {
	name = path.Base(path.Join("/", strings.NewReplacer("\\", "/", ":", "/").Replace(name)))
	file = strings.TrimPrefix(path.Join("/", strings.ReplaceAll(file, "\\", "/")), "/")
	if name != "/" && file != "" {
		p[name] = file
	}
}

// packageJSON is what counts of a package.json.
type packageJSON struct {
	Name, Version string
	Bin           programs
	binDir        string // directories.bin
	scripts       map[string]json.RawMessage
}

// readManifest reads the keys that npm reads, in exactly their letters.
func readManifest(b []byte) (packageJSON, error) {
	var m packageJSON
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(b, &keys); err != nil {
		return m, err
	}
	read := func(key string, v any) error {
		if raw, ok := keys[key]; ok {
			return json.Unmarshal(raw, v)
		}
		return nil
	}
	var dirs map[string]json.RawMessage
	if err := errors.Join(read("name", &m.Name), read("version", &m.Version), read("bin", &m.Bin), read("scripts", &m.scripts)); err != nil {
		return m, err
	}
	if m.Bin == nil {
		m.Bin = programs{}
	}
	var short string
	if read("bin", &short) == nil && short != "" {
		m.Bin.add(m.Name, short)
	}
	if read("directories", &dirs) == nil && keys["bin"] == nil && dirs["bin"] != nil {
		if err := json.Unmarshal(dirs["bin"], &m.binDir); err != nil {
			return m, err
		}
		m.binDir = strings.TrimPrefix(path.Join("/", m.binDir), "/")
	}
	return m, nil
}

// programs are the declared ones whose files are there.
func (m packageJSON) programs(held packed, dir string) map[string]string {
	out := map[string]string{}
	for name, file := range m.Bin {
		if _, ok := held.files[path.Join(dir, file)]; ok {
			out[name] = file
		}
	}
	if m.binDir == "" {
		return out
	}
	for file := range held.files {
		if rest, ok := strings.CutPrefix(file, path.Join(dir, m.binDir)+"/"); ok {
			out[path.Base(rest)] = path.Join(m.binDir, rest)
		}
	}
	return out
}

// scripted says what of a package npm would run when it is installed.
func (m packageJSON) scripted(held packed, dir string) string {
	for _, s := range []string{"preinstall", "install", "postinstall"} {
		if _, ok := m.scripts[s]; ok {
			return "runs an install script (" + s + ")"
		}
	}
	if _, ok := held.files[path.Join(dir, "binding.gyp")]; ok {
		return "compiles code when it is installed (binding.gyp)"
	}
	return ""
}
