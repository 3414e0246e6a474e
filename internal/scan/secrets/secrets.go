// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package secrets finds credentials in a whole history: every blob, commit and
// tag message reachable from a revision, and every path, each object once.
//
// It never lets a secret out: findings carry a keyed fingerprint and no part of
// the value. Suppressions inside the scanned content are not honoured, since it
// is the attacker's text.
package secrets

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/zricethezav/gitleaks/v8/config"
	"github.com/zricethezav/gitleaks/v8/detect"
	"github.com/zricethezav/gitleaks/v8/report"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/scan"
)

// JobName names the worker job.
const JobName = "secrets"

// Objects streams every object reachable from a commit; an object that can't be
// read is an error.
type Objects interface {
	Each(ctx context.Context, commit string, fn func(Object) error) error
}

// Config is what a scan needs.
type Config struct {
	Worker     scan.Worker
	Key        []byte // of fingerprints
	Thresholds scan.Thresholds
	Clock      func() time.Time
	Tool       hallmark.Tool
	Memory     int64
	Wall       time.Duration
}

// RuleDigest names the rule set of this binary.
func RuleDigest() hallmark.Digest {
	return hallmark.DigestOf([]byte("secrets-rules-v2\x00" + config.DefaultConfig + urlCredentials))
}

// Scan scans the history of a revision.
func Scan(ctx context.Context, cfg Config, rev hallmark.Revision, objects Objects) (hallmark.CheckRecord, []hallmark.Finding, error) {
	rec := hallmark.CheckRecord{
		Check: "secrets", Revision: rev, StartedOn: cfg.Clock(), Tool: cfg.Tool,
		Data: []hallmark.DataSource{{Name: "secret-rules", Digest: RuleDigest()}},
	}
	pr, pw := io.Pipe()
	streamed := make(chan error, 1)
	go func() {
		// The key comes before the frames: arguments of a process are public.
		_, err := fmt.Fprintln(pw, hex.EncodeToString(cfg.Key))
		fw := NewFrameWriter(pw)
		if err == nil {
			err = objects.Each(ctx, rev.Commit, fw.Write)
		}
		if err == nil {
			err = fw.Close()
		}
		pw.CloseWithError(err)
		streamed <- err
	}()
	out, reason, err := scan.Call(ctx, cfg.Worker, scan.Job{Args: []string{JobName}, Stdin: pr, Memory: cfg.Memory, Wall: cfg.Wall})
	pr.CloseWithError(io.ErrClosedPipe)
	streamErr := <-streamed
	if err != nil {
		return rec, nil, err
	}
	rec.FinishedOn = cfg.Clock()
	rec.Coverage = &out.Coverage
	if reason == nil && streamErr != nil {
		reason = &hallmark.Reason{Code: hallmark.CodeScanIncomplete, Message: "secrets: " + streamErr.Error()}
	}
	if reason != nil {
		reason.Check = "secrets"
		rec.Outcome, rec.Reasons = hallmark.Errored, []hallmark.Reason{*reason}
		return rec, nil, nil
	}
	scan.Judge(&rec, out.Findings, cfg.Thresholds, func(hallmark.Finding) hallmark.Code { return hallmark.CodeSecretFound })
	for i := range rec.Reasons {
		if rec.Reasons[i].Code == hallmark.CodeSecretFound {
			rec.Reasons[i].Fix = "revoke the credential, then rewrite the history that holds it (git filter-repo) and run again"
		}
	}
	return rec, out.Findings, nil
}

// urlCredentials finds what the provider rules do not know; of lower confidence,
// for review.
const urlCredentials = `[a-z][a-z0-9+.-]{1,20}://[^/\s:@'"<>{}$%]{1,64}:([^/\s:@'"<>{}$%]{8,128})@[a-zA-Z0-9.-]{3,}`

// detector is the rule set ready to use. The global allow lists of the rule file
// are dropped: one of them lets any secret pass that contains "false".
type detector struct {
	d    *detect.Detector
	urls *regexp.Regexp
	key  []byte
}

func newDetector(key []byte) (*detector, error) {
	d, err := detect.NewDetectorDefaultConfig()
	if err != nil {
		return nil, fmt.Errorf("loading secret rules: %w", err)
	}
	d.IgnoreGitleaksAllow = true
	d.Config.Allowlists = nil
	d.MaxDecodeDepth = 2
	return &detector{d: d, urls: regexp.MustCompile(urlCredentials), key: key}, nil
}

// WorkerMain is the worker: the fingerprint key as a line of hex and frames on standard input, one JSON document out.
func WorkerMain(args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) != 0 {
		return fmt.Errorf("secrets: want no argument")
	}
	// The rules take long to load, and are no secret: a worker that waits for its
	// key has them ready.
	det, err := newDetector(nil)
	if err != nil {
		return err
	}
	in := bufio.NewReader(stdin)
	line, err := in.ReadString('\n')
	if err != nil || len(line) > 1024 {
		return fmt.Errorf("secrets: the fingerprint key can't be read")
	}
	key, err := hex.DecodeString(strings.TrimSuffix(line, "\n"))
	if err != nil || len(key) < 16 {
		return fmt.Errorf("secrets: the fingerprint key can't be read")
	}
	det.key = key
	out := scan.Output{Findings: []hallmark.Finding{}}
	// Put together here, so that this file holds no credential.
	canary := Object{ID: "canary", Type: "blob", Path: "canary.txt", Data: []byte("token = \"" + "ghp_" + "9jX2kQv7mB4nR8sT1wY6zA3cE5gH0dLpUfVo" + "\"\n")}
	found, _ := det.object(canary)
	out.Canary = len(found) > 0

	jobs := make(chan Object, 64)
	var mu sync.Mutex
	var wg sync.WaitGroup
	held := &budget{left: maxHeld}
	held.free.L = &held.mu
	for range runtime.NumCPU() {
		wg.Go(func() {
			for o := range jobs {
				f, missed := det.object(o)
				held.give(len(o.Data))
				mu.Lock()
				out.Findings = append(out.Findings, f...)
				out.Coverage.Missed = append(out.Coverage.Missed, missed...)
				out.Coverage.Scanned++
				out.Coverage.Bytes += int64(len(o.Data))
				mu.Unlock()
			}
		})
	}
	_, err = ReadFrames(in, func(o Object) error {
		held.take(len(o.Data))
		jobs <- o
		return nil
	})
	close(jobs)
	wg.Wait()
	if err != nil {
		return err
	}
	slices.SortFunc(out.Findings, func(a, b hallmark.Finding) int {
		return strings.Compare(a.Object+a.Rule+a.Fingerprint, b.Object+b.Rule+b.Fingerprint)
	})
	slices.Sort(out.Coverage.Missed)
	return json.NewEncoder(stdout).Encode(out)
}

// maxHeld is how many bytes of objects a worker holds at a time, or one object:
// memory does not grow with their number.
const maxHeld = 256 << 20

// budget bounds what is held; one object passes whatever its size, alone.
type budget struct {
	mu   sync.Mutex
	free sync.Cond
	left int
}

func (b *budget) take(n int) {
	n = min(n, maxHeld)
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.left < n {
		b.free.Wait()
	}
	b.left -= n
}

func (b *budget) give(n int) {
	b.mu.Lock()
	b.left += min(n, maxHeld)
	b.mu.Unlock()
	b.free.Broadcast()
}

// maxNesting is how many archives inside one another are unpacked.
const maxNesting = 4

// maxText bounds what one archive member or object may unpack to.
const maxText = 64 << 20

// object scans the bytes of an object, its path, and what its bytes unpack to.
func (d *detector) object(o Object) ([]hallmark.Finding, []string) {
	var out []hallmark.Finding
	var missed []string
	scanText := func(text, path string, noise bool) {
		//lint:ignore SA1019 the type that replaces it comes with the next major version
		for _, f := range d.d.DetectContext(context.Background(), detect.Fragment{Raw: text, FilePath: path}) {
			out = append(out, d.finding(o, path, noise, f))
		}
		for _, m := range d.urls.FindAllStringSubmatchIndex(text, 100) {
			line := strings.Count(text[:m[0]], "\n")
			out = append(out, d.finding(o, path, noise, report.Finding{RuleID: "hallmark-url-credentials", Description: "Credentials in a URL", Secret: text[m[2]:m[3]], StartLine: line}))
		}
	}
	// A neutral path: path allow lists of rules are the attacker's to use.
	scanBytes := func(b []byte) {
		for _, t := range texts(b) {
			scanText(t, "content", false)
		}
	}
	if o.Type == "commit" || o.Type == "tag" {
		for _, p := range apart(o.Data) {
			scanText(p.text, "content", p.noise)
		}
	} else {
		scanBytes(o.Data)
	}
	if o.Path != "" {
		scanText(o.Path, "path", false)
	}
	err := unpack(o.Data, maxNesting, func(_ string, b []byte) { scanBytes(b) })
	if err != nil {
		missed = append(missed, fmt.Sprintf("%s %q: %s", o.ID, o.Path, err))
	}
	return dedupe(out), missed
}

func dedupe(in []hallmark.Finding) []hallmark.Finding {
	var out []hallmark.Finding
	for _, f := range in {
		if !slices.ContainsFunc(out, func(g hallmark.Finding) bool { return g.Rule == f.Rule && g.Fingerprint == f.Fingerprint }) {
			out = append(out, f)
		}
	}
	return out
}

func (d *detector) finding(o Object, where string, noise bool, f report.Finding) hallmark.Finding {
	mac := hmac.New(sha256.New, d.key)
	mac.Write([]byte(f.RuleID + "\x00" + f.Secret))
	sev, conf := hallmark.SeverityCritical, hallmark.ConfidenceHigh
	if strings.HasPrefix(f.RuleID, "generic-") || strings.HasPrefix(f.RuleID, "hallmark-") || exampleValue(f.Secret) || noise {
		conf = hallmark.ConfidenceLow
	}
	line := 0
	if where == "content" && o.Type == "blob" {
		line = f.StartLine + 1
	}
	return hallmark.Finding{
		Check: "secrets", Tool: "gitleaks", Rule: f.RuleID, Severity: sev, Confidence: conf, Message: f.Description,
		Path: o.Path, Line: line, Object: o.ID, Fingerprint: hex.EncodeToString(mac.Sum(nil)),
	}
}

// isArchive reports whether bytes begin as an archive that unpack knows.
func isArchive(b []byte) bool {
	return bytes.HasPrefix(b, []byte{0x1f, 0x8b, 8}) || bytes.HasPrefix(b, []byte("PK\x03\x04")) || (len(b) > 262 && string(b[257:262]) == "ustar")
}

// unpack calls fn for the members of archives, depth levels deep. Bytes that only
// look like an archive are no error; one that is larger than we read is.
func unpack(b []byte, depth int, fn func(name string, b []byte)) error {
	if depth == 0 {
		if isArchive(b) {
			return errors.New("archives are nested more deeply than is unpacked")
		}
		return nil
	}
	member := func(name string, r io.Reader) error {
		// Damaged data ends with an error; what came before is all that anybody
		// can read, and it is scanned.
		data, _ := io.ReadAll(io.LimitReader(r, maxText+1))
		if len(data) > maxText {
			return fmt.Errorf("member %q unpacks to more than %d bytes", name, maxText)
		}
		fn(name, data)
		return unpack(data, depth-1, fn)
	}
	switch {
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil //nolint:nilerr // not gzip after all
		}
		return member("gzip", z)
	case bytes.HasPrefix(b, []byte("PK\x03\x04")):
		z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return nil //nolint:nilerr // not zip after all
		}
		if len(z.File) > 10000 {
			return fmt.Errorf("archive of %d members", len(z.File))
		}
		for _, f := range z.File {
			if f.Flags&1 != 0 {
				continue // encrypted: no credential that a reader of the repository has
			}
			r, err := f.Open()
			if err != nil {
				return fmt.Errorf("member %q can't be read: %w", f.Name, err)
			}
			err = member(f.Name, r)
			r.Close()
			if err != nil {
				return err
			}
		}
	case len(b) > 262 && string(b[257:262]) == "ustar":
		t := tar.NewReader(bytes.NewReader(b))
		for range 10000 {
			h, err := t.Next()
			if err != nil {
				return nil //nolint:nilerr // the end, or damage
			}
			if h.Typeflag == tar.TypeReg {
				if err := member(h.Name, t); err != nil {
					return err
				}
			}
		}
		return fmt.Errorf("archive of more than 10000 members")
	}
	return nil
}
