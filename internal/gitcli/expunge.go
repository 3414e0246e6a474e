// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package gitcli

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// Shown lists which of the objects some reference still reaches.
func Shown(ctx context.Context, dir string, objects []string) ([]string, error) {
	return pick(ctx, dir, objects, "rev-list", "--objects", "--no-object-names", "--all")
}

// Has lists which of the objects the repository has at all.
func Has(ctx context.Context, dir string, objects []string) ([]string, error) {
	return pick(ctx, dir, objects, "cat-file", "--batch-all-objects", "--batch-check=%(objectname)")
}

// pick runs a command that lists objects and keeps those asked for.
func pick(ctx context.Context, dir string, objects []string, args ...string) ([]string, error) {
	var out []string
	err := eachLine(ctx, dir, func(id string) error {
		if slices.Contains(objects, id) {
			out = append(out, id)
		}
		return nil
	}, args...)
	slices.Sort(out)
	return slices.Compact(out), err
}

func eachLine(ctx context.Context, dir string, fn func(string) error, args ...string) error {
	cmd := command(ctx, append([]string{"--git-dir=" + dir}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("listing objects of %s: %w", dir, err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting git: %w", err)
	}
	lines := bufio.NewScanner(out)
	for err == nil && lines.Scan() {
		err = fn(lines.Text())
	}
	if err == nil {
		err = lines.Err()
	}
	if err != nil {
		cmd.Process.Kill() // it may wait for somebody to read; its end is awaited below
	}
	if werr := cmd.Wait(); err == nil && werr != nil {
		err = hallmark.Errorf(hallmark.KindInvalid, "listing objects of %s: %w: %s", dir, werr, firstLine(stderr.String()))
	}
	return err
}

// Expunge takes objects out of a repository for good and keeps all others, also
// those that no reference reaches. Nothing else may work in the repository. The
// others are in a new pack, on the disk, before anything is removed; whoever is
// killed in between calls it again.
func Expunge(ctx context.Context, dir string, objects []string) error {
	for _, id := range objects {
		if !isObjectName(id) {
			return hallmark.Errorf(hallmark.KindUsage, "object %.80q: want a full object id", id)
		}
	}
	var rest bytes.Buffer
	err := eachLine(ctx, dir, func(id string) error {
		if !slices.Contains(objects, id) {
			rest.WriteString(id + "\n")
		}
		return nil
	}, "cat-file", "--batch-all-objects", "--batch-check=%(objectname)")
	if err != nil {
		return err
	}
	store := filepath.Join(dir, "objects")
	kept := ""
	if rest.Len() > 0 {
		cmd := command(ctx, "--git-dir="+dir, "-c", "core.fsync=all", "pack-objects", "-q", "--no-reuse-delta", filepath.Join(store, "pack", "pack"))
		cmd.Stdin = &rest
		name, err := output(cmd)
		if err != nil {
			return fmt.Errorf("packing what is kept of %s: %w", dir, err)
		}
		kept = "pack-" + strings.TrimSpace(string(name))
		if _, err := output(command(ctx, "--git-dir="+dir, "verify-pack", filepath.Join(store, "pack", kept+".idx"))); err != nil {
			return fmt.Errorf("checking what is kept of %s: %w", dir, err)
		}
	}
	if err := removeOthers(store, kept); err != nil {
		return hallmark.Errorf(hallmark.KindInternal, "removing objects of %s: %w", dir, err)
	}
	if still, err := Has(ctx, dir, objects); err != nil || len(still) > 0 {
		return hallmark.Errorf(hallmark.KindInternal, "%s still has %v: %w", dir, still, err)
	}
	return nil
}

// removeOthers removes loose objects, and every pack but one, and what was worked
// out from them.
func removeOthers(store, kept string) error {
	entries, err := os.ReadDir(store)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if loose := len(e.Name()) == 2 && strings.Trim(e.Name(), "0123456789abcdef") == ""; loose {
			if err := os.RemoveAll(filepath.Join(store, e.Name())); err != nil {
				return err
			}
		}
	}
	packs, err := os.ReadDir(filepath.Join(store, "pack"))
	if err != nil {
		return err
	}
	for _, p := range packs {
		if base, _, _ := strings.Cut(p.Name(), "."); base != kept {
			if err := os.RemoveAll(filepath.Join(store, "pack", p.Name())); err != nil {
				return err
			}
		}
	}
	for _, name := range []string{"info/packs", "info/commit-graph", "info/commit-graphs"} {
		if err := os.RemoveAll(filepath.Join(store, name)); err != nil {
			return err
		}
	}
	return nil
}
