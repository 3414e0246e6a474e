// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// group is one fanotify group: a queue of what happens on the mounts that it
// marks.
type group struct {
	fd  int
	buf []byte
}

// batch is how many events are taken at once: each that comes with a file holds a
// descriptor meanwhile.
const batch = 256

// openGroup makes a group that loses nothing: its queue grows without a bound.
func openGroup(flags uint) (*group, error) {
	// Nothing that we open for an event may block (a fifo would) or touch the
	// file's times.
	fd, err := unix.FanotifyInit(flags|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_UNLIMITED_QUEUE|unix.FAN_UNLIMITED_MARKS,
		unix.O_RDONLY|unix.O_LARGEFILE|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOATIME)
	if err != nil {
		return nil, fmt.Errorf("opening a fanotify group: %w", err)
	}
	return &group{fd: fd, buf: make([]byte, batch*unix.FAN_EVENT_METADATA_LEN)}, nil
}

// fileEvent is an event that came with an open file.
type fileEvent struct {
	group *group
	mask  uint64
	fd    int // ours to close; negative: none
	pid   int
}

const metadataLen = int(unsafe.Sizeof(unix.FanotifyEventMetadata{}))

// read takes what is queued, oldest first; none: nothing is queued.
func (g *group) read(into []fileEvent) ([]fileEvent, error) {
	n, err := unix.Read(g.fd, g.buf)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return into, nil
	}
	if err != nil {
		return into, fmt.Errorf("reading events: %w", err)
	}
	order := binary.NativeEndian
	for b := g.buf[:n]; len(b) >= metadataLen; {
		length := int(order.Uint32(b))
		if length < metadataLen || length > len(b) || b[4] != unix.FANOTIFY_METADATA_VERSION {
			return into, errors.New("reading events: the kernel speaks of them in another form")
		}
		into = append(into, fileEvent{
			group: g, mask: order.Uint64(b[8:]), fd: int(int32(order.Uint32(b[16:]))), pid: int(int32(order.Uint32(b[20:]))),
		})
		b = b[length:]
	}
	return into, nil
}

// allow lets the opener go on, which the kernel knows by our descriptor, and
// closes it.
func (e fileEvent) allow() error {
	var err error
	if e.mask&unix.FAN_OPEN_PERM != 0 {
		r := unix.FanotifyResponse{Fd: int32(e.fd), Response: unix.FAN_ALLOW}
		if _, err = unix.Write(e.group.fd, (*[unsafe.Sizeof(r)]byte)(unsafe.Pointer(&r))[:]); err != nil && !errors.Is(err, unix.ENOENT) {
			err = fmt.Errorf("answering the kernel: %w", err) // ENOENT: the opener was killed
		} else {
			err = nil
		}
	}
	if e.fd >= 0 {
		unix.Close(e.fd)
	}
	return err
}

// name is the path under which the file was opened, and whether the file has no
// name any more.
func (e fileEvent) name() string {
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(e.fd))
	if err != nil {
		return ""
	}
	return path
}

// mounted is a mount inside the sandbox.
type mounted struct {
	id       int
	dev      uint64 // of the file system, as stat has it
	path     string
	kind     string // of file system
	readOnly bool
}

// mounts lists what is mounted in the room of process pid and is seen there,
// but for proc.
func mounts(pid int) ([]mounted, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil, fmt.Errorf("listing mounts: %w", err)
	}
	defer f.Close()
	return readMounts(f)
}

// readMounts reads /proc/PID/mountinfo (proc(5)).
func readMounts(r io.Reader) ([]mounted, error) {
	var out []mounted
	for lines := bufio.NewScanner(r); ; {
		if !lines.Scan() {
			return out, lines.Err()
		}
		left, right, ok := strings.Cut(lines.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 1 {
			return nil, fmt.Errorf("reading mountinfo: %q", lines.Text())
		}
		id, err1 := strconv.Atoi(l[0])
		major, minor, _ := strings.Cut(l[2], ":")
		hi, err2 := strconv.ParseUint(major, 10, 32)
		lo, err3 := strconv.ParseUint(minor, 10, 32)
		path, err4 := unquoteMount(l[4])
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			return nil, fmt.Errorf("reading mountinfo: %q: %w", lines.Text(), err)
		}
		m := mounted{id: id, dev: unix.Mkdev(uint32(hi), uint32(lo)), path: path, kind: r[0], readOnly: slices.Contains(strings.Split(l[5], ","), "ro")}
		// What is covered can't be reached.
		out = slices.DeleteFunc(out, func(under mounted) bool { return under.path == m.path })
		out = append(out, m)
	}
}

// unquoteMount takes back the octal escapes of a path.
func unquoteMount(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		if i+4 > len(s) {
			return "", fmt.Errorf("an escape that ends early in %q", s)
		}
		n, err := strconv.ParseUint(s[i+1:i+4], 8, 8)
		if err != nil {
			return "", fmt.Errorf("an escape in %q: %w", s, err)
		}
		b.WriteByte(byte(n))
		i += 3
	}
	return b.String(), nil
}
