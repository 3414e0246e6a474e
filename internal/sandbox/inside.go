// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark/internal/trace"
)

// Main is the first process of a sandbox: it makes the room, gives up its
// privileges, starts the program and says how it ended. It returns its exit
// code.
func Main() int {
	trace.CollectGarbage()
	// From here on this thread prepares and starts the program, which inherits
	// its credentials and its filter.
	runtime.LockOSThread()
	// Go tries with a child of its own whether processes have descriptors; now, so
	// that the first child that is seen is the program.
	if self, err := os.FindProcess(os.Getpid()); err == nil {
		self.Release()
	}
	notes := os.NewFile(fdNotes, "notes")
	say := json.NewEncoder(notes)
	if err := seal(); err != nil {
		say.Encode(note{Error: err.Error()})
		return 1
	}
	cmd, ready, probe, err := prepare()
	if err != nil {
		say.Encode(note{Error: err.Error()})
		return 1
	}
	if err := say.Encode(ready); err != nil {
		return 1
	}
	ack := os.NewFile(fdAck, "ack")
	if _, err := io.ReadFull(ack, make([]byte, 1)); err != nil {
		return 1
	}
	go func() {
		// The pipe ends when the control plane does. Pid 1 ending kills
		// everything in the namespace.
		ack.Read(make([]byte, 1))
		os.Exit(1)
	}()
	if err := attemptOwn(probe); err != nil {
		fmt.Fprintf(os.Stderr, "trying the watcher: %v\n", err)
		return 1
	}
	if err := cmd.Start(); err != nil {
		fmt.Fprintf(os.Stderr, "starting %s: %v\n", cmd.Path, err)
		say.Encode(note{Exited: true, Code: 127})
		select {}
	}
	say.Encode(reap(cmd.Process.Pid))
	select {} // the control plane looks at the room once more, and ends it
}

// seal keeps what this process holds from the program. Descriptors that our own
// parent left open must not be inherited. And since the program may have our
// user, and the thread that starts it has no more rights than the program, the
// kernel would let it open our memory and our pipes through /proc/1, where it
// could write its own exit status: a process that can't be dumped is closed to
// it.
func seal() error {
	if err := unix.CloseRange(fdFirst, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("keeping descriptors from the program: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("closing memory to the program: %w", err)
	}
	return nil
}

// reap waits for children until the program has ended; orphans are collected on
// the way.
func reap(program int) note {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return note{Exited: true, Code: 1}
		}
		if pid != program {
			continue
		}
		if ws.Signaled() {
			return note{Exited: true, Signal: int(ws.Signal())}
		}
		return note{Exited: true, Code: ws.ExitStatus()}
	}
}

func prepare() (*exec.Cmd, note, uint16, error) {
	var r room
	if err := json.NewDecoder(os.NewFile(fdSpec, "spec")).Decode(&r); err != nil {
		return nil, note{}, 0, fmt.Errorf("reading the spec: %w", err)
	}
	ready := note{Ready: true}
	var err error
	if ready.Overlay, err = furnish(r); err != nil {
		return nil, note{}, 0, err
	}
	if err := loopbackUp(); err != nil {
		return nil, note{}, 0, fmt.Errorf("bringing loopback up: %w", err)
	}
	if err := unix.Sethostname([]byte("sandbox")); err != nil {
		return nil, note{}, 0, fmt.Errorf("naming the host: %w", err)
	}
	if r.Limits.Disk <= 0 {
		return nil, note{}, 0, errors.New("a room without a disk limit")
	}
	limit(unix.RLIMIT_FSIZE, uint64(r.Limits.Disk))
	limit(unix.RLIMIT_CORE, 0)
	limit(unix.RLIMIT_NPROC, uint64(max(r.Limits.PIDs, 1)))
	if err := becomeInsider(r.Groups, r.As); err != nil {
		return nil, note{}, 0, err
	}
	cmd := &exec.Cmd{
		Args: r.Argv, Env: r.Env, Dir: r.Dir, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	for i := range r.Secrets {
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(fdSecrets+i), "secret"))
	}
	if r.Self != "" {
		cmd.Path = SelfPath
	} else if cmd.Path, err = lookPath(r.Argv[0], r.Env); err != nil && r.Root != nil {
		cmd.Path, err = missing(r.Argv[0]), nil //nolint:ineffassign,wastedassign // what the program is told is its own fault
	} else if err != nil {
		return nil, note{}, 0, err
	}
	if err := dropPrivileges(); err != nil {
		return nil, note{}, 0, err
	}
	gauge, err := newGauge()
	if err != nil {
		return nil, note{}, 0, err
	}
	if r.Traced {
		if err := installTraced(); err != nil {
			return nil, note{}, 0, err
		}
	}
	if ready.Listener, err = installFilter(); err != nil {
		return nil, note{}, 0, err
	}
	if ready.Facts, err = gauge.measure(); err != nil {
		return nil, note{}, 0, err
	}
	return cmd, ready, r.Probe, nil
}

func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, e := range env {
		if dirs, ok := strings.CutPrefix(e, "PATH="); ok {
			for _, d := range filepath.SplitList(dirs) {
				p := filepath.Join(d, name)
				if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
					return p, nil
				}
			}
		}
	}
	return "", fmt.Errorf("program %s is not in the sandbox's PATH", name)
}

const newRoot = "/tmp" // any directory of the host that is surely there

// furnish makes the file system of the room and turns to it.
func furnish(r room) (overlay bool, err error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return false, fmt.Errorf("making mounts private: %w", err)
	}
	f := &furniture{given: r.Given}
	// Binds from the host come first, on a scratch root: when it covers /tmp,
	// sources under /tmp are no longer reachable by their path.
	f.stage()
	for i, m := range r.Mounts {
		f.grab(strconv.Itoa(i), m.Source)
	}
	if w := r.Workspace; w != nil && f.given["workspace"] == 0 {
		f.grab("lower", w.Lower)
		f.grab("scratch", w.Scratch)
	}
	for i, l := range r.Layers {
		f.grabLayer(i, l)
	}
	if r.Root != nil {
		f.grabRoot(*r.Root)
	}
	for i, m := range r.Toolchain {
		f.grab("t"+strconv.Itoa(i), m.Source)
	}
	if r.Self != "" {
		f.grab("self", r.Self)
	}
	bindMemfd()
	// The file systems made from here on belong to the program's user.
	f.do("taking the user of the program", setEffective(r.As))
	f.root()
	if r.Root != nil {
		f.ownRoot(*r.Root)
		f.tmpfs("/dev/shm", "mode=1777,size="+strconv.FormatInt(r.Limits.Disk/4, 10))
		f.closeDev()
		f.enter(true)
		return f.err == nil, f.err
	}
	f.toolchain(r.Toolchain)
	f.devices()
	f.proc()
	f.etc()
	f.tmpfs("/tmp", "mode=1777,size="+strconv.FormatInt(r.Limits.Disk, 10))
	f.tmpfs("/dev/shm", "mode=1777,size="+strconv.FormatInt(r.Limits.Disk/4, 10))
	// What is seen inside the workspace has to wait for it.
	later := func(m Mount) bool { return r.Workspace != nil && strings.HasPrefix(m.Target, r.Workspace.Target+"/") }
	for i, m := range r.Mounts {
		if !later(m) {
			f.put(strconv.Itoa(i), m.Target, m.Writable)
		}
	}
	if r.Self != "" {
		f.put("self", SelfPath, false)
	}
	for i, l := range r.Layers {
		f.layer(i, l)
	}
	if r.Workspace != nil {
		overlay = f.workspace(*r.Workspace)
	}
	for i, m := range r.Mounts {
		if later(m) {
			f.put(strconv.Itoa(i), m.Target, m.Writable)
		}
	}
	f.enter(false)
	return overlay, f.err
}

// furniture remembers the first thing that went wrong; later steps do nothing.
type furniture struct {
	err   error
	trees map[string]grabbed
	given map[string]int // mounts that the parent made, by descriptor
}

// grabbed is a host file or directory, held as a detached mount.
type grabbed struct {
	fd   int
	dir  bool
	link string // of a symbolic link
}

func (f *furniture) do(what string, err error) {
	if f.err == nil && err != nil {
		f.err = fmt.Errorf("%s: %w", what, err)
	}
}

func (f *furniture) stage() { f.trees = map[string]grabbed{} }

// grab takes hold of a host path while our own user still may.
func (f *furniture) grab(name, source string) {
	if _, ok := f.given[name]; ok || f.err != nil {
		return
	}
	st, err := os.Lstat(source)
	if err != nil {
		f.do("finding "+source, err)
		return
	}
	if st.Mode()&fs.ModeSymlink != 0 {
		link, err := os.Readlink(source)
		f.do("reading "+source, err)
		f.trees[name] = grabbed{fd: -1, link: link}
		return
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	f.do("taking "+source, err)
	f.trees[name] = grabbed{fd: fd, dir: st.IsDir()}
}

// put mounts what was grabbed; target is inside the room.
func (f *furniture) put(name, target string, writable bool) {
	if f.place(name, target) {
		return
	}
	g, ok := f.trees[name]
	if f.err != nil || !ok {
		return
	}
	at := newRoot + target
	if g.fd < 0 {
		f.do("making "+target, os.MkdirAll(filepath.Dir(at), 0o755))
		f.do("linking "+target, os.Symlink(g.link, at))
		return
	}
	if g.dir {
		f.do("making "+target, os.MkdirAll(at, 0o755))
	} else {
		f.do("making "+target, os.MkdirAll(filepath.Dir(at), 0o755))
		if f.err == nil {
			h, err := os.OpenFile(at, os.O_CREATE|os.O_RDONLY, 0o644)
			f.do("making "+target, err)
			if err == nil {
				h.Close()
			}
		}
	}
	if f.err != nil {
		return
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if !writable {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	f.do("protecting "+target, unix.MountSetattr(g.fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr))
	f.do("mounting "+target, unix.MoveMount(g.fd, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH))
	unix.Close(g.fd)
}

func (f *furniture) root() {
	if f.err != nil {
		return
	}
	f.do("mounting the root", unix.Mount("tmpfs", newRoot, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=16m"))
}

func (f *furniture) tmpfs(target, opts string) {
	if f.err != nil {
		return
	}
	f.do("making "+target, os.MkdirAll(newRoot+target, 0o755))
	f.do("mounting "+target, unix.Mount("tmpfs", newRoot+target, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, opts))
}

func (f *furniture) toolchain(dirs []Mount) {
	for i, m := range dirs {
		f.put("t"+strconv.Itoa(i), m.Target, false)
	}
}

// etc writes the few files that programs look for. The name server is an address
// that belongs to nobody (RFC 5737), so that a look-up is seen as egress.
func (f *furniture) etc() {
	if f.err != nil {
		return
	}
	f.do("making /etc", os.MkdirAll(newRoot+"/etc", 0o755))
	for name, text := range etcFiles() {
		f.do("writing /etc/"+name, os.WriteFile(newRoot+"/etc/"+name, []byte(text), 0o644))
	}
}

// etcFiles are the files of /etc that are the room's own, whatever the toolchain.
func etcFiles() map[string]string {
	return map[string]string{
		"passwd":        "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\nbuild:x:1000:1000:build:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
		"group":         "root:x:0:\nbuild:x:1000:\nnogroup:x:65534:\n",
		"hosts":         "127.0.0.1 localhost sandbox\n::1 localhost\n",
		"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
		"resolv.conf":   "nameserver 192.0.2.53\noptions timeout:1 attempts:1\n",
		"hostname":      "sandbox\n",
	}
}

// workspace mounts source and scratch, which belongs to the program's user, as
// one directory.
func (f *furniture) workspace(w Workspace) bool {
	if f.place("workspace", w.Target) {
		return f.err == nil
	}
	f.put("lower", "/.hallmark/lower", false)
	f.put("scratch", "/.hallmark/scratch", true)
	if f.err != nil {
		return false
	}
	f.do("making the workspace", os.MkdirAll(newRoot+w.Target, 0o755))
	opts := "userxattr,lowerdir=" + newRoot + "/.hallmark/lower,upperdir=" + newRoot + "/.hallmark/scratch/upper,workdir=" + newRoot + "/.hallmark/scratch/work"
	err := unix.Mount("overlay", newRoot+w.Target, "overlay", unix.MS_NOSUID|unix.MS_NODEV, opts)
	f.do("mounting the workspace", err)
	f.do("covering the scratch directory", unix.Mount("tmpfs", newRoot+"/.hallmark/scratch", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_RDONLY, "mode=0000,size=4k"))
	return err == nil
}

// enter makes the room the root and lets go of the host.
func (f *furniture) enter(writable bool) {
	if f.err != nil {
		return
	}
	if !writable {
		f.do("protecting the root", unix.Mount("", newRoot, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""))
	}
	f.do("entering the room", unix.Chdir(newRoot))
	f.do("turning the root", unix.PivotRoot(".", "."))
	f.do("letting go of the host", unix.Unmount(".", unix.MNT_DETACH))
	f.do("entering the root", unix.Chdir("/"))
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

func limit(what int, value uint64) {
	var old unix.Rlimit
	if unix.Getrlimit(what, &old) == nil && old.Max < value {
		value = old.Max
	}
	unix.Setrlimit(what, &unix.Rlimit{Cur: value, Max: value})
}

// setEffective changes this thread's effective user, keeping its capabilities:
// raw system calls, since the program is started from this one thread.
func setEffective(as self) error {
	const keep = ^uintptr(0)
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, keep, uintptr(as.GID), keep); e != 0 { //nolint:gosec // checked when the sandbox was asked for
		return e
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(as.UID), keep); e != 0 { //nolint:gosec // checked when the sandbox was asked for
		return e
	}
	return nil
}

// becomeInsider gives this thread the program's user for good.
func becomeInsider(groups bool, as self) error {
	if groups {
		if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); e != 0 {
			return fmt.Errorf("giving up supplementary groups: %w", e)
		}
	}
	uid, gid := uintptr(as.UID), uintptr(as.GID) //nolint:gosec // checked when the sandbox was asked for
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); e != 0 {
		return fmt.Errorf("taking the group of the program: %w", e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); e != 0 {
		return fmt.Errorf("taking the user of the program: %w", e)
	}
	return nil
}

// dropPrivileges empties every capability set of this thread, the bounding set
// included, and forbids gaining any.
func dropPrivileges() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clearing ambient capabilities: %w", err)
	}
	for c := uintptr(0); c <= 63; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			if errors.Is(err, unix.EINVAL) && c > 20 {
				break // the kernel knows no more
			}
			return fmt.Errorf("dropping capability %d: %w", c, err)
		}
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("dropping capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forbidding new privileges: %w", err)
	}
	return nil
}

func installFilter() (int, error) { return installListener(filter(memfdBound())) }

// installListener installs a filter in this thread and what it starts, and
// returns the descriptor on which its questions come.
func installListener(prog []unix.SockFilter) (int, error) {
	size := len(prog)
	if size <= 0 || size > math.MaxUint16 {
		return 0, fmt.Errorf("a system call filter of %d instructions", size)
	}
	fprog := unix.SockFprog{Len: uint16(size), Filter: &prog[0]}
	fd, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&fprog)))
	if e != 0 {
		return 0, fmt.Errorf("installing the system call filter: %w", e)
	}
	return int(fd), nil
}
