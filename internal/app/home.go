// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package app is the one place where adapters meet stages: it reads the home,
// wires a local run together and lends the commands of the command line their
// work. It contains no rule: stages and policy decide.
package app

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// Layout names every file of a home. Keys are readable by their owner only; the
// fork guard's state lies outside the log's directory, so that one restored
// backup can't take both back.
type Layout struct{ Home string }

func (l Layout) path(elem ...string) string {
	return filepath.Join(append([]string{l.Home}, elem...)...)
}

// The files and directories of a home.
func (l Layout) TrustedRoot() string   { return l.path("trusted_root.json") }
func (l Layout) SigningConfig() string { return l.path("signing_config.v0.2.json") }
func (l Layout) Roots() string         { return l.path("roots.json") }
func (l Layout) Policy() string        { return l.path("policy", "policy.json") }
func (l Layout) PolicyBundles() string { return l.path("policy", "policy.sigstore.jsonl") }
func (l Layout) KeptPolicies() string  { return l.path("policy", "kept") }
func (l Layout) KeptPolicy(d hallmark.Digest) string {
	return l.path("policy", "kept", d.Hex()+".json")
}
func (l Layout) Proposal() string           { return l.path("policy", "pending.json") }
func (l Layout) PolicyLock() string         { return l.path("policy.lock") }
func (l Layout) Genesis() string            { return l.path("genesis.sigstore.jsonl") }
func (l Layout) Log() string                { return l.path("log") }
func (l Layout) Guard() string              { return l.path("guard") }
func (l Layout) Blobs() string              { return l.path("blobs") }
func (l Layout) Index() string              { return l.path("index.sqlite") }
func (l Layout) Advisories() string         { return l.path("advisories") }
func (l Layout) Runs() string               { return l.path("runs") }
func (l Layout) Deps() string               { return l.path("dependencies") }
func (l Layout) ToolchainCache() string     { return l.path("toolchain-cache") }
func (l Layout) Identity() string           { return l.path("home.json") }
func (l Layout) Memory() string             { return l.path("seen") }
func (l Layout) Repositories() string       { return l.path("repositories") }
func (l Layout) Serving() string            { return l.path("serving.lock") }
func (l Layout) Upstreams() string          { return l.path("upstreams") }
func (l Layout) Spool() string              { return l.path("fetches") }
func (l Layout) TLS() string                { return l.path("tls") }
func (l Layout) Digests() string            { return l.path("digests") }
func (l Layout) ToolchainCacheList() string { return l.path("toolchain-cache.list") }
func (l Layout) Contents() string           { return l.path("contents") }
func (l Layout) Keys() string               { return l.path("keys") }
func (l Layout) Certificates() string       { return l.path("pki") }
func (l Layout) LogLock() string            { return l.path("log.lock") }
func (l Layout) Signer() string             { return l.path("signer") } // of a signer of its own user
func (l Layout) SignerSocket() string       { return l.path("signer", "socket") }

// Fingerprints is the key of fingerprints of secrets. It lies among the others
// until these go to a signer's user: whoever scans needs it, and it signs nothing.
func (l Layout) Fingerprints() string {
	if own := l.path("fingerprint.key"); exists(own) {
		return own
	}
	return l.path("keys", "fingerprint.key")
}

// checkHome tells a missing home from one that can be used.
func checkHome(home string) error {
	_, err := os.Stat(Layout{home}.Roots())
	if errors.Is(err, fs.ErrNotExist) {
		return hallmark.WithHint(
			hallmark.Errorf(hallmark.KindNotFound, "there is no home in %s", home),
			"make one: hallmark init --home "+home+" --single-operator --allowed-signers FILE, or with two or more --administrator NAME=FILE and --threshold N")
	}
	if err != nil {
		return hallmark.WithHint(hallmark.Errorf(hallmark.KindInvalid, "reading home: %w", err), "name a directory that you may read with --home DIR or $HALLMARK_HOME")
	}
	return nil
}

// now is the clock of every command that is not given one.
func now() time.Time { return time.Now().UTC() }

// version is what the Go toolchain recorded of this build.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "devel"
	}
	return info.Main.Version
}

// Tool describes the running binary by the digest of its file.
func Tool() (hallmark.Tool, error) {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return hallmark.Tool{}, hallmark.Errorf(hallmark.KindInternal, "opening our own binary: %w", err)
	}
	defer f.Close()
	d, _, err := hallmark.DigestFrom(f)
	if err != nil {
		return hallmark.Tool{}, hallmark.Errorf(hallmark.KindInternal, "reading our own binary: %w", err)
	}
	return hallmark.Tool{Name: "hallmark", Version: version(), Digest: d}, nil
}
