// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
)

func TestEventsKeepEveryByte(t *testing.T) {
	all := make([]byte, 0, 256)
	for i := range 256 {
		all = append(all, byte(i))
	}
	want := []Event{
		{Seq: 1, Kind: EventExec, Process: 1, Path: "/bin/sh", Digest: hallmark.DigestOf([]byte("x")), Args: []Raw{"sh", "-c", Raw(all), `\x41`, "<&>", "é\u2028"}},
		{Seq: 2, Kind: EventExit, Process: 1, Code: 3},
	}
	var log bytes.Buffer
	for _, e := range want {
		b, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		log.Write(b)
	}
	var got []Event
	if err := ReadEvents(bytes.NewReader(log.Bytes()), func(e Event) error { got = append(got, e); return nil }); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestReadEventsRefuses(t *testing.T) {
	const one = `{"seq":1,"time":0,"kind":"exit","process":1}` + "\n"
	for name, log := range map[string]string{
		"gap":           one + `{"seq":3,"time":0,"kind":"exit","process":1}` + "\n",
		"order":         `{"time":0,"seq":1,"kind":"exit","process":1}` + "\n",
		"space":         `{"seq":1, "time":0,"kind":"exit","process":1}` + "\n",
		"unknown field": `{"seq":1,"time":0,"kind":"exit","process":1,"more":1}` + "\n",
		"cut":           one + `{"seq":2,"time"`,
		"no line end":   strings.TrimSuffix(one, "\n"),
		"bad escape":    `{"seq":1,"time":0,"kind":"read","process":1,"path":"\\q"}` + "\n",
		"needless":      `{"seq":1,"time":0,"kind":"read","process":1,"path":"\\x41"}` + "\n",
	} {
		if err := ReadEvents(strings.NewReader(log), func(Event) error { return nil }); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := ReadEvents(strings.NewReader(one), func(Event) error { return nil }); err != nil {
		t.Error(err)
	}
}

func FuzzReadEvents(f *testing.F) {
	f.Add([]byte(`{"seq":1,"time":0,"kind":"read","process":1,"path":"\\x41"}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var again bytes.Buffer
		err := ReadEvents(bytes.NewReader(b), func(e Event) error {
			line, err := e.Encode()
			again.Write(line)
			return err
		})
		if err == nil && !bytes.Equal(again.Bytes(), b) {
			t.Errorf("accepted bytes that are not canonical: %q", b)
		}
	})
}
