// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"path/filepath"

	"go.yaml.in/yaml/v3"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/intoto"
)

const (
	configureAction  = "serve.configure"
	configuredServer = "server:configuration"
)

// began logs that a server starts. What a killed one had given to the log and not
// seen published is before it in the log, and so in every list from then on: else
// it would appear later, when nobody looks for what is unfinished any more.
func (s *Server) began(ctx context.Context) error {
	st, err := attest.AccessRecord(intoto.AccessRecord{
		Action: "serve.start", Actor: operator(), Resource: "server:start", Effect: hallmark.Allow, On: now(), Policy: s.rules().policy,
		Details: map[string]string{"version": s.tool.Version, "binary": string(s.tool.Digest), "builder": s.builderID(), "work": filepath.Base(s.work)},
	})
	if err != nil {
		return err
	}
	if _, err := s.signer.sign(ctx, sign.Gate, st, nil); err != nil {
		return fmt.Errorf("logging the start: %w", err)
	}
	return nil
}

// configured makes what the server runs with a decision in the log: the
// configuration with all defaults filled in, and the binary, whenever one of them
// is not what the newest record says. Nothing is served before it is logged.
func (s *Server) configured(ctx context.Context) error {
	b, err := yaml.Marshal(s.file)
	if err != nil {
		return hallmark.Errorf(hallmark.KindInternal, "encoding the configuration: %w", err)
	}
	digest, err := s.home.stores.blobs.Put(ctx, b)
	if err != nil {
		return fmt.Errorf("keeping the configuration: %w", err)
	}
	details := map[string]string{"configuration": string(digest), "version": s.tool.Version, "binary": string(s.tool.Digest)}
	last, err := s.lastConfiguration(ctx)
	if err != nil {
		return err
	}
	if len(last) == len(details) && last["configuration"] == details["configuration"] && last["binary"] == details["binary"] {
		return nil
	}
	if before := last["configuration"]; before != "" {
		details["before"] = before
	}
	st, err := attest.AccessRecord(intoto.AccessRecord{
		Action: configureAction, Actor: operator(), Resource: configuredServer, Effect: hallmark.Allow, On: now(), Policy: s.rules().policy, Details: details,
	})
	if err != nil {
		return err
	}
	if _, err := s.signer.sign(ctx, sign.Gate, st, nil); err != nil {
		return fmt.Errorf("logging the configuration: %w", err)
	}
	s.log.Info("another configuration is in force", "configuration", digest, "before", details["before"])
	return nil
}

// lastConfiguration is what the newest record in the log says; nil if there is none.
func (s *Server) lastConfiguration(ctx context.Context) (map[string]string, error) {
	var last intoto.AccessRecord
	_, found, err := s.home.newest(ctx, aboutKey, string(hallmark.DigestOf([]byte(configuredServer))), func(l logged) (bool, error) {
		var err error
		if last, err = intoto.DecodePredicate[intoto.AccessRecord](l.statement); err != nil {
			return false, err
		}
		return last.Action == configureAction && last.Resource == configuredServer, nil
	})
	if err != nil || !found {
		return nil, err
	}
	delete(last.Details, "before")
	return last.Details, nil
}
