// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/trace"
)

// Config is what a sandbox needs.
type Config struct {
	Clock func() time.Time
}

// Sandbox starts programs. It is safe for concurrent use; sandboxes that run at
// the same time share nothing.
type Sandbox struct{ cfg Config }

// New checks that this machine can make namespaces.
func New(cfg Config) (*Sandbox, error) {
	if cfg.Clock == nil {
		return nil, hallmark.Errorf(hallmark.KindInternal, "sandbox without a clock")
	}
	return &Sandbox{cfg: cfg}, nil
}

// insideID is the user and group that programs see themselves as, unless they have
// a root of their own.
const insideID = 1000

// room is what the first process is told; it comes through a pipe.
type room struct {
	Argv, Env []string
	Dir       string
	Mounts    []Mount
	Workspace *Workspace
	Layers    []Workspace
	Root      *Root
	As        self    // who the program sees itself as
	Self      string  // path of our own binary on the host, if it is wanted inside
	Toolchain []Mount // seen read-only
	Limits    Limits
	Groups    bool           // supplementary groups can and must be given up
	Secrets   int            // descriptors from fdSecrets on
	Probe     uint16         // port of the attempt that shows that attempts are seen
	Traced    bool           // calls stop for a tracer, which attaches before the release
	Given     map[string]int // mounts that are there already, by descriptor
}

// note is what the first process says: exactly one of the fields.
type note struct {
	Ready    bool   // the room is made; ListenerFD is valid
	Listener int    // file descriptor of the seccomp listener in the first process
	Facts    facts  // measured in the room
	Overlay  bool   // the workspace is an overlay, not a copy
	Error    string // the room could not be made
	Exited   bool   // the program ended
	Code     int
	Signal   int
}

// host files that the first process finds open, after 0, 1 and 2.
const (
	fdSpec    = 3 // reads room
	fdNotes   = 4 // writes notes
	fdAck     = 5 // reads one byte when the parent serves the listener; EOF when it died
	fdSelf    = 6 // our own binary
	fdSecrets = 7 // reads the first secret; the others follow, then the mounts that we made
	fdFirst   = fdSpec
	lifeline  = fdAck
)

// HostID is the user id on the host of the programs of a sandbox: a fresh
// unprivileged one under root, else our own.
func HostID() int {
	if os.Geteuid() != 0 {
		return os.Geteuid()
	}
	const first = 7 << 28 // to the end of what fits in 31 bits
	return first + int(draw()>>4)
}

// draw returns 32 random bits.
func draw() uint32 {
	var b [4]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return binary.NativeEndian.Uint32(b[:])
}

// Run runs a program and waits for everything it started. An error means that
// the program could not be run as asked; a failing program is a Report.
func (s *Sandbox) Run(ctx context.Context, spec Spec) (Report, error) {
	return s.RunAs(ctx, HostID(), spec)
}

// RunAs runs a program whose host user id the caller chose, since the caller
// gave it directories.
func (s *Sandbox) RunAs(ctx context.Context, hostID int, spec Spec) (Report, error) {
	spec.Limits = spec.Limits.defaults()
	if len(spec.Argv) == 0 {
		return Report{}, hallmark.Errorf(hallmark.KindInternal, "sandbox without a program")
	}
	if err := spec.check(); err != nil {
		return Report{}, err
	}
	p, err := s.start(hostID, spec)
	if err != nil {
		return Report{}, hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeSandboxUnavailable, "starting the sandbox: %w", err)
	}
	defer p.cleanup()
	return p.serve(ctx, s.cfg.Clock)
}

// process is a started sandbox as the parent holds it.
type process struct {
	spec  Spec
	cmd   *exec.Cmd
	specW *os.File
	notes *os.File
	ack   *os.File
	group *cgroup
	// engine is chosen once: the room gets its filter by it, and another answer
	// later would have an engine believe in a filter that is not there.
	engine trace.Engine // 0: nothing is recorded
	mounts *overlays
	hostID int
	shared []string // namespaces that the first process has in common with us
	userID string   // user map of the first process
	bounds *bounds
	lost   []string // limits that vanished
	probed bool     // the probe was seen
	report Report
}

func (s *Sandbox) start(hostID int, spec Spec) (p *process, err error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer self.Close()
	var opened []*os.File
	pipe := func() (r, w *os.File) {
		if err != nil {
			return nil, nil
		}
		if r, w, err = os.Pipe(); err == nil {
			opened = append(opened, r, w)
		}
		return r, w
	}
	specR, specW := pipe()
	notesR, notesW := pipe()
	ackR, ackW := pipe()
	if err != nil {
		return nil, err
	}
	secrets, err := secretPipes(spec.Secrets, hostID)
	if err != nil {
		return nil, err
	}
	defer closeAll(secrets)
	if spec, err = withGateway(spec); err != nil {
		return nil, err
	}
	p = &process{spec: spec, specW: specW, notes: notesR, ack: ackW, hostID: hostID}
	if spec.Trace != nil {
		p.engine = trace.Pick(spec.Trace.Engine)
	}
	if p.mounts, err = mountOverlays(spec); err != nil {
		for _, f := range opened {
			f.Close()
		}
		return nil, err
	}
	defer p.mounts.close()
	p.cmd = &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{Alias}, Env: []string{trace.QuickStart}, Dir: "/",
		Stdin: spec.Stdin, Stdout: spec.Stdout, Stderr: spec.Stderr, ExtraFiles: slices.Concat([]*os.File{specR, notesW, ackR, self}, secrets, p.mounts.files),
		WaitDelay: 5 * time.Second,
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET |
				syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS | syscall.CLONE_NEWCGROUP,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: spec.self().UID, HostID: hostID, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: spec.self().GID, HostID: hostGID(hostID), Size: 1}},
			// Root's supplementary groups would open files of those groups to
			// the program; an ordinary user is not let to give its own up here.
			GidMappingsEnableSetgroups: os.Geteuid() == 0,
			// The set-up needs capabilities in the new user namespace, which
			// survive execve as ambient ones. The first process keeps our own
			// user on the host for as long as it mounts, since only that user
			// may pass through our private directories; the program never has it.
			AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_SETPCAP, unix.CAP_SETUID, unix.CAP_SETGID,
				// The overlay works with the rights of whoever mounted it.
				unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_CHOWN, unix.CAP_FSETID},
			Setsid: true,
		},
	}
	p.group = newCgroup(spec.Limits)
	err = p.cmd.Start()
	specR.Close()
	notesW.Close()
	ackR.Close()
	if err != nil {
		for _, f := range opened {
			f.Close()
		}
		p.group.remove()
		p.mounts.remove()
		return nil, err
	}
	p.group.add(p.cmd.Process.Pid)
	return p, nil
}

func hostGID(hostID int) int {
	if os.Geteuid() != 0 {
		return os.Getegid()
	}
	return hostID
}

func (p *process) cleanup() {
	if p.bounds != nil {
		p.bounds.hurry()
	}
	p.cmd.Process.Kill()
	p.group.kill()
	if p.bounds != nil {
		p.bounds.end()
		p.bounds.disk.close()
	}
	p.ack.Close()
	p.specW.Close()
	p.cmd.Wait()
	p.notes.Close()
	p.group.remove()
	p.mounts.remove()
}

// serve tells the first process what to do, answers the seccomp listener and
// waits for the end.
func (p *process) serve(ctx context.Context, clock func() time.Time) (Report, error) {
	fail := func(format string, args ...any) (Report, error) {
		return Report{}, hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeSandboxUnavailable, format, args...)
	}
	tools, err := p.spec.Toolchain.mounts(p.spec)
	if err != nil {
		return fail("%w", err)
	}
	r := room{
		Argv: p.spec.Argv, Env: p.spec.Env, Dir: p.spec.Dir, Mounts: p.spec.Mounts, Workspace: p.spec.Workspace, Layers: p.spec.Layers, Root: p.spec.Root, As: p.spec.self(),
		Toolchain: tools, Limits: p.spec.Limits, Groups: os.Geteuid() == 0, Traced: p.traced(), Given: p.mounts.given(fdSecrets + len(p.spec.Secrets)), Secrets: len(p.spec.Secrets), Probe: uint16(draw()) | 1, //nolint:gosec // any odd port
	}
	if p.spec.Self {
		exe, err := os.Executable()
		if err != nil {
			return fail("finding our own binary: %w", err)
		}
		r.Self = exe
	}
	if err := json.NewEncoder(p.specW).Encode(r); err != nil {
		return fail("telling the sandbox what to run: %w", err)
	}
	p.specW.Close()
	dec := json.NewDecoder(p.notes)
	var n note
	if err := dec.Decode(&n); err != nil {
		return fail("waiting for the sandbox: %w", err)
	}
	if n.Error != "" || !n.Ready {
		return fail("preparing the sandbox: %s", n.Error)
	}
	p.shared = sharedNamespaces(p.cmd.Process.Pid)
	p.userID, _ = readLine(fmt.Sprintf("/proc/%d/uid_map", p.cmd.Process.Pid))
	for _, g := range n.Facts.guarantees(p.shared, p.spec.self()) {
		if !g.Holds {
			return Report{}, hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeBuildNotIsolated, "the sandbox is not what was asked for: %s does not hold (%s)", g.Name, g.Detail)
		}
	}
	watcher, err := newWatcher(p.cmd.Process.Pid, n.Listener, clock)
	if err != nil {
		return fail("watching for egress: %w", err)
	}
	watcher.probe, watcher.alert = r.Probe, p.spec.OnEgress
	if p.bounds, err = newBounds(p.cmd.Process.Pid, p.group, p.spec); err != nil {
		watcher.abandon()
		return fail("watching the limits: %w", err)
	}
	agent, err := p.record(n, watcher)
	if err != nil {
		watcher.abandon()
		return Report{}, hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeTraceUnavailable, "recording the sandbox: %w", err)
	}
	p.report.StartedOn = clock()
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		watcher.run()
	}()
	if _, err := p.ack.Write([]byte{1}); err != nil {
		return fail("releasing the sandbox: %w", err)
	}
	end := make(chan note, 1)
	go func() {
		var n note
		if err := dec.Decode(&n); err != nil && !errors.Is(err, io.EOF) {
			n = note{}
		}
		end <- n
	}()
	timer := time.NewTimer(p.spec.Limits.Wall)
	defer timer.Stop()
	var last note
	select {
	case last = <-end:
	case <-timer.C:
		p.report.LimitHit = "wall"
	case <-agent.dead():
	case found := <-p.bounds.hit:
		p.report.LimitHit, p.lost = found.limit, found.lost
	case <-ctx.Done():
	}
	// The limits are the room's as long as it is there; how much was written can be
	// seen afterwards, and takes as long as there are files.
	if len(p.lost) == 0 {
		p.lost = p.group.lost(p.cmd.Process.Pid)
	}
	p.bounds.hurry()
	p.cmd.Process.Kill() // pid 1: everything in the pid namespace dies with it
	p.group.kill()
	p.cmd.Wait()
	p.report.FinishedOn = clock()
	watcher.stop()
	<-watching
	p.measureLast()
	p.report.Egress, p.probed = watcher.seen(), watcher.probed
	p.report.Trace = agent.finish()
	if err := ctx.Err(); err != nil {
		return Report{}, fmt.Errorf("running in the sandbox: %w", err)
	}
	p.finish(last)
	p.report.Guarantees = p.guarantees(n)
	return p.report, nil
}

func (p *process) finish(last note) {
	p.report.ExitCode = -1
	switch {
	case p.report.LimitHit != "" || len(p.lost) > 0:
	case !last.Exited: // pid 1 itself was killed: by the memory limit, or by the tenant
		p.report.Signal = "SIGKILL"
	case last.Signal != 0:
		p.report.Signal = unix.SignalName(syscall.Signal(last.Signal))
	default:
		p.report.ExitCode = last.Code
	}
	if p.group.outOfMemory() && p.report.LimitHit == "" && p.report.ExitCode != 0 {
		p.report.LimitHit = "memory"
	}
}

// measureLast looks at what was written, when everything has ended.
func (p *process) measureLast() {
	found := p.bounds.last()
	if p.report.LimitHit == "" {
		p.report.LimitHit = found.limit
	}
	if len(p.lost) == 0 {
		p.lost = found.lost
	}
	p.report.Lost = p.lost
}

func (p *process) guarantees(n note) []Guarantee {
	mapped := mapsOnly(p.userID, p.spec.self().UID, p.hostID)
	user := "own user id on the host"
	if os.Geteuid() == 0 {
		user = fmt.Sprintf("host user %d, drawn for this run", p.hostID)
	}
	took := p.report.FinishedOn.Sub(p.report.StartedOn)
	out := append(n.Facts.guarantees(p.shared, p.spec.self()),
		Guarantee{"egress-recorded", p.probed, "connect, sendto, sendmsg, sendmmsg by seccomp notification; an attempt of our own was seen before the program ran"},
		Guarantee{"unprivileged-user", mapped && os.Geteuid() == 0 && p.hostID != 0, user},
		Guarantee{"workspace-overlay", n.Overlay, ""},
		Guarantee{"wall-time-limit", took <= p.spec.Limits.Wall+wallGrace, fmt.Sprintf("%s, ended after %s", p.spec.Limits.Wall, took.Round(time.Millisecond))},
		p.bounds.guarantee())
	return append(out, p.group.guarantees(p.lost, n.Facts)...)
}

// wallGrace is how long the end of a sandbox may take.
const wallGrace = 15 * time.Second

// toolchain lists the host directories that hold programs and libraries.
func toolchain() []string {
	out := []string{"/usr"}
	for _, d := range []string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"} {
		if _, err := os.Lstat(d); err == nil {
			out = append(out, d)
		}
	}
	if g := GoRoot(); g != "" && !strings.HasPrefix(g, "/usr/") {
		out = append(out, g)
	}
	for _, d := range []string{"/etc/alternatives", "/etc/ssl/certs", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/debian_version", "/etc/os-release"} {
		if _, err := os.Stat(d); err == nil {
			out = append(out, d)
		}
	}
	return out
}

// GoRoot finds the Go toolchain by the program in PATH.
func GoRoot() string {
	p, err := exec.LookPath("go")
	if err != nil {
		return ""
	}
	if p, err = filepath.EvalSymlinks(p); err != nil {
		return ""
	}
	return filepath.Dir(filepath.Dir(p))
}

// HostToolchain lists the host directories and files that a sandbox sees beside what
// it is given, in its own names: programs, libraries and their configuration.
func HostToolchain() []string { return toolchain() }

// Path is the PATH of programs inside.
func Path() string {
	dirs := []string{"/usr/local/go/bin", "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}
	if g := GoRoot(); g != "" {
		if d := filepath.Join(g, "bin"); !slices.Contains(dirs, d) {
			dirs = append([]string{d}, dirs...)
		}
	}
	return strings.Join(dirs, ":")
}

// Find returns the path of a program of the toolchain.
func Find(name string) (string, error) {
	for _, d := range strings.Split(Path(), ":") {
		p := filepath.Join(d, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", hallmark.Errorf(hallmark.KindNotFound, "%s is not installed", name)
}
