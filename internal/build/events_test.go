// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bytes"
	"encoding/json"
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
		log.Write(e.Encode())
	}
	var got []Event
	if err := ReadEvents(bytes.NewReader(log.Bytes()), func(e Event) error { got = append(got, e); return nil }); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// marshalled is an event as encoding/json writes it, which is the canonical form.
func marshalled(t *testing.T, e Event) string {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestEncodeIsWhatJSONIs(t *testing.T) {
	for _, e := range []Event{
		{},
		{Seq: -1, Time: 1 << 62, Kind: EventFork, Process: 3, Child: -4},
		{Seq: 1, Kind: EventExec, Path: "/a", Digest: "sha256:<&>", Args: []Raw{"", "\x00\b\f\n\r\t\x1f\x7f", "\u2028\u2029\ufffd\xff", `"\`}, Script: true},
		{Seq: 2, Kind: EventExit, Code: -1, Signal: "SIG\xffTERM"},
		{Seq: 3, Kind: EventConnect, Address: "[::1]:80", Refused: true},
		{Seq: 4, Kind: EventRename, Path: "é", To: "\xed\xa0\x80", Size: -9},
	} {
		if d := cmp.Diff(marshalled(t, e), string(e.Encode())); d != "" {
			t.Error(d)
		}
	}
}

func FuzzEncode(f *testing.F) {
	f.Add(int64(1), int64(2), 3, "read", "/p\n", "", "sha256:ab", "a", "b\xff", true)
	f.Fuzz(func(t *testing.T, seq, size int64, n int, kind, path, to, digest, one, two string, is bool) {
		e := Event{
			Seq: seq, Time: size, Kind: EventKind(kind), Process: n, Child: -n, Path: Raw(path), To: Raw(to), Digest: hallmark.Digest(digest),
			Size: size, Args: []Raw{Raw(one), Raw(two)}, Script: is, Code: n, Signal: one, Address: Raw(two), Refused: !is,
		}
		if d := cmp.Diff(marshalled(t, e), string(e.Encode())); d != "" {
			t.Error(d)
		}
	})
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
			again.Write(e.Encode())
			return nil
		})
		if err == nil && !bytes.Equal(again.Bytes(), b) {
			t.Errorf("accepted bytes that are not canonical: %q", b)
		}
	})
}
