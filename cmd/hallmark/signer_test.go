// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// signerUser is a user that nothing else runs as; it needs no name.
const signerUser = 47110

// newSignerLab is a lab whose server has its signer run as another user.
func newSignerLab(t *testing.T) *serveLab {
	if os.Geteuid() != 0 {
		t.Skip("only root starts a signer as another user")
	}
	l := newServeLab(t)
	// The signer's user must get through to the home.
	for dir := l.work; dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	l.config = fmt.Sprintf("signer:\n  user: %q\n", fmt.Sprint(signerUser))
	return l
}

// signer is the process that has the keys.
func (l *serveLab) signer() int {
	l.t.Helper()
	var pids []int
	l.until("one signer", func() bool { pids = l.processes(signerWord); return len(pids) == 1 })
	return pids[0]
}

// ownKeys wants keys, guard and log to be the signer's and nobody else's.
func (l *serveLab) ownKeys() {
	l.t.Helper()
	for _, name := range []string{"keys", "guard", "pki", "log", "log.lock", "signer"} {
		err := filepath.WalkDir(l.path("home", name), func(p string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil && info.Sys().(*syscall.Stat_t).Uid != signerUser {
				err = fmt.Errorf("%s is of user %d", p, info.Sys().(*syscall.Stat_t).Uid)
			}
			return err
		})
		if err != nil {
			l.t.Error(err)
		}
	}
	for name, mode := range map[string]os.FileMode{"keys": 0o700, "guard": 0o700, "keys/artifact.pem": 0o600} {
		if st, err := os.Stat(l.path("home", name)); err != nil || st.Mode().Perm() != mode {
			l.t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
}

// TestSignerKilled kills the signer in the middle of pushes and of what it signs.
// The server starts another, which goes on: the client sees nothing of it, and
// references and log agree. Killed with the server, it leaves as little.
func TestSignerKilled(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("kills many signers; go test without -short does")
	}
	l := newSignerLab(t)
	l.start()
	first := l.signer()
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", first)); err != nil ||
		!strings.Contains(string(b), fmt.Sprintf("Uid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d\n", signerUser)) || !strings.Contains(string(b), "Groups:\t \n") {
		t.Errorf("the signer's user and groups: %v\n%s", err, b)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", first)); err != nil || strings.Count(string(b), "\x00") != 2 {
		t.Errorf("the signer's environment: %v %q", err, b)
	}
	for fd := range 3 { // nothing of the server's is open in it
		if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", first, fd)); err != nil || to != os.DevNull && to != l.path("serve.log") {
			t.Errorf("descriptor %d of the signer is %s, %v", fd, to, err)
		}
	}
	l.change()
	l.program(l.path("app"), "git", "push", "-q", l.remote("alice"), "work")
	l.agree()
	l.ownKeys()
	for name, arm := range map[string]func(*serveLab) (reached, release func()){
		"while the log is waited for": logTaken, "before the log is opened": guardRead(1), "before the checkpoint is signed": guardRead(2),
	} {
		commit, pid := l.change(), l.signer()
		reached, release := arm(l)
		done := make(chan error, 1)
		go func() {
			said, err := l.try(l.path("app"), "git", "push", l.remote("alice"), "work")
			if err != nil {
				err = fmt.Errorf("%w: %s", err, said)
			}
			done <- err
		}()
		reached()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		l.until("the end of the signer", func() bool { return syscall.Kill(pid, 0) != nil })
		release()
		if err := <-done; err != nil {
			t.Errorf("%s: %v\n%s", name, err, l.serveLog())
		}
		if got := l.at("refs/heads/work"); got != commit || l.signer() == pid {
			t.Errorf("%s: the reference is at %s, want %s", name, got, commit)
		}
		l.agree()
	}
	// An administrator's command has the log in between, and gives it back.
	l.must("policy", "set", "build.timeout=7m")
	l.ownKeys()
	for _, s := range []stop{
		{"server and signer before the checkpoint is signed", guardRead(2), false},
		{"server and signer after the log", inHook("reference-transaction", `"yes $$") exit 0 ;;`, `"yes $$") WAIT exit 0 ;;`), true},
	} {
		l.killedPush(s)
	}
	l.stop()
	l.gone()
	l.ownKeys()
	if out := l.must("log", "fsck"); !strings.Contains(out, " 0 problems") {
		t.Errorf("fsck: %s", out)
	}
}

// serverUser is whom the server runs as, where it is not root.
const serverUser = 47112

func userOf(uid uint32) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
}

// TestSignerOfAnInitSystem: server and signer are two users, neither of them root,
// and something else started the signer. The server can't read what is the
// signer's; root's commands work beside both, and leave nothing of theirs closed.
func TestSignerOfAnInitSystem(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("runs servers; go test without -short does")
	}
	l := newSignerLab(t)
	l.program("", "chown", "-R", fmt.Sprintf("%[1]d:%[1]d", serverUser), l.path("home"))
	if err := os.Chmod(l.path("tmp"), 0o777); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		l.must("signer", "prepare", "--user", fmt.Sprint(signerUser))
	}
	l.ownKeys()
	signer := l.command("signer", "--for", fmt.Sprint(serverUser))
	signer.SysProcAttr = userOf(signerUser)
	var said strings.Builder
	signer.Stderr = &said
	if err := signer.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		signer.Process.Signal(syscall.SIGTERM)
		if err := signer.Wait(); err != nil {
			t.Errorf("the signer ended with %v", err)
		}
		if t.Failed() {
			t.Log(said.String())
		}
	}()
	// Neither runs for a server of its own user, nor can the server's user read the keys.
	own := l.command("signer", "--for", fmt.Sprint(signerUser))
	own.SysProcAttr = userOf(signerUser)
	if out, err := own.CombinedOutput(); err == nil || !strings.Contains(string(out), "SIGNER_NOT_SEPARATE") {
		t.Errorf("a signer for its own user: %v %s", err, out)
	}
	// Nor can it put others in their place: the home is not its own to rename things in.
	for _, do := range []string{
		"mv keys keys.real", "mv log elsewhere", "mv guard elsewhere", "mv signer elsewhere", "mv log.lock elsewhere", "mv keys repositories", "rm -f roots.json", "mv roots.json x",
		"echo x >>trusted_root.json", "echo x >>home.json", "chmod 777 .", "mv signer/socket x",
	} {
		sh := l.command()
		sh.Path, sh.Args, sh.Dir, sh.SysProcAttr = "/bin/sh", []string{"sh", "-c", do}, l.path("home"), userOf(serverUser)
		if out, err := sh.CombinedOutput(); err == nil {
			t.Errorf("the server's user may %s: %s", do, out)
		}
	}
	// A link in the place of the key that is handed over leads to no key.
	linked := l.command()
	linked.Path, linked.Args, linked.Dir = "/bin/sh", []string{"sh", "-c", "mv fingerprint.key f && ln -s ../keys/artifact.pem keys/fingerprint.key"}, l.path("home")
	if out, err := linked.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	again := l.command("signer", "prepare", "--user", fmt.Sprint(signerUser))
	if out, err := again.CombinedOutput(); err == nil || !strings.Contains(string(out), "fingerprint") {
		t.Errorf("a link to a key is handed over: %v %s", err, out)
	}
	back := l.command()
	back.Path, back.Args, back.Dir = "/bin/sh", []string{"sh", "-c", "rm keys/fingerprint.key && mv f fingerprint.key"}, l.path("home")
	if out, err := back.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l.config = fmt.Sprintf("signer:\n  socket: %q\n", l.path("home", "signer", "socket"))
	l.write("serve.yaml", "") // which the server's user may read
	if err := os.Chmod(l.path("serve.yaml"), 0o644); err != nil {
		t.Fatal(err)
	}
	l.as = userOf(serverUser)
	l.start() // the signer has answered then, and has all its files
	for _, file := range []string{"keys/artifact.pem", "keys", "guard", "pki", "signer/index.sqlite"} {
		cat := l.command()
		cat.Path, cat.Args, cat.SysProcAttr = "/bin/cat", []string{"cat", l.path("home", file)}, userOf(serverUser)
		if out, err := cat.CombinedOutput(); err == nil || !strings.Contains(string(out), "Permission denied") {
			t.Errorf("the server's user reads %s: %v", file, err)
		}
	}
	for i := range 2 {
		commit := l.change()
		l.program(l.path("app"), "git", "push", "-q", l.remote("alice"), "work")
		if got := l.at("refs/heads/work"); got != commit {
			t.Errorf("the reference is at %s, want %s", got, commit)
		}
		l.must("policy", "set", fmt.Sprintf("build.timeout=%dm", 7+i))
		l.agree()
		l.ownKeys()
	}
	err := filepath.WalkDir(l.path("home", "blobs"), func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Sys().(*syscall.Stat_t).Uid != serverUser {
			err = fmt.Errorf("%s is of user %d", p, info.Sys().(*syscall.Stat_t).Uid)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	l.stop()
	if out := l.must("log", "fsck"); !strings.Contains(out, " 0 problems") {
		t.Errorf("fsck: %s", out)
	}
}
