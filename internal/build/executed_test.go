// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
)

// TestScriptsAreExecuted: a script that was executed counts beside its
// interpreter, by whatever name; a file that a program merely reads does not.
func TestScriptsAreExecuted(t *testing.T) {
	d := func(s string) hallmark.Digest { return hallmark.DigestOf([]byte(s)) }
	read := func(process int, path Raw) Event {
		return Event{Kind: EventRead, Process: process, Path: path, Digest: d(string(path)), Size: 1}
	}
	exec := func(process int, path Raw, args ...Raw) Event {
		return Event{Kind: EventExec, Process: process, Path: path, Digest: d(string(path)), Args: args}
	}
	script := func(process int, path Raw, args ...Raw) Event {
		e := exec(process, path, args...)
		e.Script = true
		return e
	}
	fork := Event{Kind: EventFork, Child: 1}
	for name, c := range map[string]struct {
		events []Event
		want   []string
	}{
		"a wrapper":        {[]Event{fork, read(1, "/opt/go/compile"), script(1, "/usr/bin/dash", "/bin/sh", "/opt/go/compile", "-V")}, []string{"/opt/go/compile", "/usr/bin/dash"}},
		"with an argument": {[]Event{fork, read(1, "/opt/x"), script(1, "/usr/bin/dash", "/bin/sh", "-e", "/opt/x")}, []string{"/opt/x", "/usr/bin/dash"}},
		"by a link":        {[]Event{fork, read(1, "/opt/real"), script(1, "/usr/bin/dash", "/bin/sh", "/usr/bin/link")}, []string{"/opt/real", "/usr/bin/dash"}},
		"read before": {[]Event{fork, read(1, "/opt/x"), exec(1, "/usr/bin/dash", "sh"), script(1, "/usr/bin/dash", "/bin/sh", "/opt/x")},
			[]string{"/opt/x", "/usr/bin/dash"}},
		"only read":      {[]Event{fork, read(1, "/usr/bin/cc"), exec(1, "/usr/bin/cc", "cc", "-c", "a.c"), read(1, "/usr/include/stdio.h")}, []string{"/usr/bin/cc"}},
		"redirected":     {[]Event{fork, read(1, "/usr/share/words"), read(1, "/usr/bin/sort"), exec(1, "/usr/bin/sort", "sort", "-u")}, []string{"/usr/bin/sort"}},
		"a shell's last": {[]Event{fork, read(1, "/usr/bin/dash"), exec(1, "/usr/bin/dash", "sh"), read(1, "/usr/lib/libc.so.6"), read(1, "/usr/bin/cc"), exec(1, "/usr/bin/cc", "cc", "-o", "/usr/out")}, []string{"/usr/bin/cc", "/usr/bin/dash"}},
		"told afterwards": {[]Event{fork, script(1, "/usr/bin/dash", "/bin/sh", "/opt/go/compile", "-V"), read(1, "/usr/bin/dash"), read(1, "/usr/lib/ld-linux-x86-64.so.2"), read(1, "/opt/go/compile"), read(1, "/etc/ld.so.cache")},
			[]string{"/opt/go/compile", "/usr/bin/dash"}},
		"told afterwards, by a link": {[]Event{fork, script(1, "/usr/bin/dash", "/bin/sh", "/usr/bin/link"), read(1, "/usr/lib/ld-linux-x86-64.so.2"), read(1, "/opt/real"), read(1, "/etc/ld.so.cache")},
			[]string{"/opt/real", "/usr/bin/dash"}},
		"a plugin": {[]Event{fork, exec(1, "/usr/bin/ld", "ld", "-plugin", "/usr/lib/lto.so"), read(1, "/usr/bin/ld"), read(1, "/usr/lib/ld-linux-x86-64.so.2"), read(1, "/etc/ld.so.cache"), read(1, "/usr/lib/lto.so")},
			[]string{"/usr/bin/ld"}},
		"an absolute name first": {[]Event{fork, exec(1, "/usr/bin/ld", "/usr/bin/ld", "-plugin", "/usr/lib/lto.so"), read(1, "/usr/bin/ld"), read(1, "/usr/lib/libctf.so.0")},
			[]string{"/usr/bin/ld"}},
		"its own name":     {[]Event{fork, read(1, "/usr/bin/env"), exec(1, "/usr/bin/env", "env", "/usr/bin/env")}, []string{"/usr/bin/env"}},
		"of the workspace": {[]Event{fork, read(1, "/workspace/x.sh"), script(1, "/usr/bin/dash", "/bin/sh", "./x.sh")}, []string{"/usr/bin/dash"}},
	} {
		sum := NewSummary()
		if err := sum.Add("s", eventLog(t, c.events...)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var got []string
		for _, x := range sum.Programs() {
			if x.Digest != d(x.Path) || x.Step != "s" {
				t.Errorf("%s: %+v", name, x)
			}
			got = append(got, x.Path)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
