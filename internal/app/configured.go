// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"slices"

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

// lastConfiguration is what the newest record says; nil if there is none. A row
// that was taken out costs one more record.
func (s *Server) lastConfiguration(ctx context.Context) (map[string]string, error) {
	rows, err := s.home.stores.index.Statements(ctx, string(hallmark.DigestOf([]byte(configuredServer))))
	if err != nil {
		return nil, err
	}
	for _, row := range slices.Backward(rows) {
		if row.Predicate != intoto.PredicateAccess {
			continue
		}
		r, err := readGateStatement[intoto.AccessRecord](ctx, s.home, row.Bundle)
		if err != nil {
			return nil, err
		}
		if r.Action == configureAction && r.Resource == configuredServer {
			delete(r.Details, "before")
			return r.Details, nil
		}
	}
	return nil, nil
}
