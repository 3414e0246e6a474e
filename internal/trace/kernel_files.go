// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
)

// digest is the SHA-256 of a file; the zero value is none.
type digest [sha256.Size]byte

func (d digest) text() hallmark.Digest {
	return hallmark.Digest("sha256:" + hex.EncodeToString(d[:]))
}

// inode names a file whatever it holds.
type inode struct{ dev, ino uint64 }

// file is what is known of a file: its last version, and who has it open on a
// writable mount.
type file struct {
	id      identity
	digest  digest
	path    string // at the last look
	writers int    // that have it open
	readers []reader
	// suspects are what readers saw while somebody could write: when the last
	// writer lets go, the file has to hold it still.
	suspects []reader
	hashing  bool
	waiting  []fileEvent // behind the hash, in order
}

// reader is a process that opened a version for reading.
type reader struct {
	pid    int
	digest digest
}

// job is a file to hash for an event.
type job struct {
	event fileEvent
	file  *file
	id    identity
	how   access // of an open on a writable mount
}

// nothing is the digest of an empty file.
func nothing() digest { return sha256.Sum256(nil) }

// small files are hashed where they are seen: handing them over costs more.
const small = 128 << 10

// event takes one event of a file; k.mu is held.
func (k *kernel) event(e fileEvent) {
	if e.mask&unix.FAN_Q_OVERFLOW != 0 {
		k.r.fail("the kernel's queue of events was full")
	}
	if e.fd < 0 {
		if e.fd != unix.FAN_NOFD {
			k.r.fail("opening a file for an event: %v", unix.Errno(-e.fd))
			k.allow(e)
		}
		return
	}
	var st unix.Stat_t
	if err := unix.Fstat(e.fd, &st); err != nil {
		k.r.fail("looking at a file: %v", err)
		k.allow(e)
		return
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		k.allow(e)
		return
	}
	key := inode{dev: st.Dev, ino: st.Ino}
	f := k.files[key]
	if f == nil {
		f = &file{}
		k.files[key] = f
	}
	if f.hashing {
		f.waiting = append(f.waiting, e)
		k.owed[e.pid]++
		return
	}
	k.look(e, f, &st)
}

// look decides what an event needs: a hash, or what is known already.
func (k *kernel) look(e fileEvent, f *file, st *unix.Stat_t) {
	id := identify(st)
	j := job{event: e, file: f, id: id}
	switch {
	case e.group == k.leaving:
		f.leave(e.pid)
		k.allow(e)
		return
	case e.group == k.sealed || e.group == k.readers:
		if f.id == id && f.digest != (digest{}) {
			if !k.r.knows(e.pid, id) {
				k.r.opened(e.pid, f.path, id, f.digest.text())
			}
			k.allow(e)
			return
		}
		if d, ok, try := k.digests.find(id); ok && !try {
			k.hashed(j, d, st, nil)
			return
		}
	case e.group == k.live:
		if !k.opening(e, f, id, &j.how) {
			return
		}
	}
	k.hash(j)
}

// opening takes an open on a writable mount; true: the content has to be hashed.
// A permission event does not say what for a file is opened. But the kernel
// grants a lease for reading exactly when nobody has the file open for writing,
// the opener included, and that is nearly all that has to be known.
func (k *kernel) opening(e fileEvent, f *file, id identity, how *access) bool {
	if len(f.readers) > 0 {
		k.drain(k.leaving) // who closed the file before this open is told already
	}
	if k.unwritten(e.fd) {
		f.writers, f.suspects = 0, nil
		*how = access{reads: true}
		if f.id == id && f.digest != (digest{}) {
			k.readFrom(e, f)
			return false
		}
		return true
	}
	contended := f.writers > 0
	if id.size == 0 && !contended {
		*how = access{writes: true} // there is nothing to read
		// A removed file's number is used again: who read something else than
		// nothing read another file.
		f.readers = slices.DeleteFunc(f.readers, func(r reader) bool { return r.digest != nothing() })
	} else {
		*how = intent(e.pid)
		how.contended = contended || !how.writes
	}
	if how.writes {
		f.writers++
		f.suspects = append(f.suspects, f.readers...)
	}
	f.id, f.digest = identity{}, digest{} // no hash is good while there are writers
	if !how.reads {
		k.allow(e)
	}
	return how.reads
}

// access is what a process may do with a file that it opens.
type access struct {
	reads, writes bool
	contended     bool // somebody else can write
}

// leave forgets a reader: the process itself if it is known, else whoever opened
// the file for it.
func (f *file) leave(pid int) {
	at := -1
	for i, r := range f.readers {
		if r.pid == pid || at < 0 {
			at = i
		}
		if r.pid == pid {
			break
		}
	}
	if at >= 0 {
		f.readers = append(f.readers[:at], f.readers[at+1:]...)
	}
}

// unwritten reports whether nobody has a file open for writing.
func (k *kernel) unwritten(fd int) bool {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		return false
	}
	unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
	return true
}

// readFrom records a read on a writable mount and lets the opener go on.
func (k *kernel) readFrom(e fileEvent, f *file) {
	if !k.r.knows(e.pid, f.id) {
		k.r.opened(e.pid, e.label(), f.id, f.digest.text())
	}
	f.readers = append(f.readers, reader{pid: e.pid, digest: f.digest})
	k.allow(e)
}

func (e fileEvent) label() string { return strings.TrimSuffix(e.name(), " (deleted)") }

func (k *kernel) allow(e fileEvent) {
	if err := e.allow(); err != nil {
		k.r.fail("%v", err)
	}
}

// hash hashes here, or hands a large file over.
func (k *kernel) hash(j job) {
	if j.id.size <= small {
		d, st, err := sum(j.event.fd, j.id.size, k.buffer)
		k.hashed(j, d, &st, err)
		return
	}
	j.file.hashing = true
	k.busy.Add(1)
	k.owed[j.event.pid]++
	k.jobs = append(k.jobs, j)
	k.more.Signal()
}

// work hashes what is handed over.
func (k *kernel) work() {
	defer k.hands.Done()
	through := make([]byte, 1<<20)
	k.mu.Lock()
	defer k.mu.Unlock()
	for {
		for len(k.jobs) == 0 && !k.over {
			k.more.Wait()
		}
		if len(k.jobs) == 0 {
			return
		}
		j := k.jobs[0]
		k.jobs = k.jobs[1:]
		k.mu.Unlock()
		d, st, err := sum(j.event.fd, j.id.size, through)
		k.mu.Lock()
		j.file.hashing = false
		k.hashed(j, d, &st, err)
		k.paid(j.event.pid)
		for len(j.file.waiting) > 0 && !j.file.hashing {
			e := j.file.waiting[0]
			j.file.waiting = j.file.waiting[1:]
			k.event(e)
			k.paid(e.pid)
		}
		k.busy.Done()
	}
}

// paid counts an event less that a process has to wait for.
func (k *kernel) paid(pid int) {
	if k.owed[pid]--; k.owed[pid] == 0 {
		delete(k.owed, pid)
	}
}

// hashed takes the content of a file, and what the file was after it was read: the
// event that asked for it goes on.
func (k *kernel) hashed(j job, d digest, st *unix.Stat_t, err error) {
	f, e := j.file, j.event
	if err != nil {
		k.r.fail("hashing %s: %v", e.name(), err)
		k.allow(e)
		return
	}
	id := identify(st)
	path := e.label()
	changed := id != j.id // while it was read
	f.id, f.digest, f.path = id, d, path
	if st.Mode&0o111 != 0 {
		k.remember(e, f, st)
	}
	switch {
	case e.group == k.sealed || e.group == k.readers:
		if changed {
			k.r.unstable(path, d.text())
		} else {
			k.kept(path, id, d)
		}
		k.r.opened(e.pid, path, j.id, d.text())
		k.ignore(e, f)
		k.allow(e)
	case e.group == k.written:
		k.drainNames() // the file's name comes first
		k.wrote(e, f)
	default:
		if j.how.contended || changed {
			f.suspects = append(f.suspects, reader{pid: e.pid, digest: d})
		}
		if !j.how.writes {
			f.readers = append(f.readers, reader{pid: e.pid, digest: d})
		}
		k.r.opened(e.pid, path, id, d.text())
		if f.writers > 0 {
			f.id, f.digest = identity{}, digest{}
		}
		k.allow(e)
	}
}

// kept holds the inventory against a hash, or adds the hash to it.
func (k *kernel) kept(path string, id identity, d digest) {
	was, ok := k.digests.digests[id]
	switch {
	case !ok:
		k.digests.keep(id, d, time.Now())
	case was != d:
		k.r.fail("the digests kept from earlier traces are false: %s", path)
		k.digests.forget()
	}
}

// wrote records what a writer left, and whom it misled.
func (k *kernel) wrote(e fileEvent, f *file) {
	if f.writers > 0 {
		f.writers--
	}
	k.r.wrote(e.pid, f.path, f.id, f.digest.text())
	for _, s := range f.suspects {
		if s.digest != f.digest && s.pid != e.pid {
			k.r.unstable(f.path, f.digest.text())
			break
		}
	}
	if f.writers == 0 {
		f.suspects = nil
	}
	k.allow(e)
}

// ignore asks the kernel not to stop at this version of a file again: only for
// what was there before the trace, since the kernel does not tell of every
// change of what the build itself may write. The mark is gone when the file is
// changed, or when the kernel wants its memory back.
func (k *kernel) ignore(e fileEvent, f *file) {
	if f.id.ctime > k.began.Add(-time.Second).UnixNano() {
		return
	}
	const mask = unix.FAN_OPEN_PERM
	mark := func(how uint) error {
		return unix.FanotifyMark(k.sealed.fd, how|unix.FAN_MARK_IGNORED_MASK|unix.FAN_MARK_EVICTABLE, mask, e.fd, "")
	}
	if mark(unix.FAN_MARK_ADD) != nil {
		return // it costs time, not truth
	}
	var st unix.Stat_t
	if err := unix.Fstat(e.fd, &st); err != nil || identify(&st) != f.id {
		mark(unix.FAN_MARK_REMOVE)
	}
}

// remember finds a program by the names that BPF has for it.
func (k *kernel) remember(e fileEvent, f *file, st *unix.Stat_t) {
	key, err := k.kernelName(e.fd, st)
	if err != nil {
		k.r.fail("finding the number of %s: %v", f.path, err)
		return
	}
	k.known[key] = f
}

// kernelName is the device and the inode that the kernel has for an open file,
// which are not those of stat on an overlay.
func (k *kernel) kernelName(fd int, st *unix.Stat_t) (inode, error) {
	info, err := os.Open("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return inode{}, err
	}
	defer info.Close()
	id, ino := -1, uint64(0)
	for lines := bufio.NewScanner(info); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		switch value = strings.TrimSpace(value); name {
		case "mnt_id":
			id, err = strconv.Atoi(value)
		case "ino":
			ino, err = strconv.ParseUint(value, 10, 64)
		}
		if err != nil {
			return inode{}, err
		}
	}
	dev, ok := k.devices[id]
	if !ok {
		return inode{}, fmt.Errorf("its mount %d is not the sandbox's", id)
	}
	return inode{dev: dev, ino: ino}, nil
}

// sum hashes an open file from its start, without moving its position, and says
// what it was when that was done; size is what it is expected to have.
func sum(fd int, size int64, through []byte) (d digest, st unix.Stat_t, err error) {
	h := sha256.New()
	for at := int64(0); ; {
		n, err := unix.Pread(fd, through, at)
		if n > 0 {
			h.Write(through[:n])
			at += int64(n)
		}
		if err != nil {
			return digest{}, st, err
		}
		if n > 0 && at != size {
			continue
		}
		if err := unix.Fstat(fd, &st); err != nil {
			return digest{}, st, err
		}
		if n == 0 || st.Size == at { // else it grew
			h.Sum(d[:0])
			return d, st, nil
		}
	}
}
