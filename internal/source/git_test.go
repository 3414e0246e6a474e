// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package source_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/gitcli"
	"github.com/hallmark-sc/hallmark/internal/identity"
	"github.com/hallmark-sc/hallmark/internal/source"
)

// TestSignedByGit lets git and ssh-keygen themselves sign a merge commit, whose
// headers hold a signed tag too, and changes one byte of it.
func TestSignedByGit(t *testing.T) {
	for _, program := range []string{"git", "ssh-keygen"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not here", program)
		}
	}
	dir, key := t.TempDir(), filepath.Join(t.TempDir(), "key")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	pub, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	git := func(stdin string, args ...string) string {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=Dev", "-c", "user.email=dev@example.org", "-c", "gpg.format=ssh",
			"-c", "user.signingkey=" + key}, args...)...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Dir(key), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null"}
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git("", "init", "-q", "-b", "main")
	git("", "commit", "-q", "--allow-empty", "-m", "first")
	git("", "checkout", "-q", "-b", "side")
	git("", "commit", "-q", "--allow-empty", "-m", "side")
	git("", "tag", "-s", "-m", "a signed tag", "v1")
	git("", "checkout", "-q", "main")
	git("", "merge", "-q", "--no-ff", "-S", "-m", "merge\n\nwith a body", "v1")

	signers, err := identity.ParseAllowedSigners("f", []byte("dev@example.org "+string(pub)))
	if err != nil {
		t.Fatal(err)
	}
	check := func() hallmark.CheckRecord {
		t.Helper()
		repo, err := gitcli.Open(t.Context(), gitcli.Config{Repo: dir, WorkDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		p, err := source.Check(t.Context(), source.Config{Repository: repo, URI: "file:///r", Files: repo.Files, Clock: time.Now,
			Verify: func(sig, signed []byte, at time.Time) source.Verdict {
				who, err := signers.VerifySSH(sig, signed, at)
				if err != nil {
					return source.Verdict{Code: hallmark.CodeSourceSignatureInvalid, Message: err.Error()}
				}
				return source.Verdict{Principals: who}
			}}, "HEAD")
		if err != nil {
			t.Fatal(err)
		}
		return *p.Check
	}
	raw := git("", "cat-file", "commit", "HEAD") + "\n"
	if !strings.Contains(raw, "\nmergetag ") || !strings.Contains(raw, "\ngpgsig ") {
		t.Fatalf("git made another commit than expected:\n%s", raw)
	}
	if rec := check(); rec.Outcome != hallmark.Pass {
		t.Errorf("%v %+v", rec.Outcome, rec.Reasons)
	}
	forged := git(strings.Replace(raw, "with a body", "with a hook", 1), "hash-object", "-t", "commit", "-w", "--stdin")
	git("", "update-ref", "HEAD", forged)
	if rec := check(); rec.Outcome != hallmark.Fail || rec.Reasons[0].Code != hallmark.CodeSourceSignatureInvalid {
		t.Errorf("forged: %v %+v", rec.Outcome, rec.Reasons)
	}
}
