// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/scan"
)

// spareWorker implements scan.Worker with one worker that was started before it is
// wanted: its sandbox stands and its rules are loaded, and it waits for its first
// byte. It is used once and for one job only, as any other: what a job could have
// done to it ends with it. Whoever comes while it is in use gets a fresh one.
type spareWorker struct {
	room *room
	args []string // of the job that it waits for
	log  *slog.Logger

	mu     sync.Mutex
	ready  *waiting
	closed bool
	alive  sync.WaitGroup // of every worker that was started before
}

// waiting is a worker that nobody gave anything yet.
type waiting struct {
	in     *io.PipeWriter
	end    context.CancelFunc
	began  time.Time
	done   chan struct{}
	report scan.Report // once done
	err    error
}

// spareLife is how long a worker waits before another takes its place, so that its
// time, of which it has a limit, is not used up by waiting.
const spareLife = 10 * time.Minute

// Run implements scan.Worker.
func (s *spareWorker) Run(ctx context.Context, job scan.Job) (scan.Report, error) {
	w := s.take(job)
	if w == nil {
		defer s.prepare()
		return s.room.Run(ctx, job)
	}
	defer s.prepare()
	limited, cancel := context.WithTimeout(ctx, job.Wall)
	defer cancel()
	defer context.AfterFunc(limited, w.end)()
	_, err := io.Copy(w.in, job.Stdin)
	w.in.CloseWithError(err) // nil ends the input; an error ends the worker's in the middle
	<-w.done
	switch {
	case ctx.Err() != nil:
		return scan.Report{}, ctx.Err()
	case limited.Err() != nil: // its time since it was given the job, as of any other
		return scan.Report{Stderr: w.report.Stderr, ExitCode: -1, LimitHit: "wall"}, nil
	}
	return w.report, w.err
}

// take gives the waiting worker to a job that it is fit for.
func (s *spareWorker) take(job scan.Job) *waiting {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.ready
	if w == nil || !slices.Equal(job.Args, s.args) || job.Stdin == nil || len(job.Mounts)+len(job.Program) > 0 || job.Memory > 0 || job.Wall > scanWall {
		return nil
	}
	s.ready = nil
	select {
	case <-w.done: // it ended by itself
		return nil
	default:
	}
	if now().Sub(w.began) >= spareLife {
		w.end()
		return nil
	}
	return w
}

// prepare starts a worker where none waits.
func (s *spareWorker) prepare() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.ready != nil {
		return
	}
	ctx, end := context.WithCancel(context.Background())
	in, out := io.Pipe()
	w := &waiting{in: out, end: func() { end(); in.CloseWithError(io.ErrClosedPipe) }, began: now(), done: make(chan struct{})}
	fresh := *s.room
	fresh.hostID = sandbox.HostID() // no two share a user
	s.ready = w
	s.alive.Add(1)
	go func() {
		defer s.alive.Done()
		defer close(w.done)
		w.report, w.err = fresh.Run(ctx, scan.Job{Args: s.args, Stdin: in, Wall: scanWall + spareLife})
		in.CloseWithError(io.ErrClosedPipe)
		end()
	}()
	time.AfterFunc(spareLife, func() { s.renew(w) })
}

// renew replaces a worker that waited too long.
func (s *spareWorker) renew(old *waiting) {
	s.mu.Lock()
	same := s.ready == old
	if same {
		s.ready = nil
		old.end()
	}
	s.mu.Unlock()
	if same {
		s.log.Debug("a worker waited too long and is replaced")
		s.prepare()
	}
}

// close ends the worker that waits, and returns when nothing of it runs.
func (s *spareWorker) close() {
	s.mu.Lock()
	s.closed = true
	if s.ready != nil {
		s.ready.end()
		s.ready = nil
	}
	s.mu.Unlock()
	s.alive.Wait()
}
