// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
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
	// Contents is the digest of the list of what it holds.
	Contents hallmark.Digest
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
	if w.Contents, err = h.keepCacheList(ctx, made); err != nil {
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
	// Until this is written nothing uses the cache.
	if err := (durable.Disk{}).Replace(h.ToolchainCacheList(), []byte(key+" "+string(w.Contents)+"\n"), 0o600); err != nil {
		return Warmed{}, fmt.Errorf("naming the contents of the cache: %w", err)
	}
	return w, nil
}

// maxCacheList bounds the list of a cache: all of the standard library makes some
// thousand files.
const maxCacheList = 64 << 20

// keepCacheList keeps the list of what a cache holds, and returns its digest. It
// lies among the blobs, away from the cache, and names each file with its digest:
// a cache that was changed afterwards is told by every file that a build reads.
func (h *Home) keepCacheList(ctx context.Context, dir string) (hallmark.Digest, error) {
	held, err := digestsBelow(dir)
	if err != nil {
		return "", fmt.Errorf("listing the cache: %w", err)
	}
	var list bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(held)) {
		fmt.Fprintf(&list, "%s %s\n", held[name], name)
	}
	d, err := h.stores.blobs.Put(ctx, list.Bytes())
	if err != nil {
		return "", fmt.Errorf("keeping the list of the cache: %w", err)
	}
	return d, nil
}

// cacheList reads the list of the cache for a toolchain; ok is false where the
// home names none.
func (h *Home) cacheList(ctx context.Context, key string) (held map[string]hallmark.Digest, list hallmark.Digest, ok bool, err error) {
	b, err := readLimited(h.ToolchainCacheList(), 4096)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", false, nil
	}
	if err != nil {
		return nil, "", false, fmt.Errorf("reading %s: %w", h.ToolchainCacheList(), err)
	}
	of, named, _ := strings.Cut(strings.TrimSuffix(string(b), "\n"), " ")
	list = hallmark.Digest(named)
	if err := list.Check(); err != nil {
		return nil, "", false, hallmark.WithHint(hallmark.Errorf(hallmark.KindInvalid, "reading %s: %w", h.ToolchainCacheList(), err), "hallmark cache warm makes the cache again")
	}
	if of != key {
		return nil, "", false, nil
	}
	raw, err := h.stores.blobs.Get(ctx, list)
	if err == nil && len(raw) > maxCacheList {
		err = fmt.Errorf("%d bytes, more than %d", len(raw), maxCacheList)
	}
	if err != nil {
		return nil, "", false, hallmark.WithHint(hallmark.Errorf(hallmark.KindInvalid, "reading the list of the toolchain cache: %w", err), "hallmark cache warm makes the cache again")
	}
	held = map[string]hallmark.Digest{}
	for line := range strings.Lines(string(raw)) {
		d, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if !ok || hallmark.Digest(d).Check() != nil || name == "" {
			return nil, "", false, hallmark.Errorf(hallmark.KindInvalid, "reading the list of the toolchain cache %s: %.80q", list, line)
		}
		held[name] = hallmark.Digest(d)
	}
	return held, list, true, nil
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

// warmed is a cache that a build uses.
type warmed struct {
	dir  string                     // empty: there is none
	held map[string]hallmark.Digest // what it held when it was made, by path below dir
	list hallmark.Digest            // of the list that says so
}

// warmedCache returns the cache for the toolchain as it is now, or none where the
// home has none of which it knows what it held. It stays until release.
func (h *Home) warmedCache(ctx context.Context) (w warmed, release func(), err error) {
	release = func() {}
	if _, err := os.Stat(h.ToolchainCache()); err != nil {
		return w, release, nil // nobody made one
	}
	root, err := toolchainRoot()
	if err != nil {
		return w, release, nil // nothing to cache for
	}
	key, err := toolchainKey(root)
	if err != nil {
		return w, release, err
	}
	held, list, ok, err := h.cacheList(ctx, key)
	if err != nil || !ok {
		return w, release, err
	}
	dir := filepath.Join(h.ToolchainCache(), key)
	f, err := os.Open(dir)
	if err != nil {
		return w, release, nil // made for another toolchain
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		f.Close()
		return w, release, nil // it is being removed
	}
	return warmed{dir: dir, held: held, list: list}, func() { f.Close() }, nil
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
