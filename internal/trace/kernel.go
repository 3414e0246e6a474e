// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
)

// kernel records by fanotify and BPF. An open waits in the kernel until its
// file's content is hashed, once for each version; processes are told by BPF.
//
// There are two groups for content. On mounts that nothing inside can write to
// (sealed), a file that was hashed is marked to be ignored, until somebody
// changes it; who opens it after that is told by a third group (readers) in
// which nobody waits. On writable mounts (live) every open waits, so that the
// version and the process are those of the open. Who lets go of a file that it
// could write to is told by a fourth (written), of one that it could only read by
// a fifth (leaving).
//
// What nobody waits for wakes nobody up: it is taken in heaps, when something
// depends on it or after a while. Any open on a writable mount depends on what was
// written before.
type kernel struct {
	r       *recorder
	procs   *processes
	sealed  *group
	live    *group
	readers *group
	written *group
	leaving *group
	names   *names
	wake    int // event descriptor: the end is near
	// room is the sandbox's mount namespace: held, it stays as it is until the last
	// event is read, and with it what the paths of files are.
	room    int
	began   time.Time
	devices map[int]uint64 // of mounts by their number, as stat has it

	digests *inventory

	mu    sync.Mutex
	files map[inode]*file
	known map[inode]*file // by what the kernel itself calls the file system and the inode
	args  map[int]*running
	// jobs wait for a worker without a bound: to wait for room with mu held would
	// be to wait for oneself
	jobs  []job
	more  *sync.Cond
	over  bool
	hands sync.WaitGroup
	busy  sync.WaitGroup // hashes that are not done
	// batches are the events in hand; swept is when everything was taken last
	batches map[*group][]fileEvent
	swept   time.Time
	// ended are processes that are gone while events of theirs may be queued, or
	// wait for a hash: owed counts the latter
	ended   []happening
	owed    map[int]int
	garbage *heap
	// buffer is for small files, whose hash is taken under mu
	buffer []byte
}

// hashers are how many large files are hashed at a time.
const hashers = 2

// running is an exec whose arguments are still coming.
type running struct {
	script bool // it is the interpreter of what was asked for
	path   string
	digest hallmark.Digest
	args   []byte
	want   uint64
}

func (k *kernel) name() string { return "fanotify+bpf" }

func (k *kernel) attach(s Subject, r *recorder) (err error) {
	if err := inInitialPIDs(); err != nil {
		return err
	}
	*k = kernel{
		r: r, garbage: newHeap(), began: time.Now(), devices: map[int]uint64{}, files: map[inode]*file{}, known: map[inode]*file{},
		args: map[int]*running{}, buffer: make([]byte, small), owed: map[int]int{}, batches: map[*group][]fileEvent{}, wake: -1, room: -1,
	}
	defer func() {
		if err != nil {
			k.close()
		}
	}()
	if k.digests, err = openInventory(s.Digests); err != nil {
		fmt.Fprintln(os.Stderr, "hallmark: everything is hashed again:", err)
	}
	for _, g := range []struct {
		at    **group
		flags uint
	}{{&k.sealed, unix.FAN_CLASS_CONTENT}, {&k.live, unix.FAN_CLASS_CONTENT}, {&k.readers, unix.FAN_CLASS_NOTIF}, {&k.written, unix.FAN_CLASS_NOTIF}, {&k.leaving, unix.FAN_CLASS_NOTIF}} {
		if *g.at, err = openGroup(g.flags); err != nil {
			return err
		}
	}
	if k.room, err = unix.Open(fmt.Sprintf("/proc/%d/ns/mnt", s.PID), unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("holding the sandbox's mounts: %w", err)
	}
	k.names = newNames()
	if k.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("making an event descriptor: %w", err)
	}
	if k.procs, err = follow(s.PID); err != nil {
		return err
	}
	if err := k.mark(s.PID); err != nil {
		return err
	}
	k.more = sync.NewCond(&k.mu)
	for range hashers {
		k.hands.Add(1)
		go k.work()
	}
	return nil
}

// inInitialPIDs refuses a pid namespace of our own: BPF tells processes by other
// numbers than fanotify does then.
func inInitialPIDs() error {
	const initial = "pid:[4026531836]" // PROC_PID_INIT_INO
	if ns, err := os.Readlink("/proc/self/ns/pid"); err != nil || ns != initial {
		return fmt.Errorf("the pid namespace is %s and not the machine's first one (%v)", ns, err)
	}
	return nil
}

// mark puts marks on every mount of the room, which are the room's own: nothing
// else on the machine is stopped.
func (k *kernel) mark(pid int) error {
	all, err := mounts(pid)
	if err != nil {
		return err
	}
	hosts, err := mounts(os.Getpid())
	if err != nil {
		return err
	}
	for _, m := range all {
		k.devices[m.id] = m.dev
		at := fmt.Sprintf("/proc/%d/root%s", pid, m.path)
		var st unix.Stat_t
		if err := unix.Stat(at, &st); err != nil {
			return fmt.Errorf("finding %s in the sandbox: %w", m.path, err)
		}
		if t := st.Mode & unix.S_IFMT; m.kind == "proc" || t != unix.S_IFDIR && t != unix.S_IFREG {
			continue
		}
		marks := map[*group]uint64{k.live: unix.FAN_OPEN_PERM, k.written: unix.FAN_CLOSE_WRITE, k.leaving: unix.FAN_CLOSE_NOWRITE}
		if m.readOnly {
			marks = map[*group]uint64{k.sealed: unix.FAN_OPEN_PERM, k.readers: unix.FAN_OPEN}
		}
		for g, mask := range marks {
			if err := unix.FanotifyMark(g.fd, unix.FAN_MARK_ADD|unix.FAN_MARK_MOUNT, mask, unix.AT_FDCWD, at); err != nil {
				return fmt.Errorf("marking %s in the sandbox: %w", m.path, err)
			}
		}
		if m.readOnly || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		// A mark on a file system hears everybody's doings on it.
		if slices.ContainsFunc(hosts, func(h mounted) bool { return h.dev == m.dev }) {
			return fmt.Errorf("names in %s can't be followed: its file system is the host's", m.path)
		}
		if err := k.names.mark(at, m); err != nil {
			return err
		}
	}
	return nil
}

func (k *kernel) close() {
	for _, g := range []*group{k.sealed, k.live, k.readers, k.written, k.leaving} {
		if g != nil {
			unix.Close(g.fd)
		}
	}
	if k.names != nil {
		k.names.close()
	}
	if k.procs != nil {
		k.procs.close()
	}
	for _, fd := range []int{k.wake, k.room} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// run takes events until no process is left and nothing is queued.
func (k *kernel) run(finish <-chan struct{}) {
	done := make(chan struct{})
	go func() {
		<-finish
		close(done)
		unix.Write(k.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}()
	alone(hashers)
	waited := []*group{k.sealed, k.live}
	polled := []unix.PollFd{
		{Fd: int32(k.sealed.fd), Events: unix.POLLIN}, {Fd: int32(k.live.fd), Events: unix.POLLIN}, {Fd: int32(k.wake), Events: unix.POLLIN},
	}
	for ready := make([]*group, 0, len(waited)); polled[len(waited)].Revents == 0; ready = ready[:0] {
		n, e := poll(polled, soon)
		if n == 0 && e == 0 {
			n, e = pollLong(polled, patience)
		}
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			k.r.fail("waiting for events: %v", e)
			return
		}
		for i, g := range waited {
			if polled[i].Revents != 0 {
				ready = append(ready, g)
			}
		}
		k.turn(ready, n == 0 || time.Since(k.swept) > patience*time.Millisecond)
	}
	<-done
	k.busy.Wait()
	for k.turn(waited, true) {
		k.busy.Wait()
	}
	k.mu.Lock()
	k.over = true
	k.mu.Unlock()
	k.more.Broadcast()
	k.hands.Wait()
	k.settle()
	k.close()
}

// patience is how long events that nobody waits for may lie, and soon after what
// time without any the agent goes to sleep, in milliseconds.
const patience, soon = 100, 5

// settle is the end: what the kernel has not let go of, and what it lost.
func (k *kernel) settle() {
	k.drainProcesses()
	for _, h := range k.ended {
		k.r.exit(h.tgid, unix.WaitStatus(h.word[0]))
	}
	if n, err := k.procs.missed(); err != nil {
		k.r.fail("%v", err)
	} else if n > 0 {
		k.r.fail("%d events of processes were lost", n)
	}
	if err := k.digests.save(); err != nil {
		fmt.Fprintln(os.Stderr, "hallmark:", err)
	}
	if len(k.names.lost) > 0 {
		k.r.fail("names in %d directories could not be told", len(k.names.lost))
	}
	if len(k.args) > 0 {
		k.r.fail("the arguments of %d programs were not told to the end", len(k.args))
	}
}

// turn takes a batch of each of the groups in which somebody waits, and everything
// else too if sweep is set. false: nothing was there.
func (k *kernel) turn(ready []*group, sweep bool) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	some := false
	for _, g := range ready {
		n, err := k.take(g)
		if err != nil {
			k.r.fail("%v", err)
			return false
		}
		some = some || n > 0
	}
	if sweep {
		some = k.sweep() || some
	}
	return some
}

// take handles one batch of a group.
func (k *kernel) take(g *group) (int, error) {
	events, err := g.read(k.batches[g][:0])
	if err != nil || len(events) == 0 {
		return 0, err
	}
	k.batches[g] = events
	if g == k.live {
		// What was written and let go of before these opens was queued before them.
		k.drain(k.written)
	}
	// The processes that did this were born before: what is told now names them.
	k.drainProcesses()
	for _, e := range events {
		k.event(e)
	}
	return len(events), nil
}

// sweep takes everything that is queued: after that the ends of processes that
// were known before can be told.
func (k *kernel) sweep() (some bool) {
	k.swept = time.Now()
	k.garbage.tidy()
	some = k.drainProcesses()
	due := len(k.ended)
	for _, g := range []*group{k.live, k.written, k.readers, k.leaving} {
		some = k.drain(g) || some
	}
	some = k.drainNames() || some
	k.bury(due)
	return some
}

// drain takes everything that a group has.
func (k *kernel) drain(g *group) (some bool) {
	for {
		n, err := k.take(g)
		if err != nil {
			k.r.fail("%v", err)
		}
		if n == 0 {
			return some
		}
		some = true
	}
}

// bury records the ends of the first n processes that end, unless an event of
// theirs waits, or may still come.
func (k *kernel) bury(n int) {
	kept := k.ended[:0:0]
	for i, h := range k.ended {
		if i >= n || k.owed[h.tgid] > 0 || !k.r.reused(h.tgid) && closing(h.tgid) {
			kept = append(kept, h)
			continue
		}
		k.r.exit(h.tgid, unix.WaitStatus(h.word[0]))
	}
	k.ended = kept
}

// closing reports whether a process that ends may still close files: it has done
// so when it waits for its parent.
func closing(pid int) bool {
	if err := unix.Kill(pid, 0); errors.Is(err, unix.ESRCH) {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// Behind the name, which may hold anything: the state, and as the 18th field
	// the number of threads.
	text := string(b)
	f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	return len(f) < 18 || f[0] != "Z" && f[0] != "X" || f[17] != "0" && f[17] != "1"
}

func (k *kernel) drainNames() (some bool) {
	for {
		events, err := k.names.read()
		if err != nil {
			k.r.fail("%v", err)
		}
		if err != nil || len(events) == 0 {
			return some
		}
		some = true
		k.drainProcesses()
		for _, e := range events {
			k.named(e)
		}
	}
}

func (k *kernel) drainProcesses() (some bool) {
	for {
		h, ok, err := k.procs.next()
		if err != nil {
			k.r.fail("%v", err)
		}
		if err != nil || !ok {
			return some
		}
		some = true
		k.happened(h)
	}
}

// happened records what a process did; k.mu is held.
func (k *kernel) happened(h happening) {
	switch h.kind {
	case ringFork:
		k.r.fork(h.tgid, int(h.word[0]))
	case ringExit:
		k.ended = append(k.ended, h)
	case ringExec:
		run := &running{want: h.word[2] &^ (1 << scriptBit), script: h.word[2]>>scriptBit == 1}
		if f := k.known[inode{dev: deviceOf(h.word[1]), ino: h.word[0]}]; f != nil && f.digest != (digest{}) {
			run.path, run.digest = f.path, f.digest.text()
		} else {
			k.r.fail("a program was executed whose content was not seen")
		}
		if run.want > large*chunks {
			k.r.fail("%s got %d bytes of arguments", run.path, run.want)
			return
		}
		k.args[h.tgid] = run
		k.executed(h.tgid, run)
	case ringArgs:
		run := k.args[h.tgid]
		n := h.word[0]
		if run == nil || h.word[1] != 0 || n > uint64(len(h.bytes)) {
			k.r.fail("the arguments of a program could not be read")
			return
		}
		run.args = append(run.args, h.bytes[:n]...)
		k.executed(h.tgid, run)
	}
}

// executed records an exec when all of its arguments are there.
func (k *kernel) executed(tgid int, run *running) {
	if uint64(len(run.args)) < run.want {
		return
	}
	delete(k.args, tgid)
	var args []string
	if text := strings.TrimSuffix(string(run.args), "\x00"); run.want > 0 {
		args = strings.Split(text, "\x00")
	}
	k.r.exec(tgid, run.path, run.digest, slices.Clip(args), run.script)
}

// deviceOf turns the kernel's own number of a device into that of stat.
func deviceOf(dev uint64) uint64 { return unix.Mkdev(uint32(dev>>20), uint32(dev&(1<<20-1))) }
