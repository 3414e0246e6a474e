// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tracer is the ptrace engine. The sandbox's filter stops a process at each call
// that opens a file or changes a name, and at the call's end, before the process
// goes on, the tracer looks at the very file that the process got. It needs no
// privilege beyond being the user that made the sandbox.
//
// One thread does everything: ptrace belongs to a thread, and since nothing goes
// on while it looks, the order of the events is the order of what happened.
type tracer struct {
	rec     *recorder
	subject Subject
	calls   [maxCall]call
	root    int // descriptor of the sandbox's root directory

	threads   map[int]*thread
	early     map[int]struct{}        // new threads that stopped before their makers did
	stillborn map[int]unix.WaitStatus // that ended before

	digests known
	writing writers
	readers readers

	seen bool // the program has begun

	path []byte // scratch of the loop
	link []byte
	hash []byte
}

// maxCall is more than any system call number.
const maxCall = 1024

// thread is one that is traced.
type thread struct {
	tid  int
	proc *proc
	// The call that it is in.
	call   call
	args   [6]uint64
	making bool   // the name that it opens did not exist
	name   string // that it was about to open, where that matters
}

// proc is one process: it may have many threads, and they all die when one of
// them becomes another program.
type proc struct {
	pid     int
	threads int
	// The first process of the sandbox is ours, and so is its child until it
	// becomes the program: what they do is no doing of the build.
	ours bool
	// Calls that put files under numbers: the one under way, those that wait for
	// their turn, and those that can't wait.
	busy    *thread
	waiting []*thread
	loose   []*thread
	labels  map[string]struct{} // names of what is no regular file that were recorded
}

func newTracer() *tracer {
	return &tracer{
		threads: map[int]*thread{}, early: map[int]struct{}{}, stillborn: map[int]unix.WaitStatus{}, readers: readers{},
		path: make([]byte, 0, 64), link: make([]byte, 2*unix.PathMax), hash: make([]byte, 1<<18),
	}
}

func (t *tracer) name() string { return "ptrace" }

const options = unix.PTRACE_O_TRACESECCOMP | unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK |
	unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_EXITKILL

// attach seizes the first process. All that it starts is traced from its first
// instruction.
func (t *tracer) attach(s Subject, r *recorder) error {
	if !s.Filter {
		return errors.New("the sandbox's filter stops no call")
	}
	runtime.LockOSThread() // for good: run is called on the same thread
	// Each stop would raise a signal that says what wait4 says anyway.
	signal.Ignore(unix.SIGCHLD)
	t.rec, t.subject = r, s
	for nr, c := range calls() {
		t.calls[nr] = c
	}
	var err error
	if t.root, err = unix.Open(fmt.Sprintf("/proc/%d/root", s.PID), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("finding the sandbox's root: %w", err)
	}
	if err := t.writing.open(); err != nil {
		return err
	}
	if t.digests, err = openKnown(s.Digests); err != nil {
		return err
	}
	return t.seize()
}

// seize takes the threads of the first process that have the filter: the one that
// will start the program. It need not be the main one.
func (t *tracer) seize() error {
	dir := fmt.Sprintf("/proc/%d/task", t.subject.PID)
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("listing the threads of the sandbox's first process: %w", err)
	}
	p := &proc{pid: t.subject.PID, ours: true}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			return fmt.Errorf("listing the threads of the sandbox's first process: %w", err)
		}
		b, err := os.ReadFile(dir + "/" + task.Name() + "/status")
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return fmt.Errorf("reading a thread's status: %w", err)
		}
		if !bytes.Contains(b, []byte("\nSeccomp:\t2\n")) {
			continue
		}
		if _, _, e := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(tid), 0, options, 0, 0); e != 0 {
			return fmt.Errorf("seizing the sandbox's first process: %w", e)
		}
		p.threads++
		t.threads[tid] = &thread{tid: tid, proc: p}
	}
	if p.threads == 0 {
		return errors.New("no thread of the sandbox's first process has the filter")
	}
	return nil
}

// run handles stops until no process is left. All of them end before the control
// plane says that the step is over.
func (t *tracer) run(finish <-chan struct{}) {
	alone(1)
	garbage := newHeap()
	for stops := 1; ; stops++ {
		var ws unix.WaitStatus
		tid, err := t.next(&ws)
		if errors.Is(err, unix.ECHILD) {
			break
		}
		if err != nil {
			t.rec.fail("waiting for a process: %v", err)
			break
		}
		if ws.Exited() || ws.Signaled() {
			t.ended(tid, ws)
			continue
		}
		t.stopped(tid, ws)
		if stops%(1<<12) == 0 {
			garbage.tidy()
		}
	}
	t.drain()
	t.settleAll()
	if !t.seen {
		t.rec.fail("no program was seen")
	}
	if err := t.digests.close(); err != nil {
		fmt.Fprintln(os.Stderr, "keeping digests:", err)
	}
	<-finish
}

// stopped handles one stop and lets the thread go on.
func (t *tracer) stopped(tid int, ws unix.WaitStatus) {
	sig, event := ws.StopSignal(), int(ws)>>16
	th := t.threads[tid]
	if th == nil {
		// It waits until the stop of its maker says whose it is.
		t.early[tid] = struct{}{}
		return
	}
	how, pass := unix.PTRACE_CONT, unix.Signal(0)
	switch {
	case event == unix.PTRACE_EVENT_SECCOMP:
		var goes bool
		if how, goes = t.entered(th); !goes {
			return
		}
	case sig == unix.SIGTRAP|0x80:
		t.left(th)
	case event == unix.PTRACE_EVENT_FORK, event == unix.PTRACE_EVENT_VFORK, event == unix.PTRACE_EVENT_CLONE:
		if child, e := ptraceMessage(tid); e == 0 {
			t.born(th, child, event)
		}
	case event == unix.PTRACE_EVENT_EXEC:
		t.became(th)
	case event == unix.PTRACE_EVENT_STOP:
		switch sig {
		case unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU:
			how = unix.PTRACE_LISTEN // it stays stopped as it was told to
		}
	default:
		pass = sig // of the program's own, the runtime's preemption included
	}
	t.resume(how, tid, pass)
}

// resume lets a thread go on. One that was killed meanwhile is reported dead
// later.
func (t *tracer) resume(how, tid int, pass unix.Signal) {
	if e := ptraceResume(how, tid, pass); e != 0 && e != unix.ESRCH {
		t.rec.fail("letting thread %d go on: %v", tid, e)
	}
}

// next waits for the next stop or end. While a new thread waits for its maker to
// say whose it is, which takes microseconds, it does not wait for good: the maker
// may have been killed first.
func (t *tracer) next(ws *unix.WaitStatus) (int, error) {
	const tries, pause = 100, 100 * time.Microsecond
	for n := 0; len(t.early) > 0; n++ {
		tid, err := waitFor(ws, unix.WNOHANG)
		if err != nil || tid != 0 {
			return tid, err
		}
		if n == tries {
			for waits := range t.early {
				t.adopt(waits)
			}
		}
		time.Sleep(pause)
	}
	return waitFor(ws, 0)
}

// born takes in what th made: a thread of its process, or a process.
func (t *tracer) born(th *thread, child, event int) {
	_, waits := t.early[child]
	switch {
	case t.threads[child] != nil: // adopted
	case waits || exists(child):
		delete(t.stillborn, child)
		t.admit(th.proc, child)
	default:
		// It was killed before it did anything, or has been adopted and ended.
		if ws, ok := t.stillborn[child]; ok && event != unix.PTRACE_EVENT_CLONE && !th.proc.ours {
			t.rec.fork(th.proc.pid, child)
			t.rec.exit(child, ws)
		}
		delete(t.stillborn, child)
	}
	if waits {
		delete(t.early, child)
		t.resume(unix.PTRACE_CONT, child, 0)
	}
}

func (t *tracer) admit(parent *proc, child int) {
	if sameGroup(parent.pid, child) {
		parent.threads++
		t.threads[child] = &thread{tid: child, proc: parent}
		return
	}
	p := &proc{pid: child, threads: 1, ours: parent.ours}
	t.threads[child] = &thread{tid: child, proc: p}
	if !p.ours {
		t.rec.fork(parent.pid, child)
	}
}

// ended takes a thread out, and its process with the last one: the kernel
// reports the leader when all others are gone.
func (t *tracer) ended(tid int, ws unix.WaitStatus) {
	delete(t.early, tid)
	th := t.threads[tid]
	if th == nil {
		t.stillborn[tid] = ws
		return
	}
	delete(t.threads, tid)
	th.proc.threads--
	t.yield(th)
	if th.proc.pid == tid {
		th.proc.threads = 0
		t.drain()
		t.forget(th.proc)
		t.rec.over(tid, ws)
	}
}

// adopt takes in a new thread whose maker does not say that it made it, by what
// the kernel says.
func (t *tracer) adopt(tid int) {
	group, parent, err := family(tid)
	if err != nil {
		return // it is dead too
	}
	if th := t.threads[group]; th != nil {
		t.born(th, tid, 0)
		return
	}
	if parent == t.subject.PID { // an orphan: who made it is not known
		t.born(&thread{proc: &proc{pid: parent}}, tid, 0)
		return
	}
	if th := t.threads[parent]; th != nil {
		t.born(th, tid, 0)
		return
	}
	t.rec.fail("process %d appeared from nowhere", tid)
	t.born(&thread{proc: &proc{}}, tid, 0)
}

// family reads the process and the parent of a thread.
func family(tid int) (group, parent int, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return 0, 0, err
	}
	for l := range strings.Lines(string(b)) {
		fmt.Sscanf(l, "Tgid: %d", &group)
		fmt.Sscanf(l, "PPid: %d", &parent)
	}
	return group, parent, nil
}

// entered looks at a call that is about to happen, and says how the thread goes
// on: to the end of the call, if that matters; or not yet, if it is not its turn.
func (t *tracer) entered(th *thread) (how int, goes bool) {
	th.call = call{}
	var info syscallInfo
	if e := ptraceInfo(th.tid, &info); e != 0 {
		return unix.PTRACE_CONT, true // dead
	}
	if info.op != infoSeccomp || info.data[0] >= maxCall || t.calls[info.data[0]].op == opNone {
		t.rec.fail("process %d stopped for a call (%d) that it should not", th.proc.pid, info.data[0])
		return unix.PTRACE_CONT, true
	}
	c := t.calls[info.data[0]]
	several := th.proc.threads > 1
	if th.proc.ours || (c.op == opPut || c.op == opReceive) && !several {
		return unix.PTRACE_CONT, true
	}
	t.drain()
	th.call = c
	copy(th.args[:], info.data[1:])
	th.making, th.name = false, ""
	switch c.op {
	case opOpen, opOpenHow:
		creates := c.op == opOpenHow || th.flags()&unix.O_CREAT != 0
		if creates || several {
			th.name, _ = t.said(th, c.dir, c.at)
		}
		if creates {
			th.making = t.absent(th.name)
		}
	case opPut, opReceive:
	default:
		return unix.PTRACE_SYSCALL, true
	}
	return unix.PTRACE_SYSCALL, !several || t.turn(th)
}

// left looks at a call that has happened.
func (t *tracer) left(th *thread) {
	if th.call.op == opNone {
		return
	}
	var info syscallInfo
	e := ptraceInfo(th.tid, &info)
	switch {
	case e != 0: // dead
	case info.op != infoExit:
		t.rec.fail("process %d stopped where a call should have ended", th.proc.pid)
	case int64(info.data[0]) < 0:
	default:
		switch th.call.op {
		case opOpen, opOpenHow:
			t.opened(th, th.call, int(info.data[0]))
		case opPut, opReceive:
		default:
			t.named(th, th.call)
		}
	}
	th.call = call{}
	t.yield(th)
}

func (th *thread) flags() int {
	if th.call.flags == none {
		return th.call.implied
	}
	return int(uint32(th.args[th.call.flags])) | th.call.implied
}
