// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/package-url/packageurl-go"
	"golang.org/x/mod/module"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/image"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/toolchain"
)

// traced is what the traces of a build come to.
type traced struct {
	trace    attest.Trace
	logs     []hallmark.Digest  // of each step; "" where there is none
	programs []build.Executable // that ran, with the steps that ran them
	loaded   []build.Executable // compiled code of the platform that was read
	rooms    []build.Room       // the same of the stages of Dockerfiles
	written  []hallmark.Digest  // contents that the build wrote
	brought  []hallmark.Digest  // contents of source and dependencies that it read
	reasons  []hallmark.Reason
}

// traced keeps the event logs, finds out where everything that was read came
// from, and says what speaks against the build.
func (b *builder) traced(ctx context.Context, in pipeline.Input, k kit, res build.Result, scratch string, c cooked) (traced, error) {
	var out traced
	sum := build.NewSummary()
	sums := map[string]*build.Summary{} // of instructions of Dockerfiles
	for _, r := range c.rooms {
		of := build.NewSummary()
		for _, s := range r.steps {
			sums[s.Name] = of
		}
	}
	whole := len(res.Steps) > 0
	for _, s := range res.Steps {
		sum := sum
		if of := sums[s.Name]; of != nil {
			sum = of
		}
		t := s.Report.Trace
		d := hallmark.Digest("")
		if t.Log != "" {
			var err error
			if d, err = b.stores.keepLog(ctx, s.Name, t, sum); err != nil {
				return out, err
			}
		}
		out.logs = append(out.logs, d)
		if !t.Whole() {
			whole = false
			why := t.Failure
			if why == "" {
				why = "it has no trace"
			}
			out.reasons = append(out.reasons, hallmark.Reason{Code: hallmark.CodeTraceIncomplete, Check: "build", Message: fmt.Sprintf("step %s: %s", s.Name, why), Fix: "build again; nothing counts that was not seen whole"})
		}
		out.trace.Engine = t.Engine
		if out.trace.Attribution == "" && t.Attribution != "" { // of the first step that has a gap
			out.trace.Attribution = "step " + s.Name + ": " + t.Attribution
		}
	}
	out.trace.Whole = whole
	egress := slices.ContainsFunc(res.Steps, func(s build.StepResult) bool { return len(s.Report.Egress) > 0 })
	out.trace.Hermetic = whole && !egress
	if out.trace.Engine == "" {
		return out, nil
	}
	known, err := toolchain.OpenContents(b.home.Contents())
	if err != nil {
		return out, err
	}
	origins, err := b.origins(in, k, known)
	if err != nil {
		return out, err
	}
	out.programs = sum.Programs()
	left, err := leftIn(sandbox.Upper(scratch))
	if err != nil {
		return out, fmt.Errorf("reading what the build left: %w", err)
	}
	materials, err := b.parts.Explain(origins, sum)
	if err != nil {
		return out, err
	}
	out.loaded = loaded(materials)
	parts := []part{{sum: sum, materials: materials, left: left}}
	for _, r := range c.rooms {
		if len(r.steps) == 0 {
			continue
		}
		p, err := b.roomPart(in, r, sums[r.steps[0].Name], c.origins, known)
		if err != nil {
			return out, err
		}
		out.rooms = append(out.rooms, build.Room{Request: p.request, Executed: r.executed(p.sum), Loaded: loaded(p.materials)})
		parts = append(parts, p)
	}
	if err := known.Save(); err != nil {
		return out, err
	}
	for _, p := range parts {
		describeProcesses(&out.trace, p.sum)
		out.written = append(out.written, p.sum.Written()...)
		for _, m := range p.materials {
			if m.Digest != "" && (m.Origin == build.OriginSource || m.Origin == build.OriginDependency) {
				out.brought = append(out.brought, m.Digest)
			}
		}
	}
	if err := out.materials(ctx, b.stores, parts, b.home.params.Unexplained); err != nil {
		return out, err
	}
	return out, b.products(ctx, &out, parts, whole)
}

// loaded is the compiled code of the platform that was read, executed or not.
func loaded(materials []build.Material) []build.Executable {
	var out []build.Executable
	for _, m := range materials {
		if m.Code && (m.Origin == build.OriginToolchain || m.Origin == build.OriginUnexplained) {
			out = append(out, build.Executable{Path: string(m.Path), Digest: m.Digest, Step: m.Step})
		}
	}
	return out
}

// part is what one room of a build was seen to do: that of its steps, or one
// stage of a Dockerfile.
type part struct {
	sum       *build.Summary
	materials []build.Material
	left      map[build.Raw]hallmark.Digest
	request   build.Request
}

// keepLog makes one event log a blob and takes it into the summary.
func (s *stores) keepLog(ctx context.Context, step string, t build.Trace, sum *build.Summary) (hallmark.Digest, error) {
	f, err := os.Open(t.Log)
	if err != nil {
		if t.Failure != "" {
			return "", nil // the agent died before it wrote one
		}
		return "", fmt.Errorf("reading the event log of step %s: %w", step, err)
	}
	defer f.Close()
	// It may be larger than memory.
	d, _, err := s.blobs.PutFrom(ctx, f)
	if err != nil {
		return "", fmt.Errorf("keeping the event log of step %s: %w", step, err)
	}
	// A log that could not be written is kept as far as it goes.
	if t.Failure == "" && t.Digest != "" && d != t.Digest {
		return "", hallmark.Errorf(hallmark.KindInternal, "the event log of step %s is not what its agent wrote", step)
	}
	if !t.Whole() {
		return d, nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", fmt.Errorf("reading the event log of step %s: %w", step, err)
	}
	return d, sum.Add(step, f)
}

// Bounds of what a statement carries itself. The event logs, whose digests it
// carries too, have all of it.
const (
	maxProcesses = 2000
	maxArgs      = 4096 // bytes of the arguments of one process
	maxNamed     = 1000 // unexplained or unstable files
)

func describeProcesses(t *attest.Trace, sum *build.Summary) {
	runs := map[attest.Program]int{}
	for _, st := range sum.Steps {
		for _, p := range st.Processes {
			for _, x := range p.Execs {
				runs[attest.Program{Path: text(x.Path), Digest: x.Digest}]++
			}
			if len(t.Processes) == maxProcesses {
				t.Omitted++
				continue
			}
			row := attest.TracedProcess{Step: st.Step, Number: p.Number, Parent: p.Parent, Code: p.Code, Signal: p.Signal, Duration: time.Duration(max(0, p.Ended-p.Started))}
			if n := len(p.Execs); n > 0 {
				row.Program, row.Digest, row.Args = text(p.Execs[n-1].Path), p.Execs[n-1].Digest, shorten(p.Execs[n-1].Args)
			}
			t.Processes = append(t.Processes, row)
		}
		for _, c := range st.Connects {
			if len(t.Network) < maxProcesses {
				t.Network = append(t.Network, attest.TracedConnect{Step: st.Step, Process: c.Process, Address: text(c.Address), Refused: c.Refused})
			}
		}
	}
	for p, n := range runs {
		p.Runs = n
		t.Programs = append(t.Programs, p)
	}
	slices.SortFunc(t.Programs, func(a, b attest.Program) int {
		return strings.Compare(a.Path+string(a.Digest), b.Path+string(b.Digest))
	})
}

// text is a path or argument as statements show it: quoted where it is no UTF-8.
func text(r build.Raw) string {
	b, err := r.MarshalText()
	if err != nil {
		return ""
	}
	return string(b)
}

func shorten(args []build.Raw) []string {
	var out []string
	room := maxArgs
	for _, a := range args {
		s := text(a)
		if len(s) > room {
			return append(out, "…")
		}
		room -= len(s)
		out = append(out, s)
	}
	return out
}

// materials keeps the list of everything that was read; files of no known origin
// speak against the build unless they may.
func (out *traced) materials(ctx context.Context, st *stores, parts []part, unexplained bool) error {
	var all []build.Material
	for _, p := range parts {
		all = append(all, p.materials...)
	}
	slices.SortStableFunc(all, func(a, b build.Material) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Digest, b.Digest))
	})
	m, err := build.Collate(all)
	if err != nil {
		return err
	}
	d, err := st.blobs.Put(ctx, m.List)
	if err != nil {
		return fmt.Errorf("keeping the list of materials: %w", err)
	}
	out.trace.Materials = attest.List{Digest: d, Files: m.Files}
	for _, g := range m.Groups {
		out.trace.Groups = append(out.trace.Groups, attest.Group{Origin: string(g.Origin), Package: g.Package, Files: g.Files, Bytes: g.Bytes, Digest: g.Digest, Undeclared: g.Undeclared})
		if g.Origin == build.OriginToolchain && g.Package != "" {
			out.trace.Packages = append(out.trace.Packages, g.Package)
		}
	}
	for _, u := range m.Unexplained[:min(len(m.Unexplained), maxNamed)] {
		out.trace.Unexplained = append(out.trace.Unexplained, attest.FileMaterial{Path: text(u.Path), Digest: u.Digest, Package: u.Package, Altered: u.Why})
	}
	out.undeclared(all, m.Groups)
	told := 0
	for _, u := range m.Unexplained {
		// That files of the machine are of no package may be accepted; the cache is
		// the control plane's own.
		if told == 5 || unexplained && !u.Cached {
			continue
		}
		told++
		out.reasons = append(out.reasons, notExplained(u))
	}
	for _, p := range parts {
		out.unstable(p)
	}
	return nil
}

// unstable tells of files that changed after they were read.
func (out *traced) unstable(p part) {
	before := map[build.Raw]bool{}
	for _, m := range p.materials {
		if m.Origin != build.OriginBuild {
			before[m.Path] = true
		}
	}
	for _, u := range p.sum.Unstable[:min(len(p.sum.Unstable), maxNamed)] {
		out.trace.Unstable = append(out.trace.Unstable, attest.FileMaterial{Path: text(u.Path), Digest: u.Digest})
		if before[u.Path] {
			out.reasons = append(out.reasons, hallmark.Reason{Code: hallmark.CodeInputUnstable, Check: "build", Message: fmt.Sprintf("step %s: %s changed after it was hashed for its reader", u.Step, text(u.Path)), Fix: "find who writes to it while the build reads it"})
		}
	}
}

// notExplained is what speaks against a build that read a file of no known origin.
func notExplained(u build.Material) hallmark.Reason {
	if u.Cached {
		return hallmark.Reason{
			Code: hallmark.CodeCacheAltered, Check: "build", Message: fmt.Sprintf("step %s read %s (%s), which the toolchain cache did not hold when it was made", u.Step, text(u.Path), u.Digest),
			Fix: "find out who writes to the home, then make the cache again: hallmark cache warm",
		}
	}
	if u.Content == build.ContentAltered {
		return hallmark.Reason{
			Code: hallmark.CodeToolchainAltered, Check: "build", Message: fmt.Sprintf("step %s read %s (%s), which is not as its package %s declares: %s", u.Step, text(u.Path), u.Digest, u.Package, u.Why),
			Fix: "find out who changed it and install the package again, or allow such files: hallmark policy set build.unexplained=record",
		}
	}
	return hallmark.Reason{
		Code: hallmark.CodeUnexplained, Check: "build", Message: fmt.Sprintf("step %s read %s (%s), which belongs to no source, dependency or toolchain package", u.Step, text(u.Path), u.Digest),
		Fix: "declare it as a dependency, install it from a package, or allow such files: hallmark policy set build.unexplained=record",
	}
}

// undeclared names the files of which their package declares no digest. Packages
// that declare none at all, such as the Go distribution, are told by the number
// of their files.
func (out *traced) undeclared(all []build.Material, groups []build.Group) {
	none := map[string]bool{}
	for _, g := range groups {
		none[g.Package] = g.Undeclared == g.Files && g.Files > 1
	}
	for _, m := range all {
		if m.Content == build.ContentUndeclared && !none[m.Package] && len(out.trace.Undeclared) < maxNamed {
			out.trace.Undeclared = append(out.trace.Undeclared, attest.FileMaterial{Path: text(m.Path), Digest: m.Digest, Package: m.Package})
		}
	}
}

func (b *builder) products(ctx context.Context, out *traced, parts []part, whole bool) error {
	var list []byte
	var n int
	var untraced []build.Raw
	for _, p := range parts {
		lines, some, not, err := build.Products(p.sum, p.left)
		if err != nil {
			return err
		}
		list, n, untraced = append(list, lines...), n+some, append(untraced, not...)
	}
	d, err := b.stores.blobs.Put(ctx, list)
	if err != nil {
		return fmt.Errorf("keeping the list of products: %w", err)
	}
	out.trace.Products = attest.List{Digest: d, Files: n}
	for i, p := range untraced {
		if !whole || i == 5 {
			break
		}
		out.reasons = append(out.reasons, hallmark.Reason{Code: hallmark.CodeProductUntraced, Check: "build", Message: fmt.Sprintf("%s holds what no process of the build was seen to write or read", text(p)), Fix: "report it: the trace missed something"})
	}
	return nil
}

// leftIn hashes every regular file that a build left in its workspace. What it
// closed to us, where it ran as our own user, is opened: no build may keep its
// record from being made. No process of it is left.
func leftIn(upper string) (map[build.Raw]hallmark.Digest, error) {
	if err := os.Chmod(upper, 0o755); err != nil { //nolint:gosec // the directory that we made
		return nil, err
	}
	root, err := os.OpenRoot(upper)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	out := map[build.Raw]hallmark.Digest{}
	err = fs.WalkDir(root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() && !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if mode := info.Mode().Perm(); mode&0o500 != 0o500 && (d.IsDir() || mode&0o400 == 0) {
			if err := root.Chmod(p, mode|0o700); err != nil {
				return err
			}
		}
		if d.IsDir() {
			return nil
		}
		f, err := root.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		digest, _, err := hallmark.DigestFrom(f)
		out[build.Raw(path.Join(Workspace, p))] = digest
		return err
	})
	return out, err
}

// origins say where the files of a sandbox come from.
func (b *builder) origins(in pipeline.Input, k kit, known *toolchain.Contents) (build.Origins, error) {
	o := build.Origins{Workspace: Workspace, Empty: []string{"/tmp", "/dev/shm", build.CacheDir}}
	var err error
	if o.Source, err = digestsBelow(in.Export.Dir); err != nil {
		return o, fmt.Errorf("hashing the source: %w", err)
	}
	if o.Places, err = k.places(known); err != nil {
		return o, err
	}
	if held := k.cache.held; held != nil {
		of := func(p string) string { return path.Join("go", p) }
		o.Places = append(o.Places, build.Place{
			Prefix: path.Join(build.CacheDir, "go"), Origin: build.OriginCache,
			Owner: func(p string) (string, bool) { return "", held[of(p)] != "" },
			Holds: func(p string, d hallmark.Digest) bool { return d == "" || held[of(p)] == d },
		})
	}
	for _, p := range sandbox.Furnished() {
		o.Places = append(o.Places, build.Place{Prefix: p, Origin: build.OriginSandbox})
	}
	for _, m := range in.Dependencies.Mounts {
		host := filepath.Join(in.DepsDir, m.Host)
		owner := goModule
		if path.Base(m.Target) == "node_modules" {
			owner = func(p string) (string, bool) { return nodePackage(host, p) }
		}
		o.Places = append(o.Places, build.Place{Prefix: m.Target, Origin: build.OriginDependency, Owner: owner})
	}
	return o, nil
}

// digestsBelow hashes every regular file of an exported tree.
func digestsBelow(dir string) (map[string]hallmark.Digest, error) {
	out := map[string]hallmark.Digest{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		out[rel], _, err = hallmark.DigestFrom(f)
		return err
	})
	return out, err
}

// places are the packages of what builds, and what its kernel makes up; known are
// contents that were compared before.
func (k kit) places(known *toolchain.Contents) ([]build.Place, error) {
	owner, inspect, err := k.packages(known)
	if err != nil {
		return nil, err
	}
	out := []build.Place{{Prefix: "/", Origin: build.OriginToolchain, Owner: owner, Inspect: inspect}}
	if k.tree != nil {
		out[0].Holds = k.imageHolds
	}
	for _, p := range []string{"/proc", "/dev", "/sys"} {
		out = append(out, build.Place{Prefix: p, Origin: build.OriginKernel})
	}
	return out, nil
}

// imageHolds reports whether a file of the image has this content, by its layers.
func (k kit) imageHolds(p string, d hallmark.Digest) bool {
	e, ok := k.tree.Find("/" + p)
	return ok && e.Type == image.File && (d == "" || e.Digest == d)
}

// goModule is the module that a file of a module cache belongs to. The list of
// versions and the locks belong to none in particular.
func goModule(p string) (string, bool) {
	if rest, ok := strings.CutPrefix(p, "cache/download/"); ok {
		escaped, file, ok := strings.Cut(rest, "/@v/")
		if !ok {
			return "", false
		}
		name, err := module.UnescapePath(escaped)
		version := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(file, ".info"), ".mod"), ".zip")
		version = strings.TrimSuffix(strings.TrimSuffix(version, ".ziphash"), ".lock")
		return goPURL(name, version), err == nil && version != ""
	}
	escaped, rest, ok := strings.Cut(p, "@")
	if !ok {
		return "", false
	}
	version, _, _ := strings.Cut(rest, "/")
	name, err := module.UnescapePath(escaped)
	if err != nil {
		return "", false
	}
	if v, err := module.UnescapeVersion(version); err == nil {
		version = v
	}
	return goPURL(name, version), true
}

func goPURL(name, version string) string {
	dir, base := path.Split(name)
	return packageurl.NewPackageURL("golang", strings.TrimSuffix(dir, "/"), base, version, nil, "").ToString()
}

// nodePackage is the package that a file below a node_modules directory belongs
// to, by the package.json that was verified when it was fetched.
func nodePackage(host, p string) (string, bool) {
	dir, rest := "", p
	for {
		parts := strings.SplitN(rest, "/", 3)
		n := 1
		if strings.HasPrefix(parts[0], "@") {
			n = 2
		}
		if len(parts) <= n {
			return "", strings.HasPrefix(p, ".") // npm's own lock file
		}
		dir = path.Join(dir, path.Join(parts[:n]...))
		rest = strings.TrimPrefix(p, dir+"/")
		inner, ok := strings.CutPrefix(rest, "node_modules/")
		if !ok {
			break
		}
		dir, rest = path.Join(dir, "node_modules"), inner
	}
	raw, err := os.ReadFile(filepath.Join(host, filepath.FromSlash(dir), "package.json"))
	if err != nil {
		return "", false
	}
	var pkg struct{ Name, Version string }
	if json.Unmarshal(raw, &pkg) != nil || pkg.Name == "" {
		return "", false
	}
	scope, name, ok := strings.Cut(pkg.Name, "/")
	if !ok {
		scope, name = "", pkg.Name
	}
	return packageurl.NewPackageURL("npm", scope, name, pkg.Version, nil, "").ToString(), true
}

// imagePURL names an image as a package; nothing has no name.
func imagePURL(ref build.ImageRef) string {
	if ref.Digest == "" {
		return ""
	}
	return packageurl.NewPackageURL("oci", "", path.Base(ref.Name), string(ref.Digest), nil, "").ToString()
}

// packages finds the package of the toolchain that a file belongs to, by its path
// without the leading slash, and compares its bytes with what that declares. Every
// file of an image is the image's (imageHolds says which those are): where no
// package has it, or has it in other bytes, that is what it belongs to.
func (k kit) packages(known *toolchain.Contents) (owner func(string) (string, bool), inspect func(string, hallmark.Digest) (build.Inspection, error), err error) {
	cfg := toolchain.Config{Root: "/", GoRoot: sandbox.GoRoot()}
	image := ""
	if k.chain.Root != "" {
		cfg = toolchain.Config{Root: k.chain.Root}
		image = imagePURL(k.ref)
	} else if strings.HasPrefix(cfg.GoRoot, "/usr/") && !strings.HasPrefix(cfg.GoRoot, "/usr/local/") {
		cfg.GoRoot = "" // a package of the platform
	}
	all, err := toolchain.New(cfg)
	if err != nil {
		return nil, nil, err
	}
	owner = func(p string) (string, bool) {
		if owner, ok := all.Owner("/" + p); ok {
			return owner.PURL, true
		}
		return image, image != ""
	}
	inspect = func(p string, d hallmark.Digest) (build.Inspection, error) {
		got, err := all.Inspect("/"+p, d, known)
		if err != nil {
			return build.Inspection{}, err
		}
		out := build.Inspection{Code: got.Code, Why: got.Why}
		switch got.State {
		case toolchain.Declared:
			out.Content = build.ContentDeclared
		case toolchain.Undeclared:
			out.Content = build.ContentUndeclared
		default:
			out.Content = build.ContentAltered
			if image != "" { // a layer of it has other bytes than the package, and the image's digest is what counts
				out = build.Inspection{Content: build.ContentUndeclared, Package: image, Code: got.Code}
			}
		}
		return out, nil
	}
	return owner, inspect, nil
}
