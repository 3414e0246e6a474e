// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package intake

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// workOrder is what the worker is told.
type workOrder struct {
	Go  []GoModule `json:"go"`
	NPM []string   `json:"npm"`
}

const manifestsCopy = "/tmp/manifests"

// WorkerMain is the worker: it lends the package managers a loopback address
// that leads to the gateway's socket, and runs them over the manifests.
func WorkerMain(stdin io.Reader, stderr io.Writer) error {
	var order workOrder
	if err := json.NewDecoder(stdin).Decode(&order); err != nil {
		return fmt.Errorf("intake: reading the order: %w", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("intake: listening on loopback: %w", err)
	}
	defer l.Close()
	go bridge(l)
	base := "http://" + l.Addr().String()
	if err := os.MkdirAll("/tmp/home", 0o755); err != nil {
		return fmt.Errorf("intake: making a home: %w", err)
	}
	// A copy: the go command adds hashes that go.sum lacks, and what it added is
	// told from what was committed outside.
	if err := os.CopyFS(manifestsCopy, os.DirFS(ManifestsDir)); err != nil {
		return fmt.Errorf("intake: copying manifests: %w", err)
	}
	for _, m := range order.Go {
		if err := fetchModules(m, base, stderr); err != nil {
			return err
		}
	}
	for i, dir := range order.NPM {
		if err := fetchPackages(i, dir, base, stderr); err != nil {
			return err
		}
	}
	return nil
}

// bridge copies bytes between loopback and the gateway's socket.
func bridge(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			g, err := net.Dial("unix", SocketPath)
			if err != nil {
				return
			}
			defer g.Close()
			var wg sync.WaitGroup
			wg.Go(func() { io.Copy(g, c); g.(*net.UnixConn).CloseWrite() })
			wg.Go(func() { io.Copy(c, g); c.(*net.TCPConn).CloseWrite() })
			wg.Wait()
		}()
	}
}

// common is the environment of every package manager: nothing of repository or
// user configures it.
func common() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=/tmp/home", "TMPDIR=/tmp", "LANG=C.UTF-8", "CI=true", "NO_PROXY=*"}
}

func run(dir string, env []string, stderr io.Writer, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, env, stderr, stderr
	if err := cmd.Run(); errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("intake: %s is not installed on this machine", name)
	} else if err != nil {
		return fmt.Errorf("intake: %s %s: %w", name, args[0], err)
	}
	return nil
}

// fetchModules fills the module cache for one go.mod. Its hashes are go.sum's:
// the checksum database is not asked, since the commit's signer vouches for them.
func fetchModules(m GoModule, base string, stderr io.Writer) error {
	work := "off"
	if m.Workspace {
		work = ""
	}
	env := append(common(), "GOPROXY="+base+"/"+GoPrefix, "GOMODCACHE="+OutDir+"/go", "GOCACHE=/tmp/gocache", "GOENV=off", "GOTOOLCHAIN=local", "GOFLAGS=-mod=readonly",
		"GOSUMDB=off", "GONOPROXY=none", "GOPRIVATE=", "GOVCS=*:off", "GOTELEMETRY=off", "GOWORK="+work)
	return run(filepath.Join(manifestsCopy, filepath.FromSlash(m.Dir)), env, stderr, "go", "mod", "download")
}

// fetchPackages installs one lock file's packages, running none of their code.
func fetchPackages(i int, dir, base string, stderr io.Writer) error {
	at := filepath.Join(manifestsCopy, filepath.FromSlash(dir))
	host := filepath.Join(OutDir, filepath.FromSlash(npmHost(i)))
	if err := os.MkdirAll(host, 0o755); err != nil {
		return fmt.Errorf("intake: making node_modules: %w", err)
	}
	env := append(common(), "npm_config_userconfig=/dev/null", "npm_config_globalconfig=/tmp/none", "npm_config_cache=/tmp/npm-cache", "npm_config_registry="+base+"/",
		"npm_config_replace_registry_host=always", "npm_config_ignore_scripts=true", "npm_config_audit=false", "npm_config_fund=false", "npm_config_update_notifier=false",
		"npm_config_fetch_retries=2", "npm_config_install_links=false", "npm_config_progress=false", "npm_config_loglevel=error")
	if err := run(at, env, stderr, "npm", "ci"); err != nil {
		return err
	}
	made := filepath.Join(at, "node_modules")
	if _, err := os.Stat(made); err != nil {
		return nil //nolint:nilerr // every package was optional and none fits; the control plane sees an empty directory
	}
	// Links are copied as links: where they lead is judged outside.
	if err := run(at, common(), stderr, "cp", "-a", strings.TrimSuffix(made, "/")+"/.", host); err != nil {
		return err
	}
	return nil
}
