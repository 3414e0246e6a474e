// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"
)

// running are the servers of scripts under way, by work directory.
var running sync.Map

// serve starts a server on a free port and sets URL, HOST and GIT_SSL_CAINFO;
// serve stop ends it and wants exit code 0, serve kill kills it. What it wrote
// is in serve.log. Other arguments are flags of the server's.
func cmdServe(ts *testscript.TestScript, _ bool, args []string) {
	work := ts.Getenv("WORK")
	if len(args) == 1 && (args[0] == "stop" || args[0] == "kill") {
		v, ok := running.LoadAndDelete(work)
		if !ok {
			ts.Fatalf("no server runs")
		}
		cmd := v.(*exec.Cmd)
		if args[0] == "kill" {
			ts.Check(cmd.Process.Kill())
			cmd.Wait()
			return
		}
		ts.Check(cmd.Process.Signal(syscall.SIGTERM))
		if err := cmd.Wait(); err != nil {
			ts.Fatalf("the server ended with %v", err)
		}
		return
	}
	self, err := exec.LookPath(filepath.Join(firstDir(ts.Getenv("PATH")), "hallmark"))
	ts.Check(err)
	cmd := exec.Command(self, append([]string{"serve", "--listen", "127.0.0.1:0"}, args...)...)
	cmd.Dir = work
	for _, name := range []string{"PATH", "HALLMARK_HOME", "HOME", "TMPDIR", "XDG_STATE_HOME", "WORK"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	log, err := os.OpenFile(filepath.Join(work, "serve.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	ts.Check(err)
	defer log.Close()
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	running.Store(work, cmd)
	ts.Defer(func() {
		if v, ok := running.LoadAndDelete(work); ok {
			v.(*exec.Cmd).Process.Kill()
			v.(*exec.Cmd).Wait()
		}
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if url, ok := strings.CutPrefix(lines.Text(), "serving "); ok {
			ts.Setenv("URL", url)
			ts.Setenv("HOST", strings.TrimPrefix(url, "https://"))
		}
		if file, ok := strings.CutPrefix(lines.Text(), "authority "); ok {
			ts.Setenv("GIT_SSL_CAINFO", file)
			return
		}
	}
	b, _ := os.ReadFile(filepath.Join(work, "serve.log"))
	ts.Fatalf("the server did not start: %s", b)
}

// get PATH FILE writes what the server answers; its status goes before.
func cmdMetrics(ts *testscript.TestScript, _ bool, args []string) {
	m := regexp.MustCompile(`"url":"(http://127\.0\.0\.1:[0-9]+/metrics)"`).FindStringSubmatch(ts.ReadFile(ts.MkAbs(filepath.Join(ts.Getenv("WORK"), "serve.log"))))
	if m == nil {
		ts.Fatalf("the log names no address of metrics")
	}
	res, err := http.Get(m[1])
	ts.Check(err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o644))
}

func cmdGet(ts *testscript.TestScript, _ bool, args []string) {
	pem, err := os.ReadFile(ts.Getenv("GIT_SSL_CAINFO"))
	ts.Check(err)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		ts.Fatalf("no authority")
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	defer client.CloseIdleConnections()
	answer, err := client.Get(ts.Getenv("URL") + args[0])
	ts.Check(err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), append([]byte(answer.Status+"\n"), body...), 0o600))
}

// receive FILE starts a receiver of alerts at $RECEIVER, which keeps the bodies, one
// a line.
func cmdReceive(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	ts.Check(err)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err == nil {
			_, err = f.Write(append(b, '\n'))
		}
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	ts.Setenv("RECEIVER", srv.URL+"/hook")
	ts.Defer(func() { srv.Close(); f.Close() })
}

// index STATEMENT... changes the home's index as somebody does who can write to it;
// each statement must change something.
func cmdIndex(ts *testscript.TestScript, _ bool, args []string) {
	db, err := sql.Open("sqlite", filepath.Join(ts.Getenv("HALLMARK_HOME"), "index.sqlite"))
	ts.Check(err)
	defer db.Close()
	for _, a := range args {
		res, err := db.Exec(a)
		ts.Check(err)
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			ts.Fatalf("%s: %d rows, %v", a, n, err)
		}
	}
}

func firstDir(path string) string {
	first, _, _ := strings.Cut(path, string(os.PathListSeparator))
	return first
}

// person NAME MAIL makes an SSH key that signs commits and signs in, and adds it
// to the allowed signers; its files are NAME, NAME.pub and NAME.gitconfig.
func cmdPerson(ts *testscript.TestScript, _ bool, args []string) {
	file := ts.MkAbs(args[0])
	ts.Check(ts.Exec("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", args[1], "-f", file))
	pub, err := os.ReadFile(file + ".pub")
	ts.Check(err)
	f := strings.Fields(string(pub))
	allowed, err := os.OpenFile(ts.MkAbs("allowed_signers"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	ts.Check(err)
	_, err = allowed.WriteString(args[1] + ` namespaces="git" ` + f[0] + " " + f[1] + "\n")
	ts.Check(err)
	ts.Check(allowed.Close())
	ts.Check(os.WriteFile(file+".gitconfig", []byte("[user]\n\tname = "+args[0]+"\n\temail = "+args[1]+"\n\tsigningkey = "+file+
		"\n[gpg]\n\tformat = ssh\n[commit]\n\tgpgsign = true\n[init]\n\tdefaultBranch = main\n[advice]\n\tdetachedHead = false\n"), 0o600))
}

// remote REPOSITORY TOKENFILE sets REMOTE to a URL that git can push to.
func cmdRemote(ts *testscript.TestScript, _ bool, args []string) {
	token, err := os.ReadFile(filepath.Join(ts.Getenv("WORK"), args[1]))
	ts.Check(err)
	ts.Setenv("REMOTE", "https://x:"+strings.TrimSpace(string(token))+"@"+ts.Getenv("HOST")+"/"+args[0]+".git")
}

var changeForm = regexp.MustCompile(`c-[0-9a-f]{16}`)

var runForm = regexp.MustCompile(`r-[0-9a-f]{16}`)

// runid NAME sets a variable to the first run that the last command named on
// standard output, or on standard error where it named none there.
func cmdRunID(ts *testscript.TestScript, _ bool, args []string) {
	id := runForm.FindString(ts.ReadFile("stdout"))
	if id == "" {
		id = runForm.FindString(ts.ReadFile("stderr"))
	}
	if id == "" {
		ts.Fatalf("no run is named")
	}
	ts.Setenv(args[0], id)
}

// changeid NAME sets a variable to the change that the last command named on
// standard output, heldid NAME to the one on standard error.
func cmdChangeID(stream string) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, _ bool, args []string) {
		id := changeForm.FindString(ts.ReadFile(stream))
		if id == "" {
			ts.Fatalf("no change is named on %s", stream)
		}
		ts.Setenv(args[0], id)
	}
}
