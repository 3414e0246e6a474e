// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/notary"
	"github.com/hallmark-sc/hallmark/intoto"
)

// ServerSigner says who has the keys of a server: a signer that something else
// started, or one that the server starts as another user. Neither, and the server
// has them itself: what it builds is then no more than a local build.
type ServerSigner struct {
	Socket string `yaml:"socket"` // of a signer that an init system started
	User   string `yaml:"user"`   // whom the server, as root, starts it as
}

func (s ServerSigner) used() bool { return s != ServerSigner{} }

// openServed opens the home of a server: with its keys, or without and with a
// signer of another user, which done ends if the server started it.
func openServed(ctx context.Context, cfg ServeConfig) (h *Home, done func(), err error) {
	if !cfg.Config.Signer.used() {
		h, err := OpenHome(cfg.Home, cfg.Passphrase)
		return h, func() {}, err
	}
	l := Layout{cfg.Home}
	home, err := readHome(cfg.Home)
	if err != nil {
		return nil, nil, err
	}
	stop := func() {}
	defer func() {
		if err != nil {
			stop()
			home.Close()
		}
	}()
	if user := cfg.Config.Signer.User; user != "" {
		if _, err := PrepareSigner(ctx, cfg.Home, user); err != nil {
			return nil, nil, err
		}
		end, err := keepSigner(l, cfg)
		if err != nil {
			return nil, nil, err
		}
		stop = end
	}
	owner, err := ownerOf(l.Keys())
	if err != nil {
		return nil, nil, err
	}
	if owner.uid == os.Geteuid() {
		return nil, nil, hallmark.WithHint(hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSignerNotSeparate, "the keys in %s are this server's own user's", l.Keys()),
			"as root: hallmark signer prepare --user NAME")
	}
	socket := cfg.Config.Signer.Socket
	if socket == "" {
		socket = l.SignerSocket()
	}
	remote, err := newRemoteSigner(home, notary.ClientConfig{Socket: socket, UID: owner.uid, TrustDomain: home.id.trustDomain()}, cfg.Log)
	if err != nil {
		return nil, nil, err
	}
	if os.Geteuid() == 0 {
		remote.mend = func() error { return mendLog(l) }
	}
	home.remote = remote
	return home, stop, remote.meet(ctx)
}

// meet asks the signer who it is, once: a server that can't have anything signed
// does not serve.
func (r *remoteSigner) meet(ctx context.Context) error {
	return r.with(ctx, func(_ context.Context, c *notary.Conn) error {
		f := c.Facts()
		if f.Roots != r.home.verifier.RootsDigest() || f.Origin != r.home.id.origin() {
			return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeTrustRootUnpinned, "the signer at %s is of other roots: %s", r.cfg.Socket, f.Roots)
		}
		r.log.Info("the signer answers", "uid", f.UID, "policy", string(f.Policy), "version", f.PolicyVersion)
		return nil
	})
}

// keepSigner starts the signer as the owner of the keys and keeps it running.
func keepSigner(l Layout, cfg ServeConfig) (stop func(), err error) {
	to, err := ownerOf(l.Keys())
	if err != nil {
		return nil, err
	}
	env := []string{"PATH=/usr/bin:/bin", "LANG=C.UTF-8"}
	if len(cfg.Passphrase) > 0 {
		env = append(env, "HALLMARK_PASSPHRASE="+string(cfg.Passphrase))
	}
	return notary.Keep(notary.ChildConfig{
		UID: to.uid, GID: to.gid, Env: env, Log: cfg.Log,
		Args:   []string{"hallmark", "signer", "--home", l.Home, "--socket", l.SignerSocket(), "--for", strconv.Itoa(os.Geteuid())},
		Before: func() error { return mendLog(l) },
	})
}

// builderID is whose builds this server's are: a server's only where another user
// has the keys.
func (s *Server) builderID() string {
	if s.home.remote != nil {
		return intoto.BuilderServer
	}
	return intoto.BuilderLocal
}

// settlePolicyFile writes policy.json where a killed change left the version
// before: the signer reads that file and no blobs.
func (h *Home) settlePolicyFile(ctx context.Context, log *slog.Logger) error {
	there, err := os.ReadFile(h.Layout.Policy())
	if h.remote == nil || err == nil && bytes.Equal(there, h.policyJSON) {
		return nil
	}
	unlock, err := lockPolicy(ctx, h.Layout)
	if err != nil {
		return err
	}
	defer unlock()
	// What came into force meanwhile was written whole, or is settled by the next.
	bundles, err := readLimited(h.PolicyBundles(), maxPolicyFile)
	if err != nil || !bytes.Equal(bundles, h.policyLines) {
		return err
	}
	log.Warn("the file of the policy in force was completed", "policy", string(h.policy.Digest()))
	if err := writeDurable(h.Layout.Policy(), h.policyJSON, 0o644); err != nil {
		return fmt.Errorf("completing the policy in force: %w", err)
	}
	return nil
}
