// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sbom

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	cpb "github.com/google/osv-scalibr/binary/proto/config_go_proto"
	"github.com/google/osv-scalibr/extractor"
	"github.com/google/osv-scalibr/extractor/filesystem"
	"github.com/google/osv-scalibr/extractor/filesystem/language/golang/gobinary"
	"github.com/google/osv-scalibr/extractor/filesystem/language/javascript/packagejson"
	"github.com/google/osv-scalibr/extractor/filesystem/language/python/wheelegg"
	"github.com/google/osv-scalibr/extractor/filesystem/os/apk"
	apkmeta "github.com/google/osv-scalibr/extractor/filesystem/os/apk/metadata"
	"github.com/google/osv-scalibr/extractor/filesystem/os/dpkg"
	dpkgmeta "github.com/google/osv-scalibr/extractor/filesystem/os/dpkg/metadata"
	"github.com/google/osv-scalibr/extractor/filesystem/simplefileapi"

	"github.com/hallmark-sc/hallmark"
)

// ImageJobName names the worker job that reads the tree of an image.
const ImageJobName = "sbom-image"

// installed are the readers of what is installed in a tree.
func installed() ([]filesystem.Extractor, error) {
	var out []filesystem.Extractor
	for _, make := range []func(*cpb.PluginConfig) (filesystem.Extractor, error){dpkg.New, apk.New, gobinary.New, packagejson.New, wheelegg.New} {
		e, err := make(&cpb.PluginConfig{})
		if err != nil {
			return nil, fmt.Errorf("making a reader of installed packages: %w", err)
		}
		out = append(out, e)
	}
	return out, nil
}

// unreadable says why what a file says about installed packages is not known
// here. A package database without a reader hides everything it names.
func unreadable(p string) string {
	const database = "this package database can't be read yet"
	switch {
	case strings.HasPrefix(p, "var/lib/rpm/") || strings.HasPrefix(p, "usr/lib/sysimage/rpm/"):
		if slices.Contains([]string{"Packages", "Packages.db", "rpmdb.sqlite"}, path.Base(p)) {
			return database
		}
	case strings.HasPrefix(p, "var/lib/pacman/local/") && path.Base(p) == "desc", strings.HasPrefix(p, "var/db/pkg/") && path.Base(p) == "PF":
		return database
	case slices.Contains([]string{".jar", ".war", ".ear"}, path.Ext(p)):
		return "Java archives can't be read yet"
	}
	return ""
}

// ImageWorkerMain is the worker: the tree of the image is at /source.
func ImageWorkerMain(args []string, stdout io.Writer) error {
	if len(args) != 0 {
		return fmt.Errorf("sbom-image: want no argument")
	}
	readers, err := installed()
	if err != nil {
		return err
	}
	lists, err := manifests()
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(sourceDir) // links of the image lead nowhere outside it
	if err != nil {
		return fmt.Errorf("sbom-image: %w", err)
	}
	defer root.Close()
	inv, cov, err := readImage(root.FS(), readers, lists)
	if err != nil {
		return fmt.Errorf("sbom-image: reading the image: %w", err)
	}
	extra, err := json.Marshal(inv)
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(map[string]any{"findings": []hallmark.Finding{}, "coverage": cov, "canary": canary(lists), "extra": json.RawMessage(extra)})
}

func readImage(root fs.FS, readers []filesystem.Extractor, lists map[string]filesystem.Extractor) (Inventory, hallmark.Coverage, error) {
	inv := Inventory{Components: []Component{}}
	var cov hallmark.Coverage
	err := fs.WalkDir(root, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			// A directory that only root may read, such as /root, is no place of
			// packages that others run; but it is said.
			cov.Missed = append(cov.Missed, fmt.Sprintf("%s: %s", p, err))
			return fs.SkipDir
		}
		if !d.Type().IsRegular() {
			return nil
		}
		cov.Scanned++
		if why := unreadable(p); why != "" {
			cov.Missed = append(cov.Missed, p+": "+why)
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		use := slices.DeleteFunc(slices.Clone(readers), func(e filesystem.Extractor) bool { return !e.FileRequired(simplefileapi.New(p, info)) })
		if r, ok := lists[path.Base(p)]; ok && path.Base(p) != "go.mod" { // lock files that were copied along
			use = append(use, r)
		}
		for _, e := range use {
			more, err := extract(root, e, p, 4<<30)
			if err != nil {
				cov.Missed = append(cov.Missed, fmt.Sprintf("%s: %s", p, err))
			}
			inv.Components = append(inv.Components, more...)
		}
		return nil
	})
	inv.sort()
	slices.Sort(cov.Missed)
	cov.Ecosystems = inv.Ecosystems()
	inv.Missed = cov.Missed
	return inv, cov, err
}

// advisoryName is the name under which advisories of a distribution list a
// package: that of its source.
func advisoryName(p *extractor.Package) string {
	switch m := p.Metadata.(type) {
	case *dpkgmeta.Metadata:
		if m.SourceName != "" {
			return m.SourceName
		}
	case *apkmeta.Metadata:
		if m.OriginName != "" {
			return m.OriginName
		}
	}
	return p.Name
}
