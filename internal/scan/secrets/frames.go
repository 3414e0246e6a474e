// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// Object is one git object on its way to the worker.
type Object struct {
	ID, Type, Path string
	Data           []byte
}

// maxFrame bounds one object.
const maxFrame = 512 << 20

// FrameWriter writes objects as frames: a header line "ID TYPE SIZE PATH", with
// the path quoted as in Go, and the bytes. The end is a frame of its own that
// holds the count, so that a stream that was cut off is not taken for a whole.
type FrameWriter struct {
	w *bufio.Writer
	n int
}

// NewFrameWriter starts a stream.
func NewFrameWriter(w io.Writer) *FrameWriter { return &FrameWriter{w: bufio.NewWriterSize(w, 1<<20)} }

// Write adds an object.
func (f *FrameWriter) Write(o Object) error {
	f.n++
	if _, err := fmt.Fprintf(f.w, "%s %s %d %q\n", o.ID, o.Type, len(o.Data), o.Path); err != nil {
		return err
	}
	_, err := f.w.Write(o.Data)
	return err
}

// Close ends the stream.
func (f *FrameWriter) Close() error {
	if _, err := fmt.Fprintf(f.w, "end %d\n", f.n); err != nil {
		return err
	}
	return f.w.Flush()
}

// ReadFrames calls fn for every object of a stream, and errs when the stream
// ends early.
func ReadFrames(r io.Reader, fn func(Object) error) (int, error) {
	in := bufio.NewReaderSize(r, 1<<20)
	for n := 0; ; n++ {
		line, err := in.ReadString('\n')
		if err != nil {
			return n, fmt.Errorf("reading frame %d: %w", n, io.ErrUnexpectedEOF)
		}
		line = strings.TrimSuffix(line, "\n")
		if count, ok := strings.CutPrefix(line, "end "); ok {
			if count != strconv.Itoa(n) {
				return n, fmt.Errorf("the stream says %s objects, %d were read", count, n)
			}
			if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
				return n, errors.New("data after the end of the stream")
			}
			return n, nil
		}
		f := strings.SplitN(line, " ", 4)
		if len(f) != 4 {
			return n, fmt.Errorf("frame %d has a bad header", n)
		}
		size, err := strconv.Atoi(f[2])
		if err != nil || size < 0 || size > maxFrame {
			return n, fmt.Errorf("frame %d has size %q", n, f[2])
		}
		path, err := strconv.Unquote(f[3])
		if err != nil {
			return n, hallmark.Errorf(hallmark.KindInvalid, "frame %d has path %q", n, f[3])
		}
		data := make([]byte, size)
		if _, err := io.ReadFull(in, data); err != nil {
			return n, fmt.Errorf("reading frame %d: %w", n, io.ErrUnexpectedEOF)
		}
		if err := fn(Object{ID: f[0], Type: f[1], Path: path, Data: data}); err != nil {
			return n, err
		}
	}
}
