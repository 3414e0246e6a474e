// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package gitcli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/source"
)

// Upstream is a repository at a server that is not ours, as git reaches it over
// HTTPS. It is safe for concurrent use.
type Upstream struct {
	URL        string // CheckURL has nothing against it
	Authority  string // file of the certificates to trust instead of the machine's; "" is the machine's
	Credential string // file with the lines username= and password=; "" is none
}

// CheckURL reports what is wrong with the URL of an upstream. A credential goes
// there, so it is encrypted, but to this machine itself.
func CheckURL(raw string) error {
	u, err := url.Parse(raw)
	if err != nil {
		return hallmark.Errorf(hallmark.KindUsage, "upstream: that is no URL") // which could hold a token
	}
	bad := func(why string) error {
		return hallmark.WithHint(hallmark.Errorf(hallmark.KindUsage, "upstream %s: %s", u.Redacted(), why), "give https://HOST/OWNER/NAME.git, and the token in a file")
	}
	switch {
	case u.User != nil:
		return bad("a URL is shown and logged; no name or token may be in it")
	case u.Host == "" || strings.Trim(u.Path, "/") == "":
		return bad("want the URL of a repository")
	case u.RawQuery != "" || u.Fragment != "" || strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return bad("want no query, fragment or space")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return bad("not encrypted; http is taken to this machine itself alone")
	case u.Scheme != "http" && u.Scheme != "https":
		return bad("want https")
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// git makes a command that may speak with the upstream and with nobody else. The
// credential goes from its file to git by a pipe: it is in no argument and no
// variable, which others on the machine could read.
func (u *Upstream) git(ctx context.Context, args ...string) *exec.Cmd {
	fixed := []string{
		"-c", "http.followRedirects=false", "-c", "http.sslVerify=true", "-c", "http.proxy=", "-c", "http.lowSpeedLimit=1", "-c", "http.lowSpeedTime=60", "-c", "http.emptyAuth=false",
		"-c", "credential.helper=", "-c", "push.followTags=false", "-c", "push.gpgSign=false", "-c", "push.recurseSubmodules=no", "-c", "submodule.recurse=false", "-c", "fetch.fsckObjects=true", "-c", "fetch.recurseSubmodules=false",
		"-c", "fetch.unpackLimit=1", "-c", "core.askPass=false", "-c", "advice.pushUpdateRejected=false",
	}
	if u.Authority != "" {
		fixed = append(fixed, "-c", "http.sslCAInfo="+u.Authority)
	}
	if u.Credential != "" {
		fixed = append(fixed, "-c", `credential.helper=!f() { test "$1" = get && cat "$HALLMARK_CREDENTIAL"; }; f`)
	}
	cmd := command(ctx, append(fixed, args...)...)
	scheme, _, _ := strings.Cut(u.URL, ":")
	cmd.Env = append(cmd.Env, "GIT_ALLOW_PROTOCOL="+scheme, "HALLMARK_CREDENTIAL="+u.Credential)
	// Whoever kills the server ends what it was about to send.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

// run runs a command from a thread that lives as long as it does: the kernel sends
// the death signal when the thread ends that started it.
func run(cmd *exec.Cmd) (stdout, stderr string, err error) {
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- cmd.Run()
	}()
	err = <-done
	return out.String(), said.String(), err
}

// unreachable is the error of an upstream that did not answer as git wants it.
func (u *Upstream) unreachable(doing, said string, err error) error {
	why := firstLine(said)
	if why == "" && err != nil {
		why = err.Error()
	}
	e := hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeUpstreamUnreachable, "%s at %s: %.300s", doing, u.URL, why)
	return hallmark.WithHint(e, "look whether it is up, and whether the token is valid and may write there; then try again")
}

// Refs lists the branches and tags of the upstream.
func (u *Upstream) Refs(ctx context.Context) (map[string]string, error) {
	out, said, err := run(u.git(ctx, "ls-remote", "--quiet", "--refs", "--heads", "--tags", "--", u.URL))
	if err != nil {
		return nil, u.unreachable("asking for references", said, err)
	}
	refs := map[string]string{}
	for line := range strings.Lines(out) {
		id, name, ok := strings.Cut(strings.TrimSpace(line), "\t")
		if !ok || !isObjectName(id) || !strings.HasPrefix(name, "refs/") {
			return nil, u.unreachable("asking for references", fmt.Sprintf("it listed %.80q", line), nil)
		}
		refs[name] = id
	}
	return refs, nil
}

// Forward pushes updates to the upstream, all or none, each only if the reference
// is there where the update says it was. The objects may still be in quarantine.
// Which code the error has says whether the upstream moved, did not want it, or was
// not reached: after the last nobody knows what happened there.
func (u *Upstream) Forward(ctx context.Context, in *Incoming, updates []source.Update) error {
	args := []string{"--git-dir=" + in.dir, "push", "--porcelain", "--atomic", "--no-verify", "--no-thin"}
	var specs []string
	for _, x := range updates {
		if !isObjectName(x.Old) || !isObjectName(x.New) {
			return hallmark.Errorf(hallmark.KindInternal, "object names %.80q, %.80q", x.Old, x.New)
		}
		old, spec := x.Old, x.New+":"+x.Ref
		if zero(x.Old) {
			old = "" // it must not be there
		}
		if zero(x.New) {
			spec = ":" + x.Ref
		}
		args, specs = append(args, "--force-with-lease="+x.Ref+":"+old), append(specs, spec)
	}
	cmd := u.git(ctx, slices.Concat(args, []string{"--", u.URL}, specs)...)
	cmd.Env = append(cmd.Env, forwards+filepath.Dir(in.dir))
	if in.quarantine != "" {
		cmd.Env = append(cmd.Env, "GIT_OBJECT_DIRECTORY="+in.quarantine, "GIT_ALTERNATE_OBJECT_DIRECTORIES="+filepath.Join(in.dir, "objects"))
	}
	out, said, err := run(cmd)
	if err == nil {
		return nil
	}
	if ref, why := rejected(out); ref != "" {
		if strings.Contains(why, "stale info") || strings.Contains(why, "fetch first") || strings.Contains(why, "failed to update ref") || strings.Contains(why, "reference already exists") {
			return hallmark.Coded(hallmark.KindDenied, hallmark.CodeUpstreamMoved, "%s of %s moved outside of the gate while this was forwarded", ref, u.URL)
		}
		return hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodeUpstreamRefused, "%s does not take %s: %.200s%s", u.URL, ref, why, remark(said)),
			"let the account that the gate forwards with push there, or change what is pushed")
	}
	return u.unreachable("forwarding", said, err)
}

// forwards marks the processes that send to an upstream, by the directory of the
// repository.
const forwards = "HALLMARK_FORWARDS="

// EndForwards ends what a killed server left of pushes to upstreams, for the
// repositories below a directory. Git starts programs of its own, which the kernel
// does not end with the server: one that goes on would move an upstream after
// somebody asked it where it is. Nothing of it runs any more when this returns.
func EndForwards(ctx context.Context, dir string) error {
	for range 1000 {
		left := 0
		all, err := filepath.Glob("/proc/[0-9]*/environ")
		if err != nil {
			return fmt.Errorf("looking for processes: %w", err)
		}
		for _, file := range all {
			env, err := os.ReadFile(file)
			if err != nil { // gone, or somebody else's
				continue
			}
			ours := slices.ContainsFunc(bytes.Split(env, []byte{0}), func(v []byte) bool {
				at, ok := bytes.CutPrefix(v, []byte(forwards))
				return ok && (string(at) == dir || strings.HasPrefix(string(at), dir+"/"))
			})
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if ours && err == nil {
				left++
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
					return fmt.Errorf("ending process %d, which still forwards: %w", pid, err)
				}
			}
		}
		if left == 0 {
			return nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return hallmark.Errorf(hallmark.KindUnavailable, "processes of an earlier server still forward for %s and can't be ended", dir)
}

// rejected reads why the first reference was not taken: "!\tFROM:TO\tSUMMARY (WHY)".
// What was refused only since another one was comes last.
func rejected(porcelain string) (ref, why string) {
	for line := range strings.Lines(porcelain) {
		f := strings.SplitN(strings.TrimRight(line, "\n"), "\t", 3)
		if len(f) != 3 || f[0] != "!" {
			continue
		}
		_, to, _ := strings.Cut(f[1], ":")
		if ref == "" || strings.Contains(why, "atomic") && !strings.Contains(f[2], "atomic") {
			ref, why = to, f[2]
		}
	}
	return ref, why
}

// remark is what the upstream said to it.
func remark(said string) string {
	var out []string
	for line := range strings.Lines(said) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "remote:"); ok && strings.TrimSpace(text) != "" && len(out) < 3 {
			out = append(out, strings.TrimSpace(text))
		}
	}
	if len(out) == 0 {
		return ""
	}
	return fmt.Sprintf(" (%.300s)", strings.Join(out, "; "))
}

// Fetch brings what a reference of the upstream shows into a bare repository of
// ours, where no reference shows it yet. It must come to exactly that object.
func (u *Upstream) Fetch(ctx context.Context, dir, ref, id string) error {
	if _, said, err := run(u.git(ctx, "--git-dir="+dir, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", "--", u.URL, ref)); err != nil {
		return u.unreachable("fetching "+ref, said, err)
	}
	has, err := Shows(ctx, dir, id)
	if err == nil && !has {
		err = hallmark.Coded(hallmark.KindDenied, hallmark.CodeUpstreamMoved, "%s of %s does not show %s any more", ref, u.URL, id)
	}
	return err
}

// Mirror makes a bare repository with the branches and tags of the upstream.
func (u *Upstream) Mirror(ctx context.Context, dir string) error {
	if err := Create(ctx, dir, "main"); err != nil {
		return err
	}
	if _, said, err := run(u.git(ctx, "--git-dir="+dir, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--", u.URL, "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")); err != nil {
		return u.unreachable("fetching everything", said, err)
	}
	return nil
}

// Shows reports whether a bare repository of ours has an object and everything that
// it leads to.
func Shows(ctx context.Context, dir, id string) (bool, error) {
	if !isObjectName(id) {
		return false, hallmark.Errorf(hallmark.KindInvalid, "object name %.80q", id)
	}
	err := command(ctx, "--git-dir="+dir, "rev-list", "--quiet", "--objects", "--not", "--all", "--not", id).Run()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || ctx.Err() != nil) {
		return false, fmt.Errorf("looking for %s: %w", id, err)
	}
	return err == nil, nil
}
