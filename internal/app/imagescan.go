// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/image"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/sbom"
	"github.com/hallmark-sc/hallmark/internal/scan"
	"github.com/hallmark-sc/hallmark/internal/scan/secrets"
	"github.com/hallmark-sc/hallmark/internal/scan/vuln"
)

// imageScanner implements pipeline.ImageScanner: secrets in every file of every
// layer, the base's and hidden ones too, and advisories for what is installed.
type imageScanner struct {
	scanners
	blobs pipeline.Blobs
}

func (s imageScanner) Fingerprint(context.Context) (hallmark.Digest, error) {
	advisories, err := vuln.Fingerprint(s.home.Advisories())
	return hallmark.DigestOf([]byte("image-v1 " + string(advisories) + string(secrets.RuleDigest()))), err
}

// variant is one image of one platform.
type variant struct {
	name string
	img  *image.Image
}

func (s imageScanner) variants(ctx context.Context, images []pipeline.ImageOutput) ([]variant, error) {
	var out []variant
	for _, o := range images {
		for _, name := range o.Platforms {
			p, err := image.ParsePlatform(name)
			if err != nil {
				return nil, err
			}
			img, err := image.Open(blobsOf{ctx, s.blobs}, o.Subject.Digest, p)
			if err != nil {
				return nil, fmt.Errorf("reading image %s for %s: %w", o.Name, name, err)
			}
			out = append(out, variant{o.Name + " for " + name, img})
		}
	}
	return out, nil
}

func (s imageScanner) ScanImages(ctx context.Context, in pipeline.Input, images []pipeline.ImageOutput) (pipeline.ScanOutput, error) {
	rec := hallmark.CheckRecord{Check: pipeline.ImageCheck, Revision: in.Revision, StartedOn: now(), Tool: s.tool}
	all, err := s.variants(ctx, images)
	if err != nil {
		return pipeline.ScanOutput{}, err
	}
	p := s.home.params
	t := scan.Thresholds{Severity: p.Severity, Confidence: p.Confidence}
	content := layerObjects{ctx, blobsOf{ctx, s.blobs}, all}
	first, found, err := secrets.Scan(ctx, secrets.Config{Worker: s.room, Key: s.key, Thresholds: t, Clock: now, Tool: s.tool, Wall: scanWall}, in.Revision, content)
	if err != nil {
		return pipeline.ScanOutput{}, err
	}
	inv, cov, reasons, err := s.installed(ctx, all)
	if err != nil {
		return pipeline.ScanOutput{}, err
	}
	raw, err := json.Marshal(inv)
	if err != nil {
		return pipeline.ScanOutput{}, fmt.Errorf("encoding the inventory: %w", err)
	}
	second, known, err := vuln.Scan(ctx, vuln.Config{Worker: s.room, Store: s.home.Advisories(), MaxAge: p.AdvisoriesMaxAge, Thresholds: t, Clock: now, Tool: s.tool, Wall: scanWall}, in.Revision, raw)
	if err != nil {
		return pipeline.ScanOutput{}, err
	}
	rec.FinishedOn = now()
	findings := slices.Concat(found, known)
	for i := range findings {
		findings[i].Check = pipeline.ImageCheck
	}
	join(&rec, first, second)
	rec.Coverage.Ecosystems, rec.Coverage.Scanned = cov.Ecosystems, rec.Coverage.Scanned+cov.Scanned
	for _, r := range reasons {
		rec.Outcome = worst(rec.Outcome, hallmark.Errored)
		rec.Reasons = append(rec.Reasons, r)
	}
	whole, err := merged(in.Inventory, inv)
	return pipeline.ScanOutput{Record: rec, Findings: findings, Inventory: whole}, err
}

// join makes one record of several: the worst outcome, and all that was said.
func join(rec *hallmark.CheckRecord, parts ...hallmark.CheckRecord) {
	rec.Outcome, rec.Coverage = hallmark.Pass, &hallmark.Coverage{}
	counts := map[hallmark.Count]int{}
	for _, p := range parts {
		rec.Outcome = worst(rec.Outcome, p.Outcome)
		rec.Data = append(rec.Data, p.Data...)
		for _, r := range p.Reasons {
			r.Check = rec.Check
			if r.Code == hallmark.CodeSecretFound {
				r.Fix = "revoke the credential, and take the file out of the image: a layer that hides a file still holds it"
			}
			rec.Reasons = append(rec.Reasons, r)
		}
		for _, c := range p.Counts {
			counts[hallmark.Count{Severity: c.Severity, Confidence: c.Confidence}] += c.Count
		}
		if p.Coverage != nil {
			rec.Coverage.Scanned += p.Coverage.Scanned
			rec.Coverage.Bytes += p.Coverage.Bytes
			rec.Coverage.Missed = append(rec.Coverage.Missed, p.Coverage.Missed...)
		}
	}
	for c, n := range counts {
		c.Count = n
		rec.Counts = append(rec.Counts, c)
	}
	slices.SortFunc(rec.Counts, func(a, b hallmark.Count) int {
		return cmp.Or(int(b.Severity)-int(a.Severity), int(b.Confidence)-int(a.Confidence))
	})
}

// worst is the outcome that weighs more; one that is not set is an error.
func worst(a, b hallmark.Outcome) hallmark.Outcome {
	order := []hallmark.Outcome{hallmark.Pass, hallmark.Skipped, hallmark.Errored, hallmark.Fail}
	if !slices.Contains(order, b) {
		b = hallmark.Errored
	}
	if slices.Index(order, b) > slices.Index(order, a) {
		return b
	}
	return a
}

// installed unpacks each image and reads what is installed in it, in a worker.
func (s imageScanner) installed(ctx context.Context, all []variant) (sbom.Inventory, hallmark.Coverage, []hallmark.Reason, error) {
	inv := sbom.Inventory{Components: []sbom.Component{}}
	var cov hallmark.Coverage
	var reasons []hallmark.Reason
	for _, v := range all {
		one, c, reason, err := s.installedIn(ctx, v)
		if err != nil {
			return inv, cov, nil, fmt.Errorf("reading image %s: %w", v.name, err)
		}
		if reason != nil {
			reason.Check = pipeline.ImageCheck
			reasons = append(reasons, *reason)
		}
		cov.Scanned += c.Scanned
		for _, m := range one.Missed {
			inv.Missed = append(inv.Missed, v.name+": "+m)
		}
		inv.Add(one.Components)
	}
	cov.Ecosystems = inv.Ecosystems()
	return inv, cov, reasons, nil
}

func (s imageScanner) installedIn(ctx context.Context, v variant) (inv sbom.Inventory, cov hallmark.Coverage, reason *hallmark.Reason, err error) {
	blobs := blobsOf{ctx, s.blobs}
	tree, err := image.Flatten(ctx, blobs, v.img.Layers, image.Limits{})
	if err != nil {
		return inv, cov, nil, err
	}
	dir := filepath.Join(s.room.work, "image")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return inv, cov, nil, err
	}
	defer durable.RemoveTree(dir)
	if err := tree.Unpack(ctx, blobs, v.img.Layers, dir); err != nil {
		return inv, cov, nil, err
	}
	if err := sandbox.Give(dir, s.room.hostID); err != nil { // what only root may read is scanned too
		return inv, cov, nil, err
	}
	out, reason, err := scan.Call(ctx, s.room, scan.Job{Args: []string{sbom.ImageJobName}, Mounts: []scan.Mount{{Source: dir, Target: "/source"}}, Wall: scanWall})
	if err != nil || reason != nil {
		return inv, cov, reason, err
	}
	if err := json.Unmarshal(out.Extra, &inv); err != nil {
		return inv, cov, nil, fmt.Errorf("reading the inventory: %w", err)
	}
	return inv, out.Coverage, nil, nil
}

// merged puts what is installed in images into the inventory of the source.
func merged(source []byte, images sbom.Inventory) ([]byte, error) {
	if source == nil {
		return nil, nil // it could not be made, and part of it must not stand for the whole
	}
	var inv sbom.Inventory
	if err := json.Unmarshal(source, &inv); err != nil {
		return nil, fmt.Errorf("reading the inventory: %w", err)
	}
	inv.Add(images.Components)
	return json.Marshal(inv)
}

// layerObjects streams what images hold to the secrets scanner.
type layerObjects struct {
	ctx   context.Context // of the scan
	blobs image.Blobs
	all   []variant
}

// maxObject is what the scanner takes as one object.
const maxObject = 512 << 20

func (l layerObjects) Each(ctx context.Context, _ string, fn func(secrets.Object) error) error {
	seen := map[hallmark.Digest]bool{}
	for _, v := range l.all {
		config := secrets.Object{ID: v.img.Manifest.Hex(), Type: "blob", Path: "configuration of the image", Data: v.img.ConfigJSON()}
		if err := fn(config); err != nil {
			return err
		}
		fresh := slices.DeleteFunc(slices.Clone(v.img.Layers), func(x image.Layer) bool { return seen[x.Digest] })
		err := image.Files(ctx, l.blobs, fresh, image.Limits{}, func(f image.LayerFile, r io.Reader) error {
			if f.Size > maxObject {
				return hallmark.Errorf(hallmark.KindInvalid, "%s has %d bytes, more than can be scanned", f.Path, f.Size)
			}
			b, err := io.ReadAll(io.LimitReader(r, maxObject))
			if err != nil {
				return err
			}
			return fn(secrets.Object{ID: f.Layer.Hex(), Type: "blob", Path: f.Path, Data: b})
		})
		if err != nil {
			return fmt.Errorf("image %s: %w", v.name, err)
		}
		for _, x := range fresh {
			seen[x.Digest] = true
		}
	}
	return nil
}
