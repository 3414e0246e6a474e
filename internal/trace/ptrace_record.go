// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/build"
)

// number is what the trace calls a living process.
func (r *recorder) number(pid int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.live[pid]
}

// wroteBy is wrote for a process that may have ended since it opened the file.
func (r *recorder) wroteBy(process int, path string, id identity, d hallmark.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.add(build.Event{Kind: build.EventWrite, Process: process, Path: build.Raw(path), Digest: d, Size: id.size})
}

// over is exit, after which a connection that the process made may still be told.
func (r *recorder) over(pid int, ws unix.WaitStatus) {
	r.mu.Lock()
	if p, ok := r.live[pid]; ok {
		r.last[pid] = p
	}
	r.mu.Unlock()
	r.exit(pid, ws)
}
