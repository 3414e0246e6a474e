// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sast

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/scan"
)

// Driver is the manifest of one external tool: all that the control plane knows
// of it. The tool gets nothing but neutral copies of the files it covers, in a
// sandbox of its own, and what it did is judged from outside.
type Driver struct {
	Name        string   // in the signed policy
	Tool        string   // how the tool calls itself in its SARIF
	Program     string   // file that is pinned by digest, found in the toolchain
	Install     string   // command that supplies it
	Interpreter []string // of a script: a program of the toolchain, and its arguments
	Args        []string // ArgFiles stands for the files
	Languages   []string
	Extension   string // that the copies get
	Exits       []int  // exit codes of a run that did all of its work
	Wall        time.Duration
	Memory      int64

	// The canary is one more file of every run: a fault on one line that must be
	// reported, although a comment beside it asks the tool not to.
	canaryText, canaryRule string
	canaryLine             int

	// prepare rewrites a file so that the tool can't lose its way; nil leaves it.
	prepare     func([]byte) ([]byte, error)
	grade       func(hit) (hallmark.Severity, hallmark.Confidence, bool) // false: not what the tool writes
	suppression string                                                   // how in-tree suppressions are switched off
}

// ArgFiles stands for the files in the arguments of a driver.
const ArgFiles = "{files}"

// Drivers are the tools that can be enabled in the policy, by their names.
func Drivers() []Driver { return []Driver{flawfinder()} }

// External is the part of a Config that drivers need.
type External struct {
	// Pins are the digests that the signed policy gives for the drivers it enables.
	Pins map[string]hallmark.Digest
	// Find returns the path of a program of the toolchain; an error of kind
	// not-found means that it is not installed.
	Find func(name string) (string, error)
	// WorkDir is a private directory for the copies.
	WorkDir string

	drivers []Driver // instead of Drivers, for tests
}

// driversVersion names how drivers are run and read; it changes with this code.
const driversVersion = "sast-drivers-v1"

func (e External) known() []Driver {
	if e.drivers != nil {
		return e.drivers
	}
	return Drivers()
}

// enabled returns the drivers that the policy names, and a reason for each name
// that is none.
func (e External) enabled() ([]Driver, []hallmark.Reason) {
	var out []Driver
	var reasons []hallmark.Reason
	for _, name := range slices.Sorted(maps.Keys(e.Pins)) {
		i := slices.IndexFunc(e.known(), func(d Driver) bool { return d.Name == name })
		if i < 0 {
			reasons = append(reasons, hallmark.Reason{
				Code: hallmark.CodeSASTDriver, Message: fmt.Sprintf("the policy enables the driver %q, which this version does not have", name),
				Fix: "hallmark doctor lists the drivers; " + SetCommand(e.Pins, name, ""),
			})
			continue
		}
		out = append(out, e.known()[i])
	}
	return out, reasons
}

// SetCommand is the command that pins a driver to a digest, or takes it out of
// the policy when the digest is empty.
func SetCommand(pins map[string]hallmark.Digest, name string, d hallmark.Digest) string {
	next := maps.Clone(pins)
	if next == nil {
		next = map[string]hallmark.Digest{}
	}
	next[name] = d
	var list []string
	for _, n := range slices.Sorted(maps.Keys(next)) {
		if next[n] != "" {
			list = append(list, n+"="+string(next[n]))
		}
	}
	if len(list) == 0 {
		list = []string{"none"}
	}
	return "hallmark policy set sast.drivers=" + strings.Join(list, ",")
}

// Installed is a driver's program as it lies on this machine.
type Installed struct {
	Path, Interpreter         string
	Digest, InterpreterDigest hallmark.Digest
}

// Inspect finds and digests the program of a driver and its interpreter.
func (d Driver) Inspect(find func(string) (string, error)) (Installed, error) {
	var in Installed
	var err error
	if in.Path, in.Digest, err = inspect(find, d.Program); err != nil || d.Interpreter == nil {
		return in, err
	}
	in.Interpreter, in.InterpreterDigest, err = inspect(find, d.Interpreter[0])
	return in, err
}

func inspect(find func(string) (string, error), name string) (string, hallmark.Digest, error) {
	p, err := find(name)
	if err != nil {
		return "", "", err
	}
	if p, err = filepath.EvalSymlinks(p); err != nil {
		return "", "", fmt.Errorf("finding %s: %w", name, err)
	}
	f, err := os.Open(p)
	if err != nil {
		return "", "", fmt.Errorf("reading %s: %w", name, err)
	}
	defer f.Close()
	digest, _, err := hallmark.DigestFrom(f)
	if err != nil {
		return "", "", fmt.Errorf("reading %s: %w", p, err)
	}
	return p, digest, nil
}

// Fingerprint names everything besides the source that a result of this check
// rests on.
func Fingerprint(e External) (hallmark.Digest, error) {
	text := string(RuleDigest()) + "\x00" + driversVersion
	drivers, _ := e.enabled()
	for _, d := range drivers {
		in, err := d.Inspect(e.Find)
		if err != nil && hallmark.KindOf(err) != hallmark.KindNotFound {
			return "", err
		}
		text += fmt.Sprintf("\x00%s\x00%s\x00%s\x00%s", d.Name, e.Pins[d.Name], in.Digest, in.InterpreterDigest)
	}
	return hallmark.DigestOf([]byte(text)), nil
}

// driven is what the drivers of one scan did.
type driven struct {
	findings []hallmark.Finding
	missed   []string
	data     []hallmark.DataSource
	reasons  []hallmark.Reason // why the check is no result
}

// drive runs every enabled driver over the files of its languages. The error is
// ours; what a tool did wrong is a reason.
func (e External) drive(ctx context.Context, cfg Config, root *os.Root, t tree) (driven, error) {
	drivers, reasons := e.enabled()
	out := driven{reasons: reasons}
	for _, d := range drivers {
		r := toolRun{d: d, e: e, cfg: cfg, out: &out}
		if err := r.all(ctx, root, t); err != nil {
			return out, fmt.Errorf("running driver %s: %w", d.Name, err)
		}
	}
	return out, nil
}

// Bounds of one start of a tool, and of one file.
const (
	maxBatchFiles = 4000
	maxBatchBytes = 128 << 20
	maxFileBytes  = 16 << 20
)

// toolRun is one driver in one scan.
type toolRun struct {
	d       Driver
	e       External
	cfg     Config
	out     *driven
	version string // by the tool's own words
}

func (r *toolRun) all(ctx context.Context, root *os.Root, t tree) error {
	in, err := r.d.Inspect(r.e.Find)
	if hallmark.KindOf(err) == hallmark.KindNotFound {
		r.fail(hallmark.Reason{
			Code: hallmark.CodeSASTDriver, Message: fmt.Sprintf("the policy enables the driver %s, but %v", r.d.Name, err),
			Fix: r.d.Install + ", or " + SetCommand(r.e.Pins, r.d.Name, ""),
		})
		return nil
	} else if err != nil {
		return err
	}
	// Also with nothing to analyse: a pinned program that was changed is told at
	// the first run, not at the first file.
	if !r.pinned(in.Path, in.Digest) {
		return nil
	}
	var paths []string
	for _, l := range r.d.Languages {
		paths = append(paths, t.files[l]...)
	}
	slices.Sort(paths)
	batches := r.batches(root, paths)
	for _, b := range batches {
		why, err := r.start(ctx, in, b, true)
		if err != nil {
			return err
		}
		if why == nil {
			continue
		}
		if why.file, err = r.blame(ctx, in, b, *why); err != nil {
			return err
		}
		r.fail(why.reason(r.d))
		break
	}
	r.out.data = append(r.out.data, hallmark.DataSource{Name: scan.DriverData + r.d.Name + "@" + r.version, Digest: in.Digest})
	if in.Interpreter != "" {
		r.out.data = append(r.out.data, hallmark.DataSource{Name: "interpreter:" + filepath.Base(in.Interpreter), Digest: in.InterpreterDigest})
	}
	return nil
}

func (r *toolRun) fail(why hallmark.Reason) { r.out.reasons = append(r.out.reasons, why) }

// pinned says whether a program is the one of the policy.
func (r *toolRun) pinned(path string, got hallmark.Digest) bool {
	want := r.e.Pins[r.d.Name]
	if got == want {
		return true
	}
	r.fail(hallmark.Reason{
		Code: hallmark.CodeSASTDriverDigest, Message: fmt.Sprintf("the program %s of driver %s has the digest %s; the policy pins %s", path, r.d.Name, got, want),
		Fix: "find out who changed it; if the change is wanted: " + SetCommand(r.e.Pins, r.d.Name, got),
	})
	return false
}

// copied is one file of a batch: its path in the tree and the text that the tool
// reads.
type copied struct {
	path string
	text []byte
}

// batches reads the files. One that is too large to be analysed was missed.
func (r *toolRun) batches(root *os.Root, paths []string) [][]copied {
	var out [][]copied
	size := 0
	for _, p := range paths {
		b, err := readFile(root, p)
		if err == nil && r.d.prepare != nil {
			b, err = r.d.prepare(b)
		}
		if err != nil {
			r.out.missed = append(r.out.missed, fmt.Sprintf("%s: %q: %s", r.d.Name, p, err))
			continue
		}
		if n := len(out); n == 0 || len(out[n-1]) == maxBatchFiles || size+len(b) > maxBatchBytes {
			out, size = append(out, nil), 0
		}
		out[len(out)-1] = append(out[len(out)-1], copied{p, b})
		size += len(b)
	}
	return out
}

func readFile(root *os.Root, p string) ([]byte, error) {
	f, err := root.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFileBytes {
		return nil, fmt.Errorf("larger than %d bytes", maxFileBytes)
	}
	return unifyText(b), nil
}

// complaint is why one start of a tool is no result.
type complaint struct {
	code  hallmark.Code
	text  string
	blame bool   // a single file may be the cause
	file  string // if it was found
}

func (c complaint) reason(d Driver) hallmark.Reason {
	r := hallmark.Reason{Code: c.code, Message: d.Name + ": " + c.text, Fix: "run again; hallmark doctor says what this machine lacks"}
	if c.file != "" {
		r.Message += fmt.Sprintf(", at %s", c.file)
		r.Fix = fmt.Sprintf("write %s so that %s can read it to its end", c.file, d.Name)
	}
	return r
}

// blame finds one file that makes a tool complain in the same way, by halves.
func (r *toolRun) blame(ctx context.Context, in Installed, files []copied, why complaint) (string, error) {
	for why.blame && len(files) > 1 {
		half := files[:len(files)/2]
		got, err := r.start(ctx, in, half, false)
		if err != nil {
			return "", err
		}
		if got == nil || got.text != why.text {
			half = files[len(files)/2:]
			if got, err = r.start(ctx, in, half, false); err != nil || got == nil || got.text != why.text {
				return "", err
			}
		}
		files = half
	}
	if !why.blame {
		return "", nil
	}
	return files[0].path, nil
}

// Where a tool finds things in its sandbox.
const (
	programDir = "/driver"
	homeDir    = "/tmp" // a fresh file system; also the working directory
)

// start runs the tool once over a batch and the canary. With keep, what it found
// goes into the results.
func (r *toolRun) start(ctx context.Context, in Installed, files []copied, keep bool) (*complaint, error) {
	dir, err := os.MkdirTemp(r.e.WorkDir, "driver-")
	if err != nil {
		return nil, fmt.Errorf("making a directory: %w", err)
	}
	defer os.RemoveAll(dir)
	// What runs is a copy of the bytes that were digested, so that nobody can
	// exchange the program in between.
	program := filepath.Join(dir, "program")
	if why, err := r.copyProgram(in.Path, program); why != nil || err != nil {
		return why, err
	}
	src := filepath.Join(dir, "source")
	if err := os.Mkdir(src, 0o755); err != nil {
		return nil, fmt.Errorf("making a directory: %w", err)
	}
	// The canary comes last: a tool that stops early does not reach it.
	files = append(slices.Clone(files), copied{"", []byte(r.d.canaryText)})
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = fmt.Sprintf("%06d%s", i+1, r.d.Extension)
		if err := os.WriteFile(filepath.Join(src, names[i]), f.text, 0o644); err != nil {
			return nil, fmt.Errorf("copying %s: %w", f.path, err)
		}
	}
	wall, memory := r.d.Wall, r.d.Memory
	if r.cfg.Wall > 0 {
		wall = min(wall, r.cfg.Wall)
	}
	rep, err := r.cfg.Worker.Run(ctx, scan.Job{
		Program: r.argv(in, names), Dir: homeDir, Env: []string{"PATH=/usr/bin:/bin", "HOME=" + homeDir, "TMPDIR=/tmp", "LANG=C.UTF-8"},
		Mounts: []scan.Mount{{Source: program, Target: path.Join(programDir, r.d.Program)}, {Source: src, Target: sourceDir}},
		Memory: memory, Wall: wall,
	})
	if err != nil {
		return nil, err
	}
	if why := r.check(rep); why != nil {
		return why, nil
	}
	said, err := readSARIF(rep.Stdout, r.d.Tool, sourceDir)
	if err != nil {
		return &complaint{code: hallmark.CodeScanIncomplete, text: "its SARIF can't be relied on: " + err.Error()}, nil
	}
	findings, why := r.findings(said, files, names)
	if why != nil || !keep {
		return why, nil
	}
	r.version = said.Version
	r.out.findings = append(r.out.findings, findings...)
	r.out.data = append(r.out.data, hallmark.DataSource{Name: "sarif:" + r.d.Name, Digest: hallmark.DigestOf(rep.Stdout), Records: len(said.Hits)})
	return nil, nil
}

func (r *toolRun) copyProgram(from, to string) (*complaint, error) {
	b, err := os.ReadFile(from)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", from, err)
	}
	if got := hallmark.DigestOf(b); got != r.e.Pins[r.d.Name] {
		return &complaint{code: hallmark.CodeSASTDriverDigest, text: fmt.Sprintf("the program %s changed during the scan: its digest is %s", from, got)}, nil
	}
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return nil, fmt.Errorf("copying %s: %w", from, err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("copying %s: %w", from, err)
	}
	return nil, nil
}

func (r *toolRun) argv(in Installed, names []string) []string {
	var out []string
	if in.Interpreter != "" {
		out = append([]string{in.Interpreter}, r.d.Interpreter[1:]...)
	}
	out = append(out, path.Join(programDir, r.d.Program))
	for _, a := range r.d.Args {
		if a != ArgFiles {
			out = append(out, a)
			continue
		}
		for _, n := range names {
			out = append(out, path.Join(sourceDir, n))
		}
	}
	return out
}

// check judges a start by what was seen of it from outside.
func (r *toolRun) check(rep scan.Report) *complaint {
	bad := func(blame bool, format string, args ...any) *complaint {
		return &complaint{code: hallmark.CodeScanIncomplete, text: fmt.Sprintf(format, args...), blame: blame}
	}
	noise := plain(string(rep.Stderr[:min(len(rep.Stderr), 4*maxMessage)]))
	switch {
	case rep.LimitHit != "":
		return bad(false, "the tool hit its %s limit", rep.LimitHit)
	case rep.Egress > 0:
		return bad(false, "the tool tried to reach the network %d times", rep.Egress)
	case !slices.Contains(r.d.Exits, rep.ExitCode):
		return bad(true, "the tool ended with exit code %d: %s", rep.ExitCode, noise)
	case noise != "":
		return bad(true, "the tool complained: %s", noise)
	case len(rep.Stdout) == 0:
		return bad(false, "the tool printed nothing")
	}
	return nil
}

// findings turns what a tool said into findings. It must have found the canary
// where it is.
func (r *toolRun) findings(said report, files []copied, names []string) ([]hallmark.Finding, *complaint) {
	bad := func(format string, args ...any) ([]hallmark.Finding, *complaint) {
		return nil, &complaint{code: hallmark.CodeScanIncomplete, text: "its SARIF can't be relied on: " + fmt.Sprintf(format, args...)}
	}
	byName := map[string]int{}
	for i, n := range names {
		byName[n] = i
	}
	lines := make([][][]byte, len(files))
	times := map[string]int{}
	canary := false
	var out []hallmark.Finding
	for _, h := range said.Hits {
		i, ok := byName[h.Path]
		if !ok {
			return bad("a result is in %.80q, which is no file of the source", h.Path)
		}
		if lines[i] == nil {
			lines[i] = bytes.Split(files[i].text, []byte{'\n'})
		}
		if h.Line > len(lines[i]) {
			return bad("a result is on line %d of %s, which has %d", h.Line, files[i].path, len(lines[i]))
		}
		severity, confidence, ok := r.d.grade(h)
		if !ok {
			return bad("a result has the level %q and the rank %v, which the tool does not have", h.Level, h.Rank)
		}
		if i == len(files)-1 {
			canary = canary || (h.Rule == r.d.canaryRule && h.Line == r.d.canaryLine)
			continue
		}
		// The text of the line and which one of its kind it is: stable when lines
		// move, different for each of two equal lines.
		key := strings.Join([]string{r.d.Name, h.Rule, files[i].path, string(bytes.Join(bytes.Fields(lines[i][h.Line-1]), []byte{' '}))}, "\x00")
		times[key]++
		out = append(out, hallmark.Finding{
			Check: "sast", Tool: r.d.Name, Rule: h.Rule, CWE: h.CWE, Severity: severity, Confidence: confidence, Message: h.Message,
			Path: files[i].path, Line: h.Line, Column: h.Column,
			Fingerprint: string(hallmark.DigestOf(fmt.Appendf(nil, "%s\x00%d", key, times[key]))),
		})
	}
	if !canary {
		return nil, &complaint{code: hallmark.CodeScanCanary, text: "the tool did not find the planted canary"}
	}
	return out, nil
}
