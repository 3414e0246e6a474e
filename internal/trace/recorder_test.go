// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHiddenEverywhere: what is secret comes into no part of the log; the path
// that a variable names is looked for in arguments alone.
func TestHiddenEverywhere(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	r, err := newRecorder(log)
	if err != nil {
		t.Fatal(err)
	}
	r.hide([]Hidden{{Name: "TOKEN", Value: []byte("hunter22")}, {Name: "SOCK", Value: []byte("/run/agent"), Argument: true}})
	r.fork(0, 7)
	r.exec(7, "/bin/hunter22", "sha256:0", []string{"curl", "-uhunter22", "--sock=/run/agent"}, false)
	r.named("rename", 7, "/tmp/hunter22", "/run/agent/hunter22")
	r.opened(7, "/tmp/xhunter22", identity{}, "sha256:0")
	r.wrote(7, "/run/agent", identity{}, "sha256:0")
	r.unstable("/tmp/hunter22", "sha256:0")
	r.connected(Connect{PID: 7, Address: "hunter22"})
	r.exit(7, unix.WaitStatus(0))
	if out := r.finish("test"); !out.Whole() {
		t.Fatalf("%+v", out)
	}
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if s := string(b); strings.Contains(s, "hunter22") || strings.Count(s, "${TOKEN}") != 7 || !strings.Contains(s, `"--sock=${SOCK}"`) || !strings.Contains(s, `"path":"/run/agent"`) {
		t.Errorf("the log tells\n%s", s)
	}
}

// TestLogBound: a log that would grow without end is not whole, and grows no more.
func TestLogBound(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	r, err := newRecorder(log)
	if err != nil {
		t.Fatal(err)
	}
	r.room = 1000
	r.fork(0, 7)
	for range 100 {
		r.named("make", 7, "/tmp/"+strings.Repeat("x", 100), "")
	}
	r.exit(7, unix.WaitStatus(0))
	out := r.finish("test")
	if out.Whole() || !strings.Contains(out.Failure, "larger") {
		t.Errorf("%+v", out)
	}
	if st, err := os.Stat(log); err != nil || st.Size() > 1000 {
		t.Errorf("it has %v bytes (%v)", st.Size(), err)
	}
}

// TestUnattributed: a read whose process is not known is told as that, not passed
// over.
func TestUnattributed(t *testing.T) {
	r, err := newRecorder(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	r.fork(0, 10)
	r.opened(10, "/known", identity{ino: 1}, "")
	r.opened(99, "/by/nobody", identity{ino: 2}, "")
	if got := r.finish("x").Attribution; got != "1 reads are known without the process that did them" {
		t.Errorf("attribution %q", got)
	}
}
