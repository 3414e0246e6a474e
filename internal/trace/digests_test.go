// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
)

// old is the identity of a file that has been at rest for some time, and the file.
func old(t *testing.T) (identity, *os.File) {
	t.Helper()
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	id, err := identityOf(f)
	if err != nil {
		t.Fatal(err)
	}
	id.ctime = time.Now().Add(-time.Hour).UnixNano() | 1
	return id, f
}

const someDigest = hallmark.Digest("sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")

func TestDigestsOutliveATrace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "digests")
	id, f := old(t)
	keep := func(id identity) {
		t.Helper()
		s, err := openDigests(path)
		if err != nil {
			t.Fatal(err)
		}
		s.keep(id, someDigest, int(f.Fd()))
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
	}
	other := id
	other.ino++
	keep(id)
	keep(other)
	s, err := openDigests(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []identity{id, other} {
		if d, ok := s.find(id); !ok || d != someDigest {
			t.Errorf("%+v: %s %t", id, d, ok)
		}
	}
	for name, change := range map[string]func(*identity){
		"device": func(i *identity) { i.dev++ }, "size": func(i *identity) { i.size++ },
		"modified": func(i *identity) { i.mtime++ }, "changed": func(i *identity) { i.ctime++ },
	} {
		not := id
		if change(&not); not == id {
			t.Fatal(name)
		}
		if _, ok := s.find(not); ok {
			t.Errorf("a file of another %s is known", name)
		}
	}
}

// TestDigestsNotKept: of what may be another content under the same identity.
func TestDigestsNotKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "digests")
	id, f := old(t)
	s, err := openDigests(path)
	if err != nil {
		t.Fatal(err)
	}
	fresh, whole := id, id
	fresh.ctime = time.Now().UnixNano() | 1
	whole.ctime -= whole.ctime % int64(time.Second)
	for name, id := range map[string]identity{"a file changed just now": fresh, "a time in whole seconds": whole} {
		if s.keep(id, someDigest, int(f.Fd())); len(s.known) > 0 {
			t.Errorf("%s is kept", name)
		}
	}
	proc, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	id.dev++ // of another file system
	if s.keep(id, someDigest, int(proc.Fd())); len(s.known) > 0 {
		t.Error("a file of /proc is kept")
	}
}

// TestDigestsTampered: a store that is not whole is empty; one that others can
// write stops the trace.
func TestDigestsTampered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "digests")
	id, f := old(t)
	s, err := openDigests(path)
	if err != nil {
		t.Fatal(err)
	}
	s.keep(id, someDigest, int(f.Fd()))
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := append([]byte(nil), good...)
		bad[i] ^= 1
		s.known = map[identity][32]byte{}
		if s.decode(bad); len(s.known) > 0 {
			t.Fatalf("byte %d changed: %v", i, s.known)
		}
		if s.decode(good[:i]); len(s.known) > 0 {
			t.Fatalf("cut at %d: %v", i, s.known)
		}
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := openDigests(path); err == nil {
		t.Error("a store that everybody can write is read")
	}
	link := path + "-link"
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := openDigests(link); err == nil {
		t.Error("a store behind a link is read")
	}
	fifo := path + "-fifo"
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openDigests(fifo); err == nil {
		t.Error("a pipe is read")
	}
}

func FuzzDigests(f *testing.F) {
	f.Add([]byte(storeMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &digestStore{known: map[identity][32]byte{}}
		s.decode(b)
		again := &digestStore{known: map[identity][32]byte{}}
		again.decode(s.encode())
		if len(again.known) != len(s.known) {
			t.Errorf("%d digests became %d", len(s.known), len(again.known))
		}
	})
}
