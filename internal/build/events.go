// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/hallmark-sc/hallmark"
)

// EventKind is what happened. A log holds these and no others.
type EventKind string

// The kinds of event, and the fields that each carries beside seq, time, kind
// and process.
const (
	EventFork   EventKind = "fork"   // process made Child
	EventExec   EventKind = "exec"   // process became the program Path with Digest and Args
	EventExit   EventKind = "exit"   // process ended with Code, or by Signal
	EventRead   EventKind = "read"   // process opened Path (read, mapped or executed): a regular file with Digest and Size
	EventWrite  EventKind = "write"  // process closed Path after it could write to it: Digest and Size are what it held then
	EventMake   EventKind = "make"   // process made the name Path (file, directory, link, fifo)
	EventRename EventKind = "rename" // process moved Path to To
	EventLink   EventKind = "link"   // process gave Path the further name To
	EventRemove EventKind = "remove" // process removed the name Path
	// process tried to reach Address; Refused says that it did not
	EventConnect EventKind = "connect"
	// Path did not hold, when it was looked at again, what a process had read:
	// Digest is what it holds now
	EventUnstable EventKind = "unstable"
)

// Event is one thing that the kernel reported about a step, told from outside of
// it.
type Event struct {
	Seq  int64     `json:"seq"`  // 1, 2, 3, … without a gap
	Time int64     `json:"time"` // nanoseconds since the trace began
	Kind EventKind `json:"kind"`
	// Process is the number of a process in this trace, from 1, which is never
	// used again; 0 is one that the recorder does not know.
	Process int             `json:"process"`
	Child   int             `json:"child,omitempty"`
	Path    Raw             `json:"path,omitempty"` // absolute, inside the sandbox; a label: the file is what Digest says
	To      Raw             `json:"to,omitempty"`
	Digest  hallmark.Digest `json:"digest,omitempty"`
	Size    int64           `json:"size,omitempty"`
	Args    []Raw           `json:"args,omitempty"`
	// Script says that what was asked for is a script, and the program its
	// interpreter.
	Script  bool   `json:"script,omitempty"`
	Code    int    `json:"code,omitempty"`
	Signal  string `json:"signal,omitempty"`
	Address Raw    `json:"address,omitempty"`
	Refused bool   `json:"refused,omitempty"`
}

// Raw is a string of bytes that need not be UTF-8, as paths and arguments are.
// As text a backslash is doubled and a byte that is no part of UTF-8 is \xHH, so
// that nothing is lost.
type Raw string

// MarshalText quotes.
func (r Raw) MarshalText() ([]byte, error) { return []byte(r.quoted()), nil }

func (r Raw) quoted() string {
	s := string(r)
	if utf8.ValidString(s) && !strings.Contains(s, `\`) {
		return s
	}
	var b []byte
	for len(s) > 0 {
		c, n := utf8.DecodeRuneInString(s)
		switch {
		case c == utf8.RuneError && n == 1:
			b = fmt.Appendf(b, `\x%02x`, s[0])
		case c == '\\':
			b = append(b, `\\`...)
		default:
			b = append(b, s[:n]...)
		}
		s = s[n:]
	}
	return string(b)
}

// UnmarshalText takes the quoting away; text that MarshalText does not write is
// an error.
func (r *Raw) UnmarshalText(text []byte) error {
	var b []byte
	for s := string(text); len(s) > 0; {
		switch {
		case strings.HasPrefix(s, `\\`):
			b, s = append(b, '\\'), s[2:]
		case strings.HasPrefix(s, `\x`) && len(s) >= 4:
			var c byte
			if n, err := fmt.Sscanf(s[2:4], "%02x", &c); n != 1 || err != nil {
				return fmt.Errorf("reading an escaped byte: %q", s[:4])
			}
			b, s = append(b, c), s[4:]
		case s[0] == '\\':
			return fmt.Errorf("reading an escape: %q", s[:min(len(s), 4)])
		default:
			b, s = append(b, s[0]), s[1:]
		}
	}
	out := Raw(b)
	if out.quoted() != string(text) {
		return errors.New("reading text: it is not quoted as it should be")
	}
	*r = out
	return nil
}

// Encode is the one form of an event: a line of JSON with the fields in the
// order of the type, without spaces. The canonical event log of a step is these
// lines in the order of their numbers, and its digest is in the process
// attestation.
func (e Event) Encode() []byte { return e.Append(nil) }

// Append is Encode at the end of b. It writes what encoding/json writes for the
// type (without escaping HTML), by hand: a build has tens of thousands of events,
// and finding the fields anew for each was a good part of what recording cost.
func (e Event) Append(b []byte) []byte {
	number := func(name string, n int64, always bool) {
		if n != 0 || always {
			b = append(append(append(b, ',', '"'), name...), '"', ':')
			b = strconv.AppendInt(b, n, 10)
		}
	}
	text := func(name, s string, always bool) {
		if s != "" || always {
			b = append(append(append(b, ',', '"'), name...), '"', ':')
			b = appendString(b, s)
		}
	}
	truth := func(name string, is bool) {
		if is {
			b = append(append(append(b, ',', '"'), name...), `":true`...)
		}
	}
	b = strconv.AppendInt(append(b, `{"seq":`...), e.Seq, 10)
	number("time", e.Time, true)
	text("kind", string(e.Kind), true)
	number("process", int64(e.Process), true)
	number("child", int64(e.Child), false)
	text("path", e.Path.quoted(), false)
	text("to", e.To.quoted(), false)
	text("digest", string(e.Digest), false)
	number("size", e.Size, false)
	if len(e.Args) > 0 {
		b = append(b, `,"args":[`...)
		for i, a := range e.Args {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendString(b, a.quoted())
		}
		b = append(b, ']')
	}
	truth("script", e.Script)
	number("code", int64(e.Code), false)
	text("signal", e.Signal, false)
	text("address", e.Address.quoted(), false)
	truth("refused", e.Refused)
	return append(b, '}', '\n')
}

// appendString writes a JSON string as encoding/json does.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			i++
			if c >= ' ' && c != '"' && c != '\\' {
				continue
			}
			b = append(b, s[from:i-1]...)
			from = i
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\b':
				b = append(b, `\b`...)
			case '\f':
				b = append(b, `\f`...)
			case '\n':
				b = append(b, `\n`...)
			case '\r':
				b = append(b, `\r`...)
			case '\t':
				b = append(b, `\t`...)
			default:
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			}
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		i += n
		switch {
		case r == utf8.RuneError && n == 1:
			b = append(append(b, s[from:i-1]...), `\ufffd`...)
			from = i
		case r == '\u2028' || r == '\u2029':
			b = append(append(b, s[from:i-n]...), '\\', 'u', '2', '0', '2', hex[r&15])
			from = i
		}
	}
	return append(append(b, s[from:]...), '"')
}

// maxEvent bounds one line of a log: arguments are at most some megabytes.
const maxEvent = 32 << 20

// ReadEvents reads a canonical event log and gives each event to fn, in order.
// Anything that Encode would not have written, a gap in the numbers included, is
// an error that names the line.
func ReadEvents(r io.Reader, fn func(Event) error) error {
	lines := bufio.NewReaderSize(r, 1<<16)
	var last int64
	var again []byte
	for n := 1; ; n++ {
		line, err := readLine(lines)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading event log line %d: %w", n, err)
		}
		dec := json.NewDecoder(bytes.NewReader(line))
		dec.DisallowUnknownFields()
		var e Event
		if err := dec.Decode(&e); err != nil {
			return hallmark.Errorf(hallmark.KindInvalid, "reading event log line %d: %w", n, err)
		}
		if again = e.Append(again[:0]); !bytes.Equal(again, line) {
			return hallmark.Errorf(hallmark.KindInvalid, "reading event log line %d: it is not in canonical form", n)
		}
		if e.Seq != last+1 {
			return hallmark.Errorf(hallmark.KindInvalid, "reading event log line %d: event %d follows event %d", n, e.Seq, last)
		}
		last = e.Seq
		if err := fn(e); err != nil {
			return err
		}
	}
}

func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			if len(line) > 0 && errors.Is(err, io.EOF) {
				return nil, io.ErrUnexpectedEOF
			}
			return nil, err
		case len(line) > maxEvent:
			return nil, hallmark.Errorf(hallmark.KindInvalid, "more than %d bytes", maxEvent)
		}
	}
}

// Trace is what the tracing agent says of one step.
type Trace struct {
	Engine string // what recorded it: fanotify+bpf, ptrace
	Log    string // path on the host of the canonical event log
	Digest hallmark.Digest
	Events int64
	// Failure is why the trace is not whole: an event was lost, could not be
	// recorded, or the agent ended too early. Empty: it is whole.
	Failure string
	// Attribution is empty when every read is known with the process that did it,
	// else it says what is not known.
	Attribution string
}

// Whole reports whether a trace tells everything; the zero value does not.
func (t Trace) Whole() bool {
	return t.Failure == "" && t.Digest != "" && t.Engine != "" && t.Events > 0
}
