// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark/internal/build"
)

// names follows the names on the file systems that a sandbox may write to. The
// kernel tells a directory by its handle; from the events alone, in their order,
// names knows what each directory was called when something happened in it.
//
// Each file system has a fanotify group of its own: events name their file system
// by what statfs says, and before Linux 6.6 an overlay says what the file system
// of its upper directory does, so that two overlays there have one name.
type names struct {
	systems map[systemID]*nameSystem
	dirs    map[handle]*directory
	// called is the last name of each file that was made or moved, by a hash of its
	// handle: it gives a label and nothing else.
	called map[uint64]place
	seed   maphash.Seed
	// lost are events in directories that were gone before we could ask for
	// their name: it comes with the event of their removal.
	lost map[handle][]nameEvent
}

// systemID is what we call a file system: its device number.
type systemID [8]byte

// nameSystem is one file system.
type nameSystem struct {
	group *group
	root  int // descriptor of its top directory
	fresh bool
	path  string
}

// handle is what the kernel calls a file: file system, type and handle.
type handle string

// lower reports whether a handle is an overlay's for a file of a layer that is
// not written to.
func (h handle) lower() bool {
	const kind, magic, upper = 0xf8, 0xfb, 4 // OVL_FILEID_V1, OVL_FH_MAGIC, OVL_FH_FLAG_PATH_UPPER
	b := []byte(h)
	return len(b) > 18 && binary.NativeEndian.Uint32(b[8:]) == kind && b[16] == magic && b[18]&upper == 0
}

// directory is a place in the tree; path is set for those that were there when
// they were first met.
type directory struct {
	parent *directory
	name   string
	path   string
}

func (d *directory) text() string {
	if d.parent == nil {
		return d.path
	}
	return path.Join(d.parent.text(), d.name)
}

// place is a name in a directory.
type place struct {
	dir  *directory
	name string
}

// entry is a directory and a name in it.
type entry struct {
	dir  handle
	name string
}

// nameEvent is one event: at is where, to where it was moved, child which file.
type nameEvent struct {
	mask  uint64
	pid   int
	at    entry
	to    entry
	child handle
}

const nameMask = unix.FAN_CREATE | unix.FAN_DELETE | unix.FAN_RENAME | unix.FAN_ONDIR

func newNames() *names {
	return &names{systems: map[systemID]*nameSystem{}, dirs: map[handle]*directory{}, called: map[uint64]place{}, seed: maphash.MakeSeed(), lost: map[handle][]nameEvent{}}
}

func (n *names) close() {
	for _, s := range n.systems {
		unix.Close(s.root)
		unix.Close(s.group.fd)
	}
}

// mark follows the file system at a path of ours, which is seen inside as m.path.
func (n *names) mark(at string, m mounted) error {
	var id systemID
	binary.NativeEndian.PutUint64(id[:], m.dev)
	if _, twice := n.systems[id]; twice {
		return nil
	}
	fd, err := unix.Open(at, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening %s: %w", m.path, err)
	}
	g, err := openGroup(unix.FAN_CLASS_NOTIF | unix.FAN_REPORT_FID | unix.FAN_REPORT_DFID_NAME | unix.FAN_REPORT_TARGET_FID)
	if err != nil {
		unix.Close(fd)
		return err
	}
	g.buf = make([]byte, 64<<10)
	n.systems[id] = &nameSystem{group: g, root: fd, path: m.path, fresh: m.kind == "tmpfs"}
	if err := unix.FanotifyMark(g.fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, nameMask, fd, "."); err != nil {
		return fmt.Errorf("following the names of %s: %w", m.path, err)
	}
	return n.walk(fd, id, m.id, &directory{path: m.path})
}

// elsewhere reports whether a file is surely not on a mount.
func elsewhere(fd, mount int) bool {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st)
	return err == nil && st.Mask&unix.STATX_MNT_ID != 0 && st.Mnt_id != uint64(mount) //nolint:gosec // the kernel numbers mounts from one
}

// walk learns the directories that are there already: what is done in one can be
// told too late to ask for its name, and an overlay does not say which directory
// it removed.
func (n *names) walk(fd int, system systemID, mount int, d *directory) error {
	h, on, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.EOPNOTSUPP) && elsewhere(fd, mount) {
		return nil // such as /proc in a root that can be written to
	}
	if err != nil {
		return fmt.Errorf("naming %s: %w", d.text(), err)
	}
	if on != mount {
		return nil // another file system, which has a mark of its own
	}
	n.dirs[newHandle(system, h.Type(), h.Bytes())] = d
	// The descriptor is read to its end by a duplicate that starts where it stands.
	again, err := unix.Dup(fd)
	if err != nil {
		return fmt.Errorf("listing %s: %w", d.text(), err)
	}
	list := os.NewFile(uintptr(again), d.name)
	defer list.Close()
	entries, err := list.ReadDir(-1)
	if err != nil {
		return fmt.Errorf("listing %s: %w", d.text(), err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		below, err := unix.Openat(fd, e.Name(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening %s in %s: %w", e.Name(), d.text(), err)
		}
		err = n.walk(below, system, mount, &directory{parent: d, name: e.Name()})
		unix.Close(below)
		if err != nil {
			return err
		}
	}
	return nil
}

func newHandle(system systemID, kind int32, b []byte) handle {
	head := append(system[:], 0, 0, 0, 0)
	binary.NativeEndian.PutUint32(head[8:], uint32(kind))
	return handle(append(head, b...))
}

// read takes what is queued for one file system.
func (n *names) read() ([]nameEvent, error) {
	for id, s := range n.systems {
		size, err := unix.Read(s.group.fd, s.group.buf)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading events of names: %w", err)
		}
		return parseNames(s.group.buf[:size], id)
	}
	return nil, nil
}

// parseNames reads events as fanotify(7) describes them, of one file system.
func parseNames(b []byte, system systemID) ([]nameEvent, error) {
	order := binary.NativeEndian
	var out []nameEvent
	for len(b) > 0 {
		if len(b) < metadataLen {
			return nil, errors.New("reading events of names: a short event")
		}
		length, head := int(order.Uint32(b)), int(order.Uint16(b[6:]))
		if length < metadataLen || length > len(b) || head < metadataLen || head > length || b[4] != unix.FANOTIFY_METADATA_VERSION {
			return nil, errors.New("reading events of names: the kernel speaks of them in another form")
		}
		e := nameEvent{mask: order.Uint64(b[8:]), pid: int(int32(order.Uint32(b[20:])))}
		if err := e.parse(b[head:length], system); err != nil {
			return nil, err
		}
		out = append(out, e)
		b = b[length:]
	}
	return out, nil
}

// parse reads the records behind an event.
func (e *nameEvent) parse(b []byte, system systemID) error {
	order := binary.NativeEndian
	for len(b) > 0 {
		if len(b) < 4 {
			return errors.New("reading events of names: a short record")
		}
		kind, length := b[0], int(order.Uint16(b[2:]))
		if length < 4 || length > len(b) {
			return errors.New("reading events of names: a record of a wrong length")
		}
		r := b[4:length]
		b = b[length:]
		if kind == unix.FAN_EVENT_INFO_TYPE_PIDFD || len(r) < 16 {
			continue
		}
		size := int(order.Uint32(r[8:]))
		if size > len(r)-16 {
			return errors.New("reading events of names: a handle of a wrong length")
		}
		h := newHandle(system, int32(order.Uint32(r[12:])), r[16:16+size])
		name, _, _ := bytes.Cut(r[16+size:], []byte{0})
		switch kind {
		case unix.FAN_EVENT_INFO_TYPE_FID:
			e.child = h
		case unix.FAN_EVENT_INFO_TYPE_DFID_NAME, unix.FAN_EVENT_INFO_TYPE_OLD_DFID_NAME:
			e.at = entry{h, string(name)}
		case unix.FAN_EVENT_INFO_TYPE_NEW_DFID_NAME:
			e.to = entry{h, string(name)}
		}
	}
	return nil
}

// find is the directory of a handle: known from events, or asked for. nil: it is
// gone.
func (n *names) find(h handle) *directory {
	if d := n.dirs[h]; d != nil {
		return d
	}
	fd, err := n.open(h)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Nlink == 0 {
		return nil
	}
	text, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return nil
	}
	d := &directory{path: text}
	n.dirs[h] = d
	return d
}

func (n *names) open(h handle) (int, error) {
	s := n.systems[systemID([]byte(h[:8]))]
	if s == nil {
		return -1, unix.ESTALE
	}
	return unix.OpenByHandleAt(s.root, unix.NewFileHandle(int32(binary.NativeEndian.Uint32([]byte(h[8:12]))), []byte(h[12:])), unix.O_PATH|unix.O_CLOEXEC)
}

// named records an event of a name; k.mu is held.
func (k *kernel) named(e nameEvent) {
	if e.mask&unix.FAN_Q_OVERFLOW != 0 {
		k.r.fail("the kernel's queue of names was full")
		return
	}
	n := k.names
	for _, h := range []handle{e.at.dir, e.to.dir} {
		if h != "" && n.find(h) == nil {
			n.lost[h] = append(n.lost[h], e)
			return
		}
	}
	at := n.find(e.at.dir)
	if at == nil {
		k.r.fail("an event of a name without a directory")
		return
	}
	label := path.Join(at.text(), e.at.name)
	dir := e.mask&unix.FAN_ONDIR != 0
	again := false // it was removed first, and made after that
	if e.mask&(unix.FAN_CREATE|unix.FAN_DELETE) == unix.FAN_CREATE|unix.FAN_DELETE && !dir {
		if again = n.exists(e); again {
			k.r.named(build.EventRemove, e.pid, label, "")
		}
	}
	if e.mask&unix.FAN_CREATE != 0 {
		if dir {
			n.dirs[e.child] = &directory{parent: at, name: e.at.name}
		}
		of := k.linked(e, dir, label)
		if !dir {
			n.called[n.key(e.child)] = place{at, e.at.name}
		}
		if of != "" {
			k.r.named(build.EventLink, e.pid, of, label)
		} else {
			k.r.named(build.EventMake, e.pid, label, "")
		}
	}
	if e.mask&unix.FAN_RENAME != 0 {
		to := n.find(e.to.dir)
		if to == nil {
			k.r.fail("a file was moved to an unknown directory")
			return
		}
		if dir {
			n.moved(e.child, to, e.to.name)
		} else {
			n.called[n.key(e.child)] = place{to, e.to.name}
		}
		k.r.named(build.EventRename, e.pid, label, path.Join(to.text(), e.to.name))
	}
	if e.mask&unix.FAN_DELETE != 0 && !again {
		if dir {
			k.removed(e.child, at, e.at.name)
		}
		k.r.named(build.EventRemove, e.pid, label, "")
	}
}

// exists reports whether the file of an event has the event's name now.
func (n *names) exists(e nameEvent) bool {
	fd, err := n.open(e.child)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	dir, err := n.open(e.at.dir)
	if err != nil {
		return false
	}
	defer unix.Close(dir)
	var it, there unix.Stat_t
	return unix.Fstat(fd, &it) == nil && unix.Fstatat(dir, e.at.name, &there, unix.AT_SYMLINK_NOFOLLOW) == nil && it.Dev == there.Dev && it.Ino == there.Ino
}

func (n *names) key(h handle) uint64 { return maphash.String(n.seed, string(h)) }

func (n *names) moved(h handle, to *directory, name string) {
	d := n.dirs[h]
	if d == nil {
		d = &directory{}
		n.dirs[h] = d
	}
	*d = directory{parent: to, name: name}
}

// removed tells what waited for the name of a directory. The directory is not
// forgotten: the kernel may tell of its making and its removal in one event,
// before what was done in it.
func (k *kernel) removed(h handle, parent *directory, name string) {
	waiting := k.names.lost[h]
	if len(waiting) > 0 {
		delete(k.names.lost, h)
		k.names.dirs[h] = &directory{parent: parent, name: name}
		for _, e := range waiting {
			k.named(e)
		}
	}
}

// linked is the path of the file that got a further name; empty: the file is new.
func (k *kernel) linked(e nameEvent, dir bool, label string) string {
	n := k.names
	if dir {
		return ""
	}
	if before, known := n.called[n.key(e.child)]; known {
		return path.Join(before.dir.text(), before.name)
	}
	s := n.systems[systemID([]byte(e.at.dir[:8]))]
	if s == nil || s.fresh {
		return "" // nothing was there before the trace
	}
	fd, err := n.open(e.child)
	if err != nil {
		return "" // gone again
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	var born unix.Statx_t
	if unix.Fstat(fd, &st) != nil || unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &born) != nil {
		return ""
	}
	// An overlay's copy of a file is younger than the file, but its handle says
	// where it comes from.
	if !e.child.lower() && time.Unix(born.Btime.Sec, int64(born.Btime.Nsec)).After(k.began) {
		return ""
	}
	if f := k.files[inode{dev: st.Dev, ino: st.Ino}]; f != nil && f.path != "" && f.path != label {
		return f.path
	}
	text, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if text = strings.TrimSuffix(text, " (deleted)"); err != nil || text == label || !strings.HasPrefix(text, s.path+"/") {
		return "" // its other names are gone
	}
	return text
}
