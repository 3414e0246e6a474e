// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hallmark-sc/hallmark"
)

func md5Of(s string) string { d := md5.Sum([]byte(s)); return hex.EncodeToString(d[:]) }

func write(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestInspect: bytes are compared with what dpkg or apk declares, whatever the
// name of the file; what nobody declares is said to be so.
func TestInspect(t *testing.T) {
	root := t.TempDir()
	sha := sha1.Sum([]byte("musl"))
	long := sha256.Sum256([]byte("q2"))
	write(t, root, map[string]string{
		"var/lib/dpkg/status": "Package: cc\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\nConffiles:\n /etc/cc.conf " + md5Of("conf") + "\n /etc/cc2.conf " + md5Of("conf") + "\nDescription: x\n more\n\n" +
			"Package: dash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2\n\nPackage: bare\nStatus: install ok installed\nArchitecture: all\nVersion: 3\n",
		"var/lib/dpkg/info/cc:amd64.list":    "/usr/bin/cc\n/lib/cc/p.so\n/etc/cc.conf\n/etc/cc2.conf\n/usr/bin/made\n/usr/bin/sh\n/usr/bin/gone\n",
		"var/lib/dpkg/info/cc:amd64.md5sums": md5Of("cc") + "  usr/bin/cc\n" + md5Of("\x7fELFplug") + "  lib/cc/p.so\n" + md5Of("old sh") + "  usr/bin/sh\n" + md5Of("gone") + "  usr/bin/gone\n",
		"var/lib/dpkg/info/dash.list":        "/usr/bin/sh\n",
		"var/lib/dpkg/info/dash.md5sums":     md5Of("new sh") + "  ./usr/bin/sh\n",
		"var/lib/dpkg/info/bare.list":        "/usr/bin/bare\n",
		"var/lib/dpkg/diversions":            "/usr/bin/sh\n/usr/bin/sh.distrib\ndash\n",
		"lib/apk/db/installed":               "P:musl\nV:1.2\nA:x86_64\nF:lib\nR:ld-musl.so.1\na:0:0:755\nZ:Q1" + base64.StdEncoding.EncodeToString(sha[:]) + "\nR:plain\nF:usr/lib\nR:q2\nZ:Q2" + base64.StdEncoding.EncodeToString(long[:]) + "\n\n",
		"usr/bin/cc":                         "cc", "usr/lib/cc/p.so": "\x7fELFplug", "etc/cc.conf": "conf", "etc/cc2.conf": "mine", "usr/bin/made": "made", "usr/bin/sh": "new sh", "usr/bin/sh.distrib": "old sh",
		"usr/bin/bare": "bare", "usr/lib/ld-musl.so.1": "musl", "usr/lib/plain": "plain", "usr/lib/q2": "q2",
	})
	p, err := New(Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	known, err := OpenContents("")
	if err != nil {
		t.Fatal(err)
	}
	inspect := func(name, bytes string) Inspection {
		t.Helper()
		got, err := p.Inspect(name, hallmark.DigestOf([]byte(bytes)), known)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for name, want := range map[string]Inspection{
		"/usr/bin/cc": {State: Declared}, "/usr/lib/cc/p.so": {State: Declared, Code: true}, "/etc/cc.conf": {State: Declared}, "/etc/cc2.conf": {State: Undeclared}, "/usr/bin/made": {State: Undeclared},
		"/usr/bin/sh": {State: Declared}, "/usr/bin/sh.distrib": {State: Declared}, "/usr/bin/bare": {State: Undeclared}, "/usr/lib/ld-musl.so.1": {State: Declared}, "/usr/lib/plain": {State: Undeclared},
		"/usr/lib/q2": {State: Declared},
	} {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := inspect(name, string(b)); got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	// One byte more, on the disk too; and a file that holds other bytes than were used.
	write(t, root, map[string]string{"usr/bin/cc": "ccx", "usr/lib/ld-musl.so.1": "muslx"})
	for name, text := range map[string]string{"/usr/bin/cc": "ccx", "/usr/lib/ld-musl.so.1": "muslx", "/usr/bin/gone": "gone", "/usr/bin/made": "other", "/usr/bin/none": "none"} {
		got := inspect(name, text)
		if got.State != Altered || got.Why == "" {
			t.Errorf("%s: %+v", name, got)
		}
		if strings.HasSuffix(text, "x") && !strings.Contains(got.Why, "declared is") {
			t.Errorf("%s does not say what differs: %s", name, got.Why)
		}
	}
	// What a package declares under one name is not good under another.
	if got := inspect("/usr/lib/q2", "cc"); got.State != Altered {
		t.Errorf("the bytes of another file: %+v", got)
	}
}

// TestSumsInWrongForm: a package database that can't be read is an error, and no
// package that declares nothing.
func TestSumsInWrongForm(t *testing.T) {
	for name, text := range map[string]string{"no sum": "usr/bin/cc\n", "short": "abcd  usr/bin/cc\n", "no name": md5Of("cc") + "  \n"} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			write(t, root, map[string]string{
				"var/lib/dpkg/status": "Package: cc\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n", "usr/bin/cc": "cc",
				"var/lib/dpkg/info/cc.list": "/usr/bin/cc\n", "var/lib/dpkg/info/cc.md5sums": text,
			})
			p, err := New(Config{Root: root})
			if err != nil {
				t.Fatal(err)
			}
			known, err := OpenContents("")
			if err != nil {
				t.Fatal(err)
			}
			if got, err := p.Inspect("/usr/bin/cc", hallmark.DigestOf([]byte("cc")), known); err == nil || !strings.Contains(err.Error(), "cc.md5sums line 1") {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

// TestContents: what is known is kept and read again; a file in which a bit is
// wrong, or that others can write, is not believed.
func TestContents(t *testing.T) {
	dir := t.TempDir()
	path, file := filepath.Join(dir, "contents"), filepath.Join(dir, "file")
	write(t, dir, map[string]string{"file": "\x7fELF"})
	p, err := New(Config{Root: dir})
	if err != nil {
		t.Fatal(err)
	}
	open := func() *Contents {
		c, err := OpenContents(path)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := open()
	if got, err := p.Inspect("/file", hallmark.DigestOf([]byte("\x7fELF")), first); err != nil || got.State != Undeclared || !got.Code {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := first.Save(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	again := open()
	if got, err := p.Inspect("/file", hallmark.DigestOf([]byte("\x7fELF")), again); err != nil || got.State != Undeclared || !got.Code {
		t.Errorf("it was not kept: %+v, %v", got, err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := range b {
		b[at] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if c := open(); len(c.known) != 0 {
			t.Fatalf("byte %d is wrong, and %d contents are known", at, len(c.known))
		}
		b[at] ^= 1
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenContents(path); err == nil {
		t.Error("a file that others can write is believed")
	}
}

func FuzzSums(f *testing.F) {
	f.Add(md5Of("x")+"  usr/bin/cc\n", "Q1"+base64.StdEncoding.EncodeToString(make([]byte, 20)), " /etc/x "+md5Of("y")+" obsolete\n")
	f.Fuzz(func(t *testing.T, sums, apk, conf string) {
		root := t.TempDir()
		write(t, root, map[string]string{
			"var/lib/dpkg/status": "Package: cc\nStatus: install ok installed\nConffiles:\n" + conf + "\n\n", "var/lib/dpkg/info/cc.list": "/usr/bin/cc\n", "var/lib/dpkg/info/cc.md5sums": sums,
			"lib/apk/db/installed": "P:m\nF:lib\nR:x\nZ:" + apk + "\n\n", "usr/bin/cc": "cc", "usr/lib/x": "x",
		})
		p, err := New(Config{Root: root})
		if err != nil {
			return
		}
		known, err := OpenContents("")
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"/usr/bin/cc": "cc", "/usr/lib/x": "x"} {
			got, err := p.Inspect(name, hallmark.DigestOf([]byte(text)), known)
			if err == nil && got.State == Declared && !strings.Contains(strings.ToLower(sums+conf), md5Of(text)) && !strings.Contains(apk, "Q") {
				t.Errorf("%s is declared by %q %q %q", name, sums, apk, conf)
			}
		}
	})
}
