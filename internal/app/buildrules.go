// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/toolchain"
)

// maxRulesFile bounds a file of build rules.
const maxRulesFile = 1 << 20

// ReadBuild reads build rules, and inventories of tools given as NAME=FILE, as a
// change of the policy. Without a file of rules the ones in force get the
// inventories. The inventories are kept in the home, where builds find them by
// their digests.
func ReadBuild(ctx context.Context, home, file string, inventories []string) ([2]string, error) {
	if err := checkHome(home); err != nil {
		return [2]string{}, err
	}
	st, err := openStores(Layout{home})
	if err != nil {
		return [2]string{}, err
	}
	defer st.close()
	given := map[string]hallmark.Digest{}
	for _, arg := range inventories {
		name, path, ok := strings.Cut(arg, "=")
		if !ok || name == "" || path == "" || given[name] != "" {
			return [2]string{}, hallmark.Errorf(hallmark.KindUsage, "--inventory %q: want NAME=FILE, each name once", arg)
		}
		raw, err := readLimited(path, maxPolicyFile)
		if err != nil {
			return [2]string{}, hallmark.Errorf(hallmark.KindInvalid, "reading inventory %s: %w", name, err)
		}
		if _, err := build.ParseInventory(path, raw); err != nil {
			return [2]string{}, err
		}
		if given[name], err = st.blobs.Put(ctx, raw); err != nil {
			return [2]string{}, fmt.Errorf("keeping inventory %s: %w", name, err)
		}
	}
	raw, name := []byte(nil), file
	if file != "" {
		raw, err = readLimited(file, maxRulesFile)
	} else {
		name = "the build rules in force"
		raw, err = rulesInForce(home)
	}
	if err != nil {
		return [2]string{}, hallmark.Errorf(hallmark.KindInvalid, "reading build rules: %w", err)
	}
	rules, err := policy.ParseBuildRules(name, raw, given)
	if err == nil && file != "" {
		err = checkRequesters(home, file, rules)
	}
	if err != nil {
		return [2]string{}, err
	}
	text, err := rules.YAML()
	return [2]string{policy.BuildSection, string(text)}, err
}

// checkRequesters refuses new rules for somebody whom the policy does not know.
func checkRequesters(home, file string, rules *policy.BuildRules) error {
	h, err := readHome(home)
	if err != nil {
		return err
	}
	defer h.Close()
	err = rules.CheckRequesters(func(name string) bool {
		return h.document.Access != nil && slices.ContainsFunc(h.document.Access.Principals, func(p access.Principal) bool { return p.Name == name })
	})
	if err == nil {
		return nil
	}
	return hallmark.WithHint(hallmark.Errorf(hallmark.KindInvalid, "%s: %w", file, err), hallmark.HintOf(err))
}

func rulesInForce(home string) ([]byte, error) {
	h, err := readHome(home)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	if h.document.Build == nil {
		return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindInvalid, "the policy has no rules for builds"), "hallmark policy set --build FILE")
	}
	return h.document.Build.YAML()
}

// BuildRules returns the build rules of a home as a file to edit: those in force,
// or the ones that a new home begins with where there are none.
func BuildRules(home string) (text []byte, inForce bool, err error) {
	h, err := readHome(home)
	if err != nil {
		return nil, false, err
	}
	defer h.Close()
	rules := h.document.Build
	if rules == nil {
		rules = policy.FirstBuildRules(nil)
	}
	text, err = rules.YAML()
	return text, h.document.Build != nil, err
}

// ToolInventory lists every program that a sandbox on this machine sees, and every
// file of compiled code beside them, with their digests: what an administrator
// looks over and approves.
func ToolInventory(ctx context.Context) (build.Inventory, error) {
	inv := build.Inventory{APIVersion: "hallmark/v1", Kind: "ToolInventory", Platform: platform()["os"] + ", host", Libraries: []build.InventoryProgram{}}
	seen := map[string]bool{}
	for _, dir := range sandbox.HostToolchain() {
		root, err := filepath.EvalSymlinks(dir)
		if err != nil {
			return inv, fmt.Errorf("listing tools: %w", err)
		}
		if err := addTools(ctx, &inv, root, seen); err != nil {
			return inv, err
		}
	}
	for _, l := range [][]build.InventoryProgram{inv.Programs, inv.Libraries} {
		slices.SortFunc(l, func(a, b build.InventoryProgram) int { return strings.Compare(string(a.Path), string(b.Path)) })
	}
	return inv, nil
}

func addTools(ctx context.Context, inv *build.Inventory, root string, seen map[string]bool) error {
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
			return nil // what this user can't read, its builds can't run
		}
		if err != nil {
			return fmt.Errorf("listing tools: %w", err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !d.Type().IsRegular() || seen[p] {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil //nolint:nilerr // gone meanwhile
		}
		seen[p] = true
		return addTool(inv, p, info)
	})
}

// addTool adds a file that is a program or compiled code.
func addTool(inv *build.Inventory, p string, info fs.FileInfo) error {
	program := info.Mode()&0o111 != 0
	if !program && (info.Size() < 8 || isText(p)) {
		return nil
	}
	f, err := os.Open(p)
	if errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading tool: %w", err)
	}
	defer f.Close()
	if !program {
		var head [8]byte
		if _, err := f.ReadAt(head[:], 0); err != nil || !toolchain.IsCode(head[:]) {
			return nil //nolint:nilerr // shorter by now
		}
	}
	digest, _, err := hallmark.DigestFrom(f)
	if err != nil {
		return fmt.Errorf("reading tool %s: %w", p, err)
	}
	entry := build.InventoryProgram{Path: build.Raw(p), Digest: digest}
	if program {
		inv.Programs = append(inv.Programs, entry)
	} else {
		inv.Libraries = append(inv.Libraries, entry)
	}
	return nil
}

// isText reports whether a name is that of text or pictures, which are most files
// of a platform and are not opened. Compiled code under such a name is in no
// inventory, and is refused when a build reads it.
func isText(name string) bool {
	switch filepath.Ext(name) {
	case ".c", ".cc", ".cpp", ".css", ".go", ".gz", ".h", ".hpp", ".html", ".js", ".json", ".map", ".md", ".mjs", ".mo", ".pem", ".pl", ".pm", ".png", ".py", ".pyc", ".rst", ".s", ".svg", ".ts", ".txt", ".xml", ".yaml":
		return true
	}
	return false
}
