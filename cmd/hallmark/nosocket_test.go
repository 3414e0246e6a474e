// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hallmark-sc/hallmark"
)

// ordinary is a user who owns nothing here.
const ordinary = 65534

// TestVerifyOpensNoSocket runs what is promised to work offline in a network
// namespace without interfaces, under a filter that kills the process at the
// first call that makes or uses a socket: as the user who runs the tests, and,
// when that is root, as an ordinary user who can't even read the home.
func TestVerifyOpensNoSocket(t *testing.T) {
	t.Parallel()
	lab := newKillLab(t)
	lab.commit()
	lab.finish()
	// t.TempDir lies below a directory that other users can't enter.
	dir, err := os.MkdirTemp("", "nosocket-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	filter := filepath.Join(dir, "nosocket")
	build := exec.Command("go", "build", "-o", filter, "./testdata/nosocket")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	for from, to := range map[string]string{lab.bin: "hallmark", filepath.Join(lab.work, "out"): "out"} {
		if out, err := exec.Command("cp", "-r", from, filepath.Join(dir, to)).CombinedOutput(); err != nil {
			t.Fatalf("copying: %v\n%s", err, out)
		}
	}
	if out, err := exec.Command("chmod", "-R", "a+rX", dir).CombinedOutput(); err != nil {
		t.Fatalf("chmod: %v\n%s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(dir, "out", "roots.json"))
	if err != nil {
		t.Fatal(err)
	}
	pin := []string{"--evidence", filepath.Join(dir, "out"), "--roots", string(hallmark.DigestOf(b)), "--home", filepath.Join(dir, "nowhere")}
	users := map[string]int{"this user": os.Getuid()}
	if os.Getuid() == 0 {
		users["an ordinary user"] = ordinary
	}
	for who, uid := range users {
		t.Run(who, func(t *testing.T) {
			state := filepath.Join(dir, "state-"+strings.ReplaceAll(who, " ", "-"))
			if err := os.Mkdir(state, 0o700); err != nil {
				t.Fatal(err)
			}
			if os.Getuid() == 0 {
				if err := os.Chown(state, uid, uid); err != nil {
					t.Fatal(err)
				}
			}
			box := func(args ...string) (string, error) {
				cmd := exec.Command(filter, args...)
				cmd.Dir, cmd.Env = dir, []string{"PATH=/usr/bin:/bin", "HOME=" + state, "XDG_STATE_HOME=" + state}
				cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
					UidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}, GidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}}
				if os.Getuid() != 0 {
					cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
				} else {
					cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid), NoSetGroups: true}
				}
				var out bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &out
				err := cmd.Run()
				return out.String(), err
			}
			filterHasTeeth(t, box)
			allowed := append([]string{filepath.Join(dir, "hallmark"), "verify", filepath.Join(dir, "out", "hello")}, pin...)
			if out, err := box(allowed...); err != nil || !strings.Contains(out, "ALLOWED ") {
				t.Errorf("verify: %v\n%s", err, out)
			}
			// Its memory was written: this is the whole of verify, not a part.
			if seen, _ := filepath.Glob(filepath.Join(state, "hallmark", "checkpoints", "log-*.json")); len(seen) != 1 {
				t.Errorf("the checkpoint was not remembered: %v", seen)
			}
			denied := append([]string{filepath.Join(dir, "hallmark"), "verify", filepath.Join(dir, "out", "verdict.json")}, pin...)
			var exit *exec.ExitError
			if out, err := box(denied...); !errors.As(err, &exit) || exit.ExitCode() != 3 {
				t.Errorf("verify of another file: %v\n%s", err, out)
			}
			for _, args := range [][]string{{"replay", filepath.Join(dir, "out", "verdict.json")}, {"explain", filepath.Join(dir, "out", "hello")}} {
				if out, err := box(append(append([]string{filepath.Join(dir, "hallmark")}, args...), pin...)...); err != nil {
					t.Errorf("%s: %v\n%s", args[0], err, out)
				}
			}
			if uid == ordinary {
				if _, err := os.Stat(filepath.Join(dir, "nowhere")); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("verify made a home: %v", err)
				}
			}
		})
	}
}

// filterHasTeeth shows that the filter stops a program that opens or uses a
// socket, in every way there is, and nothing else; and that the same program
// does open one without it.
func filterHasTeeth(t *testing.T, box func(...string) (string, error)) {
	t.Helper()
	if out, err := box("filtered", "nothing"); err != nil || !strings.Contains(out, "ended: nothing") {
		t.Fatalf("the filter stops what opens no socket: %v\n%s", err, out)
	}
	for _, probe := range []string{"inet", "unix", "pair", "connect", "send", "uring"} {
		out, err := box("filtered", probe)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGSYS {
			t.Errorf("the filter does not stop %s: %v\n%s", probe, err, out)
		}
		if out, err := box("probe", probe); err != nil || !strings.Contains(out, "ended: "+probe) {
			t.Errorf("%s ends without the filter too, so that it shows nothing: %v\n%s", probe, err, out)
		}
	}
	out, err := box("filtered", "devices")
	if err != nil || strings.Count(out, ":") != 2 || !strings.Contains(out, "lo:") { // lo and "ended:"
		t.Errorf("the network namespace is not empty: %v\n%s", err, out)
	}
}
