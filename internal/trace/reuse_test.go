// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"bytes"
	"path/filepath"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/trace"
)

// TestReusedInode makes, reads and removes files whose inodes get each other's
// numbers, as ./configure does: none of them changed under its reader.
func TestReusedInode(t *testing.T) {
	for name, engine := range map[string]trace.Engine{"kernel": trace.Kernel, "ptrace": trace.Ptrace} {
		t.Run(name, func(t *testing.T) {
			if engine == trace.Kernel && !trace.KernelWorks() {
				t.Skip("fanotify and BPF can't be used here: they need root, and the machine's own namespaces")
			}
			dir, host := t.TempDir(), sandbox.HostID()
			if err := sandbox.NewScratch(filepath.Join(dir, "scratch"), host); err != nil {
				t.Fatal(err)
			}
			box, err := sandbox.New(sandbox.Config{Clock: time.Now})
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			log := filepath.Join(dir, "events")
			rep, err := box.RunAs(t.Context(), host, sandbox.Spec{
				Argv: []string{"sh", "-ec", "i=0; while [ $i -lt 40 ]; do cp /usr/bin/true conftest; ./conftest; cat conftest >/dev/null; rm conftest; cp /usr/bin/false conftest; cat conftest >o; exec 3<o; rm conftest o; i=$((i+1)); done"},
				Dir:  "/workspace", Env: []string{"PATH=" + sandbox.Path()}, Stdout: &out, Stderr: &out,
				Workspace: &sandbox.Workspace{Lower: openDir(t), Scratch: filepath.Join(dir, "scratch"), Target: "/workspace"},
				Limits:    sandbox.Limits{Wall: 10 * time.Minute, Disk: 256 << 20},
				Trace:     &sandbox.Trace{Engine: engine, Log: log},
			})
			if err != nil || rep.ExitCode != 0 || !rep.Trace.Whole() {
				t.Fatalf("%v %+v\n%s", err, rep, &out)
			}
			for _, e := range eventsOf(t, log) {
				if e.Kind == build.EventUnstable {
					t.Errorf("nobody changed %s", e.Path)
				}
			}
		})
	}
}
