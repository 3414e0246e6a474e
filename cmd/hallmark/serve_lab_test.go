// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serveLab is a home with one repository, people, and a server that is killed.
type serveLab struct {
	killLab
	cmd      *exec.Cmd
	url, ca  string
	commits  int
	builds   bool // what is accepted is built
	hooksDir string
	flags    []string // of serve
	as       *syscall.SysProcAttr
	config   string // of the server, besides
}

const labRules = `[
  {"name": "main", "repositories": ["**"], "refs": ["refs/heads/main"], "history": "descend", "approvals": "1"},
  {"name": "passing", "repositories": ["**"], "refs": ["refs/heads/passing/**"], "history": "rewrite", "approvals": "0"},
  {"name": "branches", "repositories": ["**"], "refs": ["refs/heads/**"], "history": "descend", "approvals": "0"}
]`

// newServeLab makes a home where alice pushes branches of the repository app and
// bob approves what she proposes; her work tree is the directory "app". create are
// flags that the repository is made with.
func newServeLab(t *testing.T, create ...string) *serveLab {
	work := t.TempDir()
	l := &serveLab{killLab: killLab{t: t, work: work, bin: plainBinary(t, work)}}
	l.env = append(os.Environ(), "HALLMARK_HOME="+l.path("home"), "XDG_STATE_HOME="+l.path("state"), "TMPDIR="+l.path("tmp"), "HOME="+l.path("nobody"),
		"GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0", "GIT_CONFIG_GLOBAL="+l.path("alice.gitconfig"))
	if err := os.MkdirAll(l.path("tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	allowed := ""
	for _, name := range []string{"alice", "bob"} {
		l.program("", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", l.path(name))
		pub, err := os.ReadFile(l.path(name + ".pub"))
		if err != nil {
			t.Fatal(err)
		}
		allowed += name + "@example.org " + strings.Join(strings.Fields(string(pub))[:2], " ") + "\n"
		l.write(name+".gitconfig", "[user]\n\tname = "+name+"\n\temail = "+name+"@example.org\n\tsigningkey = "+l.path(name)+
			"\n[gpg]\n\tformat = ssh\n[commit]\n\tgpgsign = true\n[init]\n\tdefaultBranch = work\n[gc]\n\tauto = 0\n")
	}
	l.write("allowed_signers", allowed)
	l.write("refs.json", labRules)
	l.must("init", "--single-operator", "--allowed-signers", l.path("allowed_signers"))
	l.must("access", "refs", "--set", l.path("refs.json"))
	for _, name := range []string{"alice", "bob"} {
		l.must("access", "principal", name+"@example.org", "--ssh-key", l.path(name+".pub"))
		l.must("access", "grant", name+"@example.org", "developer", "--repository", "app", "--reason", "test")
		l.must("access", "grant", name+"@example.org", "reviewer", "--repository", "app", "--reason", "test")
	}
	l.must(append([]string{"repository", "create", "app"}, create...)...)
	l.program("", "git", "init", "-q", l.path("app"))
	t.Cleanup(l.kill9)
	return l
}

func (l *serveLab) path(parts ...string) string {
	return filepath.Join(append([]string{l.work}, parts...)...)
}

// try runs a program; what it says is returned with its error.
func (l *serveLab) try(dir, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if dir == "" {
		cmd.Dir = l.work
	}
	cmd.Env = append(l.env, "GIT_SSL_CAINFO="+l.ca, "HALLMARK_SERVER="+l.url, "HALLMARK_AUTHORITY="+l.ca)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (l *serveLab) program(dir, name string, args ...string) string {
	l.t.Helper()
	out, err := l.try(dir, name, args...)
	if err != nil {
		l.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(out)
}

func (l *serveLab) start() {
	l.t.Helper()
	// What is killed here is pushes and merges; builds would be in the way.
	l.write("serve.yaml", fmt.Sprintf("builds:\n  enabled: %v\n%s", l.builds, l.config))
	l.cmd = l.command(append([]string{"serve", "--listen", "127.0.0.1:0", "--config", l.path("serve.yaml")}, l.flags...)...)
	l.cmd.SysProcAttr = l.as
	log, err := os.OpenFile(l.path("serve.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		l.t.Fatal(err)
	}
	defer log.Close()
	l.cmd.Stderr = log
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := l.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if url, ok := strings.CutPrefix(lines.Text(), "serving "); ok {
			l.url = url
		}
		if ca, ok := strings.CutPrefix(lines.Text(), "authority "); ok {
			l.ca = ca
			found, err := filepath.Glob(l.path("home", "runs", "*", "hooks"))
			if err != nil || len(found) != 1 {
				l.t.Fatalf("hooks of the server: %v, %v", found, err)
			}
			l.hooksDir = found[0]
			l.signIn()
			return
		}
	}
	l.t.Fatalf("the server did not start:\n%s", l.serveLog())
}

// signIn gets the tokens of both, once: who approves must have signed in.
func (l *serveLab) signIn() {
	l.t.Helper()
	for _, name := range []string{"alice", "bob"} {
		if _, err := os.Stat(l.path(name + ".token")); err == nil {
			continue
		}
		l.program("", l.bin, "sign-in", "--key", l.path(name), "--as", name+"@example.org", "--repository", "app",
			"--scope", "repository.read,ref.push,change.propose,change.approve,change.merge,build.request,evidence.read", "--out", l.path(name+".token"))
	}
}

func (l *serveLab) serveLog() string {
	b, err := os.ReadFile(l.path("serve.log"))
	if err != nil {
		l.t.Error(err)
	}
	return string(b)
}

// kill9 kills the server and nothing else.
func (l *serveLab) kill9() {
	if l.cmd != nil {
		l.cmd.Process.Kill()
		l.cmd.Wait()
		l.cmd = nil
	}
}

func (l *serveLab) stop() {
	l.t.Helper()
	if err := l.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		l.t.Fatal(err)
	}
	if err := l.cmd.Wait(); err != nil {
		l.t.Fatalf("the server ended with %v\n%s", err, l.serveLog())
	}
	l.cmd = nil
}

func (l *serveLab) remote(who string) string {
	token, err := os.ReadFile(l.path(who + ".token"))
	if err != nil {
		l.t.Fatal(err)
	}
	return "https://x:" + strings.TrimSpace(string(token)) + "@" + strings.TrimPrefix(l.url, "https://") + "/app.git"
}

// change commits something new in alice's work tree and returns the commit.
func (l *serveLab) change() string {
	l.t.Helper()
	l.commits++
	l.write("app/f", fmt.Sprintf("%d\n", l.commits))
	l.program(l.path("app"), "git", "add", "f")
	l.program(l.path("app"), "git", "commit", "-qm", fmt.Sprintf("change %d", l.commits))
	return l.program(l.path("app"), "git", "rev-parse", "HEAD")
}

func (l *serveLab) at(ref string) string {
	out, err := l.try("", "git", "--git-dir="+l.path("home", "repositories", "app.git"), "rev-parse", "-q", "--verify", ref)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(out)
}

// agree checks that references and log say the same.
func (l *serveLab) agree() {
	l.t.Helper()
	if out := l.must("source", "verify", "--repository", "app"); !strings.Contains(out, " 0 differences") {
		l.t.Errorf("references and log differ: %s", out)
	}
}

// until waits for something that can be seen from outside.
func (l *serveLab) until(what string, seen func() bool) {
	l.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !seen() {
		if time.Now().After(deadline) {
			l.t.Fatalf("never seen: %s\n%s", what, l.serveLog())
		}
		<-tick.C
	}
}

// holds reports whether the server, or its signer, has a file open.
func (l *serveLab) holds(path string) bool {
	for _, pid := range append(l.processes(signerWord), l.cmd.Process.Pid) {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, fd := range fds {
			if to, err := os.Readlink(fd); err == nil && to == path {
				return true
			}
		}
	}
	return false
}

// signerWord is in the command line of signers alone.
const signerWord = "\x00signer\x00"

// processes are those that have a word in their command line and the lab's
// directory in it or in their environment.
func (l *serveLab) processes(word string) (out []int) {
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range all {
		b, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		env, _ := os.ReadFile(filepath.Join(dir, "environ"))
		var pid int
		if _, err := fmt.Sscanf(filepath.Base(dir), "%d", &pid); err != nil || pid == os.Getpid() || l.cmd != nil && pid == l.cmd.Process.Pid {
			continue
		}
		if bytes.Contains(b, []byte(word)) && (bytes.Contains(b, []byte(l.path("home"))) || bytes.Contains(env, []byte("HALLMARK_PUSH=")) && bytes.Contains(env, []byte(l.path("home")))) {
			out = append(out, pid)
		}
	}
	return out
}

// gone wants nothing of a killed server to run or lie about after the next start.
func (l *serveLab) gone() {
	l.t.Helper()
	l.until("the end of every git process", func() bool {
		signers := l.processes(signerWord)
		if l.cmd == nil || l.config == "" {
			return len(l.processes("")) == 0
		}
		return len(signers) == 1 && len(l.processes("")) == 1 && descends(fmt.Sprint(signers[0]), l.cmd.Process.Pid)
	})
	l.nothingRuns(l.cmd)
	repo := l.path("home", "repositories", "app.git")
	err := filepath.WalkDir(repo, func(p string, _ os.DirEntry, err error) error {
		name := filepath.Base(p)
		if err == nil && (strings.HasSuffix(name, ".lock") || strings.HasPrefix(name, "tmp_") || strings.HasPrefix(name, "incoming-")) {
			l.t.Errorf("left behind: %s", p)
		}
		return err
	})
	if err != nil {
		l.t.Error(err)
	}
	if runs, _ := filepath.Glob(l.path("home", "runs", "*")); l.cmd == nil && len(runs) > 0 || len(runs) > 1 {
		l.t.Errorf("left behind: %v", runs)
	}
	if tmp, _ := os.ReadDir(l.path("tmp")); len(tmp) > 0 {
		l.t.Errorf("left behind: %v", tmp)
	}
}
