// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/build"
)

// identity is one version of one file: a change of the content changes it. The
// change time is set by the kernel alone.
type identity struct {
	dev, ino     uint64
	size         int64
	mtime, ctime int64 // nanoseconds
}

func identify(st *unix.Stat_t) identity {
	return identity{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano()}
}

// recorder writes the canonical event log. It knows processes by the numbers it
// gave them, since the kernel uses its own again. It is safe for concurrent use.
type recorder struct {
	mu    sync.Mutex
	file  *os.File
	out   *bufio.Writer
	hash  hash.Hash
	began time.Time
	seq   int64
	// unattributed counts reads by processes that the recorder does not know.
	unattributed int
	next         int
	live         map[int]int                   // kernel's process number to ours
	gone         map[int][]int                 // processes whose number was given away before their end was told
	read         map[int]map[identity]struct{} // what a living process is known to have read
	last         map[int]int                   // our number of the last process that ended under one of the kernel's
	failure      string
	hidden       []Hidden // in arguments
	secret       []Hidden // of them, what is hidden everywhere
	room         int64    // bytes that the log may still get
	line         []byte   // scratch of add
}

// maxLog bounds an event log: what a build does must fill neither the disk nor
// the memory of whoever reads its record.
const maxLog = 1 << 30

func newRecorder(path string) (*recorder, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("making the event log: %w", err)
	}
	return &recorder{
		file: f, out: bufio.NewWriterSize(f, 1<<18), hash: sha256.New(), began: time.Now(), room: maxLog,
		live: map[int]int{}, gone: map[int][]int{}, read: map[int]map[identity]struct{}{}, last: map[int]int{},
	}, nil
}

// add gives an event its number and time and writes it; r.mu is held.
func (r *recorder) add(e build.Event) {
	if r.room == 0 {
		return // it has failed
	}
	if len(r.secret) > 0 {
		for _, text := range []*build.Raw{&e.Path, &e.To, &e.Address} {
			*text = build.Raw(Hide(string(*text), r.secret))
		}
	}
	for i, a := range e.Args {
		e.Args[i] = build.Raw(Hide(string(a), r.hidden))
	}
	e.Seq, e.Time = r.seq+1, time.Since(r.began).Nanoseconds()
	r.line = e.Append(r.line[:0])
	if int64(len(r.line)) > r.room {
		r.room = 0
		r.failed("the event log is larger than %d bytes", maxLog)
		return
	}
	r.seq++
	r.room -= int64(len(r.line))
	r.hash.Write(r.line)
	if _, err := r.out.Write(r.line); err != nil {
		r.failed("writing the event log: %v", err)
	}
}

func (r *recorder) failed(format string, args ...any) {
	if r.failure == "" {
		r.failure = fmt.Sprintf(format, args...)
	}
}

// fail makes the trace incomplete; the first cause is kept.
func (r *recorder) fail(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed(format, args...)
}

// fork records that parent (0: the sandbox's first process) made child.
func (r *recorder) fork(parent, child int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next++
	if old, ok := r.live[child]; ok {
		r.gone[child] = append(r.gone[child], old)
	}
	r.live[child] = r.next
	r.read[r.next] = map[identity]struct{}{}
	r.add(build.Event{Kind: build.EventFork, Process: r.live[parent], Child: r.next})
}

// hide is called before anything is recorded.
func (r *recorder) hide(all []Hidden) {
	r.hidden = all
	for _, h := range all {
		if !h.Argument {
			r.secret = append(r.secret, h)
		}
	}
}

// Hide writes names in the place of values.
func Hide(text string, hidden []Hidden) string {
	for _, h := range hidden {
		if len(h.Value) > 0 {
			text = strings.ReplaceAll(text, string(h.Value), "${"+h.Name+"}")
		}
	}
	return text
}

// exec records that a process became another program; args is what the kernel
// laid out for it.
func (r *recorder) exec(pid int, path string, d hallmark.Digest, args []string, script bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	raw := make([]build.Raw, len(args))
	for i, a := range args {
		raw[i] = build.Raw(a)
	}
	r.add(build.Event{Kind: build.EventExec, Process: r.live[pid], Path: build.Raw(path), Digest: d, Args: raw, Script: script})
}

// exit records the end of a process; its kernel number may be used again.
func (r *recorder) exit(pid int, ws unix.WaitStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, ok := r.live[pid]
	if !ok {
		return
	}
	if old := r.gone[pid]; len(old) > 0 {
		p = old[0]
		if r.gone[pid] = old[1:]; len(old) == 1 {
			delete(r.gone, pid)
		}
	} else {
		delete(r.live, pid)
	}
	e := build.Event{Kind: build.EventExit, Process: p}
	if ws.Signaled() {
		e.Signal = unix.SignalName(ws.Signal())
	} else {
		e.Code = ws.ExitStatus()
	}
	r.add(e)
	delete(r.read, p)
}

// reused reports whether a number of the kernel is another process's already,
// while the end of the first was not told.
func (r *recorder) reused(pid int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.gone[pid]) > 0
}

// knows reports whether a process is known to have read this version of a file,
// so that it need not be looked at again.
func (r *recorder) knows(pid int, id identity) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.read[r.live[pid]][id]
	return ok
}

// opened records that a process opened one version of a regular file: once for
// each process and version.
func (r *recorder) opened(pid int, path string, id identity, d hallmark.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.live[pid]
	if p == 0 {
		r.unattributed++
	}
	if known, ok := r.read[p]; ok {
		if _, twice := known[id]; twice {
			return
		}
		known[id] = struct{}{}
	}
	r.add(build.Event{Kind: build.EventRead, Process: p, Path: build.Raw(path), Digest: d, Size: id.size})
}

// wrote records that a process let go of a file that it could write to.
func (r *recorder) wrote(pid int, path string, id identity, d hallmark.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.add(build.Event{Kind: build.EventWrite, Process: r.live[pid], Path: build.Raw(path), Digest: d, Size: id.size})
}

// named records a name that was made, moved, linked or removed.
func (r *recorder) named(kind build.EventKind, pid int, path, to string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.add(build.Event{Kind: kind, Process: r.live[pid], Path: build.Raw(path), To: build.Raw(to)})
}

// unstable records that a file does not hold any more what was read from it.
func (r *recorder) unstable(path string, d hallmark.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.add(build.Event{Kind: build.EventUnstable, Path: build.Raw(path), Digest: d})
}

func (r *recorder) connected(c Connect) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, ok := r.live[c.PID]
	if !ok { // it ended before we were told
		p = r.last[c.PID]
	}
	r.add(build.Event{Kind: build.EventConnect, Process: p, Address: build.Raw(c.Address), Refused: c.Refused})
}

// finish makes the log durable and says what it holds.
func (r *recorder) finish(engine string) build.Trace {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.out.Flush(); err != nil {
		r.failed("writing the event log: %v", err)
	}
	if err := r.file.Sync(); err != nil {
		r.failed("writing the event log: %v", err)
	}
	if err := r.file.Close(); err != nil {
		r.failed("writing the event log: %v", err)
	}
	attribution := ""
	if r.unattributed > 0 {
		attribution = fmt.Sprintf("%d reads are known without the process that did them", r.unattributed)
	}
	return build.Trace{
		Engine: engine, Log: r.file.Name(), Events: r.seq, Failure: r.failure, Attribution: attribution,
		Digest: hallmark.Digest("sha256:" + hex.EncodeToString(r.hash.Sum(nil))),
	}
}
