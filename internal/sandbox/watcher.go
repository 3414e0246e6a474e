// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// watcher answers the seccomp listener: it records and refuses what would leave
// the sandbox's loopback. Letting a call continue is safe whatever the caller
// changes meanwhile, since the network namespace leads nowhere.
type watcher struct {
	fd    int
	pidfd int
	clock func() time.Time
	open  bool   // refuse nothing, only record: there is no network namespace
	end   [2]int // pipe: closed to stop
	// connected is told of every connection, loopback included, by the process
	// that tries it; it may be nil, and is set before run.
	connected func(pid int, address string, refused bool)

	polled [2]int32 // fd and the pipe's reading end

	probe  uint16       // port of our own attempt, made before the program ran
	alert  func(Egress) // may be nil
	probed bool         // read after run

	mu     sync.Mutex
	egress []Egress
}

// maxEgress bounds what one sandbox can make us remember.
const maxEgress = 1000

func newWatcher(pid, listener int, clock func() time.Time) (*watcher, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the first process: %w", err)
	}
	fd, err := unix.PidfdGetfd(pidfd, listener, 0)
	if err != nil {
		unix.Close(pidfd)
		return nil, fmt.Errorf("taking the listener: %w", err)
	}
	w := &watcher{fd: fd, pidfd: pidfd, clock: clock}
	if err := unix.Pipe2(w.end[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	end := w.end[0]
	if fd < 0 || fd > math.MaxInt32 || end < 0 || end > math.MaxInt32 {
		return nil, unix.EBADF
	}
	w.polled = [2]int32{int32(fd), int32(end)}
	return w, nil
}

func (w *watcher) stop() { unix.Close(w.end[1]) }

// abandon lets go of a watcher that never ran.
func (w *watcher) abandon() {
	w.stop()
	w.close()
}

func (w *watcher) close() {
	unix.Close(w.fd)
	unix.Close(w.pidfd)
	unix.Close(w.end[0])
}

func (w *watcher) seen() []Egress {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.egress
}

// seccompNotif is struct seccomp_notif.
type seccompNotif struct {
	ID    uint64
	PID   uint32
	Flags uint32
	NR    int32
	Arch  uint32
	IP    uint64
	Args  [6]uint64
}

// seccompResp is struct seccomp_notif_resp.
type seccompResp struct {
	ID    uint64
	Val   int64
	Error int32
	Flags uint32
}

const (
	ioctlRecv = 0xc0502100 // SECCOMP_IOCTL_NOTIF_RECV
	ioctlSend = 0xc0182101 // SECCOMP_IOCTL_NOTIF_SEND
	ioctlID   = 0x40082102 // SECCOMP_IOCTL_NOTIF_ID_VALID
	flagGoOn  = 1          // SECCOMP_USER_NOTIF_FLAG_CONTINUE
)

func (w *watcher) run() {
	defer w.close()
	for {
		fds := []unix.PollFd{{Fd: w.polled[0], Events: unix.POLLIN}, {Fd: w.polled[1], Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			if fds[1].Revents != 0 || fds[0].Revents != 0 {
				return
			}
			continue
		}
		var n seccompNotif
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(w.fd), ioctlRecv, uintptr(unsafe.Pointer(&n))); e != 0 {
			if e == unix.EINTR || e == unix.ENOENT {
				continue
			}
			return
		}
		r := seccompResp{ID: n.ID, Flags: flagGoOn}
		if out := w.judge(n); out != nil {
			if !w.open {
				r.Flags, r.Error = 0, -int32(unix.ENETUNREACH)
			}
			w.record(*out)
		}
		unix.Syscall(unix.SYS_IOCTL, uintptr(w.fd), ioctlSend, uintptr(unsafe.Pointer(&r)))
	}
}

// record keeps an attempt and tells of it at once. The first one is our own, made
// before any code of the program ran, and shows that the others are seen.
func (w *watcher) record(e Egress) {
	if !w.probed && e.Address == probeAddress(w.probe).String() {
		w.probed = true
		return
	}
	w.mu.Lock()
	kept := len(w.egress) < maxEgress
	if kept {
		w.egress = append(w.egress, e)
	}
	w.mu.Unlock()
	if kept && w.alert != nil {
		w.alert(e)
	}
}

// probeAddress belongs to nobody (RFC 5737).
func probeAddress(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 254}), port)
}

// attemptOwn is made by the thread that starts the program.
func attemptOwn(port uint16) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	to := probeAddress(port)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); !errors.Is(err, unix.ENETUNREACH) {
		return fmt.Errorf("an attempt to leave was answered with %w", errors.Join(err, errors.ErrUnsupported))
	}
	return nil
}

// judge returns what would leave, or nil.
func (w *watcher) judge(n seccompNotif) *Egress {
	// By the system call, not by /proc/PID/mem: a process that made itself
	// undumpable would close that file to us where we are not root.
	var failed error
	read := func(at, size uint64) []byte {
		if at == 0 || size == 0 || size > 1<<16 || failed != nil {
			return nil
		}
		b := make([]byte, size)
		local := []unix.Iovec{{Base: &b[0]}}
		local[0].SetLen(len(b))
		k, err := unix.ProcessVMReadv(int(n.PID), local, []unix.RemoteIovec{{Base: uintptr(at), Len: len(b)}}, 0)
		if err != nil && !errors.Is(err, unix.EFAULT) {
			failed = err
		}
		return b[:max(k, 0)]
	}
	all := messages(n, read)
	// The process may have ended and its number may belong to another one now.
	id := n.ID
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(w.fd), ioctlID, uintptr(unsafe.Pointer(&id))); e != 0 || errors.Is(failed, unix.ESRCH) {
		return nil
	}
	if failed != nil { // what can't be looked at is refused
		if w.open && w.connected != nil {
			w.connected(threadGroup(n.PID), "unreadable", false)
		}
		return w.attempt(n, "unreadable")
	}
	var first *Egress
	for _, m := range all {
		to, leaves := destination(m.address)
		if to == "" && w.open && len(m.address) >= 2 {
			to = fmt.Sprintf("family:%d", binary.NativeEndian.Uint16(m.address))
		}
		if to != "" && w.connected != nil && (w.probed || to != probeAddress(w.probe).String()) {
			w.connected(threadGroup(n.PID), to, leaves && !w.open)
		}
		if leaves && first == nil {
			first = w.attempt(n, to)
			if strings.HasSuffix(to, ":53") {
				first.Name = dnsQuestion(m.payload)
			}
			if !w.open { // nothing of the call will happen
				break
			}
		}
	}
	return first
}

// message is what one system call sends to one address.
type message struct{ address, payload []byte }

// messages reads every message of a call: of several in one sendmmsg, any may
// leave. A message without an address goes where its socket was connected to,
// which was judged then.
func messages(n seccompNotif, read func(at, size uint64) []byte) []message {
	header := func(h []byte) message { // msghdr: name, namelen, iov, iovlen
		if len(h) < 32 {
			return message{}
		}
		m := message{address: read(binary.NativeEndian.Uint64(h), min(uint64(binary.NativeEndian.Uint32(h[8:])), 128))}
		if iov := read(binary.NativeEndian.Uint64(h[16:]), 16); len(iov) == 16 {
			m.payload = read(binary.NativeEndian.Uint64(iov), min(binary.NativeEndian.Uint64(iov[8:]), 512))
		}
		return m
	}
	const (
		headerSize = 64   // struct mmsghdr
		most       = 1024 // UIO_MAXIOV: the kernel looks at no more
	)
	switch n.NR {
	case unix.SYS_CONNECT:
		return []message{{address: read(n.Args[1], min(n.Args[2], 128))}}
	case unix.SYS_SENDTO:
		return []message{{read(n.Args[4], min(n.Args[5], 128)), read(n.Args[1], min(n.Args[2], 512))}}
	case unix.SYS_SENDMSG:
		return []message{header(read(n.Args[1], 32))}
	case unix.SYS_SENDMMSG:
		var out []message
		all := read(n.Args[1], min(n.Args[2]&math.MaxUint32, most)*headerSize)
		for ; len(all) >= headerSize; all = all[headerSize:] {
			out = append(out, header(all))
		}
		return out
	}
	return nil
}

func (w *watcher) attempt(n seccompNotif, to string) *Egress {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", n.PID))
	if err != nil {
		comm = []byte("?")
	}
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", n.PID))
	if err != nil {
		program = "?"
	}
	call := map[int32]string{unix.SYS_CONNECT: "connect", unix.SYS_SENDTO: "sendto", unix.SYS_SENDMSG: "sendmsg", unix.SYS_SENDMMSG: "sendmmsg"}[n.NR]
	return &Egress{Time: w.clock(), PID: int(n.PID), Process: strings.TrimSpace(string(comm)), Program: program, Proto: call, Address: to}
}

// threadGroup is the process that a thread belongs to.
func threadGroup(tid uint32) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return int(tid)
	}
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(l, "Tgid:"); ok {
			if n, err := strconv.Atoi(strings.TrimSpace(v)); err == nil {
				return n
			}
		}
	}
	return int(tid)
}

// destination reads a socket address; leaves is true for an internet address
// that is not loopback. An address that it can't read is "".
func destination(b []byte) (to string, leaves bool) {
	if len(b) < 4 {
		return "", false
	}
	var ip netip.Addr
	switch binary.NativeEndian.Uint16(b) {
	case unix.AF_UNIX:
		name, _, _ := strings.Cut(string(b[3:]), "\x00")
		if b[2] != 0 { // else abstract
			name = string(b[2:3]) + name
		} else {
			name = "@" + name
		}
		return "unix:" + name, false
	case unix.AF_INET:
		if len(b) < 8 {
			return "", false
		}
		ip = netip.AddrFrom4([4]byte(b[4:8]))
	case unix.AF_INET6:
		if len(b) < 24 {
			return "", false
		}
		ip = netip.AddrFrom16([16]byte(b[8:24])).Unmap()
	default:
		return "", false
	}
	port := binary.BigEndian.Uint16(b[2:])
	return netip.AddrPortFrom(ip, port).String(), !ip.IsLoopback() && !ip.IsUnspecified()
}

// dnsQuestion returns the first name that a DNS message asks for.
func dnsQuestion(b []byte) string {
	if len(b) < 13 {
		return ""
	}
	var labels []string
	for i := 12; i < len(b) && b[i] != 0; {
		n := int(b[i])
		if n > 63 || i+1+n > len(b) {
			return ""
		}
		labels = append(labels, string(b[i+1:i+1+n]))
		i += 1 + n
	}
	return strings.Map(func(r rune) rune {
		if r < 0x21 || r > 0x7e {
			return '?'
		}
		return r
	}, strings.Join(labels, "."))
}
