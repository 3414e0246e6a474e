// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
)

// Workspace is where the steps of a build see their copy of the source.
const Workspace = "/workspace"

// BuildPlace is where one build happens.
type BuildPlace struct {
	Source  string // private read-only copy of the revision
	Scratch string // takes what the steps write
	Mounts  []sandbox.Mount
	HostID  int // user on the host of the steps
	Limits  func(wall time.Duration) sandbox.Limits
}

// BuildParts are what a builder is put together from: what runs its steps, what
// collects its artifacts, and the build policy. The type holds no rule, and a
// builder with a missing part is refused.
type BuildParts struct {
	Engine    func(BuildPlace) build.Engine
	Collect   func(dir string, names []string) ([]build.Output, []hallmark.Reason)
	Authorize func(build.Policy, build.Facts) hallmark.Decision
}

func buildParts(r *room) BuildParts {
	return BuildParts{
		Engine:  func(p BuildPlace) build.Engine { return &engine{room: r, place: p} },
		Collect: build.Collect, Authorize: build.Authorize,
	}
}

// ComposeBuilder returns a builder like b, which Home.Pipeline made, after
// change had its way with the parts. Only code that is linked in can call it: no
// flag, variable or file leads here. b itself stays as it is.
func ComposeBuilder(b pipeline.Builder, change func(*BuildParts)) (pipeline.Builder, error) {
	old, ok := b.(*builder)
	if !ok {
		return nil, hallmark.Errorf(hallmark.KindInternal, "composing a builder: it was not made by a home")
	}
	made := *old
	change(&made.parts)
	if made.parts.Engine == nil || made.parts.Collect == nil || made.parts.Authorize == nil {
		return nil, hallmark.Errorf(hallmark.KindInternal, "composing a builder: a part is missing")
	}
	return &made, nil
}
