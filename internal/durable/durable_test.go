// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"github.com/hallmark-sc/hallmark/internal/durable"
)

var steps = map[durable.Step]string{
	durable.Created: "created", durable.Written: "written", durable.Synced: "synced", durable.Named: "named", durable.Kept: "kept",
}

var (
	oldBytes = bytes.Repeat([]byte("old "), 5000)
	newBytes = bytes.Repeat([]byte("new bytes "), 5000)
)

// TestMain is also the process that dies in the middle of a write.
func TestMain(m *testing.M) {
	if at := os.Getenv("DURABLE_DIE_AT"); at != "" {
		n, _ := strconv.Atoi(at)
		d := durable.Disk{After: func(s durable.Step, _ string) error {
			if int(s) == n {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
			return nil
		}}
		write := d.Replace
		if os.Getenv("DURABLE_CREATE") != "" {
			write = d.Create
		}
		fmt.Println(write(os.Getenv("DURABLE_PATH"), newBytes, 0o600))
		os.Exit(7) // it should have died
	}
	os.Exit(m.Run())
}

// TestKilledAtEachStep kills a writer after each step: what stands under the
// name is the old bytes or the new, and the next sweep leaves nothing else.
func TestKilledAtEachStep(t *testing.T) {
	for step, name := range steps {
		for _, create := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s create=%v", name, create), func(t *testing.T) {
				dir := t.TempDir()
				path := filepath.Join(dir, "file")
				if !create {
					if err := os.WriteFile(path, oldBytes, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				cmd := exec.Command(os.Args[0])
				cmd.Env = append(os.Environ(), "DURABLE_DIE_AT="+strconv.Itoa(int(step)), "DURABLE_PATH="+path)
				if create {
					cmd.Env = append(cmd.Env, "DURABLE_CREATE=1")
				}
				out, err := cmd.CombinedOutput()
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("the writer was not killed: %v\n%s", err, out)
				}
				check(t, path, create, step >= durable.Named)
				if err := durable.Sweep(dir); err != nil {
					t.Fatal(err)
				}
				check(t, path, create, step >= durable.Named)
				entries, _ := os.ReadDir(dir)
				if want := map[bool]int{true: 1, false: 0}[!create || step >= durable.Named]; len(entries) != want {
					t.Errorf("after the sweep: %v", entries)
				}
				// The next write goes through.
				if err := (durable.Disk{}).Replace(path, newBytes, 0o600); err != nil {
					t.Error(err)
				}
				check(t, path, create, true)
			})
		}
	}
}

func check(t *testing.T, path string, create, written bool) {
	t.Helper()
	b, err := os.ReadFile(path)
	switch {
	case written && (err != nil || !bytes.Equal(b, newBytes)):
		t.Errorf("want the new bytes: %d bytes, %v", len(b), err)
	case !written && create && !errors.Is(err, fs.ErrNotExist):
		t.Errorf("a file that was not finished is there: %d bytes, %v", len(b), err)
	case !written && !create && (err != nil || !bytes.Equal(b, oldBytes)):
		t.Errorf("want the old bytes: %d bytes, %v", len(b), err)
	}
}

// TestFailsAtEachStep returns an error from each step.
func TestFailsAtEachStep(t *testing.T) {
	fault := errors.New("no space left")
	for step, name := range steps {
		dir := t.TempDir()
		path := filepath.Join(dir, "file")
		if err := os.WriteFile(path, oldBytes, 0o600); err != nil {
			t.Fatal(err)
		}
		d := durable.Disk{After: func(s durable.Step, _ string) error {
			if s == step {
				return fault
			}
			return nil
		}}
		if err := d.Replace(path, newBytes, 0o600); !errors.Is(err, fault) {
			t.Errorf("%s: got %v: a step that failed was acknowledged", name, err)
		}
		check(t, path, false, step >= durable.Named)
		if entries, _ := os.ReadDir(dir); len(entries) != 1 {
			t.Errorf("%s: left %v", name, entries)
		}
	}
}

func TestCreateRefusesATakenName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "file")
	if err := (durable.Disk{}).Create(path, oldBytes, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (durable.Disk{}).Create(path, newBytes, 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v", err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	check(t, path, false, false)
	if err := (durable.Disk{}).Replace(filepath.Join(path, "below"), newBytes, 0o600); err == nil {
		t.Error("wrote below a file")
	}
}

// TestAFailedWriteIsNotPublished: a short write that the caller overlooked must
// not get a name.
func TestAFailedWriteIsNotPublished(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip("no /dev/full")
	}
	dir := t.TempDir()
	tmp, err := (durable.Disk{}).Temp(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer tmp.Discard()
	durable.BreakWrites(tmp)
	if _, err := tmp.Write(newBytes); err == nil {
		t.Fatal("the write did not fail")
	}
	path := filepath.Join(dir, "file")
	if err := tmp.Replace(path, 0o600); err == nil {
		t.Error("a file whose write failed was published")
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat: %v", err)
	}
}

// TestSweepLeavesTheLiving sweeps while many write.
func TestSweepLeavesTheLiving(t *testing.T) {
	dir := t.TempDir()
	stop := make(chan struct{})
	var sweeps, writers sync.WaitGroup
	sweeps.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if err := durable.Sweep(dir); err != nil {
					t.Error(err)
					return
				}
				if err := durable.SweepDirs(dir, ".dir-", os.RemoveAll); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for i := range 4 {
		writers.Go(func() {
			for j := range 25 {
				path := filepath.Join(dir, fmt.Sprintf("f%d-%d", i, j))
				if err := (durable.Disk{}).Replace(path, newBytes, 0o600); err != nil {
					t.Error(err)
				}
				check(t, path, false, true)
				part, lock, err := durable.TempDir(dir, ".dir-")
				if err != nil {
					t.Error(err)
					return
				}
				if err := os.WriteFile(filepath.Join(part, "x"), nil, 0o600); err != nil {
					t.Errorf("a directory in use was swept: %v", err)
				}
				if err := os.Rename(part, path+".d"); err != nil {
					t.Error(err)
				}
				lock.Close()
			}
		})
	}
	writers.Wait()
	close(stop)
	sweeps.Wait()
	// What nobody holds goes, and nothing else.
	dead, lock, err := durable.TempDir(dir, ".dir-")
	if err != nil {
		t.Fatal(err)
	}
	lock.Close()
	if err := os.WriteFile(filepath.Join(dir, ".part-dead"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(durable.Sweep(dir), durable.SweepDirs(dir, ".dir-", os.RemoveAll)); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{dead, filepath.Join(dir, ".part-dead")} {
		if _, err := os.Stat(p); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s was not swept", p)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 200 {
		t.Errorf("%d entries, want 200", len(entries))
	}
}
