// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/build/buildtest"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/sbom"
	"github.com/hallmark-sc/hallmark/internal/scan/scantest"
)

// newRoom is a room with the limits of a new policy, over a source of one file.
func newRoom(t *testing.T) (r *room, source string) {
	t.Helper()
	box, err := sandbox.New(sandbox.Config{Clock: now})
	if err != nil {
		t.Fatal(err)
	}
	params, err := policy.Default(policy.Options{IssuedOn: now()}).Typed()
	if err != nil {
		t.Fatal(err)
	}
	r = &room{box: box, hostID: sandbox.HostID(), work: t.TempDir(), params: params}
	source = filepath.Join(r.work, "source")
	if err := errors.Join(os.Mkdir(source, 0o755), os.WriteFile(filepath.Join(source, "go.mod"), []byte("module example.org/x\n"), 0o644), sandbox.Give(source, r.hostID)); err != nil {
		t.Fatal(err)
	}
	return r, source
}

func TestEngineContract(t *testing.T) {
	buildtest.Engine(t, sandbox.Path(), func(t *testing.T) build.Engine {
		r, source := newRoom(t)
		scratch := filepath.Join(r.work, "scratch")
		if err := sandbox.NewScratch(scratch, r.hostID); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { durable.RemoveTree(scratch) })
		return &engine{room: r, place: BuildPlace{Source: source, Scratch: scratch, HostID: r.hostID, Limits: r.limits, Trace: recordIn(t.TempDir(), "")}}
	})
}

func TestWorkerContract(t *testing.T) {
	r, source := newRoom(t)
	scantest.Worker(t, r, sbom.JobName, source)
}
