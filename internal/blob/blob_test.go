// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package blob_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/blob"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/pipeline/pipelinetest"
)

var steps = []durable.Step{durable.Created, durable.Written, durable.Synced, durable.Named, durable.Kept}

// TestMain is also the process that dies while it puts a blob.
func TestMain(m *testing.M) {
	if dir := os.Getenv("BLOB_DIR"); dir != "" {
		die, _ := strconv.Atoi(os.Getenv("BLOB_DIE_AT"))
		puts := 0
		s, err := blob.New(blob.Config{Dir: dir, Disk: durable.Disk{After: func(step durable.Step, _ string) error {
			if step == durable.Created {
				puts++
			}
			if puts == 3 && int(step) == die {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
			return nil
		}}})
		if err != nil {
			panic(err)
		}
		for i := range 5 {
			d, err := s.Put(context.Background(), fmt.Appendf(nil, "%d at %d", i, die))
			if err != nil {
				panic(err)
			}
			os.Stdout.WriteString(string(d) + "\n")
		}
		os.Exit(7) // it should have died
	}
	os.Exit(m.Run())
}

func open(t *testing.T, dir string) *blob.Store {
	t.Helper()
	s, err := blob.New(blob.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestContract(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "blobs")
	pipelinetest.Blobs(t, func(t *testing.T) pipeline.Blobs { return open(t, dir) })
	n := 0
	if err := open(t, dir).Walk(t.Context(), func(d hallmark.Digest, size int64) error { n++; return d.Check() }); err != nil || n != 7 {
		t.Errorf("walked %d blobs, %v", n, err)
	}
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		info, _ := e.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s can be read by others", p)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func pathOf(dir string, d hallmark.Digest) string {
	return filepath.Join(dir, "sha256", d.Hex()[:2], d.Hex())
}

// TestAltered: bytes that are not those of the digest are never returned, and
// putting the right ones again mends them.
func TestAltered(t *testing.T) {
	content := []byte("the bytes that count")
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, alter := range map[string]func(path string) error{
		"flipped":         func(p string) error { return os.WriteFile(p, []byte("the bytes that cound"), 0o600) },
		"cut":             func(p string) error { return os.Truncate(p, 4) },
		"empty":           func(p string) error { return os.Truncate(p, 0) },
		"longer":          func(p string) error { return os.WriteFile(p, append(bytes.Clone(content), 'x'), 0o600) },
		"gone":            os.Remove,
		"a link":          func(p string) error { return errors.Join(os.Remove(p), os.Symlink(outside, p)) },
		"a pipe":          func(p string) error { return errors.Join(os.Remove(p), unix.Mkfifo(p, 0o600)) },
		"a dangling link": func(p string) error { return errors.Join(os.Remove(p), os.Symlink("nowhere", p)) },
	} {
		dir := t.TempDir()
		s := open(t, dir)
		d, err := s.Put(t.Context(), content)
		if err != nil {
			t.Fatal(err)
		}
		path := pathOf(dir, d)
		if err := errors.Join(os.Chmod(path, 0o600), alter(path)); err != nil {
			t.Fatal(err)
		}
		if b, err := s.Get(t.Context(), d); err == nil || b != nil {
			t.Errorf("%s: got %q", name, b)
		}
		if again, err := s.Put(t.Context(), content); err != nil || again != d {
			t.Errorf("%s: put again: %v", name, err)
		}
		if b, err := s.Get(t.Context(), d); err != nil || !bytes.Equal(b, content) {
			t.Errorf("%s: put was acknowledged, and get says %q, %v", name, b, err)
		}
	}
}

// TestKilled kills a process at each step of its third put: the blobs that it
// acknowledged are whole, the third is whole or absent, nothing is left over.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	for _, step := range steps {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "BLOB_DIR="+dir, "BLOB_DIE_AT="+strconv.Itoa(int(step)))
		out, err := cmd.Output()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("step %d: not killed: %v\n%s", step, err, out)
		}
		s := open(t, dir)
		acknowledged := strings.Fields(string(out))
		if len(acknowledged) != 2 {
			t.Fatalf("step %d: acknowledged %q", step, out)
		}
		for i, d := range acknowledged {
			if b, err := s.Get(t.Context(), hallmark.Digest(d)); err != nil || string(b) != fmt.Sprintf("%d at %d", i, step) {
				t.Errorf("step %d: blob %d was acknowledged: %q, %v", step, i, b, err)
			}
		}
		third := hallmark.DigestOf(fmt.Appendf(nil, "2 at %d", step))
		_, err = s.Get(t.Context(), third)
		if step >= durable.Named && err != nil || step < durable.Named && hallmark.KindOf(err) != hallmark.KindNotFound {
			t.Errorf("step %d: the third blob: %v", step, err)
		}
		if parts, err := os.ReadDir(filepath.Join(dir, "part")); err != nil || len(parts) > 0 {
			t.Errorf("step %d: left %v, %v", step, parts, err)
		}
	}
}

// TestFailingDisk: a put whose step failed is not acknowledged.
func TestFailingDisk(t *testing.T) {
	full := errors.New("no space left on device")
	for _, step := range steps {
		dir := t.TempDir()
		s, err := blob.New(blob.Config{Dir: dir, Disk: durable.Disk{After: func(at durable.Step, _ string) error {
			if at == step {
				return full
			}
			return nil
		}}})
		if err != nil {
			t.Fatal(err)
		}
		if d, err := s.Put(t.Context(), []byte("x")); !errors.Is(err, full) || d != "" {
			t.Errorf("step %d: got %q, %v", step, d, err)
		}
		if d, err := open(t, dir).Put(t.Context(), []byte("x")); err != nil || d == "" {
			t.Errorf("step %d: put on a mended disk: %v", step, err)
		}
	}
	s := open(t, t.TempDir())
	broken := errors.New("the source broke")
	if d, _, err := s.PutFrom(t.Context(), io.MultiReader(strings.NewReader("half of"), errReader{broken})); !errors.Is(err, broken) || d != "" {
		t.Errorf("a source that broke: %q, %v", d, err)
	}
	if _, err := s.Get(t.Context(), hallmark.DigestOf([]byte("half of"))); hallmark.KindOf(err) != hallmark.KindNotFound {
		t.Errorf("half a blob was kept: %v", err)
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

func TestWalkRefusesAStranger(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if err := os.WriteFile(filepath.Join(dir, "sha256", "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Walk(t.Context(), func(hallmark.Digest, int64) error { return nil }); hallmark.KindOf(err) != hallmark.KindInvalid {
		t.Errorf("got %v", err)
	}
}
