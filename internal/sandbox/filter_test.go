// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"encoding/json"
	"fmt"
	"math"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestFilterIsWhole: no call stands on two lists, and every jump stays inside.
func TestFilterIsWhole(t *testing.T) {
	all := slices.Concat(allowed(), watched(), refused(),
		[]uint32{unix.SYS_SENDTO, unix.SYS_CLONE, unix.SYS_IOCTL, unix.SYS_SOCKET, unix.SYS_SOCKETPAIR, unix.SYS_PRCTL, unix.SYS_PERSONALITY, unix.SYS_PRLIMIT64, unix.SYS_MEMFD_CREATE})
	for nr := range nodeCalls() {
		all = append(all, nr)
	}
	slices.Sort(all)
	for i, nr := range all[1:] {
		if nr == all[i] {
			t.Errorf("system call %d stands twice", nr)
		}
	}
	for _, memfd := range []bool{true, false} {
		prog := filter(memfd)
		if len(prog) > 4096 {
			t.Errorf("%d instructions, more than the kernel takes", len(prog))
		}
		for i, in := range prog {
			if i+1+int(max(in.Jt, in.Jf)) >= len(prog) && in.Code&0x07 == unix.BPF_JMP {
				t.Errorf("instruction %d leaves the program", i)
			}
		}
		for _, judge := range []func(*program){judgeSocket, judgeSendto, judgePrlimit} {
			var b program
			if judge(&b); len(b)+1 > math.MaxUint8 {
				t.Errorf("a judgement of %d instructions can't be jumped over", len(b))
			}
		}
	}
}

// probe makes system calls by number and prints their errors.
const probe = `
import ctypes, errno, json, sys
libc = ctypes.CDLL(None, use_errno=True)
out = {}
for name, args in json.load(sys.stdin).items():
    ctypes.set_errno(0)
    r = libc.syscall(*[ctypes.c_long(a) for a in args])
    out[name] = "ok" if r >= 0 else errno.errorcode.get(ctypes.get_errno(), "?")
print(json.dumps(out))
`

func TestFilterAnswers(t *testing.T) {
	const cloneBack = unix.CLONE_NEWUSER | int(unix.SIGCHLD)
	calls := map[string][]int{
		"io_uring_setup": {unix.SYS_IO_URING_SETUP, 1, 0}, "io_uring_enter": {unix.SYS_IO_URING_ENTER, 0}, "clone3": {unix.SYS_CLONE3, 0, 0},
		"bpf": {unix.SYS_BPF, 0, 0, 0}, "ptrace": {unix.SYS_PTRACE, 0, 0}, "userfaultfd": {unix.SYS_USERFAULTFD, 0}, "keyctl": {unix.SYS_KEYCTL, 0, 0},
		"add_key": {unix.SYS_ADD_KEY, 0}, "open_by_handle_at": {unix.SYS_OPEN_BY_HANDLE_AT, 0}, "process_vm_readv": {unix.SYS_PROCESS_VM_READV, 1, 0},
		"mount": {unix.SYS_MOUNT, 0, 0, 0, 0}, "fsopen": {unix.SYS_FSOPEN, 0}, "open_tree": {unix.SYS_OPEN_TREE, 0}, "move_mount": {unix.SYS_MOVE_MOUNT, 0},
		"mount_setattr": {unix.SYS_MOUNT_SETATTR, 0}, "unshare": {unix.SYS_UNSHARE, unix.CLONE_NEWUSER}, "setns": {unix.SYS_SETNS, 0, 0}, "clone namespace": {unix.SYS_CLONE, cloneBack, 0, 0, 0, 0},
		"clone untraced": {unix.SYS_CLONE, unix.CLONE_UNTRACED | int(unix.SIGCHLD), 0, 0, 0, 0}, "perf": {unix.SYS_PERF_EVENT_OPEN, 0}, "kexec": {unix.SYS_KEXEC_LOAD, 0}, "init_module": {unix.SYS_INIT_MODULE, 0},
		"TIOCSTI": {unix.SYS_IOCTL, 0, unix.TIOCSTI, 0}, "TIOCLINUX": {unix.SYS_IOCTL, 0, 0x541c, 0},
		"packet socket": {unix.SYS_SOCKET, unix.AF_PACKET, unix.SOCK_DGRAM, 0}, "vsock": {unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM, 0}, "alg socket": {unix.SYS_SOCKET, unix.AF_ALG, unix.SOCK_SEQPACKET, 0},
		"raw socket": {unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_RAW, 1}, "icmp socket": {unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM, 1}, "multipath": {unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 262},
		"netlink route": {unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, 0}, "netlink netfilter": {unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, 12}, "netlink audit": {unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, 9},
		"unix socket": {unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM, 0}, "tcp6": {unix.SYS_SOCKET, unix.AF_INET6, unix.SOCK_STREAM, 6},
		"personality ask": {unix.SYS_PERSONALITY, 0xffffffff}, "personality read-implies-exec": {unix.SYS_PERSONALITY, 0x0400000},
		"prctl name": {unix.SYS_PRCTL, unix.PR_GET_DUMPABLE, 0}, "prctl set_mm": {unix.SYS_PRCTL, unix.PR_SET_MM, 0}, "prctl seccomp": {unix.SYS_PRCTL, unix.PR_SET_SECCOMP, 2, 0}, "prctl ptracer": {unix.SYS_PRCTL, unix.PR_SET_PTRACER, -1},
		"prlimit first process": {unix.SYS_PRLIMIT64, 1, unix.RLIMIT_CPU, 1, 0}, "seccomp": {unix.SYS_SECCOMP, 0, 0, 0}, "memfd exec": {unix.SYS_MEMFD_CREATE, 0, unix.MFD_EXEC},
		"io_setup": {unix.SYS_IO_SETUP, 1, 0}, "fanotify": {unix.SYS_FANOTIFY_INIT, 0, 0}, "not invented": {4000, 0},
	}
	want := map[string]string{
		"io_uring_setup": "ENOSYS", "io_uring_enter": "ENOSYS", "clone3": "ENOSYS", "io_setup": "ENOSYS", "not invented": "ENOSYS",
		"packet socket": "EAFNOSUPPORT", "vsock": "EAFNOSUPPORT", "alg socket": "EAFNOSUPPORT", "icmp socket": "EPROTONOSUPPORT", "multipath": "EPROTONOSUPPORT",
		"netlink route": "ok", "unix socket": "ok", "tcp6": "ok", "personality ask": "ok", "prctl name": "ok",
	}
	in, err := json.Marshal(calls)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := sh(t, "python3 -c '"+probe+"'", func(s *Spec) { s.Stdin = strings.NewReader(string(in)) })
	var got map[string]string
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	for name := range calls {
		w := want[name]
		if w == "" {
			w = "EPERM"
		}
		if name == "memfd exec" && (got[name] == "EACCES" || got[name] == "ENOSYS") {
			continue // the kernel's setting, or the filter
		}
		if got[name] != w {
			t.Errorf("%s: %s, want %s", name, got[name], w)
		}
	}
}

// TestOtherArchitectureKills: a 32-bit call would have other numbers.
func TestOtherArchitectureKills(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("only amd64 has a second architecture that needs no other binary")
	}
	_, rep := sh(t, `python3 - <<'E'
import ctypes, mmap
m = mmap.mmap(-1, 4096, prot=7)
m.write(bytes([0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xc3])) # mov eax, getpid; int 0x80; ret
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()
E`, nil)
	if rep.ExitCode != 159 && rep.Signal != "SIGSYS" {
		t.Errorf("a 32-bit call: %+v", rep)
	}
	_, rep = sh(t, fmt.Sprintf(`python3 -c 'import ctypes; ctypes.CDLL(None).syscall(%d)'`, x32Bit|39), nil)
	if rep.ExitCode != 159 && rep.Signal != "SIGSYS" {
		t.Errorf("an x32 call: %+v", rep)
	}
}

// TestRealBuildsRun: what the filter leaves is enough for the languages that are
// built here. A tool that is not installed is left out.
func TestRealBuildsRun(t *testing.T) {
	for name, tt := range map[string]struct{ needs, script string }{
		"go": {"go", `mkdir m; cd m; printf 'module example.org/m\n\ngo 1.21\n' >go.mod
			printf 'package main\nimport ("fmt";"net";"os/exec";"os")\nfunc main(){l,e:=net.Listen("tcp","127.0.0.1:0");if e!=nil{panic(e)};go func(){c,_:=l.Accept();c.Close()}();c,e:=net.Dial("tcp",l.Addr().String());if e!=nil{panic(e)};c.Close();if e:=exec.Command("true").Run();e!=nil{panic(e)};fmt.Println("done",len(os.Args))}\n' >main.go
			CGO_ENABLED=0 go build -o m . && ./m && CGO_ENABLED=0 go vet ./...`},
		"make": {"gcc", `printf '#include <stdio.h>\n#include <pthread.h>\nstatic void*f(void*a){return a;}\nint main(void){pthread_t t;pthread_create(&t,0,f,0);pthread_join(t,0);puts("done");}\n' >a.c
			printf 'a: a.c\n\tgcc -O2 -pthread -o $@ $<\n' >Makefile; make -j2 && ./a && ar rcs a.a a && strip a`},
		"node": {"node", `printf '{"name":"a","version":"1.0.0","scripts":{"test":"node -e \\"require(\\x27worker_threads\\x27)\\""}}' >package.json
			node -e 'const {Worker}=require("worker_threads");new Worker("require(\"fs\").writeFileSync(\"w\",\"x\")",{eval:true}).on("exit",()=>{console.log(require("fs").readFileSync("w","utf8"),require("child_process").execSync("echo done").toString())})'`},
		"npm":    {"npm", `printf '{"name":"a","version":"1.0.0","scripts":{"test":"echo done"}}' >package.json; npm pack --ignore-scripts --offline && npm test --offline`},
		"python": {"python3", `printf 'import multiprocessing,tempfile,sqlite3,subprocess,asyncio\ndef f(x): return x*2\nif __name__=="__main__":\n  with multiprocessing.Pool(2) as p: print(p.map(f,[1,2]))\n  sqlite3.connect("d.db").execute("create table t(a)")\n  asyncio.run(asyncio.sleep(0))\n  print(subprocess.check_output(["echo","done"]).decode())\n' >a.py; python3 a.py`},
	} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && name == "go" {
				t.Skip("compiles the standard library")
			}
			if _, err := exec.LookPath(tt.needs); err != nil {
				t.Skip(err)
			}
			out, rep := sh(t, "mkdir -p /tmp/home; cd /tmp; set -e; "+tt.script, func(s *Spec) {
				s.Env = append(s.Env, "HOME=/tmp/home", "GOCACHE=/tmp/gocache", "GOFLAGS=-mod=mod", "GOPROXY=off", "GOTOOLCHAIN=local")
				s.Limits = Limits{Wall: 30 * time.Minute} // an emulated machine compiles slowly
			})
			if rep.ExitCode != 0 || !strings.Contains(out, "done") && name != "npm" {
				t.Errorf("%+v\n%s", rep, out)
			}
		})
	}
}

// TestMakesNoDevice: nodes that are doors are refused, pipes are made.
func TestMakesNoDevice(t *testing.T) {
	out, _ := sh(t, `cd /tmp; mkfifo f && echo fifo; mknod c c 0 0; mknod z c 1 3; mknod b b 7 0; ls`, nil)
	if !strings.Contains(out, "fifo") || strings.Count(out, "Operation not permitted") != 3 {
		t.Error(out)
	}
}

// TestMemoryIsNoProgram: a file in memory that was not sealed against execution
// by its maker can't be run.
func TestMemoryIsNoProgram(t *testing.T) {
	out, rep := sh(t, `python3 - <<'E'
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for flags in (0, 0x10): # none; MFD_EXEC
    fd = libc.syscall(319 if os.uname().machine == "x86_64" else 279, b"x", flags)
    if fd < 0: print("refused"); continue
    os.write(fd, open("/bin/true", "rb").read())
    try: os.fchmod(fd, 0o755)
    except OSError: pass
    if os.fork() == 0:
        try: os.execve(fd, ["x"], {})
        except OSError: os._exit(9)
    print("ran" if os.waitstatus_to_exitcode(os.wait()[1]) == 0 else "not run")
E`, nil)
	if strings.Contains(out, "ran") || rep.ExitCode != 0 || strings.Count(out, "\n") != 2 {
		t.Errorf("%+v %s", rep, out)
	}
}
