// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
)

// mountWay is one way to get another tool in the place of one that is read-only.
// Each has a mount of its own below toolPlace, so that none opens the door for
// the next.
type mountWay struct{ name, try string }

const toolPlace = "/opt/drill"

// mountWays try the system calls themselves, since what the mount program does
// depends on its version.
func mountWays() []mountWay {
	perl := func(script string) string { return "perl -e '" + script + "'" }
	put := func(name string) string { return " && cp own/helper " + toolPlace + "/" + name + "/helper" }
	const remount = unix.MS_REMOUNT | unix.MS_BIND // and not read-only
	return []mountWay{
		{"remount", "mount -o remount,rw,bind " + toolPlace + "/remount" + put("remount")},
		{"mount", perl(fmt.Sprintf(`my ($t, $n) = ("%s/mount", ""); exit(syscall(%d, $n, $t, $n, %d, 0) != 0)`, toolPlace, unix.SYS_MOUNT, remount)) + put("mount")},
		{"setattr", perl(fmt.Sprintf(`my ($t, $a) = ("%s/setattr", pack("QQQQ", 0, %d, 0, 0)); exit(syscall(%d, %d, $t, 0, $a, 32) != 0)`, toolPlace, unix.MOUNT_ATTR_RDONLY, unix.SYS_MOUNT_SETATTR, unix.AT_FDCWD)) + put("setattr")},
		{"bind", perl(fmt.Sprintf(`my ($s, $t, $n) = ("own/helper", "%s/bind/helper", ""); exit(syscall(%d, $s, $t, $n, %d, 0) != 0)`, toolPlace, unix.SYS_MOUNT, unix.MS_BIND))},
		{"fsmount", perl(fmt.Sprintf(`my ($k, $n, $t) = ("tmpfs", "", "%s/fsmount"); my $f = syscall(%d, $k, 0); exit 1 if $f < 0; syscall(%d, $f, %d, 0, 0, 0) == 0 or exit 1; my $m = syscall(%d, $f, 0, 0); exit 1 if $m < 0; exit(syscall(%d, $m, $n, %d, $t, %d) != 0)`,
			toolPlace, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.FSCONFIG_CMD_CREATE, unix.SYS_FSMOUNT, unix.SYS_MOVE_MOUNT, unix.AT_FDCWD, unix.MOVE_MOUNT_F_EMPTY_PATH)) + put("fsmount")},
		{"clone", perl(fmt.Sprintf(`my ($s, $n, $t) = ("own", "", "%s/clone"); my $m = syscall(%d, %d, $s, %d); exit 1 if $m < 0; exit(syscall(%d, $m, $n, %d, $t, %d) != 0)`,
			toolPlace, unix.SYS_OPEN_TREE, unix.AT_FDCWD, unix.OPEN_TREE_CLONE, unix.SYS_MOVE_MOUNT, unix.AT_FDCWD, unix.MOVE_MOUNT_F_EMPTY_PATH))},
		{"userns", "unshare -Urm sh -c 'mount --bind own/helper " + toolPlace + "/userns/helper && sh " + toolPlace + "/userns/helper >out/userns.said'; grep -q poisoned out/userns.said"},
		// Nothing is written to the real toolchain: that it could be is enough.
		{"usr", "mount -o remount,rw,bind /usr && grep -q ' /usr rw' /proc/self/mountinfo"},
	}
}

// remountTools: in both runs the tools lie on read-only mounts, and a step wants
// to write to them or to cover them.
func remountTools(ctx context.Context, g *ground, c Control) (effect, error) {
	ways := mountWays()
	var script strings.Builder
	script.WriteString("mkdir -p out own\nprintf 'echo poisoned\\n' > own/helper\nmount --version >/dev/null\nunshare --version >/dev/null\nperl -e 1\n")
	var mounts []sandbox.Mount
	var artifacts []string
	for _, w := range ways {
		dir := g.path("platform-mounts", w.name)
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "helper"), []byte("echo reviewed\n"), 0o644)); err != nil {
			return effect{}, fmt.Errorf("writing a tool: %w", err)
		}
		mounts = append(mounts, sandbox.Mount{Source: dir, Target: toolPlace + "/" + w.name})
		artifacts = append(artifacts, "out/"+w.name)
		see := "sh " + toolPlace + "/" + w.name + "/helper | grep -q poisoned"
		if w.name == "userns" || w.name == "usr" {
			see = ":" // seen while it is so
		}
		fmt.Fprintf(&script, "sh %[2]s/%[1]s/helper | grep -q reviewed\nif { %[3]s; } 2>/dev/null && %[4]s; then echo got >out/%[1]s; else echo none >out/%[1]s; fi\n", w.name, toolPlace, w.try, see)
	}
	r, err := g.project("mounts", map[string]string{"mounts.txt": script.String(), pipeline.PipelineFile: definition("sh -e mounts.txt", "test -s out/usr", artifacts...)})
	if err != nil {
		return effect{}, err
	}
	f, err := g.run(ctx, r, compose(func(p *app.BuildParts) {
		if c == Off {
			p.Engine = func(place app.BuildPlace) build.Engine {
				return mountable{unboxed: unboxed{place: place, promises: g.promises}, mounts: mounts}
			}
			return
		}
		onPlatform(p, mounts...)
	}))
	if err != nil {
		return effect{}, err
	}
	var got, not []string
	for _, w := range ways {
		switch strings.TrimSpace(string(f.artifact(w.name))) {
		case "got":
			got = append(got, w.name)
		case none:
			not = append(not, w.name)
		default:
			return effect{}, fmt.Errorf("the step left nothing for %s: %s", w.name, f.codes())
		}
	}
	if len(got) > 0 {
		if c == Off && len(not) > 0 {
			return effect{}, fmt.Errorf("%v do not work without the control either", not)
		}
		return effect{done: true, detail: fmt.Sprintf("another tool lay in the place of the platform's by each of %v", got)}, nil
	}
	for _, m := range mounts {
		if b, err := os.ReadFile(filepath.Join(m.Source, "helper")); err != nil || string(b) != "echo reviewed\n" {
			return effect{}, errors.Join(fmt.Errorf("the tool %s is %q", m.Target, b), err)
		}
	}
	return effect{reason: hallmark.CodeSandboxCallsClosed, detail: fmt.Sprintf("none of %v changed what a tool is", not)},
		errors.Join(f.guaranteed("seccomp"), f.guaranteed("capabilities-dropped"), f.guaranteed("root-read-only"))
}

// mountable lacks the system call filter and the loss of privileges: a step sees
// tools on read-only mounts, in a mount namespace of its own, and may mount.
// Nothing that it does there reaches the host's mounts.
type mountable struct {
	unboxed
	mounts []sandbox.Mount
}

// Run implements build.Engine.
func (e mountable) Run(ctx context.Context, c build.Command, out io.Writer) (build.CommandReport, error) {
	room := "mount -t tmpfs none /opt\nmount --rbind /usr /usr\nmount -o remount,bind,ro /usr\n"
	for _, m := range e.mounts {
		room += fmt.Sprintf("mkdir -p '%[1]s'\nmount --bind '%[2]s' '%[1]s'\nmount -o remount,bind,ro '%[1]s'\n", m.Target, m.Source)
	}
	how := "unshare -Urm"
	if os.Geteuid() == 0 {
		how = "unshare -m --propagation private"
	}
	c.Env = append(c.Env[:len(c.Env):len(c.Env)], "DRILL_ROOM="+room, "DRILL_STEP="+c.Script)
	c.Script = "exec " + how + ` sh -e -c 'eval "$DRILL_ROOM"; eval "$DRILL_STEP"'`
	return e.unboxed.Run(ctx, c, out)
}
