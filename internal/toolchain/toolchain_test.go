// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"os"
	"path/filepath"
	"testing"
)

// TestOwner reads a root with each database.
func TestOwner(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"etc/os-release":                      "NAME=x\nID=debian\n",
		"var/lib/dpkg/status":                 "Package: gcc-12\nStatus: install ok installed\nArchitecture: amd64\nVersion: 12.2.0-14\nDescription: a\n b: c\n\nPackage: gone\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n\nPackage: py\nStatus: install ok installed\nArchitecture: all\nVersion: 1:3\n\nPackage: libc-bin\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2\n",
		"var/lib/dpkg/info/gcc-12:amd64.list": "/.\n/usr/bin/gcc-12\n/lib/x/y.so\n/usr/bin/moved\n",
		"var/lib/dpkg/info/gone.list":         "/usr/bin/gone\n",
		"var/lib/dpkg/info/py.list":           "/usr/lib/python3/a.py\n/usr/bin/moved\n",
		"var/lib/dpkg/info/libc-bin.list":     "/sbin/ldconfig\n",
		"var/lib/dpkg/diversions":             "/usr/bin/moved\n/usr/bin/moved.real\ngcc-12\n",
		"lib/apk/db/installed":                "C:x\nP:musl\nV:1.2\nA:x86_64\nF:lib\nR:ld-musl-x86_64.so.1\n\nP:none\nV:1\nA:x\n\n",
		"opt/go/VERSION":                      "go1.26.8\ntime x\n",
	} {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p, err := New(Config{Root: root, GoRoot: "/opt/go"})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"/usr/bin/gcc-12":      "pkg:deb/debian/gcc-12@12.2.0-14?arch=amd64",
		"/usr/lib/x/y.so":      "pkg:deb/debian/gcc-12@12.2.0-14?arch=amd64", // said to be in /lib
		"/usr/bin/gone":        "",
		"/usr/bin/moved.real":  "pkg:deb/debian/py@1:3?arch=all", // gave way
		"/usr/bin/moved":       "pkg:deb/debian/gcc-12@12.2.0-14?arch=amd64",
		"/etc/ld.so.cache":     "pkg:deb/debian/libc-bin@2?arch=amd64",
		"/opt/go/bin/go":       "pkg:generic/go@1.26.8",
		"/opt/go2/bin/go":      "",
		"/usr/local/bin/other": "",
		"/usr/lib/python3/__pycache__/a.cpython-311.pyc": "pkg:deb/debian/py@1:3?arch=all",
		"/usr/lib/python3/__pycache__/b.cpython-311.pyc": "",
		"/usr/lib/ld-musl-x86_64.so.1":                   "pkg:apk/alpine/musl@1.2?arch=x86_64",
	} {
		if got, ok := p.Owner(name); got.PURL != want || ok != (want != "") {
			t.Errorf("%s: %+v, want %s", name, got, want)
		}
	}
	if len(p.List()) != 5 {
		t.Errorf("packages: %+v", p.List())
	}
	if p, err := New(Config{Root: t.TempDir()}); err != nil || len(p.List()) != 0 {
		t.Errorf("a root without packages: %v, %v", p, err)
	}
}
