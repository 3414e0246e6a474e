// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package policy decides: the rules of a signed policy document (OPA) over
// verified statements only. A verdict is a pure function of pinned inputs, so
// that anyone can compute it again and compare the bytes.
//
// Undefined is a denial, an error is no decision, and whatever the rules say,
// nothing is allowed unless every required check passed. The package does no
// I/O and asks no clock.
package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cyberphone/json-canonicalization/go/src/webpki.org/jsoncanonicalizer"

	_ "embed"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/intoto"
)

//go:embed release.rego
var releaseRego string

// Document is policy.json.
type Document struct {
	APIVersion     string            `json:"apiVersion"`
	Kind           string            `json:"kind"`
	Version        int               `json:"version"`
	Previous       hallmark.Digest   `json:"previous"` // of the policy before; "" for the first
	IssuedOn       time.Time         `json:"issuedOn"`
	Parameters     map[string]string `json:"parameters"`
	AllowedSigners string            `json:"allowedSigners"` // text of an OpenSSH allowed_signers file
	// Who else may sign commits, by OpenPGP keys and by certificates; the forms are
	// those of identity.ParseOpenPGPKeys and ParseX509Signers.
	OpenPGPKeys string            `json:"openpgpKeys,omitempty"`
	X509Signers string            `json:"x509Signers,omitempty"`
	Modules     map[string]string `json:"modules"` // Rego by file name
	// Build says what may be built. Documents that are older than it have none,
	// and nothing is built under them.
	Build *BuildRules `json:"build,omitempty"`
	// Access says who may do what at the gates. Documents that are older than it
	// have none, and nobody may do anything under them.
	Access *access.Section `json:"access,omitempty"`
}

// Parameter is one row of the table of parameters.
type Parameter struct {
	Key, Default, Doc string
	check             func(string) error
}

// AllowedSigners is what Set calls the allowed signers, which are no parameter.
const AllowedSigners = "allowedSigners"

// OpenPGPKeys and X509Signers are what Set calls the other files of signers.
const (
	OpenPGPKeys = "openpgpKeys"
	X509Signers = "x509Signers"
)

// BuildSection is what Set calls the rules of builds, which are no parameter.
const BuildSection = "build"

// AccessSection is what Set calls principals, grants and protected refs, which
// are no parameter.
const AccessSection = "access"

// added are the parameters that the first policies do not have yet: absent, they
// have their default, so that old homes open and old verdicts can be replayed.
func added() []string {
	return []string{"sast.drivers", "registries.go", "registries.npm", "build.tools", "build.unexplained", "build.secrets", "checks.images", "build.images", "source.binaries", "source.obligationMaxAge", "access.secondFactor"}
}

// Value is what a parameter says, by its default where the document is older than
// the parameter.
func (d Document) Value(key string) string {
	if v, ok := d.Parameters[key]; ok || !slices.Contains(added(), key) {
		return v
	}
	p, _ := parameter(key)
	return p.Default
}

// Table is every parameter there is, in the order it is shown.
func Table() []Parameter {
	oneOf := func(words ...string) func(string) error {
		return func(s string) error {
			if !slices.Contains(words, s) {
				return fmt.Errorf("want one of %s", strings.Join(words, ", "))
			}
			return nil
		}
	}
	severity := oneOf("info", "low", "medium", "high", "critical")
	duration := func(s string) error { _, err := parseDuration(s); return err }
	size := func(s string) error { _, err := parseSize(s); return err }
	registry := func(s string) error { _, err := parseRegistry(s); return err }
	number := func(s string) error { _, err := parseNumber(s); return err }
	return []Parameter{
		{"checks.required", "source,secrets,sast,sbom,sca,build,tests", "checks that must pass; never empty", checkRequired},
		{"checks.images", "image", "checks that must pass besides when an image is among the artifacts; never empty", oneOf("image")},
		{"source.binaries", "none", "compiled code that may be in the tree: the approved files, each sha256:HEX, or none", func(s string) error { _, err := parseBinaries(s); return err }},
		{"source.obligationMaxAge", "7d", "what a push obliges to (a scan, a review, a build of the revision) must exist after this time", duration},
		{"access.secondFactor", "none", "required: administrators confirm each next policy by a FIDO key that the policy names, besides their signatures; none: their keys are enough", oneOf("none", "required")},
		{"findings.severity", "high", "findings count from this severity on", severity},
		{"findings.confidence", "medium", "findings count from this confidence on", oneOf("low", "medium", "high")},
		{"sast.uncoveredSeverity", "medium", "severity of a language or file that no SAST engine analyses", severity},
		{"sast.drivers", "none", "external SAST tools that must run, each NAME=sha256:DIGEST of its program; hallmark doctor prints them", checkDrivers},
		{"advisories.maxAge", "7d", "advisory data whose newest record is older is an error", duration},
		{"scans.maxAge", "30d", "scans older than this no longer count", duration},
		{"reuse.maxAge", "24h", "saved results of stages older than this are made again", duration},
		{"registries.go", "none", "the only Go module proxy that dependencies are fetched from: a URL, or none", registry},
		{"registries.npm", "none", "the only npm registry that dependencies are fetched from: a URL, or none", registry},
		{"build.builders", intoto.BuilderLocal + "," + intoto.BuilderServer, "builder ids whose provenance is accepted", nonEmpty},
		{"build.egress", "deny", "deny: a build that tries to leave the sandbox fails; record: it is only recorded", oneOf("deny", "record")},
		{"build.guarantees", "namespaces,no-new-privileges,capabilities-dropped,seccomp,root-read-only,no-network,proc-masked,sysfs-absent,devices-minimal,kernel-settings-closed,memory-not-executable,egress-recorded,wall-time-limit,disk-limit", "isolation guarantees that must hold", nonEmpty},
		{"build.tools", "recorded", "recorded: the tools of the build machine are only recorded; else the approved inventory, NAME=sha256:HEX of each", func(s string) error { _, _, err := parseTools(s); return err }},
		{"build.unexplained", "deny", "deny: a build that reads a file of no source, dependency or toolchain package, or one with other bytes than its package declares, fails; record: it is only listed", oneOf("deny", "record")},
		{"build.secrets", "none", "refs whose builds are given the secrets that their steps name, such as refs/heads/main, or none", func(s string) error { _, err := parseRefs(s); return err }},
		{"build.images", "recorded", "recorded: images that builds are made in and from are only recorded; else the approved ones, each sha256:HEX, and host for the machine's own toolchain", func(s string) error { _, _, err := parseImages(s); return err }},
		{"build.timeout", "30m", "limit of one step", duration},
		{"build.memory", "4GiB", "memory of a sandbox", size},
		{"build.disk", "8GiB", "scratch space of a sandbox", size},
		{"build.pids", "2048", "processes of a sandbox", number},
		{"build.cpus", "2", "processors of a sandbox", number},
	}
}

// checkDrivers reads a list of NAME=sha256:DIGEST, or none.
func checkDrivers(s string) error {
	_, err := parseDrivers(s)
	return err
}

func parseDrivers(s string) (map[string]hallmark.Digest, error) {
	out := map[string]hallmark.Digest{}
	if s == "none" {
		return out, nil
	}
	if err := nonEmpty(s); err != nil {
		return nil, err
	}
	for _, p := range splitList(s) {
		name, digest, _ := strings.Cut(p, "=")
		if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || hallmark.Digest(digest).Check() != nil {
			return nil, fmt.Errorf("%.120q: want NAME=sha256:DIGEST, or none; hallmark doctor prints the digests", p)
		}
		if _, ok := out[name]; ok {
			return nil, fmt.Errorf("driver %s stands twice", name)
		}
		out[name] = hallmark.Digest(digest)
	}
	return out, nil
}

func nonEmpty(s string) error {
	if len(splitList(s)) == 0 {
		return fmt.Errorf("want a comma-separated list that is not empty")
	}
	return plainList(s)
}

// plainList refuses empty and doubled elements: a list reads one way only.
func plainList(s string) error {
	seen := map[string]bool{}
	for p := range strings.SplitSeq(s, ",") {
		p = strings.TrimSpace(p)
		if p == "" || seen[p] {
			return fmt.Errorf("element %.80q of the list is empty or stands twice", p)
		}
		seen[p] = true
	}
	return nil
}

// checkNames are the checks that exist.
func checkNames() []string {
	return []string{"source", "secrets", "sast", "sbom", "sca", "build", "tests"}
}

func checkRequired(s string) error {
	list := splitList(s)
	if len(list) == 0 {
		return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeChecksNotRequired, "an empty list of required checks would allow everything")
	}
	for _, c := range list {
		if !slices.Contains(checkNames(), c) {
			return fmt.Errorf("unknown check %q; the checks are %s", c, strings.Join(checkNames(), ", "))
		}
	}
	return plainList(s)
}

func splitList(s string) []string {
	var out []string
	for p := range strings.SplitSeq(s, ",") {
		if p = strings.TrimSpace(p); p != "" {
			out = append(out, p)
		}
	}
	return out
}

func parseDuration(s string) (time.Duration, error) {
	if s == "" || s[0] < '0' || s[0] > '9' {
		return 0, fmt.Errorf("want a duration such as 7d, 12h or 30m")
	}
	if d, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.Atoi(d)
		if err != nil || n <= 0 || n > 36500 {
			return 0, fmt.Errorf("want a duration such as 7d, 12h or 30m")
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("want a duration such as 7d, 12h or 30m")
	}
	return d, nil
}

func parseSize(s string) (int64, error) {
	if s == "" || s[0] < '0' || s[0] > '9' {
		return 0, fmt.Errorf("want a size such as 512MiB or 4GiB")
	}
	for suffix, unit := range map[string]int64{"GiB": 1 << 30, "MiB": 1 << 20} {
		if n, ok := strings.CutSuffix(s, suffix); ok {
			v, err := strconv.ParseInt(n, 10, 32)
			if err == nil && v > 0 && v < 1<<20 {
				return v * unit, nil
			}
		}
	}
	return 0, fmt.Errorf("want a size such as 512MiB or 4GiB")
}

func parseNumber(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n <= 0 || n > 1<<20 || s[0] == '+' {
		return 0, fmt.Errorf("want a number above 0")
	}
	return n, nil
}

// parseTools reads an approved inventory as NAME=HEX; anything is true where
// tools are only recorded.
func parseTools(s string) (approved []string, anything bool, err error) {
	if s == "recorded" {
		return nil, true, nil
	}
	if err := nonEmpty(s); err != nil {
		return nil, false, err
	}
	var out []string
	for _, t := range splitList(s) {
		name, digest, _ := strings.Cut(t, "=")
		d, err := hallmark.ParseDigest(digest)
		if name == "" || err != nil {
			return nil, false, fmt.Errorf("%.120q: want recorded, or NAME=sha256:HEX", t)
		}
		out = append(out, name+"="+d.Hex())
	}
	return out, false, nil
}

// parseRegistry reads where a registry is; "" is none. Plain http is for
// registries on this machine's loopback only.
func parseRegistry(s string) (string, error) {
	if s == "none" {
		return "", nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Opaque != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.ContainsAny(s, ", |") {
		return "", fmt.Errorf("want none or https://HOST/PATH, without user or query")
	}
	ip, err := netip.ParseAddr(u.Hostname())
	local := u.Hostname() == "localhost" || err == nil && ip.IsLoopback()
	if u.Scheme != "https" && (u.Scheme != "http" || !local) {
		return "", fmt.Errorf("want https; plain http is for registries on this machine")
	}
	return s, nil
}

// Options are what a first policy is made from.
type Options struct {
	AllowedSigners string
	IssuedOn       time.Time
	Registries     map[string]string // kind, such as go or npm, to URL
	Repositories   []string          // patterns of what may be built; none: any
}

// Default is the first policy of a home.
func Default(o Options) Document {
	d := Document{
		APIVersion: "hallmark/v1", Kind: "Policy", Version: 1, IssuedOn: o.IssuedOn.UTC(), AllowedSigners: o.AllowedSigners,
		Parameters: map[string]string{}, Modules: map[string]string{"release.rego": releaseRego},
		Build: FirstBuildRules(o.Repositories),
	}
	for _, p := range Table() {
		d.Parameters[p.Key] = p.Default
	}
	for kind, where := range o.Registries {
		d.Parameters["registries."+kind] = where
	}
	return d
}

// Limits on a policy document.
const (
	maxDocument = 8 << 20 // bytes
	maxModules  = 64
)

// ParseDocument reads a policy strictly: what Encode would not write is refused,
// but for white space and the order of keys, and every error names its field.
func ParseDocument(b []byte) (Document, error) {
	var d Document
	if err := decodeExact(b, maxDocument, &d); err != nil {
		return Document{}, hallmark.Errorf(hallmark.KindInvalid, "reading policy: %w", err)
	}
	if err := d.check(); err != nil {
		return Document{}, hallmark.Errorf(hallmark.KindInvalid, "reading policy: %w", err)
	}
	return d, nil
}

func (d Document) check() error {
	switch {
	case d.APIVersion != "hallmark/v1" || d.Kind != "Policy":
		return fmt.Errorf("apiVersion %.40q, kind %.40q: want hallmark/v1 Policy", d.APIVersion, d.Kind)
	case d.Version < 1:
		return fmt.Errorf("version %d: want 1 or more", d.Version)
	case d.Version == 1 && d.Previous != "":
		return fmt.Errorf("previous: the first version has none")
	case d.Version > 1 && d.Previous.Check() != nil:
		return fmt.Errorf("previous %.80q: want the digest of the version before", d.Previous)
	case d.IssuedOn.Year() < 1970:
		return fmt.Errorf("issuedOn: want a time")
	case len(d.Modules) == 0 || len(d.Modules) > maxModules:
		return fmt.Errorf("modules: want 1 to %d", maxModules)
	}
	if d.Build != nil {
		if err := d.Build.check(); err != nil {
			return fmt.Errorf("build: %w", err)
		}
	}
	if d.Access != nil {
		if err := d.Access.Check(); err != nil {
			return fmt.Errorf("access: %w", err)
		}
	}
	for name := range d.Modules {
		if !strings.HasSuffix(name, ".rego") || strings.ContainsAny(name, "/\\") {
			return fmt.Errorf("modules: name %.80q: want NAME.rego", name)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(d.Parameters)) {
		if _, ok := parameter(key); !ok {
			return fmt.Errorf("parameters: %.80q is not a parameter of this version", key)
		}
	}
	for _, p := range Table() {
		v, ok := d.Parameters[p.Key]
		if !ok && slices.Contains(added(), p.Key) {
			continue
		}
		if !ok {
			return fmt.Errorf("parameter %s is missing", p.Key)
		}
		if err := p.check(v); err != nil {
			return fmt.Errorf("parameter %s: %w", p.Key, err)
		}
	}
	return nil
}

func parameter(key string) (Parameter, bool) {
	i := slices.IndexFunc(Table(), func(p Parameter) bool { return p.Key == key })
	if i < 0 {
		return Parameter{}, false
	}
	return Table()[i], true
}

// Encode returns the RFC 8785 form.
func (d Document) Encode() ([]byte, error) { return canonical(d) }

func canonical(v any) ([]byte, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding: %w", err)
	}
	return jsoncanonicalizer.Transform(raw)
}

// decodeExact reads one JSON object into v and checks that v says all that
// stands there: encoding/json also takes keys that differ in case, and lets
// fields be absent, so that two readers could read two things.
func decodeExact(b []byte, limit int, v any) error {
	if len(b) > limit {
		return fmt.Errorf("%d bytes: the limit is %d", len(b), limit)
	}
	if err := intoto.CheckJSON(b, 32); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	given, err := jsoncanonicalizer.Transform(b)
	if err != nil {
		return err
	}
	read, err := canonical(v)
	if err != nil {
		return err
	}
	if bytes.Equal(given, read) {
		return nil
	}
	var x, y any
	if json.Unmarshal(given, &x) == nil && json.Unmarshal(read, &y) == nil {
		if d := diff("", x, y); len(d) > 0 {
			return fmt.Errorf("field %s is missing, empty or written another way than hallmark writes it", d[0].Field)
		}
	}
	return fmt.Errorf("not in the form that hallmark writes")
}

// Set returns the next version of the policy with one or more parameters
// changed.
//
// The keys AllowedSigners, OpenPGPKeys and X509Signers stand for the texts of who
// signs, which the caller has parsed, BuildSection for a file of build rules, and AccessSection for
// the JSON of an access section.
func (d Document) Set(changes [][2]string, at time.Time) (Document, error) {
	old, err := d.Encode()
	if err != nil {
		return d, err
	}
	if err := d.check(); err != nil {
		return d, hallmark.Errorf(hallmark.KindInvalid, "changing policy: %w", err)
	}
	next := d
	next.Version, next.Previous, next.IssuedOn = d.Version+1, hallmark.DigestOf(old), at.UTC()
	next.Parameters = map[string]string{}
	for _, p := range Table() {
		next.Parameters[p.Key] = d.Value(p.Key)
	}
	for _, c := range changes {
		if c[0] == AllowedSigners {
			next.AllowedSigners = c[1]
			continue
		}
		if c[0] == OpenPGPKeys {
			next.OpenPGPKeys = c[1]
			continue
		}
		if c[0] == X509Signers {
			next.X509Signers = c[1]
			continue
		}
		if c[0] == BuildSection {
			if next.Build, err = ParseBuildRules(BuildSection, []byte(c[1]), nil); err != nil {
				return d, err
			}
			continue
		}
		if c[0] == AccessSection {
			if next.Access, err = access.Parse(AccessSection, []byte(c[1])); err != nil {
				return d, hallmark.Errorf(hallmark.KindInvalid, "%w", err)
			}
			continue
		}
		p, ok := parameter(c[0])
		if !ok {
			return d, hallmark.WithHint(hallmark.Errorf(hallmark.KindUsage, "there is no parameter %q", c[0]), "hallmark policy show lists them")
		}
		if err := p.check(c[1]); err != nil {
			return d, hallmark.Errorf(hallmark.KindUsage, "parameter %s: %w", c[0], err)
		}
		next.Parameters[c[0]] = c[1]
	}
	return next, nil
}

// Parameters are the values in Go's types.
type Parameters struct {
	Required                                   []string
	ImageRequired                              []string // besides, of builds that leave an image
	Severity                                   hallmark.Severity
	Confidence                                 hallmark.Confidence
	Uncovered                                  hallmark.Severity
	Drivers                                    map[string]hallmark.Digest // of SAST, by name
	AdvisoriesMaxAge, ScansMaxAge, ReuseMaxAge time.Duration
	Builders, Guarantees                       []string
	EgressAllowed                              bool
	Unexplained                                bool // materials of no known origin are only recorded
	BuildTimeout                               time.Duration
	BuildMemory, BuildDisk                     int64
	BuildPIDs, BuildCPUs                       int
	Registries                                 map[string]string // kind to URL; none is absent
	Tools                                      []string          // approved, NAME=HEX
	AnyTool                                    bool              // tools are only recorded
	SecretRefs                                 []string          // whose builds may have secrets
	Images                                     []string          // approved: host, or sha256:HEX
	AnyImage                                   bool              // images are only recorded
	Binaries                                   []hallmark.Digest // approved files of compiled code in the tree
	ObligationMaxAge                           time.Duration     // within which obligations of a transition must be met
}

// Typed returns the parameters of a document that ParseDocument accepted.
func (d Document) Typed() (Parameters, error) {
	var p Parameters
	var err error
	var errs []error
	note := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	note(p.Severity.UnmarshalText([]byte(d.Value("findings.severity"))))
	note(p.Confidence.UnmarshalText([]byte(d.Value("findings.confidence"))))
	note(p.Uncovered.UnmarshalText([]byte(d.Value("sast.uncoveredSeverity"))))
	p.Drivers, err = parseDrivers(d.Value("sast.drivers"))
	note(err)
	dur := func(k string) time.Duration { v, err := parseDuration(d.Value(k)); note(err); return v }
	size := func(k string) int64 { v, err := parseSize(d.Value(k)); note(err); return v }
	num := func(k string) int { v, err := parseNumber(d.Value(k)); note(err); return v }
	p.ObligationMaxAge = dur("source.obligationMaxAge")
	p.AdvisoriesMaxAge, p.ScansMaxAge, p.ReuseMaxAge = dur("advisories.maxAge"), dur("scans.maxAge"), dur("reuse.maxAge")
	p.BuildTimeout, p.BuildMemory, p.BuildDisk = dur("build.timeout"), size("build.memory"), size("build.disk")
	p.BuildPIDs, p.BuildCPUs = num("build.pids"), num("build.cpus")
	p.Required, p.Builders, p.Guarantees = splitList(d.Value("checks.required")), splitList(d.Value("build.builders")), splitList(d.Value("build.guarantees"))
	p.ImageRequired = splitList(d.Value("checks.images"))
	p.Registries = map[string]string{}
	for _, kind := range []string{"go", "npm"} {
		if where, err := parseRegistry(d.Value("registries." + kind)); err != nil {
			note(err)
		} else if where != "" {
			p.Registries[kind] = where
		}
	}
	p.Tools, p.AnyTool, err = parseTools(d.Value("build.tools"))
	note(err)
	p.SecretRefs, err = parseRefs(d.Value("build.secrets"))
	note(err)
	p.Images, p.AnyImage, err = parseImages(d.Value("build.images"))
	note(err)
	p.Binaries, err = parseBinaries(d.Value("source.binaries"))
	note(err)
	p.EgressAllowed = d.Value("build.egress") == "record"
	p.Unexplained = d.Value("build.unexplained") == "record"
	if len(errs) > 0 {
		return p, hallmark.Errorf(hallmark.KindInvalid, "reading parameters: %w", errs[0])
	}
	return p, nil
}
