// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"k8s.io/klog/v2"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/gittest"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
)

// TestMain is also a worker in a sandbox, and a policy change that dies.
func TestMain(m *testing.M) {
	if code, ok := Alias(filepath.Base(os.Args[0]), os.Args[1:], os.Stdin, os.Stdout, os.Stderr); ok {
		os.Exit(code)
	}
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	if home := os.Getenv("APP_POLICY_HOME"); home != "" {
		os.Exit(dieWhileChanging(home))
	}
	code := m.Run()
	if made != "" {
		durable.RemoveTree(made)
	}
	os.Exit(code)
}

// made is where the home and the result that every test starts from lie.
var made string

// model makes a home and one allowed run in it, once for all tests.
var model = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "app-model-")
	if err != nil {
		return "", err
	}
	made = dir
	key, err := gittest.NewKey("dev@example.org")
	if err != nil {
		return "", err
	}
	repo := filepath.Join(dir, "repo")
	for name, text := range map[string]string{
		"allowed_signers": key.AllowedSigner() + "\n",
		"repo/run.sh":     "#!/bin/sh\necho hello\n",
		"repo/.hallmark/pipeline.yaml": `apiVersion: hallmark/v1
kind: Pipeline
build:
  steps:
    - run: mkdir out && cp run.sh out/hello
    - name: test
      run: sh out/hello
  artifacts: [out/hello]
`,
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755), os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)); err != nil {
			return "", err
		}
	}
	if _, err := gittest.CommitAll(repo, gittest.Options{Message: "Release", Name: "Dev", Mail: "dev@example.org", Time: time.Now().Add(-time.Hour), Key: key}); err != nil {
		return "", err
	}
	home := filepath.Join(dir, "home")
	ctx := context.Background()
	if _, err := Init(ctx, InitConfig{Home: home, SingleOperator: true, AllowedSigners: filepath.Join(dir, "allowed_signers")}); err != nil {
		return "", err
	}
	if _, err := PolicySet(ctx, home, nil, [][2]string{{"advisories.maxAge", "3650d"}}); err != nil {
		return "", err
	}
	if _, err := SyncAdvisories(ctx, home, filepath.Join("..", "..", "testdata", "osv")); err != nil {
		return "", err
	}
	res, err := Run(ctx, RunConfig{Home: home, Repo: repo, Rev: "HEAD", Out: filepath.Join(dir, "out"), Progress: func(pipeline.Event) {}})
	if err == nil && !res.Verdict.Decision.Allowed() {
		err = fmt.Errorf("the model run was denied: %+v", res.Verdict.Decision.Reasons)
	}
	return dir, err
})

// lab is a copy of the model that a test may spoil.
type lab struct {
	t         *testing.T
	dir       string
	home, out string
	roots     hallmark.Digest
}

func newLab(t *testing.T) *lab {
	t.Helper()
	from, err := model()
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, dir: t.TempDir()}
	l.home, l.out = filepath.Join(l.dir, "home"), filepath.Join(l.dir, "out")
	copyDir(t, filepath.Join(from, "home"), l.home)
	copyDir(t, filepath.Join(from, "out"), l.out)
	b, err := os.ReadFile(filepath.Join(l.home, "roots.json"))
	if err != nil {
		t.Fatal(err)
	}
	l.roots = hallmark.DigestOf(b)
	return l
}

// copyDir copies with modes: keys stay keys.
func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copying: %v\n%s", err, out)
	}
}

func (l *lab) write(path, text string) {
	l.t.Helper()
	path = filepath.Join(l.dir, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.RemoveAll(path), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) read(path string) string {
	l.t.Helper()
	b, err := os.ReadFile(filepath.Join(l.dir, path))
	if err != nil {
		l.t.Fatal(err)
	}
	return string(b)
}

func (l *lab) remove(paths ...string) {
	l.t.Helper()
	for _, p := range paths {
		if err := os.RemoveAll(filepath.Join(l.dir, p)); err != nil {
			l.t.Fatal(err)
		}
	}
}

// verify verifies the artifact of the result under the home.
func (l *lab) verify(edit func(*VerifyConfig)) (Verified, error) {
	l.t.Helper()
	cfg := VerifyConfig{Home: l.home, Artifact: filepath.Join(l.out, "hello"), Evidence: l.out, State: filepath.Join(l.dir, "state")}
	if edit != nil {
		edit(&cfg)
	}
	return Verify(l.t.Context(), cfg)
}

func (l *lab) replay() (Replayed, error) {
	return Replay(l.t.Context(), VerifyConfig{Home: l.home, Artifact: filepath.Join(l.out, "verdict.json"), State: filepath.Join(l.dir, "state")})
}
