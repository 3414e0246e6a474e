// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package intake

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hallmark-sc/hallmark"
)

const vendoredFile = "vendor/example.com/Upper/a.go"

// vendorLab is the module cache of goLab with a tree that vendors its module.
func vendorLab(t testing.TB) (plan Plan, export, dest string) {
	t.Helper()
	plan, dest = goLab(t)
	export = t.TempDir()
	for name, b := range plan.Files {
		write(t, export, map[string]string{name: string(b)})
	}
	write(t, export, map[string]string{
		vendoredFile: "package upper\n", "vendor/modules.txt": "# example.com/Upper v1.2.3\n## explicit; go 1.21\nexample.com/Upper\n",
	})
	return plan, export, dest
}

func TestCheckVendor(t *testing.T) {
	plan, export, dest := vendorLab(t)
	if err := CheckVendor(plan, export, dest); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(export, "vendor")); err != nil {
		t.Fatal(err)
	}
	if err := CheckVendor(plan, export, dest); err != nil {
		t.Errorf("without a vendor directory: %v", err)
	}
}

func TestCheckVendorRefuses(t *testing.T) {
	const list = "vendor/modules.txt"
	for name, tc := range map[string]struct {
		change func(plan *Plan, export, dest string)
		says   string
	}{
		"edited":        {func(_ *Plan, e, _ string) { write(t, e, map[string]string{vendoredFile: "package evil\n"}) }, vendoredFile},
		"added":         {func(_ *Plan, e, _ string) { write(t, e, map[string]string{"vendor/example.com/Upper/b.go": "x"}) }, "Upper/b.go is not in example.com/Upper@v1.2.3"},
		"removed":       {func(_ *Plan, e, _ string) { os.Remove(filepath.Join(e, vendoredFile)) }, "Upper/a.go is missing"},
		"foreign":       {func(_ *Plan, e, _ string) { write(t, e, map[string]string{"vendor/example.com/evil/a.go": "x"}) }, "belongs to no module"},
		"loose":         {func(_ *Plan, e, _ string) { write(t, e, map[string]string{"vendor/a.go": "x"}) }, "belongs to no module"},
		"neighbour":     {func(_ *Plan, e, _ string) { write(t, e, map[string]string{"vendor/example.com/Upper2/a.go": "x"}) }, "belongs to no module"},
		"link":          {func(_ *Plan, e, _ string) { os.Symlink("a.go", filepath.Join(e, "vendor/example.com/Upper/b.go")) }, "no regular file"},
		"no list":       {func(_ *Plan, e, _ string) { os.Remove(filepath.Join(e, list)) }, "modules.txt"},
		"older version": {func(_ *Plan, e, _ string) { write(t, e, map[string]string{list: "# example.com/Upper v1.2.2\n"}) }, "modules.txt:1: example.com/Upper@v1.2.2 was not fetched"},
		"climbing": {func(_ *Plan, e, _ string) {
			write(t, e, map[string]string{list: "# example.com/Upper v1.2.3 => ../..\n"})
		}, "outside of the tree"},
		"itself": {func(_ *Plan, e, _ string) {
			write(t, e, map[string]string{list: "# example.com/Upper v1.2.3 => ./nowhere\nexample.com/Upper\n"})
		}, "is not in nowhere"},
		"strange package": {func(_ *Plan, e, _ string) {
			write(t, e, map[string]string{list: "# example.com/Upper v1.2.3\n../../etc\n"})
		}, "is not of module"},
		"strange line":   {func(_ *Plan, e, _ string) { write(t, e, map[string]string{list: "example.com/Upper\n"}) }, "modules.txt:1"},
		"strange module": {func(_ *Plan, e, _ string) { write(t, e, map[string]string{list: "# ../x v1.2.3\n"}) }, "modules.txt:1"},
		"nothing fetched": {func(p *Plan, e, _ string) {
			p.Files["go.mod"], p.Go = []byte("module x\n"), nil
			write(t, e, map[string]string{"go.mod": "module x\n"})
		}, ""},
		"no directory": {func(_ *Plan, e, _ string) {
			os.RemoveAll(filepath.Join(e, "vendor"))
			write(t, e, map[string]string{"vendor": "x"})
		}, "not a directory"},
	} {
		plan, export, dest := vendorLab(t)
		tc.change(&plan, export, dest)
		if plan.Empty() {
			dest = ""
		}
		if err := CheckVendor(plan, export, dest); hallmark.CodeOf(err) != hallmark.CodeDependencyVendor || !strings.Contains(err.Error(), tc.says) || hallmark.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCheckVendorReplacement: a directory of the tree that stands for a module is
// what its vendored copy is compared with.
func TestCheckVendorReplacement(t *testing.T) {
	plan, export, dest := vendorLab(t)
	write(t, export, map[string]string{
		"local/a.go": "package upper\n\nvar Local = 1\n", vendoredFile: "package upper\n\nvar Local = 1\n",
		"vendor/modules.txt": "# example.com/Upper v1.2.3 => ./local\n## explicit\nexample.com/Upper\n# example.com/Upper => ./local\n",
	})
	if err := CheckVendor(plan, export, dest); err != nil {
		t.Error(err)
	}
	write(t, export, map[string]string{vendoredFile: "package upper\n"})
	if err := CheckVendor(plan, export, dest); hallmark.CodeOf(err) != hallmark.CodeDependencyVendor {
		t.Error(err)
	}
}

// TestCheckVendorAsGoWrites: what the go command itself vendors is accepted, of
// modules with tests, ignored files, assembly, embedded files and two packages.
func TestCheckVendorAsGoWrites(t *testing.T) {
	export, dest := t.TempDir(), t.TempDir()
	mod := map[string]string{
		"go.mod": "module example.com/lib\n\ngo 1.21\n", "LICENSE": "free\n", "lib.go": "package lib\n\nimport _ \"example.com/lib/sub\"\n", "lib_test.go": "package lib\n",
		"gen.go": "// comment\n\n//go:build ignore && linux\n\npackage main\n", "old.go": "//go:build windows && !cgo\n\npackage lib\n", "asm_arm.s": "// nothing\n",
		"sub/sub.go": "package sub\n\nimport _ \"embed\"\n\n//go:embed data/*\nvar D string\n", "sub/data/d.txt": "d\n", "unused/u.go": "package unused\n", "sub/never.go": "//go:build !ignore\n\npackage sub\n",
	}
	for name, text := range mod {
		write(t, export, map[string]string{"lib/" + name: text})
		write(t, dest, map[string]string{"go/example.com/lib@v1.0.0/" + name: text})
	}
	manifest := "module example.org/x\n\ngo 1.21\n\nrequire example.com/lib v1.0.0\n\nreplace example.com/lib => ./lib\n"
	write(t, export, map[string]string{"go.mod": manifest, "x.go": "package x\n\nimport _ \"example.com/lib\"\n"})
	cmd := exec.Command("go", "mod", "vendor")
	cmd.Dir, cmd.Env = export, append(os.Environ(), "GOFLAGS=-mod=mod", "GOPROXY=off", "GOWORK=off", "GOTOOLCHAIN=local")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	plan, err := ReadPlan(export)
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckVendor(plan, export, ""); err != nil {
		t.Errorf("with the replacement: %v", err)
	}
	list, err := os.ReadFile(filepath.Join(export, "vendor/modules.txt"))
	if err != nil {
		t.Fatal(err)
	}
	// The same as of a registry.
	write(t, export, map[string]string{"vendor/modules.txt": strings.Replace(string(list), "v1.0.0 => ./lib", "v1.0.0", 1)})
	if err := CheckVendor(plan, export, dest); err != nil {
		t.Errorf("with the module: %v", err)
	}
	for _, name := range []string{"lib.go", "old.go", "asm_arm.s", "sub/never.go"} {
		at := filepath.Join(export, "vendor/example.com/lib", name)
		b, err := os.ReadFile(at)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(at); err != nil {
			t.Fatal(err)
		}
		if err := CheckVendor(plan, export, dest); hallmark.CodeOf(err) != hallmark.CodeDependencyVendor {
			t.Errorf("without %s: %v", name, err)
		}
		write(t, filepath.Dir(at), map[string]string{filepath.Base(at): string(b)})
	}
}

func FuzzVendorList(f *testing.F) {
	f.Add("# example.com/Upper v1.2.3\n## explicit\nexample.com/Upper\n")
	f.Add("# a v1 => ./b\n# a => ./b\n")
	plan, export, dest := vendorLab(f)
	f.Fuzz(func(t *testing.T, list string) {
		write(t, export, map[string]string{"vendor/modules.txt": list})
		if err := CheckVendor(plan, export, dest); err != nil && hallmark.CodeOf(err) != hallmark.CodeDependencyVendor {
			t.Error(err)
		}
	})
}
