// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
)

// The toolchain cache holds what the Go command compiles of the standard library:
// the one part of a build that is the same in all of them. It is made by the
// control plane in a sandbox that holds nothing but the toolchain, so that no
// build ever has a word in it, and every build reads it under a layer of its own.
// What a build compiled is never taken over: an entry of the Go build cache says
// which output belongs to which inputs, and nobody but the builder itself could
// check that.

// Warmed is a toolchain cache that was made.
type Warmed struct {
	Key     string // of the toolchain
	Entries int
	Bytes   int64
}

// standard are import paths of the standard library: their first element has no dot.
var standard = regexp.MustCompile(`^[a-z][a-z0-9]*(/[a-z0-9]+)*(/\.\.\.)?$`)

// warmWall bounds the compiling of the standard library.
const warmWall = 30 * time.Minute

// WarmCache compiles packages of the standard library (all of it when none is
// named) for the builds of a home.
func WarmCache(ctx context.Context, home string, packages []string) (Warmed, error) {
	if len(packages) == 0 {
		packages = []string{"std"}
	}
	for _, p := range packages {
		if !standard.MatchString(p) {
			return Warmed{}, hallmark.Errorf(hallmark.KindUsage, "%q is no package of the standard library", p)
		}
	}
	h, err := readHome(home)
	if err != nil {
		return Warmed{}, err
	}
	defer h.Close()
	root, err := toolchainRoot()
	if err != nil {
		return Warmed{}, err
	}
	key, err := toolchainKey(root)
	if err != nil {
		return Warmed{}, err
	}
	store := h.ToolchainCache()
	if err := durable.MakeDir(store, 0o700); err != nil {
		return Warmed{}, hallmark.Errorf(hallmark.KindInvalid, "making %s: %w", store, err)
	}
	made, err := os.MkdirTemp(store, "making-")
	if err != nil {
		return Warmed{}, hallmark.Errorf(hallmark.KindInvalid, "making a cache: %w", err)
	}
	defer durable.RemoveTree(made)
	if err := compileStandard(ctx, h.params, made, packages); err != nil {
		return Warmed{}, err
	}
	// While it compiled the toolchain must have stayed what it was.
	if again, err := toolchainKey(root); err != nil || again != key {
		return Warmed{}, errors.Join(hallmark.Errorf(hallmark.KindUnavailable, "the toolchain changed meanwhile"), err)
	}
	w := Warmed{Key: key}
	if w.Entries, w.Bytes, err = admitCache(filepath.Join(made, "go")); err != nil {
		return Warmed{}, err
	}
	if err := os.Chmod(made, 0o755); err != nil {
		return Warmed{}, err
	}
	if err := dropCaches(store, made); err != nil {
		return Warmed{}, err
	}
	if err := os.Rename(made, filepath.Join(store, key)); err != nil {
		return Warmed{}, hallmark.Errorf(hallmark.KindUnavailable, "putting the cache in its place (a build may use the old one): %w", err)
	}
	return w, nil
}

// compileStandard fills a cache directory, with and without -trimpath, which
// gives other outputs.
func compileStandard(ctx context.Context, params policy.Parameters, dir string, packages []string) error {
	box, err := sandbox.New(sandbox.Config{Clock: now})
	if err != nil {
		return err
	}
	r := &room{box: box, hostID: sandbox.HostID(), params: params}
	if err := sandbox.Give(dir, r.hostID); err != nil {
		return err
	}
	errs := &bounded{max: 1 << 20}
	names := strings.Join(packages, " ")
	rep, err := box.RunAs(ctx, r.hostID, sandbox.Spec{
		Argv: []string{"sh", "-e", "-c", "go build " + names + "; go build -trimpath " + names}, Env: build.Environment(sandbox.Path(), time.Unix(0, 0), nil), Dir: "/tmp",
		Stdout: errs, Stderr: errs, Limits: r.limits(warmWall), Mounts: []sandbox.Mount{{Source: dir, Target: build.CacheDir, Writable: true}},
	})
	if err != nil {
		return err
	}
	if rep.ExitCode != 0 || rep.LimitHit != "" || len(rep.Lost) > 0 || len(rep.Egress) > 0 {
		return hallmark.Errorf(hallmark.KindUnavailable, "compiling %s: exit code %d %s: %s", names, rep.ExitCode, rep.LimitHit, errs.b)
	}
	return sandbox.Take(dir)
}

var (
	cacheName  = regexp.MustCompile(`^([0-9a-f]{64})-([ad])$`)
	cacheEntry = regexp.MustCompile(`^v1 ([0-9a-f]{64}) ([0-9a-f]{64}) +([0-9]+) +[0-9]+\n$`)
)

// admitCache checks that a Go build cache is what its names say: data is named by
// its SHA-256, and an entry names data that is there. Anything else is removed.
func admitCache(dir string) (entries int, size int64, err error) {
	outputs := map[string]int64{}
	var actions [][3]string
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Chmod(p, 0o755)
		}
		m := cacheName.FindStringSubmatch(d.Name())
		if m == nil || !d.Type().IsRegular() || filepath.Base(filepath.Dir(p)) != m[1][:2] {
			return os.Remove(p)
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if m[2] == "d" {
			if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != m[1] {
				return hallmark.Errorf(hallmark.KindInvalid, "%s is not what its name says", p)
			}
			outputs[m[1]] = int64(len(b))
			size += int64(len(b))
		} else {
			e := cacheEntry.FindStringSubmatch(string(b))
			if e == nil || e[1] != m[1] {
				return hallmark.Errorf(hallmark.KindInvalid, "%s is no entry of its name", p)
			}
			actions = append(actions, [3]string{p, e[2], e[3]})
		}
		return os.Chmod(p, 0o444)
	})
	if err != nil {
		return 0, 0, fmt.Errorf("checking the cache: %w", err)
	}
	for _, a := range actions {
		if n, ok := outputs[a[1]]; !ok || fmt.Sprint(n) != a[2] {
			return 0, 0, hallmark.Errorf(hallmark.KindInvalid, "checking the cache: %s names an output that is not there", a[0])
		}
	}
	return len(actions), size, nil
}

// dropCaches removes caches that no build uses.
func dropCaches(store, but string) error {
	all, err := os.ReadDir(store)
	if err != nil {
		return fmt.Errorf("listing %s: %w", store, err)
	}
	for _, d := range all {
		dir := filepath.Join(store, d.Name())
		if dir == but {
			continue
		}
		f, err := os.Open(dir)
		if err != nil {
			return fmt.Errorf("looking at an old cache: %w", err)
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = durable.RemoveTree(dir)
		}
		f.Close()
		if err != nil {
			return fmt.Errorf("removing an old cache: %w", err)
		}
	}
	return nil
}

// warmedCache returns the cache for the toolchain as it is now, or "" where there
// is none. It stays until release.
func (h *Home) warmedCache() (dir string, release func(), err error) {
	release = func() {}
	if _, err := os.Stat(h.ToolchainCache()); err != nil {
		return "", release, nil // nobody made one
	}
	root, err := toolchainRoot()
	if err != nil {
		return "", release, nil // nothing to cache for
	}
	key, err := toolchainKey(root)
	if err != nil {
		return "", release, err
	}
	dir = filepath.Join(h.ToolchainCache(), key)
	f, err := os.Open(dir)
	if err != nil {
		return "", release, nil // made for another toolchain
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		f.Close()
		return "", release, nil // it is being removed
	}
	return dir, func() { f.Close() }, nil
}

// layDirectories makes the directories of a cache in the layer that a build writes
// to: the kernel would have to give it copies of ours, whose owner does not exist
// inside.
func layDirectories(cache, upper string, hostID int) error {
	err := filepath.WalkDir(cache, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() || p == cache {
			return err
		}
		rel, err := filepath.Rel(cache, p)
		if err != nil {
			return err
		}
		return os.Mkdir(filepath.Join(upper, rel), 0o755)
	})
	if err != nil {
		return fmt.Errorf("laying the directories of the cache: %w", err)
	}
	return sandbox.Give(upper, hostID)
}

func toolchainRoot() (string, error) {
	p, err := sandbox.Find("go")
	if err != nil {
		return "", err
	}
	if p, err = filepath.EvalSymlinks(p); err != nil {
		return "", hallmark.Errorf(hallmark.KindUnavailable, "finding the Go toolchain: %w", err)
	}
	return filepath.Dir(filepath.Dir(p)), nil
}

// toolchainKey names the state of every file of a toolchain by what only the
// kernel can set: inode and time of change. The Go command itself tells compilers
// of one release apart by their version alone.
func toolchainKey(root string) (string, error) {
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\n", root)
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return hallmark.Errorf(hallmark.KindInternal, "no status of %s", p)
		}
		fmt.Fprintf(sum, "%q %o %d %d %d %d %d\n", p, st.Mode, st.Size, st.Dev, st.Ino, st.Ctim.Sec, st.Ctim.Nsec)
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("looking at the toolchain %s: %w", root, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
