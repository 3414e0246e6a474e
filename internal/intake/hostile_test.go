// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package intake

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestVerifyGoHostile: what a compromised worker may leave besides other bytes.
// A link to an endless device would keep us reading for ever, were it opened.
func TestVerifyGoHostile(t *testing.T) {
	const unpacked, at = "go/example.com/!upper@v1.2.3/", "go/cache/download/example.com/!upper/@v/v1.2.3"
	for name, change := range map[string]func(dest string){
		"endless note": func(dest string) {
			must(t, os.Remove(filepath.Join(dest, at+".ziphash")))
			link(t, dest, at+".ziphash", "/dev/zero")
		},
		"endless file": func(dest string) {
			must(t, os.Remove(filepath.Join(dest, unpacked+"a.go")))
			link(t, dest, unpacked+"a.go", "/dev/zero")
		},
		"version": func(dest string) { write(t, dest, map[string]string{at + ".info": `{"Version":"v9.9.9"}`}) },
		"note of nothing": func(dest string) {
			write(t, dest, map[string]string{"go/cache/download/a.b/c/@v/v1.0.0.ziphash": "h1:x"})
		},
		"info of nothing": func(dest string) {
			write(t, dest, map[string]string{"go/cache/download/a.b/c/@v/v1.0.0.info": moduleInfo("v1.0.0")})
		},
		"list": func(dest string) {
			write(t, dest, map[string]string{"go/cache/download/example.com/!upper/@v/list": "v9.9.9"})
		},
		"mode":   func(dest string) { must(t, os.Chmod(filepath.Join(dest, unpacked+"a.go"), 0o4755)) },
		"closed": func(dest string) { must(t, os.Chmod(filepath.Join(dest, unpacked+"a.go"), 0)) },
		"beside": func(dest string) { write(t, dest, map[string]string{"evil": "x"}) },
		"npm":    func(dest string) { write(t, dest, map[string]string{"npm/0/node_modules/a/index.js": "x"}) },
		"root link": func(dest string) {
			other := t.TempDir()
			must(t, os.Rename(filepath.Join(dest, "go"), filepath.Join(other, "go")))
			link(t, dest, "go", filepath.Join(other, "go"))
		},
		"pipe":       func(dest string) { must(t, unix.Mkfifo(filepath.Join(dest, unpacked+"pipe"), 0o644)) },
		"line break": func(dest string) { write(t, dest, map[string]string{unpacked + "a\nb.go": "x"}) },
	} {
		plan, dest := goLab(t)
		change(dest)
		done := make(chan error, 1)
		go func() { _, err := Verify(plan, dest); done <- err }()
		select {
		case err := <-done:
			if hallmark.CodeOf(err) != hallmark.CodeDependencyIntegrity {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: verifying does not end", name)
		}
	}
}

// TestSums: only the go.sum of what is built vouches, and one elsewhere can't
// contradict it either.
func TestSums(t *testing.T) {
	plan, dest := goLab(t)
	plan.Files["testdata/go.sum"] = []byte("example.com/Upper v1.2.3 h1:other\n")
	if _, err := Verify(plan, dest); err != nil {
		t.Errorf("test data contradicts: %v", err)
	}
	for _, elsewhere := range []string{"testdata/go.sum", "sub/go.sum", "vendor/x/go.sum", "_a/go.work.sum", "sub/go.work.sum"} {
		plan, dest := goLab(t)
		plan.Files[elsewhere] = plan.Files["go.sum"]
		delete(plan.Files, "go.sum")
		if _, err := Verify(plan, dest); hallmark.CodeOf(err) != hallmark.CodeDependencyIntegrity {
			t.Errorf("%s vouches: %v", elsewhere, err)
		}
	}
	for name, change := range map[string]func(p *Plan, sums []byte){
		"workspace member": func(p *Plan, sums []byte) {
			p.Files["go.work"], p.Files["testdata/m/go.sum"] = []byte("go 1.21\n\nuse ./testdata/m\n"), sums
		},
		"workspace": func(p *Plan, sums []byte) {
			p.Files["go.work"], p.Files["go.work.sum"] = []byte("go 1.21\n\nuse .\n"), sums
		},
		"tool": func(p *Plan, sums []byte) {
			p.Files["tools/go.sum"], p.Go = sums, append(p.Go, GoModule{Dir: "tools"})
		},
	} {
		plan, dest := goLab(t)
		sums := plan.Files["go.sum"]
		delete(plan.Files, "go.sum")
		change(&plan, sums)
		if _, err := Verify(plan, dest); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSettle: the package managers' own notes and modes don't reach a build.
func TestSettle(t *testing.T) {
	const at = "go/cache/download/example.com/!upper/@v/"
	plan, dest := goLab(t)
	write(t, dest, map[string]string{at + "list": "v9.9.9", at + "v1.2.3.lock": "", "go/cache/lock": "", at + "v1.2.3.info": `{"Version":"v9.9.9"}`})
	must(t, os.Chmod(filepath.Join(dest, "go/example.com/!upper@v1.2.3/a.go"), 0o4000))
	must(t, os.Chmod(filepath.Join(dest, "go/example.com/!upper@v1.2.3"), 0o555))
	must(t, plan.settle(dest))
	if _, err := Verify(plan, dest); err != nil {
		t.Error(err)
	}
	plan, dest = npmLab(t, twoPackages())
	write(t, dest, map[string]string{"npm/0/node_modules/.package-lock.json": "{}"})
	must(t, os.Chmod(filepath.Join(dest, "npm/0/node_modules/a/bin/a.js"), 0o4711))
	if _, err := Verify(plan, dest); hallmark.CodeOf(err) != hallmark.CodeDependencyIntegrity {
		t.Errorf("npm's note is seen by a build: %v", err)
	}
	must(t, plan.settle(dest))
	if _, err := Verify(plan, dest); err != nil {
		t.Error(err)
	}
}

// editLock changes the lock file's entries.
func editLock(t testing.TB, p *Plan, change func(entries map[string]map[string]any)) {
	t.Helper()
	var doc map[string]json.RawMessage
	must(t, json.Unmarshal(p.Files["web/package-lock.json"], &doc))
	var entries map[string]map[string]any
	must(t, json.Unmarshal(doc["packages"], &entries))
	change(entries)
	var err error
	doc["packages"], err = json.Marshal(entries)
	must(t, err)
	p.Files["web/package-lock.json"], err = json.Marshal(doc)
	must(t, err)
}

func TestVerifyNPMHostile(t *testing.T) {
	const modules = "npm/0/node_modules/"
	entry := func(place string, more map[string]any) func(*Plan, string) {
		return func(p *Plan, _ string) {
			editLock(t, p, func(all map[string]map[string]any) { maps.Copy(all[place], more) })
		}
	}
	for name, change := range map[string]func(p *Plan, dest string){
		// Many a lock file names packages of other platforms: their place must not
		// be a hole.
		"place of another platform": func(p *Plan, dest string) {
			editLock(t, p, func(all map[string]map[string]any) {
				all["node_modules/fsevents"] = map[string]any{"version": "1.0.0", "optional": true, "os": []string{"darwin"}, "integrity": all["node_modules/a"]["integrity"]}
			})
			write(t, dest, map[string]string{modules + "fsevents/index.js": "evil"})
		},
		"file removed": func(_ *Plan, dest string) {
			must(t, os.Remove(filepath.Join(dest, modules, "a/node_modules/b/index.js")))
		},
		"program removed":     func(_ *Plan, dest string) { must(t, os.Remove(filepath.Join(dest, modules, ".bin/a"))) },
		"executable removed":  func(_ *Plan, dest string) { must(t, os.Chmod(filepath.Join(dest, modules, "a/bin/a.js"), 0o644)) },
		"executable added":    func(_ *Plan, dest string) { must(t, os.Chmod(filepath.Join(dest, modules, "a/package.json"), 0o755)) },
		"closed file":         func(_ *Plan, dest string) { must(t, os.Chmod(filepath.Join(dest, modules, "a/package.json"), 0o600)) },
		"tool of another":     func(_ *Plan, dest string) { link(t, dest, modules+".bin/tsc", "../a/bin/a.js") },
		"tool of the project": func(_ *Plan, dest string) { link(t, dest, modules+".bin/tsc", "../../build.js") },
		"package is a link":   func(_ *Plan, dest string) { link(t, dest, modules+"lodash", "a") },
		"local moved": func(_ *Plan, dest string) {
			must(t, os.Remove(filepath.Join(dest, modules, "local")))
			link(t, dest, modules+"local", "../packages/other")
		},
		"crooked link": func(_ *Plan, dest string) {
			must(t, os.Remove(filepath.Join(dest, modules, "local")))
			link(t, dest, modules+"local", "a/../../packages/local")
		},
		"version lies": entry("node_modules/a", map[string]any{"version": "9.9.9"}),
		"name lies":    entry("node_modules/a", map[string]any{"name": "safe"}),
		"beside":       func(_ *Plan, dest string) { write(t, dest, map[string]string{"npm/1/node_modules/x": "x"}) },
		"above":        func(_ *Plan, dest string) { write(t, dest, map[string]string{"npm/0/x": "x"}) },
		"directory is a link": func(_ *Plan, dest string) {
			other := t.TempDir()
			must(t, os.Rename(filepath.Join(dest, "npm"), filepath.Join(other, "npm")))
			link(t, dest, "npm", filepath.Join(other, "npm"))
		},
		"project is a link": func(_ *Plan, dest string) {
			must(t, os.Rename(filepath.Join(dest, "npm/0"), filepath.Join(dest, "npm/1")))
			link(t, dest, "npm/0", "1")
		},
	} {
		plan, dest := npmLab(t, twoPackages())
		change(&plan, dest)
		if _, err := Verify(plan, dest); hallmark.CodeOf(err) != hallmark.CodeDependencyIntegrity {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBundled: a package inside a package is in the inventory only when the lock
// file names it, and by the name and version it has.
func TestBundled(t *testing.T) {
	lab := func(t *testing.T, bundled map[string]any) (Plan, string) {
		files := twoPackages()
		files["node_modules/a"]["node_modules/@s/d/package.json"] = `{"name": "@s/d", "version": "2.0.0"}`
		files["node_modules/a"]["test/node_modules/fixture/package.json"] = `{`
		plan, dest := npmLab(t, files)
		editLock(t, &plan, func(all map[string]map[string]any) {
			if bundled != nil {
				all["node_modules/a/node_modules/@s/d"] = bundled
			}
		})
		return plan, dest
	}
	plan, dest := lab(t, map[string]any{"version": "2.0.0", "inBundle": true})
	if _, err := Verify(plan, dest); err != nil {
		t.Error(err)
	}
	for name, bundled := range map[string]map[string]any{"not named": nil, "other version": {"version": "2.0.1", "inBundle": true}, "other name": {"name": "e", "version": "2.0.0", "inBundle": true}} {
		plan, dest := lab(t, bundled)
		if _, err := Verify(plan, dest); hallmark.CodeOf(err) != hallmark.CodeDependencyIntegrity {
			t.Errorf("%s: %v", name, err)
		}
	}
	for file, want := range map[string]string{
		"index.js": "", "node_modules/a": "node_modules/a", "node_modules/a/x": "node_modules/a", "node_modules/@s/a/x/y": "node_modules/@s/a",
		"node_modules/a/node_modules/b/x": "node_modules/a/node_modules/b", "node_modules/a/x/node_modules/b": "node_modules/a", "node_modules/a/node_modules/b": "node_modules/a/node_modules/b",
	} {
		if got := bundle(file); got != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
}

// TestKept: archives are kept where we made the directory, never where a worker
// says.
func TestKept(t *testing.T) {
	plan, dest := npmLab(t, twoPackages())
	must(t, os.RemoveAll(filepath.Join(dest, "npm-packages")))
	elsewhere := t.TempDir()
	link(t, dest, "npm-packages", elsewhere)
	spooled := filepath.Join(t.TempDir(), "package-1")
	must(t, os.WriteFile(spooled, []byte("x"), 0o600))
	l, err := parseLock("l", plan.Files["web/package-lock.json"])
	must(t, err)
	sum, err := l.packages["node_modules/a"].sha512()
	must(t, err)
	fetched := []Fetched{{Registry: RegistryNPM, Status: 200, File: spooled, SHA512: sum}}
	if err := plan.unpacked(fetched, dest); hallmark.CodeOf(err) != hallmark.CodeDependencyIntegrity {
		t.Error(err)
	}
	if all, _ := os.ReadDir(elsewhere); len(all) > 0 {
		t.Errorf("%s was written outside", all[0])
	}
	must(t, os.Remove(filepath.Join(dest, "npm-packages")))
	fetched = append(fetched, Fetched{Registry: RegistryNPM, Status: 200, File: dest, SHA512: []byte("unasked")})
	must(t, plan.unpacked(fetched, dest))
	if all, _ := os.ReadDir(filepath.Join(dest, "npm-packages")); len(all) != 1 {
		t.Errorf("%d archives are kept", len(all))
	}
}

// TestLockReadsOneWay: npm and we must read the same of a lock file.
func TestLockReadsOneWay(t *testing.T) {
	for name, text := range map[string]string{
		"twice":           `{"lockfileVersion": 3, "packages": {"node_modules/a": {"version": "1"}, "node_modules/a": {}}}`,
		"packages twice":  `{"lockfileVersion": 3, "packages": {}, "packages": {}}`,
		"other letters":   `{"lockfileVersion": 3, "packages": {"node_modules/a": {"version": "1", "Version": "2"}}}`,
		"other Packages":  `{"lockfileVersion": 3, "packages": {}, "PACKAGES": {}}`,
		"parent":          `{"lockfileVersion": 3, "packages": {"node_modules/..": {}}}`,
		"programs":        `{"lockfileVersion": 3, "packages": {"node_modules/.bin/tsc": {}}}`,
		"below a package": `{"lockfileVersion": 3, "packages": {"node_modules/a/lib": {}}}`,
		"deep":            `{"lockfileVersion": 3, "packages": {"web/node_modules/a/b/node_modules/c": {}}}`,
		"scope":           `{"lockfileVersion": 3, "packages": {"node_modules/@s": {}}}`,
		"alias":           `{"lockfileVersion": 3, "packages": {"node_modules/a": {"name": "../b"}}}`,
		"line break":      `{"lockfileVersion": 3, "packages": {"node_modules/a\nb": {}}}`,
		"gateway's":       `{"lockfileVersion": 3, "packages": {"node_modules/.go": {}}}`,
	} {
		if _, err := parseLock("l", []byte(text)); hallmark.CodeOf(err) != hallmark.CodeDependencyUnavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, at := range []string{"node_modules/__proto__", "node_modules/JSONStream", "node_modules/@s/a/node_modules/b", "packages/x", "packages/x/node_modules/y", "my.node_modules/x"} {
		if _, err := parseLock("l", []byte(`{"lockfileVersion": 3, "packages": {"`+at+`": {"name": "x"}, "": {}}}`)); err != nil {
			t.Errorf("%s: %v", at, err)
		}
	}
}

// TestShrinkwrap: npm and the inventory read npm-shrinkwrap.json instead of the
// lock file that packages are verified against.
func TestShrinkwrap(t *testing.T) {
	const lock = `{"lockfileVersion": 3, "packages": {"": {}, "node_modules/a": {}}}`
	for name, make := range map[string]func(dir string){
		"file":      func(dir string) { write(t, dir, map[string]string{"web/npm-shrinkwrap.json": lock}) },
		"link":      func(dir string) { link(t, dir, "web/npm-shrinkwrap.json", "elsewhere") },
		"directory": func(dir string) { write(t, dir, map[string]string{"web/npm-shrinkwrap.json/x": ""}) },
		"packages":  func(dir string) { link(t, dir, "web/node_modules", "/etc") },
	} {
		dir := t.TempDir()
		write(t, dir, map[string]string{"web/package-lock.json": lock})
		make(dir)
		if _, err := ReadPlan(dir); hallmark.CodeOf(err) != hallmark.CodeDependencyUnavailable || !strings.Contains(err.Error(), "a package-lock.json lies beside it") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPlanBounds: all manifests together have a bound too.
func TestPlanBounds(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		write(t, dir, map[string]string{name + "/package.json": "{}"})
		must(t, os.Truncate(filepath.Join(dir, name, "package.json"), maxManifest))
	}
	if _, err := ReadPlan(dir); hallmark.CodeOf(err) != hallmark.CodeDependencyUnavailable {
		t.Error(err)
	}
}
