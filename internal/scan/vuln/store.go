// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package vuln matches an inventory against OSV advisories from a local store.
// No data is never taken for no vulnerability: an ecosystem without data, or with
// data older than the policy allows, makes the outcome error.
package vuln

import (
	"archive/zip"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// Advisory is the part of an OSV record that matching needs.
type Advisory struct {
	ID        string     `json:"id"`
	Modified  time.Time  `json:"modified"`
	Withdrawn *time.Time `json:"withdrawn,omitempty"`
	Aliases   []string   `json:"aliases,omitempty"`
	Summary   string     `json:"summary,omitempty"`
	Severity  []Rating   `json:"severity,omitempty"`
	Affected  []Affected `json:"affected"`
	Database  struct {
		Severity string `json:"severity,omitempty"`
	} `json:"database_specific"`
}

// Rating is one CVSS vector.
type Rating struct {
	Type  string `json:"type"`
	Score string `json:"score"`
}

// Affected names a package and which of its versions.
type Affected struct {
	Package struct {
		Ecosystem string `json:"ecosystem"`
		Name      string `json:"name"`
	} `json:"package"`
	Ranges []struct {
		Type   string  `json:"type"`
		Events []Event `json:"events"`
	} `json:"ranges,omitempty"`
	Versions []string `json:"versions,omitempty"`
}

// Event begins or ends a range.
type Event struct {
	Introduced   string `json:"introduced,omitempty"`
	Fixed        string `json:"fixed,omitempty"`
	LastAffected string `json:"last_affected,omitempty"`
}

// Data is the advisories of one ecosystem.
type Data struct {
	Ecosystem  string     `json:"ecosystem"`
	Newest     time.Time  `json:"newest"`
	Advisories []Advisory `json:"advisories"`
}

// Summary describes the data of one ecosystem.
type Summary struct {
	Name    string
	Records int
	Newest  time.Time
	Digest  hallmark.Digest
}

// limits on what an export may hold.
const (
	maxRecord  = 16 << 20
	maxRecords = 2_000_000
)

// Sync reads an OSV export, a zip file or a directory of JSON records, and
// replaces the data of every ecosystem it names. Nothing is replaced when any
// record can't be read.
func Sync(dir, source string) ([]Summary, error) {
	if strings.Contains(source, "://") {
		return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindUsage, "%s: advisories are read from a zip file or a directory", source),
			"download the export first, then: hallmark advisories sync FILE")
	}
	records := map[string]*Data{}
	n := 0
	add := func(name string, r io.Reader) error {
		if n++; n > maxRecords {
			return hallmark.Errorf(hallmark.KindInvalid, "%s: more than %d records", source, maxRecords)
		}
		b, err := io.ReadAll(io.LimitReader(r, maxRecord+1))
		if err != nil || len(b) > maxRecord {
			return hallmark.Errorf(hallmark.KindInvalid, "%s: reading %s: %v", source, name, cmp.Or(err, errors.New("the record is too large")))
		}
		a, err := ParseAdvisory(b)
		if err != nil {
			return hallmark.Errorf(hallmark.KindInvalid, "%s: %s: %w", source, name, err)
		}
		for _, eco := range ecosystemsOf(a) {
			if records[eco] == nil {
				records[eco] = &Data{Ecosystem: eco}
			}
			records[eco].Advisories = append(records[eco].Advisories, a)
		}
		return nil
	}
	if err := readExport(source, add); err != nil {
		return nil, err
	}
	if len(records) == 0 {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "%s holds no OSV record", source)
	}
	return write(dir, records)
}

func readExport(source string, add func(string, io.Reader) error) error {
	st, err := os.Stat(source)
	if err != nil {
		return hallmark.Errorf(hallmark.KindNotFound, "reading advisories: %w", err)
	}
	if st.IsDir() {
		root := os.DirFS(source)
		return fs.WalkDir(root, ".", func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || filepath.Ext(p) != ".json" {
				return err
			}
			f, err := root.Open(p)
			if err != nil {
				return err
			}
			defer f.Close()
			return add(p, f)
		})
	}
	z, err := zip.OpenReader(source)
	if err != nil {
		return hallmark.Errorf(hallmark.KindInvalid, "reading %s: %w", source, err)
	}
	defer z.Close()
	for _, f := range z.File {
		if filepath.Ext(f.Name) != ".json" || f.FileInfo().IsDir() {
			continue
		}
		r, err := f.Open()
		if err != nil {
			return hallmark.Errorf(hallmark.KindInvalid, "%s: reading %s: %w", source, f.Name, err)
		}
		err = add(f.Name, r)
		r.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// ParseAdvisory reads one OSV record.
func ParseAdvisory(b []byte) (Advisory, error) {
	var a Advisory
	if err := json.Unmarshal(b, &a); err != nil {
		return a, err
	}
	if a.ID == "" {
		return a, errors.New("the record has no id")
	}
	return a, nil
}

func ecosystemsOf(a Advisory) []string {
	var out []string
	for _, f := range a.Affected {
		if e := baseEcosystem(f.Package.Ecosystem); e != "" && !slices.Contains(out, e) {
			out = append(out, e)
		}
	}
	return out
}

// baseEcosystem drops the release from a name such as "Debian:12".
func baseEcosystem(e string) string {
	e, _, _ = strings.Cut(e, ":")
	return e
}

// sameEcosystem reports whether an advisory's ecosystem is a component's. Each
// release of a distribution mends by versions of its own, where both name one.
func sameEcosystem(advisory, component string) bool {
	a, release, named := strings.Cut(advisory, ":")
	c, other, both := strings.Cut(component, ":")
	return a == c && (!named || !both || release == other)
}

// fileOf is a name that no ecosystem can leave the store with.
func fileOf(dir, eco string) string {
	return filepath.Join(dir, hallmark.DigestOf([]byte(eco)).Hex()[:32]+".json")
}

func write(dir string, records map[string]*Data) ([]Summary, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "making the advisory store: %w", err)
	}
	var out []Summary
	for eco, d := range records {
		slices.SortFunc(d.Advisories, func(a, b Advisory) int { return strings.Compare(a.ID, b.ID) })
		for _, a := range d.Advisories {
			// Some exports carry the year 1 for records without a date.
			if a.Modified.Year() > 1990 && a.Modified.After(d.Newest) {
				d.Newest = a.Modified
			}
		}
		b, err := json.Marshal(d)
		if err != nil {
			return nil, fmt.Errorf("encoding advisories of %s: %w", eco, err)
		}
		f, err := os.CreateTemp(dir, ".part-*")
		if err != nil {
			return nil, fmt.Errorf("writing advisories: %w", err)
		}
		_, err = f.Write(b)
		err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
		if err == nil {
			err = os.Rename(f.Name(), fileOf(dir, eco))
		}
		if err != nil {
			os.Remove(f.Name())
			return nil, fmt.Errorf("writing advisories: %w", err)
		}
		out = append(out, Summary{Name: eco, Records: len(d.Advisories), Newest: d.Newest, Digest: hallmark.DigestOf(b)})
	}
	slices.SortFunc(out, func(a, b Summary) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// load reads the data of an ecosystem; ok is false when there is none.
func load(dir, eco string) (d Data, digest hallmark.Digest, ok bool, err error) {
	b, err := os.ReadFile(fileOf(dir, baseEcosystem(eco)))
	if errors.Is(err, fs.ErrNotExist) {
		return d, "", false, nil
	}
	if err != nil {
		return d, "", false, fmt.Errorf("reading advisories of %s: %w", eco, err)
	}
	if err := json.Unmarshal(b, &d); err != nil || d.Ecosystem != baseEcosystem(eco) {
		return d, "", false, fmt.Errorf("reading advisories of %s: the file is damaged: sync again", eco)
	}
	return d, hallmark.DigestOf(b), true, nil
}

// Fingerprint names all the data of a store.
func Fingerprint(dir string) (hallmark.Digest, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return "", err
	}
	slices.Sort(files)
	var all strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return "", fmt.Errorf("reading advisories: %w", err)
		}
		all.WriteString(string(hallmark.DigestOf(b)))
	}
	return hallmark.DigestOf([]byte(all.String())), nil
}
