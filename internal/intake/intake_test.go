// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package intake

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/dirhash"

	"github.com/hallmark-sc/hallmark"
)

func write(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		at := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// goLab is a module cache as the go command leaves it, with its plan.
func goLab(t testing.TB) (Plan, string) {
	t.Helper()
	dest := t.TempDir()
	const mod, version = "example.com/Upper", "v1.2.3"
	const escaped = "example.com/!upper"
	gomod := "module " + mod + "\n"
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, text := range map[string]string{"go.mod": gomod, "a.go": "package upper\n"} {
		w, err := z.Create(mod + "@" + version + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, text)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	at := "go/cache/download/" + escaped + "/@v/" + version
	write(t, dest, map[string]string{
		at + ".zip": b.String(), at + ".mod": gomod, at + ".info": moduleInfo(version),
		"go/" + escaped + "@" + version + "/go.mod": gomod, "go/" + escaped + "@" + version + "/a.go": "package upper\n",
	})
	sum, err := dirhash.HashZip(filepath.Join(dest, filepath.FromSlash(at+".zip")), dirhash.Hash1)
	if err != nil {
		t.Fatal(err)
	}
	modsum, err := dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(gomod)), nil })
	if err != nil {
		t.Fatal(err)
	}
	write(t, dest, map[string]string{at + ".ziphash": sum})
	return Plan{
		Files: map[string][]byte{"go.mod": []byte("module x\n\nrequire " + mod + " " + version + "\n"),
			"go.sum": fmt.Appendf(nil, "%s %s %s\n%s %s/go.mod %s\n", mod, version, sum, mod, version, modsum)},
		Go: []GoModule{{Dir: "."}},
	}, dest
}

func TestVerifyGo(t *testing.T) {
	plan, dest := goLab(t)
	res, err := Verify(plan, dest)
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Dependencies) != 1 || res.Dependencies[0].PURL != "pkg:golang/example.com/Upper@1.2.3" || len(res.Dependencies[0].Digests["sha256"]) != 64 || len(res.Dependencies[0].Digests["dirHash1"]) != 64 {
		t.Errorf("%+v", res.Dependencies)
	}
	if len(res.Trees) != 1 || res.Trees[0] != (Tree{Host: "go"}) {
		t.Errorf("%+v", res.Trees)
	}
}

// TestVerifyGoRefuses: no byte of a module cache may differ from what go.sum says.
func TestVerifyGoRefuses(t *testing.T) {
	const unpacked, at = "go/example.com/!upper@v1.2.3/", "go/cache/download/example.com/!upper/@v/v1.2.3"
	for name, change := range map[string]func(p *Plan, dest string){
		"unpacked file":  func(_ *Plan, dest string) { write(t, dest, map[string]string{unpacked + "a.go": "package evil\n"}) },
		"added file":     func(_ *Plan, dest string) { write(t, dest, map[string]string{unpacked + "b.go": "package upper\n"}) },
		"removed file":   func(_ *Plan, dest string) { os.Remove(filepath.Join(dest, unpacked+"a.go")) },
		"removed tree":   func(_ *Plan, dest string) { os.RemoveAll(filepath.Join(dest, unpacked)) },
		"go.mod":         func(_ *Plan, dest string) { write(t, dest, map[string]string{at + ".mod": "module other\n"}) },
		"zip":            func(_ *Plan, dest string) { write(t, dest, map[string]string{at + ".zip": "PK"}) },
		"note":           func(_ *Plan, dest string) { write(t, dest, map[string]string{at + ".ziphash": "h1:x"}) },
		"no note":        func(_ *Plan, dest string) { os.Remove(filepath.Join(dest, at+".ziphash")) },
		"foreign module": func(_ *Plan, dest string) { write(t, dest, map[string]string{"go/example.com/evil@v1.0.0/a.go": "x"}) },
		"loose file":     func(_ *Plan, dest string) { write(t, dest, map[string]string{"go/evil.go": "x"}) },
		"loose cache":    func(_ *Plan, dest string) { write(t, dest, map[string]string{"go/cache/vcs/config": "x"}) },
		"link":           func(_ *Plan, dest string) { os.Symlink("/etc", filepath.Join(dest, unpacked+"etc")) },
		"no sum":         func(p *Plan, _ string) { p.Files["go.sum"] = nil },
		"no sum of mod":  func(p *Plan, _ string) { p.Files["go.sum"] = bytes.SplitAfter(p.Files["go.sum"], []byte("\n"))[0] },
		"other sum": func(p *Plan, _ string) {
			p.Files["go.sum"] = bytes.ReplaceAll(p.Files["go.sum"], []byte("h1:"), []byte("h1:A"))
		},
		"two sums": func(p *Plan, _ string) {
			p.Go = append(p.Go, GoModule{Dir: "sub"})
			p.Files["sub/go.sum"] = []byte("example.com/Upper v1.2.3 h1:other\n")
		},
		"broken sum": func(p *Plan, _ string) { p.Files["go.sum"] = []byte("example.com/Upper v1.2.3\n") },
		"other hash kind": func(p *Plan, _ string) {
			p.Files["go.sum"] = bytes.ReplaceAll(p.Files["go.sum"], []byte("h1:"), []byte("h9:"))
		},
	} {
		plan, dest := goLab(t)
		change(&plan, dest)
		if _, err := Verify(plan, dest); hallmark.CodeOf(err) != hallmark.CodeDependencyIntegrity {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// npmLab is a node_modules directory with its lock file and archives.
func npmLab(t testing.TB, packages map[string]map[string]string) (Plan, string) {
	t.Helper()
	dest := t.TempDir()
	var entries []string
	for _, at := range slices.Sorted(maps.Keys(packages)) {
		files := packages[at]
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		w := tar.NewWriter(z)
		for _, name := range slices.Sorted(maps.Keys(files)) {
			text := files[name]
			w.WriteHeader(&tar.Header{Name: "package/" + name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))})
			io.WriteString(w, text)
			write(t, dest, map[string]string{"npm/0/" + at + "/" + name: text})
		}
		w.Close()
		z.Close()
		sum := sha512.Sum512(b.Bytes())
		write(t, dest, map[string]string{"npm-packages/" + hex.EncodeToString(sum[:]) + ".tgz": b.String()})
		more := ""
		if at == "node_modules/a" {
			more = `, "bin": {"a": "bin/a.js"}`
		}
		entries = append(entries, fmt.Sprintf(`%q: {"version": "1.0.0", "integrity": "sha512-%s"%s}`, at, base64.StdEncoding.EncodeToString(sum[:]), more))
	}
	link(t, dest, "npm/0/node_modules/local", "../packages/local")
	if _, ok := packages["node_modules/a"]["bin/a.js"]; ok {
		link(t, dest, "npm/0/node_modules/.bin/a", "../a/bin/a.js")
		if err := os.Chmod(filepath.Join(dest, "npm/0/node_modules/a/bin/a.js"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	lock := `{"lockfileVersion": 3, "packages": {"": {"name": "app"}, "packages/local": {}, "node_modules/local": {"link": true, "resolved": "packages/local"}, ` + strings.Join(entries, ", ") + `}}`
	return Plan{Files: map[string][]byte{"web/package-lock.json": []byte(lock)}, NPM: []string{"web"}}, dest
}

func twoPackages() map[string]map[string]string {
	return map[string]map[string]string{
		"node_modules/a":                {"package.json": `{"name": "a", "version": "1.0.0", "bin": "bin/a.js"}`, "bin/a.js": "a"},
		"node_modules/a/node_modules/b": {"package.json": `{"name": "b", "version": "1.0.0"}`, "index.js": "b"},
		"node_modules/@s/c":             {"package.json": `{"name": "@s/c", "version": "1.0.0"}`, "lib/node_modules.js": "c"},
	}
}

func TestVerifyNPM(t *testing.T) {
	plan, dest := npmLab(t, twoPackages())
	res, err := Verify(plan, dest)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range res.Dependencies {
		names = append(names, d.PURL)
		if len(d.Digests["sha512"]) != 128 || len(d.Digests["sha256"]) != 64 {
			t.Errorf("%+v", d)
		}
	}
	if want := []string{"pkg:npm/%40s/c@1.0.0", "pkg:npm/a@1.0.0", "pkg:npm/b@1.0.0"}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
	if len(res.Trees) != 1 || res.Trees[0] != (Tree{Host: "npm/0/node_modules", Module: "web"}) {
		t.Errorf("%+v", res.Trees)
	}
}

func TestVerifyNPMRefuses(t *testing.T) {
	const modules = "npm/0/node_modules/"
	for name, c := range map[string]struct {
		change func(p *Plan, dest string)
		code   hallmark.Code
	}{
		"changed file":   {func(_ *Plan, dest string) { write(t, dest, map[string]string{modules + "a/bin/a.js": "evil"}) }, hallmark.CodeDependencyIntegrity},
		"added file":     {func(_ *Plan, dest string) { write(t, dest, map[string]string{modules + "a/evil.js": "evil"}) }, hallmark.CodeDependencyIntegrity},
		"added package":  {func(_ *Plan, dest string) { write(t, dest, map[string]string{modules + "evil/index.js": "evil"}) }, hallmark.CodeDependencyIntegrity},
		"loose file":     {func(_ *Plan, dest string) { write(t, dest, map[string]string{modules + "evil.js": "evil"}) }, hallmark.CodeDependencyIntegrity},
		"file in .bin":   {func(_ *Plan, dest string) { write(t, dest, map[string]string{modules + ".bin/b": "evil"}) }, hallmark.CodeDependencyIntegrity},
		"link outside":   {func(_ *Plan, dest string) { os.Symlink("../../../etc", filepath.Join(dest, modules, "evil")) }, hallmark.CodeDependencyIntegrity},
		"absolute link":  {func(_ *Plan, dest string) { os.Symlink("/etc", filepath.Join(dest, modules, "evil")) }, hallmark.CodeDependencyIntegrity},
		"no archive":     {func(_ *Plan, dest string) { os.RemoveAll(filepath.Join(dest, "npm-packages")) }, hallmark.CodeDependencyIntegrity},
		"missing":        {func(_ *Plan, dest string) { os.RemoveAll(filepath.Join(dest, modules, "@s")) }, hallmark.CodeDependencyUnavailable},
		"weak integrity": {func(p *Plan, _ string) { replace(p, "sha512-", "sha1-") }, hallmark.CodeDependencyIntegrity},
		"altered archive": {func(_ *Plan, dest string) {
			all, _ := filepath.Glob(filepath.Join(dest, "npm-packages", "*"))
			for _, f := range all {
				os.WriteFile(f, []byte("other"), 0o644)
			}
		}, hallmark.CodeDependencyIntegrity},
	} {
		plan, dest := npmLab(t, twoPackages())
		c.change(&plan, dest)
		if _, err := Verify(plan, dest); hallmark.CodeOf(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, files := range map[string]map[string]string{
		"postinstall": {"package.json": `{"name": "a", "version": "1.0.0", "scripts": {"postinstall": "evil"}}`},
		"preinstall":  {"package.json": `{"name": "a", "version": "1.0.0", "scripts": {"preinstall": "evil"}, "Scripts": null}`},
		"gyp":         {"package.json": `{"name": "a", "version": "1.0.0"}`, "binding.gyp": "{}"},
		"unreadable":  {"package.json": `{`},
	} {
		plan, dest := npmLab(t, map[string]map[string]string{"node_modules/a": files})
		if _, err := Verify(plan, dest); hallmark.CodeOf(err) != hallmark.CodeDependencyScript {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func link(t testing.TB, dest, name, to string) {
	t.Helper()
	at := filepath.Join(dest, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(to, at); err != nil {
		t.Fatal(err)
	}
}

func replace(p *Plan, from, to string) {
	for name, b := range p.Files {
		p.Files[name] = bytes.ReplaceAll(b, []byte(from), []byte(to))
	}
}

func TestReadPlan(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"go.mod": "module a\n", "tools/go.mod": "module b\n\nrequire example.com/x v1.0.0\n", "testdata/go.mod": "module c\n\nrequire example.com/x v1.0.0\n",
		"_x/go.mod": "module d\n\nrequire example.com/x v1.0.0\n", "work/go.work": "go 1.21\n\nuse ./in\n", "work/in/go.mod": "module e\n",
		"web/package-lock.json":    `{"lockfileVersion": 2, "packages": {"": {}, "node_modules/a": {}}}`,
		"docs/package-lock.json":   `{"lockfileVersion": 3, "packages": {"": {}}}`,
		"vendor/x/go.mod":          "module f\n\nrequire example.com/x v1.0.0\n",
		"node_modules/x/go.mod":    "module f\n\nrequire example.com/x v1.0.0\n",
		"web/.npmrc":               "registry=http://evil",
		"web/node_modules/a/x.txt": "",
	})
	p, err := ReadPlan(dir)
	if err != nil {
		t.Fatal(err)
	}
	if want := []GoModule{{"tools", false}, {"work/in", true}}; !slices.Equal(p.Go, want) || !slices.Equal(p.NPM, []string{"web"}) {
		t.Errorf("%+v %q", p.Go, p.NPM)
	}
	for name := range p.Files {
		if strings.Contains(name, "npmrc") || strings.HasPrefix(name, "vendor") || strings.Contains(name, "node_modules") {
			t.Errorf("the worker would see %s", name)
		}
	}
	for name, files := range map[string]map[string]string{
		"go.mod": {"go.mod": "require (\n"}, "go.work": {"go.work": "uses\n"}, "lock": {"package-lock.json": "{"}, "old lock": {"package-lock.json": `{"lockfileVersion": 1}`},
		"escaping lock": {"package-lock.json": `{"lockfileVersion": 3, "packages": {"../node_modules/a": {}}}`},
	} {
		dir := t.TempDir()
		write(t, dir, files)
		if _, err := ReadPlan(dir); hallmark.CodeOf(err) != hallmark.CodeDependencyUnavailable || hallmark.KindOf(err) != hallmark.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// room is a worker and a gateway that do as they are told.
type room struct {
	report  Report
	err     error
	fetched []Fetched
	opened  map[Registry]string
	closed  bool
	fill    func(Job)
}

func (r *room) Fetch(_ context.Context, job Job) (Report, error) {
	if r.fill != nil {
		r.fill(job)
	}
	return r.report, r.err
}

func (r *room) Open(_ context.Context, _, _ string, registries map[Registry]string) (Session, error) {
	r.opened = registries
	return r, nil
}

func (r *room) Close() ([]Fetched, error) { r.closed = true; return r.fetched, nil }

func TestFetch(t *testing.T) {
	plan, done := goLab(t)
	config := func(r *room) Config {
		return Config{Worker: r, Gateway: r, Registries: map[Registry]string{RegistryGo: "https://go.example", RegistryNPM: "https://npm.example"}, WorkDir: t.TempDir(), Wall: time.Minute}
	}
	fill := func(j Job) {
		if err := os.CopyFS(j.Out, os.DirFS(done)); err != nil {
			t.Fatal(err)
		}
	}
	r := &room{fill: fill}
	res, err := Fetch(t.Context(), config(r), plan, t.TempDir())
	if err != nil || len(res.Dependencies) != 1 || !r.closed {
		t.Fatalf("%+v %v", res, err)
	}
	if len(r.opened) != 1 || r.opened[RegistryGo] == "" {
		t.Errorf("opened %v: only what the plan needs", r.opened)
	}
	for name, c := range map[string]struct {
		room room
		code hallmark.Code
		says string
	}{
		"exit":     {room{fill: fill, report: Report{ExitCode: 1, Stderr: []byte("no such thing")}}, hallmark.CodeDependencyUnavailable, "no such thing"},
		"mismatch": {room{fill: fill, report: Report{ExitCode: 1, Stderr: []byte("SECURITY ERROR")}}, hallmark.CodeDependencyIntegrity, "SECURITY"},
		"limit":    {room{fill: fill, report: Report{LimitHit: "wall"}}, hallmark.CodeDependencyUnavailable, "wall"},
		"egress":   {room{fill: fill, report: Report{Egress: []string{"192.0.2.1:80"}}}, hallmark.CodeDependencyUnavailable, "192.0.2.1"},
		"status":   {room{report: Report{ExitCode: 1}, fetched: []Fetched{{Registry: RegistryGo, Path: "a/@v/v1.zip", Status: 404}}}, hallmark.CodeDependencyUnavailable, "a/@v/v1.zip"},
		"problem":  {room{report: Report{ExitCode: 1}, fetched: []Fetched{{Registry: RegistryGo, Path: "a", Problem: "redirects"}}}, hallmark.CodeDependencyUnavailable, "redirects"},
		"changed": {room{fill: func(j Job) {
			fill(j)
			write(t, j.Out, map[string]string{"go/evil.go": ""})
		}}, hallmark.CodeDependencyIntegrity, "evil.go"},
	} {
		_, err := Fetch(t.Context(), config(&c.room), plan, t.TempDir())
		if hallmark.CodeOf(err) != c.code || !strings.Contains(fmt.Sprint(err), c.says) || !c.room.closed {
			t.Errorf("%s: %v, closed %t", name, err, c.room.closed)
		}
	}
	r = &room{err: errors.New("no sandbox")}
	if _, err := Fetch(t.Context(), config(r), plan, t.TempDir()); err == nil || hallmark.CodeOf(err) != "" || !r.closed {
		t.Errorf("a worker that can't run is no fault of the revision: %v", err)
	}
	cfg := config(&room{})
	delete(cfg.Registries, RegistryGo)
	if _, err := Fetch(t.Context(), cfg, plan, t.TempDir()); hallmark.CodeOf(err) != hallmark.CodeDependencyUnavailable || !strings.Contains(hallmark.HintOf(err), "registries.go") {
		t.Errorf("no registry: %v", err)
	}
}

func FuzzLock(f *testing.F) {
	f.Add([]byte(`{"lockfileVersion": 3, "packages": {"node_modules/a": {"integrity": "sha512-AA==", "resolved": "https://r/a/-/a-1.tgz"}}}`))
	f.Fuzz(func(_ *testing.T, b []byte) {
		if l, err := parseLock("l", b); err == nil {
			l.check()
			l.owners(nil)
		}
	})
}

func FuzzArchive(f *testing.F) {
	f.Add([]byte("\x1f\x8b"))
	f.Fuzz(func(_ *testing.T, b []byte) { archive(bytes.NewReader(b)) })
}
