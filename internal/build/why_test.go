// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"strings"
	"testing"
)

func TestWay(t *testing.T) {
	log := logOf(t,
		Event{Kind: EventFork, Child: 1},
		Event{Kind: EventExec, Process: 1, Path: "/usr/bin/make", Digest: of("make")},
		Event{Kind: EventFork, Process: 1, Child: 2},
		Event{Kind: EventExec, Process: 2, Path: "/usr/bin/cc1", Digest: of("cc1"), Args: []Raw{"cc1", "a.c"}},
		Event{Kind: EventRead, Process: 2, Path: "/workspace/a.c", Digest: of("a")},
		Event{Kind: EventWrite, Process: 2, Path: "/tmp/a.s", Digest: of("s")},
		Event{Kind: EventRename, Process: 2, Path: "/tmp/a.s", To: "/tmp/b.s"},
		Event{Kind: EventRead, Process: 2, Path: "/workspace/late.h", Digest: of("late")},
		Event{Kind: EventFork, Process: 1, Child: 3},
		Event{Kind: EventExec, Process: 3, Path: "/usr/bin/as", Digest: of("as")},
		Event{Kind: EventRead, Process: 3, Path: "/tmp/b.s", Digest: of("s")},
		Event{Kind: EventWrite, Process: 3, Path: "/workspace/out", Digest: of("out")},
		Event{Kind: EventRead, Process: 3, Path: "/workspace/after.txt", Digest: of("after")},
	)
	f, err := NewFlow([]StepLog{{"build", log}})
	if err != nil {
		t.Fatal(err)
	}
	story := func(path Raw) string {
		var out []string
		for _, h := range f.Way(path, "", of("out")) {
			out = append(out, string(h.Kind)+":"+string(h.Path))
		}
		return strings.Join(out, " ")
	}
	if got, want := story("/workspace/a.c"), "file:/workspace/a.c reader:/usr/bin/cc1 file:/tmp/a.s renamed:/tmp/b.s reader:/usr/bin/as file:/workspace/out"; got != want {
		t.Errorf("a.c: %s", got)
	}
	// Read after the only file that its reader wrote: it can only have gone through
	// the processes.
	if got := story("/workspace/late.h"); !strings.Contains(got, "parent:/usr/bin/make child:/usr/bin/as file:/workspace/out") {
		t.Errorf("late.h: %s", got)
	}
	if got := story("/workspace/none.h"); got != "" {
		t.Errorf("a file that nobody read: %s", got)
	}
	if r := f.Readers("/workspace/a.c", ""); len(r) != 1 || r[0].Process != 2 {
		t.Errorf("readers: %+v", r)
	}
	if f := f.Find("", of("s")); len(f) != 2 {
		t.Errorf("by digest: %+v", f)
	}
}
