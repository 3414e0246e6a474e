// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sbom

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx/v2/common"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"

	"github.com/hallmark-sc/hallmark"
)

// SPDX writes an inventory as SPDX 2.3 JSON. Equal inputs give equal bytes.
func SPDX(inv Inventory, rev hallmark.Revision, artifacts []hallmark.Artifact, at time.Time) ([]byte, error) {
	doc := &spdx.Document{
		SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: "DOCUMENT", DocumentName: rev.Repository + "@" + rev.Commit,
		DocumentNamespace: "https://hallmark-sc.github.io/spdx/" + identity(inv, rev, artifacts).Hex(),
		CreationInfo:      &spdx.CreationInfo{Created: at.UTC().Format(time.RFC3339), Creators: []common.Creator{{CreatorType: "Tool", Creator: "hallmark"}}},
	}
	source := &spdx.Package{
		PackageName: rev.Repository, PackageSPDXIdentifier: "Package-source", PackageVersion: rev.Commit,
		PackageDownloadLocation: "git+" + rev.Repository + "@" + rev.Commit, FilesAnalyzed: false, IsFilesAnalyzedTagPresent: true,
	}
	doc.Packages = append(doc.Packages, source)
	relate := func(a, kind, b string) {
		doc.Relationships = append(doc.Relationships, &spdx.Relationship{RefA: common.MakeDocElementID("", a), RefB: common.MakeDocElementID("", b), Relationship: kind})
	}
	relate("DOCUMENT", "DESCRIBES", "Package-source")
	for i, a := range artifacts {
		id := fmt.Sprintf("Package-artifact-%d", i)
		doc.Packages = append(doc.Packages, &spdx.Package{
			PackageName: a.Name, PackageSPDXIdentifier: common.ElementID(id), PackageDownloadLocation: "NOASSERTION", FilesAnalyzed: false, IsFilesAnalyzedTagPresent: true,
			PackageChecksums: []common.Checksum{{Algorithm: common.SHA256, Value: a.Digest.Hex()}},
		})
		relate("DOCUMENT", "DESCRIBES", id)
		relate(id, "GENERATED_FROM", "Package-source")
	}
	for i, c := range inv.Components {
		id := fmt.Sprintf("Package-%d", i)
		p := &spdx.Package{
			PackageName: c.Name, PackageSPDXIdentifier: common.ElementID(id), PackageVersion: c.Version, PackageDownloadLocation: "NOASSERTION",
			FilesAnalyzed: false, IsFilesAnalyzedTagPresent: true, PackageSourceInfo: "named by " + c.Location,
		}
		if c.PURL != "" {
			p.PackageExternalReferences = []*spdx.PackageExternalReference{{Category: "PACKAGE-MANAGER", RefType: "purl", Locator: c.PURL}}
		}
		doc.Packages = append(doc.Packages, p)
		relate("Package-source", "DEPENDS_ON", id)
	}
	var b bytes.Buffer
	if err := spdxjson.Write(doc, &b, spdxjson.Indent(" ")); err != nil {
		return nil, fmt.Errorf("encoding SPDX: %w", err)
	}
	return b.Bytes(), nil
}

// CycloneDX writes an inventory as CycloneDX 1.6 JSON. Equal inputs give equal
// bytes.
func CycloneDX(inv Inventory, rev hallmark.Revision, artifacts []hallmark.Artifact, at time.Time) ([]byte, error) {
	bom := cdx.NewBOM()
	id := identity(inv, rev, artifacts).Hex()
	bom.SerialNumber = fmt.Sprintf("urn:uuid:%s-%s-5%s-8%s-%s", id[:8], id[8:12], id[13:16], id[17:20], id[20:32])
	main := cdx.Component{BOMRef: "source", Type: cdx.ComponentTypeApplication, Name: rev.Repository, Version: rev.Commit}
	bom.Metadata = &cdx.Metadata{
		Timestamp: at.UTC().Format(time.RFC3339), Component: &main,
		Tools: &cdx.ToolsChoice{Components: &[]cdx.Component{{Type: cdx.ComponentTypeApplication, Name: "hallmark"}}},
	}
	components := []cdx.Component{}
	var refs []string
	for _, a := range artifacts {
		components = append(components, cdx.Component{
			BOMRef: "artifact:" + a.Name, Type: cdx.ComponentTypeFile, Name: a.Name, Hashes: &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: a.Digest.Hex()}},
		})
	}
	for i, c := range inv.Components {
		ref := fmt.Sprintf("%d:%s", i, c.PURL)
		components = append(components, cdx.Component{BOMRef: ref, Type: cdx.ComponentTypeLibrary, Name: c.Name, Version: c.Version, PackageURL: c.PURL})
		refs = append(refs, ref)
	}
	bom.Components = &components
	bom.Dependencies = &[]cdx.Dependency{{Ref: "source", Dependencies: &refs}}
	var b bytes.Buffer
	enc := cdx.NewBOMEncoder(&b, cdx.BOMFileFormatJSON).SetPretty(true)
	if err := enc.EncodeVersion(bom, cdx.SpecVersion1_6); err != nil {
		return nil, fmt.Errorf("encoding CycloneDX: %w", err)
	}
	return b.Bytes(), nil
}

func identity(inv Inventory, rev hallmark.Revision, artifacts []hallmark.Artifact) hallmark.Digest {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n", rev.Repository, rev.Commit)
	for _, a := range artifacts {
		fmt.Fprintf(&b, "%s %s\n", a.Digest, a.Name)
	}
	for _, c := range inv.Components {
		fmt.Fprintf(&b, "%s %s\n", c.PURL, c.Location)
	}
	return hallmark.DigestOf([]byte(b.String()))
}
