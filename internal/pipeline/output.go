// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/intoto"
)

// partPrefix marks a result directory that is still being written. It lies
// beside the final one, so that one rename publishes it.
const partPrefix = ".hallmark-part-"

// CheckOut refuses a directory that holds anything but an earlier result.
func CheckOut(out string) error {
	entries, err := os.ReadDir(out)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return hallmark.Errorf(hallmark.KindInvalid, "reading output directory: %w", err)
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	if len(names) > 0 && !(slices.Contains(names, "verdict.json") && slices.Contains(names, "evidence.jsonl")) {
		return hallmark.WithHint(
			hallmark.Errorf(hallmark.KindInvalid, "output directory %s is not empty and holds no earlier result", out),
			"name another directory with --out")
	}
	return nil
}

// write makes the result directory complete and durable under another name and
// exchanges it with out in one step, so that out is never half a result.
func (r *run) write(res Result, out string) error {
	files, err := r.files(res)
	if err != nil {
		return err
	}
	return Publish(files, out, r.cfg.Disk, func(d hallmark.Digest) ([]byte, error) { return r.cfg.Blobs.Get(r.ctx, d) })
}

// Publish makes a result directory of files, whose names may lie in directories of
// it, and puts it in the place of an earlier one, which is all that may stand
// there. get reads the bytes of files that name a blob.
func Publish(files map[string]File, out string, disk durable.Disk, get func(hallmark.Digest) ([]byte, error)) error {
	parent := filepath.Dir(filepath.Clean(out))
	if err := durable.MakeDir(parent, 0o755); err != nil {
		return err
	}
	part, lock, err := durable.TempDir(parent, partPrefix)
	if err != nil {
		return err
	}
	defer lock.Close()       // as long as it is open, no other run sweeps the part
	defer os.RemoveAll(part) // what the exchange leaves, or an unfinished part
	if err := fill(files, part, disk, get); err != nil {
		return err
	}
	if err := os.Chmod(part, 0o755); err != nil {
		return err
	}
	if err := durable.SyncDir(part); err != nil {
		return err
	}
	// A run is long: what stands there now may not be what stood there then.
	if err := CheckOut(out); err != nil {
		return err
	}
	if err := disk.Step(durable.Synced, out); err != nil {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, part, unix.AT_FDCWD, out, unix.RENAME_EXCHANGE)
	if err == unix.ENOENT {
		err = os.Rename(part, out)
	}
	if err != nil {
		return fmt.Errorf("publishing results: %w", err)
	}
	if err := disk.Step(durable.Named, out); err != nil {
		return err
	}
	return durable.SyncDir(parent)
}

// File is one file of a result directory.
type File struct {
	Bytes []byte
	Blob  hallmark.Digest // where set, the bytes are read when they are written
	Mode  os.FileMode
}

// files are the contents of a result directory by name. No two things share a
// name, and no name leads out of the directory.
func (r *run) files(res Result) (map[string]File, error) {
	files := map[string]File{}
	var lines bytes.Buffer
	var provenance []byte
	for _, e := range append(slices.Clone(res.Evidence), res.VSA) {
		lines.Write(e.JSON)
		lines.WriteByte('\n')
	}
	for _, e := range res.Evidence {
		st, err := r.cfg.Decider.Verify(e.JSON)
		if err != nil {
			return nil, err
		}
		if st.PredicateType() == intoto.PredicateProvenance {
			provenance = e.JSON
		}
	}
	for name, b := range map[string][]byte{
		"evidence.jsonl": lines.Bytes(), "verdict.json": res.Verdict.JSON, "verdict.sigstore.json": res.VSA.JSON,
		"trusted_root.json": r.cfg.TrustedRoot, "roots.json": r.cfg.Roots, "release.pub": r.cfg.ReleaseKey,
		"VERIFY.txt": r.instructions(res, provenance != nil),
	} {
		files[name] = File{Bytes: b, Mode: 0o644}
	}
	for name, b := range r.cfg.PolicyFiles {
		files["policy/"+name] = File{Bytes: b, Mode: 0o644}
	}
	r.traceFiles(files)
	docs, err := r.render()
	if err != nil {
		return nil, err
	}
	for _, d := range docs {
		files[d.name] = File{Bytes: d.bytes, Mode: 0o644}
	}
	check := func(name string) error {
		if _, taken := files[name]; taken || name == "" || name == "." || name == ".." || name == "policy" || name == traceDir || strings.ContainsAny(name, "/\x00") {
			return hallmark.Coded(hallmark.KindInvalid, hallmark.CodePipelineArtifactName, "artifact name %q is reserved, doubled or no base name", name)
		}
		return nil
	}
	for _, a := range res.Artifacts {
		if err := check(a.Name); err != nil {
			return nil, err
		}
		if o, ok := r.imageOf(a); ok {
			if err := r.addLayout(files, o, res); err != nil {
				return nil, fmt.Errorf("writing image %s: %w", a.Name, err)
			}
		} else {
			files[a.Name] = File{Blob: a.Digest, Mode: os.FileMode(a.Mode)&0o755 | 0o600}
		}
		if provenance != nil {
			if err := check(a.Name + ".sigstore.json"); err != nil {
				return nil, err
			}
			files[a.Name+".sigstore.json"] = File{Bytes: provenance, Mode: 0o644}
		}
	}
	return files, nil
}

// addLayout adds the directory of an image to the files. Its name is that of an
// artifact, so nothing else is under it.
func (r *run) addLayout(files map[string]File, o ImageOutput, res Result) error {
	own, err := r.layout(o, append(slices.Clone(res.Evidence), res.VSA))
	if err != nil {
		return err
	}
	files[o.File] = File{Mode: os.ModeDir | 0o755}
	for name, f := range own {
		files[o.File+"/"+name] = f
	}
	return nil
}

// fill writes files into dir and syncs them, but for the names in dir itself.
func fill(files map[string]File, dir string, disk durable.Disk, get func(hallmark.Digest) ([]byte, error)) error {
	made := map[string]bool{"policy": true}
	for name := range files {
		for d := path.Dir(name); d != "."; d = path.Dir(d) {
			made[d] = true
		}
	}
	dirs := slices.Sorted(maps.Keys(made)) // parents first
	for _, d := range dirs {
		if err := os.Mkdir(filepath.Join(dir, filepath.FromSlash(d)), 0o755); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f := files[name]
		if f.Mode.IsDir() {
			continue
		}
		path := filepath.Join(dir, filepath.FromSlash(name))
		if f.Blob != "" {
			b, err := get(f.Blob)
			if err != nil {
				return fmt.Errorf("reading artifact %s: %w", name, err)
			}
			f.Bytes = b
		}
		if err := writeFile(path, f.Bytes, f.Mode); err != nil {
			return err
		}
		if err := disk.Step(durable.Written, path); err != nil {
			return err
		}
	}
	for _, d := range dirs {
		if err := durable.SyncDir(filepath.Join(dir, filepath.FromSlash(d))); err != nil {
			return err
		}
	}
	return nil
}

// traceDir holds the event logs and the lists of what a build read and wrote,
// whose digests are in the evidence.
const traceDir = "trace"

func (r *run) traceFiles(files map[string]File) {
	add := func(name string, d hallmark.Digest) {
		if d != "" {
			files[traceDir+"/"+name] = File{Blob: d, Mode: 0o644}
		}
	}
	t := r.build.Facts.Trace
	add("materials.jsonl", t.Materials.Digest)
	add("products.jsonl", t.Products.Digest)
	for i, s := range r.build.Facts.Steps {
		add(fmt.Sprintf("events-%d.jsonl", i+1), s.Events)
	}
}

// instructions are the commands that check each artifact, with Hallmark and with
// stock cosign; CI runs them as printed.
func (r *run) instructions(res Result, provenance bool) []byte {
	var b bytes.Buffer
	roots := hallmark.DigestOf(r.cfg.Roots)
	fmt.Fprintf(&b, "# Revision %s of %s\n# Decision: %s\n# Pinned roots: %s\n", res.Revision.Commit, res.Revision.Repository, res.Verdict.Decision.Effect, roots)
	b.WriteString("# Get the digest of the roots from the producer by another way than this folder.\n")
	for _, a := range res.Artifacts {
		name := shellQuote(a.Name)
		fmt.Fprintf(&b, "\nhallmark verify %s --evidence . --roots %s\n", name, roots)
		if a.Image() {
			r.imageInstructions(&b, name, provenance)
			continue
		}
		if provenance {
			fmt.Fprintf(&b, "cosign verify-blob-attestation --bundle %s --trusted-root trusted_root.json --type slsaprovenance1 --certificate-identity %s --certificate-oidc-issuer %s %s\n",
				shellQuote(a.Name+".sigstore.json"), shellQuote(r.cfg.BuilderCert.SAN), shellQuote(r.cfg.BuilderCert.Issuer), name)
		}
		fmt.Fprintf(&b, "cosign verify-blob-attestation --bundle verdict.sigstore.json --trusted-root trusted_root.json --key release.pub --type %s %s\n",
			intoto.PredicateVSA, name)
	}
	if len(res.Artifacts) == 0 {
		b.WriteString("\n# The build left no artifact. The evidence of the denial is in evidence.jsonl.\n")
	}
	return b.Bytes()
}

func shellQuote(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/@+="
	if s != "" && strings.Trim(s, plain) == "" && !strings.HasPrefix(s, "-") {
		return s
	}
	if strings.HasPrefix(s, "-") {
		s = "./" + s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func writeFile(path string, b []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// SweepOut removes result directories beside out that killed runs left
// unfinished. Those that a living run is writing stay.
func SweepOut(out string) error {
	return durable.SweepDirs(filepath.Dir(filepath.Clean(out)), partPrefix, os.RemoveAll)
}
