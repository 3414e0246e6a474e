// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A service manager delegates a part of the version 2 hierarchy by giving its
// directory to a user. Groups with controllers can be made below it only where no
// process lives in the directory itself, so that ours moves one down.

// delegation finds the directory below which groups with limits can be made:
// the nearest one, from our own group upwards, that hands memory and pids down.
func delegation(root, self string) (string, bool) {
	own, ok := unifiedGroup(root, self)
	if !ok {
		return "", false
	}
	for dir := own; ; dir = filepath.Dir(dir) {
		if handsDown(dir) && unix.Access(dir, unix.W_OK) == nil {
			return dir, true
		}
		if dir == root || len(dir) <= len(root) {
			break
		}
	}
	return own, stepDown(own)
}

// unifiedGroup is our own directory in the version 2 hierarchy, if it has the
// controllers at all.
func unifiedGroup(root, self string) (string, bool) {
	b, err := os.ReadFile(self)
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			dir := filepath.Join(root, path.Clean("/"+p))
			have, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
			return dir, err == nil && bothOf(string(have))
		}
	}
	return "", false
}

func bothOf(list string) bool {
	f := strings.Fields(list)
	return slices.Contains(f, "memory") && slices.Contains(f, "pids")
}

func handsDown(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	return err == nil && bothOf(string(b))
}

// stepDown moves this process one group down and lets the controllers through,
// if our group is ours alone.
func stepDown(own string) bool {
	have, err := os.ReadFile(filepath.Join(own, "cgroup.controllers"))
	if err != nil || !bothOf(string(have)) {
		return false
	}
	procs, err := os.ReadFile(filepath.Join(own, "cgroup.procs"))
	if err != nil || strings.TrimSpace(string(procs)) != strconv.Itoa(os.Getpid()) {
		return false // others live here: moving them is not our business
	}
	leaf := filepath.Join(own, fmt.Sprintf("%s%d-self", groupPrefix, os.Getpid()))
	if err := os.Mkdir(leaf, 0o755); err != nil && !os.IsExist(err) {
		return false
	}
	if os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0) != nil {
		os.Remove(leaf)
		return false
	}
	want := "+memory +pids"
	if slices.Contains(strings.Fields(string(have)), "cpu") {
		want += " +cpu"
	}
	if os.WriteFile(filepath.Join(own, "cgroup.subtree_control"), []byte(want), 0) != nil {
		os.WriteFile(filepath.Join(own, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0) //nolint:errcheck // back to where we were, if that is let
		os.Remove(leaf)
		return false
	}
	return true
}

// ownGroup is where groups of a version 1 controller are made: below our own
// group, where limits of those above us hold too, or below the root where ours is
// not there to see (another cgroup namespace).
func ownGroup(root, controller, self string) string {
	base := filepath.Join(root, controller)
	b, err := os.ReadFile(self)
	if err != nil {
		return base
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && slices.Contains(strings.Split(f[1], ","), controller) {
			if dir := filepath.Join(base, path.Clean("/"+f[2])); isDir(dir) {
				return dir
			}
		}
	}
	return base
}

func isDir(p string) bool {
	st, err := os.Stat(p)
	return err == nil && st.IsDir()
}
