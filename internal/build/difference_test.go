// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
)

// eventLog numbers events and encodes them.
func eventLog(t *testing.T, events ...Event) io.Reader {
	t.Helper()
	var b bytes.Buffer
	for i, e := range events {
		e.Seq = int64(i + 1)
		b.Write(e.Encode())
	}
	return &b
}

func TestFirstDifference(t *testing.T) {
	d := func(s string) hallmark.Digest { return hallmark.DigestOf([]byte(s)) }
	start := []Event{
		{Kind: EventExec, Process: 1, Path: "/usr/bin/sh", Args: []Raw{"sh"}}, {Kind: EventFork, Process: 1, Child: 2},
		{Kind: EventExec, Process: 2, Path: "/usr/bin/cc", Args: []Raw{"cc", "-c", "a.c"}},
	}
	log := func(more ...Event) io.Reader { return eventLog(t, append(append([]Event{}, start...), more...)...) }
	write := func(process int, path, content string) Event {
		return Event{Kind: EventWrite, Process: process, Path: Raw(path), Digest: d(content), Size: 1}
	}
	cc := func(path, content string) Written {
		return Written{Path: Raw(path), Digest: d(content), Program: "/usr/bin/cc", Args: []Raw{"cc", "-c", "a.c"}}
	}
	sh := func(path, content string) Written {
		return Written{Path: Raw(path), Digest: d(content), Program: "/usr/bin/sh", Args: []Raw{"sh"}}
	}
	for _, tc := range []struct {
		name          string
		first, second []io.Reader
		want          *Difference
	}{
		{"the same", []io.Reader{log(write(2, "/workspace/a.o", "1"))}, []io.Reader{log(write(2, "/workspace/a.o", "1"))}, nil},
		{"another order", []io.Reader{log(write(2, "/workspace/a.o", "1"), write(2, "/workspace/b.o", "2"))}, []io.Reader{log(write(2, "/workspace/b.o", "2"), write(2, "/workspace/a.o", "1"))}, nil},
		{"the object before the program", []io.Reader{log(write(2, "/workspace/a.o", "1"), write(1, "/workspace/app", "3"))}, []io.Reader{log(write(2, "/workspace/a.o", "2"), write(1, "/workspace/app", "4"))},
			&Difference{First: cc("/workspace/a.o", "1"), Second: cc("/workspace/a.o", "2")}},
		{"the second write", []io.Reader{log(write(2, "/workspace/a", "1"), write(1, "/workspace/a", "2"))}, []io.Reader{log(write(2, "/workspace/a", "1"), write(1, "/workspace/a", "3"))},
			&Difference{First: sh("/workspace/a", "2"), Second: sh("/workspace/a", "3")}},
		{"drawn names", []io.Reader{log(write(2, "/tmp/ccX1.s", "1"))}, []io.Reader{log(write(2, "/tmp/ccY2.s", "1"))}, nil},
		{"drawn names, other bytes", []io.Reader{log(write(2, "/tmp/ccX1.s", "1"))}, []io.Reader{log(write(2, "/tmp/ccY2.s", "2"))}, &Difference{First: cc("/tmp/ccX1.s", "1"), Second: cc("/tmp/ccY2.s", "2")}},
		{"more", []io.Reader{log(write(2, "/workspace/a", "1"))}, []io.Reader{log(write(2, "/workspace/a", "1"), write(1, "/workspace/planted", "2"))}, &Difference{Second: sh("/workspace/planted", "2")}},
		{"fewer, and another differs", []io.Reader{log(write(1, "/workspace/x", "0"), write(2, "/workspace/a", "1"))}, []io.Reader{log(write(2, "/workspace/a", "2"))}, &Difference{First: cc("/workspace/a", "1"), Second: cc("/workspace/a", "2")}},
		{"a later step", []io.Reader{log(), log(write(2, "/workspace/a", "1"))}, []io.Reader{log(), log(write(2, "/workspace/a", "2"))}, &Difference{Step: 1, First: cc("/workspace/a", "1"), Second: cc("/workspace/a", "2")}},
	} {
		got, err := FirstDifference(tc.first, tc.second)
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: %s", tc.name, diff)
		}
	}
	if _, err := FirstDifference([]io.Reader{strings.NewReader("{}\n")}, nil); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("a log that is none: %v", err)
	}
}
