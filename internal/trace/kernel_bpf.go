// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
)

// Three programs on the scheduler's tracepoints tell of the processes of one
// sandbox: those that the first process made, and theirs. They are assembled
// here with the offsets that the running kernel describes, so that no compiled
// program is kept in the source.

// What a record in the ring says; all integers have the machine's byte order.
const (
	ringFork = iota + 1 // tgid made child
	ringExec            // tgid became inode at dev; args bytes of arguments follow
	ringArgs            // the next part of them
	ringExit            // tgid ends with status; what it holds open is closed after that
)

// A record: kind, tgid, time, then three words, then bytes of arguments. The
// sizes are what the programs reserve.
const (
	ringHead = 40
	// Arguments are copied in large parts and the rest in small ones: the verifier
	// walks through every turn of a loop, which took 20 ms for small ones alone.
	large     = 64 << 10
	chunk     = 4096
	chunks    = 40 // large ones in one exec: more than the kernel takes (a quarter of the stack limit of 8 MiB)
	ringBytes = 16 << 20
	most      = 1 << 15 // processes at a time: as many as the kernel has numbers for, unless it was told otherwise
)

// happening is one record.
type happening struct {
	kind, tgid int
	at         int64     // nanoseconds of the monotonic clock
	word       [3]uint64 // by kind: child | inode, device, length of arguments | status
	bytes      []byte    // of ringArgs
}

// processes is a subscription to what the processes of one sandbox do.
type processes struct {
	// The links hold the programs in their places: one that is collected as
	// garbage would end the recording without a word.
	links    []link.Link
	programs *ebpf.Collection
	maps     []*ebpf.Map
	lost     *ebpf.Map
	reader   *ringbuf.Reader
	record   ringbuf.Record
	deadline time.Time
}

// follow starts the subscription for first and everything that descends from it.
func follow(first int) (*processes, error) {
	p := &processes{deadline: time.Unix(1, 0)}
	if err := p.open(first); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *processes) open(first int) error {
	cache := btf.NewCache() // the kernel's types take tens of milliseconds to read
	kernel, err := cache.Kernel()
	if err != nil {
		return fmt.Errorf("reading the kernel's types: %w", err)
	}
	for _, spec := range []*ebpf.MapSpec{
		{Name: "traced", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: most},
		{Name: "events", Type: ebpf.RingBuf, MaxEntries: ringBytes},
		{Name: "lost", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1},
	} {
		m, err := ebpf.NewMap(spec)
		if err != nil {
			return fmt.Errorf("making the map %s: %w", spec.Name, err)
		}
		p.maps = append(p.maps, m)
	}
	traced, events := p.maps[0], p.maps[1]
	p.lost = p.maps[2]
	if err := traced.Put(uint32(first), uint32(1)); err != nil {
		return fmt.Errorf("naming the first process: %w", err)
	}
	if p.reader, err = ringbuf.NewReader(events); err != nil {
		return fmt.Errorf("opening the ring: %w", err)
	}
	p.reader.SetDeadline(p.deadline)
	a := &assembler{kernel: kernel, traced: traced.FD(), events: events.FD(), lost: p.lost.FD()}
	all := &ebpf.CollectionSpec{Programs: map[string]*ebpf.ProgramSpec{}}
	for at, insns := range map[string]asm.Instructions{
		"sched_process_fork": a.fork(), "sched_process_exec": a.exec(), "sched_process_exit": a.exit(),
	} {
		all.Programs[at] = &ebpf.ProgramSpec{
			Name: at, Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: at,
			Instructions: insns, License: "GPL", // the helpers that read memory ask for it
		}
	}
	if a.err != nil {
		return a.err
	}
	loaded, err := ebpf.NewCollectionWithOptions(all, ebpf.CollectionOptions{Cache: cache})
	if err != nil {
		return fmt.Errorf("loading the programs: %w", err)
	}
	p.programs = loaded
	for at, prog := range loaded.Programs {
		l, err := link.AttachTracing(link.TracingOptions{Program: prog})
		if err != nil {
			return fmt.Errorf("attaching the program at %s: %w", at, err)
		}
		p.links = append(p.links, l)
	}
	return nil
}

func (p *processes) close() {
	for _, l := range p.links {
		l.Close()
	}
	if p.programs != nil {
		p.programs.Close()
	}
	if p.reader != nil {
		p.reader.Close()
	}
	for _, m := range p.maps {
		m.Close()
	}
}

// next takes the oldest record; false: there is none. bytes are good until the
// next call.
func (p *processes) next() (happening, bool, error) {
	if p.reader.AvailableBytes() == 0 {
		return happening{}, false, nil
	}
	p.reader.SetDeadline(p.deadline)
	err := p.reader.ReadInto(&p.record)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return happening{}, false, nil
	}
	if err != nil {
		return happening{}, false, fmt.Errorf("reading the ring: %w", err)
	}
	b, order := p.record.RawSample, binary.NativeEndian
	if len(b) < ringHead {
		return happening{}, false, fmt.Errorf("reading the ring: a record of %d bytes", len(b))
	}
	h := happening{kind: int(order.Uint32(b)), tgid: int(order.Uint32(b[4:])), at: int64(order.Uint64(b[8:])), bytes: b[ringHead:]}
	for i := range h.word {
		h.word[i] = order.Uint64(b[16+8*i:])
	}
	return h, true, nil
}

// missed counts what the programs could not record.
func (p *processes) missed() (uint64, error) {
	var n uint64
	if err := p.lost.Lookup(uint32(0), &n); err != nil {
		return 0, fmt.Errorf("counting lost events: %w", err)
	}
	// The kernel leaves a program out when it would run inside of itself.
	for at, prog := range p.programs.Programs {
		s, err := prog.Stats()
		if err != nil {
			return 0, fmt.Errorf("counting what was left out at %s: %w", at, err)
		}
		n += s.RecursionMisses
	}
	return n, nil
}

// assembler writes the programs.
type assembler struct {
	kernel               *btf.Spec
	traced, events, lost int
	err                  error
}

// offset finds a field, named by a path of members, in bytes.
func (a *assembler) offset(typ, path string) int16 {
	var s *btf.Struct
	if err := a.kernel.TypeByName(typ, &s); err != nil {
		a.fail(fmt.Errorf("finding the kernel's type %s: %w", typ, err))
		return 0
	}
	var at uint32
	var members []btf.Member = s.Members
	for name := range strings.SplitSeq(path, ".") {
		m, off, ok := member(members, name)
		if !ok {
			a.fail(fmt.Errorf("the kernel's %s has no %s", typ, path))
			return 0
		}
		at += off
		members = inner(m.Type)
	}
	if at > 1<<15-1 {
		a.fail(fmt.Errorf("the kernel's %s.%s lies too far away", typ, path))
		return 0
	}
	return int16(at)
}

func (a *assembler) fail(err error) {
	if a.err == nil {
		a.err = err
	}
}

// member looks for a name, in unnamed members too.
func member(members []btf.Member, name string) (btf.Member, uint32, bool) {
	for _, m := range members {
		if m.Name == name {
			return m, m.Offset.Bytes(), true
		}
		if m.Name == "" {
			if found, off, ok := member(inner(m.Type), name); ok {
				return found, m.Offset.Bytes() + off, true
			}
		}
	}
	return btf.Member{}, 0, false
}

func inner(t btf.Type) []btf.Member {
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		return t.Members
	case *btf.Union:
		return t.Members
	}
	return nil
}

// Registers: R6 is the task that acts, R9 the record; R7 and R8 are each
// program's own.

// key puts the task's tgid on the stack.
func (a *assembler) key(task asm.Register, at int16) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R0, task, a.offset("task_struct", "tgid"), asm.Word),
		asm.StoreMem(asm.RFP, at, asm.R0, asm.Word),
	}
}

// onMap calls a helper on the map of traced processes with the key at -8.
func (a *assembler) onMap(fn asm.BuiltinFunc) asm.Instructions {
	return asm.Instructions{
		asm.LoadMapPtr(asm.R1, a.traced),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -8),
		fn.Call(),
	}
}

// reserve takes room for a record into R9 and writes its head; without room the
// loss is counted.
func (a *assembler) reserve(kind int32, size int32) asm.Instructions {
	return asm.Instructions{
		asm.LoadMapPtr(asm.R1, a.events),
		asm.Mov.Imm(asm.R2, size),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnRingbufReserve.Call(),
		asm.JEq.Imm(asm.R0, 0, "lost"),
		asm.Mov.Reg(asm.R9, asm.R0),
		asm.StoreImm(asm.R9, 0, int64(kind), asm.Word),
		asm.LoadMem(asm.R1, asm.R6, a.offset("task_struct", "tgid"), asm.Word),
		asm.StoreMem(asm.R9, 4, asm.R1, asm.Word),
		asm.FnKtimeGetNs.Call(),
		asm.StoreMem(asm.R9, 8, asm.R0, asm.DWord),
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.R9, 16, asm.R1, asm.DWord),
		asm.StoreMem(asm.R9, 24, asm.R1, asm.DWord),
		asm.StoreMem(asm.R9, 32, asm.R1, asm.DWord),
	}
}

func submit() asm.Instructions {
	return asm.Instructions{asm.Mov.Reg(asm.R1, asm.R9), asm.Mov.Imm(asm.R2, 0), asm.FnRingbufSubmit.Call()}
}

// end is where the programs end: out, and lost, which counts first.
func (a *assembler) end() asm.Instructions {
	return asm.Instructions{
		asm.StoreImm(asm.RFP, -16, 0, asm.Word).WithSymbol("lost"),
		asm.LoadMapPtr(asm.R1, a.lost),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -16),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
		asm.Return(),
	}
}

func labelled(name string, insns asm.Instructions) asm.Instructions {
	insns[0] = insns[0].WithSymbol(name)
	return insns
}

func join(parts ...asm.Instructions) asm.Instructions {
	var out asm.Instructions
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// fork: (parent, child). A child that is a thread is no process.
func (a *assembler) fork() asm.Instructions {
	pid, tgid := a.offset("task_struct", "pid"), a.offset("task_struct", "tgid")
	return join(
		asm.Instructions{
			asm.LoadMem(asm.R6, asm.R1, 0, asm.DWord),
			asm.LoadMem(asm.R7, asm.R1, 8, asm.DWord),
			asm.LoadMem(asm.R1, asm.R7, pid, asm.Word),
			asm.LoadMem(asm.R8, asm.R7, tgid, asm.Word),
			asm.JNE.Reg(asm.R1, asm.R8, "out"),
		},
		a.key(asm.R6, -8), a.onMap(asm.FnMapLookupElem),
		asm.Instructions{asm.JEq.Imm(asm.R0, 0, "out")},
		a.key(asm.R7, -8),
		asm.Instructions{
			asm.StoreImm(asm.RFP, -16, 1, asm.Word),
			asm.LoadMapPtr(asm.R1, a.traced),
			asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -8),
			asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, -16),
			asm.Mov.Imm(asm.R4, 0),
			asm.FnMapUpdateElem.Call(),
			asm.JNE.Imm(asm.R0, 0, "lost"),
		},
		a.reserve(ringFork, ringHead),
		asm.Instructions{asm.StoreMem(asm.R9, 16, asm.R8, asm.DWord)},
		submit(), asm.Instructions{asm.Ja.Label("out")}, a.end(),
	)
}

// exit: (task, …). It is told of every thread; the process ends with the last,
// and the map's entry can be taken once only.
func (a *assembler) exit() asm.Instructions {
	const groupExit = 4 // SIGNAL_GROUP_EXIT: the whole process ends with one status
	return join(
		asm.Instructions{
			asm.LoadMem(asm.R6, asm.R1, 0, asm.DWord),
			asm.LoadMem(asm.R7, asm.R6, a.offset("task_struct", "signal"), asm.DWord),
			asm.LoadMem(asm.R1, asm.R7, a.offset("signal_struct", "live.counter"), asm.Word),
			asm.JNE.Imm(asm.R1, 0, "out"),
		},
		a.key(asm.R6, -8), a.onMap(asm.FnMapDeleteElem),
		asm.Instructions{
			asm.JNE.Imm(asm.R0, 0, "out"),
			asm.LoadMem(asm.R8, asm.R7, a.offset("signal_struct", "group_exit_code"), asm.Word),
			asm.LoadMem(asm.R1, asm.R7, a.offset("signal_struct", "flags"), asm.Word),
			asm.And.Imm(asm.R1, groupExit),
			asm.JNE.Imm(asm.R1, 0, "whole"),
			asm.LoadMem(asm.R1, asm.R6, a.offset("task_struct", "group_leader"), asm.DWord),
			asm.LoadMem(asm.R8, asm.R1, a.offset("task_struct", "exit_code"), asm.Word),
		},
		labelled("whole", a.reserve(ringExit, ringHead)),
		asm.Instructions{asm.StoreMem(asm.R9, 16, asm.R8, asm.DWord)},
		submit(), asm.Instructions{asm.Ja.Label("out")}, a.end(),
	)
}

// exec: (task, old pid, binprm). The new program has one thread, which is here,
// and its arguments were laid out by the kernel: nothing else writes to them.
func (a *assembler) exec() asm.Instructions {
	return join(
		asm.Instructions{
			asm.LoadMem(asm.R6, asm.R1, 0, asm.DWord),
			asm.LoadMem(asm.R7, asm.R1, 16, asm.DWord),
		},
		a.key(asm.R6, -8), a.onMap(asm.FnMapLookupElem),
		asm.Instructions{
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.LoadMem(asm.R1, asm.R7, a.offset("linux_binprm", "file"), asm.DWord),
			asm.LoadMem(asm.R1, asm.R1, a.offset("file", "f_inode"), asm.DWord),
			asm.LoadMem(asm.R2, asm.R1, a.offset("inode", "i_ino"), asm.DWord),
			asm.StoreMem(asm.RFP, -24, asm.R2, asm.DWord),
			asm.LoadMem(asm.R1, asm.R1, a.offset("inode", "i_sb"), asm.DWord),
			asm.LoadMem(asm.R2, asm.R1, a.offset("super_block", "s_dev"), asm.Word),
			asm.StoreMem(asm.RFP, -32, asm.R2, asm.DWord),
			// What was asked for and what runs are one name, unless a script was
			// asked for.
			asm.LoadMem(asm.R2, asm.R7, a.offset("linux_binprm", "filename"), asm.DWord),
			asm.LoadMem(asm.R3, asm.R7, a.offset("linux_binprm", "interp"), asm.DWord),
			asm.Mov.Imm(asm.R1, 0),
			asm.JEq.Reg(asm.R2, asm.R3, "asked"),
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreMem(asm.RFP, -48, asm.R1, asm.DWord).WithSymbol("asked"),
			asm.LoadMem(asm.R1, asm.R6, a.offset("task_struct", "mm"), asm.DWord),
			asm.LoadMem(asm.R7, asm.R1, a.offset("mm_struct", "arg_start"), asm.DWord),
			asm.LoadMem(asm.R8, asm.R1, a.offset("mm_struct", "arg_end"), asm.DWord),
			asm.Sub.Reg(asm.R8, asm.R7),
		},
		a.reserve(ringExec, ringHead),
		asm.Instructions{
			asm.LoadMem(asm.R1, asm.RFP, -24, asm.DWord),
			asm.StoreMem(asm.R9, 16, asm.R1, asm.DWord),
			asm.LoadMem(asm.R1, asm.RFP, -32, asm.DWord),
			asm.StoreMem(asm.R9, 24, asm.R1, asm.DWord),
			asm.LoadMem(asm.R1, asm.RFP, -48, asm.DWord),
			asm.LSh.Imm(asm.R1, scriptBit),
			asm.Or.Reg(asm.R1, asm.R8),
			asm.StoreMem(asm.R9, 32, asm.R1, asm.DWord),
		},
		submit(),
		asm.Instructions{
			asm.Mov.Imm(asm.R1, 0),
			asm.StoreMem(asm.RFP, -40, asm.R1, asm.DWord), // whole parts so far
			// The last part leaves the loop: two ways through the loop would
			// double the verifier's work with every turn.
			asm.JLE.Imm(asm.R8, large, "rest").WithSymbol("more"),
			asm.LoadMem(asm.R1, asm.RFP, -40, asm.DWord),
			asm.JGE.Imm(asm.R1, chunks, "lost"),
			asm.Add.Imm(asm.R1, 1),
			asm.StoreMem(asm.RFP, -40, asm.R1, asm.DWord),
		},
		a.part(large, asm.Mov.Imm(asm.R2, large)),
		asm.Instructions{
			asm.Add.Imm(asm.R7, large),
			asm.Sub.Imm(asm.R8, large),
			asm.Ja.Label("more"),
			asm.Mov.Imm(asm.R1, 0).WithSymbol("rest"),
			asm.StoreMem(asm.RFP, -40, asm.R1, asm.DWord),
			asm.JLE.Imm(asm.R8, chunk, "last").WithSymbol("small"),
			asm.LoadMem(asm.R1, asm.RFP, -40, asm.DWord),
			asm.JGE.Imm(asm.R1, large/chunk, "lost"),
			asm.Add.Imm(asm.R1, 1),
			asm.StoreMem(asm.RFP, -40, asm.R1, asm.DWord),
		},
		a.part(chunk, asm.Mov.Imm(asm.R2, chunk)),
		asm.Instructions{
			asm.Add.Imm(asm.R7, chunk),
			asm.Sub.Imm(asm.R8, chunk),
			asm.Ja.Label("small"),
			asm.JEq.Imm(asm.R8, 0, "out").WithSymbol("last"),
		},
		a.part(chunk, asm.Mov.Reg(asm.R2, asm.R8)),
		asm.Instructions{asm.Ja.Label("out")}, a.end(),
	)
}

// part copies a part of the arguments from R7, with room for so many bytes; size
// puts its length into R2.
func (a *assembler) part(room int32, size asm.Instruction) asm.Instructions {
	return join(
		a.reserve(ringArgs, ringHead+room),
		asm.Instructions{
			size,
			asm.StoreMem(asm.R9, 16, asm.R2, asm.DWord),
			asm.Mov.Reg(asm.R1, asm.R9),
			asm.Add.Imm(asm.R1, ringHead),
			asm.Mov.Reg(asm.R3, asm.R7),
			asm.FnProbeReadUser.Call(),
			asm.StoreMem(asm.R9, 24, asm.R0, asm.DWord), // not 0: the reader sees that it failed
		},
		submit(),
	)
}

// scriptBit of the length of the arguments says that the program is the
// interpreter of what was asked for.
const scriptBit = 63

// bpfWorks reports whether we may load programs: a ring buffer, which needs the
// same right as they do.
func bpfWorks() bool {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "probe", Type: ebpf.RingBuf, MaxEntries: uint32(os.Getpagesize())})
	if err != nil {
		return false
	}
	m.Close()
	return true
}
