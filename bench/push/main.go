// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Push measures pushes through hallmark serve and through git http-backend, side
// by side: the same commits, the same number of references, the same client, TLS
// and a password for both, in turn.
package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

func main() {
	var b bench
	flag.StringVar(&b.bin, "hallmark", "hallmark", "the binary")
	flag.IntVar(&b.refs, "refs", 50000, "references in the repository")
	flag.IntVar(&b.rounds, "rounds", 11, "pushes of each kind")
	flag.IntVar(&b.commits, "commits", 10, "commits of one push")
	flag.BoolVar(&b.create, "create", false, "push to a new branch each time")
	flag.IntVar(&b.files, "files", 0, "push this many random files of -size MiB once, and print the most memory used")
	flag.IntVar(&b.size, "size", 100, "MiB of one random file")
	flag.IntVar(&b.clients, "clients", 0, "have this many clients push to one reference at once, then to one each")
	flag.Parse()
	if err := b.run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type bench struct {
	bin                                         string
	refs, rounds, commits, files, size, clients int
	create                                      bool

	work, url, token, tip string
	server                *exec.Cmd
}

func (b *bench) path(parts ...string) string {
	return filepath.Join(append([]string{b.work}, parts...)...)
}

func (b *bench) env() []string {
	return append(os.Environ(), "HALLMARK_HOME="+b.path("home"), "XDG_STATE_HOME="+b.path("state"), "GIT_CONFIG_NOSYSTEM=1",
		"GIT_CONFIG_GLOBAL="+b.path("gitconfig"), "GIT_TERMINAL_PROMPT=0", "GIT_SSL_NO_VERIFY=1")
}

func (b *bench) do(stdin, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env, cmd.Dir = b.env(), b.path("app")
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), err
}

const rules = `[{"name": "all", "repositories": ["**"], "refs": ["refs/heads/**"], "history": "descend", "approvals": "0"}]`

func (b *bench) run() (err error) {
	if b.bin, err = exec.LookPath(b.bin); err != nil {
		return err
	}
	if b.bin, err = filepath.Abs(b.bin); err != nil {
		return err
	}
	if b.work, err = os.MkdirTemp("", "bench-push-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.work)
	if err := b.home(); err != nil {
		return err
	}
	plain, err := b.plain()
	if err != nil {
		return err
	}
	if err := b.serve(); err != nil {
		return err
	}
	defer b.end()
	ours := "https://x:" + b.token + "@" + strings.TrimPrefix(b.url, "https://") + "/app.git"
	switch {
	case b.files > 0:
		return b.large(ours, plain)
	case b.clients > 0:
		return b.many(ours)
	}
	return b.compare(ours, plain)
}

func (b *bench) home() error {
	if err := os.Mkdir(b.path("app"), 0o755); err != nil {
		return err
	}
	config := "[user]\n\tname = A\n\temail = a@example.org\n\tsigningkey = " + b.path("key") + "\n[gpg]\n\tformat = ssh\n[commit]\n\tgpgsign = true\n[init]\n\tdefaultBranch = work\n[gc]\n\tauto = 0\n[core]\n\tbigFileThreshold = 1m\n[http]\n\tpostBuffer = 1m\n"
	if err := errors.Join(os.WriteFile(b.path("gitconfig"), []byte(config), 0o600), os.WriteFile(b.path("rules"), []byte(rules), 0o600)); err != nil {
		return err
	}
	if _, err := b.do("", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", b.path("key")); err != nil {
		return err
	}
	pub, err := os.ReadFile(b.path("key.pub"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(b.path("allowed"), []byte("a@example.org "+strings.Join(strings.Fields(string(pub))[:2], " ")+"\n"), 0o600); err != nil {
		return err
	}
	for _, args := range [][]string{
		{b.bin, "init", "--single-operator", "--allowed-signers", b.path("allowed")},
		{b.bin, "access", "refs", "--set", b.path("rules")},
		{b.bin, "access", "principal", "a@example.org", "--ssh-key", b.path("key.pub")},
		{b.bin, "access", "grant", "a@example.org", "developer", "--repository", "app", "--reason", "bench"},
		{b.bin, "access", "token", "a@example.org", "--scope", "repository.read,ref.push", "--repository", "app", "--out", b.path("token")},
		{b.bin, "repository", "create", "app"},
		{"git", "init", "-q"},
		{"git", "commit", "-q", "--allow-empty", "-m", "base"},
	} {
		if _, err := b.do("", args[0], args[1:]...); err != nil {
			return err
		}
	}
	token, err := os.ReadFile(b.path("token"))
	b.token = strings.TrimSpace(string(token))
	return err
}

func (b *bench) repository() string { return b.path("home", "repositories", "app.git") }

// plain makes the references, copies the repository and serves the copy.
func (b *bench) plain() (string, error) {
	var err error
	if b.tip, err = b.do("", "git", "rev-parse", "HEAD"); err != nil {
		return "", err
	}
	if _, err := b.do("", "git", "--git-dir="+b.repository(), "-c", "core.hooksPath=/dev/null", "fetch", "-q", b.path("app"), "HEAD"); err != nil {
		return "", err
	}
	var in strings.Builder
	for i := range b.refs {
		fmt.Fprintf(&in, "create refs/heads/other/%d %s\n", i, b.tip)
	}
	for _, args := range [][]string{{"update-ref", "--stdin"}, {"pack-refs", "--all"}} {
		if _, err := b.do(in.String(), "git", append([]string{"--git-dir=" + b.repository(), "-c", "core.hooksPath=/dev/null"}, args...)...); err != nil {
			return "", err
		}
	}
	if _, err := b.do("", "cp", "-a", b.repository(), b.path("app.git")); err != nil {
		return "", err
	}
	// Without what ours does not do either: housekeeping after a push.
	for _, kv := range [][]string{{"http.receivepack", "true"}, {"receive.autogc", "false"}} {
		if _, err := b.do("", "git", "--git-dir="+b.path("app.git"), "config", kv[0], kv[1]); err != nil {
			return "", err
		}
	}
	execPath, err := b.do("", "git", "--exec-path")
	if err != nil {
		return "", err
	}
	backend := &cgi.Handler{Path: filepath.Join(execPath, "git-http-backend"), Env: []string{
		"GIT_PROJECT_ROOT=" + b.work, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=x", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null"}, InheritEnv: []string{"PATH"}, Stderr: io.Discard}
	cert, err := certificate()
	if err != nil {
		return "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, p, _ := r.BasicAuth(); p != b.token {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				http.Error(w, "who?", http.StatusUnauthorized)
				return
			}
			if v := r.Header.Get("Git-Protocol"); v != "" {
				r.Header.Set("GIT_PROTOCOL", v)
			}
			backend.ServeHTTP(w, r)
		})}
	go srv.ServeTLS(l, "", "")
	return "https://x:" + b.token + "@" + l.Addr().String() + "/app.git", nil
}

func certificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

func (b *bench) serve() error {
	// Pushes are measured, not what is built because of them.
	config := b.path("serve.yaml")
	if err := os.WriteFile(config, []byte("builds:\n  enabled: false\n"), 0o600); err != nil {
		return err
	}
	b.server = exec.Command(b.bin, "serve", "--listen", "127.0.0.1:0", "--config", config)
	b.server.Env = b.env()
	log, err := os.Create(b.path("serve.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	b.server.Stderr = log
	out, err := b.server.StdoutPipe()
	if err != nil {
		return err
	}
	if err := b.server.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if url, ok := strings.CutPrefix(lines.Text(), "serving "); ok {
			b.url = url
		}
		if strings.HasPrefix(lines.Text(), "authority ") {
			return nil
		}
	}
	text, err := os.ReadFile(b.path("serve.log"))
	return errors.Join(fmt.Errorf("the server did not start: %s", text), err)
}

func (b *bench) end() {
	b.server.Process.Signal(os.Interrupt)
	b.server.Wait()
}

// series makes signed commits on the tip, each with a file of its own.
func (b *bench) series(name string) error {
	for i := range b.commits {
		file := fmt.Sprintf("%s-%d.txt", name, i)
		if err := os.WriteFile(b.path("app", file), []byte(strings.Repeat(file+"\n", 40)), 0o644); err != nil {
			return err
		}
		for _, args := range [][]string{{"add", file}, {"commit", "-qm", file}} {
			if _, err := b.do("", "git", args...); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) push(remote, ref string) (time.Duration, error) {
	start := time.Now()
	_, err := b.do("", "git", "push", "-q", remote, "HEAD:"+ref)
	return time.Since(start), err
}

func (b *bench) compare(ours, plain string) error {
	times := map[string][]time.Duration{}
	var ratios []float64
	for i := -1; i < b.rounds; i++ { // the first is not counted
		if err := b.series(fmt.Sprintf("round%d", i)); err != nil {
			return err
		}
		ref := "refs/heads/work"
		if b.create {
			ref = fmt.Sprintf("refs/heads/new/r%d", i+1)
		}
		order := []string{ours, plain}
		if i%2 == 0 {
			slices.Reverse(order)
		}
		took := map[string]time.Duration{}
		for _, remote := range order {
			d, err := b.push(remote, ref)
			if err != nil {
				return err
			}
			took[remote] = d
		}
		if i < 0 {
			continue
		}
		times["ours"] = append(times["ours"], took[ours])
		times["plain"] = append(times["plain"], took[plain])
		ratios = append(ratios, float64(took[ours])/float64(took[plain]))
	}
	load, _ := os.ReadFile("/proc/loadavg")
	slices.Sort(ratios)
	o, p := median(times["ours"]), median(times["plain"])
	fmt.Printf("%d references, %d commits, %d rounds: hallmark %v, http-backend %v, ratio of medians %.2f, median of ratios %.2f, load %s",
		b.refs, b.commits, b.rounds, o.Round(time.Millisecond), p.Round(time.Millisecond), float64(o)/float64(p), ratios[len(ratios)/2], load)
	return nil
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// large pushes random files and prints the most memory that the server had.
func (b *bench) large(ours, plain string) error {
	for i := range b.files {
		f, err := os.Create(b.path("app", fmt.Sprintf("random-%d", i)))
		if err != nil {
			return err
		}
		_, err = io.CopyN(f, rand.Reader, int64(b.size)<<20)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	for _, args := range [][]string{{"-c", "core.compression=0", "add", "."}, {"commit", "-qm", "large"}} {
		if _, err := b.do("", "git", args...); err != nil {
			return err
		}
	}
	before := b.most()
	o, err := b.push(ours, "refs/heads/work")
	if err != nil {
		text, _ := os.ReadFile(b.path("serve.log"))
		return fmt.Errorf("%w\n%s", err, text)
	}
	after := b.most()
	p, err := b.push(plain, "refs/heads/work")
	if err != nil {
		return err
	}
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("%d files of %d MiB: hallmark %v, most memory of the server %s (before %s), http-backend %v, load %s", b.files, b.size, o.Round(time.Millisecond), after, before, p.Round(time.Millisecond), load)
	return nil
}

func (b *bench) most() string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.server.Process.Pid))
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

// many pushes from many clients at once, to one reference and then to one each.
func (b *bench) many(ours string) error {
	if _, err := b.push(ours, "refs/heads/work"); err != nil {
		return err
	}
	var commits []string
	for i := range b.clients {
		id, err := b.do("", "git", "commit-tree", "-S", "-p", b.tip, "-m", fmt.Sprint(i), b.tip+"^{tree}")
		if err != nil {
			return err
		}
		commits = append(commits, id)
	}
	for _, one := range []bool{true, false} {
		var wg sync.WaitGroup
		var mu sync.Mutex
		won := 0
		start := time.Now()
		for i, c := range commits {
			ref := "refs/heads/work"
			if !one {
				ref = fmt.Sprintf("refs/heads/many/%d", i)
			}
			wg.Go(func() {
				_, err := b.do("", "git", "push", "-q", ours, c+":"+ref)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won++
				} else if !one {
					fmt.Fprintln(os.Stderr, err)
				}
			})
		}
		wg.Wait()
		load, _ := os.ReadFile("/proc/loadavg")
		fmt.Printf("%d clients, one reference %v: %d succeeded in %v, most memory of the server %s, load %s", b.clients, one, won, time.Since(start).Round(time.Millisecond), b.most(), load)
	}
	b.end()
	state, err := b.do("", b.bin, "source", "verify", "--repository", "app")
	fmt.Println(lastLine(state))
	if b.refs > 0 {
		return nil // the references that were made past the gate are differences
	}
	return err
}

func lastLine(s string) string { return s[strings.LastIndexByte(s, '\n')+1:] }
