// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package vuln

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/google/osv-scalibr/semantic"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/sbom"
	"github.com/hallmark-sc/hallmark/internal/scan"
)

// JobName names the worker job.
const JobName = "sca"

const storeDir = "/advisories"

// Config is what a scan needs.
type Config struct {
	Worker     scan.Worker
	Store      string // directory of the advisories
	MaxAge     time.Duration
	Thresholds scan.Thresholds
	Clock      func() time.Time
	Tool       hallmark.Tool
	Memory     int64
	Wall       time.Duration
}

// extra is what the worker says beside its findings.
type extra struct {
	Data    []hallmark.DataSource `json:"data"`
	Lacking []string              `json:"lacking"` // ecosystems with components and without data
}

// Scan matches the inventory of a revision, as JSON.
func Scan(ctx context.Context, cfg Config, rev hallmark.Revision, inventory []byte) (hallmark.CheckRecord, []hallmark.Finding, error) {
	rec := hallmark.CheckRecord{Check: "sca", Revision: rev, StartedOn: cfg.Clock(), Tool: cfg.Tool}
	if inventory == nil {
		rec.FinishedOn, rec.Outcome = cfg.Clock(), hallmark.Errored
		rec.Reasons = []hallmark.Reason{{Code: hallmark.CodeScanIncomplete, Check: "sca", Message: "there is no inventory to match"}}
		return rec, nil, nil
	}
	out, reason, err := scan.Call(ctx, cfg.Worker, scan.Job{
		Args: []string{JobName}, Stdin: bytes.NewReader(inventory), Mounts: []scan.Mount{{Source: cfg.Store, Target: storeDir}}, Memory: cfg.Memory, Wall: cfg.Wall,
	})
	if err != nil {
		return rec, nil, err
	}
	rec.FinishedOn = cfg.Clock()
	rec.Coverage = &out.Coverage
	var x extra
	if reason == nil && json.Unmarshal(out.Extra, &x) != nil {
		reason = &hallmark.Reason{Code: hallmark.CodeScanIncomplete, Message: "sca: the worker's output can't be read"}
	}
	if reason != nil {
		reason.Check = "sca"
		rec.Outcome, rec.Reasons = hallmark.Errored, []hallmark.Reason{*reason}
		return rec, nil, nil
	}
	rec.Data = x.Data
	judgeData(&rec, x, cfg)
	scan.Judge(&rec, out.Findings, cfg.Thresholds, func(hallmark.Finding) hallmark.Code { return hallmark.CodeVulnerability })
	return rec, out.Findings, nil
}

func judgeData(rec *hallmark.CheckRecord, x extra, cfg Config) {
	const fix = "hallmark advisories sync SOURCE, with a fresh OSV export"
	for _, eco := range x.Lacking {
		rec.Outcome = hallmark.Errored
		rec.Reasons = append(rec.Reasons, hallmark.Reason{
			Code: hallmark.CodeScanDataMissing, Check: "sca", Message: "there is no advisory data for " + eco, Missing: "advisories of " + eco, Fix: fix,
		})
	}
	for _, d := range x.Data {
		if age := rec.FinishedOn.Sub(d.Newest); age > cfg.MaxAge {
			rec.Outcome = hallmark.Errored
			rec.Reasons = append(rec.Reasons, hallmark.Reason{
				Code: hallmark.CodeScanDataStale, Check: "sca", Field: "newest", Nearest: string(d.Digest),
				Message: fmt.Sprintf("the newest advisory of %s is of %s, older than advisories.maxAge (%s)", d.Name, d.Newest.UTC().Format(time.DateOnly), cfg.MaxAge), Fix: fix,
			})
		}
	}
}

// WorkerMain is the worker: the inventory comes by standard input, the store is
// at /advisories.
func WorkerMain(stdin io.Reader, stdout io.Writer) error {
	var inv sbom.Inventory
	dec := json.NewDecoder(stdin)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&inv); err != nil {
		return fmt.Errorf("sca: reading the inventory: %w", err)
	}
	out, err := match(storeDir, inv)
	if err != nil {
		return err
	}
	out.Canary = canary()
	return json.NewEncoder(stdout).Encode(out)
}

// canary matches a planted component that must be found vulnerable.
func canary() bool {
	a, err := ParseAdvisory([]byte(`{"id":"CANARY-1","affected":[{"package":{"ecosystem":"npm","name":"c"},"ranges":[{"type":"SEMVER","events":[{"introduced":"0"},{"fixed":"1.0.0"}]}]}]}`))
	if err != nil {
		return false
	}
	yes, _, err := affects(a.Affected[0], sbom.Component{Name: "c", Version: "0.9.9", Ecosystem: "npm"})
	no, _, err2 := affects(a.Affected[0], sbom.Component{Name: "c", Version: "1.0.0", Ecosystem: "npm"})
	return yes && !no && err == nil && err2 == nil
}

func match(dir string, inv sbom.Inventory) (scan.Output, error) {
	out := scan.Output{Findings: []hallmark.Finding{}}
	out.Coverage.Ecosystems = inv.Ecosystems()
	out.Coverage.Scanned = len(inv.Components)
	out.Coverage.Missed = inv.Missed // what is not in the inventory was not matched
	var x extra
	ecos := map[string]bool{}
	for _, c := range inv.Components {
		ecos[baseEcosystem(c.Ecosystem)] = true
	}
	names := make([]string, 0, len(ecos))
	for e := range ecos {
		names = append(names, e)
	}
	slices.Sort(names)
	for _, eco := range names {
		d, digest, ok, err := load(dir, eco)
		if err != nil {
			return out, err
		}
		if !ok {
			x.Lacking = append(x.Lacking, cmpOr(eco, "an unnamed ecosystem"))
			continue
		}
		x.Data = append(x.Data, hallmark.DataSource{Name: "osv:" + eco, Digest: digest, Newest: d.Newest, Records: len(d.Advisories)})
		index := map[string][]int{}
		for i, a := range d.Advisories {
			for _, f := range a.Affected {
				key := normalName(eco, f.Package.Name)
				if l := index[key]; len(l) == 0 || l[len(l)-1] != i {
					index[key] = append(l, i)
				}
			}
		}
		for _, c := range inv.Components {
			if baseEcosystem(c.Ecosystem) != eco {
				continue
			}
			for _, i := range index[normalName(eco, c.Name)] {
				out.Findings = append(out.Findings, judge(d.Advisories[i], c)...)
			}
		}
	}
	out.Findings = dedupe(out.Findings)
	var err error
	out.Extra, err = json.Marshal(x)
	return out, err
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// normalName is the form under which names of an ecosystem are equal.
func normalName(eco, name string) string {
	if eco == "PyPI" {
		return strings.NewReplacer("_", "-", ".", "-").Replace(strings.ToLower(name))
	}
	return name
}

// judge returns a finding when an advisory affects a component.
func judge(a Advisory, c sbom.Component) []hallmark.Finding {
	if a.Withdrawn != nil {
		return nil
	}
	for _, f := range a.Affected {
		if !sameEcosystem(f.Package.Ecosystem, c.Ecosystem) || normalName(c.Ecosystem, f.Package.Name) != normalName(c.Ecosystem, c.Name) {
			continue
		}
		hit, fixed, err := affects(f, c)
		out := hallmark.Finding{
			Check: "sca", Tool: "hallmark-osv", Rule: a.ID, Severity: severity(a), Confidence: hallmark.ConfidenceHigh, Message: a.Summary,
			Path: c.Location, Component: c.PURL, Aliases: a.Aliases, FixedIn: fixed,
			Fingerprint: string(hallmark.DigestOf([]byte(a.ID + "\x00" + c.PURL))),
		}
		if err != nil && !hit {
			// Somebody has to look: the version can't be compared.
			out.Severity, out.Message = hallmark.SeverityMedium, "the version can't be compared: "+err.Error()
			return []hallmark.Finding{out}
		}
		if hit {
			return []hallmark.Finding{out}
		}
	}
	return nil
}

// affects reports whether a component's version is affected, and the version
// that mends it. A version that can't be placed is an error, never unaffected.
func affects(f Affected, c sbom.Component) (hit bool, fixed string, err error) {
	if slices.Contains(f.Versions, c.Version) {
		hit = true
	}
	if !isVersion(c.Version) {
		return hit, "", fmt.Errorf("%q is no version", c.Version)
	}
	v, err := semantic.Parse(c.Version, c.Ecosystem)
	if err != nil {
		return hit, "", err
	}
	for _, r := range f.Ranges {
		if r.Type == "GIT" {
			continue
		}
		events, err := ordered(r.Events, c.Ecosystem)
		if err != nil {
			return hit, "", err
		}
		in := false
		for _, e := range events {
			order := 1 // after "0", the beginning of all versions
			if e.version != nil {
				if order, err = v.Compare(e.version); err != nil {
					return hit, "", err
				}
			}
			switch {
			case e.Introduced != "" && order >= 0:
				in = true
			case e.Fixed != "" && order >= 0, e.LastAffected != "" && order > 0:
				in = false
			case e.Fixed != "" && in && fixed == "":
				fixed = e.Fixed
			}
		}
		hit = hit || in
	}
	return hit, fixed, nil
}

// isVersion tells versions from what stands in their place: nothing, a build
// without a version, an address. The libraries give such text some order.
func isVersion(v string) bool {
	return strings.ContainsAny(v, "0123456789") && !strings.ContainsAny(v, "/()@ ") && !strings.Contains(v, ":/")
}

// event is an event with its version parsed; nil is "0", before all versions.
type event struct {
	Event
	version semantic.Version
}

// ordered sorts events by version: OSV asks for no order, and evaluating them as
// they stand misses affected versions. At one version, what ends a range comes
// first, and last_affected last, since it includes its version.
func ordered(in []Event, eco string) ([]event, error) {
	out := make([]event, 0, len(in))
	for _, e := range in {
		at := cmpOr(cmpOr(e.Introduced, e.Fixed), e.LastAffected)
		if at == "" {
			continue // a limit, which only narrows what is asked of git
		}
		x := event{Event: e}
		if at != "0" {
			v, err := semantic.Parse(at, eco)
			if err != nil {
				return nil, err
			}
			x.version = v
		}
		out = append(out, x)
	}
	rank := func(e event) int {
		switch {
		case e.Fixed != "":
			return 0
		case e.Introduced != "":
			return 1
		}
		return 2
	}
	var failed error
	slices.SortStableFunc(out, func(a, b event) int {
		switch {
		case a.version == nil && b.version == nil:
			return rank(a) - rank(b)
		case a.version == nil:
			return -1
		case b.version == nil:
			return 1
		}
		n, err := a.version.Compare(b.version)
		if err != nil {
			failed = err
		}
		if n == 0 {
			return rank(a) - rank(b)
		}
		return n
	})
	return out, failed
}

// severity of an advisory: what its database says, or the base metrics of its
// CVSS v3 vector; high when neither tells.
func severity(a Advisory) hallmark.Severity {
	if strings.HasPrefix(a.ID, "MAL-") {
		return hallmark.SeverityCritical
	}
	switch strings.ToUpper(a.Database.Severity) {
	case "CRITICAL":
		return hallmark.SeverityCritical
	case "HIGH":
		return hallmark.SeverityHigh
	case "MODERATE", "MEDIUM":
		return hallmark.SeverityMedium
	case "LOW":
		return hallmark.SeverityLow
	}
	for _, r := range a.Severity {
		if r.Type == "CVSS_V3" {
			if score, ok := baseScore(r.Score); ok {
				switch {
				case score >= 9:
					return hallmark.SeverityCritical
				case score >= 7:
					return hallmark.SeverityHigh
				case score >= 4:
					return hallmark.SeverityMedium
				}
				return hallmark.SeverityLow
			}
		}
	}
	return hallmark.SeverityHigh
}

// dedupe keeps one finding of advisories that are aliases of each other.
func dedupe(in []hallmark.Finding) []hallmark.Finding {
	slices.SortFunc(in, func(a, b hallmark.Finding) int { return strings.Compare(a.Component+a.Rule, b.Component+b.Rule) })
	out := []hallmark.Finding{}
	for _, f := range in {
		same := slices.IndexFunc(out, func(g hallmark.Finding) bool {
			return g.Component == f.Component && (g.Rule == f.Rule || slices.Contains(g.Aliases, f.Rule) || slices.Contains(f.Aliases, g.Rule))
		})
		if same < 0 {
			out = append(out, f)
		} else if f.Severity > out[same].Severity {
			out[same].Severity = f.Severity
		}
	}
	return out
}
