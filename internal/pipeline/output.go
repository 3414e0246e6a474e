// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/intoto"
)

// partPrefix marks a result directory that is still being written. It lies
// beside the final one, so that one rename publishes it.
const partPrefix = ".hallmark-part-"

// checkOut refuses a directory that holds anything but an earlier result.
func checkOut(out string) error {
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
	parent := filepath.Dir(filepath.Clean(out))
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	part, err := os.MkdirTemp(parent, partPrefix)
	if err != nil {
		return err
	}
	defer os.RemoveAll(part) // what the exchange leaves, or an unfinished part
	if err := r.fill(res, part); err != nil {
		return err
	}
	if err := os.Chmod(part, 0o755); err != nil {
		return err
	}
	if err := syncDir(part); err != nil {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, part, unix.AT_FDCWD, out, unix.RENAME_EXCHANGE)
	if err == unix.ENOENT {
		err = os.Rename(part, out)
	}
	if err != nil {
		return fmt.Errorf("publishing results: %w", err)
	}
	return syncDir(parent)
}

func (r *run) fill(res Result, dir string) error {
	files := map[string][]byte{}
	modes := map[string]os.FileMode{}
	var lines bytes.Buffer
	var provenance []byte
	for _, e := range append(slices.Clone(res.Evidence), res.VSA) {
		lines.Write(e.JSON)
		lines.WriteByte('\n')
	}
	for _, e := range res.Evidence {
		st, err := r.cfg.Decider.Verify(e.JSON)
		if err != nil {
			return err
		}
		if st.PredicateType() == intoto.PredicateProvenance {
			provenance = e.JSON
		}
	}
	files["evidence.jsonl"] = lines.Bytes()
	files["verdict.json"] = res.Verdict.JSON
	files["verdict.sigstore.json"] = res.VSA.JSON
	files["trusted_root.json"] = r.cfg.TrustedRoot
	files["roots.json"] = r.cfg.Roots
	files["release.pub"] = r.cfg.ReleaseKey
	for name, b := range r.cfg.PolicyFiles {
		files["policy/"+name] = b
	}
	docs, err := r.render()
	if err != nil {
		return err
	}
	for _, d := range docs {
		files[d.name] = d.bytes
	}
	for _, a := range res.Artifacts {
		b, err := r.cfg.Blobs.Get(r.ctx, a.Digest)
		if err != nil {
			return fmt.Errorf("reading artifact %s: %w", a.Name, err)
		}
		if _, taken := files[a.Name]; taken {
			return hallmark.Coded(hallmark.KindInvalid, hallmark.CodePipelineArtifactName, "artifact name %q is reserved", a.Name)
		}
		files[a.Name] = b
		modes[a.Name] = os.FileMode(a.Mode) & 0o755
		if provenance != nil {
			files[a.Name+".sigstore.json"] = provenance
		}
	}
	files["VERIFY.txt"] = r.instructions(res, provenance != nil)
	for name, b := range files {
		mode := os.FileMode(0o644)
		if modes[name] != 0 {
			mode = modes[name] | 0o600
		}
		if err := writeFile(filepath.Join(dir, name), b, mode); err != nil {
			return err
		}
	}
	if err := syncDir(filepath.Join(dir, "policy")); err != nil {
		return err
	}
	return nil
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
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	if _, err := f.Write(b); err != nil {
		f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// SweepOut removes result directories beside out that a killed run left
// unfinished. The caller holds the lock of the home.
func SweepOut(out string) error {
	matches, err := filepath.Glob(filepath.Join(filepath.Dir(filepath.Clean(out)), partPrefix+"*"))
	if err != nil {
		return err
	}
	for _, m := range matches {
		if err := os.RemoveAll(m); err != nil {
			return err
		}
	}
	return nil
}
