// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"path/filepath"
	"slices"

	"github.com/hallmark-sc/hallmark/internal/build"
)

// ServerBuild is how much the server builds, and what with.
type ServerBuild struct {
	Enabled bool           `yaml:"enabled"` // false: nothing is built here
	Workers int            `yaml:"workers"`
	Queue   int            `yaml:"queue"` // runs of one principal that may wait
	Secrets []ServerSecret `yaml:"secrets"`
}

// ServerSecret is given to the steps that name it, of repositories and references
// that may have it (build.secrets of the policy); never to a change.
type ServerSecret struct {
	Name         string   `yaml:"name"`
	File         string   `yaml:"file"`
	Repositories []string `yaml:"repositories"` // patterns
}

// Limits on builds.
const (
	maxWorkers = 256
	maxQueue   = 100_000
)

func (b ServerBuild) check(bad func(field, format string, args ...any) error) error {
	if b.Workers < 1 || b.Workers > maxWorkers {
		return bad("builds.workers", "%d: want 1 to %d; a server that builds nothing says enabled: false", b.Workers, maxWorkers)
	}
	if b.Queue < 1 || b.Queue > maxQueue {
		return bad("builds.queue", "%d: want 1 to %d", b.Queue, maxQueue)
	}
	names := map[string]bool{}
	for i, s := range b.Secrets {
		if !build.SecretName(s.Name) || names[s.Name] {
			return bad("builds.secrets", "[%d].name %.60q: want the name that steps use, each once", i, s.Name)
		}
		names[s.Name] = true
		if !filepath.IsAbs(s.File) {
			return bad("builds.secrets", "[%d].file %.200q: want an absolute path", i, s.File)
		}
		if len(s.Repositories) == 0 || slices.Contains(s.Repositories, "") {
			return bad("builds.secrets", "[%d].repositories: want the repositories that may have it", i)
		}
	}
	return nil
}

func defaultBuilds() ServerBuild { return ServerBuild{Enabled: true, Workers: 1, Queue: 50} }
